"""For each table its methods, seeds and budgets per scale; tuning; the command for big runs."""

import argparse
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from mtl.errors import DataError, RunError
from mtl.ledger import Ledger, Row, canonical, key, ledger
from mtl.pool import bar, plain_progress, run_grid
from mtl.problems.base import SCALES
from mtl.runs import BUDGET_KEYS, Cell, Point, grid
from mtl.training import Budget

__all__ = [
    "EXPERIMENTS", "Cell", "Experiment", "Tuning", "bar", "choose", "combine_stl", "grid", "main", "plain_progress",
    "published", "run_grid", "tune",
]  # fmt: skip


def combine_stl(rows: Iterable[Row]) -> list[Row]:
    """Replace the T single-task runs of each seed by one row: each task's metrics from its own run.

    `keys` holds the rows combined, `score` is the mean over tasks. Raises ValueError where a task is missing.
    """
    kept: list[Row] = []
    groups: dict[str, list[Row]] = {}
    for row in rows:
        config = row["config"]
        if config["method"] != "stl":
            kept.append(row)
            continue
        hyper = {k: v for k, v in config["hyper"].items() if k != "task"}
        whole = {**config, "hyper": hyper, "select": "score"}
        group = groups.setdefault(key(whole, row["fingerprint"]), [])
        if not group:
            kept.append({**row, "config": whole})
        group.append(row)
    return [_one_row(row, groups[key(row["config"], row["fingerprint"])]) if _is_stl(row) else row for row in kept]


def _is_stl(row: Row) -> bool:
    return bool(row["config"]["method"] == "stl")


def _one_row(row: Row, parts: list[Row]) -> Row:
    own = {part["config"]["select"].removesuffix("/score"): part for part in parts}
    tasks = [name.removesuffix("/score") for name in row["metrics"] if name.endswith("/score")]
    if set(own) != set(tasks) or len(parts) != len(tasks):
        seed = row["config"]["seed"]
        raise ValueError(f"rows: STL of seed {seed} needs one run for each of {tasks}, found {sorted(own)}")
    combined: Row = {"last": None}
    for split in ("metrics", "validation", *(["last"] if all(part.get("last") for part in parts) else [])):
        values = {k: v for task in tasks for k, v in own[task][split].items() if k.startswith(f"{task}/")}
        scores = [values[f"{task}/score"] for task in tasks]
        combined[split] = values | {"score": None if None in scores else sum(scores) / len(scores)}
    bad = [part for part in parts if part["status"] != "ok"]
    return row | combined | {
        "key": key({"stl": [part["key"] for part in parts]}, row["fingerprint"]),
        "keys": [part["key"] for part in parts],
        "status": bad[0]["status"] if bad else "ok",
        "failure": bad[0].get("failure") if bad else None,
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
    options: Mapping[str, Any] | None = None,
    fallback: str | None = None,
    **how: Any,
) -> Tuning:
    """Choose each method's hyperparameters by the mean validation score over `seeds`; the test set has no say.

    `grids` maps a method to its points, as many for each: the same budget for all. `how` goes to `run_grid`.
    A point with a run that ended without a result is never chosen. Ties go to the first point.
    """
    sizes = {name: len(points) for name, points in grids.items()}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise ValueError(f"grids: every method gets the same number of points, found {sizes}")
    entries = [(f"{name} #{i}", name, point) for name, points in grids.items() for i, point in enumerate(points)]
    cells = grid(wanted, entries, [model], seeds, scale, budget, fallback=fallback, **(options or {}))
    return choose(entries, combine_stl(run_grid(cells, **how)), len(seeds))


def choose(entries: Sequence[tuple[str, str, Point]], rows: Sequence[Row], n: int) -> Tuning:
    """Each method's point of the highest mean validation score over n seeds, from rows labelled as the entries are."""
    lines = []
    for label, name, point in entries:
        own = [row for row in rows if row["label"] == label]
        scores = [float(row["validation"]["score"]) for row in own if row["status"] == "ok"]
        mean = sum(scores) / n if len(scores) == n else float("-inf")
        shown = ", ".join(f"{k}={v}" for k, v in point.items()) or "defaults"
        lines.append({"method": name, "point": shown, "validation score": mean, "n": len(scores)})
    trials = pd.DataFrame(lines)
    best: dict[str, Point] = {}
    for name in dict.fromkeys(name for _, name, _ in entries):
        points = [point for _, own, point in entries if own == name]
        scores = trials.loc[trials["method"] == name, "validation score"].tolist()
        if max(scores) == float("-inf"):
            raise RunError(f"tune: no point of {name} ended with a result on all of {n} seeds")
        best[name] = points[scores.index(max(scores))]
    trials["chosen"] = [best[name] is point for _, name, point in entries]
    return Tuning(best, trials)


