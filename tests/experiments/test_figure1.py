"""The two-loss landscape: gradients against autograd, weights against `mtl.aggregate`, ends against theory."""

import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar

import mtl.methods as methods
from mtl.experiments import figure1 as toy
from mtl.experiments.figure1 import config as known
from mtl.experiments.figure1 import ends as shown_ends
from mtl.experiments.figure1 import groups, plane
from mtl.experiments.figure1 import weights as closed


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def points(rng: np.random.Generator, n: int = 400) -> np.ndarray:
    return rng.uniform(-11, 11, size=(n, 2))


def landscape(x: torch.Tensor, scale: float) -> torch.Tensor:
    """The two losses (..., 2) at x (..., 2), differentiable, as the papers print them."""
    x1, x2 = x.unbind(-1)
    upper, lower = torch.tanh(x2 / 2).clamp(min=0), torch.tanh(-x2 / 2).clamp(min=0)
    bow = 0.1 * (x2 + 8) ** 2
    valley_1 = (0.5 * (-x1 - 7) + torch.tanh(x2)).abs().clamp(min=plane.CLIP).log() + 6
    valley_2 = (0.5 * (-x1 + 3) - torch.tanh(x2) + 2).abs().clamp(min=plane.CLIP).log() + 6
    first = valley_1 * upper + (((x1 - 7) ** 2 + bow) / 10 - 20) * lower
    second = valley_2 * upper + (((x1 + 7) ** 2 + bow) / 10 - 20) * lower
    return torch.stack([scale * first, second], -1)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_losses_and_gradients_agree_with_autograd(scale: float, rng: np.random.Generator) -> None:
    x = np.vstack([points(rng), toy.STARTS, [[3.0, 0.0], [-7.0, 0.0]]])
    f, grads = plane.evaluate(x, scale)
    leaf = torch.tensor(x, requires_grad=True)
    values = landscape(leaf, scale)
    torch.testing.assert_close(torch.tensor(f), values.detach(), rtol=1e-12, atol=1e-12)
    for task in range(2):
        (oracle,) = torch.autograd.grad(values[:, task].sum(), leaf, retain_graph=True)
        np.testing.assert_allclose(grads[:, task], oracle.numpy(), rtol=1e-9, atol=1e-12)


def test_landscape_is_clipped_in_its_valleys() -> None:
    x2 = 1.0
    bottom = np.array([[-7 + 2 * np.tanh(x2), x2]])
    f, grads = plane.evaluate(bottom)
    assert f[0, 0] == pytest.approx((np.log(5e-6) + 6) * np.tanh(0.5))
    assert np.isfinite(grads).all()


def test_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"x: points of the plane, shape \(B, 2\), found \(3,\)"):
        plane.evaluate(np.zeros(3))


@pytest.mark.parametrize("scale", [10.0, 1.0, 0.1, 0.01])
def test_star_is_the_best_average_of_the_plane(scale: float) -> None:
    grid = np.stack(np.meshgrid(np.linspace(-10, 10, 401), np.linspace(-12, 10, 441)), -1).reshape(-1, 2)
    best = toy.star(scale)
    value = plane.evaluate(best[None], scale)[0].mean()
    assert value <= plane.evaluate(grid, scale)[0].mean(1).min() + 1e-9
    assert best[0] == pytest.approx(7 * (scale - 1) / (scale + 1))
    assert abs(plane.evaluate(best[None], scale)[1].sum(1)).max() < 1e-5


def test_front_is_pareto_stationary_and_undominated(rng: np.random.Generator) -> None:
    x, f = plane.pareto_front(0.1, n=101)
    _, (g1, g2) = f, plane.evaluate(x, 0.1)[1].transpose(1, 0, 2)
    sine = np.cross(np.pad(g1, ((0, 0), (0, 1))), np.pad(g2, ((0, 0), (0, 1))))[:, 2]
    assert np.abs(sine).max() < 1e-12
    others = plane.evaluate(points(rng, 4000), 0.1)[0]
    better = (others[:, None] < f[None] - 1e-9).all(-1)
    assert not better.any()


@given(st.floats(0.01, 0.65))
def test_edge_lies_on_the_ball(rho: float) -> None:
    p = 1 / (1 + np.exp(-closed.edge(rho)))
    assert p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p)) == pytest.approx(rho, abs=1e-9)


