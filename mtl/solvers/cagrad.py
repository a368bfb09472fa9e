"""CAGrad's dual, exactly: on a known support it is one quadratic equation."""

import math

import torch
from torch import Tensor

from mtl.solvers import scalar, scalar_cones
from mtl.solvers.common import Certificate, Scaled, enumerable, mv, scale, supports
from mtl.solvers.nonneg import RIDGE, nonneg_qp, shortest_of


def _level(p: Tensor, s: Tensor, q: Tensor, b: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """mu with |G'x| = radius for x = mu p - s, where R p = q and R s = b on the support; whether there is one."""
    A, half, C = (q * p).sum(-1), (q * s).sum(-1), (b * s).sum(-1)
    A = A.masked_fill(A <= 0, torch.inf)
    square = (half / A).square() - (C - radius.square()) / A
    return half / A + square.clamp_min(0).sqrt(), square >= 0


def _pair(M: Tensor, mask: Tensor, q: Tensor, b: Tensor, off: Tensor, outer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Solutions of R p = q and R s = b on the supports in `mask`, and where that failed."""
    factor, info = torch.linalg.cholesky_ex(M * outer + off)
    both = torch.cholesky_solve(torch.stack([q * mask, b * mask], -1), factor)
    return both[..., 0], both[..., 1], info != 0


def _violation(R: Tensor, x: Tensor, mu: Tensor, q: Tensor, b: Tensor, radius: Tensor, size: Tensor) -> Tensor:
    """How far x, mu are from x >= 0, y = R x + b - mu q >= 0, x y = 0 and |G'x| = radius."""
    Rx = mv(R, x)
    y = Rx + b - mu.unsqueeze(-1) * q
    total = size + x.abs().sum(-1)
    missed = ((x * Rx).sum(-1) - radius.square()).abs() / total
    return torch.maximum(torch.minimum(x, y).abs().amax(-1), missed)


def _enumerate(R: Tensor, q: Tensor, b: Tensor, radius: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mask, outer, off = supports(q.shape[-1], q.device)
    p, s, failed = _pair(R, mask, q, b, off, outer)
    mu, _ = _level(p, s, q * mask, b * mask, radius)
    x = mu.unsqueeze(-1) * p - s
    miss = _violation(R, x, mu, q, b, radius, size).masked_fill(failed, torch.inf).nan_to_num(torch.inf)
    best = miss.argmin(0)
    rows = torch.arange(len(q), device=q.device)
    return x[best, rows].clamp_min(0), mu[best, rows], torch.ones_like(best)


def _outer(mask: Tensor) -> Tensor:
    return mask.unsqueeze(-1) * mask.unsqueeze(-2)


class _Best:
    """The least violating (x, mu) seen so far, per problem."""

    def __init__(self, problem: tuple[Tensor, ...], low: Tensor) -> None:
        self.problem = problem
        self.x, self.mu = torch.zeros_like(problem[1]), low
        self.miss = torch.full_like(low, torch.inf)

    def see(self, x: Tensor, mu: Tensor, failed: Tensor) -> None:
        R, q, b, radius, size = self.problem
        miss = _violation(R, x, mu, q, b, radius, size).masked_fill(failed, torch.inf).nan_to_num(torch.inf)
        better = miss < self.miss
        self.x = torch.where(better.unsqueeze(-1), x, self.x)
        self.mu, self.miss = torch.where(better, mu, self.mu), torch.where(better, miss, self.miss)

    @property
    def done(self) -> Tensor:
        return self.miss < 1e-14


def _next(best: _Best, mu: Tensor, low: Tensor, high: Tensor, P: Tensor) -> tuple[Tensor, ...]:
    """x(mu) on the support P, that support's root, whether it has one, and whether it could be solved."""
    R, q, b, radius, _ = best.problem
    mask = P.to(q.dtype)
    p, s, failed = _pair(R, mask, q, b, torch.diag_embed(1 + RIDGE - mask), _outer(mask))
    root, real = _level(p, s, q * mask, b * mask, radius)
    best.see(root.unsqueeze(-1) * p - s, root, failed)
    x = mu.unsqueeze(-1) * p - s
    length = (x * mv(R, x)).sum(-1).clamp_min(0).sqrt()
    newton = mu - (length - radius) * length / (x * q).sum(-1).clamp_min(1e-300)
    trial = torch.where(real, root, newton)
    inside = (trial > low) & (trial < high) & ~failed
    return x, length, torch.where(inside, trial, 0.5 * (low + high)), failed


def _chase(best: _Best, high: Tensor, steps: int, early: bool) -> Tensor:
    """Exchange all wrong indices and take the new support's root at once; steps taken.

    A Newton method that mostly ends in T/4 steps but may cycle: `_pivot` goes on where it does. The ridge lets
    duplicates share their weight where a factorisation would fail.
    """
    R, q, b, radius, _ = best.problem
    low = best.mu
    P = torch.ones_like(q, dtype=torch.bool)
    count = torch.zeros_like(low, dtype=torch.long)
    for _ in range(steps):
        mask = P.to(q.dtype)
        ridge = torch.diag_embed(1 + RIDGE - mask)
        p, s, failed = _pair(R, mask, q, b, ridge, _outer(mask))
        mu, _ = _level(p, s, q * mask, b * mask, radius)
        x = mu.unsqueeze(-1) * p - s
        best.see(x, mu, failed)
        count += ~best.done
        if early and bool(best.done.all()):
            break
        mu = torch.where(failed, low, torch.maximum(torch.minimum(mu, high), low))
        x = (mu.unsqueeze(-1) * p - s).masked_fill(failed.unsqueeze(-1), 0.0)
        y = mv(R, x) + b - mu.unsqueeze(-1) * q
        P = torch.where(P, x > 0, y < 0)
    return count


def _pivot(
    R: Tensor, q: Tensor, b: Tensor, radius: Tensor, high: Tensor, size: Tensor, steps: int, early: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Root in mu of |G'x(mu)| = radius, where x(mu) solves min 1/2 x'Rx - (mu q - b)'x over x >= 0.

    The distance |G'x(mu)| is convex and increasing in mu and its square is quadratic on each support, so that this
    ends after finitely many supports; mu lies between min_t <g_t,g0>/|g_t| (there x = 0) and (1 + c)|g0|. One
    factorisation per step: it either exchanges the indices that are wrong for the present mu, or, if there are
    none, moves mu to the support's root, by a Newton step where it has none, to the middle where both leave.
    """
    low = (b / q).amin(-1)
    best, mu, P = _Best((R, q, b, radius, size), low), low, b / q <= low.unsqueeze(-1)
    count, fewest = _chase(best, high, 24, early), torch.full_like(low, q.shape[-1] + 1.0)
    if early and bool(best.done.all()):
        return best.x.clamp_min(0), best.mu, count + 1
    order = torch.arange(1, q.shape[-1] + 1, device=q.device)
    patience = torch.full_like(count, 3)
    for _ in range(steps):
        x, length, trial, failed = _next(best, mu, low, high, P)
        count += ~best.done
        if early and bool(best.done.all()):
            break
        y = mv(R, x) + b - mu.unsqueeze(-1) * q
        noise = 1e-14 * (size.unsqueeze(-1) + mv(R.abs(), x.abs()))
        wrong = torch.where(P, x < -noise, y < -noise)
        n_wrong = wrong.sum(-1)
        right = (n_wrong == 0) & ~failed
        high = torch.where(right & (length > radius), torch.minimum(high, mu), high)
        low = torch.where(right & (length <= radius), torch.maximum(low, mu), low)
        better = n_wrong < fewest
        patience = torch.where(right | better, 3, patience - 1)
        fewest = torch.where(right, q.shape[-1] + 1.0, torch.minimum(fewest, n_wrong.to(fewest)))
        last = wrong & ((wrong * order).amax(-1, keepdim=True) == order)
        P = P ^ torch.where((better | (patience >= 0)).unsqueeze(-1), wrong, last)
        mu = torch.where(right, trial.clamp(low, high), mu)
    left = ~best.done
    if early and bool(left.any()):
        _nest(best, high, left)
    return best.x.clamp_min(0), best.mu, count + 1


def _nest(best: _Best, high: Tensor, left: Tensor, steps: int = 60) -> None:
    """The same root for the problems that are `left`, each x(mu) by the method that also masters singular R."""
    R, q, b, radius, size = (t[left] for t in best.problem)
    low = (b / q).amin(-1)
    part, high, mu = _Best((R, q, b, radius, size), low), (1 + 1e-9) * high[left].abs() + size, low
    for _ in range(steps):
        x, _ = nonneg_qp(R, mu.unsqueeze(-1) * q - b, True)
        length = (x * mv(R, x)).sum(-1).clamp_min(0).sqrt()
        high = torch.where(length > radius, torch.minimum(high, mu), high)
        low = torch.where(length > radius, low, torch.maximum(low, mu))
        _, _, mu, _ = _next(part, mu, low, high, x > 0)
        if bool(part.done.all()):
            break
    better = part.miss < best.miss[left]
    best.x = best.x.index_put((left,), torch.where(better.unsqueeze(-1), part.x, best.x[left]))
    best.mu = best.mu.index_put((left,), torch.where(better, part.mu, best.mu[left]))


def _extra(p: Scaled, c: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights x >= 0 of the step away from g0, for unit gradients; residual, steps taken, stationary."""
    T = p.norms.shape[-1]
    u = torch.full_like(p.norms, 1 / T)
    Ku = mv(p.K, u)
    size = (u * p.norms).sum(-1)
    unit = size.masked_fill(size == 0, 1.0)
    g0 = (u * Ku).sum(-1).clamp_min(0).sqrt() / unit
    radius, high, size = c * g0, (1 + c) * g0, size / unit
    q = p.safe.amin(-1, keepdim=True) / p.safe
    b = Ku / p.safe / unit.unsqueeze(-1)
    if enumerable(q):
        x, mu, count = _enumerate(p.R, q, b, radius, size)
    else:
        x, mu, count = _pivot(p.R, q, b, radius, high, size, 80, p.on_cpu)
    miss = _violation(p.R, x, mu, q, b, radius, size) / (size + x.sum(-1))
    suspect = (
        p.zero.any(-1) | (mu <= 0) | ~(miss < 1e-12) | ((x * mv(p.R, x)).sum(-1) <= p.rounding * x.sum(-1).square())
    )
    stationary = torch.zeros_like(suspect)
    if not p.on_cpu or bool(suspect.any()):
        # no direction improves all tasks: the best that is left has min <g,d> = 0; take the one nearest to g0
        stationary = p.zero.any(-1) | shortest_of(p, ~p.zero)[1]
        cone, _ = nonneg_qp(p.R, (-b).masked_fill(p.zero, 0.0), p.on_cpu)
        slope = mv(p.R, cone) + b
        cut = stationary & ((cone * mv(p.R, cone)).sum(-1) <= radius.square() * (1 + 1e-9))
        kept = torch.minimum(cone, slope).masked_fill(p.zero, 0.0).abs().amax(-1) / (size + cone.sum(-1))
        x, miss = torch.where(cut.unsqueeze(-1), cone, x), torch.where(cut, kept, miss)
    moved = ~(radius <= 0)  # NaN moves on
    x = torch.where(moved.unsqueeze(-1), x * unit.unsqueeze(-1), 0.0)
    return x, torch.where(moved, miss, 0.0), count, stationary


@torch.no_grad()
def cagrad_step(K: Tensor, c: float) -> tuple[Tensor, Certificate]:
    """Weights of CAGrad's direction d = G'(1/T + x), the maximiser of min_t <g_t, d> over |d - g0| <= c|g0|.

    Liu et al. (NeurIPS 2021), eq. 3. x >= 0 are the multipliers of <g_t, d> >= mu, so K(1/T + x) >= mu with
    equality where x_t > 0, and |G'x| = c|g0|; given the support of x, mu is a root of a quadratic. Where no
    direction improves all tasks and the ball reaches the cone of those that hurt none, mu = 0 and d is the
    point of that cone nearest to g0 (`stationary`). Residual: largest violation of these conditions, with
    unit gradients, relative to sum_t |g_t|(1/T + x_t).

    >>> w, _ = cagrad_step(torch.eye(2, dtype=torch.float64), c=0.5)
    >>> w.tolist()
    [0.75, 0.75]
    """
    if not (math.isfinite(c) and c >= 0):
        raise ValueError(f"c: must be finite and >= 0, found {c}")
    if scalar.fits(K, 2):
        found = scalar_cones.cagrad(K.tolist(), c, torch.finfo(K.dtype).eps)
        if found is not None:
            return scalar.answer("cagrad", K.dtype, *found)
    p = scale(K)
    x, miss, count, stationary = _extra(p, c)
    w = 1 / x.shape[-1] + (x / p.safe).masked_fill(p.zero, 0.0)
    return p.out(w), p.certify("cagrad", miss, count, stationary)


@torch.no_grad()
def cagrad_dual(K: Tensor, c: float) -> tuple[Tensor, Certificate]:
    """w = argmin over the simplex of g_w'g0 + c|g0||g_w|, g_w = G'w (Liu et al., NeurIPS 2021, eq. 4).

    w is `cagrad_step`'s x, normalised; where x = 0 (c = 0, or g0 hurts no task) the tasks with the smallest
    <g_t, g0> share the weight.

    >>> w, _ = cagrad_dual(torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64), c=0.0)
    >>> w.tolist()
    [1.0, 0.0]
    """
    weights, proof = cagrad_step(K, c)
    T = K.shape[-1]
    x = (weights.double() - 1 / T).clamp_min(0)
    total = x.sum(-1, keepdim=True)
    product = K.double().sum(-1) / T
    least = (product <= product.amin(-1, keepdim=True)).double()
    w = torch.where(total > 1e-14 / T, x / total.clamp_min(1e-300), least / least.sum(-1, keepdim=True))
    return w.to(K.dtype), proof
