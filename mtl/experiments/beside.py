"""Differences over seeds, places in a table, and the numbers that papers print beside ours."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from mtl.files import root


def differences(table: pd.DataFrame, metric: str, one: Any, other: Any, by: str = "label") -> "pd.Series[float]":
    """one - other over the seeds that both have."""
    wide = table.pivot(index="seed", columns=by, values=metric)[[one, other]].dropna()
    return wide[one] - wide[other]


def against_stl(table: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """Per run the change of each of these columns against STL of the same seed, in per cent."""
    names = list(metrics)
    base = table[table["label"] == "STL"].set_index("seed")[names].reindex(table["seed"]).to_numpy(float)
    return table[names].astype(float).div(base).sub(1).mul(100)


def standing(means: "pd.Series[float]", own: str, higher: bool) -> tuple[int, int, str]:
    """The place of `own` among all, how many there are, and the best of the others."""
    order = list(means.dropna().sort_values(ascending=not higher, kind="stable").index)
    return order.index(own) + 1, len(order), next(name for name in order if name != own)


def reported(name: str, **how: Any) -> pd.DataFrame:
    """paper/reported/`name`.csv: numbers as a paper prints them, to the last digit with dtype=str."""
    return pd.read_csv(root() / "paper" / "reported" / f"{name}.csv", **how)


def recount(said: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Sentences of a paper beside what its own printed table says."""
    return pd.DataFrame(list(said), columns=["the text says", "the printed table says"])


def text(value: Any, digits: int) -> str:
    """A printed number as text, "" where there is none; never "-0.0"."""
    return "" if pd.isna(value) else f"{round(float(value), digits) + 0.0:.{digits}f}"


def beside_paper(ours: pd.DataFrame, paper: pd.DataFrame, digits: Mapping[str, int]) -> pd.DataFrame:
    """Ours | paper | source: `digits` names the columns of `paper` that are shown, as text, empty where it has none.

    "paper X" stands right of our X where we have one. `paper` has a line per label and a column `source`.
    """
    paper = paper.reindex(list(ours.index))
    names = list(ours.columns)
    table = ours.copy()
    for head, count in digits.items():
        name = head.removeprefix("paper ")
        names.insert(names.index(name) + 1 if name in names else len(names), head)
        table[head] = [text(value, count) for value in paper[head]]
    return table[names].assign(source=paper["source"].fillna("").to_numpy())
