"""Several seeds of one method and model trained together, with the runs that `fit` gives one by one."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl.errors import RunError
from mtl.methods import method
from mtl.methods.base import Method
from mtl.problems.base import Problem
from mtl.training.fit import Run, finished
from mtl.training.loop import Budget, Loop, placed, spent
from mtl.training.stacked import Group, Methods
from mtl.training.trace import Failure, direction, finite

__all__ = ["fit_seeds", "fresh", "refusal"]


def fresh(name: str, n_tasks: int, seed: int, hyper: Mapping[str, Any]) -> Method:
    """The method of one run: one that draws does so anew for each seed.

    >>> fresh("rlw", 2, 5, {}).generator.initial_seed()
    5
    """
    return method(name, n_tasks=n_tasks, **{"seed": seed, **hyper})


def refusal(chosen: Method, net: nn.Module) -> str | None:
    """Why seeds of this method and model cannot be trained together, or None."""
    if chosen.needs not in ("losses", "gram") or chosen.replaces_adam:
        found = f"{type(chosen).__name__}, which needs {chosen.needs}"
        return f"name: must be a method that needs losses or the Gram matrix where seeds train together, found {found}"
    if chosen.wants_validation:
        return f"name: must be a method that hears no validation losses where seeds train together, found {chosen!r}"
    for part in net.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd):
            return f"model: must draw nothing and keep no statistics where seeds train together, found {part}"
    return None


def fit_seeds(
    problem: Problem,
    name: str,
    hyper: Mapping[str, Any],
    *,
    model: str,
    seeds: Sequence[int],
    budget: Budget,
    device: torch.device | str = "cpu",
    select: str = "score",
    done: Callable[[Run], None] | None = None,
) -> list[Run]:
    """Train `seeds` of one method and model side by side: `fit` for each, to rounding, in about the time of one.

    Parameters are stacked, (S, ...); batches, their order, weights, early stopping and failures are each seed's own.
    A seed that stops or fails leaves the stack, and `done` hears of it at once; `wall_s` is the run's share of the
    time. There is no checkpoint. A value that is not finite is found at the end of its epoch. The global generators
    are as they were when this returns.

    Raises ValueError for a method or model that `refusal` names, for seeds that are not distinct, and for a problem
    that draws from the global generator: seeds would share its draws.

    >>> from mtl.problems import problem
    >>> runs = fit_seeds(problem("digits"), "mgda", {}, model="mlp", seeds=[0, 1], budget=Budget(1, 256))
    >>> [(run.seed, run.status, len(run.history)) for run in runs]
    [(0, 'ok', 1), (1, 'ok', 1)]
    """
    budget, device, seeds = spent(budget), placed(device), list(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: must be distinct, and one at least, found {seeds}")
    sign = direction(problem, select)
    own = [fresh(name, len(problem.tasks), seed, hyper) for seed in seeds]
    runs: dict[int, Run] = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        loops = []
        for seed, chosen in zip(seeds, own, strict=True):
            torch.random.default_generator.manual_seed(seed)  # as `fit` does before it makes the model
            loops.append(Loop(problem, chosen, model, seed, budget, device))
        if why := refusal(own[0], loops[0].model):
            raise ValueError(why)
        methods = Methods(own, fresh(name, len(problem.tasks), seeds[0], hyper), device)
        group = Group(loops, methods)
        while group.loops:
            started = time.perf_counter()
            _epoch(group, problem)
            ended = [(loop, *_outcome(loop, select, sign)) for loop in group.loops]
            taken = (time.perf_counter() - started) / len(group.loops)
            for loop in group.loops:
                loop.wall += taken
            over = [(loop, test, failure) for loop, test, failure in ended if test is not None or failure]
            for loop, test, failure in over:
                runs[loop.seed] = run = finished(loop, test or {}, failure, loop.wall, __name__)
                if done is not None:
                    done(run)
            gone = [loop for loop, _, _ in over]
            group.keep([loop for loop in group.loops if loop not in gone])
    return [runs[seed] for seed in seeds]


def _epoch(group: Group, problem: Problem) -> None:
    before = group.loops[0].generators()
    for rows in zip(*(loop.batches() for loop in group.loops), strict=True):
        group.step(tuple(torch.stack(parts) for parts in zip(*rows, strict=True)))
    group.fetch()
    if group.loops[0].step == 0:
        raise RunError(f"problem {problem.name!r}: its training split gave no batch")
    if not group.methods.draws:
        group.methods.many.end_epoch()
    after = group.loops[0].generators()
    if any(not torch.equal(before[kind], after[kind]) for kind in before):
        raise ValueError(
            f"problem: must not draw from the global generator where seeds train together, found that "
            f"{problem.name} does; train its seeds one by one"
        )


def _outcome(loop: Loop, select: str, sign: float) -> tuple[dict[str, float] | None, Failure | None]:
    """Test metrics of a seed that has come to its end, or how it failed, or (None, None)."""
    try:
        _check_positive(loop)
        loop.end_epoch(select, sign)
        if not loop.done:
            return None, None
        loop.model.load_state_dict(loop.best, assign=True)  # the stack goes on without this seed
        test = loop.problem.evaluate(loop.model, "test", loop.device)
        return finite(test, "test", loop.best_epoch, loop.problem.tasks), None
    except Failure as met:
        for p in loop.model.parameters():
            p.data = p.data.clone()
        return None, met


def _check_positive(loop: Loop) -> None:
    """Raise the first loss that has no meaning for the method, unless something broke before."""
    losses: Tensor | None = loop.trace.get("losses")
    if losses is None:
        return
    low, bad = loop.method.unusable(losses).nonzero(), loop.trace.first_bad()
    if len(low) and (bad is None or int(low[0, 0]) <= bad[0]):
        step, task = low[0].tolist()
        found = f"found {float(losses[step, task]):.6g} for task {task} ({type(loop.method).__name__})"
        rule = "positive" if loop.method.positive_losses else "at least 0 for an objective with a lower bound"
        raise Failure(f"losses: must be {rule}, {found}", loop.epoch, step, loop.problem.tasks[task], "non-positive")
