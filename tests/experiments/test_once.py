"""mtl.experiments.once: a row is made once, anew where older sources made it here, and names what it depends on."""

from pathlib import Path
from typing import Any

import pytest

from mtl.experiments.gap import dose, rates, runs
from mtl.experiments.once import once
from mtl.ledger import Ledger
from mtl.methods import METHODS
from mtl.sources import closure


def test_a_row_is_made_anew_only_where_older_sources_made_it_here(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"x": len(made)}

    def row(book: Ledger) -> Any:
        return once(book, {"study": "once"}, "data", make, ["mtl.solvers.kl"], source="none")

    book = Ledger(tmp_path / "book")
    assert row(book) == row(book) and len(made) == 1
    first = row(book)
    older = {**first, "provenance": first["provenance"] | {"sources": "older"}}
    book.append(older)
    assert row(book)["metrics"] == {"x": 2}
    Ledger(tmp_path / "other").append(older)
    published = tmp_path / "published.jsonl"
    published.write_bytes((tmp_path / "other" / f"{first['key']}.json").read_bytes())
    assert row(Ledger(published))["metrics"] == first["metrics"] and len(made) == 2, "published ones are taken"


@pytest.mark.parametrize("study", ["gap", "rates", "dose"])
def test_gap_rows_name_the_methods_that_made_them_and_nothing_of_the_report(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTL_LEDGER", str(tmp_path))
    book = Ledger(tmp_path / "gap")
    for module in (runs, rates):
        monkeypatch.setattr(module, "run", lambda *_: {"finite": True})
    if study == "gap":
        rows = runs.study("smoke", ["digits"], book)
    elif study == "rates":
        rows = rates.study("smoke").rows
    else:
        dose.study("smoke", book)
        rows = book.local()
    for row in rows:
        found = closure(row["provenance"]["modules"])
        assert not [name for name in found if name.startswith("mtl.report")]
        assert row["config"]["study"] in ("gap", "rates")
        units = [unit.split()[0] for unit in row["config"]["units"]]
        assert {METHODS[unit].__module__ for unit in units if unit in METHODS} <= set(found), units
