"""The one training loop: any problem, any method, early stopping on validation, exact resume."""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mtl.errors import RunError
from mtl.files import atomic
from mtl.ledger import canonical, key, plain, provenance, sources
from mtl.methods.base import Method
from mtl.problems.base import Problem
from mtl.training.loop import Budget, Loop, Progress
from mtl.training.trace import Failure, direction, finite

__all__ = ["Budget", "Run", "fit"]


@dataclass
class Run:
    """A finished run: its ledger row, one dict per epoch, weights (points, T) at `steps`, the best model."""

    row: dict[str, Any]
    history: list[dict[str, Any]]
    weights: np.ndarray[Any, np.dtype[np.float64]]
    steps: np.ndarray[Any, np.dtype[np.int64]]
    model: nn.Module


def _made_by() -> list[str]:
    return [sources(), str(torch.__version__)]


def _resume(loop: Loop, path: Path, name: str) -> None:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        owner, made_by = saved["key"], saved["sources"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise RunError(
            f"checkpoint {path.name}: cannot be read ({type(error).__name__}); remove it to start afresh"
        ) from error
    if owner != name:
        raise RunError(f"checkpoint {path.name}: belongs to run {owner}, not to {name}; name another file")
    if made_by != _made_by():
        warnings.warn(f"checkpoint {path.name}: made by older sources; the run starts afresh", stacklevel=4)
        return
    loop.load_state_dict(saved["loop"])
    loop.wall = saved["wall"]


def _mean(lines: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    return {name: float(np.mean([line[name] for line in lines])) for name in lines[0]} if lines else None


def fit(
    problem: Problem,
    method: Method,
    *,
    model: str,
    seed: int,
    budget: Budget,
    device: torch.device | str = "cpu",
    select: str = "score",
    checkpoint: Path | str | None = None,
    checkpoint_every: float = 30.0,
    progress: Progress | None = None,
    config: Mapping[str, Any] | None = None,
) -> Run:
    """Train one model with one fresh method; validation chooses the epoch, test rows only report.

    `select` names the validation metric. `checkpoint` is written every `checkpoint_every` seconds (0: each
    step) and resumed from if it exists, bit-identically on the CPU; who owns the file removes it. `config`
    adds to the row's configuration what the objects cannot tell (method name, hyperparameters, options).
    A loss, gradient or metric that is not finite ends the run with status "non-finite" and its place, a loss
    that is not positive for a method that takes logarithms with "non-positive".
    The global generators are as they were when this returns.
    """
    device = torch.device(device)
    sign = direction(problem, select)
    settings = describe(problem, method, model, budget, select, device) | {"seed": seed, **(config or {})}
    name = key(settings, problem.fingerprint)
    path = None if checkpoint is None else Path(checkpoint)
    started = last = time.perf_counter()
    failure: Failure | None = None
    test: dict[str, float] = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Dropout takes no generator: the global ones are seeded here, and fork_rng gives the caller's back.
        torch.random.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        loop = Loop(problem, method, model, seed, budget, device)
        if path is not None and path.exists():
            _resume(loop, path, name)

        def save() -> None:
            nonlocal last
            if path is None or (now := time.perf_counter()) - last < checkpoint_every:
                return
            saved = {"key": name, "sources": _made_by(), "wall": loop.wall + now - started}
            with atomic(path) as part:
                torch.save(saved | {"loop": loop.state_dict()}, part)
            last = time.perf_counter()

        try:
            loop.run(select, sign, save, progress)
            loop.model.load_state_dict(loop.best)
            test = finite(problem.evaluate(loop.model, "test", device), "test", loop.best_epoch, problem.tasks)
        except Failure as met:
            failure = met
    return finished(loop, settings, test, failure, loop.wall + time.perf_counter() - started)


def describe(
    problem: Problem, method: Method, model: str, budget: Budget, select: str, device: torch.device
) -> dict[str, Any]:
    """What the objects tell of a run's configuration, all but the seed."""
    return {
        "problem": problem.name,
        "scale": problem.scale,
        "method": type(method).__name__,
        "model": model,
        "budget": budget.settings(),
        "select": select,
        "device": device.type,
    }


def finished(
    loop: Loop, settings: Mapping[str, Any], test: Mapping[str, float], failure: Failure | None, wall: float
) -> Run:
    """The run of a loop that has ended, with test metrics or the failure that it ended with."""
    problem = loop.problem
    config = canonical(settings)
    residuals = [line["residual"] for line in loop.history if line["residual"] is not None]
    unconverged = [line["unconverged"] for line in loop.history if line["unconverged"] is not None]
    nothing = dict.fromkeys([f"{m.task}/{m.name}" for m in problem.metrics] + ["score"])
    row = {
        "key": key(config, problem.fingerprint),
        "config": config,
        "fingerprint": problem.fingerprint,
        "status": failure.status if failure else "ok",
        "failure": failure.entry if failure else None,
        "metrics": nothing if failure else test,
        "last": None if failure else _mean([line["test"] for line in loop.history if "test" in line]),
        "validation": loop.history[loop.best_epoch]["validation"] if loop.best_epoch >= 0 else nothing,
        "best_epoch": loop.best_epoch if loop.best_epoch >= 0 else None,
        "epochs": len(loop.history),
        "steps": loop.total,
        "wall_s": round(wall, 3),
        "certificate": max(residuals, default=None),
        "unconverged": sum(unconverged) if unconverged else None,
        "history": loop.history,
        "trace": [[step, *(float(f"{w:.6g}") for w in weights)] for step, weights in loop.points],
        "provenance": provenance(loop.device),
        "embedded_default": problem.embedded_default,
        "synthetic": problem.synthetic,
        "source": problem.source,
    }
    weights = np.array([w for _, w in loop.points], dtype=np.float64).reshape(len(loop.points), len(problem.tasks))
    steps = np.array([step for step, _ in loop.points], dtype=np.int64)
    return Run(plain(row), loop.history, weights, steps, loop.model)
