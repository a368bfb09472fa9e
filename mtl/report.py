"""Rows to tables, figures and verdicts, each with a side-car that says where its numbers come from."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtl.files import atomic, root
from mtl.ledger import Row, plain, provenance, stale
from mtl.problems.base import SCALES
from mtl.stats import mean_ci, mean_rank, paired_permutation

Verdict = Literal["reproduced", "not reproduced", "conditional", "not testable here"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "not reproduced", "conditional", "not testable here")
_SYMBOLS = {"±": r"\pm", "×": r"\times", "↑": r"\uparrow", "↓": r"\downarrow", "≤": r"\le", "≥": r"\ge", "∞": r"\infty"}
_SYMBOLS |= {"Δ": r"\Delta", "α": r"\alpha", "η": r"\eta", "ρ": r"\rho", "λ": r"\lambda", "→": r"\to", "−": "-"}
_TEX = str.maketrans(
    {c: rf"\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "<": "$<$"}
    | {">": "$>$", "|": r"\textbar{}"}
    | {symbol: f"${tex}$" for symbol, tex in _SYMBOLS.items()}
)


def caption(
    text: str, *, data: str, scale: str, n: int | str, rows: Sequence[Row] = (), synthetic: bool = False
) -> str:
    """`text`, then what a reader must know: data set, synthetic or embedded where so, scale, n.

    >>> caption("Trajectories.", data="two-loss landscape", scale="quick", n="5 starts", synthetic=True)
    'Trajectories. Data: two-loss landscape (synthetic). Scale: quick. n = 5 starts.'
    """
    if scale not in SCALES:
        raise ValueError(f"scale: one of {', '.join(SCALES)}, found {scale!r}")
    kinds = {bool(row.get("synthetic")) for row in rows} | ({True} if synthetic else set())
    notes = [] if True not in kinds else ["synthetic" if kinds == {True} else "partly synthetic"]
    if any(map(_default, rows)):
        notes.append("embedded default, the data set itself was not found")
    said = f" ({'; '.join(notes)})" if notes else ""
    parts = [text.rstrip(". ") + ".", f"Data: {data.rstrip('. ')}{said}.", f"Scale: {scale}.", f"n = {n}."]
    if failed := sum(row.get("status", "ok") != "ok" for row in rows):
        parts.append(f"{failed} of {len(rows)} runs ended without a result.")
    if old := sum(stale(row) for row in rows if "provenance" in row):
        parts.append(f"{old} of {len(rows)} rows were made by other sources than the present ones.")
    return " ".join(parts)


def save_figure(
    fig: Figure,
    name: str,
    *,
    caption: str,
    scale: str,
    data: str,
    n: int | str,
    config: Mapping[str, Any],
    rows: Sequence[Row] = (),
    notebook: str | None = None,
    synthetic: bool = False,
    seeds: Sequence[int] = (),
    wall_s: float | None = None,
    at: str | None = None,
    width: Literal["column", "text"] = "text",
) -> Path:
    """Write figures/`name`.pdf, .png (200 dpi) and .json, and a figure environment for the paper; return the PDF.

    PDF and PNG hold no date, so equal runs give equal bytes. Runs at smoke scale write to a folder
    `smoke/` of their own: looking at a notebook never replaces a figure of the paper. `at` is the notebook's scale
    where `scale`, that of the rows, is another (published rows).
    Raises ValueError for a scale or name out of the rule.
    """
    text = _caption(caption, data=data, scale=scale, n=n, rows=rows, synthetic=synthetic)
    path = _folder("figures", at or scale) / f"{_named(name)}.pdf"
    with atomic(path) as part:
        fig.savefig(part, metadata={"CreationDate": None, "ModDate": None})
    with atomic(path.with_suffix(".png")) as part:
        fig.savefig(part, dpi=200, metadata={"Software": None})
    wide, size = ("*", r"\textwidth") if width == "text" else ("", r"\columnwidth")
    shown = f"../{_relative(path)}"
    lines = [rf"\begin{{figure{wide}}}[tb]", r"\centering", rf"\includegraphics[width={size}]{{{shown}}}"]
    lines += [rf"\caption{{{tex(text)}}}", rf"\label{{fig:{name}}}", rf"\end{{figure{wide}}}", ""]
    _write(_folder("paper/generated", at or scale) / f"fig_{name}.tex", "\n".join(lines))
    facts = {"scale": scale, "data": data, "n": n, "config": config, "notebook": notebook}
    _side_car(path, "figure", text, facts, rows, seeds, wall_s)
    return path


def save_table(
    df: pd.DataFrame,
    name: str,
    *,
    caption: str,
    scale: str,
    data: str,
    n: int | str,
    config: Mapping[str, Any],
    rows: Sequence[Row] = (),
    notebook: str | None = None,
    synthetic: bool = False,
    seeds: Sequence[int] = (),
    wall_s: float | None = None,
    at: str | None = None,
    digits: int = 3,
    wide: bool = False,
) -> Path:
    """Write paper/generated/`name`.tex (booktabs), .md and .json; return the .tex.

    Cells are shown with `digits` decimals; `**x**` in a cell is bold. `df.attrs["note"]` ends the caption.
    """
    note = df.attrs.get("note", "")
    text = _caption(caption, data=data, scale=scale, n=n, rows=rows, synthetic=synthetic) + (f" {note}" if note else "")
    path = _folder("paper/generated", at or scale) / f"{_named(name)}.tex"
    cells = _with_index(show(df, digits))
    align = "".join("r" if re.match(r"\**[-−+]?[\d.]", str(column.iloc[0])) else "l" for _, column in cells.items())
    bold = cells.map(lambda cell: re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", tex(cell)))
    bold.columns = _labels(bold.columns, tex)
    latex = bold.style.hide(axis="index").to_latex(
        hrules=True,
        caption=tex(text),
        label=f"tab:{name}",
        position="tb",
        position_float="centering",
        column_format=_columns(cells, align),
        environment="table*" if wide else "table",
        multicol_align="c",
    )
    _write(path, latex)
    heads = [" ".join(str(part) for part in label if part != "") for label in _tuples(cells.columns)]
    rules = ["---:" if side == "r" else ":---" for side in align]
    lines = [heads, rules, *cells.to_numpy().tolist()]
    body = "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
    _write(path.with_suffix(".md"), f"{body}\n\n{text}\n")
    facts = {"scale": scale, "data": data, "n": n, "config": config, "notebook": notebook}
    _side_car(path, "table", text, facts, rows, seeds, wall_s)
    return path


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
            | {k: row[k] for k in kept if k in row}
            | (row.get("metrics") or {})
            for row in rows
        ]
    )


def results_table(
    rows: pd.DataFrame | Iterable[Row],
    metrics: Mapping[str, bool] | Iterable[Any],
    *,
    by: str = "method",
    baseline: str | None = None,
    reference_row: str | None = None,
    primary: str | None = None,
    digits: int = 4,
    raw: bool = False,
) -> pd.DataFrame:
    """Mean ± half of the 95 % t interval over seeds, n, paired p and mean rank; one row per `by`, in order of arrival.

    `metrics` maps a column to "higher is better", or holds the metrics of a problem. p is the exact
    sign-flip test over common seeds against `baseline`, or else against the best other row. `reference_row`
    (STL) comes first, is neither ranked nor a competitor. Formatted: best mean bold, p of the `primary`
    (else first) metric. `raw`: numbers, columns (metric, mean | ci | n | p | smallest p) and ("", "mean rank").
    Raises ValueError for two runs of one row and seed, and where real and synthetic runs would share a column.

    >>> runs = pd.DataFrame({"method": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "auc": [0.8, 0.9, 0.6, 0.7]})
    >>> results_table(runs, {"auc": True}, digits=2).loc["a"].tolist()
    ['**0.85 ± 0.64**', '2', '0.50', '1.0']
    """
    data = rows if isinstance(rows, pd.DataFrame) else frame(rows)
    higher = _directions(metrics)
    if lost := [name for name in (*higher, by, "seed") if name not in data]:
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
    for metric, up in higher.items():
        runs = data.pivot(index="seed", columns=by, values=metric).astype(float)
        best = runs[contest].mean().sort_values(ascending=not up, kind="stable").index
        for name in order:
            other = baseline or next((rival for rival in best if rival != name), None)
            for column, value in _cell(runs, name, other).items():
                cells.setdefault((metric, column), {})[name] = value
    numbers = pd.DataFrame(cells).reindex(order).rename_axis(by)
    means = pd.DataFrame({metric: numbers[metric, "mean"] for metric in higher}).loc[contest]
    numbers["", "mean rank"] = mean_rank(means.dropna(), higher)
    note = f"p: paired sign-flip test against {baseline or 'the best other row'}"
    least = numbers[next(iter(higher)), "smallest p"].min()
    numbers.attrs["note"] = note + (f"; {least:.3f} is the smallest that n can give." if least == least else ".")
    return numbers if raw else _formatted(numbers, higher, contest, primary or next(iter(higher)), digits)


def _directions(metrics: Mapping[str, bool] | Iterable[Any]) -> dict[str, bool]:
    if isinstance(metrics, Mapping):
        return dict(metrics)
    found = list(metrics)
    if plain_names := [m for m in found if isinstance(m, str)]:
        raise ValueError(f"metrics: say whether higher is better, as {{name: True}}, found {plain_names[0]!r} alone")
    return {f"{m.task}/{m.name}": bool(m.higher_is_better) for m in found}


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


def _formatted(
    numbers: pd.DataFrame, higher: Mapping[str, bool], contest: list[str], primary: str, digits: int
) -> pd.DataFrame:
    shown = pd.DataFrame(index=numbers.index)
    for metric, up in higher.items():
        means = numbers[metric, "mean"]
        best = means[contest].max() if up else means[contest].min()
        cells = []
        for mean, half in zip(means, numbers[metric, "ci"], strict=True):
            text = "–" if mean != mean else f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half == half else "")
            cells.append(f"**{text}**" if mean == best else text)
        shown[f"{metric} {'↑' if up else '↓'}"] = cells
    shown["n"] = [f"{count:.0f}" for count in numbers[primary, "n"]]
    shown["p"] = ["–" if p != p else f"{p:.2f}" if p >= 0.1 else f"{p:.3f}" for p in numbers[primary, "p"]]
    shown["mean rank"] = ["–" if rank != rank else f"{rank:.1f}" for rank in numbers["", "mean rank"]]
    shown.attrs["note"] = numbers.attrs["note"].replace("p:", f"p ({primary}):" if len(higher) > 1 else "p:")
    return shown


def verdict(claim: str, verdict: Verdict, evidence: str, figure: str | None = None, scale: str | None = None) -> Row:
    """A claim, what became of it, the numbers that say so and the figure that shows it; one row of a claims table.

    `scale`: that of the numbers, where it is not that of the notebook (published rows).

    >>> verdict("EMTL reaches the best average", "conditional", "5/5 at s=1, 0/5 at s=.1")["verdict"]
    'conditional'
    """
    if verdict not in VERDICTS:
        raise ValueError(f"verdict: one of {', '.join(VERDICTS)}, found {verdict!r}")
    row = {"claim": claim, "verdict": verdict, "evidence": evidence, "figure": figure}
    manifest({"kind": "verdict", **row} | ({"scale": scale} if scale else {}))
    return row


def manifest(entry: Mapping[str, Any]) -> None:
    """Append one JSON line to the file named by $MTL_MANIFEST, from which `mtl reproduce` makes its summary."""
    if named := os.environ.get("MTL_MANIFEST"):
        line = json.dumps(plain(entry), sort_keys=True, ensure_ascii=False) + "\n"
        with Path(named).open("ab", buffering=0) as file:
            file.write(line.encode())


def show(df: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """`df` with floats as text of `digits` decimals and gaps as "–": the same HTML every time it is displayed.

    >>> show(pd.DataFrame({"auc": [0.87654, None]}), digits=2)["auc"].tolist()
    ['0.88', '–']
    """

    def cell(value: Any) -> str:
        if value is None or (isinstance(value, float) and pd.isna(value)) or value is pd.NA:
            return "–"
        return f"{value:.{digits}f}" if isinstance(value, float) else str(value)

    shown = df.astype(object).map(cell)
    shown.attrs = {}
    return shown


def tex(text: Any) -> str:
    r"""`text` with every character that LaTeX would take for a command escaped, and symbols in math.

    >>> print(tex("50% of a_b ± 1"))
    50\% of a\_b $\pm$ 1
    """
    return str(text).translate(_TEX)


_caption = caption  # `caption` is also an argument of the two functions above


def _side_car(
    path: Path, kind: str, text: str, facts: Row, rows: Sequence[Row], seeds: Sequence[int], wall_s: float | None
) -> None:
    walls = [row["wall_s"] for row in rows if row.get("wall_s") is not None] + ([] if wall_s is None else [wall_s])
    card = {"kind": kind, "name": path.stem, "caption": text, **facts}
    card["seeds"] = sorted({row["config"]["seed"] for row in rows if "seed" in row.get("config", {})} | set(seeds))
    card["wall_s"] = sum(walls) if walls else None
    # A combined row (STL) stands for the runs that it was made of.
    card["rows"] = [key for row in rows if "key" in row for key in row.get("keys", [row["key"]])]
    card["labels"] = {}  # label -> keys of its runs: from a line of the table to its ledger rows, see `mtl row`
    for row in rows:
        if "key" in row and "config" in row:
            card["labels"].setdefault(row.get("label") or row["config"].get("method"), []).extend(
                row.get("keys", [row["key"]])
            )
    card["provenance"] = provenance()
    _write(path.with_suffix(".json"), json.dumps(plain(card), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    manifest({k: card[k] for k in ("kind", "name", "caption", "scale", "notebook")} | {"path": _relative(path)})
    for problem in sorted({row.get("config", {}).get("problem", facts["data"]) for row in rows if _default(row)}):
        manifest({"kind": "default", "name": problem, "notebook": facts["notebook"], "used_by": path.stem})


def _default(row: Row) -> bool:
    return bool(row.get("embedded_default"))


def _folder(kind: str, scale: str) -> Path:
    return root() / kind / ("smoke" if scale == "smoke" else "")


def _named(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"name: lower-case letters, digits, '_' and '-', found {name!r}")
    return name


def _relative(path: Path) -> str:
    return path.relative_to(root()).as_posix()


def _write(path: Path, text: str) -> None:
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def _tuples(index: pd.Index) -> list[tuple[Any, ...]]:
    return [label if isinstance(label, tuple) else (label,) for label in index]


def _columns(cells: pd.DataFrame, align: str, longest: int = 32) -> str:
    """LaTeX column letters: columns of sentences become paragraphs, which share the line by their length."""
    lengths = [min(max(len(str(cell)) for cell in (name, *column)), 90) for name, column in cells.items()]
    shares = [0.9 * length / max(sum(lengths), 1) for length in lengths]
    sides = zip(align, lengths, shares, strict=True)
    return "".join(
        rf"p{{{share:.2f}\linewidth}}" if side == "l" and length > longest else side for side, length, share in sides
    )


def _labels(index: pd.Index, change: Any) -> pd.Index:
    changed = [tuple(change(part) for part in label) for label in _tuples(index)]
    return pd.MultiIndex.from_tuples(changed) if index.nlevels > 1 else pd.Index([label[0] for label in changed])


def _with_index(df: pd.DataFrame) -> pd.DataFrame:
    """The index as first columns, unless it only counts the rows."""
    if isinstance(df.index, pd.RangeIndex) and df.index.name is None:
        return df
    return df.reset_index(names=[name or "" for name in df.index.names])
