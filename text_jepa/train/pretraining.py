"""A pretraining run, from its arguments to the finished output folder."""

import copy
import filecmp
import logging
import math
import os
import pickle
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, TrainerState, set_seed

from configuration_text_jepa import TextJepaConfig
from modeling_text_jepa import TextJepaForPreTraining, has_adapters
from text_jepa.cli import UsageError, first_line
from text_jepa.data.batching import DocumentWindows
from text_jepa.data.collator import DataCollatorForTextJepa
from text_jepa.data.corpus import Corpus
from text_jepa.data.reading import read_rows
from text_jepa.data.strategies import DOCUMENT_VIEWS
from text_jepa.data.tokenization import DocumentCount, log_skipped_documents
from text_jepa.encoders.embeddings import trained_encoder
from text_jepa.encoders.opening import run_code_of
from text_jepa.encoders.sentence_head import SentenceHead, head_of_start, kept_head
from text_jepa.probe.online import OnlineProbeCallback
from text_jepa.share.export import parameter_counts
from text_jepa.share.model_card import (
    describe_collapse_of_run,
    describe_count,
    describe_run,
    describe_sizes,
    public_command,
    public_name,
)
from text_jepa.train import checkpointing
from text_jepa.train.adapters import add_lora, merge_lora
from text_jepa.train.arguments import (
    DataArguments,
    ModelArguments,
    ObjectiveArguments,
    TextJepaTrainingArguments,
)
from text_jepa.train.build import (
    FLAGS_OF_NEW_TOKENIZERS,
    add_words_to,
    check_texts,
    hub_options,
    make_collator,
    make_corpus,
    make_examples,
    make_model,
    make_probe,
    make_stream,
    make_tokenizer,
    make_windows,
    name_of_tokenizer,
    objective_of,
    set_dependent_defaults,
    weigh_words,
)
from text_jepa.train.callbacks import Interrupted, Terminated
from text_jepa.train.checks import (
    check_agreement,
    check_collapse,
    check_flags,
    check_outcome,
    check_output_dir,
    check_pooling,
    check_processes,
    check_start,
    check_trackers,
    leaving_nothing,
    make_fingerprint,
    warn_of_idle_flags,
)
from text_jepa.train.closing import (
    RANDOM_WEIGHTS,
    publish,
    save_arguments,
    save_results,
    weights_of,
    whole_model,
)
from text_jepa.train.command import choose_length
from text_jepa.train.hosts import check_same, check_shared, readable_checkpoint
from text_jepa.train.run_log import write_metrics
from text_jepa.train.time_left import TimeLeftCallback
from text_jepa.train.trainer import TextJepaTrainer


logger = logging.getLogger("text_jepa")

# Libraries that log too much at level INFO.
_CHATTY_LIBRARIES = ("httpx", "httpx2", "datasets", "accelerate", "matplotlib")


@dataclass
class RunParts:
    """The objects that a run is built from.

    Args:
        tokenizer: The tokenizer.
        corpus: The raw documents.
        examples: The tokenized texts, by split.
        model: The model with its initial weights.
        collator: The collator.
        probe: The online probe; `None` without `--probe_task`.
        start: A copy of the initial weights of the encoder that will be exported; `None` on all processes but the
            first.
    """

    tokenizer: PreTrainedTokenizerBase
    corpus: Corpus
    examples: Mapping[str, Dataset | IterableDataset]
    model: TextJepaForPreTraining
    collator: DataCollatorForTextJepa
    probe: OnlineProbeCallback | None
    start: dict[str, torch.Tensor] | None


