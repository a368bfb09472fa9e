"""A grid of runs: which there are, and one of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock

from mtl.errors import RunError
from mtl.files import root
from mtl.ledger import Ledger, Row, canonical, key
from mtl.models.base import MultiTaskModel
from mtl.problems import Problem, problem
from mtl.training.fit import Budget, Run, fit
from mtl.training.together import fresh

Point = Mapping[str, Any]
STL_MODEL = "single-task"
BUDGET_KEYS = ("lr", "weight_decay")  # what a hyperparameter point may say of the budget


@dataclass(frozen=True)
class Cell:
    """One run: its label in tables, its configuration (all but the device), the data it will read."""

    label: str
    config: Row
    fingerprint: str
    wanted: str  # the problem asked for; config["problem"] is the one found
    fallback: str | None = None

    def key(self, device: str = "cpu") -> str:
        """The ledger key of this run on a kind of device."""
        return key({**self.config, "device": device}, self.fingerprint)

    def __str__(self) -> str:
        task = self.config["hyper"].get("task")
        part = "" if task is None else f" task {task}"
        return f"{self.label}{part} · {self.config['model']} · seed {self.config['seed']}"


@lru_cache(maxsize=2)
def _build(wanted: str, scale: str, fallback: str | None, options: tuple[tuple[str, Any], ...]) -> Problem:
    return problem(wanted, scale, fallback=fallback, **dict(options))


def build(cell: Cell) -> Problem:
    """The problem of a cell, kept for the next cell of the same data."""
    options = tuple(sorted(cell.config["options"].items()))
    return _build(cell.wanted, cell.config["scale"], cell.fallback, options)


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

    A hyperparameter point may hold `lr` and `weight_decay`, which go to the budget. "stl" becomes one run per
    task of the single-task model, each stopped by its own task's score; see `combine_stl`. A stand-in that
    lacks a model takes its own first one, which its rows then say. Raises ValueError for an unknown model.

    >>> [str(c) for c in grid("digits", [("LS", "ls", {})], ["mlp"], [0, 1], "smoke", Budget(1, 64))]
    ['LS · mlp · seed 0', 'LS · mlp · seed 1']
    """
    data = _build(wanted, scale, fallback, tuple(sorted(options.items())))
    shared: Row = {"problem": data.name, "scale": scale, "options": options}
    if data.embedded_default:
        shared["stands_in_for"] = wanted
        models = list(dict.fromkeys(m if m in data.models else data.models[0] for m in models))
    if unknown := [m for m in models if m not in data.models]:
        raise ValueError(f"models: {data.name} has {', '.join(data.models)}, found {unknown[0]!r}")
    cells = []
    for seed in seeds:
        for label, name, point in methods:
            own = replace(budget, **{k: v for k, v in point.items() if k in BUDGET_KEYS})
            hyper = {k: v for k, v in point.items() if k not in BUDGET_KEYS}
            runs = [(model, hyper, "score") for model in models]
            if name == "stl":
                runs = [(STL_MODEL, {**hyper, "task": k}, f"{task}/score") for k, task in enumerate(data.tasks)]
            for model, settings, select in runs:
                config = shared | {"method": name, "hyper": settings, "model": model, "seed": seed, "select": select}
                config["budget"] = own.settings()
                cells.append(Cell(label, canonical(config), data.fingerprint, wanted, fallback))
    return cells


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are cut into as many parts as there are threads: one thread, so that every machine cuts alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def unchanged(cell: Cell) -> Problem:
    """The problem of a cell; RunError if its data are not those that the cell was made for."""
    data = build(cell)
    if data.fingerprint != cell.fingerprint:
        raise RunError(f"{cell}: the data changed under the run: {cell.fingerprint} became {data.fingerprint}")
    return data


def run_cell(cell: Cell, book: Ledger, device: str = "cpu", checkpoints: bool = True, older: bool = False) -> Row:
    """Run one cell and append its row, unless another process has done so meanwhile."""
    kind = torch.device(device).type
    name = cell.key(kind)
    path = root() / "data" / "checkpoints" / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    with FileLock(lock):
        if (row := book.latest(older).get(name)) is None:
            row = _fit(cell, unchanged(cell), device, path if checkpoints else None).row
            if row["key"] != name:
                raise RunError(f"{cell}: its row has key {row['key']} instead of {name}")
            book.append(row)
            path.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)  # the row is written: whoever waits for this lock finds it and runs nothing
    return row


def _fit(cell: Cell, data: Problem, device: str, checkpoint: Path | None = None) -> Run:
    config = cell.config
    with one_thread():
        return fit(
            data,
            fresh(config["method"], len(data.tasks), config["seed"], config["hyper"]),
            model=config["model"],
            seed=config["seed"],
            budget=Budget(**config["budget"]),
            device=device,
            select=config["select"],
            checkpoint=checkpoint,
            config=config,
        )


def refit(cell: Cell, changes: Mapping[str, Any] | None = None, device: str = "cpu") -> MultiTaskModel:
    """The model of a run, trained anew, since ledgers keep none; `changes` replace parts of the configuration."""
    return cast(
        MultiTaskModel, _fit(replace(cell, config={**cell.config, **(changes or {})}), build(cell), device).model
    )


def again(row: Row, device: str = "cpu") -> Row:
    """The row that a ledger row's configuration gives here and now; RunError where the data are not the same."""
    config = {name: value for name, value in row["config"].items() if name not in ("device", "stands_in_for")}
    wanted = row["config"].get("stands_in_for")
    cell = Cell(config["method"], config, row["fingerprint"], wanted or config["problem"], wanted and config["problem"])
    data = build(cell)
    if data.fingerprint != row["fingerprint"]:
        raise RunError(f"{row['key']}: the data read here are others: {data.fingerprint}, not {row['fingerprint']}")
    return _fit(cell, data, device).row
