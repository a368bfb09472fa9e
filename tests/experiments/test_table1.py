"""Table 1 and the two sweeps: equal grids, the paper's numbers, verdicts that can go either way."""

import inspect
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mtl.experiments import hyperparameters as sweeps
from mtl.experiments import table1 as tables
from mtl.ledger import Ledger, canonical, key
from mtl.methods import method
from mtl.problems import problem
from mtl.report import results_table
from mtl.runs.engines import run_grid

ISSUE = (
    "mgda",
    "nash",
    "imtl-g",
    "uw",
    "bandit",
    "emtl",
    "fairgrad",
    "ls",
    "gradnorm",
    "dwa",
    "rlw",
    "cagrad",
    "pcgrad",
)
ISSUE += ("scalarization",)  # the critics' baseline


def test_every_method_has_a_grid_of_the_same_size_of_points_that_it_takes():
    assert sorted(tables.GRIDS) == sorted(ISSUE)
    for name in tables.GRIDS:
        for scale, count in tables.POINTS.items():
            own = tables.points(name, scale)
            assert len(own) == count == len({str(point) for point in own})
            for point in own:
                method(name, n_tasks=2, **{k: v for k, v in point.items() if k != "lr"})
            for point in tables.points(name, scale, tasks=3):
                method(name, n_tasks=3, **{k: v for k, v in point.items() if k != "lr"})
    assert not any("lr" in p for name in tables.GRIDS for p in tables.points(name, "quick")), "untuned: one common rate"
    assert {"lr": 5e-4} in tables.points("mgda", "paper")


def test_no_point_of_emtl_and_bandit_has_an_inactive_ball():
    grids = [point for name in ("emtl", "bandit") for point in tables.GRIDS[name]]
    assert all(point["rho"] < math.log(2) for point in grids)


def test_the_papers_table_is_whole_and_its_averages_follow_but_for_two_misprints():
    table = tables.reported()
    assert len(table) == 15 * 4 and not table[["ctr_auc", "ctcvr_auc", "average"]].isna().any().any()
    off = (table["average"] - (table["ctr_auc"] + table["ctcvr_auc"]) / 2).abs() > 6e-5
    assert table[off][["line", "country"]].to_numpy().tolist() == [["nash (PLE)", "US"], ["emtl (PLE)", "FR"]]
    row = table[(table["line"] == "emtl (MMoE)") & (table["country"] == "US")].iloc[0]
    assert [row["ctr_auc"], row["ctcvr_auc"], row["average"]] == [0.7140, 0.8788, 0.7964]


def test_what_the_papers_text_says_of_its_table():
    said = tables.paper_says().set_index("the text says")["the printed table says"]
    assert said["EMTL best on 11 of 12 metrics"] == "10 alone, 1 tied"
    assert said["EMTL above STL on all metrics"] == "24 of 24 differences"
    assert said["EMTL best average per backbone and country"] == "8 of 8"
    assert said["CTR loss about 23 times CTCVR loss"].startswith("23.4 ")
    assert tables.paper_steady() == ["bandit (MMoE)", "imtl-g (PLE)", "mgda (MMoE)", "nash (MMoE)", "uw (MMoE)"]


def test_paper_columns_are_empty_where_the_paper_has_nothing():
    wide = tables.paper_columns(["stl", "emtl (PLE)", "fairgrad (PLE)"])
    assert wide.loc["emtl (PLE)"].tolist() == ["0.7960", "0.8123", "0.8051", "0.7918"]
    assert (wide.loc["fairgrad (PLE)"] == "").all()
    assert tables.paper_columns(["stl"], present=False).to_numpy().tolist() == [[""]]


def runs(means, noise=1e-4, seeds=6):
    """A frame of runs as `lines` gives: score and one task's AUC are the mean, up to noise that all lines share."""
    draw = np.random.default_rng(0).normal(size=seeds) * noise
    return pd.DataFrame(
        [
            {"line": line, "seed": s, "score": mean + draw[s] + 1e-6 * s * i, "a/auc": mean + draw[s] + 1e-6 * s * i}
            for i, (line, mean) in enumerate(means.items())
            for s in range(seeds)
        ]
    )


GOOD = {"stl": 0.70, "ls (MMoE)": 0.71, "emtl (MMoE)": 0.74, "mgda (MMoE)": 0.705}


def verdicts(*means):
    frames = {f"data {i}": runs(m) for i, m in enumerate(means)}
    raw = {k: results_table(f, {"score": True}, by="line", reference_row="stl", raw=True) for k, f in frames.items()}
    return tables.best_verdict(raw), tables.stl_verdict(frames), tables.steady_verdict(raw)


