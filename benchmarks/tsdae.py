"""Trains TSDAE, the denoising autoencoder of sentence-transformers, with the flags of run_pretraining.py.

    python benchmarks/tsdae.py --model_name_or_path ENCODER --train_file TEXTS --learning_rate 3e-5 --max_steps 1000

60 % of the words are deleted, and a decoder reconstructs the text from one pooled vector (Wang et al., 2021). The
decoder shares the weights of the encoder if its architecture has a causal form; otherwise it is a new BERT of the same
size. Weights that the encoder does not have learn at --predictor_learning_rate. The encoder's own pooling replaces the
first token. Texts and their order are those of run_pretraining.py. Without --model_name_or_path the encoder is a new
one of the size --preset, pooled by the plain mean.
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


# Share of the words that are deleted.
DELETED = 0.6


def main(argv: list[str] | None = None) -> None:
    """Trains, and writes encoder, log and arguments to the output folder."""
    argv = sys.argv[1:] if argv is None else argv
    classes = (ModelArguments, DataArguments, TextJepaTrainingArguments)
    model_args, data_args, args = parse_arguments(classes, argv, __doc__.split("\n")[0])
    set_seed(args.seed)
    corpus = load_corpus(data_args, cache_dir=model_args.cache_dir)
    start = model_args.model_name_or_path or new_encoder(model_args, data_args, args, corpus)
    encoder = SentenceTransformer(start, device=str(args.device), trust_remote_code=False)
    examples = make_examples(corpus, encoder.tokenizer, data_args)["train"]
    output_dir = Path(args.output_dir)
    loss = DenoisingAutoEncoderLoss(encoder, **decoder_for(encoder, output_dir / "decoder")).train()
    optimizer = make_optimizer(encoder, loss, args)
    steps = args.max_steps
    warmup_steps = args.get_warmup_steps(steps)
    schedule = get_scheduler(args.lr_scheduler_type, optimizer, warmup_steps, steps)

    def tokenize(texts: list[str]) -> dict[str, torch.Tensor]:
        batch = encoder.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=data_args.max_length,
            return_tensors="pt",
        )
        return dict(batch.to(args.device))

    chance = random.Random(args.seed)
    records = []
    tokens = 0
    started = time.perf_counter()
    for step, rows in zip(range(1, steps + 1), batches(examples, args), strict=False):
        ids = [row.tolist() for row in examples[rows]["input_ids"]]
        texts = encoder.tokenizer.batch_decode(ids, skip_special_tokens=True)
        damaged_texts = [damaged(text, chance) for text in texts]
        value = loss([tokenize(damaged_texts), tokenize(texts)], None)
        value.backward()
        torch.nn.utils.clip_grad_norm_(loss.parameters(), args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens += sum(map(len, ids))
        if step % args.logging_steps == 0 or step == steps:
            record = {
                "step": step,
                "loss": value.item(),
                "tokens_seen": tokens,
                "train_seconds": time.perf_counter() - started,
            }
            records.append(record)
    encoder.save(str(output_dir))
    write_metrics(output_dir, records)
    write_arguments(output_dir / "arguments.yaml", model_args, data_args, args)


def make_optimizer(
    encoder: SentenceTransformer,
    loss: DenoisingAutoEncoderLoss,
    args: TextJepaTrainingArguments,
) -> torch.optim.Optimizer:
    """AdamW with a learning rate of its own for the parameters outside of the encoder, those of the decoder."""
    inside = {id(parameter) for parameter in encoder.parameters()}
    around = [parameter for parameter in loss.parameters() if id(parameter) not in inside]
    around_rate = args.predictor_learning_rate or args.learning_rate
    groups = [
        {"params": list(encoder.parameters())},
        {"params": around, "lr": around_rate},
    ]
    return torch.optim.AdamW(groups, lr=args.learning_rate, weight_decay=args.weight_decay)


def new_encoder(model_args, data_args, args, corpus) -> str:
    """Writes an encoder with random weights of the requested size; returns its folder."""
    tokenizer, _ = make_tokenizer(model_args, data_args, args, corpus)
    model = make_model(model_args, data_args, ObjectiveArguments(pooling="mean"), tokenizer)
    folder = Path(args.output_dir, "start")
    export_encoder(model, tokenizer, folder, data_args.max_length)
    return str(folder)


def batches(examples, args) -> Iterator[list[int]]:
    """Yields the rows of each step, endlessly, pass by pass."""
    size = args.per_device_train_batch_size
    sampler = LengthGroupedSampler(examples["length"], size, args.seed)
    while True:
        order = list(sampler)
        for start in range(0, len(order), size):
            yield order[start : start + size]
        sampler.set_epoch(sampler.epoch + 1)


def damaged(text: str, chance: random.Random) -> str:
    """The text with most of its words deleted; at least one is kept."""
    words = text.split()
    kept = [word for word in words if chance.random() >= DELETED]
    return " ".join(kept or words[:1])


def decoder_for(encoder: SentenceTransformer, folder: Path) -> dict:
    """Arguments for the decoder: none if the encoder's architecture can decode, else a new BERT of its size."""
    config = encoder.transformers_model.config
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return {}
    decoder_config = BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        pad_token_id=config.pad_token_id,
        intermediate_size=4 * config.hidden_size,
        is_decoder=True,
        add_cross_attention=True,
    )
    BertLMHeadModel(decoder_config).save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    return {"decoder_name_or_path": str(folder), "tie_encoder_decoder": False}


if __name__ == "__main__":
    run_command(main)
