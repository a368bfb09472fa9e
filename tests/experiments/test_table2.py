"""Table 2: its numbers from rows, the printed table recounted, verdicts that can go either way, rows run anew."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mtl.cli import app
from mtl.experiments import hyperparameters_nyuv2, table2
from mtl.experiments.table2 import TABLE2, UNET, figures, results
from mtl.ledger import Ledger, find_row, publish
from mtl.methods import method
from mtl.problems import problem
from mtl.runs.cells import grid, refit
from mtl.runs.engines import run_grid
from mtl.runs.tuning import choose, published, tried
from mtl.training.fit import Budget, fit

METRICS = list(results.METRICS)
GOOD = np.where(list(results.METRICS.values()), 1.1, 0.9)  # a tenth better than STL at everything


def rows(**factors: Any) -> list[dict[str, Any]]:
    """Rows of three seeds: each method's metrics are STL's (all 50) times its factor."""
    out = []
    for label, factor in {"STL": 1.0, **factors}.items():
        for seed in range(3):
            values = 50 * np.broadcast_to(factor, 9) * (1 + 0.001 * seed)
            metrics = dict(zip(METRICS, values.tolist(), strict=True)) | {"score": 0.5}
            history = [{"weights": [0.2, 0.2, 0.6], "losses": [2.0, 1.0, 0.5], "rates": [1.0, 1.0, 5.0]}]
            out.append({"label": label, "key": f"{label}{seed}", "status": "ok", "synthetic": False, "history": history,
                        "config": {"seed": seed, "method": "ls"}, "metrics": metrics, "last": metrics})  # fmt: skip
    return out


def test_delta_m_in_both_averages_against_the_mean_of_stl():
    factor = GOOD.copy()
    factor[4:] = np.where(GOOD[4:] > 1, 0.9, 1.1)  # normals a tenth worse: 5 of 9 metrics, 1 of 3 tasks
    means = results.lines(rows(LS=factor)).groupby("label")[[results.DELTA, results.FAIRER]].mean()
    assert means.loc["STL"].abs().max() < 1e-9
    assert means.loc["LS", results.DELTA] == pytest.approx(10 / 9, abs=0.05)
    assert means.loc["LS", results.FAIRER] == pytest.approx(-10 / 3, abs=0.05)


def test_the_study_with_a_net_that_sees_shows_the_last_epoch():
    """paper/decision_rule.md: nothing is selected on validation; an epoch that validation likes must not show."""
    some = rows(LS=GOOD)
    for row in some:
        row["last"] = {name: 2 * value for name, value in row["metrics"].items()}
        row["config"] = row["config"] | {"problem": "nyuv2"}
    seen = UNET.shows(UNET, "study", some, "constructed", ())
    assert seen.frame["segmentation/miou"].min() == pytest.approx(100.0)
    assert UNET.budget["study"].last == 1


def test_a_run_without_a_result_keeps_its_line_and_no_rank():
    some = rows(LS=GOOD, MGDA=GOOD)
    for row in some[-3:]:
        row.update(status="non-finite", metrics=dict.fromkeys(METRICS), last=None)
    table = results.lines(some, "last")
    assert table["label"].nunique() == 3
    assert list(results.ranks(table).index) == ["LS"]


def test_ranks_average_to_the_middle_and_leave_stl_out():
    ranks = results.ranks(results.lines(rows(LS=1.0, MGDA=GOOD, EMTL=GOOD * 1.01)))
    assert ranks.mean() == pytest.approx(2) and "STL" not in ranks


SETTINGS = ("LS", "SI", "RLW", "DWA", "UW", "BanditMTL", "MGDA", "PCGrad", "CAGrad", "GradDrop", "IMTL-G", "Nash-MTL")


def found(blind: float | None = None, **factors: Any) -> dict[str, Any]:
    """The findings on constructed rows, all rivals like STL but for those given; `blind`: its factor to STL."""
    level = None if blind is None else dict(zip(METRICS, 50 * GOOD**blind, strict=True))
    some = rows(**dict.fromkeys((*SETTINGS, "MoCo"), 1.0) | factors)
    return {one.claim: one for one in results.findings(some, results.lines(some), level)}


FAIR = {"FairGrad (alpha=2)": 1.0, "Fair LS (alpha=0.5)": 1.0}


@pytest.mark.parametrize(
    ("emtl", "word"), [(GOOD**2, "reproduced"), (GOOD**0.001, "practically equal"), (GOOD**-2, "contradicted")]
)
def test_the_best_of_the_sentences_own_rivals(emtl: Any, word: str) -> None:
    one = found(EMTL=emtl, **FAIR)["emtl-table2-best"]
    assert one.would == word and one.n == 3
    assert [part.name for part in one.parts] == list(SETTINGS), "FairGrad and MoCo are none of its rivals"
    assert {part.name for part in one.beside} == {"MoCo", *FAIR}
    assert {part.name: part.d for part in one.parts}["Nash-MTL"] == pytest.approx(0.68)


def test_the_gate_comes_first() -> None:
    one = found(EMTL=GOOD**2, **FAIR)["emtl-table2-best"]
    assert one.word == "inconclusive (assay)", "no input-blind row, epochs not doubled"
    gate = {check.name: check for check in found(blind=-2, EMTL=GOOD, LS=0.99, **FAIR)["emtl-table2-stl"].gate}
    assert gate["above the input-blind predictor"].passed and gate["converged"].passed is None
    worse = {check.name: check for check in found(blind=0.5, EMTL=GOOD, **FAIR)["emtl-table2-best"].gate}
    assert worse["above the input-blind predictor"].passed is False
    assert "LS" in worse["above the input-blind predictor"].said
    assert "MGDA (3 of 3 runs collapsed)" in worse["above the input-blind predictor"].said
    table = results.lines(rows(LS=np.where(np.array(results.TASKS) == "depth", 0.9, 1.0)))
    checks = results.gate(table, results.leads(table), [results.DELTA], [], None, 1.0, {"EMTL": 0.2})
    assert [check.passed for check in checks] == [None, True, True, None], "LS ahead in depth, converged"


def test_the_noise_floor_is_asked_in_the_units_of_a_lead() -> None:
    """A twin that is a hundredth of STL off in depth: a ninth of a point of delta-m, a per cent of that metric."""
    far = np.where(np.array(results.TASKS) == "depth", 0.99, 1.0)
    table = results.lines(rows(LS=1.0, **{"LS A/A": far}))
    for metric, passed in ((results.DELTA, True), ("depth/abs", False), ("normals/mean", True)):
        checks = results.gate(table, results.leads(table), [metric], [], None, 0.5)
        assert {check.name: check.passed for check in checks}["A/A rows"] is passed, metric


def test_other_sentences_go_both_ways() -> None:
    good = found(EMTL=GOOD**2, **FAIR | {"FairGrad (alpha=2)": GOOD**2, "Fair LS (alpha=0.5)": GOOD})
    bad = found(EMTL=GOOD**-2, **FAIR | {"FairGrad (alpha=2)": GOOD**-2, "Fair LS (alpha=0.5)": GOOD**-1})
    for name in ("emtl-table2-best", "emtl-table2-stl", "fairgrad-best", "fairgrad-fair-losses"):
        assert (good[name].would, bad[name].would) == ("reproduced", "contradicted"), name
    assert good["fairgrad-conflict"].would == "reproduced" and good["fairgrad-conflict"].parts[1].d == 5.125
    assert bad["fairgrad-conflict"].would == "1 reproduced, 1 contradicted", "the check of gradients needs no rows"
    assert bad["emtl-table2-metrics"].would == "contradicted" and len(good["emtl-table2-metrics"].parts) == 8
    assert good["emtl-table2-mgda"].would == "reproduced"
    some = rows(MGDA=1.0)
    for row in some:
        row["history"][0]["rates"] = [5.0, 1.0, 0.1]  # now segmentation has the smallest gradient norm
    assert results.favoured(some).word == "contradicted"


def test_rivals_that_lack_rows_are_waited_for() -> None:
    some = rows(LS=1.0, MGDA=1.0, EMTL=GOOD**2, **FAIR)
    one = results.findings(some, results.lines(some), None)[0]
    assert "waits for SI, RLW" in one.said


def test_the_rows_that_run_first_decide_the_two_sentences_that_need_no_others() -> None:
    first = rows(LS=1.0, EMTL=GOOD, **{"FairGrad (alpha=2)": GOOD**2})
    made = {one.claim: one for one in results.findings(first, results.lines(first), None)}
    assert [*made] == ["emtl-table2-stl", "fairgrad-conflict"]
    assert made["fairgrad-conflict"].would == "reproduced" and made["emtl-table2-stl"].would == "reproduced"
    assert set(UNET.doubled) <= set(table2.GROUP_A) and "MGDA" not in UNET.doubled


def test_rows_of_a_gpu_say_who_leads_and_why_they_decide_nothing() -> None:
    some, twice = (rows(LS=1.0, MGDA=1.0, EMTL=emtl, **FAIR) for emtl in (GOOD, GOOD**2))
    for row in [*some, *twice]:
        row |= {"config": row["config"] | {"problem": "nyuv2"}, "fingerprint": "constructed"}
    made = UNET.shows(UNET, "gpu", some, "constructed", ())
    leads = made.leads
    assert leads.loc["LS", "EMTL ahead of"].startswith("+10.0") and leads.loc["EMTL", "EMTL ahead of"] == "–"
    assert leads.loc["EMTL", "FairGrad (alpha=2) ahead of"].startswith("-")
    assert made.waiting.endswith(
        "(fewer seeds than declared, epochs were not doubled, 10 of EMTL's 12 rivals lack seeds)"
    )
    doubled = UNET.shows(UNET, "gpu", some, "constructed", (), doubled=(some, twice))
    assert "40 epochs are not enough" in doubled.waiting and doubled.checks["converged"].passed is False
    said, again = doubled.stretched, UNET.shows(UNET, "gpu", some, "constructed", (), doubled=(some, some))
    assert list(said.columns) == [f"{own}, {n} epochs" for n in (40, 80) for own in ("EMTL", "FairGrad (alpha=2)")]
    assert said.loc["LS", "EMTL, 40 epochs"] != said.loc["LS", "EMTL, 80 epochs"]
    assert again.checks["converged"].passed and "epochs" not in again.waiting
    (wide,) = TABLE2.chosen("gpu")
    assert tuple(TABLE2.models["gpu"]) == ("segnet", "mtan") and dict(wide) == {"amp": True, "width": 32}
    assert UNET.grids("gpu") == {} and UNET.longer("gpu").budget["gpu"].epochs == 80, "nothing is chosen on a card"


def test_readings_of_table2_decide_together() -> None:
    readings = dict.fromkeys(results.READINGS, GOOD**2)
    assert found(**readings, **FAIR)["emtl-table2-best"].would == "reproduced"
    one = found(**readings | {"EMTL (raw)": GOOD**-2}, **FAIR)["emtl-table2-best"]
    assert one.would == "depends on the reading"
    assert "literal: reproduced, raw: contradicted, frozen norm: reproduced" in one.said
    assert [part.name for part in one.parts] == list(SETTINGS)


def test_doubled_epochs_move_a_lead_in_its_own_units() -> None:
    once, twice = (results.lines(rows(LS=1.0, EMTL=factor)) for factor in (1.0, GOOD))
    moved = results.moves([once, twice], [results.DELTA, "depth/abs"])
    assert moved is not None and set(moved) == {
        f"{x} {m}" for x in ("STL", "EMTL") for m in (results.DELTA, "depth/abs")
    }
    assert moved["EMTL delta-m"] == pytest.approx(10, abs=0.05), "a tenth of STL at every metric, in points"
    assert moved["EMTL depth/abs"] == pytest.approx(10, abs=0.05) and moved["STL delta-m"] == pytest.approx(0)
    assert results.moves([], [results.DELTA]) is None
    some = rows(**dict.fromkeys((*SETTINGS, "MoCo"), 1.0), EMTL=GOOD, **FAIR)
    for tables, passed in (([once, once], True), ([once, twice], False)):
        gate = results.findings(some, results.lines(some), None, tables)[0].gate
        assert {check.name: check.passed for check in gate}["converged"] is passed


def test_what_the_printed_table_says_of_its_own_text():
    said = results.paper_says().set_index("the text says")["the printed table says"]
    assert said["EMTL best at 8 of 10 metrics"] == "7 of 9, and delta-m: 8 of 10"
    assert said["EMTL above STL at 8 of 9 metrics"] == "7 of 9"
    assert said["best delta-m by over one point"] == "by 1.36 over Nash-MTL"
    printed = results.printed()
    assert printed.loc["MGDA", "recomputed"] == pytest.approx(1.59, abs=0.005)
    assert printed.loc["EMTL", "source"] == "EMTL Table 2" and printed.loc["FairGrad", "source"] == "NTKMTL Table 1"


def test_beside_the_paper_only_sourced_numbers():
    study = table2.Table2(
        TABLE2, "study", rows(LS=1.0, **{"FairGrad (alpha=2)": GOOD, "Fair LS (alpha=0.5)": GOOD}), "d", ()
    )
    study.frame.loc[study.frame["label"] == "STL", [results.DELTA, results.FAIRER]] = -1e-9  # rounding of a mean
    beside = study.paper
    assert beside.loc["LS", "paper delta-m"] == "5.59" and beside.loc["FairGrad (alpha=2)", "paper delta-m"] == "-4.66"
    paper = [name for name in beside.columns if name.startswith("paper")]
    assert (beside.loc["Fair LS (alpha=0.5)", [*paper, "source"]] == "").all()
    assert beside.loc["STL", "delta-m"] == beside.loc["STL", "by task"] == "0.0"


def test_every_method_of_the_grid_has_a_look_and_every_scale_a_budget():
    scales = {"smoke", "quick", "study", "gpu", "paper"}
    assert set(TABLE2.seeds) == set(TABLE2.budget) == set(TABLE2.variants) == set(TABLE2.methods) == scales
    assert TABLE2.budget["paper"] == Budget(200, 2, lr=1e-4, halve_at=100, last=10)
    results.formatted(results.lines(rows(**{label: 1.0 for label, _, _ in TABLE2.entries("paper") if label != "STL"})))
    figures.change_figure(results.lines(rows(LS=1.0)), [])


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A ledger of four runs on digits, in the place of the published ones."""
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    entries = [("LS", "ls", {}), ("fast", "ls", {"lr": 0.02})]
    budget = Budget(1, 256, lr=0.01)
    cells = grid("digits", entries, ["mlp"], [0, 1], "smoke", budget, tasks=2)
    run_grid(cells, ledger=(book := Ledger(tmp_path / "data" / "ledger" / "demo.jsonl")))
    publish(book)
    shutil.rmtree(book.path)
    return entries, budget, cells


