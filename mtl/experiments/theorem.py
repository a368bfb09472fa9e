"""EMTL's theorem and the KL ball (notebook 07): the checks at a scale, and their figures."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from mtl.experiments.study import judged
from mtl.experiments.theory_claims import GRID, RADII, ROUNDS, theorem_claims, worst_regret
from mtl.methods.base import number
from mtl.report import Table, captioned, style
from mtl.report.claims import Finding
from mtl.scales import known_scale
from mtl.theory import bounds, steps
from mtl.theory.finite import CLASSES, FiniteClass, violation_table
from mtl.theory.rates import kl_ball_sandwich, kl_ball_sup

TITLES = {
    "thm1": "Thm 1 (task variance)",
    "hoeffding": "block Hoeffding",
    "thm2": "Thm 2 (floor, n)",
    "thm2-within": "Thm 2' (within task)",
    "thm5-mixture": "Thm 5' (mixtures)",
    "variance-only": "variance alone",
    "population-ratio": "population ratio (B)",
}


SENTENCES = ("emtl-thm1", "emtl-thm1-repaired", "emtl-variance-alone", "emtl-eq10", "emtl-surrogate", "emtl-player")
EXACT = "two-point examples, all outcomes enumerated"


def live() -> bool:
    """Whether a person runs this cell: papermill and nbval execute without standard input, Jupyter with it."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return bool(getattr(getattr(get_ipython(), "kernel", None), "_allow_stdin", False))


def explore(picture: Callable[..., Figure], still: Callable[[], Figure], **controls: Any) -> Figure | None:
    """Sliders over `picture` where a person looks, the `still` figure where a machine runs the notebook.

    A control is what ipywidgets.interact takes, or ("log", low, high, start) for a slider over powers of ten.
    """
    if not live():
        return still()
    import ipywidgets  # type: ignore[import-untyped]

    for name, control in controls.items():
        if control[0] == "log":
            _, low, high, start = control
            controls[name] = ipywidgets.FloatLogSlider(value=start, min=low, max=high, step=0.05)
    ipywidgets.interact(picture, **controls)
    return None


def sandwich_cases(count: int) -> pd.DataFrame:
    """Remainder of mean + sqrt(2 rho V) over R_- rho and R_+ rho, random cases: columns T, rho, low, high."""
    parts = []
    for i, (n_tasks, share) in enumerate([(2, 0.3), (3, 0.3), (5, 0.24), (10, 0.12), (40, 0.04)]):
        g, number = torch.Generator().manual_seed(i), max(int(count * share), 40)
        r = torch.randn(number, n_tasks, generator=g, dtype=torch.float64)
        spikes = number // 2
        r[:spikes] = 0
        r[:spikes, 0] = torch.where(torch.rand(spikes, generator=g) < 0.5, -1.0, 1.0).double()
        rho = torch.pow(10, torch.rand(number, generator=g).double() * 5 - 4)
        s = kl_ball_sandwich(r, rho)
        parts.append(pd.DataFrame({"T": n_tasks, "rho": rho, "low": s.lower_ratio, "high": s.upper_ratio}))
    return pd.concat(parts, ignore_index=True)


