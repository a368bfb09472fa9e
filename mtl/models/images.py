"""A plain convolutional net for small photographs with many attributes."""

from torch import Tensor, nn

from mtl.models.base import Branched, SingleTask, seeded


class Bytes(nn.Module):
    """Pictures of bytes (B, 3, H, W) as numbers in [0, 1]: kept as bytes they take a quarter of the memory."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float() / 255


def _trunk(width: int, hidden: int) -> nn.Sequential:
    layers: list[nn.Module] = [Bytes()]
    channels = 3
    for level in range(4):  # 64 x 64 pixels become 4 x 4
        for _ in range(2):
            own = width * 2 ** min(level, 2)
            layers += [nn.Conv2d(channels, own, 3, padding=1, bias=False), nn.BatchNorm2d(own), nn.ReLU(inplace=True)]
            channels = own
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, hidden), nn.ReLU())


def nine_layers(tasks: int, *, width: int, hidden: int, seed: int) -> Branched:
    """Eight convolutions in four levels and one hidden layer, shared; a logit per task. Nine layers, as FAMO tells.

    Its widths are ours: FAMO's text gives the number of layers alone.

    >>> import torch
    >>> [y.shape for y in nine_layers(2, width=4, hidden=8, seed=0)(torch.zeros(5, 3, 64, 64))]
    [torch.Size([5]), torch.Size([5])]
    """
    with seeded(seed):
        return Branched(_trunk(width, hidden), [nn.Linear(hidden, 1) for _ in range(tasks)])


def nine_layers_single_task(tasks: int, *, width: int, hidden: int, seed: int) -> SingleTask:
    """STL: one net of the same shape per task."""
    with seeded(seed):
        return SingleTask([Branched(_trunk(width, hidden), [nn.Linear(hidden, 1)]) for _ in range(tasks)])
