"""Checks and pictures beside the study of MT10: `python -m benchmarks.mt10 check`, or another word of `--help`.

check: one task alone; peer: the same by the SAC of Stable-Baselines3 (extra `[peers]`); pendulum: Gymnasium's, beside a
published return; random: success of random actions; times: where the time goes; times10: the same for all ten tasks at
scale paper's sizes, whose smoke run it is. Each writes a row to data/ledger/local/mt10_checks, which notebook 19 shows
once it is published. pictures: the ten tasks, and a film.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from mtl import lacking
from mtl.errors import RunError
from mtl.experiments.mt10 import THREE, simulator
from mtl.experiments.mt10_checks import film, gallery
from mtl.ledger import key, ledger, provenance
from mtl.problems.mt10 import GOALS, NAMES, MetaWorld, Tasks
from mtl.report import save_figure
from mtl.runs.cells import one_thread
from mtl.training import sac
from mtl.training.sac import Learner, Settings, evaluate, summary, train
from mtl.training.together import fresh

EVERY = 2000  # steps between evaluations of a check
ZOO = "RL Baselines3 Zoo, benchmark.md: SAC, Pendulum-v1, 20k steps, one run: -156.995 (SD 88.714 over 750 episodes)"


class Pendulum(Tasks):
    """Gymnasium's Pendulum-v1, whose rewards are at most 0; a goal is the seed of a reset."""

    name, synthetic, observation, action, reward, source = "pendulum", False, 3, 1, 0.0, "Gymnasium's Pendulum-v1"

    def __init__(self) -> None:
        import gymnasium

        super().__init__(NAMES[:1], 200)
        self.env = gymnasium.make("Pendulum-v1")

    @property
    def fingerprint(self) -> str:
        return self.source

    def _reset(self, goals: Sequence[int]) -> Tensor:
        return torch.from_numpy(self.env.reset(seed=goals[0])[0])[None].float()

    def _step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen, reward, *_ = self.env.step(2 * actions[0].numpy())
        return torch.from_numpy(seen)[None].float(), torch.tensor([float(reward)]), torch.zeros(1, dtype=torch.bool)


def keep(what: str, tasks: Tasks, config: dict[str, Any], metrics: dict[str, Any], began: float, **more: Any) -> None:
    """Print what was found and write it as a row."""
    config = {"study": what, "tasks": list(tasks.names)} | config
    row: dict[str, Any] = {
        "key": key(config, tasks.fingerprint),
        "config": config,
        "fingerprint": tasks.fingerprint,
        "status": "ok",
    }
    row |= {"metrics": metrics, "wall_s": time.perf_counter() - began, "source": tasks.source}
    row |= {"synthetic": tasks.synthetic, "embedded_default": False} | more
    ledger("mt10_checks").append(row | {"provenance": provenance("cpu", [sac.__name__, "mtl.problems.mt10"])})
    print(what, metrics, f"{row['wall_s']:.1f} s")


def check(tasks: Tasks, settings: Settings, seed: int, what: str, **more: Any) -> None:
    """A single task, alone: does the algorithm learn it?"""
    began, cpu = time.perf_counter(), time.process_time()

    def tell(line: dict[str, Any]) -> None:
        print(line["steps"], line["ever"], line["last"], line["return"], f"{time.process_time() - cpu:.0f} CPU s")

    run = train(tasks, "ls", settings, seed, progress=tell)
    metrics = run.metrics | {"return": run.history[-1]["return"][0], "cpu_s": round(time.process_time() - cpu, 1)}
    keep(what, tasks, {"settings": settings.settings(), "seed": seed}, metrics, began, history=run.history, **more)


