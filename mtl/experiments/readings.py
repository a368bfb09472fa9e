"""What makes EMTL scale-robust? Its payoff, merge and base in every combination, the first loss times a factor.

Exploratory: no word comes of it (paper/decision_rule.md). Census with MMoE, two tasks.
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtl.experiments.base import Experiment
from mtl.experiments.table1.grids import BUDGET
from mtl.ledger import Ledger, Row, key, ledger, plain, provenance
from mtl.methods.base import Kind, Method, Needs, chosen, norms
from mtl.methods.emtl import EMTL
from mtl.problems import Problem, problem
from mtl.report import captioned
from mtl.runs.cells import one_thread
from mtl.training.fit import fit

PAYOFFS, MERGES, BASES = ("L", "|g|", "L/|g|", "w L/|g|"), ("literal", "frozen_norm", "product"), ("mgda", "nash", "ls")
FACTORS, ALONE = (0.01, 1.0, 100.0), "base alone"
Combination = tuple[str, str, str]  # payoff, merge, base; the payoff "base alone" is alpha = 1


class Even(Method):
    """Equal weights on the simplex, as a base that EMTL takes: w_t = 1 / T."""

    label, family, marker = "LS", "simple", "o"
    needs: Needs = "gram"

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        return losses.new_full(losses.shape, 1 / losses.shape[-1])


class Variant(EMTL):
    """EMTL with another payoff of the player: L_t, |g_t|, L_t/|g_t| or w_t L_t/|g_t| (Eq. 11); all else is EMTL's.

    The base must not look at losses, since EMTL divides what it is given by |g|: L |g| and |g|^2 for the first two.
    `share`: the player's part of all weights, a mean over the steps.
    """

    tasks: ClassVar[dict[str, Kind]] = EMTL.tasks

    def __init__(
        self,
        n_tasks: int,
        payoff: Literal["L", "|g|", "L/|g|", "w L/|g|"] = "w L/|g|",
        base: str = "mgda",
        **hyper: Any,
    ) -> None:
        self.payoff = chosen("payoff", payoff, PAYOFFS)
        rate: Literal["weighted", "raw"] = "weighted" if payoff == "w L/|g|" else "raw"
        super().__init__(n_tasks, rate=rate, base=Even(n_tasks) if base == "ls" else base, **hyper)
        self.shares: list[float] = []

    def weights(self, losses: Tensor, gram: Tensor | None = None) -> Tensor:
        assert gram is not None
        sizes = norms(gram.detach().double())
        given = {"L": losses.detach().double() * sizes, "|g|": sizes.square()}.get(self.payoff, losses)
        merged = super().weights(given, gram).to(losses.dtype)
        own = (1 - self.alpha) * (self.log_p.exp() if self.form == "product" else 1.0)
        part = own / (self.alpha + own) * merged if self.form == "product" else own  # else they sum to 1
        self.shares.append(float(torch.as_tensor(part).sum() / merged.sum()))
        return merged


def combinations() -> Iterator[Combination]:
    """All 36, and before each nine the base alone."""
    for base in BASES:
        yield ALONE, "literal", base
        for payoff, merge in itertools.product(PAYOFFS, MERGES):
            yield payoff, merge, base


FEW = (("w L/|g|", "literal", "mgda"), ("L/|g|", "frozen_norm", "mgda"), ("L/|g|", "literal", "nash"))
KEPT = {"smoke": FEW[:1], "quick": FEW, "study": tuple(combinations()), "paper": tuple(combinations())}
SEEDS = {"smoke": (10,), "quick": (10,), "study": (10, 11, 12), "paper": (10, 11, 12)}


def made(one: Combination, n_tasks: int) -> Variant:
    """The method of a combination, with EMTL's alpha = .5, rho = .3 and eta = .5.

    >>> made(("L", "product", "ls"), 2).form
    'product'
    """
    payoff, merge, base = one
    if payoff == ALONE:
        return Variant(n_tasks, base=base, alpha=1.0)
    return Variant(n_tasks, payoff, base, combine=merge)  # type: ignore[arg-type]


def label(one: Combination) -> str:
    """The name of a combination among the methods of `READINGS`."""
    return " · ".join(one)


class Combinations(Experiment):
    """Its methods are entries of no registry, so that it makes its rows itself, one by one."""

    def wanted(
        self, scale: str, seeds: Iterable[int] | None = None, methods: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """The runs of a scale, seeds outermost: what a row's configuration says of its own."""
        labels = [name for name, _, _ in self.entries(scale, methods)]
        kept = [one for one in KEPT[scale] if label(one) in labels]
        factors = [variant["factor"] for variant in self.variants[scale]]
        order = itertools.product(self.asked(scale, seeds), kept, factors)
        return [
            {"payoff": payoff, "merge": merge, "base": base, "factor": factor, "seed": seed}
            for seed, (payoff, merge, base), factor in order
        ]

    def run(
        self, scale: str, seeds: Iterable[int] | None = None, methods: Sequence[str] | None = None,
        fallback: str | None = None, **how: Any,
    ) -> list[Row]:  # fmt: skip
        """The rows of a scale, resumable after each; after `deadline` seconds none is started. On this CPU alone."""
        if (jobs := how.get("jobs", 1)) != 1 or how.get("device", "cpu") != "cpu" or how.get("together"):
            raise ValueError(
                f"jobs, device: {self.name} runs one by one on the CPU, found {jobs} and {how.get('device')}"
            )
        book, progress, rows = how.get("ledger") or ledger(self.name), how.get("progress"), []
        until = float("inf") if how.get("deadline") is None else time.monotonic() + how["deadline"]
        wanted, known, data = self.wanted(scale, seeds, methods), self.known(scale, book), dict[float, Problem]()
        for done, cell in enumerate(wanted, start=1):
            event: dict[str, Any] = {"event": "found", "cell": " · ".join(map(str, cell.values()))}
            row = known.get(_name(cell))
            if row is None and time.monotonic() < until:
                factor = cell["factor"]
                if factor not in data:
                    data[factor] = problem(self.problem, _data(scale), fallback=fallback, factor=factor)
                row, event["event"] = _run(cell, scale, data[factor], book), "done"
            if row is None:
                event["event"] = "left"
            else:
                rows.append(row)
                event["row"] = row
            if progress is not None:
                progress(event | {"done": done, "total": len(wanted)})
        return rows

    def known(self, scale: str, book: Ledger) -> dict[tuple[Any, ...], Row]:
        """The rows of a scale that the ledger holds, by what they are of."""
        return {_own(row): row for row in book.latest().values() if row["config"].get("scale") == scale}


