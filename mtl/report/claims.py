"""The decision rule of paper/decision_rule.md as code: intervals and gates in, words out; one place for all tables."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mtl.report.findings import (
    ASSAY,
    CONTRADICTED,
    EQUAL,
    POWER,
    READING,
    REPRODUCED,
    SMALLER,
    UNTESTED,
    Check,
    Finding,
    Part,
    tally,
)  # fmt: skip

Kind = Literal["best", "count", "equal", "parts", "reading"]
Array = NDArray[np.float64]


def outcomes(value: ArrayLike, half: ArrayLike, d: ArrayLike) -> NDArray[Any]:
    """The word of each comparison with the interval value ± half and the smallest effect of interest d.

    >>> outcomes([2.0, 0.1, -2.0, 0.2, 1.0], [0.5, 0.5, 0.5, 0.7, 3.0], 1.0).tolist()[:3]
    ['reproduced', 'practically equal', 'contradicted']
    """
    v, h = np.asarray(value, float), np.asarray(half, float)
    return _outcomes(v, v - h, v + h, d)


def _outcomes(value: ArrayLike, low: ArrayLike, high: ArrayLike, d: ArrayLike) -> NDArray[Any]:
    v, a, b, e = np.broadcast_arrays(*(np.asarray(x, float) for x in (value, low, high, d)))
    conditions = [(a > -e) & (b < e), (a > 0) & (v >= e), b < 0, b < e]
    return np.select(conditions, [EQUAL, REPRODUCED, CONTRADICTED, SMALLER], POWER)


def conjunctions(value: ArrayLike, half: ArrayLike, wide: ArrayLike, d: ArrayLike) -> NDArray[Any]:
    """The word of "better than every one" over the last axis; `wide` is half the Bonferroni-t interval."""
    v, h, w, e = np.broadcast_arrays(*(np.asarray(x, float) for x in (value, half, wide, d)))
    each = outcomes(v, h, e)
    conditions = [
        (each == REPRODUCED).all(-1),
        (each == EQUAL).all(-1),
        ((v + w < 0) & (each != EQUAL)).any(-1),
        ((v - w > -e) & (v + w < e)).any(-1),
        (v + w < e).any(-1),
    ]
    return np.select(conditions, [REPRODUCED, EQUAL, CONTRADICTED, EQUAL, SMALLER], POWER)


def needed_n(sd: float, effect: float) -> int:
    """Smallest n >= 3 at which a two-sided paired t test at 5 % finds `effect` with a power of .8.

    >>> needed_n(1.0, 1.0), needed_n(2.56, 0.74)
    (10, 96)
    """
    if not (sd >= 0 and effect > 0):
        raise ValueError(f"sd, effect: needed are sd >= 0 and effect > 0, found {sd} and {effect}")
    n = max(3, math.floor(((1.96 + 0.84) * sd / effect) ** 2) - 2) if sd else 3
    while n < 100_000 and _power(n, sd, effect) < 0.8:
        n += 1
    return n


def _power(n: int, sd: float, effect: float) -> float:
    from scipy import stats  # half a second, which printing recorded words need not wait for

    t, shift = stats.t.ppf(0.975, n - 1), math.sqrt(n) * effect / sd if sd else math.inf
    return float(stats.nct.sf(t, n - 1, shift)) if shift < 30 else 1.0  # of the right sign; beyond, scipy gives nan


def compare(name: str, differences: ArrayLike, d: float, rivals: int = 1) -> Part:
    """The part for paired differences over seeds, signed so that positive favours the sentence.

    `rivals`: of how many simultaneous intervals this is one. Raises ValueError for no or unfinished differences.

    >>> part = compare("against Nash-MTL", [1.9, 2.0, 2.1, 2.0], d=1.0)
    >>> part.word, round(part.low, 2)
    ('reproduced', 1.87)
    """
    x = np.asarray(differences, float)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"differences: a vector of finite numbers for {name}, found {x.tolist()}")
    if not d > 0:
        raise ValueError(f"d: the smallest effect of interest must be > 0 for {name}, found {d}")
    n, value = x.size, float(x.mean())
    if n < 3:
        seeds = ", ".join(f"{v:+.4g}" for v in x)
        return Part(name, POWER, value, d=d, n=n, needed=3, said=f"no interval for n < 3; the seeds: {seeds}")
    sd = float(x.std(ddof=1))
    from scipy import stats

    half, wide = (float(stats.t.ppf(1 - a / 2, n - 1) * sd / math.sqrt(n)) for a in (0.05, 0.05 / rivals))
    word = str(outcomes(value, half, d))
    more = max(n + 1, needed_n(sd, 2 * d)) if word == POWER else None
    return Part(name, word, value, value - half, value + half, d, n, more, wide=(value - wide, value + wide))


def bounded(name: str, value: float, low: float, high: float, d: float, n: int) -> Part:
    """The part for an interval that was found otherwise (by bootstrap), as a sentence in one direction."""
    return Part(name, str(_outcomes(value, low, high, d)), value, low, high, d, n)


def checked(name: str, holds: bool | None, said: str) -> Part:
    """The part for a check of its own: it holds or does not; None where it cannot be judged."""
    return Part(name, UNTESTED if holds is None else REPRODUCED if holds else CONTRADICTED, said=said)


def decide(
    claim: str,
    kind: Kind,
    parts: Sequence[Part],
    *,
    gate: Sequence[Check] = (),
    needed: int = 0,
    declared: int = 0,
    missing: Iterable[str] = (),
    **facts: Any,
) -> Finding:
    """The word of a sentence from its parts.

    `kind`: "best" (and "every") a conjunction over rivals, "count" at least `needed` parts, "equal" an equality
    sentence, "parts" a word for each, "reading" one part per reading. `missing` rivals and fewer than `declared` seeds
    leave it not tested; a gate that is not passed makes it inconclusive (assay), `would` keeps the word of the numbers.
    """
    if not parts:
        raise ValueError(f"parts: {claim} needs at least one, found none")
    if kind == "equal":
        parts = [replace(part, word=_equality(part)) for part in parts]
    would = _word(kind, parts, needed)
    n = min((part.n for part in parts if part.n), default=0)  # a check of its own has none
    said = [facts.pop("said", "")]
    word = would
    if lacking := list(missing):
        word = UNTESTED
        said.append(f"waits for {', '.join(lacking)}")
    if n < declared:
        word = UNTESTED
        said.append(f"{n} of {declared}, no verdict")
    if not passed(gate):
        word = ASSAY
    text = "; ".join(filter(None, said))
    return Finding(claim, word, would, tuple(parts), tuple(gate), said=text, n=n, **facts)


def passed(gate: Iterable[Check]) -> bool:
    """Whether a table may decide: what has not been run has not been passed, but for A/A rows."""
    return not any(not check.passed and (check.decides or check.passed is False) for check in gate)


def _equality(part: Part) -> str:
    if part.low is None or part.high is None or part.d is None:
        return part.word
    outside = part.low >= part.d or part.high <= -part.d
    return REPRODUCED if part.word == EQUAL else CONTRADICTED if outside else POWER


def _word(kind: Kind, parts: Sequence[Part], needed: int) -> str:
    words = [part.word for part in parts]
    if kind == "best" and all(part.wide is not None for part in parts):
        value, half, wide, d = np.array([
            (p.value, p.high - p.value, p.wide[1] - p.value, p.d) for p in parts  # type: ignore[operator,index]
        ]).T  # fmt: skip
        return str(conjunctions(value, half, wide, d))
    if kind == "best":  # checks, or too few seeds for an interval
        return next((w for w in (CONTRADICTED, POWER, UNTESTED, SMALLER, EQUAL) if w in words), REPRODUCED)
    if kind == "count":
        hits, lost = words.count(REPRODUCED), sum(w in (CONTRADICTED, SMALLER, EQUAL) for w in words)
        return REPRODUCED if hits >= needed else CONTRADICTED if len(words) - lost < needed else POWER
    if len(set(words)) == 1:
        return words[0]
    return READING if kind == "reading" else tally(words)


def by_reading(found: Sequence[tuple[str, Finding]]) -> Finding:
    """The agreement of a sentence's readings (label, finding): the parts of the first, "EMTL" the literal one beside
    "EMTL (raw)", and the word of each."""
    (_, first), *others = found
    if not others:
        return first
    words = {name.partition(" (")[2].rstrip(")") or "literal": one for name, one in found}
    said = ", ".join(f"{name}: {one.would}" for name, one in words.items())
    said = f"{first.said}; {said}" if first.said else said
    beside = tuple(replace(p, name=f"{name}: {p.name}") for name, one in [*words.items()][1:] for p in one.parts)
    agreed = {field: {getattr(one, field) for one in words.values()} for field in ("would", "word")}
    would, word = (next(iter(found)) if len(found) == 1 else READING for found in agreed.values())
    missed = [replace(c, name=f"{name}: {c.name}") for name, one in [*words.items()][1:] for c in one.gate
              if not c.passed and c not in first.gate]  # fmt: skip
    if would != READING and ASSAY in agreed["word"]:  # they agree, as far as their gates let them
        word = ASSAY
    return replace(
        first, would=would, word=word, gate=(*first.gate, *missed), beside=(*first.beside, *beside), said=said
    )


def blind_check(
    runs: Mapping[str, Mapping[str, ArrayLike]],
    blind: Mapping[str, float] | None,
    higher: Mapping[str, bool],
    named: Sequence[str],
    metrics: Sequence[str] = (),
) -> tuple[Check, list[str]]:
    """Gate (a): are STL, LS and the rows `named` above the input-blind predictor, lower 95 % end, on each metric?

    `runs`: label -> metric -> values over seeds; `metrics`: those of the sentence, by default all. Also says which
    rows, named or not, have a mean at or below it on one of these, or runs that are so on every metric: collapsed.
    """
    if blind is None:
        return Check("above the input-blind predictor", None, "no input-blind row"), []
    fallen, marks = [f"{name} (no rows)" for name in named if name not in runs], []
    for label, own in runs.items():
        every = {m: (1.0 if higher[m] else -1.0) * (np.asarray(own[m], float) - blind[m]) for m in own}
        gains = {m: every[m] for m in metrics or every}
        under = [m for m, x in gains.items() if not _lower(x) > 0]
        collapsed = int((np.stack(list(every.values())) <= 0).all(0).sum())
        if collapsed or any(x.size and x.mean() <= 0 for x in gains.values()):
            marks.append(label + f" ({collapsed} of {len(every[next(iter(every))])} runs collapsed)" * bool(collapsed))
        if under and label in named:
            fallen.append(f"{label} ({', '.join(under)})")
    said = f"not above it with the whole interval: {'; '.join(fallen)}" if fallen else f"{len(named)} rows above it"
    return Check("above the input-blind predictor", not fallen, said), marks


def _lower(x: Array) -> float:
    if x.size < 3:
        return float(x.min()) if x.size else -math.inf  # no interval: every seed must be above
    from scipy import stats

    return float(x.mean() - stats.t.ppf(0.975, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))


def converged_check(moves: Mapping[str, float] | None, d: float) -> Check:
    """Gate (b): with doubled epochs every paired difference to LS moves by less than d; None where that was not run."""
    if not moves:
        return Check("converged", None, "epochs were not doubled")
    ordered = sorted(moves, key=lambda name: -math.inf if math.isnan(moves[name]) else -abs(moves[name]))
    past = [name for name in ordered if not abs(moves[name]) < d]
    said = ", ".join(f"{moves[name]:+.3g} ({name})" for name in past or ordered[:1])
    return Check("converged", not past, f"{'moves of d and more' if past else 'largest move'} {said}, d = {d:.3g}")


def same_check(pairs: Mapping[str, ArrayLike], d: float) -> Check:
    """A/A rows: another initialisation of the same method is not further away than d; said where there are none."""
    means = {name: float(np.mean(np.asarray(x, float))) for name, x in pairs.items()}
    if not means:
        return Check("A/A rows", None, "none in this table", decides=False)
    said = ", ".join(f"{name} {mean:+.3g}" for name, mean in means.items())
    return Check("A/A rows", all(abs(mean) <= d for mean in means.values()), f"{said}, d = {d:.3g}", decides=False)
