"""mtl.experiments.gap.rates: equal rates and lower variances are found where they are, and batches see less."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtl.experiments.gap import rates
from mtl.experiments.gap.data import condition, draw
from mtl.experiments.gap.runs import recorded
from mtl.files import root
from mtl.ledger import Ledger
from mtl.report.claims import Finding, compare, decide

SHORT = rates.Setting("digits", "shared-bottom", True, seeds=2, steps=6)


def planted(ratio: float, variance: float, readings: tuple[str, ...] = tuple(rates.READINGS)) -> list[dict[str, Any]]:
    """Rows of the design whose `readings` have `ratio` times MGDA's log ratio and `variance` times its variance."""
    rng, rows = np.random.default_rng(0), []
    for cell in rates.design("paper"):
        noise = np.exp(0.02 * rng.standard_normal((3, 8, len(rates.UNITS))))
        moved = np.array([unit in readings for unit in rates.UNITS])
        log, size = (np.where(moved, x, 1.0) * own for x, own in zip((ratio, variance), noise, strict=False))
        level = {"0.5": size.tolist(), "0.3": size.tolist(), "end": size.tolist()}
        metrics = {
            "ratio": {"end": log.tolist()},
            "normalised": level,
            "plain": level,
            "q": {"end": (0.3 * log).tolist()},
        }
        rows.append({"config": {"condition": cell.condition}, "metrics": metrics})
    return rows


def literal(word: float) -> Finding:
    noise = word + 1e-3 * np.arange(32)
    return decide("emtl-lowers-variance", "parts", [compare(f"q = {q:g}", noise, rates.D) for q in rates.LEVELS])


@pytest.mark.parametrize(("ratio", "word"), [(0.8, "reproduced"), (1.0, "practically equal"), (1.2, "contradicted")])
def test_equal_rates_are_found_and_unequal_ones_are_not(ratio: float, word: str) -> None:
    (found,) = rates.equitable(planted(ratio, 1.0))
    assert (found.claim, found.word, found.n) == ("emtl-equitable", word, 32)
    (mixed,) = rates.equitable(planted(ratio, 1.0, ("emtl",)))
    assert mixed.word == (word if ratio == 1.0 else "depends on the reading")
    assert rates.equitable([]) == []


def test_runs_that_got_nowhere_decide_nothing() -> None:
    rows = planted(0.8, 1.0)
    for row in rows:
        row["metrics"]["q"]["end"] = np.ones((8, 5)).tolist()
    assert rates.equitable(rows)[0].word == "inconclusive (assay)"
    assert rates.equitable(planted(0.8, 1.0)[:4])[0].word == "not tested", "8 clusters of 32"


def test_a_planted_variance_gets_its_word_in_every_reading() -> None:
    lowers = rates.lowered(planted(1.0, 0.8), literal(0.2))
    assert lowers.word == "reproduced"
    assert {part.name for part in lowers.beside} >= {"raw: q = 0.5", "Definition 1, q = 0.3"}
    assert rates.lowered(planted(1.0, 1.25, ("emtl (raw)",)), literal(0.2)).word == "depends on the reading"
    assert rates.lowered([], literal(0.2)) == literal(0.2)


def test_pairs_that_miss_the_level_fail_the_gate_of_their_reading() -> None:
    rows = planted(1.0, 0.8)
    unit = rates.UNITS.index("emtl (raw)")
    for row in rows:
        row["metrics"]["normalised"] = {
            at: [list(line) for line in t] for at, t in row["metrics"]["normalised"].items()
        }
        for line in row["metrics"]["normalised"]["0.3"][:2]:
            line[unit] = None
    assert rates.pairs(rows, "emtl").passed and not rates.pairs(rows, "emtl (raw)").passed
    assert "(25 % of pairs lost)" in rates.pairs(rows, "emtl (raw)").said
    for line in rows[0]["metrics"]["normalised"]["0.3"]:
        line[:] = [None] * len(line)
    assert "compared on 15 of 16 strata" in rates.pairs(rows, "emtl").said
    assert len(rates.leads(rows[:1], "normalised", "0.3", "emtl")) == 0, "a stratum that runs do not bring there"


def test_a_run_is_that_of_the_registered_study() -> None:
    """Same nets, draws and methods: what MGDA and EMTL had there at the first crossing they have here."""
    rows = recorded("paper", Ledger(root() / "data" / "ledger" / "gap.jsonl"))
    wanted = {"kind": "observational", "condition": "digits", "arch": "shared-bottom", "full": True, "n": 100}
    (row,) = [r for r in rows if wanted.items() <= r["config"].items()]
    there = np.array(row["metrics"]["rrv"]["0.5"], dtype=float)[:1]
    here = np.array(rates.run(replace(SHORT, seeds=1, steps=36))["normalised"]["0.5"], dtype=float)
    for mine, unit in enumerate(("mgda", "emtl .3")):
        np.testing.assert_allclose(here[:, mine], there[:, row["config"]["units"].index(unit)], rtol=1e-3)
    assert not np.allclose(here[:, 1], here[:, 2], rtol=1e-3), "readings differ"


def test_rows_are_kept_and_the_declared_design_is_shown_once_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTL_LEDGER", str(tmp_path))
    monkeypatch.setattr(rates, "design", lambda scale, conditions=(): [SHORT])
    first = rates.study("smoke")
    monkeypatch.setattr(rates, "run", lambda cell: pytest.fail("ran again"))
    assert [row["key"] for row in rates.study("smoke").rows] == [row["key"] for row in first.rows]
    assert rates.study("quick").scale == "paper"
    assert first.table.shape == (5, 8) and first.figure().axes
    monkeypatch.setattr(rates, "design", lambda scale, conditions=(): [SHORT, replace(SHORT, n=50)])
    assert rates.published(Ledger(tmp_path / "gap.jsonl")) == []


def test_the_design_is_the_declared_one() -> None:
    cells = rates.design("paper")
    assert len(cells) == 16 and {(c.n, c.seeds, c.steps) for c in cells} == {(100, 8, 600)}


def test_a_small_batch_sees_a_smaller_rate_by_what_noise_makes_of_it() -> None:
    """|g| of a batch is too large by its noise, so L/|g| is too small, more so late in training."""
    table = rates.seen(batches=40)
    mean = table.groupby(["step", "batch"])[["seen", "noise"]].mean()
    assert (mean["seen"].unstack("batch").diff(axis=1).iloc[:, 1:] > 0).all(axis=None), "grows with the batch"
    assert (mean["seen"] < 0.97).all() and mean.loc[(300, 32), "seen"] < 0.5
    early = mean.loc[[0, 30]]
    assert ((early["seen"] / early["noise"] - 1).abs() < 0.12).all()


def test_a_batch_of_every_row_sees_the_rate_itself() -> None:
    sample = draw(condition("digits"), 20, [0])
    nets = rates.Nets("shared-bottom", 64, 1, 5, 1, "cpu")
    whole = rates.rates_of(nets, sample.losses(nets(sample.x), sample.y))[:, 0]
    assert torch.allclose(rates._batch_rates(nets, sample, torch.arange(20)[None]), whole, rtol=1e-5)
