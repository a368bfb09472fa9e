"""A grid of runs: which there are, and how one of them becomes a row."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock, Timeout

from mtl.errors import RunError
from mtl.files import root
from mtl.ledger import Ledger, Row, canonical, key, plain, provenance
from mtl.methods import digest_of as method_digest
from mtl.methods.base import whole
from mtl.models.base import MultiTaskModel
from mtl.problems import Problem, problem, registered
from mtl.problems import digest_of as problem_digest
from mtl.training.fit import Budget, Run, fit
from mtl.training.together import fresh

Point = Mapping[str, Any]
STL_MODEL = "single-task"
OWN = ("problem", "scale", "options", "method", "hyper", "model", "seed", "select")  # of a row's configuration
OUTCOME = (  # what a row takes from its run as it is
    "status", "failure", "metrics", "last", "validation", "best_epoch", "certificate", "unconverged", "history",
    "trace",
)  # fmt: skip
BUDGET_KEYS = ("lr", "weight_decay")  # what a hyperparameter point may say of the budget


class Refused(RunError):
    """A worker whose rows could not be compared with the others: no run may go to it."""


@dataclass(frozen=True)
class Cell:
    """One run: its label in tables, all that decides it but the device, the data that it will read.

    `init_seed` decides the initialisation and the method's draws where `seed` shall only order the data; see `twin`.
    """

    label: str
    problem: str  # the one found, which stands in for `wanted` where `stands_in`
    scale: str
    options: Mapping[str, Any]
    method: str
    hyper: Mapping[str, Any]
    model: str
    seed: int
    budget: Budget
    select: str
    fingerprint: str
    wanted: str
    fallback: str | None = None
    stands_in: bool = False
    init_seed: int | None = None

    def __post_init__(self) -> None:
        if self.init_seed is not None:
            whole("init_seed", self.init_seed, 0)
        for name in ("options", "hyper", "seed"):  # a run is the same whether its point came from a grid or from a row
            object.__setattr__(self, name, canonical(getattr(self, name), name))

    @classmethod
    def of(cls, row: Row) -> "Cell":
        """The cell of a row. Raises ValueError for a row of a study of its own, which no cell gives."""
        config = row.get("config", {})
        if missing := [name for name in (*OWN, "budget") if name not in config]:
            raise ValueError(f"row: {row['key']} must be of one run of a method, found no {min(missing)} in it")
        own = {name: config[name] for name in OWN}
        wanted = config.get("stands_in_for")
        try:
            return cls(
                config["method"],
                **own,
                budget=Budget(**config["budget"]),
                fingerprint=row["fingerprint"],
                wanted=wanted or registered(config["problem"], config["options"]),
                fallback=config["problem"] if wanted else None,
                stands_in=wanted is not None,
                init_seed=config.get("init_seed"),
            )
        except (TypeError, KeyError, AttributeError) as wrong:
            raise ValueError(f"row: {row['key']} must be of one run of a method, found {wrong!r} in it") from wrong

    @property
    def config(self) -> dict[str, Any]:
        """As a row holds it, all but the device: what keys are made of."""
        own = {name: getattr(self, name) for name in OWN}
        stand_in = {"stands_in_for": self.wanted} if self.stands_in else {}
        start = {} if self.init_seed is None else {"init_seed": self.init_seed}
        outside = [problem_digest(self.wanted), method_digest(self.method)]  # of the caller's classes, which change
        code = {"code": outside} if any(outside) else {}
        found: dict[str, Any] = canonical(own | {"budget": self.budget.settings()} | stand_in | start | code)
        return found

    def key(self, device: str = "cpu") -> str:
        """The ledger key of this run on a kind of device."""
        return key({**self.config, "device": device}, self.fingerprint)

    def __str__(self) -> str:
        task = self.hyper.get("task")
        part = "" if task is None else f" task {task}"
        start = "" if self.init_seed is None else f" from {self.init_seed}"
        return f"{self.label}{part} · {self.model} · seed {self.seed}{start}"

    def twin(self) -> "Cell":
        """The same run from another initialisation and method generator, for A/A rows: the data's order is the same.

        >>> cell = grid("digits", [("LS", "ls", {})], ["mlp"], [3], "smoke", Budget(1, 64))[0]
        >>> str(cell.twin())
        'LS A/A · mlp · seed 3 from 1000003'
        """
        return replace(self, label=f"{self.label} A/A", init_seed=self.seed + 1_000_000)


@lru_cache(maxsize=2)
def _build(wanted: str, scale: str, fallback: str | None, options: tuple[tuple[str, Any], ...]) -> Problem:
    return problem(wanted, scale, fallback=fallback, **dict(options))


def build(cell: Cell) -> Problem:
    """The problem of a cell, kept for the next cell of the same data; RunError if these are no longer the cell's."""
    data = _build(cell.wanted, cell.scale, cell.fallback, tuple(sorted(cell.options.items())))
    if data.fingerprint != cell.fingerprint:
        raise RunError(f"{cell}: its data must be {cell.fingerprint}, found others here: {data.fingerprint}")
    return data


