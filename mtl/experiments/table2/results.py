"""Table 2: nine metrics, delta-m in both averages, beside the papers' own rows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from mtl.files import root
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


def results(table: pd.DataFrame) -> pd.DataFrame:
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


def ranks(table: pd.DataFrame) -> pd.Series:
    """Mean rank over the nine metrics among the methods shown, STL left out, as papers have it."""
    means = table[table["label"] != "STL"].groupby("label", sort=False)[list(METRICS)].mean().dropna()
    return mean_rank(means, METRICS)


def reported() -> pd.DataFrame:
    """What papers print for NYUv2 at 288 x 384 with MTAN: EMTL's Table 2 first, others for methods that it lacks."""
    folder = root() / "paper" / "reported"
    own, others = pd.read_csv(folder / "emtl_table2.csv"), pd.read_csv(folder / "nyuv2.csv")
    own["source"] = "EMTL Table 2"
    table = pd.concat([own, others]).drop_duplicates("method").set_index("method")
    cells = table[[name.partition("/")[2] for name in METRICS]].astype(float)
    up = list(METRICS.values())
    base = cells.loc["STL"].to_numpy()
    return table.assign(recomputed=delta_m(cells, base, up), by_task=delta_m(cells, base, up, TASKS))


def beside_paper(table: pd.DataFrame) -> pd.DataFrame:
    """Ours | paper | source for four columns; the printed delta-m stands beside the one its own cells give."""
    means = table.groupby("label", sort=False)[[*METRICS, DELTA, FAIRER]].mean()
    paper: dict[str, Any] = {str(name): dict(row) for name, row in reported().iterrows()}
    out = []
    for label, own in means.iterrows():
        name = {"FairGrad (alpha=2)": "FairGrad"}.get(str(label), str(label))
        said = paper.get(name, {})
        out.append(
            {
                "method": label,
                "mIoU": f"{own['segmentation/miou']:.2f}",
                "paper mIoU": _said(said, "miou", 2),
                "abs. err.": f"{own['depth/abs']:.3f}",
                "paper abs. err.": _said(said, "abs", 4),
                "mean angle": f"{own['normals/mean']:.2f}",
                "paper mean angle": _said(said, "mean", 2),
                "delta-m": f"{round(own[DELTA], 1) + 0.0:.1f}",
                "paper delta-m": _said(said, "delta_m", 2),
                "from its cells": _said(said, "recomputed", 2),
                "by task": f"{round(own[FAIRER], 1) + 0.0:.1f}",
                "paper by task": _said(said, "by_task", 2),
                "source": said.get("source", ""),
            }
        )
    return pd.DataFrame(out).set_index("method")


def _said(row: Mapping[str, Any], name: str, digits: int) -> str:
    value = row.get(name, math.nan)
    return "" if pd.isna(value) else f"{float(value):.{digits}f}"


def paper_says() -> pd.DataFrame:
    """Sentences of EMTL's section 5.3, recounted in its own printed Table 2."""
    table = reported()
    table = table[table["source"] == "EMTL Table 2"]
    names = [name.partition("/")[2] for name in METRICS]
    sign = np.where(list(METRICS.values()), 1.0, -1.0)
    better = pd.DataFrame(table[names].astype(float).to_numpy() * sign, table.index, names)
    printed = table["delta_m"].astype(float)
    others = better.drop(index=["EMTL", "STL"])
    own, best, mgda = better.loc["EMTL"].to_numpy(), others.max().to_numpy(), better.loc["MGDA"].to_numpy()
    wins, over = int((own > best).sum()), int((own > better.loc["STL"].to_numpy()).sum())
    total = printed.drop(index=["STL", "EMTL"])
    gap = float(total.min() - printed["EMTL"])
    normals = np.array(TASKS) == "normals"
    ahead, first = int((own > mgda)[normals].sum()), int((mgda >= best)[normals].sum())
    off = (printed - table["recomputed"].astype(float)).drop(index="STL").abs()
    said = [
        ("EMTL best at 8 of 10 metrics", f"{wins} of 9, and delta-m: {wins + (gap > 0)} of 10"),
        ("best delta-m by over one point", f"by {gap:.2f} over {total.idxmin()}"),
        ("EMTL above STL at 8 of 9 metrics", f"{over} of 9"),
        ("EMTL above MGDA at normals", f"{ahead} of 5 metrics"),
        ("MGDA above the other baselines at normals", f"{first} of 5 metrics"),
        ("delta-m (not a sentence)", f"printed and own cells differ by up to {off.max():.2f} ({off.idxmax()})"),
    ]
    return pd.DataFrame(said, columns=["the text says", "the printed table says"])
