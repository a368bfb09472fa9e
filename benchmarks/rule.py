"""How often does the decision rule err? Simulated words under the null and under the printed effect.

`python -m benchmarks.rule` writes benchmarks/results/rule.json, paper/generated/rule_errors.* and figures/rule_power.*:
normal paired differences over n seeds, in units of d; the printed effect is 2d. Rivals share the method's own noise,
so that their differences correlate by .5.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mtl.files import atomic
from mtl.ledger import provenance
from mtl.report.claims import CONTRADICTED, EQUAL, POWER, REPRODUCED, SMALLER, conjunctions

RESULT = Path(__file__).parent / "results" / "rule.json"
SIZES, NOISE, RIVALS, TRUTHS = (3, 5, 10, 20), (0.5, 1.0, 2.0, 4.0), (1, 7, 12), (-2.0, 0.0, 1.0, 2.0)


def rates(truth: float, sd: float, *, n: int, rivals: int, draws: int = 20_000) -> dict[str, float]:
    """Share of each word for a true lead `truth` over every rival and seeds' SD `sd` of the difference, both in d."""
    rng = np.random.default_rng(0)
    own, other = rng.standard_normal((2, draws, n, rivals))
    x = truth + sd * (own[..., :1] + other) / np.sqrt(2.0)
    mean, error = x.mean(1), x.std(1, ddof=1) / np.sqrt(n)
    half, wide = (stats.t.ppf(1 - a / 2, n - 1) * error for a in (0.05, 0.05 / rivals))
    counts = Counter(conjunctions(mean, half, wide, 1.0).tolist())
    return {word: counts[word] / draws for word in (REPRODUCED, SMALLER, EQUAL, CONTRADICTED, POWER)}


def table(draws: int = 20_000) -> pd.DataFrame:
    """One line per number of rivals, n, noise and truth: the shares of the words."""
    lines = [
        {"rivals": k, "n": n, "SD / d": sd, "true lead / d": truth, **rates(truth, sd, n=n, rivals=k, draws=draws)}
        for k in RIVALS
        for n in SIZES
        for sd in NOISE
        for truth in TRUTHS
    ]
    return pd.DataFrame(lines)


def main() -> None:
    from mtl.report import captioned, plots, save_figure, save_table

    found, draws = table(), 20_000
    with atomic(RESULT) as part:
        said = {"command": "python -m benchmarks.rule", "draws": draws, "provenance": provenance()}
        part.write_text(json.dumps(said | {"rows": found.to_dict("records")}, indent=1) + "\n")
    facts: dict[str, Any] = {
        "data": "normal paired differences over seeds",
        "scale": "quick",
        "n": f"{draws:,} draws a line",
    }
    facts |= {"command": "python -m benchmarks.rule", "synthetic": True, "config": {"SD": NOISE, "n": SIZES}}
    kept = {"n": (5, 10), "true lead / d": (-2.0, 0.0, 2.0), "SD / d": (1, 2)}
    shown = found[np.all([found[name].isin(values) for name, values in kept.items()], axis=0)].reset_index(drop=True)
    said_table = "Words of the decision rule when the true lead over every rival is -2d, 0 or 2d (as printed)"
    save_table(captioned(shown, said_table), "rule_errors", caption=said_table, digits=3, wide=True, **facts)
    figure = plots.power_figure(found)
    said_figure = (
        "How often the rule says reproduced when the printed effect (2d) is true, by seeds, for four sizes of "
        "the spread of paired differences; dotted: .8, the power asked for"
    )
    save_figure(figure, "rule_power", caption=said_figure, **facts)


if __name__ == "__main__":
    main()
