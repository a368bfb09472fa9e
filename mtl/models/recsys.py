"""Models for tables of categorical and numerical fields: single-task, shared bottom, MMoE, PLE, DCN."""

from collections.abc import Callable, Iterator, Sequence
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


class Gated(MultiTaskModel):
    """What MMoE and PLE share: y_t = tower_t(sum_e softmax(gate)_e expert_e), gates and experts from `mixtures`."""

    build: Callable[..., None]  # (tasks, width, **sizes): the model's own modules, between input and towers

    def __init__(
        self,
        vocabulary: Sequence[int],
        numericals: int,
        tasks: int,
        *,
        embedding: int,
        width: int,
        hidden: int,
        seed: int,
        **sizes: int,
    ) -> None:
        super().__init__()
        with seeded(seed):
            self.input = TabularInput(vocabulary, numericals, embedding)
            self.build(tasks, width, **sizes)
            self.towers = nn.ModuleList(tower(width, hidden) for _ in range(tasks))

    def mixtures(self, code: tuple[Tensor, ...], shared: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Gate logits (B, E) and experts (B, E, H) of each task, from the features."""
        raise NotImplementedError

    def owned(self) -> tuple[nn.ModuleList, ...]:
        """Modules, one per task, that belong to a task beside its tower."""
        raise NotImplementedError

    def outputs(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        *code, shared = features
        pairs = self.mixtures(tuple(code), shared)
        return [net(mix(gate, experts)).squeeze(1) for net, (gate, experts) in zip(self.towers, pairs, strict=True)]

    def head_parameters(self) -> list[list[nn.Parameter]]:
        tasks = zip(*self.owned(), self.towers, strict=True)
        return [[p for part in task for p in part.parameters()] for task in tasks]


class MMoE(Gated):
    """Multi-gate mixture of experts (Ma et al. 2018): y_t = tower_t(sum_e softmax(G_t x)_e f_e(x)).

    Shared: embeddings and experts. Task t's own: gate t and tower t. `features` returns the code of x and the
    experts' outputs, since gates read x.

    >>> net = MMoE([3, 5], numericals=2, tasks=2, embedding=4, experts=8, width=16, hidden=8, seed=0)
    >>> [y.shape for y in net(torch.zeros(7, 2, dtype=torch.int32), torch.ones(7, 2))]
    [torch.Size([7]), torch.Size([7])]
    """

    def build(self, tasks: int, width: int, experts: int = 8) -> None:
        self.experts = Experts(self.input.width, experts, width)
        self.gates = nn.ModuleList(nn.Linear(self.input.width, experts) for _ in range(tasks))

    def owned(self) -> tuple[nn.ModuleList, ...]:
        return (self.gates,)

    def features(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        code = self.input.encode(*inputs)
        return (*code, self.experts(partial(self.input.linear, code)))

    def mixtures(self, code: tuple[Tensor, ...], shared: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        gates = [self.input.linear(code, gate) for gate in linears(self.gates)]
        return ((gate, shared) for gate in gates)


class PLE(Gated):
    """Progressive layered extraction (Tang et al. 2020): own experts per task beside the shared ones.

    At each level task t mixes its own and the shared experts; below the last level a further gate mixes all
    experts into the shared stream of the next, so that experts there reach every task's loss. Everything below
    the last level counts as shared (with it the gates there, though the last of them serve one task each); a
    task owns its experts and gate of the last level, and its tower. With levels=1 this is CGC.

    >>> net = PLE([3, 5], numericals=2, tasks=2, embedding=4, width=16, hidden=8, levels=2, seed=0)
    >>> [y.shape for y in net(torch.zeros(7, 2, dtype=torch.int32), torch.ones(7, 2))]
    [torch.Size([7]), torch.Size([7])]
    """

    def build(self, tasks: int, width: int, shared_experts: int = 4, task_experts: int = 4, levels: int = 1) -> None:
        if levels < 1:
            raise ValueError(f"levels must be at least 1, found {levels}")
        own, both, every = task_experts, task_experts + shared_experts, tasks * task_experts + shared_experts
        widths = [self.input.width] + [width] * (levels - 1)
        self.shared = nn.ModuleList(Experts(w, shared_experts, width) for w in widths)
        self.own = nn.ModuleList(nn.ModuleList(Experts(w, own, width) for _ in range(tasks)) for w in widths)
        self.gates = nn.ModuleList(nn.ModuleList(nn.Linear(w, both) for _ in range(tasks)) for w in widths)
        self.up = nn.ModuleList(nn.Linear(w, every) for w in widths[:-1])

    def owned(self) -> tuple[nn.ModuleList, ...]:
        return inner(self.own, -1), inner(self.gates, -1)

    def features(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        code = self.input.encode(*inputs)
        common: Read = partial(self.input.linear, code)
        reads, streams = [common] * len(self.towers), list(code)
        for level, up in enumerate(linears(self.up)):
            experts, shared = self._experts(level, reads), self.shared[level](common)
            streams = [mix(gate, pool) for gate, pool in self._pools(level, reads, experts, shared)]
            common = partial(apply, mix(common(up), torch.cat([*experts, shared], 1)))
            reads = [partial(apply, h) for h in streams]
        return (*streams, self.shared[-1](common))

    def mixtures(self, code: tuple[Tensor, ...], shared: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        reads: list[Read] = [partial(apply, h) for h in code]
        if not len(self.up):  # at one level all tasks read x itself
            reads = [partial(self.input.linear, code)] * len(self.towers)
        return self._pools(-1, reads, self._experts(-1, reads), shared)

    def _experts(self, level: int, reads: Sequence[Read]) -> list[Tensor]:
        return [experts(read) for experts, read in zip(inner(self.own, level), reads, strict=True)]

    def _pools(
        self, level: int, reads: Sequence[Read], experts: Sequence[Tensor], shared: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        gates = [read(gate) for gate, read in zip(linears(inner(self.gates, level)), reads, strict=True)]
        return ((gate, torch.cat([own, shared], 1)) for gate, own in zip(gates, experts, strict=True))


class Bottom(nn.Module):
    """Embeddings and one wide hidden layer."""

    def __init__(self, vocabulary: Sequence[int], numericals: int, embedding: int, width: int) -> None:
        super().__init__()
        self.input = TabularInput(vocabulary, numericals, embedding)
        self.layer = nn.Linear(self.input.width, width)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        return F.relu(self.input.linear(self.input.encode(ids, numbers), self.layer))


def _bottom_net(
    vocabulary: Sequence[int], numericals: int, tasks: int, embedding: int, width: int, hidden: int, experts: int = 8
) -> Branched:
    trunk = Bottom(vocabulary, numericals, embedding, experts * width)
    return Branched(trunk, [tower(experts * width, hidden) for _ in range(tasks)])


def shared_bottom(vocabulary: Sequence[int], numericals: int, tasks: int, *, seed: int, **sizes: int) -> Branched:
    """Hard sharing with the first layer as wide as MMoE's experts together, one tower per task.

    Sizes: embedding, width, hidden, experts (8).
    """
    with seeded(seed):
        return _bottom_net(vocabulary, numericals, tasks, **sizes)


def single_task(vocabulary: Sequence[int], numericals: int, tasks: int, *, seed: int, **sizes: int) -> SingleTask:
    """STL: one net of the shared-bottom shape per task, each with its own embeddings."""
    with seeded(seed):
        return SingleTask([_bottom_net(vocabulary, numericals, 1, **sizes) for _ in range(tasks)])


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


class FirstTask(MultiTaskModel):
    """A net for the first of T tasks; the outputs of the others are 0, whatever the input."""

    def __init__(self, net: MultiTaskModel, tasks: int) -> None:
        super().__init__()
        self.net, self.tasks = net, tasks

    def features(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.net.features(*inputs)

    def outputs(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        nothing = 0 * features[0].flatten(1).sum(1)  # in the graph, where every loss must hang
        return [*self.net.outputs(features), *[nothing] * (self.tasks - 1)]

    def head_parameters(self) -> list[list[nn.Parameter]]:
        return [*self.net.head_parameters(), *([] for _ in range(self.tasks - 1))]


def dcn_click(vocabulary: Sequence[int], numericals: int, tasks: int, *, seed: int, **sizes: int) -> FirstTask:
    """DCN for the first task alone, the click model that EMTL's Table 3 compares with."""
    return FirstTask(dcn(vocabulary, numericals, 1, seed=seed, **sizes), tasks)
