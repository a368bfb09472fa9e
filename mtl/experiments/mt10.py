"""MT10: does FairGrad lead in multi-task reinforcement learning? Three of ten tasks, on today's packages.

Papers train ten tasks for two million steps and print the best success over time; here three tasks get 60,000 steps
each, and the mean of the last five evaluations is reported, the best over time beside it.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from importlib import import_module
from typing import Any, ClassVar, cast

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mtl.errors import RunError
from mtl.experiments.base import Experiment
from mtl.experiments.beside import differences, reported, text
from mtl.experiments.mt10_checks import chance
from mtl.experiments.study import Study
from mtl.ledger import Ledger, Row, ledger, plain, provenance
from mtl.problems.mt10 import KINDS, NAMES, Tasks
from mtl.report import captioned, results_table, style
from mtl.report.claims import Finding, blind_check, compare, converged_check, decide
from mtl.report.stats import mean_ci
from mtl.runs.cells import STL_MODEL, Cell, Point, alone, locked, one_thread
from mtl.runs.engines import run_grid
from mtl.runs.tuning import NoRowsError, Tuning, combine_stl
from mtl.training.sac import LAST, Settings, summary, train

VALUE = 100.0  # of the largest reward, 10 a step for ever: 10 x .1 / (1 - .99)
# With room for entropy and overestimation: a loss of the policy plus it is the shortfall against that.
SHIFT = 1.2 * VALUE
FIRST: tuple[tuple[str, str, Point], ...] = (
    ("STL", "stl", {}), ("LS", "ls", {}), ("MGDA", "mgda", {}), ("Nash-MTL", "nash", {}),
    ("FairGrad (alpha=2)", "fairgrad", {"alpha": 2.0}), ("EMTL (shift)", "emtl", {"shift": SHIFT}),
)  # fmt: skip
THEN: tuple[tuple[str, str, Point], ...] = (
    ("PCGrad", "pcgrad", {}), ("CAGrad", "cagrad", {}), ("FAMO (shift)", "famo", {"shift": SHIFT}),
)  # fmt: skip
FEW = tuple(one for one in FIRST if one[0] in ("STL", "LS", "FairGrad (alpha=2)"))
THREE = ("drawer-close", "reach", "window-close")
# What is stepped at each scale; point masses at scale quick wherever it runs: minutes of a simulator show nothing.
PLACES: dict[str, tuple[str, tuple[str, ...], int]] = {
    "smoke": ("mt10", THREE[:2], 20), "quick": ("point_mass", THREE, 25), "study": ("mt10", THREE, 200),
    "gpu": ("mt10", NAMES, 200), "paper": ("mt10", NAMES, 200),
}  # fmt: skip
BUDGET: dict[str, Any] = {
    "smoke": Settings(2, every=40, batch_size=8, width=16, warmup=20, evaluated=1),
    "quick": Settings(8, every=50, batch_size=32, width=32, warmup=100, lr=1e-2, gamma=0.9, evaluated=10),
    "study": Settings(12),
    "gpu": Settings(400, batch_size=128, width=400),
    "paper": Settings(400, batch_size=128, width=400),
}
RIVALS = ("MGDA", "Nash-MTL", "PCGrad", "CAGrad")  # gradient manipulation methods, as the sentence has it
OWN, POINTS = "FairGrad (alpha=2)", 0.05
DASHES = ("-", "--", ":", "-.")
WORDS = {"score": "success", "last": "at the last step", "best": "best over time"}


class MT10Study(Study):
    """Success of each task and over tasks; learning curves; papers' numbers, on a page of their own."""

    sentences: ClassVar[tuple[str, ...]] = ("fairgrad-mt10",)

    @property
    def metrics(self) -> dict[str, bool]:
        return {f"{task}/score": True for task in self.tasks} | dict.fromkeys(WORDS, True)

    @cached_property
    def table(self) -> pd.DataFrame:
        """Success per task and over tasks, at the last step, and the best over time."""
        shown = results_table(self.frame, self.metrics, by="label", reference_row="STL", primary="score", digits=2)
        heads = {f"{name} ↑": f"{WORDS.get(name, name.removesuffix('/score'))} ↑" for name in self.metrics}
        shown = shown.drop(columns="mean rank").rename(columns=heads).rename_axis("method")
        note = shown.attrs["note"].replace("(score)", "(success)")
        note += " The best over time picks each run's luckiest evaluation, so that it can only be above what stays."
        shown.attrs["note"] = f"{note} {self.diverged}".rstrip()
        said = (
            f"Share of goals that are reached at any step of an episode, mean of the last {LAST} evaluations (tasks, "
            "success) and of the goals held at the last step; the best evaluation over time is the papers' custom"
        )
        return captioned(shown, said)

    @cached_property
    def above(self) -> pd.DataFrame:
        """Per task the interval of each row, and whether all are above a policy that acts at random, as measured."""
        found, level = {}, None if self.synthetic else chance(self.tasks)
        for label, own in self.frame.groupby("label", sort=False):
            line, under = dict[str, str](), list[str]()
            for task in self.tasks:
                runs = own[f"{task}/score"].dropna().astype(float)
                lead = mean_ci(runs) if len(runs) > 2 else None
                line[task] = "no interval for n < 3" if lead is None else f"{lead.low:.2f} to {lead.high:.2f}"
                if lead is not None and level is not None and not lead.low > level[task]:
                    under.append(task)
            judged = level is not None and "no interval for n < 3" not in line.values()
            found[label] = line | {"above": f"not {', '.join(under)}" if under else "yes" if judged else "–"}
        table = pd.DataFrame(found).T.rename_axis("method")
        known = "not measured here" if level is None else ", ".join(f"{task} {x:.2f}" for task, x in level.items())
        said = f"95 % intervals of success over seeds; above: with the whole interval above random actions ({known})"
        return captioned(table, said)

    @cached_property
    def diverged(self) -> str:
        """Runs whose value of a task passed what the largest reward for ever is worth; "" without any."""
        every = {row["key"]: row for row in ledger("mt10").published()}
        found = []
        for row in self.rows:
            for run in (every.get(key, row) for key in row.get("keys", [row["key"]])):
                hyper = run["config"].get("hyper", {})
                losses = [min(line["actor losses"]) for line in run["history"] if "actor losses" in line]
                if losses and (value := hyper.get("shift", 0.0) - min(losses)) > VALUE:
                    task = f" at {run['config']['options']['tasks'][hyper['task']]}" if "task" in hyper else ""
                    found.append(f"{row['label']}{task}, seed {run['config']['seed']} ({value:.0f})")
        return f"A value beyond {VALUE:g}, the largest there is: {'; '.join(found)}." if found else ""

    @property
    def paper(self) -> pd.DataFrame:
        """What papers print of MT10: ten tasks, two million steps, the best over time; no level is like ours."""
        shown = reported("mt10")
        spread = [f"{value:.2f} ± {sem:.3g}" for value, sem in zip(shown["success"], shown["sem"], strict=True)]
        table = pd.DataFrame({"success": spread, "source": shown["source"].to_numpy()}, shown["method"].to_numpy())
        seconds = [text(value, 1) or "–" for value in shown["seconds_per_episode"]]
        table.insert(1, "seconds an episode", seconds)
        said = (
            "What papers print of MT10: success, mean ± standard error, best over time, ten tasks and two million "
            "steps of each. Nash-MTL's own .91 is .80 ± .13 when FAMO's authors run it again: as far apart as methods "
            "are. No level is like ours, so the table is one of its own"
        )
        return captioned(table.rename_axis("method"), said, data="printed tables", n="as printed", rows=())

    def figure(self) -> Figure:
        """Learning curves, a panel per method: tasks, and their mean with its interval over seeds."""
        methods = dict(zip(self.frame["label"], self.frame["method"], strict=True))
        ok = [row for row in self.rows if row["status"] == "ok" and row.get("label") in methods]
        curves = {label: [row["history"] for row in ok if row["label"] == label] for label in methods}
        curves = {label: runs for label, runs in curves.items() if runs}
        columns = min(3, max(len(curves), 1))
        lines = max(-(-len(curves) // columns), 1)
        fig, axes = style.subplots(lines, columns, height=0.5 + 1.45 * lines, sharex=True, sharey=True)
        for ax, (label, runs) in zip(axes.flat, curves.items(), strict=False):
            _, colour, marker = style.look(methods[label])
            steps = [line["steps"] / 1000 for line in runs[0]]
            values = np.array([[line["ever"] for line in run] for run in runs], float)  # seeds, times, tasks
            for k, task in enumerate(self.tasks):
                ax.plot(steps, values[:, :, k].mean(0), color="0.5", lw=0.8, ls=DASHES[k % len(DASHES)], label=task)
            over = values.mean(2)
            ax.plot(steps, over.mean(0), color=colour, marker=marker, ms=3)
            if len(runs) > 2:
                ends = [mean_ci(over[:, i]) for i in range(len(steps))]
                low, high = [max(one.low, 0) for one in ends], [min(one.high, 1) for one in ends]
                ax.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)
            ax.set(title=f"{label}, n = {len(runs)}", ylim=(-0.03, 1.03))
        for ax in axes.flat[max(len(curves) - columns, 0) : len(curves)]:  # the lowest of each column
            ax.set_xlabel("thousand steps")
            ax.tick_params(labelbottom=True)
        for ax in axes[:, 0]:
            ax.set_ylabel("success")
        for ax in axes.flat[len(curves) :]:
            ax.set_visible(False)
        if curves:
            lines = axes[0, 0].get_legend_handles_labels()
            mean = Line2D([], [], color=style.BLACK)
            names = [*lines[1], "mean over tasks (its method's colour)"]
            fig.legend([*lines[0], mean], names, loc="outside lower center", ncols=6, fontsize=6.5)
        said = "Success on the fixed goals over training: tasks, and their mean with its 95 % interval over seeds"
        return captioned(fig, f"{said} (none for two)")

    def findings(self) -> list[Finding]:
        """What the rows say of FairGrad's abstract, by paper/decision_rule.md: no convergence check, so no verdict."""
        there = set(self.frame["label"])
        if OWN not in there:
            return []
        rivals = [name for name in RIVALS if name in there]
        pairs = {name: differences(self.frame, "score", OWN, name).astype(float).dropna() for name in rivals}
        parts = [compare(f"against {name}", own, POINTS, len(RIVALS)) for name, own in pairs.items() if len(own)]
        if not parts:
            return []
        runs = {
            str(label): {task: own[f"{task}/score"].dropna().astype(float) for task in self.tasks}
            for label, own in self.frame.groupby("label")
        }
        gate, _ = blind_check(runs, chance(self.tasks), dict.fromkeys(self.tasks, True), ["STL", "LS", OWN])
        checks = (gate, converged_check(None, POINTS), self.same(["score"], POINTS))
        how: dict[str, Any] = {
            "missing": [name for name in RIVALS if not len(pairs.get(name, ()))],
            "declared": 3,
            "gate": checks,
        }
        said = "three of ten tasks, 3 % of the steps"
        return [decide("fairgrad-mt10", "best", parts, **how, said=said, **self.behind)]

    def answer(self) -> str:
        """Which sentence could be tested at this scale, and which not."""
        shown, n = self.above[self.above["above"] == "yes"], len(self.seeds)
        return (
            f"Above random actions at every task with their whole intervals: {', '.join(shown.index) or 'no row'} "
            f"({n} seed{'s' * (n > 1)}).\nTested: that these methods train a policy and critics at all on today's "
            "packages.\nNot tested: that FairGrad leads on MT10, which is ten tasks and two million steps of each."
        )


class Control(Experiment):
    """An experiment whose runs are of `training.sac`, one at a time; without tuning, at one setting for all."""

    alone = False  # what is stepped depends on the scale

    def cells(
        self, scale: str, seeds: Iterable[int] | None = None, methods: Sequence[str] | None = None,
        fallback: str | None = None, tuning: Mapping[str, Tuning] | None = None, **options: Any,
    ) -> list[Cell]:  # fmt: skip
        """All runs at a scale; STL is one run per task, of that task's simulator alone."""
        entries = self.entries(scale, methods)
        self.chosen(scale, **options)
        wanted, names, horizon = PLACES[scale]
        tasks = build(wanted, names, horizon, fallback)
        own: dict[str, Any] = {"options": {"tasks": names, "horizon": horizon}, "fingerprint": tasks.fingerprint}
        own |= {"problem": tasks.name, "wanted": wanted, "fallback": fallback, "stands_in": tasks.name != wanted}
        own |= {"scale": scale, "budget": self.budget[scale]}
        found = []
        for seed in self.asked(scale, seeds):
            for label, name, point in entries:
                runs = [("mlp", point, "score")]
                if name == "stl":
                    runs = [(STL_MODEL, alone(point, k), f"{task}/score") for k, task in enumerate(names)]
                for model, hyper, select in runs:
                    found.append(Cell(label, method=name, hyper=hyper, model=model, seed=seed, select=select, **own))
        return found

    def run(
        self, scale: str, seeds: Iterable[int] | None = None, methods: Sequence[str] | None = None,
        fallback: str | None = None, **how: Any,
    ) -> list[Row]:  # fmt: skip
        """The rows of all cells, one run after the other; of `run_grid`'s engines there is this one.

        Another core takes a second command with other `--methods`: both write to one ledger.
        """
        options, how = self._split(how)
        if how.get("jobs", 1) != 1 or how.get("engine", "auto") not in ("auto", "here") or how.get("together"):
            raise ValueError("jobs: must be 1 for mt10, on the engine here; start the command again with other methods")
        how["engine"] = "here"
        return run_grid(self.cells(scale, seeds, methods, fallback, **options), made=made, **how)

    def blind(self, scale: str, **options: Any) -> Row:
        """There is none: the level to beat is that of random actions."""
        raise ValueError(f"blind: {self.name} has random actions in its place, `python -m benchmarks.mt10 random`")

    def study(
        self, scale: str, seeds: Iterable[int] | None = None, methods: Sequence[str] | None = None, **how: Any
    ) -> Study:
        """Run what the ledger lacks, with the stand-in where Meta-World is not installed; then all of it."""
        rows = self.run(scale, seeds, methods, self.fallback, **how)
        wanted, names, horizon = PLACES[scale]
        tasks = build(wanted, names, horizon, self.fallback)
        missing = f"EMBEDDED DEFAULT: {wanted} was not found, point masses stand in for it. "
        said = (missing if tasks.name != wanted else "") + tasks.describe()
        return self.shows(self, scale, combined(combine_stl(rows), {row["key"]: row for row in rows}), said, names)

    def published(
        self, scale: str = "study", methods: Sequence[str] | None = None, at: str = "", **options: Any
    ) -> Study:
        """As `Experiment.published`, with STL's curves and means from the runs of its tasks."""
        study = super().published(scale, methods, at, **options)
        every = {row["key"]: row for row in ledger(self.book or self.name).published()}
        return replace(study, rows=combined(study.rows, every), tasks=PLACES[scale][1])


@lru_cache(maxsize=8)
def build(wanted: str, names: tuple[str, ...], horizon: int, fallback: str | None = None) -> Tasks:
    """The tasks of a scale; ModuleNotFoundError where they need a package that is missing and nothing stands in."""
    if fallback not in (None, "point_mass"):
        raise ValueError(f"fallback: must be 'point_mass' or None, found {fallback!r}")
    make = cast(Callable[[Sequence[str], int], Tasks], KINDS[wanted])
    if wanted == "mt10":
        simulator()
    try:
        return make(names, horizon)
    except ModuleNotFoundError:
        if fallback is None:
            raise
        return cast(Callable[[Sequence[str], int], Tasks], KINDS[fallback])(names, horizon)


def simulator() -> None:
    """Import MuJoCo, which asks for a GL library at once although only pictures need one: without, where there is none.

    RunError where MUJOCO_GL names a library that is not there.
    """
    own = os.environ.get("MUJOCO_GL")
    if own is None and not os.environ.get("DISPLAY"):
        os.environ["MUJOCO_GL"] = "egl" if sys.platform == "linux" else "glfw"  # elsewhere MuJoCo knows no egl
    try:
        import_module("mujoco")
    except ModuleNotFoundError:
        return  # `installed` names the extra
    except Exception as wrong:  # PyOpenGL's are of many kinds
        if own is not None:
            why = f"found {own!r} ({type(wrong).__name__}: {wrong})"
            raise RunError(f"MUJOCO_GL: must name a GL library that is installed, or be unset; {why}") from wrong
        os.environ["MUJOCO_GL"] = "disabled"


def made(cell: Cell, book: Ledger, device: str, _: bool, older: bool) -> Row:
    """Run one cell and append its row, unless another process has done so meanwhile."""
    kind = torch.device(device).type
    with locked(cell.key(kind)) as path, one_thread():
        if (found := book.find(cell.key(kind), older)) is not None:
            return found
        names, horizon = cell.options["tasks"], cell.options["horizon"]
        hyper, single = dict(cell.hyper), cell.method == "stl"
        own = (names[hyper.pop("task")],) if single else tuple(names)
        tasks = build(cell.wanted, own, horizon, cell.fallback)
        settings, name = cast(Settings, cell.budget), "ls" if single else cell.method
        run = train(tasks, name, settings, cell.seed, hyper=hyper, device=device, checkpoint=path)
        metrics = summary(names, []) | run.metrics
        row: Row = plain(
            {
                "key": cell.key(kind),
                "config": cell.config | {"device": kind},
                "fingerprint": cell.fingerprint,
                "validation": {name: value for name, value in metrics.items() if name.endswith("score")},
                "steps": run.steps,
                "wall_s": round(run.wall_s, 3),
                "provenance": provenance(device, run.modules),
                "embedded_default": cell.stands_in,
                "synthetic": tasks.synthetic,
                "source": tasks.source,
            }
            | {"metrics": metrics, "status": run.status, "failure": run.failure, "history": run.history}
            | {"best_epoch": None, "epochs": len(run.history)}
        )
        book.append(row)
        path.unlink(missing_ok=True)
    return row


def combined(rows: Sequence[Row], every: Mapping[str, Row]) -> list[Row]:
    """Rows of `combine_stl`, STL's with the curves of its tasks beside each other; `every`: the runs by key."""
    found = []
    for row in rows:
        if row["status"] == "ok" and "keys" in row:
            parts = sorted((every[key] for key in row["keys"]), key=lambda one: one["config"]["hyper"]["task"])
            pairs = zip(*(part["history"] for part in parts), strict=True)
            lines = [
                {"steps": line[0]["steps"], **{what: [one[what][0] for one in line] for what in ("ever", "last")}}
                for line in pairs
            ]
            names = [part["config"]["options"]["tasks"][part["config"]["hyper"]["task"]] for part in parts]
            row = row | {"history": lines, "metrics": summary(names, lines)}
        found.append(row)
    return found


def latest(at: str) -> MT10Study | None:
    """The published study, each method with as many seeds as are whole; None without any."""
    found = []
    for label, *_ in (*FIRST, *THEN):
        try:
            found.append(cast(MT10Study, MT10.published("study", [label], at=at)))
        except NoRowsError:
            continue
    if not found:
        return None
    least, most = (end(len(one.seeds) for one in found) for end in (min, max))
    n = f"{least} to {most} seeds, as the rows say" if least < most else ""
    return replace(found[0], rows=[row for one in found for row in one.rows], n=n)


MT10 = Control(
    name="mt10",
    problem="mt10",
    fallback="point_mass",
    notebook="19_mt10",
    source="{} (simulated), three tasks, 20 fixed goals each",
    shows=MT10Study,
    methods={
        "smoke": FEW,
        "quick": (*FEW, FIRST[2]),
        "study": FIRST + THEN,
        "gpu": FIRST + THEN,
        "paper": FIRST + THEN,
    },
    models=("mlp",),
    seeds={"smoke": (10,), "quick": (10,), "study": (10, 11, 12), "gpu": (10,), "paper": (10, 11, 12)},
    budget=BUDGET,
    variants={scale: ({},) for scale in BUDGET},
)
