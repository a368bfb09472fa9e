"""What the benchmarks run: five models of the papers' kind on random data of the papers' shapes.

| | model | tasks | batch |
|---|---|---|---|
| W1 | MMoE, 16 categorical fields (132 ids), 63 numbers, embedding 128, 8 experts | 2 | 2048 rows |
| W2 | PLE, the same input, 4 shared experts and 4 per task | 2 | 2048 rows |
| W3 | MTAN on SegNet | 3 | 2 images of 96 x 128 |
| W4 | shared perceptron, 512 inputs, one linear head per task | 40 | 256 rows |
| W3b | W3 in bfloat16 autocast | 3 | 8 images |
| W5 | Table 2's net at scale `gpu`: U-Net of width 64 in bfloat16 autocast | 3 | 8 images |
| W5c | W5 in channels-last layout, as `mtl` trains it on a GPU | 3 | 8 images |
| W1f, W2f | W1 and W2 as `mtl.models` has them: first layer folded | 2 | 2048 rows |

In W1 and W2 every field is looked up, as peers do it.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.experiments.timer import Workload, binary, net
from mtl.models.dense import dense_model
from mtl.models.recsys import PLE, MMoE
from mtl.models.tabular import TabularInput

FIELDS = (8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 10, 10)  # 132 ids; with 63 numbers a row has 195 columns
NUMBERS = 63


def _rows(draw: torch.Generator, count: int, tasks: int, device: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    ids = torch.stack([torch.randint(n, (count,), generator=draw) for n in FIELDS], 1).to(device)
    numbers = torch.randn(count, NUMBERS, generator=draw).to(device)
    return ids, numbers, [torch.rand(count, generator=draw).round().to(device) for _ in range(tasks)]


def unfolded(work: Workload) -> Workload:
    """The same workload with every field looked up."""
    layer = work.model.get_submodule("input")
    assert isinstance(layer, TabularInput)
    plain = TabularInput(layer.vocabulary, NUMBERS, layer.table.embedding_dim, fold=0)
    plain.load_state_dict(layer.state_dict())
    work.model.add_module("input", plain.to(layer.table.weight.device))
    return work


def w1f(device: str = "cpu", rows: int = 2048) -> Workload:
    ids, numbers, targets = _rows(torch.Generator().manual_seed(1), rows, 2, device)
    model = MMoE(FIELDS, NUMBERS, 2, embedding=128, experts=8, width=256, hidden=128, seed=0).to(device)
    return Workload("W1f", model, (ids, numbers), [binary(y) for y in targets])


def w2f(device: str = "cpu") -> Workload:
    ids, numbers, targets = _rows(torch.Generator().manual_seed(1), 2048, 2, device)
    model = PLE(FIELDS, NUMBERS, 2, embedding=128, shared_experts=4, task_experts=4, width=256, hidden=128, seed=0)
    return Workload("W2f", model.to(device), (ids, numbers), [binary(y) for y in targets])


def w3(device: str = "cpu", images: int = 2, net: str = "mtan", width: int = 16, depth: int = 5) -> Workload:
    draw = torch.Generator().manual_seed(1)
    seen = torch.randn(images, 3, 96, 128, generator=draw).to(device)
    classes = torch.randint(13, (images, 96, 128), generator=draw).to(device)
    metres = torch.rand(images, 1, 96, 128, generator=draw).to(device)
    normals = F.normalize(torch.randn(images, 3, 96, 128, generator=draw), dim=1).to(device)
    model = dense_model(net, (13, 1, 3), (False, False, True), seed=0, width=width, depth=depth).to(device)
    criteria: list[Callable[[Tensor], Tensor]] = [
        lambda y: F.cross_entropy(y, classes),
        lambda y: (y - metres).abs().mean(),
        lambda y: 1 - (y * normals).sum(1).mean(),
    ]
    return Workload("W3", model, (seen,), criteria)


def w3b(device: str = "cpu") -> Workload:
    return replace(w3(device, images=8), name="W3b", amp=True)


def w5(device: str = "cpu") -> Workload:
    return replace(w3(device, 8, "unet", 64, depth=3), name="W5", amp=True)


def w5c(device: str = "cpu") -> Workload:
    return replace(channels_last(w5(device)), name="W5c")


def channels_last(work: Workload) -> Workload:
    """The same in the layout of convolutions on a GPU."""
    work.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return replace(work, inputs=tuple(x.contiguous(memory_format=torch.channels_last) for x in work.inputs))


def w4(device: str = "cpu") -> Workload:
    return net(40, device=device, name="W4")


def w1(device: str = "cpu") -> Workload:
    return replace(unfolded(w1f(device)), name="W1")


def w2(device: str = "cpu") -> Workload:
    return replace(unfolded(w2f(device)), name="W2")


WORKLOADS: dict[str, Callable[[str], Workload]] = {
    "W1": w1, "W2": w2, "W3": w3, "W3b": w3b, "W4": w4, "W5": w5, "W5c": w5c, "W1f": w1f, "W2f": w2f,
}  # fmt: skip