def test_no_ball_is_left_from_ln_2_on() -> None:
    assert closed.edge(np.log(2)) == np.inf


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 2.0, 5.0, 20.0])
def test_alpha_fair_solves_its_equation(alpha: float, rng: np.random.Generator) -> None:
    g = rng.normal(size=(2, 2, 2000)) * 10 ** rng.uniform(-3, 3, size=(2, 1, 2000))
    at = closed.Point.at(*np.zeros((2, 2000)), g[0, 0], g[0, 1], g[1, 0], g[1, 1])
    w1, w2 = closed.alpha_fair(at, np.full(2000, alpha))
    gap = 0.0
    for row, own in ((at.a * w1 + at.b * w2, w1), (at.b * w1 + at.c * w2, w2)):
        size = np.abs(at.a * w1 if own is w1 else at.c * w2) + np.abs(at.b) * (w2 if own is w1 else w1)
        gap = max(gap, float((np.abs(row - own ** (-1 / alpha)) / size).max()))
    assert gap < 1e-12


def test_cagrad_is_the_minimum_of_its_dual(rng: np.random.Generator) -> None:
    g = rng.normal(size=(2, 2, 200))
    g[1] *= 10 ** rng.uniform(-2, 2, size=200)
    at = closed.Point.at(*np.zeros((2, 200)), g[0, 0], g[0, 1], g[1, 0], g[1, 1])
    w1, w2 = closed.cagrad(at, np.full(200, 0.4))
    for i in range(200):
        mean = g[..., i].mean(0)

        def dual(x: float, i: int = i, mean: np.ndarray = mean) -> float:
            mixed = x * g[0, :, i] + (1 - x) * g[1, :, i]
            return float(mixed @ mean + 0.4 * np.linalg.norm(mean) * np.linalg.norm(mixed))

        x = (w1[i] - 0.5) / (w1[i] + w2[i] - 1)
        oracle = minimize_scalar(dual, bounds=(0, 1), method="bounded", options={"xatol": 1e-10}).fun
        assert dual(float(x)) <= oracle + 1e-9 * (1 + abs(oracle))


SAME: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in ("ls", "mgda", "pcgrad", "imtl-g", "nash", "upgrad")]
SAME += [(name, {}) for name in ("dualproj", "aligned", "si", "gls")]
SAME += [("cagrad", {"c": 0.4}), ("stch", {"mu": 2.0}), ("fair-loss", {"alpha": 2.0}), ("scalarization", {"c": 0.3})]
SAME += [("sdmgrad", {"lam": lam}) for lam in (0.0, 0.3, 3.0)]
SAME += [("fairgrad", {"alpha": a}) for a in (0.5, 1.0, 2.0, 5.0)]
PLAYERS = [("bandit", {"rho": rho, "eta": 0.5}) for rho in (0.1, 0.5, 1.2)]
PLAYERS += [
    ("emtl", {"rho": rho, "eta": 0.5, "alpha": 0.25, "rate": rate, "combine": combine, "strict": rho > 1})
    for rho in (0.1, 1.2)
    for rate in known.RATES
    for combine in toy.COMBINES
]
REMEMBERING: list[tuple[str, dict[str, Any]]] = [
    (n, {}) for n in ("rlw", "uw", "imtl-l", "imtl", "graddrop", "adatask")
]
REMEMBERING += [
    ("dwa", {"tau": 0.5}),
    ("gradnorm", {"alpha": 0.7}),
    ("gradvac", {"beta": 0.2}),
    ("db-mtl", {"beta": 0.6}),
]
REMEMBERING += [("famo", {"gamma": gamma}) for gamma in (0.0, 0.05)]


def group(name: str, hyper: dict[str, Any], n: int) -> groups.Group:
    return groups.make_group([known.Config(name, hyper, 1.0)] * n)


def theirs(name: str, hyper: dict[str, Any]) -> dict[str, Any]:
    """The same hyperparameters for `mtl.methods`."""
    return {"c": [hyper["c"], 1 - hyper["c"]]} if name == "scalarization" else hyper


