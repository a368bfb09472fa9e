"""What makes EMTL scale-robust? Its payoff, merge and base in every combination, the first loss times a factor.

Exploratory: no word comes of it (paper/decision_rule.md). Census with MMoE, two tasks.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Design:
    """Seeds, the factors in front of the first loss, and the combinations of a scale."""

    seeds: tuple[int, ...]
    factors: tuple[float, ...]
    kept: tuple[Combination, ...]


FEW = (("w L/|g|", "literal", "mgda"), ("L/|g|", "frozen_norm", "mgda"), ("L/|g|", "literal", "nash"))
DESIGNS = {
    "smoke": Design((10,), (0.01, 1.0), FEW[:1]),
    "quick": Design((10,), (0.01, 1.0), FEW),
    "study": Design((10, 11, 12), FACTORS, tuple(combinations())),
    "paper": Design((10, 11, 12), FACTORS, tuple(combinations())),
}


def made(one: Combination, n_tasks: int) -> Variant:
    """The method of a combination, with EMTL's alpha = .5, rho = .3 and eta = .5.

    >>> made(("L", "product", "ls"), 2).form
    'product'
    """
    payoff, merge, base = one
    if payoff == ALONE:
        return Variant(n_tasks, base=base, alpha=1.0)
    return Variant(n_tasks, payoff, base, combine=merge)  # type: ignore[arg-type]


def cells(scale: str) -> list[dict[str, Any]]:
    """The runs of a scale, seeds outermost: what a row's configuration says of its own."""
    if scale not in DESIGNS:
        raise ValueError(f"scale: must be one of {', '.join(DESIGNS)}, found {scale!r}")
    design = DESIGNS[scale]
    return [
        {"payoff": payoff, "merge": merge, "base": base, "factor": factor, "seed": seed}
        for seed, (payoff, merge, base), factor in itertools.product(design.seeds, design.kept, design.factors)
    ]


def study(scale: str, book: Ledger | None = None, deadline: float | None = None) -> "Readings":
    """The whole study where the ledger has it, else the runs of `scale`, resumable after each; none is started after
    `deadline` seconds."""
    book = book or ledger("readings")
    until = float("inf") if deadline is None else time.monotonic() + deadline
    if scale == "quick" and (rows := _there(book, "study")):
        return Readings("study", rows, scale)
    rows, wanted = [], cells(scale)
    data: dict[float, Problem] = {}
    known = {_own(row): row for row in book.latest().values() if row["config"].get("scale") == scale}
    for cell in wanted:
        if (row := known.get(_name(cell))) is None:
            if time.monotonic() >= until:
                continue
            factor = cell["factor"]
            data.setdefault(factor, problem("census_scaled", _data(scale), fallback="digits", factor=factor))
            row = _run(cell, scale, data[factor], book)
        rows.append(row)
    return Readings(scale, rows, scale)


def _there(book: Ledger, scale: str) -> list[Row]:
    known = {_own(row): row for row in book.latest().values() if row["config"].get("scale") == scale}
    found = [known[_name(cell)] for cell in cells(scale) if _name(cell) in known]
    return found if len(found) == len(cells(scale)) else []


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
        design = DESIGNS[self.scale]
        return {
            "scale": self.scale, "at": self.at, "rows": self.rows, "data": self.rows[0]["source"],
            "n": f"{len(design.seeds)} seeds, factors {', '.join(f'{f:g}' for f in design.factors)}",
            "notebook": "05_loss_scale", "command": f"mtl reproduce --notebooks 05_loss_scale --scale {self.scale}",
            "config": {"factors": design.factors, "budget": asdict(BUDGET[_data(self.scale)])},
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