def environment(tasks: Tasks, reward: float, seed: int) -> Any:
    """One task as Gymnasium's `Env`, goals drawn among all, rewards times `reward`; episodes are only ever cut off."""
    import gymnasium
    from gymnasium.spaces import Box

    class Single(gymnasium.Env[Any, Any]):
        draw = torch.Generator().manual_seed(seed)
        observation_space = Box(-torch.inf, torch.inf, (tasks.observation,))
        action_space = Box(-1.0, 1.0, (tasks.action,))

        def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
            return tasks.reset(torch.randint(GOALS, (1,), generator=self.draw).tolist())[0].numpy(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            seen, rewards, _ = tasks.step(torch.from_numpy(action)[None])
            return seen[0].numpy(), reward * float(rewards), False, tasks.passed == tasks.horizon, {}

    return Single()


def peer(tasks: Tasks, again: Tasks, settings: Settings, seed: int) -> None:
    """`check` by the SAC of Stable-Baselines3: is our level that of the algorithm? `again`: what is evaluated."""
    from importlib.metadata import version

    from stable_baselines3 import SAC

    s, began, cpu = settings, time.perf_counter(), time.process_time()
    model = SAC(
        "MlpPolicy", environment(tasks, s.reward, seed), learning_rate=s.lr, buffer_size=min(s.capacity, s.steps),
        learning_starts=s.warmup, batch_size=s.batch_size, tau=s.tau, gamma=s.gamma, ent_coef=f"auto_{s.temperature}",
        policy_kwargs={"net_arch": [s.width, s.width]}, seed=seed, device="cpu",
    )  # fmt: skip

    def act(seen: Tensor) -> Tensor:
        return torch.from_numpy(model.predict(seen.numpy(), deterministic=True)[0])

    history: list[dict[str, Any]] = []
    for i in range(1, s.evaluations + 1):
        model.learn(s.every, reset_num_timesteps=False)
        history.append({"steps": i * s.every} | evaluate(act, again, s.evaluated))
        print(history[-1], f"{time.process_time() - cpu:.0f} CPU s")
    metrics = summary(tasks.names, history) | {"cpu_s": round(time.process_time() - cpu, 1)}
    whose = f"Stable-Baselines3 {version('stable-baselines3')}"
    keep("peer", tasks, {"settings": s.settings(), "seed": seed, "by": whose}, metrics, began, history=history)


def chance(tasks: Tasks, seed: int, goals: int = 20) -> None:
    """Success of actions drawn at random."""
    began, draw = time.perf_counter(), torch.Generator().manual_seed(seed)
    found = evaluate(lambda seen: torch.rand((len(seen), tasks.action), generator=draw) * 2 - 1, tasks, goals)
    metrics = {f"{name}/score": value for name, value in zip(tasks.names, found["ever"], strict=True)}
    keep("random", tasks, {"goals": goals, "seed": seed}, metrics, began)


def times(tasks: Tasks, settings: Settings, seed: int, episodes: int) -> None:
    """Where the CPU time of a step goes, and updates a CPU second, LS against FairGrad in turns."""
    learners: dict[str, Learner] = {}
    spent: dict[str, dict[str, float]] = {}
    total: dict[str, float] = defaultdict(float)
    began = time.perf_counter()
    torch.set_flush_denormal(True)  # as `train` does
    for name in ("ls", "fairgrad"):
        pair = [fresh(name, len(tasks.names), seed, {}) for _ in range(2)]
        learners[name] = Learner(tasks, (pair[0], pair[1]), settings, seed)
        learners[name].episode()  # the warm-up
    updates = 0
    for _ in range(episodes):
        for name, one in learners.items():
            own = spent.setdefault(name, defaultdict(float))
            undo = [timed(*place, own) for place in places(one)]
            start = time.process_time()
            one.episode()
            total[name] += time.process_time() - start
            for back in undo:
                back()
        updates += tasks.horizon
    metrics: dict[str, Any] = {}
    for name, own in spent.items():
        shares = {part: round(value / total[name], 3) for part, value in own.items()}
        rest = round(1 - sum(shares.values()), 3)
        metrics[name] = {"updates per CPU second": round(updates / total[name], 1)} | shares | {"the rest": rest}
    config = {"episodes": episodes, "seed": seed, "settings": settings.settings()}
    keep("times", tasks, config, metrics, began)


def places(one: Learner) -> list[tuple[Any, str, str]]:
    """What is timed: object, attribute, part."""
    found: list[tuple[Any, str, str]] = [(one.tasks, "step", "environment"), (one.tasks, "reset", "environment")]
    found += [(one, "act", "acting"), (one.replay, "add", "replay"), (one.replay, "sample", "replay")]
    found += [(one, name, "forward") for name in ("values", "critic_losses", "actor_losses")]
    found += [(optimizer, "step", "optimiser") for optimizer in one.optimizers]
    return [*found, (sac, "backward", "backward and method")]


def timed(holder: Any, name: str, part: str, spent: dict[str, float]) -> Callable[[], None]:
    """Count the CPU seconds of one attribute's calls; what takes the counter away again."""
    own = getattr(holder, name)

    @wraps(own)
    def counted(*given: Any, **more: Any) -> Any:
        start = time.process_time()
        try:
            return own(*given, **more)
        finally:
            spent[part] += time.process_time() - start

    setattr(holder, name, counted)
    return lambda: setattr(holder, name, own)


def pictures(seed: int, steps: int) -> None:
    """figures/mt10_tasks.*: the ten tasks; figures/mt10_film.*: an episode of a policy trained on one of them."""
    command = f"python -m benchmarks.mt10 pictures --seed {seed} --steps {steps}"
    facts: dict[str, Any] = {"command": command, "notebook": "19_mt10", "scale": "study", "seeds": [seed]}
    every = MetaWorld()
    said = "The ten tasks of MT10 at the start of an episode; success of random actions, and alone, mean of the "
    said += "longest runs of the checks"
    save_figure(gallery(every), "mt10_tasks", **facts, data=every.source, n="one start of each task", caption=said)
    one = MetaWorld(THREE[:1])
    settings = Settings(steps // EVERY, every=EVERY, batch_size=128, temperature=0.05)
    run = train(one, "ls", settings, seed)
    rate = run.history[-1]["ever"][0]
    said = f"An episode of {one.names[0]} by a policy that was trained on it alone for {steps:,} steps"
    facts |= {"config": {"budget": settings.settings()}, "caption": f"{said} (success {rate:.2f} on 20 goals)"}
    save_figure(film(run.actor, one), "mt10_film", **facts, data=one.source, n="one episode")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("check", "peer", "pendulum", "random", "times", "times10", "pictures"))
    parser.add_argument("--task", default="drawer-close", choices=NAMES, help="of check and peer")
    parser.add_argument("--steps", type=int, help="of check, peer, pictures (30000), pendulum (20000)")
    parser.add_argument("--episodes", type=int, default=5, help="of each method whose times are taken")
    parser.add_argument("--seed", type=int, default=100)
    given = parser.parse_args(arguments)
    steps = (20_000 if given.what == "pendulum" else 30_000) if given.steps is None else given.steps
    if steps < EVERY or steps % EVERY:
        parser.error(f"--steps: must be a multiple of {EVERY}, after which a check evaluates, found {steps}")
    if given.episodes < 1:
        parser.error(f"--episodes: must be at least 1, found {given.episodes}")
    try:
        simulator()
        with one_thread():
            go(given.what, given.task, steps, given.episodes, given.seed)
    except RunError as wrong:
        parser.error(str(wrong))
    except ModuleNotFoundError as missing:
        if said := lacking(missing):
            parser.error(f"{given.what} {said}")
        raise


def go(what: str, task: str, steps: int, episodes: int, seed: int) -> None:
    """Do one of the words of `--help`."""
    if what in ("check", "peer"):
        settings = Settings(steps // EVERY, every=EVERY, batch_size=128, temperature=0.05)
        if what == "check":
            check(MetaWorld((task,)), settings, seed, "check")
        else:
            peer(MetaWorld((task,)), MetaWorld((task,)), settings, seed)
    elif what == "pendulum":
        settings = Settings(steps // EVERY, every=EVERY, batch_size=256, lr=1e-3, temperature=1.0)
        check(Pendulum(), settings, seed, "pendulum", published=ZOO)
    elif what == "random":
        chance(MetaWorld(), seed)
    elif what == "times":
        times(MetaWorld(THREE), Settings(1, warmup=200), seed, episodes)
    elif what == "times10":
        times(MetaWorld(), Settings(1, warmup=200, batch_size=128, width=400), seed, episodes)
    else:
        pictures(seed, steps)


if __name__ == "__main__":
    main()
