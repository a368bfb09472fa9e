"""What a training step tells: losses, weights, Gram matrix and what follows from them; checks that may arrive later."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mtl.errors import NonFiniteError, NonPositiveError
from mtl.methods.base import Method
from mtl.solvers import Certificate

RANKS, SCALE = "ranks with a loss", "scale"
WHOLE = frozenset(["combine"])  # rows that tell one number of all tasks


class Report:
    """A few numbers on their way from the device to the host, the rule that each must obey, and K if it comes along.

    `places`: the tasks that are there, None for all. Where ranks tell theirs it is known from `check` on; with `every`
    it is too late then, and each task must be on some rank.
    """

    places: Sequence[int] | None = None
    every = nonnegative = False

    def __init__(
        self,
        rows: dict[str, Tensor],
        positive: frozenset[str] = frozenset(),
        name: str = "",
        gram: Tensor | None = None,
    ) -> None:
        self.kinds, self.positive, self.name = list(rows), positive, name
        numbers = torch.stack([row.detach().to(torch.float64) for row in rows.values()])
        if numbers.is_meta:
            raise ValueError(f"{self.kinds[0]}: must hold values, found tensors on the meta device")
        self.event: torch.cuda.Event | None = None
        if numbers.is_cuda:
            if gram is not None:
                numbers = torch.cat([numbers, gram.detach().to(torch.float64)])
            self.numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self.numbers.copy_(numbers, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.numbers = numbers

    def arrived(self) -> bool:
        return self.event is None or self.event.query()

    waited: bool = False

    def wait(self) -> None:
        """For the device, once."""
        if self.event is not None and not self.waited and not self.event.query():
            self.event.synchronize()
        self.waited = True
        self.gather()

    def finite(self, kind: str) -> bool:
        """Whether the row `kind` is finite; waits for it."""
        self.wait()
        row = self.numbers[self.kinds.index(kind)]
        return bool((row if self.places is None else row[list(self.places)]).isfinite().all())

    def problem(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Losses (T,) and K (T, T), if it came along, on the host; waits for them."""
        self.wait()
        gram = self.numbers[len(self.kinds) :].to(dtype)
        return self.numbers[0].to(dtype), gram if len(gram) else None

    def check(self) -> None:
        """Raise NonFiniteError or ValueError at the first number that breaks its rule; waits for it."""
        self.wait()
        for kind, row in zip(self.kinds, self.numbers.tolist(), strict=False):
            for t, value in enumerate(row):
                if kind == SCALE and not 0 < value < float("inf"):
                    raise ValueError(f"scale: must be finite and > 0, found {value:g}")
                if self.places is not None and t not in self.places:
                    continue
                if not -float("inf") < value < float("inf"):
                    whose = "" if kind in WHOLE else f" for task {t}"
                    raise NonFiniteError(f"{kind}: must be finite, found {value}{whose}{self.name}")
                if kind in self.positive and value <= 0:
                    raise NonPositiveError(f"{kind}: must be positive, found {value:.6g} for task {t}{self.name}")
                if self.nonnegative and kind == "losses" and value < 0:
                    found = f"found {value:.6g} for task {t}{self.name}"
                    raise NonPositiveError(f"{kind}: must be at least 0 for an objective with a lower bound, {found}")

    def gather(self) -> None:
        """Which tasks are there, from the numbers that have arrived."""
        if RANKS not in self.kinds:
            return
        ranks = self.numbers[self.kinds.index(RANKS)].tolist()
        found = [t for t, n in enumerate(ranks) if n > 0]
        if self.every and len(found) < len(ranks):
            t = next(t for t in range(len(ranks)) if t not in found)
            raise ValueError(f'losses: each task must be on some rank with check="defer", found task {t} on none')
        self.places = None if len(found) == len(ranks) else found


class Pending:
    """Reports of a method's earlier steps that nobody has read yet."""

    waiting: ClassVar[WeakKeyDictionary[Method, deque[Report]]] = WeakKeyDictionary()

    @classmethod
    def add(cls, method: Method, report: Report) -> None:
        cls.waiting.setdefault(method, deque()).append(report)

    @classmethod
    def read(cls, method: Method, *, wait: bool = False) -> None:
        """Raise what the reports that have arrived hold against a step; `wait` for all of them."""
        queue = cls.waiting.get(method, deque())
        while queue and (wait or queue[0].arrived()):
            report = queue.popleft()
            try:
                report.check()
            except ValueError:
                queue.clear()
                raise


@dataclass(frozen=True)
class Step:
    """Outcome of `backward`; all tensors are detached and on the device, the certificate where it was solved.

    `losses` (T,); `weights` (T,), None for methods that combine gradients themselves; `gram` (T, T) over the shared
    parameters (over the features for representation methods), None for methods that need losses only; `absent`: the
    tasks that had no loss, NaN in `losses` and `gram`;
    `certificate` of the method's solver; `overflow`: loss scaling overflowed, `.grad` is not finite and the
    method was not asked.
    """

    losses: Tensor
    weights: Tensor | None
    gram: Tensor | None
    certificate: Certificate | None = None
    overflow: bool = False
    absent: Sequence[int] = ()
    method: Method | None = field(default=None, repr=False)

    @cached_property
    def norms(self) -> Tensor | None:
        """|g_t| (T,)."""
        return None if self.gram is None else self.gram.diagonal().clamp_min(0).sqrt()

    @cached_property
    def cosines(self) -> Tensor | None:
        """cos(g_s, g_t) (T, T); NaN where a gradient is zero."""
        if self.gram is None or self.norms is None:
            return None
        return (self.gram / self.norms / self.norms[:, None]).clamp(-1, 1)

    @cached_property
    def rates(self) -> Tensor | None:
        """Relative rates r_t = L_t / |g_t| (T,), EMTL's Eq. 1; infinite where a gradient is zero."""
        return None if self.norms is None else self.losses / self.norms

    def check(self) -> None:
        """Raise what this and earlier steps of the method left unread; waits for the device."""
        if self.method is not None:
            Pending.read(self.method, wait=True)