def test_verdicts_follow_the_numbers():
    best, stl, steady = verdicts(GOOD)
    assert best[0] == "reproduced" and "first in 1 of 1" in best[1]
    assert stl == (
        "reproduced",
        "EMTL above STL with the whole interval in 1 of 1 (data set, backbone, task), below in 0",
    )
    assert steady[0] == "reproduced" and "0 lines other than EMTL's" in steady[1]
    best, stl, steady = verdicts(GOOD, GOOD | {"mgda (MMoE)": 0.75})
    assert best[0] == "not reproduced" and "data 1 MMoE: 2 of 3" in best[1]
    assert steady[0] == "reproduced", "mgda lifts its backbone on one data set only"
    assert verdicts(GOOD | {"mgda (MMoE)": 0.72})[2][0] == "not reproduced"
    assert verdicts(GOOD | {"emtl (MMoE)": 0.69})[1][0] == "not reproduced"


def test_few_seeds_make_a_win_conditional():
    frame = runs(GOOD, seeds=3)
    raw = results_table(frame, {"score": True}, by="line", reference_row="stl", raw=True)
    assert tables.best_verdict({"data": raw})[0] == "conditional"


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return Ledger(tmp_path_factory.mktemp("ledger") / "t.jsonl")


def test_table1_tunes_on_validation_and_runs_stl_once(book, monkeypatch):
    monkeypatch.setitem(tables.POINTS, "smoke", 2)
    rows, tuning = tables.table1("aliexpress_like", "smoke", ledger=book, methods=("ls", "emtl"), seeds=(0,))
    assert tuning is not None and len(tuning.trials) == 4
    for name, best in tuning.best.items():
        own = tuning.trials[tuning.trials["method"] == name]
        place = own["validation score"].to_numpy().argmax()
        assert tables.points(name, "smoke")[place] == best
    frame = tables.lines(rows)
    assert frame["line"].tolist() == ["stl", "ls (MMoE)", "ls (PLE)", "emtl (MMoE)", "emtl (PLE)"]
    assert set(frame["synthetic"]) == {True}
    assert tables.point_of(next(r for r in rows if r["config"]["method"] == "emtl")).startswith("alpha=")


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    monkeypatch.delenv("MTL_DATA", raising=False)


def test_a_factor_scales_the_first_loss_and_no_metric(nowhere):
    plain, scaled = (problem("census_scaled", factor=f, fallback="digits") for f in (1.0, 100.0))
    assert (
        scaled.embedded_default
        and scaled.options["factor"] == 100.0
        and "census_scaled was not found" in scaled.describe()
    )
    model, batch = plain.model("mlp", 0), next(iter(plain.batches("train", 0, 64)))
    a, b = plain.losses(model, batch), scaled.losses(model, batch)
    assert torch.allclose(100 * a[0], b[0]) and torch.equal(a[1], b[1])
    assert plain.evaluate(model, "test") == scaled.evaluate(model, "test")
    with pytest.raises(ValueError, match="factor must be positive and finite, found 0"):
        problem("census_scaled", factor=0.0, fallback="digits")


def test_scale_free_methods_do_not_feel_a_factor_and_equal_weights_do(nowhere, book):
    cells = sweeps.scale_cells("smoke", methods=("ls", "nash", "emtl"), fallback="digits")
    from mtl.runs.engines import run_grid

    table = sweeps.scale_frame(run_grid(cells, ledger=book))
    falls = sweeps.losses_of_score(table).set_index("method")["largest fall of the score"]
    assert abs(falls["nash"]) < 2e-3 < falls["ls"]
    verdict, said = sweeps.robust_verdict(table)
    assert verdict in ("reproduced", "conditional", "not reproduced") and "of 3 methods" in said
    flat = table.assign(score=np.where(table["method"] == "emtl", 0.9, table["score"]))
    assert sweeps.robust_verdict(flat)[0] in ("reproduced", "conditional")


def test_rho_beyond_ln_2_is_inactive_and_below_it_is_not(nowhere, book):
    table = sweeps.hyper_frame(sweeps.hyperparameters("smoke", ledger=book))
    same, said = sweeps.inactive(table, 2)
    assert same and "identical in all metrics" in said and "rho = 0.8, 1.2" in said
    broken = table.assign(score=table["score"] + 1e-9 * table["rho"])
    assert not sweeps.inactive(broken, 2)[0]
    assert sweeps.influence(table)["hyperparameter"].tolist() == ["alpha", "rho", "eta"]


