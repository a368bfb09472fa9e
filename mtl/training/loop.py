"""What changes while a run goes on: model, optimiser, method, position, diagnostics; `training.fit` drives it."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from mtl.errors import NonFiniteError, NonPositiveError, RunError
from mtl.files import plain
from mtl.gradients import Step, backward
from mtl.methods.absent import present
from mtl.methods.base import Method, chosen, flag, positive, share, whole
from mtl.models.base import SingleTask
from mtl.problems.base import Problem
from mtl.training.trace import Failure, Trace, finite

Progress = Callable[[dict[str, Any]], None]
POINTS = 200  # weights over time are thinned to about so many
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
WINDOW = 512  # steps whose diagnostics wait on the device before one transfer fetches them all


@dataclass(frozen=True)
class Budget:
    """What a run may spend: learning rate and weight decay, epochs, batch size, patience in epochs.

    `patience=None` trains all epochs; the best-validation state is kept either way. `halve_at` is the number of
    epochs after which the learning rate is halved, once. `last` asks for the test metrics averaged over so many
    last epochs as well: the dense benchmarks' custom, which chooses nothing and so excludes `patience`.
    `optimizer` is "adam" or "adamw". `one_cycle` is the share of all steps in which the rate rises from lr / 25 to
    lr; from there it falls along a cosine to lr / 250,000 (torch's OneCycleLR, Adam's momenta as they are).
    `drop_last` leaves the rows over that fill no batch out of an epoch.

    >>> Budget(epochs=3, batch_size=256).lr
    0.001
    """

    epochs: int
    batch_size: int
    lr: float = 1e-3
    weight_decay: float = 0.0
    patience: int | None = None
    halve_at: int | None = None
    last: int | None = None
    optimizer: str = "adam"
    one_cycle: float | None = None
    drop_last: bool = False

    def __post_init__(self) -> None:
        chosen("optimizer", self.optimizer, list(OPTIMIZERS))
        flag("drop_last", self.drop_last)
        if self.one_cycle is not None:
            share("one_cycle", self.one_cycle, "(0, 1)")
        for name, value in vars(self).items():
            if name in ("lr", "weight_decay"):
                positive(name, value, zero=name == "weight_decay")
            elif name in ("epochs", "batch_size") or (name in ("patience", "halve_at", "last") and value is not None):
                whole(name, value, 1)
            if hasattr(value, "item"):  # NumPy's
                object.__setattr__(self, name, value.item())
        if self.last is not None and (self.patience is not None or self.last > self.epochs):
            raise ValueError(f"last: at most epochs, and without patience, found {self.last} in {self}")
        if self.one_cycle is not None and (self.patience is not None or self.halve_at is not None):
            raise ValueError(f"one_cycle: must be without patience and halve_at, found {self}")

    def settings(self) -> dict[str, Any]:
        """As a row's configuration holds it: without the later fields where they are not used, so that keys last."""
        first = ("epochs", "batch_size", "lr", "weight_decay", "patience")
        unused = {field.name: field.default for field in fields(self)}
        return {k: v for k, v in asdict(self).items() if k in first or v != unused[k]}

    def steps(self, rows: int) -> int:
        """Steps of an epoch over so many rows."""
        return rows // self.batch_size if self.drop_last else math.ceil(rows / self.batch_size)

    def made(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser of parameter groups."""
        return OPTIMIZERS[self.optimizer](groups, lr=self.lr, weight_decay=self.weight_decay, fused=True)

    def cycle(self, rows: int) -> list[float]:
        """Factors in front of the learning rate, one for each step of the run; none where it does not cycle."""
        if self.one_cycle is None or not (n := self.epochs * self.steps(rows)):
            return []
        toy = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        schedule = OneCycleLR(toy, 1.0, total_steps=n, pct_start=self.one_cycle, cycle_momentum=False)
        factors = []
        for _ in range(n):
            factors.append(float(schedule.get_last_lr()[0]))
            toy.step()
            if len(factors) < n:
                schedule.step()
        return factors


def spent(budget: Any) -> Budget:
    """The budget itself, else TypeError."""
    if not isinstance(budget, Budget):
        raise TypeError(f"budget: must be a mtl.Budget(epochs, batch_size, ...), found {budget!r}")
    return budget


def placed(device: Any) -> torch.device:
    """The device that is meant, if it can hold values here, else ValueError or TypeError."""
    rule = 'device: must be a torch.device or its name, as "cpu" or "cuda:0"'
    try:
        found = torch.device(device)
    except TypeError as error:
        raise TypeError(f"{rule}, found {device!r}") from error
    except RuntimeError as error:
        raise ValueError(f"{rule}, found {device!r}") from error
    if found.type == "meta" or (found.type == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device: must be one that holds values here, found {str(found)!r}")
    return found


class Loop:
    """Everything that changes while a run goes on, and therefore all that a checkpoint holds."""

    def __init__(
        self,
        problem: Problem,
        method: Method,
        model: str,
        seed: int,
        budget: Budget,
        device: torch.device,
        init_seed: int | None = None,
    ) -> None:
        self.problem, self.method, self.seed, self.budget, self.device = problem, method, seed, budget, device
        if method.n_tasks != len(problem.tasks):
            found = f"{type(method).__name__} for {method.n_tasks}"
            raise ValueError(f"method: must be for the {len(problem.tasks)} tasks of {problem.name}, found {found}")
        self.model = problem.model(model, seed if init_seed is None else init_seed).to(device)
        if method.alone and isinstance(self.model, SingleTask):
            self.model.train_only(method.task)  # type: ignore[attr-defined]
        for p in method.parameters():
            p.data = p.data.to(device)
        self.shared = self.model.shared_parameters()
        # A method at the level of the optimiser makes the step on the shared parameters itself; SGD only applies it,
        # and the weight decay beside it, as AdamW does: it is not for the method to normalise.
        plain = set(self.shared) if method.replaces_adam else set()
        self.sgd = torch.optim.SGD(self.shared, lr=budget.lr, weight_decay=budget.weight_decay) if plain else None
        groups: list[dict[str, Any]] = [{"params": [p for p in self.model.parameters() if p not in plain]}]
        if learned := method.parameters():
            groups.append({"params": learned, "lr": method.learning_rate, "weight_decay": 0.0})
        self.optimizer = budget.made(groups)
        self.rates = [group["lr"] for group in self.groups()]
        self.heads: list[list[nn.Parameter]] | None = self.model.head_parameters()
        if not self.shared:  # nothing is shared (single-task nets): the weighted sum goes to all parameters alike
            self.shared, self.heads = [p for head in self.model.head_parameters() for p in head], None
        # The host reads losses at the end of an epoch, not at each step; on the CPU reading costs nothing.
        self.when: Literal["raise", "defer"] = "raise" if device.type == "cpu" or method.solves else "defer"
        self.epoch = self.step = self.total = 0
        self.wall = 0.0
        self.history: list[dict[str, Any]] = []
        self.points: list[tuple[int, list[float]]] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = -1
        self.best_value = -math.inf
        self.trace = Trace()
        self.last: Step | None = None
        rows = problem.sizes["train"]
        self.every = max(1, math.ceil(budget.epochs * budget.steps(rows) / POINTS))
        self.cycle = budget.cycle(rows)

    def batch(self, batch: Any) -> None:
        """One step; on a GPU nothing but the Gram matrix leaves the device."""
        factor = self.factor(self.total)
        for group, rate in zip(self.groups(), self.rates, strict=True):
            group["lr"] = rate * factor
        self.model.zero_grad(set_to_none=True)
        self.optimizer.zero_grad(set_to_none=True)
        features = None
        if self.method.needs == "features":
            losses, features = self.problem.losses_and_features(self.model, batch)
        else:
            losses = self.problem.losses(self.model, batch)
        with self.watched():
            step = backward(
                losses, shared=self.shared, heads=self.heads, method=self.method, features=features, check=self.when
            )
        resting = [(p, p.detach().clone()) for p in self.method.parameters()] if step.absent else []
        self.optimizer.step()
        for p, old in resting:  # whatever momentum it has
            p.data[..., step.absent] = old[..., step.absent]
        if self.sgd is not None:  # it keeps no state
            self.sgd.step()
        if self.method.wants_after_step:
            self.after_step(batch, step)
        self.trace.add(step)
        self.last = step
        self.step += 1
        self.total += 1
        if self.step % WINDOW == 0:
            self.check()

    @torch.no_grad()
    def begin_epoch(self) -> None:
        """Tell the method the mean validation losses, of each task over the batches that have it."""
        sums, rows = torch.zeros(2, len(self.problem.tasks), dtype=torch.float64, device=self.device)
        self.model.eval()
        for batch in self.problem.batches("validation", 0, self.budget.batch_size, self.device):
            for t, loss in enumerate(self.problem.losses(self.model, batch)):
                if loss is not None:
                    sums[t] += loss * len(batch[0])
                    rows[t] += len(batch[0])
        self.model.train()
        with self.watched():
            self.method.begin_epoch(sums / rows)

    def after_step(self, batch: Any, step: Step) -> None:
        with torch.no_grad():
            after = self.problem.losses(self.model, batch)
        if not step.absent:
            self.method.after_step(torch.stack(after))
            return
        places = [t for t in range(len(after)) if t not in step.absent]
        with present(self.method, places) as few:
            few.after_step(torch.stack([after[t] for t in places]))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn a loss or gradient that cannot be used into a failure with its place, which may be an earlier step."""
        try:
            yield
        except (NonFiniteError, NonPositiveError) as error:
            self.check()
            named = re.search(r"task (\d+)", str(error))
            task = self.problem.tasks[int(named[1])] if named else None
            status = "non-positive" if isinstance(error, NonPositiveError) else "non-finite"
            raise Failure(str(error), self.epoch, self.step, task, status) from error

    def check(self) -> None:
        """Fetch what waits; raise if a loss, weight or gradient norm was not finite, naming the first one."""
        if bad := self.trace.first_bad():
            step, index, what = bad
            task = self.problem.tasks[index]
            raise Failure(f"the {what} of task {task!r} is not finite", self.epoch, step, task)

    def end_epoch(self, select: str, sign: float) -> dict[str, Any]:
        """Validate, keep the best state, write one line of history."""
        self.check()
        if self.last is not None:
            with self.watched():
                self.last.check()
        self.method.end_epoch()
        values = finite(
            self.problem.evaluate(self.model, "validation", self.device), "validation", self.epoch, self.problem.tasks
        )
        if select not in values:
            raise ValueError(f"select: {select!r} is not among the validation metrics {sorted(values)}")
        losses, weights, gram, residual, converged = (self.trace.get(name) for name in Trace.names)
        assert losses is not None
        rates = None
        if gram is not None and self.method.needs != "features":  # their K is not that of the parameters
            rates = losses / gram.diagonal(dim1=1, dim2=2).sqrt()
        if weights is not None:
            first = self.total - len(weights)
            kept = range(-first % self.every, len(weights), self.every)
            self.points += [(first + i, weights[i].tolist()) for i in kept]
        extra = {}
        if self.budget.last is not None and self.epoch >= self.budget.epochs - self.budget.last:
            shown = self.problem.evaluate(self.model, "test", self.device)
            extra = {"test": finite(shown, "test", self.epoch, self.problem.tasks)}
        self.history.append(
            plain(
                {
                    "epoch": self.epoch,
                    "steps": self.total,
                    "losses": self.trace.mean(losses),
                    "weights": None if weights is None else weights.mean(0),
                    "rates": None if rates is None else self.trace.mean(rates),
                    "residual": None if residual is None else residual.max(),
                    "unconverged": None if converged is None else int((converged == 0).sum()),
                    "validation": values,
                }
                | extra
            )
        )
        if sign * values[select] > self.best_value:
            self.best_value, self.best_epoch = sign * values[select], self.epoch
            self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.epoch, self.step, self.trace = self.epoch + 1, 0, Trace()
        return self.history[-1]

    @property
    def done(self) -> bool:
        waited = self.epoch - 1 - self.best_epoch
        patience = self.budget.patience
        return self.epoch >= self.budget.epochs or (patience is not None and self.epoch > 0 and waited >= patience)

    def factor(self, step: int) -> float:
        """What the learning rates are multiplied by at a step of this epoch, counted from the run's first."""
        if self.budget.one_cycle is None:
            return 0.5 if self.budget.halve_at is not None and self.epoch >= self.budget.halve_at else 1.0
        if step >= len(self.cycle):
            name, rows = self.problem.name, self.problem.sizes["train"]
            raise RunError(f"problem {name!r}: must give {len(self.cycle)} batches of {rows} rows in all, found more")
        return self.cycle[step]

    def batches(self) -> Iterator[Any]:
        """The batches of this epoch."""
        given = {"drop_last": True} if self.budget.drop_last else {}  # a problem of one's own need not know of it
        return iter(self.problem.batches("train", self.order, self.budget.batch_size, self.device, **given))

    @property
    def order(self) -> int:
        """The seed of this epoch's batches."""
        return int(np.random.SeedSequence((self.seed, self.epoch)).generate_state(1)[0])

    def run(self, select: str, sign: float, save: Callable[[], None], progress: Progress | None) -> None:
        while not self.done:
            if self.method.wants_validation and self.step == 0:
                self.begin_epoch()
            self.model.train()
            remaining = self.batches()
            state = self.generators()
            for _ in range(self.step):
                next(remaining)
            self.set_generators(state)  # what the skipped batches drew had been drawn before the stop
            for batch in remaining:
                self.batch(batch)
                save()
            if self.step == 0:
                raise RunError(f"problem {self.problem.name!r}: its training split gave no batch")
            line = self.end_epoch(select, sign)
            if progress is not None:
                progress({**line, "epochs": self.budget.epochs, "best_epoch": self.best_epoch})

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of all optimisers; a resumed optimiser has new ones."""
        return [*self.optimizer.param_groups, *(self.sgd.param_groups if self.sgd else ())]

    def generators(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def set_generators(self, state: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"].cpu())
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"].cpu(), self.device)

    counters = ("epoch", "step", "total", "best_epoch", "best_value", "history", "points", "best")

    def state_dict(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "method": self.method,
            "trace": self.trace,
        }
        state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        state["learned"] = [p.detach() for p in self.method.parameters()]
        return state | {"generators": self.generators()} | {name: getattr(self, name) for name in self.counters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("model", "optimizer", "trace", "method"):
            getattr(self, name).load_state_dict(state[name])
        with torch.no_grad():
            for p, saved in zip(self.method.parameters(), state["learned"], strict=True):
                p.copy_(saved)
        for name in self.counters:
            setattr(self, name, state[name])
        self.set_generators(state["generators"])
