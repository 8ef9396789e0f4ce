"""Pretrains a Text-JEPA: raw text in, an encoder out that opens everywhere.

    accelerate launch run_pretraining.py configs/tiny_cpu.yaml                              # the built-in corpus
    accelerate launch run_pretraining.py configs/tiny_cpu.yaml --train_file notes/*.txt     # your own texts
    accelerate launch run_pretraining.py --model_name_or_path bert-base-uncased --train_file corpus.jsonl

Values of the YAML file come first, flags win. The output folder is the encoder, an ordinary checkpoint of its own
architecture; `pretraining/` in it holds the complete model for going on.
"""

import dataclasses
import inspect
import json
import logging
import math
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import datasets
import torch
import transformers
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, SchedulerType, TrainerState, set_seed
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import get_last_checkpoint

from text_jepa import TextJepaConfig, TextJepaForPreTraining
from text_jepa.arguments import UsageError, config_arguments, nearest, parse_arguments, run_command
from text_jepa.data import EndlessStream, load_corpus, tokenize_corpus, train_tokenizer
from text_jepa.export import export_encoder, parameter_counts, save_for_continuing, trained_encoder
from text_jepa.masking import DataCollatorForTextJepa, SpanLengthDistribution, vocabulary
from text_jepa.model_card import final_figures, plot_curves, write_model_card
from text_jepa.probing import embed_texts, nearest_texts
from text_jepa.training import NONFINITE_LIMIT, TextJepaTrainer, TextJepaTrainingArguments, metrics_of


logger = logging.getLogger("text_jepa")


