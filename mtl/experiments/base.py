"""One table or figure: methods x models x seeds per scale, tuned alike; its rows; what is common to all tables."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import pandas as pd

from mtl.files import root
from mtl.ledger import Row, ledger
from mtl.problems import problem
from mtl.report import Table, Verdict, captioned, frame, results_table, verdict
from mtl.report.claims import claims as written
from mtl.report.stats import mean_ci, paired_permutation
from mtl.runs.cells import Cell, Point, grid
from mtl.runs.engines import run_grid, shown
from mtl.runs.tuning import Tuning, choose, combine_stl, published, trials, tune
from mtl.training.fit import Budget

Entry = tuple[str, str, Point | None]  # label, method, its point; None: chosen from `Experiment.grids`
Options = Mapping[str, Any]
RUNNER = frozenset(inspect.signature(run_grid).parameters)  # what is for `run_grid`, not for the experiment

NO_ROWS: dict[str, Any] = {"rows": (), "command": "", "config": {}}  # of what is counted in a printed table


class Claim(NamedTuple):
    """A sentence by its id in paper/claims.yml, what became of it and why, and the figure that shows it."""

    name: str
    verdict: Verdict
    evidence: str
    figure: str = ""  # by default that of paper/claims.yml


@dataclass(frozen=True)
class Study:
    """Rows of an experiment at one scale, and what is shown of them; `report.save` asks it for a side-car's facts."""

    experiment: "Experiment"
    scale: str
    rows: list[Row]
    data: str  # in words, as captions say it
    tasks: tuple[str, ...]
    options: Options = field(default_factory=dict)  # of the experiment, as its command takes them
    tuning: Tuning | None = None
    at: str = ""  # the scale of the notebook, where the rows are published ones of another
    n: str = ""
    commands: str = ""  # where it is of several experiments
    by: ClassVar[str] = "label"
    reference: ClassVar[str] = "STL"
    baseline: ClassVar[str | None] = None

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
        said: dict[str, Any] = {"by": self.by, "reference_row": self.reference, "baseline": self.baseline}
        return results_table(self.frame, self.metrics, **said, **how)

    def claims(self) -> list[Claim]:
        """The papers' sentences about it."""
        return []

    def verdicts(self) -> Table:
        """The same as a table, and for `mtl claims`."""
        return judged(self.claims(), self.scale if self.at else None)

    @property
    def synthetic(self) -> bool:
        return any(row.get("synthetic") for row in self.rows)

    @property
    def seeds(self) -> list[int]:
        return sorted({row["config"]["seed"] for row in self.rows})

    @property
    def command(self) -> str:
        """What runs these rows anew."""
        if self.commands:
            return self.commands
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
        """The rows of all, for what is shown of them together; `changes` say what is true of them."""
        every: list[Study] = [self, *others]
        commands = " && ".join(dict.fromkeys(one.command for one in every))
        return replace(self, rows=[row for one in every for row in one.rows], commands=commands, **changes)