def pretrain(
    model_args: ModelArguments,
    data_args: DataArguments,
    objective_args: ObjectiveArguments,
    args: TextJepaTrainingArguments,
    command: Sequence[str],
) -> bool:
    """Trains a model and writes the results into the output folder.

    Args:
        model_args: The model arguments.
        data_args: The data arguments.
        objective_args: The objective arguments.
        args: The training arguments.
        command: The words of the command that repeats the run, for the model card.

    Returns:
        Whether the run is finished; `False` if a signal has stopped it.

    Raises:
        UsageError: The arguments do not fit together, the data cannot be used, or the run has failed.
    """
    set_up_logging(args)
    check_processes(args)
    check_trackers(args)
    check_flags(data_args, args)
    checkpoint = check_output_dir(args)
    run_code_of(model_args.allow_remote_code or [], **hub_options(model_args))
    set_seed(args.seed)
    objective = objective_of(model_args, objective_args)
    set_dependent_defaults(data_args, objective)

    count = DocumentCount()
    trainer: TextJepaTrainer | None = None

    def has_begun() -> bool:
        # A resumed run may have renamed checkpoints, which would be removed as new ones.
        return checkpoint is not None or (trainer is not None and trainer.state.global_step > 0)

    with leaving_nothing(args, has_begun), readable_checkpoint(checkpoint, args) as checkpoint:
        check_shared(args)
        parts = prepare_parts(model_args, data_args, objective_args, args, count)
        if data_args.prepare_only:
            if args.process_index == 0:
                texts = describe_count(parts.examples["train"])
                print(f"{texts} training texts are tokenized and cached; to train on them, repeat the command")
                print("without --prepare_only and with --resume_from_checkpoint auto")
            return True
        card_info = make_card_info(model_args, data_args, parts.corpus, parts.model.config, command)
        check_pooling(objective_args.pooling, kept_head(card_info))
        warn_of_idle_flags(args, parts.model)
        trainer = make_trainer(parts, model_args, data_args, args, card_info)
        check_same(trainer.fingerprint, args)
        if checkpoint is not None:
            check_agreement(trainer, checkpoint)
            check_collapse(trainer, checkpoint)
        show_sizes(trainer, parts.corpus)
        if args.process_index == 0 and args.save_strategy != "no":
            checkpointing.check_disk_space(args.output_dir, trainer.checkpoint_bytes())
        # With all values in use, so that a version with other defaults can repeat the run.
        objective_args = ObjectiveArguments(**{name: trainer.fingerprint[name] for name in vars(objective_args)})
        arguments = (model_args, data_args, objective_args, args)
        if args.process_index == 0 and checkpoint is None:
            # Now, so that a run that dies can be repeated. If it is refused before its first step, nothing is left.
            with checkpointing.writing(args.output_dir, "the arguments"):
                save_arguments(args.output_dir, arguments, trainer.model.config)
        if checkpoint is None or not load_finished(trainer, checkpoint):
            train(trainer, checkpoint)
            log_skipped_documents("train", count.left_out, count.read, data_args.min_length, data_args.view)
        stopped = trainer.preemption.asked and trainer.state.global_step < trainer.state.max_steps
        if not stopped:
            check_outcome(trainer)
    if stopped:
        logger.info(f"stopped by a signal at step {trainer.state.global_step}; --resume_from_checkpoint auto resumes")
        return False
    evaluate_last_weights(trainer)
    trainer.save_state()
    finish(trainer, parts, arguments)
    return True


@contextmanager
def hangup_as_termination() -> Iterator[None]:
    """Treats SIGHUP, which signals a lost terminal, like SIGTERM inside the block, unless `nohup` ignores it."""
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    # Only the main thread may handle signals.
    if is_ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGHUP, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, previous or signal.SIG_DFL)  # none if no Python code has set it


def set_up_logging(args: TextJepaTrainingArguments) -> None:
    """Lets the first process log, the others only errors, and silences libraries that log too much."""
    level = logging.INFO if args.process_index == 0 else logging.ERROR
    logging.basicConfig(format="%(message)s", level=level)
    for name in _CHATTY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


# ---- preparation ----------------------------------------------------------------------------------------------------