@pytest.mark.parametrize(("name", "hyper"), SAME)
def test_closed_forms_give_the_directions_of_the_methods(
    name: str, hyper: dict[str, Any], rng: np.random.Generator
) -> None:
    g = rng.normal(size=(2, 2, 40))
    g[1] *= 10 ** rng.uniform(-1, 1, size=40)
    losses = rng.normal(size=(2, 40)) * 10
    losses = np.abs(losses) if name in known.POSITIVE else losses
    w1, w2 = group(name, hyper, 40).weights(closed.Point.at(*losses, g[0, 0], g[0, 1], g[1, 0], g[1, 1]))
    found = w1 * g[0] + w2 * g[1]
    ratios = []
    for i in range(40):
        grads, values = torch.tensor(g[..., i]), torch.tensor(losses[:, i])
        oracle = methods.aggregate(name, grads=grads, losses=values, **theirs(name, hyper)).direction.numpy()
        size = np.linalg.norm(found[:, i]) * np.linalg.norm(oracle)
        assert found[:, i] @ oracle / size == pytest.approx(1, abs=1e-6), f"case {i}"
        ratios.append(np.linalg.norm(oracle) / np.linalg.norm(found[:, i]))
    assert np.ptp(ratios) / np.mean(ratios) < 1e-4, "equal up to one factor, which Adam does not see"


@pytest.mark.parametrize("opposed", [False, True])
def test_aligned_cuts_the_rank_where_the_method_does(opposed: bool) -> None:
    g = np.array([[1.0, 2.0], [-3.0, -6.0 if opposed else -6.0001]])
    at = closed.Point.at(*np.ones((2, 1)), *g.reshape(4, 1))
    w = np.array(group("aligned", {}, 1).weights(at))[:, 0]
    oracle = methods.aggregate("aligned", grads=torch.tensor(g), losses=torch.ones(2, dtype=torch.float64))
    assert oracle.weights is not None
    np.testing.assert_allclose(w, oracle.weights.numpy(), rtol=1e-3)


@pytest.mark.parametrize(("name", "hyper"), PLAYERS)
def test_players_move_as_those_of_the_methods(name: str, hyper: dict[str, Any], rng: np.random.Generator) -> None:
    ours, oracles = group(name, hyper, 1), methods.method(name, n_tasks=2, **hyper)
    for step in range(8):
        g, losses = rng.normal(size=(2, 2)) * [[1.0], [3.0]], rng.normal(size=2)
        at = closed.Point.at(*losses[:, None], *g.reshape(4, 1))
        found = np.array(ours.weights(at))[:, 0]
        oracle = oracles.weights(torch.tensor(losses), torch.tensor(g @ g.T)).numpy()
        np.testing.assert_allclose(found / found.sum(), oracle / oracle.sum(), atol=1e-7, err_msg=f"step {step}")


@pytest.mark.parametrize(("name", "hyper"), REMEMBERING)
def test_methods_with_a_memory_move_step_by_step_as_the_methods(
    name: str, hyper: dict[str, Any], rng: np.random.Generator
) -> None:
    ours, oracles = group(name, hyper, 1), methods.method(name, n_tasks=2, **hyper)
    learned = oracles.parameters()
    adam = torch.optim.Adam(learned, lr=oracles.learning_rate) if learned else None
    after = torch.tensor(rng.uniform(0.1, 3, size=2))
    for step in range(110):
        g, losses = rng.normal(size=(2, 2)) * [[1.0], [3.0]], after
        found = np.array(ours.weights(closed.Point.at(*losses.numpy()[:, None], *g.reshape(4, 1))))[:, 0]
        if ours.elementwise:
            oracle = oracles.combine([torch.tensor(g)], losses)[0]
        else:
            oracle = oracles.weights(losses, torch.tensor(g @ g.T))
        np.testing.assert_allclose(found, oracle.numpy(), rtol=1e-7, atol=1e-9, err_msg=f"step {step}")
        if adam is not None:
            adam.step()
        after = torch.tensor(rng.uniform(0.1, 3, size=2))
        if oracles.wants_after_step:
            oracles.after_step(after)


