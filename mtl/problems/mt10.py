"""MT10: ten robot tasks of Meta-World, stepped in this process; point masses as stand-in; the replay of all tasks."""

import hashlib
import logging
import math
import os
import pickle
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl import lacking
from mtl.errors import DataError, NonFiniteError
from mtl.methods.base import whole

NAMES: tuple[str, ...] = (
    "reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close", "button-press-topdown",
    "peg-insert-side", "window-open", "window-close",
)  # fmt: skip
GOALS = 50  # of each task, drawn once: training and evaluation take theirs among them
GOAL_SEED = 1
CAMERA = "corner2"  # which hangs upside down


class Tasks:
    """T tasks that are stepped together, each from one of its own fixed goals; all end after `horizon` steps.

    Nothing ends an episode but its length, so that values never stop at it. What `step` gets and gives is checked: a
    simulator may answer an action that is NaN with finite numbers.
    """

    name: ClassVar[str]
    synthetic: ClassVar[bool]
    observation: int  # numbers that one task shows
    action: int  # numbers in [-1, 1] that it takes
    source: str
    reward: ClassVar[float]  # largest of one step

    def __init__(self, names: Sequence[str], horizon: int) -> None:
        self.names, self.horizon, self.passed = tuple(names), whole("horizon", horizon, 1), horizon
        if unknown := [name for name in self.names if name not in NAMES]:
            raise ValueError(f"tasks: must be among {', '.join(NAMES)}, found {unknown[0]!r}")
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"tasks: must be distinct, and one at least, found {list(self.names)}")

    @property
    def fingerprint(self) -> str:
        """Of all that decides what `step` answers."""
        raise NotImplementedError

    def reset(self, goals: Sequence[int]) -> Tensor:
        """Begin an episode of each task at the goal of this number; observations (T, D)."""
        if len(goals) != len(self.names) or not all(0 <= goal < GOALS for goal in goals):
            raise ValueError(f"goals: one in 0..{GOALS - 1} for each of {len(self.names)} tasks, found {list(goals)}")
        self.passed = 0
        return self._checked("observation", self._reset(goals))

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Observations (T, D), rewards (T,) and whether each task succeeds in this very step (T,), for actions (T, A).

        Raises NonFiniteError with the task's name for NaN or infinity on either side, ValueError after the horizon.
        """
        if actions.shape != (len(self.names), self.action):
            want = (len(self.names), self.action)
            raise ValueError(f"actions: must have shape {want}, found {tuple(actions.shape)}")
        if self.passed >= self.horizon:
            raise ValueError(f"step: an episode has {self.horizon} steps, found one more; reset the tasks first")
        self._checked("action", actions)
        self.passed += 1
        seen, rewards, done = self._step(actions.clamp(-1, 1))
        return self._checked("observation", seen), self._checked("reward", rewards[:, None])[:, 0], done

    def _checked(self, what: str, values: Tensor) -> Tensor:
        if not bool((whole := values.isfinite().all(1)).all()):
            t = int((~whole).nonzero()[0])
            raise NonFiniteError(f"{what}: must be finite, found {values[t].tolist()} for task {self.names[t]!r}")
        return values

    def _reset(self, goals: Sequence[int]) -> Tensor:
        raise NotImplementedError

    def _step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError

    def describe(self) -> str:
        """What is stepped, in words."""
        return f"{self.source}; horizon {self.horizon}; tasks: {', '.join(self.names)}"


class MetaWorld(Tasks):
    """Tasks of Meta-World 3 on MuJoCo: 39 numbers with the goal among them, 4 actions, reward 0 to 10 a step."""

    name, synthetic, observation, action, reward = "mt10", False, 39, 4, 10.0

    def __init__(self, names: Sequence[str] = NAMES, horizon: int = 200) -> None:
        super().__init__(names, horizon)
        if horizon > 500:
            raise ValueError(f"horizon: Meta-World ends an episode after 500 steps, found {horizon}")
        metaworld, version = installed()
        self.source = f"Meta-World {version}"
        self.goals = [metaworld.MT1(f"{name}-v3", seed=GOAL_SEED).train_tasks for name in self.names]
        kinds = metaworld.env_dict.ALL_V3_ENVIRONMENTS
        self.envs = [kinds[f"{name}-v3"](render_mode="rgb_array", camera_name=CAMERA) for name in self.names]

    @property
    def fingerprint(self) -> str:
        drawn = hashlib.sha256()
        for goal in (goal for goals in self.goals for goal in goals):
            drawn.update(pickle.loads(goal.data)["rand_vec"].tobytes())  # made by Meta-World in this process
        return f"{self.source}; horizon {self.horizon}; goals {drawn.hexdigest()[:12]}"

    def _reset(self, goals: Sequence[int]) -> Tensor:
        seen = []
        for env, own, goal in zip(self.envs, self.goals, goals, strict=True):
            env.set_task(own[goal])
            seen.append(torch.from_numpy(env.reset()[0]))
        return torch.stack(seen).float()

    def _step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = [env.step(action) for env, action in zip(self.envs, actions.double().numpy(), strict=True)]
        seen = torch.stack([torch.from_numpy(one[0]) for one in made]).float()
        rewards = torch.tensor([float(one[1]) for one in made])
        return seen, rewards, torch.tensor([float(one[4]["success"]) > 0 for one in made])

    def picture(self, task: int) -> Any:
        """What the camera sees of a task now, (480, 480, 3) bytes. RuntimeError where no GL library is found."""
        try:
            return self.envs[task].render()[::-1, ::-1]
        except Exception as wrong:  # of mujoco, glfw, PyOpenGL or ctypes, as the library that is missing has it
            how = f"MUJOCO_GL={os.environ.get('MUJOCO_GL', '')} ({type(wrong).__name__}: {wrong})"
            raise RuntimeError(f"pictures: need a GL library (libegl1 or libosmesa6); found none with {how}") from wrong


@lru_cache(maxsize=1)
def installed() -> tuple[Any, str]:
    """Meta-World and the versions of it and of MuJoCo; ModuleNotFoundError, which names the extra, without them."""
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # read once, when mujoco is imported
    try:
        import metaworld
        import metaworld.env_dict
        import mujoco
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(f"mtl.problems.mt10 {lacking(missing)}", name=missing.name) from missing
    from importlib.metadata import version

    # Without it MuJoCo writes MUJOCO_LOG.TXT into the working directory.
    mujoco.set_mju_user_warning(lambda said: logging.getLogger(__name__).warning("MuJoCo: %s", said))
    return metaworld, f"{version('metaworld')} on MuJoCo {version('mujoco')}"


class PointMass(Tasks):
    """Stand-in in plain torch: points move to goals on a square, where each task turns the controls by its own angle.

    Four numbers: place and goal. A step moves by at most .1 a side; reward 10 exp(-4 d), success within .1.
    """

    name, synthetic, observation, action, reward = "point_mass", True, 4, 2, 10.0
    source = "point masses"

    def __init__(self, names: Sequence[str] = NAMES[:3], horizon: int = 25) -> None:
        super().__init__(names, horizon)
        draw = torch.Generator().manual_seed(GOAL_SEED)
        places = torch.tensor([NAMES.index(n) for n in self.names])  # a task is the same in whatever company
        self.goals = torch.rand((len(NAMES), GOALS, 2), generator=draw)[places] * 1.6 - 0.8
        angles = 2 * math.pi * places / len(NAMES)
        rows = [angles.cos(), -angles.sin(), angles.sin(), angles.cos()]
        self.turn = torch.stack(rows, 1).reshape(-1, 2, 2)
        self.state = torch.zeros(len(self.names), 4)

    @property
    def fingerprint(self) -> str:
        return f"{self.source}; horizon {self.horizon}; goals {float(self.goals.double().sum()):.6f}"

    def _reset(self, goals: Sequence[int]) -> Tensor:
        chosen = self.goals[torch.arange(len(goals)), torch.as_tensor(goals)]
        self.state = torch.cat([torch.zeros_like(chosen), chosen], 1)
        return self.state.clone()

    def _step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moved = (self.state[:, :2] + 0.1 * (self.turn @ actions[:, :, None])[:, :, 0]).clamp(-1, 1)
        self.state = torch.cat([moved, self.state[:, 2:]], 1)
        far = (moved - self.state[:, 2:]).norm(dim=1)
        return self.state.clone(), self.reward * torch.exp(-4 * far), far < 0.1


KINDS: dict[str, type[Tasks]] = {"mt10": MetaWorld, "point_mass": PointMass}


class Replay:
    """What each of T tasks went through, in one tensor (T, capacity, D + A + 1 + D), the oldest overwritten.

    A row holds observation, action, reward and next observation.
    """

    def __init__(self, tasks: Tasks, capacity: int) -> None:
        self.names, self.capacity = tasks.names, whole("capacity", capacity, 1)
        self.widths = [tasks.observation, tasks.action, 1, tasks.observation]
        self.store = torch.zeros(len(self.names), capacity, sum(self.widths))
        self.counts = [0] * len(self.names)  # ever added

    def add(self, seen: Tensor, actions: Tensor, rewards: Tensor, after: Tensor) -> None:
        """One transition of each task, (T, ...) each."""
        rows = torch.cat([seen, actions, rewards[:, None], after], 1)
        for t, row in enumerate(rows):
            self.store[t, self.counts[t] % self.capacity] = row
            self.counts[t] += 1

    def held(self, task: int) -> int:
        """How many transitions of a task there are."""
        return min(self.counts[task], self.capacity)

    def sample(self, task: int, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """n transitions of one task with replacement: observations, actions, rewards (n,), next observations."""
        places = torch.randint(self.held(task), (n,), generator=generator)
        seen, actions, rewards, after = self.store[task].index_select(0, places).split(self.widths, 1)
        return seen, actions, rewards[:, 0], after

    def state_dict(self) -> dict[str, Any]:
        """The rows that are there, whose tasks they are, and how many were ever added."""
        most = max(self.held(t) for t in range(len(self.names)))
        return {"tasks": list(self.names), "rows": self.store[:, :most].clone(), "counts": list(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; DataError for a replay of other tasks, of other numbers or with NaN in it."""
        rows, names = state["rows"], tuple(state["tasks"])
        if names != self.names:
            raise DataError(f"replay: must be of the tasks {', '.join(self.names)}, found {', '.join(names)}")
        shape = (len(self.names), min(max(state["counts"]), self.capacity), sum(self.widths))
        if tuple(rows.shape) != shape:
            raise DataError(f"replay: must have shape {shape}, found {tuple(rows.shape)}")
        if not bool(rows.isfinite().all()):
            raise DataError("replay: must be finite, found NaN or infinity")
        self.store[:, : rows.shape[1]] = rows
        self.counts = list(state["counts"])
