"""Table 1 and the two sweeps: equal grids, the paper's numbers, verdicts that can go either way."""

import json
import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from mtl.experiments import hyperparameters, loss_scale, table1, verdicts
from mtl.experiments.beside import beside_paper
from mtl.experiments.table1 import CLICK, TABLE1, says
from mtl.experiments.table1 import grids as tables
from mtl.experiments.table1.equal import EQUAL, HEADS, KUAIRAND_HEADS, heads
from mtl.files import root
from mtl.ledger import Ledger, canonical, key
from mtl.ledger import publish as publish_all
from mtl.methods import method
from mtl.problems import problem
from mtl.report.claims import Check
from mtl.report.stats import paired_permutation
from mtl.runs import tuning
from mtl.training.fit import Budget

COLUMNS = ["line", "seed", "score"]
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
    table = says.printed()
    assert len(table) == 15 * 4 and not table[["ctr_auc", "ctcvr_auc", "average"]].isna().any().any()
    off = (table["average"] - (table["ctr_auc"] + table["ctcvr_auc"]) / 2).abs() > 6e-5
    assert table[off][["line", "country"]].to_numpy().tolist() == [["nash (PLE)", "US"], ["emtl (PLE)", "FR"]]
    row = table[(table["line"] == "emtl (MMoE)") & (table["country"] == "US")].iloc[0]
    assert [row["ctr_auc"], row["ctcvr_auc"], row["average"]] == [0.7140, 0.8788, 0.7964]


def test_what_the_papers_text_says_of_its_table():
    said = says.paper_says().set_index("the text says")["the printed table says"]
    assert said["EMTL best on 11 of 12 metrics"] == "10 alone, 1 tied"
    assert said["EMTL above STL on all metrics"] == "24 of 24 differences"
    assert said["EMTL best average per backbone and country"] == "8 of 8"
    assert said["CTR loss about 23 times CTCVR loss"].startswith("23.4 ")
    assert says.paper_steady() == ["bandit (MMoE)", "imtl-g (PLE)", "mgda (MMoE)", "nash (MMoE)", "uw (MMoE)"]


def test_paper_columns_are_empty_where_the_paper_has_nothing():
    ours = pd.DataFrame({"score": ["1", "2", "3"]}, ["stl", "emtl (PLE)", "fairgrad (PLE)"])
    wide = beside_paper(ours, says.paper_columns(), dict.fromkeys(says.COUNTRIES, 4))
    assert wide.loc["emtl (PLE)"].tolist() == ["2", "0.7960", "0.8123", "0.8051", "0.7918", "EMTL Table 1"]
    assert (wide.loc["fairgrad (PLE)", [*says.COUNTRIES, "source"]] == "").all()


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
PASSED = lambda metrics, named: [Check("above the input-blind predictor", True, "all")]  # noqa: E731


def words(*means, gate=PASSED):
    frames = {f"data {i}": runs(m) for i, m in enumerate(means)}
    return [one.word for one in says.findings(frames, dict.fromkeys(frames, gate))]


def test_words_follow_the_numbers():
    assert words(GOOD, GOOD) == ["reproduced", "reproduced", "reproduced"]
    assert words(GOOD, GOOD | {"mgda (MMoE)": 0.75}) == ["contradicted", "reproduced", "reproduced"], "one set only"
    assert words(*[GOOD | {"mgda (MMoE)": 0.72}] * 2)[2] == "contradicted", "it lifts its backbone on both"
    assert words(GOOD, GOOD | {"emtl (MMoE)": 0.69})[1] == "contradicted"
    assert words(GOOD, GOOD | {"emtl (MMoE)": 0.7101})[0] == "practically equal"


def test_every_data_set_needs_more_than_one():
    assert words(GOOD) == ["not tested", "not tested", "reproduced"], "nobody improves it here, so not everywhere"
    assert words(GOOD | {"emtl (MMoE)": 0.70})[0] == "contradicted", "one is enough against it"
    assert words(GOOD | {"mgda (MMoE)": 0.72})[2] == "not tested"
    found = says.findings({"a": runs(GOOD)}, {"a": PASSED}, {"b": runs(GOOD)})
    assert "AliExpress" in found[0].said and len(found[0].beside) == len(found[0].parts) == 2


