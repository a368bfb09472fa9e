"""Finite hypothesis classes over two-point examples: every probability exactly, by enumeration.

Task t draws n examples z = +1 with probability q_t, else -1; loss (theta - z)^2 / 2 and gradient
theta - z for theta in a finite set H, all of which see the same examples. Every statistic depends on
the T counts of +1 only, so that the probability that a bound fails for **some** h is a finite sum.
"""

import itertools
import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from mtl.theory import bounds
from mtl.theory.rates import kl_ball_sup, relative_rate

MAX_CELLS = 12_000_000
CLASSES: dict[int, tuple[float, ...]] = {1: (0.0,), 13: tuple(i / 6 - 1 for i in range(13))}


@dataclass(frozen=True)
class FiniteClass:
    """T tasks of n examples; `q` one probability or one per task, `thetas` the class H, `c` the gradient floor.

    >>> problem = FiniteClass(n_tasks=2, n=2, q=0.5)
    >>> counts, weights = problem.outcomes()
    >>> counts.shape, round(float(weights.sum()), 12)
    (torch.Size([9, 2]), 1.0)
    """

    n_tasks: int
    n: int
    q: float | tuple[float, ...] = 0.5
    thetas: tuple[float, ...] = (0.0,)
    c: float = 0.3

    @property
    def M(self) -> float:
        return 0.5 * (1 + max(abs(t) for t in self.thetas)) ** 2

    @property
    def G(self) -> float:
        return 1 + max(abs(t) for t in self.thetas)

    @property
    def B(self) -> float:
        return self.M / self.c

    def probabilities(self) -> Tensor:
        """q_t, (T,)."""
        q = torch.as_tensor(self.q, dtype=torch.float64).expand(self.n_tasks)
        if bool(((q <= 0) | (q >= 1)).any()):
            raise ValueError(f"q: probabilities strictly between 0 and 1, found {self.q}")
        return q

    def pmf(self) -> Tensor:
        """P(count = k) for each task, (T, n+1)."""
        q, k = self.probabilities()[:, None], torch.arange(self.n + 1, dtype=torch.float64)
        choose = math.lgamma(self.n + 1) - torch.lgamma(k + 1) - torch.lgamma(self.n - k + 1)
        return (choose + k * q.log() + (self.n - k) * (-q).log1p()).exp()

    def outcomes(self) -> tuple[Tensor, Tensor]:
        """All counts (R, T) and their probabilities (R,); equal tasks are enumerated up to their order.

        Raises ValueError where neither enumeration stays below MAX_CELLS numbers.
        """
        levels, T = self.n + 1, self.n_tasks
        log_pmf = self.pmf().log()
        if levels**T * T <= MAX_CELLS:
            grid = torch.cartesian_prod(*[torch.arange(levels)] * T).reshape(-1, T)
            return grid, sum(log_pmf[t, grid[:, t]] for t in range(T)).exp()  # type: ignore[union-attr]
        if len(set(self.probabilities().tolist())) > 1 or math.comb(self.n + T, T) * T > MAX_CELLS:
            raise ValueError(f"n, n_tasks: too many outcomes to enumerate, found n={self.n}, T={T}")
        bars = torch.tensor(list(itertools.combinations(range(T + self.n), self.n)))
        edges = torch.cat([torch.full_like(bars[:, :1], -1), bars, torch.full_like(bars[:, :1], T + self.n)], 1)
        occupancy = edges.diff(dim=1) - 1
        log_weight = math.lgamma(T + 1) - torch.lgamma(occupancy.double() + 1).sum(1) + occupancy.double() @ log_pmf[0]
        values = torch.arange(levels).expand(len(occupancy), levels)
        counts = torch.repeat_interleave(values.flatten(), occupancy.flatten()).reshape(-1, T)
        return counts, log_weight.exp()

    def statistics(self, theta: float) -> tuple[Tensor, Tensor, Tensor]:
        """For each count k: empirical loss, relative rate with floor c, within-task variance (n >= 2), all (n+1,)."""
        share = torch.arange(self.n + 1, dtype=torch.float64) / self.n
        loss = 0.5 * (theta**2 + 1) - theta * (2 * share - 1)
        rate = relative_rate(loss, (theta - (2 * share - 1)).abs(), self.c)
        within = (2 * theta) ** 2 * share * (1 - share) * self.n / max(self.n - 1, 1)
        return loss, rate, within

    def check(self, delta: float = 0.05, rho: float = 0.2) -> pd.DataFrame:
        """Exact probability that each bound fails for some h in H, beside the deviation that there really is.

        Columns: bound, must_hold, delta, violation, width (expected, over S, at the h where it is least),
        q95 (95 % quantile of sup_h (target - empirical)), scale (range of the statistic), vacuous.
        """
        counts, weight = self.outcomes()
        q, pmf, n, T, H, c = self.probabilities(), self.pmf(), self.n, self.n_tasks, len(self.thetas), self.c
        names = ["thm1", "hoeffding", "thm2", "thm2-within", "thm5-mixture", "variance-only", "population-ratio"]
        fails = {name: torch.zeros_like(weight, dtype=torch.bool) for name in names}
        worst = {name: torch.full_like(weight, -math.inf) for name in names}
        width: dict[str, float] = dict.fromkeys(names, math.inf)
        for theta in self.thetas:
            loss_k, rate_k, within_k = self.statistics(theta)
            loss, rate = loss_k[counts], rate_k[counts]
            population = 0.5 * (theta**2 + 1) - theta * (2 * q - 1)
            expected = (pmf @ rate_k).mean()
            ratio = relative_rate(population, (theta - (2 * q - 1)).abs(), c).mean()
            mean_rate, mean_loss = rate.mean(1), loss.mean(1)
            mixture = kl_ball_sup(population, rho).value
            bound = bounds.mixture_risk_bound(loss, self.M, n, rho, delta, H)
            cases: dict[str, tuple[Tensor, Tensor, Tensor | float]] = {
                "thm1": (expected, mean_rate, bounds.block_bernstein_width(rate, self.B, delta, H)),
                "hoeffding": (expected, mean_rate, bounds.block_hoeffding_width(T, self.B, delta, H)),
                "thm2": (expected, mean_rate, bounds.floor_mcdiarmid_width(self.M, self.G, c, n, T, delta, H)),
                "thm5-mixture": (mixture, mean_loss, bound - mean_loss),
                "variance-only": (expected, mean_rate, bounds.variance_only_width(rate, delta, H)),
                "population-ratio": (ratio, mean_rate, bounds.population_ratio_width(self.B, n, T, delta, H)),
            }
            if n >= 2:
                within = bounds.stratified_bernstein_width(within_k[counts], n, self.M, delta, H)
                cases["thm2-within"] = (population.mean(), mean_loss, within)
            for name, (target, empirical, extra) in cases.items():
                fails[name] |= target - empirical - extra > 1e-12
                worst[name] = torch.maximum(worst[name], target - empirical)
                extra = torch.as_tensor(extra, dtype=torch.float64).expand_as(weight)
                width[name] = min(width[name], float((extra * weight).sum()))
        rows = []
        for name in names:
            if math.isinf(width[name]):
                continue
            scale = self.M if name in ("thm2-within", "thm5-mixture") else self.B
            order = worst[name].argsort()
            q95 = worst[name][order][(weight[order].cumsum(0) >= 0.95 - 1e-12).nonzero()[0, 0]]
            row = {"bound": name, "must_hold": name not in ("variance-only", "population-ratio")}
            row |= {"T": T, "n": n, "H": H, "delta": delta, "violation": float(weight[fails[name]].sum())}
            row |= {"width": width[name], "q95": float(q95), "scale": scale, "vacuous": width[name] >= scale}
            rows.append(row)
        return pd.DataFrame(rows)


