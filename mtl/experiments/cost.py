"""What one training step costs per method, and how time and memory grow with the number of tasks (notebook 11)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from mtl.errors import RunError
from mtl.experiments.timer import FLOOR, PLAIN, Step, Workload, floors, net, one_thread, ours, peak, turns
from mtl.files import root
from mtl.ledger import plain
from mtl.methods import METHODS
from mtl.report import captioned, style
from mtl.runs.engines import device_type
from mtl.scales import known_scale

SOME = ("ls", "mgda", "fairgrad", "emtl")
QUICK = ("ls", "uw", "famo", "db-mtl", "mgda", "mgda-ub", "pcgrad", "cagrad", "nash", "fairgrad", "upgrad", "emtl")
ALL = tuple(name for name in METHODS if name != "stl")
SETTINGS: dict[str, dict[str, Any]] = {
    "smoke": {"tasks": (2, 4), "methods": SOME, "rounds": 5, "width": 64, "rows": 64},
    "quick": {"tasks": (2, 4, 8, 16, 32), "methods": QUICK, "rounds": 3, "width": 512, "rows": 256},
    "paper": {"tasks": (2, 4, 8, 16, 32, 64), "methods": ALL, "rounds": 15, "width": 512, "rows": 256},
}


def steps(work: Workload, methods: Sequence[str]) -> dict[str, Step]:
    """Both floors, then each method. Raises ValueError for an unknown method."""
    return floors(work) | {name: ours(work, name) for name in methods}


def measure(
    tasks: Sequence[int],
    methods: Sequence[str],
    *,
    rounds: int = 5,
    width: int = 512,
    rows: int = 256,
    device: str = "cpu",
) -> pd.DataFrame:
    """Time and peak memory of a step for each method and T: one line each, both floors among them.

    `ms`, `x_plain` and `x_floor` as in `turns`, after a first turn that warms up; `mib`: peak of memory above model
    and batch, in MiB, in that turn. CPU: one thread. Raises ValueError for rounds < 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds: must be at least 1, found {rounds}")
    found: list[dict[str, Any]] = []
    with one_thread():
        for T in tasks:
            work = net(T, width, rows, device)
            if device.startswith("cuda"):  # libraries take their workspaces at the first call
                for step in steps(work, methods).values():
                    step()
                    work.clear()
            each, memory = steps(work, methods), {}
            for name, step in each.items():  # first calls: what a method keeps from step to step is counted
                memory[name] = peak(step, device) / 2**20
                work.clear()
            for line in turns(work, each, least=rounds, device=device):
                found.append({"method": (name := line.pop("row")), "T": T, **line, "mib": memory[name]})
    return pd.DataFrame(found)


def growth(table: pd.DataFrame) -> pd.Series:
    """Exponent b of time ~ T^b per method: least squares of the logarithms over all T.

    >>> round(growth(pd.DataFrame({"method": ["a", "a"], "T": [2, 8], "ms": [1.0, 4.0]}))["a"].item(), 6)
    1.0
    """
    rows = table.groupby("method", sort=False)
    return pd.Series({name: np.polyfit(np.log(own["T"]), np.log(own["ms"]), 1)[0] for name, own in rows})


def recorded(device: str = "cpu") -> pd.DataFrame | None:
    """Rows of `python -m benchmarks.step` as it was last run on its workloads; None where it was not."""
    path = root() / "benchmarks" / "results" / f"step_{device}.json"
    return pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.is_file() else None


