"""Figures and tables as files, each with a side-car that says where its numbers come from."""

import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text

from mtl.files import atomic, markdown, root
from mtl.ledger import Row, plain, provenance
from mtl.report import captions
from mtl.report.captions import BOLD, Caption, Table, counts, embedded, manifest, show, tex

Card = dict[str, Any]
Made = TypeVar("Made", Figure, pd.DataFrame)


class Shown(Protocol):
    """What `save` asks of a study: its table, and the facts of a side-car."""

    @property
    def table(self) -> pd.DataFrame: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...


def captioned(made: Made, caption: str, **facts: Any) -> Made:
    """`made` with its caption, and with the facts and looks that are its own and not all its study's, for `save`."""
    _said(made).update(caption=caption, facts=facts)
    return made


def _said(made: Figure | pd.DataFrame) -> dict[Any, Any]:
    found: dict[Any, Any] = made.attrs if isinstance(made, pd.DataFrame) else vars(made).setdefault("attrs", {})
    return found


def save(study: Shown, name: str, made: Figure | pd.DataFrame | Table | None = None, **more: Any) -> Table | None:
    """Save a figure or a table of a study, by default its own table, under the caption that was made with it.

    Data, n, seeds, configuration, scale and command come from the study, or else from what `captioned` said; `more`
    goes to `save_figure` or `save_table`. A table comes back as a notebook shows it; in a notebook a figure that is
    open is shown and closed. Both stand above their captions.
    """
    made = study.table if made is None else made.data if isinstance(made, Table) else made
    said = _said(made)
    given = {"caption": said.get("caption", ""), **study.facts, **said.get("facts", {}), **more}
    if isinstance(made, Figure):
        _shown(made, _captioned(save_figure(made, name, **given)))
        return None
    return Table(made, given.get("digits", 3), _captioned(save_table(made, name, **given)))


def _captioned(path: Path) -> str:
    return str(json.loads(path.with_suffix(".json").read_bytes())["caption"])


def _shown(fig: Figure, caption: str) -> None:
    """In a notebook an open figure above its caption; left open it would come at the end of its cell."""
    notebook = sys.modules.get("IPython")
    if notebook and notebook.get_ipython() and plt.fignum_exists(getattr(fig, "number", -1)):
        notebook.display.display(fig, Caption(caption))
        plt.close(fig)


def save_figure(
    fig: Figure, name: str, *, width: Literal["column", "text"] = "text", at: str | None = None, **facts: Any
) -> Path:
    """Write figures/`name`.pdf, .png (200 dpi) and .json, and a figure environment for the paper; return the PDF.

    `facts` are those of `card`. PDF and PNG hold no date, so equal runs give equal bytes, and files of which nothing
    but the time of making changed stay as they are. Runs at smoke scale write to a folder `smoke/` of their own:
    looking at a notebook never replaces a figure of the paper. `at` is the notebook's scale where `scale`, that of the
    rows, is another (published rows). Raises ValueError for a scale or name out of the rule.
    """
    made = card("figure", name, at=at, **facts)
    path = _folder("figures", at or made["scale"]) / f"{name}.pdf"
    files = {path: _drawn(fig, format="pdf", metadata={"CreationDate": None, "ModDate": None})}
    files[path.with_suffix(".png")] = _drawn(fig, format="png", dpi=200, metadata={"Software": None})
    wide, size = ("*", r"\textwidth") if width == "text" else ("", r"\columnwidth")
    shown = f"../{_relative(path)}"
    lines = [rf"\begin{{figure{wide}}}[!htbp]", r"\centering", rf"\includegraphics[width={size}]{{{shown}}}"]
    lines += [rf"\caption{{{tex(made['caption'])}}}", rf"\label{{fig:{name}}}", rf"\end{{figure{wide}}}", ""]
    files[_folder("paper/generated", at or made["scale"]) / f"fig_{name}.tex"] = "\n".join(lines).encode()
    _write(path, files, made, facts.get("rows", ()))
    return path


