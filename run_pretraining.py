"""Pretrains a Text-JEPA: raw text in, an encoder out that opens everywhere.

    accelerate launch run_pretraining.py configs/tiny_cpu.yaml                              # the built-in corpus
    accelerate launch run_pretraining.py configs/tiny_cpu.yaml --train_file notes/*.txt     # your own texts
    accelerate launch run_pretraining.py --model_name_or_path bert-base-uncased --train_file corpus.jsonl

Values of the YAML file come first, flags win. The output folder is the encoder, an ordinary checkpoint of its own
architecture; `pretraining/` in it holds the complete model for going on.
"""

import dataclasses
import inspect
import itertools
import json
import logging
import math
import os
import pickle
import shlex
import sys
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
import psutil
import torch
import transformers
import yaml
from accelerate.utils import broadcast_object_list
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, TrainerState, set_seed
from transformers.integrations import get_reporting_integration_callbacks

from configuration_text_jepa import OBJECTIVES
from text_jepa import TextJepaConfig, TextJepaForPreTraining, checkpointing
from text_jepa.arguments import UsageError, config_arguments, first_line, nearest, parse_arguments, run_command
from text_jepa.checkpointing import PREEMPTED, damage, differing_facts, newest_whole_checkpoint
from text_jepa.data import (
    BUILDERS,
    EndlessStream,
    find_files,
    legible,
    load_corpus,
    suffix_of,
    tokenize_corpus,
    train_tokenizer,
)
from text_jepa.export import parameter_counts, save_for_continuing, trained_encoder
from text_jepa.features import embed_texts, nearest_texts
from text_jepa.hub import push_folder
from text_jepa.masking import DataCollatorForTextJepa, MaskStrategy, SpanLengthDistribution, View, vocabulary
from text_jepa.model_card import size_of
from text_jepa.online_probe import OnlineProbeCallback
from text_jepa.tasks import load_glue, load_task_file, package_task
from text_jepa.training import (
    NONFINITE_LIMIT,
    TextJepaTrainer,
    TextJepaTrainingArguments,
    write_metrics,
)


logger = logging.getLogger("text_jepa")

