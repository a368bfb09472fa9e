"""One style for every figure, one colour and marker per method, and a handful of plots."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from numpy.typing import ArrayLike

from mtl import cost, methods

WIDTHS = {"column": 3.3, "text": 6.9}  # inches
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.02,
    "figure.constrained_layout.h_pad": 0.02,
    "pdf.fonttype": 42,  # TrueType: text in the PDF stays text, as most venues ask
}

# Okabe and Ito's palette without its yellow, which vanishes on white; colour and marker together are unique.
BLACK, GREY, ORANGE, SKY = "#000000", "#8A8A8A", "#E69F00", "#56B4E9"
GREEN, BLUE, RED, PINK = "#009E73", "#0072B2", "#D55E00", "#CC79A7"
METHODS: dict[str, tuple[str, str, str]] = {
    "stl": ("STL", GREY, "*"),
    "ls": ("LS", BLACK, "o"),
    "scalarization": ("Scalarization", BLACK, "s"),
    "si": ("SI", BLACK, "^"),
    "rlw": ("RLW", BLACK, "v"),
    "dwa": ("DWA", BLACK, "D"),
    "uw": ("UW", GREY, "o"),
    "gradnorm": ("GradNorm", GREY, "s"),
    "gls": ("GLS", GREY, "^"),
    "stch": ("STCH", GREY, "v"),
    "famo": ("FAMO", GREY, "D"),
    "db-mtl": ("DB-MTL", GREY, "P"),
    "imtl-l": ("IMTL-L", PINK, "s"),
    "bandit": ("BanditMTL", ORANGE, "s"),
    "mgda": ("MGDA", SKY, "^"),
    "mgda-ub": ("MGDA-UB", SKY, "v"),
    "sdmgrad": ("SDMGrad", SKY, "D"),
    "moco": ("MoCo", SKY, "P"),
    "pcgrad": ("PCGrad", ORANGE, "o"),
    "gradvac": ("GradVac", ORANGE, "^"),
    "graddrop": ("GradDrop", ORANGE, "v"),
    "cagrad": ("CAGrad", ORANGE, "D"),
    "imtl-g": ("IMTL-G", PINK, "D"),
    "imtl": ("IMTL", PINK, "o"),
    "nash": ("Nash-MTL", GREEN, "D"),
    "fairgrad": ("FairGrad", BLUE, "s"),
    "fair-loss": ("Fair loss", BLUE, "o"),
    "aligned": ("Aligned-MTL", GREEN, "o"),
    "upgrad": ("UPGrad", GREEN, "s"),
    "dualproj": ("DualProj", GREEN, "^"),
    "adatask": ("AdaTask", GREEN, "v"),
    "emtl": ("EMTL", RED, "o"),
}


def look(method: str) -> tuple[str, str, str]:
    """Label, colour and marker of a method; "emtl (rho=.5)" looks like "emtl" and keeps its parenthesis.

    >>> look("emtl (raw)")
    ('EMTL (raw)', '#D55E00', 'o')
    """
    base, bracket, rest = method.partition(" (")
    if base not in METHODS:
        raise ValueError(f"method: no look is fixed for {base!r}; known are {', '.join(METHODS)}")
    label, colour, marker = METHODS[base]
    return label + bracket + rest, colour, marker


def subplots(
    rows: int = 1, columns: int = 1, *, width: Literal["column", "text"] = "text", height: float = 2.2, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure at its printed size (inches) in the style of the project, and its axes as a 2-D array."""
    if width not in WIDTHS:
        raise ValueError(f"width: one of {', '.join(WIDTHS)}, found {width!r}")
    plt.rcParams.update(cast(Any, STYLE))
    return plt.subplots(rows, columns, figsize=(WIDTHS[width], height), squeeze=False, **options)