def save_table(
    df: pd.DataFrame, name: str, *, digits: int = 3, wide: bool = False, at: str | None = None, **facts: Any
) -> Path:
    """Write paper/generated/`name`.tex (booktabs), .md and .json; return the .tex.

    `facts` and `at` as in `save_figure`; `df.attrs["note"]` ends the caption. Cells are shown with `digits` decimals;
    `**x**` in a cell is bold.
    """
    made = card("table", name, note=df.attrs.get("note", ""), at=at, **facts)
    path = _folder("paper/generated", at or made["scale"]) / f"{name}.tex"
    cells = show(df, digits)
    if not counts(df):  # the index as first columns, unless it only counts the rows
        cells = cells.reset_index(names=[name or "" for name in df.index.names])
    align = "".join("r" if re.match(r"\**[-−+]?[\d.]", str(column.iloc[0])) else "l" for _, column in cells.items())
    bold = cells.map(lambda cell: BOLD.sub(r"\\textbf{\1}", tex(cell)))
    bold.columns = bold.columns.map(lambda name: tuple(map(tex, name)) if isinstance(name, tuple) else name)
    bold.columns.names = [None] * bold.columns.nlevels
    if bold.columns.nlevels == 1:
        bold.columns = pd.Index([_stacked(name, cells.iloc[:, k], align[k]) for k, name in enumerate(cells.columns)])
    latex = bold.style.hide(axis="index").to_latex(
        hrules=True,
        caption=tex(made["caption"]),
        label=f"tab:{name}",
        position="!htbp",
        position_float="centering",
        column_format=_columns(cells, align),
        environment="table*" if wide else "table",
        multicol_align="c",
    )
    labels = [label if isinstance(label, tuple) else (label,) for label in cells.columns]
    heads = [" ".join(str(part) for part in label if part != "") for label in labels]
    rules = ["---:" if side == "r" else ":---" for side in align]
    lines = [map(markdown, line) for line in (heads, rules, *cells.to_numpy().tolist())]
    plain_text = "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{markdown(made['caption'])}\n"
    _write(path, {path: latex.encode(), path.with_suffix(".md"): plain_text.encode()}, made, facts.get("rows", ()))
    return path