def test_readings_decide_together():
    """One word where they agree; else it depends on the reading, and the note has the word of each."""
    alike = {f"emtl ({name}) (MMoE)": 0.74 for name in ("raw", "frozen norm", "product")}
    noise = {"ls (MMoE) A/A": 0.71, "bandit (balanced) (MMoE)": 0.70}
    assert words(*[GOOD | alike | noise] * 2) == ["reproduced"] * 3
    found = says.findings(*[{f"data {i}": x for i in (1, 2)} for x in (runs(GOOD | alike | noise), PASSED)])
    assert len(found[0].parts) == 6 and len(found[0].beside) == 18, "two data sets, three rivals, three other readings"
    worse = GOOD | alike | {"emtl (raw) (MMoE)": 0.70}
    assert words(worse, worse)[:2] == ["depends on the reading"] * 2
    both = says.findings(*[{f"data {i}": x for i in (1, 2)} for x in (runs(worse), PASSED)])[0]
    assert "literal: reproduced, raw: contradicted, frozen norm: reproduced, product: reproduced" in both.said
    balanced = GOOD | alike | {"bandit (balanced) (MMoE)": 0.75}
    assert words(balanced, balanced)[0] == "contradicted", "to be ahead of BanditMTL is to be ahead of both"


def split(shown):
    """Key of a method from its line as tables show it."""
    return {"STL": "stl", "LS": "ls", "Scalarization": "scalarization", "EMTL": "emtl", "EMTL (raw)": "emtl (raw)"}[
        tables.split_line(shown)[0].removesuffix(" A/A")
    ]


def test_equal_terms_tune_alike_and_double_the_epochs(tmp_path, monkeypatch):
    """In small, on digits: run, publish, read again; then once more without the doubled rows."""
    place = tmp_path
    monkeypatch.setenv("MTL_ROOT", str(place))
    budget = Budget(epochs=1, batch_size=256, lr=1e-3)
    kept = [entry for entry in EQUAL.methods if entry[0] in ("stl", "ls", "scalarization", "emtl", "emtl (raw)")]
    made = replace(
        EQUAL, book="equal", problem="digits", methods=tuple(kept), models=("mlp",), seeds={"quick": (10, 11, 12)},
        budget={"quick": budget}, trials={"quick": EQUAL.trials["study"]._replace(budget=budget)},
        doubled=("stl", "ls", "emtl"), variants={"quick": ({"tasks": 2},)}, rates=(1e-3, 4e-3),
    )  # fmt: skip
    book = Ledger(place / "data/ledger/local/equal", also=[place / "data/ledger/equal.jsonl"])
    made.run("quick", ledger=book)
    blind = Ledger(place / "data/ledger/local/blind", also=[place / "data/ledger/blind.jsonl"])
    made.blind("quick")
    for one in (book, blind):
        publish_all(one)
    study = made.published("quick")
    assert study.seeds == [10, 11, 12] and "ls (mlp) A/A" in set(study.frame["line"])
    trials = study.trials
    assert trials.groupby("method").size().to_dict() == {"stl": 2, "ls": 2, "emtl": 2, "emtl (raw)": 2} | {
        "scalarization": 2 + 4
    }
    once, twice = study.doubled
    assert {row["config"]["seed"] for row in once} == {100, 101} and len(once) == len(twice) == 6
    assert {row["config"]["budget"]["epochs"] for row in twice} == {2}
    moves = study.moves(["score"])
    assert set(moves) == {"stl - ls (mlp), score", "emtl (mlp) - ls (mlp), score"}
    score = {(row["label"], row["config"]["budget"]["epochs"], row["config"]["seed"]): row["metrics"]["score"]
             for row in (*once, *twice)}  # fmt: skip
    lead = {e: np.mean([score["emtl", e, s] - score["ls", e, s] for s in (100, 101)]) for e in (1, 2)}
    assert moves["emtl (mlp) - ls (mlp), score"] == pytest.approx(lead[2] - lead[1])
    gate = {check.name: check for check in study.gate(["score"], ["stl", "ls (mlp)", "emtl (mlp)"])}
    assert gate["converged"].passed is (max(map(abs, moves.values())) < says.D) and gate["A/A rows"].passed is not None

    monkeypatch.setitem(tables.BACKBONES, "mlp", "MLP")
    shown = made.published("quick")
    assert shown.lines.keys() == {"MLP"} and len(shown.lines["MLP"]) == 5, "STL too, A/A rows not"
    for name, rate in shown.table["rate"].items():
        chosen = trials[trials["chosen"] & (trials["method"] == split(name))]["point"]
        assert set(re.findall(r"[\d.]+", rate)) <= set(re.findall(r"lr=([\d.]+)", " ".join(chosen))) != set()
        assert "†" in rate, "with two rates each is at the edge"
    order, pairs = shown.lines["MLP"], shown.pairs["MLP"]
    assert pairs[0][0] is None and pairs[0][1].value == pytest.approx(-pairs[1][0].value) and pairs[0][1].value >= 0
    leads, cells = (fig.axes[0] for fig in (shown.figure(), shown.matrix()))
    assert {text.get_text() for text in leads.get_yticklabels()} >= {"LS A/A", "EMTL", "STL"}
    assert len(cells.patches) == len(order) * (len(order) - 1)

    path = place / "data/ledger/equal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["config"]["budget"]["epochs"] == 1]
    assert len(kept) < len(lines)
    path.with_suffix(".jsonl.sha256").unlink()
    path.write_text("".join(kept))
    study = made.published("quick")
    assert study.doubled == () and study.moves(["score"]) is None


