"""Choosing a point per method by validation, with the same budget for each; published rows; STL as one row."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mtl.errors import RunError
from mtl.ledger import Row, key, ledger
from mtl.problems import registered
from mtl.runs.cells import Point, alone, grid, split
from mtl.runs.engines import run_grid
from mtl.training.fit import Budget

MOST_TASKS = 64


class NoRowsError(LookupError):
    """Rows that a study needs are not published; says which."""


NO_STUDY = (NoRowsError, RunError)  # no rows, no seed that is whole, or trials that are not all there yet


def combine_stl(rows: Iterable[Row]) -> list[Row]:
    """Replace the T single-task runs of each seed by one row: each task's metrics from its own run.

    `keys` holds the rows combined, `score` is the mean over tasks. Raises ValueError where a task is missing.
    """
    kept: list[Row | list[Row]] = []
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["config"]["method"] != "stl":
            kept.append(row)
            continue
        alike = {
            **_whole(row["config"]),
            "hyper": row.get("label"),
            "budget": None,
        }  # each task may have a rate of its own
        name = key(alike, row["fingerprint"])
        if name not in groups:
            kept.append(groups.setdefault(name, []))
        groups[name].append(row)
    return [_one_row(part) if isinstance(part, list) else part for part in kept]


def _whole(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, "hyper": {k: v for k, v in config["hyper"].items() if k != "task"}, "select": "score"}


def _one_row(parts: list[Row]) -> Row:
    row, own = parts[0], {part["config"]["select"].removesuffix("/score"): part for part in parts}
    tasks = [name.removesuffix("/score") for name in row["metrics"] if name.endswith("/score")]
    if set(own) != set(tasks) or len(parts) != len(tasks):
        seed = row["config"]["seed"]
        raise ValueError(f"rows: STL of seed {seed} needs one run for each of {tasks}, found {sorted(own)}")

    def combined(values: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
        each = {k: v for task in tasks for k, v in (values[task] or {}).items() if k.startswith(f"{task}/")}
        scores = [each[f"{task}/score"] for task in tasks]
        return each | {"score": None if None in scores else sum(scores) / len(scores)}

    tasks.sort(key=lambda task: own[task]["config"]["hyper"]["task"])  # the problem's order, not that of JSON
    rates = [own[task]["config"]["budget"]["lr"] for task in tasks]
    one = len(set(rates)) == 1
    last = {task: part.get("last") for task, part in own.items()}
    bad = [part for part in parts if part["status"] != "ok"]
    return row | {
        "config": _whole(row["config"]) | {"budget": {**row["config"]["budget"], "lr": rates[0] if one else rates}},
        "key": key({"stl": [part["key"] for part in parts]}, row["fingerprint"]),
        "keys": [part["key"] for part in parts],
        "status": bad[0]["status"] if bad else "ok",
        "failure": bad[0].get("failure") if bad else None,
        "metrics": combined({task: part["metrics"] for task, part in own.items()}),
        "validation": combined({task: part["validation"] for task, part in own.items()}),
        "last": combined(last) if all(last.values()) else None,
        "best_epoch": [own[task]["best_epoch"] for task in tasks],
        "wall_s": sum(part["wall_s"] for part in parts),
    }  # fmt: skip


@dataclass(frozen=True)
class Tuning:
    """The point chosen for each method, and every trial with its mean validation score."""

    best: dict[str, Point]
    trials: pd.DataFrame


def tune(
    wanted: str,
    grids: Mapping[str, Sequence[Point]],
    *,
    model: str,
    seeds: Sequence[int],
    scale: str,
    budget: Budget,
    methods: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    fallback: str | None = None,
    **how: Any,
) -> Tuning:
    """Choose each label's hyperparameters by the mean validation score over `seeds`; the test set has no say.

    `grids` maps a label to its points, as many for each: the same budget for all; `methods` says which method a label
    is, where that is not its name. `how` goes to `run_grid`.
    A point with a run that ended without a result is never chosen. Ties go to the first point.
    """
    entries = tried(grids, methods or {})
    cells = grid(wanted, entries, [model], seeds, scale, budget, fallback=fallback, **(options or {}))
    return choose(entries, combine_stl(run_grid(cells, **how)), len(seeds))


def tried(grids: Mapping[str, Sequence[Point]], methods: Mapping[str, str]) -> list[tuple[str, str, Point]]:
    """An entry for each point.

    >>> tried({"LS": [{}, {"lr": 0.1}]}, {"LS": "ls"})
    [('LS #0', 'ls', {}), ('LS #1', 'ls', {'lr': 0.1})]
    """
    sizes = {label: len(points) for label, points in grids.items()}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise ValueError(f"grids: every method gets the same number of points, found {sizes}")
    return [
        (f"{label} #{i}", methods.get(label, label), point)
        for label, points in grids.items()
        for i, point in enumerate(points)
    ]


def choose(entries: Sequence[tuple[str, str, Point]], rows: Sequence[Row], n: int) -> Tuning:
    """Each label's point of the highest mean validation score over n seeds, from rows labelled as `tried` does.

    Each task of STL has a point of its own, by its own score: where they differ, a value is the list over tasks.
    """
    lines = []
    best: dict[str, Point] = {}
    for label in dict.fromkeys(name.rpartition(" #")[0] for name, *_ in entries):
        own = [(name, method, point) for name, method, point in entries if name.rpartition(" #")[0] == label]
        tables = [_validation([row for row in rows if row["label"] == name], n) for name, *_ in own]
        scores = [float(table.get("score", -math.inf)) for table in tables]
        if max(scores) == -math.inf:
            raise RunError(f"tune: no point of {label} ended with a result on all of {n} seeds")
        tasks = [name for name in tables[scores.index(max(scores))] if name.endswith("/score")]
        alone = own[0][1] == "stl" and tasks
        marks = [[table.get(name, -math.inf) for table in tables] for name in (tasks if alone else ["score"])]
        picks = [mark.index(max(mark)) for mark in marks]
        points = [own[i][2] for i in picks]
        same = all(point == points[0] for point in points)
        named = dict.fromkeys(name for point in points for name in point)
        best[label] = points[0] if same else {k: [point.get(k) for point in points] for k in named}
        for i, (name, _, point) in enumerate(own):
            shown = ", ".join(f"{k}={v}" for k, v in point.items()) or "defaults"
            count = sum(row["label"] == name and row["status"] == "ok" for row in rows)
            line = {"method": label, "point": shown, "validation score": scores[i], "n": count}
            lines.append(line | {"chosen": i in picks})
    return Tuning(best, pd.DataFrame(lines))


def _validation(rows: Sequence[Row], n: int) -> dict[str, float]:
    """Mean of each validation score; nothing where not all n runs have a result."""
    if len(rows) != n or any(row["status"] != "ok" for row in rows):
        return {}
    names = [name for name in rows[0]["validation"] if name == "score" or name.endswith("/score")]
    return {name: sum(float(row["validation"][name]) for row in rows) / n for name in names}


def published(
    name: str, scale: str, entries: Sequence[tuple[str, str, Point]], budget: Budget, models: Sequence[str],
    twins: Sequence[str] = (), wanted: str = "", **options: Any,
) -> list[Row]:  # fmt: skip
    """The published rows of these runs, labelled, seeds outermost; for this the data themselves need not be there.

    Of labels in `twins` also those from another initialisation (`Cell.twin`). `wanted`: no rows of other problems in
    the same ledger; what stands in for it is its own.
    """
    sought: dict[str, list[tuple[int, str, Sequence[str]]]] = {}  # lines that differ in their net alone share a key
    for place, (label, method, point) in enumerate(entries):
        for task in _tasks(point) if method == "stl" else [None]:
            own, hyper = split(point if task is None else alone(point, task), budget)
            nets = [point["model"]] if "model" in point else models
            name_of = key({"method": method, "hyper": hyper, "budget": own.settings()}, "")
            sought.setdefault(name_of, []).append((place, label, nets))
    found = []
    for row in ledger(name).published():
        config = row["config"]
        hits = sought.get(key({name: config[name] for name in ("method", "hyper", "budget")}, ""), [])
        hits = [hit for hit in hits if config["method"] == "stl" or config["model"] in hit[2]]  # STL's nets are of none
        if hits and config["scale"] == scale and options.items() <= config["options"].items():
            if wanted and _other(config, wanted):
                continue
            place, label, _ = hits[-1]
            if config.get("init_seed") is not None:
                if label not in twins:
                    continue
                label += " A/A"
            found.append((config["seed"], (place, label), config["model"], row | {"label": label}))
    return [row for *_, row in sorted(found, key=lambda one: one[:3])]


def _tasks(point: Point) -> range:
    """The tasks that STL may have: those of a list where each has a value of its own, else any."""
    return range(min([MOST_TASKS, *(len(value) for value in point.values() if isinstance(value, list))]))


def _other(config: Mapping[str, Any], wanted: str) -> bool:
    """Whether a row is of another problem."""
    return bool((config.get("stands_in_for") or registered(config["problem"], config["options"])) != wanted)