READINGS = Combinations(
    name="readings",
    problem="census_scaled",
    fallback="digits",
    notebook="05_loss_scale",
    methods={
        scale: tuple((label(one), "emtl", {"payoff": one[0], "combine": one[1], "base": one[2]}) for one in kept)
        for scale, kept in KEPT.items()
    },
    models=("mmoe",),
    seeds=SEEDS,
    budget=BUDGET,
    variants={
        scale: tuple({"factor": f} for f in (FACTORS if scale in ("study", "paper") else FACTORS[:2])) for scale in KEPT
    },
)


def study(scale: str, book: Ledger | None = None) -> "Readings":
    """The whole study where the ledger has it, else the runs of `scale`, with the fallback where data are not found."""
    READINGS.entries(scale)  # refuses a scale that there is not
    book = book or ledger(READINGS.name)
    if scale != "smoke":
        known, cells = READINGS.known("study", book), READINGS.wanted("study")
        if all(_name(cell) in known for cell in cells):
            return Readings("study", [known[_name(cell)] for cell in cells], scale)
    return Readings(scale, READINGS.run(scale, fallback=READINGS.fallback, ledger=book), scale)


def _data(scale: str) -> str:
    return scale if scale in ("smoke", "quick") else "study"


def _name(cell: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(cell[name] for name in ("payoff", "merge", "base", "factor", "seed"))


def _own(row: Row) -> tuple[Any, ...]:
    return _name(row["config"])


def _run(cell: dict[str, Any], scale: str, data: Problem, book: Ledger) -> Row:
    budget, model = BUDGET[_data(scale)], "mmoe" if "mmoe" in data.models else data.models[0]
    config = {"study": "readings", "scale": scale, "model": model, "budget": budget.settings(), **cell}
    rule = made((cell["payoff"], cell["merge"], cell["base"]), len(data.tasks))
    with one_thread():
        run = fit(data, rule, model=model, seed=cell["seed"], budget=budget)
    rates = [line["rates"] for line in run.history[-1:]]
    found = {"metrics": {**run.metrics, "share": float(np.mean(rule.shares))}, "rates": rates[0] if rates else None}
    row: Row = plain({
        "key": key(config, data.fingerprint), "config": config, "fingerprint": data.fingerprint, "status": run.status,
        **found, "wall_s": round(run.wall_s, 2), "provenance": provenance("cpu", [__name__, *run.modules]),
        "source": data.source, "embedded_default": data.embedded_default, "synthetic": data.synthetic,
    })  # fmt: skip
    book.append(row)
    return row


@dataclass
class Readings:
    """Rows of a scale; `at` is the notebook's."""

    scale: str
    rows: list[Row]
    at: str

    @property
    def facts(self) -> dict[str, Any]:
        factors = [variant["factor"] for variant in READINGS.variants[self.scale]]
        return {
            "scale": self.scale, "at": self.at, "rows": self.rows, "data": self.rows[0]["source"],
            "n": f"{len(SEEDS[self.scale])} seeds, factors {', '.join(f'{f:g}' for f in factors)}",
            "notebook": READINGS.notebook, "command": f"mtl run readings --scale {self.scale}",
            "config": {"factors": factors, "budget": asdict(BUDGET[_data(self.scale)])},
        }  # fmt: skip

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A line per combination and seed: score at factor 1, its largest fall, the player's share at factor 1."""
        lines = [{**row["config"], **row["metrics"]} for row in self.rows if row["status"] == "ok"]
        table, by = pd.DataFrame(lines), ["base", "payoff", "merge", "seed"]
        wide = table.pivot(index=by, columns="factor", values="score").dropna()
        share = table[table["factor"] == 1.0].set_index(by)["share"]
        fall = wide[1.0] - wide.drop(columns=1.0).min(axis=1)
        return pd.DataFrame({"score": wide[1.0], "fall": fall, "share": share}).dropna().reset_index()

    @property
    def table(self) -> pd.DataFrame:
        """Mean over seeds of the fall by payoff (lines) and base and merge (columns)."""
        fall = self.frame.groupby(["payoff", "base", "merge"])["fall"].mean()
        lines = [ALONE, *PAYOFFS]
        table = pd.DataFrame(index=pd.Index(lines, name="payoff"))
        for base, merge in itertools.product(BASES, MERGES):
            table[f"{base}, {merge.replace('_', ' ')}"] = [fall.get((payoff, base, merge), np.nan) for payoff in lines]
        said = (
            "EXPLORATORY: largest fall of the mean test AUC of two tasks at any other factor of the first loss, mean "
            "over seeds (–: not run at this scale), by payoff of the player (lines), base and merge (columns)"
        )
        shown = table.dropna(axis=0, how="all").dropna(axis=1, how="all")
        return captioned(shown, said, wide=True, digits=4)

    @cached_property
    def effects(self) -> pd.DataFrame:
        """For each of the three choices, the mean fall over all combinations by its value, and the range of these."""
        own = self.frame[self.frame["payoff"] != ALONE]
        lines = []
        for name in ("payoff", "merge", "base"):
            means = own.groupby(name)["fall"].mean().sort_values()
            each = ", ".join(f"{str(value).replace('_', ' ')} {mean:.4f}" for value, mean in means.items())
            lines.append({"choice": name, "mean fall by value": each, "range": float(means.max() - means.min())})
        said = (
            "EXPLORATORY: mean fall over all combinations by the value of each choice; the largest range matters most"
        )
        return captioned(pd.DataFrame(lines).sort_values("range", ascending=False, ignore_index=True), said, digits=4)

    def answer(self) -> str:
        """What makes EMTL scale-robust, as far as the rows of this scale say it."""
        own = self.frame[self.frame["payoff"] != ALONE]
        fall = own.groupby(["payoff", "merge", "base"])["fall"].mean().sort_values()
        share = own.groupby("base")["share"].mean()
        names = [", ".join(map(str, one)).replace("_", " ") for one in (fall.index[0], fall.index[-1])]
        said = f"Smallest fall: {names[0]} ({fall.iloc[0]:+.4f}); largest: {names[1]} ({fall.iloc[-1]:+.4f}).\n"
        if self.scale in ("study", "paper"):
            first, last = self.effects.iloc[0], self.effects.iloc[-1]
            said += (
                f"It is the {first['choice']} that decides (range {first['range']:.4f}), the {last['choice']} least "
            )
            said += f"({last['range']:.4f}).\n"
        each = ", ".join(f"{base} {value:.2f}" for base, value in share.items())
        return f"{said}The player's share of the weights, mean over steps at factor 1: {each}."
