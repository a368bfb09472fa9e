"""The simulated A/B test: what a better, a shuffled and the same ranker give, its statistics, and that it says so."""

import copy

import numpy as np
import pytest
import torch

from mtl import sources
from mtl.errors import RunError
from mtl.experiments import ab_runs, ab_test
from mtl.experiments.ab_runs import ARMS, BASE, ORACLE, SHUFFLED, TRAINED, Served
from mtl.experiments.ab_test import BUDGET, DESIGNS
from mtl.ledger import Ledger
from mtl.models.base import Constant
from mtl.problems.shortvideo import ShortVideo, World
from mtl.report.stats import cuped, difference_ci


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    book = Ledger(tmp_path_factory.mktemp("ab") / "ab_test.jsonl")
    return ab_test.study("smoke", book), book


def test_one_row_a_replicate_and_a_second_call_runs_nothing(found, monkeypatch):
    study, book = found
    design = DESIGNS["smoke"]
    assert len(study.rows) == design.worlds * design.seeds and len(book.rows()) == len(study.rows) + 1
    monkeypatch.setattr(ab_runs, "replicate", lambda *_: pytest.fail("run again"))
    again = ab_test.study("smoke", book)
    assert again.table.equals(study.table) and again.errors.equals(study.errors)
    assert ab_runs.TUNING not in {row["config"]["world"] for row in study.rows}


def test_published_rows_of_the_study_are_shown_whole_or_not_at_all(found, monkeypatch):
    study, book = found
    rows = copy.deepcopy(book.rows())
    monkeypatch.setitem(DESIGNS, "study", DESIGNS["smoke"])
    monkeypatch.setitem(BUDGET, "study", BUDGET["smoke"])
    for row in rows:  # what a study of this size would have written
        row["config"]["scale"] = "study"
        row["key"] = ab_test.key(row["config"], "simulated")
    monkeypatch.setattr(Ledger, "published", lambda self: rows)
    shown = ab_test.published(at="quick")
    assert shown.table.equals(study.table) and (shown.facts["scale"], shown.facts["at"]) == ("study", "quick")
    monkeypatch.setattr(Ledger, "published", lambda self: rows[:-1])
    assert ab_test.published(at="quick") is None


def test_the_oracle_gains_and_every_output_says_that_it_is_a_simulation(found):
    study, _ = found
    assert list(study.table.index) == list(ARMS)
    assert study.table.loc[ORACLE, "of the headroom"].startswith("+1.000")
    assert study.worlds[ORACLE].min() > study.worlds[SHUFFLED].max()
    made = (study.table, study.errors, study.figure())
    assert all((m.attrs["caption"]).startswith("SIMULATION") for m in made)
    assert "simulated" in study.facts["data"] and all(row["synthetic"] for row in study.rows)
    best = study.tuning["metrics"]
    for arm in TRAINED:
        assert best["best"][arm] == list(ab_runs.FORMULAS[int(np.argmax(best["trials"][arm]))])


def test_rows_count_as_old_when_a_method_changes_and_not_when_a_table_does(found):
    files = sources.closure(found[0].rows[0]["provenance"]["modules"])
    assert {"mtl.methods.emtl", "mtl.methods.gram", "mtl.experiments.ab_runs"} <= set(files)
    assert not [name for name in files if name.startswith(("mtl.experiments.t", "mtl.report.c"))]


def test_users_are_split_and_none_is_in_two_arms():
    world, users = World(3, 300, 200), np.arange(0, 300, 2)
    whole = ab_runs.serve(world, world.oracle(), users, range(2), 0)
    assert whole.watch.shape == (150, 2)
    shown = [world.serve(world.oracle(), users, day, 0) for day in range(2)]
    assert whole.rows.sum() == sum(len(s.user) for s in shown)
    assert whole.watch.sum() == pytest.approx(sum(s.watch.sum() for s in shown))
    assert whole.squares.sum() == pytest.approx(sum((s.watch**2).sum() for s in shown))
    order = ab_runs.permutation(700, 7).reshape(7, -1)
    assert len(np.unique(order)) == 700


def test_a_network_ranks_by_its_own_predictions_with_the_powers_given():
    data = ShortVideo("smoke", users=300)
    user, pool = np.arange(5), np.random.default_rng(0).integers(0, data.world.videos, (5, 40))

    class Longest(Constant):
        def forward(self, ids, numbers):
            return [torch.zeros(len(ids)), numbers[:, 0], -numbers[:, 0]]

    longest = data.world.duration[pool].argmax(1)
    net = Longest([torch.tensor(0.0)] * 3)
    assert (ab_runs.learned(data, net, (0, 1, 0))(user, pool, 0).argmax(1) == longest).all()
    assert (ab_runs.learned(data, net, (0, 0, 1))(user, pool, 0)[np.arange(5), longest] < 4).all()
    assert np.ptp(ab_runs.learned(data, net, (1, 0, 0))(user, pool, 0)) == 0


def test_false_positives_hold_by_user_and_are_inflated_by_row_and_by_a_look_a_day():
    draw = np.random.default_rng(0)
    users, days = 400, 28
    habit = np.exp(draw.normal(size=users))
    rows, watch = np.full(users, 10.0), habit[:, None] * draw.exponential(size=(users, days))
    squares = 2 * watch.sum(1) ** 2 / rows  # as exponential rows have, around a mean that is the user's own
    rates = ab_runs.same_users(Served(watch, rows, squares), habit, 400, 0)
    assert 0.01 <= rates["by user"] <= 0.08 and 0.01 <= rates["CUPED"] <= 0.08
    assert rates["by row"] > 0.2 and rates["a look a day"] > 0.08


def test_cuped_leaves_the_difference_and_takes_the_noise():
    draw = np.random.default_rng(1)
    before = draw.normal(size=4_000)
    arm = np.repeat([0, 1], 2_000)
    y = 10 + 0.5 * arm + 2 * before + draw.normal(size=4_000)
    plain, less = (difference_ci(v[arm == 1], v[arm == 0]) for v in (y, cuped(y, before)))
    assert less.low < 0.5 < less.high and less.half < 0.5 * plain.half
    assert cuped(y, np.ones(4_000)) == pytest.approx(y), "a constant explains nothing"
    assert cuped(y, before).mean() == pytest.approx(y.mean())


def test_a_failed_network_stops_the_replicate(monkeypatch):
    class Broken:
        status = "non-finite"

    monkeypatch.setattr(ab_runs, "fit", lambda *_, **__: Broken())
    with pytest.raises(RunError, match="MMoE in world 0, seed 1: must end with a result, found non-finite"):
        ab_runs.train("smoke", 0, 300, 1, BASE, BUDGET["smoke"])
