"""Choosing a point per method by validation, with the same budget for each; published rows; STL as one row."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mtl.errors import RunError
from mtl.ledger import Row, key, ledger
from mtl.runs.cells import Point, grid, split
from mtl.runs.engines import run_grid
from mtl.training.fit import Budget


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
        name = key(_whole(row["config"]), row["fingerprint"])
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

    last = {task: part.get("last") for task, part in own.items()}
    bad = [part for part in parts if part["status"] != "ok"]
    return row | {
        "config": _whole(row["config"]),
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


def trials(grids: Mapping[str, Sequence[Point]], names: Mapping[str, str]) -> list[tuple[str, str, Point]]:
    """Each point of a grid as an entry: "label #i", the label's method, the point."""
    return [(f"{label} #{i}", names[label], point) for label, points in grids.items() for i, point in enumerate(points)]


def tune(
    wanted: str,
    grids: Mapping[str, Sequence[Point]],
    names: Mapping[str, str],
    *,
    model: str,
    seeds: Sequence[int],
    scale: str,
    budget: Budget,
    options: Mapping[str, Any] | None = None,
    fallback: str | None = None,
    **how: Any,
) -> Tuning:
    """Choose each method's hyperparameters by the mean validation score over `seeds`; the test set has no say.

    `grids` maps a label to its points, as many for each: the same budget for all; `names` says which method each is.
    `how` goes to `run_grid`.
    A point with a run that ended without a result is never chosen. Ties go to the first point.
    """
    sizes = {name: len(points) for name, points in grids.items()}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise ValueError(f"grids: every method gets the same number of points, found {sizes}")
    cells = grid(wanted, trials(grids, names), [model], seeds, scale, budget, fallback=fallback, **(options or {}))
    return choose(grids, combine_stl(run_grid(cells, **how)), len(seeds))


def choose(grids: Mapping[str, Sequence[Point]], rows: Sequence[Row], n: int) -> Tuning:
    """Each label's point of the highest mean validation score over n seeds, from rows labelled as `trials` does."""
    lines = []
    best: dict[str, Point] = {}
    for label, points in grids.items():
        means = []
        for i, point in enumerate(points):
            own = [row for row in rows if row["label"] == f"{label} #{i}" and row["status"] == "ok"]
            means.append(sum(float(row["validation"]["score"]) for row in own) / n if len(own) == n else float("-inf"))
            shown = ", ".join(f"{k}={v}" for k, v in point.items()) or "defaults"
            lines.append({"method": label, "point": shown, "validation score": means[-1], "n": len(own)})
        if max(means) == float("-inf"):
            raise RunError(f"tune: no point of {label} ended with a result on all of {n} seeds")
        first = means.index(max(means))
        best[label] = points[first]
        for i, line in enumerate(lines[-len(points) :]):
            line["chosen"] = i == first
    return Tuning(best, pd.DataFrame(lines))


def published(
    name: str, scale: str, entries: Sequence[tuple[str, str, Point]], budget: Budget, **options: Any
) -> list[Row]:
    """The published rows of these runs, labelled, seeds outermost; for this the data themselves need not be there."""
    wanted = {}
    for place, (label, method, point) in enumerate(entries):
        own, hyper = split(point, budget)
        wanted[key({"method": method, "hyper": hyper, "budget": own.settings()}, "")] = (place, label)
    found = []
    for row in ledger(name).published():
        config = row["config"]
        hyper = {k: v for k, v in config["hyper"].items() if (config["method"], k) != ("stl", "task")}
        hit = wanted.get(key({"method": config["method"], "hyper": hyper, "budget": config["budget"]}, ""))
        if hit and config["scale"] == scale and options.items() <= config["options"].items():
            found.append((config["seed"], hit, config["model"], row | {"label": hit[1]}))
    return [row for *_, row in sorted(found, key=lambda one: one[:3])]
