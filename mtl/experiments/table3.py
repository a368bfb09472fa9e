"""EMTL's Table 3 on a real log, KuaiRand: click, completion, watch time; losses in their own units and standardised.

Registered in paper/protocols/table3.md before any reported run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from mtl.experiments.base import Experiment, Trials
from mtl.experiments.beside import recount, reported, text
from mtl.experiments.study import NO_ROWS, Study
from mtl.problems import problem
from mtl.problems.kuairand import TARGETS, KuaiRand, WatchLog
from mtl.report import captioned, style
from mtl.report.claims import Check, Finding, Part, blind_check, by_reading, compare, converged_check, decide
from mtl.runs.cells import Cell, Point, build, refit
from mtl.training.fit import Budget

RATES = (1.0, 0.5, 2.0)  # factors of the budget's learning rate, the same for every row
DECAY: tuple[Point, ...] = ({}, {"weight_decay": 1e-5})  # the second factor of a row without a hyperparameter
ALPHAS: tuple[Point, ...] = ({"alpha": 2.0}, {"alpha": 1.0})
EMTL: tuple[Point, ...] = ({"alpha": 0.5, "rho": 0.3}, {"alpha": 0.25, "rho": 0.8})  # of the paper's grids
READINGS: dict[str, Point] = {
    "EMTL": {},
    "EMTL (raw)": {"rate": "raw"},
    "EMTL (frozen norm)": {"combine": "frozen_norm"},
    "EMTL (product)": {"combine": "product"},
}
ROWS: dict[str, tuple[str, tuple[Point, ...]]] = {  # label: method, two points
    "DCN": ("scalarization", tuple({"c": [1.0, 0.0, 0.0], "model": "dcn", **own} for own in DECAY)),
    "STL": ("stl", DECAY),
    "LS": ("ls", DECAY),
    "SI": ("si", DECAY),
    "UW": ("uw", DECAY),  # its log-variances have a rate of their own, .025
    "DWA": ("dwa", ({"tau": 2.0}, {"tau": 1.0})),
    "BanditMTL": ("bandit", ({"rho": 0.5}, {"rho": 0.1})),
    "MGDA": ("mgda", DECAY),
    "Nash-MTL": ("nash", DECAY),
    "FairGrad": ("fairgrad", ALPHAS),
    "FairGrad (weighted heads)": ("fairgrad", tuple({**own, "heads": "weighted"} for own in ALPHAS)),
    **{label: ("emtl", tuple({**point, **own} for point in EMTL)) for label, own in READINGS.items()},
}
FIXED = {  # two fixed weights: near the inverse variances, and with the watch time lower still
    "natural": ({"c": [1.0, 7.0, 6e-4]}, {"c": [1.0, 1.0, 1e-3]}),
    "standardised": ({"c": [1.0, 0.5, 0.5]}, {"c": [1.0, 1.0, 0.3]}),
}
SHAPES = {"EMTL (raw)": "v", "EMTL (frozen norm)": "P", "EMTL (product)": "X", "FairGrad (weighted heads)": "P"}
SCALARISATION = "Scalarisation (tuned)"
LABELS = (*ROWS, SCALARISATION)
# The sentence's own first; others decide what is EMTL's merit; to the last, at clicks, EMTL is said to be comparable.
RIVALS = ("LS", "LS, std", "SI", "STL", "DCN")
STD = ", std"  # the end of a line's name on standardised targets
SAME = ("DCN", "STL", "SI")  # rows that no factor in front of a loss changes, but for Adam's epsilon: run once
QUICK = ("DCN", "STL", "LS", "SI", "FairGrad", "EMTL")
POINTS = {"smoke": 1, "quick": 1, "study": 6, "paper": 6}  # one: nothing is tuned
PAPER = {"click/auc": True, "completion/mse": False, "watch/mse": False}  # columns of the paper's table
MORE = {"completion/r2": True, "watch/r2": True, "watch/mae": False, "watch/clipped-mse": False}
# Half of what the paper prints between MMoE and EMTL: AUC as it stands, squared errors as a share of MMoE's.
EFFECTS = {"click/auc": 0.0006, "completion/mse": 0.013, "watch/mse": 0.044}


class Table3(Study):
    """A line per row and kind of targets; "LS, std" is LS on standardised targets."""

    by, baseline = "line", "LS"

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One line per run. DCN predicts clicks alone: it has no other metric and no score."""
        table = super().frame
        ends = [STD if options["targets"] == "standardised" else "" for options in table["options"]]
        others = [name for name in table if str(name).partition("/")[0] in self.tasks[1:]]
        table.loc[table["label"] == "DCN", [*others, "score"]] = np.nan
        return table.assign(line=table["label"] + ends)

    @property
    def metrics(self) -> dict[str, bool]:
        return PAPER

    @cached_property
    def table(self) -> pd.DataFrame:
        said = (
            "Test metrics of MMoE (click: AUC; completion and watch time: squared error, seconds squared for watch), "
            "mean ± 95 % interval over seeds, p against LS; 'std': losses on standardised targets; DCN and STL: one "
            "network per task. Levels cannot be compared with the paper's, whose data are private"
        )
        return captioned(self._results(), said)

    @cached_property
    def further(self) -> pd.DataFrame:
        """Click by tab, R^2, absolute error, and the squared error up to the 99.5 % quantile of watch time."""
        tabs = {name: True for name in self.frame if str(name).startswith("click/auc-tab-")}
        lines = self.frame.groupby("line", sort=False)[[*tabs, *MORE]].mean()
        shown = lines.map(lambda value: "–" if pd.isna(value) else f"{value:.4f}")
        return captioned(shown, "Further test metrics, means over seeds; tab 0 is where a click is a click")

    def references(self) -> pd.DataFrame:
        """What needs no network: the predictor that sees no input, counts of clicks, or a simulation's truth."""
        options = self.rows[0]["config"]["options"] if self.rows else {}
        fallback = self.experiment.fallback if self.synthetic else None
        data = problem(
            self.experiment.problem, self.scale, fallback=fallback, targets=options.get("targets", "natural")
        )
        rows: dict[str, Mapping[str, float]] = {"no input (gate)": data.blind()}
        rows |= data.counts() if isinstance(data, KuaiRand) else {"the truth": getattr(data, "best", {})}
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        names = [name for name in names if name.startswith("click/auc") or name in (*PAPER, *MORE)]
        table = pd.DataFrame({label: [row.get(name) for name in names] for label, row in rows.items()}, names).T
        shown = table.astype(float).map(lambda value: text(value, 4) or "–")
        return captioned(
            shown, "References on the test rows: the first is the gate, the others see inputs", n="no runs"
        )

    def parts(self, own: str = "EMTL", rival: str = "LS") -> list[Part]:
        """`own` against `rival` per metric of the paper: squared errors as a share of the rival's mean."""
        found = []
        for metric, up in PAPER.items():
            wide = self.frame.pivot(index="seed", columns=self.by, values=metric)[[own, rival]].dropna()
            if len(wide):  # DCN has clicks alone
                unit = 1.0 if up else -float(wide[rival].mean())
                found.append(compare(metric, (wide[own] - wide[rival]) / unit, EFFECTS[metric]))
        return found

    def gains(self, own: str = "EMTL") -> pd.DataFrame:
        """`own` against each rival of paper/protocols/table3.md: the gain with its interval beside d."""
        rivals = [line for line in RIVALS if line in set(self.frame[self.by])]
        lines = [(rival, part) for rival in rivals for part in self.parts(own, rival)]
        shown = [
            (
                rival,
                p.name,
                f"{p.value:+.4f}" + (f" ({p.low:+.4f}, {p.high:+.4f})" if p.n > 2 else ""),
                p.word,
                f"{p.d:g}",
                p.n,
            )
            for rival, p in lines
        ]
        table = pd.DataFrame(shown, columns=["rival", "metric", "gain", "word", "d", "n"])
        said = f"{own}'s gain over each rival, paired over seeds, 95 % interval (AUC as it stands, squared errors as a "
        said += "share of the rival's), and the smallest effect of interest d; to DCN the paper calls EMTL comparable"
        if len(self.seeds) < len(SEEDS["study"]):
            table, said = table.drop(columns="word"), f"{said}; no word below the {len(SEEDS['study'])} seeds declared"
        return captioned(table, said)

    def moves(self) -> dict[str, float] | None:
        """How far doubled epochs move each difference to LS, in units of d; None where they were not run."""
        units = self.units
        return {f"{one}, {m}": move / units[m] for m in PAPER for one, move in self.shifts(m).items()} or None

    @property
    def units(self) -> dict[str, float]:
        """d of each metric of the paper, in that metric's own unit."""
        level = self.frame.loc[self.frame[self.by] == "LS", list(PAPER)].astype(float).mean()
        return {metric: EFFECTS[metric] * (1.0 if up else float(level[metric])) for metric, up in PAPER.items()}

    def findings(self) -> list[Finding]:
        """The sentence of section 5.4, by reading; nothing on simulated rows."""
        if self.synthetic:
            return []
        runs = {
            str(line): {m: own[m].dropna().to_numpy(float) for m in PAPER if own[m].notna().any()}  # DCN: clicks alone
            for line, own in self.frame.groupby(self.by)
        }
        converged = converged_check(self.moves(), 1.0)
        converged = replace(converged, said=f"{converged.said} (in units of d)") if self.doubled else converged
        same, declared = self.same(PAPER, 1.0, self.units), len(SEEDS["study"])

        def decided(own: str) -> Finding:
            gate, marks = blind_check(runs, self.blind, PAPER, ["DCN", "STL", "LS", own])
            said = "offline alone" + f"; at or below the input-blind level: {', '.join(marks)}" * bool(marks)
            how: dict[str, Any] = {
                "gate": [gate, converged, self.control, same],
                "declared": declared,
                "said": said,
                **self.behind,
            }
            return decide("emtl-table3-industrial", "parts", self.parts(own), **how)

        return [by_reading([(own, decided(own)) for own in READINGS if own in runs])]

    @property
    def control(self) -> Check:
        """Watch time drowns the clicks of equal weights: nets of one task must be ahead there."""
        if "STL" not in set(self.frame[self.by]):
            return Check("control", None, "STL has no rows")
        (click, *_) = self.parts("STL")
        ahead = click.low is not None and click.low > 0
        return Check("control", ahead, f"STL ahead of LS at click by {click.value:+.4f}, interval above 0: {ahead}")

    def figure(self) -> Figure:
        """Click against completion and against watch time, one marker per line: up and to the right is better."""
        methods = {row["label"]: row["config"]["method"] for row in self.rows}
        fig, axes = style.subplots(1, 2, height=3.0)
        for line, values in self.raw.iterrows():
            label = str(line).removesuffix(STD)
            if label == "DCN" or label.endswith(" A/A"):
                continue
            _, colour, marker = style.look(methods[label])
            marker = SHAPES.get(label, marker)
            look: dict[str, Any] = {"color": colour, "mfc": "none" if label != line else colour, "ms": 4, "lw": 0.6}
            for ax, metric in zip(axes[0], ("completion/mse", "watch/mse"), strict=True):
                (x, half), (y, high) = [(values[name, "mean"], values[name, "ci"]) for name in ("click/auc", metric)]
                ax.errorbar(x, y, high, half, fmt=marker, label=label if label == line else None, **look)
        for ax, metric in zip(axes[0], ("completion, test MSE", "watch time, test MSE (s²)"), strict=True):
            ax.set(xlabel="click, test AUC", ylabel=metric)
            ax.invert_yaxis()
        axes[0, 1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=5)
        said = "Trade-off between the tasks: mean and 95 % interval over seeds, better is up and to the right; "
        return captioned(fig, said + "hollow: standardised targets")


