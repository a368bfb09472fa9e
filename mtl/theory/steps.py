"""Which step of the proof fails, as we reconstruct it: Lemma 1, Lemma 2, the last step, each alone, by enumeration.

Its formulas were not at hand. The proof as we read it: (1) bounded differences of r_t make Rep(S) = sup_h mean_t
(target - r_t) concentrate, (2) signs bound E Rep(S) by twice a Rademacher average, (3) convexity (Massart's argument)
turns that into a term in the empirical rates. Every number below is an exact finite sum over the classes of
`mtl.theory.finite`.
"""

import itertools
import math

import pandas as pd
import torch
from torch import Tensor

from mtl.theory.bounds import floor_mcdiarmid_width, population_ratio_width
from mtl.theory.finite import CLASSES, FiniteClass
from mtl.theory.rates import relative_rate, relative_rate_variance

CELLS = [(2, 8, 0.5, 13, 0.3), (3, 6, 0.5, 13, 0.1), (2, 16, 0.5, 1, 0.05), (2, 12, 0.9, 13, 0.1), (5, 3, 0.5, 13, 0.3)]


def rates(problem: FiniteClass) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """r (H, R, T) on every outcome, their probabilities (R,), E r (H, T) and the population's L/|g| (H, T)."""
    counts, weight = problem.outcomes()
    pmf, q = problem.pmf(), problem.probabilities()
    every = torch.stack([problem.statistics(theta)[1] for theta in problem.thetas])
    thetas = torch.tensor(problem.thetas, dtype=torch.float64)[:, None]
    loss, norm = 0.5 * (thetas**2 + 1) - thetas * (2 * q - 1), (thetas - (2 * q - 1)).abs()
    return every[:, counts], weight, every @ pmf.T, relative_rate(loss, norm, problem.c)


def largest_move(problem: FiniteClass) -> float:
    """How far one example of one task may move its r_t.

    >>> largest_move(FiniteClass(2, 8, thetas=(0.0,), c=0.3))   # B = 1.67, which a mean would move by .21
    0.666...
    """
    return max(float(problem.statistics(theta)[1].diff().abs().max()) for theta in problem.thetas)


def largest_range(problem: FiniteClass) -> float:
    """How far another sample of one task may move its r_t: all of its n examples at once.

    >>> round(largest_range(FiniteClass(2, 8, thetas=(0.0,), c=0.3)), 3)
    1.167
    """
    every = [problem.statistics(theta)[1] for theta in problem.thetas]
    return max(float(r.max() - r.min()) for r in every)


def example_signs(problem: FiniteClass) -> float:
    """E sup_h (1 / nT) sum sigma_ti r(h; z_ti), a sign per example and the rate of each example alone; equal tasks."""
    q, total = problem.probabilities(), problem.n * problem.n_tasks
    if len(set(q.tolist())) > 1:
        raise ValueError(f"q: tasks must be equal where signs are per example, found {problem.q}")
    z = torch.tensor([1.0, -1.0], dtype=torch.float64)
    gradient = (torch.tensor(problem.thetas, dtype=torch.float64)[:, None] - z).abs()
    each = relative_rate(gradient.square() / 2, gradient, problem.c)
    tosses = [FiniteClass(1, max(k, 1)).pmf()[0] if k else torch.ones(1, dtype=torch.float64) for k in range(total + 1)]
    mean = 0.0
    for k, chance in enumerate(FiniteClass(1, total, float(q[0])).pmf()[0].tolist()):  # k of all examples are +1
        sums = [2 * torch.arange(m + 1, dtype=torch.float64) - m for m in (k, total - k)]
        value = (each[:, 0, None, None] * sums[0][:, None] + each[:, 1, None, None] * sums[1]).amax(0) / total
        mean += chance * float(tosses[k] @ value @ tosses[total - k])
    return mean


