"""Table 2: nine metrics, delta-m in both averages, what the printed table says and what became of its sentences."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import numpy as np
import pandas as pd

from mtl.experiments.beside import recount, reported
from mtl.experiments.study import BLIND, keys
from mtl.ledger import Row
from mtl.problems.metrics import delta_m
from mtl.problems.scenes.base import COLUMNS
from mtl.report import captioned, frame, results_table
from mtl.report.claims import (
    Check,
    Finding,
    Part,
    blind_check,
    by_reading,
    checked,
    compare,
    converged_check,
    decide,
    same_check,
)
from mtl.report.stats import mean_rank
from mtl.theory.fairness import hindered

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


def formatted(table: pd.DataFrame, blind: Mapping[str, float] | None = None) -> pd.DataFrame:
    """The table as it is shown: mean ± 95 % interval, both delta-m, n, p of delta-m, rank over the nine metrics; last
    the input-blind predictor."""
    parts = []
    for task in COLUMNS:
        own = {name: up for name, up in METRICS.items() if name.startswith(task)}
        shown = results_table(table, own, by="label", reference_row="STL", digits=3 if task == "depth" else 2)
        heads = {name: name.replace(task + "/", f"{HEADS[task]} ") for name in shown.columns}
        parts.append(shown.drop(columns=["n", "p", "mean rank"], errors="ignore").rename(columns=heads))
    last = results_table(table, {DELTA: False, FAIRER: False}, by="label", reference_row="STL", digits=1)
    last = last.replace(r"^-(0\.0+)\b", r"\1", regex=True)  # STL's own delta-m
    last["mean rank"] = ranks(table).map(lambda rank: f"{rank:.1f}").reindex(last.index, fill_value="–")
    whole = pd.concat([*parts, last], axis=1)
    whole.attrs["note"] = (
        last.attrs["note"].replace("p:", f"p ({DELTA}):")
        + " STL's own spread is not in the intervals of delta-m. Rank over the nine metrics, without STL."
    )
    if blind is not None:
        found = level(table, blind)
        digits = [3 if name.startswith("depth") else 2 for name in METRICS]
        cells = [f"{found[name]:.{n}f}" for name, n in zip(METRICS, digits, strict=True)]
        cells += [f"{found[name]:.1f}" for name in (DELTA, FAIRER)]
        whole.loc[BLIND] = [*cells, *["–"] * (whole.shape[1] - len(cells))]
    return whole


def level(table: pd.DataFrame, blind: Mapping[str, float]) -> dict[str, float]:
    """The nine metrics and both delta-m of the input-blind predictor beside STL's mean over seeds."""
    base = table.loc[table["label"] == "STL", list(METRICS)].astype(float).mean()
    own, up = np.array([blind[name] for name in METRICS]), list(METRICS.values())
    found = dict(zip(METRICS, own.tolist(), strict=True))
    return found | {DELTA: float(delta_m(own, base, up)), FAIRER: float(delta_m(own, base, up, TASKS))}


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


LOSSES, GRADIENTS = ("LS", "SI", "RLW", "DWA", "UW", "BanditMTL"), ("MGDA", "PCGrad", "CAGrad", "GradDrop", "IMTL-G")
EMTL_RIVALS, FAIR_RIVALS = (*LOSSES, *GRADIENTS, "Nash-MTL"), (*GRADIENTS, "MoCo", "Nash-MTL")
FAIRGRAD, FAIR_LS = "FairGrad (alpha=2)", "Fair LS (alpha=0.5)"
LEAST, POINT = 0.5, 1.0  # ours, in per cent of STL, where a table prints nothing to halve
UP = np.where([*METRICS.values(), False], 1.0, -1.0)  # of the nine and delta-m


Lead = Callable[[str, str], pd.DataFrame]


def leads(table: pd.DataFrame) -> Lead:
    """(own, rival): how far ahead over common seeds, a column per metric in per cent of STL and delta-m in points."""
    names = [*METRICS, DELTA]
    runs = {label: own.set_index("seed")[names].astype(float) for label, own in table.groupby("label")}
    base = runs["STL"].mean()
    base[DELTA] = 100.0
    none = base.to_frame().T.iloc[:0]

    @cache
    def lead(own: str, rival: str) -> pd.DataFrame:
        return (100 * UP * (runs.get(own, none) - runs.get(rival, none)) / base.abs()).dropna()

    return lead


