"""Draws curves of runs, maps of texts and spectra of features in one style.

No function reads a run or a model; all data are arguments. The colours are those of Okabe and Ito (2008), which are
distinguishable for colour-blind readers, and pictures are readable at a width of 900 pixels.

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

# The colours of Okabe and Ito without yellow, which is too pale for lines.
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
    """Opens a figure with one panel per title, and saves it when the block ends.

    Args:
        path: Picture to write; its suffix selects the format.
        titles: Titles of the panels, row by row, all different.
        height: Height of a row in inches, without the legend below all rows.
        columns: Number of panels in a row.
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
    """Shortens a name for a picture. The end is kept, because folders usually differ there."""
    if len(name) <= length:
        return name
    return f"…{name[1 - length :]}"


def short_names(names: Sequence[str], length: int = 28) -> list[str]:
    """Shortens different names so that they stay different: names with the same end are numbered."""
    shortened = [short(name, length) for name in names]
    counts = Counter(shortened)
    for number, name in enumerate(shortened):
        if counts[name] > 1:
            shortened[number] = f"{number + 1}: {name}"
    return shortened


def _legend_above(axes, handles, labels, columns):
    """Places a legend between the title and the axes."""
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
    """A run whose curves are drawn.

    Attributes:
        name: Name in the legend.
        records: Records of the log, each with a `step`.
        width: Width of the encoder, by which a collapse of tokens is judged; `None` if unknown.
    """

    name: str
    records: Sequence[Mapping[str, Any]]
    width: int | None = None


# Terms of the loss that share one panel, with their labels. Every other term has its own panel.
_REGULARIZERS = {"variance_loss": "variance", "covariance_loss": "covariance", "sigreg_loss": "SIGReg"}

# Panels after those of the loss: title -> measure in the log -> label.
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


def loss_terms(logged: Collection[str]) -> list[str]:
    """Finds the terms of the loss in a log, such as `latent_loss`: those of `LOSS_TERMS`, then any others.

    Others are terms that a subclass of the model adds.

    Args:
        logged: Names of all measures in a log, with or without the prefix of held-out texts.
    """
    found = set()
    for name in logged:
        if not name.startswith(_PROBE):
            found.add(name.removeprefix(_HELD_OUT))
    measures = set()
    for curves in _MEASURES.values():
        measures.update(curves)

    known = [f"{term}_loss" for term in LOSS_TERMS]
    terms = [name for name in known if name in found]
    for name in sorted(found - measures):
        if name.endswith("_loss") and name not in known:
            terms.append(name)
    return terms


def loss_title(name: str) -> str:
    """The title of a term of the loss, for example "document loss" for `document_loss`."""
    if name == "token_loss":
        return "loss of hidden tokens"
    if name in _REGULARIZERS:
        return f"{_REGULARIZERS[name]} loss"
    return name.replace("_", " ")


def _panels_of(logged: Collection[str]) -> dict[str, dict[str, str]]:
    """The panels for a log: title -> measure -> label."""
    known = {"loss": {"loss": ""}}
    for name in loss_terms(logged):
        if name not in _REGULARIZERS:
            known[loss_title(name)] = {name: ""}
    known["regularizers"] = _REGULARIZERS
    known |= _MEASURES
    probes = sorted(name for name in logged if name.startswith(_PROBE))
    known["online probe (%)"] = {name: name.removeprefix(_PROBE).replace("_", " ") for name in probes}

    shown = {}
    for title, curves in known.items():
        for name, label in curves.items():
            if name in logged or _HELD_OUT + name in logged:
                shown.setdefault(title, {})[name] = label
    return shown


def plot_curves(runs: Sequence[Run], path: str | Path) -> None:
    """Draws the curves of runs: one panel per logged quantity, with values on held-out texts as circles.

    With one run, colours distinguish curves; with several, they distinguish runs. Values that are not finite are left
    out. A dotted line marks the step of a collapse warning.

    Args:
        runs: One or more runs.
        path: Picture to write.
    """
    logged = {name for run in runs for record in run.records for name in record}
    shown = _panels_of(logged)
    warnings = [collapsed_at(run.records) for run in runs]
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
    """Draws each measure of a panel for each run, and returns the handles of the legend by label."""
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
    """Draws the reference level of a panel, and returns the handles of the legend by label."""
    from matplotlib.lines import Line2D

    label = "collapse"
    levels = set()
    if title == "relative loss":
        label = "the mean"
        levels = {1}
    elif title == "cosine of two tokens":
        levels = {metrics.COLLAPSED_COSINE}
    elif title == "effective rank":
        # The bound for texts is not drawn: it is half of their first rank, which differs between runs.
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
    """Steps and values of a measure. A value that is not finite is replaced by NaN, which leaves a gap in the line."""
    steps = []
    values = []
    for record in records:
        if name in record:
            value = float(record[name])
            steps.append(record["step"])
            values.append(value if math.isfinite(value) else math.nan)
    return steps, values


def collapsed_at(records: Sequence[Mapping[str, Any]]) -> int | None:
    """Step of the warning of the collapse monitor, which is logged in all later records; `None` without a warning."""
    for record in records:
        if "collapsed_at" in record:
            return record["collapsed_at"]
    return None


# ---- maps of texts --------------------------------------------------------------------------------------------------

# Number of classes with their own colour and marker; rarer ones are pale grey.
_CLASSES = 12


def flat(vectors: np.ndarray) -> dict[str, np.ndarray]:
    """Projects vectors to two dimensions by PCA, and by t-SNE of the centred cosines with PCA as initialization.

    A t-SNE map shows neighbourhoods only: sizes of groups and distances between them have no meaning.

    Source: van der Maaten and Hinton (2008), "Visualizing data using t-SNE".

    Args:
        vectors: (N, D), N of at least 5.

    Returns:
        `"PCA"` and `"t-SNE"`, each with points (N, 2).
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
    """Draws points in the colours of their labels, with the name of each label at the median of its points.

    Args:
        maps: Title to points (N, 2); two maps in a row.
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
    """Draws the points and the name of each common class."""
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
    """Moves heights (N,) so that they are at least `gap` apart, without changing their order and mean."""
    order = np.argsort(heights, kind="stable")
    offsets = gap * np.arange(len(heights))
    moved = np.empty(len(heights))
    moved[order] = np.maximum.accumulate(heights[order] - offsets) + offsets
    return moved - moved.mean() + heights.mean()


# ---- spectra of features --------------------------------------------------------------------------------------------

# Smaller shares are rounding errors, for example in the direction that a LayerNorm removes.
_ROUNDING = 1e-12


def spectrum(features: np.ndarray) -> np.ndarray:
    """Computes the eigenvalues of the covariance of features as shares of the variance, in descending order.

    Args:
        features: (N, D).

    Returns:
        (min(N, D),) float64 with the sum 1; zeros if all features are constant.
    """
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    variances = np.linalg.svd(centred, compute_uv=False) ** 2
    smallest = np.finfo(np.float64).tiny
    total = max(variances.sum(), smallest)
    return variances / total


def plot_spectra(features: Mapping[str, Mapping[str, np.ndarray]], path: str | Path) -> None:
    """Draws spectra on logarithmic axes, with the effective rank in the legend.

    Args:
        features: Title of a panel -> name of an encoder -> features (N, D); the last encoder is the control.
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
