"""Table 1: its runs, tuned alike, and the published ones."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from mtl.experiments.base import Tuning, choose, combine_stl, published, tune
from mtl.experiments.table1.grids import BACKBONES, BUDGET, GRIDS, POINTS, SEEDS, points, whole_grid
from mtl.ledger import Ledger, Row
from mtl.report import frame
from mtl.runs.cells import Cell, Point, grid
from mtl.runs.engines import run_grid

HOW = ("jobs", "progress", "device", "accept", "deadline", "rerun_stale", "together")  # what is for `run_grid`


def table1(
    wanted: str,
    scale: str,
    *,
    ledger: Ledger,
    models: Sequence[str] = tuple(BACKBONES),
    methods: Sequence[str] = tuple(GRIDS),
    seeds: Sequence[int] | None = None,
    fallback: str | None = None,
    whole: bool = False,
    **options: Any,
) -> tuple[list[Row], Tuning | None]:
    """Rows of one data set, STL first, and how the points were chosen (None where the grid has one point).

    Each method's point is chosen on the first model and seed by the validation score, with as many points as every
    other method; then all seeds are run on all models. `whole`: EMTL alone, on its `whole_grid`. `jobs`, `progress`,
    ... go to `run_grid`.
    """
    how = {name: options.pop(name) for name in HOW if name in options}
    chosen = SEEDS[scale] if seeds is None else tuple(seeds)
    tasks, methods = options.get("tasks", 2), ["emtl"] if whole else methods
    grids = {name: whole_grid(scale, tasks) if whole else points(name, scale, tasks=tasks) for name in methods}
    tuning, best = None, {name: own[0] for name, own in grids.items()}
    if POINTS[scale] > 1:
        tuning = tune(
            wanted, grids, model=models[0], seeds=chosen[:1], scale=scale, budget=BUDGET[scale],
            options=options, fallback=fallback, ledger=ledger, **how,
        )  # fmt: skip
        best = {name: tuning.best[name] for name in methods}
    entries = [("stl", "stl", {}), *((name, name, best[name]) for name in methods)]
    cells = cells_of(wanted, entries, models, chosen, scale, fallback=fallback, **options)
    return combine_stl(run_grid(cells, ledger=ledger, **how)), tuning


def _choice(tasks: int, grids: Mapping[str, Sequence[Point]]) -> Tuning:
    """The point of each method that the published trials of scale study give by validation."""
    entries = [(f"{name} #{i}", name, point) for name, own in grids.items() for i, point in enumerate(own)]
    trials = [
        row
        for row in published("table1", "study", entries, BUDGET["study"], tasks=tasks)
        if row["config"]["seed"] == SEEDS["study"][0] and row["config"]["model"] == next(iter(BACKBONES))
    ]
    if not trials:
        raise LookupError(f"data/ledger/table1.jsonl: no rows of scale study with {tasks} tasks")
    return choose(entries, trials, 1)


def study(tasks: int) -> tuple[list[Row], Tuning]:
    """The published rows of scale study on Census with so many tasks: STL first, each method at the point that the
    published trials give by validation. Seeds that lack a run are left out. LookupError where no seed is whole."""
    tuning = _choice(tasks, {name: points(name, "study", tasks=tasks) for name in GRIDS})
    final = [("stl", "stl", {}), *((name, name, tuning.best[name]) for name in GRIDS)]
    rows = published("table1", "study", final, BUDGET["study"], tasks=tasks)
    runs = tasks + len(BACKBONES) * len(GRIDS)
    whole = [seed for seed in SEEDS["study"] if sum(row["config"]["seed"] == seed for row in rows) == runs]
    if not whole:
        raise LookupError(f"data/ledger/table1.jsonl: no seed of scale study with {tasks} tasks has all {runs} runs")
    return combine_stl([row for row in rows if row["config"]["seed"] in whole]), tuning


def searched(tasks: int) -> tuple[list[Row], Tuning]:
    """`study`, but with EMTL at the point that validation picks from its `whole_grid`."""
    rows, _ = study(tasks)
    tuning = _choice(tasks, {"emtl": whole_grid("study", tasks)})
    seeds = {row["config"]["seed"] for row in rows}
    final = [("emtl", "emtl", tuning.best["emtl"])]
    own = published("table1", "study", final, BUDGET["study"], tasks=tasks)
    own = [row for row in own if row["config"]["seed"] in seeds]
    if len(own) < len(BACKBONES) * len(seeds):
        raise LookupError(f"data/ledger/table1.jsonl: {len(own)} runs of EMTL at {tuning.best['emtl']}, {tasks} tasks")
    return [*(row for row in rows if row["label"] != "emtl"), *own], tuning


def chosen_points(names: Iterable[str], tuning: Tuning) -> list[str]:
    """For each line of a table ("emtl (MMoE)") the point that tuning chose for its method."""
    chosen = tuning.trials[tuning.trials["chosen"]]
    points = dict(zip(chosen["method"], chosen["point"], strict=True))
    return [points.get(name.partition(" (")[0], "–") for name in names]


def cells_of(
    wanted: str,
    entries: Sequence[tuple[str, str, Point]],
    models: Sequence[str],
    seeds: Sequence[int],
    scale: str,
    fallback: str | None = None,
    **options: Any,
) -> list[Cell]:
    """Runs at the table's budget; STL once, not once per model."""
    found = grid(wanted, entries, models, seeds, scale, BUDGET[scale], fallback=fallback, **options)
    return list({cell.key(): cell for cell in found}.values())


def lines(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per run with its metrics; `line` names the row of the table: "emtl (MMoE)", "stl"."""
    table = frame(rows)
    table["line"] = [
        method if method == "stl" else f"{method} ({BACKBONES.get(model, model)})"
        for method, model in zip(table["method"], table["model"], strict=True)
    ]
    return table


def point_of(row: Row) -> str:
    """A row's hyperparameters in words; the learning rate where it is not the table's."""
    config = row["config"]
    settings = {k: v for k, v in config["hyper"].items() if k != "task"}
    if config["budget"]["lr"] != BUDGET[config["scale"]].lr:
        settings["lr"] = config["budget"]["lr"]
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "–"
