"""Rankers trained on a world's own logs, and users served by them: what a row of `ab_test` is made of.

Nothing is imported here that only shows rows, so that they do not count as old when a table changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from mtl.errors import RunError
from mtl.models import MultiTaskModel
from mtl.problems.data.raw import permutation
from mtl.problems.shortvideo import CHUNK, Ranker, ShortVideo, World
from mtl.report.stats import cuped, difference_ci
from mtl.runs.cells import fresh, one_thread
from mtl.training.fit import Budget, fit

Array = NDArray[np.float64]
BASE, TIE, SHUFFLED, ORACLE = "MMoE", "MMoE, another seed", "shuffled", "oracle"
TRAINED: dict[str, tuple[str, str]] = {  # arm: method, targets
    BASE: ("ls", "natural"),
    "MMoE + EMTL": ("emtl", "natural"),
    "MMoE + LS, std": ("ls", "standardised"),
    "MMoE + FairGrad": ("fairgrad", "natural"),
}
ARMS = (*TRAINED, TIE, SHUFFLED, ORACLE)
FORMULAS = ((0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1))  # powers of click, completion, watch: as many tries for each
TESTS = ("by user", "CUPED", "by row", "a look a day")
TUNING = 1000  # the world in which the formulas are chosen, with training seed 100; no reported world
START = 40  # the experiment's first day: none of the logs' that the networks are trained on, nor are those before it


@dataclass(frozen=True)
class Design:
    """Users an arm, days of the experiment and before it, worlds, networks a world, splits of the A/A test."""

    users: int
    days: int
    before: int
    worlds: int
    seeds: int
    splits: int


class Served(NamedTuple):
    """Of each user: watch time per day (U, days), rows, and the sum of their squared watch times (U,)."""

    watch: Array
    rows: Array
    squares: Array


def serve(world: World, ranker: Ranker, users: NDArray[np.int64], days: range, seed: int) -> Served:
    """These users under one ranker."""
    place = np.full(world.users, -1)
    place[users] = np.arange(len(users))
    watch, rows, squares = np.zeros((len(users), len(days))), np.zeros(len(users)), np.zeros(len(users))
    for column, day in enumerate(days):
        for start in range(0, len(users), CHUNK):
            shown = world.serve(ranker, users[start : start + CHUNK], day, seed)
            own = place[shown.user]
            watch[:, column] += np.bincount(own, shown.watch, minlength=len(users))
            rows += np.bincount(own, minlength=len(users))
            squares += np.bincount(own, shown.watch**2, minlength=len(users))
    return Served(watch, rows, squares)


def learned(data: ShortVideo, model: MultiTaskModel, powers: tuple[int, ...]) -> Ranker:
    """Candidates by click^a completion^b watch^c, as the network predicts them; small predictions count as 1e-3."""

    @torch.inference_mode()
    def rank(user: NDArray[Any], pool: NDArray[Any], day: int) -> NDArray[Any]:
        ids, numbers = data.world.inputs(np.repeat(user, pool.shape[1]), pool.ravel(), day)
        pairs = zip(torch.from_numpy(ids).split(1 << 15), torch.from_numpy(numbers).split(1 << 15), strict=True)
        click, *others = (torch.cat(task) for task in zip(*(model(*pair) for pair in pairs), strict=True))
        score = powers[0] * torch.nn.functional.logsigmoid(click)
        for power, value, mean, spread in zip(powers[1:], others, data.mean, data.spread, strict=True):
            score = score + power * (value * spread + mean).clamp(min=1e-3).log()
        return score.reshape(pool.shape).numpy()

    return rank


def train(scale: str, world: int, users: int, seed: int, arm: str, budget: Budget) -> tuple[ShortVideo, MultiTaskModel]:
    """A ranker of the world's own logs, written by the weak policy."""
    method, targets = TRAINED[arm]
    data = ShortVideo(scale, targets=targets, world=world, users=users)
    with one_thread():
        run = fit(data, fresh(method, len(data.tasks), seed, {}), model="mmoe", seed=seed, budget=budget)
    if run.status != "ok":
        raise RunError(f"{arm} in world {world}, seed {seed}: must end with a result, found {run.status}")
    assert isinstance(run.model, MultiTaskModel)
    return data, run.model.eval()


