"""Small nets for images: an MLP for 8x8 digits, a LeNet for MultiMNIST."""

from torch import Tensor, nn

from mtl.models.base import Branched, SingleTask, seeded


def _mlp_trunk(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())


def _head(inputs: int, hidden: int, outputs: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def mlp(inputs: int, tasks: int, *, width: int, hidden: int, seed: int) -> Branched:
    """Two shared hidden layers, one hidden layer and one logit per task.

    >>> import torch
    >>> [y.shape for y in mlp(64, 2, width=8, hidden=4, seed=0)(torch.zeros(5, 64))]
    [torch.Size([5]), torch.Size([5])]
    """
    with seeded(seed):
        trunk = _mlp_trunk(inputs, width)
        return Branched(trunk, [_head(width, hidden) for _ in range(tasks)])


def mlp_single_task(inputs: int, tasks: int, *, width: int, hidden: int, seed: int) -> SingleTask:
    """STL: one net of the same shape per task."""
    with seeded(seed):
        return SingleTask([Branched(_mlp_trunk(inputs, width), [_head(width, hidden)]) for _ in range(tasks)])


class LeNet(nn.Module):
    """Two convolutions with pooling and one hidden layer: (B, 1, 36, 36) -> (B, width)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(nn.Conv2d(1, channels, 5), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(channels, 2 * channels, 5), nn.MaxPool2d(2), nn.ReLU()),
        )
        self.layer = nn.Linear(2 * channels * 6 * 6, width)

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.layer(self.conv(images).flatten(1)).relu()
        return hidden


def lenet(tasks: int, *, width: int, channels: int, hidden: int, seed: int) -> Branched:
    """A shared LeNet (Sener and Koltun 2018) and per task a head with ten class scores.

    >>> import torch
    >>> [y.shape for y in lenet(2, width=50, channels=10, hidden=50, seed=0)(torch.zeros(5, 1, 36, 36))]
    [torch.Size([5, 10]), torch.Size([5, 10])]
    """
    with seeded(seed):
        return Branched(LeNet(width, channels), [_head(width, hidden, 10) for _ in range(tasks)])


def lenet_single_task(tasks: int, *, width: int, channels: int, hidden: int, seed: int) -> SingleTask:
    """STL: one LeNet with its head per task."""
    with seeded(seed):
        return SingleTask([Branched(LeNet(width, channels), [_head(width, hidden, 10)]) for _ in range(tasks)])
