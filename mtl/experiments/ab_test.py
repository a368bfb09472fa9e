"""EMTL's online A/B test, simulated: rankers trained on a world's logs serve that world's users. Synthetic throughout.

The unit of replication is a world with a training seed, since all users of one world see one network.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats as scipy_stats

from mtl.experiments import ab_runs
from mtl.experiments.ab_runs import ARMS, BASE, ORACLE, TESTS, TIE, TRAINED, Design
from mtl.experiments.beside import text
from mtl.experiments.once import once
from mtl.experiments.table3 import BUDGET
from mtl.ledger import Ledger, Row, key, ledger
from mtl.report import captioned, style
from mtl.report.stats import mean_ci, users_needed
from mtl.scales import known_scale
from mtl.sources import entries

SEED = 10  # of the first reported network
MODULES = (ab_runs.__name__, *sorted({entries("mtl.methods")[name] for name, _ in TRAINED.values()}))
DESIGNS = {
    "smoke": Design(users=60, days=3, before=2, worlds=2, seeds=1, splits=50),
    "quick": Design(users=400, days=7, before=4, worlds=3, seeds=1, splits=200),
    "study": Design(users=5_000, days=28, before=14, worlds=8, seeds=2, splits=400),
}
DESIGNS["paper"] = DESIGNS["study"]


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
    own: dict[str, Any] = {"source": "simulated short-video app", "synthetic": True}
    book = book or ledger("ab_test")
    return _study(scale, lambda config, make: once(book, config, "simulated", make, MODULES, **own))


def published(at: str) -> ABTest | None:
    """The rows of scale study that the repository brings along; None where one is missing. `at`: the notebook's."""
    there = {row["key"]: row for row in ledger("ab_test").published()}
    try:
        return replace(_study("study", lambda config, make: there[key(config, "simulated")]), at=at)
    except KeyError:
        return None


def _study(scale: str, row: Callable[[dict[str, Any], Callable[[], Any]], Row]) -> ABTest:
    design, budget = DESIGNS[scale], BUDGET[scale]
    common = {"scale": scale, "budget": budget.settings(), **asdict(design)}
    tuning = row({"study": "ab_test, formulas", **common}, lambda: ab_runs.formulas(scale, design, budget))
    best = tuning["metrics"]["best"]
    powers, rows = {arm: tuple(found) for arm, found in best.items()}, []
    for world, seed in product(range(design.worlds), range(SEED, SEED + design.seeds)):
        config = {"study": "ab_test", **common, "world": world, "seed": seed, "formulas": best}
        rows.append(row(config, partial(ab_runs.replicate, scale, design, budget, powers, world, seed)))
    return ABTest(scale, rows, tuning)