def test_equal_heads_are_compared_with_the_heads_of_each_paper():
    """Rule 6: every row that leaves heads raw has one that moves them by its weights, and nothing else is changed."""
    raw = {label: name for label, name, point in EQUAL.methods if method(name, n_tasks=2, **point).heads == "raw"}
    for one in (HEADS, KUAIRAND_HEADS):
        for label, name, point in one.methods:
            assert point["heads"] == "weighted" and label == f"{name} (weighted heads)"
            assert (name, {k: v for k, v in point.items() if k != "heads"}) in [pair[1:] for pair in EQUAL.methods]
        assert {name for _, name, _ in one.methods} == set(raw.values()) - {"stl"}

    def study(rows):
        frame = pd.DataFrame([(*row, s, v + 1e-5 * s) for *row, v in rows for s in (0, 1, 2)], columns=COLUMNS)
        return SimpleNamespace(frame=frame, name="Census, 2 tasks", also=lambda *others: len(others))

    ours = study([("emtl (MMoE)", 0.97), ("cagrad (MMoE)", 0.9702)])
    count, table = heads([(ours, study([("cagrad (weighted heads) (MMoE)", 0.965)]))])
    row = table.iloc[0]
    assert count == 1 and row["rival"] == "CAGrad" and row["n"] == 3 and row["data"] == "Census"
    assert row["as published"].startswith("-0.0002 (") and row["equal heads"].startswith("+0.0050 (")
    assert (row["word, as published"], row["word, equal heads"]) == ("practically equal", "reproduced")
    assert "Words that change: 1 of 1" in table.attrs["caption"]


def test_the_studies_on_equal_terms_decide_only_when_they_are_whole(monkeypatch):
    older = (("two tasks",), ("three tasks",))
    monkeypatch.setattr(verdicts, "TABLE1", SimpleNamespace(published=lambda tasks, at: older[tasks - 2]))

    def with_seeds(name, n, declared):
        experiment = SimpleNamespace(seeds={"study": tuple(range(declared))})
        study = SimpleNamespace(seeds=list(range(n)), experiment=experiment)
        monkeypatch.setattr(verdicts, name, SimpleNamespace(published=lambda at: study))
        return study

    census, second = with_seeds("EQUAL", 10, 10), with_seeds("KUAIRAND", 20, 20)
    assert verdicts._table1() == ([census, second], [older[1]])
    with_seeds("KUAIRAND", 19, 20)
    assert verdicts._table1() == ([census], [older[1]])
    with_seeds("EQUAL", 9, 10)
    with_seeds("KUAIRAND", 20, 20)
    assert verdicts._table1() == ([older[0]], [older[1]]), "the second data set alone decides nothing"


