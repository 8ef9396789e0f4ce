"""Pictures of runs and encoders in one style: curves of a log, maps of texts, spectra of features.

A function here draws what it is given; nothing reads a run or a model. Colours are those of Okabe and Ito (2008),
which colour-blind readers tell apart, and a picture stays readable at 900 pixels.

Shapes: N tokens or texts, D features.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from text_jepa import metrics


# Without its yellow, which is too pale for lines.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
WIDTH = 9.0  # inches
_DASHES = ("-", "--", ":", "-.")
_GREY = "0.4"
_STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "legend.borderpad": 0.2,
    "legend.labelspacing": 0.3,
    "legend.columnspacing": 1.0,
    "legend.handlelength": 1.8,
    "savefig.dpi": 150,
}


@contextmanager
def panels(
    path: str | Path, titles: Sequence[str], height: float, columns: int = 3, width: float = WIDTH, **options
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A figure and its axes by title, in the style of the house; it is written when the block ends.

    Args:
        path: Picture to write, whose suffix says the format.
        titles: Of the panels, row by row; no two are alike.
        height: Of a row, in inches; a legend below all of them comes on top of it.
        columns: Panels of a row.
        width: Of the picture, in inches.
        options: Of `Figure.subplots`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        rows = max(1, -(-len(titles) // columns))
        figure = Figure(figsize=(width, rows * height + 0.4), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
        for unused in axes[len(titles) :]:
            unused.set_axis_off()
        by_title = dict(zip(titles, axes, strict=False))
        for title, own in by_title.items():
            own.set_title(title)
        yield figure, by_title
        figure.savefig(path)


def short(name: str, length: int = 28) -> str:
    """A name that fits beside a picture: its end, for folders are told apart by their ends."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def _legend_above(axes, handles, labels, columns):
    """A legend between the title and the axes, where it hides nothing."""
    axes.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1), borderaxespad=0, ncols=columns)
    axes.set_title(axes.get_title(), pad=5 + 10.5 * math.ceil(len(labels) / columns))


class Run(NamedTuple):
    """What curves are drawn from.

    Args:
        name: For the legend.
        records: The log, each record with `step`.
        width: Of the encoder, for the bound of its rank; `None` if it is not known.
    """

    name: str
    records: Sequence[Mapping[str, Any]]
    width: int | None = None


# Title of a panel -> what is drawn in it -> how the panel calls it.
_CURVES = {
    "loss": {"loss": ""},
    "latent loss": {"latent_loss": ""},
    "loss of hidden tokens": {"token_loss": ""},
    "document loss": {"document_loss": ""},
    "sentence loss": {"sentence_loss": ""},
    "regularizers": {"variance_loss": "variance", "covariance_loss": "covariance", "sigreg_loss": "SIGReg"},
    "relative loss": {"relative_loss": "prediction", "copy_relative_loss": "copying"},
    "retrieval of the right target": {"retrieval_accuracy": "nearest of 1,024", "retrieval_margin": "cosine margin"},
    "effective rank": {"token_rank": "tokens", "pooled_rank": "texts"},
    "spread of token states": {"spread": ""},
    "cosine of two tokens": {"cosine_same_text": "same text", "cosine_other_text": "different texts"},
    "decay of the target encoder": {"ema_decay": ""},
    "learning rate": {"learning_rate": ""},
    "tokens per second": {"tokens_per_second": ""},
}
_HELD_OUT, _PROBE = "eval_", "eval_probe_"

# What the collapse monitor looks at.
_WATCHED = ("token_rank", "pooled_rank", "cosine_other_text", "spread")


