"""Table 2: nine metrics, delta-m in both averages, and what the printed table says."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from mtl.experiments.base import recount, reported
from mtl.ledger import Row
from mtl.problems.metrics import delta_m
from mtl.problems.scenes.base import COLUMNS
from mtl.report import frame, results_table
from mtl.report.stats import mean_rank

METRICS = {f"{task}/{name}": up for task, columns in COLUMNS.items() for name, _, up in columns}
TASKS = [name.partition("/")[0] for name in METRICS]
DELTA, FAIRER = "delta-m", "delta-m by task"  # mean over the nine metrics; mean over tasks of their metrics' means
HEADS = {"segmentation": "seg.", "depth": "depth", "normals": "normals"}


def lines(rows: Sequence[Row], which: Literal["metrics", "last"] = "metrics") -> pd.DataFrame:
    """One line per run: nine test metrics and both delta-m against STL's mean over seeds, in per cent, lower is better.

    `which`: "metrics" are those of the epoch that validation chose, "last" the mean over the last epochs. A run
    without a result keeps its line and has NaN.
    """
    nothing = dict.fromkeys([*METRICS, "score"], math.nan)
    table = frame([{**row, "metrics": row[which] or nothing} for row in rows])
    values = table[list(METRICS)].astype(float)
    base = values[table["label"] == "STL"].mean()
    up = list(METRICS.values())
    table[DELTA], table[FAIRER] = delta_m(values, base, up), delta_m(values, base, up, TASKS)
    return table


def formatted(table: pd.DataFrame) -> pd.DataFrame:
    """The table as it is shown: mean ± 95 % interval, both delta-m, n, p of delta-m, rank over the nine metrics."""
    parts = []
    for task in COLUMNS:
        own = {name: up for name, up in METRICS.items() if name.startswith(task)}
        shown = results_table(table, own, by="label", reference_row="STL", digits=3 if task == "depth" else 2)
        heads = {name: name.replace(task + "/", f"{HEADS[task]} ") for name in shown.columns}
        parts.append(shown.drop(columns=["n", "p", "mean rank"]).rename(columns=heads))
    last = results_table(table, {DELTA: False, FAIRER: False}, by="label", reference_row="STL", digits=1)
    last = last.replace("-0.0 ", "0.0 ", regex=True)  # STL's own delta-m
    last["mean rank"] = ranks(table).map(lambda rank: f"{rank:.1f}").reindex(last.index, fill_value="–")
    whole = pd.concat([*parts, last], axis=1)
    whole.attrs["note"] = (
        last.attrs["note"].replace("p:", f"p ({DELTA}):")
        + " STL's own spread is not in the intervals of delta-m; rank over the nine metrics, without STL."
    )
    return whole


def ranks(table: pd.DataFrame) -> "pd.Series[float]":
    """Mean rank over the nine metrics among the methods shown, STL left out, as papers have it."""
    means = table[table["label"] != "STL"].groupby("label", sort=False)[list(METRICS)].mean().dropna()
    return mean_rank(means, METRICS)


def printed() -> pd.DataFrame:
    """What papers print for NYUv2 at 288 x 384 with MTAN: EMTL's Table 2 first, others for methods that it lacks."""
    own = reported("emtl_table2").assign(source="EMTL Table 2")
    table = pd.concat([own, reported("nyuv2")]).drop_duplicates("method").set_index("method")
    cells = table[[name.partition("/")[2] for name in METRICS]].astype(float)
    up = list(METRICS.values())
    base = cells.loc["STL"].to_numpy()
    return table.assign(recomputed=delta_m(cells, base, up), by_task=delta_m(cells, base, up, TASKS))


def paper_says() -> pd.DataFrame:
    """Sentences of EMTL's section 5.3, recounted in its own printed Table 2."""
    table = printed()
    table = table[table["source"] == "EMTL Table 2"]
    names = [name.partition("/")[2] for name in METRICS]
    sign = np.where(list(METRICS.values()), 1.0, -1.0)
    better = pd.DataFrame(table[names].astype(float).to_numpy() * sign, table.index, names)
    delta = table["delta_m"].astype(float)
    own, best, mgda = better.loc["EMTL"], better.drop(index=["EMTL", "STL"]).max(), better.loc["MGDA"]
    wins, over = int(np.sum(own > best)), int(np.sum(own > better.loc["STL"]))
    total = delta.drop(index=["STL", "EMTL"])
    gap = float(total.min() - delta["EMTL"])
    normals = np.array(TASKS) == "normals"
    off = (delta - table["recomputed"].astype(float)).drop(index="STL").abs()
    said = recount([
        ("EMTL best at 8 of 10 metrics", f"{wins} of 9, and delta-m: {wins + (gap > 0)} of 10"),
        ("best delta-m by over one point", f"by {gap:.2f} over {total.idxmin()}"),
        ("EMTL above STL at 8 of 9 metrics", f"{over} of 9"),
        ("EMTL above MGDA at normals", f"{int((own > mgda)[normals].sum())} of 5 metrics"),
        ("MGDA above the other baselines at normals", f"{int((mgda >= best)[normals].sum())} of 5 metrics"),
        ("delta-m (not a sentence)", f"printed and own cells differ by up to {off.max():.2f} ({off.idxmax()})"),
    ])  # fmt: skip
    said.attrs["caption"] = "Sentences of EMTL's section 5.3, recounted in its printed Table 2"
    return said