def test_every_method_is_on_the_landscape_or_named_as_absent() -> None:
    all_of_them = {name for name in methods.METHODS if "@" not in name}
    assert set(toy.DEFAULTS) | set(toy.ABSENT) == all_of_them and not set(toy.DEFAULTS) & set(toy.ABSENT)
    assert {n for n in toy.DEFAULTS if methods.method(n, n_tasks=2).positive_losses} == set(known.POSITIVE)
    told = {name for name, _ in toy.bounded()}
    assert told > set(known.POSITIVE) and "b" not in toy.DEFAULTS["bandit"]


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_a_method_is_told_its_losses_above_their_bound(scale: float) -> None:
    at = closed.Point.at(*np.array([[-4.0 * scale], [-20.0], [1.0], [0.0], [0.0], [1.0]]))
    w1, w2 = groups.make_group([known.Config("si", {"b": -21.0}, scale)]).weights(at)
    assert (w1[0], w2[0]) == pytest.approx((1 / (17 * scale), 1.0))


@pytest.mark.parametrize("name", known.POSITIVE)
def test_where_a_formula_is_undefined_the_run_ends_and_the_table_says_so(name: str) -> None:
    runs = toy.run_toy(toy.grid([name, (name, {"b": -21.0}), "mgda"], [0.1]), steps=60, lr=0.05, record_every=20)
    table = shown_ends.summarise(runs).set_index("method")
    below = (plane.evaluate(toy.STARTS, 0.1)[0] <= 0).any(1).sum()
    assert table.loc[name, "undefined"] >= below == 3 and table.loc[name, "n_front"] == 0
    assert table.loc[f"{name} (b=-21)", "undefined"] == table.loc["mgda", "undefined"] == 0
    shown = shown_ends.ends(shown_ends.summarise(runs))["s = 0.1"]
    assert "undefined" in shown[name] and "undefined" not in shown[f"{name} (b=-21)"]
    assert np.isnan(runs.x[-1, 0]).any() and np.isfinite(runs.x[-1, 1]).all()


def test_adam_is_torch_adam() -> None:
    runs = toy.run_toy([known.Config("ls", {}, 0.1)], steps=200, lr=0.05, record_every=50)
    x = torch.tensor(toy.STARTS, requires_grad=True)
    adam = torch.optim.Adam([x], lr=0.05)
    for _ in range(200):
        adam.zero_grad()
        landscape(x, 0.1).sum().backward()
        adam.step()
    np.testing.assert_allclose(runs.x[-1, 0], x.detach().numpy(), rtol=1e-8, atol=1e-8)


def test_one_run_is_the_same_alone_and_among_others() -> None:
    configs = toy.grid([*toy.DEFAULTS, *toy.bounded(), ("fairgrad", {"alpha": 0.5})], [1.0, 0.1])
    together = toy.run_toy(configs, steps=300, record_every=100)
    for i, config in enumerate(configs):
        alone = toy.run_toy([config], steps=300, record_every=100, starts=toy.STARTS[1:2])
        np.testing.assert_allclose(together.x[:, i, 1:2], alone.x[:, 0], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(together.p[:, i, 1:2], alone.p[:, 0], rtol=1e-9, atol=1e-9)


def test_all_at_once_is_twenty_times_faster_than_one_after_another() -> None:
    configs = toy.grid(toy.DEFAULTS, [10.0, 1.0, 0.1, 0.01])
    toy.run_toy(configs[:1], steps=5)
    began = time.perf_counter()
    toy.run_toy(configs, steps=100)
    batched = time.perf_counter() - began
    began = time.perf_counter()
    for config in configs[::4]:
        toy.run_toy([config], steps=100, starts=toy.STARTS[:1])
    single = (time.perf_counter() - began) / len(configs[::4])
    assert single * len(configs) * len(toy.STARTS) > 20 * batched


@pytest.fixture(scope="module")
def table() -> object:
    methods = ["ls", "bandit", ("bandit", {"rho": 0.1}), "mgda", "nash", "imtl-g", "emtl"]
    methods += [("emtl", {"combine": "frozen_norm"}), ("emtl", {"combine": "frozen_norm", "rate": "raw"})]
    runs = toy.run_toy(toy.grid(methods, [1.0, 0.1]), steps=50_000, record_every=1000)
    return shown_ends.summarise(runs)


COUNTS = [("ls", 1, 3, 3), ("bandit (rho=0.1)", 1, 3, 3), ("bandit", 1, 5, 5), ("mgda", 1, 5, 1), ("emtl", 1, 5, 5)]
COUNTS += [("ls", 0.1, 4, 4), ("bandit", 0.1, 4, 0), ("mgda", 0.1, 5, 0), ("nash", 0.1, 5, 0), ("emtl", 0.1, 4, 0)]
COUNTS += [("emtl (combine=frozen_norm)", 0.1, 5, 0), ("emtl (combine=frozen_norm)", 1, 5, 5)]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "scale", "front", "star"), COUNTS)
def test_runs_end_where_they_were_measured_to_end(table, method, scale, front, star) -> None:  # type: ignore[no-untyped-def]
    row = table[(table["method"] == method) & (table["scale"] == scale)].iloc[0]
    assert (row["n_front"], row["n_star"]) == (front, star)


