"""The generalisation bounds that hold, and those that do not: widths as numbers and tensors.

Proofs: paper/sections/theory.tex. r_t lies in [0, B] with B = M/c: losses in [0, M], gradient norms
at most G, floor c. Each width w is what the empirical mean over tasks must be raised by.
"""

import math

import torch
from scipy.stats import spearmanr
from torch import Tensor

from mtl.theory.rates import kl_ball_sup, relative_rate_variance


def _level(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta: a probability strictly between 0 and 1, found {delta}")


def block_hoeffding_width(n_tasks: int, B: float, delta: float, n_hyp: int = 1) -> float:
    """McDiarmid over task blocks: B sqrt(ln(|H|/delta) / (2 T)); for any statistic, no decay in n.

    >>> round(block_hoeffding_width(2, 1.0, 0.05), 3)
    0.865
    """
    _level(delta)
    return B * math.sqrt(math.log(n_hyp / delta) / (2 * n_tasks))


def block_bernstein_width(r: Tensor, B: float, delta: float, n_hyp: int = 1) -> Tensor:
    """Theorem 1, repaired: sqrt(2 V_T ln(2|H|/delta)/T) + 7 B ln(2|H|/delta)/(3 (T-1)), r (..., T), V_T unbiased.

    W.p. >= 1 - delta, for all h: mean_t E r_t <= mean_t r_t + width (Maurer-Pontil over independent blocks).

    >>> [round(float(block_bernstein_width(torch.ones(T), 1.0, 0.05)), 2) for T in (2, 3, 10)]   # vacuous below 10
    [8.61, 4.3, 0.96]
    """
    _level(delta)
    n_tasks = r.shape[-1]
    if n_tasks < 2:
        raise ValueError(f"r: a variance over tasks needs at least 2 tasks, found {n_tasks}")
    log = math.log(2 * n_hyp / delta)
    return variance_only_width(r, delta, n_hyp) + 7 * B * log / (3 * (n_tasks - 1))


def variance_only_width(r: Tensor, delta: float, n_hyp: int = 1) -> Tensor:
    """NOT a bound (Prop. 3): Theorem 1 without its additive term, sqrt(2 V_T ln(2|H|/delta)/T)."""
    variance = relative_rate_variance(r, unbiased=True)
    return (2 * variance * math.log(2 * n_hyp / delta) / r.shape[-1]).sqrt()


def variance_free_floor(n_tasks: int, B: float, delta: float) -> float:
    """Proposition 3: a valid width, as a function of the variance alone, is at least B (1 - delta^(1/T)) at V = 0.

    >>> [round(variance_free_floor(T, 1.0, 0.05), 3) for T in (2, 3, 10)]
    [0.776, 0.632, 0.259]
    """
    _level(delta)
    return B * (1 - delta ** (1 / n_tasks))


def variance_only_failure(n_tasks: int, width: float) -> float:
    """Prop. 3, exact: sup over r_t = Bernoulli(q) iid of P(V = 0, r = 0, mean > width) = (1 - width)^T.

    >>> round(variance_only_failure(3, 0.1), 3)      # a width of .1 at V = 0 fails with probability .729
    0.729
    """
    return max(0.0, 1 - width) ** n_tasks


def floor_mcdiarmid_width(M: float, G: float, c: float, n: int, n_tasks: int, delta: float, n_hyp: int = 1) -> float:
    """Theorem 2: (M/c)(1 + 2 G/c) sqrt(ln(|H|/delta)/(2 n T)): decays in n, holds no variance.

    >>> round(floor_mcdiarmid_width(1.0, 1.0, 1.0, 100, 2, 0.05), 4)
    0.2596
    """
    _level(delta)
    if c <= 0:
        raise ValueError(f"c: the floor of the gradient norm must be positive, found {c}")
    return M / c * (1 + 2 * G / c) * math.sqrt(math.log(n_hyp / delta) / (2 * n * n_tasks))


def population_ratio_width(B: float, n: int, n_tasks: int, delta: float, n_hyp: int = 1) -> float:
    """NOT a bound for L_t/||population gradient|| (Prop. 4): B sqrt(ln(|H|/delta)/(2 n T)), as if r_t were a mean."""
    _level(delta)
    return B * math.sqrt(math.log(n_hyp / delta) / (2 * n * n_tasks))


def population_ratio_failure(n: int, c: float, delta: float) -> float:
    """Proposition 4, exact: P(|mean of n fair signs| > c / (1 - sqrt(ln(1/delta)/(2n)))).

    Loss (theta - z)^2/2, z = +-1, H = {0}, one task: the naive bound fails with this probability, not delta.

    >>> round(population_ratio_failure(100, 0.01, 0.05), 2)
    0.92
    """
    s = math.sqrt(math.log(1 / delta) / (2 * n))
    if s >= 1:
        return 0.0
    k = torch.arange(n + 1, dtype=torch.float64)
    log_pmf = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1) - n * math.log(2)
    return float(log_pmf.exp()[(2 * k / n - 1).abs() > c / (1 - s)].sum())