def prepare_parts(
    model_args: ModelArguments,
    data_args: DataArguments,
    objective_args: ObjectiveArguments,
    args: TextJepaTrainingArguments,
    count: DocumentCount,
) -> RunParts:
    """Builds the parts of a run, and prints what the texts and masks are like.

    Args:
        model_args, data_args, objective_args, args: The arguments of the run.
        count: Counts the documents of a stream while it is read.

    Raises:
        UsageError: The arguments do not fit together, or texts, tokenizer or encoder cannot be used.
    """
    # The first process writes the caches, the others read them.
    with args.main_process_first(desc="preparing the corpus"):
        corpus = make_corpus(model_args, data_args)
        tokenizer, is_new = make_tokenizer(model_args, data_args, args, corpus)
        # Kept without the words of --add_words: a run that starts again adds them again, with their pieces.
        new_tokenizer = copy.deepcopy(tokenizer) if is_new else None
        added = add_words_to(tokenizer, model_args)
        examples = make_examples(corpus, tokenizer, data_args, count)
        model = make_model(model_args, data_args, objective_args, tokenizer, added)
        start = None
        if args.process_index == 0:
            start = weights_of(trained_encoder(model, model_args.export_encoder))
        if model_args.lora is not None:
            add_lora(model, model_args.lora)
        collator = make_collator(data_args, args, tokenizer, model.config.max_text_length)
        line = check_texts(examples["train"], tokenizer, collator, model.config, data_args, corpus)
        weigh_words(model, examples["train"], tokenizer, corpus.source)
        probe = make_probe(data_args, args, tokenizer, model_args.cache_dir)
        # At the end, because a run that is refused leaves no trace.
        if args.process_index == 0:
            print(line)
        if new_tokenizer is not None and args.process_index == 0:
            save_tokenizer(new_tokenizer, args.output_dir)
    return RunParts(
        tokenizer,
        corpus,
        examples,
        model,
        collator,
        probe,
        start,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, output_dir: str) -> None:
    """Writes a new tokenizer into the output folder, where a resumed run finds it.

    Raises:
        UsageError: There is another one, which a run without a checkpoint has left.
    """
    unfinished = Path(output_dir, "_tokenizer")
    place = Path(output_dir, "tokenizer")
    tokenizer.save_pretrained(unfinished)
    if not place.exists():
        unfinished.rename(place)
        return
    name = "tokenizer.json"
    is_same = filecmp.cmp(unfinished / name, place / name, shallow=False)
    shutil.rmtree(unfinished)
    if not is_same:
        raise UsageError(
            f"--output_dir {output_dir}: its tokenizer was trained on other texts or with other flags, and there is "
            f"no checkpoint; remove {place}, or use another folder"
        )


def make_trainer(
    parts: RunParts,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: TextJepaTrainingArguments,
    card_info: Mapping[str, Any],
) -> TextJepaTrainer:
    """Builds the trainer of a run, with its fingerprint and callbacks.

    Raises:
        UsageError: The Trainer does not take the flags, or the run could not begin or select its best checkpoint.
    """
    train_dataset, eval_dataset = select_examples(parts, data_args, args)
    if not data_args.streaming:
        choose_length(args, parts.model.config.text_config.num_hidden_layers, len(train_dataset))
    fingerprint = make_fingerprint(
        data_args,
        parts.corpus,
        parts.tokenizer,
        parts.model.config,
        parts.collator,
        train_dataset,
        parts.examples["validation"],
        args.dataloader_num_workers,
    )
    fingerprint["adapters"] = has_adapters(parts.model)
    fingerprint["lora"] = model_args.lora
    if name_of_tokenizer(model_args) is None:
        fingerprint |= {name: getattr(model_args, name) for name in FLAGS_OF_NEW_TOKENIZERS}
    try:
        trainer = TextJepaTrainer(
            parts.model,
            args,
            parts.collator,
            train_dataset,
            eval_dataset,
            fingerprint=fingerprint,
            card_info=card_info,
            processing_class=parts.tokenizer,
        )
    except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"the Trainer rejected these arguments: {first_line(error)}") from error
    trainer.add_callback(TimeLeftCallback())
    check_start(trainer)
    if parts.probe is not None:
        parts.probe.add_to(trainer)
    return trainer


def select_examples(
    parts: RunParts,
    data_args: DataArguments,
    args: TextJepaTrainingArguments,
) -> tuple[Dataset | IterableDataset, Dataset | list]:
    """The examples to train on, and at most `max_eval_samples` held-out ones."""
    train = parts.examples["train"]
    held_out = parts.examples["validation"]
    limit = data_args.max_eval_samples
    if data_args.streaming:
        stream = make_stream(train, parts.corpus.source, data_args, args)
        return stream, list(read_rows(held_out.take(limit), parts.corpus.held_out_source))
    held_out = held_out.shuffle(seed=args.seed)
    held_out = held_out.take(min(limit, len(held_out)))
    return (
        make_windows(train, data_args, parts.tokenizer),
        make_windows(held_out, data_args, parts.tokenizer, limit),
    )