@pytest.mark.slow
def test_ends_that_rounding_decides_are_counted() -> None:
    """PCGrad is twice UPGrad for two tasks; their paths part where the landscape amplifies the last digit."""
    configs = toy.grid(["pcgrad", "upgrad", "mgda"], [10.0])
    runs, nudged = (toy.run_toy(configs, 6_000, starts=toy.STARTS[:2] + e, record_every=1_000) for e in (0.0, 1e-10))
    assert np.abs(runs.x[2, 0] - runs.x[2, 1]).max() < 1e-6  # after 2,000 steps
    assert np.abs(runs.x[-1, 0] - runs.x[-1, 1]).max() > 0.2
    table = shown_ends.summarise(runs, nudged).set_index("method")
    assert table["by_rounding"].tolist() == [1, 0, 0]  # one nudge finds some
    assert shown_ends.ends(table.reset_index())["s = 10"].str.contains("~ 1").tolist() == [True, False, False]
    assert shown_ends.summarise(runs)["by_rounding"].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="nudged"):
        shown_ends.summarise(runs, toy.run_toy(configs[:2], 1))


def test_ends_on_the_front_are_where_theory_puts_them(table) -> None:  # type: ignore[no-untyped-def]
    seen = 0
    for _, row in table.iterrows():
        if np.isfinite(row["predicted_x1"]):
            ends = sorted(abs(float(x) - row["predicted_x1"]) for x in row["x1_end"].split(", "))
            assert max(ends[: row["n_front"]]) < 0.12, row["method"]
            seen += 1
    assert seen == 12


@pytest.mark.slow
def test_the_sentences_of_the_paper_are_judged_by_the_table(table) -> None:  # type: ignore[no-untyped-def]
    words = [c.word for c in shown_ends.claims(table)]
    assert words[1:] == ["1 reproduced, 1 contradicted", "reproduced", "contradicted"] and "reproduced" in words[0]
    perfect = table.assign(n_star=table["n"], n_front=table["n"])
    assert [c.word for c in shown_ends.claims(perfect)][2:] == ["contradicted", "reproduced"]
    assert {c.word for c in shown_ends.claims(table, short=True)} == {"not tested"}


@pytest.mark.slow
def test_frozen_norm_converges_and_raw_rates_are_scale_free_at_every_scale() -> None:
    readings = [{"combine": "frozen_norm"}, {"combine": "frozen_norm", "rate": "raw"}]
    runs = toy.run_toy(toy.grid([("emtl", r) for r in readings], [10.0, 1.0, 0.1, 0.01]), record_every=10_000)
    table = shown_ends.summarise(runs)
    assert (table["n_front"] == 5).all()
    ends = runs.x[-1, :, :, 0].reshape(4, 2, 5)
    assert np.abs(ends[:, 1]).max() < 0.1, "without w in the rate: x1 = 0 for every scale"
    assert np.ptp(ends[:, 0].mean(1)) > 5, "with it the end moves with the scale"
    assert shown_ends.reconstructions(table).drop(columns="verdict").isin(["star", "one point"]).all(axis=None)


def test_predicted_ends_of_the_reference_table() -> None:
    assert shown_ends.predicted_end(0.1, 0.1) == pytest.approx(-4.139, abs=2e-3)
    assert shown_ends.predicted_end(0.1, 0.5, "loss") == pytest.approx(2.294, abs=2e-3)
    assert shown_ends.predicted_end(0.1, 0.5, combine="frozen_norm") == pytest.approx(-2.850, abs=1e-3)
    assert shown_ends.predicted_end(0.01, 0.5, combine="frozen_norm") == pytest.approx(-4.852, abs=1e-3)
    for scale in (10.0, 0.1, 0.01):
        assert shown_ends.predicted_end(scale, 0.5, "raw", "frozen_norm") == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("scale", [10.0, 1.0, 0.1])
