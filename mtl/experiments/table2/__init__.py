"""EMTL's Table 2: segmentation, depth and normals of NYUv2; nine metrics, delta-m, the papers' rows, their sentences.

Nothing is tuned: published settings, but for BanditMTL, whose rho = 1.2 is beyond ln 3, where its ball is no ball.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mtl.experiments.base import Experiment, Trials
from mtl.experiments.beside import beside_paper, text
from mtl.experiments.study import NO_ROWS, Study
from mtl.experiments.table2 import results
from mtl.experiments.table2.figures import change_figure, panel_figure, training_figure
from mtl.experiments.table2.results import DELTA, FAIRER
from mtl.problems import problem
from mtl.report import captioned
from mtl.report.claims import Check, Finding
from mtl.report.stats import mean_ci
from mtl.runs.cells import Point, refit
from mtl.training.fit import Budget

paper_says = results.paper_says
SEEN = ("STL", "LS", "EMTL", "FairGrad (alpha=2)")  # whose nets the panel trains anew
PRINTED: dict[str, Any] = {"data": "EMTL, Table 2, as printed", "n": "14 rows x 9 metrics", **NO_ROWS}
CHANGE = "mean change of each metric against single-task learning, below 0 is better, 95 % intervals over seeds"
WORDS = (
    "nine test metrics and delta-m against STL in per cent (mean over metrics; by task: mean over tasks), "
    "mean ± 95 % interval over seeds"
)


class Table2(Study):
    """Nine metrics; the epoch is chosen on validation."""

    sentences: ClassVar[tuple[str, ...]] = (
        "emtl-table2-best", "emtl-table2-metrics", "emtl-table2-stl", "emtl-table2-mgda", "fairgrad-conflict",
        "fairgrad-best", "fairgrad-fair-losses",
    )  # fmt: skip

    @cached_property
    def frame(self) -> pd.DataFrame:
        return results.lines(self.rows)

    @property
    def name(self) -> str:
        """The data, as captions begin."""
        return "NYUv2, SegNet" if self.at else f"Scenes, {self.rows[-1]['config']['model']}"

    @property
    def when(self) -> str:
        """The epoch that is reported."""
        return "epoch chosen on validation"

    @cached_property
    def table(self) -> pd.DataFrame:
        return captioned(results.formatted(self.frame, self.blind), f"{self.name}, {self.when}: {WORDS}")

    @property
    def last(self) -> pd.DataFrame:
        """The papers' custom: the mean over the last epochs."""
        table = results.formatted(results.lines(self.rows, "last"), self.blind)
        return captioned(table, f"{self.name}, mean of the last two epochs: {WORDS}")

    @property
    def paper(self) -> pd.DataFrame:
        """Ours | paper | source of delta-m, without levels (rule 9); the printed one beside what its own cells give."""
        means = self.frame.groupby("label", sort=False)[[DELTA, FAIRER]].mean().rename_axis("method")
        shown = {"delta-m": DELTA, "by task": FAIRER}
        ours = pd.DataFrame({head: [text(v, 1) for v in means[m]] for head, m in shown.items()}, means.index)
        heads = {"delta_m": "paper delta-m", "recomputed": "from its cells", "by_task": "paper by task"}
        paper = results.printed().rename(columns=heads).rename(index={"FairGrad": "FairGrad (alpha=2)"})
        table = beside_paper(ours, paper, dict.fromkeys(heads.values(), 2))
        table.insert(list(table).index("paper delta-m") + 1, "from its cells", table.pop("from its cells"))
        return captioned(
            table,
            "Change against STL, ours (96 x 128, SegNet, six epochs) beside what papers print (288 x 384, MTAN, 200 "
            "epochs, official normals); levels are not comparable and left out, the order of methods is the question. "
            "From its cells: delta-m recomputed from the printed row",
        )

    def figure(self) -> Figure:
        """Each method's mean change of each metric against STL; five lines stand out."""
        strong = ("EMTL", "FairGrad (alpha=2)", "LS", "MGDA", "Nash-MTL", "fixed weights")
        return captioned(change_figure(self.frame, strong), f"{self.name}, {self.when}: {CHANGE}")

    def training(self) -> Figure:
        """Shares of the weight and relative rates while training."""
        return captioned(
            training_figure(self.rows, ("LS", "UW", "MGDA", "FairGrad (alpha=2)", "EMTL")),
            f"{self.name}: each task's share of the weight (running mean) and relative rate over training, mean and "
            "range over seeds",
        )

    def panel(self, device: str = "cpu") -> Figure:
        """What nets trained anew (seed 0) see in two test images. It is closed: a notebook saves it and shows nothing,
        since the pictures are the data set's own."""
        made, labels = self.experiment, ["LS", "EMTL"] if self.scale == "quick" else list(SEEN)
        (options,) = made.chosen(self.scale)
        data: Any = problem(made.problem, self.scale, fallback=made.fallback, **options)
        cells = made.cells(self.scale, [0], labels, made.fallback)
        one = {cell.label: cell for cell in reversed(cells)}  # of STL's runs the first, trained here on all tasks
        alone = {"method": "ls", "hyper": {}, "select": "score"}
        models = {label: refit(one[label], alone if label == "STL" else None, device) for label in reversed(one)}
        fig = panel_figure(data, models, [0, len(data.data("test")[0]) // 2])
        plt.close(fig)
        said = "Two test images: truth and predictions (labels, depth, normals); void and missing pixels white"
        return captioned(fig, said)

    def findings(self) -> list[Finding]:
        """Sentences of EMTL's section 5.3, and what FairGrad's paper says of this benchmark."""
        return results.findings(self.rows, self.frame, self.blind, self.lengths, scale=self.scale)


PUBLISHED: tuple[tuple[str, str, Point], ...] = (
    ("STL", "stl", {}), ("LS", "ls", {}), ("MGDA", "mgda", {}), ("EMTL", "emtl", {}),
    ("FairGrad (alpha=2)", "fairgrad", {"alpha": 2.0}), ("Nash-MTL", "nash", {}), ("UW", "uw", {}),
    ("CAGrad", "cagrad", {}), ("IMTL-G", "imtl-g", {}), ("BanditMTL", "bandit", {"rho": 0.5}), ("SI", "si", {}),
    ("RLW", "rlw", {}), ("DWA", "dwa", {}), ("PCGrad", "pcgrad", {}), ("GradDrop", "graddrop", {}),
    ("MoCo", "moco", {}), ("FairGrad (alpha=1)", "fairgrad", {"alpha": 1.0}),
    ("Fair LS (alpha=0.5)", "fair-loss", {"base": "ls", "alpha": 0.5}),
)  # fmt: skip

TABLE2 = Experiment(
    name="table2",
    book="scenes",
    problem="nyuv2",
    fallback="rooms",
    notebook="06_table2_scenes",
    source="{} (real), 96 x 128; 715 train, 80 validation, 654 test images; normals derived from depth",
    shows=Table2,
    methods=dict.fromkeys(("smoke", "study", "gpu", "paper"), PUBLISHED)
    | {"quick": PUBLISHED[:9]},  # one epoch tells no method from another: the others would only take time
    # MTAN costs three times as much
    models={"smoke": ("mtan",), "quick": ("segnet",), "study": ("segnet",)}
    | {"gpu": ("segnet", "mtan"), "paper": ("mtan",)},
    seeds={"smoke": (0,), "quick": (0,), "study": (0, 1, 2), "gpu": (10, 11, 12), "paper": (0, 1, 2)},
    budget={
        "smoke": Budget(epochs=1, batch_size=4, lr=1e-3, last=1),
        "quick": Budget(epochs=1, batch_size=4, lr=1e-3, last=1),
        # the learning rate that LS likes best on validation, seed 100 (.001 .003)
        "study": Budget(epochs=6, batch_size=4, lr=1e-3, halve_at=4, last=2),
        "gpu": Budget(epochs=40, batch_size=8, lr=1e-3, halve_at=20, last=2),
        "paper": Budget(epochs=200, batch_size=2, lr=1e-4, halve_at=100, last=10),
    },
    # quick in float32: a CPU without instructions for bfloat16 takes ten times as long with it
    variants={"smoke": ({"resolution": "48x64"},), "quick": ({},)}
    | {scale: ({"amp": True},) for scale in ("study", "paper")} | {"gpu": ({"amp": True, "width": 32},)},
)  # fmt: skip

# The table with a net that sees: paper/decision_rule.md says why, and declared all of this before any run.
RATES = (1e-3, 3e-3, 9e-3)  # ties go to the smaller one
CYCLE = Budget(
    epochs=24, batch_size=8, lr=3e-3, weight_decay=0.05, last=1, optimizer="adamw", one_cycle=0.2, drop_last=True
)
BALLS = ({"alpha": 0.5, "rho": 0.3}, {"alpha": 0.25, "rho": 0.5}, {"alpha": 0.0, "rho": 0.1})
SCALARS = ({"c": [2.0, 0.5, 0.5]}, {"c": [0.5, 2.0, 0.5]}, {"c": [0.5, 0.5, 2.0]})
ROWS: tuple[tuple[str, str, Point], ...] = (
    # group A
    ("STL", "stl", {}), ("LS", "ls", {}), ("fixed weights", "scalarization", {"c": [1.0, 1.0, 1.0]}),
    ("MGDA", "mgda", {}), ("Nash-MTL", "nash", {}), ("EMTL", "emtl", {}),
    ("FairGrad (alpha=2)", "fairgrad", {"alpha": 2.0}),
    # group B
    ("EMTL (frozen norm)", "emtl", {"combine": "frozen_norm"}), ("EMTL (raw)", "emtl", {"rate": "raw"}),
    ("CAGrad", "cagrad", {}), ("IMTL-G", "imtl-g", {}), ("PCGrad", "pcgrad", {}), ("GradDrop", "graddrop", {}),
    ("SI", "si", {}), ("RLW", "rlw", {}), ("DWA", "dwa", {}), ("UW", "uw", {}),
    ("BanditMTL", "bandit", {"rho": 0.5}),
    # group C
    ("FairGrad (alpha=1)", "fairgrad", {"alpha": 1.0}), ("Nash-MTL (raw heads)", "nash", {"heads": "raw"}),
    ("FairGrad (weighted heads)", "fairgrad", {"alpha": 2.0, "heads": "weighted"}), ("MoCo", "moco", {}),
)  # fmt: skip
TEN = tuple(range(10, 20))
GROUP_A, GROUP_B = (tuple(label for label, _, _ in ROWS[:n]) for n in (7, 18))
THEN: Mapping[str, tuple[Point, ...]] = {**dict.fromkeys(results.READINGS, BALLS), "fixed weights": SCALARS}
NET: dict[str, Any] = {"depth": 3, "loss_stride": 2}


class Seeing(Table2):
    """The last epoch of each run: nothing is chosen on validation but the points."""

    @cached_property
    def frame(self) -> pd.DataFrame:
        return results.lines(self.rows, "last")

    @property
    def name(self) -> str:
        return "NYUv2, a small U-Net" if self.experiment.problem == self.rows[0]["config"]["problem"] else super().name

    @property
    def when(self) -> str:
        """The epoch that is reported, and what was chosen for it."""
        said = f"last of {self.experiment.budget[self.scale].epochs} epochs"
        if not (grids := self.experiment.grids(self.scale)):
            return said
        (tuned,) = self.tuning.values()
        chosen = [_chosen(label, point, [p["lr"] for p in grids[label]]) for label, point in tuned.best.items()]
        return (
            f"{said}; learning rate that validation chose († at an end of the grid; STL: by task): {', '.join(chosen)}"
        )

    @cached_property
    def checks(self) -> dict[str, Check]:
        """The gate of `emtl-table2-best`, by name."""
        (finding,) = (one for one in self.findings() if one.claim == self.sentences[0])
        return {check.name: check for check in finding.gate}

    @property
    def gate(self) -> pd.DataFrame:
        """What has to hold before these rows may decide `emtl-table2-best`."""
        words = {True: "yes", False: "no", None: "not run"}
        rows = [(c.name, words[c.passed], c.said) for c in self.checks.values()]
        table = pd.DataFrame(rows, columns=["check", "passed", "found"]).set_index("check")
        n = f"{len(self.seeds)} of {len(self.experiment.seeds[self.scale])} seeds"
        return captioned(table, f"{self.name}, scale {self.scale}: the gate; {n}; {self.waiting}")

    @property
    def waiting(self) -> str:
        """What these rows do not decide yet, and why."""
        few = len(self.seeds) < len(self.experiment.seeds[self.scale])
        lacking = [label for label in results.EMTL_RIVALS if label not in set(self.frame["label"])]
        why = ["fewer seeds than declared"] * few
        epochs = f"{self.experiment.budget[self.scale].epochs} epochs are not enough"
        why += {True: [], False: [epochs], None: ["epochs were not doubled"]}[self.checks["converged"].passed]
        why += [f"{len(lacking)} of EMTL's {len(results.EMTL_RIVALS)} rivals lack seeds"] * bool(lacking)
        which = "no sentence is" if self.scale == "gpu" else f"{self.sentences[0]} is not"
        return f"{which} decided by them" + f" ({', '.join(why)})" * bool(why)

    @property
    def leads(self) -> pd.DataFrame:
        """EMTL's and FairGrad's lead over every other row in delta-m, paired over seeds."""
        lead, found = results.leads(self.frame), dict[str, dict[str, str]]()
        labels = [name for name in dict.fromkeys(self.frame["label"]) if not str(name).endswith(" A/A")]
        for own in ("EMTL", results.FAIRGRAD):
            column = found.setdefault(f"{own} ahead of", {})
            for rival in labels:
                points = mean_ci(lead(own, rival)[DELTA])
                column[rival] = "–" if rival == own else f"{points.value:+.1f} ± {text(points.half, 1)}"
        table = pd.DataFrame(found).rename_axis("rival")
        said = f"{self.name}, scale {self.scale}: lead in delta-m, points, mean ± 95 % interval paired over seeds"
        return captioned(table, f"{said}; {self.waiting}")

    @property
    def stretched(self) -> pd.DataFrame:
        """The same leads at these epochs and at twice as many, on the seeds of the convergence check."""
        epochs = self.experiment.budget[self.scale].epochs
        found, seeds = dict[str, dict[str, str]](), set[int]()
        for times, frame in enumerate(self.lengths, 1):
            lead = results.leads(frame)
            for own in ("EMTL", results.FAIRGRAD):
                column = found.setdefault(f"{own}, {times * epochs} epochs", {})
                for rival in dict.fromkeys(frame["label"]):
                    points = lead(own, rival)[DELTA]
                    column[rival] = "–" if rival == own else " ".join(f"{p:+.1f}" for p in points)
                    seeds |= set(points.index)
        table = pd.DataFrame(found).rename_axis("ahead of")
        named = " and ".join(map(str, sorted(seeds)))
        said = f"{self.name}, scale {self.scale}: lead in delta-m, points, seeds {named}"
        facts = {"rows": [row for rows in self.doubled for row in rows], "n": f"{len(seeds)} seeds"}
        return captioned(table, f"{said}, and for twice the epochs; where they differ, training was too short", **facts)


def _chosen(label: str, point: Point, rates: Sequence[float]) -> str:
    """A row with its rates, and what else it chose among."""
    own = point["lr"] if isinstance(point["lr"], list) else [point["lr"]]
    said = " ".join(f"{rate:g}" + "†" * (rate in (rates[0], rates[-1])) for rate in own)
    more = ", ".join(f"{name} {point[name]}" for name in (THEN[label][0] if label in THEN else ()))
    return f"{label} {said}" + f" ({more})" * bool(more)


UNET = Experiment(
    name="table2_unet",
    book="scenes",
    problem="nyuv2",
    fallback="rooms",
    notebook="06_table2_scenes",
    source=TABLE2.source,
    shows=Seeing,
    methods=ROWS,
    models=("unet",),
    seeds={"smoke": (0,), "quick": (0,), "study": TEN, "gpu": TEN, "paper": (10, 11, 12)},
    budget={
        scale: replace(CYCLE, epochs=n)
        for scale, n in {"smoke": 1, "quick": 2, "study": 24, "gpu": 40, "paper": 200}.items()
    },
    # on a GPU nothing is chosen, and the trials' seeds are there for the convergence check
    trials={scale: Trials((100, 101), replace(CYCLE, epochs=12), then=THEN) for scale in ("study", "paper")}
    | {"gpu": Trials((100, 101), replace(CYCLE, epochs=40))},
    twins=("LS",),
    rates={"smoke": (), "quick": (), "study": RATES, "gpu": (), "paper": RATES},
    doubled=("STL", "LS", "EMTL", "FairGrad (alpha=2)"),
    variants={
        # bfloat16 is six times slower than float32 on a CPU without instructions for it
        scale: ({**NET, "width": width, "amp": scale in ("gpu", "paper")},)
        for scale, width in {"smoke": 8, "quick": 32, "study": 32, "gpu": 64, "paper": 64}.items()
    },
)  # fmt: skip