def plot_curves(runs: Sequence[Run], path: str | Path) -> None:
    """Draws the course of runs: a panel per quantity that was logged, figures on held-out texts as circles.

    A single run has a colour per curve, several have a colour each. What is not finite is left out, and a dotted line
    marks the step at which the monitor warns of a collapse.

    Args:
        runs: One or more.
        path: Picture to write.
    """
    from matplotlib.lines import Line2D

    logged = {name for run in runs for record in run.records for name in record}
    probes = {name: name.removeprefix(_PROBE).replace("_", " ") for name in sorted(logged) if name.startswith(_PROBE)}
    shown = {
        title: {name: label for name, label in curves.items() if {name, _HELD_OUT + name} & logged}
        for title, curves in {**_CURVES, "online probe (%)": probes}.items()
    }
    shown = {title: curves for title, curves in shown.items() if curves}
    alone = len(runs) == 1
    coloured = list(zip(runs, cycle(PALETTE), [collapsed_at(run) for run in runs], strict=False))
    last = max((record["step"] for run in runs for record in run.records), default=1)
    bounds = {"relative loss": ("the mean", {1}), "cosine of two tokens": ("collapse", {metrics.COLLAPSED_COSINE})}
    bounds["effective rank"] = ("collapse", {metrics.COLLAPSED_RANK_SHARE * run.width for run in runs if run.width})
    with panels(path, list(shown), 2.2) as (figure, by_title):
        for title, curves in shown.items():
            axes, keys = by_title[title], {}
            for number, (name, label) in enumerate(curves.items()):
                line = _DASHES[number % len(_DASHES)]
                keys[label] = Line2D([], [], ls=line, color=PALETTE[number % len(PALETTE)] if alone else _GREY)
                for run, color, _ in coloured:
                    color = keys[label].get_color() if alone else color
                    own = points(run.records, name)
                    axes.plot(*own, line, color=color, marker="o" if name in probes or len(own[0]) < 3 else None, ms=3)
                    axes.plot(*points(run.records, _HELD_OUT + name), "o", color=color, mfc="white", ms=4)
            for _, color, step in coloured:
                if step is not None:
                    axes.axvline(step, color=_GREY if alone else color, ls=":", lw=1)
            label, values = bounds.get(title, ("", ()))
            for value in values:
                axes.axhline(value, color=_GREY, lw=0.7)
                keys[label] = Line2D([], [], color=_GREY, lw=0.7)
            if len(keys) > 1:
                _legend_above(axes, keys.values(), keys.keys(), columns=3 if len(keys) == 3 else 2)
            axes.set_xlabel("step")
            axes.set_xlim(-0.03 * last, 1.03 * last)
        keys = [] if alone else [Line2D([], [], color=color, label=short(run.name)) for run, color, _ in coloured]
        if any(name.startswith(_HELD_OUT) and name not in probes for name in logged):
            keys.append(Line2D([], [], ls="none", marker="o", color=_GREY, mfc="white", ms=4, label="held-out texts"))
        if any(step is not None for *_, step in coloured):
            keys.append(Line2D([], [], ls=":", color=_GREY, lw=1, label="warning of a collapse"))
        if keys:
            figure.legend(handles=keys, loc="outside lower center", ncols=4)


