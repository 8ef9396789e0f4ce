"""Started by `test_distributed.py` in each process: run_pretraining, keeping what the rank saw for the test."""

import os
import sys
from pathlib import Path

import torch

import run_pretraining
from text_jepa import TextJepaTrainer
from text_jepa.train import pretraining


class RecordingTrainer(TextJepaTrainer):
    """Keeps the texts and masks of each batch, and the encoder that makes targets, if any does, at the end."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.seen = [*getattr(self, "seen", []), {name: value.clone() for name, value in inputs.items()}]
        return super().training_step(model, inputs, num_items_in_batch)

    def train(self, *args, **kwargs):
        output = super().train(*args, **kwargs)
        kept = {"seen": self.seen, "target": self.model.encoder_of_targets.state_dict(), "world": self.args.world_size}
        kept["threads"] = threads()
        torch.save(kept, f"{self.args.output_dir}/rank{self.args.process_index}.pt")
        return output


def threads():
    """The names of the threads of this process, where the system tells them."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    torch.set_num_threads(1)
    pretraining.TextJepaTrainer = RecordingTrainer
    output_dir = run_pretraining.main(sys.argv[1:])
    output_dir.joinpath(f"threads-{os.environ.get('RANK', 0)}.txt").write_text("\n".join(threads()))