def line(name, model, seed, point, validation, test, select="score"):
    """A row of scale study on two tasks with the score that validation gives and the one of the test rows."""
    own = replace(tables.BUDGET["study"], **{k: v for k, v in point.items() if k == "lr"})
    config = {"problem": "census", "scale": "study", "options": {"tasks": 2}, "method": name}
    config |= {"hyper": {k: v for k, v in point.items() if k != "lr"}, "model": model, "seed": seed}
    config |= {"budget": own.settings(), "select": select}
    aucs = {"a/auc": 0.8, "b/auc": 0.7, "a/score": 0.8, "b/score": 0.7}
    row = {"config": canonical(config), "fingerprint": "f", "status": "ok", "wall_s": 1.0, "synthetic": False}
    row |= {"metrics": aucs | {"score": test}, "validation": aucs | {"score": validation}, "best_epoch": 0}
    return row | {"key": key(row["config"], "f")}


def publish(path, row):
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def written(folder, seeds=(0, 1), best=1, without=None):
    """A published ledger of scale study on two tasks: all trials, then all runs at the point `best` of each grid."""
    book = folder / "data" / "ledger" / "table1.jsonl"
    book.parent.mkdir(parents=True)
    for seed in seeds:
        for name, model in [("stl", "single-task"), *((n, m) for m in tables.BACKBONES for n in tables.GRIDS)]:
            whole = seed == 0 and model == "mmoe"
            grid = [{"task": 0}, {"task": 1}] if name == "stl" else list(tables.points(name, "study"))
            for place, point in enumerate(grid):
                if not (whole or name == "stl" or place == best) or (name, seed) == without:
                    continue
                task = f"{'ab'[place % 2]}/score" if name == "stl" else "score"
                gain = 0.01 * (place == best)  # on the test rows the chosen point is the worst
                publish(book, line(name, model, seed, point, 0.75 + gain, 0.75 - gain, task))
    return book


def test_the_study_takes_the_points_that_validation_chose_and_whole_seeds_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    with pytest.raises(LookupError, match="no rows of scale study with 2 tasks"):
        tables.study(2)
    written(tmp_path, without=("mgda", 1))
    rows, tuning = tables.study(2)
    assert len(rows) == 1 + 2 * len(tables.GRIDS) and {row["config"]["seed"] for row in rows} == {0}
    assert all(tuning.best[name] == tables.points(name, "study")[1] for name in tables.GRIDS)
    assert set(tables.lines(rows)["line"]) >= {"stl", "emtl (MMoE)", "emtl (PLE)"}
    chosen = tables.chosen_points(["stl", "cagrad (PLE)"], tuning)
    assert chosen == ["–", "c=0.4, lr=0.004"]
    with pytest.raises(LookupError, match="3 tasks"):
        tables.study(3)


def test_emtl_on_its_whole_grid_changes_emtl_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    book = written(tmp_path)
    grid = tables.whole_grid("study", 2)
    assert set(map(str, tables.points("emtl", "study"))) < set(map(str, grid))
    for point in grid:
        if point not in tables.points("emtl", "study"):
            publish(book, line("emtl", "mmoe", 0, point, 0.7 + 0.1 * (point == grid[15]), 0.6))
    with pytest.raises(LookupError, match="1 runs of EMTL"):
        tables.searched(2)
    for seed, model in ((0, "ple"), (1, "mmoe"), (1, "ple")):
        publish(book, line("emtl", model, seed, grid[15], 0.7, 0.6))
    rows, tuning = tables.searched(2)
    assert tuning.best == {"emtl": grid[15]} and len(tuning.trials) == 24
    before, _ = tables.study(2)
    assert len(rows) == len(before) and [r for r in before if r["label"] != "emtl"] == rows[:-4]
    assert all(row["metrics"]["score"] == 0.6 for row in rows[-4:])


def test_what_is_for_the_runner_never_reaches_the_problem(tmp_path):
    """Every option of `run_grid` that the command passes on."""
    wanted = set(inspect.signature(run_grid).parameters) - {"cells", "ledger", "checkpoints"}
    assert wanted == set(tables.HOW)
    how = {"jobs": 1, "progress": None, "device": "cpu", "accept": (), "deadline": None, "rerun_stale": True}
    book = Ledger(tmp_path / "rows.jsonl")
    rows, _ = tables.table1(
        "digits", "smoke", ledger=book, models=("mlp",), methods=("ls",), seeds=(0,), together=False, **how
    )
    assert [row["label"] for row in rows] == ["stl", "ls"]
