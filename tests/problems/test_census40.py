"""Forty tasks of Census-Income: no feature restates one, capacity is matched, the stand-in says what it is."""

import numpy as np
import pytest

from mtl.errors import DataError
from mtl.methods import method
from mtl.models.matched import count, matched_single_task
from mtl.problems import MissingDataError, problem
from mtl.problems.census import COLUMNS, NUMBERS
from mtl.problems.census40 import FIELDS, RESTATING, TARGETS, TASKS
from mtl.training.fit import Budget, fit
from tests.problems.test_census import folder, rows, write  # noqa: F401


def table(n, seed):
    """Rows of the miniature with every word of a task in some of them; a feature that restates none."""
    found, draw = rows(n, seed), np.random.default_rng(seed)
    for i, row in enumerate(found):
        for column, words in TARGETS.items():
            every = [word for word in words.values() if column != "income"] or ["50000+.", "- 50000."]
            row[COLUMNS.index(column)] = str(draw.choice([*every, row[COLUMNS.index(column)]]))
            if i < 4 and column != "income":
                row[COLUMNS.index(column)] = every[i % len(every)]
    return found


def test_forty_tasks_of_twelve_columns_none_of_which_is_a_feature():
    assert len(TASKS) == 40 and max(map(len, TARGETS.values())) <= 4
    assert not set(FIELDS) & {*TARGETS, *RESTATING, *NUMBERS, "instance_weight"}
    assert set(FIELDS) | {*TARGETS, *RESTATING, *NUMBERS, "instance_weight"} == set(COLUMNS)


def test_each_label_says_whether_its_column_has_its_word(folder):  # noqa: F811
    write(folder, table(300, 0), "census-income.data.gz")
    write(folder, table(120, 1), "census-income.test.gz")
    data, found = problem("census40", "paper"), table(120, 1)
    *_, targets = data.data("test")
    words = {task: [row[COLUMNS.index(column)] for row in found] for task, (column, _) in TASKS.items()}
    for t, (task, (_, word)) in enumerate(TASKS.items()):
        assert sorted(targets[:, t].tolist()) == sorted(float(own == word) for own in words[task])
    assert targets[:, list(TASKS).index("white")].sum() + targets[:, list(TASKS).index("black")].sum() <= 120


def test_a_word_that_no_row_has_is_named(folder):  # noqa: F811
    with pytest.raises(DataError, match=r"census: class_of_worker must hold 'Private' in some row, found it in none"):
        problem("census40")


def test_no_feature_restates_a_task_where_census_is_found():
    """Of the rarer class at least 5 % stay to be guessed, whatever one categorical feature says."""
    try:
        data = problem("census40", "study")
    except MissingDataError:
        pytest.skip("Census-Income is not here")
    ids, _, targets = (part.numpy() for part in data.data("train"))
    rate = targets.mean(0)
    assert 0.01 < rate.min() < 0.02 and 0.85 < rate.max() < 0.94
    least = 1.0
    for column in ids.T:
        sizes = np.bincount(column)
        ones = np.stack([np.bincount(column, y, len(sizes)) for y in targets.T])
        left = np.minimum(ones, sizes - ones).sum(1) / len(ids)
        least = min(least, (left / np.minimum(rate, 1 - rate)).min())
    assert 0.05 < least < 1


def test_forty_matched_nets_are_as_large_as_the_shared_one():
    data = problem("census40_like", "quick")
    shared, alone, matched = (count(data.model(name, 0)) for name in data.models)
    assert 0.97 * shared < matched <= shared < alone / 3
    with pytest.raises(
        ValueError, match=r"width: 400 nets of width 1 have \d+ parameters, found only \d+ in the shared"
    ):
        matched_single_task([2000], 1, 400, embedding=4, width=1, hidden=1, seed=0)


def test_the_stand_in_is_synthetic_and_can_be_learnt(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    monkeypatch.delenv("MTL_DATA", raising=False)
    made = problem("census40", fallback="census40_like")
    assert made.synthetic and made.describe().startswith("EMBEDDED DEFAULT: census40 was not found, generated rows")
    rates = made.data("train")[-1].mean(0)
    assert len(made.tasks) == 40 and 0.01 < rates.min() < 0.03 and 0.85 < rates.max() < 0.95
    assert made.fingerprint == problem("census40_like").fingerprint
    run = fit(made, method("ls", 40), model="shared-bottom", seed=0, budget=Budget(1, 150, lr=0.03))
    assert run.metrics["score"] > 0.65
