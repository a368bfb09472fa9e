"""What a run tells while it goes on: diagnostics of its steps, its metrics, and where it failed."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mtl.gradients import Step
from mtl.problems.base import Problem


class Failure(Exception):
    """A value that no step can be made from: where it was met, for the row, and its kind (the row's status)."""

    def __init__(
        self, message: str, epoch: int, step: int | None, task: str | None, status: str = "non-finite"
    ) -> None:
        super().__init__(message)
        self.status = status
        self.entry = {"epoch": epoch, "step": step, "task": task, "message": message}


class Trace:
    """Diagnostics of one epoch: kept on the device, fetched in windows, so that steps need not wait."""

    names = ("losses", "weights", "gram", "residual", "converged")

    def __init__(self) -> None:
        self.waiting: dict[str, list[Tensor]] = {name: [] for name in self.names}
        self.fetched: dict[str, list[Tensor]] = {name: [] for name in self.names}
        self.absent: list[list[int]] = []  # step and task, where there was no loss: NaN stands there

    def add(self, step: Step) -> None:
        if step.absent:
            number = len(self.waiting["losses"]) + sum(map(len, self.fetched["losses"]))
            self.absent += [[number, task] for task in step.absent]
        certificate = step.certificate
        # A method may go on to change its weights in place; losses and Gram matrix are the step's own.
        weights = None if step.weights is None else step.weights.clone()
        values = {"losses": step.losses, "weights": weights, "gram": step.gram}
        if certificate is not None:
            values |= {"residual": certificate.residual, "converged": certificate.converged}
        for name, value in values.items():
            if value is not None:
                self.waiting[name].append(value.detach())

    def fetch(self) -> None:
        for name, values in self.waiting.items():
            if values:
                self.fetched[name].append(torch.stack(values).to("cpu", torch.float64))
                values.clear()

    def get(self, name: str) -> Tensor | None:
        return torch.cat(self.fetched[name]) if self.fetched[name] else None

    def first_bad(self) -> tuple[int, int, str] | None:
        """Step, task and what of the first value that is not finite, or None."""
        self.fetch()
        gram = self.get("gram")
        rows = {"loss": self.get("losses")}
        rows["squared gradient norm"] = None if gram is None else gram.diagonal(dim1=1, dim2=2)
        rows["weight"] = self.get("weights")  # last: it may only follow from the others
        found = []
        for what, values in rows.items():
            if values is not None and not bool((good := self._known(values, 0.0).isfinite()).all()):
                step, task = (int(i) for i in (~good).nonzero()[0])
                found.append((step, task, what))
        return min(found, key=lambda place: place[0], default=None)

    def _known(self, values: Tensor, instead: float) -> Tensor:
        """Values (steps, T), where a task was not there the one given."""
        if not self.absent:
            return values
        steps, tasks = torch.tensor(self.absent).unbind(1)
        return values.index_put((steps, tasks), torch.tensor(instead, dtype=values.dtype))

    def mean(self, values: Tensor) -> Tensor:
        """Mean (T,) over the steps where the task was there; NaN where it never was."""
        return self._known(values, math.nan).nanmean(0) if self.absent else values.mean(0)

    def state_dict(self) -> dict[str, Tensor]:
        self.fetch()
        found = {name: value for name in self.names if (value := self.get(name)) is not None}
        return found | ({"absent": torch.tensor(self.absent)} if self.absent else {})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.fetched = {name: [state[name]] if name in state else [] for name in self.names}
        self.absent = state["absent"].tolist() if "absent" in state else []


def direction(problem: Problem, select: str) -> float:
    """+1 where a higher value of the metric `select` is better, -1 where a lower one is."""
    signs = {"score": 1.0} | {f"{task}/score": 1.0 for task in problem.tasks}
    signs |= {f"{m.task}/{m.name}": 1.0 if m.higher_is_better else -1.0 for m in problem.metrics}
    if select not in signs:
        raise ValueError(f"select: must be one of {sorted(signs)}, found {select!r}")
    return signs[select]


def finite(values: Mapping[str, float], split: str, epoch: int, tasks: tuple[str, ...]) -> dict[str, float]:
    for name, value in values.items():
        if not math.isfinite(value):
            task = name.partition("/")[0]
            raise Failure(
                f"{split} metric {name} is {value} after epoch {epoch}", epoch, None, task if task in tasks else None
            )
    return {name: float(value) for name, value in values.items()}
