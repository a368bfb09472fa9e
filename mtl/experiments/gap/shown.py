"""The gap study as notebook 08 shows it: the published rows, a small replicate made here, tests, pictures, verdicts."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mtl.experiments.gap import figures, hypotheses
from mtl.experiments.gap.data import CONDITIONS, available
from mtl.experiments.gap.runs import ARMS, LEVELS, METHODS, recorded, strata
from mtl.experiments.gap.runs import study as run_all
from mtl.experiments.study import Study, judged
from mtl.experiments.theory_claims import gap_claims
from mtl.ledger import Row, ledger


@dataclass
class GapStudy(Study):
    """`rows`: the registered design; `fresh`: strata run here; `primary`, `arms`, `methods`: tables of its tests."""

    rows: list[Row]
    fresh: list[Row]
    draws: int
    tests: dict[str, hypotheses.Result]
    primary: pd.DataFrame
    arms: pd.DataFrame
    methods: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """The registered tests as printed."""
        columns = ["estimate", "low", "high", "holm", "verdict", "manipulation", "strata", "lost"]
        return self.primary[columns].rename(columns={"holm": "p (Holm)"})

    def figure(self, part: str) -> Figure:
        """ "scatter", "forest", "doses" or "variances"."""
        if part == "scatter":
            return figures.scatter(self.rows)
        if part == "forest":
            return figures.forest(self.primary, self.tests)
        return figures.intervention(self.rows, self.arms) if part == "doses" else figures.variances(self.methods)

    def secondary(self) -> pd.DataFrame:
        return figures.secondary(self.rows, draws=self.draws)

    def verdicts(self) -> pd.DataFrame:
        return judged(gap_claims(self.primary, self.methods, self.arms))

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
        said = [f"A smaller relative-rate variance gives a smaller gap: {hypotheses.conclusion(self.primary)}."]
        for name, line in self.primary.iterrows():
            said.append(f"{name}: {line.estimate:+.3f} [{line.low:+.3f}, {line.high:+.3f}], {line.verdict}")
        return "\n".join(said)


def study(scale: str, draws: int = 300) -> GapStudy:
    """The published rows, and the strata of `scale` on the data at hand, read from the ledger or run.

    `draws` bootstrap draws at scale smoke; elsewhere the registered 2,000.
    """
    book, smoke = ledger("gap"), scale == "smoke"
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
    said = {
        "scatter": "Normalised variance of relative rates (RRV) and gap. Left: all runs, colour is the level q of the "
        "training loss. Right: mean rank per method (one point each) at the primary level, Spearman correlation of "
        "these points in brackets",
        "primary": "Pre-registered tests. Observational: mean Spearman correlation with the gap over methods. Causal: "
        "change of the gap as a share of the base gap; manipulation: penalised over base variance. 95 % intervals; "
        "lost: runs that did not cross the level",
        "forest": "Registered estimates (black, 95 %) and by data condition (98.75 %): correlation of variance and gap "
        "across methods, and effect of a variance penalty on the gap. CV: variance of the losses",
        "doses": "Penalties: what they did to the variances (left) and to the gap (right; dots are strata, squares "
        "means with 95 % intervals). L2 is the positive control",
        "methods": "Methods at equal training loss: RRV over that of equal weights (geometric mean) and change of the "
        "gap against equal weights, mean with the half width of a 95 % interval over (condition, seed). Descriptive",
        "secondary": "The four estimates at other levels and in parts of the design; descriptive, not corrected for "
        "multiplicity",
        "variances": "Methods at equal training loss: variance of relative rates over that of equal weights, and "
        "change of the gap (95 % intervals); EMTL and BanditMTL by rho. Descriptive",
        "claims": "What the text says of variance and generalisation, and what the registered tests say",
    }
    notes: dict[str, dict[str, Any]] = {part: {"caption": text} for part, text in said.items()}
    notes["primary"] |= {"wide": True, "digits": 4}
    notes["methods"]["digits"] = 2
    notes["secondary"]["wide"] = notes["claims"]["wide"] = True
    notes["variances"]["width"] = "column"
    primary, arms = hypotheses.primary(tests), figures.doses(rows, draws=300)
    return GapStudy(facts, notes, rows, fresh, 100 if smoke else 500, tests, primary, arms, figures.by_method(rows))
