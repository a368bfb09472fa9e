"""Table 2: what became of the papers' sentences about it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mtl.experiments.base import paired, standing
from mtl.experiments.table2.results import DELTA, FAIRER, METRICS, ranks
from mtl.ledger import Row
from mtl.problems.scenes.base import COLUMNS
from mtl.report import Verdict

# methods of Table 2 that look at gradients; FairGrad's claim is about these
GRADIENT = ("MGDA", "PCGrad", "CAGrad", "GradDrop", "MoCo", "IMTL-G", "Nash-MTL", "EMTL", "FairGrad")


def best_verdict(table: pd.DataFrame, own: str = "EMTL", rivals: Sequence[str] | None = None) -> tuple[Verdict, str]:
    """`own` first in delta-m, by more than a point? `rivals`: the methods to compare with, all by default."""
    said, first, clear = [], True, True
    kept = [label for label in table["label"].unique() if label not in ("STL", own)]
    kept = [label for label in kept if rivals is None or label.partition(" (")[0] in rivals]
    for metric in (DELTA, FAIRER):
        means = table[table["label"].isin([own, *kept])].groupby("label")[metric].mean()
        place, of, rival = standing(means, own, higher=False)
        gap = paired(table, metric, own, rival)
        first, clear = first and place == 1, clear and gap.value < -1 and gap.value + gap.half < 0
        said.append(f"{metric} {means[own]:.1f}, place {place} of {of}; {gap} against {rival}"
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
    good = [place <= 3 for place in places]
    return ("reproduced" if all(good) else "conditional" if any(good) else "not reproduced"), said


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
    holds = [least == most == "normals", gap.value <= 0]
    return ("reproduced" if all(holds) else "conditional" if any(holds) else "not reproduced"), said
