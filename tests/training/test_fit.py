"""The training loop: what is kept, what is stopped, what survives a kill."""

import copy
import json
import math
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mtl
from mtl import sources
from mtl.errors import NonFiniteError, RunError
from mtl.files import unseal
from mtl.gradients import Step, backward
from mtl.methods import METHODS, method
from mtl.methods.base import Method
from mtl.methods.custom import rule
from mtl.models.base import Branched, seeded
from mtl.problems import problem as build
from mtl.problems.base import Metric, Problem
from mtl.training import fit as training
from mtl.training import loop
from mtl.training.fit import Budget, fit
from mtl.training.together import fit_seeds

BUDGET = Budget(epochs=4, batch_size=16, lr=0.02, weight_decay=1e-4)


class Lines(Problem):
    """Two regressions on one small net with dropout; `break_at` makes the loss of task "b" NaN at that step."""

    name = "lines"
    models = ("small",)
    synthetic = True
    dropout = 0.3

    def __init__(self, break_at: int | None = None, stop_at: int | None = None) -> None:
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(120, 3, generator=draw)
        y = torch.stack([x[:, 0] - x[:, 1], (x[:, 1] * 3 + x[:, 2]).tanh()], 1)
        splits = {"train": slice(0, 72), "validation": slice(72, 96), "test": slice(96, 120)}
        parts = {name: (x[rows], y[rows]) for name, rows in splits.items()}
        super().__init__("smoke", ("a", "b"), parts, source="two lines", fingerprint="f00d")
        self.break_at, self.stop_at, self.calls, self.read = break_at, stop_at, 0, []

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(Metric("mse", task, "", False) for task in self.tasks)

    def model(self, name: str, seed: int, **sizes: object) -> Branched:
        with seeded(seed):
            trunk = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(self.dropout))
            return Branched(trunk, [nn.Linear(8, 1), nn.Linear(8, 1)])

    def task_losses(self, outputs: list[Tensor], targets: Tensor) -> tuple[Tensor, ...]:
        return tuple(((o - y) ** 2).mean() for o, y in zip(outputs, targets.unbind(1), strict=True))

    def batches(self, split: str, *rest: Any, **more: Any) -> Iterator[tuple[Tensor, ...]]:
        """Training inputs are jittered: a problem may draw from the run's generator."""
        for x, y in super().batches(split, *rest, **more):
            yield (x + 0.01 * torch.randn(x.shape).to(x) if split == "train" else x), y

    def losses(self, model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.counted(super().losses(model, batch))

    def losses_and_features(self, model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Any]:
        losses, features = super().losses_and_features(model, batch)
        return self.counted(losses), features

    def counted(self, losses: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled():
            return losses
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        return losses if self.calls - 1 != self.break_at else (losses[0], self.broken(losses[1]))

    @staticmethod
    def broken(loss: Tensor) -> Tensor:
        return loss * math.nan

    def scores(self, outputs: list[Tensor], targets: Tensor) -> dict[str, Tensor]:
        mse = self.task_losses(outputs, targets)
        pairs = list(zip(self.tasks, mse, strict=True))
        return {f"{task}/mse": value for task, value in pairs} | {f"{task}/score": -value for task, value in pairs}

    def evaluate(self, model: nn.Module, split: str, device: object = "cpu") -> dict[str, float]:
        self.read.append(split)
        return super().evaluate(model, split, device)


class Drift(Method):
    """Weights that move with a learned part, a running part and a generator: all that a checkpoint must keep."""

    wants_after_step = True

    def __init__(self, n_tasks: int = 2) -> None:
        super().__init__(n_tasks)
        self.s = torch.zeros(n_tasks, requires_grad=True)
        self.seen = torch.zeros(n_tasks)
        self.draw = torch.Generator().manual_seed(3)

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        self.s.grad = losses * torch.exp(-self.s.detach()).neg() + 1
        return torch.exp(-self.s.detach()) + 0.1 * torch.rand(2, generator=self.draw) + 0.01 * self.seen

    def after_step(self, losses: Tensor) -> None:
        self.seen = 0.9 * self.seen + losses

    def parameters(self) -> list[Tensor]:
        return [self.s]

    def state_dict(self) -> dict[str, Tensor]:
        return {"seen": self.seen, "draw": self.draw.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.seen = state["seen"]
        self.draw.set_state(state["draw"])


class Equal(Method):
    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        return torch.ones_like(losses)


def small(problem: Problem | None = None, method: Method | None = None, **options: object) -> training.Run:
    return fit(problem or Lines(), method or Drift(), **{"model": "small", "seed": 1, "budget": BUDGET, **options})


def numbers(run: training.Run) -> dict[str, object]:
    """What must be the same: all of the run but time, and every parameter, bit for bit."""
    plain = {name: value for name, value in vars(run).items() if name not in ("wall_s", "weights", "steps", "model")}
    return plain | {
        "trace": run.trace,
        "state": {k: v.tolist() for k, v in run.model.state_dict().items()},
        "w": run.weights.tolist(),
    }


def test_run_says_everything() -> None:
    run = small()
    assert (run.seed, run.status, run.failure, len(run.history), run.n_steps) == (1, "ok", None, 4, 20)
    assert set(run.metrics) == {"a/mse", "a/score", "b/mse", "b/score", "score"}
    assert run.wall_s > 0 and run.modules == ["mtl.methods.base", "mtl.problems.base", "mtl.training.fit"]
    assert [line["epoch"] for line in run.history] == [0, 1, 2, 3]
    assert run.validation == run.history[run.best_epoch]["validation"]
    assert run.weights.shape == (20, 2) and run.steps.tolist() == list(range(20))
    assert run.history[1]["weights"] == pytest.approx(run.weights[5:10].mean(0).tolist())


def test_training_learns() -> None:
    problem = Lines()
    problem.dropout = 0.0
    run = small(problem, budget=Budget(epochs=60, batch_size=16, lr=0.02, weight_decay=1e-3))
    assert run.history[-1]["losses"][0] < run.history[0]["losses"][0] / 2


def test_learned_weights_have_their_own_rate_and_no_decay() -> None:
    class Still(Equal):
        """A learned weight that no loss moves."""

        def __init__(self, pull: float) -> None:
            super().__init__(2)
            self.s, self.pull = torch.ones(2, requires_grad=True), pull

        def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
            self.s.grad = torch.full((2,), self.pull)
            return torch.ones_like(losses)

        def parameters(self) -> list[Tensor]:
            return [self.s]

    decay = Budget(epochs=4, batch_size=16, lr=0.5, weight_decay=0.5)
    small(method=(still := Still(0.0)), budget=decay)
    small(method=(pulled := Still(1.0)), budget=decay)
    assert still.s.tolist() == [1.0, 1.0]
    assert pulled.s.tolist() == pytest.approx([1 - 20 * Method.learning_rate] * 2, rel=1e-5)  # Adam: 20 steps of 0.025


def test_after_step_hears_the_losses_of_the_moved_model() -> None:
    class Listens(Equal):
        wants_after_step = True

        def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
            self.before = losses
            return torch.ones_like(losses)

        def after_step(self, losses: Tensor) -> None:
            self.fell = [*getattr(self, "fell", []), bool(losses.sum() < self.before.sum())]

    problem = Lines()
    problem.dropout = 0.0
    small(problem, method=(listens := Listens(2)))
    assert listens.fell == [True] * 20


def test_weights_over_time_are_thinned() -> None:
    run = small(budget=Budget(epochs=100, batch_size=16))  # 500 steps
    assert run.steps.tolist() == list(range(0, 500, 3)) and len(run.trace) == len(run.steps) == len(run.weights)


def test_same_seed_same_bits_whatever_ran_before() -> None:
    first = numbers(small())
    torch.randn(7)
    small(seed=5)
    assert numbers(small()) == first
    assert numbers(small(seed=2))["state"] != first["state"]


def test_global_generator_is_left_alone() -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    small()
    assert torch.equal(torch.get_rng_state(), state)


def test_best_validation_state_is_tested_once_at_the_end() -> None:
    problem = Lines()
    run = small(problem, budget=Budget(epochs=50, batch_size=16, lr=0.3))
    assert problem.read == ["validation"] * 50 + ["test"]
    scores = [line["validation"]["score"] for line in run.history]
    assert run.best_epoch == scores.index(max(scores)) < 49
    assert run.metrics == problem.evaluate(run.model, "test")
    assert run.validation["score"] == problem.evaluate(run.model, "validation")["score"] == max(scores)


def test_early_stopping_waits_for_patience() -> None:
    run = small(budget=Budget(epochs=200, batch_size=16, lr=0.3, patience=3))
    assert len(run.history) < 200 and len(run.history) == run.best_epoch + 4


def test_select_looks_at_the_metric_named() -> None:
    budget = Budget(epochs=12, batch_size=16, lr=0.3)
    by_score, by_mse = small(select="b/score", budget=budget), small(select="b/mse", budget=budget)
    assert by_score.best_epoch == by_mse.best_epoch  # lower mse is the better one
    values = [line["validation"]["b/mse"] for line in by_mse.history]
    assert by_mse.best_epoch == values.index(min(values))
    with pytest.raises(ValueError, match=r"select: must be one of \['a/mse', 'a/score', .*'score'\], found 'auc'"):
        small(select="auc")


CHECKS = {
    "each step": backward,
    "deferred, as on a GPU": lambda *a, **k: backward(*a, **{**k, "check": "defer"}),
    "by the loop alone": lambda losses, **_: unchecked(losses),
}


def unchecked(losses: tuple[Tensor, ...]) -> Step:
    sum(losses).backward()
    values = torch.stack([loss.detach() for loss in losses])
    return Step(values, torch.ones_like(values), None)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("at", [0, 3, 13])
def test_nan_loss_stops_the_run_and_says_where(monkeypatch, check: str, at: int) -> None:
    monkeypatch.setattr(loop, "backward", CHECKS[check])
    problem = Lines(break_at=at)
    run = small(problem, Equal(2))
    assert run.status == "non-finite"
    assert (run.failure["epoch"], run.failure["step"], run.failure["task"]) == (at // 5, at % 5, "b")
    assert re.search("losses: must be finite, found nan for task 1|the loss of task 'b' is not", run.failure["message"])
    assert set(run.metrics.values()) == {None} and "test" not in problem.read
    assert len(run.history) == at // 5
    json.dumps(run.history, allow_nan=False)


@pytest.mark.parametrize("check", list(CHECKS)[:2])
@pytest.mark.parametrize("name", ["mgda", "ls"])
def test_nan_gradient_of_a_finite_loss_stops_the_run(monkeypatch, check: str, name: str) -> None:
    monkeypatch.setattr(loop, "backward", CHECKS[check])
    problem = Lines(break_at=8)
    problem.broken = lambda loss: loss + (0 * loss).sqrt()
    failure = small(problem, method(name, 2)).failure
    assert failure["epoch"] == 1
    if name == "mgda":
        assert (failure["step"], failure["task"]) == (3, "b") and "squared gradient norm" in failure["message"]
    else:  # which looks at no gradient: the next losses show it
        assert failure["step"] == 4


def test_gradient_that_is_not_finite_stops_the_run(monkeypatch) -> None:
    def fails(*args: object, **rest: object) -> None:
        raise NonFiniteError("squared gradient norms: must be finite, found inf for task 0")

    monkeypatch.setattr(loop, "backward", fails)
    run = small()
    assert run.status == "non-finite" and run.failure["task"] == "a"
    assert run.failure["message"] == "squared gradient norms: must be finite, found inf for task 0"


@pytest.mark.parametrize("split", ["validation", "test"])
def test_metric_that_is_not_finite_stops_the_run(monkeypatch, split: str) -> None:
    whole = Lines.evaluate

    def hole(self: Lines, model: nn.Module, part: str, device: object = "cpu") -> dict[str, float]:
        return whole(self, model, part, device) | ({"b/mse": math.nan} if part == split else {})

    monkeypatch.setattr(Lines, "evaluate", hole)
    run = small()
    assert run.status == "non-finite" and run.failure["task"] == "b" and run.failure["step"] is None
    assert run.failure["message"].startswith(f"{split} metric b/mse is nan after epoch")
    assert set(run.metrics.values()) == {None}


@pytest.mark.parametrize("seed", range(4))
def test_stopped_at_any_step_and_resumed_bit_for_bit(tmp_path: Path, seed: int) -> None:
    whole = numbers(small())
    stops = [*sorted(random.Random(seed).sample(range(20), 2)), None]
    for count, stop in enumerate(stops):
        problem = Lines(stop_at=None if stop is None else stop - (stops[count - 1] if count else 0))
        torch.randn(seed + 1)
        if stop is None:
            run = small(problem, checkpoint=tmp_path / "c.pt", checkpoint_every=0)
            assert problem.calls == 20 - stops[-2]  # nothing was done twice
            assert numbers(run) == whole
        else:
            with pytest.raises(KeyboardInterrupt):
                small(problem, checkpoint=tmp_path / "c.pt", checkpoint_every=0)
    assert numbers(small(checkpoint=tmp_path / "c.pt")) == whole  # a finished one repeats its last steps


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resumes_bit_for_bit(tmp_path: Path, name: str) -> None:
    whole = numbers(small(method=method(name, 2)))
    with pytest.raises(KeyboardInterrupt):
        small(Lines(stop_at=7), method(name, 2), checkpoint=tmp_path / "c.pt", checkpoint_every=0)
    assert numbers(small(method=method(name, 2), checkpoint=tmp_path / "c.pt")) == whole


KILLED = """
    import os, signal, sys
    import torch
    torch.set_num_threads(1)
    sys.path.insert(0, sys.argv[1])
    from tests.training.test_fit import Lines, small
    problem, at = Lines(), int(sys.argv[3])
    plain = problem.losses
    def losses(model, batch):
        if problem.calls == at and torch.is_grad_enabled():
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(model, batch)
    problem.losses = losses
    small(problem, checkpoint=sys.argv[2], checkpoint_every=0)
"""


@pytest.mark.parametrize("at", [pytest.param(0, marks=pytest.mark.slow), 8])
def test_kill_9_and_resumed_bit_for_bit(tmp_path: Path, at: int) -> None:
    path = tmp_path / "c.pt"
    call = [sys.executable, "-c", textwrap.dedent(KILLED), str(Path(__file__).parents[2]), str(path), str(at)]
    done = subprocess.run(call, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=100)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    problem = Lines()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert numbers(small(problem, checkpoint=path)) == numbers(small())
    finally:
        torch.set_num_threads(threads)
    assert problem.calls == 20 - at


def test_checkpoint_of_another_run_damaged_or_older(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "c.pt"
    small(checkpoint=path, checkpoint_every=0)
    with pytest.raises(RunError, match=r"checkpoint c.pt: belongs to run [0-9a-f]{16}, not to [0-9a-f]{16}"):
        small(seed=2, checkpoint=path)
    monkeypatch.setattr(training.sources, "digest", lambda _: "older")
    problem = Lines()
    with pytest.warns(UserWarning, match=r"checkpoint c.pt: made by older sources; the run starts afresh"):
        small(problem, checkpoint=path)
    assert problem.calls == 20
    content = path.read_bytes()
    for damaged in (content[:-40], content + b"x", content[:20], b""):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=r"checkpoint c.pt: cannot be read \(\w+\); remove it to start afresh"):
            small(checkpoint=path)


def test_one_flipped_bit_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "without-suffix"
    problem = Lines(stop_at=12)
    with pytest.raises(KeyboardInterrupt):
        small(problem, checkpoint=path, checkpoint_every=0)
    content = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), 64):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="without-suffix: content and its sha256 differ"):
            unseal(path)
    with pytest.raises(RunError, match=r"checkpoint without-suffix: cannot be read \(\w+\); remove it to start afresh"):
        small(checkpoint=path)
    path.write_bytes(content)
    assert numbers(small(checkpoint=path)) == numbers(small())


OTHERS = {
    "hyperparameter": {"method": lambda: method("fairgrad", 2, alpha=5.0)},
    "method": {"method": lambda: method("nash", 2)},
    "base": {"method": lambda: method("fair-loss", 2, base="mgda")},
    "budget": {"budget": Budget(epochs=4, batch_size=16, lr=0.03)},
    "select": {"select": "a/score"},
    "initialisation": {"init_seed": 2},
    "options": {"options": {"factor": 2}},
    "data": {"fingerprint": "beef"},
}


@pytest.mark.parametrize("change", OTHERS)
def test_a_checkpoint_belongs_to_all_that_decides_the_run(tmp_path: Path, change: str) -> None:
    """fairgrad with alpha = 1 and alpha = 5 once shared one."""
    path, other = tmp_path / "c.pt", dict(OTHERS[change])
    made = (lambda: method("fair-loss", 2)) if change == "base" else (lambda: method("fairgrad", 2, alpha=1.0))
    small(method=made(), checkpoint=path, checkpoint_every=0)
    small(method=made(), checkpoint=path)
    problem = Lines()
    for name in {"options", "fingerprint"} & set(other):
        setattr(problem, name, other.pop(name))
    with pytest.raises(RunError, match=r"checkpoint c.pt: belongs to run"):
        small(problem, other.pop("method", made)(), checkpoint=path, **other)


def test_another_initialisation_sees_the_same_data() -> None:
    """What an A/A row is for: weights and draws of the model differ, the order of the data does not."""
    seen: list[list[Tensor]] = []
    draws: set[int] = set()

    class Seen(Lines):
        dropout = 0.0

        def batches(self, split: str, *rest: Any, **more: Any) -> Iterator[tuple[Tensor, ...]]:
            draws.add(torch.initial_seed())
            for batch in Problem.batches(self, split, *rest, **more):
                seen[-1] += [batch[0]] if split == "train" else []
                yield batch

    def run(**given: Any) -> training.Run:
        seen.append([])
        return small(Seen(), method("ls", 2), **given)

    one, same, other, elsewhere = run(), run(init_seed=1), run(init_seed=7), run(seed=2)
    assert draws == {1, 7, 2}
    assert numbers(one) == numbers(same) and numbers(one) != numbers(other) != numbers(elsewhere)
    assert len(seen[0]) == 20 and torch.equal(torch.cat(seen[0]), torch.cat(seen[2]))
    assert not torch.equal(torch.cat(seen[0]), torch.cat(seen[3]))
    assert one.history[0]["losses"] != other.history[0]["losses"]
    with pytest.raises(ValueError, match="init_seed: must be a whole number of at least 0, found -1"):
        run(init_seed=-1)


def test_two_rules_do_not_share_a_checkpoint(tmp_path: Path) -> None:
    names = [rule("mine", lambda losses, K: 1 + 0 * losses), rule("mine", lambda losses, K: 2 + 0 * losses)]
    try:
        small(method=method(names[0], 2), checkpoint=tmp_path / "c.pt", checkpoint_every=0)
        with pytest.raises(RunError, match=r"checkpoint c.pt: belongs to run"):
            small(method=method(names[1], 2), checkpoint=tmp_path / "c.pt")
    finally:
        for name in names:
            METHODS.pop(name)


def test_training_knows_no_ledger() -> None:
    found = sources.closure(["mtl.training.fit", "mtl.training.together"])
    assert not [name for name in found if name.startswith(("mtl.ledger", "mtl.runs", "mtl.report", "mtl.experiments"))]


def test_an_edited_class_does_not_go_on_with_the_checkpoint_of_the_old_one(tmp_path: Path) -> None:
    """Its qualified name is the same, and five steps of one were followed by those of the other."""

    def made(value: float) -> Any:
        class Mine(METHODS["ls"]):  # type: ignore[misc]
            def weights(self, losses: torch.Tensor, gram: torch.Tensor | None = None) -> torch.Tensor:
                return losses.new_full(losses.shape, value)

        return Mine(2)

    path = tmp_path / "c.pt"
    small(method=made(1.0), checkpoint=path, checkpoint_every=0)
    with pytest.raises(RunError, match=r"checkpoint c.pt: belongs to run"):
        small(method=made(2.0), checkpoint=path)
    assert small(method=made(1.0), checkpoint=path).status == "ok"


def test_no_checkpoint_before_its_time(tmp_path: Path) -> None:
    small(checkpoint=tmp_path / "c.pt", checkpoint_every=1000)
    assert list(tmp_path.iterdir()) == []


def test_progress_hears_each_epoch() -> None:
    heard: list[dict[str, object]] = []
    run = small(progress=heard.append)
    assert [event["epoch"] for event in heard] == [0, 1, 2, 3]
    assert {**run.history[0], "epochs": 4, "best_epoch": 0} == heard[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": 0}, "epochs: must be a whole number of at least 1, found 0"),
        ({"batch_size": 1.5}, "batch_size: must be a whole number of at least 1, found 1.5"),
        ({"patience": 0}, "patience: must be a whole number of at least 1, found 0"),
        ({"lr": math.nan}, "lr: must be finite and > 0, found nan"),
        ({"weight_decay": -1.0}, "weight_decay: must be finite and >= 0, found -1.0"),
        ({"epochs": True}, "epochs: must be a whole number of at least 1, found True"),
        ({"lr": True}, "lr: must be finite and > 0, found True"),
        ({"lr": "1"}, "lr: must be finite and > 0, found '1'"),
        ({"optimizer": "sgd"}, "optimizer: must be one of adam, adamw, found 'sgd'"),
        ({"one_cycle": 1.0}, r"one_cycle: must be in \(0, 1\), found 1.0"),
        ({"one_cycle": 0.2, "patience": 1}, "one_cycle: must be without patience and halve_at, found Budget"),
        ({"one_cycle": 0.2, "halve_at": 1}, "one_cycle: must be without patience and halve_at, found Budget"),
        ({"drop_last": 1}, "drop_last: must be True or False, found 1"),
        ({"last": 3}, "last: at most epochs"),
        ({"epochs": 2, "last": 1, "patience": 1}, "last: at most epochs"),
        ({"halve_at": 0}, "halve_at: must be a whole number"),
    ],
)
def test_budget_is_checked(options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Budget(**{"epochs": 1, "batch_size": 1, **options})


def test_numbers_of_numpy_are_numbers() -> None:
    plain = Budget(3, 16, lr=0.5, halve_at=2)
    numpy = Budget(np.int64(3), np.int32(16), np.float64(0.5), halve_at=np.int8(2))  # type: ignore[arg-type]
    assert numpy == plain and json.dumps(numpy.settings()) == json.dumps(plain.settings())
    assert numbers(small(method=Equal(2), seed=np.int64(4))) == numbers(small(method=Equal(2), seed=4))
    for seed in (True, 1.0, -1, "1"):
        with pytest.raises(ValueError, match="seed: must be a whole number of at least 0, found"):
            small(seed=seed)


@pytest.mark.parametrize(("wrong", "found"), [("mgda", "'mgda'"), (Equal, "the class Equal"), (None, "None")])
def test_a_method_is_made_first(wrong: Any, found: str) -> None:
    with pytest.raises(TypeError, match=rf"method: must be one made by mtl.method\(name, n_tasks=...\), found {found}"):
        fit(Lines(), wrong, model="small", seed=0, budget=BUDGET)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_runs_on_a_gpu(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on_gpu, on_cpu = small(method=Equal(2), device="cuda"), small(method=Equal(2))
    assert next(on_gpu.model.parameters()).is_cuda
    assert on_gpu.status == "ok" and len(on_gpu.history) == len(on_cpu.history)
    path = tmp_path / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        small(Lines(stop_at=12), Equal(2), device="cuda", checkpoint=path, checkpoint_every=0)
    problem = Lines()
    again = small(problem, Equal(2), device="cuda", checkpoint=path)
    assert problem.calls == 8
    assert again.metrics["score"] == pytest.approx(on_gpu.metrics["score"], rel=1e-3)


def test_a_method_at_the_level_of_the_optimiser_steps_by_itself() -> None:
    """AdaTask's first step moves every shared parameter by 0, lr or 2 lr: one sign per task, none of Adam's own."""
    problem, lr = Lines(), 0.01
    budget = Budget(epochs=1, batch_size=72, lr=lr)
    before = dict(problem.model("small", 1).named_parameters())
    after = dict(small(problem, method("adatask", n_tasks=2), budget=budget).model.named_parameters())
    weight = next(name for name, p in before.items() if p.shape == (8, 3))
    moved = ((after[weight] - before[weight]) / lr).abs()
    assert torch.allclose(moved, moved.round(), atol=1e-3) and set(moved.round().flatten().tolist()) <= {0.0, 1.0, 2.0}
    assert 2.0 in moved.round(), "Adam's own normalisation would have made it 1"


def test_a_loss_that_has_no_logarithm_ends_the_run_with_a_row() -> None:
    class Signed(Lines):
        def task_losses(self, outputs: list[Tensor], targets: Tensor) -> tuple[Tensor, ...]:
            first, second = super().task_losses(outputs, targets)
            return first, second - 100

    run = small(Signed(), method("si", n_tasks=2))
    assert run.status == "non-positive" and set(run.metrics.values()) == {None}
    assert run.failure["task"] == "b" and run.failure["step"] == 0 and "must be positive" in run.failure["message"]


def test_learning_rate_is_halved_once_also_after_a_resume():
    def made(epochs):
        budget = Budget(epochs, 256, lr=0.01, halve_at=2)
        return loop.Loop(build("digits", tasks=2), method("ls", n_tasks=2), "mlp", 0, budget, torch.device("cpu"))

    def rates(running):
        found: list[float] = []
        running.run("score", 1.0, lambda: found.append(running.optimizer.param_groups[0]["lr"]), None)
        return found

    first = made(3)
    assert rates(first) == [0.01] * 6 + [0.005] * 3
    again = made(4)
    again.load_state_dict(first.state_dict())
    assert rates(again) == [0.005] * 3


def test_last_epochs_are_averaged_on_test_and_choose_nothing():
    data = build("digits", tasks=2)
    run = fit(data, method("ls", n_tasks=2), model="mlp", seed=0, budget=Budget(4, 256, lr=0.01, last=2))
    shown = [line["test"]["score"] for line in run.history if "test" in line]
    assert len(shown) == 2
    assert run.last["score"] == pytest.approx(sum(shown) / 2)
    alone = fit(data, method("ls", n_tasks=2), model="mlp", seed=0, budget=Budget(4, 256, lr=0.01))
    assert alone.metrics == run.metrics and alone.last is None


CYCLE = Budget(4, 16, lr=0.02, weight_decay=0.05, last=2, optimizer="adamw", one_cycle=0.3, drop_last=True)


def test_adamw_and_one_cycle_are_those_of_torch() -> None:
    """The same steps by hand; the short batch of the epoch is left out."""
    data = build("digits", tasks=2)
    run = fit(data, method("ls", n_tasks=2), model="mlp", seed=3, budget=replace(CYCLE, batch_size=256))
    net = data.model("mlp", 3)
    adam = torch.optim.AdamW(net.parameters(), lr=0.02, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 0.02, 4 * 2, pct_start=0.3, cycle_momentum=False)
    orders = [int(np.random.SeedSequence((3, epoch)).generate_state(1)[0]) for epoch in range(4)]
    batches = [batch for order in orders for batch in list(data.batches("train", order, 256))[:2]]
    for batch in batches:
        adam.zero_grad()
        sum(data.losses(net, batch)).backward()
        adam.step()
        if batch is not batches[-1]:
            schedule.step()
    assert run.n_steps == len(batches) == 8
    assert data.evaluate(net, "validation") == pytest.approx(run.history[-1]["validation"], rel=1e-5)


@pytest.mark.parametrize("name", ["ls", "adatask", "uw", "fairgrad"])
@pytest.mark.parametrize("stop", [3, 9])
def test_a_cycle_resumes_bit_for_bit(tmp_path: Path, name: str, stop: int) -> None:
    whole = numbers(small(method=method(name, 2), budget=CYCLE))
    assert whole["n_steps"] == 4 * (72 // 16) and whole["last"]
    path = tmp_path / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        small(Lines(stop_at=stop), method(name, 2), budget=CYCLE, checkpoint=path, checkpoint_every=0)
    assert numbers(small(method=method(name, 2), budget=CYCLE, checkpoint=path)) == whole


def test_settings_that_are_not_used_are_in_no_key() -> None:
    plain = {"epochs": 4, "batch_size": 16, "lr": 0.02, "weight_decay": 1e-4, "patience": None}
    assert BUDGET.settings() == plain
    assert Budget(**CYCLE.settings()) == CYCLE
    assert set(CYCLE.settings()) == {field.name for field in fields(Budget)} - {"halve_at"}


def test_more_batches_than_the_cycle_has_steps_are_refused() -> None:
    class Twice(Lines):
        def batches(self, split: str, *rest: Any) -> Iterator[tuple[Tensor, ...]]:
            for batch in super().batches(split, *rest):
                yield from (batch, batch)

    with pytest.raises(RunError, match="problem 'lines': must give 10 batches of 72 rows in all, found more"):
        small(Twice(), budget=Budget(2, 16, one_cycle=0.5))


class Sparse(Lines):
    """Batches whose first row says so have no labels for a task."""

    def losses(self, model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.there(super().losses(model, batch), batch)

    def losses_and_features(self, model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Any]:
        losses, features = super().losses_and_features(model, batch)
        return self.there(losses, batch), features

    @staticmethod
    def there(losses: tuple[Tensor, ...], batch: tuple[Tensor, ...]) -> Any:
        first = float(batch[1][0, 0])
        return (None if first < -1 else losses[0], None if first > 0.5 else losses[1])


@pytest.mark.parametrize("name", ["ls", "uw", "famo", "emtl", "mgda-ub", "adatask", "dwa"])
def test_a_task_without_labels_in_a_batch_rests(tmp_path: Path, name: str) -> None:
    def made() -> Method:
        return method(name, 2, **({"rho": 0.1} if name == "emtl" else {}))

    class Positive(Sparse):
        def task_losses(self, outputs: list[Tensor], targets: Tensor) -> tuple[Tensor, ...]:
            return tuple(loss + 0.1 for loss in super().task_losses(outputs, targets))

    run = small(Positive(), made())
    assert run.status == "ok"
    assert name == "adatask" or {tuple(w == 0) for w in run.weights} == {(False, False), (True, False), (False, True)}
    with pytest.raises(KeyboardInterrupt):
        small(Positive(stop_at=7), made(), checkpoint=tmp_path / "c.pt", checkpoint_every=0)
    assert numbers(small(Positive(), made(), checkpoint=tmp_path / "c.pt")) == numbers(run)


def test_bandit_with_losses_balanced_by_those_of_validation(tmp_path: Path) -> None:
    """w_t = p_t / (T V_t), V measured before each epoch in evaluation mode; an absent task has none in its batches."""
    heard: list[list[float]] = []

    class Heard(type(method("bandit", 2))):  # type: ignore[misc]
        def begin_epoch(self, losses: Tensor) -> None:
            super().begin_epoch(losses)
            heard.append(losses.tolist())

    run = small(method=Heard(2, rho=0.1, balance=True))
    found = np.array([[line["validation"][f"{task}/mse"] for task in "ab"] for line in run.history[:-1]])
    assert len(heard) == 4 and np.array(heard[1:]) == pytest.approx(found, rel=1e-5)
    assert run.weights[0] == pytest.approx([0.25 / v for v in heard[0]])
    played = run.weights * 2 * np.repeat(heard, 5, 0)
    assert played.sum(1) == pytest.approx(1) and played.std() > 0
    path = tmp_path / "c.pt"
    for stop in (7, 3, None):
        made = method("bandit", 2, rho=0.1, balance=True)
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                small(Lines(stop_at=stop), made, checkpoint=path, checkpoint_every=0)
    again = small(method=made, checkpoint=path)
    assert numbers(again)["w"] == numbers(run)["w"] and again.metrics == run.metrics
    assert small(Sparse(), method("bandit", 2, rho=0.1, balance=True)).status == "ok"


@pytest.mark.parametrize("wrapper", ["fair-loss", "cr-mogm"])
def test_a_method_around_another_hands_on_what_it_hears(wrapper: str) -> None:
    hyper = {"base": "bandit", "base_hyper": {"rho": 0.1, "balance": True}}
    hyper |= {"alpha": 0.5} if wrapper == "fair-loss" else {}
    assert small(method=method(wrapper, 2, **hyper)).status == "ok"
    hooks = {"begin_epoch", "after_step", "end_epoch", "parameters", "head_weights", "official_factor"}
    assert hooks <= set(vars(METHODS[wrapper]))


@pytest.mark.parametrize("task", [0, 1])
def test_single_task_learning_trains_the_net_of_its_task_alone(monkeypatch: pytest.MonkeyPatch, task: int) -> None:
    """To the same numbers as beside the other nets, whose forward passes see one row instead of all."""
    data, seen = build("digits", tasks=2), []
    how = {"model": "single-task", "seed": 1, "budget": Budget(epochs=2, batch_size=256)}
    how["select"] = f"{data.tasks[task]}/score"

    class Counted(type(data)):  # type: ignore[misc]
        def model(self, name: str, seed: int, **sizes: Any) -> Any:
            net = super().model(name, seed, **sizes)
            for each in net.nets:
                each.register_forward_hook(lambda net, inputs, _: seen.append(len(inputs[0])))
            return net

    data.__class__ = Counted
    run = fit(data, method("stl", 2, task=task), **how)
    assert set(seen[task::2]) > {256} and set(seen[1 - task :: 2]) == {1}
    monkeypatch.setattr("mtl.models.base.SingleTask.train_only", lambda *_: None)
    both = fit(data, method("stl", 2, task=task), **how)
    own = [name for name in run.metrics if name.startswith(f"{data.tasks[task]}/")]
    assert own and {k: run.metrics[k] for k in own} == {k: both.metrics[k] for k in own}
    assert [line["losses"][task] for line in run.history] == [line["losses"][task] for line in both.history]


@pytest.mark.parametrize(("shift", "status"), [(-100.0, "non-positive"), (math.nan, "non-finite")])
def test_validation_losses_that_balance_nothing_end_the_run(shift: float, status: str) -> None:
    class Shifted(Lines):
        def losses(self, model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            first, second = super().losses(model, batch)
            return first, second if model.training else second + shift

    run = small(Shifted(), method("bandit", 2, balance=True))
    assert (run.status, run.failure["task"], run.failure["step"]) == (status, "b", 0)
    m = method("bandit", 2, rho=0.1, balance=True)
    m.begin_epoch(torch.tensor([2.0, 0.5]))
    m.weights(torch.tensor([3.0, 1.0]))
    assert m.log_p[1] > m.log_p[0], "the player sees 1.5 and 2, not 3 and 1"
    with pytest.raises(ValueError, match=r"balance: needs begin_epoch\(validation losses\), as fit calls it"):
        method("bandit", 2, balance=True).weights(torch.ones(2))


def test_learned_weights_of_an_absent_task_stay_where_they_are() -> None:
    seen: list[Tensor] = []
    m = method("uw", 2)

    class Late(Lines):
        def counted(self, losses: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            seen.append(m.parameters()[0].detach().clone())
            first, second = super().counted(losses)
            return first, second if self.calls < 4 else None  # type: ignore[return-value]

    run = small(Late(), m)
    assert run.status == "ok" and run.history[-1]["losses"][1] is None
    now = m.parameters()[0]
    assert now[1] == seen[3][1] != seen[2][1] and now[0] != seen[3][0]


@pytest.mark.parametrize("name", ["uw", "rlw", "emtl", "adatask"])
def test_a_used_method_is_refused(name: str) -> None:
    m = method(name, 2, **({"rho": 0.1} if name == "emtl" else {}))
    small(method=m)
    with pytest.raises(ValueError, match=r"method: must be fresh, found a \w+ that has made steps; make another"):
        small(method=m)
    for again in (copy.deepcopy(m), copy.copy(m), pickle.loads(pickle.dumps(m))):
        with pytest.raises(ValueError, match="method: must be fresh"):
            small(method=again)
    fresh = method(name, 2)
    fresh.load_state_dict(m.state_dict() if name != "emtl" else fresh.state_dict())
    assert set(fresh.state_dict()) == set(fresh.state), "the mark is no part of it"
    small(method=copy.deepcopy(fresh))
    plain = method("mgda", 2)
    assert numbers(small(method=plain)) == numbers(small(method=plain))


def test_copies_of_a_method_that_made_steps_of_ones_own_are_refused(tmp_path: Path) -> None:
    for collect in (False, True):
        m, theta = method("dwa", 2), torch.ones(2, requires_grad=True)
        with pytest.raises(ValueError, match="losses: must be differentiable"):
            mtl.backward([theta.detach().sum(), theta.sum()], shared=[theta], method=m)
        small(method=copy.deepcopy(m))
        if collect:
            acc = mtl.Accumulator(shared=[theta], method=m)
            acc.add([theta.sum(), theta[0] * 2])
            acc.step()
        else:
            mtl.backward([theta.sum(), theta[0] * 2], shared=[theta], method=m)
        for again in (m, copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
            with pytest.raises(ValueError, match="method: must be fresh, found a DWA that has made steps"):
                small(method=again)


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"budget": None}, TypeError, r"budget: must be a mtl\.Budget\(.*\), found None"),
        ({"budget": {"epochs": 2}}, TypeError, r"budget: must be a mtl\.Budget\(.*\), found \{'epochs': 2\}"),
        ({"device": None}, TypeError, "device: must be a torch.device or its name, .* found None"),
        ({"device": "foo"}, ValueError, "device: must be a torch.device or its name, .* found 'foo'"),
        ({"device": "meta"}, ValueError, "device: must be one that holds values here, found 'meta'"),
    ],
)
def test_a_budget_or_device_of_another_kind_is_named(given: dict[str, Any], kind: type[Exception], said: str) -> None:
    how = {"model": "small", "seed": 0, "budget": Budget(1, 20)} | given
    with pytest.raises(kind, match=said):
        fit(Lines(), method("mgda", 2), **how)
    with pytest.raises(kind, match=said):
        fit_seeds(Lines(), "mgda", {}, **{k: v for k, v in how.items() if k != "seed"}, seeds=[0])


def test_weight_decay_is_for_all_parameters_of_adatask() -> None:
    """Nothing else moves the trunk where no task sees it: a step is -lr * decay * theta."""

    class Blind(Lines):
        dropout = 0.0

        def losses(self, model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            trunk = sum(p.sum() for p in model.shared_parameters())
            return tuple(0 * trunk + loss.detach() for loss in super().losses(model, batch))

    budget = Budget(1, 72, lr=0.1, weight_decay=0.5)
    start = [p.detach().clone() for p in Blind().model("small", 1).shared_parameters()]
    run = small(Blind(), method("adatask", 2), budget=budget)
    for p, old in zip(run.model.shared_parameters(), start, strict=True):
        torch.testing.assert_close(p.detach(), old * (1 - 0.1 * 0.5))


def test_labels_of_minus_one_and_one_are_refused_and_not_scored():
    from mtl.models.small import mlp
    from mtl.problems.base import BinaryProblem

    class Signs(BinaryProblem):
        name, models, builders = "signs", ("mlp",), {"mlp": mlp}
        net_sizes, net_inputs = {"smoke": {"width": 4, "hidden": 4}}, (3, 1)

    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    parts = {split: (x, 2 * (x[:, :1] > 0).float() - 1) for split in ("train", "validation", "test")}
    data = Signs("smoke", ["sign"], parts, source="drawn", fingerprint="1")
    with pytest.raises(ValueError, match="labels: must be whole numbers from 0 to 1, found -1"):
        fit(data, method("ls", 1), model="mlp", seed=0, budget=Budget(1, 20))