Cell = tuple[int, int, float | tuple[float, ...], int, float]  # T, n, q, |H|, c
SMOKE: list[Cell] = [(3, 6, 0.5, 1, 0.1), (3, 6, (0.3, 0.5, 0.8), 13, 0.3), (10, 2, 0.5, 13, 0.3), (40, 2, 0.5, 1, 0.1)]
QUICK: list[Cell] = [(2, 200, (0.5, 0.7), 13, 0.3), (3, 32, (0.3, 0.5, 0.8), 13, 0.3), (3, 2, 0.95, 13, 0.3)]
QUICK += [(5, 4, 0.9, 13, 0.5), (10, 4, 0.5, 1, 0.05), (200, 2, 0.5, 1, 0.3)]
PAPER: list[Cell] = [(2, 1000, (0.5, 0.7), 13, 0.3), (3, 100, (0.3, 0.5, 0.8), 13, 0.3)]
PAPER += [(5, 15, (0.2, 0.4, 0.5, 0.6, 0.9), 13, 0.1), (10, 6, 0.7, 13, 0.3), (40, 3, 0.5, 13, 0.1)]
PAPER += [(200, 2, 0.7, 1, 0.4)]
GRID = {"smoke": SMOKE, "quick": SMOKE + QUICK, "paper": SMOKE + QUICK + PAPER}


def violation_table(scale: str = "smoke", delta: float = 0.05) -> pd.DataFrame:
    """`FiniteClass.check` over the grid of `scale`; a row with must_hold and violation > delta refutes its theorem."""
    if scale not in GRID:
        raise ValueError(f"scale: must be one of {', '.join(GRID)}, found {scale!r}")
    cells = [FiniteClass(T, n, q, CLASSES[size], c).check(delta) for T, n, q, size, c in GRID[scale]]
    return pd.concat(cells, ignore_index=True)