@dataclass
class ModelArguments:
    """The encoder to start from."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Encoder to start from: folder or Hub name of an encoder or a Text-JEPA."}
    )
    init: Literal["pretrained", "from_config"] = field(
        default="pretrained",
        metadata={"help": "With --model_name_or_path: keep its weights, or only its architecture and tokenizer."},
    )
    preset: str | None = field(
        default=None, metadata={"help": "Size of a new encoder: tiny, mini, small, base or large. Default: mini."}
    )
    config_name: str | None = field(
        default=None, metadata={"help": "Configuration of a new encoder: folder or Hub name, any architecture."}
    )
    text_config: str | None = field(
        default=None,
        metadata={
            "help": "Fields of a new encoder's configuration that differ, as JSON: '{\"num_hidden_layers\": 3}'."
        },
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer: folder or Hub name. Default: the encoder's; trained if it is new."}
    )
    tokenizer_type: Literal["wordpiece", "bpe"] = field(
        default="wordpiece", metadata={"help": "Kind of a tokenizer trained on the corpus; bpe is byte-level."}
    )
    vocab_size: int = field(default=16_384, metadata={"help": "Words of a tokenizer trained on the corpus."})
    lowercase: bool = field(default=True, metadata={"help": "Fold case and accents in a tokenizer trained here."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the Hub."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads and the built-in corpus are kept."})
    export_encoder: Literal["target", "context"] = field(
        default="target", metadata={"help": "Exported encoder: the moving average, or the one that was optimised."}
    )


@dataclass
class DataArguments:
    """The texts, and what of them is hidden."""

    train_file: list[str] | None = field(
        default=None, metadata={"help": "Files, folders or globs: txt, json, jsonl, parquet, csv, tsv (.gz too)."}
    )
    validation_file: list[str] | None = field(default=None, metadata={"help": "Held-out texts, likewise."})
    dataset_name: str | None = field(default=None, metadata={"help": "Dataset on the Hub, or a folder of one."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_split: str = field(default="train", metadata={"help": "Its split to train on."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the documents."})
    sample_by: Literal["line", "paragraph", "document"] = field(
        default="line", metadata={"help": "What a document is in a text file: a line, a paragraph, or the whole file."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read while training; needs --max_steps."})
    shuffle_buffer: int = field(default=10_000, metadata={"help": "Texts of a stream that are shuffled together."})
    validation_split_percentage: float = field(
        default=5, metadata={"help": "Documents held out where there is no held-out part, in percent."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use so many training documents."})
    max_eval_samples: int = field(default=1_000, metadata={"help": "Evaluate on so many held-out texts."})
    max_length: int = field(default=128, metadata={"help": "Longest text in tokens; longer documents are split."})
    split_documents: Literal["sentence", "window"] = field(
        default="sentence", metadata={"help": "Split long documents at ends of sentences, or at full windows."}
    )
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes that tokenize."})
    overwrite_cache: bool = field(default=False, metadata={"help": "Tokenize again."})

    num_masks: int = field(default=1, metadata={"help": "Masks per text and step; they share one target pass."})
    mask_ratio: float = field(default=0.5, metadata={"help": "Share of the words hidden by a mask."})
    span_length_distribution: SpanLengthDistribution = field(
        default="geometric", metadata={"help": "Distribution of the lengths of hidden spans."}
    )
    mean_span_length: float = field(default=3.0, metadata={"help": "Mean length of a hidden span in tokens."})
    max_span_length: int = field(default=10, metadata={"help": "Longest hidden span in tokens."})
    whole_words: bool = field(default=True, metadata={"help": "Hide whole words, never a part of one."})

    def __post_init__(self):
        for name in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")


ObjectiveArguments = config_arguments(TextJepaConfig, exclude=("text_config",))


def main(argv: list[str] | None = None) -> Path:
    """Runs the command; returns the folder of the encoder."""
    argv = sys.argv[1:] if argv is None else argv
    classes = (ModelArguments, DataArguments, ObjectiveArguments, TextJepaTrainingArguments)
    model_args, data_args, objective_args, args = parse_arguments(classes, argv, __doc__.split("\n")[0])
    set_up_logging(args)
    check_trackers(args)
    check_flags(model_args, args)
    if data_args.streaming and args.max_steps <= 0:
        raise UsageError("--streaming needs --max_steps: a stream has no known end")
    checkpoint = check_output_dir(args)
    set_seed(args.seed)

    # The first process makes the caches, the others read them.
    with args.main_process_first(desc="preparing the corpus"):
        corpus = load_corpus(**fields_for(load_corpus, data_args), seed=args.seed, cache_dir=model_args.cache_dir)
        if data_args.max_train_samples is not None:
            corpus["train"] = corpus["train"].take(data_args.max_train_samples)
        tokenizer, is_new = make_tokenizer(model_args, data_args, args, corpus["train"])
        examples = tokenize_corpus(
            corpus, tokenizer, num_proc=data_args.preprocessing_num_workers, **fields_for(tokenize_corpus, data_args)
        )
        model = make_model(model_args, data_args, objective_args, tokenizer)
        collator = make_collator(data_args, args, tokenizer, model.config.max_text_length)
        if is_new and args.process_index == 0:
            # Not before all that was asked for is known to be possible: a refused run leaves no trace.
            tokenizer.save_pretrained(Path(args.output_dir, "tokenizer"))
    if data_args.streaming:
        shuffled = examples["train"].shuffle(seed=args.seed, buffer_size=data_args.shuffle_buffer)
        examples["train"] = EndlessStream(shuffled)
        held_out = list(examples["validation"].take(data_args.max_eval_samples))
    else:
        held_out = examples["validation"]
        held_out = held_out.shuffle(seed=args.seed).take(min(data_args.max_eval_samples, len(held_out)))
    trainer = TextJepaTrainer(model, args, collator, examples["train"], held_out, processing_class=tokenizer)
    show_sizes(trainer)

    if checkpoint is None or not load_finished(trainer, checkpoint):
        trainer.train(resume_from_checkpoint=checkpoint)
    check_outcome(trainer)
    evaluated = [record["step"] for record in trainer.state.log_history if "eval_loss" in record]
    if evaluated[-1:] != [trainer.state.global_step]:
        trainer.evaluate()
    trainer.save_state()
    if args.process_index == 0:
        leave_results(trainer, tokenizer, (model_args, data_args, objective_args, args), argv)
        encoder = trained_encoder(model, model_args.export_encoder)
        show_neighbours(encoder, tokenizer, held_out, data_args.max_length)
        print(f"\nThe encoder is in {args.output_dir}  (its card: {Path(args.output_dir, 'README.md')})")
    return Path(args.output_dir)


def fields_for(function, arguments) -> dict:
    """The fields of a dataclass of arguments that are parameters of a function."""
    return {name: value for name, value in vars(arguments).items() if name in inspect.signature(function).parameters}


def leave_results(trainer, tokenizer, arguments, argv):
    """Writes the encoder, the complete model, the arguments, the curves and the card into the output folder."""
    model_args, data_args, _, args = arguments
    model, output_dir = trainer.model, Path(args.output_dir)
    export_encoder(model, tokenizer, output_dir, data_args.max_length, model_args.export_encoder)
    save_for_continuing(model, tokenizer, output_dir / "pretraining")
    write_arguments(output_dir / "arguments.yaml", *arguments)
    records = metrics_of(output_dir)
    plot_curves(records, output_dir / "curves.png")
    last = final_figures(records)
    facts = {
        "data": describe_data(data_args),
        "train_texts": size_of(trainer.train_dataset),
        "held_out_texts": size_of(trainer.eval_dataset),
        "start": model_args.model_name_or_path or "random weights",
        "masks": f"{data_args.num_masks} per text, {data_args.mask_ratio:.0%} of the words hidden in spans of "
        f"{data_args.span_length_distribution} length, {data_args.mean_span_length:g} tokens on average.",
        "command": shlex.join(["accelerate", "launch", "run_pretraining.py", *argv]),
        "max_length": data_args.max_length,
        "steps": f"{trainer.state.global_step:,}",
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "tokens": f"{last['tokens_seen']:,}",
        "minutes": f"{last['train_seconds'] / 60:.1f}",
        "which": model_args.export_encoder,
    }
    write_model_card(output_dir, model, records, facts, table_of_settings(args, data_args))


def size_of(texts) -> str:
    """Number of texts in words."""
    return f"{len(texts):,}" if hasattr(texts, "__len__") else "a stream of"


def show_sizes(trainer):
    """Prints how much trains on how much, and warns of idle cores."""
    args, cores = trainer.args, os.cpu_count() or 1
    if args.process_index > 0:
        return
    trainable, total = parameter_counts(trainer.model)
    texts = f"{size_of(trainer.train_dataset)} training texts, {size_of(trainer.eval_dataset)} held out"
    print(f"{texts}; {trainable:,} of {total:,} parameters train")
    if args.device.type == "cpu" and args.world_size == 1 and torch.get_num_threads() == 1 < cores:
        print(f"1 of {cores} cores is used; accelerate launch --num_cpu_threads_per_process {cores} uses all")


def load_finished(trainer, checkpoint) -> bool:
    """Loads a checkpoint if its run has done all its steps, which the Trainer would follow by one more."""
    state = TrainerState.load_from_json(os.path.join(checkpoint, "trainer_state.json"))
    steps = trainer.args.max_steps if trainer.args.max_steps > 0 else state.max_steps
    if state.global_step < steps:
        return False
    trainer._load_from_checkpoint(checkpoint)
    trainer.state = state
    return True


def check_trackers(args):
    """Raises UsageError if a tracker is unknown or not installed."""
    try:
        for tracker in get_reporting_integration_callbacks(args.report_to):
            tracker()
    except (ValueError, ImportError, RuntimeError) as error:
        raise UsageError(f"--report_to: {_first_line(error)}") from error


def check_flags(model_args, args):
    """Raises UsageError for what cannot be done, rather than leaving it undone in silence."""
    if args.hub_token:
        raise UsageError(
            "--hub_token would end up in files; set the variable HF_TOKEN, or log in with `hf auth login`"
        )
    if args.push_to_hub:
        raise UsageError("--push_to_hub: upload the finished folder instead: hf upload NAME OUTPUT_DIR")
    if args.n_gpu > 1:
        raise UsageError("several GPUs in one process: start one process for each with accelerate launch")
    if model_args.init == "from_config" and not model_args.model_name_or_path:
        raise UsageError("--init from_config goes with --model_name_or_path")
    if model_args.text_config and model_args.model_name_or_path and model_args.init == "pretrained":
        raise UsageError("--text_config changes a new encoder, not a pretrained one; add --init from_config")


def check_outcome(trainer):
    """Raises UsageError if the run stopped because something was wrong; nothing is exported then."""
    output_dir, monitor = trainer.args.output_dir, trainer.monitor
    if trainer.nonfinite_steps == NONFINITE_LIMIT:
        raise UsageError(
            f"the gradient was not finite {NONFINITE_LIMIT} times in a row; the last good state is the newest "
            f"checkpoint in {output_dir}; lower --learning_rate or lengthen --warmup_steps"
        )
    if monitor.collapsed and trainer.args.stop_on_collapse:
        raise UsageError(f"the run collapsed and was stopped; checkpoints are in {output_dir}. {monitor.remedy}")


def set_up_logging(args):
    """One process speaks, and only of what matters."""
    logging.basicConfig(format="%(message)s", level=logging.INFO if args.process_index == 0 else logging.ERROR)
    for name in ("httpx", "datasets", "accelerate", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


def check_output_dir(args) -> str | None:
    """The checkpoint to go on from, if asked.

    Raises:
        UsageError: The folder holds something and nothing was said of resuming, or there is nothing to resume.
    """
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir {folder}: is a file")
    resume = args.resume_from_checkpoint
    if resume in (None, "false", "False", False):
        # Only the first process looks: the others may come when it has begun to write.
        if args.process_index == 0 and folder.exists() and any(folder.iterdir()):
            raise UsageError(
                f"--output_dir {folder}: not empty; name another folder, or go on with --resume_from_checkpoint true"
            )
        return None
    if resume in ("true", "True", "auto", True):
        resume = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if resume is None:
            raise UsageError(f"--resume_from_checkpoint: no checkpoint in {folder}")
    elif not Path(resume, "trainer_state.json").is_file():
        raise UsageError(f"--resume_from_checkpoint {resume}: no checkpoint there (trainer_state.json is missing)")
    return resume


def make_collator(data_args, args, tokenizer, limit) -> DataCollatorForTextJepa:
    """The collator with the masks asked for; lengths that tensor cores like, where the encoder has positions for."""
    fits = -(-data_args.max_length // 8) * 8 <= (limit or math.inf)
    try:
        return DataCollatorForTextJepa(
            tokenizer,
            seed=args.seed,
            pad_to_multiple_of=8 if fits and (args.bf16 or args.fp16) else None,
            **fields_for(DataCollatorForTextJepa, data_args),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def make_tokenizer(model_args, data_args, args, train):
    """The tokenizer named, the encoder's, the one in the output folder, or a new one; and whether it is new."""
    name = model_args.tokenizer_name or model_args.model_name_or_path
    kept = Path(args.output_dir, "tokenizer")
    if name is None and kept.is_dir():
        name = str(kept)
    if name is None:
        texts = (row["text"] for row in train)
        return train_tokenizer(
            texts, model_args.vocab_size, model_args.lowercase, data_args.max_length, model_args.tokenizer_type
        ), True
    try:
        hub = {"cache_dir": model_args.cache_dir}
        if not model_args.tokenizer_name:
            hub["revision"] = model_args.model_revision
        return AutoTokenizer.from_pretrained(name, **hub), False
    except (OSError, ValueError) as error:
        flag = "tokenizer_name" if model_args.tokenizer_name else "model_name_or_path"
        raise UsageError(f"--{flag} {name}: no tokenizer there ({_first_line(error)})") from error


