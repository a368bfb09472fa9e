"""Multi-task SAC: it learns, resumes bit by bit, leaves absent tasks alone, and says which losses it cannot use."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtl.errors import DataError, RunError
from mtl.methods import method
from mtl.models.rl import Actor, Critics
from mtl.problems.mt10 import MetaWorld, PointMass
from mtl.training import sac
from mtl.training.sac import Learner, Settings, evaluate, summary, train

TINY = Settings(2, every=25, batch_size=8, warmup=15, width=8, evaluated=1)


def learner(name: str, tasks: PointMass | None = None, shift: float = 0.0, **hyper: Any) -> Learner:
    tasks = tasks or PointMass()
    pair = (method(name, len(tasks.names), **hyper), method(name, len(tasks.names), **hyper))
    return Learner(tasks, pair, TINY, seed=0, shift=shift)


def test_it_learns_one_stand_in_task() -> None:
    settings = Settings(1, every=400, batch_size=32, warmup=100, width=32, lr=1e-2, gamma=0.9, evaluated=10)
    run = train(PointMass(("reach",)), "ls", settings, seed=0)
    draw = torch.Generator().manual_seed(0)
    chance = evaluate(lambda seen: torch.rand(len(seen), 2, generator=draw) * 2 - 1, PointMass(("reach",)), 10)
    assert run.status == "ok" and run.history[-1]["ever"][0] >= chance["ever"][0] + 0.3
    assert run.history[-1]["return"][0] > 1.5 * chance["return"][0]


@pytest.mark.parametrize("name", ["fairgrad", pytest.param("famo", marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_goes_on_bit_by_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hyper = {"shift": 120.0} if name == "famo" else {}
    whole = train(PointMass(), name, TINY, 3, hyper=hyper)
    path, count = tmp_path / "run.pt", [0]
    episode = Learner.episode

    def killed(one: Learner) -> None:
        count[0] += 1
        if count[0] == 2:  # inside the second episode
            one.tasks.reset([0, 0, 0])
            raise KeyboardInterrupt
        episode(one)

    monkeypatch.setattr(Learner, "episode", killed)
    with pytest.raises(KeyboardInterrupt):
        train(PointMass(), name, TINY, 3, hyper=hyper, checkpoint=path, checkpoint_every=0)
    monkeypatch.setattr(Learner, "episode", episode)
    resumed = train(PointMass(), name, TINY, 3, hyper=hyper, checkpoint=path, checkpoint_every=0)
    assert resumed.history == whole.history and resumed.metrics == whole.metrics
    pairs = zip(resumed.actor.parameters(), whole.actor.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert train(PointMass(), name, TINY, 4, hyper=hyper).history != whole.history


def test_meta_world_goes_on_bit_by_bit_in_simulators_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("metaworld", reason="needs the extra [rl]: pip install '.[rl]'")
    names, settings = ("drawer-close", "reach"), Settings(2, every=40, batch_size=8, warmup=20, width=8, evaluated=2)
    whole = train(MetaWorld(names, 20), "fairgrad", settings, 3)
    path, episode, begun = tmp_path / "run.pt", Learner.episode, list[int]()

    def killed(one: Learner) -> None:
        begun.append(one.total)
        if len(begun) == 4:  # inside the last of four episodes
            one.tasks.reset([7, 7])
            one.tasks.step(torch.ones(2, 4))
            raise KeyboardInterrupt
        episode(one)

    monkeypatch.setattr(Learner, "episode", killed)
    with pytest.raises(KeyboardInterrupt):
        train(MetaWorld(names, 20), "fairgrad", settings, 3, checkpoint=path, checkpoint_every=0)
    resumed = train(MetaWorld(names, 20), "fairgrad", settings, 3, checkpoint=path)
    assert begun == [0, 20, 40, 60, 60] and resumed.history == whole.history
    pairs = zip(resumed.actor.parameters(), whole.actor.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_checkpoint_of_another_run_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    train(PointMass(), "ls", TINY, 0, checkpoint=path, checkpoint_every=0)
    for other in (PointMass(("reach", "push", "door-open")), PointMass(horizon=5)):
        with pytest.raises((RunError, DataError), match=r"belongs to run|of the tasks"):
            train(other, "ls", TINY, 0, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"checkpoint run.pt: cannot be read \(ValueError\)"):
        train(PointMass(), "ls", TINY, 0, checkpoint=path)


@pytest.mark.parametrize("name", ["mgda", "fairgrad", "nash", "emtl", "famo"])
def test_an_absent_task_is_none_and_rests(name: str) -> None:
    one = learner(name, shift=120.0)
    while one.total < 25:
        one.episode()
    one.replay.counts[1] = 5
    before, alone = one.log_alpha.detach().clone(), learner(name, shift=120.0)
    assert one.batch(1) is None and one.critic_losses([None] * 3, [None] * 3) == [None] * 3
    steps, descend = [], one.descend
    one.descend = lambda *given: steps.append(descend(*given)) or steps[-1]  # type: ignore[method-assign, func-returns-value]
    one.update()
    assert [list(step.absent) for step in steps] == [[1], [1]]
    assert all(step.weights is None or float(step.weights[1]) == 0 for step in steps)
    moved = (one.log_alpha.detach() != before).tolist()
    assert moved == [True, False, True]
    alone.update()  # nothing is there yet: no step
    assert alone.updates == 0


def test_critics_and_policy_have_a_method_and_a_state_each() -> None:
    same = method("nash", 3)
    with pytest.raises(ValueError, match="methods: critics and policy need one each"):
        Learner(PointMass(), (same, same), TINY, seed=0)
    with pytest.raises(ValueError, match="found MGDAUB"):
        learner("mgda-ub")


def test_losses_that_are_not_positive_end_the_run_and_a_shift_makes_them_so() -> None:
    bare = train(PointMass(), "famo", TINY, 0, hyper={"shift": -50.0})
    assert bare.status == "non-positive" and bare.failure and "must be positive" in bare.failure["message"]
    assert set(bare.metrics.values()) == {None} and "reach/score" in bare.metrics
    assert train(PointMass(), "famo", TINY, 0, hyper={"shift": 120.0}).status == "ok"


def test_a_shift_moves_no_gradient_and_no_weight_of_gram_methods() -> None:
    bare, moved = (
        train(PointMass(), "fairgrad", TINY, 0, hyper={"shift": c} if c else {}).history for c in (0.0, 64.0)
    )
    assert [line["critic losses"] for line in bare] == [line["critic losses"] for line in moved]
    gaps = torch.tensor(moved[0]["actor losses"]) - torch.tensor(bare[0]["actor losses"])
    assert gaps.tolist() == pytest.approx([64.0] * 3, abs=1e-4)


def test_a_policy_that_is_not_finite_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Learner.update

    def broken(one: Learner) -> None:
        update(one)
        if one.total == 30:
            nn.init.constant_(one.actor.net[0].weight, float("nan"))

    monkeypatch.setattr(Learner, "update", broken)
    run = train(PointMass(), "ls", TINY, 0)
    assert run.status == "non-finite" and run.failure and run.failure["step"] == 30
    assert "action: must be finite" in run.failure["message"]


def test_the_density_of_a_squashed_gaussian_is_the_change_of_variables() -> None:
    actor = Actor(3, 2, 16, seed=1).double()
    seen, noise = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 2, dtype=torch.float64)
    actions, logp = actor.sample(seen, noise)
    mean, log_std = actor(seen)
    normal = torch.distributions.Normal(mean, log_std.exp())
    x = mean + log_std.exp() * noise
    assert torch.allclose(actions, torch.tanh(x))
    assert torch.allclose(logp, (normal.log_prob(x) - torch.log(1 - torch.tanh(x) ** 2)).sum(1))


def test_both_critics_are_plain_perceptrons() -> None:
    critics = Critics(3, 2, 16, seed=1)
    seen, actions = torch.randn(7, 3), torch.randn(7, 2)
    for k, values in enumerate(critics(seen, actions)):
        hidden = torch.cat([seen, actions], 1)
        for i, (weight, bias) in enumerate(zip(critics.weights, critics.biases, strict=True)):
            hidden = hidden @ weight[k] + bias[k]
            hidden = hidden.relu() if i < 2 else hidden
        assert torch.allclose(values, hidden[:, 0], atol=1e-6)
    first, second = critics(seen, actions).detach()
    assert not torch.isclose(first, second).any()


def test_what_is_reported_is_the_mean_of_the_last_five_and_the_best_stands_beside_it() -> None:
    history = [{"ever": [i / 10, 1.0 if i == 0 else 0.0], "last": [0.0, 0.5]} for i in range(7)]
    found = summary(("a", "b"), history)
    assert found["a/score"] == pytest.approx(0.4) and found["a/best"] == pytest.approx(0.6)
    assert found["b/score"] == 0 and found["b/best"] == 1, "a best over time that the end does not have"
    assert found["score"] == pytest.approx(0.2) and found["last"] == 0.25 and found["best"] == pytest.approx(0.5)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="every: must be whole episodes of 25 steps, found 30"):
        train(PointMass(), "ls", Settings(1, every=30), 0)
    with pytest.raises(ValueError, match="evaluated: at most the 50 goals of a task, found 51"):
        Settings(1, evaluated=51)
    with pytest.raises(ValueError, match=r"gamma: must be in \[0, 1\), found 1.0"):
        Settings(1, gamma=1.0)
    assert sac.LAST == 5
