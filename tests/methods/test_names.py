"""`method` and `aggregate`: names, hyperparameters, seeds, looks, and what they refuse."""

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

import mtl
from mtl.errors import NonFiniteError
from mtl.methods import METHODS, Method, aggregate, look_of, method
from tests.methods.families import data


@pytest.mark.parametrize(("said", "name"), [("PCGrad", "pcgrad"), ("IMTL-G", "imtl-g"), ("DBMTL", "db-mtl")])
def test_a_name_as_papers_write_it_is_known(said: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{name}'"):
        method(said, n_tasks=2)


def test_unknown_names_and_hyperparameters_list_the_valid_ones() -> None:
    with pytest.raises(
        ValueError, match=r"method: must be one of ls, .*stl.*, found 'fargrad'; did you mean 'fairgrad'\?"
    ):
        method("fargrad", 2)
    with pytest.raises(ValueError, match=r"hyperparameter of cagrad: must be one of c, heads, found 'calpha'"):
        method("cagrad", 2, calpha=0.4)
    with pytest.raises(ValueError, match=r"hyperparameter of ls: must be one of \(none\), found 'x'"):
        method("ls", 2, x=1)
    assert mtl.METHODS is METHODS


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("fairgrad", {"alpha": 0.0}, "alpha: must be finite and > 0, found 0.0"),
        ("cagrad", {"c": -1.0}, "c: must be finite and >= 0, found -1.0"),
        ("mgda", {"norm": "l1"}, r"norm: must be one of none, l2, loss, loss\+, found 'l1'"),
        ("emtl", {"alpha": 1.5}, r"alpha: must be in \[0, 1\], found 1.5"),
        ("emtl", {"combine": "sum"}, "combine: must be one of literal, frozen_norm, product, found 'sum'"),
        ("bandit", {"rho": -1.0}, "rho: must be finite and >= 0, found -1.0"),
        ("stl", {"task": 5}, r"task: must be in 0..1, found 5"),
        ("scalarization", {"c": [1.0]}, "c: must have one weight for each of 2 tasks, found 1"),
        ("scalarization", {"c": [1.0, -1.0]}, r"c\[1\]: must be finite and >= 0, found -1.0"),
        ("dwa", {"window": 0}, "window: must be a whole number of at least 1, found 0"),
        ("nash", {"every": 0}, "every: must be a whole number of at least 1, found 0"),
        ("pcgrad", {"heads": "mean"}, "heads: must be one of raw, weighted, found 'mean'"),
        ("graddrop", {"leak": 2.0}, r"leak: must be in \[0, 1\]"),
        ("adatask", {"beta1": 1.0}, r"beta1: must be in \[0, 1\), found 1.0"),
        ("db-mtl", {"beta": 1.0}, r"beta: must be in \[0, 1\), found 1.0"),
        ("gradvac", {"beta": 2.0}, r"beta: must be in \[0, 1\], found 2.0"),
        ("stch", {"lam": [1.0]}, "lam: must have one number for each of 2 tasks, found 1"),
        ("stch", {"warmup": 0}, "warmup: must be a whole number of at least 1, found 0"),
        ("stch", {"z": [1.0, math.nan]}, r"z\[1\]: must be a finite number of at most 1e\+100, found nan"),
        ("uw", {"init": math.nan}, r"init: must be a finite number of at most 1e\+100, found nan"),
        ("famo", {"b": True}, r"b: must be a finite number of at most 1e\+100, found True"),
        ("emtl", {"strict": math.nan}, "strict: must be True or False, found nan"),
        ("emtl", {"strict": 1}, "strict: must be True or False, found 1"),
        ("fairgrad", {"alpha": True}, "alpha: must be finite and > 0, found True"),
        ("fairgrad", {"alpha": "2"}, "alpha: must be finite and > 0, found '2'"),
        ("fairgrad", {"alpha": np.ones(2)}, "alpha: must be finite and > 0, found array"),
        ("adatask", {"beta1": math.nan}, r"beta1: must be in \[0, 1\), found nan"),
        ("gradvac", {"beta": True}, r"beta: must be in \[0, 1\], found True"),
        ("nash", {"every": 2.0}, "every: must be a whole number of at least 1, found 2.0"),
        ("stl", {"task": True}, "task: must be a whole number of at least 0, found True"),
        ("rlw", {"seed": 1.5}, "seed: must be a whole number, found 1.5"),
        ("scalarization", {"c": 1.0}, "c: must have one weight for each of 2 tasks, found 1"),
        ("scalarization", {"c": "12"}, "c: must have one weight for each of 2 tasks, found"),
        (
            "scalarization",
            {"c": {0: 0.7, 1: 0.3}},
            "c: must be in the order of the tasks, as a list is, found {0: 0.7,",
        ),
        ("scalarization", {"c": {0.7, 0.3}}, "c: must be in the order of the tasks, as a list is, found {0"),
        ("stch", {"lam": {1: 0.7, 0: 0.3}}, "lam: must be in the order of the tasks"),
        ("stch", {"z": frozenset((1, 2))}, "z: must be in the order of the tasks"),
        ("pbi", {"lam": {0: 0.7, 1: 0.3}.keys()}, "lam: must be in the order of the tasks"),
        ("graddrop", {"leak": {0: 0.7, 1: 0.3}}, "leak: must be in the order of the tasks"),
        ("graddrop", {"leak": [0.1, True]}, r"leak: must be in \[0, 1\], found True"),
    ],
)
def test_values_out_of_range_are_named(name: str, hyper: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(name, 2, **hyper)


def test_number_of_tasks() -> None:
    for wrong in (0, 2.0, 2.5, "2", True, None, math.nan, np.float32(2), np.ones(2)):
        with pytest.raises(ValueError, match="n_tasks: must be a whole number of at least 1, found"):
            method("ls", wrong)  # type: ignore[arg-type]
    assert method("ls", np.int64(2)).n_tasks == 2  # type: ignore[arg-type]
    for name in (None, 3, METHODS["ls"]):
        with pytest.raises(TypeError, match=r"method: must be a name, one of mtl\.METHODS, found"):
            method(name, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "hyper", "plain"),
    [
        ("fairgrad", {"alpha": np.float32(2)}, {"alpha": 2.0}),
        ("fairgrad", {"alpha": np.array(2)}, {"alpha": 2}),
        ("fairgrad", {"alpha": torch.tensor(2.0)}, {"alpha": 2.0}),
        ("nash", {"every": np.int64(3)}, {"every": 3}),
        ("stl", {"task": np.int8(1)}, {"task": 1}),
        ("dwa", {"window": np.int64(3)}, {"window": 3}),
        ("rlw", {"seed": np.int64(3)}, {"seed": 3}),
        ("graddrop", {"leak": np.float32(0.5)}, {"leak": 0.5}),
        ("graddrop", {"leak": np.array([0.5, 0.25])}, {"leak": [0.5, 0.25]}),
        ("scalarization", {"c": torch.tensor([1.0, 2.0])}, {"c": [1.0, 2.0]}),
        ("pbi", {"lam": np.array([1, 2]), "z": np.zeros(2)}, {"lam": [1, 2], "z": [0.0, 0.0]}),
        ("stch", {"lam": np.array([1, 2])}, {"lam": [1, 2]}),
        ("adatask", {"beta1": np.float64(0.5)}, {"beta1": 0.5}),
        ("uw", {"init": np.float64(0.5)}, {"init": 0.5}),
    ],
)
def test_numbers_of_numpy_are_numbers(name: str, hyper: dict[str, Any], plain: dict[str, Any]) -> None:
    given = method(name, 2, **hyper).settings()
    assert given == method(name, 2, **plain).settings() and json.loads(json.dumps(given)) == given


