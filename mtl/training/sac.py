"""Multi-task soft actor-critic (Haarnoja et al. 2018) in one file: T tasks, one policy, twin critics, exact resume.

The critics' T losses and the policy's go through `mtl.backward`, each with a method object and an optimiser of its own;
a temperature per task is learned outside of it. Each task has a forward of its own: a method that needs task gradients
then sends each through that task's rows alone. Losses of the policy are negative values: they become positive only by a
constant `shift`, which methods that take logarithms or ratios of losses see and others do not. EMTL's rate L / |g|
changes its sign with the loss: without a shift its player would favour the task of the highest value, with one that of
the largest shortfall.
"""

import copy
import io
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtl import sources
from mtl.errors import NonFiniteError, NonPositiveError, RunError
from mtl.files import atomic, plain, seal, unseal
from mtl.gradients import Step, backward
from mtl.ledger import key
from mtl.methods.absent import present
from mtl.methods.base import Method, number, positive, share, whole
from mtl.models.rl import Actor, Critics
from mtl.problems.mt10 import GOALS, Replay, Tasks
from mtl.training.fit import modules
from mtl.training.together import fresh
from mtl.training.trace import Failure

Losses = list[Tensor | None]
LAST = 5  # evaluations whose mean is reported


@dataclass(frozen=True)
class Settings:
    """What a run may spend and how it learns; steps, batch and replay are of each task.

    `warmup` steps are taken at random before the first update, then each step is followed by one. Rewards are
    multiplied by `reward`, temperatures begin at `temperature`: small against the rewards, or the first ten thousand
    steps are spent on entropy. The target entropy is minus the number of actions.

    >>> Settings(evaluations=12).steps
    60000
    """

    evaluations: int
    every: int = 5000
    batch_size: int = 96
    lr: float = 3e-4
    width: int = 256
    warmup: int = 1000
    gamma: float = 0.99
    tau: float = 0.005
    temperature: float = 0.01
    reward: float = 0.1
    capacity: int = 1_000_000
    evaluated: int = 20  # goals, always the first ones

    def __post_init__(self) -> None:
        for name in ("evaluations", "every", "batch_size", "width", "warmup", "capacity", "evaluated"):
            whole(name, getattr(self, name), 1)
        for name in ("lr", "temperature", "reward"):
            positive(name, getattr(self, name))
        share("gamma", self.gamma, "[0, 1)"), share("tau", self.tau, "(0, 1]")
        if self.evaluated > GOALS:
            raise ValueError(f"evaluated: at most the {GOALS} goals of a task, found {self.evaluated}")

    @property
    def steps(self) -> int:
        """Of each task in the whole run."""
        return self.evaluations * self.every

    def settings(self) -> dict[str, Any]:
        """As a row's configuration holds it."""
        return asdict(self)


@dataclass
class Outcome:
    """A finished run. `metrics`: "<task>/score" and "<task>/last" (success ever and at the last step, mean of the last
    five evaluations), "<task>/best" (over time); "score", "last" and "best" over tasks; None where the run failed."""

    status: str
    failure: dict[str, Any] | None
    metrics: dict[str, float | None]
    history: list[dict[str, Any]]
    steps: int
    wall_s: float
    actor: Actor
    modules: list[str]


@torch.no_grad()
def evaluate(act: Callable[[Tensor], Tensor], tasks: Tasks, goals: int) -> dict[str, list[float]]:
    """Success ever in an episode, success at its last step, and return, per task over the first `goals` goals."""
    found = torch.zeros(3, len(tasks.names), dtype=torch.float64)
    for goal in range(goals):
        seen = tasks.reset([goal] * len(tasks.names))
        ever = done = torch.zeros(len(tasks.names), dtype=torch.bool)
        for _ in range(tasks.horizon):
            seen, rewards, done = tasks.step(act(seen))
            ever = ever | done
            found[2] += rewards
        found[:2] += torch.stack([ever, done])
    return dict(zip(("ever", "last", "return"), (found / goals).tolist(), strict=True))


