"""FairGrad's system (notebook 09): the checks at a scale, and their figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mtl.experiments.study import judged
from mtl.experiments.theorem import explore
from mtl.experiments.theory_claims import fair_claims
from mtl.methods.base import whole
from mtl.report import Table, captioned, style
from mtl.report.claims import Finding
from mtl.scales import known_scale
from mtl.theory import fairness

CONE2 = torch.tensor([[1.2, 0.2], [-0.45, 0.35]], dtype=torch.float64)
CONE3 = torch.tensor([[2.7, 0.1, 1.0], [-0.35, 0.5, 0.25], [-0.5, -0.8, 0.5]], dtype=torch.float64)
ALPHAS = tuple(np.logspace(-1.5, 2, 36))
COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.PINK)
Runs = Mapping[str, tuple[fairness.Descent, float]]  # label: descent, initial drop


def fair_picture(alpha: float = 2.0) -> Figure:
    """FairGrad's direction for one alpha among the gradients of a two-task and a three-task cone, and its limits."""
    return fair_path([alpha])


def fair_path(alphas: Sequence[float] = ALPHAS) -> Figure:
    """`fair_picture` for many alpha: from the dual-cone projection over Nash-MTL to MGDA."""
    fig, axes = style.subplots(1, 3, height=2.5)
    _cone(axes[0, 0], alphas)
    _cut(axes[0, 1], alphas)
    _shares(axes[0, 2], alphas)
    plt.close(fig)
    said = (
        "FairGrad's direction for alpha = 0.03 (dark) to 100 (light) between two conflicting gradients and across the "
        "cone of three, and each of the three tasks' gain per unit step; limits in red and as stars"
    )
    return captioned(fig, said, data="fixed gradients of two and three tasks", n="36 values of alpha")


def _cone(ax: Any, alphas: Sequence[float]) -> None:
    G, K = CONE2, CONE2 @ CONE2.T
    for i, g in enumerate(G):
        ax.annotate("", g.tolist(), (0, 0), arrowprops={"arrowstyle": "-|>", "color": "0.3", "lw": 1})
        ax.annotate(f"$g_{i + 1}$", g.tolist(), xytext=(2, 4), textcoords="offset points")
    colours = plt.get_cmap("viridis")(np.linspace(0.05, 0.9, len(alphas)))
    for alpha, colour in zip(alphas, colours, strict=True):
        d = fairness.fair_weights(K, alpha=alpha) @ G
        ax.plot(*torch.stack([torch.zeros(2), d / d.norm()]).T, color=colour, lw=1.3 if len(alphas) > 1 else 2)
    for which, name, dash in (("zero", r"$\alpha\to0$: dual cone", "--"), ("inf", r"$\alpha\to\infty$: MGDA", "-.")):
        d = fairness.fair_limit(K, which) @ G
        ax.plot(*torch.stack([torch.zeros(2), 1.15 * d / d.norm()]).T, dash, color=style.RED, lw=1, label=name)
    total = G.sum(0) / G.sum(0).norm()
    ax.plot([0, float(total[0])], [0, float(total[1])], ":", color="k", label="LS (hurts task 2)")
    ax.set_aspect("equal")
    ax.set(xlim=(-0.75, 1.75), ylim=(-0.1, 1.75), title="Two tasks: directions")
    ax.legend(loc="upper right", fontsize=6)


def cut(G: Tensor, d: Tensor) -> Tensor:
    """Where the rays `d` (..., 3) meet a plane across the cone of three gradients: (..., 2).

    x = (d.e1, d.e2) / d.n with n the Nash-MTL direction of the gradients `G` (3, 3) and e1 along the first. As n is
    inside their cone and its dual, both, and every FairGrad direction with them, lie in front: they have d.n > 0.

    >>> cut(torch.eye(3), torch.tensor([1.0, 1.0, 1.0])).abs().max().item() < 1e-6
    True
    """
    n = fairness.fair_weights(G @ G.T, alpha=1.0) @ G
    n = n / n.norm()
    first = G[0] - (G[0] @ n) * n
    e1 = first / first.norm()
    axes = torch.stack([e1, torch.linalg.cross(n, e1)], -1)
    return (d @ axes) / (d @ n)[..., None]


def dual_edges(G: Tensor) -> Tensor:
    """The edges of the dual cone of three gradients (3, 3): two gains are 0, the third is positive."""
    rays = torch.stack([torch.linalg.cross(G[(t + 1) % 3], G[(t + 2) % 3]) for t in range(3)])
    return rays * torch.sign((rays * G).sum(1, keepdim=True))