@dataclass(frozen=True)
class Experiment:
    """One table: methods x models x seeds at each scale; `variants` are the problem's options, one grid each.

    Methods and models may be others at each scale: a mapping from the scale.
    """

    name: str
    problem: str
    methods: tuple[Entry, ...] | Mapping[str, tuple[Entry, ...]]
    models: tuple[str, ...] | Mapping[str, tuple[str, ...]]
    seeds: Mapping[str, tuple[int, ...]]
    budget: Mapping[str, Budget]
    variants: Mapping[str, tuple[Options, ...]]
    fallback: str | None = None  # what a notebook takes where the data are not found
    book: str = ""  # its ledger, where that is not its name
    tuned_on: tuple[int, ...] = ()  # seeds that choose the points and are not reported; by default the first reported
    notebook: str | None = None
    source: str = "{}"  # published rows say their source; what a caption adds to it
    shows: type[Study] = Study
    switches: ClassVar[tuple[str, ...]] = ()  # options of `grids` that are none of the problem's

    def grids(self, scale: str, **options: Any) -> Mapping[str, Sequence[Point]]:
        """The points that validation chooses from, by label, as many for each without a point of its own."""
        return {}

    def entries(
        self, scale: str, methods: Sequence[str] | None = None, best: Mapping[str, Point] | None = None, **options: Any
    ) -> list[tuple[str, str, Point]]:
        """The methods with their points: their own, or the `best`, or else the first of their grid."""
        if scale not in self.seeds:
            raise ValueError(f"scale: must be one of {', '.join(self.seeds)}, found {scale!r}")
        every = _at(self.methods, scale)
        labels = [label for label, _, _ in every]
        if unknown := [label for label in methods or () if label not in labels]:
            raise ValueError(f"methods: must be among {', '.join(labels)}, found {unknown[0]!r}")
        first = {label: points[0] for label, points in self.grids(scale, **options).items()} | dict(best or {})
        kept = [(label, name, first.get(label) if point is None else point) for label, name, point in every]
        return [(label, name, p) for label, name, p in kept if p is not None and label in (methods or labels)]

    def chosen(self, scale: str, **options: Any) -> list[dict[str, Any]]:
        """The variants of a scale that agree with `options`, each with the switches given."""
        variants = self.variants.get(scale, ())
        names = [*dict.fromkeys(name for variant in variants for name in variant), *self.switches]
        if unknown := [name for name in options if name not in names]:
            raise ValueError(f"options: {self.name} takes {', '.join(names) or 'none'}, found {unknown[0]!r}")
        switches = {name: value for name, value in options.items() if name in self.switches}
        wanted = {name: value for name, value in options.items() if name not in self.switches}
        kept = [{**variant, **switches} for variant in variants if wanted.items() <= variant.items()]
        if variants and not kept:
            raise ValueError(f"options: {self.name} at scale {scale} has {list(map(dict, variants))}, found {wanted}")
        return kept

    def tuned(
        self, scale: str, seeds: Iterable[int] | None = None, methods: Sequence[str] | None = None,
        fallback: str | None = None, *, options: Options, **how: Any,
    ) -> Tuning | None:  # fmt: skip
        """Each label's point by validation on the first model and `tuned_on`; None where there is nothing to choose."""
        names = {label: name for label, name, _ in self.entries(scale, methods, **options)}
        grids = {label: points for label, points in self.grids(scale, **options).items() if label in names}
        if all(len(points) == 1 for points in grids.values()):
            return None
        first = self.tuned_on or [*(self.seeds[scale] if seeds is None else seeds)][:1]
        return tune(
            self.problem, grids, names, model=_at(self.models, scale)[0], seeds=first, scale=scale,
            budget=self.budget[scale], options=self._data(options), fallback=fallback, **how,
        )  # fmt: skip

    def cells(
        self, scale: str, seeds: Iterable[int] | None = None, methods: Sequence[str] | None = None,
        fallback: str | None = None, best: Mapping[str, Point] | None = None, **options: Any,
    ) -> list[Cell]:  # fmt: skip
        """All runs at a scale, variants outermost; `methods` keeps the labels named, `fallback` as in `problem`."""
        self.entries(scale, methods)  # names what is wrong before any data are read
        seeds = self.seeds[scale] if seeds is None else tuple(seeds)
        return [
            cell
            for variant in self.chosen(scale, **options)
            for cell in grid(
                self.problem, self.entries(scale, methods, best, **variant), _at(self.models, scale), seeds, scale,
                self.budget[scale], fallback=fallback, **self._data(variant),
            )
        ]  # fmt: skip

    def run(
        self, scale: str, seeds: Iterable[int] | None = None, methods: Sequence[str] | None = None,
        fallback: str | None = None, **how: Any,
    ) -> list[Row]:  # fmt: skip
        """The rows of all cells, tuned first where there are grids; `how` goes to `run_grid`, options choose variants.

        `fallback` stands in where the data are not found, which otherwise raises DataError.
        """
        options, how = self._split(how)
        seeds = None if seeds is None else tuple(seeds)
        self.entries(scale, methods)
        cells: list[Cell] = []
        for variant in self.chosen(scale, **options):
            tuning = self.tuned(scale, seeds, methods, fallback, options=variant, **how)
            cells += self.cells(scale, seeds, methods, fallback, tuning.best if tuning else None, **variant)
        return run_grid(cells, **how)

    def study(
        self, scale: str, seeds: Iterable[int] | None = None, methods: Sequence[str] | None = None, **how: Any
    ) -> Study:
        """Run what the ledger lacks, with the fallback where the data are not found, and a bar; then all of it."""
        options, how = self._split(how)
        variants = self.chosen(scale, **options)
        data = problem(self.problem, scale, fallback=self.fallback, **self._data(variants[0]))
        how = {"progress": shown(self.name), **how}
        rows = self.run(scale, seeds, methods, self.fallback, **options, **how)
        how["progress"] = None  # what follows is in the ledger
        tuning = self.tuned(scale, seeds, methods, self.fallback, options=variants[0], **how)
        return self.shows(self, scale, combine_stl(rows), data.describe(), data.tasks, options, tuning)

    def published(
        self, scale: str = "study", methods: Sequence[str] | None = None, at: str = "", **options: Any
    ) -> Study:
        """The rows that the repository brings along, without the data: each method at the point that the published
        trials give by validation; seeds that lack a run are left out. LookupError where no seed is whole."""
        (variant,) = self.chosen(scale, **options)
        find = {"name": self.book or self.name, "scale": scale, "budget": self.budget[scale], **self._data(variant)}
        models, tuning = _at(self.models, scale), None
        where = f"data/ledger/{find['name']}.jsonl: no {{}} of scale {scale}"
        where += f" with {variant['tasks']} tasks" if "tasks" in variant else ""
        entries = self.entries(scale, methods, **variant)
        names = {label: name for label, name, _ in entries}
        grids = {label: points for label, points in self.grids(scale, **variant).items() if label in names}
        if any(len(points) > 1 for points in grids.values()):
            tried = trials(grids, names)
            seeds = self.tuned_on or self.seeds[scale][:1]
            rows = [row for row in published(entries=tried, **find) if row["config"]["seed"] in seeds]
            rows = combine_stl(row for row in rows if row["config"]["model"] not in models[1:])
            if not rows:
                raise LookupError(where.format("rows"))
            tuning = choose(grids, rows, len(seeds))
            entries = self.entries(scale, methods, tuning.best, **variant)
        rows = published(entries=entries, **find)
        tasks = tuple(name.removesuffix("/score") for name in (rows[0]["metrics"] if rows else ()) if "/score" in name)
        runs = sum(len(tasks) if name == "stl" else len(models) for _, name, _ in entries)
        whole = [seed for seed in self.seeds[scale] if sum(row["config"]["seed"] == seed for row in rows) == runs]
        if not whole:
            raise LookupError(where.format("seed") + f" has all {runs} runs")
        rows = combine_stl(row for row in rows if row["config"]["seed"] in whole)
        return self.shows(self, scale, rows, self.source.format(rows[0]["source"]), tasks, options, tuning, at)

    def _split(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        how = {"ledger": ledger(self.book or self.name)} | {k: v for k, v in given.items() if k in RUNNER}
        return {name: value for name, value in given.items() if name not in RUNNER}, how

    def _data(self, options: Options) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name not in self.switches}


