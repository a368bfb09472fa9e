"""A net of messages on molecules, as the peers train on QM9: NNConv, GRU and Set2Set of PyTorch Geometric.

The peers' atoms have 11 features (element, atomic number, aromaticity, hybridisation, hydrogens), their edges 5 (bond
type, distance). Neither source of ours gives bonds: atoms are told by their element, edges by the distance alone.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl import lacking
from mtl.models.base import Branched, SingleTask, seeded

KINDS = 5  # H, C, N, O, F
NEAR, FAR, CENTRES = 0.9, 12.0, 16  # angstrom: a bond's length is told from another's, and the far end of a molecule
STEPS = 3  # of messages, and of the pooling


def installed() -> tuple[Any, Any]:
    """NNConv and Set2Set; ModuleNotFoundError, which names the extra, where PyTorch Geometric is not installed."""
    try:
        from torch_geometric.nn import NNConv, Set2Set
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(f"mtl.models.messages {lacking(missing)}", name=missing.name) from missing
    return NNConv, Set2Set


def edges(kind: Tensor, pos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Complete graphs of padded molecules: ends (2, E) of both directions of each pair, features (E, 16), rows (A,).

    kind (B, N) is 0 to 4, or below 0 where no atom is; pos (B, N, 3) in angstrom. Atoms are counted through the batch,
    and rows says which molecule each is of. Feature k of an edge of length r is exp(-(ln(r / c_k) / s)^2), with
    s = ln(c_{k+1} / c_k) for 16 centres c_k from .9 to 12. On a GPU the number of edges is waited for.

    >>> kind = torch.tensor([[3, 0, 0], [1, -1, -1], [2, 2, -1]])
    >>> ends, features, rows = edges(kind, torch.randn(3, 3, 3))
    >>> ends.tolist(), features.shape, rows.tolist()
    ([[0, 0, 1, 1, 2, 2, 4, 5], [1, 2, 0, 2, 0, 1, 5, 4]], torch.Size([8, 16]), [0, 0, 0, 1, 2, 2])
    """
    there = kind >= 0
    apart = ~torch.eye(kind.shape[1], dtype=torch.bool, device=kind.device)
    row, one, other = (there[:, :, None] & there[:, None] & apart).nonzero(as_tuple=True)
    number = there.flatten().cumsum(0).view_as(there) - 1
    far = (pos[row, one] - pos[row, other]).norm(dim=-1).clamp(min=1e-3).log()
    low, high = math.log(NEAR), math.log(FAR)
    centres = torch.linspace(low, high, CENTRES, dtype=pos.dtype, device=pos.device)
    features = (-((far[:, None] - centres) * ((CENTRES - 1) / (high - low))).square()).exp()
    return torch.stack([number[row, one], number[row, other]]), features, there.nonzero(as_tuple=True)[0]


class Messages(nn.Module):
    """Kinds (B, N) and places (B, N, 3) of atoms to (B, 2 width), whatever their order, direction and place.

    h_i = relu(W x_i); three times h_i = GRU(relu(mean_j A(e_ij) h_j), h_i) over all j != i of the molecule, A being a
    perceptron from an edge's features to a matrix (width, width); then Set2Set over the atoms of each molecule.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        conv, pool = installed()
        self.first = nn.Linear(KINDS, width)
        matrix = nn.Sequential(nn.Linear(CENTRES, hidden), nn.ReLU(), nn.Linear(hidden, width * width))
        self.conv = conv(width, width, matrix, aggr="mean", root_weight=False)
        self.gru = nn.GRUCell(width, width)
        self.pool = pool(width, processing_steps=STEPS)

    def forward(self, kind: Tensor, pos: Tensor) -> Tensor:
        ends, features, rows = edges(kind, pos)
        h = self.first(F.one_hot(kind[kind >= 0].long(), KINDS).to(pos.dtype)).relu()
        for _ in range(STEPS):
            h = self.gru(self.conv(h, ends, features).relu(), h)
        pooled: Tensor = self.pool(h, rows, dim_size=len(kind))
        return pooled


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))


def messages(tasks: int, *, width: int, hidden: int, seed: int) -> Branched:
    """A net of messages for all tasks, one hidden layer and one number per task; `hidden` is of A's perceptron."""
    with seeded(seed):
        return Branched(Messages(width, hidden), [_head(width) for _ in range(tasks)])


def messages_single_task(tasks: int, *, width: int, hidden: int, seed: int) -> SingleTask:
    """STL: one net of the same shape per task."""
    with seeded(seed):
        return SingleTask([Branched(Messages(width, hidden), [_head(width)]) for _ in range(tasks)])