def block_signs(r: Tensor) -> Tensor:
    """E over a sign per task of sup_h (1/T) sum_t sigma_t r_t(h), r (H, R, T) -> (R,)."""
    n_tasks = r.shape[-1]
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n_tasks)), dtype=torch.float64)
    return (r @ signs.T).amax(0).mean(-1) / n_tasks


def check(problem: FiniteClass, delta: float = 0.05) -> dict[str, float]:
    """Left over right side of every step: at most 1 where it holds; of a probability, over delta."""
    r, weight, expected, population = rates(problem)
    T, n, H, B = problem.n_tasks, problem.n, len(problem.thetas), problem.B
    move, floored = largest_move(problem), B / n * (1 + 2 * problem.G / problem.c)
    rep = (expected[:, None].mean(-1) - r.mean(-1)).amax(0)
    rep_b = (population[:, None].mean(-1) - r.mean(-1)).amax(0)
    mean, mean_b = float(rep @ weight), float(rep_b @ weight)

    def late(width: float) -> float:
        return float(weight[rep > mean + width + 1e-12].sum()) / delta

    blocks = block_signs(r)
    signed = float(blocks @ weight)
    found = {
        "1 printed": move / (B / n),
        "1 printed, probability": late(population_ratio_width(B, n, T, delta)),
        "1 floor": move / floored,
        "1 floor, probability": late(floor_mcdiarmid_width(problem.M, problem.G, problem.c, n, T, delta)),
        "1 block": largest_range(problem) / B,
        "2 example": _over(mean, 2 * example_signs(problem)),
        "2 block": _over(mean, 2 * signed),
        "2 block, (B)": _over(mean_b, 2 * signed),
    }
    if H > 1:
        root = math.sqrt(2 * math.log(H) / T)
        squares, spread = r.square().mean(-1).amax(0).sqrt(), relative_rate_variance(r).amax(0).sqrt()
        found["3 squares"] = float(torch.where(blocks > 1e-12, blocks / (root * squares), 0.0).max())
        found["3 variance"] = float(torch.where(blocks > 1e-12, blocks / (root * spread), 0.0).max())
    return found


def _over(left: float, right: float) -> float:
    return 0.0 if left <= 1e-12 else left / right if right > 1e-12 else math.inf


STEPS = {
    "1 printed": ("Lemma 1", "r_t bounded by B: an example moves it by at most B/n", False),
    "1 printed, probability": ("Lemma 1", "so Rep exceeds its mean by B √(ln(1/δ)/2nT) with probability ≤ δ", False),
    "1 floor": ("Lemma 1, repaired", "with a floor c: by at most (M/nc)(1 + 2G/c)", True),
    "1 floor, probability": ("Lemma 1, repaired", "so Rep exceeds its mean by Theorem 2's width with ≤ δ", True),
    "1 block": ("Lemma 1, repaired", "a whole task's sample: by at most B, without n", True),
    "2 example": ("Lemma 2", "E Rep ≤ 2 E R, a sign per example, target (C)", False),
    "2 block": ("Lemma 2, repaired", "E Rep ≤ 2 E R, a sign per task's sample, target (C)", True),
    "2 block, (B)": ("Lemma 2", "the same for the population's ratio, target (B)", False),
    "3 squares": ("Massart's step", "R ≤ √(2 ln|H| / T) · max √(mean² + V)", True),
    "3 variance": ("Massart's step with √V alone", "the same without the mean", False),
}  # key: step, statement, must it hold


def table(delta: float = 0.05) -> pd.DataFrame:
    """Per step its statement, whether it must hold, and the largest left over right side over `CELLS`."""
    found = pd.DataFrame([check(FiniteClass(T, n, q, CLASSES[size], c), delta) for T, n, q, size, c in CELLS])
    lines = [(key, *STEPS[key], float(found[key].max()), int(found[key].count())) for key in STEPS]
    columns = ["key", "step", "statement", "must hold", "left / right", "classes"]
    return pd.DataFrame(lines, columns=columns).set_index("key")
