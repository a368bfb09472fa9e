"""What a run tells: its outcomes on the terminal, and the verdicts that finished notebooks left."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from mtl.cli.plan import SCALES, executed, read_stamp
from mtl.errors import DataError
from mtl.files import root


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


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """The lines that a notebook left, each once, in their order."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in dict.fromkeys(lines)]


def clock_text(seconds: float) -> str:
    """
    >>> clock_text(4.2), clock_text(125)
    ('4.2 s', '2 min 05 s')
    """
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def verdicts() -> dict[str, dict[str, Any]]:
    """Claim id -> verdict of the finished notebook of the largest scale, the latest of these; with scale and time."""
    stamps = [stamp for path in executed("").glob("*.json") if (stamp := read_stamp(path))]
    found: dict[str, dict[str, Any]] = {}
    for stamp in sorted(stamps, key=lambda s: (SCALES.index(s["scale"]), s["finished"])):
        where = {key: stamp[key] for key in ("scale", "notebook", "finished")}
        found |= {line["claim"]: where | line for line in stamp["manifest"] if line["kind"] == "verdict"}
    return found


def summary(outcomes: Sequence[Outcome], console: Console, wall: float) -> None:
    """What ran, how long, what it made, which verdicts, which embedded defaults, what failed."""
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
        for line in found:
            console.print(f"  {line['claim']}: {line['verdict']} ({line['evidence']})", **plain)
    used: dict[str, set[str]] = {}
    for line in lines:
        if line["kind"] == "default":
            used.setdefault(line["name"], set()).add(line["used_by"])
    if used:
        console.print("\nEmbedded defaults used, because the data set itself was not found", style="bold")
    for name, where in sorted(used.items()):
        console.print(f"  {name} (in {', '.join(sorted(where))})", **plain)
    for one in outcomes:
        if one.status == "FAILED":
            console.print(f"\n{one.name} FAILED in {one.error}", **plain)
    made = Counter(line["kind"] for line in lines)
    console.print(
        f"\n{sum(one.ok for one in outcomes)} of {len(outcomes)} notebooks, {made['figure']} figures, "
        f"{made['table']} tables, {clock_text(wall)}. Figures: figures/, tables: paper/generated/.",
        highlight=False,
        soft_wrap=True,
    )


def claims() -> list[dict[str, Any]]:
    """The entries of paper/claims.yml, in their order. DataError where the file is missing or not as it should be."""
    path = root() / "paper" / "claims.yml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as missing:
        raise DataError(f"paper/claims.yml is not in {root()}; run this from a checkout or set MTL_ROOT") from missing
    except yaml.YAMLError as broken:
        raise DataError(f"paper/claims.yml is not YAML: {' '.join(str(broken).split())}") from broken
    fields = {"id", "paper", "section", "sentence", "test", "figure"}
    for number, claim in enumerate(found, start=1):
        if set(claim) - {"tests"} != fields:
            raise DataError(
                f"paper/claims.yml: entry {number} needs {', '.join(sorted(fields))}, found {', '.join(sorted(claim))}"
            )
    return list(found)


def claim_rows() -> list[tuple[str, str, str, str, str, str]]:
    """(id, paper, sentence, verdict, scale, figure) of each claim; verdict "not run" where no run reached it."""
    reached = verdicts()
    rows = []
    for claim in claims():
        row = reached.pop(claim["id"], {"verdict": "not run", "scale": "–", "figure": None})
        figure = row["figure"] or claim["figure"]
        rows.append((claim["id"], claim["paper"], claim["sentence"], row["verdict"], row["scale"], figure))
    for name, row in reached.items():
        rows.append((name, "–", "(not in paper/claims.yml)", row["verdict"], row["scale"], row["figure"] or "–"))
    return rows


CLAIM_COLUMNS = ("claim", "paper", "what it says", "verdict", "scale", "figure or table")


def claims_table() -> Table:
    """The claims for the terminal."""
    table = Table(*CLAIM_COLUMNS, box=None, pad_edge=False)
    for row in claim_rows():
        table.add_row(*row)
    return table


def claims_markdown() -> str:
    """The claims as the README shows them."""
    lines = [CLAIM_COLUMNS, ("---",) * len(CLAIM_COLUMNS), *claim_rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
