"""EMTL's Table 1 ("table1" always means EMTL's): two-task recommendation with MMoE and PLE, every method tuned alike.

Our real data are Census-Income with two and three tasks, and KuaiRand with two (`equal`, whose rows decide); `CLICK` is
AliExpress, or generated rows in its shape.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import pandas as pd
from matplotlib.figure import Figure

from mtl.experiments.base import Entry, Experiment
from mtl.experiments.beside import beside_paper
from mtl.experiments.study import NO_ROWS, Study, keys
from mtl.experiments.table1 import says
from mtl.experiments.table1.grids import BACKBONES, BUDGET, GRIDS, all_searched, line, points, split_line
from mtl.report import Table, captioned, plots, style
from mtl.report.claims import Check, Finding, blind_check, converged_check
from mtl.runs.cells import Point
from mtl.runs.tuning import NoRowsError

paper_says = says.paper_says
PRINTED: dict[str, Any] = {"data": "EMTL, Table 1, as printed", "n": "15 lines x 4 countries", **NO_ROWS}
REAL = {"census": "Census-Income", "kuairand_click": "KuaiRand-Pure (click in tab 0, long view)"}
METRICS = "test AUC, their mean (score) and log-loss, mean ± 95 % interval over seeds"


class Table1(Study):
    """Lines are methods on backbones, "emtl (MMoE)"; STL has no backbone."""

    by, reference = "line", "stl"
    sentences = ("emtl-table1-best", "emtl-table1-stl", "emtl-table1-consistent", "emtl-table3-industrial")

    @cached_property
    def frame(self) -> pd.DataFrame:
        table = super().frame
        return table.assign(line=list(map(line, table["label"], table["model"])))

    @property
    def metrics(self) -> dict[str, bool]:
        return super().metrics | {f"{task}/log-loss": False for task in self.tasks}

    @property
    def name(self) -> str:
        """The data, as figures name them."""
        return f"Census, {len(self.tasks)} tasks" if self.at else str(self.rows[0]["config"]["problem"])

    @cached_property
    def table(self) -> pd.DataFrame:
        table = self._results(primary="score")
        if (trials := self.trials) is not None:
            point = trials[trials["chosen"]].set_index("method")["point"]
            table["chosen"] = [point.get(split_line(line)[0], "–") for line in table.index]
        if self.at:
            said = f"{self.name}, all rows, four epochs: {METRICS}; chosen: the point of six that validation chose; "
            said += "the paper has no such data"
        elif self.experiment.problem in REAL:
            said = f"Two tasks on {REAL[self.experiment.problem]}: {METRICS}; the paper has no such data"
        elif self.synthetic:
            said = f"Click and purchase, generated rows: {METRICS}; what the paper prints is of the real log"
        else:
            table = beside_paper(table, says.paper_columns(), dict.fromkeys(says.COUNTRIES, 4))
            said = f"Click and purchase: {METRICS}; right: the average AUC that EMTL's Table 1 prints for four "
            said += "countries of the real AliExpress log"
        return captioned(table.rename(index=lambda line: style.look(line)[0]), said)

    def gate(self, metrics: Sequence[str], named: Sequence[str]) -> list[Check]:
        """Input-blind level, convergence (epochs were not doubled) and A/A rows; no control is known for this table."""
        runs = {str(name): {m: own[m].to_numpy(float) for m in metrics} for name, own in self.frame.groupby("line")}
        level = None if self.blind is None else {m: self.blind[m] for m in metrics}
        check, marks = blind_check(runs, level, dict.fromkeys(metrics, True), named)
        if marks:
            check = replace(check, said=f"{check.said}; at or below it, kept in the means: {', '.join(marks)}")
        return [check, converged_check(self.moves(metrics), says.D), self.same(metrics, says.D)]

    def moves(self, metrics: Sequence[str]) -> dict[str, float] | None:
        """How far doubled epochs move each line's difference to its backbone's LS, STL's to each; None if not run."""
        if not self.doubled:
            return None
        lines = dict.fromkeys(line(row["label"], row["config"]["model"]) for row in self.doubled[0])
        pairs = [(one, base) for one in lines for base in lines if base.startswith("ls (") and one != base]
        pairs = [(one, base) for one, base in pairs if split_line(one)[1] in ("", split_line(base)[1])]
        return {f"{one} - {base}, {m}": self.moved(m, one, base) for one, base in pairs for m in metrics}

    @property
    def grid(self) -> Table:
        """The trials with their validation scores; the point of each method where it has only one."""
        if self.trials is not None:
            return Table(self.trials, 4)
        (variant,) = self.experiment.chosen(self.scale, **self.options)
        said = [(label, str(point)) for label, _, point in self.experiment.entries(self.scale, **variant)]
        return Table(pd.DataFrame(said, columns=["method", "its one point"]))


