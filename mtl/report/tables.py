"""Ledger rows as tables: mean, interval, n, paired test, rank."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from mtl.ledger import Row
from mtl.report.stats import mean_ci, mean_rank, paired_permutation


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Ledger rows as a table: one line per run, with label, configuration, status and test metrics as columns.

    >>> frame([{"config": {"method": "ls", "seed": 0}, "metrics": {"income/auc": 0.9}}])["income/auc"].tolist()
    [0.9]
    """
    kept = ("key", "status", "wall_s", "best_epoch", "synthetic", "embedded_default")
    return pd.DataFrame(
        [
            {"label": row.get("label", row["config"].get("method"))}
            | row["config"]
            | {k: row.get(k) for k in kept if k in row}
            | (row.get("metrics") or {})
            for row in rows
        ]
    )


def results_table(
    rows: pd.DataFrame | Iterable[Row],
    metrics: Mapping[str, bool],
    *,
    by: str = "method",
    baseline: str | None = None,
    reference_row: str | None = None,
    primary: str | None = None,
    digits: int = 4,
    raw: bool = False,
) -> pd.DataFrame:
    """Mean ± half of the 95 % t interval over seeds, n, paired p and mean rank; one row per `by`, in order of arrival.

    `metrics` maps a column to "higher is better". p is the exact sign-flip test over common seeds against `baseline`,
    or else against the best other row. `reference_row` (STL) comes first, is neither ranked nor a competitor.
    Formatted: bold what cannot be told from the best mean (the 95 % t interval of the paired difference holds 0), p of
    the `primary` (else first) metric where n is enough for one below .05; no interval and no bold where n < 3; `digits`
    after the point, one where a mean has three before it. `raw`:
    numbers, columns (metric, mean | ci | n | p | smallest p | level) and ("", "mean rank"). Raises ValueError for two
    runs of one row and seed, and where real and synthetic runs would share a column.

    >>> runs = pd.DataFrame({"method": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "auc": [0.8, 0.9, 0.6, 0.7]})
    >>> results_table(runs, {"auc": True}, digits=2).loc["a"].tolist()
    ['0.85', '2', '1.0']
    """
    for column, up in metrics.items():
        if not isinstance(up, bool):
            raise ValueError(f"metrics: {column!r} must be True where higher is better, else False, found {up!r}")
    if not metrics:
        raise ValueError("metrics: must name a column or more, found none")
    if primary not in (None, *metrics):
        raise ValueError(f"primary: one of {', '.join(metrics)}, found {primary!r}")
    data = rows if isinstance(rows, pd.DataFrame) else frame(rows)
    if lost := [name for name in (*metrics, by, "seed") if name not in data]:
        raise ValueError(f"rows: no column {lost[0]!r}; found {', '.join(map(str, data.columns))}")
    if "synthetic" in data and data["synthetic"].nunique() > 1:
        raise ValueError("rows: real and synthetic runs never share a column, found both; split them")
    if (twice := data.duplicated([by, "seed"])).any():
        one = data[twice].iloc[0]
        raise ValueError(f"rows: one run per {by} and seed, found two for {one[by]!r}, seed {one['seed']}; filter them")
    order = list(dict.fromkeys(data[by]))
    for argument, name in (("baseline", baseline), ("reference_row", reference_row)):
        if name is not None and name not in order:
            raise ValueError(f"{argument}: one of {', '.join(map(str, order))}, found {name!r}")
    order.sort(key=lambda name: name != reference_row)
    cells: dict[tuple[str, str], dict[str, float]] = {}
    contest = [name for name in order if name != reference_row]
    for metric, up in metrics.items():
        runs = data.pivot(index="seed", columns=by, values=metric).astype(float)
        best = runs[contest].mean().sort_values(ascending=not up, kind="stable").index
        for name in order:
            other = baseline or next((rival for rival in best if rival != name), None)
            for column, value in _cell(runs, name, other).items():
                cells.setdefault((metric, column), {})[name] = value
            level = name in contest and _level(runs[name], runs[best[0]])
            cells.setdefault((metric, "level"), {})[name] = float(level)
    numbers = pd.DataFrame(cells).reindex(order).rename_axis(by)
    ranked = {metric: up for metric, up in metrics.items() if metric != "score"} or metrics  # the mean of the others
    means = pd.DataFrame({metric: numbers[metric, "mean"] for metric in ranked}).loc[contest]
    whole = means.dropna()
    numbers["", "mean rank"] = np.nan if whole.empty else mean_rank(whole, ranked)  # all failed, or nothing to compare
    note = f"p: paired sign-flip test against {baseline or 'the best other row'}"
    first = next(iter(metrics))
    least = numbers[first, "smallest p"].min()
    numbers.attrs["note"] = note + (f"; {least:.2g} is the smallest that n can give." if least == least else ".")
    return numbers if raw else _formatted(numbers, metrics, primary or first, digits, reference_row)


