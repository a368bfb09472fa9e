"""What a notebook shows of an experiment: its tables and pictures, and what is said of each where it is saved."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from mtl import report
from mtl.report.claims import claims as written

Claim = dict[str, str]


@dataclass
class Study:
    """An experiment at one scale, run; each kind adds its `table`, `figure()` and `verdicts()`.

    `facts`: scale, data, n, configuration ... of all that it shows, as `report.save_figure` and `save_table` take them.
    `notes`: of each part that is saved, the caption and what differs from `facts`.
    """

    facts: dict[str, Any]
    notes: dict[str, dict[str, Any]]

    def about(self, part: str) -> dict[str, Any]:
        """What goes with a figure or table into its file.

        >>> Study({"scale": "smoke", "n": 1}, {"a": {"caption": "One.", "n": 2}}).about("a")
        {'scale': 'smoke', 'n': 2, 'caption': 'One.'}
        """
        if part not in self.notes:
            raise ValueError(f"part: one of {', '.join(self.notes)}, found {part!r}")
        return self.facts | self.notes[part]

    def readable(self, claims: pd.DataFrame) -> Styler:
        """A table of sentences with its cells unabridged, the same HTML every time."""
        look: Any = {"text-align": "left", "white-space": "normal"}
        return claims.style.set_properties(**look).hide(axis="index").set_uuid("claims")


def judged(claims: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Report each verdict with its tests and figure of paper/claims.yml (or its own figure); a line per claim.

    >>> judged([{"claim": "emtl-player", "verdict": "reproduced", "evidence": "..."}])["figure"].item()
    '07_theory_player'
    """
    known = {claim["id"]: claim for claim in written()}
    rows = []
    for claim in claims:
        about = known[claim["claim"]]
        tests = ", ".join(about["tests"]).replace("_", " ")
        rows.append(report.verdict(**{"figure": about["figure"], **claim}) | {"test": tests})
    return pd.DataFrame(rows)[["claim", "test", "verdict", "figure", "evidence"]]
