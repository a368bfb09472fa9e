"""One exact proximal step of the player on the KL ball around uniform."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mtl.solvers.certificate import TOLERANCE, Array, Certificate, back, certificate, host


@dataclass(frozen=True)
class KLStep:
    """The new player: `p` and `log_p` (..., T), the multiplier `lam` >= 0 (inf at rho = 0), the certificate."""

    p: Tensor
    log_p: Tensor
    lam: Tensor
    certificate: Certificate


def kl_to_uniform(log_p: Tensor) -> Tensor:
    """KL(p || uniform) = log T + sum_t p_t log p_t, without cancellation near the uniform p."""
    return back(_kl(host(log_p)), log_p)


def _kl(log_p: Array) -> Array:
    s = np.maximum(log_p, -800) + math.log(log_p.shape[-1])
    excess = np.expm1(s)  # T p - 1
    found: Array = np.maximum(((1 + excess) * s - excess).sum(-1) / log_p.shape[-1], 0)
    return found


def _tilt(a: Array, k: Array) -> Array:
    """log p with p proportional to exp(k a), max a = 0."""
    found: Array = k * a
    found -= np.log(np.exp(found).sum(1, keepdims=True))
    return found


def _root(a: Array, rho: float, steps: int = 60) -> tuple[Array, int]:
    """k in (0, 1] with KL(p_k || uniform) = rho, k (B, 1), for log q = a with maximum 0 outside the ball; steps taken.

    Newton on the root of KL, which is nearly linear in k while p is near the uniform one, between bounds:
    k >= sqrt(8 rho)/range(a) (Hoeffding), k <= 1.
    """
    low = np.minimum(math.sqrt(8 * rho) / np.maximum(-a.min(1, keepdims=True), 1e-300), 1)
    high, k, step = np.ones_like(low), low, 0
    for step in range(1, steps):
        log_p = _tilt(a, k)
        kl = _kl(log_p)[:, None]
        gap = kl - rho
        if (np.abs(gap) <= 4e-16 * (rho + math.log(a.shape[1]) * (rho > 1e-3))).all():
            break
        p = np.exp(log_p)
        mean = (p * a).sum(1, keepdims=True)
        slope = k * (p * (a - mean) ** 2).sum(1, keepdims=True)
        low, high = np.where(gap < 0, k, low), np.where(gap < 0, high, k)
        root = np.sqrt(kl)
        trial = k - 2 * root * gap / ((math.sqrt(rho) + root) * slope)
        k = np.where((low < trial) & (trial < high), trial, np.sqrt(low * high))
    return k, step


@lru_cache(maxsize=64)
def _edge(rho: float) -> float:
    """Log odds of the outermost p of two tasks in the ball; infinite where that is the whole simplex."""
    if rho >= math.log(2):
        return math.inf
    return 800 * float(_root(np.array([[0.0, -800.0]]), rho, 200)[0].item())


@np.errstate(all="ignore")
def kl_ball_step(log_p: Tensor, payoff: Tensor, eta: float, rho: float) -> KLStep:
    """argmax over {p : KL(p||uniform) <= rho} of eta <payoff, p> - KL(p||p_old), in logarithms.

    Mao et al. (ACL 2021), algorithm 2; EMTL (arXiv 2306.09373), eq. 12: p is proportional to q^(1/(1+lam)) with
    log q = log p_old + eta payoff and lam = 0 if that p lies in the ball, else the root of KL = rho. Two tasks: log
    odds cut at those of the ball's edge. Exact for payoffs of 1e8; rho >= log T never binds.
    Residual: relative miss of KL = rho where the ball binds, else the excess over rho.

    Args:
        log_p: logarithm of the present player (..., T).
        payoff: what each task pays (..., T).
        eta: step size, >= 0.
        rho: radius of the ball, >= 0.

    Raises:
        ValueError: eta or rho is negative or not finite.

    >>> step = kl_ball_step(torch.zeros(2).log_softmax(-1), torch.tensor([0.0, 1e8]), eta=0.5, rho=0.3)
    >>> bool(step.certificate.converged), round(float(kl_to_uniform(step.log_p.double())), 6)
    (True, 0.3)
    """
    for name, value in (("eta", eta), ("rho", rho)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: must be finite and >= 0, found {value}")
    whole = np.maximum(host(log_p), -1e15) + eta * host(payoff)
    batch, T = whole.shape[:-1], whole.shape[-1]
    a = whole.reshape(-1, T)
    a = a - a.max(1, keepdims=True)
    k, steps = np.ones((len(a), 1)), 0
    if rho == 0:
        k[:], binding = 0, np.ones(len(a), bool)
    elif T == 2:
        odds = -a.min(1, keepdims=True)
        binding = (odds > _edge(rho))[:, 0]
        k = np.where(binding[:, None], _edge(rho) / odds, 1.0)
    else:
        binding = _kl(_tilt(a, k)) > rho
        if binding.all():
            k, steps = _root(a, rho)
        elif binding.any():
            k[binding], steps = _root(a[binding], rho)
    new = _tilt(a, k)
    miss = _kl(new) - rho
    miss = np.where(binding, np.abs(miss), np.maximum(miss, 0)) / (rho or 1.0)
    proof = certificate("kl_ball", batch, miss, steps, miss <= TOLERANCE, np.zeros(len(a), bool))
    lam = back((1 / k - 1).reshape(batch), log_p)
    return KLStep(back(np.exp(new).reshape(whole.shape), log_p), back(new.reshape(whole.shape), log_p), lam, proof)
