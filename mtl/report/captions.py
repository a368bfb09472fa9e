"""Captions, cells as text, and LaTeX's view of all of it."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd

from mtl.ledger import Row, plain, stale
from mtl.report.again import outcome
from mtl.scales import SCALES, known_scale

BOLD = re.compile(r"\*\*(.+?)\*\*")
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
    known_scale(scale, SCALES)
    kinds = {bool(row.get("synthetic")) for row in rows} | ({True} if synthetic else set())
    notes = [] if True not in kinds else ["synthetic" if kinds == {True} else "partly synthetic"]
    if any(map(embedded, rows)):
        notes.append("embedded default, the data set itself was not found")
    said = f" ({'; '.join(notes)})" if notes else ""
    parts = [text.rstrip(". ") + ".", f"Data: {data.rstrip('. ')}{said}.", f"Scale: {scale}.", f"n = {n}."]
    if failed := sum(row.get("status", "ok") != "ok" for row in rows):
        parts.append(f"{failed} of {len(rows)} runs ended without a result.")
    if old := [row for row in rows if "provenance" in row and stale(row)]:
        again = [same for row in old if (same := outcome(row)) is not None]
        said = f", {len(again)} of them run again: {sum(again)} identical" if again else ""
        parts.append(f"Code that {len(old)} of {len(rows)} rows depend on was changed after they were run{said}.")
    return " ".join(parts)


def manifest(entry: Mapping[str, Any]) -> None:
    """Append one JSON line to the file named by $MTL_MANIFEST, from which `mtl reproduce` makes its summary."""
    if named := os.environ.get("MTL_MANIFEST"):
        line = json.dumps(plain(entry), sort_keys=True, ensure_ascii=False) + "\n"
        with Path(named).open("ab") as file:  # buffered: writes all or raises
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

    return df.astype(object).map(cell)


@dataclass(frozen=True)
class Caption:
    """A caption as a notebook shows it, below its figure or table.

    >>> Caption("a < b")._repr_html_()
    '<p style="font-size: 85%; max-width: 75em; text-align: left">a &lt; b</p>'
    """

    text: str

    def _repr_html_(self) -> str:
        return f'<p style="font-size: 85%; max-width: 75em; text-align: left">{escape(self.text)}</p>'

    def __repr__(self) -> str:
        return fill(self.text, 100)


@dataclass(frozen=True)
class Table:
    """A table as a notebook shows it: `**x**` is bold, floats have `digits` decimals, sentences are whole; its caption.

    >>> Table(pd.DataFrame({"auc": ["**0.9**"]}))._repr_html_().count("<b>0.9</b>")
    1
    """

    data: pd.DataFrame
    digits: int = 3
    caption: str = ""

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            html = show(self.data, self.digits).to_html(index=not counts(self.data))
        if len(self.data.columns) > 8:  # as wide as a notebook's page
            html = html.replace('class="dataframe"', 'class="dataframe" style="font-size: 85%"', 1)
        sentences = re.sub(r"<td>(?=[^<]{40})", '<td style="text-align: left">', html)
        return BOLD.sub(r"<b>\1</b>", sentences) + (Caption(self.caption)._repr_html_() if self.caption else "")

    def __repr__(self) -> str:
        text = show(self.data, self.digits).replace(BOLD, r"\1", regex=True).to_string(index=not counts(self.data))
        return text + (f"\n\n{Caption(self.caption)!r}" if self.caption else "")


def counts(df: pd.DataFrame) -> bool:
    """Whether the index only counts the lines."""
    return isinstance(df.index, pd.RangeIndex) and df.index.name is None


def tex(text: Any) -> str:
    r"""`text` with every character that LaTeX would take for a command escaped, symbols in math, code in type.

    >>> print(tex("50% of a_b ± 1: `mtl claims --why`"))
    50\% of a\_b $\pm$ 1: \texttt{mtl claims -{}-why}
    """
    escaped = str(text).translate(_TEX)
    return re.sub(r"`([^`]+)`", lambda code: rf"\texttt{{{code[1].replace('--', '-{}-')}}}", escaped)


def embedded(row: Row) -> bool:
    """Whether a run read the embedded default in place of its data set."""
    return bool(row.get("embedded_default"))