class Learner:
    """Everything that changes while a run goes on but the simulator, and therefore all that a checkpoint holds."""

    def __init__(
        self, tasks: Tasks, methods: tuple[Method, Method], settings: Settings, seed: int,
        device: torch.device | str = "cpu", shift: float = 0.0,
    ) -> None:  # fmt: skip
        if methods[0] is methods[1]:
            raise ValueError("methods: critics and policy need one each, since it keeps a state; found one for both")
        for method in methods:
            if method.needs == "features" or method.replaces_adam or method.wants_validation:
                why = "task gradients or losses and Adam's steps"
                raise ValueError(f"method: must get along with {why}, found {type(method).__name__}")
        self.tasks, self.methods, self.settings, self.device = tasks, methods, settings, torch.device(device)
        self.shift, T = number("shift", shift), len(tasks.names)
        sizes = (tasks.observation + T, tasks.action, settings.width)
        self.actor = Actor(*sizes, seed=seed).to(device)
        self.critics = Critics(*sizes, seed=seed + 1_000_000).to(device)
        self.target = copy.deepcopy(self.critics).requires_grad_(False)
        # The policy is judged by the same numbers without their gradients, which nobody asks for.
        self.judge = copy.deepcopy(self.critics).requires_grad_(False)
        for own, shown in zip(self.critics.parameters(), self.judge.parameters(), strict=True):
            shown.data = own.data
        self.log_alpha = torch.full((T,), settings.temperature, device=device).log().requires_grad_()
        self.nets: tuple[nn.Module, nn.Module] = (self.critics, self.actor)
        self.optimizers = [self.adam(list(net.parameters()), m) for net, m in zip(self.nets, methods, strict=True)]
        self.entropy_optimizer = torch.optim.Adam([self.log_alpha], lr=settings.lr)
        self.ids = torch.eye(T, device=device)
        self.generator = torch.Generator().manual_seed(seed)
        self.replay = Replay(tasks, min(settings.capacity, settings.steps))
        self.total = 0  # steps of each task
        self.logp: Losses = []
        self.sums = torch.zeros(5, T, dtype=torch.float64)
        self.updates = 0  # since the last evaluation
        self.trained: list[list[bool]] = []  # success in training episodes since then
        self.history: list[dict[str, Any]] = []

    def adam(self, own: Sequence[Tensor], method: Method) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [{"params": own}]
        if learned := method.parameters():
            groups.append({"params": learned, "lr": method.learning_rate})
        return torch.optim.Adam(groups, lr=self.settings.lr, fused=True)

    @torch.no_grad()
    def act(self, seen: Tensor, greedy: bool = False) -> Tensor:
        """Actions (T, A) for one observation of each task; at random while the replay fills."""
        if greedy:
            return torch.tanh(self.actor(torch.cat([seen.to(self.device), self.ids], 1))[0]).cpu()
        shape = (len(self.ids), self.tasks.action)
        if self.total < self.settings.warmup:
            return torch.rand(shape, generator=self.generator) * 2 - 1
        noise = torch.randn(shape, generator=self.generator)
        return self.actor.sample(torch.cat([seen, self.ids.cpu()], 1).to(self.device), noise.to(self.device))[0].cpu()

    def batch(self, task: int) -> tuple[Tensor, ...] | None:
        """Inputs, actions, rewards, next inputs of one task, and the noise of both policies; None before its warm-up.

        A task without a batch is absent: a zero in the place of its loss would be one that MGDA takes for solved.
        """
        s = self.settings
        if self.replay.held(task) < s.warmup:
            return None
        seen, actions, rewards, after = self.replay.sample(task, s.batch_size, self.generator)
        noise = torch.randn((2, *actions.shape), generator=self.generator)
        seen, actions, rewards, after, noise = (x.to(self.device) for x in (seen, actions, rewards, after, noise))
        own = self.ids[task].expand(s.batch_size, -1)
        return torch.cat([seen, own], 1), actions, rewards, torch.cat([after, own], 1), noise[0], noise[1]

    @torch.no_grad()
    def values(self, batches: Sequence[tuple[Tensor, ...] | None]) -> Losses:
        """What the critics should say of each task's batch, (B,): r + gamma (min Q'(o', a') - alpha log p(a'))."""
        here = [t for t, batch in enumerate(batches) if batch is not None]
        rewards, after, noise = (torch.cat([cast(Any, batches[t])[i] for t in here]) for i in (2, 3, 4))
        actions, logp = self.actor.sample(after, noise)
        alpha = self.log_alpha[here].exp().repeat_interleave(self.settings.batch_size)
        value = self.target(after, actions).amin(0) - alpha * logp
        parts = (rewards + self.settings.gamma * value).chunk(len(here))
        return [parts[here.index(t)] if t in here else None for t in range(len(batches))]

    def critic_losses(self, batches: Sequence[tuple[Tensor, ...] | None], wanted: Losses) -> Losses:
        """Per task the squared errors of both critics, added."""
        found: Losses = []
        for batch, value in zip(batches, wanted, strict=True):
            if batch is None or value is None:
                found.append(None)
                continue
            found.append((self.critics(batch[0], batch[1]) - value).square().mean(1).sum())
        return found

    def actor_losses(self, batches: Sequence[tuple[Tensor, ...] | None]) -> Losses:
        """Per task the mean of alpha log p - min Q, plus the shift."""
        found: Losses = []
        logp: Losses = []
        for batch, log_alpha in zip(batches, self.log_alpha.detach(), strict=True):
            if batch is None:
                found.append(None)
                logp.append(None)
                continue
            actions, density = self.actor.sample(batch[0], batch[5])
            value = self.judge(batch[0], actions).amin(0)
            found.append((log_alpha.exp() * density - value).mean() + self.shift)
            logp.append(density.detach().mean())
        if torch.is_grad_enabled():
            self.logp = logp
        return found

    def descend(self, which: int, losses: Callable[[], Losses]) -> Step:
        """One step of the critics (0) or the policy (1)."""
        method, optimizer, net = self.methods[which], self.optimizers[which], self.nets[which]
        optimizer.zero_grad(set_to_none=True)
        found = losses()
        step = backward(cast(Any, found), shared=net.parameters(), method=method)
        resting = [(p, p.detach().clone()) for p in method.parameters()] if step.absent else []
        optimizer.step()
        for p, old in resting:
            p.data[..., step.absent] = old[..., step.absent]
        if method.wants_after_step:
            with torch.no_grad():
                after = [loss for loss in losses() if loss is not None]
            if step.absent:
                with present(method, [t for t in range(len(found)) if t not in step.absent]) as few:
                    few.after_step(torch.stack(after))
            else:
                method.after_step(torch.stack(after))
        return step

    def update(self) -> None:
        """One step of critics, policy, temperatures and target; none while no task is past its warm-up."""
        batches = [self.batch(t) for t in range(len(self.ids))]
        if all(batch is None for batch in batches):
            return
        wanted = self.values(batches)
        steps = [self.descend(0, lambda: self.critic_losses(batches, wanted))]
        steps.append(self.descend(1, lambda: self.actor_losses(batches)))
        here = [t for t, logp in enumerate(self.logp) if logp is not None]
        gap = torch.stack([cast(Tensor, self.logp[t]) for t in here]) - self.tasks.action
        rest = self.log_alpha.detach().clone()
        self.entropy_optimizer.zero_grad(set_to_none=True)
        (-self.log_alpha[here].exp() * gap).sum().backward()
        self.entropy_optimizer.step()
        with torch.no_grad():
            rest[here] = self.log_alpha[here]
            self.log_alpha.copy_(rest)  # whatever momentum an absent task's has
            torch._foreach_lerp_(list(self.target.parameters()), list(self.critics.parameters()), self.settings.tau)
        empty = torch.full_like(steps[0].losses, torch.nan)
        weights = [empty if step.weights is None else step.weights.to(empty) for step in steps]
        told = [steps[0].losses, steps[1].losses, *weights, self.log_alpha.detach().exp()]
        self.sums += torch.stack(told).double().cpu()
        self.updates += 1

    def episode(self) -> None:
        """One episode of all tasks, an update after each step from the end of the warm-up on."""
        s = self.settings
        goals = torch.randint(GOALS, (len(self.ids),), generator=self.generator)
        seen = self.tasks.reset(goals.tolist())
        ever = torch.zeros(len(self.ids), dtype=torch.bool)
        for _ in range(self.tasks.horizon):
            actions = self.act(seen)
            after, rewards, done = self.tasks.step(actions)
            self.replay.add(seen, actions, rewards * s.reward, after)
            seen, ever = after, ever | done
            self.total += 1
            if self.total >= s.warmup:
                self.update()
        self.trained.append(ever.tolist())

    def look(self) -> dict[str, Any]:
        """Evaluate, and write a line of history."""
        found = evaluate(lambda seen: self.act(seen, greedy=True), self.tasks, self.settings.evaluated)
        names = ("critic losses", "actor losses", "critic weights", "actor weights", "temperature")
        means = dict(zip(names, self.sums / max(self.updates, 1), strict=True))
        trained = torch.tensor(self.trained, dtype=torch.float64).mean(0)
        self.history.append(plain({"steps": self.total} | found | {"training": trained} | means))
        self.sums, self.updates, self.trained = torch.zeros_like(self.sums), 0, []
        return self.history[-1]

    parts = ("actor", "critics", "target", "entropy_optimizer", "replay")
    counters = ("total", "updates", "trained", "history", "sums")

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {name: getattr(self, name).state_dict() for name in self.parts}
        state |= {name: getattr(self, name) for name in self.counters}
        state |= {"methods": [m.state_dict() for m in self.methods], "log_alpha": self.log_alpha.detach()}
        state |= {"learned": [[p.detach() for p in m.parameters()] for m in self.methods]}
        state |= {"optimizers": [one.state_dict() for one in self.optimizers]}
        return state | {"generator": self.generator.get_state()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in self.parts:
            getattr(self, name).load_state_dict(state[name])
        for name in self.counters:
            setattr(self, name, state[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for method, saved, values in zip(self.methods, state["methods"], state["learned"], strict=True):
            method.load_state_dict(saved)
            for p, value in zip(method.parameters(), values, strict=True):
                p.copy_(value)
        self.log_alpha.copy_(state["log_alpha"])
        self.generator.set_state(state["generator"])


def train(
    tasks: Tasks, name: str, settings: Settings, seed: int, *, hyper: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu", checkpoint: Path | str | None = None, checkpoint_every: float = 120.0,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Outcome:  # fmt: skip
    """Train one policy for all tasks; `hyper` are the method's, and `shift` what is added to the policy's losses.

    `checkpoint` is written at the end of an episode, `checkpoint_every` seconds apart, with the replay in it, since a
    simulator stopped inside an episode would not go on alike; on the CPU a resumed run is the same bit by bit. A loss
    that is not finite, or not positive for a method that needs it, ends the run with that status. `progress` hears of
    each evaluation. Raises ValueError where evaluations do not fall on ends of episodes.

    >>> from mtl.problems.mt10 import PointMass
    >>> run = train(PointMass(horizon=5), "ls", Settings(1, every=10, warmup=5, width=8, evaluated=1), seed=0)
    >>> run.status, run.steps, len(run.history)
    ('ok', 10, 1)
    """
    if settings.every % tasks.horizon:
        raise ValueError(f"every: must be whole episodes of {tasks.horizon} steps, found {settings.every}")
    own = dict(hyper or {})
    shift = own.pop("shift", 0.0)
    pair = [fresh(name, len(tasks.names), seed + 1_000_000 * i, own) for i in range(2)]
    began = modules(cast(Any, tasks), pair[0], __name__)
    learner = Learner(tasks, (pair[0], pair[1]), settings, seed, device, shift)
    path = None if checkpoint is None else Path(checkpoint)
    run = {"method": name, "hyper": dict(hyper or {}), "settings": settings.settings(), "seed": seed}
    label = {"run": key(run, tasks.fingerprint), "sources": sources.digest(began), "torch": str(torch.__version__)}
    wall = _resume(learner, path, label) if path is not None and path.exists() else 0.0
    start = last = time.perf_counter()
    failure: Failure | None = None
    torch.set_flush_denormal(True)  # Adam's moments of resting units would take three times the time
    try:
        while learner.total < settings.steps:
            learner.episode()
            if learner.total % settings.every == 0:
                line = learner.look()
                if progress is not None:
                    progress(line)
            if path is not None and (now := time.perf_counter()) - last >= checkpoint_every:
                with atomic(path) as part:
                    with part.open("wb") as file:  # by name, torch refuses one without a suffix
                        torch.save({"label": label, "wall": wall + now - start, "state": learner.state_dict()}, file)
                    seal(part)
                last = time.perf_counter()
    except (NonFiniteError, NonPositiveError) as error:
        status = "non-positive" if isinstance(error, NonPositiveError) else "non-finite"
        failure = Failure(str(error), len(learner.history), learner.total, None, status)
    finally:
        torch.set_flush_denormal(False)
    metrics = summary(tasks.names, [] if failure else learner.history)
    took = wall + time.perf_counter() - start
    word, entry = (failure.status, failure.entry) if failure else ("ok", None)
    return Outcome(word, entry, metrics, learner.history, learner.total, took, learner.actor, began)


def summary(names: Sequence[str], history: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The metrics of `Outcome` from its history; None where there is none."""
    keys = [f"{name}/{what}" for name in names for what in ("score", "last", "best")] + ["score", "last", "best"]
    if not history:
        return dict.fromkeys(keys)
    ever, last = (torch.tensor([line[what] for line in history], dtype=torch.float64) for what in ("ever", "last"))
    own = torch.stack([ever[-LAST:].mean(0), last[-LAST:].mean(0), ever.amax(0)], 1).flatten()
    over = torch.stack([ever[-LAST:].mean(), last[-LAST:].mean(), ever.mean(1).max()])
    return dict(zip(keys, torch.cat([own, over]).tolist(), strict=True))


def _resume(learner: Learner, path: Path, label: Mapping[str, str]) -> float:
    """Put a checkpoint's state into `learner`; the seconds that it took."""
    try:
        saved = torch.load(io.BytesIO(unseal(path)), map_location="cpu", weights_only=True)
        owner = saved["label"]
    except Exception as error:  # torch raises many kinds for a damaged file
        said = f"cannot be read ({type(error).__name__}); remove it to start afresh"
        raise RunError(f"checkpoint {path.name}: {said}") from error
    if owner["run"] != label["run"]:
        raise RunError(f"checkpoint {path.name}: belongs to run {owner['run']}, not to {label['run']}")
    if owner != label:
        warnings.warn(f"checkpoint {path.name}: made by older sources; the run starts afresh", stacklevel=4)
        return 0.0
    learner.load_state_dict(saved["state"])
    return float(saved["wall"])
