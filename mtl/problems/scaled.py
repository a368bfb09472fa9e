"""Problems with the first task's loss multiplied by a factor: what a change of unit does to a method.

They are problems of their own, since published rows name them so.
"""

from collections.abc import Sequence

from torch import Tensor

from mtl.problems.base import BinaryProblem
from mtl.problems.census import Census
from mtl.problems.digits import Digits


class Scaled(BinaryProblem):
    """`factor` times the first task's loss in training; metrics are those of the plain losses.

    Nothing else differs, so a method that is invariant to loss scales ends where it ends with factor 1.
    """

    def _scale_first(self, factor: float) -> None:
        if not 0 < factor < float("inf"):
            raise ValueError(f"factor must be positive and finite, found {factor!r}")
        self.factor = self.options["factor"] = factor

    def task_losses(self, outputs: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, ...]:
        first, *rest = super().task_losses(outputs, targets)
        return first * self.factor, *rest


class ScaledCensus(Scaled, Census):
    """Census with `factor` times the income loss."""

    def __init__(self, scale: str = "smoke", *, tasks: int = 2, factor: float = 1.0) -> None:
        super().__init__(scale, tasks=tasks)
        self._scale_first(factor)


class ScaledDigits(Scaled, Digits):
    """The same for the digits that stand in where Census is not found."""

    def __init__(
        self, scale: str = "smoke", *, tasks: int = 2, factor: float = 1.0, stands_in_for: str | None = None
    ) -> None:
        super().__init__(scale, tasks=tasks, stands_in_for=stands_in_for)
        self._scale_first(factor)