def trajectories(
    ax: Axes,
    paths: ArrayLike,
    method: str,
    *,
    front: ArrayLike | None = None,
    star: ArrayLike | None = None,
    predicted: ArrayLike | None = None,
    contour: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
) -> None:
    """Paths (runs, steps, 2) in a plane: start hollow, end filled; front a grey band, star its best average.

    `contour` (x, y, z) draws level lines underneath: for parameter space.
    """
    _, colour, _ = look(method)
    if contour is not None:
        ax.contour(*contour, levels=12, colors="0.75", linewidths=0.4, linestyles="solid", zorder=1)
        ax.grid(False)
    if front is not None:
        ax.plot(*np.asarray(front).T, color="0.55", lw=3, alpha=0.6, solid_capstyle="round", zorder=2)
    for path in np.asarray(paths):
        ax.plot(*path.T, color=colour, lw=0.9, alpha=0.85, zorder=3)
        ax.plot(*path[0], "o", mfc="white", mec=colour, ms=3, mew=0.7, zorder=4)
    for path in np.asarray(paths):
        ax.plot(*path[-1], "o", color=colour, mec="black", mew=0.4, ms=3.6, zorder=6)
    if star is not None:
        ax.plot(*np.asarray(star), "*", color="white", mec="black", mew=0.6, ms=7, zorder=5)
    if predicted is not None:
        ax.plot(*np.asarray(predicted), "+", color="black", mew=0.9, ms=7, zorder=7)


def intervals(
    axes: Sequence[Axes],
    table: pd.DataFrame,
    metrics: Mapping[str, str] | Sequence[str],
    *,
    reference: Callable[[str], str] | None = None,
) -> None:
    """One axis per metric, one line per method: mean (marker) and 95 % interval, from `results_table(raw=True)`.

    `metrics` maps a metric to its axis label (with unit). Rows are methods, or labels which `reference` maps to
    methods. The best row is not marked: the interval is the message. A mean far from the crowd (more than eight
    times the spread of the middle half from its edges) is written at the edge of the axis, with an arrow.
    """
    names = dict(metrics) if isinstance(metrics, Mapping) else {m: m for m in metrics}
    if len(names) != len(axes):
        raise ValueError(f"metrics: one axis per metric, found {len(names)} metrics and {len(axes)} axes")
    places = np.arange(len(table))[::-1]
    for ax, (metric, label) in zip(axes, names.items(), strict=True):
        means, halves = table[metric, "mean"].to_numpy(float), table[metric, "ci"].fillna(0.0).to_numpy(float)
        low, high = _crowd(means, halves)
        for place, method, mean, half in zip(places, table.index, means, halves, strict=True):
            _, colour, marker = look(reference(str(method)) if reference else str(method))
            if low <= mean <= high:
                ax.errorbar(mean, place, xerr=half, fmt=marker, color=colour, ms=4, elinewidth=1, capsize=2)
            elif np.isfinite(mean):  # far outside: named at the edge, so that the others can be told apart
                left = mean < low
                text = f"← {mean:.4g}" if left else f"{mean:.4g} →"
                ax.annotate(
                    text, (low if left else high, place), ha="left" if left else "right", va="center", color=colour
                )
        ax.set_xlim(low, high)
        ax.set(xlabel=label, yticks=places, ylim=(-0.6, len(table) - 0.4))
        ax.set_yticklabels([str(m) if reference else look(str(m))[0] for m in table.index] if ax is axes[0] else [])
        ax.grid(axis="y", visible=False)
        ax.locator_params(axis="x", nbins=3)


def _crowd(means: np.ndarray, halves: np.ndarray) -> tuple[float, float]:
    """Limits of an axis that shows every mean but those far outside the middle half."""
    found = np.isfinite(means)
    low, high = np.quantile(means[found], [0.25, 0.75]) if found.any() else (0.0, 1.0)
    reach = 8 * max(high - low, 1e-9 + 1e-6 * abs(high))
    kept = found & (means >= low - reach) & (means <= high + reach)
    left, right = (means - halves)[kept].min(initial=low), (means + halves)[kept].max(initial=high)
    margin = 0.06 * max(right - left, 1e-6 * max(abs(right), 1.0))
    return float(left - margin), float(right + margin)


