"""Named families of task gradients G (T, D) and losses L (T,), each drawn by a seed."""

from collections.abc import Callable

import torch
from torch import Tensor

Family = Callable[[int], Tensor]


def data(T: int = 3, D: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normal gradients and positive losses."""
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(T, D, generator=generator, dtype=torch.float64)
    return G, 0.2 + torch.rand(T, generator=generator, dtype=torch.float64)


def losses(T: int, seed: int = 0) -> Tensor:
    return data(T, 1, seed)[1]


def rank_deficient(seed: int) -> Tensor:
    """Five tasks in three dimensions, all on one side of a plane: not stationary."""
    G = data(5, 3, seed)[0]
    return torch.cat([G[:, :2], G[:, 2:].abs() + 1], 1)


def rank_one(seed: int) -> Tensor:
    """Multiples of one gradient, all in its own direction."""
    return data(4, 1, seed)[0].abs() @ data(1, 8, seed + 1)[0]


def stationary(seed: int) -> Tensor:
    """The gradients' mean with positive weights is zero."""
    G, w = data(3, 8, seed)
    return torch.cat([G, -(w @ G)[None]])


def opposite(seed: int) -> Tensor:
    g = data(1, 8, seed)[0]
    return torch.cat([g, -2 * g])


def twins(seed: int) -> Tensor:
    """Two tasks have the same gradient."""
    G = data(3, 8, seed)[0]
    return torch.cat([G, G[:1]])


def at_rest(seed: int) -> Tensor:
    """One task has no gradient."""
    G = data(3, 8, seed)[0]
    return torch.cat([G, torch.zeros_like(G[:1])])


def ratios(seed: int) -> Tensor:
    """Norms from 1e-3 to 1e3."""
    return data(4, 8, seed)[0] * 10 ** torch.linspace(-3, 3, 4, dtype=torch.float64)[:, None]


def without_conflict(seed: int) -> Tensor:
    return data(4, 8, seed)[0].abs()


FAMILIES: dict[str, Family] = {
    "normal": lambda seed: data(4, 8, seed)[0],
    "many": lambda seed: data(12, 30, seed)[0],
    "rank deficient": rank_deficient,
    "rank one": rank_one,
    "stationary": stationary,
    "opposite": opposite,
    "twins": twins,
    "at rest": at_rest,
    "ratios": ratios,
    "without conflict": without_conflict,
}
