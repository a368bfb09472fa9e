"""The gap study's pre-registered tests: rows of `gap.study` in, verdicts by rule out (paper/preregistration.md)."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from mtl.experiments.gap.runs import LEVELS
from mtl.ledger import Row
from mtl.report.stats import holm

Array = NDArray[np.float64]
PRIMARY, FALLBACK, NEEDED = 0.5, (0.6, 0.7, 0.8), 0.9
SMALLEST_EFFECT, SMALLEST_CORRELATION = 0.05, 0.2


@dataclass(frozen=True)
class Table:
    """One stratum at its level: (S, U) arrays, NaN where a run did not cross; `level` is None if none serves."""

    row: Row
    level: float | None
    crossed: float

    @property
    def condition(self) -> str:
        return str(self.row["config"]["condition"])

    @property
    def units(self) -> list[str]:
        return list(self.row["config"]["units"])

    def values(self, name: str, level: float | None = None) -> Array:
        """A quantity at `level` (default: the stratum's primary one), (S, U)."""
        level = self.level if level is None else level
        return np.array(self.row["metrics"][name][f"{level:g}"], dtype=np.float64)


def tables(rows: Iterable[Row], kind: str, level: float | None = None) -> list[Table]:
    """Strata of one kind at `level` or at their primary level: .5, else the lowest of .6, .7, .8 that 90 % cross."""
    found = []
    for row in rows:
        if row["config"]["kind"] == kind:
            gaps = {q: np.array(row["metrics"]["gap"][f"{q:g}"], dtype=np.float64) for q in LEVELS}
            share = {q: float(np.isfinite(gap).mean()) for q, gap in gaps.items()}
            candidates = (PRIMARY, *FALLBACK) if level is None else (level,)
            chosen = next((q for q in candidates if share[q] >= NEEDED), None)
            found.append(Table(row, chosen, share[chosen or PRIMARY]))
    return found


def spearman(x: Array, y: Array) -> Array:
    """Spearman correlation along the last axis, over the places where both are finite; 0 where one is constant.

    >>> spearman(np.array([1.0, 2.0, 3.0, np.nan]), np.array([2.0, 4.0, 9.0, 1.0])).round(6)
    np.float64(1.0)
    """
    good = np.isfinite(x) & np.isfinite(y)
    return np.asarray((_scores(x, good) * _scores(y, good)).sum(-1))[()]


def _scores(x: Array, good: NDArray[np.bool_]) -> Array:
    """Ranks of x, centred and scaled to length 1; places that are not good are 0."""
    ranks = rankdata(np.where(good, x, np.inf), axis=-1)  # missing ones rank last and are then left out
    count = np.maximum(good.sum(-1, keepdims=True), 1)
    ranks = np.where(good, ranks - (ranks * good).sum(-1, keepdims=True) / count, 0.0)
    length = np.sqrt((ranks**2).sum(-1, keepdims=True))
    return np.asarray(ranks / np.where(length > 0, length, 1.0))


class Result(NamedTuple):
    """One primary test: estimate, 95 % interval, raw p, and what was lost."""

    value: float
    low: float
    high: float
    p: float
    by_condition: dict[str, tuple[float, float, float]]  # estimate, 98.75 % interval
    by_stratum: list[tuple[str, float]]  # condition, estimate
    strata: int
    not_evaluable: int
    dropped: float
    manipulation: float = float("nan")


def observational(
    rows: Iterable[Row],
    quantity: str,
    *,
    level: float | None = None,
    permutations: int = 10_000,
    draws: int = 2_000,
    seed: int = 0,
) -> Result:
    """H1 (`quantity` "rrv") or H3 ("cv"): mean Spearman correlation with the gap over methods, within (stratum, seed).

    p permutes the method labels jointly over all strata and seeds; the interval resamples methods and seeds.
    """
    every, used = _evaluable(rows, "observational", level)
    pairs = [(t.values(quantity), t.values("gap")) for t in used]
    rng = np.random.default_rng(seed)
    n_units = pairs[0][0].shape[1]
    # The statistic under a relabelling pi is sum_j C[pi(j), j]: no run has to be touched again.
    good = [np.isfinite(a) & np.isfinite(b) for a, b in pairs]
    scores = [(_scores(a, g), _scores(b, g)) for (a, b), g in zip(pairs, good, strict=True)]
    C = np.mean([np.einsum("si,sj->ij", a, b) / len(a) for a, b in scores], axis=0)
    value = float(np.trace(C))
    null = np.array([C[rng.permutation(n_units), np.arange(n_units)].sum() for _ in range(permutations)])
    sizes = [len(a) for a, _ in pairs]
    drawn = [(rng.integers(n_units, size=n_units), _seeds(rng, used, sizes)) for _ in range(draws)]
    units = np.array([one for one, _ in drawn])[:, None]
    boot = []
    for i, (a, b) in enumerate(pairs):
        seeds = np.array([chosen[i] for _, chosen in drawn])[:, :, None]
        boot.append(spearman(a[seeds, units], b[seeds, units]).mean(1))
    point = np.array([float((a * b).sum(-1).mean()) for a, b in scores])
    return _result(value, null, point, np.stack(boot, 1), every)


class Averaged(NamedTuple):
    """The exploratory answer: each method's ranks averaged over the seeds of a stratum before they are correlated."""

    value: float
    p: float
    by_condition: dict[str, float]
    pooled: dict[str, tuple[Array, Array]]  # per condition the methods' mean ranks, from 0 to 1, over all its strata

    def __str__(self) -> str:
        each = ", ".join(f"{name} {value:+.2f}" for name, value in self.by_condition.items())
        return f"exploratory, ranks averaged over seeds first: {self.value:+.2f} (p {self.p:.3f}; {each})"


def averaged(rows: Iterable[Row], quantity: str = "rrv", *, permutations: int = 10_000) -> Averaged:
    """As `observational`, but noise of single seeds is averaged away before a correlation is taken. Not registered.

    The registered statistic correlates within a seed, which such noise pulls towards 0. p permutes the methods' labels
    jointly over all strata. "static k" are weights drawn anew for each seed, no methods that could be averaged over
    seeds: they are left out.
    """
    _, used = _evaluable(rows, "observational", None)
    fixed = [i for i, unit in enumerate(used[0].units) if not unit.startswith("static")]
    means = [[_mean_ranks(t.values(name)[:, fixed]) for name in (quantity, "gap")] for t in used]
    scores = [[_scores(m, np.isfinite(m)) for m in pair] for pair in means]
    C = np.mean([np.outer(a, b) for a, b in scores], axis=0)
    units, rng, value = np.arange(len(C)), np.random.default_rng(0), float(np.trace(C))
    null = np.array([C[rng.permutation(units), units].sum() for _ in range(permutations)])
    p = (1 + int((np.abs(null) >= abs(value) - 1e-12).sum())) / (permutations + 1)
    names = [t.condition for t in used]
    by, pooled = {}, {}
    for c in dict.fromkeys(names):
        own = [i for i, name in enumerate(names) if name == c]
        by[c] = float(np.mean([scores[i][0] @ scores[i][1] for i in own]))
        x, y = (np.mean([means[i][k] for i in own], axis=0) for k in (0, 1))
        pooled[c] = (x, y)
    return Averaged(value, p, by, pooled)


def _mean_ranks(values: Array) -> Array:
    """Mean over seeds of each method's rank, from 0 to 1, (S, U) -> (U,); NaN counts in no seed."""
    good = np.isfinite(values)
    ranks = rankdata(np.where(good, values, np.inf), axis=-1) - 1
    share = np.where(good, ranks / np.maximum(good.sum(-1, keepdims=True) - 1, 1), np.nan)
    return np.asarray(np.nanmean(share, axis=0))


def causal(
    rows: Iterable[Row],
    arm: str,
    quantity: str | None = None,
    *,
    level: float | None = None,
    flips: int = 20_000,
    draws: int = 2_000,
    seed: int = 0,
) -> Result:
    """H2 ("rrv .1"), H4 ("cv .1") or a control arm: mean of (gap - base gap of the same seed) / mean base gap.

    p flips the signs of whole (condition, seed) clusters; `quantity` is what the arm must have lowered
    (`manipulation`: geometric mean of penalised over base).
    """
    every, used = _evaluable(rows, "causal", level)
    effects, ratios = [], []
    for t in used:
        gap, i, base = t.values("gap"), t.units.index(arm), t.units.index("base")
        effects.append((gap[:, i] - gap[:, base]) / np.nanmean(gap[:, base]))
        if quantity is not None:
            size = t.values(quantity)
            ratios.append(np.log(size[:, i] / size[:, base]))
    point = np.array([np.nanmean(e) for e in effects])
    value = float(point.mean())
    rng = np.random.default_rng(seed)
    clusters: dict[tuple[str, int], float] = defaultdict(float)
    for t, e in zip(used, effects, strict=True):
        for s in np.flatnonzero(np.isfinite(e)):
            clusters[t.condition, int(s)] += float(e[s] / (np.isfinite(e).sum() * len(used)))
    parts = np.array(list(clusters.values()))
    null = (rng.integers(0, 2, (flips, len(parts))) * 2 - 1) @ parts
    drawn = [_seeds(rng, used, [len(e) for e in effects]) for _ in range(draws)]
    boot = np.stack([np.nanmean(e[np.array([s[i] for s in drawn])], axis=1) for i, e in enumerate(effects)], 1)
    manipulation = float(np.exp(np.nanmean(np.concatenate(ratios)))) if ratios else float("nan")
    return _result(value, null, point, boot, every, manipulation)


def cluster_means(strata: Iterable[tuple[str, Array]]) -> Array:
    """Values by seed of each stratum, given with its condition: the mean over the strata of each (condition, seed)."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for condition, values in strata:
        for seed in np.flatnonzero(np.isfinite(values)):
            found[condition, int(seed)].append(float(values[seed]))
    return np.array([np.mean(own) for own in found.values()])


def _evaluable(rows: Iterable[Row], kind: str, level: float | None) -> tuple[list[Table], list[Table]]:
    """All strata of a kind, and those that have a level."""
    every = tables(rows, kind, level)
    used = [t for t in every if t.level is not None]
    if not used:
        raise ValueError(f"rows: no {kind} stratum is evaluable")
    return every, used


def _seeds(rng: np.random.Generator, used: list[Table], sizes: list[int]) -> list[NDArray[np.int64]]:
    """One resample of the seeds of each stratum; strata of one condition draw the same seeds."""
    drawn = {c: rng.random(64) for c in dict.fromkeys(t.condition for t in used)}
    return [(drawn[t.condition][:n] * n).astype(np.int64) for t, n in zip(used, sizes, strict=True)]


def _result(
    value: float, null: Array, point: Array, boot: Array, every: list[Table], manipulation: float = float("nan")
) -> Result:
    names = np.array([t.condition for t in every if t.level is not None])
    by = {}
    for c in dict.fromkeys(names.tolist()):
        columns = np.flatnonzero(names == c)
        low, high = np.nanquantile(boot[:, columns].mean(1), [0.00625, 0.99375])
        by[c] = (float(point[columns].mean()), float(low), float(high))
    low, high = np.nanquantile(boot.mean(1), [0.025, 0.975])
    p = (1 + int((np.abs(null) >= abs(value) - 1e-12).sum())) / (len(null) + 1)
    lost = float(np.mean([1 - t.crossed for t in every]))
    counts = len(every), len(every) - len(names)
    strata = list(zip(names.tolist(), point.tolist(), strict=True))
    return Result(value, float(low), float(high), p, by, strata, *counts, lost, manipulation)


def observational_rule(r: Result, p: float) -> str:
    """The verdict of H1 and H3 from the result and its Holm-adjusted p."""
    if p < 0.05 and r.value >= SMALLEST_CORRELATION and all(v[0] > 0 for v in r.by_condition.values()):
        return "supported"
    if p < 0.05 and r.value < 0:
        return "contradicted"
    bounds = r.by_condition.values()
    if any(v[1] > 0 for v in bounds) and any(v[2] < 0 for v in bounds):
        return "sign unstable"
    return "not supported"


def causal_rule(r: Result, p: float, control: bool) -> str:
    """The verdict of H2 and H4; `control` says whether the positive control lowered the gap."""
    if not control or not r.manipulation <= 0.5:
        return "inconclusive"
    if p < 0.05 and r.value <= -SMALLEST_EFFECT and all(v[0] < 0 for v in r.by_condition.values()):
        return "supported"
    if p < 0.05 and r.value > 0:
        return "contradicted"
    if r.low >= -SMALLEST_EFFECT and r.high <= SMALLEST_EFFECT:
        return "practically nil"
    return "not supported"


HYPOTHESES = {  # name: quantity, arm of the intervention
    "H1 observational, RRV": ("rrv", None),
    "H2 causal, RRV": ("rrv", "rrv .1"),
    "H3 observational, CV": ("cv", None),
    "H4 causal, CV": ("cv", "cv .1"),
}
CONTROLS = {f"control, {arm.replace('l2', 'L2')}": arm for arm in ("l2 .001", "l2 .01")}


def registered(rows: Sequence[Row], *, draws: int = 2_000) -> dict[str, Result]:
    """The four primary tests and the two positive controls, before any correction."""
    results = {
        name: observational(rows, quantity, draws=draws) if arm is None else causal(rows, arm, quantity, draws=draws)
        for name, (quantity, arm) in HYPOTHESES.items()
    }
    return results | {name: causal(rows, arm, draws=draws) for name, arm in CONTROLS.items()}


def _holm(results: Mapping[str, Result]) -> dict[str, float]:
    return dict(zip(results, map(float, holm([one.p for one in results.values()])), strict=True))


def working(controls: Mapping[str, Result]) -> list[str]:
    """The positive controls that lower the gap, Holm's correction over them all."""
    return [name for name, p in _holm(controls).items() if p < 0.05 and controls[name].value < 0]


def primary(results: Mapping[str, Result]) -> pd.DataFrame:
    """Holm's correction over the four hypotheses (and over the two controls) and the verdict of each by rule.

    Columns: hypothesis, estimate, low, high, p, holm, verdict, manipulation, strata, lost, and one per condition.
    """
    adjusted = _holm({name: results[name] for name in HYPOTHESES}) | _holm({name: results[name] for name in CONTROLS})
    works = working({name: results[name] for name in CONTROLS})
    lines = []
    for name, r in results.items():
        if name in CONTROLS:
            verdict = "works" if name in works else "fails"
        elif "observational" in name:
            verdict = observational_rule(r, adjusted[name])
        else:
            verdict = causal_rule(r, adjusted[name], bool(works))
        line: dict[str, Any] = {"hypothesis": name, "estimate": r.value, "low": r.low, "high": r.high, "p": r.p}
        line |= {"holm": adjusted[name], "verdict": verdict, "manipulation": r.manipulation}
        line |= {"strata": r.strata - r.not_evaluable, "lost": r.dropped}
        lines.append(line | {c: v[0] for c, v in r.by_condition.items()})
    return pd.DataFrame(lines).set_index("hypothesis")