def test_data_sets_need_not_have_the_same_tasks_and_networks():
    """Each has a gate of its own, by its own rows and metrics; what only one of them has is not said of every one."""
    asked = []

    def gate(metrics, named):
        asked.append((list(metrics), list(named)))
        return [Check("converged", True, "")]

    both = GOOD | {name.replace("MMoE", "PLE"): score for name, score in GOOD.items() if name != "stl"}
    frames = {"one": runs(both).rename(columns={"a/auc": "c/auc"}), "two": runs(GOOD)}
    best, stl, steady = says.findings(frames, dict.fromkeys(frames, gate))
    assert [one.word for one in (best, stl, steady)] == ["reproduced"] * 3
    assert [check.name for check in best.gate] == ["one: converged", "two: converged"]
    assert (["score"], ["stl", "ls (MMoE)", "emtl (MMoE)"]) in asked
    assert (["score"], ["stl", "ls (MMoE)", "ls (PLE)", "emtl (MMoE)", "emtl (PLE)"]) in asked
    assert len({tuple(metrics) for metrics, _ in asked}) == 3, "the mean, and the tasks of each"
    assert {part.name.partition(":")[0] for part in stl.parts} == {"one, MMoE", "one, PLE", "two, MMoE"}
    gained = {"one": runs(both | {"mgda (PLE)": 0.72}), "two": runs(GOOD)}
    assert says.findings(gained, dict.fromkeys(gained, gate))[2].word == "not tested", "PLE is in one of them alone"


def test_single_task_nets_are_held_against_equal_weights_of_every_network():
    """Of two moves the second once took the place of the first, which was the larger one."""
    scores = {"stl": 0.70, "ls (MMoE)": 0.70, "ls (PLE)": 0.70, "emtl (PLE)": 0.70}
    moved = scores | {"stl": 0.702, "ls (PLE)": 0.7015}
    nets = {"MMoE": "mmoe", "PLE": "ple", "": "single-task"}
    made = [{"label": label, "config": {"model": nets[net]}} for label, net in map(tables.split_line, scores)]
    study = table1.Table1(TABLE1, "study", [], "", ("a",), doubled=(made, made))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table1.Table1, "moved", lambda self, m, one, base: moved[one] - moved[base])
        found = study.moves(["score"])
    assert found == pytest.approx({
        "stl - ls (MMoE), score": 0.002, "stl - ls (PLE), score": 0.0005, "emtl (PLE) - ls (PLE), score": -0.0015
    })  # fmt: skip


def test_the_noise_floor_is_asked_for_each_metric():
    frame = runs(GOOD | {"ls (MMoE) A/A": 0.71})
    frame["b/auc"] = frame["score"] + 0.004 * (frame["line"] == "ls (MMoE) A/A")
    study = table1.Table1(TABLE1, "study", [], "", ("a", "b"))
    study.__dict__["frame"] = frame
    assert study.same(["a/auc"], says.D).passed and study.same(["b/auc", "a/auc"], says.D).passed is False
    units = {"a/auc": 0.001, "b/auc": 0.01}
    assert study.same(units, 1.0, units).passed, "in units of each metric's own d"


def test_a_data_set_that_misses_its_gate_drops_out_and_is_named():
    """The others decide; where none passes all of it is shown, and nothing decided."""
    fails = lambda metrics, named: [Check("converged", False, "moves")]  # noqa: E731
    frames = {"one": runs(GOOD), "two": runs(GOOD | {"mgda (MMoE)": 0.75})}
    best, _, steady = says.findings(frames, {"one": PASSED, "two": fails})
    assert best.word == "not tested" and "a second data set is needed" in best.said, "it would be, on one"
    assert "left out, two: converged: moves" in best.said and {part.name for part in best.parts} == {
        "one, MMoE: ls", "one, MMoE: mgda"
    }  # fmt: skip
    assert steady.word == "reproduced", "what one data set decides stays decided"
    both = says.findings(frames, {"one": PASSED, "two": PASSED})[0]
    assert both.word == "contradicted" and "n = 6 (one), 6 (two)" in both.said
    neither = says.findings(frames, {"one": fails, "two": fails})[0]
    assert (neither.word, neither.would) == ("inconclusive (assay)", "contradicted") and len(neither.gate) == 2


