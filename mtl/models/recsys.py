"""Models for tables of categorical and numerical fields: single-task, shared bottom, MMoE, PLE."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl.models.base import Branched, MultiTaskModel, SingleTask, seeded


class TabularInput(nn.Module):
    """Embeddings of the categorical fields beside the numerical ones: (B, F) ids, (B, N) floats -> (B, F d + N).

    All fields share one table with an offset per field; id 0 of a field is its unknown value. `forward` is the
    plain layer x. A net that only takes linear maps of x calls `encode` once and `linear` for each map, which never
    build x: for the fields of at most `fold` values (default: d, from where on it pays) y = x W^T + b is a product of
    the multi-hot row with the tables E_f W_f^T, the others are looked up. Same function, same parameters, same
    gradients. fold=0 looks all fields up.

    >>> TabularInput([3, 5], numericals=2, embedding=4)(torch.zeros(7, 2, dtype=torch.int32), torch.ones(7, 2)).shape
    torch.Size([7, 10])
    """

    offsets: Tensor
    near: Tensor
    columns: Tensor
    far: Tensor

    def __init__(self, vocabulary: Sequence[int], numericals: int, embedding: int, fold: int | None = None) -> None:
        super().__init__()
        sizes, limit = list(vocabulary), embedding if fold is None else fold
        ends = torch.tensor(sizes).cumsum(0)
        small = [f for f, size in enumerate(sizes) if size <= limit]
        large = [f for f, size in enumerate(sizes) if size > limit]
        starts = torch.tensor([0] + [sizes[f] for f in small[:-1]]).cumsum(0)[: len(small)]
        for name, values in (
            ("offsets", F.pad(ends[:-1], (1, 0))),
            ("near", torch.tensor(small, dtype=torch.int64)),
            ("columns", starts),
            ("far", torch.tensor(large, dtype=torch.int64)),
        ):
            self.register_buffer(name, values if name in ("near", "far") else values.to(torch.int32), persistent=False)
        self.table = nn.Embedding(int(ends[-1]), embedding)
        nn.init.normal_(self.table.weight, std=embedding**-0.5)
        self.width = len(sizes) * embedding + numericals
        self.vocabulary, self.folded = sizes, [size <= limit for size in sizes]
        self.hot = sum(sizes[f] for f in small)
        self.blocks = [embedding] * len(sizes) + [numericals]

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        return torch.cat([self.table(ids + self.offsets).flatten(1), numbers], 1)

    def encode(self, ids: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `linear` needs: the embedding table, the multi-hot rows (B, V) of the folded fields, and the rest of x.

        The table is among them, since a net cut here must still reach it; as a view, so that it can be cut.
        """
        hot = numbers.new_zeros(len(ids), self.hot)
        if self.hot:
            hot.scatter_(1, (ids.index_select(1, self.near) + self.columns).long(), 1.0)
        rest = numbers
        if len(self.far):
            rows = ids.index_select(1, self.far) + self.offsets[self.far]
            rest = torch.cat([self.table(rows).flatten(1), numbers], 1)
        table = self.table.weight
        return table.view_as(table), hot, rest

    def linear(self, layer: nn.Linear, code: tuple[Tensor, ...]) -> Tensor:
        """layer(x) from the code of x: hot [E_f W_f^T]_f + rest W_rest^T + b."""
        table, hot, rest = code
        # split, not slices: the gradient of each slice would fill a matrix as large as the whole
        *fields, numbers = layer.weight.split(self.blocks, 1)
        plain = [w for w, folded in zip(fields, self.folded, strict=True) if not folded]
        y = F.linear(rest, torch.cat([*plain, numbers], 1) if plain else numbers, layer.bias)
        if not self.hot:
            return y
        triples = zip(table.split(self.vocabulary), fields, self.folded, strict=True)
        return torch.addmm(y, hot, torch.cat([e @ w.T for e, w, folded in triples if folded]))


def tower(inputs: int, hidden: int) -> nn.Sequential:
    """One hidden layer and one logit."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))


class Experts(nn.Module):
    """E single-layer ReLU experts as one product: (B, D) -> (B, E, H)."""

    def __init__(self, inputs: int, count: int, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, count * width)
        self.shape = (count, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x)).unflatten(1, self.shape)


def mix(gate: Tensor, experts: Tensor) -> Tensor:
    """sum_e softmax(gate)_e expert_e: gate logits (B, E), experts (B, E, H) -> (B, H)."""
    return torch.bmm(gate.softmax(1).unsqueeze(1), experts).squeeze(1)


class MMoE(MultiTaskModel):
    """Multi-gate mixture of experts (Ma et al. 2018): y_t = tower_t(sum_e softmax(G_t x)_e f_e(x)).

    Shared: embeddings and experts. Task t's own: gate t and tower t. `features` returns x and the experts'
    outputs, since gates read x.

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
        x = self.input(*inputs)
        return x, self.experts(x)

    def outputs(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        x, experts = features
        return [net(mix(gate(x), experts)).squeeze(1) for gate, net in zip(self.gates, self.towers, strict=True)]

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
        x = self.input(*inputs)
        streams, common = [x] * len(self.towers), x
        for level, up in enumerate(self.up):
            own, shared = self._experts(level, streams), self.shared[level](common)
            gates = [gate(h) for gate, h in zip(self._list(self.gates, level), streams, strict=True)]
            streams = [mix(g, torch.cat([e, shared], 1)) for g, e in zip(gates, own, strict=True)]
            common = mix(up(common), torch.cat([*own, shared], 1))
        # at one level all streams are x itself: one tensor, so that its gradient is gathered once
        return (*(streams if len(self.up) else streams[:1]), self.shared[-1](common))

    def outputs(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        *streams, shared = features
        streams = streams if len(self.up) else streams * len(self.towers)
        own = self._experts(-1, streams)
        gates = [gate(h) for gate, h in zip(self._list(self.gates, -1), streams, strict=True)]
        mixed = [mix(g, torch.cat([e, shared], 1)) for g, e in zip(gates, own, strict=True)]
        return [net(h).squeeze(1) for net, h in zip(self.towers, mixed, strict=True)]

    def head_parameters(self) -> list[list[nn.Parameter]]:
        parts = zip(self._list(self.own, -1), self._list(self.gates, -1), self.towers, strict=True)
        return [[p for part in task for p in part.parameters()] for task in parts]

    def _experts(self, level: int, streams: Sequence[Tensor]) -> list[Tensor]:
        return [experts(h) for experts, h in zip(self._list(self.own, level), streams, strict=True)]

    @staticmethod
    def _list(modules: nn.ModuleList, level: int) -> nn.ModuleList:
        inner = modules[level]
        assert isinstance(inner, nn.ModuleList)
        return inner


class Bottom(nn.Module):
    """Embeddings and one wide hidden layer."""

    def __init__(self, vocabulary: Sequence[int], numericals: int, embedding: int, width: int) -> None:
        super().__init__()
        self.input = TabularInput(vocabulary, numericals, embedding)
        self.layer = nn.Linear(self.input.width, width)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        return F.relu(self.layer(self.input(ids, numbers)))


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
