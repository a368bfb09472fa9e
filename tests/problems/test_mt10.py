"""Tasks of MT10 and their stand-in: what is refused, that episodes repeat bit by bit, a replay of other tasks."""

import sys
from pathlib import Path

import pytest
import torch

from mtl.errors import DataError, NonFiniteError
from mtl.problems import mt10
from mtl.problems.mt10 import GOALS, NAMES, MetaWorld, PointMass, Replay, Tasks


@pytest.fixture(scope="module")
def drawer() -> MetaWorld:
    pytest.importorskip("metaworld", reason="needs the extra [rl]: pip install '.[rl]'")
    return MetaWorld(("drawer-close",), horizon=10)


def played(tasks: Tasks, goal: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    shape = (len(tasks.names), tasks.action)
    seen = [tasks.reset([goal] * len(tasks.names))]
    for _ in range(tasks.horizon):
        after, rewards, _ = tasks.step(torch.rand(shape, generator=draw) * 2 - 1)
        seen += [after, rewards[:, None].expand_as(after)]
    return torch.stack(seen)


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match=r"tasks: must be among reach, push, .*, found 'juggle'"):
        PointMass(("reach", "juggle"))
    with pytest.raises(ValueError, match="tasks: must be distinct"):
        PointMass(("reach", "reach"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_action_that_is_not_finite_is_named_with_its_task(bad: float) -> None:
    tasks = PointMass()
    tasks.reset([0, 1, 2])
    actions = torch.zeros(3, 2)
    actions[1, 0] = bad
    with pytest.raises(NonFiniteError, match=r"action: must be finite, found \[(nan|inf), 0.0\] for task 'push'"):
        tasks.step(actions)


def test_an_observation_that_is_not_finite_is_named_with_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = PointMass()
    tasks.goals[2, 7] = float("nan")
    with pytest.raises(NonFiniteError, match=r"observation: must be finite, found .* for task 'pick-place'"):
        tasks.reset([0, 0, 7])


def test_what_no_episode_has_is_refused() -> None:
    tasks = PointMass(horizon=1)
    with pytest.raises(ValueError, match=f"goals: one in 0..{GOALS - 1} for each of 3 tasks"):
        tasks.reset([0, 0, GOALS])
    tasks.reset([0, 0, 0])
    with pytest.raises(ValueError, match=r"actions: must have shape \(3, 2\), found \(2, 3\)"):
        tasks.step(torch.zeros(2, 3))
    tasks.step(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="step: an episode has 1 steps, found one more"):
        tasks.step(torch.zeros(3, 2))


def test_the_stand_in_is_the_same_alone_and_in_company_and_can_be_solved() -> None:
    alone, both = PointMass(("push",)), PointMass(("reach", "push"))
    assert torch.equal(played(alone, 4)[0], played(both, 4)[0, 1:])
    assert torch.equal(alone.turn[0], both.turn[1]) and not torch.equal(both.turn[0], both.turn[1])
    every = PointMass(NAMES)
    seen = every.reset([11] * 10)
    for _ in range(every.horizon):
        gap = (seen[:, 2:] - seen[:, :2])[:, :, None]
        seen, rewards, done = every.step((every.turn.transpose(1, 2) @ gap)[:, :, 0].clamp(-0.1, 0.1) * 10)
    assert bool(done.all()) and float(rewards.min()) > 5
    assert PointMass().fingerprint != PointMass(horizon=7).fingerprint


def test_the_replay_keeps_the_newest_and_refuses_other_tasks() -> None:
    tasks = PointMass(("reach", "push"))
    replay = Replay(tasks, 3)
    for i in range(5):
        full = torch.full((2, 4), float(i))
        replay.add(full, full[:, :2], full[:, 0], full + 1)
    assert replay.counts == [5, 5] and replay.held(0) == 3
    seen, actions, rewards, after = replay.sample(1, 64, torch.Generator().manual_seed(0))
    assert set(rewards.tolist()) == {2.0, 3.0, 4.0} and torch.equal(after, seen + 1) and actions.shape == (64, 2)
    again = Replay(tasks, 3)
    again.load_state_dict(replay.state_dict())
    assert torch.equal(again.store, replay.store) and again.counts == [5, 5]
    with pytest.raises(DataError, match="replay: must be of the tasks reach, pick-place, found reach, push"):
        Replay(PointMass(("reach", "pick-place")), 3).load_state_dict(replay.state_dict())
    with pytest.raises(DataError, match="replay: must have shape"):
        again.load_state_dict(replay.state_dict() | {"rows": torch.zeros(2, 3, 5)})
    with pytest.raises(DataError, match="replay: must be finite"):
        again.load_state_dict(replay.state_dict() | {"rows": torch.full((2, 3, 11), torch.nan)})


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaworld", None)
    mt10.installed.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"needs metaworld, which is not installed: pip install '.\[rl\]'"):
        MetaWorld(("reach",))
    mt10.installed.cache_clear()


def test_meta_world_repeats_an_episode_bit_by_bit_and_leaves_no_log(
    drawer: MetaWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = played(drawer, 3)
    assert not torch.equal(played(drawer, 4), first) and torch.equal(played(drawer, 3), first)
    assert first.shape == (21, 1, 39) and "Meta-World 3." in drawer.fingerprint
    assert MetaWorld(("drawer-close",), horizon=10).fingerprint == drawer.fingerprint
    drawer.envs[0].data.qvel[:] = 1e12  # MuJoCo would write MUJOCO_LOG.TXT
    drawer.reset([0])
    drawer.envs[0].data.qvel[:] = 1e12
    drawer.step(torch.zeros(1, 4))
    assert not list(tmp_path.iterdir())


def test_a_picture_without_a_gl_library_says_so(drawer: MetaWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    monkeypatch.setattr(drawer.envs[0], "render", broken, raising=False)
    with pytest.raises(RuntimeError, match=r"pictures: need a GL library .*glGetError"):
        drawer.picture(0)
