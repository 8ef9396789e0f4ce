"""A pretraining run from its arguments to the folder that it leaves."""

import logging
import os
import pickle
import shlex
from pathlib import Path

import torch
from transformers import set_seed

from text_jepa.cli import UsageError, first_line
from text_jepa.data.corpus import legible
from text_jepa.data.masking import DOCUMENT_VIEWS
from text_jepa.data.tokenization import DocumentCount, tell_left_out
from text_jepa.embeddings import embed_texts, encoder_inside, nearest_texts, trained_encoder
from text_jepa.probe.documents import HELD_OUT_DOCUMENTS, TRAINING_DOCUMENTS, verdict
from text_jepa.share.export import parameter_counts, save_for_continuing
from text_jepa.share.hub import push_folder
from text_jepa.share.model_card import describe_count, describe_sizes
from text_jepa.train import checkpointing
from text_jepa.train.arguments import ObjectiveArguments, describe_data, source_of, write_arguments
from text_jepa.train.build import (
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
from text_jepa.train.checks import (
    check_agreement,
    check_flags,
    check_outcome,
    check_output_dir,
    check_processes,
    check_trackers,
    load_finished,
    make_fingerprint,
    prepare_output_dir,
    set_up_logging,
)
from text_jepa.train.closing import choose_share_of_run, judge_run, merged, weights_of, whole_model, write_verdict
from text_jepa.train.trainer import TextJepaTrainer


logger = logging.getLogger("text_jepa")

# What a run starts from that is given no encoder.
RANDOM_WEIGHTS = "random weights"


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
            f"{describe_count(examples['train'])} training texts are tokenized and cached; to train on them, the same command"
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
    fingerprint = make_fingerprint(data_args, model.config, collator, examples["train"], args.dataloader_num_workers)
    card_info = make_card_info(model_args, data_args, model.config, argv)
    trainer = TextJepaTrainer(
        model,
        args,
        collator,
        examples["train"],
        held_out,
        fingerprint=fingerprint,
        card_info=card_info,
        processing_class=tokenizer,
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
            objective = ObjectiveArguments(**{name: trainer.fingerprint[name] for name in vars(objective_args)})
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
    length = trainer.card_info["max_length"]
    encoder = encoder_inside(trainer.model, tokenizer, length, model_args.export_encoder)
    documents = first_texts(corpus["validation"], HELD_OUT_DOCUMENTS, data_args)
    share, shares = 1.0, {}
    if merges(model_args, trainer.model.config):
        from_random = trainer.card_info["start"] == RANDOM_WEIGHTS
        share, shares = choose_share_of_run(encoder, start, documents[0::2], from_random)
    with merged(encoder.model, start, share):
        try:
            training_texts = first_texts(corpus["train"], TRAINING_DOCUMENTS, data_args)
            scores = judge_run(encoder, start, name_of_start(model_args), documents[1::2], training_texts)
            sentence = verdict(scores)
            write_verdict(output_dir, scores, share, shares)
        except UsageError as error:  # the encoder is worth more than a word about it
            sentence = f"There is no verdict on held-out documents: {error}."
        trainer.card_info |= {"verdict": sentence, "share": share, "shares": list(shares.items())}
        trainer.export(output_dir)
        show_neighbours(encoder, documents)
    # The complete model is not the one that was judged.
    for name in ("verdict", "share", "shares"):
        del trainer.card_info[name]
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
        command = shlex.join(["text-jepa", "export", "push", args.output_dir, name])
        raise UsageError(f"the encoder is in {args.output_dir}, but {error}; `{command}` tries again") from error


def longest_text(data_args, config) -> int:
    """Tokens at which a text is cut in use: the length of training, but for encoders without layers the longest."""
    if data_args.view not in DOCUMENT_VIEWS or config.text_config.num_hidden_layers > 0:
        return data_args.max_length
    return min(data_args.max_document_length, config.max_text_length or data_args.max_document_length)


def make_card_info(model_args, data_args, config, argv) -> dict:
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
    texts = describe_sizes(trainer.train_dataset, trainer.eval_dataset)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in trainer.model.named_children()}
    listed = ", ".join(f"{name} {count:,}" for name, count in parts.items() if count)
    print(f"{texts}; {trainable:,} of {total:,} parameters train ({listed})")
    if args.device.type == "cpu" and args.world_size == 1 and torch.get_num_threads() == 1 < cores:
        print(f"1 of {cores} cores is used; accelerate launch --num_cpu_threads_per_process {cores} uses all")


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