def stratified_bernstein_width(within: Tensor, n: int, M: float, delta: float, n_hyp: int = 1) -> Tensor:
    """Theorem 2': sqrt(2 V_W ln(2|H|/delta)/(n T)) + 7 M ln(2|H|/delta)/(3 (n-1) T) for the mean loss.

    `within` (..., T): unbiased variances inside each task; V_W is their mean. The sampling gap depends on this
    variance; what lies between the tasks is not in it.

    >>> round(float(stratified_bernstein_width(torch.tensor([0.2, 0.1]), 100, 1.0, 0.05)), 3)
    0.118
    """
    _level(delta)
    if n < 2:
        raise ValueError(f"n: a variance within a task needs at least 2 examples, found {n}")
    n_tasks, log = within.shape[-1], math.log(2 * n_hyp / delta)
    return (2 * within.mean(-1) * log / (n * n_tasks)).sqrt() + 7 * M * log / (3 * (n - 1) * n_tasks)


def mixture_risk_bound(losses: Tensor, M: float, n: int, rho: float, delta: float, n_hyp: int = 1) -> Tensor:
    """Theorem 5': mean + sqrt(2 rho V) + R_+ rho/3 + M sqrt(ln(T|H|/delta)/(2n)) >= sup over the ball of p.L.

    W.p. >= 1 - delta for all h and rho at once, empirical `losses` (..., T). Variance between tasks controls the risk
    under a shift of the task mixture; the sampling term holds no variance.

    >>> round(float(mixture_risk_bound(torch.tensor([0.2, 0.4]), 1.0, 1000, 0.1, 0.05)), 3)
    0.391
    """
    _level(delta)
    mean = losses.mean(-1)
    epsilon = M * math.sqrt(math.log(losses.shape[-1] * n_hyp / delta) / (2 * n))
    spread = (2 * rho * relative_rate_variance(losses)).sqrt()
    return mean + spread + (losses.amax(-1) - mean) * rho / 3 + epsilon


def eq10_static(r: Tensor, rho: float) -> tuple[float, float]:
    """Spearman correlations with V over the rows of r (N, T) of sup_P p.r - mean r, and of sup_P p.r itself.

    Eq. 10 as reconstructed needs them negative. They are positive: at equal mean the supremum grows with the variance
    (Prop. 6, static part); the second mixes that with how V goes with the mean.
    """
    sup, variance = kl_ball_sup(r, rho).value, relative_rate_variance(r).numpy()
    less, plain = (float(spearmanr(x.numpy(), variance).statistic) for x in (sup - r.mean(-1), sup))
    return less, plain


def eq10_dynamic(r: Tensor, p: Tensor, h: float = 1e-6) -> tuple[Tensor, Tensor]:
    """(dV/dt by central difference along r' = -p, -(2/T)(p.r - mean r)): Prop. 6 says that they are equal."""
    rate = (relative_rate_variance(r - h * p) - relative_rate_variance(r + h * p)) / (2 * h)
    return rate, -2 / r.shape[-1] * ((p * r).sum(-1) - r.mean(-1))