# How accelerate is asked for processes.
NUM_PROCESSES = ("--num_processes", "--num-processes", "-n")


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
    objective: Literal["jepa", "mlm", "drop_mlm", "data2vec", "simcse"] = field(
        default="jepa",
        metadata={"help": "What other flags of the objective start from: ours, or a baseline in the same trainer."},
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the Hub."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads and the built-in corpus are kept."})
    export_encoder: Literal["target", "context"] = field(
        default="target", metadata={"help": "Exported encoder: the moving average, or the one that was optimised."}
    )
    license: str = field(
        default="unknown",
        metadata={"help": "Licence of the weights for the card, by its name on the Hub: apache-2.0, cc-by-sa-4.0 …"},
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
    min_length: int = field(default=2, metadata={"help": "Documents of fewer tokens are left out."})
    prepare_only: bool = field(
        default=False, metadata={"help": "End when the corpus is tokenized and cached, before any training."}
    )
    split_documents: Literal["sentence", "window"] = field(
        default="sentence", metadata={"help": "Split long documents at ends of sentences, or at full windows."}
    )
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes that tokenize."})
    overwrite_cache: bool = field(default=False, metadata={"help": "Tokenize again."})

    num_masks: int = field(default=1, metadata={"help": "Masks per text and step; they share one target pass."})
    mask_ratio: list[str] = field(
        default_factory=lambda: ["0.5"],
        metadata={
            "help": "Share of the words hidden by a mask: 0.5; two ends of an interval that each mask draws from, 0.3 "
            "0.5; or a schedule, '{start: 0.15, end: 0.4, steps: 10000}'. 0 hides nothing. With --num_spans the most "
            "that they hide."
        },
    )
    span_length_distribution: SpanLengthDistribution = field(
        default="geometric", metadata={"help": "Distribution of the lengths of hidden spans."}
    )
    mean_span_length: float = field(default=3.0, metadata={"help": "Mean length of a hidden span in tokens."})
    max_span_length: int = field(default=10, metadata={"help": "Longest hidden span in tokens."})
    num_spans: int | None = field(
        default=None, metadata={"help": "Hide so many spans, of --min_span_length to --max_span_length tokens each."}
    )
    min_span_length: int = field(default=1, metadata={"help": "With --num_spans: shortest hidden span in tokens."})
    whole_words: bool = field(default=True, metadata={"help": "Hide whole words, never a part of one."})
    mask_strategies: str | None = field(
        default=None,
        metadata={
            "help": "Several ways to hide, of which each mask draws one, instead of the flags above: names and fields "
            "of text_jepa.masking.MaskStrategy, as in '{short: {ratio: 0.15}, end: {kind: suffix, ratio: 0.25}}'."
        },
    )
    equal_counts: bool = field(
        default=False, metadata={"help": "Cut all masks of a batch to the same number of tokens, without padding."}
    )
    complement_masks: bool = field(
        default=False, metadata={"help": "Masks come in pairs, of which one hides what the other sees."}
    )
    view: View | None = field(
        default=None, metadata={"help": "Second text of the same meaning, for the sentence-level objectives."}
    )
    view_column: str | None = field(
        default=None, metadata={"help": "With --view column: the column that holds the second text."}
    )
    view_ratio: list[float] = field(
        default_factory=lambda: [0.5, 0.9],
        metadata={"help": "Share of the words that a crop or deletion keeps: a number, or two ends of an interval."},
    )

    probe_task: str | None = field(
        default=None,
        metadata={
            "help": "Probe both encoders at every evaluation on the training part of a task: packages (built in), one "
            "of GLUE, or a file with the columns text and label. Its eval_probe_* figures can choose the checkpoint: "
            "--load_best_model_at_end --metric_for_best_model eval_probe_teacher_linear."
        },
    )
    probe_data_dir: str | None = field(default=None, metadata={"help": "Folder of GLUE tasks. Default: the Hub."})

    def __post_init__(self):
        for name in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if (self.view == "column") != (self.view_column is not None):
            raise ValueError("--view column and --view_column NAME go together")
        self.mask_ratio = read_yaml("mask_ratio", f"[{', '.join(self.mask_ratio)}]")
        self.mask_ratio = self.mask_ratio if len(self.mask_ratio) > 1 else self.mask_ratio[0]
        self.view_ratio = self.view_ratio if len(self.view_ratio) > 1 else self.view_ratio[0]
        if self.mask_strategies is not None:
            self.mask_strategies = read_strategies(self.mask_strategies)
            defaults = {f.name: f.default for f in dataclasses.fields(self)} | {"mask_ratio": 0.5}
            for name in ("mask_ratio", "whole_words", *(name for name in defaults if "span" in name)):
                if getattr(self, name) != defaults[name]:
                    raise ValueError(f"--{name} and --mask_strategies exclude each other: it is a field of a strategy")


def read_yaml(flag, text):
    """The value of a flag that is written as YAML or JSON."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--{flag} {text}: not YAML: {error}") from error


def read_strategies(text) -> dict[str, dict]:
    """The fields of mask strategies by name."""
    strategies = read_yaml("mask_strategies", text)
    if not isinstance(strategies, dict) or not all(isinstance(fields, dict) for fields in strategies.values()):
        raise UsageError(
            "--mask_strategies: expected names and fields, '{short: {ratio: 0.15}, end: {kind: suffix, ratio: 0.25}}'"
        )
    known = [f.name for f in dataclasses.fields(MaskStrategy) if f.name != "name"]
    for name, fields in strategies.items():
        for key in fields:
            if key not in known:
                raise UsageError(
                    f"--mask_strategies: '{name}' has an unknown field '{key}'{nearest(str(key), known)} "
                    f"(the fields are {', '.join(known)})"
                )
    return strategies


ObjectiveArguments = config_arguments(TextJepaConfig, exclude=("text_config",))


def main(argv: list[str] | None = None) -> Path:
    """Runs the command; returns the folder of the encoder."""
    argv = sys.argv[1:] if argv is None else argv
    classes = (ModelArguments, DataArguments, ObjectiveArguments, TextJepaTrainingArguments)
    model_args, data_args, objective_args, args = parse_arguments(classes, argv, __doc__.split("\n")[0])
    set_up_logging(args)
    check_processes(args)
    check_trackers(args)
    check_flags(model_args, data_args, args)
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
        probe = make_probe(data_args, args, tokenizer, model_args.cache_dir)
        if is_new and args.process_index == 0:
            # Not before all that was asked for is known to be possible: a refused run leaves no trace.
            unfinished = Path(args.output_dir, "_tokenizer")
            tokenizer.save_pretrained(unfinished)
            unfinished.rename(Path(args.output_dir, "tokenizer"))
    if data_args.prepare_only:
        print(
            f"{size_of(examples['train'])} training texts are tokenized and cached; to train on them, the same command"
        )
        print("without --prepare_only and with --resume_from_checkpoint auto")
        return Path(args.output_dir)
    if data_args.streaming:
        shuffled = examples["train"].shuffle(seed=args.seed, buffer_size=data_args.shuffle_buffer)
        batch_size = args.train_batch_size * args.world_size
        steps = args.gradient_accumulation_steps
        examples["train"] = EndlessStream(shuffled, batch_size, steps, source_of(data_args))
        held_out = list(examples["validation"].take(data_args.max_eval_samples))
    else:
        held_out = examples["validation"]
        held_out = held_out.shuffle(seed=args.seed).take(min(data_args.max_eval_samples, len(held_out)))
    facts = facts_of(data_args, model.config, collator, examples["train"], args.dataloader_num_workers)
    about = about_run(model_args, data_args, argv)
    trainer = TextJepaTrainer(
        model, args, collator, examples["train"], held_out, facts=facts, about=about, processing_class=tokenizer
    )
    if checkpoint is not None:
        check_agreement(trainer, checkpoint)
    if probe is not None:
        probe.add_to(trainer)
    show_sizes(trainer)

    if args.process_index == 0:
        prepare_output_dir(trainer, checkpoint)
    try:
        if checkpoint is None or not load_finished(trainer, checkpoint):
            trainer.train(resume_from_checkpoint=checkpoint)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{checkpoint}: holds code where numbers belong; it was not run ({first_line(error)})"
        ) from error
    if trainer.preemption.asked and trainer.state.global_step < trainer.state.max_steps:
        logger.info(f"stopped by a signal at step {trainer.state.global_step}; --resume_from_checkpoint auto goes on")
        sys.exit(PREEMPTED)
    check_outcome(trainer)
    evaluated = [record["step"] for record in trainer.state.log_history if "eval_loss" in record]
    if trainer.weights_step not in evaluated:
        trainer.evaluate()
    trainer.save_state()
    if args.process_index == 0:
        with checkpointing.writing(args.output_dir, "the encoder"):
            leave_results(trainer, tokenizer, (model_args, data_args, objective_args, args))
        encoder = trained_encoder(model, model_args.export_encoder)
        show_neighbours(encoder, tokenizer, held_out, data_args.max_length)
        print(f"\nThe encoder is in {args.output_dir}  (its card: {Path(args.output_dir, 'README.md')})")
        if args.push_to_hub:
            publish(trainer)
    return Path(args.output_dir)


def fields_for(function, arguments) -> dict:
    """The fields of a dataclass of arguments that are parameters of a function."""
    return {name: value for name, value in vars(arguments).items() if name in inspect.signature(function).parameters}


def leave_results(trainer, tokenizer, arguments):
    """Writes the encoder, the complete model, the arguments, the curves and the cards into the output folder."""
    output_dir = Path(trainer.args.output_dir)
    trainer.export(output_dir)
    save_for_continuing(trainer.model, tokenizer, output_dir / "pretraining")
    trainer.write_card(output_dir / "pretraining", None)
    write_arguments(output_dir / "arguments.yaml", *arguments)


def publish(trainer):
    """Uploads what the run has left; it stays where it is if that fails."""
    args, name = trainer.args, trainer.hub_model_id
    try:
        print(f"It is published: {push_folder(args.output_dir, name, revision=args.hub_revision)}")
    except UsageError as error:
        command = shlex.join(["text-jepa-export", "push", args.output_dir, name])
        raise UsageError(f"the encoder is in {args.output_dir}, but {error}; `{command}` tries again") from error


def about_run(model_args, data_args, argv) -> dict:
    """What the card says that the trainer does not know."""
    name = model_args.model_name_or_path if model_args.init == "pretrained" else None
    return {
        "data": describe_data(data_args),
        "start": name or "random weights",
        "command": shlex.join(["accelerate", "launch", "run_pretraining.py", *argv]),
        "max_length": data_args.max_length,
        "license": model_args.license,
        "base_model": name if name and not Path(name).exists() else None,
        "datasets": [data_args.dataset_name]
        if data_args.dataset_name and not Path(data_args.dataset_name).exists()
        else None,
        "which": model_args.export_encoder,
    }


def show_sizes(trainer):
    """Prints how much trains on how much, and warns of idle cores."""
    args, cores = trainer.args, os.cpu_count() or 1
    if args.process_index > 0:
        return
    trainable, total = parameter_counts(trainer.model)
    texts = f"{size_of(trainer.train_dataset)} training texts, {size_of(trainer.eval_dataset)} held out"
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in trainer.model.named_children()}
    listed = ", ".join(f"{name} {count:,}" for name, count in parts.items() if count)
    print(f"{texts}; {trainable:,} of {total:,} parameters train ({listed})")
    if args.device.type == "cpu" and args.world_size == 1 and torch.get_num_threads() == 1 < cores:
        print(f"1 of {cores} cores is used; accelerate launch --num_cpu_threads_per_process {cores} uses all")


def facts_of(data_args, config, collator, train_dataset, workers) -> dict:
    """Objective, masks and data of a run, for those to be compared that go on from its checkpoints."""
    own = vars(ObjectiveArguments())
    facts = {name: value for name, value in config.to_dict().items() if name in own}
    encoder = config.text_config.to_dict()
    facts |= {f"text_config.{name}": encoder[name] for name in encoder.keys() - {"transformers_version"}}
    facts["masks"] = collator.masks_in_words()
    if hasattr(train_dataset, "__len__"):
        lengths = np.asarray(train_dataset["length"])
        checksum = zlib.crc32(lengths.tobytes())
        for row in range(0, len(lengths), -(-len(lengths) // 1_000)):  # a thousand texts stand for all
            checksum = zlib.crc32(np.asarray(train_dataset[row]["input_ids"]).tobytes(), checksum)
        facts["data"] = f"{len(lengths)} texts of {lengths.sum()} tokens ({checksum:08x})"
    else:
        # What is in a stream is not known; of files at least their size is. Workers share its files, hence its order.
        files = source_of(data_args)[1]
        facts["data"] = f"{describe_data(data_args)} ({sum(os.path.getsize(path) for path in files)} bytes)"
        names = ("dataset_split", "text_column", "view_column", "sample_by", "max_train_samples", "max_length")
        facts |= {name: getattr(data_args, name) for name in (*names, "split_documents", "shuffle_buffer")}
        facts["dataloader_num_workers"] = workers
    return facts


def check_agreement(trainer, checkpoint):
    """Raises UsageError if the run would not go on as the one that left the checkpoint, unless that is accepted."""
    differences = differing_facts(checkpoint, trainer.facts)
    if differences and not trainer.args.accept_changes:
        raise UsageError(f"{checkpoint} is of another run: {'; '.join(differences)}; --accept_changes goes on anyway")
    for difference in differences:
        logger.warning(f"going on with a change: {difference}")


def load_finished(trainer, checkpoint) -> bool:
    """Loads a checkpoint if its run has done all its steps, which the Trainer would follow by one more."""
    state = TrainerState.load_from_json(os.path.join(checkpoint, "trainer_state.json"))
    steps = trainer.args.max_steps if trainer.args.max_steps > 0 else state.max_steps
    if state.global_step < steps:
        return False
    best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    trainer._load_from_checkpoint(best or checkpoint)
    trainer.state = state
    if trainer.args.process_index == 0:
        write_metrics(trainer.args.output_dir, state.log_history)
    return True


def prepare_output_dir(trainer, checkpoint):
    """Looks for room, before the first step; and sets checkpoints aside that the run would come to again."""
    args = trainer.args
    if args.save_strategy != "no":
        checkpointing.check_room(args.output_dir, trainer.bytes_of_checkpoint())
    if checkpoint is not None and Path(checkpoint).resolve().parent == Path(args.output_dir).resolve():
        checkpointing.set_newer_aside(args.output_dir, checkpointing.step_of(Path(checkpoint)))


def check_trackers(args):
    """Raises UsageError if a tracker is unknown or not installed."""
    try:
        for tracker in get_reporting_integration_callbacks(args.report_to):
            tracker()
    except (ValueError, ImportError, RuntimeError) as error:
        raise UsageError(f"--report_to: {first_line(error)}") from error


def check_processes(args):
    """Raises UsageError if accelerate was asked for more processes than it started: with --cpu it starts one."""
    launcher = psutil.Process().parent()
    words = launcher.cmdline() if launcher and args.world_size == 1 else []
    if any("accelerate" in word for word in words):
        asked = [value for flag, value in itertools.pairwise(words) if flag in NUM_PROCESSES]
        if asked and asked[0].isdigit() and int(asked[0]) > 1:
            raise UsageError(
                f"--num_processes {asked[0]}: accelerate started one process; on CPUs use "
                f"torchrun --nproc_per_node {asked[0]} run_pretraining.py …"
            )


def check_flags(model_args, data_args, args):
    """Raises UsageError for what cannot be done, rather than leaving it undone in silence."""
    if args.hub_token:
        raise UsageError(
            "--hub_token would end up in files; set the variable HF_TOKEN, or log in with `hf auth login`"
        )
    if args.hub_model_id and not args.push_to_hub:
        raise UsageError("--hub_model_id goes with --push_to_hub")
    if args.auto_find_batch_size:
        raise UsageError("--auto_find_batch_size goes on from half-trained weights; lower the batch size yourself")
    if args.restore_callback_states_from_checkpoint:
        raise UsageError("--restore_callback_states_from_checkpoint: leave it out; the state is always restored")
    if args.n_gpu > 1:
        raise UsageError("several GPUs in one process: start one process for each with accelerate launch")
    if model_args.init == "from_config" and not model_args.model_name_or_path:
        raise UsageError("--init from_config goes with --model_name_or_path")
    changed = model_args.text_config not in (None, "{}")
    if changed and model_args.model_name_or_path and model_args.init == "pretrained":
        raise UsageError("--text_config changes a new encoder, not a pretrained one; add --init from_config")
    if data_args.probe_data_dir and not data_args.probe_task:
        raise UsageError("--probe_data_dir goes with --probe_task")
    if chooses(args) and not (data_args.probe_task and "probe_" in (args.metric_for_best_model or "")):
        raise UsageError(
            "a checkpoint is not chosen by its loss, of which a collapsed encoder has the lowest; name a --probe_task "
            "and one of its figures, as in --metric_for_best_model eval_probe_teacher_linear"
        )


def chooses(args) -> bool:
    """Whether a checkpoint is to be chosen by a figure."""
    return args.load_best_model_at_end or args.save_strategy == "best"


def make_probe(data_args, args, tokenizer, cache_dir) -> OnlineProbeCallback | None:
    """The probe of the task named by --probe_task, if any; it must have the figure that chooses the checkpoint."""
    name, chosen = data_args.probe_task, args.metric_for_best_model
    if name is None:
        return None
    if name == "packages":
        task = package_task(cache_dir)
    elif suffix_of(Path(name)) in BUILDERS:
        if not Path(name).is_file():
            raise UsageError(f"--probe_task {name}: no such file")
        task = load_task_file(name, cache_dir=cache_dir)
    else:
        task = load_glue(name, data_args.probe_data_dir, cache_dir)
    probe = OnlineProbeCallback(task, tokenizer, data_args.max_length)
    if chooses(args) and f"eval_{chosen.removeprefix('eval_')}" not in probe.names:
        raise UsageError(
            f"--metric_for_best_model {chosen}: the probe of {task.name} has no such figure"
            f"{nearest(chosen, probe.names)} (it has {', '.join(probe.names)})"
        )
    return probe


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
    for name in ("httpx", "httpx2", "datasets", "accelerate", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


def check_output_dir(args) -> str | None:
    """The checkpoint to go on from, if asked.

    Raises:
        UsageError: The folder cannot be written to, it holds something and nothing was said of resuming, or there is
            nothing to resume.
    """
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir {folder}: is a file")
    try:
        with tempfile.TemporaryFile(dir=next(path for path in (folder, *folder.absolute().parents) if path.exists())):
            pass  # leaves nothing behind, not even the folder
    except OSError as error:
        raise UsageError(f"--output_dir {folder}: cannot be written to ({error.strerror}); name another") from error
    # Only the first process looks: the others may come when it has begun to write.
    found = [path.name for path in folder.iterdir()] if args.process_index == 0 and folder.is_dir() else []
    resume = args.resume_from_checkpoint
    if resume in (None, "false", "False", False):
        if found:
            raise UsageError(
                f"--output_dir {folder}: not empty; name another folder, or go on with --resume_from_checkpoint true"
            )
        return None
    if resume in ("true", "True", "auto", True):
        # One process looks, and sets damaged ones aside; all go on from what it found.
        newest = [newest_whole_checkpoint(folder) if args.process_index == 0 else None]
        if args.world_size > 1:
            broadcast_object_list(newest)
        if newest[0] is not None:
            return str(newest[0])
        if resume != "auto":
            raise UsageError(f"--resume_from_checkpoint: no checkpoint in {folder}; 'auto' starts anew then")
        # A run that ended before its first checkpoint may have left these; anything else is not ours to write over.
        foreign = [name for name in found if name not in ("tokenizer", "metrics.jsonl", "nonfinite", "runs")]
        if foreign := sorted(name for name in foreign if not name.startswith("_")):
            raise UsageError(
                f"--output_dir {folder}: no checkpoint to go on from, but something else ({foreign[0]}); "
                "name another folder"
            )
        return None
    if not Path(resume).is_dir():
        raise UsageError(f"--resume_from_checkpoint {resume}: no checkpoint there; 'auto' takes the newest")
    if problem := damage(resume):
        raise UsageError(
            f"--resume_from_checkpoint {resume}: no whole checkpoint ({problem}); 'auto' takes the newest that is"
        )
    if found and Path(resume).resolve().parent != folder.resolve():
        raise UsageError(
            f"--output_dir {folder}: not empty, and {resume} is not of it; name another folder for what follows"
        )
    return resume


def make_collator(data_args, args, tokenizer, limit) -> DataCollatorForTextJepa:
    """The collator with the masks asked for; lengths that tensor cores like, where the encoder has positions for."""
    fits = -(-data_args.max_length // 8) * 8 <= (limit or math.inf)
    strategies = data_args.mask_strategies
    try:
        if strategies is not None:
            strategies = [MaskStrategy(**fields, name=str(name)) for name, fields in strategies.items()]
        return DataCollatorForTextJepa(
            tokenizer,
            seed=args.seed,
            pad_to_multiple_of=8 if fits and (args.bf16 or args.fp16) else None,
            strategies=strategies,
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
        rows = legible(train, *source_of(data_args))
        texts = (text for row in rows for text in row.values())  # the view's words too
        return train_tokenizer(
            texts, model_args.vocab_size, model_args.lowercase, data_args.max_length, model_args.tokenizer_type
        ), True
    try:
        hub = {"cache_dir": model_args.cache_dir, "trust_remote_code": False}  # which is not even asked for
        if not model_args.tokenizer_name:
            hub["revision"] = model_args.model_revision
        return AutoTokenizer.from_pretrained(name, **hub), False
    except (OSError, ValueError) as error:
        flag = "tokenizer_name" if model_args.tokenizer_name else "model_name_or_path"
        raise UsageError(f"--{flag} {name}: no tokenizer there ({first_line(error)})") from error


def make_model(model_args, data_args, objective_args, tokenizer) -> TextJepaForPreTraining:
    """The model around a trained encoder, or a new one of the size or configuration asked for."""
    fields = OBJECTIVES[model_args.objective]
    fields = fields | {name: value for name, value in vars(objective_args).items() if value is not None}
    if fields.get("context_mode") == "mask_token":
        fields.setdefault("mask_token_id", tokenizer.mask_token_id)
        if fields["mask_token_id"] is None:
            raise UsageError("--context_mode mask_token: the tokenizer has no mask token; use drop or attention_mask")
    # A mask token for each strategy, unless a number was asked for.
    strategies = len(data_args.mask_strategies or [""])
    if strategies > 1:
        fields.setdefault("pred_num_mask_tokens", strategies)
        if fields["pred_num_mask_tokens"] < strategies:
            raise UsageError(
                f"--pred_num_mask_tokens {fields['pred_num_mask_tokens']}: each of the {strategies} mask strategies "
                "needs one; leave it out"
            )
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
            is_ours = config_of(name, hub).model_type == TextJepaConfig.model_type
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
    except pickle.UnpicklingError as error:
        raise UsageError(f"{name}: its weights hold code, which is not run; save them as safetensors") from error
    except (OSError, ValueError, TypeError, RuntimeError, IndexError, SafetensorError, StrictDataclassError) as error:
        # RuntimeError: weights of other shapes, as of a pretraining checkpoint with another predictor.
        raise UsageError(f"the model cannot be built: {first_line(error)}") from error
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


def config_of(name, hub):
    """A configuration from a folder or the Hub, which brings no code with it."""
    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)
    if "/" in (config._attn_implementation or ""):
        raise UsageError(
            f"{name}: its configuration asks for code of the Hub ({config._attn_implementation}), which is not run; "
            "set attn_implementation to sdpa"
        )
    return config


def check_fields(shape, text_config):
    """Refuses fields that the encoder's configuration does not have; transformers would take them in silence."""
    known = {*(field.name for field in dataclasses.fields(text_config)), *text_config.attribute_map}
    for key in shape:
        if key not in known:
            raise UsageError(f"--text_config: unknown field '{key}'{nearest(key, known)}")


def config_from(name, text_fields, shape, fields, hub) -> TextJepaConfig:
    """A Text-JEPA configuration from a folder or the Hub, of ours or of any encoder, for a new encoder."""
    config = config_of(name, hub)
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


def source_of(data_args) -> tuple[str, list[str]]:
    """The flag that names the corpus, and its files, for messages of what cannot be read."""
    if data_args.dataset_name:
        return f"--dataset_name {data_args.dataset_name}", []
    files = find_files(data_args.train_file or [], "train_file")
    return f"--train_file {', '.join(files[:3])}" if files else "the built-in corpus", files


def describe_data(data_args) -> str:
    """The corpus in words."""
    if data_args.dataset_name:
        return " ".join(filter(None, (data_args.dataset_name, data_args.dataset_config_name)))
    if data_args.train_file:
        return ", ".join(os.path.basename(os.path.normpath(name)) for name in data_args.train_file)
    return "the built-in corpus (documentation of installed Python packages)"


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
