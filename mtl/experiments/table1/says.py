"""Table 1: the paper's own numbers, and what they and ours say."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pandas as pd

from mtl.experiments.beside import differences, recount, reported, standing
from mtl.experiments.table1.grids import line, split_line
from mtl.report import captioned
from mtl.report.claims import (
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
            out.append(found | {"p": paired_permutation(gap, 0 * gap).p})
    return pd.DataFrame(out)


RIVALS = ("ls", "mgda", "nash", "imtl-g", "uw", "bandit", "bandit (balanced)")  # of EMTL's Table 1, on its backbone
READINGS = ("emtl", "emtl (raw)", "emtl (frozen norm)", "emtl (product)")  # the first is the literal one
D = 0.001  # its text: the third decimal is significant; half of its median lead over the best other is .0008
LOGIN = "AliExpress (NL, ES, FR, US) is not tested: login"


def findings(
    frames: Mapping[str, pd.DataFrame], gates: Mapping[str, Callable[[Sequence[str], Sequence[str]], list[Check]]],
    appendix: Mapping[str, pd.DataFrame] = MappingProxyType({}), **facts: Any,
) -> list[Finding]:  # fmt: skip
    """Sentences of section 5.2 by paper/decision_rule.md, on a frame of lines for each data set; `appendix`: task sets
    of the same rows, which decide nothing. `gates`: per data set, from metrics and named lines to its checks."""
    short = LOGIN if len(frames) > 1 else f"a second data set is needed; {LOGIN}"
    there = {split_line(str(name))[0] for frame in frames.values() for name in frame["line"]}

    def gate(own: str, tasks: bool = False) -> list[Check]:
        """Of each data set, for the mean or, with `tasks`, for each task."""
        found = []
        for data, made in gates.items():
            metrics = [name for name in map(str, frames[data].columns) if name.endswith("/auc")] if tasks else ["score"]
            named = ["stl", *(f"{label} ({b})" for label in dict.fromkeys(["ls", own]) for b in _means(frames[data]))]
            checks = made(metrics, [name for name in named if name in set(frames[data]["line"])])
            found += [replace(one, name=f"{data}: {one.name}") if len(gates) > 1 else one for one in checks]
        return found

    def best(own: str) -> Finding:
        shared = {"gate": gate(own), "said": short, "beside": tuple(_leads(appendix, own)), **facts}
        return _whole(decide("emtl-table1-best", "best", _leads(frames, own), **shared), len(frames))

    def stl(own: str) -> Finding:
        beside = tuple(_over_stl(appendix, own))
        shared = {"gate": gate(own, tasks=True), "said": short, "beside": beside, **facts}
        return _whole(decide("emtl-table1-stl", "best", _over_stl(frames, own), **shared), len(frames))

    own, words = _steady(frames)
    above = f"in all four countries above the plain backbone: {', '.join(paper_steady())}"
    steady = decide("emtl-table1-consistent", "best", own, gate=gate("ls"), said=short,
                    beside=(checked("its own Table 1", not paper_steady(), above),), **facts)  # fmt: skip
    steady = replace(steady, would=words, word=words if steady.word == steady.would else steady.word)
    return [*(by_reading([(r, make(r)) for r in READINGS if r in there]) for make in (best, stl)), steady]


def _whole(one: Finding, sets: int) -> Finding:
    """A sentence on every data set is not reproduced by one of them."""
    short = one.would == REPRODUCED and sets < 2
    return replace(one, would=UNTESTED, word=UNTESTED if one.word == REPRODUCED else one.word) if short else one


def _leads(frames: Mapping[str, pd.DataFrame], own: str = "emtl") -> list[Part]:
    pairs = [(data, b, r) for data, frame in frames.items() for b in _means(frame) for r in RIVALS]
    pairs = [(data, b, r) for data, b, r in pairs if f"{r} ({b})" in set(frames[data]["line"])]
    return [
        compare(f"{data}, {b}: {r}", differences(frames[data], "score", f"{own} ({b})", f"{r} ({b})", "line"), D,
                rivals=len(pairs))
        for data, b, r in pairs
        if f"{own} ({b})" in set(frames[data]["line"])
    ]  # fmt: skip


def _over_stl(frames: Mapping[str, pd.DataFrame], own: str = "emtl") -> list[Part]:
    pairs = [
        (data, backbone, str(metric))
        for data, frame in frames.items()
        for backbone in _means(frame)
        for metric in frame.columns
        if str(metric).endswith("/auc")
    ]
    return [
        compare(f"{data}, {b}: {metric}", differences(frames[data], metric, f"{own} ({b})", "stl", "line"), D,
                rivals=len(pairs))
        for data, b, metric in pairs
        if f"{own} ({b})" in set(frames[data]["line"])
    ]  # fmt: skip


def _steady(frames: Mapping[str, pd.DataFrame]) -> tuple[list[Part], str]:
    """Per other method, LS ahead of it; a part is reproduced where a gain of d is excluded. And the whole word."""
    parts: list[Part] = []
    by_line: dict[tuple[str, str], list[str]] = {}
    lines = [(data, b, r) for data, frame in frames.items() for b in _means(frame) for r in RIVALS[1:]]
    lines = [(data, b, r) for data, b, r in lines if f"{r} ({b})" in set(frames[data]["line"])]
    for data, b, r in lines:
        lost = differences(frames[data], "score", f"ls ({b})", f"{r} ({b})", "line")
        part, gain = compare(f"{data}, {b}: {r}", lost, D), compare(r, -lost, D, rivals=len(lines))
        excluded = part.low is not None and part.low > -D
        sure = gain.word == REPRODUCED and gain.wide is not None and gain.wide[0] > 0
        word = REPRODUCED if excluded else CONTRADICTED if sure else POWER
        part = replace(part, word=word, wide=None, needed=part.needed if word == POWER else None)
        parts.append(part)
        by_line.setdefault((b, r), []).append(part.word)
    words = list(by_line.values())
    if gained := [own for own in words if all(word == CONTRADICTED for word in own)]:
        return parts, CONTRADICTED if any(len(own) > 1 for own in gained) else UNTESTED
    return parts, REPRODUCED if all(REPRODUCED in own for own in words) else POWER