def test_a_rival_without_a_result_is_waited_for():
    frame = runs(GOOD)
    frame.loc[(frame["line"] == "mgda (MMoE)") & (frame["seed"] == 3), "score"] = math.nan
    best = says.findings({"a": frame, "b": runs(GOOD)}, {"a": PASSED, "b": PASSED})[0]
    assert best.word == "not tested" and "waits for mgda (MMoE) (a)" in best.said and best.n == 5
    frame.loc[frame["line"] == "mgda (MMoE)", "score"] = math.nan
    best, _, steady = says.findings({"a": frame, "b": runs(GOOD)}, {"a": PASSED, "b": PASSED})
    assert best.word == steady.word == "not tested" and len(best.parts) == 3


def test_single_task_nets_with_rates_of_their_own_are_found_again(tmp_path, monkeypatch):
    """Their list of rates is as long as there are tasks, which ended the search with an error that was caught."""
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    (tmp_path / "data/ledger").mkdir(parents=True)
    for task, rate in enumerate((0.016, 0.008)):
        row = line("stl", "single-task", 0, {"task": task, "lr": rate}, 0.8, 0.8, f"{'ab'[task]}/score")
        publish(tmp_path / "data/ledger/table1.jsonl", row)
    point = {"lr": [0.016, 0.008]}
    found = tuning.published("table1", "study", [("stl", "stl", point)], tables.BUDGET["study"], ["mmoe"], tasks=2)
    assert [row["config"]["hyper"]["task"] for row in found] == [0, 1]


def test_the_gate_of_table1_comes_first():
    lacking = lambda metrics, named: [Check("converged", None, "epochs were not doubled")]  # noqa: E731
    assert set(words(GOOD, GOOD, gate=lacking)) == {"inconclusive (assay)"}


def test_the_p_of_a_place_belongs_to_the_best_other_line_of_the_same_backbone():
    frame = runs(GOOD | {"ls (PLE)": 0.70, "emtl (PLE)": 0.72, "uw (PLE)": 0.725}, noise=1e-2)
    frame.loc[(frame["line"] == "uw (PLE)") & (frame["seed"] == 0), "score"] = 0.71  # so that signs differ
    found = says.places({"data": frame}).set_index("backbone")
    wide = frame.pivot(index="seed", columns="line", values="score")
    for backbone, rival in (("MMoE", "ls (MMoE)"), ("PLE", "uw (PLE)")):
        own = wide[f"emtl ({backbone})"]
        assert found.loc[backbone, "p"] == paired_permutation(own, wide[rival]).p
        assert found.loc[backbone, "EMTL - best other"] == pytest.approx((own - wide[rival]).mean())
    assert says.places({"data": runs(GOOD, seeds=20)})["p"].item() < 1e-3, "more seeds than all flips are drawn for"
    assert found["best"].tolist() == ["emtl", "uw"] and found["EMTL's place"].tolist() == [1, 2]
    everywhere = wide.drop(columns=["stl", "emtl (PLE)"]).mean().idxmax()
    assert found.loc["PLE", "p"] != paired_permutation(wide["emtl (PLE)"], wide[everywhere]).p


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A root without data, but with the papers' numbers."""
    shutil.copytree(root() / "paper" / "reported", tmp_path / "paper" / "reported")
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    monkeypatch.delenv("MTL_DATA", raising=False)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return Ledger(tmp_path_factory.mktemp("ledger") / "t.jsonl")


