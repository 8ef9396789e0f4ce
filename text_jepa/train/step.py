"""The optimizer step in progress: its batches, and the loss and gradient norm that are read just before it is made."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainingArguments
from transformers.trainer_pt_utils import nested_gather


Batch = Mapping[str, torch.Tensor]


class StepInProgress:
    """The batches since the last optimizer step, and their loss.

    Args:
        args: The arguments of the run.

    Attributes:
        batches: The batches of this process.
        loss: The sum of their losses on this process.
    """

    def __init__(self, args: TrainingArguments):
        self.args = args
        self.batches: list[Batch] = []
        self.loss: torch.Tensor | float = 0.0

    def add(self, batch: Batch, loss: torch.Tensor) -> None:
        """Adds a batch and its loss."""
        self.batches.append(batch)
        self.loss = self.loss + loss

    def read(self, grad_norm: torch.Tensor | float) -> tuple[float, float]:
        """The loss, a mean over processes, and the gradient norm, both as numbers."""
        losses = nested_gather(self.loss, self.args.parallel_mode)
        loss = losses.mean()
        grad_norm = torch.as_tensor(grad_norm, device=loss.device)
        if hasattr(grad_norm, "full_tensor"):  # a DTensor under FSDP2
            grad_norm = grad_norm.full_tensor()
        # The only point of a step at which the host waits for the device.
        loss, grad_norm = torch.stack([loss, grad_norm]).tolist()
        return loss, grad_norm

    def save_batches(self, step: int) -> Path:
        """Writes the batches of this process into `nonfinite/` of the output folder.

        Args:
            step: The global step, for the names of the files.

        Returns:
            The folder.
        """
        rank = self.args.process_index
        folder = Path(self.args.output_dir, "nonfinite")
        folder.mkdir(parents=True, exist_ok=True)
        for number, batch in enumerate(self.batches):
            path = folder / f"step{step}-rank{rank}-{number}.safetensors"
            tensors = {name: value.cpu().contiguous() for name, value in batch.items()}
            save_file(tensors, path)
        return folder

    def clear(self) -> None:
        """Begins the next step."""
        self.batches = []
        self.loss = 0.0