def weights_over_time(
    ax: Axes, steps: ArrayLike, weights: ArrayLike, tasks: Sequence[str], *, unit: str = "step", legend: bool = True
) -> None:
    """Task weights (steps, T) or (seeds, steps, T): one line per task, mean and range over seeds."""
    values = np.asarray(weights, dtype=float)
    values = values[None] if values.ndim == 2 else values
    palette = (BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK, GREY)
    for t, task in enumerate(tasks):
        colour, dash = palette[t % 8], ("-", "--", ":", "-.")[t // 8 % 4]
        ax.plot(steps, values[..., t].mean(0), dash, color=colour, label=task)
        if len(values) > 1:
            ax.fill_between(steps, values[..., t].min(0), values[..., t].max(0), color=colour, alpha=0.15, lw=0)
    ax.set(xlabel=unit, ylabel="task weight")
    if legend:
        ax.legend(ncols=2 if len(tasks) > 3 else 1)


def gradient_arrows(ax: Axes, grads: ArrayLike, directions: Mapping[str, ArrayLike], *, unit: bool = True) -> None:
    """Two task gradients (2, 2) in dark grey, the cone that harms neither in light grey, one arrow per method.

    With `unit` each arrow is drawn at length 1: direction is what the methods differ in.
    """
    tasks = np.asarray(grads, dtype=float)
    if tasks.shape != (2, 2):
        raise ValueError(f"grads: two gradients in the plane, shape (2, 2), found {tasks.shape}")

    def scaled(vector: np.ndarray) -> np.ndarray:
        return vector / max(float(np.linalg.norm(vector)), 1e-12) if unit else vector

    middle = sum(vector / max(float(np.linalg.norm(vector)), 1e-12) for vector in tasks)
    angles = np.arctan2(middle[1], middle[0]) + np.linspace(-np.pi, np.pi, 721)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    safe = circle[(circle @ tasks.T >= -1e-12).all(1)]
    ax.fill(*np.vstack([np.zeros((1, 2)), safe]).T, color="0.88", lw=0, zorder=0)
    for index, vector in enumerate(tasks, start=1):
        _arrow(ax, scaled(vector), "0.4", rf"$g_{index}$", 1.8)
    for name, direction in directions.items():
        label, colour, marker = look(name)
        vector = scaled(np.asarray(direction, dtype=float))
        _arrow(ax, vector, colour, "", 1.2)
        ax.plot(*vector, marker, color=colour, ms=4, label=label, zorder=5)
    ax.set(aspect="equal", xlabel=r"$\theta_1$", ylabel=r"$\theta_2$")
    ax.margins(0.18)


def _arrow(ax: Axes, vector: np.ndarray, colour: str, label: str, lw: float) -> None:
    look = {"arrowstyle": "-|>", "color": colour, "lw": lw, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (vector[0], vector[1]), (0, 0), arrowprops=look)
    ax.plot(*vector, alpha=0)  # annotations do not widen the axes
    if label:
        ax.annotate(label, (vector[0] * 1.14, vector[1] * 1.14), ha="center", va="center")


def first_updates(
    cases: Mapping[str, tuple[str, Mapping[str, Any]]], grads: ArrayLike, losses: ArrayLike
) -> pd.DataFrame:
    """The first update d of each case (label: method, hyperparameters) from gradients (T, 2) and losses (T,).

    Columns: task weights w_t (none for methods that work by coordinate), change of L_t along the unit step -d/|d|,
    |d|, residual of the solver (none where nothing is solved), whether the method keeps a state, and d itself.

    >>> first_updates({"ls": ("ls", {})}, [[3, 0], [0, 4]], [1, 1])["change of L_2"].item()
    -3.2
    """
    G, L = torch.as_tensor(grads, dtype=torch.float64), torch.as_tensor(losses, dtype=torch.float64)
    rows = {}
    for label, (name, hyper) in cases.items():
        found, tasks = methods.aggregate(name, G, L, **hyper), range(1, len(L) + 1)
        weights = [float("nan")] * len(L) if found.weights is None else found.weights.tolist()
        length = float(torch.linalg.vector_norm(found.direction))
        changes = (-(G @ found.direction) / max(length, 1e-300)).tolist()
        rows[label] = (
            {f"w_{t}": w for t, w in zip(tasks, weights, strict=True)}
            | {f"change of L_{t}": change for t, change in zip(tasks, changes, strict=True)}
            | {"length": length}
            | {"residual": float(found.certificate.residual) if found.certificate else float("nan")}
            | {"state": bool(methods.method(name, n_tasks=len(L), **hyper).state_dict())}
            | {f"d_{i}": x for i, x in enumerate(found.direction.tolist(), start=1)}
        )
    return pd.DataFrame.from_dict(rows, orient="index")


def update_panels(table: pd.DataFrame, grads: ArrayLike, *, columns: int = 7) -> Figure:
    """One small panel per row of `first_updates`: both gradients to scale, the update at length 1, changes below."""
    tasks = np.asarray(grads, dtype=float)
    tasks = tasks / np.linalg.norm(tasks, axis=1).max()
    lengths = np.linalg.norm(tasks, axis=1, keepdims=True)
    outward = tasks / lengths - (tasks / lengths).sum(0) / np.linalg.norm((tasks / lengths).sum(0))
    places = tasks + 0.24 * outward / np.linalg.norm(outward, axis=1, keepdims=True)  # labels, off the cone
    count = -(-len(table) // columns)
    fig, axes = subplots(count, columns, height=0.05 + 1.1 * count)
    for ax in axes.flat[len(table) :]:
        ax.set_axis_off()
    titles = [look(str(name))[0].replace(" (", "\n(") for name in table.index]
    for index, (name, row) in enumerate(table.iterrows()):
        ax, begin = axes.flat[index], index // columns * columns
        vector = row[["d_1", "d_2"]].to_numpy(float) / max(float(row["length"]), 1e-300)
        gradient_arrows(ax, tasks, {str(name): vector}, unit=False)
        for text, place in zip([text for text in ax.texts if text.get_text()], places, strict=True):
            text.set_position(place)
        lines = max(title.count("\n") for title in titles[begin : begin + columns]) - titles[index].count("\n")
        ax.set_title("\n" * lines + titles[index] + ("*" if row["state"] else ""), fontsize=7, pad=2)
        for t, x in ((1, 0.27), (2, 0.76)):
            change = float(row[f"change of L_{t}"])
            said = f"$L_{t}$ {change:+.2f}".replace("-0.00", "±0.00").replace("-", "−")
            style = {"color": RED, "weight": "bold"} if change > 1e-9 else {"color": "0.25"}
            ax.text(x, -0.03, said, transform=ax.transAxes, ha="center", va="top", fontsize=6, **style)
        ax.set(xlabel="", ylabel="", xticks=[], yticks=[], xlim=(-0.75, 1.3), ylim=(-0.1, 1.2))
        for side in ax.spines.values():
            side.set_visible(False)
    return fig


def cost_lines(axes: Sequence[Axes], table: pd.DataFrame) -> None:
    """Time (ratio to one backward) and peak memory (MiB) against T, logarithmic, from `mtl.cost.measure`."""
    floors = {cost.PLAIN: "-", cost.FLOOR: "--"}
    for ax, (column, label) in zip(
        axes, (("x_plain", "time / one backward"), ("mib", "peak memory [MiB]")), strict=True
    ):
        for place, (name, rows) in enumerate(table.groupby("method", sort=False)):
            if name in floors:
                ax.plot(rows["T"], rows[column], floors[str(name)], color="0.7", lw=3, zorder=1, label=name)
            else:
                text, colour, marker = look(str(name))
                style = ("-", "--", ":", "-.")[place % 4]
                ax.plot(rows["T"], rows[column], style, color=colour, marker=marker, mfc="none", ms=4.5, label=text)
        ax.set(xscale="log", yscale="log", xlabel="tasks $T$", ylabel=label)
        ticks = sorted(table["T"].unique())
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.minorticks_off()
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
