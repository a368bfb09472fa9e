"""Table 1 on equal terms: every method at its published setting chooses among the same rates; the rows that decide."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import pandas as pd
from matplotlib.figure import Figure

from mtl.experiments.base import Entry, Experiment, Trials
from mtl.experiments.beside import differences
from mtl.experiments.table1 import METRICS, Table1
from mtl.experiments.table1.grids import BACKBONES, BUDGET, split_line
from mtl.experiments.table1.says import READINGS, D
from mtl.report import captioned, plots, style
from mtl.report.claims import Part, compare
from mtl.runs.cells import Point


class EqualTerms(Table1):
    """Differences are what it shows: of each line to its backbone's LS, and of every pair of lines."""

    @property
    def name(self) -> str:
        data = "Census" if self.experiment.problem == "census" else "KuaiRand"
        other = f", {self.epochs} epochs" if self.epochs != BUDGET[self.scale].epochs else ""
        return f"{data}, {len(self.tasks)} tasks, equal terms{other}"

    @property
    def epochs(self) -> int:
        return self.experiment.budget[self.scale].epochs

    @cached_property
    def table(self) -> pd.DataFrame:
        table = self._results(primary="score")
        table["rate"] = [self.rate(line) for line in table.index]
        said = (
            f"{self.name}, all rows, at most {self.epochs} epochs: {METRICS}; rate: learning rate that validation "
            "chose (seeds 100 and 101, four epochs), † at the edge of the grid; A/A: LS from another initialisation; "
            "STL stops at each task's own best epoch, a shared net at one; the paper has no such data"
        )
        return captioned(table.rename(index=lambda line: style.look(line)[0]), said)

    def rate(self, line: str) -> str:
        """The learning rates that were chosen for a line, the two tasks' of STL."""
        label, backbone = split_line(line)
        trials = self.trials
        if trials is None:
            return "–"
        rates = [point["lr"] for point in self.experiment.grids(self.scale)[label.removesuffix(" A/A")]]
        own = trials[trials["chosen"] & (trials["method"] == label.removesuffix(" A/A"))]
        if "model" in own and backbone:  # where there are several
            own = own[own["model"].map(BACKBONES).eq(backbone)]
        found = [float(rate) for rate in own["point"].str.extract(r"lr=([\d.e-]+)")[0]]
        last = found[-1:] if label.startswith("scalarization") else found
        return " / ".join(f"{r:g}" + "†" * (r in (rates[0], rates[-1])) for r in dict.fromkeys(last))

    @cached_property
    def pairs(self) -> Mapping[str, list[list[Part | None]]]:
        """Per backbone, every line minus every other in the mean AUC of the tasks, over common seeds."""
        return {
            name: [
                [
                    None if a == b else compare(f"{a} - {b}", differences(self.frame, "score", a, b, "line"), D)
                    for b in lines
                ]
                for a in lines
            ]
            for name, lines in self.lines.items()
        }

    @cached_property
    def lines(self) -> dict[str, list[str]]:
        """Per backbone its lines, the best mean first; STL is in each, A/A rows in none."""
        means = self.frame.groupby("line")["score"].mean().sort_values(ascending=False)
        return {
            name: [x for x in map(str, means.index) if split_line(x)[1] in ("", name) and not x.endswith("A/A")]
            for name in BACKBONES.values()
            if any(split_line(str(x))[1] == name for x in means.index)
        }

    def figure(self) -> Figure:
        """Each line's lead over its backbone's LS, with the band of what does not matter."""
        fig, axes = style.subplots(1, len(self.lines), height=3.6)
        for ax, (name, lines) in zip(axes[0], self.lines.items(), strict=True):
            base = f"ls ({name})"
            leads = {x: differences(self.frame, "score", x, base, "line") for x in lines if x != base}
            leads[f"ls ({name}) A/A"] = differences(self.frame, "score", f"ls ({name}) A/A", base, "line")
            shown = {split_line(x)[0]: compare(x, lead, D) for x, lead in leads.items()}
            plots.leads(ax, shown, D, f"{name}: mean AUC of the tasks, minus LS")
        said = (
            f"{self.name}: each row minus LS on the same backbone, paired over {len(self.seeds)} seeds, mean and 95 % "
        )
        return captioned(fig, f"{said}interval; band: ±{D}, what the paper's text calls significant")

    def matrix(self) -> Figure:
        """Which lines differ: every pair of a backbone."""
        fig, axes = style.subplots(1, len(self.pairs), height=3.3)
        counts = []
        for ax, (name, pairs) in zip(axes[0], self.pairs.items(), strict=True):
            plots.equivalence(ax, [style.look(split_line(x)[0])[0] for x in self.lines[name]], pairs, name)
            below = [part for i, row in enumerate(pairs) for part in row[:i] if part is not None]
            equal = sum(part.word == "practically equal" for part in below)
            counts.append(f"{name}: {equal} of {len(below)} pairs practically equal")
        said = f"{self.name}: row minus column, mean AUC of the tasks over {len(self.seeds)} seeds; practically equal: "
        return captioned(fig, f"{said}the 95 % interval lies within ±{D}. {'; '.join(counts)}")


