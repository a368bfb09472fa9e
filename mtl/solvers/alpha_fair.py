"""K w = w^(-1/alpha), w > 0, for every alpha > 0: one Newton method in logarithms."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from mtl.solvers import scalar, scalar_fair
from mtl.solvers.common import TOLERANCE, Certificate, Scaled, mv, scale
from mtl.solvers.nonneg import shortest_of
from mtl.solvers.scalar_fair import FAR, GOAL, SMALL


def _plain(p: Scaled, alpha: float, gamma: Tensor, x: Tensor, steps: int, goal: float) -> tuple[Tensor, Tensor, Tensor]:
    """Newton on 1/2 v'Rv - sum exp(gamma/alpha) alpha/(alpha-1) v^((alpha-1)/alpha), v <- v exp(-) or v (1 + .).

    No line search: at alpha = 1 (where the function is self-concordant) it never needed one, elsewhere the careful
    method below takes over. Third result: where the error is below `goal`.
    """
    R, R_abs = p.R, p.R.abs()
    count = torch.zeros(len(x), dtype=torch.long, device=x.device)
    done = torch.zeros_like(x[:, :1], dtype=torch.bool)
    for _ in range(steps):
        v = x.exp()
        target = ((gamma - x) / alpha).exp() * v
        scaled = R * v.unsqueeze(-1) * v.unsqueeze(-2)
        gap = target - scaled.sum(-1)
        done = (gap.abs() / (target + v * mv(R_abs, v))).amax(-1, keepdim=True) < goal
        if p.on_cpu and bool(done.all()):
            break
        factor, _ = torch.linalg.cholesky_ex(scaled + torch.diag_embed(target / alpha))
        move = torch.cholesky_solve(gap.unsqueeze(-1), factor).squeeze(-1)
        move = torch.where(move > 0, move.clamp_min(0).log1p(), move)
        x = torch.where(done | ~move.isfinite().all(-1, keepdim=True), x, (x + move).clamp(-FAR, FAR))
        count += ~done.squeeze(-1)
    return x, count, done.squeeze(-1)


def _newton(p: Scaled, alpha: float, x: Tensor, gamma: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Primal-dual Newton for R v = u, log v + alpha log u = gamma, from v = exp(x), u = 1/v.

    Steps are cut so that no term that matters in its sum (R v)_t + u_t falls below a tenth of itself; terms
    that do not matter move in the logarithm, by hundreds if need be, until they are about to matter. This
    is what makes alpha = 20 with weights over 100 decades take a dozen steps instead of a hundred.
    """
    R, eye = p.R, torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    R_abs = R.abs()
    y = -x
    best, least = x, torch.full((len(x), 1), torch.inf, dtype=x.dtype, device=x.device)
    count = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for _ in range(steps):
        v, u = x.exp(), y.exp()
        reach, product = mv(R_abs, v), mv(R, v)
        implied = ((gamma - x) / alpha).exp()
        error = ((implied - product).abs() / (reach + implied)).amax(-1, keepdim=True)
        best = torch.where(error < least, x, best)
        least = torch.where(error < least, error, least)
        done = least < GOAL
        if p.on_cpu and bool(done.all()):
            break
        rho = x + alpha * y - gamma
        s = (alpha * v / u).sqrt().clamp(max=1e7)
        factor, _ = torch.linalg.cholesky_ex(eye + R * s.unsqueeze(-1) * s.unsqueeze(-2))
        dx = s * torch.cholesky_solve((s * (u - product - u * rho / alpha)).unsqueeze(-1), factor).squeeze(-1) / v
        dy = -(rho + dx) / alpha
        weight = (R_abs / (u + reach).unsqueeze(-1)).amax(-2) * v  # the most that v_t matters in any sum
        v_small, u_small = weight < SMALL, u < SMALL * reach
        pace = torch.maximum(
            torch.maximum(-dx / 0.9, dx / 9).masked_fill(v_small, 0.0),
            torch.maximum(-dy / 0.9, dy / 9).masked_fill(u_small, 0.0),
        ).amax(-1, keepdim=True)
        t = 1 / pace.clamp_min(1)
        x_step, y_step = t * dx, t * dy
        x_free = torch.minimum(x + x_step, x + (3 * SMALL / weight).log().clamp_min(0))
        y_free = torch.minimum(y + y_step, torch.maximum((3 * SMALL * reach).log(), y))
        x_next = torch.where(v_small & (x_step.abs() > 0.5), x_free, x + x_step.clamp_min(-0.95).log1p())
        y_next = torch.where(u_small & (y_step.abs() > 0.5), y_free, y + y_step.clamp_min(-0.95).log1p())
        x_next, y_next = x_next.clamp(-FAR, FAR), y_next.clamp(-FAR, FAR)
        bad = ~(x_next + y_next).isfinite().all(-1, keepdim=True)
        x, y = torch.where(done | bad, x, x_next), torch.where(done | bad, y, y_next)
        count += ~done.squeeze(-1)
    return best, count


