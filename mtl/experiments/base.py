"""For each table its methods, seeds and budgets per scale; the command for big runs."""

import argparse
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtl.errors import DataError, RunError
from mtl.ledger import Ledger, Row, ledger
from mtl.problems.base import SCALES
from mtl.runs.cells import Cell, Point, grid
from mtl.runs.engines import plain_progress, run_grid, shown
from mtl.runs.tuning import Tuning, choose, combine_stl, published, tune
from mtl.training.fit import Budget

__all__ = [
    "EXPERIMENTS", "Cell", "Experiment", "Tuning", "choose", "combine_stl", "grid", "main", "plain_progress",
    "published", "run_grid", "shown", "tune",
]  # fmt: skip


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
    parser = argparse.ArgumentParser(prog="python -m mtl.experiments.base", description=main.__doc__)
    parser.add_argument("experiment", choices=[*sorted(EXPERIMENTS), "table1"])
    parser.add_argument("--scale", default="quick", choices=SCALES)
    parser.add_argument("--tasks", type=int, default=2, choices=(2, 3), help="table1: tasks of Census")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes, which may share one GPU")
    parser.add_argument("--ledger", help="a folder of rows; default: data/ledger/local/<experiment>")
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
            from mtl.experiments.table1 import GRIDS, table1  # which is built on this module

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
