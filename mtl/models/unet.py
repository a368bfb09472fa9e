"""A small residual encoder-decoder with skips, for images: training on a CPU in minutes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl.models.base import MultiTaskModel


def _conv(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside the identity, or beside a 1 x 1 convolution where the shape changes."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        second = (nn.Conv2d(n_out, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out))
        self.layers = nn.Sequential(_conv(n_in, n_out, stride), *second)
        same = (n_in, stride) == (n_out, 1)
        across = (nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out))
        self.shortcut = nn.Identity() if same else nn.Sequential(*across)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        # a 1 x 1 convolution with a stride is this slice; on some CPUs oneDNN's own writes beyond its memory
        s = self.stride
        return F.relu(self.layers(x) + self.shortcut(x[..., ::s, ::s]))


class UNet(MultiTaskModel):
    """Two strided convolutions, `depth` residual levels, a global context, a decoder with skips, one head per task.

    Level i works at stride 4 * 2^i on width * (i + 1) channels. Outputs are interpolated from stride 4 to the full
    size, in training only to every `stride`-th pixel: the loss there costs a third. Weights are Kaiming-normal, biases
    zero but those of the last layers, which begin at `start`, one number per task. Images (B, 3, H, W) in [0, 1],
    H and W multiples of 4, else ValueError.

    >>> net = UNet((13, 1, 3), unit=(False, False, True))
    >>> sum(p.numel() for p in net.parameters())
    384097
    >>> [tuple(y.shape) for y in net(torch.zeros(2, 3, 32, 48))]
    [(2, 13, 32, 48), (2, 1, 32, 48), (2, 3, 32, 48)]
    """

    def __init__(
        self,
        channels_out: Sequence[int],
        unit: Sequence[bool],
        width: int = 32,
        depth: int = 3,
        stride: int = 1,
        start: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if width < 2 or depth < 1 or stride not in (1, 2, 4):
            found = f"{width}, {depth} and {stride}"
            raise ValueError(f"width, depth and stride: must be >= 2, >= 1 and one of 1, 2, 4, found {found}")
        self.unit, self.stride = tuple(unit), stride
        f = [width * (i + 1) for i in range(depth)]
        self.stem = nn.Sequential(_conv(3, width // 2, 2), _conv(width // 2, width, 2))
        self.down = nn.ModuleList(Residual(f[max(i - 1, 0)], f[i], 2 if i else 1) for i in range(depth))
        self.context = nn.Conv2d(f[-1], f[-1], 1)
        self.up = nn.ModuleList(_conv(f[i + 1] + f[i], f[i]) for i in range(depth - 1))
        self.heads = nn.ModuleList(nn.Sequential(_conv(width, width), nn.Conv2d(width, n, 1)) for n in channels_out)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for head, first in zip(self.heads, start or [0.0] * len(self.heads), strict=True):
            nn.init.constant_(head[-1].bias, first)  # type: ignore[index]

    def features(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        (image,) = inputs
        if image.shape[-2] % 4 or image.shape[-1] % 4:
            raise ValueError(f"image: height and width must be multiples of 4, found {tuple(image.shape[-2:])}")
        x = self.stem((image - 0.45) * 4)
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
        x = x + F.relu(self.context(x.mean((2, 3), keepdim=True)))
        for i in reversed(range(len(self.up))):
            finer = F.interpolate(x, size=skips[i].shape[-2:], mode="nearest")
            x = self.up[i](torch.cat((finer, skips[i]), 1))
        return (x,)

    def outputs(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        factor = 4 // (self.stride if self.training else 1)
        found = []
        for head, unit in zip(self.heads, self.unit, strict=True):
            y = F.interpolate(head(features[0]), scale_factor=factor, mode="bilinear", align_corners=False)
            found.append(F.normalize(y.float(), dim=1, eps=1e-3) if unit else y)
        return found

    def head_parameters(self) -> list[list[nn.Parameter]]:
        return [list(head.parameters()) for head in self.heads]
