"""Vectors that may be cut: the sentence loss on first features, and what shorter vectors cost."""

import torch

from text_jepa.cli import parse_arguments
from text_jepa.train.arguments import ObjectiveArguments


BARE = {"sentence_loss_weight": 1.0, "sentence_hidden_size": 0, "latent_loss_weight": 0.0, "token_loss_weight": 0.0}


def test_the_loss_is_the_mean_over_all_sizes_the_whole_vectors_included(make_model):
    """Each as if the vectors had no further features."""
    model = make_model(**BARE)
    predictions, targets = torch.randn(2, 6, 32)
    parts = [model._sentence_loss(predictions[:, :size], targets[:, :size], None) for size in (8, 16, 32)]
    model.config.matryoshka_sizes = [8, 16]
    torch.testing.assert_close(model._sentence_loss(predictions, targets, None), sum(parts) / 3)


def test_sizes_are_a_flag():
    (objective,) = parse_arguments((ObjectiveArguments,), ["--matryoshka_sizes", "8", "16"], "")
    assert objective.matryoshka_sizes == [8, 16]
