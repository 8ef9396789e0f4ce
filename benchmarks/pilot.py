"""Runs the first steps of a training run to measure its speed.

    python benchmarks/pilot.py configs/default.yaml --train_file TEXTS --max_steps 80 --logging_steps 40

Takes the flags of run_pretraining.py and writes only the log and the arguments. benchmarks/compare.py reads the
seconds of a step from the log. Held-out losses, merging, the comparison and exports, which follow the last step of a
run and take longer than these steps, are left out.
"""

import sys
from pathlib import Path

from transformers import set_seed

from text_jepa.cli import run_command
from text_jepa.data.tokenization import DocumentCount
from text_jepa.train.arguments import write_arguments
from text_jepa.train.build import objective_of, set_dependent_defaults
from text_jepa.train.command import parse_run
from text_jepa.train.pretraining import make_card_info, make_trainer, prepare_parts, set_up_logging, train


def main(argv: list[str] | None = None) -> None:
    """Trains, and writes the log and, after the last step, the arguments to the output folder."""
    argv = sys.argv[1:] if argv is None else argv
    model_args, data_args, objective_args, args = parse_run(argv, "benchmarks/pilot.py")
    set_up_logging(args)
    set_seed(args.seed)
    set_dependent_defaults(data_args, objective_of(model_args, objective_args))
    parts = prepare_parts(model_args, data_args, objective_args, args, DocumentCount())
    card_info = make_card_info(model_args, data_args, parts.corpus, parts.model.config, argv)
    train(make_trainer(parts, model_args, data_args, args, card_info), None)
    write_arguments(Path(args.output_dir, "arguments.yaml"), model_args, data_args, objective_args, args)


if __name__ == "__main__":
    run_command(main)