def card(
    kind: str,
    name: str,
    *,
    caption: str = "",
    rows: Sequence[Row] = (),
    scale: str = "",
    data: str = "",
    n: int | str = "",
    config: Mapping[str, Any] | None = None,
    command: str = "",
    notebook: str | None = None,
    synthetic: bool = False,
    seeds: Sequence[int] = (),
    wall_s: float | None = None,
    note: str = "",
    at: str | None = None,
) -> Card:
    """A side-car: caption, data, scale, n, configuration, command, seeds, row keys, origin.

    What is not given is taken from `rows`; ValueError where they do not say it. `command` is by default the one that
    runs the notebook.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"name: lower-case letters, digits, '_' and '-', found {name!r}")
    if not caption:
        raise ValueError(f"caption: say what {name} shows, found none")
    configs = [row["config"] for row in rows if "config" in row]
    every = sorted({c["seed"] for c in configs if "seed" in c} | set(seeds))
    scale = scale or _only("scale", [c.get("scale") for c in configs])
    data = data or _only("data", [row.get("source") for row in rows])
    n = n or f"{len(every)} seed{'s' * (len(every) > 1)}"
    if config is None:
        models = dict.fromkeys(c.get("model") for c in configs if c.get("method") != "stl")
        config = {"budget": configs[0].get("budget"), "model": " and ".join(map(str, models))} if configs else {}
    text = captions.caption(caption, data=data, scale=scale, n=n, rows=rows, synthetic=synthetic)
    text += f" {note}" if note else ""
    walls = [row["wall_s"] for row in rows if row.get("wall_s") is not None] + ([] if wall_s is None else [wall_s])
    made: Card = {"kind": kind, "name": name, "caption": text, "scale": scale, "data": data, "n": n, "config": config}
    again = f"mtl reproduce --notebooks {notebook} --scale {at or scale}" if notebook else None
    made |= {"command": command or again, "notebook": notebook, "seeds": every}
    made["wall_s"] = sum(walls) if walls else None
    # A combined row (STL) stands for the runs that it was made of.
    keyed = [(row, row.get("keys", [row["key"]])) for row in rows if "key" in row]
    made["rows"] = [key for _, keys in keyed for key in keys]
    made["labels"] = {}  # label -> keys of its runs: from a line of the table to its ledger rows, see `mtl row`
    for row, keys in keyed:
        if config := row.get("config"):
            made["labels"].setdefault(row.get("label") or config.get("method"), []).extend(keys)
    return made


def _only(name: str, found: Sequence[Any]) -> str:
    values = {str(value) for value in found if value}
    if len(values) != 1:
        raise ValueError(f"{name}: give it where the rows do not say one, found {', '.join(values) or 'none'}")
    return values.pop()


def _drawn(fig: Figure, **how: Any) -> bytes:
    math = MathTextParser("path")
    for text in fig.findobj(Text):
        try:
            for line in text.get_text().split("\n") if text.get_parse_math() else ():  # as it is drawn
                math.parse(line)
        except ValueError:  # a label such as "$\\frac{$" is shown as it is
            text.set_parse_math(False)
    buffer = io.BytesIO()
    fig.savefig(buffer, **how)
    return buffer.getvalue()


def _write(path: Path, files: Mapping[Path, bytes], made: Card, rows: Sequence[Row]) -> None:
    """Write all files of a figure or table, or none where nothing changed but when and where it was made."""
    side = path.with_suffix(".json")
    made = plain(made)
    try:
        old = dict(json.loads(side.read_bytes()))
    except (OSError, ValueError, TypeError):  # none yet, or a damaged one: made anew
        old = {}
    same = _substance(old) == _substance(json.loads(json.dumps(made)))
    if not (same and all(path.is_file() and path.read_bytes() == content for path, content in files.items())):
        whole = json.dumps(made | {"provenance": plain(provenance())}, indent=2, ensure_ascii=False, allow_nan=False)
        for file, content in {**files, side: f"{whole}\n".encode()}.items():
            with atomic(file) as part:
                part.write_bytes(content)
    manifest({k: made[k] for k in ("kind", "name", "caption", "scale", "notebook")} | {"path": _relative(path)})
    for problem in sorted({str(row.get("config", {}).get("problem", made["data"])) for row in rows if embedded(row)}):
        manifest({"kind": "default", "name": problem, "notebook": made["notebook"], "used_by": path.stem})


def _substance(card: Card) -> Card:
    return {name: value for name, value in card.items() if name not in ("provenance", "wall_s")}


def _folder(kind: str, scale: str) -> Path:
    return root() / kind / ("smoke" if scale == "smoke" else "")


def _relative(path: Path) -> str:
    return path.relative_to(root()).as_posix()


def _stacked(name: Any, column: "pd.Series[Any]", side: str) -> str:
    r"""A column's head in LaTeX, in several lines where it is wider than what stands below it.

    >>> print(_stacked("mgda, frozen norm", pd.Series(["0.0001", "-0.0004"]), "r"))
    \shortstack[r]{mgda,\\frozen\\norm}
    """
    words = re.split(r"(?<=[ /])(?![↑↓±])", str(name))
    room = max(len(BOLD.sub(r"\1", str(cell))) for cell in (*column, *(word.strip() for word in words)))
    lines = [""]
    for word in words:
        if lines[-1] and len((lines[-1] + word).strip()) > room:
            lines.append("")
        lines[-1] += word
    text = r"\\".join(re.sub(r"^\[", "{[}", tex(line.strip())) for line in lines)  # else \\ takes it for a distance
    return rf"\shortstack[{side}]{{{text}}}" if len(lines) > 1 else text


def _columns(cells: pd.DataFrame, align: str) -> str:
    """LaTeX column letters: columns of sentences become paragraphs, which share the line by their length."""
    lengths = [min(max(len(str(cell)) for cell in (name, *column)), 90) for name, column in cells.items()]
    wide = [rf"p{{{0.9 * length / max(sum(lengths), 1):.2f}\linewidth}}" for length in lengths]
    sides = zip(align, lengths, wide, strict=True)
    return "".join(paragraph if side == "l" and length > 32 else side for side, length, paragraph in sides)
