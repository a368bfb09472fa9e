"""The short form of the campaign in benchmarks/faults.py, with fixed seeds; and that it can find something."""

from pathlib import Path
from typing import Any

import pytest

import mtl
from benchmarks import faults
from mtl.errors import DataError


@pytest.mark.parametrize(("part", "n"), [("api", 100), ("files", 25), ("disk", 2), ("kills", 4), ("commands", 26)])
def test_nothing_is_lost_wrong_or_raw(part: str, n: int) -> None:
    found = faults.campaign(part, n)
    assert found.examples == {} and sum(found.counts.values()) == n


def _raise(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: 1, faults.RIGHT),
        (lambda: 2, faults.OTHER),
        (lambda: mtl.method("nonsense", 2), faults.REFUSED),
        (lambda: _raise(DataError("in a test")), faults.RAW),  # not raised by the package
        (lambda: {}["x"], faults.RAW),
        (lambda: open(Path("/nowhere/a")).read(), faults.REFUSED),  # noqa: PTH123, SIM115
    ],
)  # fmt: skip
def test_an_outcome_is_judged(call: Any, kind: str) -> None:
    assert faults.outcome(call, lambda found: faults.RIGHT if found == 1 else faults.OTHER)[0] == kind


def test_a_reader_that_takes_what_it_finds_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text("0.5 " * 50)

    def careless() -> Any:
        words = path.read_text(errors="replace").split()
        return "", {i: float(word) if word == "0.5" else -1.0 for i, word in enumerate(words)}

    found = faults._read_damaged("files", iter([("careless", faults.Target([path], careless))]), 30, 0)
    assert found.counts[faults.OTHER] and found.counts[faults.LOST]
