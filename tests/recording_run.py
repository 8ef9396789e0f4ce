"""Started by `test_distributed.py` in each process: run_pretraining, keeping what the rank saw for the test."""

import sys

import torch

import run_pretraining
from text_jepa import TextJepaTrainer


class RecordingTrainer(TextJepaTrainer):
    """Keeps the texts and masks of each batch, and the target encoder at the end."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.seen = [*getattr(self, "seen", []), {name: value.clone() for name, value in inputs.items()}]
        return super().training_step(model, inputs, num_items_in_batch)

    def train(self, *args, **kwargs):
        output = super().train(*args, **kwargs)
        kept = {"seen": self.seen, "target": self.model.target_encoder.state_dict(), "world": self.args.world_size}
        torch.save(kept, f"{self.args.output_dir}/rank{self.args.process_index}.pt")
        return output


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_pretraining.TextJepaTrainer = RecordingTrainer
    run_pretraining.main(sys.argv[1:])