def test_table1_tunes_on_validation_and_runs_stl_once(nowhere, book, monkeypatch):
    monkeypatch.setitem(tables.POINTS, "smoke", 2)
    both = replace(CLICK, models=CLICK.models | {"smoke": ("mmoe", "ple")})
    study = both.study("smoke", (0,), ("stl", "ls", "emtl"), ledger=book, progress=None)
    tuning = study.tuning["mmoe"]
    assert len(tuning.trials) == 4
    for name, best in tuning.best.items():
        own = tuning.trials[tuning.trials["method"] == name]
        place = own["validation score"].to_numpy().argmax()
        assert tables.points(name, "smoke")[place] == best
    assert study.frame["line"].tolist() == ["stl", "ls (MMoE)", "ls (PLE)", "emtl (MMoE)", "emtl (PLE)"]
    assert set(study.frame["synthetic"]) == {True}
    assert list(study.table.index) == ["STL", "LS (MMoE)", "LS (PLE)", "EMTL (MMoE)", "EMTL (PLE)"]
    assert "**" not in study.table["chosen"].str.cat()
    assert "paper" not in study.table, "no real log's AUC beside generated rows"
    assert study.command == "mtl run table1_click --scale smoke -p fallback=aliexpress_like --seeds 0"
    again = both.run("smoke", (0,), ("stl", "ls", "emtl"), ledger=book, fallback="aliexpress_like", deadline=0)
    assert {row["key"] for row in again} == {key for row in study.rows for key in row.get("keys", [row["key"]])}


def test_options_choose_variants_and_are_checked():
    assert TABLE1.chosen("quick") == [{"tasks": 2}, {"tasks": 3}]
    assert TABLE1.chosen("quick", tasks=3, whole_grid=True) == [{"tasks": 3, "whole_grid": True}]
    with pytest.raises(ValueError, match=r"options: table1 takes tasks, whole_grid, found 'task'"):
        TABLE1.chosen("quick", task=3)
    with pytest.raises(ValueError, match=r"options: table1 at scale quick has .*, found {'tasks': 4}"):
        TABLE1.run("quick", tasks=4)
    with pytest.raises(ValueError, match=r"methods: must be among stl, ls, .*, found 'SGD'"):
        TABLE1.run("quick", methods=["SGD"])
    alone = TABLE1.entries("study", tasks=2, whole_grid=True)
    assert [label for label, _, _ in alone] == ["stl", "emtl"]


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
    study = loss_scale.LOSS_SCALE.study("smoke", methods=("ls", "nash", "emtl"), ledger=book, progress=None)
    table, metrics = study.frame, study.metrics
    falls = loss_scale.falls(table, metrics).set_index("label")[loss_scale.FALL]
    assert abs(falls["nash"]) < 2e-3 < falls["ls"]
    assert study.table["method"].tolist()[0] == "Nash-MTL"
    assert len(study.figure().axes) == 1
    assert [check.name for check in study.gate("emtl")][2] == "A/A rows" and study.gate("emtl")[2].passed is not None


def fallen(**falls: float) -> pd.DataFrame:
    """Runs of five seeds at three factors whose score falls by so much, in thousandths, at factor .01."""
    rng = np.random.default_rng(0)
    lines = [
        {"label": label.replace("_", " "), "factor": factor, "seed": seed,
         "score": 0.96 - 1e-3 * fall * (factor == 0.01) + 2e-5 * rng.standard_normal()}
        for label, fall in falls.items() for seed in range(10, 15) for factor in (0.01, 1.0, 100.0)
    ]  # fmt: skip
    return pd.DataFrame(lines)


RIVALS = dict.fromkeys(("mgda", "imtl-g", "uw", "bandit", "bandit (balanced)"), 5.0)


