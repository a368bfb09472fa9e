"""Seeds trained together end where each ends alone: rows, weights, stops, failures; and what is refused."""

import math
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl.methods import METHODS
from mtl.models.base import Branched, seeded
from mtl.problems import problem
from mtl.problems.base import Metric, Problem
from mtl.training import fit as training
from mtl.training.fit import Budget, Run, fit
from mtl.training.stacked import Group, Methods
from mtl.training.together import fit_seeds, fresh

SEEDS = [3, 0, 4]
NAMES = [name for name, kind in METHODS.items() if kind.needs in ("losses", "gram")]
HYPER: dict[str, dict[str, Any]] = {"emtl": {"rho": 0.1}, "bandit": {"rho": 0.1}, "scalarization": {"c": [0.3, 1.7]}}
MORE = [
    ("emtl", {"base": "nash", "base_hyper": {"every": 3}, "combine": "frozen_norm", "rate": "raw", "rho": 0.1}),
    ("emtl", {"base": "pcgrad", "combine": "product", "rho": 0.1}),
    ("fair-loss", {"base": "cagrad", "alpha": 0.5}),
    ("mgda", {"norm": "loss+"}),
    ("cagrad", {"heads": "weighted"}),
    ("nash", {"every": 4}),
    ("dwa", {"window": None}),
    ("stch", {"form": "log", "warmup": 3}),
    ("sdmgrad", {"inner": "sgd", "lr": 0.1}),
    ("upgrad", {"reg": 1e-4}),
    ("aligned", {"scale": "median"}),
]
CASES = [(name, HYPER.get(name, {})) for name in NAMES] + MORE


