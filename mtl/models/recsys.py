"""Models for tables of categorical and numerical fields: single-task, shared bottom, MMoE, PLE, DCN."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl.models.base import Branched, MultiTaskModel, SingleTask, seeded
from mtl.models.tabular import Read, TabularInput


def tower(inputs: int, hidden: int) -> nn.Sequential:
    """One hidden layer and one logit."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))


class Experts(nn.Module):
    """E single-layer ReLU experts as one product, (B, E, H), of what `read` takes its linear map."""

    def __init__(self, inputs: int, count: int, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, count * width)
        self.shape = (count, width)

    def forward(self, read: Read) -> Tensor:
        return F.relu(read(self.layer), inplace=True).unflatten(1, self.shape)  # the map is nobody else's


def mix(gate: Tensor, experts: Tensor) -> Tensor:
    """sum_e softmax(gate)_e expert_e: gate logits (B, E), experts (B, E, H) -> (B, H)."""
    return torch.bmm(gate.softmax(1).unsqueeze(1), experts).squeeze(1)


def apply(h: Tensor, layer: nn.Linear) -> Tensor:
    """layer(h), in the order of arguments that makes a `Read` of it."""
    y: Tensor = layer(h)
    return y


def inner(modules: nn.ModuleList, level: int) -> nn.ModuleList:
    """The list of a level: torch's own annotation forgets what a ModuleList holds."""
    found = modules[level]
    assert isinstance(found, nn.ModuleList)
    return found


def linears(modules: nn.ModuleList) -> list[nn.Linear]:
    """The same for layers."""
    return [layer for layer in modules if isinstance(layer, nn.Linear)]


