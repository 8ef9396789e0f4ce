"""Pretrains a Text-JEPA: raw text in, an encoder out that opens everywhere.

    accelerate launch run_pretraining.py configs/tiny_cpu.yaml                              # the built-in corpus
    accelerate launch run_pretraining.py configs/tiny_cpu.yaml --train_file notes/*.txt     # your own texts
    accelerate launch run_pretraining.py --model_name_or_path bert-base-uncased --train_file corpus.jsonl

Values of the YAML file come first, flags win. The output folder is the encoder, an ordinary checkpoint of its own
architecture; `pretraining/` in it holds the complete model for going on.
"""

import dataclasses
import gc
import logging
import os
import pickle
import shlex
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerState, set_seed

from text_jepa import checkpointing
from text_jepa.arguments import UsageError, first_line, parse_arguments, run_command
from text_jepa.assembly import (
    make_collator,
    make_examples,
    make_model,
    make_probe,
    make_stream,
    objective_of,
    set_dependent_defaults,
    weigh_words,
    windows_of,
)
from text_jepa.checkpointing import PREEMPTED, differing_facts
from text_jepa.closing import (
    HELD_OUT_DOCUMENTS,
    TRAINING_DOCUMENTS,
    choose_share_of_run,
    judge_run,
    merged,
    weights_of,
    whole_model,
    write_verdict,
)
from text_jepa.data import DocumentCount, legible, tell_left_out
from text_jepa.documents import verdict
from text_jepa.export import parameter_counts, save_for_continuing, trained_encoder
from text_jepa.features import embed_texts, encoder_inside, nearest_texts
from text_jepa.hub import push_folder
from text_jepa.launching import check_flags, check_output_dir, check_processes, check_trackers, set_up_logging
from text_jepa.masking import DOCUMENT_VIEWS
from text_jepa.model_card import size_of, sizes_in_words
from text_jepa.pretraining_arguments import (
    DataArguments,
    ModelArguments,
    ObjectiveArguments,
    describe_data,
    source_of,
    write_arguments,
)
from text_jepa.training import (
    NONFINITE_LIMIT,
    TextJepaTrainer,
    TextJepaTrainingArguments,
    write_metrics,
)


logger = logging.getLogger("text_jepa")

# What a run starts from that is given no encoder.
RANDOM_WEIGHTS = "random weights"


def main(argv: list[str] | None = None) -> Path:
    """Runs the command; returns the folder of the encoder."""
    argv = sys.argv[1:] if argv is None else argv
    classes = (ModelArguments, DataArguments, ObjectiveArguments, TextJepaTrainingArguments)
    arguments = parse_arguments(classes, argv, __doc__.split("\n")[0])
    args = arguments[-1]
    is_done = pretrain(*arguments, argv)
    if args.world_size > 1:
        leave_group(args)
    if not is_done:
        sys.exit(PREEMPTED)
    return Path(args.output_dir)


def leave_group(args):
    """Ends the threads of the process group, which must not outlive the interpreter.

    One that still has a tensor to give back would abort the process then, and the launcher would end the others. The
    threads end with the group, and the parts of the trainer that hold it are in cycles. The last to let go of it has
    to be its Python object: that one waits for the threads without the interpreter's lock, for which they may wait.
    """
    group = torch.distributed.group.WORLD
    args.distributed_state.destroy_process_group()
    gc.collect()
    del group


