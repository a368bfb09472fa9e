"""The contract of a problem: batches, a model, T losses, and what the model is judged by."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.methods.base import flag, whole
from mtl.models.base import Constant, MultiTaskModel
from mtl.problems import metrics
from mtl.scales import SCALES

Batch = tuple[Tensor, ...]
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Metric:
    """One column of a results table."""

    name: str
    task: str
    unit: str
    higher_is_better: bool

    @property
    def key(self) -> str:
        """Its key in what `Problem.evaluate` returns."""
        return f"{self.task}/{self.name}"


class Problem:
    """Data in memory, split three ways; subclasses say what the data are, which models fit, which losses.

    A batch is a tuple of input tensors followed by the targets (B, T). Validation rows come from the training
    file, never from the test file. `stands_in_for` names a data set that was asked for and not found;
    `embedded_default` is true where there is one.
    """

    name: ClassVar[str]
    models: ClassVar[tuple[str, ...]]
    synthetic: bool = False
    embedded_default: bool = False
    stands_in: ClassVar[str] = "these rows stand in for it"  # said of a stand-in
    builders: ClassVar[Mapping[str, Callable[..., MultiTaskModel]]] = {}  # of models, by name
    net_sizes: ClassVar[Mapping[str, Mapping[str, int]]] = {}  # by scale
    net_inputs: tuple[Any, ...] = ()  # what a builder is told first

    def __init__(
        self,
        scale: str,
        tasks: Sequence[str],
        splits: Mapping[str, Batch],
        *,
        source: str,
        fingerprint: str,
        options: Mapping[str, Any] | None = None,
        stands_in_for: str | None = None,
    ) -> None:
        self.stands_in_for, self.embedded_default = stands_in_for, stands_in_for is not None
        self.scale = check_scale(scale)
        self.tasks = tuple(tasks)
        if twice := [task for task in self.tasks if self.tasks.count(task) > 1]:
            raise ValueError(
                f"tasks: must have names of their own, found {twice[0]!r} {self.tasks.count(twice[0])} times"
            )
        if absent := [split for split in SPLITS if split not in splits]:
            raise ValueError(f"splits: must hold {', '.join(SPLITS)}, found no {', '.join(absent)}")
        for split in SPLITS:
            if len(lengths := {len(tensor) for tensor in splits[split]}) != 1:
                found = " and ".join(map(str, sorted(lengths))) or "no tensor"
                raise ValueError(f"splits[{split!r}]: must have as many rows in each tensor, found {found}")
        named = {"stands_in_for": stands_in_for} if stands_in_for else {}
        self.options = {**(options or {}), **named}  # as given to `problem`, for a row's configuration
        self.source = source
        self.fingerprint = fingerprint
        self.sizes = {split: len(splits[split][0]) for split in SPLITS}
        self._data: dict[torch.device, Mapping[str, Batch]] = {torch.device("cpu"): splits}

    @classmethod
    def option_names(cls) -> set[str]:
        """Names of the options that `problem` takes for it."""
        return set(signature(cls).parameters) - {"scale", "stands_in_for"}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The columns that `evaluate` fills, task by task."""
        raise NotImplementedError

    def model(self, name: str, seed: int, **sizes: Any) -> MultiTaskModel:
        """A freshly initialised model, named in `models`; `sizes` (width, hidden, ...) overrides the scale's own."""
        build = choose(self.builders, name)
        if self.scale not in self.net_sizes:
            raise ValueError(
                f"net_sizes: must have the scale {self.scale!r}, found {', '.join(self.net_sizes) or 'none'}"
            )
        net: MultiTaskModel = build(*self.net_inputs, seed=seed, **{**self.net_sizes[self.scale], **sizes})
        return net

    def task_losses(self, outputs: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, ...]:
        """One scalar per task from the model's outputs and the targets (B, T)."""
        raise NotImplementedError

    def scores(self, outputs: Sequence[Tensor], targets: Tensor) -> dict[str, Tensor]:
        """Scalar metrics "<task>/<metric>" and "<task>/score" from the outputs over a whole split."""
        raise NotImplementedError

    def data(self, split: str, device: torch.device | str = "cpu") -> Batch:
        """The tensors of a split, resident on `device` from the first call on."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, found {split!r}")
        device = torch.device(device)
        if device not in self._data:
            cpu = self._data[torch.device("cpu")]
            self._data[device] = {name: tuple(t.to(device) for t in cpu[name]) for name in SPLITS}
        return self._data[device][split]

    def batches(
        self,
        split: str,
        seed: int = 0,
        batch_size: int = 1024,
        device: torch.device | str = "cpu",
        *,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """Batches of tensors on `device`; "train" is shuffled by `seed` (take another per epoch).

        The order is drawn on the CPU, so it is the same on every device. No row is dropped, unless `drop_last` leaves
        out those that fill no batch. Of each batch, rank `rank` of `world` gets its part, sizes differ by one row at
        most: in training all ranks have as many batches, and the parts are one process's batches in its order.
        A rank that has no row of the last batch skips it, which in training is refused: the others would wait.

        Raises ValueError for a batch size, rank or world that cannot be.
        """
        tensors = self.data(split, device)
        parts = cuts(self.sizes[split], batch_size, rank, world, drop_last, train=split == "train")
        if split != "train":
            for rows in parts:
                yield tuple(t[rows] for t in tensors)
            return
        order = torch.randperm(self.sizes[split], generator=torch.Generator().manual_seed(seed)).to(device)
        for rows in parts:
            yield tuple(t.index_select(0, order[rows]) for t in tensors)

    def _in_order(self, split: str, device: torch.device | str) -> Iterator[Batch]:
        """The rows of a split in order, also those of "train": outputs must stay beside their targets."""
        tensors = self.data(split, device)
        return (tuple(t[rows] for t in tensors) for rows in cuts(self.sizes[split], 4096))

    def losses(self, model: MultiTaskModel, batch: Batch) -> tuple[Tensor, ...]:
        """The T losses of a batch; a problem of one's own may return None for a task without labels in it."""
        return self.task_losses(model(*batch[:-1]), batch[-1])

    def losses_and_features(self, model: MultiTaskModel, batch: Batch) -> tuple[tuple[Tensor, ...], Batch]:
        """The T losses, and the shared representation in the graph that they hang on."""
        features = model.features(*batch[:-1])
        return self.task_losses(model.outputs(features), batch[-1]), features

    @torch.inference_mode()
    def evaluate(self, model: MultiTaskModel, split: str, device: torch.device | str = "cpu") -> dict[str, float]:
        """All metrics over a split, plus "<task>/score" and their mean "score" (higher is better).

        A task whose outputs hold NaN or infinity has NaN in all its metrics, and so has the mean.
        """
        training = model.training
        model.eval()
        try:
            pairs = [(model(*inputs), targets) for *inputs, targets in self._in_order(split, device)]
        finally:
            model.train(training)
        parts, labels = zip(*pairs, strict=True)
        outputs, targets = [torch.cat(task) for task in zip(*parts, strict=True)], torch.cat(labels)
        broken = [not bool(output.isfinite().all()) for output in outputs]
        usable = [output.nan_to_num() if bad else output for output, bad in zip(outputs, broken, strict=True)]
        values = self.scores(usable, targets)
        for task in itertools.compress(self.tasks, broken):
            values |= {key: value * math.nan for key, value in values.items() if key.startswith(f"{task}/")}
        values["score"] = torch.stack([values[f"{task}/score"] for task in self.tasks]).mean()
        # one transfer for all numbers
        return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))

    def constants(self) -> list[Tensor]:
        """Per task the best output that depends on no input, from the training rows."""
        raise NotImplementedError

    def blind(self, split: str = "test", device: torch.device | str = "cpu") -> dict[str, float]:
        """`evaluate` of the best predictor that never sees an input: what a model must beat to have learnt anything.

        >>> from mtl.problems import problem
        >>> problem("digits").blind()["odd/auc"]
        0.5
        """
        return self.evaluate(Constant(self.constants()), split, device)

    def describe(self) -> str:
        """What was read, how it is split, which tasks; a sentence of its own where the data are a stand-in."""
        counts = ", ".join(f"{n:,} {split}" for split, n in self.sizes.items())
        kind = "synthetic" if self.synthetic else "real"
        missing = f"EMBEDDED DEFAULT: {self.stands_in_for} was not found, {self.stands_in}. "
        said = missing if self.embedded_default else ""
        return f"{said}{self.source} ({kind}); scale {self.scale}: {counts} rows; tasks: {', '.join(self.tasks)}."


