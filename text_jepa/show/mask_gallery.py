"""What a batch shows and hides, as people read it: real texts with their spans marked, in the terminal and as HTML.

Pure functions: a batch of the collator goes in, a string comes out.
"""

import html
import itertools
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase


# Spans take turns. The hues are those of Okabe and Ito, which the colour-blind tell apart; numbers say the same.
# In the terminal: backgrounds of the 256 colours under black letters, legible on light and dark alike.
_TERMINAL_HUES = (74, 214, 36, 175)
_RESET, _BOLD, _DIM, _STRUCK = "\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[2;9m"
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

# What becomes of a token, in the order in which a caption counts it, with what a reader has to know.
STATES = {
    "visible": "visible to the context encoder",
    "hidden": "hidden: a span to be predicted, with its number",
    "left out": "left out: neither visible nor asked for",
    "special": "special token, visible",
}


class Run(NamedTuple):
    """Neighbouring tokens with the same fate.

    `state` is one of `STATES`; `span` is the number of a hidden run in `target_spans`, else -1; `tokens` counts them.
    """

    text: str
    state: str
    span: int
    tokens: int


class Mask(NamedTuple):
    """One mask of a text: the name of its strategy, and the runs in reading order."""

    strategy: str
    runs: list[Run]

    def count(self, *states: str) -> int:
        """Tokens in these states."""
        return sum(run.tokens for run in self.runs if run.state in states)

    @property
    def spans(self) -> int:
        """Number of hidden spans."""
        return len({run.span for run in self.runs if run.state == "hidden"})


class Text(NamedTuple):
    """One text of a batch: its masks, its view if there is one, and the tokens of padding behind it."""

    masks: list[Mask]
    view: list[Run] | None
    padding: int


