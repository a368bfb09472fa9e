"""Forty tasks: mean and median of delta-m, who is below STL, the budget, the verdict; a run on the stand-in."""

import json

import numpy as np
import pytest

from mtl.experiments.many_tasks import BELOW, FIXED, GINI, MANY_TASKS, MEAN, MEDIAN, RARE, WORST, gini
from mtl.experiments.many_tasks import ManyTasks as Shown
from mtl.ledger import Ledger
from mtl.methods import method
from mtl.problems.census40 import TASKS
from mtl.runs.cells import split
from mtl.runs.tuning import published
from mtl.training.fit import Budget

NAMES = ("a", "b", "c", "d")


def rows(levels, seeds=(10, 11, 12, 13, 14)):
    """Per label the log-losses of four tasks and a score; those after the first epoch are all of STL's."""
    made = []
    for seed in seeds:
        for label, (losses, score) in levels.items():
            scale, noise = 1 + 0.1 * (seed - 10), 1e-4 * ((seed * 7 + len(label)) % 5)
            metrics = {f"{t}/log-loss": scale * loss for t, loss in zip(NAMES, losses, strict=True)}
            metrics |= {"score": score + noise}
            first = {f"{t}/log-loss": 1.0 for t in NAMES} | {"score": 0.5}
            history = [{"steps": 79, "validation": first}, {"steps": 158, "validation": metrics}]
            config = {"method": "ls", "seed": seed, "options": {}}
            made.append({
                "key": f"{label}{seed}", "label": label, "status": "ok", "metrics": metrics, "history": history,
                "config": config, "fingerprint": "", "steps": 158,
            })  # fmt: skip
    return made


LEVELS = {
    "STL": ([1, 1, 1, 1], 0.80), "STL matched": ([1, 1, 1, 2], 0.70), "LS": ([0.9, 0.9, 1.1, 0.1], 0.80),
    "FairGrad (alpha=2)": ([1.2, 1.2, 1.2, 1.2], 0.75),
}  # fmt: skip


def study(levels=LEVELS):
    return Shown(MANY_TASKS, "study", rows(levels), "constructed", NAMES)


def test_rows_that_are_published_without_their_history_have_no_column_of_the_first_epoch():
    shown = Shown(MANY_TASKS, "study", [row | {"history": []} for row in rows(LEVELS)], "constructed", NAMES).table
    assert [*shown.columns, "median after 79 steps ↓"] == [*study().table.columns]
    assert "At most 158 steps" in shown.attrs["caption"] and "first epoch" not in shown.attrs["caption"]


def test_a_near_deterministic_task_pulls_the_mean_and_not_the_median():
    means = study().frame.groupby("label")[[MEAN, MEDIAN, WORST, BELOW, GINI]].mean()
    assert means.loc["LS"].tolist() == pytest.approx([-25, -10, 10, 1, gini([0.9, 0.9, 1.1, 0.1])])
    assert means.loc["FairGrad (alpha=2)"].tolist() == pytest.approx([20, 20, 20, 4, 0], abs=1e-9)
    assert means.loc["STL"].tolist() == pytest.approx([0, 0, 0, 0, 0], abs=1e-9)
    assert study().early.groupby("label")[MEDIAN].mean().abs().max() < 1e-9


def test_a_run_without_a_result_is_no_zero():
    made = study()
    made.rows[-1]["metrics"] = dict.fromkeys(made.rows[-1]["metrics"])
    assert made.frame[[MEAN, BELOW, GINI]].isna().all(axis=1).tolist() == [False] * 19 + [True]


def test_gini_is_scale_free_and_refuses_what_has_none():
    assert gini([1, 2, 3, 4]) == pytest.approx(gini([10, 20, 30, 40])) == pytest.approx(0.25)
    for wrong in ([], [-1, 2], [0, 0], [np.nan, 1]):
        with pytest.raises(ValueError, match="values: needed are values of at least 0 and a positive sum"):
            gini(wrong)


