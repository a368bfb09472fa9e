"""Table 1: the paper's own numbers, and what they and ours say."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from mtl.experiments.beside import differences, recount, reported, standing
from mtl.experiments.table1.grids import line, split_line
from mtl.report import captioned
from mtl.report.claims import (
    ASSAY,
    CONTRADICTED,
    POWER,
    REPRODUCED,
    UNTESTED,
    Check,
    Finding,
    Part,
    by_reading,
    checked,
    compare,
    decide,
    passed,
)  # fmt: skip
from mtl.report.stats import paired_permutation

COUNTRIES = ("paper NL", "paper ES", "paper FR", "paper US")


def printed() -> pd.DataFrame:
    """EMTL's Table 1 as printed: country, model, method, CTR AUC, CTCVR AUC, their average."""
    table = reported("emtl_table1")
    return table.assign(line=list(map(line, table["method"], table["model"])))


def paper_columns() -> pd.DataFrame:
    """The paper's average AUC per country for each of its lines, and where it stands."""
    wide = printed().pivot(index="line", columns="country", values="average").add_prefix("paper ")
    return wide.assign(source="EMTL Table 1")


def paper_steady() -> list[str]:
    """Lines other than EMTL's whose printed average is above the plain backbone's in all four countries."""
    wide = paper_columns().drop(columns="source").drop(index="stl")
    base = wide.loc[[f"ls ({line.partition(' (')[2]}" for line in wide.index]].to_numpy()
    steady = wide[(wide > base).all(axis=1)]
    return [line for line in map(str, steady.index) if not line.startswith("emtl")]


def paper_says() -> pd.DataFrame:
    """What section 5.2 says of Table 1, counted in the printed table itself."""
    table = printed()
    emtl, others = table[table["method"] == "emtl"], table[table["method"] != "emtl"]
    metrics = ["ctr_auc", "ctcvr_auc", "average"]
    best, rival = (part.groupby("country")[metrics].max() for part in (emtl, others))
    stl = table[table["method"] == "stl"].set_index("country")[metrics]
    gain = emtl.set_index("country")[metrics] - stl.loc[emtl["country"]].to_numpy()
    wide = table[table["method"] != "stl"].pivot(index=["model", "method"], columns="country", values="average")
    first = wide.groupby("model").idxmax().map(lambda found: found[1] == "emtl").to_numpy()
    steady = paper_steady()
    loss = reported("aliexpress")
    ratio = float((loss["ctr_logloss"] / loss["ctcvr_logloss"]).mean())
    off = (table["average"] - (table["ctr_auc"] + table["ctcvr_auc"]) / 2).abs()
    worst = table.iloc[int(off.to_numpy().argmax())]
    us = table[table["country"] == "US"].set_index("line")[metrics]
    lift = us.loc["emtl (MMoE)"] - us.loc["ls (MMoE)"]
    return captioned(recount([
        ("EMTL above STL on all metrics", f"{int((gain > 0).to_numpy().sum())} of {gain.size} differences"),
        ("EMTL best on 11 of 12 metrics", f"{int((best > rival).to_numpy().sum())} alone, "
         f"{int((best == rival).to_numpy().sum())} tied"),
        ("EMTL lifts MMoE by over .01 in CTCVR and average, US", f"{lift['ctcvr_auc']:.4f} and {lift['average']:.4f}"),
        ("EMTL best average per backbone and country", f"{int(first.sum())} of {first.size}"),
        ("no other method lifts its backbone in every country", f"{len(steady)} do: {', '.join(steady)}"),
        ("CTR loss about 23 times CTCVR loss", f"{ratio:.1f} (log-losses of MTReclib's README, mean)"),
        ("averages (not a sentence)", f"printed and own cells differ by up to {off.max():.5f} "
         f"({worst['line']}, {worst['country']}: {worst['average']})"),
    ]), "Sentences of EMTL's section 5.2, recounted in its printed Table 1")  # fmt: skip


