"""The contract of a multi-task model: one representation, one output per task, and who owns which parameter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Build modules under their own CPU random stream; the global one is put back as it was.

    nn.Module initialisers take no generator, so the default CPU generator is seeded inside a fork of it;
    CUDA generators are not touched.

    >>> with seeded(0):
    ...     a = nn.Linear(2, 2)
    >>> with seeded(0):
    ...     b = nn.Linear(2, 2)
    >>> bool((a.weight == b.weight).all())
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield


class MultiTaskModel(nn.Module):
    """`forward = outputs(features(inputs))`; a parameter is shared if the losses of two tasks depend on it.

    `features` returns the tensors through which every task reaches the shared parameters, so that a caller
    can cut the graph there, go through each head once, and only then through the trunk.
    """

    def features(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The shared representation, as one or more tensors (B, ...)."""
        raise NotImplementedError

    def outputs(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        """One output per task from the shared representation."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """One output per task: logits (B,) of a binary task, (B, C) of C classes."""
        return self.outputs(self.features(*inputs))

    def shared_parameters(self) -> list[nn.Parameter]:
        """All parameters that no head owns."""
        owned = {id(p) for head in self.head_parameters() for p in head}
        return [p for p in self.parameters() if id(p) not in owned]

    def head_parameters(self) -> list[list[nn.Parameter]]:
        """Parameters of each task, one list per task."""
        raise NotImplementedError


class Branched(MultiTaskModel):
    """A trunk that all tasks share (hard parameter sharing), and one head per task."""

    def __init__(self, trunk: nn.Module, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleList(heads)

    def features(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (self.trunk(*inputs),)

    def outputs(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        return [head(features[0]).squeeze(-1) for head in self.heads]

    def head_parameters(self) -> list[list[nn.Parameter]]:
        return [list(head.parameters()) for head in self.heads]


class Constant(MultiTaskModel):
    """The same outputs for every row, whatever the inputs are: a predictor that never sees one.

    >>> [y.shape for y in Constant([torch.tensor(0.5), torch.zeros(3)])(torch.zeros(7, 2))]
    [torch.Size([7]), torch.Size([7, 3])]
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        super().__init__()
        self.values = list(values)

    def features(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (inputs[0],)

    def outputs(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        (rows,) = features
        return [value.to(rows.device).expand(len(rows), *value.shape) for value in self.values]

    def head_parameters(self) -> list[list[nn.Parameter]]:
        return [[] for _ in self.values]


class SingleTask(MultiTaskModel):
    """One whole net per task and nothing shared: the STL baseline trained in one pass.

    `features` returns the inputs themselves, since there is no shared representation.
    """

    only: int | None = None  # the one net that is trained; all of them where it is None

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.one = torch.ones((), requires_grad=True)  # gives outputs of resting nets the graph that a loss must have

    def train_only(self, task: int) -> None:
        """Train the net of one task. The others rest and cost nothing: what they say of the first row holds for all.

        >>> net = SingleTask([Branched(nn.Linear(2, 3), [nn.Linear(3, 1)]) for _ in range(2)])
        >>> net.train_only(0)
        >>> own, resting = net(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> bool(own[0] == own[1]), bool(resting[0] == resting[1])
        (False, True)
        """
        self.only = task
        self.train(self.training)

    def train(self, mode: bool = True) -> "SingleTask":
        super().train(mode)
        for t, net in enumerate(self.nets):
            net.train(mode and self.only in (None, t))
        return self

    def features(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return inputs

    def outputs(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        return [
            net(*features)[0] if self.only in (None, t) else self._rests(net, features)
            for t, net in enumerate(self.nets)
        ]

    def _rests(self, net: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        with torch.no_grad():
            first: Tensor = net(*(x[:1] for x in inputs))[0]
        return (self.one * first).expand(len(inputs[0]), *first.shape[1:])

    def shared_parameters(self) -> list[nn.Parameter]:
        return []

    def head_parameters(self) -> list[list[nn.Parameter]]:
        """Parameters of each task, none of nets that rest."""
        return [list(net.parameters()) if self.only in (None, t) else [] for t, net in enumerate(self.nets)]
