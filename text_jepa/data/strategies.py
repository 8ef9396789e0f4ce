"""Configures mask strategies and views, and draws the shares of a text that they hide or keep."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np


SpanLengthDistribution = Literal["fixed", "uniform", "geometric", "poisson"]
MaskKind = Literal["spans", "suffix", "keep_block", "blocks"]
View = Literal["rest", "neighbour", "same", "crop", "crop_both", "deletion", "column", "next_sentence"]

# Views of documents: an example is a window of a document.
DOCUMENT_VIEWS = ("rest", "neighbour")

# Views that are a field of the example.
DATA_VIEWS = ("column", "next_sentence")

# A share of a text: a number, an interval to draw from, or the schedule {"start": …, "end": …, "steps": …}.
Share = float | Sequence[float] | Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class MaskStrategy:
    """A strategy for hiding a part of a text.

    `kind` is one of:

    - `"spans"`: hides spans whose lengths follow a distribution, `ratio` of the text in total, with equal probability
      at every position (single random tokens are spans of the fixed length 1 without whole words). With `num_spans`:
      this number of spans of `min_span_length` to `max_span_length` tokens, shortened if they would hide more than
      `ratio`.
    - `"suffix"`: hides the end of the text (UL2's S-denoiser, arXiv 2205.05131).
    - `"keep_block"`: hides all but one block (the inverse block masks of data2vec 2.0, arXiv 2212.07525).
    - `"blocks"`: hides `num_spans` disjoint blocks, each of the share `ratio` (I-JEPA's targets, arXiv 2301.08243).

    Args:
        kind: See above.
        ratio: Share of the usable tokens to hide, at least 0 and below 1: a number; an interval `(low, high)` from
            which a share is drawn for every mask (`"blocks"`: for every block); or a schedule
            `{"start": a, "end": b, "steps": n}`, linear from a to b in n optimizer steps and constant afterwards.
        span_length_distribution, mean_span_length, max_span_length: See `span_lengths`.
        min_span_length: With `num_spans`: shortest span in tokens; lengths are uniform up to `max_span_length`.
        num_spans: Number of spans or blocks.
        context_ratio: Length of the block that visible tokens are restricted to, as a share of the text above 0: a
            number or an interval (I-JEPA's context). Default: all tokens that are not hidden are visible.
        whole_words: Whether to hide whole words. Otherwise every token is treated as a word.
        weight: How often the strategy is drawn, relative to the weights of the others.
        name: Name in logs and errors. Default: the kind.

    Raises:
        ValueError: A field is out of range, or this kind does not use it.
    """

    kind: MaskKind = "spans"
    ratio: Share = 0.5
    span_length_distribution: SpanLengthDistribution = "geometric"
    mean_span_length: float = 3.0
    min_span_length: int = 1
    max_span_length: int = 10
    num_spans: int | None = None
    context_ratio: float | Sequence[float] | None = None
    whole_words: bool = True
    weight: float = 1.0
    name: str = ""

    def __post_init__(self):
        try:
            self._check_types()
            self._check_ranges()
            self._check_unused_fields()
        except ValueError as error:
            message = f"mask strategy '{self.name}': {error}" if self.name else str(error)
            raise ValueError(message) from error

    def _check_types(self) -> None:
        if self.kind not in get_args(MaskKind):
            raise ValueError(f"kind '{self.kind}' is none of {', '.join(get_args(MaskKind))}")
        for name in ("weight", "mean_span_length"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)):
                raise ValueError(f"{name} must be a number, got {value!r}")
        for name in ("min_span_length", "max_span_length", "num_spans"):
            value = getattr(self, name)
            is_unset = name == "num_spans" and value is None
            if not is_unset and not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        known = get_args(SpanLengthDistribution)
        if self.span_length_distribution not in known:
            raise ValueError(
                f"span_length_distribution '{self.span_length_distribution}' is none of {', '.join(known)}"
            )

    def _check_ranges(self) -> None:
        check_share("ratio", self.ratio)
        if self.context_ratio is not None:
            check_visible_share("context_ratio", self.context_ratio)
        if not self.weight > 0:
            raise ValueError(f"weight must be above 0, got {self.weight}")
        if self.num_spans is not None and self.num_spans < 1:
            raise ValueError(f"num_spans must be at least 1, got {self.num_spans}")
        if self.kind == "blocks" and self.num_spans is None:
            raise ValueError("kind 'blocks' needs num_spans, the number of blocks")
        name = "mean_span_length" if self.num_spans is None else "min_span_length"
        value = getattr(self, name)
        if not 1 <= value <= self.max_span_length:
            raise ValueError(f"{name} must lie between 1 and max_span_length ({self.max_span_length}), got {value}")

    def _check_unused_fields(self) -> None:
        used = self._used_span_fields()
        for field in dataclasses.fields(self):
            is_unused = "span" in field.name and field.name not in used
            if is_unused and getattr(self, field.name) != field.default:
                way = ""
                if self.kind == "spans":
                    way = " without num_spans" if self.num_spans is None else " with num_spans"
                raise ValueError(f"{field.name} is not used by kind '{self.kind}'{way}")

    def _used_span_fields(self) -> set[str]:
        if self.kind == "blocks":
            return {"num_spans"}
        if self.kind != "spans":
            return set()
        if self.num_spans is None:
            return {"span_length_distribution", "mean_span_length", "max_span_length"}
        return {"num_spans", "min_span_length", "max_span_length"}

    def describe(self) -> str:
        """Describes what is hidden, as part of a sentence."""
        hidden = self._describe_hidden()
        if self.context_ratio is None:
            return hidden
        return f"{hidden}, the rest visible in a block of {describe_share(self.context_ratio)} of the text"

    def _describe_hidden(self) -> str:
        share = describe_share(self.ratio)
        unit = "words" if self.whole_words else "tokens"
        if self.ratio == 0:
            return "nothing hidden"
        if self.kind == "suffix":
            return f"the last {share} of the {unit} hidden"
        if self.kind == "keep_block":
            return f"{share} of the {unit} hidden, all around a block that stays"
        if self.kind == "blocks":
            return f"{self.num_spans} blocks of {share} of the {unit} each hidden"
        if self.num_spans is not None:
            lengths = f"{self.min_span_length} to {self.max_span_length} tokens"
            return f"{self.num_spans} spans of {lengths} hidden, {share} of the {unit} at most"
        if self.span_length_distribution == "fixed":
            length = round(self.mean_span_length)
            tokens = "tokens" if length > 1 else "token"
            return f"{share} of the {unit} hidden in spans of {length} {tokens}"
        return (
            f"{share} of the {unit} hidden in spans of {self.span_length_distribution} length, "
            f"{self.mean_span_length:g} tokens on average"
        )


@dataclasses.dataclass(frozen=True)
class ViewStrategy:
    """A strategy for making the view, the second text of an example.

    `kind` is one of:

    - `"rest"`: the document outside of the window, see `cut_windows`.
    - `"neighbour"`: the next window of the document; for the last window, the one before it.
    - `"same"`: the text itself.
    - `"crop"`: a run of its words. `"crop_both"`: two runs, one of which replaces the text.
    - `"deletion"`: the text without some of its words (TSDAE, arXiv 2104.06979).
    - `"column"`, `"next_sentence"`: `view_input_ids` of the example.

    Args:
        kind: See above.
        ratio: Share of the words that a crop or a deletion keeps: a number or an interval to draw from.
        window_length: Longest window of a document in tokens, including special tokens, for `"rest"` and
            `"neighbour"`.

    Raises:
        ValueError: The kind is unknown, or the ratio is out of range.
    """

    kind: View
    ratio: float | Sequence[float] = (0.5, 0.9)
    window_length: int = 128

    def __post_init__(self):
        known = get_args(View)
        if self.kind not in known:
            raise ValueError(f"view '{self.kind}' is none of {', '.join(known)}")
        check_visible_share("view_ratio", self.ratio)

    @property
    def is_of_document(self) -> bool:
        """Whether examples are windows of whole documents."""
        return self.kind in DOCUMENT_VIEWS

    def describe(self) -> str:
        """Describes the view, as part of a sentence."""
        share = describe_share(self.ratio)
        descriptions = {
            "rest": "the rest of its document",
            "neighbour": "the neighbouring window of its document",
            "same": "the same text",
            "crop": f"a run of {share} of its words",
            "crop_both": f"a run of {share} of its words, as the text itself is another one",
            "deletion": f"the text with {share} of its words, drawn at random",
            "column": "the second column of the dataset",
            "next_sentence": "the part of the document that follows",
        }
        return descriptions[self.kind]


# ---- shares ---------------------------------------------------------------------------------------------------------


def check_share(name: str, share: Share) -> None:
    """Raises ValueError, with the name of the argument, unless 0 ≤ share < 1, so that it can be hidden."""
    if isinstance(share, Mapping):
        if set(share) != {"start", "end", "steps"}:
            raise ValueError(f"{name}: a schedule has start, end and steps, got {', '.join(map(str, share))}")
        steps = share["steps"]
        if not isinstance(steps, (int, float)) or not steps >= 1:
            raise ValueError(f"{name}: steps of the schedule must be at least 1, got {steps}")
        bounds = [share["start"], share["end"]]
    else:
        bounds = _bounds(name, share)
    for bound in bounds:
        if not isinstance(bound, (int, float)) or not 0 <= bound < 1:
            raise ValueError(f"{name} must be a number of at least 0 and below 1, got {bound!r}")


def check_visible_share(name: str, share: float | Sequence[float]) -> None:
    """Raises ValueError, with the name of the argument, unless 0 < share ≤ 1, so that it can stay visible."""
    for bound in _bounds(name, share):
        if not isinstance(bound, (int, float)) or not 0 < bound <= 1:
            raise ValueError(f"{name} must be a number above 0 and at most 1, got {bound!r}")


def _bounds(name: str, share: float | Sequence[float]) -> list[float]:
    """The number, or the two ends of the interval."""
    if isinstance(share, str) or not isinstance(share, Sequence):
        return [share]
    bounds = list(share)
    if len(bounds) != 2:
        raise ValueError(f"{name}: an interval has two ends, got {len(bounds)}")
    are_numbers = all(isinstance(bound, (int, float)) for bound in bounds)
    if are_numbers and bounds[0] > bounds[1]:
        raise ValueError(f"{name}: the interval ends ({bounds[1]}) before it begins ({bounds[0]})")
    return bounds


def draw_share(
    share: Share,
    uniforms: np.ndarray,
    steps: np.ndarray,
) -> np.ndarray:
    """Draws the share of each row: the number itself, a draw from the interval, or the schedule's value at the step.

    Args:
        share: See `MaskStrategy.ratio`.
        uniforms: (R, N) draws in [0, 1).
        steps: (R, 1) number of completed optimizer steps.

    Returns:
        (R, N), or (R, 1) from a schedule.
    """
    if isinstance(share, Mapping):
        progress = np.minimum(steps / share["steps"], 1.0)
        return share["start"] + (share["end"] - share["start"]) * progress
    low, high = share if isinstance(share, Sequence) else (share, share)
    return low + (high - low) * uniforms


def describe_share(share: Share) -> str:
    """Describes a share in percent."""
    if isinstance(share, Mapping):
        start = describe_share(share["start"])
        end = describe_share(share["end"])
        return f"{start} (at first) to {end} (from step {share['steps']:,} on)"
    bounds = share if isinstance(share, Sequence) else [share]
    return " to ".join(f"{100 * bound:.3g}%" for bound in bounds)