@pytest.mark.parametrize("c", [0.1, 0.5, 0.8])
def test_fixed_weights_end_where_their_sum_is_least(scale: float, c: float) -> None:
    end = shown_ends.predicted_x1(known.Config("scalarization", {"c": c}, scale))
    assert end == pytest.approx(7 * (c * scale - (1 - c)) / (c * scale + 1 - c), abs=1e-4)


@pytest.mark.parametrize("scale", [10.0, 1.0, 0.1])
def test_smooth_tchebycheff_ends_where_its_objective_is_least_on_the_front(scale: float) -> None:
    for hyper in ({"mu": 0.5}, {"mu": 1.0, "b": -21.0}):
        x, f = plane.pareto_front(scale, n=2801)
        told = f - np.array([scale, 1.0]) * hyper.get("b", 0.0)
        objective = np.logaddexp.reduce(told / (2 * hyper["mu"]), axis=1)
        end = shown_ends.predicted_x1(known.Config("stch", hyper, scale))
        assert end == pytest.approx(x[objective.argmin(), 0], abs=6e-3)


def test_readings_of_emtl_are_told_apart() -> None:
    ends = {"star": "0.1, 0, 0.05", "one point": "-2.8, -2.9, -2.85", "front": "-6, 0, 6", "no": "-6, 0, 6"}
    counts = {"star": (3, 3), "one point": (3, 0), "front": (3, 1), "no": (2, 1)}
    rows = [
        {"scale": s, "method": m, "n": 3, "n_front": counts[k][0], "n_star": counts[k][1], "x1_end": ends[k]}
        for m, found in {
            "emtl": ("star", "no"),
            "emtl (b=-21)": ("front", "one point"),
            "emt": ("star", "star"),
        }.items()
        for s, k in zip((1.0, 0.1), found, strict=True)
    ]
    found = shown_ends.reconstructions(pd.DataFrame(rows))
    assert found["s = 1"].tolist() == ["star", "front"] and found["s = 0.1"].tolist() == ["no", "one point"]
    assert found["verdict"].tolist() == ["contradicted", "contradicted"]
    assert shown_ends.reconstructions(pd.DataFrame(rows[:1])).loc["emtl", "verdict"] == "reproduced"
    assert set(shown_ends.reconstructions(pd.DataFrame(rows), short=True)["verdict"]) == {"not tested"}


def test_weighted_rates_are_equal_at_the_predicted_end() -> None:
    def gap(x1: float) -> float:
        f, (g,) = plane.evaluate(plane.on_front(x1)[None], 0.1)
        return float(f[0, 0] / (g[0] @ g[0]) - f[0, 1] / (g[1] @ g[1]))

    assert brentq(gap, -6, 6) == pytest.approx(shown_ends.predicted_end(0.1, 0.5), abs=1e-3)


@pytest.mark.parametrize(
    ("config", "wording"),
    [
        (("mdga", {}), "method: the toy has ls, scalarization.* found 'mdga'"),
        (("emtl", {"gamma": 1.0}), "gamma: emtl takes b, rho, eta, alpha"),
        (("ls", {"rho": 1.0}), "rho: ls takes no hyperparameters"),
        (("stl", {}), "found 'stl'; one model per task has no common point"),
        (("emtl", {"combine": "sum"}), "combine: one of literal, frozen_norm, product, found 'sum'"),
    ],
)
def test_unknown_methods_and_options_are_named(config: tuple[str, dict[str, Any]], wording: str) -> None:
    with pytest.raises(ValueError, match=wording):
        toy.run_toy(toy.grid([config], [1.0]), steps=1)


def test_unknown_run_and_missing_rows_are_named() -> None:
    runs = toy.run_toy(toy.grid(["ls"], [1.0]), steps=1)
    with pytest.raises(ValueError, match=r"label: no run of 'mgda' at scale 1.0"):
        runs.index("mgda", 1.0)
    with pytest.raises(ValueError, match="found none for bandit"):
        shown_ends.claims(shown_ends.summarise(runs))
