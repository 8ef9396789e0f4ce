"""Pretrains a Text-JEPA: raw text in, an encoder out that opens everywhere.

    accelerate launch run_pretraining.py configs/tiny_cpu.yaml                              # the built-in corpus
    accelerate launch run_pretraining.py configs/tiny_cpu.yaml --train_file notes/*.txt     # your own texts
    accelerate launch run_pretraining.py --model_name_or_path bert-base-uncased --train_file corpus.jsonl

Flags override the values of the YAML file. The output folder holds the encoder, an ordinary checkpoint of its own
architecture; `pretraining/` in it holds the complete model, from which training can be continued.
"""

import gc
import sys
from pathlib import Path

import torch

from text_jepa.cli import parse_arguments, run_command
from text_jepa.train.arguments import DataArguments, ModelArguments, ObjectiveArguments, TextJepaTrainingArguments
from text_jepa.train.callbacks import PREEMPTED
from text_jepa.train.checks import RENAMED
from text_jepa.train.pretraining import pretrain


def main(argv: list[str] | None = None, prog: str = "run_pretraining.py") -> Path:
    """Runs the command.

    Args:
        argv: The words of the command line; by default those of the process.
        prog: The name of the command in help and errors.

    Returns:
        The folder of the encoder.
    """
    argv = sys.argv[1:] if argv is None else argv
    classes = (ModelArguments, DataArguments, ObjectiveArguments, TextJepaTrainingArguments)
    description = __doc__.split("\n")[0]
    arguments = parse_arguments(classes, argv, description, prog, renamed=RENAMED)
    args = arguments[-1]
    is_finished = pretrain(*arguments, argv)
    if args.world_size > 1:
        destroy_process_group(args)
    if not is_finished:
        sys.exit(PREEMPTED)
    return Path(args.output_dir)


def destroy_process_group(args: TextJepaTrainingArguments) -> None:
    """Ends the threads of the process group, which must not outlive the interpreter.

    A thread that still had a tensor to free would then abort the process, and the launcher would end the others. The
    threads end with the group, which parts of the trainer hold in reference cycles. The last reference must be that of
    its Python object, which waits for the threads without the interpreter's lock, for which they may wait.
    """
    group = torch.distributed.group.WORLD
    args.distributed_state.destroy_process_group()
    gc.collect()
    del group


if __name__ == "__main__":
    run_command(main)
