"""Table 2 (scene understanding): nine metrics, delta-m in both averages, the papers' own rows, what they say."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from mtl import plots
from mtl.files import root
from mtl.ledger import Row
from mtl.metrics import delta_m
from mtl.models.base import MultiTaskModel
from mtl.problems.scenes import COLUMNS, Scenes
from mtl.report import Verdict, frame, results_table
from mtl.stats import mean_ci, mean_rank, paired_permutation

METRICS = {f"{task}/{name}": up for task, columns in COLUMNS.items() for name, _, up in columns}
TASKS = [name.partition("/")[0] for name in METRICS]
DELTA, FAIRER = "delta-m", "delta-m by task"  # mean over the nine metrics; mean over tasks of their metrics' means
HEADS = {"segmentation": "seg.", "depth": "depth", "normals": "normals"}
# methods of Table 2 that look at gradients; FairGrad's claim is about these
GRADIENT = ("MGDA", "PCGrad", "CAGrad", "GradDrop", "MoCo", "IMTL-G", "Nash-MTL", "EMTL", "FairGrad")


def lines(rows: Sequence[Row], which: str = "metrics") -> pd.DataFrame:
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


def _paired(table: pd.DataFrame, metric: str, one: str, other: str) -> tuple[float, float, float, int]:
    """Mean difference one - other over common seeds, half of its interval, exact p, n."""
    wide = table.pivot(index="seed", columns="label", values=metric)[[one, other]].dropna()
    gap = mean_ci(wide[one] - wide[other])
    return gap.value, gap.half, paired_permutation(wide[one], wide[other]).p, gap.n


def best_verdict(table: pd.DataFrame, own: str = "EMTL", rivals: Sequence[str] | None = None) -> tuple[Verdict, str]:
    """`own` first in delta-m, by more than a point? `rivals`: the methods to compare with, all by default."""
    said, first, clear = [], True, True
    kept = [label for label in table["label"].unique() if label not in ("STL", own)]
    kept = [label for label in kept if rivals is None or label.partition(" (")[0] in rivals]
    for metric in (DELTA, FAIRER):
        means = table[table["label"].isin([own, *kept])].groupby("label")[metric].mean().dropna().sort_values()
        place = list(means.index).index(own) + 1
        rival = str(means.drop(own).index[0])
        gap, half, p, n = _paired(table, metric, own, rival)
        first, clear = first and place == 1, clear and gap < -1 and gap + half < 0
        said.append(f"{metric} {means[own]:.1f}, place {place} of {len(means)}; {gap:+.1f} ± {half:.1f} against {rival}"
                    f" (n = {n}, p = {p:.2f})")  # fmt: skip
    return ("not reproduced" if not first else "reproduced" if clear else "conditional"), "; ".join(said)


def fairgrad_verdict(table: pd.DataFrame, own: str = "FairGrad (alpha=2)") -> tuple[Verdict, str]:
    """Among the best gradient-based methods: in the first three of them by delta-m and by mean rank?"""
    kept = table[(table["label"] == own) | table["label"].map(lambda label: label.partition(" (")[0] in GRADIENT)]
    order = kept.groupby("label")[DELTA].mean().sort_values()
    rank = ranks(table).reindex(order.index).rank()
    places = [list(order.index).index(own) + 1, int(rank[own])]
    said = (
        f"place {places[0]} of {len(order)} gradient-based methods by delta-m ({order[own]:.1f}, first {order.index[0]}"
    )
    said += f" {order.iloc[0]:.1f}), place {places[1]} by mean rank"
    good = [place <= 3 for place in places]
    return ("reproduced" if all(good) else "conditional" if any(good) else "not reproduced"), said


def fair_loss_verdict(table: pd.DataFrame) -> tuple[Verdict, str]:
    """Does the alpha-fair transform lower LS's delta-m?"""
    gap, half, p, n = _paired(table, DELTA, "Fair LS (alpha=0.5)", "LS")
    said = f"delta-m of LS with L^(1/2) minus LS: {gap:+.1f} ± {half:.1f} (n = {n}, p = {p:.2f}); LS alone was tested"
    return ("not reproduced" if gap >= 0 else "conditional"), said