def make_model(model_args, data_args, objective_args, tokenizer) -> TextJepaForPreTraining:
    """The model around a trained encoder, or a new one of the size or configuration asked for."""
    fields = {name: value for name, value in vars(objective_args).items() if value is not None}
    hub = {"cache_dir": model_args.cache_dir, "revision": model_args.model_revision}
    name = model_args.model_name_or_path
    chosen = [flag for flag in ("preset", "config_name", "model_name_or_path") if getattr(model_args, flag)]
    if len(chosen) > 1:
        raise UsageError(f"--{chosen[0]} and --{chosen[1]} exclude each other: they name the encoder")
    try:
        shape = json.loads(model_args.text_config or "{}")
    except ValueError as error:
        raise UsageError(f"--text_config {model_args.text_config}: not JSON: {error}") from error
    if not isinstance(shape, dict):
        raise UsageError(f"--text_config {model_args.text_config}: expected fields and values, '{{...}}'")
    try:
        if name and model_args.init == "pretrained":
            # A pretraining checkpoint goes on with its predictor and target encoder, any other encoder gets new ones.
            is_ours = AutoConfig.from_pretrained(name, **hub).model_type == TextJepaConfig.model_type
            load = TextJepaForPreTraining.from_pretrained if is_ours else TextJepaForPreTraining.from_encoder
            model = load(name, **hub, **fields)
        elif name or model_args.config_name:
            source = name or model_args.config_name
            model = TextJepaForPreTraining(config_from(source, tokenizer_fields(tokenizer), shape, fields, hub))
        else:
            length = {"max_position_embeddings": max(512, data_args.max_length)}
            text_config = tokenizer_fields(tokenizer) | length | shape
            model = TextJepaForPreTraining(TextJepaConfig.preset(model_args.preset or "mini", text_config, **fields))
    except UsageError:
        raise
    except (OSError, ValueError, TypeError, RuntimeError, StrictDataclassError) as error:
        # RuntimeError: weights of other shapes, as of a pretraining checkpoint with another predictor.
        raise UsageError(f"the model cannot be built: {_first_line(error)}") from error
    limit = model.config.max_text_length
    if limit is not None and data_args.max_length > limit:
        raise UsageError(f"--max_length {data_args.max_length}: the encoder has positions for {limit} tokens only")
    words, rows = len(vocabulary(tokenizer)), model.get_input_embeddings().num_embeddings
    if words > rows:
        raise UsageError(
            f"the tokenizer has {words} tokens, the encoder {rows}; name the encoder's own tokenizer "
            "with --tokenizer_name"
        )
    return model


