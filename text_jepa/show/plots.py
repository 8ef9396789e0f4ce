"""Pictures of runs and encoders in one style: curves of a log, maps of texts, spectra of features.

Each function draws what it is given; none reads a run or a model. The colours are those of Okabe and Ito (2008), which
colour-blind readers can tell apart, and a picture stays readable at 900 pixels.

Shapes: N tokens or texts, D features.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from configuration_text_jepa import LOSS_TERMS
from text_jepa import metrics


# ---- style ----------------------------------------------------------------------------------------------------------

# Without the yellow of Okabe and Ito, which is too pale for lines.
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
    path: str | Path,
    titles: Sequence[str],
    height: float,
    columns: int = 3,
    width: float = WIDTH,
    **options: Any,
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Opens a figure with one panel per title and writes it when the block ends.

    Args:
        path: Picture to write; its suffix selects the format.
        titles: Titles of the panels, row by row, all different.
        height: Height of a row in inches, without the legend below all rows.
        columns: Panels in a row.
        width: Width of the picture in inches.
        options: Passed to `Figure.subplots`.

    Yields:
        The figure, and its axes by title.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = max(1, math.ceil(len(titles) / columns))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, rows * height + 0.4), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
        for unused in axes[len(titles) :]:
            unused.set_axis_off()
        by_title = dict(zip(titles, axes, strict=False))
        for title, panel in by_title.items():
            panel.set_title(title)
        yield figure, by_title
        figure.savefig(path)


def short(name: str, length: int = 28) -> str:
    """Shortens a name to fit beside a picture. The end stays: folders usually differ there."""
    if len(name) <= length:
        return name
    return f"…{name[1 - length :]}"


def short_names(names: Sequence[str], length: int = 28) -> list[str]:
    """Shortens names, all different, so that they stay different: those that end alike are numbered."""
    shortened = [short(name, length) for name in names]
    counts = Counter(shortened)
    for number, name in enumerate(shortened):
        if counts[name] > 1:
            shortened[number] = f"{number + 1}: {name}"
    return shortened


def _legend_above(axes, handles, labels, columns):
    """Places a legend between the title and the axes, where it hides nothing."""
    axes.legend(
        handles,
        labels,
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        borderaxespad=0,
        ncols=columns,
    )
    rows = math.ceil(len(labels) / columns)
    axes.set_title(axes.get_title(), pad=5 + 10.5 * rows)


# ---- curves of runs -------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """A run to draw curves of.

    Attributes:
        name: Name in the legend.
        records: The log; every record has `step`.
        width: Width of the encoder, which bounds its rank; `None` if unknown.
    """

    name: str
    records: Sequence[Mapping[str, Any]]
    width: int | None = None


# Terms of the loss that share one panel, with their labels in it. Every other term has a panel of its own.
_REGULARIZERS = {"variance_loss": "variance", "covariance_loss": "covariance", "sigreg_loss": "SIGReg"}

# Panels below those of the loss: title -> measure in the log -> label.
_MEASURES = {
    "relative loss": {"relative_loss": "prediction", "copy_relative_loss": "copying"},
    "retrieval of the right target": {"retrieval_accuracy": "nearest of 1,024", "retrieval_margin": "cosine margin"},
    "effective rank": {"token_rank": "tokens", "pooled_rank": "texts"},
    "spread of token states": {"spread": ""},
    "cosine of two tokens": {"cosine_same_text": "same text", "cosine_other_text": "different texts"},
    "decay of the target encoder": {"ema_decay": ""},
    "learning rate": {"learning_rate": ""},
    "tokens per second": {"tokens_per_second": ""},
}
_HELD_OUT = "eval_"
_PROBE = "eval_probe_"

# Measures that the collapse monitor watches.
_WATCHED = ("token_rank", "pooled_rank", "cosine_other_text", "spread")


def loss_terms(logged: Collection[str]) -> list[str]:
    """Names of the terms of the loss in a log, such as `latent_loss`: those of `LOSS_TERMS`, then any others.

    A model that subclasses ours may add a term of its own, which the log knows by its name.

    Args:
        logged: Names of all measures in a log, with or without the prefix of held-out texts.
    """
    measures = {name for names in _MEASURES.values() for name in names}
    own = [f"{term}_loss" for term in LOSS_TERMS]
    found = {name.removeprefix(_HELD_OUT) for name in logged if not name.startswith(_PROBE)}
    others = [name for name in sorted(found) if name.endswith("_loss") and name not in measures]
    return [name for name in dict.fromkeys([*own, *others]) if name in found]


def loss_title(name: str) -> str:
    """The title of a term of the loss: `document_loss` is "document loss"."""
    if name == "token_loss":
        return "loss of hidden tokens"
    if name in _REGULARIZERS:
        return f"{_REGULARIZERS[name]} loss"
    return name.replace("_", " ")


def _panels_of(logged: Collection[str]) -> dict[str, dict[str, str]]:
    """The panels that a log needs: title -> measure -> label."""
    found = {"loss": {"loss": ""}}
    for name in loss_terms(logged):
        if name not in _REGULARIZERS:
            found[loss_title(name)] = {name: ""}
    found["regularizers"] = _REGULARIZERS
    found |= _MEASURES
    probes = sorted(name for name in logged if name.startswith(_PROBE))
    found["online probe (%)"] = {name: name.removeprefix(_PROBE).replace("_", " ") for name in probes}

    shown = {}
    for title, curves in found.items():
        of_the_log = {name: label for name, label in curves.items() if name in logged or _HELD_OUT + name in logged}
        if of_the_log:
            shown[title] = of_the_log
    return shown


def plot_curves(runs: Sequence[Run], path: str | Path) -> None:
    """Draws the course of runs: one panel per logged quantity, with the values on held-out texts as circles.

    In the picture of a single run each curve has its colour, in that of several each run has. Values that are not
    finite are left out. A dotted line marks the step at which the collapse monitor warns.

    Args:
        runs: One or more runs.
        path: Picture to write.
    """
    logged = {name for run in runs for record in run.records for name in record}
    shown = _panels_of(logged)
    warnings = [collapsed_at(run) for run in runs]
    last_step = max((record["step"] for run in runs for record in run.records), default=1)
    with panels(path, list(shown), height=2.2) as (figure, by_title):
        for title, curves in shown.items():
            axes = by_title[title]
            handles = _draw_measures(axes, runs, curves)
            _draw_warnings(axes, warnings)
            handles |= _draw_bounds(axes, title, runs)
            if len(handles) > 1:
                columns = 3 if len(handles) == 3 else 2
                _legend_above(axes, handles.values(), handles.keys(), columns)
            axes.set_xlabel("step")
            axes.set_xlim(-0.03 * last_step, 1.03 * last_step)
        handles = _common_handles(runs, logged, warnings)
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=4)


def _color(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def _draw_measures(axes, runs, curves) -> dict[str, Any]:
    """Draws each measure of a panel for each run; returns the handles of its legend by label."""
    from matplotlib.lines import Line2D

    is_alone = len(runs) == 1
    handles = {}
    for curve_number, (name, label) in enumerate(curves.items()):
        dashes = _DASHES[curve_number % len(_DASHES)]
        curve_color = _color(curve_number) if is_alone else _GREY
        handles[label] = Line2D([], [], ls=dashes, color=curve_color)
        for run_number, run in enumerate(runs):
            color = curve_color if is_alone else _color(run_number)
            steps, values = points(run.records, name)
            is_sparse = name.startswith(_PROBE) or len(steps) < 3
            axes.plot(
                steps,
                values,
                dashes,
                color=color,
                marker="o" if is_sparse else None,
                ms=3,
            )
            steps, values = points(run.records, _HELD_OUT + name)
            axes.plot(
                steps,
                values,
                "o",
                color=color,
                mfc="white",
                ms=4,
            )
    return handles


def _draw_warnings(axes, warnings):
    for run_number, step in enumerate(warnings):
        if step is not None:
            color = _GREY if len(warnings) == 1 else _color(run_number)
            axes.axvline(step, color=color, ls=":", lw=1)


def _draw_bounds(axes, title, runs) -> dict[str, Any]:
    """Draws the level that a panel's curves are read against; returns the handles of its legend by label."""
    from matplotlib.lines import Line2D

    label = "collapse"
    levels = set()
    if title == "relative loss":
        label = "the mean"
        levels = {1}
    elif title == "cosine of two tokens":
        levels = {metrics.COLLAPSED_COSINE}
    elif title == "effective rank":
        # Texts have fewer dimensions than tokens, and a bound of their own: half of their first rank.
        label = "collapse of tokens"
        levels = {metrics.COLLAPSED_RANK_SHARE * run.width for run in runs if run.width}
    for level in levels:
        axes.axhline(level, color=_GREY, lw=0.7)
    if not levels:
        return {}
    return {label: Line2D([], [], color=_GREY, lw=0.7)}