TEN = tuple(range(10, 20))
SCALARS: tuple[Point, ...] = tuple({"c": [c, 2.0 - c]} for c in (0.4, 0.8, 1.2, 1.6))
ROWS: tuple[Entry, ...] = (
    ("stl", "stl", {}), ("ls", "ls", {}), ("scalarization", "scalarization", {"c": [1.0, 1.0]}),
    ("rlw", "rlw", {}), ("dwa", "dwa", {}), ("uw", "uw", {}), ("gradnorm", "gradnorm", {}),
    ("bandit", "bandit", {"rho": 0.5}), ("bandit (balanced)", "bandit", {"rho": 0.5, "balance": True}),
    ("mgda", "mgda", {}), ("pcgrad", "pcgrad", {}), ("cagrad", "cagrad", {}), ("imtl-g", "imtl-g", {}),
    ("nash", "nash", {}), ("fairgrad", "fairgrad", {"alpha": 2.0}), ("emtl", "emtl", {}),
    ("emtl (raw)", "emtl", {"rate": "raw"}), ("emtl (frozen norm)", "emtl", {"combine": "frozen_norm"}),
    ("emtl (product)", "emtl", {"combine": "product"}),
)  # fmt: skip
# paper/decision_rule.md declared it before any run.
EQUAL = Experiment(
    name="table1_equal",
    book="table1",
    problem="census",
    fallback="digits",
    notebook="03_table1_recommendation",
    shows=EqualTerms,
    methods=ROWS,
    models=tuple(BACKBONES),
    seeds={"smoke": (0,), "quick": (0,), "study": TEN, "paper": TEN},
    budget=BUDGET,
    trials={s: Trials((100, 101), BUDGET[s], then={"scalarization": SCALARS}) for s in ("study", "paper")},
    twins=("ls",),
    rates=tuple(BUDGET["study"].lr * factor for factor in (0.25, 0.5, 1.0, 2.0)),
    doubled=("stl", "ls", "emtl", "fairgrad"),
    variants={scale: ({"tasks": 2},) for scale in BUDGET},
)  # fmt: skip
# Rule 6: the methods that leave heads raw once more, moving them by their weights as EMTL and its base do.
HEADS = replace(
    EQUAL,
    name="table1_heads",
    methods=tuple(
        (f"{label} (weighted heads)", label, {**own, "heads": "weighted"})
        for label, own in (("pcgrad", {}), ("cagrad", {}), ("imtl-g", {}), ("fairgrad", {"alpha": 2.0}))
    ),
    trials={scale: Trials((100, 101), BUDGET[scale]) for scale in ("study", "paper")},
    twins=(),
    doubled=(),
)
# Twice the epochs moved STL against LS on Census by more than d: from there on once more, for EMTL against STL alone.
SIXTEEN = replace(
    EQUAL,
    name="table1_longer",
    methods=tuple(entry for entry in ROWS if entry[0] in ("stl", "ls", *READINGS)),
    budget={scale: replace(budget, epochs=4 * budget.epochs) for scale, budget in BUDGET.items()},
    doubled=("stl", "ls", "emtl", "emtl (raw)"),
)
# The second data set of the sentences: the same rows, rates and checks, declared with it.
TWENTY = tuple(range(10, 30))
KUAIRAND = replace(
    EQUAL,
    name="table1_kuairand",
    problem="kuairand_click",
    models=("mmoe",),
    seeds={"smoke": (10,), "quick": (10, 11, 12), "study": TWENTY, "paper": TWENTY},
    variants={scale: ({},) for scale in BUDGET},
)
KUAIRAND_HEADS = replace(
    HEADS,
    name="table1_kuairand_heads",
    problem=KUAIRAND.problem,
    models=KUAIRAND.models,
    seeds=KUAIRAND.seeds,
    variants=KUAIRAND.variants,
)


def heads(pairs: Sequence[tuple[Table1, Table1]]) -> tuple[Table1, pd.DataFrame]:
    """EMTL minus each method that leaves heads raw, as published and with heads of equal terms, and what this is of.

    `pairs`: a study beside the rows of its `HEADS`, which have the same seeds and backbones.
    """
    lines = []
    for study, equal in pairs:
        frame = pd.concat([study.frame, equal.frame], ignore_index=True)
        for line in dict.fromkeys(equal.frame["line"]):
            label, backbone = split_line(line)
            name = label.removesuffix(" (weighted heads)")
            rivals = {"as published": f"{name} ({backbone})", "equal heads": line}
            gaps = {
                head: differences(frame, "score", f"emtl ({backbone})", one, "line") for head, one in rivals.items()
            }
            parts = {head: compare(line, gap, D) for head, gap in gaps.items()}
            row = {"data": study.name.partition(",")[0], "network": backbone, "rival": style.look(name)[0]}
            for head, part in parts.items():
                row[head] = (
                    f"{part.value:+.4f} ({part.low:+.4f}, {part.high:+.4f})" if part.n > 2 else f"{part.value:+.4f}"
                )
                row[f"word, {head}"] = part.word
            lines.append({**row, "n": len(gaps["equal heads"])})
    table = pd.DataFrame(lines)
    changed = (table["word, as published"] != table["word, equal heads"]).sum()
    said = (
        "EMTL minus each method whose published rule leaves heads raw, mean AUC of the tasks, paired over seeds, 95 % "
    )
    said += (
        f"interval; equal heads: the rival's heads move by its weights, as EMTL's do. Words that change: {changed} of "
    )
    every = [one for pair in pairs for one in pair]
    return every[0].also(*every[1:]), captioned(table, f"{said}{len(table)} (d = {D})", n="as in its column")