def metrics_verdict(table: pd.DataFrame, own: str = "EMTL") -> tuple[Verdict, str]:
    """Best of all multi-task methods at 8 of 10 metrics (nine and delta-m), in the mean over seeds?"""
    means = table[table["label"] != "STL"].groupby("label")[[*METRICS, DELTA]].mean().dropna()
    signs = np.where([*METRICS.values(), False], 1.0, -1.0)
    first = means.index[(means.to_numpy() * signs).argmax(0)]
    won = [name for name, label in zip(means.columns, first, strict=True) if label == own]
    counts = ", ".join(f"{label} {n}" for label, n in first.value_counts().items())
    said = f"{own} best at {len(won)} of 10 metrics among {len(means)} methods; {counts}"
    return ("reproduced" if len(won) >= 8 else "not reproduced"), said


def stl_verdict(table: pd.DataFrame, own: str = "EMTL") -> tuple[Verdict, str]:
    """Better than single-task learning at 8 of 9 metrics, in the mean over seeds?"""
    means = table.groupby("label")[list(METRICS)].mean()
    gain = dict(zip(METRICS, means.loc[own].to_numpy() - means.loc["STL"].to_numpy(), strict=True))
    better = [name for name, up in METRICS.items() if (gain[name] > 0) == up]
    said = (
        f"{own} above STL at {len(better)} of {len(METRICS)} metrics ({', '.join(better) or 'none'}), means over seeds"
    )
    return ("reproduced" if len(better) >= 8 else "not reproduced"), said


def mgda_verdict(rows: Sequence[Row], table: pd.DataFrame) -> tuple[Verdict, str]:
    """MGDA gives most weight to the task of the smallest gradient norm, normals; EMTL is at least as good there?"""
    own = [row for row in rows if row["label"] == "MGDA" and row["status"] == "ok"]
    history = [line for row in own for line in row["history"]]
    weights = np.mean([line["weights"] for line in history], axis=0)
    norms = np.mean([np.divide(line["losses"], line["rates"]) for line in history], axis=0)
    names = list(COLUMNS)
    least, most = names[int(norms.argmin())], names[int(weights.argmax())]
    gap, half, p, n = _paired(table, "normals/mean", "EMTL", "MGDA")
    share = ", ".join(f"{name} {w:.2f}" for name, w in zip(names, weights / weights.sum(), strict=True))
    said = (
        f"MGDA's smallest gradient norm (mean loss over mean rate): {least}; its weights: {share}; mean angle of EMTL "
    )
    said += f"minus MGDA {gap:+.2f} ± {half:.2f} degrees (n = {n}, p = {p:.2f})"
    holds = [least == most == "normals", gap <= 0]
    return ("reproduced" if all(holds) else "conditional" if any(holds) else "not reproduced"), said


def change_figure(table: pd.DataFrame, strong: Sequence[str]) -> Figure:
    """Parallel coordinates: each method's mean change of each metric against STL, per cent, down is better."""
    means = table.groupby("label", sort=False)[list(METRICS)].mean()
    base = means.loc["STL"]
    change = 100 * np.where(list(METRICS.values()), -1.0, 1.0) * (means - base) / base.abs()
    change = pd.DataFrame(change, means.index).drop(index="STL")
    methods = dict(zip(table["label"], table["method"], strict=True))
    fig, axes = plots.subplots(1, 1, height=3.0)
    ax = axes[0, 0]
    ax.axhline(0, color="0.3", lw=0.8)
    for label, values in change.iterrows():
        _, colour, marker = plots.look(methods[str(label)])
        bold = label in strong
        style = {"lw": 1.8, "alpha": 1, "zorder": 4} if bold else {"lw": 0.7, "alpha": 0.55, "zorder": 2}
        ax.plot(range(len(METRICS)), values, marker + "-", color=colour, ms=4 if bold else 2.5, label=label, **style)
    ax.set_xticks(
        range(len(METRICS)),
        [f"{HEADS[task]}\n{name.partition('/')[2]}" for task, name in zip(TASKS, METRICS, strict=True)],
    )
    for edge in np.flatnonzero(np.array(TASKS[1:]) != np.array(TASKS[:-1])) + 0.5:
        ax.axvline(edge, color="0.75", lw=0.8, ls=":")
    ax.set_ylabel("change against STL [%]\n(below 0 is better)")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=6.5)
    return fig


