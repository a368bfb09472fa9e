"""One exact proximal step of the player on the KL ball around uniform."""

import math
from dataclasses import dataclass
from functools import lru_cache
from operator import mul
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtl.solvers.certificate import TOLERANCE, Array, Certificate, alone, back, certificate, checked, host
from mtl.solvers.pairs import ONE


@dataclass(frozen=True)
class KLStep:
    """The new player: `p` and `log_p` (..., T), the multiplier `lam` >= 0 (inf at rho = 0), the certificate."""

    p: Tensor
    log_p: Tensor
    lam: Tensor
    certificate: Certificate


def kl_to_uniform(log_p: Tensor) -> Tensor:
    """KL(p || uniform) = log T + sum_t p_t log p_t, without cancellation near the uniform p."""
    return back(_kl(host(log_p)), log_p).reshape(log_p.shape[:-1])


def _kl(log_p: Array) -> Array:
    s = np.maximum(log_p, -800) + math.log(log_p.shape[-1])
    excess = np.expm1(s)  # T p - 1
    found: Array = np.maximum(((1 + excess) * s - excess).sum(-1) / log_p.shape[-1], 0)
    return found


class One:
    """KL of one player p ~ exp(k a), max a = 0, in Python floats."""

    m: Any = ONE

    def __init__(self, a: list[float]) -> None:
        self.a, self.least, self.log_T = a, min(a), math.log(len(a))

    def at(self, k: float, near: bool) -> tuple[float, float]:
        """KL and its slope in k; `near`: without cancellation near the uniform p."""
        a = self.a
        e = [math.exp(k * z) for z in a]
        s, moved = sum(e), list(map(mul, e, a))
        mean = sum(moved) / s
        slope = k * max(sum(map(mul, moved, a)) / s - mean * mean, 0.0)
        return self.kl(self.tilt(k)) if near else self.log_T + k * mean - math.log(s), slope

    def tilt(self, k: float) -> list[float]:
        """log p."""
        log_s = math.log(sum([math.exp(k * z) for z in self.a]))
        return [k * z - log_s for z in self.a]

    def kl(self, log_p: list[float]) -> float:
        found = 0.0
        for x in log_p:
            s = max(x, -800.0) + self.log_T
            excess = math.expm1(s)
            found += (1 + excess) * s - excess
        return max(found / len(log_p), 0.0)


class Many:
    """The same for a batch, a (B, T)."""

    m: Any = np

    def __init__(self, a: Array) -> None:
        self.a, self.least, self.log_T = a, np.minimum.reduce(a, 1), math.log(a.shape[1])

    def at(self, k: Array, near: bool) -> tuple[Array, Array]:
        scaled = k[:, None] * self.a
        e = np.exp(scaled)
        s = np.add.reduce(e, 1)
        mean = np.add.reduce(e * self.a, 1) / s
        slope = k * np.maximum(np.add.reduce(e * self.a * self.a, 1) / s - mean * mean, 0.0)
        return _kl(scaled - np.log(s)[:, None]) if near else self.log_T + k * mean - np.log(s), slope


def _root(game: One | Many, rho: float, steps: int = 60) -> tuple[Any, int]:
    """k in (0, 1] with KL(p_k || uniform) = rho, 1 inside the ball; and the steps taken.

    Newton on the root of KL, which is nearly linear in k while p is near the uniform one, between bounds:
    k >= sqrt(8 rho)/range(a) (Hoeffding), k <= 1.
    """
    near, root, log_T, m = rho <= 1e-4, math.sqrt(rho), game.log_T, game.m

    def at(k: Any) -> tuple[Any, Any]:
        return game.at(k, near)

    low = m.minimum(math.sqrt(8 * rho) / m.maximum(-game.least, 1e-300), 1.0)
    high = low * 0 + 1.0
    inside = at(high)[0] <= rho
    k, step = m.where(inside, 1.0, low), 0
    while step < steps:
        step += 1
        kl, slope = at(k)
        gap = kl - rho
        if m.max(m.where(inside, 0.0, m.abs(gap))) <= 1e-15 * (rho if near else log_T):
            break
        low, high = m.where(gap < 0, k, low), m.where(gap < 0, high, k)
        own = m.sqrt(m.maximum(kl, 0.0))
        trial = k - 2 * own * gap / m.maximum((root + own) * slope, 1e-300)
        k = m.where(inside, 1.0, m.where((low < trial) & (trial < high), trial, m.sqrt(low * high)))
    return k, step


@lru_cache(maxsize=64)
def ball_edge(rho: float) -> float:
    """Log odds of the outermost p of two tasks in the ball of radius rho; infinite where that is the whole simplex.

    >>> round(ball_edge(0.1), 4), ball_edge(0.7)
    (0.9434, inf)
    """
    if rho >= math.log(2):
        return math.inf
    return 800 * float(_root(One([0.0, -800.0]), rho, 200)[0]) if rho > 0 else 0.0


@lru_cache(maxsize=64)
def _edges(rho: Tensor) -> Array:
    """The same for a column of radii; by identity, since it is asked for at every step."""
    return np.array([ball_edge(r) for r in rho.ravel().tolist()])


