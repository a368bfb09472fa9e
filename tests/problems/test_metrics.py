"""Metrics against scikit-learn, against hand counts, and against a published row."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sk_log_loss
from sklearn.metrics import roc_auc_score

from mtl.errors import NonFiniteError
from mtl.problems import metrics


@pytest.mark.parametrize("levels", [2, 7, 10_000])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_auc_is_sklearns_with_many_few_and_no_ties(levels, kind):
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, 2000) / levels
    labels = (rng.random(2000) < 0.1 + 0.3 * scores).astype(int)
    ours = metrics.auc(torch.tensor(scores, dtype=kind), torch.tensor(labels))
    assert ours.item() == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@given(st.lists(st.tuples(st.integers(-50, 50), st.booleans()), min_size=2, max_size=40))
def test_auc_knows_only_order_and_turns_round_with_the_sign(pairs):
    scores = torch.tensor([float(s) for s, _ in pairs])
    labels = torch.tensor([float(y) for _, y in pairs])
    if labels.min() == labels.max():
        with pytest.raises(ValueError, match=r"labels: AUC needs both classes, found \d+ ones among \d+"):
            metrics.auc(scores, labels)
        return
    value = metrics.auc(scores, labels)
    assert metrics.auc(scores / 25 + 3, labels) == value
    assert metrics.auc(-scores, labels).item() == pytest.approx(1 - value.item(), abs=1e-12)


def test_auc_refuses_nan_and_shapes_that_do_not_agree():
    with pytest.raises(NonFiniteError, match="scores: every value must be finite, found 1 NaN or infinite of 3"):
        metrics.auc(torch.tensor([0.0, float("nan"), 1.0]), torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match=r"\(N,\) alike, found \(3, 1\) and \(3,\)"):
        metrics.auc(torch.zeros(3, 1), torch.zeros(3))


def test_log_loss_is_sklearns():
    logits = torch.linspace(-4, 4, 50)
    labels = (torch.arange(50) % 3 == 0).float()
    oracle = sk_log_loss(labels.numpy(), logits.double().sigmoid().numpy())
    assert metrics.log_loss(logits, labels).item() == pytest.approx(oracle, abs=1e-9)


def test_accuracy_of_logits_and_of_classes():
    assert metrics.accuracy(torch.tensor([-1.0, 2.0, 3.0, -0.5]), torch.tensor([0.0, 1.0, 0.0, 1.0])).item() == 0.5
    scores = torch.eye(3)[[0, 1, 2, 2]]
    assert metrics.accuracy(scores, torch.tensor([0, 1, 1, 2])).item() == 0.75


# NYUv2, metrics of segmentation (2), depth (2), normals (5): rows as published (FAMO Table 1, NTKMTL Table 1)
STL = [38.30, 63.76, 0.6754, 0.2780, 25.01, 19.21, 30.14, 57.20, 69.15]
ROWS = {
    "ls": ([39.29, 65.33, 0.5493, 0.2263, 28.15, 23.96, 22.09, 47.50, 61.08], 5.59, -0.88),
    "fairgrad": ([39.74, 66.01, 0.5377, 0.2236, 24.84, 19.60, 29.26, 56.58, 69.16], -4.66, -7.52),
}
UP = [True, True, False, False, False, False, True, True, True]
TASKS = ["seg"] * 2 + ["depth"] * 2 + ["normal"] * 5


@pytest.mark.parametrize("name", ROWS)
def test_delta_m_gives_the_published_numbers_in_both_averages(name):
    row, by_metric, by_task = ROWS[name]
    assert metrics.delta_m(row, STL, UP) == pytest.approx(by_metric, abs=0.02)
    assert metrics.delta_m(row, STL, UP, TASKS) == pytest.approx(by_task, abs=0.02)


def test_delta_m_is_zero_at_the_baseline_batched_and_careful():
    assert metrics.delta_m(STL, STL, UP) == 0
    rows = np.array([row for row, _, _ in ROWS.values()])
    assert metrics.delta_m(rows, STL, UP).tolist() == [metrics.delta_m(row, STL, UP).item() for row in rows]
    with pytest.raises(ValueError, match="baseline: delta-m divides by it, found 0 at position 1"):
        metrics.delta_m([1.0, 2.0], [1.0, 0.0], [True, True])
    with pytest.raises(ValueError, match=r"one task per metric \(9\), found 2"):
        metrics.delta_m(STL, STL, UP, ["a", "b"])


@pytest.mark.parametrize(
    "labels", [[-1.0, 1.0, 1.0, -1.0], [0, 2, 1, 0], [0.0, 0.5, 1.0, 1.0], [0.0, np.nan, 1.0, 1.0]]
)
@pytest.mark.parametrize("metric", [metrics.auc, metrics.log_loss, metrics.accuracy])
def test_binary_labels_are_zero_or_one(metric, labels):
    """Of -1 and 1 the AUC was 1.25."""
    bad = next(x for x in labels if x not in (0, 1))
    with pytest.raises(ValueError, match=f"^labels: must be whole numbers from 0 to 1, found {bad:g}$"):
        metric(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor(labels))
    for kind in (torch.bool, torch.uint8, torch.int64, torch.float32, torch.float16):
        taken = metric(torch.tensor([-0.1, 0.2, 0.3, 0.4]), torch.tensor([0, 1, 0, 1]).to(kind))
        assert taken == metric(torch.tensor([-0.1, 0.2, 0.3, 0.4]), torch.tensor([0.0, 1.0, 0.0, 1.0]))


def test_outputs_and_labels_agree_in_shape():
    """(4,) beside (4, 1) made a table of (4, 4) answers."""
    outputs, labels = torch.tensor([-1.0, 1.0, 1.0, -1.0]), torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert metrics.accuracy(outputs, labels) == 1
    for one, other in ((outputs, labels[:, None]), (outputs[:3], labels), (torch.eye(4), labels[:, None])):
        with pytest.raises(ValueError, match=r"outputs and labels must be \(N,\) or \(N, C\) and \(N,\), found \("):
            metrics.accuracy(one, other)
    with pytest.raises(ValueError, match=r"logits and labels must be \(N,\) alike, found \(4,\) and \(4, 1\)"):
        metrics.log_loss(outputs, labels[:, None])
    with pytest.raises(ValueError, match=r"^labels: must be whole numbers from 0 to 3, found 4$"):
        metrics.accuracy(torch.eye(4), torch.tensor([0, 1, 4, 2]))
    with pytest.raises(NonFiniteError, match="outputs: every value must be finite, found 1 NaN or infinite of 4"):
        metrics.accuracy(torch.tensor([0.0, torch.nan, 1.0, 2.0]), labels)
