"""A reader can go from each committed figure and table to the rows and the commit that made it."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CARDS = sorted([*(ROOT / "figures").glob("*.json"), *(ROOT / "paper" / "generated").glob("*.json")])


@pytest.fixture(scope="module")
def keys() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "data" / "ledger").glob("*.jsonl"), (ROOT / "data" / "ledger" / "figures").glob("*.jsonl"):
        for row in (json.loads(line) for file in path for line in file.read_text(encoding="utf-8").splitlines()):
            found |= {row["key"]}
    return found


def test_there_are_cards() -> None:
    assert len(CARDS) > 20


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_card_names_its_rows_its_commit_and_its_scale(path: Path, keys: set[str]) -> None:
    card = json.loads(path.read_text(encoding="utf-8"))
    rows = {key for row in card["rows"] for key in (row if isinstance(row, list) else [row])}
    assert rows <= keys, f"{len(rows - keys)} of {len(rows)} rows are not in data/ledger"
    assert card["provenance"]["git"] and card["provenance"]["dirty"] is False
    assert (
        card["scale"] in ("quick", "study", "paper")
        and card["scale"] in card["caption"]
        and str(card["n"]) in card["caption"]
    )
    made = [path.with_suffix(end) for end in ((".pdf", ".png") if card["kind"] == "figure" else (".tex", ".md"))]
    assert all(file.is_file() for file in made)
