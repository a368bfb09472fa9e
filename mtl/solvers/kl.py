"""One exact proximal step of the player on the KL ball around uniform."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.solvers import scalar
from mtl.solvers.common import Certificate, certify

GRID = 65


@dataclass(frozen=True)
class KLStep:
    """The new player: `p` and `log_p` (..., T), the multiplier `lam` >= 0 (inf at rho = 0), the certificate."""

    p: Tensor
    log_p: Tensor
    lam: Tensor
    certificate: Certificate


def kl_to_uniform(log_p: Tensor) -> Tensor:
    """KL(p || uniform) = log T + sum_t p_t log p_t, without cancellation near the uniform p."""
    s = log_p.clamp_min(-800) + math.log(log_p.shape[-1])
    excess = torch.expm1(s)  # T p - 1
    return ((1 + excess) * s - excess).mean(-1).clamp_min(0)


def _tilt(a: Tensor, k: Tensor) -> Tensor:
    """log p with p proportional to exp(k a)."""
    return torch.log_softmax(k.unsqueeze(-1) * a, -1)


@torch.no_grad()
def kl_ball_step(log_p: Tensor, payoff: Tensor, eta: float, rho: float) -> KLStep:
    """argmax over {p : KL(p||uniform) <= rho} of eta <payoff, p> - KL(p||p_old), in logarithms.

    Mao et al. (ACL 2021), algorithm 2; EMTL (arXiv 2306.09373), eq. 12: p is proportional to q^(1/(1+lam)) with
    log q = log p_old + eta payoff and lam = 0 if that p lies in the ball, else the root of KL = rho. The root is
    found in k = 1/(1+lam): k >= sqrt(8 rho)/range(log q) (Hoeffding) and k <= 1 bracket it, two 64-fold sections in
    log k and safeguarded Newton steps end it. Exact for payoffs of 1e8; rho >= log T never binds.
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
    if scalar.fits(payoff, 1) and log_p.shape == payoff.shape:
        found = _small(log_p, payoff, eta, rho)
        if found is not None:
            return found
    a = log_p.detach().double().clamp_min(-1e15) + eta * payoff.detach().double()
    a = a - a.amax(-1, keepdim=True)
    batch, count = a.shape[:-1], torch.zeros(a.shape[:-1], dtype=torch.long, device=a.device)
    one = torch.ones(batch, dtype=a.dtype, device=a.device)
    early = a.device.type == "cpu" and not torch.compiler.is_compiling()
    if rho == 0:
        k, binding = 0 * one, one.bool()
    else:
        binding = kl_to_uniform(_tilt(a, one)) > rho
        k = one if early and not bool(binding.any()) else torch.where(binding, _root(a, rho, early), one)
        count = count + binding * 2
    new = _tilt(a, k)
    kl = kl_to_uniform(new)
    miss = torch.where(binding, (kl - rho).abs(), (kl - rho).clamp_min(0)) / max(rho, 1e-300 if rho else 1.0)
    proof = certify("kl_ball", miss, count, torch.zeros_like(binding))
    return KLStep(new.exp().to(log_p.dtype), new.to(log_p.dtype), (1 / k - 1).to(log_p.dtype), proof)


def _small(log_p: Tensor, payoff: Tensor, eta: float, rho: float) -> KLStep | None:
    """The same for one small problem on the CPU, in Python floats."""
    a = [x + eta * r for x, r in zip(log_p.tolist(), payoff.tolist(), strict=True)]
    top = max(a)
    found = _small_root([x - top for x in a], rho)
    if found is None:
        return None
    new, k, steps = found
    p = [math.exp(x) for x in new]
    kl = math.log(len(p)) + sum([x * y for x, y in zip(p, new, strict=True)])
    miss = abs(kl - rho) / rho if k < 1 else max(kl - rho, 0.0) / rho
    if not miss < 1e-11:
        return None
    dtype = log_p.dtype
    _, proof = scalar.answer("kl_ball", dtype, p, miss, steps)
    lam = torch.tensor(1 / k - 1, dtype=dtype)
    return KLStep(torch.tensor(p, dtype=dtype), torch.tensor(new, dtype=dtype), lam, proof)


def _small_root(a: list[float], rho: float, steps: int = 40) -> tuple[list[float], float, int] | None:
    """log p ~ k a with KL(p || uniform) = rho, k in (0, 1], or k = 1 inside the ball: log p, k, steps; max a = 0."""
    log_T = math.log(len(a))

    def tilt(k: float) -> tuple[float, float, float]:
        """log sum exp(k a), KL and its derivative in k."""
        e = [math.exp(k * z) for z in a]
        s = sum(e)
        log_s = math.log(s)
        m = sum([x * z for x, z in zip(e, a, strict=True)]) / s
        spread = sum([x * (z - m) ** 2 for x, z in zip(e, a, strict=True)]) / s
        return log_s, log_T + k * m - log_s, k * spread

    if not (1e-6 < rho < math.inf) or not all(math.isfinite(z) for z in a):
        return None  # KL by differences loses too many digits
    log_s, kl, slope = tilt(1.0)
    if kl <= rho:
        return [z - log_s for z in a], 1.0, 0
    low, high = min(1.0, math.sqrt(8 * rho) / -min(a)), 1.0
    k = low
    for step in range(1, steps):
        log_s, kl, slope = tilt(k)
        if abs(kl - rho) <= 1e-15 * (1 + log_T):
            return [k * z - log_s for z in a], k, step
        low, high = (k, high) if kl < rho else (low, k)
        root = 2 * math.sqrt(max(kl, 0.0)) * (math.sqrt(rho) - math.sqrt(max(kl, 0.0)))  # Newton on sqrt KL
        trial = k + root / slope if slope > 0 else -1.0
        k = trial if low < trial < high else math.sqrt(low * high)
    return None


def _root(a: Tensor, rho: float, early: bool) -> Tensor:
    """k in (0, 1] with KL(p_k || uniform) = rho, for log q = a with maximum 0."""
    spread = (-a.amin(-1)).clamp_min(1e-300)
    low = (math.sqrt(8 * rho) / spread).clamp(max=1.0).log()
    high = torch.zeros_like(low)
    unit = torch.linspace(0, 1, GRID, dtype=a.dtype, device=a.device)
    for _ in range(2):
        grid = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * unit
        below = (kl_to_uniform(_tilt(a.unsqueeze(-2), grid.exp())) < rho).sum(-1).clamp(1, GRID - 1)
        high = grid.gather(-1, below.unsqueeze(-1)).squeeze(-1)
        low = grid.gather(-1, below.unsqueeze(-1) - 1).squeeze(-1)
    k, left, right = (0.5 * (low + high)).exp(), low.exp(), high.exp()
    for _ in range(12 if early else 6):
        log_p = _tilt(a, k)
        p = log_p.exp()
        kl = kl_to_uniform(log_p)
        left, right = torch.where(kl < rho, k, left), torch.where(kl < rho, right, k)
        if early and bool(((kl - rho).abs() <= 1e-14 * rho).all()):
            break
        variance = (p * (a - (p * a).sum(-1, keepdim=True)).square()).sum(-1)
        step = k - (kl - rho) / (k * variance).clamp_min(1e-300)
        k = torch.where(step.isfinite(), step.clamp(left, right), 0.5 * (left + right))
    return k