def ball(cases: pd.DataFrame) -> Figure:
    """Theorem 5: both ratios with their sharp constants; the order of the remainder; where a radius stops to act."""
    fig, axes = style.subplots(1, 3, height=2.3)
    left, middle, right = axes[0]
    shown = cases.iloc[:: max(1, len(cases) // 3000)]
    dots: dict[str, Any] = {"s": 3, "alpha": 0.4, "lw": 0, "rasterized": True}
    left.scatter(shown.rho, shown.low, c=style.BLUE, label=r"over $R_-\rho$", **dots)
    left.scatter(shown.rho, shown.high, c=style.ORANGE, label=r"over $R_+\rho$", **dots)
    left.axhline(-0.5, color=style.BLUE, lw=1)
    left.axhline(1 / 3, color=style.ORANGE, lw=1)
    left.set(xscale="log", ylim=(-0.75, 0.75), xlabel=r"radius $\rho$", ylabel="remainder")
    left.set_title("Sharp sandwich: −1/2, 1/3")
    left.legend(loc="upper left", markerscale=3, ncol=2, columnspacing=0.8, handletextpad=0.2)
    rho = torch.logspace(-6, -0.5, 40, dtype=torch.float64)
    for values, colour in (([0.0, 1.0], style.BLACK), ([0.0, 0.1, 1.0, 0.4], style.RED)):
        r = torch.tensor(values, dtype=torch.float64)
        s = kl_ball_sandwich(r.expand(len(rho), -1), rho)
        name = f"T={len(r)}"
        middle.loglog(rho, s.exact - r.mean(), color=colour, label=f"{name}: sup − mean")
        middle.loglog(rho, (s.exact - s.surrogate).abs(), color=colour, ls="--", label=f"{name}: remainder")
    middle.set(xlabel=r"radius $\rho$", title="Slopes 1/2 and 1 (3/2: no skew)")
    middle.legend(fontsize=6)
    rho = torch.linspace(0, 1.3, 131, dtype=torch.float64)
    for n_tasks, colour in ((2, style.BLACK), (3, style.RED)):
        r = torch.linspace(0, 1, n_tasks, dtype=torch.float64).expand(len(rho), -1)
        right.plot(rho, kl_ball_sup(r, rho).value, color=colour, label=f"T={n_tasks}")
        grid = torch.tensor(GRID, dtype=torch.float64)
        value = kl_ball_sup(r[:6], grid).value
        dead = grid >= math.log(n_tasks)
        right.plot(grid[~dead], value[~dead], "o", color=colour)
        right.plot(grid[dead], value[dead] + (0.008 if n_tasks == 3 else 0), "x", color=colour)
        right.axvline(math.log(n_tasks), color=colour, ls=":", lw=0.8)
    right.set(xlabel=r"radius $\rho$", ylabel=r"$\sup_{P_\rho}p\cdot r$", title=r"Saturation at $\rho=\ln T$")
    right.legend(loc="lower right")
    said = (
        "Left: remainder over R_- rho (blue, must stay above -1/2) and over R_+ rho (orange, must stay below 1/3). "
        "Middle: orders in rho. Right: supremum over rho for equally spaced rates"
    )
    return captioned(fig, said, data="random and extreme rates", n=f"{len(cases):,} cases")


def bound_curves(table: pd.DataFrame, ns: Sequence[int]) -> Figure:
    """What each bound promises over n beside the exact deviation; additive terms over T; controls that must fail."""
    fig, axes = style.subplots(1, 3, height=2.4)
    left, middle, right = axes[0]
    checks = {n: FiniteClass(2, n, 0.6, CLASSES[13]).check().set_index("bound") for n in ns}
    for name, colour in (("thm1", style.RED), ("hoeffding", style.ORANGE), ("thm2", style.BLUE)):
        left.loglog(ns, [checks[n].width[name] for n in ns], "o-", color=colour, label=TITLES[name])
    left.loglog(ns, [checks[n].q95["thm1"] for n in ns], "k.-", label="truth (95 % quantile)")
    left.axhline(checks[ns[0]].scale["thm1"], color="0.6", ls=":", lw=0.8)
    level = checks[ns[0]].scale["thm1"] * 0.8
    left.text(ns[-1], level, "B: vacuous above", fontsize=6, color="0.4", ha="right", va="top")
    left.set(xlabel="examples per task n", ylabel="width", title="Width over n", ylim=(0.004, 300))
    left.legend(fontsize=6, loc="lower left")
    sizes = np.arange(2, 101)
    flat = [float(bounds.block_bernstein_width(torch.ones(int(t)), 1.0, 0.05)) for t in sizes]
    least = [bounds.variance_free_floor(int(t), 1.0, 0.05) for t in sizes]
    blocks = [bounds.block_hoeffding_width(int(t), 1.0, 0.05) for t in sizes]
    middle.loglog(sizes, flat, color=style.RED, label="Thm 1 at V=0")
    middle.loglog(sizes, least, "k", label="Prop. 3: no less possible")
    middle.loglog(sizes, blocks, color=style.ORANGE, label="block Hoeffding")
    middle.axhline(1, color="0.6", ls=":", lw=0.8)
    middle.set(xlabel="tasks T", ylabel="width / B", title="Width over T")
    middle.legend(fontsize=6)
    worst = table.groupby("bound").violation.max().reindex(list(TITLES)).dropna()
    holds = table.groupby("bound").must_hold.first()
    colours = [style.BLUE if holds[b] else style.RED for b in worst.index]
    right.barh([TITLES[b] for b in worst.index], worst.clip(lower=1e-9), color=colours, height=0.6)
    right.axvline(0.05, color="k", lw=0.8, ls="--")
    right.set(xscale="log", xlim=(1e-9, 2), xlabel="largest exact violation")
    right.set_title(r"Failures (dashed: $\delta$)")
    right.invert_yaxis()
    said = (
        "Left: expected widths for 2 tasks and 13 hypotheses over n beside the 95 % quantile of the real deviation; "
        "Theorem 1 does not decay. Middle: Theorem 1 without any variance, Hoeffding over tasks, and what Proposition "
        "3 says that no bound by the variance alone can undercut. Right: largest exact violation; theorems in blue, "
        "negative controls in red"
    )
    return captioned(fig, said, data=EXACT, n=f"{len(table)} exact checks")


def regret(rounds: Sequence[int]) -> Figure:
    """Proposition 7: worst regret over its bound, random, two-valued and adversarial payoffs; Eq. 10 beside it."""
    fig, axes = style.subplots(1, 2, height=2.3)
    left, right = axes[0]
    for rho, colour in zip(RADII, (style.BLUE, style.RED, style.BLACK), strict=True):
        for adversarial, dash in ((False, "-"), (True, "--")):
            worst = [worst_regret(rho, k, adversarial) for k in rounds]
            name = rf"$\rho$={rho:g}{', adversarial' if adversarial else ''}"
            left.plot(rounds, worst, dash, marker="o", mfc="white" if adversarial else colour, color=colour, label=name)
    left.axhline(1, color="0.5", lw=0.8)
    left.set(xscale="log", ylim=(0, 1.08), xlabel="rounds K", ylabel="worst regret / bound")
    left.set_title("The player keeps its bound")
    left.legend(fontsize=6, ncol=2)
    r = torch.rand(1500, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gain = kl_ball_sup(r, 0.1).value - r.mean(-1)
    right.scatter(r.var(-1, correction=0), gain, s=3, c=style.BLACK, alpha=0.4, lw=0, rasterized=True)
    right.set(xlabel="variance V", ylabel="sup − mean", title="Eq. 10, as we read it, needs this to fall")
    said = (
        "Left: worst regret of the mirror step over the bound of Proposition 7, 40 games of 3 tasks. Right: Eq. 10, as "
        "we read it, says that a larger supremum means a smaller variance; at equal mean it means a larger one"
    )
    return captioned(fig, said, data="random and adversarial payoffs", n="40 games per point")


def ball_picture(rho: float = 0.3, r1: float = 0.2, r2: float = 0.5, r3: float = 1.0) -> Figure:
    """The KL ball on the simplex of three tasks and the mixture that the player's sup picks."""
    fig, axes = style.subplots(1, 1, width="column", height=2.7)
    _simplex(axes[0, 0], rho, [r1, r2, r3])
    plt.close(fig)
    return fig


def ball_pictures() -> Figure:
    """`ball_picture` for several radii side by side: what the slider would show."""
    fig, axes = style.subplots(1, 3, height=2.4)
    for ax, rho in zip(axes[0], (0.05, 0.3, 1.2), strict=True):
        _simplex(ax, rho, [0.2, 0.5, 1.0])
    plt.close(fig)
    return fig


def _simplex(ax: Any, rho: float, r: list[float]) -> None:
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    side = torch.linspace(0, 1, 161, dtype=torch.float64)
    a, b = torch.meshgrid(side, side, indexing="ij")
    keep = a + b <= 1
    p = torch.stack([a[keep], b[keep], 1 - a[keep] - b[keep]], -1).clamp_min(0)
    inside = torch.special.xlogy(p, 3 * p).sum(-1) <= rho
    xy = p.numpy() @ corners
    payoff = (p @ torch.tensor(r, dtype=torch.float64)).numpy()
    ax.tricontour(xy[:, 0], xy[:, 1], payoff, levels=8, colors="0.75", linewidths=0.5)
    ax.scatter(*xy[inside.numpy()].T, s=1.5, c=style.SKY, lw=0, rasterized=True)
    ax.plot(*corners[[0, 1, 2, 0]].T, color="k", lw=0.8)
    found = kl_ball_sup(torch.tensor(r, dtype=torch.float64), rho)
    ax.plot(*(found.p.numpy() @ corners), "o", color=style.RED)
    for corner, name, value in zip(corners, ("1", "2", "3"), r, strict=True):
        place = {"xytext": (9, -4), "ha": "left"} if name == "3" else {"xytext": (0, -10), "ha": "center"}
        ax.annotate(f"$r_{name}$={value:.1f}", corner, textcoords="offset points", **place)
    state = "saturated" if bool(found.saturated) else f"sup = {float(found.value):.3f}"
    ax.set_title(rf"$\rho$ = {rho:g}: {state}")
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.margins(0.12)


def sliders() -> Figure | None:
    """`ball_picture` with a slider for the radius and for each rate, or its still pictures."""
    rates: dict[str, Any] = {f"r{t}": (0.0, 1.0, 0.05) for t in (1, 2, 3)}
    return explore(ball_picture, ball_pictures, rho=(0.0, 1.3, 0.01), **rates)


CASES = {"smoke": 2_000, "quick": 100_000, "paper": 1_000_000}
SIZES = {"smoke": 6, "quick": 9, "paper": 11}  # examples per task up to 2^5, 2^8, 2^10


@dataclass
class TheoremStudy:
    """`checks`: exact probabilities of failure; `table`: the worst of each bound; `cases`: random rates and radii;
    `audit`: the steps of the proof as we reconstruct it, each on its own."""

    facts: dict[str, Any]
    checks: pd.DataFrame
    cases: pd.DataFrame
    audit: pd.DataFrame
    delta: float

    @property
    def table(self) -> pd.DataFrame:
        found = self.checks.groupby("bound").agg(
            must_hold=("must_hold", "first"),
            checks=("violation", "size"),
            violation=("violation", "max"),
            vacuous=("vacuous", "mean"),
        )
        said = (
            f"Largest exact probability that a bound fails on finite classes, delta = {self.delta:g}, and the share of "
            "classes in which its expected width exceeds the range"
        )
        shown = found.loc[list(TITLES)].rename(index=TITLES)
        return captioned(shown, said, data=EXACT, n=f"{len(self.checks)} exact checks", digits=4)

    def figure(self, part: str) -> Figure:
        """ "bounds", "ball" or "player"."""
        if part == "bounds":
            return bound_curves(self.checks, self.facts["config"]["sizes"])
        if part == "ball":
            return ball(self.cases)
        return regret(ROUNDS[:3] if self.facts["scale"] == "smoke" else ROUNDS)

    def floors(self) -> str:
        """What a width that looks at the variance alone must be at least (Proposition 3), and Proposition 4."""
        said = []
        for T in (2, 3, 5, 10, 40):
            least, failing = bounds.variance_free_floor(T, 1.0, self.delta), bounds.variance_only_failure(T, 0.1)
            said.append(
                f"T = {T:<3} at zero variance a valid width is at least {least:.3f} B; "
                f"a width of 0.1 B fails with probability {failing:.3f}"
            )
        failing, asked = bounds.population_ratio_failure(100, 0.01, self.delta), f"{self.delta:g}"
        said.append(
            f"population gradient in r_t (Prop. 4): the bound fails with probability {failing:.2f}, not {asked}"
        )
        return "\n".join(said)

    def verdicts(self) -> Table:
        return judged(
            SENTENCES,
            caption=f"What the text says on its theory, and what the checks say; delta = {self.delta:g}",
            data="finite classes and random rates",
            n=f"{len(self.checks)} exact checks, {len(self.cases):,} cases",
            wide=True,
        )

    def findings(self) -> list[Finding]:
        return theorem_claims(self.checks, self.cases, self.audit, self.delta)

    @property
    def proof(self) -> pd.DataFrame:
        """The steps of the proof as we reconstruct it, and of its repair."""
        shown = self.audit.reset_index(drop=True)
        shown = shown.assign(holds=np.where(shown["left / right"] <= 1, "yes", "**no**")).drop(columns="must hold")
        shown["left / right"] = shown["left / right"].map("{:.2f}".format)
        said = (
            "The proof as we reconstruct it: the largest left over right side of each step (of a probability: over "
            "delta) on finite classes with two-point examples; above 1 the step is false. R: Rademacher average, "
            "Rep: largest deviation over the class; V = 0 with rates above 0 makes the last one infinite"
        )
        return captioned(shown, said, data=EXACT, n=f"{len(steps.CELLS)} classes", wide=True)

    def answer(self) -> str:
        holds = self.checks[self.checks.must_hold]
        worst = self.checks[~self.checks.must_hold].violation.max()
        first = self.checks[self.checks.bound == "thm1"]
        sizes, useful = (", ".join(map(str, sorted(set(part["T"])))) for part in (first, first[~first.vacuous]))
        return (
            f"Theorems: {len(holds)} exact checks, largest violation {holds.violation.max():.1e} "
            f"(delta {self.delta:g}). Negative controls: {worst:.2f}.\n"
            f"So: as the population's ratio (B) no. As a mean over samples (C) a repaired theorem holds, but of "
            f"T = {sizes} it says something for {useful} only (below 10 it cannot), it does not decay with n, and its "
            "variance is that between tasks, which does not fluctuate."
        )


def study(scale: str, delta: float = 0.05) -> TheoremStudy:
    """Every bound by enumeration on finite classes, every constant of the KL ball on random cases."""
    delta = number("delta", delta)
    config = {"delta": delta, "cases": CASES[known_scale(scale)], "sizes": [2**k for k in range(1, SIZES[scale])]}
    facts = {"scale": scale, "synthetic": True, "notebook": "07_theory_emtl", "config": config}
    return TheoremStudy(facts, violation_table(scale, delta), sandwich_cases(CASES[scale]), steps.table(delta), delta)