class BinaryProblem(Problem):
    """T binary tasks: targets (B, T) of 0 and 1, logits (B,), binary cross-entropy; the score is the AUC."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        kinds = (("auc", "", True), ("log-loss", "nat", False), ("accuracy", "", True))
        return tuple(Metric(name, task, unit, up) for task in self.tasks for name, unit, up in kinds)

    def task_losses(self, outputs: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(outputs, targets.unbind(1), strict=True)
        return tuple(F.binary_cross_entropy_with_logits(logit, label) for logit, label in pairs)

    def constants(self) -> list[Tensor]:
        ones = torch.stack([targets.sum(0) for *_, targets in self._in_order("train", "cpu")]).sum(0)
        return list(torch.logit(ones / self.sizes["train"], eps=1e-6).unbind())

    def scores(self, outputs: Sequence[Tensor], targets: Tensor) -> dict[str, Tensor]:
        values = {}
        for task, logit, label in zip(self.tasks, outputs, targets.unbind(1), strict=True):
            values[f"{task}/auc"] = metrics.auc(logit, label)
            values[f"{task}/log-loss"] = metrics.log_loss(logit, label)
            values[f"{task}/accuracy"] = metrics.accuracy(logit, label)
            values[f"{task}/score"] = values[f"{task}/auc"]
        return values

    def describe(self) -> str:
        rates = self.data("train")[-1].mean(0).tolist()
        shown = ", ".join(f"{task} {100 * rate:.1f} %" for task, rate in zip(self.tasks, rates, strict=True))
        return f"{super().describe()} Positives in the training rows: {shown}."


def cuts(
    n: int, size: int, rank: int = 0, world: int = 1, drop_last: bool = False, *, train: bool = False
) -> list[slice]:
    """The places that one rank gets of each batch of n rows.

    >>> cuts(5, 2, rank=1, world=2)
    [slice(1, 2, None), slice(3, 4, None), slice(4, 5, None)]
    """
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, found {size}")
    if whole("rank", rank, 0) >= whole("world", world, 1):
        raise ValueError(f"rank: must be in 0..{world - 1}, found {rank}")
    if flag("drop_last", drop_last) and not train:
        raise ValueError("drop_last: must be False for rows that are not trained on, found True")
    over = 0 if drop_last else n % size
    if train and (least := min(size, over or size)) < world:
        raise ValueError(f"world: must be at most the {least} rows of the smallest batch, found {world}; use drop_last")
    found = []
    for start in range(0, n - n % size + over, size):
        rows = min(size, n - start)
        found.append(slice(start + rows * rank // world, start + rows * (rank + 1) // world))
    return [part for part in found if part.start < part.stop]


def check_scale(scale: str, known: Iterable[str] = SCALES) -> str:
    """`scale` itself if it is among those that a problem knows."""
    names = list(known)
    if not isinstance(scale, str) or scale not in names:
        raise ValueError(f"scale must be one of {', '.join(names)}, found {scale!r}")
    return scale


def choose(models: Mapping[str, Any], name: str) -> Any:
    """The entry of a model table; an unknown name raises ValueError listing the valid ones."""
    if name not in models:
        raise ValueError(f"model must be one of {', '.join(models)}, found {name!r}")
    return models[name]