def check_fields(shape, text_config):
    """Refuses fields that the encoder's configuration does not have; transformers would take them in silence."""
    known = {*(field.name for field in dataclasses.fields(text_config)), *text_config.attribute_map}
    for key in shape:
        if key not in known:
            raise UsageError(f"--text_config: unknown field '{key}'{nearest(key, known)}")


def config_from(name, text_fields, shape, fields, hub) -> TextJepaConfig:
    """A Text-JEPA configuration from a folder or the Hub, of ours or of any encoder, for a new encoder."""
    config = AutoConfig.from_pretrained(name, **hub)
    text_config = config.text_config if config.model_type == "text_jepa" else config
    check_fields(shape, text_config)
    text_config = type(text_config).from_dict(text_config.to_dict() | text_fields | shape)
    if config.model_type == "text_jepa":
        saved = {key: value for key, value in config.to_dict().items() if key in vars(ObjectiveArguments())}
        fields = saved | fields
    return TextJepaConfig(text_config=text_config, **fields)


def tokenizer_fields(tokenizer) -> dict:
    """What an encoder's configuration takes from its tokenizer."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    return {"vocab_size": len(vocabulary(tokenizer))} | {name: getattr(tokenizer, name) for name in names}


def write_arguments(path, *groups):
    """Writes all arguments with their values, as a YAML file that the command takes again."""
    values = {}
    for group in groups:
        found = group.to_dict() if isinstance(group, TextJepaTrainingArguments) else dataclasses.asdict(group)
        values |= {key: value for key, value in found.items() if value not in (None, [], {}) and key != "hub_token"}
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _first_line(error):
    # Of a failed validation the last line says what is wrong, of a failed download the first.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if isinstance(error, StrictDataclassError) else lines[0]) if lines else type(error).__name__


def describe_data(data_args) -> str:
    """The corpus in words."""
    if data_args.dataset_name:
        return " ".join(filter(None, (data_args.dataset_name, data_args.dataset_config_name)))
    if data_args.train_file:
        return ", ".join(os.path.basename(os.path.normpath(name)) for name in data_args.train_file)
    return "the built-in corpus (documentation of installed Python packages)"


def table_of_settings(args, data_args) -> dict:
    """Rows of the card's table."""
    schedule = SchedulerType(args.lr_scheduler_type).value
    return {
        "learning rate": f"{args.learning_rate:g}, {schedule}, warm-up {args.warmup_steps:g}",
        "weight decay": f"{args.weight_decay:g}",
        "decay of the target encoder": f"{args.ema_schedule}, "
        f"{'1 - 100/steps' if args.ema_decay_start is None else args.ema_decay_start} to "
        f"{'1 - 10/steps' if args.ema_decay_end is None else args.ema_decay_end}",
        "longest text": f"{data_args.max_length} tokens",
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "seed": args.seed,
    }


def show_neighbours(encoder, tokenizer, held_out, max_length: int, queries: int = 5):
    """Prints five held-out texts and the nearest other one of each."""
    texts = [tokenizer.decode(example["input_ids"], skip_special_tokens=True) for example in held_out]
    rows = [int(i * len(texts) / queries) for i in range(min(queries, len(texts)))]
    found, cosines = nearest_texts(embed_texts(encoder, tokenizer, texts, max_length), rows)
    print("\nNearest held-out texts (centred cosine of mean-pooled states):")
    for row, neighbour, cosine in zip(rows, found, cosines, strict=True):
        print(f"  query         {texts[row][:100]}\n  {cosine:.2f} nearest  {texts[neighbour][:100]}\n")


def console():
    """Entry point of `text-jepa-pretrain`."""
    run_command(main)


if __name__ == "__main__":
    console()
