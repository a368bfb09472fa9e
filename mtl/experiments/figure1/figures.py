"""Figure 1 and its appendix: paths on the landscape, and the weights that lead there."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtl.experiments.figure1.ends import player_edge, predicted_x1
from mtl.experiments.figure1.plane import Array, evaluate, on_front, pareto_front, star
from mtl.experiments.figure1.runs import ToyRuns
from mtl.report import plots, style

DASHES = ("-", ":", "--", "-.")
START = 2  # the run whose weights are shown
TOLD = " (b=-21"  # how a label says that the method was told a lower bound of the losses


def toy_figure(runs: ToyRuns, labels: Sequence[str], scales: Sequence[float]) -> Figure:
    """Figure 1: a column per method; per scale a row in loss space and one in parameter space; below, p_1 over steps.

    The last row follows the run from `START`: where there is a player its p_1 (running mean over 31 records, faintly
    p_1 itself) between the edges of its ball (grey), else the weight of loss 1 in the update; solid for the first
    scale, dotted for the second. A cross marks the predicted end.
    """
    rows = 2 * len(scales) + 1
    fig, axes = style.subplots(rows, len(labels), height=1.16 * rows, sharey="row")
    for row, scale in enumerate(scales):
        best, contour = star(scale), _levels(scale)
        front, values = pareto_front(scale)
        for upper, lower, label in zip(axes[2 * row], axes[2 * row + 1], labels, strict=True):
            run = runs.index(label, scale)
            end = predicted_x1(runs.configs[run])
            marks = np.stack([best, on_front(end)]) if np.isfinite(end) else np.stack([best, [np.nan, np.nan]])
            seen = evaluate(marks, scale)[0]
            paths, shown = np.moveaxis(runs.x[:, run], 0, 1), np.moveaxis(runs.f[:, run], 0, 1)
            plots.trajectories(upper, shown, label, front=values, star=seen[0], predicted=seen[1])
            plots.trajectories(lower, paths, label, front=front, star=best, predicted=marks[1], contour=contour)
            upper.set(xlim=(-21.5 * scale, 11 * scale), ylim=(-21.5, 11), yticks=[-20, 0], xticks=[-20 * scale, 0])
            lower.set(xlim=(-10.5, 10.5), ylim=(-10.5, 10.5), xticks=[-7, 0, 7], yticks=[-8, 0, 8])
            upper.set_xlabel("loss 1", labelpad=1)
            lower.set_xlabel("$x_1$", labelpad=1)
        axes[2 * row, 0].set_ylabel(f"$s$ = {scale:g}\nloss 2")
        axes[2 * row + 1, 0].set_ylabel(f"$s$ = {scale:g}\n$x_2$", labelpad=-1)
    for ax, label in zip(axes[-1], labels, strict=True):
        _weights(ax, runs, label, scales)
        ax.set_xlabel("steps / 1000", labelpad=1)
    axes[-1, 0].set_ylabel("$p_1$, or weight\nof loss 1")
    for ax, label in zip(axes[0], labels, strict=True):
        ax.set_title(style.look(label)[0].replace(" (", "\n(").replace("combine=", "").replace("_", " "), fontsize=7)
    return fig


def methods_figure(runs: ToyRuns, labels: Sequence[str], scales: Sequence[float]) -> Figure:
    """Every method on one page, two per row: parameter space per scale, then the weight of loss 1 (or p_1) over steps.

    Hollow: starts; filled: ends; star: best average; cross: predicted end; a dagger: told that b = -21. The last panel
    follows the run from `START` (running mean), one dash per scale, and is empty for methods without weights.
    """
    wide, rows = len(scales) + 2, -(-len(labels) // 2)
    height = 0.47 * rows + 0.2
    ratios = [1.1, *[1] * (wide - 1)]
    margins = {"left": 0.004, "right": 0.996, "bottom": 0.05 / height, "top": 1 - 0.2 / height}
    margins |= {"wspace": 0.06, "hspace": 0.1}
    fig, axes = style.subplots(  # constrained layout takes half a minute on so many axes
        rows, 2 * wide, height=height, layout="none", gridspec_kw=margins | {"width_ratios": ratios * 2}
    )
    every = max(1, len(runs.steps) // 120)
    levels = {scale: _levels(scale, 41) for scale in scales}
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for ax in axes[:, [0, wide]].flat:
        ax.set_axis_off()
    for ax in axes[-1, wide:] if len(labels) % 2 else ():
        ax.set_axis_off()
    for place, label in enumerate(labels):
        title, *mine, last = axes[place // 2, place % 2 * wide :][:wide]
        title.text(0, 0.5, _short(label), fontsize=7, va="center", transform=title.transAxes)
        for ax, scale in zip(mine, scales, strict=True):
            run = runs.index(label, scale)
            end = predicted_x1(runs.configs[run])
            plots.trajectories(
                ax,
                np.moveaxis(np.concatenate([runs.x[:-1:every, run], runs.x[-1:, run]]), 0, 1),
                label,
                front=pareto_front(scale, 41)[0],
                star=star(scale),
                predicted=on_front(end) if np.isfinite(end) else None,
                contour=levels[scale],
            )
            ax.set(xlim=(-10.5, 10.5), ylim=(-10.5, 10.5))
            if place < 2:
                ax.set_title(f"$s$ = {scale:g}", fontsize=7, pad=2)
        _weights(last, runs, label, scales, small=True)
        last.set(xticks=[], yticks=[0, 1], yticklabels=[])
        if place < 2:
            last.set_title("weight 1", fontsize=7, pad=2)
    return fig


def _short(label: str) -> str:
    """Name for a narrow column: a dagger for the bound, what else differs on a second line."""
    name, told, _ = label.partition(TOLD)
    text, _, rest = style.look(name)[0].partition(" (")
    rest = rest.rstrip(")").replace("combine=", "").replace("_", " ")
    return text + ("\u2020" if told else "") + (f"\n{rest}" if rest else "")


def _levels(scale: float, n: int = 81) -> tuple[Array, Array, Array]:
    """The average loss over the plane, as `Axes.contour` takes it."""
    side = np.linspace(-10.5, 10.5, n)
    plane = np.stack([np.tile(side, n), np.repeat(side, n)], 1)
    return side, side, evaluate(plane, scale)[0].mean(1).reshape(n, n)


def _weights(ax: Axes, runs: ToyRuns, label: str, scales: Sequence[float], small: bool = False) -> None:
    """p_1, faintly and as its running mean over 31 records, or else the weight of loss 1; one dash per scale.

    `small`: running means of both, at a quarter of the records.
    """
    colour = style.look(label)[1]
    for scale, dash in zip(scales, DASHES, strict=False):
        run = runs.index(label, scale)
        played = bool(np.isfinite(runs.p[0, run, START]))
        path = pd.Series((runs.p if played else runs.share)[:, run, START], index=runs.steps / 1000)
        if played and not small:  # it chatters: faint as it is, strong as its running mean
            ax.plot(path, dash, color=colour, lw=0.4, alpha=0.3)
        path = path.rolling(31, center=True, min_periods=1).mean() if played or small else path
        ax.plot(path[:: 4 if small else 1], dash, color=colour, lw=0.8 if small else 1.1)
    if np.isfinite(limit := player_edge(runs.configs[runs.index(label, scales[0])])):
        for level in (limit, 1 - limit):
            ax.axhline(level, color="0.6", lw=0.6, zorder=0)
    ax.set(ylim=(-0.05, 1.05), yticks=[0, 0.5, 1], xticks=[0, round(runs.steps[-1] / 1000, 1)])
