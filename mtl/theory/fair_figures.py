"""Figures of FairGrad's system (notebook 09); each returns a closed matplotlib Figure."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from mtl import plots
from mtl.theory import fairness

CONE2 = torch.tensor([[1.2, 0.2], [-0.45, 0.35]], dtype=torch.float64)
CONE3 = torch.tensor([[1.0, 0.1, 0.2], [-0.7, 0.6, 0.1], [0.1, 0.5, -0.4]], dtype=torch.float64)


def fair_picture(alpha: float = 2.0) -> Figure:
    """FairGrad's direction for one alpha among the gradients of a two-task and a three-task cone, and its limits."""
    fig, axes = plots.subplots(1, 2, height=2.5)
    _cone(axes[0, 0], [alpha])
    _shares(axes[0, 1], [alpha])
    plt.close(fig)
    return fig


def fair_path(alphas: Sequence[float] = tuple(np.logspace(-1.5, 2, 36))) -> Figure:
    """`fair_picture` for many alpha: from the dual-cone projection over Nash-MTL to MGDA."""
    fig, axes = plots.subplots(1, 2, height=2.5)
    _cone(axes[0, 0], alphas)
    _shares(axes[0, 1], alphas)
    plt.close(fig)
    return fig


def _cone(ax: Any, alphas: Sequence[float]) -> None:
    G, K = CONE2, CONE2 @ CONE2.T
    for i, g in enumerate(G):
        ax.annotate("", g.tolist(), (0, 0), arrowprops={"arrowstyle": "-|>", "color": "0.3", "lw": 1})
        ax.annotate(f"$g_{i + 1}$", g.tolist(), xytext=(2, 4), textcoords="offset points")
    colours = plt.get_cmap("viridis")(np.linspace(0.05, 0.9, len(alphas)))
    for alpha, colour in zip(alphas, colours, strict=True):
        d = fairness.fair_weights(K, alpha=alpha).w @ G
        ax.plot(*torch.stack([torch.zeros(2), d / d.norm()]).T, color=colour, lw=1.3 if len(alphas) > 1 else 2)
    for which, name, style in (("zero", r"$\alpha\to0$: dual cone", "--"), ("inf", r"$\alpha\to\infty$: MGDA", "-.")):
        d = fairness.fair_limit(K, which) @ G
        ax.plot(*torch.stack([torch.zeros(2), 1.15 * d / d.norm()]).T, style, color=plots.RED, lw=1, label=name)
    total = G.sum(0) / G.sum(0).norm()
    ax.plot([0, float(total[0])], [0, float(total[1])], ":", color="k", label="LS (hurts task 2)")
    ax.set_aspect("equal")
    ax.set(xlim=(-0.75, 1.75), ylim=(-0.1, 1.3), title="Two tasks: directions")
    ax.legend(loc="upper right", fontsize=6)


def _shares(ax: Any, alphas: Sequence[float]) -> None:
    G, K = CONE3, CONE3 @ CONE3.T
    solved = [fairness.fair_weights(K, alpha=a).w @ G for a in alphas]
    gains = torch.stack([(G @ d) / d.norm() for d in solved])
    colours = (plots.BLUE, plots.ORANGE, plots.GREEN)
    for i, colour in enumerate(colours):
        ax.plot(alphas, gains[:, i], color=colour, marker="o" if len(alphas) == 1 else None, label=f"task {i + 1}")
    for which, x in (("zero", 0.02), ("inf", 200.0)):
        d = fairness.fair_limit(K, which) @ G
        for gain, colour in zip((G @ d) / d.norm(), colours, strict=True):
            ax.plot(x, float(gain), "*", color=colour, ms=7)
    ax.set(xscale="log", xlim=(0.013, 320), xlabel=r"$\alpha$ (stars: limits 0, ∞)", ylabel="gain per unit length")
    ax.set_title("Three tasks: who gains")
    ax.legend(loc="center left", fontsize=6)


def solver_figure(rows: Sequence[dict[str, float]]) -> Figure:
    """Backward error over gradient scale, published solver against ours, by alpha."""
    df = pd.DataFrame(rows)
    fig, axes = plots.subplots(1, 1, width="column", height=2.4)
    ax = axes[0, 0]
    colours = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PINK)
    for alpha, colour in zip(sorted(df.alpha.unique()), colours, strict=False):
        part = df[df.alpha == alpha].groupby("scale")
        ax.loglog(part.published.median().clip(lower=1e-17), "o-", color=colour, label=rf"$\alpha$={alpha:g}")
        ax.loglog(part.ours.max().clip(lower=1e-17), "x--", color=colour, lw=0.8)
    ax.axhline(1e-3, color="0.6", lw=0.8, ls=":")
    ax.set(xlabel="norm of the task gradients", ylabel="backward error", ylim=(1e-18, 5))
    ax.set_title("Published solver (○, median), ours (×, worst)")
    ax.legend(fontsize=6, loc="center left")
    plt.close(fig)
    return fig


def rate_figure(runs: dict[str, tuple[fairness.Descent, float]], smoothness: float, n_tasks: int) -> Figure:
    """Best m^2 so far over steps beside the bound 2 L T^2 drop / K; `runs`: label -> (descent, initial drop)."""
    fig, axes = plots.subplots(1, 1, width="column", height=2.4)
    ax = axes[0, 0]
    for (label, (run, _)), colour in zip(
        runs.items(), (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PINK), strict=False
    ):
        best = torch.cummin(run.stationarity, 0).values.clamp_min(1e-16)
        ax.loglog(np.arange(1, len(best) + 1), best, color=colour, label=label)
    drop = max(drop for _, drop in runs.values())
    steps = np.arange(1, 1 + max(len(run.stationarity) for run, _ in runs.values()))
    ax.loglog(steps, [fairness.fair_rate_bound(smoothness, n_tasks, drop, int(k)) for k in steps], "k--", label="bound")
    ax.set(xlabel="steps K", ylabel=r"$\min_{k<K} m_k^2$", title="Distance from Pareto stationarity")
    ax.legend(fontsize=6)
    plt.close(fig)
    return fig