class Curves(Problem):
    """Two regressions in float64 on a net with a frozen number; the nets of `broken` hold it at NaN."""

    name, models, synthetic = "curves", ("small",), True

    def __init__(self, broken: tuple[int, ...] = (), shift: dict[int, float] | None = None, dtype: Any = torch.float64):
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(400, 3, generator=draw, dtype=dtype)
        noise = torch.randn(400, 2, generator=draw, dtype=dtype)
        y = torch.stack([x[:, 0] - x[:, 1], (x[:, 1] * 3 + x[:, 2]).tanh()], 1) + 0.5 * noise
        rows = {"train": slice(0, 72), "validation": slice(72, 236), "test": slice(236, 400)}
        parts = {name: (x[rows], y[rows]) for name, rows in rows.items()}
        super().__init__("smoke", ("a", "b"), parts, source="curves", fingerprint="f00d")
        self.broken, self.shift, self.dtype = broken, shift or {}, dtype

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(Metric("mse", task, "", False) for task in self.tasks)

    def model(self, name: str, seed: int, **sizes: object) -> Branched:
        with seeded(seed):
            trunk = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
            net = Branched(trunk, [nn.Linear(8, 1), nn.Linear(8, 1)])
        start = math.nan if seed in self.broken else self.shift.get(seed, 0.0)
        net.frozen = nn.Parameter(torch.tensor(start), requires_grad=False)
        return net.to(self.dtype)

    def losses(self, model: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first, second = super().losses(model, batch)
        return first, second * (1 + 0 * model.frozen) - model.frozen  # NaN reaches the gradients too

    def task_losses(self, outputs: list[Tensor], targets: Tensor) -> tuple[Tensor, ...]:
        return tuple(((o - y) ** 2).mean() for o, y in zip(outputs, targets.unbind(1), strict=True))

    def scores(self, outputs: list[Tensor], targets: Tensor) -> dict[str, Tensor]:
        pairs = list(zip(self.tasks, self.task_losses(outputs, targets), strict=True))
        return {f"{task}/mse": value for task, value in pairs} | {f"{task}/score": -value for task, value in pairs}


BUDGET = Budget(epochs=12, batch_size=16, lr=0.05, weight_decay=1e-3, patience=2)
SHORT = Budget(epochs=4, batch_size=16, lr=0.05, weight_decay=1e-3)  # long enough for state to matter, for 51 cases


def alone(data: Problem, name: str, hyper: dict[str, Any], seeds: list[int], budget: Budget, model: str) -> list[Run]:
    return [
        fit(data, fresh(name, len(data.tasks), seed, hyper), model=model, seed=seed, budget=budget) for seed in seeds
    ]


def told(run: Run) -> dict[str, Any]:
    """All that becomes a row."""
    kept = {name: value for name, value in vars(run).items() if name not in ("weights", "steps", "model", "modules")}
    return kept | {"trace": run.trace}


def assert_close(one: Any, other: Any, tolerance: float, at: str = "row") -> None:
    """Rows agree in everything but times; numbers to `tolerance`, those below it in certificates alike."""
    if at.endswith(("wall_s", "message", "unconverged", "n_steps")) and at.count(".") == 1:
        return
    if isinstance(one, dict):
        assert set(one) == set(other), at
        for name in one:
            assert_close(one[name], other[name], tolerance, f"{at}.{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), at
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, tolerance, f"{at}[{i}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance), at
    else:
        assert one == other, at


@pytest.mark.parametrize(("name", "hyper"), CASES, ids=[f"{name} {hyper}" for name, hyper in CASES])
def test_each_seed_ends_as_it_does_alone(name: str, hyper: dict[str, Any]) -> None:
    data, seeds = Curves(), SEEDS[:2]
    together = fit_seeds(data, name, hyper, model="small", seeds=seeds, budget=SHORT)
    for run, lone in zip(together, alone(data, name, hyper, seeds, SHORT, "small"), strict=True):
        assert run.status == "ok" and "mtl.training.together" in run.modules
        assert_close(told(run), told(lone), 1e-6)  # the trace keeps six digits of the weights
        assert run.weights == pytest.approx(lone.weights, rel=1e-7, abs=1e-9)
        for p, q in zip(run.model.parameters(), lone.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


def test_seeds_stop_each_at_its_own_time() -> None:
    """A seed that stops ends as it does alone, and neither goes on too long nor stops the others."""
    ended: list[Run] = []
    runs = fit_seeds(Curves(), "uw", {}, model="small", seeds=SEEDS, budget=BUDGET, done=ended.append)
    for run, lone in zip(runs, alone(Curves(), "uw", {}, SEEDS, BUDGET, "small"), strict=True):
        assert_close(told(run), told(lone), 1e-6)
    epochs = [len(run.history) for run in runs]
    assert len(set(epochs)) == 3 and min(epochs) >= 3
    assert [len(run.history) for run in ended] == sorted(epochs)
    assert [run.seed for run in runs] == SEEDS


@pytest.fixture(scope="module")
def clicks() -> Problem:
    return problem("aliexpress_like", "smoke")


@pytest.mark.parametrize(
    ("model", "name"),
    [("mmoe", "uw"), *((model, "fairgrad") for model in ("mmoe", "ple", "shared-bottom", "dcn", "single-task"))],
)
def test_recommendation_models_in_single_precision(model: str, name: str, clicks: Problem) -> None:
    """Tolerance: scores (AUC) and weights to 1e-4, after an epoch of float32."""
    data, budget = clicks, Budget(1, 1024)
    lone = alone(data, name, {}, [0, 1], budget, model)
    for run, one in zip(fit_seeds(data, name, {}, model=model, seeds=[0, 1], budget=budget), lone, strict=True):
        assert run.metrics == pytest.approx(one.metrics, abs=1e-4)
        assert run.weights == pytest.approx(one.weights, rel=1e-4)


def test_the_perceptron_of_the_digits() -> None:
    data, budget = problem("digits", "smoke", tasks=3), Budget(2, 256)
    lone = alone(data, "nash", {}, [0, 1], budget, "mlp")
    for run, one in zip(fit_seeds(data, "nash", {}, model="mlp", seeds=[0, 1], budget=budget), lone, strict=True):
        assert run.metrics == pytest.approx(one.metrics, abs=1e-4)


@pytest.mark.parametrize("name", ["ls", "uw", "famo", "pcgrad", "fairgrad", "aligned", "emtl"])
def test_a_seed_that_breaks_has_its_own_failed_row(name: str) -> None:
    data = Curves(broken=(0,))
    together = fit_seeds(data, name, {}, model="small", seeds=SEEDS, budget=SHORT)
    lone = alone(data, name, {}, SEEDS, SHORT, "small")
    assert [run.status for run in together] == ["ok", "non-finite", "ok"]
    for run, one in zip(together, lone, strict=True):
        row = told(run)
        if run.failure:
            places = [{k: v for k, v in r.failure.items() if k != "message"} for r in (run, one)]
            assert places[0] == places[1] == {"epoch": 0, "step": 0, "task": "b"}
            row["failure"] = one.failure
        assert_close(row, told(one), 1e-6)


@pytest.mark.parametrize("name", ["uw", "nash"])
def test_no_method_is_asked_about_a_broken_seed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver iterates for all seeds at once: one without a solution would keep it going for the others."""
    weights, asked = Methods.weights, 0

    def finite(self: Methods, losses: Tensor, gram: Tensor | None) -> Any:
        nonlocal asked
        asked += 1
        assert losses.isfinite().all() and (gram is None or gram.isfinite().all())
        return weights(self, losses, gram)

    monkeypatch.setattr(Methods, "weights", finite)
    runs = fit_seeds(Curves(broken=(0,)), name, {}, model="small", seeds=SEEDS, budget=Budget(2, 16, lr=0.05))
    assert [run.status for run in runs] == ["ok", "non-finite", "ok"] and asked == 10


def test_a_loss_without_logarithm_fails_its_own_seed() -> None:
    data = Curves(shift={4: 0.2})  # the second loss falls below zero once it is learned
    together = fit_seeds(data, "si", {}, model="small", seeds=SEEDS, budget=Budget(30, 16, lr=0.05))
    lone = alone(data, "si", {}, SEEDS, Budget(30, 16, lr=0.05), "small")
    assert [run.status for run in together] == ["ok", "ok", "non-positive"]
    failure = together[2].failure
    assert failure["epoch"] > 0 and failure["task"] == "b" and "must be positive, found -" in failure["message"]
    assert failure == lone[2].failure


def test_a_halved_rate_and_the_mean_of_the_last_epochs() -> None:
    data, budget = Curves(), Budget(6, 16, lr=0.05, halve_at=3, last=2)
    plain = fit_seeds(data, "mgda", {}, model="small", seeds=[0, 1], budget=Budget(6, 16, lr=0.05))
    runs = fit_seeds(data, "mgda", {}, model="small", seeds=[0, 1], budget=budget)
    for run, one in zip(runs, alone(data, "mgda", {}, [0, 1], budget, "small"), strict=True):
        assert run.last == pytest.approx(one.last, rel=1e-7)
        assert_close(run.history, one.history, 1e-6)
    assert runs[0].history[5]["losses"] != pytest.approx(plain[0].history[5]["losses"], rel=1e-6)


def test_a_cycle_of_the_rate_and_no_short_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl.training.stacked.WINDOW", 3)  # steps wait in windows that are no epochs
    budget = Budget(3, 16, lr=0.05, weight_decay=0.1, optimizer="adamw", one_cycle=0.4, drop_last=True)
    data = Curves()
    together = fit_seeds(data, "uw", {}, model="small", seeds=SEEDS, budget=budget)
    for run, lone in zip(together, alone(data, "uw", {}, SEEDS, budget, "small"), strict=True):
        assert run.n_steps == lone.n_steps == 12
        assert_close(told(run), told(lone), 1e-6)


def test_a_method_that_hears_validation_losses_is_refused() -> None:
    with pytest.raises(ValueError, match=r"name: must be a method that hears no validation losses .* found Bandit"):
        fit_seeds(Curves(), "bandit", {"balance": True}, model="small", seeds=SEEDS, budget=BUDGET)


def test_a_task_that_is_not_there_is_refused() -> None:
    class Partly(Curves):
        def losses(self, model: Any, batch: tuple[Tensor, ...]) -> Any:
            return super().losses(model, batch)[0], None

    with pytest.raises(ValueError, match="found that curves returns None for task 1; train its seeds one by one"):
        fit_seeds(Partly(), "ls", {}, model="small", seeds=SEEDS, budget=BUDGET)


def test_wall_times_are_shares_of_the_whole() -> None:
    start = time.perf_counter()
    runs = fit_seeds(Curves(), "ls", {}, model="small", seeds=SEEDS, budget=BUDGET)
    assert 0 < sum(run.wall_s for run in runs) <= time.perf_counter() - start + 0.01


def test_more_steps_than_wait_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit_seeds(Curves(), "cagrad", {}, model="small", seeds=[0, 1], budget=Budget(2, 16))
    monkeypatch.setattr("mtl.training.stacked.WINDOW", 2)
    pieces = fit_seeds(Curves(), "cagrad", {}, model="small", seeds=[0, 1], budget=Budget(2, 16))
    assert [run.history for run in whole] == [run.history for run in pieces]
    assert [run.trace for run in whole] == [run.trace for run in pieces]


@pytest.mark.parametrize(("name", "hyper"), CASES, ids=[f"{name} {hyper}" for name, hyper in CASES])
@pytest.mark.parametrize("T", [3, 12])
def test_methods_of_many_seeds_are_those_of_each(name: str, hyper: dict[str, Any], T: int) -> None:
    """Twelve tasks are beyond what solvers enumerate, or do in Python."""
    hyper = {"c": [0.1 * (t + 1) for t in range(T)]} if name == "scalarization" else hyper
    own, check = ([fresh(name, T, seed, hyper) for seed in range(4)] for _ in range(2))
    many = Methods(own, fresh(name, T, 0, hyper), torch.device("cpu"))
    draw = torch.Generator().manual_seed(1)
    seeds = [0, 1, 2, 3]
    for step in range(6):
        if step == 3:
            many.keep(torch.tensor([1, 3]))
            seeds = [1, 3]
        G = torch.randn(4, T, 30, generator=draw, dtype=torch.float64)
        L = 0.1 + torch.rand(4, T, generator=draw, dtype=torch.float64)
        K = G @ G.mT
        w, heads, told = many.weights(L[seeds], K[seeds])
        for i, seed in enumerate(seeds):
            expected = check[seed].weights(L[seed], K[seed])
            torch.testing.assert_close(w[i], expected, rtol=1e-7, atol=1e-9)
            torch.testing.assert_close(heads[i], check[seed].head_weights(L[seed], expected), rtol=1e-7, atol=1e-9)
            for p, q in zip([] if many.draws else many.many.parameters(), check[seed].parameters(), strict=False):
                torch.testing.assert_close(p.grad[i], q.grad, rtol=1e-7, atol=1e-9)
            assert ("residual" in told) == (check[seed].certificate is not None)
        if check[0].wants_after_step:
            many.after_step(0.9 * L[seeds])
            for seed in seeds:
                check[seed].after_step(0.9 * L[seed])


@pytest.mark.parametrize(
    ("name", "found"), [("db-mtl", "DBMTL"), ("graddrop", "GradDrop"), ("adatask", "AdaTask"), ("mgda-ub", "MGDAUB")]
)
def test_methods_that_need_more_than_losses_and_gram_are_refused(name: str, found: str) -> None:
    match = f"name: must be a method that needs losses or the Gram matrix where seeds train together, found {found}"
    with pytest.raises(ValueError, match=match):
        fit_seeds(Curves(), name, {}, model="small", seeds=[0, 1], budget=BUDGET)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(8), nn.Dropout(0.1)])
def test_models_that_draw_or_keep_statistics_are_refused(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Curves.model

    def model(self: Curves, name: str, seed: int) -> Branched:
        net = plain(self, name, seed)
        net.trunk.append(layer)
        return net

    monkeypatch.setattr(Curves, "model", model)
    with pytest.raises(ValueError, match=r"model: must draw nothing and keep no statistics .*, found (BatchN|Dropout)"):
        fit_seeds(Curves(), "ls", {}, model="small", seeds=[0, 1], budget=BUDGET)


def test_a_problem_that_draws_and_seeds_that_repeat_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for seeds in ([], [1, 1]):
        with pytest.raises(ValueError, match="seeds: must be distinct, and one at least, found"):
            fit_seeds(Curves(), "ls", {}, model="small", seeds=seeds, budget=BUDGET)
    plain = Curves.batches

    def jittered(self: Curves, *rest: Any) -> Any:
        for x, y in plain(self, *rest):
            yield x + 0.01 * torch.randn(x.shape), y

    monkeypatch.setattr(Curves, "batches", jittered)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"must not draw from the global generator .*, found that curves does"):
        fit_seeds(Curves(), "ls", {}, model="small", seeds=[0, 1], budget=BUDGET)
    assert torch.equal(state, torch.get_rng_state())


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("name", [pytest.param(name, marks=gpu) for name in NAMES])
def test_on_a_gpu_no_step_waits_but_to_solve(name: str, clicks: Problem) -> None:
    data, device = clicks, torch.device("cuda")
    own = [fresh(name, 2, seed, HYPER.get(name, {})) for seed in (0, 1)]
    loops = [training.Loop(data, m, "mmoe", s, Budget(1, 2048), device) for s, m in enumerate(own)]
    group = Group(loops, Methods(own, fresh(name, 2, 0, HYPER.get(name, {})), device))
    batch = tuple(torch.stack([t, t]) for t in next(iter(data.batches("train", 0, 2048, device))))
    group.step(batch)  # the first call copies constants
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("default" if own[0].solves else "error")
    try:
        group.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    group.fetch()
    assert all(loop.trace.get("losses").isfinite().all() for loop in loops)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=gpu) for name in ("ls", "fairgrad", "emtl")])
def test_on_a_gpu_five_seeds_take_at_most_half_as_long_again(name: str) -> None:
    data, budget = problem("aliexpress_like", "quick"), Budget(2, 2048)
    how = {"model": "mmoe", "budget": budget, "device": "cuda"}

    def seconds(run: Any) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    five, one = (
        (lambda: fit_seeds(data, name, {}, seeds=[0, 1, 2, 3, 4], **how)),
        (lambda: fit(data, fresh(name, 2, 0, {}), seed=0, **how)),
    )
    five(), one()
    ratio = min(seconds(five) for _ in range(3)) / min(seconds(one) for _ in range(3))
    assert ratio <= 1.5, f"five seeds take {ratio:.2f} times as long as one"