def _cut(ax: Any, alphas: Sequence[float]) -> None:
    G, K = CONE3, CONE3 @ CONE3.T
    ax.fill(*cut(G, G).T, color="0.92", lw=0, zorder=0, label="cone of the gradients")
    ax.fill(*cut(G, dual_edges(G)).T, color=style.GREEN, alpha=0.25, lw=0, zorder=1, label="no task hurt")
    for t, (x, y) in enumerate(cut(G, G).tolist()):
        ax.plot(x, y, "o", color="0.3", ms=3)
        ax.annotate(f"$g_{t + 1}$", (x, y), xytext=(3, 3), textcoords="offset points")
    whole, path = (cut(G, torch.stack([fairness.fair_weights(K, alpha=a) @ G for a in s])) for s in (ALPHAS, alphas))
    ax.plot(*whole.T, color="0.6", lw=0.8, zorder=2)
    ax.scatter(*path.T, c=plt.get_cmap("viridis")(np.linspace(0.05, 0.9, len(alphas))), s=12, lw=0, zorder=3)
    for which, marker, name in (("zero", "P", r"$\alpha\to0$"), ("inf", "*", r"$\alpha\to\infty$")):
        ax.plot(*cut(G, fairness.fair_limit(K, which) @ G), marker, color=style.RED, ms=7, zorder=2, label=name)
    ax.plot(*cut(G, G.sum(0)), "kx", ms=5, label="LS (hurts task 2)")
    ax.set_aspect("equal")
    ax.set(xticks=[], yticks=[], title="Three tasks: cut through the cone")
    ax.margins(0.08)
    ax.legend(loc="upper right", fontsize=6, borderaxespad=0, handlelength=1)


def _shares(ax: Any, alphas: Sequence[float]) -> None:
    G, K = CONE3, CONE3 @ CONE3.T
    solved = [fairness.fair_weights(K, alpha=a) @ G for a in alphas]
    gains = torch.stack([(G @ d) / d.norm() for d in solved])
    for i, colour in enumerate(COLOURS[:3]):
        ax.plot(alphas, gains[:, i], color=colour, marker="o" if len(alphas) == 1 else None, label=f"task {i + 1}")
    for which, x in (("zero", 0.02), ("inf", 200.0)):
        d = fairness.fair_limit(K, which) @ G
        for gain, colour in zip((G @ d) / d.norm(), COLOURS, strict=False):
            ax.plot(x, float(gain), "*", color=colour, ms=7)
    ax.set(xscale="log", xlim=(0.013, 320), xlabel=r"$\alpha$ (stars: limits 0, ∞)", ylabel="gain per unit length")
    ax.set_title("Three tasks: who gains")
    ax.legend(loc="center left", fontsize=6)


def solver_figure(rows: Sequence[dict[str, float]]) -> Figure:
    """Backward error over gradient scale, published solver against ours, by alpha."""
    df = pd.DataFrame(rows)
    fig, axes = style.subplots(1, 1, width="column", height=2.4)
    ax = axes[0, 0]
    for alpha, colour in zip(sorted(df.alpha.unique()), COLOURS, strict=False):
        part = df[df.alpha == alpha].groupby("scale")
        ax.loglog(part.published.median().clip(lower=1e-17), "o-", color=colour, label=rf"$\alpha$={alpha:g}")
        ax.loglog(part.ours.max().clip(lower=1e-17), "x--", color=colour, lw=0.8)
    ax.axhline(1e-3, color="0.6", lw=0.8, ls=":")
    ax.axvspan(*TRAINED, color="0.92", lw=0, zorder=0, label="met in training")
    ax.set(xlabel="norm of the task gradients", ylabel="backward error", ylim=(1e-18, 5))
    ax.set_title("Published solver (○, median), ours (×, worst)")
    ax.legend(fontsize=6, loc="center left")
    return captioned(
        fig,
        "Backward error over the norm of the task gradients: the published solver's settings (circles, median) and "
        "ours (crosses, worst), three tasks in 50 dimensions; grey: norms that training met, .008 to 4.4",
        data="Gaussian gradients",
        n=f"{len(df) // (df.alpha.nunique() * df.scale.nunique())} problems per point",
        width="column",
    )


def bound(drop: float, steps: int) -> float:
    """What the rate promises of `quadratic_descents`, which are three tasks of smoothness 1."""
    return fairness.fair_rate_bound(1.0, 3, drop, steps)


