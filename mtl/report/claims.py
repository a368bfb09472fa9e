"""The papers' claims, and the verdicts that finished notebooks left."""

from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from rich.table import Table

from mtl.errors import DataError
from mtl.files import markdown, root
from mtl.scales import SCALES

COLUMNS = ("claim", "paper", "what it says", "verdict", "scale", "figure or table")
FIELDS = {"id", "paper", "section", "sentence", "test", "figure"}
Stamp = Mapping[str, Any]  # of a finished notebook: its name, scale, when, and the lines that it reported


def verdicts(stamps: Iterable[Stamp]) -> dict[str, dict[str, Any]]:
    """Claim id -> verdict of the finished notebook of the largest scale, the latest of these; with scale and time."""
    found: dict[str, dict[str, Any]] = {}
    for stamp in sorted(stamps, key=lambda s: (list(SCALES).index(s["scale"]), s["finished"])):
        where = {key: stamp[key] for key in ("scale", "notebook", "finished")}
        found |= {line["claim"]: where | line for line in stamp["manifest"] if line["kind"] == "verdict"}
    return found


def claims() -> list[dict[str, Any]]:
    """The entries of paper/claims.yml, in their order. DataError where the file is missing or not as it should be."""
    path = root() / "paper" / "claims.yml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as missing:
        raise DataError(f"paper/claims.yml is not in {root()}; run this from a checkout or set MTL_ROOT") from missing
    except (yaml.YAMLError, UnicodeError, RecursionError) as broken:
        raise DataError(f"paper/claims.yml is not YAML: {' '.join(str(broken).split())}") from broken
    if not isinstance(found, list):
        raise DataError(f"paper/claims.yml: must be a list of claims, found {type(found).__name__}")
    for number, claim in enumerate(found, start=1):
        named = claim if isinstance(claim, dict) else {}
        words = all(isinstance(named.get(field), str) for field in FIELDS)
        if not words or set(named) - {"tests"} != FIELDS or not isinstance(named.get("tests", []), list):
            needs = f"needs {', '.join(sorted(FIELDS))} as text and may have a list of tests"
            raise DataError(f"paper/claims.yml: entry {number} {needs}, found {str(claim)[:100]}")
    return found


def claim_rows(stamps: Iterable[Stamp]) -> list[tuple[str, ...]]:
    """The cells of COLUMNS for each claim; verdict "not run" where no run reached it."""
    reached = verdicts(stamps)
    known = {claim["id"]: claim for claim in claims()}
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys([*known, *reached]):
        claim = known.get(name, {"paper": "–", "sentence": "(not in paper/claims.yml)", "figure": "–"})
        row = reached.get(name, {"verdict": "not run", "scale": "–", "figure": None})
        figure = row["figure"] or claim["figure"]
        rows.append((name, claim["paper"], claim["sentence"], row["verdict"], row["scale"], figure))
    return rows


def claims_table(stamps: Iterable[Stamp]) -> Table:
    """The claims for the terminal."""
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for row in claim_rows(stamps):
        table.add_row(*row)
    return table


def claims_markdown(stamps: Iterable[Stamp]) -> str:
    """The claims as the README shows them."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(map(markdown, row) for row in claim_rows(stamps))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
