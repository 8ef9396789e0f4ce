"""TSDAE, the denoising autoencoder of sentence-transformers, with the flags and files of run_pretraining.py.

    python benchmarks/tsdae.py --model_name_or_path ENCODER --train_file TEXTS --learning_rate 3e-5 --max_steps 1000

Wang et al. (2021): 60 % of the words are deleted, and a decoder that sees one pooled vector writes the text again. It
shares the encoder's weights where that architecture has a causal form, and else is a new BERT of the same size; what
the encoder lacks learns at --predictor_learning_rate. The encoder's own pooling stands in for the first token. Texts
and their order are those of run_pretraining.py. Without --model_name_or_path the encoder is a new one, of the --preset
and with the plain mean.
"""

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.losses import DenoisingAutoEncoderLoss
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, BertConfig, BertLMHeadModel, get_scheduler, set_seed

from text_jepa.cli import parse_arguments, run_command
from text_jepa.data.batching import LengthGroupedSampler
from text_jepa.data.corpus import load_corpus
from text_jepa.share.export import export_encoder
from text_jepa.train.arguments import (
    DataArguments,
    ModelArguments,
    ObjectiveArguments,
    TextJepaTrainingArguments,
    write_arguments,
)
from text_jepa.train.build import make_examples, make_model, make_tokenizer
from text_jepa.train.run_log import write_metrics


DELETED = 0.6


def main(argv: list[str] | None = None) -> None:
    """Trains and leaves encoder, log and arguments in the output folder."""
    argv = sys.argv[1:] if argv is None else argv
    classes = (ModelArguments, DataArguments, TextJepaTrainingArguments)
    model_args, data_args, args = parse_arguments(classes, argv, __doc__.split("\n")[0])
    set_seed(args.seed)
    corpus = load_corpus(data_args, seed=args.seed, cache_dir=model_args.cache_dir)
    start = model_args.model_name_or_path or new_encoder(model_args, data_args, args, corpus)
    encoder = SentenceTransformer(start, device=str(args.device))
    examples = make_examples(corpus, encoder.tokenizer, data_args)["train"]
    output_dir = Path(args.output_dir)
    loss = DenoisingAutoEncoderLoss(encoder, **decoder_for(encoder, output_dir / "decoder")).train()
    inside = {id(parameter) for parameter in encoder.parameters()}
    around = [parameter for parameter in loss.parameters() if id(parameter) not in inside]
    groups = [{"params": list(encoder.parameters())}]
    groups.append({"params": around, "lr": args.predictor_learning_rate or args.learning_rate})
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, weight_decay=args.weight_decay)
    steps = args.max_steps
    schedule = get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps)
    chance, records, tokens, started = random.Random(args.seed), [], 0, time.perf_counter()
    for step, rows in zip(range(1, steps + 1), batches(examples, args), strict=False):
        ids = [row.tolist() for row in examples[rows]["input_ids"]]
        texts = encoder.tokenizer.batch_decode(ids, skip_special_tokens=True)
        sides = [
            encoder.tokenizer(
                side, padding=True, truncation=True, max_length=data_args.max_length, return_tensors="pt"
            )
            for side in ([damaged(text, chance) for text in texts], texts)
        ]
        value = loss([dict(side.to(args.device)) for side in sides], None)
        value.backward()
        torch.nn.utils.clip_grad_norm_(loss.parameters(), args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens += sum(map(len, ids))
        if step % args.logging_steps == 0 or step == steps:
            seconds = time.perf_counter() - started
            records.append({"step": step, "loss": value.item(), "tokens_seen": tokens, "train_seconds": seconds})
    encoder.save(str(output_dir))
    write_metrics(output_dir, records)
    write_arguments(output_dir / "arguments.yaml", model_args, data_args, args)


def new_encoder(model_args, data_args, args, corpus) -> str:
    """The folder of an encoder with random weights, of the size asked for."""
    tokenizer, _ = make_tokenizer(model_args, data_args, args, corpus)
    model = make_model(model_args, data_args, ObjectiveArguments(pooling="mean"), tokenizer)
    folder = Path(args.output_dir, "start")
    export_encoder(model, tokenizer, folder, data_args.max_length)
    return str(folder)


def batches(examples, args) -> Iterator[list[int]]:
    """Rows of one step after another, pass by pass."""
    size = args.per_device_train_batch_size
    sampler = LengthGroupedSampler(examples["length"], size, args.seed)
    while True:
        order = list(sampler)
        yield from (order[start : start + size] for start in range(0, len(order), size))
        sampler.set_epoch(sampler.epoch + 1)


def damaged(text: str, chance: random.Random) -> str:
    """The text without most of its words; one at least stays."""
    words = text.split()
    return " ".join([word for word in words if chance.random() >= DELETED] or words[:1])


def decoder_for(encoder: SentenceTransformer, folder: Path) -> dict:
    """Nothing if the encoder's own architecture can decode; else the folder of a new BERT of its size."""
    config = encoder.transformers_model.config
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return {}
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "pad_token_id")
    shape = {name: getattr(config, name) for name in names} | {"intermediate_size": 4 * config.hidden_size}
    BertLMHeadModel(BertConfig(**shape, is_decoder=True, add_cross_attention=True)).save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    return {"decoder_name_or_path": str(folder), "tie_encoder_decoder": False}


if __name__ == "__main__":
    run_command(main)
