"""Table 1: the paper's own numbers, and what they and ours say."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from mtl.experiments.table1.grids import BACKBONES
from mtl.files import root
from mtl.report import Verdict
from mtl.report.stats import holm, mean_ci


def reported() -> pd.DataFrame:
    """EMTL's Table 1 as printed: country, model, method, CTR AUC, CTCVR AUC, their average."""
    table = pd.read_csv(root() / "paper" / "reported" / "emtl_table1.csv")
    table["line"] = [
        "stl" if method == "stl" else f"{method} ({BACKBONES[model]})"
        for method, model in zip(table["method"], table["model"], strict=True)
    ]
    return table


def paper_columns(index: Sequence[str], present: bool = True) -> pd.DataFrame:
    """The paper's average AUC per country beside our lines, as text; empty where it has no such row."""
    wide = reported().pivot(index="line", columns="country", values="average").reindex(list(index))
    wide = wide[["NL", "ES", "FR", "US"]].add_prefix("paper ")
    if not present:
        wide = pd.DataFrame({"paper": math.nan}, index=wide.index)
    return wide.map(lambda value: "" if math.isnan(value) else f"{value:.4f}")


def paper_steady() -> list[str]:
    """Lines other than EMTL's whose printed average is above the plain backbone's in all four countries."""
    wide = reported().pivot(index="line", columns="country", values="average").drop(index="stl")
    return [
        line
        for line in map(str, wide.index)
        if not line.startswith("emtl") and (wide.loc[line] > wide.loc["ls (" + line.partition(" (")[2]]).all()
    ]


def paper_says() -> pd.DataFrame:
    """What section 5.2 says of Table 1, counted in the printed table itself."""
    table = reported()
    emtl, others = table[table["method"] == "emtl"], table[table["method"] != "emtl"]
    metrics = ("ctr_auc", "ctcvr_auc", "average")
    best, rival = (part.groupby("country")[list(metrics)].max() for part in (emtl, others))
    stl = table[table["method"] == "stl"].set_index("country")[list(metrics)]
    gain = emtl.set_index("country")[list(metrics)] - stl.loc[emtl["country"]].to_numpy()
    wide = table[table["method"] != "stl"].pivot(index=["model", "method"], columns="country", values="average")
    first = wide.groupby("model").idxmax().map(lambda found: found[1] == "emtl").to_numpy()
    steady = paper_steady()
    loss = pd.read_csv(root() / "paper" / "reported" / "aliexpress.csv")
    ratio = float((loss["ctr_logloss"] / loss["ctcvr_logloss"]).mean())
    us = emtl[(emtl["country"] == "US") & (emtl["model"] == "mmoe")].iloc[0]
    base = table[(table["country"] == "US") & (table["line"] == "ls (MMoE)")].iloc[0]
    said = [
        ("EMTL above STL on all metrics", f"{int((gain > 0).to_numpy().sum())} of {gain.size} differences"),
        ("EMTL best on 11 of 12 metrics", f"{int((best > rival).to_numpy().sum())} alone, "
         f"{int((best == rival).to_numpy().sum())} tied"),
        ("EMTL lifts MMoE by over .01 in CTCVR and average, US", f"{us['ctcvr_auc'] - base['ctcvr_auc']:.4f} and "
         f"{us['average'] - base['average']:.4f}"),
        ("EMTL best average per backbone and country", f"{int(first.sum())} of {first.size}"),
        ("no other method lifts its backbone in every country", f"{len(steady)} do: {', '.join(steady)}"),
        ("CTR loss about 23 times CTCVR loss", f"{ratio:.1f} (log-losses of MTReclib's README, mean)"),
    ]  # fmt: skip
    return pd.DataFrame(said, columns=["the text says", "the printed table says"])


def _backbones(numbers: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(str(line).partition(" (")[2] for line in numbers.index if " (" in str(line)))


def backbone_gains(numbers: pd.DataFrame, metric: str = "score") -> pd.Series:
    """Mean of each line minus the mean of the same backbone with equal weights (LS); STL and LS themselves left out."""
    mean = numbers[metric, "mean"]
    return pd.Series(
        {
            str(line): float(mean[line] - mean[f"ls ({rest}"])
            for line in mean.index
            for name, _, rest in [str(line).partition(" (")]
            if rest and name != "ls"
        }
    )


def places(numbers: Mapping[str, pd.DataFrame], metric: str = "score") -> pd.DataFrame:
    """Per data set and backbone the best line, EMTL's place among its backbone's lines, its distance to the best."""
    out = []
    for data, table in numbers.items():
        for rest in _backbones(table):
            mean = table[metric, "mean"]
            mean = mean[[str(line).endswith(f" ({rest}") for line in mean.index]].sort_values(ascending=False)
            own = f"emtl ({rest}"
            others = mean.drop(own)
            out.append(
                {
                    "data": data,
                    "backbone": rest.rstrip(")"),
                    "best": str(mean.index[0]).partition(" (")[0],
                    "EMTL's place": list(mean.index).index(own) + 1,
                    "of": len(mean),
                    "EMTL - best other": float(mean[own] - others.max()),
                    "p": float(table[metric, "p"][own]),
                }
            )
    return pd.DataFrame(out)


def best_verdict(numbers: Mapping[str, pd.DataFrame]) -> tuple[Verdict, str]:
    """EMTL first on every data set and backbone, and its paired test below .05 after Holm's correction?"""
    found = places(numbers)
    first = int((found["EMTL's place"] == 1).sum())
    said = f"first in {first} of {len(found)} (data set, backbone); places " + ", ".join(
        f"{row['data']} {row['backbone']}: {row[place]} of {row['of']}"
        for place in ["EMTL's place"]
        for _, row in found.iterrows()
    )
    if first < len(found):
        return "not reproduced", said
    sure = bool((holm(found["p"]) < 0.05).all())
    return ("reproduced" if sure else "conditional"), said + f"; largest p {found['p'].max():.3f}"


def stl_verdict(frames: Mapping[str, pd.DataFrame]) -> tuple[Verdict, str]:
    """EMTL minus STL, paired over seeds, for each data set, backbone and task: how many intervals lie above 0?"""
    low, high, total = 0, 0, 0
    for table in frames.values():
        for metric in [c for c in table.columns if str(c).endswith("/auc")]:
            wide = table.pivot(index="seed", columns="line", values=metric)
            for line in [c for c in wide.columns if str(c).startswith("emtl (")]:
                gain = mean_ci((wide[line] - wide["stl"]).dropna())
                low, high, total = low + (gain.low > 0), high + (gain.high < 0), total + 1
    said = f"EMTL above STL with the whole interval in {low} of {total} (data set, backbone, task), below in {high}"
    return ("reproduced" if low == total else "not reproduced" if high else "conditional"), said


def steady_verdict(numbers: Mapping[str, pd.DataFrame]) -> tuple[Verdict, str]:
    """Does any method but EMTL lift its backbone (equal weights) in the mean on every data set?"""
    gains = pd.DataFrame({data: backbone_gains(table) for data, table in numbers.items()}).dropna()
    steady = [line for line in gains.index[(gains > 0).all(axis=1)] if not line.startswith("emtl")]
    own = ", ".join(f"{line}: {int((gains.loc[line] > 0).sum())}" for line in gains.index if line.startswith("emtl"))
    said = f"{len(steady)} lines other than EMTL's do on all {len(numbers)} data sets ({', '.join(steady) or 'none'}); "
    said += f"EMTL lifts on {own}. In the paper's own table some do in all countries: {', '.join(paper_steady())}"
    return ("not reproduced" if steady else "reproduced"), said
