"""From rendered rooms to photographs: what does each method keep of what it learnt? No GTA5 to Cityscapes."""

from functools import cached_property

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtl.experiments.base import Experiment, Trials
from mtl.experiments.beside import reported
from mtl.experiments.study import BLIND, NO_ROWS, Study
from mtl.report import captioned, frame, results_table, style
from mtl.report.claims import Check, converged_check
from mtl.runs.cells import Point
from mtl.training.fit import Budget

SOURCE, TARGET, LOST = "source mIoU", "target mIoU", "difference"
PRINTED = {"data": "the listing beside FairGrad's paper", "n": "10 rows", **NO_ROWS}


class SimToReal(Study):
    """Source and target mIoU and their difference, method by method."""

    by = "line"

    @cached_property
    def frame(self) -> pd.DataFrame:
        table = frame(self.rows)
        table[SOURCE], table[TARGET] = (table[f"segmentation/{x}miou"].astype(float) for x in ("", "target-"))
        source = [options.get("source", "randomised") for options in table["options"]]
        rooms = np.array([one != "real" for one in source])  # else own test rows are some of the target's photographs
        table[SOURCE] = table[SOURCE].where(rooms)
        table[LOST] = table[SOURCE] - table[TARGET]
        names = zip(table["label"], source, strict=True)
        return table.assign(line=[name if s == "randomised" else f"{name} ({s})" for name, s in names])

    @property
    def metrics(self) -> dict[str, bool]:
        rest = ("depth/abs", "normals/mean")
        return {SOURCE: True, TARGET: True, LOST: False} | {name.replace("/", "/target-"): False for name in rest}

    @cached_property
    def table(self) -> pd.DataFrame:
        shown = results_table(self.frame, self.metrics, by=self.by, reference_row="STL", primary=TARGET, digits=2)
        shown = shown.drop(columns="mean rank")  # which would count the difference of two columns as a third
        if self.blind is not None:
            level = [f"{self.blind[f'segmentation/{x}miou']:.2f}" for x in ("", "target-")]
            shown.loc[BLIND] = [*level, *["–"] * (shown.shape[1] - 2)]
        shown = shown.rename(columns=lambda c: c.replace("depth/target-abs", "target depth [m]"))
        shown = shown.rename(columns=lambda c: c.replace("normals/target-mean", "target normals [deg]"))
        said = (
            "Trained on rendered rooms, tested on rendered rooms (source) and on photographs of NYUv2 (target), the "
            "same 13 classes: mIoU in per cent, mean ± 95 % interval over seeds (none for two); nothing is chosen on "
            "the target"
        )
        more = {"palette": "rooms without randomised colours", "real": "as many training images of NYUv2 itself"}
        there = {line.rpartition(" (")[2] for line in self.frame["line"]}
        said += "".join(f"; ({name}): {what}" for name, what in more.items() if f"{name})" in there)
        return captioned(shown.rename_axis("method"), said)

    def converged(self) -> Check:
        """Do doubled epochs move a row's lead over LS on the target by less than a point of mIoU?"""
        return converged_check(self.shifts(TARGET), 1.0)

    def figure(self) -> Figure:
        """Target against source mIoU, a mark per run; nets trained on photographs, which have no source, are a line."""
        fig, axes = style.subplots(1, 1, height=2.8)
        names = dict(zip(self.frame["line"], self.frame["method"], strict=True))
        for line, own in self.frame.groupby("line", sort=False):
            _, colour, marker = style.look(names[line])
            if str(line).endswith("(real)"):
                axes[0, 0].axhline(own[TARGET].mean(), color=colour, lw=0.8, ls="--", label=line)
                continue
            fill = "none" if str(line).endswith(" A/A") else "full"
            marker = "X" if str(line).endswith("(palette)") else marker
            axes[0, 0].plot(own[SOURCE], own[TARGET], marker, color=colour, label=line, fillstyle=fill)
        axes[0, 0].set(xlabel="mIoU in rendered rooms [%]", ylabel="mIoU on photographs [%]")
        axes[0, 0].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return captioned(
            fig,
            "What is kept of what was learnt in rendered rooms: a mark per run; dashed: mean of nets "
            "trained on photographs",
        )


def listing() -> pd.DataFrame:
    """The rows of the listing beside FairGrad's paper, and what of each is run here or why not."""
    table = reported("fairgrad_listing", dtype=str).drop(columns="source").fillna("–")
    said = "What the listing beside FairGrad's paper names, and what of it runs here. Its rows may be of other papers"
    return captioned(table, f"{said}; MR there is a mean rank among methods, whatever its column says")


METHODS: tuple[tuple[str, str, Point], ...] = (
    ("STL", "stl", {}), ("LS", "ls", {}), ("MGDA", "mgda", {}), ("CAGrad", "cagrad", {}), ("Nash-MTL", "nash", {}),
    ("FairGrad (alpha=2)", "fairgrad", {"alpha": 2.0}), ("EMTL", "emtl", {}),
)  # fmt: skip
QUICK = ("STL", "LS", "FairGrad (alpha=2)")
LONG = Budget(epochs=10, batch_size=8, lr=3e-3, weight_decay=0.05, optimizer="adamw", one_cycle=0.2, drop_last=True)
BUDGET = {"smoke": Budget(1, 4, lr=3e-3), "quick": Budget(2, 8, lr=3e-3), "study": LONG, "paper": LONG}
SEEDS = {"smoke": (10, 11), "quick": (10, 11), **dict.fromkeys(("study", "paper"), tuple(range(10, 15)))}
SIM_TO_REAL = Experiment(
    name="sim_to_real",
    problem="sim_to_real",
    fallback="sim_to_sim",
    notebook="18_sim_to_real",
    shows=SimToReal,
    methods={scale: tuple(m for m in METHODS if scale in ("study", "paper") or m[0] in QUICK) for scale in BUDGET},
    models=("unet",),
    seeds=SEEDS,
    budget=BUDGET,
    trials=dict.fromkeys(("study", "paper"), Trials((100, 101), LONG)),
    twins=("LS",),
    doubled=("STL", "LS", "MGDA", "FairGrad (alpha=2)"),
    variants={scale: ({"source": "randomised"},) for scale in BUDGET},
)
REFERENCES = Experiment(
    name="sim_to_real_levels",
    problem="sim_to_real",
    fallback="sim_to_sim",
    book="sim_to_real",
    notebook="18_sim_to_real",
    shows=SimToReal,
    methods=METHODS[:2],
    models=("unet",),
    seeds=SEEDS,
    budget=BUDGET,
    variants={scale: ({"source": "palette"}, {"source": "real"}) for scale in BUDGET},
)