def make_card_info(
    model_args: ModelArguments,
    data_args: DataArguments,
    corpus: Corpus,
    config: TextJepaConfig,
    command: Sequence[str],
) -> dict[str, Any]:
    """The entries of the model card that the trainer does not know."""
    name = model_args.model_name_or_path
    if model_args.init == "from_config":
        name = None
    head = None
    if name and model_args.init == "pretrained":
        head = head_of_start(name, config, **hub_options(model_args))
    dataset = data_args.dataset_name
    base_model = model_args.base_model or (name if _is_on_hub(name) else None)
    named_datasets = model_args.dataset_tags or ([dataset] if _is_on_hub(dataset) else None)
    return {
        "data": ", ".join([corpus.name, *describe_documents(corpus)]),
        "start": describe_initial_weights(name and (model_args.base_model or public_name(name)), model_args.init),
        "command": public_command(command),
        "max_length": max_length_in_use(data_args, config, kept_head({"head": head})),
        "head": head,
        "license": model_args.license,
        "language": model_args.language,
        "base_model": base_model,
        "datasets": named_datasets,
        "which": model_args.export_encoder,
        "code": [public_name(code) for code in model_args.allow_remote_code or []],
    }


def describe_documents(corpus: Corpus) -> list[str]:
    """The numbers of documents to train on and held out, in words; nothing for a stream, which does not tell."""
    train, held_out = corpus.splits["train"], corpus.splits["validation"]
    if not hasattr(train, "__len__"):
        return []
    return [f"{len(train):,} documents to train on", f"{len(held_out):,} held out"]


def describe_initial_weights(name: str | None, init: str) -> str:
    """The start of a run for the card: an encoder, a part of one, or random weights."""
    if not name:
        return RANDOM_WEIGHTS
    if init == "embeddings":
        return f"the input embeddings of {name}"
    if init == "layers":
        return f"the layers of {name}"
    return name


def _is_on_hub(name: str | None) -> bool:
    return bool(name) and not Path(name).exists()


def max_length_in_use(data_args: DataArguments, config: TextJepaConfig, head: SentenceHead | None = None) -> int:
    """The number of tokens that the exported encoder cuts texts to.

    It is the length of training, with two exceptions. An encoder without layers that was trained on windows of
    documents takes whole documents, because its vector is a mean over tokens at any length. And an encoder that keeps
    the modules of the sentence encoder it started from takes at least what that one took.
    """
    if head is not None:
        longest = max(data_args.max_length, head.max_seq_length or config.max_text_length or 0)
        return min(longest, config.max_text_length or longest)
    has_layers = config.text_config.num_hidden_layers > 0
    if has_layers or data_args.view not in DOCUMENT_VIEWS:
        return data_args.max_length
    longest = data_args.max_document_length
    return min(longest, config.max_text_length or longest)


def show_sizes(trainer: TextJepaTrainer, corpus: Corpus) -> None:
    """Prints the sizes of corpus and model, the length of the run and its folder, and says if cores are idle."""
    args = trainer.args
    if args.process_index > 0:
        return
    trainable, total = parameter_counts(trainer.model)
    texts = describe_sizes(trainer.train_dataset, trainer.eval_dataset)
    parts = []
    for name, module in trainer.model.named_children():
        count = sum(parameter.numel() for parameter in module.parameters())
        if count:
            parts.append(f"{name} {count:,}")
    documents = ", ".join(describe_documents(corpus))
    if documents:
        print(f"{corpus.describe_files()}: {documents}" if corpus.source.files else documents)
    print(texts)
    print(f"{trainable:,} of {total:,} parameters train ({', '.join(parts)})")
    if trainer.card_info.get("head"):
        print(trainer.card_info["head"]["sentence"])
    print(f"{describe_length(args, trainer.train_dataset)}, into {args.output_dir}")
    cores = os.cpu_count() or 1
    is_alone_on_cpu = args.device.type == "cpu" and args.world_size == 1
    if is_alone_on_cpu and torch.get_num_threads() == 1 < cores:
        print(f"1 of {cores} cores is used: OMP_NUM_THREADS is 1 (accelerate launch sets it); raise it to use more")