def formulas(scale: str, design: Design, budget: Budget) -> dict[str, Any]:
    """The powers of each trained arm that were watched longest in the tuning world, and every trial."""
    users = np.arange(design.users)
    best, trials = {}, {}
    for arm in TRAINED:
        data, model = train(scale, TUNING, len(users), 100, arm, budget)
        days = range(START, START + design.before)
        found = [serve(data.world, learned(data, model, f), users, days, 0).watch.sum() for f in FORMULAS]
        best[arm], trials[arm] = FORMULAS[int(np.argmax(found))], [float(x) / len(users) for x in found]
    return {"best": {arm: list(powers) for arm, powers in best.items()}, "trials": trials}


def replicate(
    scale: str, design: Design, budget: Budget, powers: Mapping[str, tuple[int, ...]], world: int, seed: int
) -> dict[str, Any]:
    """One world, one set of networks: each arm's users against the base's, by user; and A/A tests on the base."""
    total = design.users * len(ARMS)
    order = permutation(total, 7 + world)  # the hash that splits users
    groups = dict(zip(ARMS, np.sort(order.reshape(len(ARMS), -1)), strict=True))
    rankers: dict[str, Ranker] = {}
    for arm in (*TRAINED, TIE):
        own = BASE if arm == TIE else arm
        data, model = train(scale, world, total, seed + 500 * (arm == TIE), own, budget)
        rankers[arm] = learned(data, model, powers[own])
    draw = np.random.default_rng([world, seed])
    rankers |= {SHUFFLED: lambda user, pool, day: draw.random(pool.shape), ORACLE: data.world.oracle()}
    served = {
        arm: serve(data.world, r, groups[arm], range(START, START + design.days), seed) for arm, r in rankers.items()
    }
    weak = data.world.weak(np.random.default_rng([world, 1]))
    before = {a: serve(data.world, weak, groups[a], range(START - design.before, START), 99).watch.sum(1) for a in ARMS}
    totals = {arm: one.watch.sum(1) for arm, one in served.items()}
    adjusted = dict(zip(ARMS, np.split(cuped(*(np.concatenate([part[a] for a in ARMS]) for part in (totals, before))),
                                       len(ARMS)), strict=True))  # fmt: skip
    arms = {}
    for arm in ARMS:
        plain, less = difference_ci(totals[arm], totals[BASE]), difference_ci(adjusted[arm], adjusted[BASE])
        days = [difference_ci(*(served[a].watch[:, : d + 1].sum(1) for a in (arm, BASE))) for d in range(design.days)]
        arms[arm] = {
            "watch": float(totals[arm].mean()), "cv": float(totals[arm].std(ddof=1) / totals[arm].mean()),
            "plain": list(plain[:3]), "cuped": list(less[:3]), "by day": [list(day[:3]) for day in days],
            "correlation": float(np.corrcoef(totals[arm], before[arm])[0, 1]),
        }  # fmt: skip
    return {"arms": arms, "A/A": same_users(served[BASE], before[BASE], design.splits, seed)}


def same_users(served: Served, before: Array, splits: int, seed: int) -> dict[str, float]:
    """False positives at 5 % where users of one arm are split at random: by user, CUPED, by row, and with a look a day.

    By row: a t test that takes rows for independent, though a user has many.
    """
    draw = np.random.default_rng(seed)
    users = len(served.rows)
    totals, less = served.watch.sum(1), cuped(served.watch.sum(1), before)
    running = served.watch.cumsum(1)
    hits = dict.fromkeys(TESTS, 0)
    for _ in range(splits):
        one = np.zeros(users, bool)
        one[draw.permutation(users)[: users // 2]] = True
        days = scipy_stats.ttest_ind(running[one], running[~one], equal_var=False).pvalue
        hits["by user"] += bool(scipy_stats.ttest_ind(totals[one], totals[~one], equal_var=False).pvalue < 0.05)
        hits["CUPED"] += bool(scipy_stats.ttest_ind(less[one], less[~one], equal_var=False).pvalue < 0.05)
        hits["a look a day"] += bool((days < 0.05).any())
        (m1, v1, n1), (m2, v2, n2) = (_of_rows(served, part) for part in (one, ~one))
        hits["by row"] += bool(abs(m1 - m2) > 1.96 * np.sqrt(v1 / n1 + v2 / n2))
    return {name: float(count) / splits for name, count in hits.items()}


def _of_rows(served: Served, part: NDArray[np.bool_]) -> tuple[float, float, float]:
    n = served.rows[part].sum()
    mean = served.watch[part].sum() / n
    return mean, served.squares[part].sum() / n - mean**2, n