def _means(frame: pd.DataFrame) -> "dict[str, pd.Series[float]]":
    """Per backbone the mean score of its lines, without STL, A/A rows and EMTL's other readings."""
    mean = frame.groupby("line", sort=False)["score"].mean().drop("stl")
    named = {str(name): split_line(str(name)) for name in mean.index}
    mean = mean[[not label.endswith(" A/A") and label not in READINGS[1:] for label, _ in named.values()]]
    backbones = [named[str(name)][1] for name in mean.index]
    return {name: mean[[own == name for own in backbones]] for name in dict.fromkeys(backbones)}


def places(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Per data set and backbone the best line, EMTL's place, its distance to the best other line of its backbone, and
    the p of the paired test against that one."""
    out = []
    for data, frame in frames.items():
        for backbone, mean in _means(frame).items():
            own = f"emtl ({backbone})"
            place, of, rival = standing(mean, own, higher=True)
            best, _ = split_line(own if place == 1 else rival)
            found = {"data": data, "backbone": backbone, "best": best, "EMTL's place": place, "of": of}
            found["EMTL - best other"] = float(mean[own] - mean[rival])
            gap = differences(frame, "score", own, rival, by="line")
            out.append(found | {"p": paired_permutation(gap, 0 * gap, generator=np.random.default_rng(0)).p})
    return pd.DataFrame(out)


RIVALS = ("ls", "mgda", "nash", "imtl-g", "uw", "bandit", "bandit (balanced)")  # of EMTL's Table 1, on its backbone
READINGS = ("emtl", "emtl (raw)", "emtl (frozen norm)", "emtl (product)")  # the first is the literal one
D = 0.001  # its text: the third decimal is significant; half of its median lead over the best other is .0008
Parts = Callable[[Mapping[str, pd.DataFrame]], list[Part]]
LOGIN = "AliExpress (NL, ES, FR, US) is not tested: login"


def findings(
    frames: Mapping[str, pd.DataFrame], gates: Mapping[str, Callable[[Sequence[str], Sequence[str]], list[Check]]],
    appendix: Mapping[str, pd.DataFrame] = MappingProxyType({}), **facts: Any,
) -> list[Finding]:  # fmt: skip
    """Sentences of section 5.2 by paper/decision_rule.md, on a frame of lines for each data set; `appendix`: task sets
    of the same rows, which decide nothing. `gates`: per data set, from metrics and named lines to its checks; for each
    sentence the data sets that pass decide."""

    def checks(data: str, own: str, metrics: Sequence[str]) -> list[Check]:
        named = ["stl", *(f"{label} ({b})" for label in dict.fromkeys(["ls", own]) for b in _means(frames[data]))]
        found = gates[data](metrics, [name for name in named if name in set(frames[data]["line"])])
        return [replace(one, name=f"{data}: {one.name}") if len(gates) > 1 else one for one in found]

    def decided(
        claim: str, own: str, made: Parts, beside: Sequence[Part], labels: Sequence[str], tasks: bool
    ) -> tuple[Finding, int]:
        """From the parts of the data sets that pass, and how many do."""
        gate = {data: checks(data, own, _aucs(frames[data]) if tasks else ["score"]) for data in frames}
        kept = {data: frames[data] for data in frames if passed(gate[data])} or dict(frames)
        said = [LOGIN if len(kept) > 1 else f"a second data set is needed; {LOGIN}"]
        said += [f"left out, {one.name}: {one.said}" for data in frames if data not in kept for one in gate[data]
                 if not passed([one])]  # fmt: skip
        if len(kept) > 1:
            said.append("n = " + ", ".join(f"{frame['seed'].nunique()} ({data})" for data, frame in kept.items()))
        lacking = [x for data, frame in kept.items() for x in _lacking(data, frame, labels, tasks)]
        own_gate = [check for data in kept for check in gate[data]]
        found = decide(claim, "best", made(kept), gate=own_gate, missing=lacking, beside=tuple(beside),
                       said="; ".join(said), **facts)  # fmt: skip
        return found, len(kept)

    def best(own: str) -> Finding:
        made = partial(_leads, own=own)
        return _whole(*decided("emtl-table1-best", own, made, made(appendix), [own, *RIVALS], tasks=False))

    def stl(own: str) -> Finding:
        made = partial(_over_stl, own=own)
        return _whole(*decided("emtl-table1-stl", own, made, made(appendix), [own, "stl"], tasks=True))

    there = {split_line(str(name))[0] for frame in frames.values() for name in frame["line"]}
    above = f"in all four countries above the plain backbone: {', '.join(paper_steady())}"
    own = checked("its own Table 1", not paper_steady(), above)
    return [
        *(by_reading([(r, make(r)) for r in READINGS if r in there]) for make in (best, stl)),
        _steadied(decided("emtl-table1-consistent", "ls", _steady, [own], RIVALS, tasks=False)[0]),
    ]


def _aucs(frame: pd.DataFrame) -> list[str]:
    return [name for name in map(str, frame.columns) if name.endswith("/auc")]


def _lacking(data: str, frame: pd.DataFrame, labels: Sequence[str], tasks: bool) -> list[str]:
    """Lines of these labels that have no result on a seed."""
    own = frame[[split_line(str(line))[0] in labels for line in frame["line"]]]
    bad = own[_aucs(frame) if tasks else ["score"]].isna().any(axis=1)
    return [f"{line} ({data})" for line in dict.fromkeys(own.loc[bad, "line"])]


def _whole(one: Finding, sets: int) -> Finding:
    """A sentence on every data set is not reproduced by one of them."""
    short = one.would == REPRODUCED and sets < 2
    return replace(one, would=UNTESTED, word=UNTESTED if one.word == REPRODUCED else one.word) if short else one


def _leads(frames: Mapping[str, pd.DataFrame], own: str = "emtl") -> list[Part]:
    pairs = [(data, b, r) for data, frame in frames.items() for b in _means(frame) for r in RIVALS]
    gaps = {
        f"{data}, {b}: {r}": differences(frames[data], "score", f"{own} ({b})", f"{r} ({b})", "line")
        for data, b, r in pairs
        if {f"{own} ({b})", f"{r} ({b})"} <= set(frames[data]["line"])
    }
    return [compare(name, gap, D, rivals=len(gaps)) for name, gap in gaps.items() if len(gap)]


def _over_stl(frames: Mapping[str, pd.DataFrame], own: str = "emtl") -> list[Part]:
    gaps = {
        f"{data}, {b}: {metric}": differences(frame, metric, f"{own} ({b})", "stl", "line")
        for data, frame in frames.items()
        for b in _means(frame)
        for metric in _aucs(frame)
        if f"{own} ({b})" in set(frame["line"])
    }
    return [compare(name, gap, D, rivals=len(gaps)) for name, gap in gaps.items() if len(gap)]


def _steady(frames: Mapping[str, pd.DataFrame]) -> list[Part]:
    """Per other method, LS ahead of it; a part is reproduced where a gain of d is excluded, contradicted where the
    method gains for sure."""
    lines = [(data, b, r) for data, frame in frames.items() for b in _means(frame) for r in RIVALS[1:]]
    lines = [(data, b, r) for data, b, r in lines if f"{r} ({b})" in set(frames[data]["line"])]
    parts: list[Part] = []
    for data, b, r in lines:
        lost = differences(frames[data], "score", f"ls ({b})", f"{r} ({b})", "line")
        if not len(lost):
            continue
        part, gain = compare(f"{data}, {b}: {r}", lost, D), compare(r, -lost, D, rivals=len(lines))
        excluded = part.low is not None and part.low > -D
        sure = gain.word == REPRODUCED and gain.wide is not None and gain.wide[0] > 0
        word = REPRODUCED if excluded else CONTRADICTED if sure else POWER
        parts.append(replace(part, word=word, wide=None, needed=part.needed if word == POWER else None))
    return parts


def _steadied(one: Finding) -> Finding:
    """The word of the whole: reproduced if for each method one data set excludes a gain, contradicted if one gains on
    all of at least two."""
    by_line: dict[str, list[str]] = {}
    for part in one.parts:
        by_line.setdefault(part.name.rpartition(", ")[2], []).append(part.word)
    gained = [own for own in by_line.values() if all(word == CONTRADICTED for word in own)]
    if gained:
        would = CONTRADICTED if any(len(own) > 1 for own in gained) else UNTESTED
    else:
        would = REPRODUCED if all(REPRODUCED in own for own in by_line.values()) else POWER
    return replace(one, would=would, word=would if one.word not in (ASSAY, UNTESTED) else one.word)