def pretrain(model_args, data_args, objective_args, args, argv) -> bool:
    """Trains, and leaves the results in the output folder; False if a signal has stopped it before its end."""
    set_up_logging(args)
    check_processes(args)
    check_trackers(args)
    check_flags(data_args, args)
    checkpoint = check_output_dir(args)
    set_seed(args.seed)
    count = DocumentCount()
    set_dependent_defaults(data_args, objective_of(model_args, objective_args))

    # The first process makes the caches, the others read them.
    with args.main_process_first(desc="preparing the corpus"):
        tokenizer, is_new, corpus, examples = make_examples(model_args, data_args, args, count)
        model = make_model(model_args, data_args, objective_args, tokenizer)
        start = None
        if args.process_index == 0:
            start = weights_of(trained_encoder(model, model_args.export_encoder))
        collator = make_collator(data_args, args, tokenizer, model.config.max_text_length)
        weigh_words(model, examples["train"], tokenizer, source_of(data_args))
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
        return True
    if data_args.streaming:
        examples["train"] = make_stream(examples["train"], data_args, args)
        held_out = list(examples["validation"].take(data_args.max_eval_samples))
    else:
        held_out = examples["validation"]
        held_out = held_out.shuffle(seed=args.seed).take(min(data_args.max_eval_samples, len(held_out)))
        examples["train"] = windows_of(examples["train"], data_args, tokenizer)
        held_out = windows_of(held_out, data_args, tokenizer, data_args.max_eval_samples)
    facts = facts_of(data_args, model.config, collator, examples["train"], args.dataloader_num_workers)
    about = about_run(model_args, data_args, model.config, argv)
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
            tell_left_out("train", count.left_out, count.read, data_args.min_length, data_args.view)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{checkpoint}: holds code where numbers belong; it was not run ({first_line(error)})"
        ) from error
    if trainer.preemption.asked and trainer.state.global_step < trainer.state.max_steps:
        logger.info(f"stopped by a signal at step {trainer.state.global_step}; --resume_from_checkpoint auto goes on")
        return False
    check_outcome(trainer)
    evaluated = [record["step"] for record in trainer.state.log_history if "eval_loss" in record]
    if trainer.weights_step not in evaluated:
        trainer.evaluate()
    trainer.save_state()
    model = whole_model(trainer.model)
    if args.process_index == 0:
        trainer.model = model
        with checkpointing.writing(args.output_dir, "the encoder"):
            # What the objective was when the run began, for defaults change.
            objective = ObjectiveArguments(**{name: trainer.facts[name] for name in vars(objective_args)})
            sentence = leave_results(trainer, start, corpus, (model_args, data_args, objective, args))
        print(f"\n{sentence}")
        print(f"The encoder is in {args.output_dir}  (its card: {Path(args.output_dir, 'README.md')})")
        if args.push_to_hub:
            publish(trainer)
    return True


def leave_results(trainer, start, corpus, arguments) -> str:
    """Writes the encoder, the complete model, the arguments, the curves and the cards into the output folder.

    The encoder has the weights between the first and the last ones that serve best on held-out documents; the complete
    model, which is for going on, has the last ones.

    Args:
        trainer: The trainer at the end of the run.
        start: The weights of the exported encoder at the start of the run, by name.
        corpus: The raw texts, by split.
        arguments: The groups of arguments of the run.

    Returns:
        The verdict on the encoder, in a sentence.
    """
    output_dir, tokenizer = Path(trainer.args.output_dir), trainer.processing_class
    model_args, data_args = arguments[:2]
    length = trainer.about["max_length"]
    encoder = encoder_inside(trainer.model, tokenizer, length, model_args.export_encoder)
    documents = first_texts(corpus["validation"], HELD_OUT_DOCUMENTS, data_args)
    share, shares = 1.0, {}
    if merges(model_args, trainer.model.config):
        from_random = trainer.about["start"] == RANDOM_WEIGHTS
        share, shares = choose_share_of_run(encoder, start, documents[0::2], from_random)
    with merged(encoder.model, start, share):
        try:
            training_texts = first_texts(corpus["train"], TRAINING_DOCUMENTS, data_args)
            scores = judge_run(encoder, start, name_of_start(model_args), documents[1::2], training_texts)
            sentence = verdict(scores)
            write_verdict(output_dir, scores, share, shares)
        except UsageError as error:  # the encoder is worth more than a word about it
            sentence = f"There is no verdict on held-out documents: {error}."
        trainer.about |= {"verdict": sentence, "share": share, "shares": list(shares.items())}
        trainer.export(output_dir)
        show_neighbours(encoder, documents)
    # The complete model is not the one that was judged.
    for name in ("verdict", "share", "shares"):
        del trainer.about[name]
    save_for_continuing(trainer.model, tokenizer, output_dir / "pretraining")
    trainer.write_card(output_dir / "pretraining", None)
    write_arguments(output_dir / "arguments.yaml", *arguments)
    return sentence


def merges(model_args, config) -> bool:
    """Whether the first and the last weights are merged: if asked, else where the loss is on vectors of texts."""
    if model_args.merge is not None:
        return model_args.merge
    return config.document_loss_weight > 0 or config.sentence_loss_weight > 0