def printed_leads(own: str, rivals: Sequence[str], source: str = "emtl_table2") -> Any:
    """What a paper's table prints of the same: a line per rival."""
    table = reported(source).set_index("method")
    cells = table[[*(name.partition("/")[2] for name in METRICS), "delta_m"]].astype(float)
    cells.columns = pd.Index([*METRICS, DELTA])
    base = cells.loc["STL"].abs()
    base[DELTA] = 100.0
    cells = cells.fillna(0.0)  # STL's own delta-m
    return pd.DataFrame({r: 100 * UP * (cells.loc[own] - cells.loc[r]) / base for r in rivals}).T


def gate(
    table: pd.DataFrame, lead: Lead, metrics: Sequence[str], named: Sequence[str],
    blind: Mapping[str, float] | None, d: float, moves: Mapping[str, float] | None = None,
) -> list[Check]:  # fmt: skip
    """Input-blind level, convergence, control, A/A rows; delta-m is in points, the other metrics as they are."""
    least = None if blind is None else level(table, blind)
    runs = {
        str(label): {m: own[m].dropna().to_numpy(float) for m in [*METRICS, DELTA]}
        for label, own in table.groupby("label")
    }
    check, marks = blind_check(runs, least, {**METRICS, DELTA: False}, named, metrics)
    if marks:
        check = replace(check, said=f"{check.said}; at or below it, kept in the means: {', '.join(marks)}")
    depth = compare("depth", lead("LS", "STL")["depth/abs"], POINT)
    angle = compare("angle", lead("STL", "LS")["normals/mean"], POINT)
    holds = any(part.low is not None and part.low > 0 for part in (depth, angle))
    said = f"LS ahead of STL in depth by {depth.value:+.1f} %, behind in mean angle by {angle.value:+.1f} %"
    twins = [label for label in dict.fromkeys(table["label"]) if label.endswith(" A/A")]
    apart = {f"{name} {m}": lead(name, name.removesuffix(" A/A"))[m] for name in twins for m in metrics}
    return [check, converged_check(moves, d), Check("control", holds, said), same_check(apart, d)]


def _conjunction(
    claim: str, there: Sequence[str], lead: Lead, own: str, rivals: Sequence[str], printed: Any,
    shared: Mapping[str, Any],
) -> Finding:  # fmt: skip
    kept = [rival for rival in rivals if rival in there]
    others = [label for label in there if label not in (own, "STL", *rivals) and not label.endswith(" A/A")]
    parts = [
        compare(rival, lead(own, rival)[DELTA], float(printed.loc[rival, DELTA]) / 2, rivals=len(rivals))
        for rival in kept
    ]
    beside = tuple(compare(label, lead(own, label)[DELTA], POINT) for label in others)
    lacking = [rival for rival in rivals if rival not in there]
    return decide(claim, "best", parts, missing=lacking, beside=beside, **shared)


READINGS = ("EMTL", "EMTL (raw)", "EMTL (frozen norm)")


def findings(
    rows: Sequence[Row], table: pd.DataFrame, blind: Mapping[str, float] | None,
    doubled: Sequence[pd.DataFrame] = (), **facts: Any,
) -> list[Finding]:  # fmt: skip
    """Sentences of EMTL's section 5.3 and FairGrad's on this benchmark, by paper/decision_rule.md; EMTL's by reading.

    `doubled`: lines of the convergence check, at the study's epochs and at twice as many.
    """

    def shared(metrics: Sequence[str], named: Sequence[str], d: float) -> dict[str, Any]:
        checks = gate(table, lead, metrics, ["STL", "LS", *named], blind, d, moves(doubled, metrics))
        return {"gate": checks, "rows": keys(rows), **facts}

    there, lead = list(dict.fromkeys(table["label"])), leads(table)
    emtl, fair = printed_leads("EMTL", EMTL_RIVALS), printed_leads("FairGrad", FAIR_RIVALS, "nyuv2")
    nash = float(emtl.loc["Nash-MTL", DELTA]) / 2
    ahead = [name for name in emtl.columns if (emtl[name] > 0).all()]
    printed_gain = printed_leads("EMTL", ["STL"]).iloc[0][list(METRICS)]
    angle, small = "normals/mean", float(emtl.loc["MGDA", "normals/mean"]) / 2

    def best(own: str) -> Finding:
        named = shared([DELTA], [own, "Nash-MTL"], nash)
        return _conjunction("emtl-table2-best", there, lead, own, EMTL_RIVALS, emtl, named)

    def metrics(own: str) -> Finding:
        parts = [_first(name, there, lead, own, emtl[name]) for name in ahead]
        lacking = [rival for rival in EMTL_RIVALS if rival not in there]
        return decide("emtl-table2-metrics", "count", parts, needed=8, missing=lacking, **shared(ahead, [own], nash))

    def stl(own: str) -> Finding:
        gain = lead(own, "STL")
        parts = [compare(name, gain[name], max(float(printed_gain[name]) / 2, LEAST)) for name in METRICS]
        return decide("emtl-table2-stl", "count", parts, needed=8, **shared(list(METRICS), [own], LEAST))

    def mgda(own: str) -> Finding:
        parts = [favoured(rows), compare("mean angle against MGDA", lead(own, "MGDA")[angle], small)]
        return decide("emtl-table2-mgda", "parts", parts, **shared([angle], [own, "MGDA"], small))

    rivals = "MGDA" in there  # of the rows that run first none is a rival: two sentences need none
    made = (best, metrics, stl, mgda) if rivals else (stl,)
    found = [by_reading([(r, make(r)) for r in READINGS if r in there]) for make in made]
    found.append(conflict(lead, shared))
    if rivals:
        d = float(fair.loc["Nash-MTL", DELTA]) / 2
        named = shared([DELTA], [FAIRGRAD], d)
        first = _conjunction("fairgrad-best", there, lead, FAIRGRAD, FAIR_RIVALS, fair, named)
        heads = "one benchmark of several; Nash-MTL's heads are weighted, FairGrad's raw"
        found.append(replace(first, said="; ".join(filter(None, [first.said, heads]))))
    if FAIR_LS in there:
        part = compare("LS", lead(FAIR_LS, "LS")[DELTA], POINT)
        named = {"needed": 1, "said": "one base, one alpha", **shared([DELTA], [], 1)}
        found.append(decide("fairgrad-fair-losses", "count", [part], **named))
    return found