def published(
    name: str, scale: str, entries: Sequence[tuple[str, str, Point]], budget: Budget, **options: Any
) -> list[Row]:
    """The published rows of these runs, labelled, seeds outermost; for this the data themselves need not be there."""
    wanted = {}
    for place, (label, method, point) in enumerate(entries):
        own = replace(budget, **{k: v for k, v in point.items() if k in BUDGET_KEYS})
        hyper = canonical({k: v for k, v in point.items() if k not in BUDGET_KEYS})
        wanted[key({"method": method, "hyper": hyper, "budget": own.settings()}, "")] = (place, label)
    found = []
    for row in ledger(name).published():
        config = row["config"]
        hyper = {k: v for k, v in config["hyper"].items() if (config["method"], k) != ("stl", "task")}
        hit = wanted.get(key({"method": config["method"], "hyper": hyper, "budget": config["budget"]}, ""))
        if hit and config["scale"] == scale and options.items() <= config["options"].items():
            found.append((config["seed"], hit, config["model"], {**row, "label": hit[1]}))
    return [row for *_, row in sorted(found, key=lambda one: one[:3])]


@dataclass(frozen=True)
class Experiment:
    """One table: methods x models x seeds at each scale; `variants` are the problem's options, one grid each."""

    problem: str
    methods: tuple[tuple[str, str, Point], ...]
    models: tuple[str, ...]  # unless `other_models` names others for a scale
    seeds: Mapping[str, tuple[int, ...]]
    budget: Mapping[str, Budget]
    variants: Mapping[str, tuple[Mapping[str, Any], ...]]
    other_models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def cells(
        self,
        scale: str,
        seeds: Iterable[int] | None = None,
        methods: Sequence[str] | None = None,
        fallback: str | None = None,
    ) -> list[Cell]:
        """All runs at a scale, variants outermost; `methods` keeps the labels named, `fallback` as in `problem`."""
        if scale not in self.seeds:
            raise ValueError(f"scale: must be one of {', '.join(self.seeds)}, found {scale!r}")
        labels = [label for label, _, _ in self.methods]
        if unknown := [label for label in methods or () if label not in labels]:
            raise ValueError(f"methods: must be among {', '.join(labels)}, found {unknown[0]!r}")
        entries = [entry for entry in self.methods if methods is None or entry[0] in methods]
        chosen = self.seeds[scale] if seeds is None else tuple(seeds)
        return [
            cell
            for options in self.variants[scale]
            for cell in grid(
                self.problem,
                entries,
                self.other_models.get(scale, self.models),
                chosen,
                scale,
                self.budget[scale],
                fallback=fallback,
                **options,
            )
        ]

    def published(self, name: str, scale: str) -> list[Row]:
        """Rows that the repository brings along, of this experiment under its `name`."""
        return published(name, scale, self.methods, self.budget[scale], **dict(self.variants[scale][0]))