def _solve(p: Scaled, alpha: float, gamma: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """x = log v with log v + alpha log(R v) = gamma, and the Newton steps taken."""
    start = gamma / (1 + alpha)
    if not p.on_cpu:
        x, count, _ = _plain(p, 1.0, torch.zeros_like(gamma), torch.zeros_like(gamma), 24, GOAL)
        if alpha == 1:  # gamma = 0
            return x, count
        x, more = _newton(p, alpha, x, gamma, steps)
        return x, count + more
    x, count, done = _plain(p, alpha, gamma, start, 24, GOAL)
    left = ~done
    if bool(left.any()):
        rest, none = replace(p, R=p.R[left]), torch.zeros_like(gamma[left])
        y, _, _ = _plain(rest, 1.0, none, none, 40, SMALL)
        y, more = _newton(rest, alpha, y, gamma[left], steps)
        x, count = x.index_put((left,), y), count.index_put((left,), count[left] + more)
    return x, count


@torch.no_grad()
def alpha_fair(K: Tensor, alpha: float, steps: int = 100) -> tuple[Tensor, Certificate]:
    """The positive solution of K w = w^(-1/alpha): FairGrad's weights; alpha = 1 is Nash-MTL.

    Ban & Ji (ICML 2024), eq. 6; Navon et al. (ICML 2022), eq. 4. w is the unique minimiser of the strictly
    convex 1/2 w'Kw - sum alpha/(alpha-1) w^((alpha-1)/alpha), and exists unless K is Pareto stationary.
    With w = N^-1 v the system is R v = |g|^(1/alpha-1) v^(-1/alpha): the conditioning no longer sees the scale
    of the tasks, and the right-hand side is handled in logarithms. Solved from the Nash solution of R.
    A zero row has no finite weight; it gets weight 0 and the others are solved without it. Pareto stationary
    K (or a solution beyond float64): the min-norm weights, whose direction is about 0, and `stationary`.
    Residual: max_t |(Kw)_t - w_t^(-1/alpha)| / ((|K|w)_t + w_t^(-1/alpha)).

    Args:
        K: Gram matrices (..., T, T).
        alpha: fairness, > 0.
        steps: bound on the Newton steps.

    Raises:
        ValueError: alpha is not a positive finite number.

    >>> w, proof = alpha_fair(torch.diag(torch.tensor([1.0, 16.0], dtype=torch.float64)), alpha=1.0)
    >>> w.tolist(), bool(proof.residual < 1e-12)
    ([1.0, 0.25], True)
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha: must be a positive finite number, found {alpha}")
    if scalar.fits(K, 2):
        found = scalar_fair.alpha_fair(K.tolist(), float(alpha), torch.finfo(K.dtype).eps)
        if found is not None:
            return scalar.answer("alpha_fair", K.dtype, *found)
    p = scale(K)
    logs = p.safe.log()
    middle = logs.mean(-1, keepdim=True)
    gamma = (1 - alpha) * (logs - middle)
    x, count = _solve(p, float(alpha), gamma, steps)
    log_w = x - (logs - middle) - 2 * alpha / (1 + alpha) * middle
    w = log_w.exp()

    right = (-log_w / alpha).exp()
    left = mv(p.K, w)
    reach = mv(p.K.abs(), w)
    residual = ((left - right).abs() / (reach + right)).masked_fill(p.zero, 0.0).amax(-1)
    w = w.masked_fill(p.zero, 0.0)
    W = (w * p.norms).sum(-1)
    stationary = (w * mv(p.K, w)).sum(-1) <= p.rounding * W * W
    unsolved = stationary | ~(residual < TOLERANCE)
    if not p.on_cpu or bool(unsolved.any()):
        shortest, none = shortest_of(p, ~p.zero)
        stationary = stationary | (unsolved & none)
        w = torch.where(stationary.unsqueeze(-1), shortest, w)
    return p.out(w), p.certify("alpha_fair", residual, count, stationary)
