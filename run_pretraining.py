"""Pretrains a Text-JEPA: raw text in, an encoder out that opens everywhere.

    accelerate launch run_pretraining.py configs/tiny_cpu.yaml                              # the built-in corpus
    accelerate launch run_pretraining.py configs/tiny_cpu.yaml --train_file notes/*.txt     # your own texts
    accelerate launch run_pretraining.py --model_name_or_path bert-base-uncased --train_file corpus.jsonl

Values of the YAML file come first, flags win. The output folder is the encoder, an ordinary checkpoint of its own
architecture; `pretraining/` in it holds the complete model for going on.
"""

import gc
import sys
from pathlib import Path

import torch

from text_jepa.cli import parse_arguments, run_command
from text_jepa.train.arguments import DataArguments, ModelArguments, ObjectiveArguments, TextJepaTrainingArguments
from text_jepa.train.callbacks import PREEMPTED
from text_jepa.train.pretraining import pretrain


def main(argv: list[str] | None = None, prog: str = "run_pretraining.py") -> Path:
    """Runs the command; returns the folder of the encoder."""
    argv = sys.argv[1:] if argv is None else argv
    classes = (ModelArguments, DataArguments, ObjectiveArguments, TextJepaTrainingArguments)
    arguments = parse_arguments(classes, argv, __doc__.split("\n")[0], prog)
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


if __name__ == "__main__":
    run_command(main)