def clustered(study: Table3, own: str = "EMTL", rivals: Sequence[str] = RIVALS[:3]) -> pd.DataFrame:
    """Watch time's squared error of `own` less a rival's on the test rows, with the standard error of the test *users*.

    d_i is the difference on row i, g_u = sum_(i of u) (d_i - mean d); the error is (sum_u g_u^2)^(1/2) / N. Intervals
    over seeds hold the test rows fixed; this says what other users would change. The networks of the first seed are
    trained anew, since rows of a ledger keep none. Users that no training row has count as one.
    """
    errors, seed, users = {}, study.seeds[0], np.zeros(0, np.int64)
    for line in (own, *(name for name in rivals if name in set(study.frame["line"]))):
        (key,) = study.frame.loc[(study.frame["line"] == line) & (study.frame["seed"] == seed), "key"]
        cell = Cell.of(next(row for row in study.rows if row["key"] == key))
        data, model = build(cell), refit(cell).eval()
        assert isinstance(data, WatchLog)
        *inputs, targets = data.data("test")
        with torch.inference_mode():
            errors[line] = (data.watch(model(*inputs)) - targets[:, 2].double()).square().numpy()
        users = inputs[0][:, 0].numpy()
    found = []
    for line, values in list(errors.items())[1:]:
        gap = errors[own] - values
        sums = np.bincount(users, gap - gap.mean())
        error = float(np.sqrt(np.square(sums).sum()) / len(gap))
        found.append((line, seed, gap.mean(), error, int((sums != 0).sum())))
    table = pd.DataFrame(found, columns=["rival", "seed", "difference, s²", "standard error", "test users"])
    said = f"Watch time's test MSE of {own} less the rival's (below 0: better), and its standard error over test users"
    return captioned(table, said, n="1 seed")


