"""The one training loop: any problem, any method, early stopping on validation, exact resume."""

import hashlib
import io
import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtl import sources
from mtl.errors import RunError
from mtl.files import atomic, seal, unseal
from mtl.gradients.layers import used
from mtl.methods.base import Method, made, whole
from mtl.problems.base import Problem
from mtl.training.loop import Budget, Loop, Progress, placed, spent
from mtl.training.trace import Failure, direction, finite

__all__ = ["Budget", "Run", "fit"]

Values = Mapping[str, float | None]


@dataclass
class Run:
    """A finished run: what became of it, one dict per epoch, weights (points, T) at `steps`, the best model."""

    seed: int
    status: str  # "ok", or the kind of failure
    failure: dict[str, Any] | None
    metrics: Values  # of the best epoch on the test rows; None where the run failed
    validation: Values
    last: Values | None  # on the test rows, averaged over the last epochs, if the budget asks for it
    best_epoch: int | None
    n_steps: int
    wall_s: float
    certificate: float | None  # the largest residual of a method that solves
    unconverged: int | None
    history: list[dict[str, Any]]
    weights: np.ndarray[Any, np.dtype[np.float64]]
    steps: np.ndarray[Any, np.dtype[np.int64]]
    model: nn.Module
    modules: list[str]  # that its numbers depend on, with all that these import

    @property
    def trace(self) -> list[list[float]]:
        """[step, weights...] at each point, to six digits."""
        pairs = zip(self.steps.tolist(), self.weights.tolist(), strict=True)
        return [[step, *(float(f"{w:.6g}") for w in weights)] for step, weights in pairs]