def training_figure(rows: Sequence[Row], labels: Sequence[str]) -> Figure:
    """A column per method: shares of the weight over steps, relative rates L_t/|g_t| over epochs; range over seeds."""
    fig, axes = plots.subplots(2, len(labels), height=3.4, sharey="row")
    for (upper, lower), label in zip(axes.T, labels, strict=True):
        own = [row for row in rows if row["label"] == label and row["status"] == "ok" and row["history"]]
        trace = np.array([row["trace"] for row in own])  # (seeds, points, 1 + T)
        share = trace[..., 1:] / trace[..., 1:].sum(-1, keepdims=True)
        window = max(1, share.shape[1] // 20)
        kernel = np.ones(window) / window
        smooth = np.apply_along_axis(np.convolve, 1, share, kernel, "valid")
        steps = np.convolve(trace[0, :, 0], kernel, "valid")
        plots.weights_over_time(upper, steps, smooth, list(COLUMNS), legend=label == labels[0])
        upper.set(title=label, ylim=(0, 1), ylabel="share of the weight" if label == labels[0] else "")
        if any(line["rates"] is None for row in own for line in row["history"]):
            lower.text(0.5, 0.5, "no gradients\nare compared", transform=lower.transAxes, ha="center", va="center")
            lower.set(xticks=[], xlabel="")
            continue
        rates = np.array([[line["rates"] for line in row["history"]] for row in own])
        epochs = np.arange(1, rates.shape[1] + 1)
        plots.weights_over_time(lower, epochs, rates, list(COLUMNS), unit="epoch", legend=False)
        lower.set(yscale="log", ylabel="relative rate $L_t/|g_t|$" if label == labels[0] else "")
    return fig


def panel_figure(problem: Scenes, models: Mapping[str, MultiTaskModel], images: Sequence[int]) -> Figure:
    """Test images: input and truth, then each model's labels, depth and normals; void and missing are white."""
    image, label, depth, *normal = (t[list(images)] for t in problem.data("test"))
    batch = (image.float() / 255).contiguous(memory_format=problem.layout)
    tasks = list(problem.tasks)
    columns: dict[str, list[torch.Tensor]] = {
        "truth": [label.long(), depth.float(), *(v.float() / 127 for v in normal)]
    }
    for name, model in models.items():
        model.eval()
        with torch.inference_mode():
            out = model(batch)
        columns[name] = [out[0].argmax(1), out[1][:, 0].float(), *(o.float() for o in out[2:])]
    shown = len(images) * len(tasks)
    fig, axes = plots.subplots(shown, 1 + len(columns), height=1.02 * shown)
    for row in range(shown):
        i, task = row // len(tasks), row % len(tasks)
        axes[row, 0].imshow(image[i].permute(1, 2, 0).numpy()) if task == 0 else axes[row, 0].set_axis_off()
        for ax, (name, maps) in zip(axes[row, 1:], columns.items(), strict=True):
            _map(ax, maps[task][i], tasks[task], name == "truth", len(problem.classes), float(depth[i].max()))
            if row == 0:
                ax.set_title(name, fontsize=7)
        axes[row, 1].set_ylabel(tasks[task], fontsize=6)
        for ax in axes[row]:
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
    axes[0, 0].set_title("image", fontsize=7)
    return fig


def _map(ax: plots.Axes, values: torch.Tensor, task: str, truth: bool, classes: int, far: float) -> None:
    if task == "segmentation":
        ax.imshow(
            np.ma.masked_greater_equal(values.numpy(), classes), cmap="tab20", vmin=0, vmax=19, interpolation="nearest"
        )
    elif task == "depth":
        hidden = values.numpy() <= 0 if truth else np.zeros(values.shape, bool)
        ax.imshow(np.ma.masked_where(hidden, values.numpy()), cmap="viridis", vmin=0, vmax=far)
    else:
        missing = (values.square().sum(0) == 0)[..., None].numpy()
        ax.imshow(np.where(missing, 1.0, (values.permute(1, 2, 0).numpy() + 1) / 2).clip(0, 1))