def read_batch(
    batch: Mapping[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase, strategy_names: Sequence[str], limit: int
) -> list[Text]:
    """The first texts of a batch with all their masks.

    Args:
        batch: From [`DataCollatorForTextJepa`].
        tokenizer: The collator's.
        strategy_names: Likewise.
        limit: Number of texts.
    """
    rows = {name: value[:limit].numpy() for name, value in batch.items()}
    # As for the collator, an unknown word is a word.
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    texts = []
    for number, (ids, present) in enumerate(zip(rows["input_ids"], rows["attention_mask"], strict=True)):
        ids = ids[present == 1]
        pieces, is_special = token_texts(ids, tokenizer), np.isin(ids, list(special))
        masks = []
        for mask in range(rows["target_positions"].shape[1]):
            context, targets, spans = (
                rows[name][number, mask] for name in ("context_positions", "target_positions", "target_spans")
            )
            states = np.full(len(ids), "left out", dtype=object)
            states[context[context >= 0]] = "visible"
            states[(states == "visible") & is_special] = "special"
            states[targets[targets >= 0]] = "hidden"
            span_of = np.full(len(ids), -1)
            span_of[targets[targets >= 0]] = spans[targets >= 0]
            drawn = rows["mask_strategies"][number, mask] if "mask_strategies" in rows else 0
            name = strategy_names[drawn] if len(strategy_names) > 1 else ""
            masks.append(Mask(name, _runs(pieces, states, span_of)))
        view = None
        if "view_input_ids" in rows:
            view_ids = rows["view_input_ids"][number][rows["view_attention_mask"][number] == 1]
            states = np.where(np.isin(view_ids, list(special)), "special", "visible")
            view = _runs(token_texts(view_ids, tokenizer), states, np.full(len(view_ids), -1))
        texts.append(Text(masks, view, len(present) - len(ids)))
    return texts


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What each token adds to the decoded text, so that all of them joined are that text, subwords closed up.

    Of tokens that share one character (byte-level BPE) the last has it and the others nothing.
    """
    decoded = [tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False) for end in range(1, len(ids) + 1)]
    ends = [len(text.rstrip("\ufffd")) for text in decoded]
    ends[-1:] = [len(text) for text in decoded[-1:]]
    ends = [0, *np.maximum.accumulate(np.array(ends, int)).tolist()]
    return [decoded[-1][start:end] for start, end in itertools.pairwise(ends)]


def _runs(pieces, states, spans):
    runs = []
    for (state, span), group in itertools.groupby(range(len(pieces)), lambda i: (str(states[i]), int(spans[i]))):
        members = list(group)
        runs.append(Run("".join(pieces[i] for i in members), state, span, len(members)))
    return runs


def describe_question(objective: Any, has_view: bool) -> str:
    """What the model is asked, as a sentence or two.

    Args:
        objective: Anything with the fields of `TextJepaConfig` that weigh the losses.
        has_view: Whether the texts come with a second one.
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
    return f"From what is visible, predict {', '.join(others)}{', and ' * bool(others)}{last}."


def caption(mask: Mask, padding: int) -> str:
    """The counts of a mask: tokens by state, the hidden share of all that are neither special nor padding, spans."""
    hidden, usable = mask.count("hidden"), mask.count("visible", "hidden", "left out")
    words = [f"{mask.count('visible')} visible"]
    if hidden:
        plural = "s" * (mask.spans > 1)
        words.append(f"{hidden} hidden ({hidden / usable:.0%}) in {mask.spans} span{plural}")
    else:
        words.append("nothing hidden")
    words += [f"{mask.count(state)} {state}" for state in ("left out", "special") if mask.count(state)]
    return ", ".join(words + [f"{padding} padding"] * (padding > 0))


def _legend(texts):
    """The states that occur."""
    found = {run.state for text in texts for mask in text.masks for run in mask.runs}
    return [state for state in STATES if state in found]


def _split(run):
    """The blank before a run, which is not marked, and its text; never nothing, for what is hidden must be seen."""
    text = run.text.lstrip()
    return run.text[: len(run.text) - len(text)], text or ("␣" if run.text else "\ufffd")


def _harmless(text):
    """Control characters as pictures of themselves, for a text must not steer a terminal."""
    return "".join(
        "�" if unicodedata.category(c) == "Cc" and c not in "\n\t" else "  " if c == "\t" else c for c in text
    )


def to_terminal(texts: Sequence[Text], title: str, facts: Sequence[str], colour: bool, width: int = 100) -> str:
    """The gallery for a terminal.

    Args:
        texts: From `read_batch`.
        title: Its first line.
        facts: Sentences below it.
        colour: Whether to mark by escape codes; otherwise by brackets.
        width: Longest line, in characters.
    """

    def paragraph(cells, indent=""):
        return [indent + _painted(line, colour) for line in _wrapped(cells, width - len(indent))]

    def plain(text, style=""):
        return [(c, style) for c in _harmless(text)]

    lines = paragraph(plain(title, _BOLD)) + [line for fact in facts for line in paragraph(plain(fact))]
    lines.append("")
    for state in _legend(texts):
        sample = Run("[CLS]" if state == "special" else "words", state, 3 if state == "hidden" else -1, 1)
        lines += paragraph([*_cells([sample], colour), *plain(f"  {STATES[state]}")], "  ")
    for number, text in enumerate(texts, 1):
        lines += ["", *paragraph(plain(f"Text {number}", _BOLD))]
        for which, mask in enumerate(text.masks, 1):
            name = f"Mask {which}{' · ' * bool(mask.strategy)}{mask.strategy}: "
            lines += ["", *paragraph(plain(name, _BOLD) + plain(caption(mask, text.padding), _DIM), "  ")]
            lines += paragraph(_cells(mask.runs, colour), "  ")
        if text.view is not None:
            lines += ["", *paragraph(plain("Second text", _BOLD), "  ")]
            lines += paragraph(_cells(text.view, colour), "  ")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _cells(runs, colour):
    """Characters with their style; brackets where there is no colour."""
    cells = []
    for run in runs:
        blank, text = _split(run)
        style = ""
        if run.state == "hidden":
            style = f"\x1b[38;5;16;48;5;{_TERMINAL_HUES[run.span % len(_TERMINAL_HUES)]}m"
            text = f"{str(run.span).translate(_SUPERSCRIPTS)}{text}" if colour else f"[{run.span}:{text}]"
        elif run.state == "left out":
            style, text = _STRUCK, text if colour else f"~{text}~"
        elif run.state == "special":
            style = _DIM
        cells += [(c, "") for c in _harmless(blank)] + [(c, style) for c in _harmless(text)]
    return cells


def _wrapped(cells, width):
    """Lines of cells, broken at blanks and line breaks."""
    lines, line, word = [], [], []
    for cell in [*cells, ("\n", "")]:
        if not cell[0].isspace():
            word.append(cell)
            continue
        if line and len(line) + len(word) > width:
            lines, line = [*lines, line], []
        line, word = line + word, []
        if cell[0] == "\n":
            lines, line = [*lines, line], []
        elif line:
            line = [*line, cell]
    return [line[:-1] if line and line[-1][0] == " " else line for line in lines]


def _painted(cells, colour):
    groups = ((style, "".join(c for c, _ in group)) for style, group in itertools.groupby(cells, lambda cell: cell[1]))
    return "".join(f"{style}{text}{_RESET}" if style and colour else text for style, text in groups)


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


def to_html(texts: Sequence[Text], title: str, question: str, facts: Sequence[str]) -> str:
    """The gallery as a page that needs nothing beside itself, no script either.

    Args:
        texts: From `read_batch`.
        title: Heading of the page.
        question: What the model is asked.
        facts: Sentences below it.
    """
    legend = [
        f"<li>{_html_runs([Run('words', state, 0 if state == 'hidden' else -1, 1)])} — {STATES[state]}</li>"
        if state != "special"
        else f"<li><small>[CLS]</small> — {STATES[state]}</li>"
        for state in _legend(texts)
    ]
    cover = '<label><input type="checkbox">Cover what the model does not see (point at it to look)</label>'
    body = [
        f'<header><h1>{html.escape(title)}</h1><p class="question">{html.escape(question)}</p>',
        *(f'<p class="quiet">{html.escape(fact)}</p>' for fact in facts),
        f"<ul>{''.join(legend)}</ul></header>",
        cover if "hidden" in _legend(texts) else "",
    ]
    for number, text in enumerate(texts, 1):
        body.append(f"<section><h2>Text {number}</h2>")
        for which, mask in enumerate(text.masks, 1):
            name = f"Mask {which}" + (f" · {mask.strategy}" if mask.strategy else "")
            body.append(_figure(name, caption(mask, text.padding), mask.runs, strip=mask.count("hidden") > 0))
        if text.view is not None:
            body.append(_figure("Second text", "the view", text.view, strip=False))
        body.append("</section>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body>\n</html>\n"
    )


def _figure(name, counts, runs, strip):
    """One mask, with a strip on which each token has the same width."""
    bars = ""
    if strip:
        kinds = [f"h {_hue(run)}" if run.state == "hidden" else run.state.removeprefix("left ") for run in runs]
        widths = "".join(
            f'<i class="{kind}" style="flex:{run.tokens}"></i>' for kind, run in zip(kinds, runs, strict=True)
        )
        bars = f'<div class="strip" aria-hidden="true">{widths}</div>'
    return (
        f"<figure><figcaption><h3>{html.escape(name)}</h3> <span>{html.escape(counts)}</span></figcaption>{bars}"
        f'<p dir="auto">{_html_runs(runs).strip()}</p></figure>'
    )


def _hue(run):
    return f"h{run.span % len(_TERMINAL_HUES)}"


def _html_runs(runs):
    parts = []
    for run in runs:
        blank, text = (html.escape(_harmless(part)) for part in _split(run))
        if run.state == "hidden":
            text = f'<mark class="{_hue(run)}"><sup>{run.span}</sup><b>{text}</b></mark>'
        elif run.state != "visible":
            tag = "s" if run.state == "left out" else "small"
            text = f"<{tag}>{text}</{tag}>"
        parts.append(blank + text)
    return "".join(parts)