def test_a_method_that_draws_takes_the_seed_and_others_need_none() -> None:
    for name in ("rlw", "pcgrad", "gradvac"):
        assert method(name, 2, seed=5).generator.initial_seed() == 5
    assert method("graddrop", 2, seed=5).settings()["seed"] == 5
    assert method("rlw", 2).settings()["seed"] == 0
    assert method("cagrad", 2, seed=5, c=0.1).settings() == {"c": 0.1, "heads": None}


@pytest.mark.parametrize("name", ["emtl", "cr-mogm", "fair-loss"])
def test_the_seed_reaches_a_base_that_draws(name: str) -> None:
    def seed(given: int | None, **hyper: Any) -> int:
        return method(name, 3, seed=given, **hyper).base.generator.initial_seed()

    assert [seed(s, base="pcgrad") for s in (None, 0, 5)] == [0, 0, 5]
    assert seed(5, base="gradvac", base_hyper={"beta": 0.1}) == 5
    assert seed(5, base="pcgrad", base_hyper={"seed": 7}) == 7
    within = method("cr-mogm", 3, seed=5, base=name, base_hyper={"base": "pcgrad"})
    assert within.base.base.generator.initial_seed() == 5
    assert method(name, 3, seed=5, base="mgda").settings() == method(name, 3, base="mgda").settings()
    assert method(name, 3, seed=5, base=method("pcgrad", 3, seed=2)).base.generator.initial_seed() == 2
    with pytest.raises(TypeError, match="base_hyper: must be a dict of hyperparameters or None, found 3"):
        method(name, 3, seed=5, base="pcgrad", base_hyper=3)


