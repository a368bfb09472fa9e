"""The pre-registered study of variance and generalisation gap (notebook 08): its tests, pictures and verdicts.

Shown are the published rows and a small replicate made here.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mtl.experiments.gap import figures, hypotheses, rates
from mtl.experiments.gap.data import CONDITIONS, available
from mtl.experiments.gap.runs import ARMS, LEVELS, METHODS, recorded, strata
from mtl.experiments.gap.runs import study as run_all
from mtl.experiments.study import judged
from mtl.experiments.theory_claims import gap_claims
from mtl.ledger import Row, ledger
from mtl.methods.base import whole
from mtl.report import Table, captioned
from mtl.report.claims import Finding
from mtl.scales import known_scale

SENTENCES = ("gap-observational", "gap-causal", "emtl-lowers-variance")


@dataclass
class GapStudy:
    """`rows`: the registered design; `fresh`: strata run here; `primary`, `arms`, `methods`: tables of its tests."""

    facts: dict[str, Any]
    rows: list[Row]
    fresh: list[Row]
    tests: dict[str, hypotheses.Result]
    primary: pd.DataFrame
    arms: pd.DataFrame
    methods: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """The registered tests as printed."""
        columns = ["estimate", "low", "high", "holm", "verdict", "manipulation", "strata", "lost"]
        said = (
            "Pre-registered tests. Observational: mean Spearman correlation with the gap over methods. Causal: change "
            "of the gap as a share of the base gap; manipulation: penalised over base variance. 95 % intervals; lost: "
            "runs that did not cross the level"
        )
        return captioned(self.primary[columns].rename(columns={"holm": "p (Holm)"}), said, wide=True, digits=4)

    def anew(self) -> pd.DataFrame:
        """The registered tests, and the same on rows of another processor; it decides nothing."""
        columns, rows = ["estimate", "low", "high", "verdict"], recorded("paper", ledger("gap_anew"))
        again = hypotheses.primary(hypotheses.registered(rows, draws=20 if self.facts["scale"] == "smoke" else 2_000))
        said = (
            "The four registered tests as they stand, and after all strata were made anew on another processor, where "
            "hardly a digit of a run stays the same; this decides nothing"
        )
        table = self.primary[columns].join(again[columns].add_suffix(", anew"))
        return captioned(table, said, rows=[*self.rows, *rows], n=f"{len(rows)} strata, twice", digits=3)

    def figure(self, part: str) -> Figure:
        """ "scatter", "forest", "doses" or "variances"."""
        if part == "scatter":
            return figures.scatter(self.rows)
        if part == "forest":
            return figures.forest(self.primary, self.tests)
        return figures.intervention(self.rows, self.arms) if part == "doses" else figures.variances(self.methods)

    def secondary(self) -> pd.DataFrame:
        return figures.secondary(self.rows, draws=20 if self.facts["scale"] == "smoke" else 500)

    def verdicts(self) -> Table:
        said = "What the text says of variance and generalisation, and what the registered tests say"
        return judged(SENTENCES, caption=said, wide=True)

    def findings(self) -> list[Finding]:
        """The registered tests, EMTL against its own base by reading, and equal rates, by paper/decision_rule.md."""
        explored = str(hypotheses.averaged(self.rows))
        *found, lowers = gap_claims(self.primary, *figures.own_base(self.rows), self.arms, explored)
        more = rates.published(ledger("gap"))
        return [*found, rates.lowered(more, lowers), *rates.equitable(more)]

    def at_hand(self) -> str:
        """Which data are at hand, how much of the design is in the ledger, and what the fresh strata say."""
        minutes = sum(row["wall_s"] for row in self.rows) / 60
        rank = hypotheses.observational(self.fresh, "rrv", draws=20, permutations=20).value
        effect = hypotheses.causal(self.fresh, "rrv .1", draws=20, flips=20).value
        return (
            f"Data at hand: {', '.join(available())}. Registered design: {len(self.rows)} of "
            f"{len(strata('paper', CONDITIONS))} strata in the ledger, {minutes:.0f} minutes of one core.\n"
            f"Run here: {len(self.fresh)} strata; correlation of RRV and gap {rank:+.2f}, effect of the RRV penalty on "
            f"the gap {100 * effect:+.1f} %. No test at this size."
        )

    def answer(self) -> str:
        said = [f"A smaller relative-rate variance goes with a smaller gap: {self.findings()[0].word}."]
        for name, line in self.primary.iterrows():
            said.append(f"{name}: {line.estimate:+.3f} [{line.low:+.3f}, {line.high:+.3f}], {line.verdict}")
        said.append(f"Not registered: H1 {hypotheses.averaged(self.rows)}.")
        return "\n".join(said)


def study(scale: str, draws: int = 30) -> GapStudy:
    """The published rows, and the strata of `scale` on the data at hand, read from the ledger or run.

    `draws` bootstrap draws at scale smoke; elsewhere the registered 2,000.
    """
    book, smoke, draws = ledger("gap"), known_scale(scale) == "smoke", whole("draws", draws, 1)
    fresh, rows = run_all(scale, available(), book), recorded("paper", book)
    tests = hypotheses.registered(rows, draws=draws if smoke else 2_000)
    runs = sum(len(row["config"]["units"]) * row["config"]["seeds"] for row in rows)
    facts: dict[str, Any] = {
        "scale": "smoke" if smoke else "paper",
        "data": "digits, digits with label noise, Census-Income, QM9",
        "n": f"{runs:,} runs in {len(rows)} strata",
        "rows": rows,
        "notebook": "08_theory_gap",
        "config": {"levels": list(LEVELS), "units": list(METHODS), "arms": ARMS},
    }
    primary, arms = hypotheses.primary(tests), figures.doses(rows, draws=300)
    return GapStudy(facts, rows, fresh, tests, primary, arms, figures.by_method(rows))