def test_the_sentence_on_loss_scales_names_its_rivals_and_has_a_word_by_reading() -> None:
    rows = fallen(emtl=0, ls=5, nash=0, **RIVALS)
    found = loss_scale.robust(rows)
    assert found.word == "reproduced" and {part.name for part in found.parts} == set(RIVALS)
    assert {part.name for part in found.beside} == {"ls", "nash"}, "nash decides nothing"
    assert loss_scale.robust(fallen(emtl=9, **RIVALS)).word == "contradicted"
    assert loss_scale.robust(fallen(emtl=5, **RIVALS)).word == "practically equal"
    lost = fallen(emtl=0, **RIVALS)
    lost.loc[(lost["label"] == "uw") & (lost["factor"] == 100.0), "score"] = math.nan
    assert loss_scale.robust(lost).word == "not tested" and "waits for uw" in loss_scale.robust(lost).said
    lost = fallen(emtl=0, **RIVALS)
    lost.loc[(lost["label"] == "uw") & (lost["seed"] == 10), "score"] = math.nan
    assert "4 of 5, no verdict" in loss_scale.robust(lost, declared=5).said
    one = fallen(emtl=0, **(RIVALS | {"bandit (balanced)": 0.1}))
    assert loss_scale.robust(one).word == "practically equal", "best by d is excluded"
    both = pd.concat([rows, fallen(**{"emtl (raw)": 9})])
    assert loss_scale.robust(both, "emtl (raw)").word == "contradicted"
    plain = loss_scale.LossScale(loss_scale.LOSS_SCALE, "smoke", [], "", ("income",))
    plain.__dict__["frame"] = both
    (by,) = plain.findings()
    assert by.would == "depends on the reading" and "raw: contradicted" in by.said


def test_a_collapsed_rival_does_not_void_the_table_of_loss_scales_and_equal_weights_would() -> None:
    plain = loss_scale.LossScale(loss_scale.LOSS_SCALE, "quick", [], "", ("income",))
    for low, passed in (("bandit", True), ("ls", False), ("emtl", False)):
        frame = fallen(emtl=0, ls=5, **RIVALS)
        frame.loc[frame["label"] == low, "score"] = 0.5
        plain.__dict__["frame"] = frame
        check = plain.gate("emtl")[0]
        assert check.passed is passed and low in check.said


def test_the_loss_scale_study_is_the_declared_one() -> None:
    one = loss_scale.LOSS_SCALE
    assert [v["factor"] for v in one.variants["study"]] == [0.01, 0.1, 1.0, 10.0, 100.0]
    assert one.seeds["study"] == (10, 11, 12, 13, 14) and one.twins == ("ls",)
    labels = [label for label, _, _ in one.entries("study")]
    assert {*loss_scale.RIVALS, *loss_scale.READINGS} <= set(labels)


def test_the_loss_scale_study_decides_from_its_declared_n_on_and_not_before(tmp_path, monkeypatch):
    """Rows of two seeds speak until the five seeds of the study are whole, whatever either says."""
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    made, folder = loss_scale.LOSS_SCALE, tmp_path / "data" / "ledger"
    (folder / "figures").mkdir(parents=True)

    def write(path, scale, seeds, fall, twins=()):
        for label, name, hyper in made.entries(scale):
            for seed in seeds:
                for factor in loss_scale.FACTORS[scale]:
                    for start in (None, seed + 1_000_000) if label in twins else (None,):
                        score = 0.9 - (fall if label.startswith("emtl") else 0.01) * (factor < 1) + 1e-5 * seed
                        row = line(name, "mmoe", seed, hyper, score, score)
                        own = {"scale": scale, "options": {"factor": factor}, "init_seed": start}
                        own |= {"budget": tables.BUDGET[scale].settings()}
                        config = {name: value for name, value in (row["config"] | own).items() if value is not None}
                        publish(path, row | {"config": canonical(config), "key": key(config, "f")})

    def word():
        study = verdicts._scaled()
        return study.scale, study.findings()[0].would

    write(folder / "figures" / "table1.jsonl", "quick", (0, 1), 0.1)
    assert word()[0] == "quick", "no row of the study"
    write(folder / "table1.jsonl", "study", range(10, 14), 0.0, made.twins)
    assert loss_scale.published().seeds == [10, 11, 12, 13] and word()[0] == "quick", "four of five seeds"
    write(folder / "table1.jsonl", "study", (14,), 0.0, made.twins)
    assert word() == ("study", "reproduced")
    kept = (folder / "table1.jsonl").read_text().splitlines(keepends=True)
    (folder / "table1.jsonl").write_text("".join(kept[:-1]))
    assert word()[0] == "quick", "one run of the fifth seed is not there"


