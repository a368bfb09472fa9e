"""EMTL's online A/B test, simulated: rankers trained on a world's logs serve that world's users. Synthetic throughout.

The unit of replication is a world with a training seed, since all users of one world see one network.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from mtl.errors import RunError
from mtl.experiments.beside import text
from mtl.experiments.once import once
from mtl.experiments.table3 import BUDGET
from mtl.ledger import Ledger, Row, key, ledger
from mtl.models import MultiTaskModel
from mtl.problems.data.raw import permutation
from mtl.problems.shortvideo import CHUNK, Ranker, ShortVideo, World
from mtl.report import captioned, style
from mtl.report.captions import known_scale
from mtl.report.stats import cuped, difference_ci, mean_ci, users_needed
from mtl.runs.cells import fresh, one_thread
from mtl.training.fit import fit

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
SEED = 10  # of the first reported network
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


DESIGNS = {
    "smoke": Design(users=60, days=3, before=2, worlds=2, seeds=1, splits=50),
    "quick": Design(users=400, days=7, before=4, worlds=3, seeds=1, splits=200),
    "study": Design(users=5_000, days=28, before=14, worlds=8, seeds=2, splits=400),
}
DESIGNS["paper"] = DESIGNS["study"]


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


def train(scale: str, world: int, users: int, seed: int, arm: str) -> tuple[ShortVideo, MultiTaskModel]:
    """A ranker of the world's own logs, written by the weak policy."""
    method, targets = TRAINED[arm]
    data = ShortVideo(scale, targets=targets, world=world, users=users)
    with one_thread():
        run = fit(data, fresh(method, len(data.tasks), seed, {}), model="mmoe", seed=seed, budget=BUDGET[scale])
    if run.status != "ok":
        raise RunError(f"{arm} in world {world}, seed {seed}: must end with a result, found {run.status}")
    assert isinstance(run.model, MultiTaskModel)
    return data, run.model.eval()


def formulas(scale: str) -> dict[str, Any]:
    """The powers of each trained arm that were watched longest in the tuning world, and every trial."""
    design = DESIGNS[scale]
    users = np.arange(design.users)
    best, trials = {}, {}
    for arm in TRAINED:
        data, model = train(scale, TUNING, len(users), 100, arm)
        days = range(START, START + design.before)
        found = [serve(data.world, learned(data, model, f), users, days, 0).watch.sum() for f in FORMULAS]
        best[arm], trials[arm] = FORMULAS[int(np.argmax(found))], [float(x) / len(users) for x in found]
    return {"best": {arm: list(powers) for arm, powers in best.items()}, "trials": trials}


