"""What each published study ran on, and for how long: a table of the paper that `mtl claims --record` writes."""

from collections.abc import Iterable
from itertools import groupby, product
from typing import Any

import pandas as pd

from mtl.experiments.readings import Combinations
from mtl.experiments.registry import EXPERIMENTS
from mtl.experiments.study import NO_ROWS, Study
from mtl.experiments.table2 import GROUP_A, UNET
from mtl.report import save_table
from mtl.runs.tuning import NO_STUDY

SCALES = ("study", "gpu")
# Rows of one experiment that came in groups, of which the first have more seeds.
GROUPS: dict[str, dict[str, tuple[str, ...] | None]] = {UNET.name: {"group A": GROUP_A, "all rows": None}}


def studies() -> list[tuple[str, Study]]:
    """Every experiment with published rows of these scales, a study per variant (and group of rows, unless a larger one
    has the same seeds), in the order of the registry."""
    found = dict[tuple[Any, ...], tuple[str, Study]]()
    for one in EXPERIMENTS.values():
        if isinstance(one, Combinations):  # of parts of EMTL, which no entry of `METHODS` has
            continue
        for scale in (scale for scale in SCALES if scale in one.seeds):
            groups = GROUPS.get(one.name, {"": None})
            for options, (group, methods) in product(one.chosen(scale), groups.items()):
                try:
                    study = one.published(scale, methods, **options)
                except NO_STUDY:
                    continue
                found[one.name, scale, str(options), *study.seeds] = (group, study)
    return [*found.values()]


def line(study: Study, group: str = "") -> dict[str, Any]:
    """One study: name and options in words, data, nets, budget, how it was tuned, seeds and rows."""
    made, budget = study.experiment, study.experiment.budget[study.scale].settings()
    told = [value for value in study.options.values() if isinstance(value, str)] * (len(made.variants[study.scale]) > 1)
    nets = dict.fromkeys(row["config"]["model"] for row in study.rows if row["config"]["method"] != "stl")
    rule = budget.get("optimizer", "adam")
    steps = budget.get("evaluations", 0) * budget.get("every", 0)  # of MT10, of each task
    length = f"{steps:,} steps"
    if epochs := budget.get("epochs"):
        length = f"{epochs} epochs of {max(row['steps'] for row in study.rows) // epochs} steps"
    trials, grids = made.trials.get(study.scale), made.grids(study.scale, **study.options)
    many = {len(points) for points in grids.values()} - {1}
    counts = "–".join(map(str, sorted({min(many), max(many)}))) if many else ""
    tuned = f"{counts} points, seeds {spans(trials.seeds)}" if many and trials else f"{counts} points" if many else "–"
    return {
        "study": ", ".join(filter(None, [made.name + f" ({study.scale})" * (study.scale != "study"), *told, group])),
        "data": study.data,
        "nets": ", ".join(map(str, nets)),
        "training": f"{rule}, batch {budget['batch_size']}, {length}, rate {budget['lr']:g}",
        "tuned": tuned,
        "seeds": spans(study.seeds),
        "rows": len(study.rows),
    }


def spans(seeds: Iterable[int]) -> str:
    """Seeds as ranges.

    >>> spans([10, 11, 12, 15])
    '10–12, 15'
    """
    runs = (list(own) for _, own in groupby(enumerate(sorted(seeds)), lambda pair: pair[1] - pair[0]))
    ends = ((own[0][1], own[-1][1]) for own in runs)
    return ", ".join(f"{first}" if first == last else f"{first}–{last}" for first, last in ends)


def save() -> None:
    """paper/generated/studies.*"""
    lines = pd.DataFrame([line(study, group) for group, study in studies()])
    heads = [head for head in lines if head != "rows"]  # variants that differ in a number alone are one line
    table = lines.groupby(heads, sort=False, as_index=False).agg({"rows": "sum"})
    said = (
        "Published studies of networks: data, nets (STL: one per task), training (rate: the base rate; where rows are "
        "tuned, that of the grid's first point), points from which validation chose, reported seeds, rows. MT10 and "
        "the gap study have designs of their own"
    )
    save_table(
        table, "studies", caption=said, data="all published rows", scale="study", n=f"{len(table)} studies",
        **{**NO_ROWS, "command": "mtl claims --record"}, wide=True,
    )  # fmt: skip
