"""A reader can go from each committed figure and table to the rows and the commit that made it.

Committed ones only, as the last commit has them: what `make figures` makes here is no published result.
"""

import json
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=60)
    return done.stdout if done.returncode == 0 else ""


COMMITTED = frozenset(git("ls-tree", "-r", "--name-only", "HEAD").splitlines())
CARDS = sorted(
    name for name in COMMITTED if name.endswith(".json") and name.startswith(("figures/", "paper/generated/"))
)


@lru_cache(maxsize=1)
def keys() -> set[str]:
    names = [name for name in COMMITTED if name.startswith("data/ledger/") and name.endswith(".jsonl")]
    return {json.loads(line)["key"] for name in names for line in git("show", f"HEAD:{name}").splitlines()}


def test_claims_name_rows_that_are_there() -> None:
    """Of a combined row (STL) the runs behind it: `mtl row KEY` shows each."""
    found = json.loads(git("show", "HEAD:paper/verdicts.json"))["findings"] if COMMITTED else []
    assert not {key for one in found for key in one["rows"]} - (keys() if COMMITTED else set())


def test_there_are_cards() -> None:
    if not COMMITTED:
        pytest.skip("no checkout: nothing here says what is published")
    assert len(CARDS) > 20


@pytest.mark.parametrize("name", CARDS)
def test_card_names_its_rows_its_commit_and_its_scale(name: str) -> None:
    card: dict[str, Any] = json.loads(git("show", f"HEAD:{name}"))
    rows = {key for row in card["rows"] for key in (row if isinstance(row, list) else [row])}
    assert rows <= keys(), f"{len(rows - keys())} of {len(rows)} rows are not in data/ledger"
    assert card["provenance"]["git"] and card["provenance"]["dirty"] is False
    assert (
        card["scale"] in ("quick", "study", "gpu", "paper")
        and card["scale"] in card["caption"]
        and str(card["n"]) in card["caption"]
    )
    made = (".pdf", ".png") if card["kind"] == "figure" else (".tex", ".md")
    assert all(name.removesuffix(".json") + end in COMMITTED for end in made)
