"""Table 1: the paper's own numbers, and what they and ours say."""

from collections.abc import Mapping

import pandas as pd

from mtl.experiments.base import paired, recount, reported, standing
from mtl.experiments.table1.grids import line
from mtl.report import Verdict, captioned
from mtl.report.stats import holm

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
    ]), "Sentences of EMTL's section 5.2, recounted in its printed Table 1")  # fmt: skip


def _means(frame: pd.DataFrame) -> "dict[str, pd.Series[float]]":
    """Per backbone the mean score of its lines, without STL."""
    mean = frame.groupby("line", sort=False)["score"].mean().drop("stl")
    backbone = [str(line).partition(" (")[2].rstrip(")") for line in mean.index]
    return {name: mean[[own == name for own in backbone]] for name in dict.fromkeys(backbone)}


def places(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Per data set and backbone the best line, EMTL's place, its distance to the best other line of its backbone, and
    the p of the paired test against that one."""
    out = []
    for data, frame in frames.items():
        for backbone, mean in _means(frame).items():
            own = f"emtl ({backbone})"
            place, of, rival = standing(mean, own, higher=True)
            best = (own if place == 1 else rival).partition(" (")[0]
            found = {"data": data, "backbone": backbone, "best": best, "EMTL's place": place, "of": of}
            found["EMTL - best other"] = float(mean[own] - mean[rival])
            out.append(found | {"p": paired(frame, "score", own, rival, by="line").p})
    return pd.DataFrame(out)


def best_verdict(frames: Mapping[str, pd.DataFrame]) -> tuple[Verdict, str]:
    """EMTL first on every data set and backbone, and its paired test below .05 after Holm's correction?"""
    found = places(frames)
    first = int((found["EMTL's place"] == 1).sum())
    each = [f"{row['data']} {row['backbone']}: {row[found.columns[3]]} of {row['of']}" for _, row in found.iterrows()]
    said = f"first in {first} of {len(found)} (data set, backbone); places " + ", ".join(each)
    if first < len(found):
        return "not reproduced", said
    sure = bool((holm(found["p"]) < 0.05).all())
    return ("reproduced" if sure else "conditional"), said + f"; largest p {found['p'].max():.3f}"


def stl_verdict(frames: Mapping[str, pd.DataFrame]) -> tuple[Verdict, str]:
    """EMTL minus STL, paired over seeds, for each data set, backbone and task: how many intervals lie above 0?"""
    gains = [
        paired(frame, metric, f"emtl ({backbone})", "stl", by="line")
        for frame in frames.values()
        for metric in frame.columns
        if str(metric).endswith("/auc")
        for backbone in _means(frame)
    ]
    low, high = sum(gap.value - gap.half > 0 for gap in gains), sum(gap.value + gap.half < 0 for gap in gains)
    said = (
        f"EMTL above STL with the whole interval in {low} of {len(gains)} (data set, backbone, task), below in {high}"
    )
    return ("reproduced" if low == len(gains) else "not reproduced" if high else "conditional"), said


def steady_verdict(frames: Mapping[str, pd.DataFrame]) -> tuple[Verdict, str]:
    """Does any method but EMTL lift its backbone (equal weights) in the mean on every data set?"""
    each = {data: [own - own[f"ls ({name})"] for name, own in _means(f).items()] for data, f in frames.items()}
    gains = pd.DataFrame({data: pd.concat(own) for data, own in each.items()}).dropna()
    gains = gains[[not str(line).startswith("ls (") for line in gains.index]]
    steady = [line for line in gains.index[(gains > 0).all(axis=1)] if not line.startswith("emtl")]
    own = ", ".join(f"{line}: {int((gains.loc[line] > 0).sum())}" for line in gains.index if line.startswith("emtl"))
    said = f"{len(steady)} lines other than EMTL's do on all {len(frames)} data sets ({', '.join(steady) or 'none'}); "
    said += f"EMTL lifts on {own}. In the paper's own table some do in all countries: {', '.join(paper_steady())}"
    return ("not reproduced" if steady else "reproduced"), said