def replicate(scale: str, world: int, seed: int, powers: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """One world, one set of networks: each arm's users against the base's, by user; and A/A tests on the base."""
    design = DESIGNS[scale]
    total = design.users * len(ARMS)
    order = permutation(total, 7 + world)  # the hash that splits users
    groups = dict(zip(ARMS, np.sort(order.reshape(len(ARMS), -1)), strict=True))
    rankers: dict[str, Ranker] = {}
    for arm in (*TRAINED, TIE):
        own = BASE if arm == TIE else arm
        data, model = train(scale, world, total, seed + 500 * (arm == TIE), own)
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


@dataclass(frozen=True)
class ABTest:
    """Rows of the replicates, and what is shown of them."""

    scale: str
    rows: list[Row]
    tuning: Row
    at: str = ""  # the scale of the notebook, where the rows are published ones of another

    @property
    def facts(self) -> dict[str, Any]:
        design = DESIGNS[self.scale]
        n = f"{design.worlds} worlds x {design.seeds} networks, {design.users:,} users an arm, {design.days} days"
        return {
            "rows": [self.tuning, *self.rows], "scale": self.scale, "at": self.at or self.scale, "n": n,
            "notebook": "13_ab_test", "data": "a simulated short-video app",
            "command": f"mtl run ab_test --scale {self.scale}",
            "config": asdict(design) | {"formulas": self.tuning["metrics"]["best"]},
        }  # fmt: skip

    @property
    def worlds(self) -> pd.DataFrame:
        """Mean watch time of each arm, a line per world: the mean over its networks."""
        lines = [
            {"world": r["config"]["world"]} | {a: o["watch"] for a, o in r["metrics"]["arms"].items()}
            for r in self.rows
        ]
        return pd.DataFrame(lines).groupby("world").mean()

    @property
    def table(self) -> pd.DataFrame:
        """Gain over MMoE in per cent and as a share of the oracle's headroom: mean and 95 % interval over worlds."""
        means = self.worlds
        base, room = means[BASE], means[ORACLE] - means[BASE]
        lines = {}
        for arm in ARMS:
            gain, share = mean_ci(100 * (means[arm] / base - 1)), mean_ci((means[arm] - base) / room)
            found = [row["metrics"]["arms"][arm]["cuped"] for row in self.rows]
            seen = sum(low > 0 or high < 0 for _, low, high in found)
            lines[arm] = {
                "watch, s a user": f"{means[arm].mean():.1f}",
                "gain, %": "–" if arm == BASE else f"{gain.value:+.1f} ± {text(gain.half, 1)}",
                "of the headroom": "–" if arm == BASE else f"{share.value:+.3f} ± {text(share.half, 3)}",
                "found by one test": "–" if arm == BASE else f"{seen} of {len(found)}",
            }
        said = (
            "SIMULATION: watch time of each arm's users; gain over MMoE, mean ± 95 % interval over worlds; in how many "
        )
        said += (
            "replicates a single test (by user, CUPED) differs from MMoE; EMTL reports +5 % from one test of its own"
        )
        return captioned(pd.DataFrame(lines).T, said)

    @property
    def errors(self) -> pd.DataFrame:
        """False positives of the A/A tests, mean over replicates, and what a binomial of that many splits allows."""
        found = pd.DataFrame([row["metrics"]["A/A"] for row in self.rows])[list(TESTS)].mean()
        splits = DESIGNS[self.scale].splits
        low, high = scipy_stats.binom.interval(0.95, splits, 0.05)
        table = pd.DataFrame({"false positives": found.map("{:.3f}".format), "allowed in one replicate": ""})
        table["allowed in one replicate"] = f"{low / splits:.3f} to {high / splits:.3f}"
        said = "SIMULATION: users of the MMoE arm split at random, tests at 5 %; 'by row' takes a user's rows for "
        return captioned(table, said + "independent, 'a look a day' stops at the first that finds something")

    def figure(self) -> Figure:
        """Gain by day in the first world with its running interval, and the users an arm that an effect needs."""
        fig, axes = style.subplots(1, 2, height=2.6)
        arms = self.rows[0]["metrics"]["arms"]
        watch = arms[BASE]["watch"] * np.arange(1, DESIGNS[self.scale].days + 1) / DESIGNS[self.scale].days
        for arm, colour in (("MMoE + EMTL", style.RED), (TIE, style.GREY)):
            middle, low, high = 100 * np.array(arms[arm]["by day"]).T / watch
            days = np.arange(1, len(middle) + 1)
            axes[0, 0].plot(days, middle, color=colour, label=arm)
            axes[0, 0].fill_between(days, low, high, color=colour, alpha=0.15, lw=0)
        axes[0, 0].axhline(0, color="0.3", lw=0.8)
        axes[0, 0].set(xlabel="days", ylabel="watch time over MMoE, % (simulation)")
        axes[0, 0].legend()
        effects = np.geomspace(0.005, 0.2, 50)
        cv, r = (np.mean([row["metrics"]["arms"][BASE][name] for row in self.rows]) for name in ("cv", "correlation"))
        for name, value, rest in (("by user", 0.0, "-"), ("CUPED", float(r), "--")):
            axes[0, 1].plot(
                100 * effects, [users_needed(e, float(cv), value) for e in effects], rest, color=style.BLUE, label=name
            )
        axes[0, 1].axvline(5, color="0.3", lw=0.8)
        axes[0, 1].set(xscale="log", yscale="log", xlabel="effect, %", ylabel="users an arm (power .8)")
        axes[0, 1].legend()
        said = (
            "SIMULATION. Left: gain over MMoE by day in the first world with its running 95 % interval, which a daily "
        )
        said += f"look reads too often; right: users an arm that an effect needs at the spread between users ({cv:.2f})"
        return captioned(fig, said)


def study(scale: str, book: Ledger | None = None) -> ABTest:
    """The replicates of a scale, from the ledger or run; resumable after each of them."""
    known_scale(scale, DESIGNS)
    book, source = book or ledger("ab_test"), "simulated short-video app"
    return _study(
        scale, lambda config, make: once(book, config, "simulated", make, [__name__], source=source, synthetic=True)
    )


def published(at: str) -> ABTest | None:
    """The rows of scale study that the repository brings along; None where one is missing. `at`: the notebook's."""
    there = {row["key"]: row for row in ledger("ab_test").published()}
    try:
        return replace(_study("study", lambda config, make: there[key(config, "simulated")]), at=at)
    except KeyError:
        return None


def _study(scale: str, row: Callable[[dict[str, Any], Callable[[], Any]], Row]) -> ABTest:
    design = DESIGNS[scale]
    tuning = row({"study": "ab_test, formulas", "scale": scale, **asdict(design)}, lambda: formulas(scale))
    best = tuning["metrics"]["best"]
    powers, rows = {arm: tuple(found) for arm, found in best.items()}, []
    for world, seed in product(range(design.worlds), range(SEED, SEED + design.seeds)):
        config = {"study": "ab_test", "scale": scale, **asdict(design), "world": world, "seed": seed}
        rows.append(row(config | {"formulas": best}, partial(replicate, scale, world, seed, powers)))
    return ABTest(scale, rows, tuning)
