"""Rows of an experiment at one scale, what is shown of them, and what a side-car says of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import pandas as pd

from mtl.experiments.beside import differences
from mtl.ledger import Row, ledger
from mtl.report import Table, captioned, frame, results_table
from mtl.report.claims import Check, Finding, same_check
from mtl.report.verdicts import shown as recorded
from mtl.runs.tuning import Tuning

if TYPE_CHECKING:
    from mtl.experiments.base import Experiment

Options = Mapping[str, Any]
BLIND = "input-blind"  # the label of the predictor that never sees an input
NO_ROWS: dict[str, Any] = {"rows": (), "command": "", "config": {}}  # of what is counted in a printed table


@dataclass(frozen=True)
class Study:
    """Rows of an experiment at one scale, and what is shown of them; `report.save` asks it for a side-car's facts."""

    experiment: "Experiment"
    scale: str
    rows: list[Row]
    data: str  # in words, as captions say it
    tasks: tuple[str, ...]
    options: Options = field(default_factory=dict)  # of the experiment, as its command takes them
    tuning: Mapping[str, Tuning] = field(default_factory=dict)  # by model
    at: str = ""  # the scale of the notebook, where the rows are published ones of another
    n: str = ""
    commands: str = ""  # where it is of several experiments
    doubled: tuple[list[Row], ...] = ()  # rows of the convergence check: at the scale's epochs, at twice as many
    by: ClassVar[str] = "label"
    reference: ClassVar[str] = "STL"
    baseline: ClassVar[str | None] = None
    sentences: ClassVar[tuple[str, ...]] = ()  # the claims of paper/claims.yml that it is about

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One line per run."""
        return frame(self.rows)

    @property
    def metrics(self) -> dict[str, bool]:
        """Columns of the table, and whether higher is better; the first that is no task's own is the main one."""
        return {f"{task}/auc": True for task in self.tasks} | {"score": True}

    @cached_property
    def raw(self) -> pd.DataFrame:
        """Mean, interval, n and p per line and metric, as numbers."""
        return self._results(raw=True)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The table as it is shown."""
        return self._results(primary="score")

    def _results(self, **how: Any) -> pd.DataFrame:
        there = set(self.frame[self.by])  # of methods that were chosen, the reference need be none
        said: dict[str, Any] = {"by": self.by, "baseline": self.baseline if self.baseline in there else None}
        said["reference_row"] = self.reference if self.reference in there else None
        return results_table(self.frame, self.metrics, **said, **how)

    def findings(self) -> list[Finding]:
        """What its rows say of `sentences`, by paper/decision_rule.md."""
        return []

    @property
    def behind(self) -> dict[str, Any]:
        """What a finding says of the rows that it rests on."""
        return {"scale": self.scale, "rows": keys(self.rows)}

    def verdicts(self) -> Table:
        """The recorded words of `sentences`: those of `mtl claims`, whatever rows are shown here."""
        return judged(self.sentences)

    @cached_property
    def blind(self) -> dict[str, float] | None:
        """Test metrics of the predictor that never sees an input, from data/ledger/blind.jsonl; None without a row."""
        found = [row for row in ledger("blind").rows() if row["fingerprint"] == self.rows[0]["fingerprint"]]
        return dict(found[-1]["metrics"]) if found else None

    def blind_means(self, lines: Callable[[pd.DataFrame], pd.DataFrame]) -> "pd.Series[float] | None":
        """What `lines` says of the input-blind predictor beside the reference row, mean over seeds; None without it."""
        if self.blind is None:
            return None
        base = [row for row in self.rows if row["label"] == self.reference]
        blind = [cast(Row, {**row, "label": BLIND, "metrics": self.blind}) for row in base]
        table = lines(frame([*base, *blind]))
        return table[table["label"] == BLIND].mean(numeric_only=True)

    def same(self, metrics: Iterable[str], d: float, units: Mapping[str, float] | None = None) -> Check:
        """The A/A check: rows labelled "X A/A" against X on each metric (in `units` of it), paired over seeds."""
        labels = [name for name in dict.fromkeys(self.frame[self.by]) if str(name).endswith(" A/A")]
        pairs = {}
        for metric in metrics:
            for name in labels:
                gap = differences(self.frame, metric, name, name.removesuffix(" A/A"), self.by).dropna()
                if len(gap):  # a net of one task has no other metric
                    pairs[f"{name} {metric}"] = gap / (units or {}).get(metric, 1.0)
        check = same_check(pairs, d)
        return replace(check, said=f"{check.said} (in units of d)") if units else check

    @cached_property
    def lengths(self) -> list[pd.DataFrame]:
        """The runs of the convergence check: at the scale's epochs, and at twice as many."""
        return [replace(self, rows=rows, doubled=()).frame for rows in self.doubled]

    def moved(self, metric: str, label: str, base: str) -> float:
        """How far doubled epochs move a paired difference, mean over the trials' seeds; needs `doubled`."""
        if not self.doubled:
            raise ValueError("doubled: must hold the runs of the convergence check, found none")
        once, twice = (differences(runs, metric, label, base, self.by).mean() for runs in self.lengths)
        return float(twice - once)

    def shifts(self, metric: str) -> dict[str, float]:
        """`moved` for the difference of each row of the convergence check to LS; none where epochs were not doubled."""
        labels = dict.fromkeys(row["label"] for rows in self.doubled[:1] for row in rows)
        return {label: self.moved(metric, label, "LS") for label in labels if label != "LS"}

    @property
    def trials(self) -> pd.DataFrame | None:
        """Every point that was tried, with its mean score on validation; None where nothing was chosen."""
        once: dict[int, pd.DataFrame] = {}
        for model, own in self.tuning.items():
            once.setdefault(id(own), own.trials.assign(model=model))
        if not once:
            return None
        table = pd.concat(once.values(), ignore_index=True)
        return table if len(once) > 1 else table.drop(columns="model")

    @property
    def synthetic(self) -> bool:
        return any(row.get("synthetic") for row in self.rows)

    @property
    def seeds(self) -> list[int]:
        return sorted({row["config"]["seed"] for row in self.rows})

    @property
    def command(self) -> str:
        """What runs these rows anew; of a budget that a reader changed there is no command."""
        from mtl.experiments.registry import EXPERIMENTS  # which holds the studies themselves

        if self.commands:
            return self.commands
        known = EXPERIMENTS.get(self.experiment.name, self.experiment).budget[self.scale]
        if (own := self.experiment.budget[self.scale]) != known:
            return f"none: {self.experiment.name} at scale {self.scale} with {own.settings()}"
        words = [f"-p {name}={value}" for name, value in self.options.items()]
        if any(row.get("embedded_default") for row in self.rows):
            words.append(f"-p fallback={self.experiment.fallback}")
        if self.seeds != sorted(self.experiment.seeds[self.scale]):
            words.append(f"--seeds {','.join(map(str, self.seeds))}")
        return " ".join(["mtl run", self.experiment.name, "--scale", self.scale, *words])

    @property
    def facts(self) -> dict[str, Any]:
        """What `report.save` writes beside a table or figure; the rest it takes from the rows."""
        facts: dict[str, Any] = {"rows": self.rows, "scale": self.scale, "at": self.at or self.scale, "data": self.data}
        facts |= {"notebook": self.experiment.notebook, "command": self.command}
        if grids := self.experiment.grids(self.scale, **self.options):
            facts["config"] = {"budget": self.experiment.budget[self.scale].settings(), "grids": grids}
        return facts | ({"n": self.n} if self.n else {})

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        broken, seeds = sum(row["status"] != "ok" for row in self.rows), ", ".join(map(str, self.seeds))
        return f"{self.data}\n{len(self)} rows at scale {self.scale}, seeds {seeds}, without a result: {broken}"

    def also(self, *others: "Study", **changes: Any) -> Self:
        """The rows of all, with their data, for what is shown of them together; `changes` say what else is true."""
        every: list[Study] = [self, *others]
        commands = " && ".join(dict.fromkeys(one.command for one in every))
        changes = {"data": "; ".join(dict.fromkeys(one.data for one in every)), **changes}
        return replace(self, rows=[row for one in every for row in one.rows], commands=commands, **changes)


def keys(rows: Iterable[Row]) -> tuple[str, ...]:
    """The ledger's keys behind rows: a combined row (STL) stands for a run per task.

    >>> keys([{"key": "a"}, {"key": "joined", "keys": ["b", "c"]}])
    ('a', 'b', 'c')
    """
    return tuple(key for row in rows for key in row.get("keys", [row["key"]]))


def judged(claims: Iterable[str], caption: str = "", **facts: Any) -> Table:
    """The recorded words of some claims with their evidence; caption and facts as in `report.captioned`.

    >>> judged(["emtl-player"]).data["figure"].item()
    '07_theory_player'
    """
    return Table(captioned(recorded(claims).data, caption, **facts))