def _common_handles(runs, logged, warnings) -> list[Any]:
    """Handles of the legend below all panels."""
    from matplotlib.lines import Line2D

    handles = []
    if len(runs) > 1:
        for number, name in enumerate(short_names([run.name for run in runs])):
            handles.append(Line2D([], [], color=_color(number), label=name))
    if any(name.startswith(_HELD_OUT) and not name.startswith(_PROBE) for name in logged):
        style = {
            "ls": "none",
            "marker": "o",
            "color": _GREY,
            "mfc": "white",
            "ms": 4,
        }
        handles.append(Line2D([], [], label="held-out texts", **style))
    if any(step is not None for step in warnings):
        handles.append(
            Line2D(
                [],
                [],
                ls=":",
                color=_GREY,
                lw=1,
                label="collapse warning",
            )
        )
    return handles


def points(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a measure. A value that is not finite becomes NaN, a gap in the line."""
    steps = []
    values = []
    for record in records:
        if name in record:
            value = float(record[name])
            steps.append(record["step"])
            values.append(value if math.isfinite(value) else math.nan)
    return steps, values


def collapsed_at(run: Run) -> int | None:
    """The step at which the collapse monitor warns: the second measurement in a row with a sign of collapse."""
    measured = [record for record in run.records if record.keys() >= set(_WATCHED)]
    first = measured[0] if measured else None
    was_collapsed = False
    for record in measured:
        watched = {name: record[name] for name in _WATCHED}
        signs = metrics.collapse_signs(watched, run.width or 0, first)
        if was_collapsed and signs:
            return record["step"]
        was_collapsed = bool(signs)
    return None


# ---- maps of texts --------------------------------------------------------------------------------------------------

# This many classes have a colour and a marker of their own; the rarer ones are pale grey.
_CLASSES = 12


def flat(vectors: np.ndarray) -> dict[str, np.ndarray]:
    """Projects vectors to two dimensions: `"PCA"`, and `"t-SNE"` of the centred cosines, which starts from it.

    On a t-SNE map only neighbourhoods can be read: sizes of groups and distances between them mean nothing.

    Source: van der Maaten and Hinton (2008), "Visualizing data using t-SNE".

    Args:
        vectors: (N, D), N of at least 5.

    Returns:
        Title to points (N, 2).
    """
    from sklearn.manifold import TSNE

    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    pca = centred @ directions[:2].T
    scale = 1e-4 / max(pca[:, 0].std(), 1e-12)
    start = (scale * pca).astype(np.float32)
    perplexity = min(30, (len(pca) - 1) / 3)
    tsne = TSNE(metric="cosine", perplexity=perplexity, init=start, random_state=0)
    return {"PCA": pca, "t-SNE": tsne.fit_transform(centred)}


def plot_map(maps: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str], path: str | Path) -> None:
    """Draws points in the colours of their labels, each label's name at the median of its points.

    Args:
        maps: Title to points (N, 2), two maps in a row.
        labels: Indices into `names` (N,).
        names: Names of the labels.
        path: Picture to write.
    """
    counts = np.bincount(labels, minlength=len(names))
    commonest = np.argsort(-counts, kind="stable")[:_CLASSES]
    common = [label for label in commonest if counts[label]]
    with panels(path, list(maps), height=4.2, columns=2) as (figure, by_title):
        for title, axes in by_title.items():
            places = maps[title]
            is_rare = ~np.isin(labels, common)
            if is_rare.any():
                others = np.count_nonzero(counts) - len(common)
                axes.plot(
                    *places[is_rare].T,
                    ".",
                    color="0.8",
                    ms=4,
                    label=f"{others} others",
                )
            _draw_classes(axes, places, labels, common, names)
            axes.grid(False)
            axes.spines[:].set(visible=True, color="0.8")
            axes.set_xticks([])
            axes.set_yticks([])
        handles, known = axes.get_legend_handles_labels()
        figure.legend(handles, known, loc="outside lower center", ncols=6)


def _draw_classes(axes, places, labels, common, names):
    """Draws the points of each common class and its name."""
    import matplotlib.patheffects as effects

    halo = [effects.withStroke(linewidth=2.5, foreground="white")]
    middles = np.array([np.median(places[labels == label], axis=0) for label in common])
    middles[:, 1] = apart(middles[:, 1], 0.05 * np.ptp(places[:, 1]))
    for number, label in enumerate(common):
        own = places[labels == label]
        color = _color(number)
        marker = MARKERS[number // len(PALETTE)]
        axes.plot(
            *own.T,
            marker,
            color=color,
            ms=3.5,
            mew=0,
            alpha=0.75,
            label=names[label],
        )
        style = {
            "color": color,
            "weight": "bold",
            "path_effects": halo,
            "ha": "center",
            "va": "center",
            "zorder": 3,
        }
        axes.text(*middles[number], short(names[label]), **style)


def apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Moves heights (N,) until no two are nearer than `gap`; their order and mean stay."""
    order = np.argsort(heights, kind="stable")
    offsets = gap * np.arange(len(heights))
    moved = np.empty(len(heights))
    moved[order] = np.maximum.accumulate(heights[order] - offsets) + offsets
    return moved - moved.mean() + heights.mean()


# ---- spectra of features --------------------------------------------------------------------------------------------

# Smaller shares are rounding errors, for example in the direction that a LayerNorm removes.
_ROUNDING = 1e-12


def spectrum(features: np.ndarray) -> np.ndarray:
    """Eigenvalues of the covariance of features as shares of the variance, in descending order.

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
        features: Title of a panel to name of an encoder to features (N, D); the last encoder is the control.
        path: Picture to write.
    """
    with panels(
        path,
        list(features),
        height=3.8,
        columns=2,
        sharey=True,
    ) as (_, by_title):
        for title, axes in by_title.items():
            systems = features[title]
            names = short_names(list(systems), 36)
            for number, (name, rows) in enumerate(zip(names, systems.values(), strict=True)):
                is_control = number == len(systems) - 1
                color = _GREY if is_control else _color(number)
                shares = spectrum(rows)
                shares[shares < _ROUNDING] = np.nan
                rank = metrics.effective_rank(torch.from_numpy(rows)).item()
                label = f"{name}: rank {rank:.1f} of {min(rows.shape)}"
                directions = np.arange(1, len(shares) + 1)
                axes.loglog(
                    directions,
                    shares,
                    label=label,
                    color=color,
                    ls="--" if is_control else "-",
                )
            axes.set_xlabel("direction")
            axes.set_ylabel("share of the variance")
            axes.label_outer()
            handles, labels = axes.get_legend_handles_labels()
            _legend_above(axes, handles, labels, columns=1)