def paper_says() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The three rows of EMTL's Table 3 as printed, and what its text says of them."""
    table = reported("emtl_table3").set_index("method")
    own, base, single = (table.loc[name] for name in ("emtl", "mmoe", "dcn"))
    rows = pd.DataFrame({name: [text(v, 4) or "–" for v in table[name]] for name in table if name != "source"})
    rows.index = pd.Index(["DCN", "MMoE", "MMoE + EMTL"], name="paper says")
    rows = captioned(rows, "EMTL's Table 3 as printed: a private log, levels that nothing here can be compared with")
    said = recount([
        ("EMTL increases CTR AUC by 0.012", f"by {own.ctr_auc - base.ctr_auc:.4f}"),
        ("comparable to the click model DCN", f"{own.ctr_auc - single.ctr_auc:+.4f}"),
        ("EMTL decreases completion MSE by 0.1", f"by {base.completion_mse - own.completion_mse:.4f}"),
        ("EMTL decreases watch time MSE by 1.2", f"by {base.watch_mse - own.watch_mse:.4f}"),
    ])  # fmt: skip
    return rows, captioned(said, "Sentences of EMTL's section 5.4, recounted in its printed Table 3")


PRINTED: dict[str, Any] = {"data": "EMTL, Table 3, as printed", "n": "3 rows", **NO_ROWS}


