"""One table or figure: methods x models x seeds per scale, tuned alike; its rows; what is common to all tables."""

import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self, cast

import pandas as pd

from mtl.files import root
from mtl.ledger import Row, key, ledger, provenance
from mtl.problems import problem
from mtl.report import Table, captioned, frame, results_table
from mtl.report.claims import Check, Finding, same_check
from mtl.report.verdicts import shown as recorded
from mtl.runs.cells import Cell, Point, grid
from mtl.runs.engines import run_grid, shown
from mtl.runs.tuning import Tuning, choose, combine_stl, published, tried, tune
from mtl.training.fit import Budget

Entry = tuple[str, str, Point | None]  # label, method, its point; None: chosen from `Experiment.grids`
Options = Mapping[str, Any]
RUNNER = frozenset(inspect.signature(run_grid).parameters)  # what is for `run_grid`, not for the experiment


class Trials(NamedTuple):
    """How a scale chooses points on validation: on which seeds, in which budget, and whether for each model anew.

    `then`: labels that go on to choose among these, each at the point chosen before.
    """

    seeds: tuple[int, ...]
    budget: Budget
    each_model: bool = True
    then: Mapping[str, Sequence[Point]] = MappingProxyType({})


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
        said: dict[str, Any] = {"by": self.by, "reference_row": self.reference, "baseline": self.baseline}
        return results_table(self.frame, self.metrics, **said, **how)

    def findings(self) -> list[Finding]:
        """What its rows say of `sentences`, by paper/decision_rule.md."""
        return []

    def verdicts(self) -> Table:
        """The recorded words of `sentences`: those of `mtl claims`, whatever rows are shown here."""
        return judged(self.sentences)

    @cached_property
    def blind(self) -> dict[str, float] | None:
        """Test metrics of the predictor that never sees an input, from data/ledger/blind.jsonl; None without a row."""
        found = [row for row in ledger("blind").rows() if row["fingerprint"] == self.rows[0]["fingerprint"]]
        return dict(found[-1]["metrics"]) if found else None

    def same(self, metric: str, d: float) -> Check:
        """The A/A check: rows labelled "X A/A" against X, paired over seeds."""
        labels = [name for name in dict.fromkeys(self.frame[self.by]) if str(name).endswith(" A/A")]
        pairs = {name: differences(self.frame, metric, name, name.removesuffix(" A/A"), self.by) for name in labels}
        return same_check(pairs, d)

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
    trials: Mapping[str, Trials] = field(default_factory=dict)  # else: the first seed and model, the scale's budget
    twins: tuple[str, ...] = ()  # labels that also run from another initialisation: "LS A/A" beside "LS"
    fallback: str | None = None  # what a notebook takes where the data are not found
    book: str = ""  # its ledger, where that is not its name
    notebook: str | None = None
    source: str = "{}"  # published rows say their source; what a caption adds to it
    shows: type[Study] = Study
    switches: ClassVar[tuple[str, ...]] = ()  # options of `grids` that are none of the problem's

    def grids(self, scale: str, **options: Any) -> Mapping[str, Sequence[Point]]:
        """The points that validation chooses from, by label and as many for each; other entries have their own."""
        return {}

    def entries(
        self, scale: str, methods: Sequence[str] | None = None, best: Mapping[str, Point] | None = None, **options: Any
    ) -> list[tuple[str, str, Point]]:
        """The methods with their points: the `best`, or else the first of their grid, or their own."""
        if scale not in self.seeds:
            raise ValueError(f"scale: must be one of {', '.join(self.seeds)}, found {scale!r}")
        every = _at(self.methods, scale)
        labels = [label for label, _, _ in every]
        if unknown := [label for label in methods or () if label not in labels]:
            raise ValueError(f"methods: must be among {', '.join(labels)}, found {unknown[0]!r}")
        first = {label: points[0] for label, points in self.grids(scale, **options).items()} | dict(best or {})
        kept = [(label, name, first.get(label, point)) for label, name, point in every]
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
    ) -> dict[str, Tuning]:  # fmt: skip
        """Each method's point by validation, for each model; nothing where there is nothing to choose."""
        trials = self._trials(scale, self.seeds[scale] if seeds is None else tuple(seeds))
        where: dict[str, Any] = {"scale": scale, "seeds": trials.seeds, "budget": trials.budget, "fallback": fallback}

        def run(grids: Mapping[str, Sequence[Point]], names: Mapping[str, str], model: str) -> Tuning:
            return tune(self.problem, grids, methods=names, model=model, options=self._data(options), **where, **how)

        return self._by_model(scale, methods, options, trials, run)

    def _trials(self, scale: str, seeds: Sequence[int]) -> Trials:
        return self.trials.get(scale) or Trials(tuple(seeds[:1]), self.budget[scale], each_model=False)

    def _by_model(
        self, scale: str, methods: Sequence[str] | None, options: Options, trials: Trials,
        run: Callable[[Mapping[str, Sequence[Point]], Mapping[str, str], str], Tuning],
    ) -> dict[str, Tuning]:  # fmt: skip
        names = {label: name for label, name, _ in self.entries(scale, methods, **options)}
        grids = {label: points for label, points in self.grids(scale, **options).items() if label in names}
        if all(len(points) == 1 for points in grids.values()):
            return {}
        models, found = _at(self.models, scale), {}
        for model in models if trials.each_model else models[:1]:
            one = run(grids, names, model)
            if more := {
                label: [{**one.best[label], **p} for p in trials.then[label]] for label in trials.then if label in grids
            }:
                two = run(more, names, model)
                one = Tuning(one.best | two.best, pd.concat([one.trials, two.trials], ignore_index=True))
            found[model] = one
        return found if trials.each_model else dict.fromkeys(models, found[models[0]])

    def cells(
        self, scale: str, seeds: Iterable[int] | None = None, methods: Sequence[str] | None = None,
        fallback: str | None = None, tuning: Mapping[str, Tuning] | None = None, **options: Any,
    ) -> list[Cell]:  # fmt: skip
        """All runs at a scale, variants outermost; `methods` keeps the labels named, `fallback` as in `problem`."""
        self.entries(scale, methods)  # names what is wrong before any data are read
        seeds = self.seeds[scale] if seeds is None else tuple(seeds)
        found = []
        for variant in self.chosen(scale, **options):
            own: list[Cell] = []
            for model in _at(self.models, scale):
                best = tuning[model].best if tuning else None
                entries = self.entries(scale, methods, best, **variant)
                how: dict[str, Any] = {"fallback": fallback, **self._data(variant)}
                own += grid(self.problem, entries, [model], seeds, scale, self.budget[scale], **how)
            own += [cell.twin() for cell in own if cell.label in self.twins]
            once = {cell.key(): cell for cell in own}  # single-task nets belong to no model
            place = self._places(entries)
            found += sorted(once.values(), key=lambda cell: (seeds.index(cell.seed), place.index(cell.label)))
        return found

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
            cells += self.cells(scale, seeds, methods, fallback, tuning, **variant)
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
        find = {"name": self.book or self.name, "scale": scale, **self._data(variant)}
        models, trials = _at(self.models, scale), self._trials(scale, self.seeds[scale])
        where = f"data/ledger/{find['name']}.jsonl: no {{}} of scale {scale}"
        where += f" with {variant['tasks']} tasks" if "tasks" in variant else ""

        def run(grids: Mapping[str, Sequence[Point]], names: Mapping[str, str], model: str) -> Tuning:
            points = tried(grids, names)
            rows = published(entries=points, budget=trials.budget, models=[model], **find)
            if not (rows := [row for row in rows if row["config"]["seed"] in trials.seeds]):
                raise LookupError(where.format("rows"))
            return choose(points, combine_stl(rows), len(trials.seeds))

        tuning = self._by_model(scale, methods, variant, trials, run)
        every: dict[str, Row] = {}
        runs = 0
        for model in models:
            entries = self.entries(scale, methods, tuning[model].best if tuning else None, **variant)
            for row in published(entries=entries, budget=self.budget[scale], models=[model], twins=self.twins, **find):
                every.setdefault(row["key"], row)
            runs += sum(1 + (label in self.twins) for label, name, _ in entries if name != "stl")
        rows = [row for row in every.values() if row["config"]["seed"] in self.seeds[scale]]
        place = self._places(entries)
        rows.sort(key=lambda row: (row["config"]["seed"], place.index(row["label"])))
        tasks = tuple(name.removesuffix("/score") for name in (rows[0]["metrics"] if rows else ()) if "/score" in name)
        runs += len(tasks) if "stl" in {name for _, name, _ in entries} else 0
        whole = [seed for seed in self.seeds[scale] if sum(row["config"]["seed"] == seed for row in rows) == runs]
        if not whole:
            raise LookupError(where.format("seed") + f" has all {runs} runs")
        rows = combine_stl(row for row in rows if row["config"]["seed"] in whole)
        return self.shows(self, scale, rows, self.source.format(rows[0]["source"]), tasks, options, tuning, at)

    def _places(self, entries: Iterable[Entry]) -> list[str]:
        return [name for label, *_ in entries for name in (label, f"{label} A/A")]

    def blind(self, scale: str, **options: Any) -> Row:
        """The row of the predictor that never sees an input, in data/ledger/local/blind; made where it is lacking."""
        (variant,) = self.chosen(scale, **options)
        data, book = problem(self.problem, scale, **self._data(variant)), ledger("blind")
        config = {"problem": data.name, "scale": scale, "options": self._data(variant), "method": "blind"}
        name = key(config, data.fingerprint)
        if found := book.find(name):
            return found
        start = time.monotonic()
        metrics, kind = data.blind(), {"synthetic": data.synthetic, "embedded_default": data.embedded_default}
        row: Any = {"key": name, "config": config, "fingerprint": data.fingerprint, "status": "ok", "metrics": metrics}
        row |= {"wall_s": round(time.monotonic() - start, 3), "source": data.source, **kind}
        book.append(row := row | {"provenance": provenance("cpu", [type(data).__module__])})
        return cast(Row, row)

    def _split(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        how = {"ledger": ledger(self.book or self.name)} | {k: v for k, v in given.items() if k in RUNNER}
        return {name: value for name, value in given.items() if name not in RUNNER}, how

    def _data(self, options: Options) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name not in self.switches}


def _at(value: Any, scale: str) -> Any:
    return value[scale] if isinstance(value, Mapping) else value


def judged(claims: Iterable[str], caption: str = "", **facts: Any) -> Table:
    """The recorded words of some claims with their evidence; caption and facts as in `report.captioned`.

    >>> judged(["emtl-player"]).data["figure"].item()
    '07_theory_player'
    """
    return Table(captioned(recorded(claims).data, caption, **facts))


def differences(table: pd.DataFrame, metric: str, one: Any, other: Any, by: str = "label") -> "pd.Series[float]":
    """one - other over the seeds that both have."""
    wide = table.pivot(index="seed", columns=by, values=metric)[[one, other]].dropna()
    return wide[one] - wide[other]


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