def rate_figure(runs: Runs, steps: int) -> Figure:
    """Best m^2 so far over steps beside the bound 2 L T^2 drop / K."""
    fig, axes = style.subplots(1, 1, width="column", height=2.4)
    ax = axes[0, 0]
    for (label, (run, _)), colour in zip(runs.items(), COLOURS, strict=False):
        best = torch.cummin(run.stationarity, 0).values.clamp_min(1e-16)
        ax.loglog(np.arange(1, len(best) + 1), best, color=colour, label=label)
    drop = max(drop for _, drop in runs.values())
    taken = np.arange(1, 1 + max(len(run.stationarity) for run, _ in runs.values()))
    ax.loglog(taken, [bound(drop, int(k)) for k in taken], "k--", label="bound")
    ax.set(xlabel="steps K", ylabel=r"$\min_{k<K} m_k^2$", title="Distance from Pareto stationarity")
    ax.legend(fontsize=6)
    return captioned(
        fig,
        "Smallest squared distance from Pareto stationarity so far, and the bound, on three quadratics with minima of "
        "their own",
        data="three quadratic losses in four dimensions",
        n=f"{len(runs)} runs of at most {steps} steps",
        width="column",
    )


def sliders() -> Figure | None:
    """`fair_picture` with a slider for alpha, or the still picture of many."""
    return explore(fair_picture, fair_path, alpha=("log", -2, 2.5, 2.0))


def gains() -> str:
    """What the two tasks of `CONE2` gain per unit step, for alpha from 0.01 to 300 and at the limits."""
    G, K = CONE2, CONE2 @ CONE2.T
    weights = {f"alpha = {a:<6g}": fairness.fair_weights(K, alpha=a) for a in (0.01, 0.1, 0.5, 1.0, 2.0, 10.0, 300.0)}
    weights |= {f"{name:14}": fairness.fair_limit(K, which) for name, which in (("dual cone", "zero"), ("MGDA", "inf"))}
    weights |= {f"{'plain sum':14}": torch.ones(len(G), dtype=torch.float64)}
    said = []
    for name, w in weights.items():
        first, second = (K @ w / (w @ K @ w).sqrt()).tolist()
        said.append(f"{name} gains per unit step {first:.3f} {round(second, 3) + 0.0:.3f}")
    return "\n".join(said)


SENTENCES = ("fairgrad-unique", "fairgrad-limits", "fairgrad-convergence", "fairgrad-solver")
SIZES = {"smoke": (2, 40), "quick": (20, 400), "paper": (100, 2_000)}  # random problems per point, steps
TRAINED = (0.008, 4.4)  # norms of task gradients, epoch means, that training met on Census and NYUv2 (first studies)
STEEPNESS, NORMS = [0.5, 1.0, 2.0, 5.0], [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]


@dataclass
class FairStudy:
    """`rows`: backward errors of both solvers on random problems; `runs`: descents with FairGrad's step."""

    facts: dict[str, Any]
    rows: list[dict[str, float]]
    runs: Runs

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)

    def figure(self, part: str) -> Figure:
        """ "path", "solver" or "rate"."""
        if part == "path":
            return fair_path()
        return solver_figure(self.rows) if part == "solver" else rate_figure(self.runs, self.facts["config"]["steps"])

    def verdicts(self) -> Table:
        return judged(
            SENTENCES,
            caption="What the text says of FairGrad's system, and what the checks say",
            data="random and fixed gradients",
            n=f"{len(self.rows)} solver problems, {len(self.runs)} descents",
            wide=True,
        )

    def findings(self) -> list[Finding]:
        return fair_claims(self.rows, self.runs, bound)

    def answer(self) -> str:
        small = self.table[self.table.scale <= 1e-3]
        return (
            f"One solution unless Pareto stationary; ours is exact to {self.table.ours.max():.0e} on these problems.\n"
            f"The published solver misses by more than 1e-3 in {100 * (small.published > 1e-3).mean():.0f} % of "
            "problems with gradient norms up to 1e-3, and says nothing."
        )


def study(scale: str, seed: int = 0) -> FairStudy:
    """Both solvers over gradient norms and alpha, and descents on three quadratics."""
    problems, steps = SIZES[known_scale(scale)]
    seed = whole("seed", seed, 0)
    rows = fairness.solver_errors(NORMS, STEEPNESS, draws=problems, seed=seed)
    runs = fairness.quadratic_descents(STEEPNESS, steps)
    config = {"alphas": STEEPNESS, "norms": NORMS, "problems": problems, "steps": steps}
    facts = {"scale": scale, "synthetic": True, "seeds": [seed], "notebook": "09_theory_fairgrad", "config": config}
    return FairStudy(facts, rows, runs)