def test_rho_beyond_ln_2_is_inactive_and_below_it_is_not(nowhere, book):
    study = hyperparameters.HYPERPARAMETERS.study("smoke", ledger=book, progress=None)
    same, said = hyperparameters.inactive(study.frame, 2)
    assert same and "identical in all metrics" in said and "rho = 0.8, 1.2" in said
    broken = study.frame.assign(score=study.frame["score"] + 1e-9 * study.frame["rho"])
    assert not hyperparameters.inactive(broken, 2)[0]
    assert study.table["hyperparameter"].tolist() == ["alpha", "rho", "eta"]
    (one,) = study.findings()
    assert (one.word, one.beside[0].word) == ("inconclusive (assay)", "reproduced"), (
        "the rule's own check stands beside"
    )
    assert study.facts["data"].startswith("EMBEDDED DEFAULT") and study.command.endswith("-p fallback=digits")


def line(name, model, seed, point, validation, test, select="score"):
    """A row of scale study on two tasks with the score that validation gives and the one of the test rows."""
    own = replace(tables.BUDGET["study"], **{k: v for k, v in point.items() if k == "lr"})
    config = {"problem": "census", "scale": "study", "options": {"tasks": 2}, "method": name}
    config |= {"hyper": {k: v for k, v in point.items() if k != "lr"}, "model": model, "seed": seed}
    config |= {"budget": own.settings(), "select": select}
    aucs = {"a/auc": 0.8, "b/auc": 0.7, "a/score": 0.8, "b/score": 0.7, "a/log-loss": 0.1, "b/log-loss": 0.2}
    row = {
        "config": canonical(config),
        "fingerprint": "f",
        "status": "ok",
        "wall_s": 1.0,
        "synthetic": False,
        "source": "S",
    }
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
        TABLE1.published(tasks=2)
    written(tmp_path, without=("mgda", 1))
    study = TABLE1.published(tasks=2, at="quick")
    assert len(study.rows) == 1 + 2 * len(tables.GRIDS) and study.seeds == [0]
    assert all(study.tuning["ple"].best[name] == tables.points(name, "study")[1] for name in tables.GRIDS)
    assert set(study.frame["line"]) >= {"stl", "emtl (MMoE)", "emtl (PLE)"}
    assert study.table["chosen"][["STL", "CAGrad (PLE)"]].tolist() == ["–", "c=0.4, lr=0.004"]
    assert study.command == "mtl run table1 --scale study -p tasks=2 --seeds 0" and study.facts["at"] == "quick"
    with pytest.raises(LookupError, match="3 tasks"):
        TABLE1.published(tasks=3)


def test_emtl_on_its_whole_grid_changes_emtl_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    book = written(tmp_path)
    grid = tables.all_searched("study", 2)
    assert set(map(str, tables.points("emtl", "study"))) < set(map(str, grid))
    for point in grid:
        if point not in tables.points("emtl", "study"):
            publish(book, line("emtl", "mmoe", 0, point, 0.7 + 0.1 * (point == grid[15]), 0.6))
    before = TABLE1.published(tasks=2)
    with pytest.raises(LookupError, match="no seed of scale study with 2 tasks has all 2 runs"):
        table1.searched(before)
    publish(book, line("emtl", "ple", 0, grid[15], 0.7, 0.6))
    with pytest.raises(LookupError, match=r"EMTL on its whole grid lacks seeds \[1\]"):
        table1.searched(before)
    for model in ("mmoe", "ple"):
        publish(book, line("emtl", model, 1, grid[15], 0.7, 0.6))
    study = table1.searched(before)
    assert study.tuning["mmoe"].best == {"emtl": grid[15]} and len(study.trials) == 24
    assert len(study.rows) == len(before.rows)
    assert [r for r in before.rows if r["label"] != "emtl"] == study.rows[:-4]
    assert all(row["metrics"]["score"] == 0.6 for row in study.rows[-4:])
    first, second = before.also(study).command.split(" && ")
    assert first == "mtl run table1 --scale study -p tasks=2 --seeds 0,1"
    assert second == "mtl run table1 --scale study -p whole_grid=True -p tasks=2 --seeds 0,1"