def test_published_rows_are_found_without_the_data(made):
    entries, budget, cells = made
    found = published("demo", "smoke", entries, budget, ["mlp"], tasks=2)
    assert [(row["label"], row["config"]["seed"]) for row in found] == [("LS", 0), ("fast", 0), ("LS", 1), ("fast", 1)]
    assert [row["key"] for row in found] == [cell.key() for cell in cells]
    assert published("demo", "smoke", entries, budget, ["mlp"], tasks=3) == []
    assert published("demo", "quick", entries, budget, ["mlp"]) == published("demo", "smoke", entries, budget, []) == []
    points = tried({"ls": [point for *_, point in entries]}, {})
    found = published("demo", "smoke", points, budget, ["mlp"], tasks=2)
    scores = [np.mean([r["validation"]["score"] for r in found if r["label"] == label]) for label, _, _ in points]
    assert choose(points, found, 2).best["ls"] == points[int(np.argmax(scores))][2]


def test_a_row_can_be_looked_up_and_run_anew(made):
    _, _, cells = made
    name = cells[0].key()
    file, row = find_row(name)
    assert file == "demo.jsonl"
    shown = CliRunner().invoke(app, ["row", name, "--again"])
    assert shown.exit_code == 0 and repr(row["metrics"]["score"]) in shown.output
    path = find_row.__globals__["root"]() / "data" / "ledger" / file
    text = path.read_text()
    path.write_text(text.replace(repr(row["metrics"]["score"]), "0.125"))
    assert "its content is not that of its sha256" in CliRunner().invoke(app, ["row", name]).output
    other = {**row, "metrics": {**row["metrics"], "score": 0.125}}  # whole, but from elsewhere
    path.write_text(json.dumps(other) + "\n")
    changed = CliRunner().invoke(app, ["row", name, "--again"])
    assert changed.exit_code == 1 and "the metrics differ" in changed.output
    assert "no ledger below data/ledger has 'nothing'" in CliRunner().invoke(app, ["row", "nothing"]).output
    assert [json.loads(line)["key"] for line in text.splitlines()] == sorted(cell.key() for cell in cells)


