"""Figures and tables as files, each with a side-car that says where its numbers come from."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from matplotlib.figure import Figure

from mtl.files import atomic, root
from mtl.ledger import Row, plain, provenance
from mtl.report import captions
from mtl.report.captions import embedded, manifest, show, tex


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
    text = captions.caption(caption, data=data, scale=scale, n=n, rows=rows, synthetic=synthetic)
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
    text = captions.caption(caption, data=data, scale=scale, n=n, rows=rows, synthetic=synthetic)
    text += f" {note}" if note else ""
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


def _side_car(
    path: Path,
    kind: str,
    text: str,
    facts: Mapping[str, Any],
    rows: Sequence[Row],
    seeds: Sequence[int],
    wall_s: float | None,
) -> None:
    walls = [row["wall_s"] for row in rows if row.get("wall_s") is not None] + ([] if wall_s is None else [wall_s])
    card: dict[str, Any] = {"kind": kind, "name": path.stem, "caption": text, **facts}
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
    for problem in sorted({row.get("config", {}).get("problem", facts["data"]) for row in rows if embedded(row)}):
        manifest({"kind": "default", "name": problem, "notebook": facts["notebook"], "used_by": path.stem})


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
