"""Problems with the first task's loss multiplied by a factor: what a change of unit does to a method."""

from collections.abc import Sequence

from torch import Tensor

from mtl.problems.census import Census
from mtl.problems.digits import Digits


def checked(factor: float) -> float:
    """`factor` itself if it is positive and finite."""
    if not 0 < factor < float("inf"):
        raise ValueError(f"factor must be positive and finite, found {factor!r}")
    return factor


class ScaledCensus(Census):
    """Census with `factor` times the income loss in training; metrics are those of the plain losses.

    Nothing else differs, so a method that is invariant to loss scales ends where it ends with factor 1.
    """

    def __init__(self, scale: str = "smoke", *, tasks: int = 2, factor: float = 1.0) -> None:
        self.factor = checked(factor)
        super().__init__(scale, tasks=tasks)
        self.options["factor"] = factor

    def task_losses(self, outputs: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, ...]:
        first, *rest = super().task_losses(outputs, targets)
        return first * self.factor, *rest


class ScaledDigits(Digits):
    """The same for the digits that stand in where Census is not found."""

    def __init__(
        self, scale: str = "smoke", *, tasks: int = 2, factor: float = 1.0, stands_in_for: str | None = None
    ) -> None:
        self.factor = checked(factor)
        super().__init__(scale, tasks=tasks, stands_in_for=stands_in_for)
        self.options["factor"] = factor

    def task_losses(self, outputs: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, ...]:
        first, *rest = super().task_losses(outputs, targets)
        return first * self.factor, *rest