def describe_length(args: TextJepaTrainingArguments, texts: Dataset | DocumentWindows | IterableDataset) -> str:
    """The length of a run in steps, tokens and passes over its texts, and the flag that changes it."""
    if not hasattr(texts, "__len__"):
        return f"{args.max_steps:,} steps (--max_steps)"
    texts_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.max_steps > 0:
        steps = args.max_steps
        flag = "--max_steps"
    else:
        round_steps = math.floor if args.dataloader_drop_last else math.ceil
        steps_per_pass = round_steps(len(texts) / texts_per_step)
        steps = math.ceil(args.num_train_epochs * steps_per_pass)
        flag = "--num_train_epochs"
    passes = steps * texts_per_step / len(texts)
    tokens = texts.num_tokens if isinstance(texts, DocumentWindows) else sum(texts["length"][:])
    return f"{steps:,} steps of {texts_per_step} texts: {passes:.3g} passes over {tokens:,} tokens ({flag} changes it)"


# ---- training -------------------------------------------------------------------------------------------------------


def load_finished(trainer: TextJepaTrainer, checkpoint: str) -> bool:
    """Loads a checkpoint if its run has made all of its steps: the Trainer would make one more.

    Returns:
        Whether the run has made all of its steps.
    """
    args = trainer.args
    state = TrainerState.load_from_json(os.path.join(checkpoint, "trainer_state.json"))
    if args.max_steps > 0:
        is_finished = state.global_step >= args.max_steps
    else:
        has_all_epochs = state.epoch + 1e-6 >= args.num_train_epochs
        is_finished = state.global_step >= state.max_steps and has_all_epochs
    if not is_finished:
        return False
    state.best_model_checkpoint = checkpointing.find_best(args.output_dir, state.best_model_checkpoint)
    best = state.best_model_checkpoint if args.load_best_model_at_end else None
    trainer._load_from_checkpoint(best or checkpoint)
    trainer.state = state
    trainer.monitor.restore(state)
    if args.process_index == 0:
        write_metrics(args.output_dir, state.log_history)
    return True


def train(trainer: TextJepaTrainer, checkpoint: str | None) -> None:
    """Trains, from a checkpoint if there is one, to the last step or until a signal stops it.

    Raises:
        UsageError: A file of the checkpoint holds code, a tracker cannot begin, or the Trainer cannot with the flags.
    """
    try:
        # Not `None`, for which the trainer would look for a checkpoint itself.
        trainer.train(resume_from_checkpoint=checkpoint or False)
    except (Interrupted, Terminated):
        return
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{checkpoint}: a file that should contain only numbers contains code, which was not run "
            f"({first_line(error)})"
        ) from error
    except Exception as error:  # trackers have errors of their own
        if trainer.has_begun or isinstance(error, UsageError):
            raise
        if trainer.args.report_to and _is_of_tracker(error):
            remedy = "set WANDB_MODE=offline, or leave it out" if "wandb" in trainer.args.report_to else "leave it out"
            raise UsageError(f"--report_to: {first_line(error)}; {remedy}") from error
        if isinstance(error, ImportError | NotImplementedError | TypeError | ValueError):
            raise UsageError(f"the Trainer rejected these arguments: {first_line(error)}") from error
        raise


def _is_of_tracker(error: Exception) -> bool:
    """Whether an error from before training is that of a tracker: the first callbacks for this event are trackers."""
    functions = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    return "on_train_begin" in functions


def evaluate_last_weights(trainer: TextJepaTrainer) -> None:
    """Evaluates the weights that are exported, unless the log already has their held-out loss."""
    evaluated = [record["step"] for record in trainer.state.log_history if "eval_loss" in record]
    if trainer.weights_step not in evaluated:
        trainer.evaluate()


def finish(trainer: TextJepaTrainer, parts: RunParts, arguments: Sequence) -> None:
    """Has the first process write the results of the run, print the comparison, and publish the encoder if asked.

    Args:
        trainer: The trainer at the end of the run.
        parts: The parts of the run.
        arguments: The model, data, objective and training arguments of the run.
    """
    args = trainer.args
    model = whole_model(trainer.model)
    if args.process_index > 0:
        return
    merge_lora(model)
    trainer.model = model
    with checkpointing.writing(args.output_dir, "the encoder"):
        sentence, divergence = save_results(trainer, parts.start, parts.corpus, arguments)
    card = Path(args.output_dir, "README.md")
    print(f"\n{sentence}")
    print(f"The encoder is in {args.output_dir}  (its card: {card})")
    collapse = describe_collapse_of_run(describe_run(trainer))
    for warning in (collapse, divergence):
        if warning:
            print(f"WARNING: {warning}", file=sys.stderr)
    if args.push_to_hub:
        publish(trainer)
