"""Renders the masks of a batch for the terminal and as an HTML page: texts with their hidden spans marked.

All functions are pure: they convert a batch of the collator to a string.

Shapes: B texts, S tokens, M masks, C context positions, T target positions.
"""

import html
import itertools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase


# Spans alternate between four hues of Okabe and Ito, which are distinguishable for colour-blind readers, and are
# numbered. In the terminal, hues are backgrounds (of the 256 colours) of black letters, legible on any screen.
_TERMINAL_HUES = (74, 214, 36, 175)
_RESET = "\x1b[0m"
_BOLD = "\x1b[1m"
_DIM = "\x1b[2m"
_STRUCK = "\x1b[2;9m"
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

# States of a token with their explanations, in the order of the legend.
STATES = {
    "visible": "visible to the context encoder",
    "hidden": "hidden: a span to be predicted, with its number",
    "left out": "left out: neither visible nor predicted",
    "special": "special token, visible",
}


# ---- texts with their masks -----------------------------------------------------------------------------------------


class Run(NamedTuple):
    """A run of tokens with the same state and span.

    Attributes:
        text: Decoded text of the tokens.
        state: One of `STATES`.
        span: Index of the span in `target_spans`, -1 if the tokens are not hidden.
        tokens: Number of tokens.
    """

    text: str
    state: str
    span: int
    tokens: int


class Mask(NamedTuple):
    """A mask of a text: the name of its strategy, empty if there is only one, and the runs in reading order."""

    strategy: str
    runs: list[Run]

    def count(self, *states: str) -> int:
        """Number of tokens in any of these states."""
        return sum(run.tokens for run in self.runs if run.state in states)

    @property
    def spans(self) -> int:
        """Number of hidden spans."""
        return len({run.span for run in self.runs if run.state == "hidden"})


class Text(NamedTuple):
    """A text of a batch: its masks, its view if there is one, and the number of padding tokens."""

    masks: list[Mask]
    view: list[Run] | None
    padding: int


