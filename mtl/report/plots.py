"""Plots of runs: paths in the plane, intervals over seeds, weights over time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from mtl.report.findings import ASSAY, CONTRADICTED, EQUAL, REPRODUCED, SMALLER, Finding, Part
from mtl.report.style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, look, subplots


def trajectories(
    ax: Axes,
    paths: ArrayLike,
    method: str,
    *,
    front: ArrayLike,
    star: ArrayLike,
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
    ax.plot(*np.asarray(front).T, color="0.55", lw=3, alpha=0.6, solid_capstyle="round", zorder=2)
    for path in np.asarray(paths):
        ax.plot(*path.T, color=colour, lw=0.9, alpha=0.85, zorder=3)
        ax.plot(*path[0], "o", mfc="white", mec=colour, ms=3, mew=0.7, zorder=4)
    for path in np.asarray(paths):
        ax.plot(*path[-1], "o", color=colour, mec="black", mew=0.4, ms=3.6, zorder=6)
    ax.plot(*np.asarray(star), "*", color="white", mec="black", mew=0.6, ms=7, zorder=5)
    if predicted is not None:
        ax.plot(*np.asarray(predicted), "+", color="black", mew=0.9, ms=7, zorder=7)


def intervals(
    axes: Sequence[Axes], table: pd.DataFrame, metrics: Mapping[str, str], reference: Callable[[str], str]
) -> None:
    """One axis per metric, one line per method: mean (marker) and 95 % interval, from `results_table(raw=True)`.

    `metrics` maps a metric to its axis label (with unit), `reference` a row's label to its method. The best row is not
    marked: the interval is the message. A mean far from the crowd (more than eight times the spread of the middle half
    from its edges) is written at the edge of the axis, with an arrow.
    """
    if len(metrics) != len(axes):
        raise ValueError(f"metrics: one axis per metric, found {len(metrics)} metrics and {len(axes)} axes")
    places = np.arange(len(table))[::-1]
    for ax, (metric, label) in zip(axes, metrics.items(), strict=True):
        means, halves = table[metric, "mean"].to_numpy(float), table[metric, "ci"].fillna(0.0).to_numpy(float)
        low, high = _crowd(means, halves)
        for place, line, mean, half in zip(places, table.index, means, halves, strict=True):
            _, colour, marker = look(reference(str(line)))
            if low <= mean <= high:
                ax.errorbar(mean, place, xerr=half, fmt=marker, color=colour, ms=4, elinewidth=1, capsize=2)
            elif np.isfinite(mean):  # far outside: named at the edge, so that the others can be told apart
                left = mean < low
                text, edge, side = (f"← {mean:.4g}", low, "left") if left else (f"{mean:.4g} →", high, "right")
                ax.annotate(text, (edge, place), ha=side, va="center", color=colour)
        ax.set_xlim(low, high)
        ax.set(xlabel=label, yticks=places, ylim=(-0.6, len(table) - 0.4))
        ax.set_yticklabels(map(str, table.index) if ax is axes[0] else [])
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


def leads(ax: Axes, parts: Mapping[str, Part], d: float, title: str) -> None:
    """Paired differences by method, best first: mean, 95 % interval, and the band ±d of what does not matter."""
    order = sorted(parts, key=lambda name: -(parts[name].value or 0.0))
    ax.axvspan(-d, d, color="0.92", lw=0, zorder=0)
    ax.axvline(0, color="0.6", lw=0.7, zorder=1)
    for place, name in enumerate(order):
        part, (_, colour, marker) = parts[name], look(name.removesuffix(" A/A"))
        assert part.value is not None
        reach = None if part.low is None else part.value - part.low
        face = "white" if name.endswith(" A/A") else colour
        ax.errorbar(part.value, place, xerr=reach, fmt=marker, color=colour, mfc=face, ms=4, elinewidth=1, capsize=2)
    ax.set_yticks(
        range(len(order)),
        [look(name.removesuffix(" A/A"))[0] + name[len(name.removesuffix(" A/A")) :] for name in order],
    )
    ax.set(xlabel=title, ylim=(len(order) - 0.4, -0.6))
    ax.grid(axis="y", visible=False)
    ax.locator_params(axis="x", nbins=5)


PAIRS = ("row is ahead", "practically equal", "open", "row is behind")


def equivalence(ax: Axes, names: Sequence[str], pairs: Sequence[Sequence[Part | None]], title: str) -> None:
    """Every line against every other: `pairs[i][j]` is line i minus line j, None on the diagonal."""
    colours = dict(zip(PAIRS, (BLUE, "0.85", "white", ORANGE), strict=True))
    for i, row in enumerate(pairs):
        for j, part in enumerate(row):
            if part is None:
                continue
            ahead, behind = (part.low or 0.0) > 0, (part.high or 0.0) < 0
            word = EQUAL if part.word == EQUAL else PAIRS[0] if ahead else PAIRS[3] if behind else PAIRS[2]
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fc=colours[word], ec="0.6", lw=0.3))
    n = len(names)
    ax.set_xticks(range(n), names, rotation=90, fontsize=6)
    ax.set_yticks(range(n), names, fontsize=6)
    ax.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), title=title, aspect="equal")
    ax.grid(visible=False)
    ax.tick_params(length=0)
    if (fig := ax.figure.figure) is not None and not fig.legends:  # one for all of them
        handles = [Rectangle((0, 0), 1, 1, fc=colour, ec="0.6", lw=0.3) for colour in colours.values()]
        fig.legend(handles, PAIRS, loc="outside lower center", ncols=4, fontsize=6, frameon=False)


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


WORD_COLOURS = {REPRODUCED: GREEN, CONTRADICTED: RED, SMALLER: ORANGE, EQUAL: BLUE}
REACH = 6.0  # in d: what lies further out is drawn at the edge, with an arrow


def dashboard(findings: Sequence[Finding]) -> Figure:
    """The verdicts at one glance: a line per claim, a mark per comparison at estimate / d with its 95 % interval, in
    the colour of its word; checks of its own are squares at the left; words at the right. Pale: the gate failed."""
    fig, axes = subplots(1, 1, height=0.205 * len(findings) + 0.85)
    ax, left = axes[0, 0], -REACH - 3.4
    ax.axvspan(-1, 1, color="0.93", lw=0, zorder=0)
    ax.axvline(0, color="0.6", lw=0.7, zorder=1)
    ax.axvline(-REACH - 1.1, color="0.8", lw=0.7)
    for place, one in enumerate(findings):
        pale = one.word == ASSAY
        own = [part for part in one.parts if part.value is None]
        noisy = [part for part in one.parts if part.value is not None and part.d]
        for k, part in enumerate(own):
            colour = WORD_COLOURS.get(part.word, GREY)
            ax.plot(left + 0.5 + 0.5 * k, place, "s", color=colour, ms=4.2, mew=0, alpha=0.35 if pale else 1)
        lanes = np.linspace(-0.33, 0.33, len(noisy)) if len(noisy) > 1 else [0.0]
        for lane, part in zip(lanes, noisy, strict=False):
            _mark(ax, part, place + lane, pale, len(noisy))
        text = one.word + (f" [{one.would}]" if one.would != one.word else "")
        text = text.replace(" [", "\n[") if len(text) > 60 else text  # a long one would squeeze the axis
        colour = WORD_COLOURS.get(one.word, "0.35")
        ax.annotate(text, (1.015, place), xycoords=("axes fraction", "data"), va="center", fontsize=6, color=colour)
    ax.set(xlim=(left, REACH + 0.4), ylim=(len(findings) - 0.4, -0.6), xticks=[-6, -4, -2, -1, 0, 1, 2, 4, 6])
    ax.set_yticks(range(len(findings)), [one.claim for one in findings], fontsize=6.5)
    ax.grid(axis="x", visible=False)
    ax.tick_params(axis="y", length=0)
    head: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "va": "bottom", "ha": "center", "fontsize": 7}
    ax.annotate("own check", (left + 1.15, 1.005), **head)
    ax.annotate("estimate / d (right of 0: for the sentence)", (0, 1.005), **head)
    ax.annotate("verdict [of the numbers alone]", (1.015, 1.005), **head | {"xycoords": "axes fraction", "ha": "left"})
    words = {**WORD_COLOURS, "open": GREY}
    handles = [Line2D([], [], marker="s", ls="", ms=4, color=colour) for colour in words.values()]
    how: dict[str, Any] = {"labelcolor": [*words.values()], "fontsize": 6.5, "frameon": False, "handletextpad": 0.1}
    fig.legend(handles, words, loc="outside lower center", ncols=len(words), **how)
    return fig


def _mark(ax: Axes, part: Part, y: float, pale: bool, crowd: int) -> None:
    assert part.value is not None and part.d
    value, many = part.value / part.d, crowd > 3
    style: dict[str, Any] = {"color": WORD_COLOURS.get(part.word, GREY), "alpha": 0.4 if pale else 1.0, "zorder": 3}
    if part.low is not None and part.high is not None:
        ends = np.clip([part.low / part.d, part.high / part.d], -REACH, REACH)
        ax.plot(ends, [y, y], lw=0.6 if many else 0.9, solid_capstyle="butt", **style)
    marker = "o" if abs(value) <= REACH else ">" if value > 0 else "<"
    ax.plot(np.clip(value, -REACH, REACH), y, marker, ms=2.2 if many else 3.4, mew=0, **style)


def power_figure(rates: pd.DataFrame) -> Figure:
    """Share of "reproduced" against n where the printed effect (2d over every rival) is true; from benchmarks.rule."""
    fig, axes = subplots(1, 2, height=2.2, sharey=True)
    for ax, rivals in zip(axes[0], (1, 12), strict=True):
        part = rates[(rates["rivals"] == rivals) & (rates["true lead / d"] == 2)]
        for (sd, own), colour, marker in zip(part.groupby("SD / d"), (BLUE, GREEN, ORANGE, RED), "osD^", strict=True):
            ax.plot(own["n"], own["reproduced"], f"{marker}-", color=colour, ms=3.5, label=f"SD = {sd:g} d")
        ax.axhline(0.8, color="0.4", lw=0.7, ls=":")
        ax.set(xscale="log", xlim=(2.7, 22), ylim=(-0.03, 1.05), xlabel="seeds n")
        ax.set_xticks([3, 5, 10, 20], ["3", "5", "10", "20"])
        ax.minorticks_off()
        ax.set_title("one rival" if rivals == 1 else f"best of {rivals + 1}: ahead of every one of {rivals} rivals")
    axes[0, 0].set_ylabel("P(reproduced), effect 2d true")
    axes[0, 1].legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), title="spread of paired\ndifferences", title_fontsize=7
    )
    return fig
