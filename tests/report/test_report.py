"""Tables, figures, captions and verdicts: what they say, where they are written, and that the bytes repeat."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mtl import report
from mtl.report import captions
from mtl.report.stats import mean_ci, paired_permutation

FACTS: dict[str, Any] = {"scale": "quick", "data": "Census", "n": 3, "config": {"lr": 1e-3}, "notebook": "02_census"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    monkeypatch.setenv("MTL_MANIFEST", str(tmp_path / "manifest.jsonl"))
    return tmp_path


def row(method: str, seed: int, auc: float | None, **more: Any) -> dict[str, Any]:
    config = {"method": method, "seed": seed, "problem": "census"}
    return {"key": f"{method}{seed}", "config": config, "metrics": {"t/auc": auc}, "wall_s": 2.0, "status": "ok"} | more


def runs(n: int = 5) -> list[dict[str, Any]]:
    noise = np.random.default_rng(0).normal(scale=0.01, size=(3, n))
    level = {"stl": 0.95, "ls": 0.80, "emtl": 0.85}
    return [row(m, s, level[m] + noise[i, s]) for i, m in enumerate(("ls", "stl", "emtl")) for s in range(n)]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_caption_always_says_data_scale_and_n() -> None:
    text = report.caption("A table", data="Census", scale="paper", n=5, rows=runs())
    assert text == "A table. Data: Census. Scale: paper. n = 5."


def test_caption_says_what_a_reader_would_otherwise_not_know() -> None:
    rows = [
        row("a", 0, 1.0, synthetic=True, embedded_default=True),
        row("b", 0, None, synthetic=True, status="non-finite"),
    ]
    text = report.caption("A table.", data="digits", scale="smoke", n=1, rows=rows)
    assert "(synthetic; embedded default, the data set itself was not found)" in text
    assert "1 of 2 runs ended without a result." in text
    mixed = report.caption("A.", data="d", scale="smoke", n=1, rows=[*rows, row("c", 0, 1.0)])
    assert "partly synthetic" in mixed
    old = report.caption("A.", data="d", scale="smoke", n=1, rows=[row("c", 0, 1.0, provenance={"sources": "older"})])
    assert "Code that 1 of 1 rows depend on was changed after they were run." in old


def test_unknown_scale_and_name_are_named() -> None:
    with pytest.raises(ValueError, match=r"scale: must be one of smoke, quick, study, gpu, paper, found 'large'"):
        report.caption("A.", data="d", scale="large", n=1)
    with pytest.raises(ValueError, match=r"name: lower-case letters.*found '../x'"):
        report.save_table(pd.DataFrame({"a": [1]}), "../x", caption="A", **FACTS)


def test_results_table_agrees_with_the_statistics() -> None:
    table = report.results_table(runs(), {"t/auc": True}, raw=True)
    own = {m: [r["metrics"]["t/auc"] for r in runs() if r["config"]["method"] == m] for m in ("ls", "stl", "emtl")}
    for method, values in own.items():
        assert table.loc[method, ("t/auc", "mean")] == mean_ci(values).value
        assert table.loc[method, ("t/auc", "ci")] == mean_ci(values).half
        assert table.loc[method, ("t/auc", "n")] == 5
    assert table.loc["ls", ("t/auc", "p")] == paired_permutation(own["ls"], own["stl"]).p
    assert table.loc["stl", ("t/auc", "p")] == paired_permutation(own["stl"], own["emtl"]).p, "best against the second"
    assert table["", "mean rank"].mean() == 2.0, "(M + 1) / 2"
    assert list(table.index) == ["ls", "stl", "emtl"], "order of arrival"


def test_reference_row_is_first_unranked_and_no_competitor() -> None:
    table = report.results_table(runs(), {"t/auc": True}, reference_row="stl", raw=True)
    assert list(table.index) == ["stl", "ls", "emtl"]
    assert np.isnan(table.loc["stl", ("", "mean rank")])
    assert table["", "mean rank"].mean() == 1.5
    shown = report.results_table(runs(), {"t/auc": True}, reference_row="stl")
    assert [cell.startswith("**") for cell in shown["t/auc ↑"]] == [False, False, True], "STL is never bold"


def test_lower_is_better_and_baseline() -> None:
    shown = report.results_table(runs(), {"t/auc": False}, baseline="stl")
    assert shown.loc["ls", "t/auc ↓"].startswith("**")
    assert "p" not in shown and shown.attrs["note"].startswith("No p: with so few seeds none can")
    enough = report.results_table(runs(n=6), {"t/auc": False}, baseline="stl")
    assert enough.loc["stl", "p"] == "–" and enough.loc["ls", "p"] == "0.031"
    assert enough.attrs["note"].startswith("p: paired sign-flip test against stl; 0.031 is the smallest")


def test_one_seed_and_failed_runs_are_shown_as_such() -> None:
    shown = report.results_table([row("a", 0, 0.5), row("b", 0, None, status="non-finite")], {"t/auc": True}, digits=2)
    assert shown.loc["a"].tolist() == ["0.50", "1", "1.0"]
    assert shown.loc["b"].tolist() == ["–", "0", "–"]


@pytest.mark.parametrize(
    ("rows", "how", "cells"),
    [
        ([row("a", seed, None, status="non-finite") for seed in (0, 1)], {}, ["–", "0", "–"]),
        ([row("stl", 0, 0.5)], {"reference_row": "stl", "digits": 2}, ["0.50", "1", "–"]),
    ],
    ids=["all failed", "the reference row alone"],
)
def test_rows_without_a_rank_make_a_table(rows: Any, how: Any, cells: list[str]) -> None:
    assert report.results_table(rows, {"t/auc": True}, **how).iloc[0].tolist() == cells


@pytest.mark.parametrize(
    ("rows", "metrics", "wording"),
    [
        (
            [row("a", 0, 1.0), row("a", 0, 1.0)],
            {"t/auc": True},
            "one run per method and seed, found two for 'a', seed 0",
        ),
        (
            [row("a", 0, 1.0, synthetic=True), row("a", 1, 1.0, synthetic=False)],
            {"t/auc": True},
            "never share a column",
        ),
        (runs(), {"t/ap": True}, "no column 't/ap'; found"),
        (runs(), {}, "metrics: must name a column or more, found none"),
        (runs(), {"t/auc": "down"}, "metrics: 't/auc' must be True where higher is better, else False, found 'down'"),
    ],
)
def test_rows_that_make_no_table(rows: Any, metrics: Any, wording: str) -> None:
    with pytest.raises(ValueError, match=wording):
        report.results_table(rows, metrics)


def test_baseline_must_be_a_row() -> None:
    with pytest.raises(ValueError, match="baseline: one of ls, stl, emtl, found 'mgda'"):
        report.results_table(runs(), {"t/auc": True}, baseline="mgda")
    with pytest.raises(ValueError, match="primary: one of t/auc, found 'auc'"):
        report.results_table(runs(), {"t/auc": True}, primary="auc")


def test_table_is_booktabs_escaped_and_traced(folder: Path) -> None:
    df = pd.DataFrame({"a_b": ["50%", "**1 ± 2**"], "x": [1.23456, None]}, index=pd.Index(["R&D", "α"], name="row"))
    df.attrs["note"] = "A note."
    path = report.save_table(df, "01_t", caption="50% of it", rows=[row("ls", 3, 0.5)], **FACTS)
    text = path.read_text()
    assert path == folder / "paper/generated/01_t.tex"
    for part in (
        r"\toprule",
        r"a\_b",
        r"50\%",
        r"\textbf{1 $\pm$ 2}",
        r"R\&D",
        r"$\alpha$",
        "1.235",
        r"\label{tab:01_t}",
    ):
        assert part in text
    assert r"\caption{50\% of it. Data: Census. Scale: quick. n = 3. A note.}" in text
    assert "| R&D | 50% | 1.235 |" in path.with_suffix(".md").read_text()
    card = json.loads(path.with_suffix(".json").read_text())
    assert (card["seeds"], card["rows"], card["wall_s"], card["notebook"]) == ([3], ["ls3"], 2.0, "02_census")
    assert {"git", "dirty", "versions", "hardware"} <= set(card["provenance"])
    assert lines(folder)[-1]["kind"] == "table" and lines(folder)[-1]["path"] == "paper/generated/01_t.tex"


def test_two_levels_of_columns_are_kept() -> None:
    df = pd.DataFrame([[1.0, 2.0]], columns=pd.MultiIndex.from_tuples([("s_1", "a"), ("s_1", "b")]))
    path = report.save_table(df, "two", caption="Two", **FACTS)
    assert r"\multicolumn{2}{c}{s\_1}" in path.read_text()
    assert "| s_1 a | s_1 b |" in path.with_suffix(".md").read_text()


def test_figure_has_three_files_and_a_place_in_the_paper(folder: Path) -> None:
    fig, ax = plt.subplots()
    ax.plot([0, 1])
    path = report.save_figure(fig, "f", caption="A line", seeds=[2, 1], wall_s=4.0, synthetic=True, **FACTS)
    assert path == folder / "figures/f.pdf"
    assert {p.suffix for p in (folder / "figures").iterdir()} == {".pdf", ".png", ".json"}
    card = json.loads(path.with_suffix(".json").read_text())
    assert (card["seeds"], card["wall_s"], card["config"]) == ([1, 2], 4.0, {"lr": 1e-3})
    assert r"\includegraphics[width=\textwidth]{../figures/f.pdf}" in (folder / "paper/generated/fig_f.tex").read_text()
    plt.close(fig)


def test_smoke_never_replaces_a_figure_of_the_paper(folder: Path) -> None:
    fig, _ = plt.subplots()
    assert report.save_figure(fig, "f", caption="A", **FACTS | {"scale": "smoke"}) == folder / "figures/smoke/f.pdf"
    plt.close(fig)


def test_embedded_default_and_verdict_reach_the_summary(folder: Path) -> None:
    rows = [row("ls", s, 0.5, embedded_default=True) for s in range(2)]
    report.save_table(report.frame(rows), "t", caption="T", rows=rows, **FACTS)
    report.manifest({"kind": "verdict", "claim": "c"})
    assert [(e["kind"], e.get("name")) for e in lines(folder)] == [
        ("table", "t"),
        ("default", "census"),
        ("verdict", None),
    ]


MAKE = """
import matplotlib.pyplot as plt, pandas as pd, time
from mtl import report
from mtl.report import captions
from mtl.report import plots, style
facts = dict(caption="A", scale="quick", data="d", n=1, config={})
fig, axes = style.subplots(1, 2)
axes[0, 0].plot([0, 1], label="η"); axes[0, 1].scatter([0, 1], [1, 2]); axes[0, 0].legend()
report.save_figure(fig, "f", **facts)
report.save_table(pd.DataFrame({"a": [1.5, None], "b": ["x", "y"]}), "t", **facts)
"""


def test_bytes_repeat_in_another_process_at_another_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_ROOT", str(tmp_path / "here"))
    exec(MAKE, {})
    env = os.environ | {"MTL_ROOT": str(tmp_path / "there"), "PYTHONHASHSEED": "2", "MPLBACKEND": "agg"}
    subprocess.run([sys.executable, "-c", MAKE], env=env, check=True)
    made = []
    for place in ("here", "there"):
        files = sorted(p for p in (tmp_path / place).rglob("*.*") if p.suffix in {".pdf", ".png", ".tex", ".md"})
        made.append({p.name: p.read_bytes() for p in files})
    assert len(made[0]) == 5
    assert made[0] == made[1]
    for name, content in made[0].items():
        assert b"CreationDate" not in content and b"Software" not in content, name


def test_combined_rows_are_named_by_the_runs_that_they_were_made_of() -> None:
    row = {"key": "whole", "keys": ["a", "b"], "config": {"seed": 0}, "metrics": {}, "status": "ok"}
    path = report.save_table(pd.DataFrame({"x": [1]}), "combined", caption="T", **{**FACTS, "rows": [row]})
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["rows"] == ["a", "b"]


def test_facts_come_from_the_rows() -> None:
    rows = [row("ls", s, 0.5, source="Census rows") for s in range(2)]
    for one in rows:
        one["config"] |= {"scale": "quick", "model": "mmoe", "budget": {"epochs": 1}}
    path = report.save_table(pd.DataFrame({"x": [1]}), "t", caption="T", rows=rows, notebook="02_census")
    card = json.loads(path.with_suffix(".json").read_text())
    assert [card[name] for name in ("scale", "data", "n", "seeds")] == ["quick", "Census rows", "2 seeds", [0, 1]]
    assert card["config"] == {"budget": {"epochs": 1}, "model": "mmoe"}
    assert card["command"] == "mtl reproduce --notebooks 02_census --scale quick"
    with pytest.raises(ValueError, match="scale: give it where the rows do not say one, found none"):
        report.save_table(pd.DataFrame({"x": [1]}), "t", caption="T")
    with pytest.raises(ValueError, match="caption: say what t shows, found none"):
        report.save_table(pd.DataFrame({"x": [1]}), "t", **FACTS)


class Study:
    """What `report.save` asks for."""

    table = pd.DataFrame({"x": ["**1 ± 2**", "3 < 4"]}, ["a", "b"])
    facts = FACTS | {"command": "mtl run x"}


def test_a_study_is_saved_under_the_caption_made_with_it_and_bold_is_bold(folder: Path) -> None:
    Study.table.attrs["caption"] = "Its own"
    shown = report.save(Study(), "t")  # type: ignore[arg-type]
    assert shown is not None and "<b>1 ± 2</b>" in shown._repr_html_() and "3 &lt; 4" in shown._repr_html_()
    assert "*" not in repr(shown) + shown._repr_html_()
    fig = report.captioned(plt.subplots()[0], "A figure", n="9 points")
    assert report.save(Study(), "f", fig) is None  # type: ignore[arg-type]
    assert report.save(Study(), "g", fig, caption="Another", n=3) is None  # type: ignore[arg-type]
    plt.close(fig)
    said = {"paper/generated/t": ("Its own.", 3), "figures/f": ("A figure.", "9 points"), "figures/g": ("Another.", 3)}
    for path, (caption, n) in said.items():
        card = json.loads((folder / f"{path}.json").read_text())
        assert card["caption"].startswith(caption) and card["command"] == "mtl run x" and card["n"] == n


def test_a_table_shows_sentences_whole_and_to_the_left() -> None:
    html = report.Table(pd.DataFrame({"claim": ["x"], "evidence": ["long " * 50]}))._repr_html_()
    assert ("long " * 50).strip() in html and html.count("text-align: left") == 1


def test_a_file_is_written_again_only_where_its_substance_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(value: float, wall: float) -> dict[Path, tuple[int, bytes]]:
        fig, ax = plt.subplots()
        ax.plot([0, value])
        some = [row("ls", 0, value, wall_s=wall)]
        report.save_figure(fig, "f", caption="A", rows=some, **FACTS)
        report.save_table(pd.DataFrame({"x": [value]}), "t", caption="T", rows=some, **FACTS)
        plt.close(fig)
        files = [path for path in folder.rglob("*.*") if path.suffix in {".pdf", ".png", ".tex", ".md", ".json"}]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    first = make(1.0, 2.0)
    assert len(first) == 7
    monkeypatch.setitem(report.save_figure.__globals__, "provenance", lambda: {"created": "later", "git": "another"})
    assert make(1.0, 3.0) == first, "another time of making alone changes no byte"
    again = make(2.0, 3.0)
    assert all(again[path][0] > first[path][0] for path in first), "a changed number rewrites all of them together"
    assert {path.suffix for path in first if again[path][1] == first[path][1]} == {".tex"}, "but for the figure's place"
    (folder / "figures" / "f.png").unlink()
    assert make(2.0, 3.0).keys() == first.keys()


def test_no_file_hides_a_function_of_the_same_name() -> None:
    """`mtl.report` finds its names when asked: a file imported before must not stand in their place."""
    import importlib

    for name in report.__all__:
        with pytest.raises(ImportError):
            importlib.import_module(f"mtl.report.{name}")


@pytest.mark.parametrize("damage", [b"", b"[1]", b'{"kind": ', b"\xff"])
def test_a_damaged_side_car_is_made_anew(folder: Path, damage: bytes) -> None:
    facts = {"data": "d", "scale": "quick", "n": 1, "synthetic": True, "command": "c", "caption": "A."}
    path = report.save_table(pd.DataFrame({"a": [1.0]}), "t", **facts).with_suffix(".json")
    whole = json.loads(path.read_bytes())
    path.write_bytes(damage)
    report.save_table(pd.DataFrame({"a": [1.0]}), "t", **facts)
    assert {**json.loads(path.read_bytes()), "provenance": 0} == {**whole, "provenance": 0}


def test_a_label_cannot_leave_its_cell_or_stop_a_figure(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    facts = {"data": "d", "scale": "quick", "n": 1, "synthetic": True, "command": "c", "caption": "A\n<b>caption</b>."}
    label = "a\n| <script>x</script> [l](http://x) &lt; $\\frac{$ 1 < 2 & 3"
    path = report.save_table(pd.DataFrame({label: [label]}), "t", **facts).with_suffix(".md")
    cell = r"a \| &lt;script>x&lt;/script> [l]\(http://x) &amp;lt; $\frac{$ 1 < 2 & 3"
    assert path.read_text().startswith(f"| {cell} |\n| :--- |\n| {cell} |\n\nA &lt;b>caption&lt;/b>. Data")
    fig = plt.figure()
    axes = fig.subplots()
    axes.plot([1], label=label)
    axes.set_title(r"$x^2$ stays")
    axes.legend()
    axes.set_xticks([0], [r"$\frac{$"])
    axes.set_xlabel("two\nlines")
    assert report.save_figure(fig, "f", **facts).stat().st_size > 1000
    assert axes.title.get_parse_math() and not axes.get_legend().get_texts()[0].get_parse_math()
    assert not caplog.records, "no glyph for a line break"
    plt.close(fig)


def test_a_line_of_the_manifest_is_whole_or_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_MANIFEST", str(tmp_path / "m"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            captions.manifest({"kind": "x" * 300})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_bold_is_what_cannot_be_told_from_the_best() -> None:
    """paper/decision_rule.md, Display; the reference is no competitor, and two seeds tell nothing."""
    scores = {
        "stl": (1, 1, 1, 1),
        "best": (0.90, 0.91, 0.92, 0.93),
        "near": (0.92, 0.89, 0.93, 0.90),
        "far": (0.80, 0.81, 0.82, 0.83),
    }
    rows = [row(name, seed, value) for name, values in scores.items() for seed, value in enumerate(values)]
    shown = report.results_table(rows, {"t/auc": True}, reference_row="stl")["t/auc ↑"]
    assert [name for name, text in shown.items() if "**" in text] == ["best", "near"]
    few = report.results_table([one for one in rows if one["config"]["seed"] < 2], {"t/auc": True}, reference_row="stl")
    assert not few["t/auc ↑"].str.contains(r"\*|±").any()
