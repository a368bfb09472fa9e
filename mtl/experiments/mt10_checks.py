"""MT10's checks and pictures: does the algorithm learn one task alone, beside another's SAC; where the time goes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from mtl.ledger import Row, ledger
from mtl.models.rl import Actor
from mtl.problems.mt10 import NAMES, MetaWorld
from mtl.report import captioned, style
from mtl.report.stats import difference_ci
from mtl.runs.tuning import NoRowsError
from mtl.training.sac import LAST

GOAL = 0.9  # of a task's goals, that a task alone is asked to reach at one evaluation
COMMAND = "python -m benchmarks.mt10"


def rows_of(*studies: str) -> list[Row]:
    """Published rows of these words of `python -m benchmarks.mt10`."""
    return [row for row in ledger("mt10_checks").published() if row["config"]["study"] in studies]


def needed(*studies: str) -> list[Row]:
    """The same; NoRowsError without any."""
    if not (rows := rows_of(*studies)):
        raise NoRowsError(f"mt10_checks: no row of {' or '.join(studies)} is published ({COMMAND})")
    return rows


def whose(row: Row) -> str:
    """Whose SAC it was."""
    return str(row["config"].get("by", "mtl"))


def checks() -> pd.DataFrame:
    """Each run of one task alone: what it comes to."""
    rows = needed("check", "peer")
    lines = []
    for row in sorted(rows, key=lambda row: (row["config"]["tasks"], whose(row) != "mtl", _steps(row), _seed(row))):
        ever = {line["steps"]: line["ever"][0] for line in row["history"]}
        at = next((step for step, value in ever.items() if value >= GOAL), None)
        line = {"task": row["config"]["tasks"][0], "SAC": whose(row), "thousand steps": _steps(row) // 1000}
        line |= {"seed": _seed(row), "success": row["metrics"]["score"], "best over time": row["metrics"]["best"]}
        lines.append(line | {f"first at {GOAL:g} (thousand steps)": "–" if at is None else f"{at // 1000}"})
    table = pd.DataFrame(lines).set_index(["task", "SAC"])
    table.attrs["note"] = " ".join([*_random(), *_pendulum()])
    said = (
        f"One task alone: success on 20 goals, mean of the last {LAST} evaluations (one every 2,000 steps), and the "
        "best; a shorter run of a seed is the first part of a longer one"
    )
    facts = _facts(rows, "one run a line", "check", "peer", "random", "pendulum")
    return captioned(table, said, **facts | {"rows": [*rows, *rows_of("random", "pendulum")]})


def _facts(rows: list[Row], n: str, *words: str) -> dict[str, Any]:
    command = " && ".join(f"{COMMAND} {word}" for word in words)
    return {"rows": rows, "scale": "study", "data": rows[0]["source"], "n": n, "config": {}, "command": command}


def _seed(row: Row) -> int:
    return int(row["config"]["seed"])


def _steps(row: Row) -> int:
    return int(row["history"][-1]["steps"])


def _random() -> list[str]:
    rows = [row["metrics"] for row in rows_of("random")]
    found = [(name, one[f"{name}/score"]) for one in rows[-1:] for name in NAMES if one[f"{name}/score"]]
    return [f"Random actions: {', '.join(f'{name} {v:.2f}' for name, v in found)}, the others 0."] if rows else []


def _pendulum() -> list[str]:
    return [
        f"Pendulum, return after {_steps(row):,} steps (seed {_seed(row)}): "
        f"{row['metrics']['return']:.1f}; {row.get('published')}."
        for row in rows_of("pendulum")
    ]


def longest(task: str, by: str) -> list[Row]:
    """For each seed the longest run of a task alone."""
    own = [row for row in rows_of("check", "peer") if row["config"]["tasks"] == [task] and whose(row).startswith(by)]
    return list({_seed(row): row for row in sorted(own, key=_steps)}.values())


def curves() -> Figure:
    """Success of one task alone over training: each seed, and the mean over seeds."""
    rows = needed("check", "peer")
    tasks = sorted({row["config"]["tasks"][0] for row in rows}, reverse=True)
    fig, axes = style.subplots(1, len(tasks), height=2.2, sharey=True)
    for ax, task in zip(axes[0], tasks, strict=True):
        for by, colour in (("mtl", style.BLUE), ("Stable", style.ORANGE)):
            own = longest(task, by)
            for i, row in enumerate(own):
                x, y = zip(*((line["steps"] / 1000, line["ever"][0]) for line in row["history"]), strict=True)
                seeds = "1 seed" if len(own) == 1 else f"{len(own)} seeds"
                ax.plot(x, y, color=colour, lw=0.7, alpha=0.5, label=f"{whose(row)}, {seeds}" if not i else None)
            if len(own) > 1:
                every = min((row["history"] for row in own), key=len)  # the mean ends where a seed does
                mean = np.mean([[line["ever"][0] for line in row["history"][: len(every)]] for row in own], 0)
                ax.plot([line["steps"] / 1000 for line in every], mean, color=colour, lw=1.6)
        ax.axhline(GOAL, color=style.GREY, lw=0.8, ls=":")
        ax.set(title=f"{task}, alone", xlabel="thousand steps", ylim=(-0.03, 1.03))
        ax.legend(fontsize=6, loc="lower right")
    axes[0, 0].set_ylabel("success on 20 goals")
    said = (
        f"Success of one task alone over training, single seeds and their mean; dotted: the {GOAL:g} that is asked for"
    )
    return captioned(fig, said, **_facts(rows, "as the legend says", "check", "peer"))


def beside(task: str = "reach") -> str:
    """Our SAC and the peer's on one task alone, both at the length of the peer's runs."""
    peers = longest(task, "Stable")
    same = [peer["config"]["settings"] for peer in peers]
    lone = [row for row in rows_of("check") if row["config"]["tasks"] == [task] and row["config"]["settings"] in same]
    ours = {_seed(row): row for row in lone}
    pairs = [(ours[_seed(row)], row) for row in peers if _seed(row) in ours]
    if len(pairs) < 2:
        return f"{task}: no two seeds of both SACs are published yet."
    own, other = ([float(row["metrics"]["score"]) for row in side] for side in zip(*pairs, strict=True))
    lead, steps = difference_ci(own, other), _steps(pairs[0][1])
    return (
        f"{task} alone, {steps:,} steps, {len(pairs)} seeds, mean of the last {LAST} evaluations: "
        f"mtl {np.mean(own):.2f}, {whose(pairs[0][1])} {np.mean(other):.2f}, "
        f"difference {lead.value:+.2f} [{lead.low:+.2f}, {lead.high:+.2f}]"
    )


def costs() -> pd.DataFrame:
    """Where the CPU time goes, LS against FairGrad, as `python -m benchmarks.mt10 times` found it."""
    rows = needed("times")
    lines = {
        (name, f"{len(row['config']['tasks'])} tasks, width {row['config']['settings']['width']}"): values
        for row in rows
        for name, values in sorted(row["metrics"].items(), reverse=True)  # LS first
    }
    table = pd.DataFrame(lines).T
    table.index = pd.Index([f"{style.look(name)[0]}, {what}" for name, what in table.index], name="method")
    said = "Updates of policy and critics in a CPU second, and what share of it each part takes, evaluation left out"
    return captioned(table, said, **_facts(rows, "one measurement", "times"))


def chance(tasks: Sequence[str]) -> dict[str, float] | None:
    """Success of random actions at each of these tasks of Meta-World, from the published row; None without it."""
    rows = rows_of("random")
    return {task: float(rows[-1]["metrics"][f"{task}/score"]) for task in tasks} if rows else None


def rates() -> dict[str, str]:
    """What the published checks know of each task's success: of random actions, and of the longest run alone."""
    rows = ledger("mt10_checks").published()
    found = {}
    for task in NAMES:
        own = [row for row in rows if f"{task}/score" in row["metrics"]]
        random = [row["metrics"][f"{task}/score"] for row in own if row["config"]["study"] == "random"]
        alone = [row for row in own if row["config"]["study"] == "check"]
        most = max((row["history"][-1]["steps"] for row in alone), default=0)
        runs = [row["metrics"][f"{task}/score"] for row in alone if row["history"][-1]["steps"] == most]
        said = [f"random {random[-1]:.2f}"] if random else []
        said += [f"alone {np.mean(runs):.2f}\n({len(runs)} x {most // 1000} thousand steps)"] if runs else []
        found[task] = ", ".join(said)
    return found


def gallery(tasks: MetaWorld) -> Figure:
    """The tasks at the start of an episode, each with its success."""
    known = rates()
    tasks.reset([0] * len(tasks.names))
    fig, axes = style.subplots(2, 5, height=3.0)
    for t, ax in enumerate(axes.flat):
        ax.imshow(tasks.picture(t))
        ax.set(xticks=[], yticks=[], title=tasks.names[t], xlabel=known[tasks.names[t]])
    return fig


def film(actor: Actor, tasks: MetaWorld, frames: int = 6, goal: int = 0) -> Figure:
    """An episode of the first task by a policy, at equal distances in time."""
    seen, ids = tasks.reset([goal] * len(tasks.names)), torch.eye(len(tasks.names))
    fig, axes = style.subplots(1, frames, height=1.5)
    at = np.linspace(0, tasks.horizon // 2, frames).astype(int).tolist()
    with torch.no_grad():
        for step in range(at[-1] + 1):
            if step in at:
                ax = axes[0, at.index(step)]
                ax.imshow(tasks.picture(0))
                ax.set(xticks=[], yticks=[], title=f"step {step}")
            seen, _, _ = tasks.step(torch.tanh(actor(torch.cat([seen, ids], 1))[0]))
    return fig