@dataclass
class CostStudy:
    """A run of `measure` (`rows`): `figure()` and `table` as shown, `workloads()` of the benchmarks."""

    facts: dict[str, Any]
    rows: pd.DataFrame
    past: pd.DataFrame | None

    @property
    def how(self) -> str:
        rounds, device, rows, width = (self.facts["config"][name] for name in ("rounds", "device", "rows", "width"))
        return (
            f"{rounds} interleaved rounds, {'one CPU thread' if device == 'cpu' else 'CUDA'}, batch of {rows}, trunk "
            f"of two layers {width} x {width}. Measured: another run gives other times; those of this run are in the "
            "side-car"
        )

    def figure(self) -> Figure:
        """Time (ratio to one backward) and peak memory (MiB) against T, logarithmic, with one legend beside both."""
        fig, axes = style.subplots(1, 2, height=3.0)
        for ax, column, label in zip(
            axes[0], ("x_plain", "mib"), ("time / one backward", "peak memory [MiB]"), strict=True
        ):
            for place, (name, rows) in enumerate(self.rows.groupby("method", sort=False)):
                if name in (PLAIN, FLOOR):
                    dash = "-" if name == PLAIN else "--"
                    ax.plot(rows["T"], rows[column], dash, color="0.7", lw=3, zorder=1, label=name)
                else:
                    text, colour, marker = style.look(str(name))
                    dash = ("-", "--", ":", "-.")[place % 4]
                    ax.plot(rows["T"], rows[column], dash, color=colour, marker=marker, mfc="none", ms=4.5, label=text)
            ax.set(xscale="log", yscale="log", xlabel="tasks $T$", ylabel=label)
            ticks = sorted(self.rows["T"].unique())
            ax.set_xticks(ticks, [str(t) for t in ticks])
            ax.minorticks_off()
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", handlelength=2.8)
        return captioned(
            fig,
            "Time of a step as a multiple of one backward of the summed losses (left) and peak memory above the "
            f"model's own (right) against the number of tasks T; grey: the floors. {self.how}",
        )

    @property
    def table(self) -> pd.DataFrame:
        """A line per method, a column per T: "x one backward (x T backwards), MiB"; and how time grows."""
        rows = self.rows
        text = [f"{a:.2f} ({b:.2f}), {m:.1f}" for a, b, m in rows[["x_plain", "x_floor", "mib"]].to_numpy()]
        wide = rows.assign(T=[f"T = {T}" for T in rows["T"]], text=text)
        wide = wide.pivot(index="method", columns="T", values="text")
        wide = wide.loc[rows["method"].unique(), [f"T = {T}" for T in rows["T"].unique()]]
        said = (
            "Time of a step as a multiple of one backward (of T backwards), peak memory in MiB; growth: exponent b of "
            f"time ~ T^b. {self.how}"
        )
        return captioned(wide.assign(growth=growth(rows).map("T^{:.2f}".format)), said, wide=True)

    def workloads(self) -> pd.DataFrame | None:
        """What the benchmarks last wrote: a line per row, a column per workload; None where nothing is shown."""
        if self.past is None:
            return None
        text = [f"{a:.2f} ({b:.2f})" for a, b in self.past[["x_plain", "x_floor"]].to_numpy()]
        cells = self.past.assign(text=text).pivot(index="row", columns="workload", values="text")
        return captioned(
            cells.loc[self.past["row"].unique()].rename_axis(""),
            "Time of a step on each workload (f: first layer folded) as a multiple of one backward "
            "(of T backwards), from benchmarks/results. Measured: another run gives other times",
            data="noise in the workloads' shapes",
            n=f"{self.past['rounds'].min()} or more rounds",
            wide=True,
            config={"command": "python -m benchmarks.step"},
        )

    def answer(self) -> str:
        """Which methods grow clearly slower than T backwards and which do not, and who takes most memory."""
        T = self.rows["T"].max()
        largest, b = self.rows[self.rows["T"] == T].set_index("method"), growth(self.rows)
        slow = b.drop([PLAIN, FLOOR]) <= 0.75 * b[FLOOR]
        said = []
        for text, names in {"clearly slower than T backwards": slow, "about as T backwards": ~slow}.items():
            if names.any():
                part = largest.loc[slow.index[names]]
                x, y = ([part[k].min(), part[k].max()] for k in ("x_plain", "x_floor"))
                said.append(
                    f"Cost grows {text}: {', '.join(part.index)}; at T = {T} a step takes {x[0]:.1f} to {x[1]:.1f} "
                    f"times one backward, {y[0]:.2f} to {y[1]:.2f} times T backwards."
                )
        said.append(
            f"Most memory at T = {T}: {largest['mib'].idxmax()}, {largest['mib'].max():.1f} MiB above the model's own; "
            f"one backward: {largest.loc[PLAIN, 'mib']:.1f} MiB."
        )
        if self.facts["scale"] == "smoke":
            said.append("Smoke scale: a tiny net, where fixed costs decide; take no number from here.")
        return "\n".join(said)


def study(scale: str, device: str = "cpu") -> CostStudy:
    """Measure at `scale` on `device`; scale "paper" also shows the benchmarks' workloads."""
    setting = SETTINGS[known_scale(scale)]
    if (kind := device_type(device)) != "cpu" and not (kind == "cuda" and torch.cuda.is_available()):
        raise RunError(f"device: must be cpu, or cuda where there is one, found {device!r} and no such device here")
    rows = measure(**setting, device=device)
    config = plain({"device": device, **setting, "rows_measured": rows.to_dict("records")})
    facts = {"scale": scale, "data": "noise", "synthetic": True, "n": f"{setting['rounds']} rounds"}
    facts |= {"notebook": "11_cost", "config": config}
    return CostStudy(facts, rows, recorded(device) if scale == "paper" else None)
