"""Policy and twin critics for control: multilayer perceptrons that are told the task as a one-hot vector."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl.models.base import seeded

LOG_STD = (-5.0, 2.0)  # as CleanRL's SAC has it


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    middle = nn.Linear(width, width)
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), middle, nn.ReLU(), nn.Linear(width, outputs))


class Actor(nn.Module):
    """Observation with task id (B, D + T) to a Gaussian squashed by tanh; every parameter is shared by all tasks."""

    def __init__(self, inputs: int, actions: int, width: int, seed: int) -> None:
        super().__init__()
        with seeded(seed):
            self.net = _mlp(inputs, width, 2 * actions)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation before the tanh, (B, A) each."""
        mean, spread = self.net(seen).chunk(2, -1)
        low, high = LOG_STD
        return mean, low + 0.5 * (high - low) * (torch.tanh(spread) + 1)

    def sample(self, seen: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (B, A) in (-1, 1) for standard normal noise, and their log densities (B,).

        log p = log N(x) - sum log(1 - tanh(x)^2), the latter as 2 (log 2 - x - softplus(-2 x)), exact for large x.

        >>> actor = Actor(3, 2, 8, seed=0)
        >>> a, logp = actor.sample(torch.zeros(5, 3), torch.zeros(5, 2))
        >>> a.shape, logp.shape
        (torch.Size([5, 2]), torch.Size([5]))
        """
        mean, log_std = self(seen)
        x = mean + log_std.exp() * noise
        normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        return torch.tanh(x), (normal - 2 * (math.log(2) - x - F.softplus(-2 * x))).sum(-1)


class Critics(nn.Module):
    """Two independent estimates of the value of observation with task id (B, D + T) and action (B, A).

    Both nets in one: weights (2, in, out), drawn as nn.Linear draws its own.
    """

    def __init__(self, inputs: int, actions: int, width: int, seed: int) -> None:
        super().__init__()
        sizes = [inputs + actions, width, width, 1]
        with seeded(seed):
            self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
            for own, after in pairwise(sizes):
                self.weights.append(nn.Parameter(torch.empty(2, own, after).uniform_(-1, 1) / own**0.5))
                self.biases.append(nn.Parameter(torch.empty(2, 1, after).uniform_(-1, 1) / own**0.5))

    def forward(self, seen: Tensor, actions: Tensor) -> Tensor:
        """Both values, (2, B)."""
        both = torch.cat([seen, actions], -1)
        hidden = both.expand(2, *both.shape)
        weights, biases = list(self.weights), list(self.biases)
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            hidden = torch.baddbmm(bias, hidden, weight).relu()
        return torch.baddbmm(biases[-1], hidden, weights[-1])[..., 0]
