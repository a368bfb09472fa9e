"""Dense prediction: SegNet with one head per task, MTAN on SegNet, a small U-Net, and one net per task.

SegNet (Badrinarayanan et al. 2017) is an encoder-decoder whose decoder unpools with the encoder's own
maxima. MTAN (Liu, Johns, Davison 2019) puts one attention branch per task on one shared SegNet: at each
level the branch sees the shared features, answers with a mask in (0, 1), and goes on with mask * features.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl.models.base import MultiTaskModel, SingleTask, seeded
from mtl.models.unet import UNet

CONVS = (2, 2, 3, 3, 3)  # convolutions per level of SegNet, those of VGG-16
MODELS = ("mtan", "segnet", "single-task", "unet", "single-task-unet")


def channels(width: int, depth: int) -> list[int]:
    """Channels per level: doubled at each level, at most 8 times the first.

    >>> channels(64, 5)
    [64, 128, 256, 512, 512]
    """
    if width < 1 or not 2 <= depth <= len(CONVS):
        raise ValueError(f"width and depth must be >= 1 and in 2..{len(CONVS)}, found {width} and {depth}")
    return [width * min(2**level, 8) for level in range(depth)]


def _conv(n_in: int, n_out: int) -> nn.Sequential:
    # no bias: the normalisation that follows would take it out again
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


def _convs(n: int, repeat: int) -> nn.Sequential:
    return nn.Sequential(*(_conv(n, n) for _ in range(repeat)))


def _mask(n_in: int, n_out: int) -> nn.Sequential:
    first = (nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))
    return nn.Sequential(*first, nn.Conv2d(n_out, n_out, 1, bias=False), nn.BatchNorm2d(n_out), nn.Sigmoid())


class Head(nn.Module):
    """Two convolutions without a non-linearity between them; `unit` scales the output to length one."""

    def __init__(self, n_in: int, n_out: int, unit: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(n_in, n_in, 3, padding=1), nn.Conv2d(n_in, n_out, 1))
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        # float32 also under autocast; with the default eps a pixel of zeros, which dead units and zero biases do
        # give, would have a gradient of 1e12
        return F.normalize(y.float(), dim=1, eps=1e-3) if self.unit else y


class Trunk(nn.Module):
    """SegNet without a head, (B, 3, H, W) -> what each level saw.

    The result is flat: per encoder level the first and the last convolution, per decoder level the unpooled
    input and the last convolution; levels from full resolution down, the decoder's after the encoder's.

    >>> [tuple(t.shape) for t in Trunk(4, 2)(torch.zeros(1, 3, 6, 8))]
    [(1, 4, 6, 8), (1, 4, 6, 8), (1, 8, 3, 4), (1, 8, 3, 4), (1, 4, 6, 8), (1, 4, 6, 8), (1, 8, 3, 4), (1, 4, 3, 4)]
    """

    def __init__(self, width: int = 64, depth: int = 5) -> None:
        super().__init__()
        self.f = f = channels(width, depth)
        above = [f[max(i - 1, 0)] for i in range(depth)]
        self.enter = nn.ModuleList(_conv(f[i - 1] if i else 3, f[i]) for i in range(depth))
        self.encode = nn.ModuleList(_convs(f[i], CONVS[i] - 1) for i in range(depth))
        self.leave = nn.ModuleList(_conv(f[i], above[i]) for i in range(depth))
        self.decode = nn.ModuleList(_convs(above[i], CONVS[i] - 1) for i in range(depth))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        encoder: list[Tensor] = []
        maxima: list[Tensor] = []
        for enter, encode in zip(self.enter, self.encode, strict=True):
            first = enter(x)
            last = encode(first)
            encoder += [first, last]
            x, where = F.max_pool2d(last, 2, 2, return_indices=True)
            maxima.append(where)
        decoder: list[Tensor] = []
        for i in reversed(range(len(self.f))):
            size = list(encoder[2 * i].shape[-2:])  # pooling drops an odd last row, and unpooling must know
            unpooled = F.max_unpool2d(x, maxima[i], [2, 2], [2, 2], output_size=size)
            x = self.decode[i](self.leave[i](unpooled))
            decoder = [unpooled, x, *decoder]
        return *encoder, *decoder


class SegNet(MultiTaskModel):
    """One SegNet for all tasks, one small head per task.

    `channels_out` are the outputs per task; `unit` says which of them are directions (surface normals).

    >>> net = SegNet((13, 1, 3), unit=(False, False, True), width=4, depth=3)
    >>> [tuple(y.shape) for y in net(torch.zeros(2, 3, 18, 24))]
    [(2, 13, 18, 24), (2, 1, 18, 24), (2, 3, 18, 24)]
    """

    def __init__(self, channels_out: Sequence[int], unit: Sequence[bool], width: int = 64, depth: int = 5) -> None:
        super().__init__()
        self.trunk = Trunk(width, depth)
        self.heads = nn.ModuleList(Head(width, n, u) for n, u in zip(channels_out, unit, strict=True))

    def features(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (self.trunk(*inputs)[2 * len(self.trunk.f) + 1],)

    def outputs(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        return [head(features[0]) for head in self.heads]

    def head_parameters(self) -> list[list[nn.Parameter]]:
        return [list(head.parameters()) for head in self.heads]


class Branch(nn.Module):
    """What MTAN gives to one task: a mask per encoder and decoder level, and the prediction."""

    def __init__(self, f: list[int], n_out: int, unit: bool) -> None:
        super().__init__()
        above = [f[max(i - 1, 0)] for i in range(len(f))]
        self.encode = nn.ModuleList(_mask(2 * f[i] if i else f[0], f[i]) for i in range(len(f)))
        self.decode = nn.ModuleList(_mask(f[i] + above[i], above[i]) for i in range(len(f)))
        self.head = Head(f[0], n_out, unit)


class MTAN(MultiTaskModel):
    """Multi-task attention network on one shared SegNet (Liu, Johns, Davison; CVPR 2019; arXiv 1803.10704).

    Shared are the SegNet and the convolutions (`down`, `up`) that carry masked features from level to level;
    a task's own are its masks and its head. `official_split=True` counts the masks among the shared
    parameters, as the code behind the published tables does: their gradients then add to the diagonal of the
    Gram matrix. The network is the same. `features` are all levels of the SegNet; `down` and `up` lie behind
    them, so gradients with respect to the features do not reach every shared parameter.

    >>> net = MTAN((13, 1, 3), unit=(False, False, True), width=4, depth=3)
    >>> [tuple(y.shape) for y in net(torch.zeros(2, 3, 18, 24))]
    [(2, 13, 18, 24), (2, 1, 18, 24), (2, 3, 18, 24)]
    """

    def __init__(
        self,
        channels_out: Sequence[int],
        unit: Sequence[bool],
        width: int = 64,
        depth: int = 5,
        official_split: bool = False,
    ) -> None:
        super().__init__()
        self.official_split = official_split
        self.trunk = Trunk(width, depth)
        f = self.trunk.f
        self.down = nn.ModuleList(_conv(f[i], f[min(i + 1, depth - 1)]) for i in range(depth))
        self.up = nn.ModuleList(_conv(f[i], f[max(i - 1, 0)]) for i in range(depth))
        self.branches = nn.ModuleList(Branch(f, n, u) for n, u in zip(channels_out, unit, strict=True))

    def features(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return cast(tuple[Tensor, ...], self.trunk(*inputs))

    def outputs(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        return [self._follow(cast(Branch, branch), features) for branch in self.branches]

    def _follow(self, branch: Branch, seen: tuple[Tensor, ...]) -> Tensor:
        levels = len(self.trunk.f)
        pairs = list(zip(seen[::2], seen[1::2], strict=True))
        z = seen[0][:, :0]  # nothing yet
        for i, (first, last) in enumerate(pairs[:levels]):
            mask = branch.encode[i](torch.cat((first, z), 1) if i else first)
            z = F.max_pool2d(self.down[i](mask * last), 2, 2)
        for i, (unpooled, last) in reversed(list(enumerate(pairs[levels:]))):
            z = F.interpolate(z, size=last.shape[-2:], mode="bilinear", align_corners=True)
            z = branch.decode[i](torch.cat((unpooled, self.up[i](z)), 1)) * last
        return cast(Tensor, branch.head(z))

    def head_parameters(self) -> list[list[nn.Parameter]]:
        own = [cast(Branch, b).head if self.official_split else b for b in self.branches]
        return [list(module.parameters()) for module in own]


def dense_model(
    name: str,
    channels_out: Sequence[int],
    unit: Sequence[bool],
    *,
    seed: int,
    width: int = 64,
    depth: int = 5,
    official_split: bool = False,
    stride: int = 1,
    start: Sequence[float] | None = None,
) -> MultiTaskModel:
    """A network of `MODELS`, initialised from `seed`: SegNets with Xavier-normal convolutions and zero biases.

    "single-task" is one whole SegNet per task, trained side by side with nothing shared, "single-task-unet" one UNet;
    `stride` and `start` are the latter's.

    >>> dense_model("resnet", (13,), (False,), seed=0)
    Traceback (most recent call last):
    ...
    ValueError: model must be one of mtan, segnet, single-task, unet, single-task-unet, found 'resnet'
    """
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, found {name!r}")
    net: MultiTaskModel
    with seeded(seed):
        if name == "unet":
            return UNet(channels_out, unit, width, depth, stride, start)
        if name == "single-task-unet":
            each = zip(channels_out, unit, start or [0.0] * len(unit), strict=True)
            return SingleTask([UNet((n,), (u,), width, depth, stride, (b,)) for n, u, b in each])
        if name == "mtan":
            net = MTAN(channels_out, unit, width, depth, official_split)
        elif name == "segnet":
            net = SegNet(channels_out, unit, width, depth)
        else:
            net = SingleTask([SegNet((n,), (u,), width, depth) for n, u in zip(channels_out, unit, strict=True)])
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return net
