"""Table 2: nine metrics, delta-m in both averages, what the printed table says and what became of its sentences."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from mtl.experiments.base import graded, paired, recount, reported, standing
from mtl.ledger import Row
from mtl.problems.metrics import delta_m
from mtl.problems.scenes.base import COLUMNS
from mtl.report import Verdict, captioned, frame, results_table
from mtl.report.stats import mean_rank

METRICS = {f"{task}/{name}": up for task, columns in COLUMNS.items() for name, _, up in columns}
TASKS = [name.partition("/")[0] for name in METRICS]
DELTA, FAIRER = "delta-m", "delta-m by task"  # mean over the nine metrics; mean over tasks of their metrics' means
HEADS = {"segmentation": "seg.", "depth": "depth", "normals": "normals"}
# methods of Table 2 that look at gradients; FairGrad's claim is about these
GRADIENT = ("MGDA", "PCGrad", "CAGrad", "GradDrop", "MoCo", "IMTL-G", "Nash-MTL", "EMTL", "FairGrad")


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
    return captioned(recount([
        ("EMTL best at 8 of 10 metrics", f"{wins} of 9, and delta-m: {wins + (gap > 0)} of 10"),
        ("best delta-m by over one point", f"by {gap:.2f} over {total.idxmin()}"),
        ("EMTL above STL at 8 of 9 metrics", f"{over} of 9"),
        ("EMTL above MGDA at normals", f"{int((own > mgda)[normals].sum())} of 5 metrics"),
        ("MGDA above the other baselines at normals", f"{int((mgda >= best)[normals].sum())} of 5 metrics"),
        ("delta-m (not a sentence)", f"printed and own cells differ by up to {off.max():.2f} ({off.idxmax()})"),
    ]), "Sentences of EMTL's section 5.3, recounted in its printed Table 2")  # fmt: skip


def best_verdict(table: pd.DataFrame) -> tuple[Verdict, str]:
    """EMTL first in delta-m, by more than a point?"""
    said, first, clear = [], True, True
    for metric in (DELTA, FAIRER):
        means = table[table["label"] != "STL"].groupby("label")[metric].mean()
        place, of, rival = standing(means, "EMTL", higher=False)
        gap = paired(table, metric, "EMTL", rival)
        first, clear = first and place == 1, clear and gap.value < -1 and gap.value + gap.half < 0
        said.append(f"{metric} {means['EMTL']:.1f}, place {place} of {of}; {gap} against {rival}"
                    f" (n = {gap.n}, p = {gap.p:.2f})")  # fmt: skip
    return ("not reproduced" if not first else "reproduced" if clear else "conditional"), "; ".join(said)


def fairgrad_verdict(table: pd.DataFrame, own: str = "FairGrad (alpha=2)") -> tuple[Verdict, str]:
    """Among the best gradient-based methods: in the first three of them by delta-m and by mean rank?"""
    kept = table[(table["label"] == own) | table["label"].map(lambda label: label.partition(" (")[0] in GRADIENT)]
    order = kept.groupby("label")[DELTA].mean().sort_values()
    rank = ranks(table).reindex(order.index).rank()
    places = [list(order.index).index(own) + 1, int(rank[own])]
    said = f"place {places[0]} of {len(order)} gradient-based methods by delta-m ({order[own]:.1f}, first "
    said += f"{order.index[0]} {order.iloc[0]:.1f}), place {places[1]} by mean rank"
    return graded(*[place <= 3 for place in places]), said


def fair_loss_verdict(table: pd.DataFrame) -> tuple[Verdict, str]:
    """Does the alpha-fair transform lower LS's delta-m?"""
    gap = paired(table, DELTA, "Fair LS (alpha=0.5)", "LS")
    said = f"delta-m of LS with L^(1/2) minus LS: {gap} (n = {gap.n}, p = {gap.p:.2f}); LS alone was tested"
    return ("not reproduced" if gap.value >= 0 else "conditional"), said


def metrics_verdict(table: pd.DataFrame, own: str = "EMTL") -> tuple[Verdict, str]:
    """Best of all multi-task methods at 8 of 10 metrics (nine and delta-m), in the mean over seeds?"""
    means = table[table["label"] != "STL"].groupby("label")[[*METRICS, DELTA]].mean().dropna()
    signs = np.where([*METRICS.values(), False], 1.0, -1.0)
    first = means.index[(means.to_numpy() * signs).argmax(0)]
    counts = first.value_counts()
    said = f"{own} best at {counts.get(own, 0)} of 10 metrics among {len(means)} methods; "
    said += ", ".join(f"{label} {n}" for label, n in counts.items())
    return ("reproduced" if counts.get(own, 0) >= 8 else "not reproduced"), said


def stl_verdict(table: pd.DataFrame, own: str = "EMTL") -> tuple[Verdict, str]:
    """Better than single-task learning at 8 of 9 metrics, in the mean over seeds?"""
    means = table.groupby("label")[list(METRICS)].mean()
    gain = dict(zip(METRICS, means.loc[own].to_numpy() - means.loc["STL"].to_numpy(), strict=True))
    better = [name for name, up in METRICS.items() if (gain[name] > 0) == up]
    said = f"{own} above STL at {len(better)} of {len(METRICS)} metrics ({', '.join(better) or 'none'}), "
    return ("reproduced" if len(better) >= 8 else "not reproduced"), said + "means over seeds"


def mgda_verdict(rows: Sequence[Row], table: pd.DataFrame) -> tuple[Verdict, str]:
    """MGDA gives most weight to the task of the smallest gradient norm, normals; EMTL is at least as good there?"""
    own = [row for row in rows if row["label"] == "MGDA" and row["status"] == "ok"]
    history = [line for row in own for line in row["history"]]
    weights = np.mean([line["weights"] for line in history], axis=0)
    norms = np.mean([np.divide(line["losses"], line["rates"]) for line in history], axis=0)
    names = list(COLUMNS)
    least, most = names[int(norms.argmin())], names[int(weights.argmax())]
    gap = paired(table, "normals/mean", "EMTL", "MGDA")
    share = ", ".join(f"{name} {w:.2f}" for name, w in zip(names, weights / weights.sum(), strict=True))
    said = f"MGDA's smallest gradient norm (mean loss over mean rate): {least}; its weights: {share}; mean angle of "
    said += f"EMTL minus MGDA {gap.value:+.2f} ± {gap.half:.2f} degrees (n = {gap.n}, p = {gap.p:.2f})"
    return graded(least == most == "normals", gap.value <= 0), said