def read_batch(
    batch: Mapping[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    strategy_names: Sequence[str],
    limit: int,
) -> list[Text]:
    """Reads the first texts of a batch with all their masks.

    Args:
        batch: Batch of [`DataCollatorForTextJepa`].
        tokenizer: Tokenizer of the collator.
        strategy_names: Names of the mask strategies of the collator.
        limit: Number of texts.
    """
    rows = {name: value[:limit].numpy() for name, value in batch.items()}
    # The unknown token is a word, as in the collator.
    special = list(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
    texts = []
    for number, padded_ids in enumerate(rows["input_ids"]):
        ids = padded_ids[rows["attention_mask"][number] == 1]
        pieces = token_texts(ids, tokenizer)
        is_special = np.isin(ids, special)
        masks = []
        for mask in range(rows["target_positions"].shape[1]):
            name = ""
            if len(strategy_names) > 1:
                name = strategy_names[rows["mask_strategies"][number, mask]]
            runs = _runs_of_mask(rows, number, mask, pieces, is_special)
            masks.append(Mask(name, runs))
        view = None
        if "view_input_ids" in rows:
            is_token = rows["view_attention_mask"][number] == 1
            view_ids = rows["view_input_ids"][number][is_token]
            states = np.where(np.isin(view_ids, special), "special", "visible")
            no_spans = np.full(len(view_ids), -1)
            view = _group(token_texts(view_ids, tokenizer), states, no_spans)
        padding = len(padded_ids) - len(ids)
        texts.append(Text(masks, view, padding))
    return texts


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Splits the decoded text into the part that each token adds.

    If several tokens share one character (byte-level BPE), the last one has it and the others are empty.
    """
    if not len(ids):
        return []
    decoded = []
    for end in range(1, len(ids) + 1):
        decoded.append(tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False))
    whole = decoded[-1]
    # An unfinished character is decoded as U+FFFD.
    lengths = [len(text.rstrip("\ufffd")) for text in decoded]
    lengths[-1] = len(whole)
    ends = [0, *itertools.accumulate(lengths, max)]
    return [whole[start:end] for start, end in itertools.pairwise(ends)]


def _runs_of_mask(rows, number, mask, pieces, is_special) -> list[Run]:
    """The runs of one mask of one text; `rows` has the tensors of the batch as arrays."""
    context = rows["context_positions"][number, mask]
    targets = rows["target_positions"][number, mask]
    is_target = targets >= 0
    states = np.full(len(pieces), "left out", dtype=object)
    states[context[context >= 0]] = "visible"
    states[(states == "visible") & is_special] = "special"
    states[targets[is_target]] = "hidden"
    spans = np.full(len(pieces), -1)
    spans[targets[is_target]] = rows["target_spans"][number, mask][is_target]
    return _group(pieces, states, spans)


def _group(pieces, states, spans) -> list[Run]:
    """Joins adjacent tokens with the same state and span."""
    runs = []
    for piece, state, span in zip(pieces, states, spans, strict=True):
        last = runs[-1] if runs else None
        if last is not None and last.state == state and last.span == span:
            runs[-1] = Run(last.text + piece, last.state, last.span, last.tokens + 1)
        else:
            runs.append(Run(piece, str(state), int(span), 1))
    return runs


# ---- words ----------------------------------------------------------------------------------------------------------


def describe_question(objective: Any, has_view: bool) -> str:
    """Describes what the model has to predict.

    Args:
        objective: An object with the loss weights of `TextJepaConfig`.
        has_view: Whether each text has a view.
    """
    encoder = "the encoder itself" if objective.target_encoder_type == "online" else "the target encoder"
    seen = "only the hidden words" if objective.target_input == "spans" else "the whole text"
    parts = []
    if objective.latent_loss_weight:
        parts.append(f"the vectors that {encoder}, which reads {seen}, gives to the words of each hidden span")
    if objective.token_loss_weight:
        parts.append("the hidden words themselves")
    if objective.document_loss_weight:
        parts.append("the vector of the rest of the document")
    if objective.sentence_loss_weight:
        other = "the second text" if has_view else "the whole text"
        parts.append(f"the one vector that {encoder} gives to {other}")
    if not parts:
        return "Nothing is predicted: the encoder reads what is visible, and a regularizer looks at its vectors."
    *others, last = parts
    listed = f"{', '.join(others)}, and {last}" if others else last
    return f"From what is visible, predict {listed}."


def caption(mask: Mask, padding: int) -> str:
    """Describes the number of tokens of a mask in each state.

    The hidden share refers to all tokens that are neither special nor padding.
    """
    hidden = mask.count("hidden")
    usable = mask.count("visible", "hidden", "left out")
    counts = [f"{mask.count('visible')} visible"]
    if hidden:
        noun = "spans" if mask.spans > 1 else "span"
        counts.append(f"{hidden} hidden ({hidden / usable:.0%}) in {mask.spans} {noun}")
    else:
        counts.append("nothing hidden")
    for state in ("left out", "special"):
        if mask.count(state):
            counts.append(f"{mask.count(state)} {state}")
    if padding:
        counts.append(f"{padding} padding")
    return ", ".join(counts)


def _mask_title(number: int, mask: Mask) -> str:
    title = f"Mask {number}"
    return f"{title} · {mask.strategy}" if mask.strategy else title


def _states_of(texts: Iterable[Text]) -> list[str]:
    """The states that occur in any text, for the legend."""
    found = set()
    for text in texts:
        for mask in text.masks:
            found.update(run.state for run in mask.runs)
    return [state for state in STATES if state in found]


def _sample_run(state: str) -> Run:
    """An example of a state for the legend."""
    return Run(
        text="[CLS]" if state == "special" else "words",
        state=state,
        span=0 if state == "hidden" else -1,
        tokens=1,
    )


def _split(run: Run) -> tuple[str, str]:
    """The whitespace before a run, which is not marked, and its text, which is never empty."""
    text = run.text.lstrip()
    blank = run.text[: len(run.text) - len(text)]
    if not text:
        text = "␣" if run.text else "\ufffd"
    return blank, text


def _harmless(text: str) -> str:
    """Replaces control characters, so that a text cannot control the terminal."""
    shown = []
    for character in text.replace("\t", "  "):
        is_control = unicodedata.category(character) == "Cc" and character != "\n"
        shown.append("\ufffd" if is_control else character)
    return "".join(shown)


# ---- terminal -------------------------------------------------------------------------------------------------------

# A character with its style: an escape code, or an empty string.
_Cell = tuple[str, str]


def to_terminal(
    texts: Sequence[Text],
    title: str,
    notes: Sequence[str],
    colour: bool,
    width: int = 100,
) -> str:
    """Renders the gallery for a terminal.

    Args:
        texts: Result of `read_batch`.
        title: First line.
        notes: Sentences below the title.
        colour: Whether to mark tokens by colours (escape codes) instead of brackets.
        width: Longest line in characters.
    """
    lines = []

    def add(cells: list[_Cell], indent: str = "") -> None:
        for line in _wrapped(cells, width - len(indent)):
            lines.append(indent + _painted(line, colour))

    add(_styled(title, _BOLD))
    for note in notes:
        add(_styled(note))
    lines.append("")
    for state in _states_of(texts):
        sample = _cells([_sample_run(state)], colour)
        add(sample + _styled(f"  {STATES[state]}"), indent="  ")
    for number, text in enumerate(texts, 1):
        lines.append("")
        add(_styled(f"Text {number}", _BOLD))
        for mask_number, mask in enumerate(text.masks, 1):
            heading = _styled(f"{_mask_title(mask_number, mask)}: ", _BOLD)
            lines.append("")
            add(heading + _styled(caption(mask, text.padding), _DIM), indent="  ")
            add(_cells(mask.runs, colour), indent="  ")
        if text.view is not None:
            lines.append("")
            add(_styled("Second text", _BOLD), indent="  ")
            add(_cells(text.view, colour), indent="  ")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _styled(text: str, style: str = "") -> list[_Cell]:
    return [(character, style) for character in _harmless(text)]


def _cells(runs: Sequence[Run], colour: bool) -> list[_Cell]:
    """Converts runs to characters with their style; without colour, brackets mark the states."""
    cells = []
    for run in runs:
        blank, text = _split(run)
        style = ""
        if run.state == "hidden":
            hue = _TERMINAL_HUES[run.span % len(_TERMINAL_HUES)]
            style = f"\x1b[38;5;16;48;5;{hue}m"
            number = str(run.span)
            text = f"{number.translate(_SUPERSCRIPTS)}{text}" if colour else f"[{number}:{text}]"
        elif run.state == "left out":
            style = _STRUCK
            text = text if colour else f"~{text}~"
        elif run.state == "special":
            style = _DIM
        cells += _styled(blank)
        cells += _styled(text, style)
    return cells


def _wrapped(cells: Sequence[_Cell], width: int) -> list[list[_Cell]]:
    """Breaks cells into lines, at spaces and line breaks."""
    lines = []
    line = []
    word = []
    for cell in [*cells, ("\n", "")]:
        character, _ = cell
        if not character.isspace():
            word.append(cell)
            continue
        if line and len(line) + len(word) > width:
            lines.append(line)
            line = []
        line = line + word
        word = []
        if character == "\n":
            lines.append(line)
            line = []
        elif line:
            line.append(cell)
    return [_without_last_blank(line) for line in lines]


def _without_last_blank(line: list[_Cell]) -> list[_Cell]:
    if line and line[-1][0] == " ":
        return line[:-1]
    return line


def _painted(cells: Iterable[_Cell], colour: bool) -> str:
    """Joins cells, with an escape code where the style changes."""
    parts = []
    for style, group in itertools.groupby(cells, key=lambda cell: cell[1]):
        text = "".join(character for character, _ in group)
        parts.append(f"{style}{text}{_RESET}" if style and colour else text)
    return "".join(parts)


# ---- page -----------------------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --paper: #f6f5f1; --card: #fff; --ink: #1d1f21; --quiet: #63676b; --line: #dddad2;
  --rest: #d3d1ca; --h0: #c5e4f7; --h1: #fcdca3; --h2: #b5e6d4; --h3: #f2cfe2;
  --e0: #0072b2; --e1: #b87400; --e2: #007a59; --e3: #a8457f; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --card: #1e2125; --ink: #e8e6e1; --quiet: #a0a4a8;
  --line: #34383d; --rest: #454a50; --h0: #0f4566; --h1: #5f4100; --h2: #00513c; --h3: #642a4c;
  --e0: #56b4e9; --e1: #e69f00; --e2: #2cc294; --e3: #de92bd; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 48rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: .95rem; margin: 0; display: inline; }
header p { margin: .5rem 0; }
.question { font: 1.15rem/1.5 Georgia, serif; border-left: 3px solid var(--e0); padding-left: .9rem; }
.quiet, figcaption span { color: var(--quiet); font-size: .9rem; }
ul { list-style: none; padding: 0; margin: 1rem 0; font-size: .9rem; display: grid; gap: .25rem; }
label { font-size: .95rem; cursor: pointer; position: sticky; top: 0; display: block; padding: .6rem 0;
  background: var(--paper); border-bottom: 1px solid var(--line); z-index: 1; }
input { accent-color: var(--e0); margin-right: .4rem; }
figure { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; margin: 0 0 1rem;
  padding: .9rem 1.1rem 1rem; }
figure p { font: 1.05rem/1.9 Georgia, serif; margin: .6rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.strip { display: flex; height: .5rem; border-radius: .25rem; overflow: hidden; margin: .6rem 0; }
.strip i { background: var(--rest); } .strip .out { background: none; }
mark { color: inherit; background: var(--h); border-bottom: 2px solid var(--e); border-radius: .2rem .2rem 0 0;
  padding: .1em .15em; -webkit-box-decoration-break: clone; box-decoration-break: clone; }
mark sup { color: var(--e); font: 700 .62rem/1 system-ui, sans-serif; margin-right: .15em; user-select: none; }
.strip i.h { background: var(--e); }
.h0 { --h: var(--h0); --e: var(--e0); } .h1 { --h: var(--h1); --e: var(--e1); }
.h2 { --h: var(--h2); --e: var(--e2); } .h3 { --h: var(--h3); --e: var(--e3); }
s { color: var(--quiet); } small { color: var(--quiet); font: .72rem system-ui, sans-serif; }
mark b { font-weight: inherit; }
main:has(input:checked) figure mark:not(:hover) b { visibility: hidden; }
main:has(input:checked) figure s:not(:hover) { color: transparent; text-decoration-color: var(--rest); }
"""

_COVER = '<label><input type="checkbox">Cover what the model does not see (point at it to look)</label>'
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""


def to_html(texts: Sequence[Text], title: str, question: str, notes: Sequence[str]) -> str:
    """Renders the gallery as an HTML page without other files and scripts.

    Args:
        texts: Result of `read_batch`.
        title: Heading of the page.
        question: What the model has to predict.
        notes: Sentences below the question.
    """
    states = _states_of(texts)
    heading = html.escape(title)
    body = [f'<header><h1>{heading}</h1><p class="question">{html.escape(question)}</p>']
    for note in notes:
        body.append(f'<p class="quiet">{html.escape(note)}</p>')
    legend = [_legend_entry(state) for state in states]
    body.append(f"<ul>{''.join(legend)}</ul></header>")
    body.append(_COVER if "hidden" in states else "")
    for number, text in enumerate(texts, 1):
        body.append(f"<section><h2>Text {number}</h2>")
        for mask_number, mask in enumerate(text.masks, 1):
            strip = _strip(mask.runs) if mask.count("hidden") else ""
            counts = caption(mask, text.padding)
            body.append(_figure(_mask_title(mask_number, mask), counts, strip, mask.runs))
        if text.view is not None:
            body.append(_figure("Second text", "the view", "", text.view))
        body.append("</section>")
    return _PAGE.format(title=heading, style=_STYLE, body="\n".join(body))


def _legend_entry(state: str) -> str:
    sample = _html_runs([_sample_run(state)])
    return f"<li>{sample} — {STATES[state]}</li>"


def _figure(name: str, counts: str, strip: str, runs: Sequence[Run]) -> str:
    """The figure of one mask or view."""
    figcaption = f"<h3>{html.escape(name)}</h3> <span>{html.escape(counts)}</span>"
    paragraph = f'<p dir="auto">{_html_runs(runs).strip()}</p>'
    return f"<figure><figcaption>{figcaption}</figcaption>{strip}{paragraph}</figure>"


def _strip(runs: Sequence[Run]) -> str:
    """A bar in which every token has the same width."""
    parts = []
    for run in runs:
        kind = f"h {_hue(run)}" if run.state == "hidden" else run.state.removeprefix("left ")
        parts.append(f'<i class="{kind}" style="flex:{run.tokens}"></i>')
    return f'<div class="strip" aria-hidden="true">{"".join(parts)}</div>'


def _hue(run: Run) -> str:
    return f"h{run.span % len(_TERMINAL_HUES)}"


def _html_runs(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        blank, text = _split(run)
        text = html.escape(_harmless(text))
        if run.state == "hidden":
            text = f'<mark class="{_hue(run)}"><sup>{run.span}</sup><b>{text}</b></mark>'
        elif run.state == "left out":
            text = f"<s>{text}</s>"
        elif run.state == "special":
            text = f"<small>{text}</small>"
        parts.append(html.escape(_harmless(blank)) + text)
    return "".join(parts)