class MMoE(MultiTaskModel):
    """Multi-gate mixture of experts (Ma et al. 2018): y_t = tower_t(sum_e softmax(G_t x)_e f_e(x)).

    Shared: embeddings and experts. Task t's own: gate t and tower t. `features` returns the code of x and the
    experts' outputs, since gates read x.

    >>> net = MMoE([3, 5], numericals=2, tasks=2, embedding=4, experts=8, width=16, hidden=8, seed=0)
    >>> [y.shape for y in net(torch.zeros(7, 2, dtype=torch.int32), torch.ones(7, 2))]
    [torch.Size([7]), torch.Size([7])]
    """

    def __init__(
        self,
        vocabulary: Sequence[int],
        numericals: int,
        tasks: int,
        *,
        embedding: int,
        experts: int = 8,
        width: int,
        hidden: int,
        seed: int,
    ) -> None:
        super().__init__()
        with seeded(seed):
            self.input = TabularInput(vocabulary, numericals, embedding)
            self.experts = Experts(self.input.width, experts, width)
            self.gates = nn.ModuleList(nn.Linear(self.input.width, experts) for _ in range(tasks))
            self.towers = nn.ModuleList(tower(width, hidden) for _ in range(tasks))

    def features(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        code = self.input.encode(*inputs)
        return (*code, self.experts(partial(self.input.linear, code)))

    def outputs(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        *code, experts = features
        gates = [self.input.linear(tuple(code), gate) for gate in linears(self.gates)]
        return [net(mix(gate, experts)).squeeze(1) for gate, net in zip(gates, self.towers, strict=True)]

    def head_parameters(self) -> list[list[nn.Parameter]]:
        pairs = zip(self.gates, self.towers, strict=True)
        return [[*gate.parameters(), *net.parameters()] for gate, net in pairs]


class PLE(MultiTaskModel):
    """Progressive layered extraction (Tang et al. 2020): own experts per task beside the shared ones.

    At each level task t mixes its own and the shared experts; below the last level a further gate mixes all
    experts into the shared stream of the next, so that experts there reach every task's loss. Everything below
    the last level counts as shared (with it the gates there, though the last of them serve one task each); a
    task owns its experts and gate of the last level, and its tower. With levels=1 this is CGC.

    >>> net = PLE([3, 5], numericals=2, tasks=2, embedding=4, width=16, hidden=8, levels=2, seed=0)
    >>> [y.shape for y in net(torch.zeros(7, 2, dtype=torch.int32), torch.ones(7, 2))]
    [torch.Size([7]), torch.Size([7])]
    """

    def __init__(
        self,
        vocabulary: Sequence[int],
        numericals: int,
        tasks: int,
        *,
        embedding: int,
        shared_experts: int = 4,
        task_experts: int = 4,
        levels: int = 1,
        width: int,
        hidden: int,
        seed: int,
    ) -> None:
        super().__init__()
        if levels < 1:
            raise ValueError(f"levels must be at least 1, found {levels}")
        own, common = task_experts, shared_experts
        with seeded(seed):
            self.input = TabularInput(vocabulary, numericals, embedding)
            widths = [self.input.width] + [width] * (levels - 1)
            self.shared = nn.ModuleList(Experts(w, common, width) for w in widths)
            self.own = nn.ModuleList(nn.ModuleList(Experts(w, own, width) for _ in range(tasks)) for w in widths)
            self.gates = nn.ModuleList(nn.ModuleList(nn.Linear(w, own + common) for _ in range(tasks)) for w in widths)
            self.up = nn.ModuleList(nn.Linear(w, tasks * own + common) for w in widths[:-1])
            self.towers = nn.ModuleList(tower(width, hidden) for _ in range(tasks))

    def features(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        code = self.input.encode(*inputs)
        common: Read = partial(self.input.linear, code)
        reads, streams = [common] * len(self.towers), list(code)
        for level, up in enumerate(linears(self.up)):
            own, shared = self._experts(level, reads), self.shared[level](common)
            gates = [read(gate) for gate, read in zip(self._gates(level), reads, strict=True)]
            streams = [mix(g, torch.cat([e, shared], 1)) for g, e in zip(gates, own, strict=True)]
            common = partial(apply, mix(common(up), torch.cat([*own, shared], 1)))
            reads = [partial(apply, h) for h in streams]
        return (*streams, self.shared[-1](common))

    def outputs(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        *streams, shared = features
        reads: list[Read] = [partial(apply, h) for h in streams]
        if not len(self.up):  # at one level all tasks read x itself
            reads = [partial(self.input.linear, tuple(streams))] * len(self.towers)
        own = self._experts(-1, reads)
        gates = [read(gate) for gate, read in zip(self._gates(-1), reads, strict=True)]
        mixed = [mix(g, torch.cat([e, shared], 1)) for g, e in zip(gates, own, strict=True)]
        return [net(h).squeeze(1) for net, h in zip(self.towers, mixed, strict=True)]

    def head_parameters(self) -> list[list[nn.Parameter]]:
        parts = zip(inner(self.own, -1), self._gates(-1), self.towers, strict=True)
        return [[p for part in task for p in part.parameters()] for task in parts]

    def _experts(self, level: int, reads: Sequence[Read]) -> list[Tensor]:
        return [experts(read) for experts, read in zip(inner(self.own, level), reads, strict=True)]

    def _gates(self, level: int) -> list[nn.Linear]:
        return linears(inner(self.gates, level))


class Bottom(nn.Module):
    """Embeddings and one wide hidden layer."""

    def __init__(self, vocabulary: Sequence[int], numericals: int, embedding: int, width: int) -> None:
        super().__init__()
        self.input = TabularInput(vocabulary, numericals, embedding)
        self.layer = nn.Linear(self.input.width, width)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        return F.relu(self.input.linear(self.input.encode(ids, numbers), self.layer))


def shared_bottom(
    vocabulary: Sequence[int],
    numericals: int,
    tasks: int,
    *,
    embedding: int,
    experts: int = 8,
    width: int,
    hidden: int,
    seed: int,
) -> Branched:
    """Hard sharing with the first layer as wide as MMoE's experts together, one tower per task."""
    with seeded(seed):
        trunk = Bottom(vocabulary, numericals, embedding, experts * width)
        return Branched(trunk, [tower(experts * width, hidden) for _ in range(tasks)])


def single_task(
    vocabulary: Sequence[int],
    numericals: int,
    tasks: int,
    *,
    embedding: int,
    experts: int = 8,
    width: int,
    hidden: int,
    seed: int,
) -> SingleTask:
    """STL: one net of the shared-bottom shape per task, each with its own embeddings."""
    nets = []
    with seeded(seed):
        for _ in range(tasks):
            trunk = Bottom(vocabulary, numericals, embedding, experts * width)
            nets.append(Branched(trunk, [tower(experts * width, hidden)]))
    return SingleTask(nets)


class CrossAndDeep(nn.Module):
    """Deep & cross network (Wang et al. 2017): x_{l+1} = x_0 (x_l^T w_l) + b_l + x_l beside a perceptron on x_0."""

    def __init__(self, vocabulary: Sequence[int], numericals: int, embedding: int, cross: int, widths: tuple[int, int]):
        super().__init__()
        self.input = TabularInput(vocabulary, numericals, embedding)
        self.cross = nn.ModuleList(nn.Linear(self.input.width, 1, bias=False) for _ in range(cross))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(self.input.width)) for _ in range(cross))
        self.first, self.second = nn.Linear(self.input.width, widths[0]), nn.Linear(*widths)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        # the cross layers multiply x itself, so it must be built here; the deep part still reads its code
        start = x = self.input(ids, numbers)
        for layer, bias in zip(self.cross, self.biases, strict=True):
            x = torch.addcmul(x + bias, start, layer(x))
        deep = F.relu(self.input.linear(self.input.encode(ids, numbers), self.first))
        return torch.cat([x, F.relu(self.second(deep))], 1)


def dcn(
    vocabulary: Sequence[int],
    numericals: int,
    tasks: int,
    *,
    embedding: int,
    experts: int = 8,
    width: int,
    hidden: int,
    cross: int = 3,
    seed: int,
) -> Branched:
    """DCN as a shared trunk with one linear logit per task; with tasks=1 it is the paper's single-task model."""
    with seeded(seed):
        trunk = CrossAndDeep(vocabulary, numericals, embedding, cross, (experts * width, hidden))
        return Branched(trunk, [nn.Linear(trunk.input.width + hidden, 1) for _ in range(tasks)])