def name_of_start(model_args) -> str:
    """What a run starts from, for the verdict."""
    if model_args.model_name_or_path is None or model_args.init == "from_config":
        return RANDOM_WEIGHTS
    return "before" if model_args.init == "pretrained" else "the start of the run"


def first_texts(split, count: int, data_args) -> list[str]:
    """The first documents of a split of the corpus, those without text left out."""
    if hasattr(split, "__len__"):
        count = min(count, len(split))
    texts = (row["text"] for row in legible(split.take(count), *source_of(data_args)))
    return [text for text in texts if text and text.strip()]


def publish(trainer):
    """Uploads what the run has left; it stays where it is if that fails."""
    args, name = trainer.args, trainer.hub_model_id
    try:
        print(f"It is published: {push_folder(args.output_dir, name, revision=args.hub_revision)}")
    except UsageError as error:
        command = shlex.join(["text-jepa-export", "push", args.output_dir, name])
        raise UsageError(f"the encoder is in {args.output_dir}, but {error}; `{command}` tries again") from error


def longest_text(data_args, config) -> int:
    """Tokens at which a text is cut in use: the length of training, but for encoders without layers the longest."""
    if data_args.view not in DOCUMENT_VIEWS or config.text_config.num_hidden_layers > 0:
        return data_args.max_length
    return min(data_args.max_document_length, config.max_text_length or data_args.max_document_length)


def about_run(model_args, data_args, config, argv) -> dict:
    """What the card says that the trainer does not know."""
    name = model_args.model_name_or_path if model_args.init != "from_config" else None
    part = {"embeddings": "the input embeddings of ", "layers": "the layers of "}.get(model_args.init, "")
    return {
        "data": describe_data(data_args),
        "start": f"{part}{name}" if name else RANDOM_WEIGHTS,
        "command": shlex.join(["accelerate", "launch", "run_pretraining.py", *argv]),
        "max_length": longest_text(data_args, config),
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
    texts = sizes_in_words(trainer.train_dataset, trainer.eval_dataset)
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
    facts["mask_strategies"] = [dataclasses.asdict(strategy) for strategy in collator.strategies]  # words are rounded
    if hasattr(train_dataset, "__len__"):
        lengths = np.asarray(train_dataset["length"][:])
        checksum = zlib.crc32(lengths.tobytes())
        for row in range(0, len(lengths), -(-len(lengths) // 1_000)):  # a thousand texts stand for all
            checksum = zlib.crc32(np.asarray(train_dataset[row]["input_ids"]).tobytes(), checksum)
        facts["data"] = f"{len(lengths)} texts of {lengths.sum()} tokens ({checksum:08x})"
    else:
        # What is in a stream is not known; of files at least their size is. Workers share its files, hence its order.
        files = source_of(data_args)[1]
        facts["data"] = f"{describe_data(data_args)} ({sum(os.path.getsize(path) for path in files)} bytes)"
        names = ["dataset_split", "text_column", "view_column", "sample_by", "max_train_samples", "max_length"]
        names += ["max_document_length"] if data_args.view in DOCUMENT_VIEWS else []
        facts |= {name: getattr(data_args, name) for name in (*names, "shuffle_buffer")}
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
    steps, epochs = trainer.args.max_steps, trainer.args.num_train_epochs
    if state.global_step < (steps if steps > 0 else state.max_steps) or (steps <= 0 and state.epoch + 1e-6 < epochs):
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


def show_neighbours(encoder, documents, queries: int = 5):
    """Prints five held-out documents and the nearest other one of each."""
    rows = [int(i * len(documents) / queries) for i in range(min(queries, len(documents)))]
    found, cosines = nearest_texts(embed_texts(encoder, documents), rows)
    print("\nNearest held-out texts (centred cosine of their vectors):")
    for row, neighbour, cosine in zip(rows, found, cosines, strict=True):
        print(f"  query         {in_one_line(documents[row])}")
        print(f"  {cosine:.2f} nearest  {in_one_line(documents[neighbour])}\n")


def in_one_line(text: str) -> str:
    """The beginning of a text, without line breaks."""
    return " ".join(text[:200].split())[:100]


def console():
    """Entry point of `text-jepa-pretrain`."""
    run_command(main)


if __name__ == "__main__":
    console()