def fit(
    problem: Problem,
    method: Method,
    *,
    model: str,
    seed: int,
    budget: Budget,
    device: torch.device | str = "cpu",
    select: str = "score",
    init_seed: int | None = None,
    checkpoint: Path | str | None = None,
    checkpoint_every: float = 30.0,
    progress: Progress | None = None,
) -> Run:
    """Train one model with one fresh method; validation chooses the epoch, test rows only report.

    A method that has made steps brings what it has learned, and is refused; one without a state may come again.

    `select` names the validation metric. `checkpoint` is written every `checkpoint_every` seconds (0: each
    step) and resumed from if it exists, bit-identically on the CPU; who owns the file removes it. It ends in the
    sha256 of its content: a damaged one is refused.
    A loss, gradient or metric that is not finite ends the run with status "non-finite" and its place, a loss
    that is not positive for a method that takes logarithms with "non-positive".
    The global generators are as they were when this returns.

    `seed` decides the order of the data, and where `init_seed` is not given also the initialisation and what the model
    draws in training. Two runs of one seed with different ones, and methods that draw from different generators, tell
    what these alone do to a metric.

    Where a batch has no labels for a task, the problem's `losses` return None for it: its weight, head and state rest
    in that step, and history's means are over the steps that had it.

    With data of one's own, here two labels (B, 2) that both are the sign of the first input:

    >>> from mtl.methods import method
    >>> from mtl.models.base import Branched, seeded
    >>> from mtl.problems.base import BinaryProblem
    >>> class Signs(BinaryProblem):
    ...     name, models = "signs", ("small",)
    ...     def model(self, name, seed, **sizes):
    ...         with seeded(seed):
    ...             return Branched(nn.Linear(3, 8), [nn.Linear(8, 1), nn.Linear(8, 1)])
    >>> x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    >>> y = (x[:, :1] > 0).float().expand(-1, 2)
    >>> parts = {"train": (x[:200], y[:200]), "validation": (x[200:250], y[200:250]), "test": (x[250:], y[250:])}
    >>> data = Signs("smoke", ["one", "other"], parts, source="drawn here", fingerprint="1")
    >>> run = fit(data, method("fairgrad", n_tasks=2), model="small", seed=0, budget=Budget(30, 50, lr=0.01))
    >>> run.status, round(run.metrics["score"], 1), run.weights.shape
    ('ok', 1.0, (120, 2))
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"problem: must be one made by mtl.problem(name), found {problem!r}")
    if used(made(method)) and method.state_dict() | dict(enumerate(method.parameters())):
        raise ValueError(f"method: must be fresh, found a {type(method).__name__} that has made steps; make another")
    budget, device, seed = spent(budget), placed(device), whole("seed", seed, 0)
    start = seed if init_seed is None else whole("init_seed", init_seed, 0)
    sign = direction(problem, select)
    path = None if checkpoint is None else Path(checkpoint)
    label = "" if path is None else identity(problem, method, model, (seed, start), budget, select, device)
    made_by = [] if path is None else [sources.digest(modules(problem, method)), str(torch.__version__)]
    started = last = time.perf_counter()
    failure: Failure | None = None
    test: dict[str, float] = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Dropout takes no generator: the global ones are seeded here, and fork_rng gives the caller's back.
        torch.random.default_generator.manual_seed(start)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(start)
        loop = Loop(problem, method, model, seed, budget, device, start)
        if path is not None and path.exists():
            _resume(loop, path, label, made_by)

        def save() -> None:
            nonlocal last
            if path is None or (now := time.perf_counter()) - last < checkpoint_every:
                return
            saved = {"key": label, "sources": made_by, "wall": loop.wall + now - started}
            with atomic(path) as part:
                with part.open("wb") as file:  # by name, torch refuses one without a suffix
                    torch.save(saved | {"loop": loop.state_dict()}, file)
                seal(part)
            last = time.perf_counter()

        try:
            loop.run(select, sign, save, progress)
            loop.model.load_state_dict(loop.best)
            test = finite(problem.evaluate(loop.model, "test", device), "test", loop.best_epoch, problem.tasks)
        except Failure as met:
            failure = met
    return finished(loop, test, failure, loop.wall + time.perf_counter() - started)


def _resume(loop: Loop, path: Path, label: str, made_by: Sequence[str]) -> None:
    try:
        saved = torch.load(io.BytesIO(unseal(path)), map_location="cpu", weights_only=True)
        owner, its = saved["key"], saved["sources"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise RunError(
            f"checkpoint {path.name}: cannot be read ({type(error).__name__}); remove it to start afresh"
        ) from error
    if owner != label:
        raise RunError(f"checkpoint {path.name}: belongs to run {owner}, not to {label}; name another file")
    if its != made_by:
        warnings.warn(f"checkpoint {path.name}: made by older sources; the run starts afresh", stacklevel=4)
        return
    loop.load_state_dict(saved["loop"])
    loop.wall = saved["wall"]


def parts(chosen: Method) -> Iterator[Method]:
    """A method, and those that it is built on."""
    yield chosen
    for inner in vars(chosen).values():
        if isinstance(inner, Method):
            yield from parts(inner)


def modules(problem: Problem, method: Method, trainer: str = __name__) -> list[str]:
    """The modules that a run begins with: of its problem, its method and what that is built on, and of its trainer.

    For a class from outside of this package it is that of the first class inside which it inherits from.

    >>> from mtl import method, problem
    >>> modules(problem("digits"), method("fair-loss", n_tasks=2, base="mgda"))
    ['mtl.methods.emtl', 'mtl.methods.gram', 'mtl.problems.digits', 'mtl.training.fit']
    """
    kinds = [type(problem), *map(type, parts(method))]
    own = [[base.__module__ for base in kind.__mro__ if base.__module__.startswith("mtl.")] for kind in kinds]
    return sorted({trainer, *(names[0] for names in own)})


def identity(
    problem: Problem,
    method: Method,
    model: str,
    seeds: tuple[int, int],
    budget: Budget,
    select: str,
    device: torch.device,
) -> str:
    """Sixteen digits of a hash over all that decides a run: whose a checkpoint is."""

    def told(value: Any) -> Any:
        if isinstance(value, Method):
            kind = type(value)
            return {"kind": f"{kind.__module__}.{kind.__qualname__}", "code": sources.class_digest(kind), **vars(value)}
        if isinstance(value, torch.Generator):
            value = value.get_state()
        return value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else type(value).__name__

    data = [problem.name, problem.scale, problem.options, problem.fingerprint, sources.class_digest(type(problem))]
    text = json.dumps([data, method, model, seeds, asdict(budget), select, device.type], default=told)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def finished(
    loop: Loop, test: Mapping[str, float], failure: Failure | None, wall: float, trainer: str = __name__
) -> Run:
    """The run of a loop that has ended, with test metrics or the failure that it ended with."""
    problem, history = loop.problem, loop.history
    residuals = [line["residual"] for line in history if line["residual"] is not None]
    unconverged = [line["unconverged"] for line in history if line["unconverged"] is not None]
    last = [line["test"] for line in history if "test" in line]
    nothing: Values = dict.fromkeys([f"{m.task}/{m.name}" for m in problem.metrics] + ["score"])
    return Run(
        seed=loop.seed,
        status=failure.status if failure else "ok",
        failure=failure.entry if failure else None,
        metrics=nothing if failure else test,
        validation=history[loop.best_epoch]["validation"] if loop.best_epoch >= 0 else nothing,
        last=None if failure or not last else {k: float(np.mean([line[k] for line in last])) for k in last[0]},
        best_epoch=loop.best_epoch if loop.best_epoch >= 0 else None,
        n_steps=loop.total,
        wall_s=wall,
        certificate=max(residuals, default=None),
        unconverged=sum(unconverged) if unconverged else None,
        history=history,
        weights=np.array([w for _, w in loop.points], np.float64).reshape(len(loop.points), len(problem.tasks)),
        steps=np.array([step for step, _ in loop.points], np.int64),
        model=loop.model,
        modules=modules(problem, loop.method, trainer),
    )
