"""A method from one function: its name follows its text, its weights are checked, it trains."""

import os
import subprocess
import sys

import pytest
import torch

import mtl

G = torch.tensor([[2.0, 0.0], [0.0, 4.0]])


@pytest.fixture(autouse=True)
def registry():
    before = dict(mtl.METHODS)
    yield
    mtl.METHODS.clear()
    mtl.METHODS.update(before)


def test_weights_are_the_functions_own():
    name = mtl.rule("inverse", lambda losses, K: 1 / K.diagonal().sqrt())
    assert mtl.aggregate(name, grads=G, losses=torch.ones(2)).direction.tolist() == [1.0, 1.0]
    loss_only = mtl.rule("hardest", lambda losses: losses / losses.sum(), needs="losses")
    assert mtl.method(loss_only, n_tasks=2).needs == "losses"
    assert mtl.aggregate(loss_only, grads=G, losses=torch.tensor([3.0, 1.0])).weights.tolist() == [0.75, 0.25]


def test_an_edited_function_gets_another_name_and_an_unchanged_one_the_same():
    def one(losses, K):
        return losses * 2

    def same(losses, K):
        return losses * 2

    assert mtl.rule("mine", one) == mtl.rule("mine", same)
    assert mtl.rule("mine", lambda losses, K: losses * 2) != mtl.rule("mine", lambda losses, K: losses * 3)
    power = [
        mtl.rule("mine", eval(f"lambda losses, K, {star}p={p}: losses ** p")) for star in ("", "*, ") for p in (1, 2)
    ]
    raw, losses = mtl.rule("mine", one, heads="raw"), mtl.rule("mine", lambda losses: losses, needs="losses")
    assert len({*power, raw, losses, mtl.rule("mine", one), mtl.rule("mine", lambda losses: losses)}) == 8
    assert mtl.rule("mine", lambda losses, K: losses.exp()) != mtl.rule("mine", lambda losses, K: losses.log())


def test_a_rule_has_one_name_in_every_process():
    """The order of a set's members differs from process to process."""
    said = "import mtl; print(mtl.rule('mine', lambda losses, K: losses if 'a' in {'a', 'b', 'cde'} else K))"
    names = {
        subprocess.run(
            [sys.executable, "-c", said], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(names) == 1


def test_a_base_that_is_made_already_takes_no_hyperparameters():
    for name in ("emtl", "cr-mogm", "fair-loss"):
        with pytest.raises(ValueError, match=r"base_hyper: must be left out where base is made already, found \{'c'"):
            mtl.method(name, 2, base=mtl.method("cagrad", 2), base_hyper={"c": 0.1})
        with pytest.raises(ValueError, match="base: must be made for 2 tasks as well, found one for 3"):
            mtl.method(name, 2, base=mtl.method("cagrad", 3))


def test_bad_rules_are_refused():
    with pytest.raises(ValueError, match="name: must be new and without '@', found 'mgda'"):
        mtl.rule("mgda", lambda losses, K: losses)
    with pytest.raises(ValueError, match="needs: must be 'losses' or 'gram' for a rule, found 'gradients'"):
        mtl.rule("mine", lambda losses, K: losses, needs="gradients")
    with pytest.raises(ValueError, match="heads: must be 'weighted' or 'raw', found 'wieghted'"):
        mtl.rule("mine", lambda losses, K: losses, heads="wieghted")
    name = mtl.rule("short", lambda losses, K: losses[:1])
    with pytest.raises(ValueError, match=r"short must return one weight per task, shape \(2,\), found \(1,\)"):
        mtl.aggregate(name, grads=G, losses=torch.ones(2))


def test_heads_follow_the_choice():
    raw = mtl.method(mtl.rule("raw", lambda losses, K: 2 * losses, heads="raw"), n_tasks=2)
    assert raw.head_weights(torch.ones(2), 2 * torch.ones(2)).tolist() == [1.0, 1.0]


def test_rules_of_one_text_with_other_values_around_them_are_two():
    """One replaced the other in silence, and a grid of both held one row."""

    def scaled(c):
        return lambda losses, K: losses * c

    one, other = mtl.rule("tilt", scaled(1.0)), mtl.rule("tilt", scaled(50.0))
    assert one != other and one == mtl.rule("tilt", scaled(1.0))
    assert mtl.rule("tilt", scaled(torch.ones(2))) != mtl.rule("tilt", scaled(torch.zeros(2)))
    assert mtl.aggregate(one, grads=G, losses=torch.ones(2)).weights.tolist() == [1.0, 1.0]

    def again(losses, K):
        return losses if len(losses) else again(losses, K)

    assert mtl.rule("again", again) == mtl.rule("again", again), "which has itself around it"


def test_what_a_class_needs_is_one_of_four():
    class Gramm(mtl.methods.Method):
        needs = "gramm"

    with pytest.raises(ValueError, match="needs: must be one of losses, gram, features, gradients, found 'gramm'"):
        Gramm(2)