EXPERIMENTS: dict[str, Experiment] = {
    "census": Experiment(
        problem="census",
        methods=(
            ("LS", "ls", {}),
            ("UW", "uw", {}),
            ("MGDA", "mgda", {}),
            ("PCGrad", "pcgrad", {}),
            ("CAGrad", "cagrad", {}),
            ("IMTL-G", "imtl-g", {}),
            ("Nash-MTL", "nash", {}),
            ("FairGrad", "fairgrad", {"alpha": 2.0}),
            ("BanditMTL", "bandit", {}),
            ("EMTL", "emtl", {}),
            ("STL", "stl", {}),
        ),
        models=("mmoe",),
        seeds={"smoke": (0, 1), "quick": (0, 1, 2, 3, 4), "paper": (0, 1, 2, 3, 4)},
        budget={
            "smoke": Budget(epochs=2, batch_size=256, lr=2e-3, weight_decay=1e-6),
            "quick": Budget(epochs=6, batch_size=512, lr=2e-3, weight_decay=1e-6, patience=2),
            "paper": Budget(epochs=30, batch_size=2048, lr=1e-3, weight_decay=1e-6, patience=5),
        },
        variants={"smoke": ({"tasks": 3},), "quick": ({"tasks": 3},), "paper": ({"tasks": 3}, {"tasks": 2})},
    ),
    # Nothing is tuned: published settings, but for BanditMTL, whose rho = 1.2 is beyond ln 3, where its ball is no ball
    "scenes": Experiment(
        problem="nyuv2",
        methods=(
            ("STL", "stl", {}),
            ("LS", "ls", {}),
            ("MGDA", "mgda", {}),
            ("EMTL", "emtl", {}),
            ("FairGrad (alpha=2)", "fairgrad", {"alpha": 2.0}),
            ("Nash-MTL", "nash", {}),
            ("UW", "uw", {}),
            ("CAGrad", "cagrad", {}),
            ("IMTL-G", "imtl-g", {}),
            ("BanditMTL", "bandit", {"rho": 0.5}),
            ("SI", "si", {}),
            ("RLW", "rlw", {}),
            ("DWA", "dwa", {}),
            ("PCGrad", "pcgrad", {}),
            ("GradDrop", "graddrop", {}),
            ("MoCo", "moco", {}),
            ("FairGrad (alpha=1)", "fairgrad", {"alpha": 1.0}),
            ("Fair LS (alpha=0.5)", "fair-loss", {"base": "ls", "alpha": 0.5}),
        ),
        models=("mtan",),
        other_models={"quick": ("segnet",), "study": ("segnet",)},  # MTAN costs three times as much
        seeds={"smoke": (0, 1), "quick": (0, 1), "study": (0, 1, 2), "paper": (0, 1, 2)},
        budget={
            "smoke": Budget(epochs=1, batch_size=4, lr=1e-3, last=1),
            "quick": Budget(epochs=2, batch_size=4, lr=1e-3, last=1),
            # the learning rate that LS likes best on validation, seed 100 (.001 .003)
            "study": Budget(epochs=6, batch_size=4, lr=1e-3, halve_at=4, last=2),
            "paper": Budget(epochs=200, batch_size=2, lr=1e-4, halve_at=100, last=10),
        },
        variants={"smoke": ({"resolution": "48x64"},)}
        | {scale: ({"amp": True},) for scale in ("quick", "study", "paper")},
    ),
}


def _seeds(text: str) -> tuple[int, ...]:
    """ "0-4" or "0,2,5" as numbers."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise argparse.ArgumentTypeError(f"seeds look like 0-4 or 0,2,5, found {text!r}")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an experiment from the shell; exit code 0: all rows there, 1: runs failed, 3: the deadline left some."""
    parser = argparse.ArgumentParser(prog="python -m mtl.experiments", description=main.__doc__)
    parser.add_argument("experiment", choices=[*sorted(EXPERIMENTS), "table1"])
    parser.add_argument("--scale", default="quick", choices=SCALES)
    parser.add_argument("--tasks", type=int, default=2, choices=(2, 3), help="table1: tasks of Census")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes, which may share one GPU")
    parser.add_argument("--ledger", help="a .jsonl file; default: data/ledger/local/<experiment>.jsonl")
    parser.add_argument("--seeds", type=_seeds, help="0-4 or 0,2,5; default: those of the scale")
    parser.add_argument("--methods", help="labels, separated by commas; default: all")
    parser.add_argument("--deadline", type=float, help="seconds after which no run is started")
    parser.add_argument("--together", action="store_true", help="train a method's seeds side by side, as for one GPU")
    parser.add_argument("--whole-grid", action="store_true", help="table1: EMTL alone, on all that its paper searches")
    parser.add_argument("--keep-stale", action="store_true", help="keep rows that older sources made")
    given = parser.parse_args(arguments)
    book = Ledger(given.ledger) if given.ledger else ledger(given.experiment)
    started = time.monotonic()
    how = {"ledger": book, "jobs": given.jobs, "device": given.device, "progress": plain_progress}
    how |= {"deadline": given.deadline, "rerun_stale": not given.keep_stale, "together": given.together}
    wanted = given.methods.split(",") if given.methods else None
    try:
        if given.experiment == "table1":
            from mtl.tables import GRIDS, table1  # which is built on this module

            some = {
                "methods": wanted or tuple(GRIDS),
                "seeds": given.seeds,
                "tasks": given.tasks,
                "whole": given.whole_grid,
            }
            table1("census", given.scale, **some, **how)
            return 0
        cells = EXPERIMENTS[given.experiment].cells(given.scale, given.seeds, wanted)
        rows = run_grid(cells, **how)
    except (DataError, RunError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    broken = sum(row["status"] != "ok" for row in rows)
    print(f"{len(rows)} of {len(cells)} rows in {book.path.name}, {broken} without a result, "
          f"{time.monotonic() - started:.0f} s", file=sys.stderr)  # fmt: skip
    return 0 if len(rows) == len(cells) else 3


if __name__ == "__main__":
    sys.exit(main())
