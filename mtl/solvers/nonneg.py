"""min 1/2 x'Mx - q'x over x >= 0, exactly, and the two problems of the field that are of this form."""

import torch
from torch import Tensor

from mtl.solvers import scalar, scalar_cones
from mtl.solvers.common import Certificate, Scaled, enumerable, mv, scale, supports

EPS = torch.finfo(torch.float64).eps
RIDGE = 1e-14


def _masked_solve(M: Tensor, P: Tensor, rhs: Tensor, ridge: float = 0.0) -> tuple[Tensor, Tensor]:
    """Solve (M + ridge)_PP x_P = rhs_P with x = 0 off P (P boolean); second result: the factorisation failed."""
    p = P.to(M.dtype)
    factor, info = torch.linalg.cholesky_ex(M * p.unsqueeze(-1) * p.unsqueeze(-2) + torch.diag_embed(1 + ridge - p))
    return torch.cholesky_solve((rhs * p).unsqueeze(-1), factor).squeeze(-1), info != 0


def _noise(M: Tensor, q: Tensor, x: Tensor) -> Tensor:
    """Rounding error to expect in M x - q."""
    return 4 * EPS * M.shape[-1] * (mv(M.abs(), x.abs()) + q.abs())


def _miss(M: Tensor, q: Tensor, x: Tensor) -> Tensor:
    """How far x and y = M x - q are from x >= 0, y >= 0, x y = 0."""
    return torch.minimum(x, mv(M, x) - q).abs().amax(-1)