def test_the_table_and_pictures_show_both_budgets():
    made = study()
    assert list(made.table)[-1] == "median after 79 steps ↓" and made.table.loc["LS", f"{BELOW} ↓"].strip(
        "*"
    ).startswith("1.0")
    bars = made.figure().axes
    assert len(bars) == 4 and [len(ax.patches) for ax in bars] == [4] * 4 and "79 steps" in bars[0].get_ylabel()
    assert [ax.get_title() for ax in bars] == ["LS", "FairGrad (alpha=2)", "", ""]
    assert [line.get_label() for line in made.budget().axes[0].lines[:-1]] == [n for n in LEVELS if n != "LS"]
    assert "Ahead of LS in mean AUC at the chosen epoch: none." in made.answer()


def test_the_input_blind_predictor_is_a_line_of_the_table(monkeypatch):
    assert "input-blind" not in study().table.index, "it has no row"
    monkeypatch.setattr(Shown, "blind", {f"{t}/log-loss": 4.0 for t in NAMES} | {"score": 0.5})
    shown = study().table
    found = shown.loc["input-blind"].tolist()  # STL's level is 1, 1.1, ... 1.4
    mean = np.mean([100 * (4 / (1 + 0.1 * k) - 1) for k in range(5)])
    assert found == ["0.5000", *[f"{mean:.1f}"] * 3, "4.0", "0.000", "–", "–"] and len(shown) == 5


def test_sharing_is_judged_at_matched_capacity():
    (found,) = study().findings()
    assert (found.would, found.word) == ("reproduced", "inconclusive (assay)") and found.n == 5
    assert found.beside[0].word == "practically equal"
    worse = LEVELS | {"STL matched": ([1, 1, 1, 1], 0.9)}
    assert study(worse).findings()[0].would == "contradicted"


def test_published_rows_are_told_apart_by_net_and_by_problem(tmp_path, monkeypatch):
    """STL, STL matched and LS are one method at one point: only the net says which is which."""
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    (tmp_path / "data" / "ledger").mkdir(parents=True)
    budget, entries = Budget(1, 64), MANY_TASKS.entries("study", ["STL", "STL matched", "LS"])
    nets = {"STL": "single-task", "STL matched": "single-task-matched", "LS": "shared-bottom"}
    lines = []
    for name in ("census40", "qm9"):
        config = {"problem": name, "method": "ls", "hyper": {}, "budget": budget.settings(), "seed": 10}
        config |= {"scale": "study", "options": {}}
        lines += [{"key": f"{net} {name}", "config": config | {"model": net}} for net in nets.values()]
    (tmp_path / "data" / "ledger" / "book.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    how = {
        "entries": [(label, name, {k: v for k, v in point.items() if k == "model"}) for label, name, point in entries]
    }
    found = published("book", "study", budget=budget, models=["shared-bottom"], wanted="census40", **how)
    assert {row["label"]: row["key"] for row in found} == {label: f"{net} census40" for label, net in nets.items()}
    assert len(published("book", "study", budget=budget, models=["shared-bottom"], **how)) == 6


def test_every_row_of_the_study_is_tuned_alike():
    grids = MANY_TASKS.grids("study")
    assert [len(points) for points in grids.values()] == [3] * 12 and set(RARE) < set(TASKS)
    names = {label: name for label, name, _ in MANY_TASKS.methods["study"]}
    for label, points in grids.items():
        for point in [*points, *MANY_TASKS.trials["study"].then.get(label, ())]:
            method(names[label], n_tasks=40, **split(point, MANY_TASKS.budget["study"])[1])
    assert len(FIXED) == len(MANY_TASKS.trials["study"].then["EMTL"]) and MANY_TASKS.seeds["study"][0] == 10


def test_it_runs_on_the_stand_in_and_says_so(tmp_path, nowhere):
    made = MANY_TASKS.study("smoke", seeds=[10], methods=["STL", "LS"], progress=None, ledger=Ledger(tmp_path / "m"))
    assert made.synthetic and "census40 was not found" in made.data and "fallback=census40_like" in made.command
    assert list(made.frame["label"]) == ["STL", "LS", "LS A/A"] and made.frame[MEAN].notna().all()
    assert [row["config"]["model"] for row in made.rows] == ["single-task", "shared-bottom", "shared-bottom"]