def study_figure(left: Table1, right: Table1) -> tuple[Table1, Figure]:
    """The published studies side by side, and the study that their figure is of."""
    fig, axes = style.subplots(1, 2, height=4.2)
    for ax, study in zip(axes.T, (left, right), strict=True):
        raw = study.raw.rename(index=str)
        head = f"{study.name}, all rows\nmean of tasks, test AUC"
        plots.intervals(ax, raw, {"score": head}, lambda line: split_line(line)[0])
        again = study is right and list(raw.index) == list(left.raw.index)
        ax[0].set_yticklabels([] if again else [style.look(line)[0] for line in raw.index])
    said = "Mean test AUC by method and backbone, all rows of Census-Income, tuned: mean and 95 % interval over seeds"
    both = left.also(right, n=", ".join(f"{s.name}: {len(s.seeds)} seeds" for s in (left, right)))
    return both, captioned(fig, said)


def places_table(studies: Sequence[Table1], wider: Sequence[Table1]) -> tuple[Table1, pd.DataFrame]:
    """EMTL's places in the studies, and once more with EMTL on its whole grid; and the study that this is of."""
    frames = {f"{s.name} (study, tuned)": s.frame for s in studies}
    table = says.places(frames | {f"{s.name} (study, EMTL on its whole grid)": s.frame for s in wider})
    text = (
        "EMTL's place among its backbone's methods by mean test AUC of the tasks, its distance to the best other, and "
        "the paired test against that one. On its whole grid EMTL alone chooses among all that its paper searches: "
    )
    trials = {s.name: s.trials for s in wider if s.trials is not None}
    chosen = {name: own.loc[own["chosen"], "point"].item() for name, own in trials.items()}
    text += "; ".join(f"{name}: {len(own)} points, chosen {chosen[name]}" for name, own in trials.items())
    return studies[0].also(*studies[1:], *wider), captioned(table, text)


def searched(study: Table1) -> Table1:
    """The published study, but with EMTL at the point that validation picks from `all_searched`."""
    own = TABLE1.published(methods=["emtl"], at=study.at, whole_grid=True, **study.options)
    if lacking := set(study.seeds) - set(own.seeds):
        raise NoRowsError(f"data/ledger/table1.jsonl: EMTL on its whole grid lacks seeds {sorted(lacking)}")
    rows = [row for row in study.rows if row["label"] != "emtl"]
    rows += [row for row in own.rows if row["config"]["seed"] in study.seeds]
    return replace(study, rows=rows, tuning=own.tuning, options=own.options)


def findings(studies: Sequence[Table1], appendix: Sequence[Table1] = ()) -> list[Finding]:
    """The sentences of section 5.2: `studies` decide, one for each data set; `appendix` is of the same people."""
    frames, beside = ({study.name: study.frame for study in some} for some in (studies, appendix))
    rows = keys(row for study in studies for row in study.rows)
    gates = {study.name: study.gate for study in studies}
    return says.findings(frames, gates, beside, scale=studies[0].scale, rows=rows)


class Tuned(Experiment):
    """Every method chooses among as many points; with `whole_grid` EMTL alone, on all that its paper searches."""

    switches: ClassVar[tuple[str, ...]] = ("whole_grid",)

    def grids(
        self, scale: str, *, tasks: int = 2, whole_grid: bool = False, **options: Any
    ) -> Mapping[str, Sequence[Point]]:
        if whole_grid:
            return {"emtl": all_searched(scale, tasks)}
        return {name: points(name, scale, tasks=tasks) for name in GRIDS}


METHODS: tuple[Entry, ...] = (("stl", "stl", {}), *((name, name, None) for name in GRIDS))
TABLE1 = Tuned(
    name="table1",
    problem="census",
    fallback="digits",
    notebook="03_table1_recommendation",
    shows=Table1,
    methods=METHODS,
    models=dict.fromkeys(("smoke", "quick"), ("mmoe",)) | dict.fromkeys(("study", "paper"), tuple(BACKBONES)),
    seeds={"smoke": (0, 1), "quick": (0, 1, 2), "study": (0, 1, 2, 3, 4), "paper": (0, 1, 2, 3, 4)},
    budget=BUDGET | {"quick": replace(BUDGET["quick"], epochs=2)},
    variants={scale: ({"tasks": 2}, {"tasks": 3}) for scale in BUDGET},
)
SOME = ("stl", "ls", "uw", "bandit", "mgda", "nash", "fairgrad", "emtl")  # of generated rows, where time is short
CLICK = replace(
    TABLE1,
    name="table1_click",
    methods=dict.fromkeys(("study", "paper"), METHODS)
    | dict.fromkeys(("smoke", "quick"), tuple(entry for entry in METHODS if entry[0] in SOME)),
    book="table1",
    problem="aliexpress",
    fallback="aliexpress_like",
    variants={scale: ({},) for scale in BUDGET},
)
