"""One table or figure: methods x models x seeds per scale, tuned alike; its rows; what is common to all tables."""

import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import pandas as pd

from mtl.experiments.once import once
from mtl.experiments.study import Options, Study
from mtl.ledger import Row, ledger
from mtl.problems import problem
from mtl.runs.cells import Cell, Point, grid
from mtl.runs.engines import run_grid, shown
from mtl.runs.tuning import NoRowsError, Tuning, choose, combine_stl, published, tried, tune
from mtl.scales import known_scale
from mtl.training.fit import Budget

Entry = tuple[str, str, Point | None]  # label, method, its point; None: chosen from `Experiment.grids`
RUNNER = frozenset(inspect.signature(run_grid).parameters) - {"made"}  # what a command may ask of `run_grid`


class Trials(NamedTuple):
    """How a scale chooses points on validation: on which seeds, in which budget, and whether for each model anew.

    `then`: labels that go on to choose among these, each at the point chosen before.
    """

    seeds: tuple[int, ...]
    budget: Budget
    each_model: bool = True
    then: Mapping[str, Sequence[Point]] = MappingProxyType({})


@dataclass(frozen=True)
class Experiment:
    """One table: methods x models x seeds at each scale; `variants` are the problem's options, one grid each.

    Methods, models, twins and rates may be others at each scale: a mapping from the scale.
    """

    name: str
    problem: str
    methods: tuple[Entry, ...] | Mapping[str, tuple[Entry, ...]]
    models: tuple[str, ...] | Mapping[str, tuple[str, ...]]
    seeds: Mapping[str, tuple[int, ...]]
    budget: Mapping[str, Budget]
    variants: Mapping[str, tuple[Options, ...]]
    trials: Mapping[str, Trials] = field(default_factory=dict)  # else: the first seed and model, the scale's budget
    # labels that also run from another initialisation: "LS A/A" beside "LS"
    twins: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ()
    # learning rates among which every method chooses where there are trials
    rates: tuple[float, ...] | Mapping[str, tuple[float, ...]] = ()
    doubled: tuple[str, ...] = ()  # labels that the trials' seeds also run for twice the epochs: do they converge?
    fallback: str | None = None  # what a notebook takes where the data are not found
    book: str = ""  # its ledger, where that is not its name
    notebook: str | None = None
    source: str = "{}"  # published rows say their source; what a caption adds to it
    shows: type[Study] = Study
    switches: ClassVar[tuple[str, ...]] = ()  # options of `grids` that are none of the problem's
    alone: ClassVar[bool] = True  # its rows are of its problem alone, whose ledger others may share

    def grids(self, scale: str, **options: Any) -> Mapping[str, Sequence[Point]]:
        """The points that validation chooses from, by label and as many for each; other entries have their own."""
        if scale not in self.trials:
            return {}
        own = {label: point for label, _, point in _at(self.methods, scale) if point is not None}
        rates = _at(self.rates, scale)
        return {label: tuple({**point, "lr": rate} for rate in rates) for label, point in own.items() if rates}

    def entries(
        self, scale: str, methods: Sequence[str] | None = None, best: Mapping[str, Point] | None = None, **options: Any
    ) -> list[tuple[str, str, Point]]:
        """The methods with their points: the `best`, or else the first of their grid, or their own."""
        known_scale(scale, self.seeds)
        every = _at(self.methods, scale)
        labels = [label for label, _, _ in every]
        if methods is not None and (isinstance(methods, str) or not isinstance(methods, Sequence) or not methods):
            raise ValueError(f"methods: must be a list among {', '.join(labels)}, found {methods!r}")
        if unknown := [label for label in methods or () if label not in labels]:
            raise ValueError(f"methods: must be among {', '.join(labels)}, found {unknown[0]!r}")
        first = {label: points[0] for label, points in self.grids(scale, **options).items()} | dict(best or {})
        kept = [(label, name, first.get(label, point)) for label, name, point in every]
        return [(label, name, p) for label, name, p in kept if p is not None and label in (methods or labels)]

    def asked(self, scale: str, seeds: Iterable[int] | None) -> tuple[int, ...]:
        """The seeds given, or else those of the scale."""
        if seeds is None:
            return tuple(self.seeds[scale])
        found = tuple(seeds) if isinstance(seeds, Iterable) else ()
        whole = all(isinstance(seed, Integral) and not isinstance(seed, bool) and seed >= 0 for seed in found)
        if not found or len(set(found)) < len(found) or not whole:
            shown = list(found) or seeds  # a seed named twice would count as two runs
            raise ValueError(f"seeds: must be a list of different whole numbers of at least 0, found {shown!r}")
        return tuple(map(int, found))  # NumPy's own are none for JSON

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
        trials = self._trials(scale, self.asked(scale, seeds))
        where: dict[str, Any] = {"scale": scale, "seeds": trials.seeds, "budget": trials.budget, "fallback": fallback}
        left = _left(how)

        def run(grids: Mapping[str, Sequence[Point]], names: Mapping[str, str], model: str) -> Tuning:
            return tune(self.problem, grids, methods=names, model=model, options=self._data(options), **where, **left())

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
        seeds = self.asked(scale, seeds)
        twins, found = _at(self.twins, scale), []
        for variant in self.chosen(scale, **options):
            own: list[Cell] = []
            for model in _at(self.models, scale):
                best = tuning[model].best if tuning else None
                entries = self.entries(scale, methods, best, **variant)
                how: dict[str, Any] = {"fallback": fallback, **self._data(variant)}
                own += grid(self.problem, entries, [model], seeds, scale, self.budget[scale], **how)
            own += [cell.twin() for cell in own if cell.label in twins]
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
        self.entries(scale, methods)
        seeds = self.asked(scale, seeds)
        cells, left = list[Cell](), _left(how)
        for variant in self.chosen(scale, **options):
            tuning = self.tuned(scale, seeds, methods, fallback, options=variant, **left())
            if double := [name for name in self.doubled if name in (methods or self.doubled) and scale in self.trials]:
                for own in (replace(self, twins=()), self.longer(scale)):
                    run_grid(own.cells(scale, self.trials[scale].seeds, double, fallback, tuning, **variant), **left())
            cells += self.cells(scale, seeds, methods, fallback, tuning, **variant)
        return run_grid(cells, **left())

    def longer(self, scale: str) -> "Experiment":
        """The same with twice the epochs at a scale, without A/A rows."""
        budget = replace(self.budget[scale], epochs=2 * self.budget[scale].epochs)
        return replace(self, budget={scale: budget}, twins=())

    def study(
        self, scale: str, seeds: Iterable[int] | None = None, methods: Sequence[str] | None = None, **how: Any
    ) -> Study:
        """Run what the ledger lacks, with the fallback where the data are not found, and a bar; then all of it."""
        self.entries(scale, methods)  # names what is wrong
        seeds = self.asked(scale, seeds)
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
        trials give by validation; seeds that lack a run are left out. NoRowsError where no seed is whole."""
        known_scale(scale, self.seeds)
        (variant,) = self.chosen(scale, **options)
        find = {
            "name": self.book or self.name,
            "scale": scale,
            "wanted": self.problem if self.alone else "",
            **self._data(variant),
        }
        models, twins, trials = _at(self.models, scale), _at(self.twins, scale), self._trials(scale, self.seeds[scale])
        where = f"data/ledger/{find['name']}.jsonl: no {{}} of scale {scale}"
        where += f" with {variant['tasks']} tasks" if "tasks" in variant else ""

        def run(grids: Mapping[str, Sequence[Point]], names: Mapping[str, str], model: str) -> Tuning:
            points = tried(grids, names)
            rows = published(entries=points, budget=trials.budget, models=[model], **find)
            if not (rows := [row for row in rows if row["config"]["seed"] in trials.seeds]):
                raise NoRowsError(where.format("rows"))
            return choose(points, combine_stl(rows), len(trials.seeds))

        tuning = self._by_model(scale, methods, variant, trials, run)
        every: dict[str, Row] = {}
        runs = 0
        for model in models:
            entries = self.entries(scale, methods, tuning[model].best if tuning else None, **variant)
            for row in published(entries=entries, budget=self.budget[scale], models=[model], twins=twins, **find):
                every.setdefault(row["key"], row)
            runs += sum(1 + (label in twins) for label, name, _ in entries if name != "stl")
        rows = [row for row in every.values() if row["config"]["seed"] in self.seeds[scale]]
        place = self._places(entries)
        rows.sort(key=lambda row: (row["config"]["seed"], place.index(row["label"])))
        tasks = tuple(name.removesuffix("/score") for name in (rows[0]["metrics"] if rows else ()) if "/score" in name)
        runs += len(tasks) if "stl" in {name for _, name, _ in entries} else 0
        whole = [seed for seed in self.seeds[scale] if sum(row["config"]["seed"] == seed for row in rows) == runs]
        if not rows or not whole:  # single-task nets alone have as many runs as tasks, which rows tell
            raise NoRowsError(where.format("seed") + f" has all {runs} runs")
        rows = combine_stl(row for row in rows if row["config"]["seed"] in whole)
        study = self.shows(self, scale, rows, self.source.format(rows[0]["source"]), tasks, options, tuning, at)
        return replace(study, doubled=self._doubled(scale, tuning, variant, find))

    def _doubled(
        self, scale: str, tuning: Mapping[str, Tuning], variant: Options, find: Mapping[str, Any]
    ) -> tuple[list[Row], ...]:
        """The published rows of the convergence check, or none where one is missing."""
        models, trials, found = _at(self.models, scale), self.trials.get(scale), []
        if trials is None or not self.doubled or (tuning and not set(self.doubled) <= set(tuning[models[0]].best)):
            return ()
        for own in (self, self.longer(scale)):
            every: dict[str, Row] = {}
            for model in models:
                entries = self.entries(scale, self.doubled, tuning[model].best if tuning else None, **variant)
                rows = published(entries=entries, budget=own.budget[scale], models=[model], **find)
                every |= {row["key"]: row for row in rows if row["config"]["seed"] in trials.seeds}
            alone = sum(name == "stl" for _, name, _ in entries)
            try:
                rows = combine_stl(every.values())
            except ValueError:  # a task's run is not there yet
                return ()
            if len(rows) < len(trials.seeds) * ((len(entries) - alone) * len(models) + alone):
                return ()
            found.append(rows)
        return tuple(found)

    def _places(self, entries: Iterable[Entry]) -> list[str]:
        return [name for label, *_ in entries for name in (label, f"{label} A/A")]

    def blind(self, scale: str, **options: Any) -> Row:
        """The row of the predictor that never sees an input, in data/ledger/local/blind; made where it is lacking."""
        (variant,) = self.chosen(scale, **options)
        data = problem(self.problem, scale, **self._data(variant))
        config = {"problem": data.name, "scale": scale, "options": self._data(variant), "method": "blind"}
        kind: dict[str, Any] = {"synthetic": data.synthetic, "embedded_default": data.embedded_default}
        modules, book = [type(data).__module__], ledger("blind")
        return once(book, config, data.fingerprint, data.blind, modules, source=data.source, **kind)

    def _split(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        how = {"ledger": ledger(self.book or self.name)} | {k: v for k, v in given.items() if k in RUNNER}
        return {name: value for name, value in given.items() if name not in RUNNER}, how

    def _data(self, options: Options) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name not in self.switches}


def _left(how: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
    """`how` with what is left of its deadline whenever it is asked: one deadline for all that a command runs."""
    given, start = how.get("deadline"), time.monotonic()
    if given is None or not given > 0:  # nothing to count down; `run_grid` refuses what is below 0
        return lambda: {**how}
    return lambda: {**how, "deadline": max(0.0, given - (time.monotonic() - start))}


def _at(value: Any, scale: str) -> Any:
    return value[scale] if isinstance(value, Mapping) else value