def grid(
    wanted: str,
    methods: Iterable[tuple[str, str, Point]],
    models: Sequence[str],
    seeds: Iterable[int],
    scale: str,
    budget: Budget,
    *,
    fallback: str | None = None,
    **options: Any,
) -> list[Cell]:
    """Runs of (label, method, hyperparameters) x models x seeds, seeds outermost: a stopped grid is a smaller one.

    A hyperparameter point may hold `lr` and `weight_decay`, which go to the budget, and the one `model` that it is for.
    "stl" becomes one run per task of the single-task model, each stopped by its own task's score; see `combine_stl`. A
    stand-in that lacks a model takes its own first one, as its rows then say. Raises ValueError for an unknown model.

    >>> [str(c) for c in grid("digits", [("LS", "ls", {})], ["mlp"], [0, 1], "smoke", Budget(1, 64))]
    ['LS · mlp · seed 0', 'LS · mlp · seed 1']
    """
    data = _build(wanted, scale, fallback, tuple(sorted(options.items())))
    if data.embedded_default:
        models = list(dict.fromkeys(m if m in data.models else data.models[0] for m in models))
    methods = list(methods)
    named = [*models, *(point["model"] for _, _, point in methods if "model" in point)]
    if unknown := [m for m in named if m not in data.models]:
        raise ValueError(f"models: {data.name} has {', '.join(data.models)}, found {unknown[0]!r}")
    cells = []
    for seed in seeds:
        for label, name, point in methods:
            nets = [point["model"]] if "model" in point else models
            runs = [(model, point, "score") for model in nets]
            if name == "stl":
                own_net = f"{STL_MODEL}-{models[0]}"
                net = own_net if own_net in data.models else STL_MODEL
                runs = [(net, alone(point, k), f"{task}/score") for k, task in enumerate(data.tasks)]
            for model, settings, select in runs:
                own, hyper = split(settings, budget)
                cells.append(Cell(
                    label, data.name, scale, options, name, hyper, model, seed, own, select, data.fingerprint,
                    wanted, fallback, stands_in=data.embedded_default,
                ))  # fmt: skip
    return cells


def split(point: Point, budget: Budget) -> tuple[Budget, dict[str, Any]]:
    """The budget with what a point says of it, and the method's own hyperparameters.

    >>> split({"lr": 0.1, "alpha": 2.0}, Budget(1, 64))[0].lr, split({"lr": 0.1, "alpha": 2.0}, Budget(1, 64))[1]
    (0.1, {'alpha': 2.0})
    """
    own = replace(budget, **{k: v for k, v in point.items() if k in BUDGET_KEYS})
    return own, {k: v for k, v in point.items() if k not in (*BUDGET_KEYS, "model")}


def alone(point: Point, task: int) -> dict[str, Any]:
    """STL's point for one task: of a list its own value, where it has one.

    >>> alone({"lr": [0.1, 0.2]}, 1)
    {'lr': 0.2, 'task': 1}
    """
    own = {k: v[task] if isinstance(v, list) else v for k, v in point.items()}
    return {k: v for k, v in own.items() if v is not None} | {"task": task}


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are cut into as many parts as there are threads: one thread, so that every machine cuts alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def row_of(cell: Cell, run: Run, device: str = "cpu") -> Row:
    """The ledger row of a run that a cell describes, made where and when it ran."""
    data, kind = build(cell), torch.device(device).type
    row: Row = plain(
        {
            "key": cell.key(kind),
            "config": cell.config | {"device": kind},
            "fingerprint": data.fingerprint,
            "epochs": len(run.history),
            "steps": run.n_steps,
            "wall_s": round(run.wall_s, 3),
            "provenance": provenance(device, run.modules),
            "embedded_default": data.embedded_default,
            "synthetic": data.synthetic,
            "source": data.source,
        }
        | {name: getattr(run, name) for name in OUTCOME}
    )
    return row


@contextmanager
def locked(name: str) -> Iterator[Path]:
    """The checkpoint of a run, under the lock in which one process runs it; the others say that they wait for its row.

    Once the row is written, whoever waits finds it and runs nothing: the lock goes with the run.
    """
    path = root() / "data" / "checkpoints" / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        held = lock.acquire(timeout=1)
    except Timeout:
        logging.getLogger(__name__).warning("run %s is at work in another process; waiting for its row", name)
        held = lock.acquire()
    with held:
        yield path
        path.with_suffix(".lock").unlink(missing_ok=True)


def run_cell(
    cell: Cell, book: Ledger | None, device: str = "cpu", checkpoints: bool = True, older: bool = False
) -> Row:
    """Run one cell and append its row, unless another process has done so meanwhile; no `book`: the caller writes."""
    name = cell.key(torch.device(device).type)
    with locked(name) as path:
        if book is None or (row := book.find(name, older)) is None:
            row = _made(cell, device, path if checkpoints else None)
            if book is not None:
                book.append(row)  # which has read it back
            path.unlink(missing_ok=True)
    return row


def fitted(cell: Cell, data: Problem, device: str, **how: Any) -> Run:
    """The run of a cell on its data; `how` goes to `fit`."""
    start = cell.seed if cell.init_seed is None else cell.init_seed
    return fit(
        data,
        fresh(cell.method, len(data.tasks), start, cell.hyper),
        model=cell.model,
        seed=cell.seed,
        init_seed=cell.init_seed,
        budget=cell.budget,
        device=device,
        select=cell.select,
        **how,
    )


def _made(cell: Cell, device: str, checkpoint: Path | None = None) -> Row:
    with one_thread():
        return row_of(cell, fitted(cell, build(cell), device, checkpoint=checkpoint), device)


def refit(cell: Cell, changes: Mapping[str, Any] | None = None, device: str = "cpu") -> MultiTaskModel:
    """The model of a run, trained anew, since ledgers keep none; `changes` replace fields of the cell."""
    with one_thread():
        changed = replace(cell, **(changes or {}))
        return cast(MultiTaskModel, fitted(changed, build(changed), device).model)


def again(row: Row, device: str = "cpu") -> Row:
    """The row that a ledger row's configuration gives here and now; RunError where the data are not the same."""
    return _made(Cell.of(row), device)