def _at(value: Any, scale: str) -> Any:
    return value[scale] if isinstance(value, Mapping) else value


def judged(claims: Iterable[Claim], scale: str | None = None, caption: str = "", **facts: Any) -> Table:
    """Report each verdict; a line per claim, with its tests where paper/claims.yml names some.

    `scale` is that of the numbers where it is not the notebook's own; caption and facts as in `report.captioned`.

    >>> judged([Claim("emtl-player", "reproduced", "...")]).data["figure"].item()
    '07_theory_player'
    """
    known = {claim["id"]: claim for claim in written()}
    table = pd.DataFrame([verdict(*c[:3], c.figure or known[c.name]["figure"], scale) for c in claims])
    tests = [", ".join(known[name].get("tests", ())).replace("_", " ") for name in table["claim"]]
    if any(tests):
        table = table.assign(test=tests)[["claim", "test", "verdict", "figure", "evidence"]]
    return Table(captioned(table, caption, **facts))


def graded(*holds: bool) -> Verdict:
    """What becomes of a sentence of several parts."""
    return "reproduced" if all(holds) else "conditional" if any(holds) else "not reproduced"


class Gap(NamedTuple):
    """A paired difference over common seeds: its mean, half of its 95 % interval, exact p, n."""

    value: float
    half: float
    p: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:+.1f} ± {self.half:.1f}"


def paired(table: pd.DataFrame, metric: str, one: Any, other: Any, by: str = "label") -> Gap:
    """one - other over the seeds that both have."""
    wide = table.pivot(index="seed", columns=by, values=metric)[[one, other]].dropna()
    gap = mean_ci(wide[one] - wide[other])
    return Gap(gap.value, gap.half, paired_permutation(wide[one], wide[other]).p, gap.n)


def standing(means: "pd.Series[float]", own: str, higher: bool) -> tuple[int, int, str]:
    """The place of `own` among all, how many there are, and the best of the others."""
    order = list(means.dropna().sort_values(ascending=not higher, kind="stable").index)
    return order.index(own) + 1, len(order), next(name for name in order if name != own)


def reported(name: str) -> pd.DataFrame:
    """paper/reported/`name`.csv: numbers as a paper prints them."""
    return pd.read_csv(root() / "paper" / "reported" / f"{name}.csv")


def recount(said: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Sentences of a paper beside what its own printed table says."""
    return pd.DataFrame(list(said), columns=["the text says", "the printed table says"])


def text(value: Any, digits: int) -> str:
    """A printed number as text, "" where there is none; never "-0.0"."""
    return "" if pd.isna(value) else f"{round(float(value), digits) + 0.0:.{digits}f}"


def beside_paper(ours: pd.DataFrame, paper: pd.DataFrame, digits: Mapping[str, int]) -> pd.DataFrame:
    """Ours | paper | source: `digits` names the columns of `paper` that are shown, as text, empty where it has none.

    "paper X" stands right of our X where we have one. `paper` has a line per label and a column `source`.
    """
    paper = paper.reindex(list(ours.index))
    names = list(ours.columns)
    table = ours.copy()
    for head, count in digits.items():
        name = head.removeprefix("paper ")
        names.insert(names.index(name) + 1 if name in names else len(names), head)
        table[head] = [text(value, count) for value in paper[head]]
    return table[names].assign(source=paper["source"].fillna("").to_numpy())