def points(label: str, scale: str, targets: str) -> tuple[Point, ...]:
    """The points of a row: two settings of its own times three learning rates, the paper's setting first.

    >>> points("FairGrad", "study", "natural")[:3]
    ({'alpha': 2.0}, {'alpha': 1.0}, {'alpha': 2.0, 'lr': 0.001})
    """
    own = FIXED[targets] if label == SCALARISATION else ROWS[label][1]
    rate = TABLE3.budget[scale].lr
    every = ({**point} | ({"lr": rate * factor} if factor != 1 else {}) for factor in RATES for point in own)
    return tuple(every)[: POINTS[scale]]


class Tuned(Experiment):
    """Every row, DCN and STL included, chooses among as many points, at the same learning rates."""

    def grids(self, scale: str, *, targets: str = "natural", **options: Any) -> Mapping[str, Sequence[Point]]:
        return {label: points(label, scale, targets) for label in _labels(scale)}

    def entries(
        self, scale: str, methods: Sequence[str] | None = None, best: Mapping[str, Point] | None = None, **options: Any
    ) -> list[tuple[str, str, Point]]:
        found = super().entries(scale, methods, best, **options)
        return [entry for entry in found if options.get("targets") != "standardised" or entry[0] not in SAME]


def _labels(scale: str) -> tuple[str, ...]:
    return LABELS if scale in ("study", "paper") else QUICK


def _entries(labels: Iterable[str]) -> tuple[tuple[str, str, Point | None], ...]:
    return tuple((label, ROWS.get(label, ("scalarization",))[0], None) for label in labels)


BUDGET = {
    "smoke": Budget(epochs=1, batch_size=256, lr=2e-3, weight_decay=1e-6),
    "quick": Budget(epochs=2, batch_size=1024, lr=2e-3, weight_decay=1e-6),
    **{scale: Budget(epochs=4, batch_size=1024, lr=2e-3, weight_decay=1e-6) for scale in ("study", "paper")},
}
SEEDS = {"smoke": (10, 11), "quick": (10, 11, 12), "study": tuple(range(10, 30)), "paper": tuple(range(10, 30))}
TABLE3 = Tuned(
    name="table3",
    problem="kuairand",
    fallback="shortvideo",
    notebook="12_table3",
    shows=Table3,
    methods={scale: _entries(_labels(scale)) for scale in BUDGET},
    models=("mmoe",),
    seeds=SEEDS,
    trials={scale: Trials((100, 101, 102), BUDGET[scale]) for scale in ("study", "paper")},
    twins={scale: ("LS", "EMTL") if scale in ("study", "paper") else () for scale in BUDGET},
    doubled=("STL", "LS", "MGDA", "FairGrad"),
    budget=BUDGET,
    variants={scale: tuple({"targets": targets} for targets in TARGETS) for scale in BUDGET},
)