def test_settings_are_what_was_given_as_json_holds_it() -> None:
    m = method("scalarization", 2, c=np.array([0.5, 1.0]))
    assert json.loads(json.dumps(m.settings())) == {"c": [0.5, 1.0]}
    given = [0.5, 1.0]
    m = method("scalarization", 2, c=given)
    given[0] = 7.0
    assert repr(m) == "Scalarization(2, c=[0.5, 1.0])"
    inner = method("emtl", 2, rho=0.1, base=method("nash", 2, every=3))
    assert inner.settings()["base"] == {"method": "Nash", "every": 3, "heads": None}
    assert json.loads(json.dumps(inner.settings())) == inner.settings()
    assert method("stch", 2, lam=(1, 2)).settings()["lam"] == [1, 2]
    assert copy.deepcopy(m).settings() == m.settings()


def test_a_look_is_the_class_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(Method):
        label = "Plain"

    monkeypatch.setitem(METHODS, "plain", Plain)
    with pytest.raises(ValueError, match="method: Plain must have a label, a family and a marker, found no family"):
        look_of("plain")
    with pytest.raises(ValueError, match="method: no look is fixed for 'mine'; known are ls, "):
        look_of("mine")


def test_aggregate_checks_what_it_is_given() -> None:
    G, L = data(3)
    with pytest.raises(ValueError, match=r"grads: must have shape \(T, D\), found \(8,\)"):
        aggregate("ls", grads=G[0], losses=L)
    with pytest.raises(ValueError, match=r"losses: must have shape \(3,\), one for each row of grads, found \(2,\)"):
        aggregate("ls", grads=G, losses=L[:2])
    with pytest.raises(ValueError, match="losses: must have the dtype and device of grads"):
        aggregate("ls", grads=G, losses=L.float())
    with pytest.raises(ValueError, match=r"grads: must be floating point, found torch\.int64"):
        aggregate("ls", grads=G.long(), losses=L.long())
    with pytest.raises(ValueError, match=r"grads: must be dense and hold values, found layout torch\.sparse_coo"):
        aggregate("ls", grads=G.to_sparse(), losses=L)
    with pytest.raises(ValueError, match="losses: must be dense and hold values, found the meta device"):
        aggregate("ls", grads=G, losses=L.to("meta"))
    bad = G.clone()
    bad[1, 2] = math.nan
    with pytest.raises(NonFiniteError, match="grads: must be finite, found NaN or infinity for task 1"):
        aggregate("mgda", grads=bad, losses=L)
    with pytest.raises(NonFiniteError, match="losses: must be finite, found NaN or infinity for task 2"):
        aggregate("mgda", grads=G, losses=torch.tensor([1.0, 1.0, math.inf], dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "hyper", "wording"),
    [
        ("imtl-l", {"init": 1e30}, "init: must be of a size whose exponential is a number, at most 80, found 1e"),
        ("cagrad", {"c": 1e308}, "c: must be at most 1e.100, found 1e.308"),
        ("dualproj", {"reg": 1e308}, "reg: must be at most 1e.100, found 1e.308"),
        ("fair-loss", {"base_hyper": torch.ones(2)}, "base_hyper: must be a dict of hyperparameters or None, found"),
        ("emtl", {"rate": torch.ones(2)}, "rate: must be one of .*, found tensor"),
    ],
)
def test_hyperparameters_that_no_number_comes_out_of_are_refused(name: str, hyper: Any, wording: str) -> None:
    with pytest.raises((ValueError, TypeError), match=wording):
        method(name, 2, **hyper)


def test_a_direction_that_overflows_is_no_answer() -> None:
    with pytest.raises(NonFiniteError, match=r"direction: excessmtl must give finite numbers in torch.float32"):
        aggregate("excessmtl", grads=torch.full((2, 3), 1e30), losses=torch.ones(2))


@pytest.mark.parametrize("given", [(3, lambda x, k: x), ("r", len), ("r", None)])
def test_a_rule_is_a_name_and_a_function(given: Any) -> None:
    with pytest.raises(TypeError, match=r"rule: takes a name and a function of Python, found"):
        mtl.rule(*given)