def test_figures_are_drawn(made):
    some = rows(LS=1.0, MGDA=GOOD, EMTL=GOOD)
    for row in some:
        row["trace"] = [[step, 0.2, 0.3, 0.5] for step in range(5)]
    assert len(figures.change_figure(results.lines(some), ["EMTL"]).axes) == 1
    assert len(figures.training_figure(some, ["LS", "EMTL"]).axes) == 4
    data: Any = problem("rooms", "smoke", resolution="32x48")
    cell = grid("rooms", [("LS", "ls", {})], ["segnet"], [0], "smoke", Budget(1, 4), resolution="32x48")[0]
    fig = figures.panel_figure(data, {"LS": refit(cell)}, [0])
    assert len(fig.axes) == 9


@pytest.mark.parametrize("epoch", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_scene_run_stopped_in_any_epoch_and_resumed_is_the_same(tmp_path, epoch):
    data = problem("rooms", "smoke", resolution="32x48", amp=True)
    how: Any = {"model": "mtan", "seed": 0, "budget": Budget(3, 4, lr=1e-3, halve_at=1, last=2)}
    kept: Any = how | {"checkpoint": tmp_path / "run.pt", "checkpoint_every": 0}
    whole = fit(data, method("emtl", n_tasks=3), **how)

    def stop(line: dict[str, Any]) -> None:
        if line["epoch"] == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(data, method("emtl", n_tasks=3), progress=stop, **kept)
    assert (tmp_path / "run.pt").exists()
    resumed = fit(data, method("emtl", n_tasks=3), **kept)
    assert {name: getattr(resumed, name) for name in ("metrics", "last", "history", "trace")} == {
        name: getattr(whole, name) for name in ("metrics", "last", "history", "trace")
    }


def test_real_and_rendered_rows_never_share_a_table():
    mixed = rows(LS=1.0)
    mixed[-1]["synthetic"] = True
    with pytest.raises(ValueError, match="real and synthetic runs never share"):
        results.formatted(results.lines(mixed))


def test_the_appendix_on_hyperparameters_varies_one_at_a_time() -> None:
    made = hyperparameters_nyuv2.HYPERPARAMETERS_NYUV2
    points = [point for _, method, point in made.entries("study") if method == "emtl"]
    assert made.budget["study"] == UNET.budget["study"] and made.seeds["study"] == (10, 11, 12)
    assert {p["rho"] for p in points if p["alpha"] == 0.5} == {0.1, 0.3, 0.5, 0.8, 1.0, 1.2}
    assert {p["alpha"] for p in points if p["rho"] == 0.3} == {0.0, 0.1, 0.25, 0.4, 0.5} and len(points) == 6 + 5 - 1
    for point in points:
        assert method("emtl", n_tasks=3, **point).rho == point["rho"], "none is replaced by a smaller one"
    labels = [label for label, name, _ in made.entries("study") if name == "emtl"]
    some = rows(**{label: GOOD ** (1 + point["alpha"]) for label, point in zip(labels, points, strict=True)})
    hyper = dict(zip(labels, points, strict=True))
    for row in some:
        row["config"] |= {"hyper": hyper.get(row["label"], {})}
    study = hyperparameters_nyuv2.HyperparametersNYUv2(made, "study", some, "constructed", ())
    spread = study.spread.set_index("hyperparameter")["range of the mean delta-m"]
    assert spread["rho"] < 1e-9 < 4 < spread["alpha"] and list(study.table.index) == ["STL", *labels]
    assert study.spread["best"].tolist() == ["0.5", "0.1"] and len(study.figure().axes) == 2