def kl_ball_step(log_p: Tensor, payoff: Tensor, eta: float | Tensor, rho: float | Tensor) -> KLStep:
    """argmax over {p : KL(p||uniform) <= rho} of eta <payoff, p> - KL(p||p_old), in logarithms.

    Mao et al. (ACL 2021), algorithm 2; EMTL (arXiv 2306.09373), eq. 12: p is proportional to q^(1/(1+lam)) with
    log q = log p_old + eta payoff and lam = 0 if that p lies in the ball, else the root of KL = rho. Two tasks: log
    odds cut at those of the ball's edge. Exact for payoffs of 1e8; rho >= log T never binds.
    Residual: relative miss of KL = rho where the ball binds, else the excess over rho.

    Args:
        log_p: logarithm of the present player (..., T).
        payoff: what each task pays (..., T).
        eta: step size, >= 0; for two tasks also one for each problem, (..., 1).
        rho: radius of the ball, >= 0; likewise.

    Raises:
        ValueError: eta or rho is negative or not finite, or one for each problem of three tasks or more.

    >>> import torch
    >>> step = kl_ball_step(torch.zeros(2).log_softmax(-1), torch.tensor([0.0, 1e8]), eta=0.5, rho=0.3)
    >>> bool(step.certificate.converged), round(float(kl_to_uniform(step.log_p.double())), 6)
    (True, 0.3)
    """
    T = payoff.shape[-1]
    checked("eta", eta, T, zero=True)
    checked("rho", rho, T, zero=True)
    plain = not (isinstance(eta, Tensor) or isinstance(rho, Tensor)) and log_p.ndim == 1 and log_p.shape == payoff.shape
    if plain and (found := _one(log_p, payoff, eta, rho)):  # type: ignore[arg-type]
        return found
    return _many(log_p, payoff, eta, rho)


def _one(log_p: Tensor, payoff: Tensor, eta: float, rho: float) -> KLStep | None:
    """One player; None where log q is not finite."""
    whole = [max(x, -1e15) + eta * y for x, y in zip(log_p.tolist(), payoff.tolist(), strict=True)]
    if not math.isfinite(sum(whole)):
        return None
    top = max(whole)
    game, k, steps = One([x - top for x in whole]), 1.0, 0
    if rho == 0:
        k = 0.0
    elif len(whole) == 2:
        k = min(ball_edge(rho) / max(-game.least, 1e-300), 1.0)
    else:
        k, steps = _root(game, rho)
    new = game.tilt(k)
    miss = game.kl(new) - rho
    miss = (abs(miss) if k < 1 else max(miss, 0.0)) / (rho or 1.0)
    p, proof = alone("kl_ball", log_p, [math.exp(x) for x in new], steps, miss, miss <= TOLERANCE, False, False, None)
    out = torch.tensor(new, dtype=log_p.dtype, device=log_p.device)
    lam = torch.tensor(1 / k - 1 if k else math.inf, dtype=log_p.dtype, device=log_p.device)
    return KLStep(p, out, lam, proof)


@np.errstate(all="ignore")
def _many(log_p: Tensor, payoff: Tensor, eta: float | Tensor, rho: float | Tensor) -> KLStep:
    """Players in a batch (..., T)."""
    step: Any = host(eta) if isinstance(eta, Tensor) else eta
    whole = np.maximum(host(log_p), -1e15) + step * host(payoff)
    a = whole.reshape(-1, whole.shape[-1])
    if a.shape[1] == 2:
        return _two(a, rho, whole.shape, log_p)
    assert not isinstance(rho, Tensor)
    a = a - np.maximum.reduce(a, 1, keepdims=True)
    k, steps = (np.zeros(len(a)), 0) if rho == 0 else _root(Many(a), rho)
    new = k[:, None] * a
    new -= np.log(np.exp(new).sum(1, keepdims=True))
    return _step(new, k, rho, steps, whole.shape, log_p)


def _two(a: Array, rho: float | Tensor, shape: tuple[int, ...], like: Tensor) -> KLStep:
    odds = a[:, 0] - a[:, 1]
    edge = _edges(rho) if isinstance(rho, Tensor) else ball_edge(rho)
    cut = np.minimum(np.maximum(odds, -edge), edge)
    rest, new = np.log1p(np.exp(-np.abs(cut))), np.empty_like(a)
    np.subtract(np.minimum(cut, 0), rest, out=new[:, 0])
    np.subtract(np.minimum(-cut, 0), rest, out=new[:, 1])
    radius = host(rho).ravel() if isinstance(rho, Tensor) else rho
    return _step(new, np.where(cut == odds, 1.0, cut / odds), radius, 0, shape, like)


def _step(new: Array, k: Array, rho: Any, steps: int, shape: tuple[int, ...], like: Tensor) -> KLStep:
    miss = _kl(new) - rho
    miss = np.where(k < 1, np.abs(miss), np.maximum(miss, 0)) / np.where(rho == 0, 1.0, rho)
    proof = certificate("kl_ball", shape[:-1], miss, steps, miss <= TOLERANCE, np.zeros(len(new), bool))
    lam = back((1 / k - 1).reshape(shape[:-1]), like)
    return KLStep(back(np.exp(new).reshape(shape), like), back(new.reshape(shape), like), lam, proof)
