"""The causal test once more: the registered second dose, on seeds that the registered study did not have.

The registered first dose did not halve the variance, so that its test could not decide (paper/decision_rule.md).
"""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast

import pandas as pd
from matplotlib.figure import Figure

from mtl.experiments.gap import figures, hypotheses, runs
from mtl.experiments.gap.data import CONDITIONS, condition
from mtl.experiments.once import once
from mtl.experiments.theory_claims import causal_claim, gap_gate
from mtl.ledger import Ledger, Row, ledger
from mtl.report import captioned
from mtl.report.claims import Finding
from mtl.scales import known_scale

ARM, SEEN = "rrv 1", 12  # its penalty; how many seeds the registered study has, which are left out
SEEDS = {"smoke": 14, "quick": 16, "study": 36, "paper": 36}  # of which the first `SEEN` are only run along


@dataclass(frozen=True)
class Dose:
    """Rows of the fresh seeds alone, and what is shown of them."""

    scale: str
    rows: list[Row]
    at: str = ""  # the scale of the notebook, where the rows are published ones of another

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "rows": self.rows, "scale": self.scale, "at": self.at or self.scale, "notebook": "08_theory_gap",
            "data": ", ".join(dict.fromkeys(row["config"]["condition"] for row in self.rows)),
            "config": {"arms": runs.ARMS},
            "n": f"{SEEDS[self.scale] - SEEN} fresh seeds in {len(self.rows)} strata",
            "command": f"mtl run gap_dose --scale {self.scale}",
        }  # fmt: skip

    @cached_property
    def table(self) -> pd.DataFrame:
        """Each arm: what it did to the variances, and to the gap."""
        said = (
            "Fresh seeds: each penalty's variance of relative rates (RRV) and of losses (CV) over the base's, "
            "geometric mean; change of the gap as a share of the base gap at equal training loss, 95 % interval over "
            "seeds. rrv, cv: that weight on one of these variances; l2: on the squared norm, the positive control"
        )
        return captioned(figures.doses(self.rows, draws=2_000).drop(columns="p"), said)

    def figure(self) -> Figure:
        """What each arm did to the variance, and what became of the gap."""
        return figures.intervention(self.rows, self.table)

    def finding(self, draws: int = 2_000) -> Finding:
        """`gap-causal` by paper/decision_rule.md, with what the registered rule says of one hypothesis beside it."""
        found = hypotheses.causal(self.rows, ARM, "rrv", draws=draws)
        controls = {arm: hypotheses.causal(self.rows, arm, draws=draws) for arm in hypotheses.CONTROLS.values()}
        works = hypotheses.working(controls)
        gate = gap_gate(max(one.dropped for one in (found, *controls.values())), len(works))
        word = hypotheses.causal_rule(found, found.p, bool(works))
        said = f"fresh seeds, ten times the dose; by the registered rule: {word} (p {found.p:.1g})"
        change = found.value, found.low, found.high
        one = causal_claim(change, found.manipulation, found.strata - found.not_evaluable, gate, said)
        return replace(one, scale=self.scale, rows=tuple(row["key"] for row in self.rows))


def design(scale: str) -> list[runs.Stratum]:
    """The registered causal strata with more seeds; at smaller scales the digits alone."""
    seeds = SEEDS[known_scale(scale, SEEDS)]
    if scale not in ("study", "paper"):
        return [runs.Stratum("causal", "digits", "shared-bottom", True, 100, seeds, 90 if scale == "smoke" else 240)]
    return [
        runs.Stratum("causal", c, arch, full, 100, seeds)
        for c in CONDITIONS for arch in runs.WIDTH for full in (True, False)
    ]  # fmt: skip


def study(scale: str, book: Ledger | None = None) -> Dose:
    """Every stratum, read from the ledger where it has been run, else run and appended; resumable."""
    rows, book = [], book or ledger("gap")
    for cell in design(scale):
        data, config = condition(cell.condition), {**cell.design, "device": "cpu"}
        made = partial(runs.run, cell, "cpu", data)
        rows.append(once(book, config, data.fingerprint, made, [runs.__name__], source=data.source))
    return Dose(scale, [*map(_fresh, rows)])


def published(at: str) -> Dose | None:
    """The rows of scale study that the repository brings along; None where one is missing. `at`: the notebook's."""
    there, wanted = ledger("gap").published(), [cell.design for cell in design("study")]
    rows = [_fresh(row) for one in wanted for row in there if one.items() <= row["config"].items()]
    return Dose("study", rows, at) if len(rows) == len(wanted) else None


def _fresh(row: Row) -> Row:
    """The row without the seeds of the registered study."""
    kept = {
        name: {level: table[SEEN:] for level, table in value.items()} if isinstance(value, dict) else value
        for name, value in row["metrics"].items()
    }
    return cast(Row, {**row, "metrics": kept})
