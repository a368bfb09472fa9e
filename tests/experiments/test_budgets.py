"""The paper's table of studies says what rows were made with."""

from mtl.experiments import budgets
from mtl.experiments.registry import EXPERIMENTS
from mtl.experiments.table1.equal import EQUAL
from mtl.experiments.table2 import GROUP_A, UNET
from mtl.files import root


def test_a_study_says_its_data_net_budget_tuning_and_seeds() -> None:
    said = budgets.line(EQUAL.published("study"))
    assert (said["study"], said["nets"], said["seeds"]) == ("table1_equal", "mmoe, ple", "10–19")
    assert said["training"] == "adam, batch 2048, 4 epochs of 88 steps, rate 0.008"
    assert said["tuned"] == "4 points, seeds 100–101" and said["rows"] == 390 and "Census" in said["data"]
    untuned = budgets.line(UNET.published("gpu", methods=GROUP_A))
    assert untuned["study"] == "table2_unet (gpu)" and untuned["tuned"] == "–" and "adamw" in untuned["training"]
    every = {(study.experiment.name, study.scale, group): study.seeds for group, study in budgets.studies()}
    assert len(every["table2_unet", "gpu", "group A"]) == 10 > len(every["table2_unet", "gpu", "all rows"]) > 0
    assert len(every["table2_unet", "study", "group A"]) == 10
    assert ("table2_unet", "study", "all rows") not in every, "groups B and C are to be run"
    assert f"| {said['study']} | " in (root() / "paper/generated/studies.md").read_text()


def test_steps_stand_where_there_are_no_epochs() -> None:
    """MT10 counts evaluations; its line ended in KeyError as soon as its rows were whole."""
    assert "60,000 steps" in budgets.line(EXPERIMENTS["mt10"].published("study"))["training"]
