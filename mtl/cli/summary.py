"""What became of the notebooks of a run, on the terminal."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from textwrap import shorten
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass
class Outcome:
    """What became of one notebook; `status` is done, unchanged, FAILED or not run."""

    name: str
    status: str
    seconds: float = 0.0
    manifest: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    @property
    def ok(self) -> bool:
        return self.status in ("done", "unchanged")

    def __str__(self) -> str:
        clock = f" in {clock_text(self.seconds)}" if self.status != "unchanged" and self.seconds else ""
        return f"{self.name}: {self.status}{clock}{self.error and f': {self.error}'}"


def clock_text(seconds: float) -> str:
    """
    >>> clock_text(4.2), clock_text(125)
    ('4.2 s', '2 min 05 s')
    """
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def summary(outcomes: Sequence[Outcome], console: Console, wall: float, below: str = "") -> None:
    """What ran, how long, what it made, which verdicts, which embedded defaults, what failed.

    `below`: the folder of figures and tables where they do not lie at the top."""
    plain: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
    table = Table("notebook", "status", "time", "figures", "tables", "verdicts", box=None, pad_edge=False)
    for one in outcomes:
        kinds = Counter(line["kind"] for line in one.manifest)
        clock = clock_text(one.seconds) if one.seconds else "–"
        clock = f"({clock})" if one.status == "unchanged" else clock  # of the run that made it
        table.add_row(one.name, one.status, clock, *(str(kinds[kind]) for kind in ("figure", "table", "verdict")))
    console.print()
    console.print(table)
    lines = [line for one in outcomes for line in one.manifest]
    if found := [line for line in lines if line["kind"] == "verdict"]:
        console.print("\nVerdicts", style="bold")
        for line in {line["claim"]: line for line in found}.values():
            why = shorten(line["evidence"], 80, placeholder=" ...")
            console.print(f"  {line['claim']}: {line['verdict']} ({why})", **plain)
        console.print("  mtl claims --why CLAIM says why", **plain)
    if used := sorted({(line["name"], line["used_by"]) for line in lines if line["kind"] == "default"}):
        console.print("\nEmbedded defaults used, because the data set itself was not found", style="bold")
    for name, group in groupby(used, key=lambda pair: pair[0]):
        console.print(f"  {name} (in {', '.join(where for _, where in group)})", **plain)
    for one in outcomes:
        if one.status == "FAILED":
            console.print(f"\n{one.name} FAILED in {one.error}", **plain)
    made = Counter(line["kind"] for line in lines)
    said = f"\n{sum(one.ok for one in outcomes)} of {len(outcomes)} notebooks, {made['figure']} figures, "
    said += f"{made['table']} tables, {clock_text(wall)}. Figures: figures/{below}, tables: paper/generated/{below}."
    console.print(said, highlight=False, soft_wrap=True)
