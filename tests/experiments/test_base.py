"""Experiments by name: what they name exists, they run and resume, what is left is told."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mtl.errors import RunError
from mtl.experiments import ab_test, alpha, base, cost, fairness, figure1, gallery, gap, loss_scale, readings, theorem
from mtl.experiments.base import Experiment
from mtl.experiments.beside import beside_paper, differences, standing
from mtl.experiments.declared import declared
from mtl.experiments.gap import dose, rates
from mtl.experiments.registry import EXPERIMENTS
from mtl.experiments.start import with_rule
from mtl.experiments.study import Study
from mtl.files import root
from mtl.ledger import Ledger, ledger, publish
from mtl.methods import METHODS
from mtl.problems import digits
from mtl.training.fit import Budget

TINY = Experiment(
    name="tiny",
    problem="digits",
    methods=(("LS", "ls", {}), ("MGDA", "mgda", {})),
    models=("mlp",),
    seeds={"smoke": (0, 1)},
    budget={"smoke": Budget(epochs=1, batch_size=200)},
    variants={"smoke": ({"tasks": 2},)},
)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_names_what_exists(name: str) -> None:
    one = EXPERIMENTS[name]
    assert one.name == name
    assert set(one.seeds) <= set(one.budget) and set(one.variants) >= set(one.seeds) >= {"smoke", "quick", "paper"}
    for scale in one.seeds:
        for variant in one.chosen(scale):
            entries = one.entries(scale, **variant)
            assert {method for _, method, _ in entries} <= set(METHODS)
            assert len({(label, str(point)) for label, _, point in entries}) == len(entries)
            sizes = {len(points) for points in one.grids(scale, **variant).values()}
            assert len(sizes) <= 1, "the same tuning budget for each method"
    beside = ("table1_heads", "table1_kuairand_heads")  # the studies that they stand beside have it
    swept = name in ("hyperparameters", "loss_scale", "readings", *beside)
    assert swept or any("stl" in (label.lower(), m) for label, m, _ in one.entries("quick")), (
        "single-task learning in every table"
    )


def test_what_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match=r"methods: must be among LS, UW,.*, found 'SGD'"):
        EXPERIMENTS["census"].cells("smoke", methods=["SGD"])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_seeds_and_methods_are_lists_that_say_nothing_twice(name: str) -> None:
    """A seed named twice once counted as two runs, and a single label was taken for its letters."""
    one = EXPERIMENTS[name]
    wrong: list[Any] = [2, "10", [], [0, 0], [-1], [1.0], [True]]
    for seeds in wrong:
        with pytest.raises(ValueError, match=r"seeds: must be a list of different whole numbers of at least 0, found"):
            one.study("smoke", seeds)
    assert one.asked("smoke", np.arange(2)) == (0, 1) and one.asked("smoke", range(3, 5)) == (3, 4)
    for methods in ("LS", 3, []):
        with pytest.raises(ValueError, match=r"methods: must be a list among .*, found"):
            one.study("smoke", [0], methods)  # type: ignore[arg-type]


DESIGNS = (ab_test, cost, dose, fairness, figure1, gallery, gap, loss_scale, rates, readings, theorem)  # of their own
OWN = {one.__name__.split(".")[-1]: one.study for one in DESIGNS} | {"alpha": partial(alpha.study, alpha.SWEEPS)}


@pytest.mark.parametrize("name", [*EXPERIMENTS, *OWN])
def test_a_wrong_scale_of_a_notebook_is_named(name: str) -> None:
    study = OWN[name] if name in OWN else EXPERIMENTS[name].study
    with pytest.raises(ValueError, match=r"scale: must be one of .*smoke, .*, found 'quik'"):
        study("quik")


def test_every_study_of_a_notebook_is_asked_for_a_wrong_scale() -> None:
    cells = "".join(path.read_text(encoding="utf-8") for path in (root() / "notebooks").glob("*.ipynb"))
    called = {name for name in re.findall(r"\b([a-z_0-9]+)\.study\(", cells) if name != "mine"}
    assert called and called <= set(OWN)


def test_one_deadline_holds_for_all_that_a_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each grid once had the whole of it."""
    clock, given = iter(range(0, 1000, 40)), list[Any]()
    monkeypatch.setattr(base.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(base, "run_grid", lambda cells, **how: given.append(how["deadline"]) or [])
    monkeypatch.setattr(Experiment, "tuned", lambda self, *_, **how: given.append(how["deadline"]) or {})
    TINY.run("smoke", deadline=100)
    assert given == [60.0, 20.0]
    given.clear()
    TINY.run("smoke", deadline=30)
    assert given == [0.0, 0.0], "none is below 0"


def test_an_experiment_runs_resumes_and_says_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    monkeypatch.setenv("MTL_LEDGER", str(tmp_path / "there"))
    heard: list[dict[str, Any]] = []
    assert len(TINY.run("smoke", [0], ["LS"])) == 1
    assert len(TINY.run("smoke", deadline=0, progress=heard.append)) == 1
    assert sorted(event["event"] for event in heard) == ["found", "left", "left", "left"]
    study = TINY.study("smoke", tasks=2)
    assert len(study) == len(Ledger(tmp_path / "there" / "tiny.jsonl").rows()) == 4
    assert repr(study).endswith("4 rows at scale smoke, seeds 0, 1, without a result: 0")
    assert study.facts["command"] == study.command == "mtl run tiny --scale smoke -p tasks=2"
    assert "Handwritten Digits" in study.facts["data"]
    assert [row["config"]["seed"] for row in TINY.run("smoke", (2, 3), together=True)] == [2, 2, 3, 3]


def test_a_notebook_shows_what_is_published_or_says_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    for sizes in (digits.ROWS, digits.SIZES):
        monkeypatch.setitem(sizes, "study", sizes["smoke"])  # type: ignore[attr-defined]
    scales = {"seeds": {"study": (10, 11)}, "budget": {"study": TINY.budget["smoke"]}}
    made = replace(TINY, **scales, methods=TINY.methods[:1], variants={"study": ({"tasks": 2}, {"tasks": 3})})  # type: ignore[arg-type]
    other = replace(made, name="late", book="late")
    assert declared(made, at="quick") == (None, "No study rows yet: `mtl run tiny --scale study`.")
    made.run("study", [10])
    publish(ledger("tiny"))
    study, said = declared(made, other, at="quick")
    assert study is not None and len(study) == 2 and study.facts["at"] == "quick" and study.seeds == [10]
    there, lacking = said.splitlines()
    assert there == "Study rows: tiny tasks=2: 1 of 2 seeds; tiny tasks=3: 1 of 2 seeds."
    assert lacking == "No study rows yet: `mtl run late --scale study`."


def test_one_more_method_for_the_first_table() -> None:
    assert [label for label, _, _ in with_rule("mine", "mgda").entries("smoke")][-1] == "mine"
    assert "mine" not in [label for label, _, _ in EXPERIMENTS["start"].entries("smoke")]


def test_a_label_of_the_first_table_is_taken() -> None:
    with pytest.raises(ValueError, match="label: must be none of STL, LS, FairGrad, EMTL, found 'LS'"):
        with_rule("LS", "mgda")


def test_a_scale_without_published_rows_is_named() -> None:
    with pytest.raises(ValueError, match="scale: must be one of smoke, quick, paper, found 'study'"):
        EXPERIMENTS["start"].published()


def test_values_that_a_notebook_cannot_use_are_named() -> None:
    for call, said in (
        (lambda: gap.study("smoke", 0), "draws: must be a whole number of at least 1, found 0"),
        (lambda: fairness.study("smoke", -1), "seed: must be a whole number of at least 0, found -1"),
        (lambda: theorem.study("smoke", "a"), "delta: must be a finite number"),  # type: ignore[arg-type]
        (lambda: cost.study("smoke", "mps"), "device: must be cpu, or cuda where there is one, found 'mps'"),
    ):
        with pytest.raises((ValueError, RunError), match=re.escape(said)):
            call()


def test_a_changed_budget_has_no_command(tmp_path: Path) -> None:
    """The side-car named one that makes other rows."""
    start = EXPERIMENTS["start"]
    rows = TINY.study("smoke", ledger=Ledger(tmp_path)).rows
    changed = replace(start, budget={**start.budget, "smoke": replace(start.budget["smoke"], lr=5e-3)})
    assert Study(replace(start, shows=Study), "smoke", rows, "", ()).command.startswith("mtl run start --scale smoke")
    assert "'lr': 0.005" in (said := Study(changed, "smoke", rows, "", ()).command) and said.startswith("none: start")


def test_a_table_without_its_reference_row_has_none(tmp_path: Path) -> None:
    some = TINY.study("smoke", methods=["MGDA"], ledger=Ledger(tmp_path))
    assert list(some.table.index) == ["MGDA"]
    with pytest.raises(ValueError, match="doubled: must hold the runs of the convergence check, found none"):
        some.moved("score", "MGDA", "LS")


def test_pairs_are_of_common_seeds_and_the_best_other_is_never_oneself() -> None:
    table = pd.DataFrame({"label": ["a", "a", "b", "b", "b"], "seed": [0, 1, 0, 1, 2], "m": [3.0, 5.0, 1.0, 1.0, 9.0]})
    assert differences(table, "m", "a", "b").to_dict() == {0: 2.0, 1: 4.0}
    means = pd.Series({"a": 2.0, "b": 1.0, "c": float("nan")})
    assert standing(means, "a", higher=True) == (1, 2, "b") and standing(means, "a", higher=False) == (2, 2, "b")


def test_a_papers_number_stands_right_of_ours() -> None:
    ours = pd.DataFrame({"x": ["1"], "y": ["2"]}, ["a"])
    paper = pd.DataFrame({"paper y": [0.25], "paper z": [None], "source": ["T"]}, ["a"])
    table = beside_paper(ours, paper, {"paper y": 1, "paper z": 1})
    assert table.iloc[0].to_dict() == {"x": "1", "y": "2", "paper y": "0.2", "paper z": "", "source": "T"}
