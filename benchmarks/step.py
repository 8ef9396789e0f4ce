"""One optimizer step, side by side with masked language modelling of the same shape.

    python benchmarks/step.py [--vocab_size 30522] [--width 256] [--layers 4] [--repeats 7] [--json FILE]

Each arm does forward, backward, clipping, fused AdamW and, where it has one, the update of the target encoder, on the
same 32 texts of 128 random tokens, dropout off. Arms take turns in one process; a ratio compares medians. Half the
tokens are hidden from a Text-JEPA; the masked language model computes logits for every token, as transformers does.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from text_jepa import TextJepaConfig, TextJepaForPreTraining
from text_jepa.masking import DataCollatorForTextJepa


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vocab_size", type=int, default=30_522)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()

    torch.manual_seed(0)
    shape = {
        "vocab_size": args.vocab_size,
        "hidden_size": args.width,
        "num_hidden_layers": args.layers,
        "num_attention_heads": max(1, args.width // 64),
        "intermediate_size": 4 * args.width,
        "max_position_embeddings": max(512, args.length),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    tokenizer = random_tokenizer(args.vocab_size)
    ids = np.random.default_rng(0).integers(3, args.vocab_size, (args.texts, args.length))
    ids[:, 0], ids[:, -1] = 1, 2
    examples = [{"input_ids": row} for row in ids]
    collators = {m: DataCollatorForTextJepa(tokenizer, num_masks=m) for m in (1, 2, 4)}

    arms = {"bert_mlm": masked_language_model(shape, torch.from_numpy(ids))}
    for m, collator in collators.items():
        bert = TextJepaConfig(text_config={"model_type": "bert", **shape})
        arms[f"text_jepa_m{m}"] = text_jepa(bert, collator(examples))
    pure = TextJepaConfig(text_config={"model_type": "bert", **shape}, token_loss_weight=0.0)
    arms["text_jepa_m1_pure"] = text_jepa(pure, collators[1](examples))
    moving_average = TextJepaForPreTraining(TextJepaConfig(text_config={"model_type": "bert", **shape}))

    seconds = take_turns(
        {
            **arms,
            "collator": lambda: collators[1](examples),
            "ema": lambda: moving_average.update_target_encoder(0.999),
        },
        args.repeats,
    )
    base = statistics.median(seconds["bert_mlm"])
    step = statistics.median(seconds["text_jepa_m1"])
    print(f"{args.layers} × {args.width}, {args.texts} × {args.length} tokens, {args.vocab_size:,} words, ", end="")
    print(f"{torch.get_num_threads()} threads, medians of {args.repeats}\n")
    print("| step | seconds (median, min to max) | ratio to bert_mlm |\n|---|---|---|")
    for name in arms:
        times = seconds[name]
        print(f"| {name} | {statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f}) ", end="")
        print(f"| {statistics.median(times) / base:.3f} |")
    shares = {name: statistics.median(seconds[name]) / step for name in ("collator", "ema")}
    print(f"\nof a text_jepa_m1 step: collator {shares['collator']:.2%}, moving average {shares['ema']:.2%}")
    if args.json:
        ratios = {name: statistics.median(seconds[name]) / base for name in arms if name != "bert_mlm"}
        with open(args.json, "w") as file:
            json.dump({"ratio_to_bert_mlm": ratios, "share_of_step": shares, "seconds": seconds}, file, indent=2)


def random_tokenizer(vocab_size):
    """A tokenizer of single-token words; three of them are special."""
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    vocabulary = [*special.values(), *(f"w{i}" for i in range(vocab_size - len(special)))]
    model = models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="w0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special)


def text_jepa(config, batch):
    """A step of Text-JEPA on a collated batch."""
    model = TextJepaForPreTraining(config).train()
    update = optimizer_step(model)

    def step():
        update(model(**batch).loss)
        model.update_target_encoder(0.999)

    return step


def masked_language_model(shape, ids):
    """A step of transformers' masked language model with 15 % of the tokens to predict."""
    model = BertForMaskedLM(BertConfig(**shape)).train()
    labels = torch.where(torch.rand(ids.shape) < 0.15, ids, -100)
    update = optimizer_step(model)
    return lambda: update(model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss)


def optimizer_step(model):
    """Backward, clipping and AdamW, the same for every arm."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def update(loss):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update


def take_turns(arms, repeats):
    """Seconds of each arm, `repeats` times in turn after one round that does not count."""
    seconds = {name: [] for name in arms}
    for _ in range(repeats + 1):
        for name, arm in arms.items():
            started = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - started)
    return {name: times[1:] for name, times in seconds.items()}


if __name__ == "__main__":
    main()
