"""Table 2: its figures, and what the nets see."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from mtl.experiments.table2.results import HEADS, METRICS, TASKS
from mtl.ledger import Row
from mtl.models.base import MultiTaskModel
from mtl.problems.scenes.base import COLUMNS, Scenes
from mtl.report import plots, style
from mtl.report.stats import mean_ci


def change_figure(table: pd.DataFrame, strong: Sequence[str]) -> Figure:
    """Parallel coordinates: each method's mean change of each metric against STL, per cent, down is better; the
    `strong` in colour with 95 % intervals over seeds, the others grey."""
    values = table[list(METRICS)].astype(float)
    base = values[table["label"] == "STL"].mean()
    runs = (100 * np.where(list(METRICS.values()), -1.0, 1.0) * (values - base) / base.abs()).assign(
        label=table["label"]
    )
    change = runs.groupby("label", sort=False).mean().drop(index="STL")
    methods = dict(zip(table["label"], table["method"], strict=True))
    fig, axes = style.subplots(1, 1, height=3.0)
    ax = axes[0, 0]
    ax.axhline(0, color="0.3", lw=0.8)
    drawn = set[str]()
    for label, line in change.iterrows():
        if label in strong:
            _, colour, marker = style.look(methods[str(label)])
            own = runs[runs["label"] == label]
            half = [mean_ci(own[name].dropna()).half for name in METRICS]
            how: dict[str, Any] = {
                "fmt": marker + ("--" if colour in drawn else "-"),
                "color": colour,
                "ms": 3.5,
                "lw": 1.2,
                "elinewidth": 0.9,
            }
            ax.errorbar(range(len(METRICS)), line, half, capsize=2, zorder=4, label=label, **how)
            drawn.add(colour)
        else:
            ax.plot(range(len(METRICS)), line, color="0.7", lw=0.7, zorder=2)
    if others := [str(label) for label in change.index if label not in strong]:
        ax.plot([], [], color="0.7", lw=0.7, label=others[0] if len(others) == 1 else f"{len(others)} others")
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
    fig, axes = style.subplots(2, len(labels), height=3.4, sharey="row")
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
        lower.set(ylabel="")
    axes[1, 0].set(yscale="log", ylabel="relative rate $L_t/|g_t|$")  # the first column may have none to show
    axes[1, 0].yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_locator=NullLocator())
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
    fig, axes = style.subplots(shown, 1 + len(columns), height=1.02 * shown)
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


def _map(ax: Axes, values: torch.Tensor, task: str, truth: bool, classes: int, far: float) -> None:
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
