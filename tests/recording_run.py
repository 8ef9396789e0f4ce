"""A pretraining run that records what its rank saw; `test_distributed.py` starts it in each process."""

import os
import sys
from pathlib import Path

import torch

import run_pretraining
from text_jepa import TextJepaTrainer
from text_jepa.train import pretraining


class RecordingTrainer(TextJepaTrainer):
    """Keeps the texts and masks of each batch, and the final weights of the encoder that makes targets."""

    seen: list[dict[str, torch.Tensor]]

    def training_step(self, model, inputs, num_items_in_batch=None):
        batch = {name: value.clone() for name, value in inputs.items()}
        self.seen.append(batch)
        return super().training_step(model, inputs, num_items_in_batch)

    def train(self, *args, **kwargs):
        self.seen = []
        output = super().train(*args, **kwargs)
        record = {
            "seen": self.seen,
            "target": self.model.encoder_of_targets.state_dict(),
            "world": self.args.world_size,
            "threads": thread_names(),
        }
        torch.save(record, f"{self.args.output_dir}/rank{self.args.process_index}.pt")
        return output


def thread_names() -> list[str]:
    """The names of the threads of this process, on systems with /proc."""
    paths = Path("/proc/self/task").glob("*/comm")
    return [path.read_text().strip() for path in paths]


if __name__ == "__main__":
    torch.set_num_threads(1)
    pretraining.TextJepaTrainer = RecordingTrainer
    output_dir = run_pretraining.main(sys.argv[1:])
    rank = os.environ.get("RANK", 0)
    names = "\n".join(thread_names())
    Path(output_dir, f"threads-{rank}.txt").write_text(names)