def points(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a measure; NaN, which is a gap in a line, for every value that is not finite."""
    found = [(record["step"], float(record[name])) for record in records if name in record]
    return [step for step, _ in found], [value if np.isfinite(value) else np.nan for _, value in found]


def collapsed_at(run: Run) -> int | None:
    """The step at which the collapse monitor warns: the second measurement in a row with a sign of collapse."""
    measured = [record for record in run.records if "token_rank" in record]
    signs = [
        metrics.collapse_signs({name: r[name] for name in _WATCHED}, run.width or 0, measured[0]["pooled_rank"])
        for r in measured
    ]
    return next((measured[i]["step"] for i in range(1, len(signs)) if signs[i - 1] and signs[i]), None)


# As many classes have a colour and a marker of their own; the rarer ones are pale grey.
_CLASSES = 12


def flat(vectors: np.ndarray) -> dict[str, np.ndarray]:
    """Maps (N, 2) of N vectors: `"PCA"`, and `"t-SNE"` of the centred cosines, which starts from it.

    Of the second one only neighbourhoods can be read: sizes of groups and distances between them mean nothing.

    Source: van der Maaten and Hinton (2008), "Visualizing data using t-SNE".

    Args:
        vectors: (N, D), N of at least 5.
    """
    from sklearn.manifold import TSNE

    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:2]
    pca = centred @ directions.T
    start = (1e-4 / max(pca[:, 0].std(), 1e-12) * pca).astype(np.float32)
    tsne = TSNE(metric="cosine", perplexity=min(30, (len(pca) - 1) / 3), init=start, random_state=0)
    return {"PCA": pca, "t-SNE": tsne.fit_transform(centred)}


def plot_map(maps: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str], path: str | Path) -> None:
    """Draws points in the colours of their labels, whose names stand where most of their points are.

    Args:
        maps: Title to points (N, 2), two in a row.
        labels: (N,) numbers of `names`.
        names: Of the labels.
        path: Picture to write.
    """
    import matplotlib.patheffects as effects

    counts = np.bincount(labels, minlength=len(names))
    common = [label for label in np.argsort(-counts, kind="stable")[:_CLASSES] if counts[label]]
    others = np.count_nonzero(counts) - len(common)
    with panels(path, list(maps), 4.2, columns=2) as (figure, by_title):
        for title, axes in by_title.items():
            places = maps[title]
            if others:
                axes.plot(*places[~np.isin(labels, common)].T, ".", color="0.8", ms=4, label=f"{others} others")
            middles = np.array([np.median(places[labels == label], axis=0) for label in common])
            middles[:, 1] = apart(middles[:, 1], 0.05 * np.ptp(places[:, 1]))
            for number, (label, middle) in enumerate(zip(common, middles, strict=True)):
                color, marker = PALETTE[number % len(PALETTE)], MARKERS[number // len(PALETTE)]
                own = places[labels == label]
                axes.plot(*own.T, marker, color=color, ms=3.5, mew=0, alpha=0.75, label=names[label])
                halo = [effects.withStroke(linewidth=2.5, foreground="white")]
                where = {"ha": "center", "va": "center", "zorder": 3}
                axes.text(*middle, short(names[label]), color=color, weight="bold", path_effects=halo, **where)
            axes.grid(False)
            axes.spines[:].set(visible=True, color="0.8")
            axes.set_xticks([])
            axes.set_yticks([])
        handles, known = axes.get_legend_handles_labels()
        figure.legend(handles, known, loc="outside lower center", ncols=6)


def apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Heights (N,) in the same order, moved until no two are nearer than `gap`, about the same mean."""
    order = np.argsort(heights, kind="stable")
    ranks = gap * np.arange(len(heights))
    moved = np.empty(len(heights))
    moved[order] = np.maximum.accumulate(heights[order] - ranks) + ranks
    return moved - moved.mean() + heights.mean()


# Smaller shares are what is left of rounding, such as in the direction that a LayerNorm takes away.
_ROUNDING = 1e-12


def spectrum(features: np.ndarray) -> np.ndarray:
    """Eigenvalues of the covariance of features as shares of the variance, the largest one first.

    Args:
        features: (N, D).

    Returns:
        (min(N, D),) float64 with the sum 1; zeros if no feature varies.
    """
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    energy = np.linalg.svd(centred, compute_uv=False) ** 2
    return energy / max(energy.sum(), np.finfo(np.float64).tiny)


def plot_spectra(features: Mapping[str, Mapping[str, np.ndarray]], path: str | Path) -> None:
    """Draws spectra on logarithmic axes, with the effective rank in the legend.

    Args:
        features: Title of a panel to system to (N, D); the last system is the control.
        path: Picture to write.
    """
    with panels(path, list(features), 3.8, columns=2, sharey=True) as (_, by_title):
        for title, axes in by_title.items():
            for number, (system, rows) in enumerate(features[title].items(), 1):
                style = {"color": _GREY, "ls": "--"} if number == len(features[title]) else {}
                style = style or {"color": PALETTE[(number - 1) % len(PALETTE)]}
                rank, shares = metrics.effective_rank(torch.from_numpy(rows)).item(), spectrum(rows)
                shares[shares < _ROUNDING] = np.nan
                label = f"{short(system, 36)}: rank {rank:.1f} of {min(rows.shape)}"
                axes.loglog(np.arange(1, len(shares) + 1), shares, label=label, **style)
            axes.set_xlabel("direction")
            axes.set_ylabel("share of the variance")
            axes.label_outer()
            _legend_above(axes, *axes.get_legend_handles_labels(), columns=1)
