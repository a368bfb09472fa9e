"""Table 3: equal terms, what the paper prints, parts of its sentence on constructed rows, the stand-in said so."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mtl.experiments import table3
from mtl.experiments.table3 import EFFECTS, LABELS, PAPER, TABLE3, Table3
from mtl.ledger import Ledger
from mtl.methods import method
from mtl.runs.cells import split


@pytest.mark.parametrize("targets", ["natural", "standardised"])
def test_every_row_tries_as_many_points_at_the_same_learning_rates(targets):
    for label in LABELS:
        own = table3.points(label, "study", targets)
        assert len(own) == 6 == len({str(point) for point in own})
        rates = sorted(split(point, TABLE3.budget["study"])[0].lr for point in own)
        assert rates == [1e-3, 1e-3, 2e-3, 2e-3, 4e-3, 4e-3]
        name = table3.ROWS.get(label, ("scalarization",))[0]
        for point in own:
            method(name, n_tasks=3, **split(point, TABLE3.budget["study"])[1])
        assert "lr" not in table3.points(label, "quick", targets)[0]
    chosen_on = {seed for trials in TABLE3.trials.values() for seed in trials.seeds}
    assert not chosen_on & {seed for seeds in TABLE3.seeds.values() for seed in seeds}
    assert min(seed for seeds in TABLE3.seeds.values() for seed in seeds) == 10


def test_the_papers_rows_and_the_slips_of_its_text():
    rows, said = table3.paper_says()
    assert rows.loc["MMoE + EMTL"].tolist() == ["0.7501", "0.3792", "12.3436"] and rows.loc["DCN"].tolist()[1:] == [
        "–",
        "–",
    ]
    assert said["the printed table says"].tolist() == ["by 0.0012", "-0.0003", "by 0.0104", "by 1.2035"]
    printed = table3.reported("emtl_table3").set_index("method")
    errors = printed[["completion_mse", "watch_mse"]]
    half = (errors.loc["mmoe"] - errors.loc["emtl"]) / errors.loc["mmoe"] / 2
    assert half.tolist() == pytest.approx([EFFECTS["completion/mse"], EFFECTS["watch/mse"]], abs=5e-4)


def study(gains, n=20, noise=1e-4):
    """Rows of LS and EMTL whose metrics differ by so much, in the units of the metrics."""
    draw = np.random.default_rng(0)
    base = {"click/auc": 0.7, "completion/mse": 0.1, "watch/mse": 1700.0}
    lines = []
    for seed in range(n):
        for label, add in (("LS", {}), ("EMTL", gains)):
            values = {k: v + add.get(k, 0.0) + noise * v * draw.normal() for k, v in base.items()}
            lines.append({
                "key": f"{label}{seed}", "fingerprint": "", "label": label, "status": "ok",
                "metrics": values | {"score": 0.5},
                "config": {"method": "ls", "seed": seed, "options": {"targets": "natural"}},
            })  # fmt: skip
    return Table3(TABLE3, "study", lines, "constructed", ("click", "completion", "watch"))


def words(gains, **how):
    (found,) = study(gains, **how).findings()
    return found.would, [part.word for part in found.parts]


def test_parts_of_the_sentence_follow_the_rows():
    good = study({"click/auc": 0.002, "completion/mse": -0.004, "watch/mse": -150.0})
    gains = {part.name: part for part in good.parts()}
    assert gains["click/auc"].value == pytest.approx(0.002, abs=2e-4) and gains["click/auc"].n == 20
    assert gains["completion/mse"].value == pytest.approx(0.04, abs=1e-3)
    assert gains["watch/mse"].value == pytest.approx(150 / 1700, abs=1e-3)
    (found,) = good.findings()
    assert found.would == "reproduced" and found.word == "inconclusive (assay)", (
        "no input-blind row, epochs not doubled"
    )
    assert words({"click/auc": 0.002})[1] == ["reproduced", "practically equal", "practically equal"]
    assert words({"click/auc": -0.002, "completion/mse": 0.01, "watch/mse": 150.0})[0] == "contradicted"
    less = {"click/auc": 0.0004, "completion/mse": -0.0005, "watch/mse": -20.0}
    assert words(less, noise=1e-6)[0] == "practically equal", "less than half of what the paper prints"
    (early,) = study({"click/auc": 0.002}, n=19).findings()
    assert "19 of 20, no verdict" in early.said
    assert good.gains()["gain"].iloc[0].startswith("+0.00") and set(good.gains()["rival"]) == {"LS"}


def test_the_sentence_has_a_word_for_each_reading():
    """Rule 7: their agreement, or it depends on the reading."""
    good = study({"click/auc": 0.002})
    for gain, word in ((0.002, "1 reproduced, 2 practically equal"), (-0.002, "depends on the reading")):
        raw = [row | {"label": "EMTL (raw)", "key": f"raw {row['key']}"} for row in study({"click/auc": gain}).rows
               if row["label"] == "EMTL"]  # fmt: skip
        (found,) = replace(good, rows=[*good.rows, *raw]).findings()
        assert found.would == word and "raw: click/auc" in {part.name for part in found.beside}


def test_the_gate_asks_how_far_doubled_epochs_move_a_difference_to_ls():
    good = study({})
    rows = [study(gains, n=3, noise=0.0).rows for gains in ({}, {"click/auc": 0.0003, "watch/mse": -170.0})]
    moved = replace(good, doubled=tuple(rows))
    assert good.moves() is None and set(moved.moves()) == {f"EMTL, {metric}" for metric in PAPER}
    assert moved.moves()["EMTL, click/auc"] == pytest.approx(0.5), "half of d"
    assert moved.moves()["EMTL, watch/mse"] == pytest.approx(-0.1 / 0.044, rel=1e-3), "a tenth of LS's error"
    (found,) = moved.findings()
    assert {check.name: check.passed for check in found.gate}["converged"] is False
    (found,) = replace(good, doubled=(rows[0], rows[0])).findings()
    assert {check.name: check.passed for check in found.gate}["converged"] is True
    assert set(TABLE3.doubled) <= set(LABELS) and TABLE3.trials["study"].seeds == (100, 101, 102)


def test_the_click_model_is_asked_for_clicks_alone():
    """It has no other metric, which once ended the whole of `mtl claims`."""
    good = study({"click/auc": 0.002})
    dcn = [row | {"label": "DCN", "key": f"dcn{i}", "metrics": {"click/auc": 0.7 - 0.3 * (i == 0), "score": None}}
           for i, row in enumerate(good.rows) if row["label"] == "LS"]  # fmt: skip
    stl = [row | {"label": "STL", "key": f"stl {row['key']}"} for row in good.rows if row["label"] == "LS"]
    made = replace(good, rows=[*good.rows, *dcn, *stl])
    made.__dict__["blind"] = {"click/auc": 0.5, "completion/mse": 0.2, "watch/mse": 1900.0}
    (found,) = made.findings()
    gate = {check.name: check for check in found.gate}["above the input-blind predictor"]
    assert gate.passed and "DCN (1 of 20 runs collapsed)" in found.said
    less = replace(made, rows=[row for row in made.rows if row["label"] != "STL"])
    less.__dict__["blind"] = made.blind
    assert "STL (no rows)" in less.findings()[0].gate[0].said, "a row that the gate asks for has to be there"


@pytest.mark.parametrize(("gain", "passed"), [(0.01, True), (-0.01, False), (None, None)])
def test_single_task_nets_must_be_ahead_at_clicks(gain, passed):
    """The control of paper/protocols/table3.md."""
    good = study({})
    stl = [row | {"label": "STL", "key": f"stl {row['key']}", "metrics": row["metrics"] | {"click/auc": 0.7 + gain}}
           for row in good.rows if row["label"] == "EMTL" and gain is not None]  # fmt: skip
    (found,) = replace(good, rows=[*good.rows, *stl]).findings()
    assert {check.name: check.passed for check in found.gate}["control"] is passed


def test_the_noise_floor_is_asked_for_each_metric_in_units_of_its_d():
    good = study({})
    for metric, gap, passed in (("click/auc", 0.0005, True), ("watch/mse", 60.0, True), ("watch/mse", -90.0, False)):
        again = [row | {"label": "LS A/A", "key": f"again {row['key']}", "metrics": row["metrics"] | {
            metric: row["metrics"][metric] + gap}} for row in good.rows if row["label"] == "LS"]  # fmt: skip
        (found,) = replace(good, rows=[*good.rows, *again]).findings()
        assert {check.name: check.passed for check in found.gate}["A/A rows"] is passed, (metric, gap)


def test_it_runs_on_the_stand_in_and_says_so(tmp_path, nowhere):
    book = Ledger(tmp_path / "table3.jsonl")
    few = {"methods": ["DCN", "STL", "LS"], "seeds": [10], "ledger": book, "progress": None}
    natural, std = (TABLE3.study("smoke", targets=t, **few) for t in ("natural", "standardised"))
    both = natural.also(std)
    assert natural.data.startswith("EMBEDDED DEFAULT: kuairand was not found") and both.synthetic
    assert list(both.frame["line"]) == ["DCN", "STL", "LS", "LS, std"]
    dcn = both.frame.set_index("line").loc["DCN"]
    assert dcn["click/auc"] > 0 and pd.isna(dcn["watch/mse"]) and pd.isna(dcn["score"]) and dcn["model"] == "dcn"
    assert both.table.loc["DCN"].tolist()[1:3] == ["–", "–"] and list(both.further.columns) == list(table3.MORE)
    gate = both.references()
    assert gate.loc["no input (gate)", "click/auc"] == "0.5000" and float(gate.loc["the truth", "click/auc"]) > 0.6
    assert [len(ax.containers) for ax in both.figure().axes] == [3, 3]
    by_user = table3.clustered(both, own="LS, std", rivals=["LS"]).iloc[0]
    means = both.frame.set_index("line")["watch/mse"]
    assert by_user["difference, s²"] == pytest.approx(means["LS, std"] - means["LS"], rel=1e-4)
    assert 0 < by_user["standard error"] < 50 and 50 < by_user["test users"] <= 250
    assert set(PAPER) <= set(natural.rows[0]["metrics"]) and "fallback=shortvideo" in natural.command
