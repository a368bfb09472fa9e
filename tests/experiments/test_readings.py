"""mtl.experiments.readings: the combinations are what they say, EMTL's own among them are EMTL, rows are kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtl.experiments import readings
from mtl.ledger import Ledger
from mtl.methods import method


def steps(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    G = torch.randn(count, 3, 6, generator=g, dtype=torch.float64) * torch.tensor([0.1, 1.0, 3.0])[:, None]
    return [(torch.rand(3, generator=g, dtype=torch.float64) + 0.1, one @ one.T) for one in G]


@pytest.mark.parametrize("base", ["mgda", "nash"])
@pytest.mark.parametrize("merge", readings.MERGES)
@pytest.mark.parametrize(("payoff", "rate"), [("w L/|g|", "weighted"), ("L/|g|", "raw")])
def test_emtls_own_readings_are_emtl(payoff: str, rate: str, merge: str, base: str) -> None:
    ours, theirs = readings.made((payoff, merge, base), 3), method("emtl", 3, rate=rate, combine=merge, base=base)
    for losses, gram in steps():
        torch.testing.assert_close(ours.weights(losses, gram), theirs.weights(losses, gram))


@pytest.mark.parametrize(("payoff", "best"), [("L", 0), ("|g|", 2), ("L/|g|", 1)])
def test_the_player_follows_its_payoff(payoff: str, best: int) -> None:
    losses, sizes = torch.tensor([4.0, 2.0, 3.0], dtype=torch.float64), torch.tensor([2.0, 0.1, 9.0]).double()
    one = readings.made((payoff, "literal", "ls"), 3)
    w = one.weights(losses, torch.diag(sizes.square()))
    assert int(w.argmax()) == best and float(w.sum()) == pytest.approx(1)


def test_the_base_alone_and_the_players_share() -> None:
    losses, gram = steps()[0]
    for base, own in (("mgda", method("mgda", 3)), ("nash", method("nash", 3))):
        alone = readings.made((readings.ALONE, "literal", base), 3)
        torch.testing.assert_close(alone.weights(losses, gram), own.weights(losses, gram))
        assert alone.shares == [0.0]
    torch.testing.assert_close(readings.Even(3).weights(losses, gram), torch.full_like(losses, 1 / 3))
    for merge in readings.MERGES:
        one = readings.made(("L", merge, "mgda"), 3)
        total = one.weights(losses, gram).sum()
        w = method("mgda", 3).weights(losses, gram)
        assert one.shares[0] == pytest.approx(float(1 - 0.5 * w.sum() / total)), merge


def test_all_thirty_six_and_their_bases_are_declared() -> None:
    every = list(readings.combinations())
    assert len(set(every)) == 39 and sum(payoff != readings.ALONE for payoff, _, _ in every) == 36
    cells = readings.READINGS.wanted("study")
    assert len(cells) == 39 * 3 * 3 and {cell["factor"] for cell in cells} == {0.01, 1.0, 100.0}
    few = readings.READINGS.wanted("study", [11], ["L · product · ls"])
    assert {(cell["payoff"], cell["base"], cell["seed"]) for cell in few} == {("L", "ls", 11)} and len(few) == 3
    with pytest.raises(ValueError, match="readings runs one by one on the CPU, found 2"):
        readings.READINGS.run("smoke", jobs=2)


def planted(base_fall: dict[str, float]) -> list[dict[str, Any]]:
    rng, rows = np.random.default_rng(0), []
    for cell in readings.READINGS.wanted("study"):
        fall = base_fall[cell["base"]] * (cell["factor"] == 0.01)
        metrics = {"score": 0.96 - fall + 1e-5 * rng.standard_normal(), "share": 0.5}
        rows.append({"config": {**cell, "scale": "study"}, "metrics": metrics, "status": "ok"})
    return rows


def test_the_answer_names_the_choice_that_decides() -> None:
    found = readings.Readings("study", planted({"mgda": 0.03, "nash": 0.0, "ls": 0.02}), "study")  # type: ignore[arg-type]
    assert "It is the base that decides (range 0.0300" in found.answer()
    assert found.effects["choice"][0] == "base" and found.table.shape == (5, 9)
    assert found.table.loc["L", "nash, literal"] == pytest.approx(0, abs=1e-4)


def test_rows_are_kept_and_the_study_is_shown_once_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_DATA", str(tmp_path))  # digits stand in
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    book = Ledger(tmp_path / "readings.jsonl")
    first = readings.study("smoke", book)
    assert len(first.frame) == 1 and "EXPLORATORY" in first.table.attrs["caption"] and first.facts["n"].startswith("1")
    monkeypatch.setattr(readings, "fit", lambda *a, **k: pytest.fail("ran again"))
    assert [row["key"] for row in readings.study("smoke", book).rows] == [row["key"] for row in first.rows]
    heard: list[str] = []
    later = [10, 11]
    assert readings.READINGS.run("smoke", later, ledger=book, deadline=0, progress=lambda e: heard.append(e["event"]))
    assert heard == ["found", "found", "left", "left"]
    kept = [
        row | {"config": row["config"] | {"scale": "study"}, "key": f"{i:016d}"} for i, row in enumerate(first.rows)
    ]
    for row in kept:
        book.append(row)  # type: ignore[arg-type]
    monkeypatch.setattr(
        readings.READINGS.__class__, "wanted", lambda self, scale, *a: [r["config"] for r in first.rows]
    )
    assert readings.study("quick", book).scale == "study"
