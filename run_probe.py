"""Scores encoders on labelled tasks and on your own documents, next to random weights, TF-IDF and BM25.

    python run_probe.py                                        # the newest encoder in runs/, no download
    python run_probe.py PATH_OR_NAME --tasks sst2 mrpc stsb --data_dir glue --compare OTHER_ENCODER
    python run_probe.py PATH_OR_NAME --texts "notes/*.txt" --train_texts corpus.txt    # no labels needed
    python run_probe.py PATH_OR_NAME --rerank_dir askubuntu qqp_rerank --output_dir results
    python run_probe.py PATH_OR_NAME --tasks rte cola --mode finetune --seeds 0 1 2 --finetune_args learning_rate=1e-4

Each system embeds each distinct text once, and all systems are scored on the same rows. The features of a pair are
[u, v, |u - v|, u * v]; attention and fine-tuning read both texts together. The controls are the same architecture
with random weights, new ones for each seed; the bag of the model's own embeddings; TF-IDF (256 components fitted on
the training texts; for cosines all words of the set); the most frequent class; BM25 if a reranking file has its
scores; and TF-IDF and BM25 fitted on `--train_texts`, if the encoder's own training texts are given.
Nothing is selected on the scored split; intervals are 95 % of bootstrap resamples of its rows. See docs/probing.md.
"""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from text_jepa.cli import UsageError, mute_libraries, parse_arguments, repeating_command, run_command
from text_jepa.encoders.opening import run_code_of
from text_jepa.probe.arguments import PAGE, ProbeArguments
from text_jepa.probe.bootstrap import Score
from text_jepa.probe.documents import REST
from text_jepa.probe.questions import load_questions
from text_jepa.probe.report import as_table, plot_layers, update_card, write_answers, write_results
from text_jepa.probe.run import (
    ProbeResults,
    probe,
    scores_by_layer,
    write_hidden,
)
from text_jepa.probe.summary import describe_comparison, describe_outcome
from text_jepa.probe.systems import newest_run, open_encoders
from text_jepa.share.model_card import public_command


def main(argv: list[str] | None = None, prog: str = "run_probe.py") -> list[Score]:
    """Runs the command and returns all scores."""
    argv = list(sys.argv[1:] if argv is None else argv)
    description = __doc__.split("\n")[0]
    (args,) = parse_arguments((ProbeArguments,), argv, description, prog, PAGE, positional="model_name_or_path")
    mute_libraries()
    run_code_of(args.allow_remote_code or [], cache_dir=args.cache_dir)

    first = args.model_name_or_path or newest_run()
    if args.update_card and not Path(first, "README.md").is_file():
        raise UsageError(f"--update_card: {first} is not a folder with a README.md; pass one, or leave the flag out")
    questions = load_questions(args)
    encoders = open_encoders([first, *(args.compare or [])], args)

    results = probe(questions, encoders, args)
    shown = [score for score in results.scores if score.system not in results.layers]
    print(describe_comparison(shown))
    print(as_table(results.scores))
    for note in results.notes:
        print(f"note: {note}")
    # The summary is about the rest of documents.
    outcome = describe_outcome([score for score in shown if score.task != REST])
    if outcome:
        print(outcome)
    if results.summary is not None:
        print(results.summary)
    write_files(results, args, first, repeating_command(prog, argv))
    return results.scores


def write_files(
    results: ProbeResults,
    args: ProbeArguments,
    first: str,
    command: Sequence[str],
) -> None:
    """Writes the files that the flags ask for; what stands on a card is to be published."""
    if args.output_dir:
        settings = {"arguments": dataclasses.asdict(args), "finetuning": results.finetuning}
        write_results(args.output_dir, results.scores, results.notes, shlex.join(command), settings)
        write_answers(args.output_dir, results.answers, results.gold)
    if args.layer_sweep:
        plot_layers(scores_by_layer(results), Path(args.output_dir, "layers.png"))
    if args.do_predict:
        write_hidden(results, first, args.output_dir)
    if args.update_card:
        shown = [score for score in results.scores if score.system not in results.layers]
        update_card(first, shown, first, results.splits, public_command(command))


if __name__ == "__main__":
    run_command(main, trains=False)