def _enumerate(M: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Best of all supports: the one whose x and gradient violate x >= 0, y >= 0, x y = 0 least."""
    mask, outer, off = supports(M.shape[-1], M.device)
    factor, info = torch.linalg.cholesky_ex(M * outer + off)
    x = torch.cholesky_solve((q * mask).unsqueeze(-1), factor).squeeze(-1)
    miss = _miss(M, q, x).masked_fill(info != 0, torch.inf)
    best = miss.nan_to_num(torch.inf).argmin(0)
    x = x[best, torch.arange(len(q), device=q.device)].clamp_min(0)
    return x, torch.ones(len(q), dtype=torch.long, device=q.device)


def _block_pivot(M: Tensor, q: Tensor, P: Tensor, steps: int, early: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Exchange all infeasible indices at once while that reduces their number, else only the last of them.

    Júdice & Pires' block principal pivoting; it needs few steps where M is well conditioned, and says in
    its second result where it did not end.
    """
    B, T = q.shape
    order = torch.arange(1, T + 1, device=q.device)
    fewest = torch.full((B,), T + 1, device=q.device)
    patience = torch.full((B,), 3, device=q.device)
    done = torch.zeros(B, dtype=torch.bool, device=q.device)
    x = torch.zeros_like(q)
    count = torch.zeros(B, dtype=torch.long, device=q.device)
    for _ in range(steps):
        trial, failed = _masked_solve(M, P, q)
        y = mv(M, trial) - q
        noise = _noise(M, q, trial)
        wrong = torch.where(P, trial < -noise, y < -noise)
        n_wrong = wrong.sum(-1)
        good = (n_wrong == 0) & ~failed
        x = torch.where((good & ~done).unsqueeze(-1), trial, x)
        count += ~done
        done = done | good
        if early and bool(done.all()):
            break
        better = n_wrong < fewest
        fewest = torch.minimum(fewest, n_wrong)
        patience = torch.where(better, 3, patience - 1)
        last = wrong & ((wrong * order).amax(-1, keepdim=True) == order)
        P = P ^ torch.where((better | (patience >= 0)).unsqueeze(-1), wrong, last)
    return x.clamp_min(0), ~done, count


def _lawson_hanson(M: Tensor, q: Tensor, early: bool) -> tuple[Tensor, Tensor]:
    """One index in at a time, steepest first (Lawson & Hanson); masters rank-deficient M.

    A ridge at rounding level turns a dependent index into a long step along the null space, up to where another
    index leaves; the last support is solved once more without it.
    """
    B, T = q.shape
    x = torch.zeros_like(q)
    P = torch.zeros_like(q, dtype=torch.bool)
    banned = torch.zeros_like(P)
    newest = torch.zeros_like(P)
    done = torch.zeros(B, dtype=torch.bool, device=q.device)
    count = torch.zeros(B, dtype=torch.long, device=q.device)
    for _ in range(4 * T + 4):
        s, failed = _masked_solve(M, P, q, RIDGE)
        s = torch.where(failed.unsqueeze(-1), torch.where(newest, -1.0, x), s)  # a dependent index is put out again
        negative = P & (s <= 0)
        any_negative = negative.any(-1, keepdim=True)
        ratio = torch.where(negative, x / (x - s), torch.inf)
        step = ratio.amin(-1, keepdim=True).clamp(max=1.0)
        dropped = negative & (ratio <= step)
        moved = torch.where(P & ~dropped, x + step * (s - x), 0.0)
        count += ~done
        x = torch.where(done.unsqueeze(-1), x, moved)
        P = P & ~(dropped & ~done.unsqueeze(-1))
        banned = torch.where(any_negative, banned | (dropped & newest), False)
        gain = q - mv(M, x)
        wanted = (gain > _noise(M, q, x)) & ~P & ~banned
        ready = ~any_negative.squeeze(-1)
        done = done | (ready & ~wanted.any(-1))
        if early and bool(done.all()):
            break
        pick = torch.where(wanted, gain, -torch.inf).argmax(-1, keepdim=True)
        add = torch.zeros_like(P).scatter(-1, pick, True) & wanted & (ready & ~done).unsqueeze(-1)
        newest = torch.where(add.any(-1, keepdim=True), add, newest)
        P = P | add
    plain, failed = _masked_solve(M, x > 0, q)
    better = (_miss(M, q, plain) < _miss(M, q, x)) & ~failed
    return torch.where(better.unsqueeze(-1), plain.clamp_min(0), x), count


def nonneg_qp(M: Tensor, q: Tensor, early: bool) -> tuple[Tensor, Tensor]:
    """argmin 1/2 x'Mx - q'x over x >= 0 for M (B, T, T) with unit-like diagonal, q (B, T); and the steps taken."""
    if enumerable(q):
        return _enumerate(M, q)
    x, left, count = _block_pivot(M, q, q > 0, 12, early)
    if not early:
        slow, more = _lawson_hanson(M, q, early)
        return torch.where(left.unsqueeze(-1), slow, x), torch.where(left, more, count)
    if bool(left.any()):
        slow, more = _lawson_hanson(M[left], q[left], early)
        x, count = x.index_put((left,), slow), count.index_put((left,), more)
    return x, count


def _shortest(p: Scaled, alive: Tensor) -> tuple[Tensor, Tensor]:
    """Min-norm weights over the tasks that are `alive` (boolean, (B, T)), and the steps taken."""
    T = alive.shape[-1]
    least = p.safe.masked_fill(~alive, torch.inf).amin(-1, keepdim=True)
    q = torch.where(alive, least / p.safe, 0.0)
    count = torch.ones(len(q), dtype=torch.long, device=q.device)
    if T == 1:
        return torch.ones_like(q), count
    if T == 2:
        top = (q * q - (p.R[:, 0, 1] * q[:, 0] * q[:, 1]).unsqueeze(-1)).clamp_min(0)
        total = top.sum(-1, keepdim=True)
        return torch.where(total > 0, top / total, 0.5), count  # equal gradients: any weights do, take the mean
    x, count = nonneg_qp(p.R + q.unsqueeze(-1) * q.unsqueeze(-2), q, p.on_cpu)
    w = q * x
    total = w.sum(-1, keepdim=True)
    return torch.where(total > 0, w / total, 1 / T), count


def shortest_of(p: Scaled, alive: Tensor) -> tuple[Tensor, Tensor]:
    """The same weights, and whether their vector is zero up to rounding."""
    w, _ = _shortest(p, alive)
    W = (w * p.norms).sum(-1)
    return w, (w * mv(p.K, w)).sum(-1) <= p.rounding * W * W


@torch.no_grad()
def min_norm(K: Tensor) -> tuple[Tensor, Certificate]:
    """Weights of the shortest vector in the convex hull of the gradients, argmin w'Kw over the simplex.

    Désidéri (2012); Sener & Koltun (NeurIPS 2018), eq. 3. Exact: w is proportional to N^-1 x with
    x = argmin over x >= 0 of 1/2 x'(R + qq')x - q'x, q_t = min|g|/|g_t|, K = N R N. Adding qq' adds a
    constant on the simplex (Wolfe 1976), makes the problem bounded also where the hull holds zero, and
    lets all tasks enter with norm one. T = 2 in closed form. Of several optima with zero rows: the mean
    of these rows. Residual: max_t |min(w_t|g_t|/W, ((Kw)_t - w'Kw)/(W max(|g_t|, W)))| with W = sum w_t|g_t|.

    Args:
        K: Gram matrices (..., T, T).

    Returns:
        Weights (..., T) on the simplex, and the certificate.

    >>> w, proof = min_norm(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
    >>> w.tolist(), bool(proof.converged), bool(proof.stationary)
    ([0.800000011920929, 0.20000000298023224], True, False)
    """
    if scalar.fits(K, 2):
        found = scalar_cones.min_norm(K.tolist(), torch.finfo(K.dtype).eps)
        if found is not None:
            return scalar.answer("min_norm", K.dtype, *found)
    p = scale(K)
    w, count = _shortest(p, ~p.zero)
    w = torch.where(p.zero.any(-1, keepdim=True), p.zero / p.zero.sum(-1, keepdim=True).clamp_min(1), w)
    share = w * p.norms
    W = share.sum(-1, keepdim=True)
    slope = mv(p.K, w)
    value = (w * slope).sum(-1, keepdim=True)
    safe_W = W.masked_fill(W == 0, 1.0)
    gap = torch.minimum(share / safe_W, (slope - value) / (safe_W * torch.maximum(p.safe, safe_W))).abs().amax(-1)
    stationary = value.squeeze(-1) <= p.rounding * W.squeeze(-1).square()
    return p.out(w), p.certify("min_norm", gap, count, stationary)


@torch.no_grad()
def dual_cone(K: Tensor, v: Tensor) -> tuple[Tensor, Certificate]:
    """Weights w >= v of the projection of G'v on the cone of directions that hurt no task, {d : G d >= 0}.

    w = argmin over w >= v of w'Kw (Quinton & Rey, arXiv 2406.16232, proposition 1). Where K is singular w is
    one of several, G'w is unique. Residual: max_t |min((w_t - v_t)|g_t|, (Kw)_t/|g_t|)| / sum_t |w_t||g_t|.

    Args:
        K: Gram matrices (..., T, T).
        v: weights of the direction to project (..., T), broadcast against the batch of K.

    >>> w, _ = dual_cone(torch.tensor([[1.0, -1.0], [-1.0, 4.0]]), torch.tensor([1.0, 0.0]))
    >>> w.tolist()
    [1.0, 0.25]
    """
    if scalar.fits(K, 2) and v.shape == K.shape[:1]:
        found = scalar_cones.dual_cone(K.tolist(), v.tolist(), torch.finfo(K.dtype).eps)
        if found is not None:
            return scalar.answer("dual_cone", K.dtype, *found)
    batch = torch.broadcast_shapes(K.shape[:-2], v.shape[:-1])
    p = scale(K.expand(*batch, *K.shape[-2:]))
    start = v.detach().double().expand(*batch, v.shape[-1]).reshape(p.norms.shape) * p.norms
    x, count = nonneg_qp(p.R, -mv(p.R, start), p.on_cpu)
    w = torch.where(p.zero, v.detach().double().expand(*batch, v.shape[-1]).reshape(x.shape), (start + x) / p.safe)
    slope = mv(p.K, w) / p.safe
    total = (w.abs() * p.norms).sum(-1, keepdim=True)
    total = total.masked_fill(total == 0, 1.0)
    gap = (torch.minimum(x, slope) / total).masked_fill(p.zero, 0.0).abs().amax(-1)
    value = (w * mv(p.K, w)).sum(-1)
    stationary = value <= p.rounding * total.squeeze(-1).square()
    return p.out(w), p.certify("dual_cone", gap, count, stationary)
