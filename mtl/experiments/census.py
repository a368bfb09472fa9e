"""Census-Income: does any method beat equal weights, or one network per task? Nothing is tuned."""

import math
from functools import cached_property

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from mtl.experiments.base import Experiment
from mtl.experiments.beside import differences
from mtl.experiments.study import Study
from mtl.report import Table, captioned, plots, style
from mtl.report.stats import mean_ci
from mtl.training.fit import Budget


class CensusStudy(Study):
    """Test AUC per task and their mean, every method tested against equal weights."""

    baseline = "LS"

    @cached_property
    def table(self) -> pd.DataFrame:
        return captioned(
            super().table,
            "Census-Income, MMoE: test AUC per task and mean AUC (score), mean ± 95 % interval over seeds; "
            "no hyperparameter was tuned",
        )

    def figure(self) -> Figure:
        """An axis per task and one for their mean: each method's mean and interval."""
        fig, axes = style.subplots(1, len(self.metrics), height=2.6)
        names = {row["label"]: row["config"]["method"] for row in self.rows}
        heads = {m: m.replace("/auc", "\ntest AUC").replace("score", "mean of tasks\ntest AUC") for m in self.metrics}
        plots.intervals(axes[0], self.raw, heads, names.__getitem__)
        return captioned(fig, "Test AUC by method: mean and 95 % interval over seeds")

    def pairs(self) -> Figure:
        """Each seed's mean AUC minus that of equal weights on the same seed: the pairs that the tests are made of."""
        fig, axes = style.subplots(1, 1, height=2.4)
        base = self.frame[self.frame["label"] == "LS"].set_index("seed")["score"]
        table = self.frame[self.frame["label"] != "LS"].assign(gain=lambda runs: runs["score"] - runs["seed"].map(base))
        looks = dict(zip(table["label"], [style.look(method)[1] for method in table["method"]], strict=True))
        sns.stripplot(table, x="gain", y="label", hue="label", palette=looks, jitter=False, size=4, ax=axes[0, 0])
        axes[0, 0].axvline(0, color="0.3", lw=0.8)
        axes[0, 0].set_xscale("symlog", linthresh=1e-3)
        axes[0, 0].set_xlabel("mean test AUC minus LS on the same seed (linear within .001, then logarithmic)")
        axes[0, 0].set_ylabel("")
        return captioned(fig, "Each method's mean test AUC of the tasks minus that of equal weights, one dot per seed")

    def residuals(self) -> Table:
        """The worst residual of any step of any seed: how exactly the T x T problems were solved while training."""
        found = pd.DataFrame([(row["label"], row.get("certificate") or 0.0) for row in self.rows])
        worst = found.groupby(0, sort=False)[1].max()
        return Table(worst[worst > 0].map("{:.1e}".format).rename("worst residual").rename_axis(None).to_frame())

    def answer(self) -> str:
        """Which methods are above or below equal weights and STL, paired by seed, and what a correction would take."""
        raw = self.raw
        if not {"LS", "STL"} <= set(raw.index) or len(self.seeds) < 2:
            return f"Needs rows of LS and STL and two seeds, found {', '.join(raw.index)} and seeds {self.seeds}."
        tested, said = [name for name in raw.index if name not in ("LS", "STL")], list[str]()
        for base, rows in (("LS", tested), ("STL", ["LS", *tested])):
            found = {name: mean_ci(differences(self.frame, "score", name, base)) for name in rows}
            text = {name: f"{name} {one.value:+.4f} [{one.low:+.4f}, {one.high:+.4f}]" for name, one in found.items()}
            above, below = (
                [name for name, one in found.items() if sign * one.value - one.half > 0] for sign in (1, -1)
            )
            said += [
                f"{base}, paired by seed, 95 % intervals: above it "
                f"{', '.join(text[name] for name in above) or 'none'}; "
                f"below it {', '.join(text[name] for name in below) or 'none'}."
            ]
        needed = math.ceil(math.log2(2 * len(tested) / 0.05))
        return "\n".join([
            *said,
            f"These intervals are not corrected. Smallest p that n = {len(self.seeds)} can give: "
            f"{raw['score', 'smallest p'].min():.4f}; Holm's correction over {len(tested)} tests needs n = {needed}.",
        ])  # fmt: skip


CENSUS = Experiment(
    name="census",
    problem="census",
    fallback="digits",
    notebook="02_census",
    shows=CensusStudy,
    methods=(
        ("LS", "ls", {}), ("UW", "uw", {}), ("MGDA", "mgda", {}), ("PCGrad", "pcgrad", {}), ("CAGrad", "cagrad", {}),
        ("IMTL-G", "imtl-g", {}), ("Nash-MTL", "nash", {}), ("FairGrad", "fairgrad", {"alpha": 2.0}),
        ("BanditMTL", "bandit", {}), ("EMTL", "emtl", {}), ("STL", "stl", {}),
    ),
    models=("mmoe",),
    seeds={"smoke": (0, 1), "quick": (0, 1, 2), "paper": (0, 1, 2, 3, 4)},
    budget={
        "smoke": Budget(epochs=2, batch_size=256, lr=2e-3, weight_decay=1e-6),
        "quick": Budget(epochs=3, batch_size=1024, lr=4e-3, weight_decay=1e-6, patience=2),
        "paper": Budget(epochs=30, batch_size=2048, lr=1e-3, weight_decay=1e-6, patience=5),
    },
    variants=dict.fromkeys(("smoke", "quick"), ({"tasks": 3},)) | {"paper": ({"tasks": 3}, {"tasks": 2})},
)  # fmt: skip