def _cell(runs: pd.DataFrame, name: str, other: str | None) -> dict[str, float]:
    own = runs[name].dropna()
    cell = {"mean": np.nan, "ci": np.nan, "n": float(len(own)), "p": np.nan, "smallest p": np.nan}
    if len(own):
        estimate = mean_ci(own)
        cell |= {"mean": estimate.value, "ci": estimate.half}
    if other is not None and other != name and len(pairs := runs[[name, other]].dropna()) > 1:
        test = paired_permutation(pairs[name], pairs[other], generator=np.random.default_rng(0))
        cell |= {"p": test.p, "smallest p": test.smallest}
    return cell


def _level(own: "pd.Series[float]", best: "pd.Series[float]") -> bool:
    """Whether three paired seeds or more leave it open that both means are the same."""
    lead = (own - best).dropna()
    return len(lead) >= 3 and abs((estimate := mean_ci(lead)).value) <= estimate.half


def _formatted(
    numbers: pd.DataFrame, higher: Mapping[str, bool], primary: str, digits: int, aside: str | None
) -> pd.DataFrame:
    shown = pd.DataFrame(index=numbers.index)
    enough = numbers[primary, "n"] >= 3  # with less an interval is as wide as the table
    speaks = numbers[primary, "smallest p"].min() <= 0.05  # else the test cannot reject, whatever the numbers
    for metric, up in higher.items():
        places = min(digits, 1) if numbers[metric, "mean"].abs().max() >= 100 else digits
        cells = []
        columns = (numbers[metric, name] for name in ("mean", "ci", "level"))
        for mean, half, level, told in zip(*columns, enough, strict=True):
            spread = f" ± {half:.{places}f}" if told and half == half else ""
            text = "–" if mean != mean else f"{mean:.{places}f}{spread}"
            cells.append(f"**{text}**" if level else text)
        shown[f"{metric} {'↑' if up else '↓'}"] = cells
    shown["n"] = [f"{count:.0f}" for count in numbers[primary, "n"]]
    if speaks:
        shown["p"] = [_p(p) for p in numbers[primary, "p"]]
    shown["mean rank"] = ["–" if rank != rank else f"{rank:.1f}" for rank in numbers["", "mean rank"]]
    note = numbers.attrs["note"].replace("p:", f"p ({primary}):" if len(higher) > 1 else "p:")
    if not speaks:
        note = (
            "No p: with so few seeds none can fall below .05." if enough.any() else "No interval, nothing bold: n < 3."
        )
    if any("**" in text for text in shown.to_numpy().ravel()):
        out = f", {aside} aside" if aside else ""
        note = f"{note} Bold: cannot be told from the best mean{out} (paired 95 % interval)."
    shown.attrs["note"] = note
    return shown


def _p(p: float) -> str:
    """A p value to three decimals, from .1 on to two; one below .0005 is not 0.

    >>> _p(0.25), _p(0.0123), _p(2e-6), _p(float("nan"))
    ('0.25', '0.012', '<0.001', '–')
    """
    return "–" if p != p else f"{p:.2f}" if p >= 0.1 else f"{p:.3f}" if p >= 5e-4 else "<0.001"
