"""Trains a text encoder on raw text. The result is an ordinary transformers checkpoint.

    python run_pretraining.py notes/                                 # your texts: folders, files, globs
    python run_pretraining.py configs/tiny_cpu.yaml                  # a recipe; without texts, on built-in ones
    accelerate launch run_pretraining.py configs/default.yaml notes/ # several GPUs or machines

The same as `text-jepa pretrain`. Flags override the values of the YAML file. The output folder holds the encoder, an
ordinary checkpoint of its own architecture; `pretraining/` in it holds the complete model, from which training can be
continued.
"""

import gc
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from text_jepa.cli import UsageError, repeating_command, run_command, split_words
from text_jepa.data.columns import column_names
from text_jepa.errors import outliving_readers
from text_jepa.train.arguments import DataArguments, TextJepaTrainingArguments
from text_jepa.train.callbacks import PREEMPTED
from text_jepa.train.command import EXAMPLES, own_output_dir, parse_run
from text_jepa.train.hosts import naming_lost_processes
from text_jepa.train.pretraining import hangup_as_termination, pretrain


def main(
    argv: list[str] | None = None,
    prog: str = "run_pretraining.py",
    command: Sequence[str] | None = None,
) -> Path:
    """Runs the command.

    Args:
        argv: The words of the command line; by default those of the process.
        prog: The name of the command in help and errors.
        command: The whole command as it was given, for the model card, if it was another one.

    Returns:
        The folder of the encoder.

    Raises:
        UsageError: See `pretrain`; or there is nothing to train on.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse_run(argv, prog, description=__doc__.split("\n")[0])
    _, data_args, _, args = arguments
    refuse_nothing(argv, prog, data_args)
    with outliving_readers(), hangup_as_termination():
        with naming_lost_processes(args), own_output_dir(data_args, argv, args):
            is_finished = pretrain(*arguments, command or command_of(prog, argv, args.world_size))
        if args.world_size > 1:
            destroy_process_group(args)
        if not is_finished:
            sys.exit(PREEMPTED)
        if args.process_index == 0 and not data_args.prepare_only:
            show_next(data_args, args.output_dir)
    return Path(args.output_dir)


def command_of(prog: str, argv: Sequence[str], processes: int) -> list[str]:
    """The words of a command that repeats this one."""
    if processes == 1:
        return repeating_command(prog, argv)
    launcher = ["accelerate", "launch", "--num_processes", str(processes)]
    program = [prog] if prog.endswith(".py") else ["-m", "text_jepa", "pretrain"]
    return [*launcher, *program, *argv]


def refuse_nothing(argv: list[str], prog: str, data_args: DataArguments) -> None:
    """Raises UsageError, below three examples, if neither texts nor a configuration are named."""
    configurations, _, _ = split_words(argv)
    if configurations or data_args.train_file or data_args.dataset_name:
        return
    print(EXAMPLES.format(prog=prog), file=sys.stderr)
    raise UsageError(f"name texts or a configuration to train on (see {prog} --help)")


def show_next(data_args: DataArguments, output_dir: str) -> None:
    """Prints what to do with the encoder."""
    encoder = shlex.quote(output_dir)
    print("Next:")
    files = data_args.train_file or []
    folders = [name for name in files if Path(name).is_dir()]
    if folders:
        print(f'  text-jepa search {shlex.quote(folders[0])} "a question" --encoder {encoder}')
    probe = ["text-jepa", "probe", output_dir]
    if files:
        probe += ["--texts", "UNSEEN_TEXTS", "--train_texts", *files]
        if data_args.text_column != "text":
            probe += ["--text_column", *column_names(data_args.text_column)]
    print(f"  {shlex.join(probe)}")


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