def conflict(lead: Lead, shared: Callable[[Sequence[str], Sequence[str], float], dict[str, Any]]) -> Finding:
    """Conflicting gradients can hinder a task; is a method whose steps oppose no task ahead of equal weights?"""
    share = hindered()
    plain, opposed, fair = share.values()
    said = (
        f"of random triples of gradients the plain sum raises a task's loss to first order in {100 * opposed:.0f} % of "
        f"those with a conflict, {100 * plain:.0f} % of those without; FairGrad's step in {100 * fair:.0f} %"
    )
    d = float(printed_leads("FairGrad", ["LS"], "nyuv2").iloc[0][DELTA]) / 2
    ahead = compare("FairGrad (alpha=2) ahead of LS", lead(FAIRGRAD, "LS")[DELTA], d)
    parts = [checked("conflict can hinder a task", plain == fair == 0 < opposed, said), ahead]
    note = "which steps of these runs conflict is not recorded; that removing conflict is what helps is not shown"
    return decide("fairgrad-conflict", "parts", parts, **shared([DELTA], [FAIRGRAD], d), said=note)


def moves(doubled: Sequence[pd.DataFrame], metrics: Sequence[str]) -> dict[str, float] | None:
    """How far doubled epochs move each row's lead over LS, in the units of `leads`; None where that was not run."""
    if not doubled:
        return None
    labels = [label for label in dict.fromkeys(doubled[0]["label"]) if label != "LS"]
    once, twice = ({label: lead(label, "LS").mean() for label in labels} for lead in map(leads, doubled))
    return {f"{label} {m}": float(twice[label][m] - once[label][m]) for label in labels for m in metrics}


def _first(metric: str, there: Sequence[str], lead: Lead, own: str, printed: "pd.Series[float]") -> Part:
    """Is EMTL, in a reading, the best of its table's methods at one metric? With the closest rival's numbers."""
    rivals = [name for name in EMTL_RIVALS if name in there]
    each = [compare(r, lead(own, r)[metric], float(printed[r]) / 2, rivals=len(rivals)) for r in rivals]
    closest = min(each, key=lambda part: float(part.value or 0.0) / float(part.d or 1.0))
    word = decide("one", "best", each).word
    return replace(closest, name=f"{metric} ({closest.name})", word=word)


def favoured(rows: Sequence[Row]) -> Part:
    """Does MGDA give most weight to the task of the smallest gradient norm, and is it the normals?"""
    history = [line for row in rows if row["label"] == "MGDA" and row["status"] == "ok" for line in row["history"]]
    weights = np.mean([line["weights"] for line in history], axis=0)
    norms = np.mean([np.divide(line["losses"], line["rates"]) for line in history], axis=0)
    names = list(COLUMNS)
    least, most = names[int(norms.argmin())], names[int(weights.argmax())]
    share = ", ".join(f"{name} {w:.2f}" for name, w in zip(names, weights / weights.sum(), strict=True))
    said = f"smallest gradient norm (mean loss over mean rate): {least}; weights: {share}"
    return checked("MGDA's weight", least == most == "normals", said)
