"""EMTL's rho and alpha on NYUv2, with the net and the budget of Table 2; an appendix that decides no sentence."""

import math
from collections.abc import Mapping
from functools import cached_property

import pandas as pd
from matplotlib.figure import Figure

from mtl.experiments.base import Entry, Experiment
from mtl.experiments.hyperparameters import RHOS, curve, ranges
from mtl.experiments.study import Study
from mtl.experiments.table2 import TABLE2, UNET
from mtl.experiments.table2.results import DELTA, formatted, lines
from mtl.report import captioned, style

LN = math.log(3)  # three tasks: from here on the ball is the whole simplex
MIDDLE = {"alpha": 0.5, "rho": 0.3}  # our defaults; each is varied while the other stays
VALUES: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "smoke": {"alpha": (0.0, 0.5), "rho": (0.3, 1.2)},
    "study": {"alpha": (0.0, 0.1, 0.25, 0.4, 0.5), "rho": RHOS["paper"]},
}


def _points(scale: str) -> tuple[Entry, ...]:
    """STL, and EMTL with one of the two at each of its values; a rho beyond ln 3 is kept only where it is asked for."""
    pairs = [MIDDLE | {name: value} for name in ("rho", "alpha") for value in VALUES[scale][name]]
    once = {f"alpha = {p['alpha']:g}, rho = {p['rho']:g}": p for p in pairs}
    kept = {label: {**p, "strict": True} if p["rho"] >= LN else p for label, p in once.items()}
    return (("STL", "stl", {}), *((label, "emtl", point) for label, point in kept.items()))


class HyperparametersNYUv2(Study):
    """The last epoch of each run, as in Table 2; delta-m against STL of the same settings."""

    @cached_property
    def frame(self) -> pd.DataFrame:
        table = lines(self.rows, "last")
        return table.join(pd.DataFrame(list(table["hyper"]), table.index).reindex(columns=[*MIDDLE]))

    @cached_property
    def table(self) -> pd.DataFrame:
        said = (
            "EMTL by alpha and rho, the small U-Net of Table 2, last epoch: nine test metrics and delta-m against STL "
        )
        return captioned(
            formatted(self.frame),
            f"{said}in per cent, mean ± 95 % interval over seeds; nothing is tuned, nor is STL: with a rate for each "
            "task, as in Table 2's study, it is better, and all delta-m here would be higher by some 3 points",
        )

    def line(self, name: str) -> pd.DataFrame:
        """The runs in which one of the two varies."""
        (other,) = MIDDLE.keys() - {name}
        return self.frame[self.frame[other] == MIDDLE[other]]

    @property
    def spread(self) -> pd.DataFrame:
        """Range of the mean delta-m over the values of each, beside the spread over seeds."""
        own = self.frame.dropna(subset=[*MIDDLE])
        table = ranges({name: self.line(name) for name in MIDDLE}, own, [*MIDDLE], DELTA, higher=False)
        return captioned(
            table,
            "Range of EMTL's mean delta-m in points over the values of one hyperparameter, the other at its default, "
            "beside the spread over seeds (median over points)",
        )

    def figure(self) -> Figure:
        """delta-m against rho and against alpha; dots are seeds."""
        fig, axes = style.subplots(1, 2, height=2.3, sharey=True)
        for ax, name, other in zip(axes[0], ("rho", "alpha"), ("alpha", "rho"), strict=True):
            curve(ax, self.line(name), name, style.RED, "", DELTA)
            ax.set(xlabel=rf"$\{name}$ ($\{other}$ = {MIDDLE[other]:g})")
        axes[0, 0].axvline(LN, color="0.4", ls="--", lw=0.8)
        axes[0, 0].set_ylabel("delta-m [%], below 0 is better")
        return captioned(
            fig,
            "EMTL's delta-m against STL over rho (from the dashed line, ln 3, on the ball is the whole simplex) and "
            "over alpha, the other at its default; lines are means, dots are seeds; nothing is tuned, nor is STL",
        )


SEEDS = {"smoke": (10,), "quick": (10,), "study": (10, 11, 12), "paper": (10, 11, 12)}
HYPERPARAMETERS_NYUV2 = Experiment(
    name="hyperparameters_nyuv2",
    book=UNET.book,
    problem=UNET.problem,
    fallback=UNET.fallback,
    notebook="04_hyperparameters",
    source=TABLE2.source,
    shows=HyperparametersNYUv2,
    methods={scale: _points("study" if scale in ("study", "paper") else "smoke") for scale in SEEDS},
    models=UNET.models,
    seeds=SEEDS,
    budget={scale: UNET.budget[scale] for scale in SEEDS},
    variants={scale: UNET.variants[scale] for scale in SEEDS},
)
