"""Tells whether an encoder became better: frozen features and fine-tuning, beside honest controls.

    python run_probe.py                                        # the newest encoder in runs/, no download
    python run_probe.py PATH_OR_NAME --tasks sst2 mrpc stsb --data_dir glue --compare OTHER_ENCODER
    python run_probe.py PATH_OR_NAME --texts "notes/*.txt" --train_texts corpus.txt    # no labels needed
    python run_probe.py PATH_OR_NAME --rerank_dir askubuntu qqp_rerank --output_dir results
    python run_probe.py PATH_OR_NAME --tasks rte cola --mode finetune --seeds 0 1 2 --finetune_args learning_rate=1e-4

Each distinct text is embedded once by each system, and the same rows are scored for all. The features of a pair are
[u, v, |u - v|, u * v]; attention and fine-tuning read both texts together. The controls: the same architecture with
random weights, new ones for each seed; the bag of the model's own embeddings; TF-IDF (256 components fitted on the
training texts; for cosines all words of the set); the commonest class; BM25 where a reranking file has its scores; and
both fitted on `--train_texts`, where the encoder's own training texts are given.
Nothing is chosen by the scored split; intervals are 95 % of bootstrap resamples of its rows. See docs/probing.md.
"""

import dataclasses
import shlex
import sys
from pathlib import Path

from tqdm.auto import tqdm

from text_jepa.cli import UsageError, mute_libraries, parse_arguments, run_command
from text_jepa.probe.arguments import ProbeArguments
from text_jepa.probe.bootstrap import Score
from text_jepa.probe.catalog import load_tasks
from text_jepa.probe.documents import MIN_QUERIES, SHORTEST_DOCUMENT, verdict
from text_jepa.probe.report import as_table, macro_averages, plot_layers, update_card, write_answers, write_results
from text_jepa.probe.run import (
    all_scores,
    asked_documents,
    asked_splits,
    by_layer,
    fits,
    fitted_texts,
    is_layer,
    judge,
    load_encoders,
    newest_run,
    predict,
    scored_answers,
    title_of,
    write_hidden,
)


def main(argv: list[str] | None = None, prog: str = "run_probe.py") -> list[Score]:
    """Runs the command; returns all scores."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-") and not argv[0].endswith((".yaml", ".yml")):
        argv.insert(0, "--model_name_or_path")
    (args,) = parse_arguments((ProbeArguments,), argv, __doc__.split("\n")[0], prog)
    mute_libraries()
    first = args.model_name_or_path or newest_run()
    if args.update_card and not Path(first, "README.md").is_file():
        raise UsageError(f"--update_card: {first} is no folder with a README.md; name one or leave the flag out")
    tasks, rerankings = load_tasks(args)
    documents = asked_documents(args)
    training_texts = fitted_texts(args)
    uses_words = documents is not None or rerankings or any(task.is_similarity for task in tasks)
    if args.train_texts and not uses_words:
        raise UsageError("--train_texts goes with --texts, --rerank_dir or a task of similarities such as stsb")
    if args.do_predict and all(len(asked_splits(task, args)) == 1 for task in tasks):
        raise UsageError("--do_predict: no task has a test split with hidden labels; leave the flag out")
    encoders = load_encoders([first, *(args.compare or [])], args)

    count = fits(tasks, encoders, args)
    with tqdm(total=count, desc="Probing", unit=" fits", disable=None, leave=False) as bar:
        predicted, settings = predict(tasks, rerankings, encoders, training_texts, args, bar)
    answers, gold = scored_answers(tasks, rerankings, predicted)
    scores = all_scores(answers, gold, args.seeds[0])
    scores += macro_averages([s for s in scores if s.task in gold and not is_layer(s.system)])
    notes = [note for task in [*tasks, *rerankings] for note in task.notes]
    splits = {task.name: task.scored for task in tasks} | {title_of(task): task.split for task in rerankings}
    if documents is not None:
        found = judge(documents, training_texts, encoders, args)
        if not found.scores:
            source = f"--texts {args.texts[0]}" if args.texts else "the built-in corpus"
            raise UsageError(
                f"{source}: the documents are too few or too short: at least {MIN_QUERIES} of {SHORTEST_DOCUMENT} "
                "words are needed"
            )
        scores += found.scores
        answers |= found.answers
        gold |= found.gold
        notes += found.notes
        splits |= {score.task: "test" for score in found.scores}
    command = shlex.join(["python", "run_probe.py", *argv])
    print("\n".join([as_table(scores), *(f"note: {note}" for note in notes)]))
    if documents is not None:
        print(verdict(found))
    if args.output_dir:
        facts = {"arguments": dataclasses.asdict(args), "finetuning": settings}
        write_results(args.output_dir, scores, notes, command, facts)
        write_answers(args.output_dir, answers, gold)
    if args.layer_sweep:
        plot_layers(by_layer(scores), Path(args.output_dir, "layers.png"))
    if args.do_predict:
        write_hidden(tasks, predicted, first, args)
    if args.update_card:
        update_card(first, [s for s in scores if not is_layer(s.system)], first, splits, command)
    return scores


if __name__ == "__main__":
    run_command(main)
