"""Whether an architecture keeps what the method needs: hidden words stay hidden, and all visible ones are seen.

`AutoModel` opens many architectures that return a `last_hidden_state` and cannot be trained here: decoders see only
what comes before, and convolutions and Fourier transforms see through an attention mask. No list of names would know
the next one, so two small texts are run through the model.
"""

import contextlib
from collections.abc import Iterator

import torch

from configuration_text_jepa import TextJepaConfig
from modeling_text_jepa import TextJepaForPreTraining, encode_visible
from text_jepa.cli import UsageError, first_line


# The small text: its tokens, and the hidden ones among them, each beside a visible one.
_LENGTH = 12
_HIDDEN = (2, 3, 7)

# Largest change of a state that is rounding, as a share of the largest state.
_ROUNDING = 1e-6

# Remedies, which end a line of error.
_SUGGESTION = "name an encoder such as BERT, RoBERTa or ModernBERT (docs/from-an-existing-encoder.md lists them)"


def check_architecture(model: TextJepaForPreTraining) -> None:
    """Checks with small texts that hidden tokens change no state of the context, and that later tokens change earlier.

    Weights, mode and random state stay as they are.

    Args:
        model: The model with its initial weights.

    Raises:
        UsageError: The encoder sees hidden tokens, sees only earlier tokens, has a decoder, or does not run.
    """
    config = model.config
    encoder = model.model.encoder
    architecture = config.text_config.model_type
    if config.text_config.is_encoder_decoder:
        raise UsageError(
            f"{architecture}: an encoder-decoder model, whose last states are those of the decoder; {_SUGGESTION}"
        )
    length = min(_LENGTH, config.max_text_length or _LENGTH)
    hidden = [place for place in _HIDDEN if place < length - 1]
    visible = [place for place in range(length) if place not in hidden]
    ids = _token_ids(config, length)
    with _calm(model), refused(architecture):
        if not isinstance(encoder.get_input_embeddings(), torch.nn.Embedding):
            raise UsageError(f"{architecture}: its input embeddings are not a plain embedding matrix; {_SUGGESTION}")
        _check_hidden_tokens(model, ids, visible, hidden)
        _try_training(model, ids, visible, hidden)
        if config.text_config.num_hidden_layers > 0:  # without layers each token is by itself on purpose
            _check_later_tokens(model, ids)


@contextlib.contextmanager
def refused(architecture: str | None) -> Iterator[None]:
    """Turns whatever an architecture raises into one line that names it."""
    try:
        yield
    except (UsageError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of many types: it runs the architecture's own code
        raise UsageError(
            f"{architecture}: not an encoder that can be trained here ({first_line(error)}); {_SUGGESTION}"
        ) from error


@contextlib.contextmanager
def _calm(model: TextJepaForPreTraining) -> Iterator[None]:
    """Eval mode without gradients, and afterwards mode and random state as before."""
    was_training = model.training
    state = torch.get_rng_state()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        torch.set_rng_state(state)


def _check_hidden_tokens(
    model: TextJepaForPreTraining,
    ids: torch.Tensor,
    visible: list[int],
    hidden: list[int],
) -> None:
    """Checks that the states of visible tokens are finite and do not depend on hidden ones."""
    config = model.config
    architecture = config.text_config.model_type
    before = _visible_states(model, ids, visible, hidden)
    if not before.isfinite().all():
        raise UsageError(
            f"{architecture}: its states are not finite, so its weights are corrupted; use another encoder"
        )
    changed = ids.clone()
    changed[:, hidden] = _other_ids(config, ids[:, hidden])
    after = _visible_states(model, changed, visible, hidden)
    if _differ(before, after):
        raise UsageError(
            f"{architecture}: the states of visible tokens depend on hidden ones, because the attention mask does not "
            f"hide them, so there is nothing left to predict; {_SUGGESTION}"
        )


def _check_later_tokens(model: TextJepaForPreTraining, ids: torch.Tensor) -> None:
    """Checks that the states of tokens depend on a later one."""
    config = model.config
    changed = ids.clone()
    changed[:, -1] = _other_ids(config, ids[:, -1])
    before = model.model(ids, torch.ones_like(ids)).last_hidden_state
    after = model.model(changed, torch.ones_like(ids)).last_hidden_state
    if torch.equal(before[:, :-1], after[:, :-1]):  # new weights may change them by little
        raise UsageError(
            f"{config.text_config.model_type}: no state depends on a later token, as in a causal language model, but "
            f"a hidden word has context on both sides; {_SUGGESTION}"
        )


def _try_training(model: TextJepaForPreTraining, ids: torch.Tensor, visible: list[int], hidden: list[int]) -> None:
    """Raises whatever an architecture raises in training alone, and leaves no gradients."""
    model.train()
    try:
        with torch.enable_grad():
            states = _visible_states(model, ids, visible, hidden)
            if states.requires_grad:  # an encoder may be frozen
                states.sum().backward()
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()


def _token_ids(config: TextJepaConfig, length: int) -> torch.Tensor:
    """(1, length) ordinary ids: the special tokens of a vocabulary are first."""
    vocab_size = config.text_config.vocab_size
    ids = torch.arange(length) + vocab_size // 2
    return (ids % vocab_size)[None]


def _other_ids(config: TextJepaConfig, ids: torch.Tensor) -> torch.Tensor:
    """Other ids of the vocabulary."""
    vocab_size = config.text_config.vocab_size
    return (ids + max(vocab_size // 4, 1)) % vocab_size


def _visible_states(
    model: TextJepaForPreTraining,
    ids: torch.Tensor,
    visible: list[int],
    hidden: list[int],
) -> torch.Tensor:
    output, _ = encode_visible(
        model.model.encoder,
        model.config,
        model.config.context_mode,
        ids,
        torch.ones_like(ids),
        torch.tensor([[visible]]),
        torch.tensor([[hidden]]),
    )
    return output.last_hidden_state


def _differ(first: torch.Tensor, second: torch.Tensor) -> bool:
    largest = first.abs().max()
    return bool((first - second).abs().max() > _ROUNDING * largest)
