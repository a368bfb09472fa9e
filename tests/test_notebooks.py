"""Rules that every committed notebook keeps: a question, its answer below it, parameters, thin cells, no log."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mtl.cli.plan import plan
from mtl.experiments.registry import EXPERIMENTS
from mtl.methods import METHODS
from mtl.report.verdicts import claims
from tests.nbval_copies import MARK, copies

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_CELLS, MOST_LINES, LONGEST = 15, 40, 100
SOURCES = [*(ROOT / "mtl" / "experiments").rglob("*.py"), *NOTEBOOKS]


NUMBER = r"(?<![\w.^])(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?(?!\w)"


def unshown(answer: str, cells: list[dict[str, Any]]) -> list[str]:
    """Numbers of the answer that none of the outputs rounds to: text, tables, captions of pictures."""
    shown = []
    for out in (out for cell in cells for out in cell.get("outputs", [])):
        shown += [json.dumps(out.get("text", "")), json.dumps(out.get("metadata", {}), ensure_ascii=False)]
        shown += [re.sub(r"<[^>]+>", " ", "".join(v)) for k, v in out.get("data", {}).items() if k.startswith("text/")]
    there = [abs(float(x)) for x in re.findall(r"(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?", " ".join(shown))]

    def is_shown(number: str) -> bool:
        unit = 0.0 if "e" in number else 10.0 ** -len(number.partition(".")[2])
        return any(abs(x - float(number)) <= 0.5 * unit + 1e-9 * x for x in there)

    return [x for x in re.findall(NUMBER, re.sub(r"`[^`]*`|\$[^$]*\$", "", answer)) if not is_shown(x)]


def problems(notebook: dict[str, Any]) -> list[str]:
    """What is wrong with a notebook, in words; empty where nothing is."""
    found = []
    cells = notebook["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    if len(cells) > MOST_CELLS:
        found.append(f"{len(cells)} cells, at most {MOST_CELLS}")
    title = "".join(cells[0]["source"]).strip().splitlines()[0] if cells and cells[0]["source"] else ""
    if cells[0]["cell_type"] != "markdown" or not re.fullmatch(r"# .+\?", title):
        found.append(f"the title must be a question, found {title!r}")
    answer = "".join(cells[0]["source"]).strip().split("\n\n")[1:2]
    if not answer or not re.fullmatch(r"\*\*[^*]+[.]\*\*", answer[0].replace("\n", " ")):
        found.append("the answer stands below the title, one bold sentence")
    lines = [line for cell in code for line in "".join(cell["source"]).splitlines() if line.strip()]
    if len(lines) > MOST_LINES:
        found.append(f"{len(lines)} lines of code, at most {MOST_LINES}")
    if long := [line for line in lines if len(line) > LONGEST]:
        found.append(f"{len(long)} lines of more than {LONGEST} characters, the first {long[0][:40]!r}")
    for number, cell in enumerate(cells, start=1):
        kept = MARK in "".join(cell["source"])  # a table that nbval compares is no log
        told = [out for out in cell.get("outputs", []) if out["output_type"] == "stream" and not kept]
        if sum("".join(out["text"]).count("\n") for out in told) > MOST_LINES:
            found.append(f"cell {number} leaves a log in its output")
        metadata = [out["metadata"] for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
        if any(len(one.get("image/png", {}).get("alt", "")) < 20 for one in metadata):
            found.append(f"cell {number} has a picture without alternative text; .ci/outputs --alt gives it")
        if cell.get("outputs") and not cell.get("execution_count"):
            found.append(f"cell {number} has outputs but no number, which nbval takes for not run")
        shown = json.dumps([out.get("data", {}).get("text/html", "") for out in cell.get("outputs", [])])
        if "**" in shown:
            found.append(f"cell {number} shows ** in a table")
    if answer and (lost := unshown(answer[0], cells)):
        found.append(f"the answer has numbers that no output shows: {', '.join(lost)}")
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel must be python3")
    for number, cell in enumerate(cells, start=1):
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        plain = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        for node in ast.walk(ast.parse(plain)):
            if isinstance(node, kinds):
                found.append(f"cell {number} defines {node.name}; definitions live in mtl/")
    if not code or "parameters" not in code[0]["metadata"].get("tags", []):
        return [*found, "the first code cell must be tagged parameters"]
    values = {}
    for node in ast.parse("".join(code[0]["source"])).body:
        try:
            assert isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and len(node.targets) == 1
            values[node.targets[0].id] = ast.literal_eval(node.value)
        except (AssertionError, ValueError):
            found.append(f"parameters are plain literals, found {ast.unparse(node)!r}")
    if values.get("scale") != "quick":
        found.append(f'parameters must hold scale = "quick", found {values.get("scale")!r}')
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path) -> None:
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)
    assert problems(json.loads(path.read_text(encoding="utf-8"))) == []


def test_notebooks_are_linted_as_code() -> None:
    named = map(str, NOTEBOOKS)
    for words in (["check"], ["format", "--check"]):
        call = [sys.executable, "-m", "ruff", *words, *named]
        done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr


def test_no_picture_of_the_data_sets_own_images_is_committed() -> None:
    cells = json.loads((ROOT / "notebooks" / "06_table2_scenes.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = [cell for cell in cells if "panel" in "".join(cell["source"])]
    kinds = [set(out.get("data", {})) for cell in shown if cell["cell_type"] == "code" for out in cell["outputs"]]
    assert len(shown) == 2 and not any("image/png" in kind for kind in kinds)


def test_every_method_has_a_line_in_the_gallery() -> None:
    cells = json.loads((ROOT / "notebooks" / "10_methods.ipynb").read_text(encoding="utf-8"))["cells"]
    told = " ".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    labels = {made.label for made in METHODS.values()} - {"Fair loss"}
    assert [label for label in sorted(labels) if f"**{label}**" not in told] == []


def test_the_pairs_that_the_answer_counts_are_those_of_the_figure() -> None:
    text = (ROOT / "notebooks" / "03_table1_recommendation.ipynb").read_text(encoding="utf-8")
    caption = json.loads((ROOT / "figures" / "table1_equal_matrix.json").read_text(encoding="utf-8"))["caption"]
    pairs = re.findall(r"(\d+) of (\d+) pairs practically equal", caption)
    equal, every = (sum(map(int, column)) for column in zip(*pairs, strict=True))
    assert f"{equal} of {every} pairs" in text


def test_a_notebook_shows_the_published_rows_of_its_study() -> None:
    """loss_scale.study and readings.study look for them themselves."""
    shown = re.compile(r"declared\(|published\(|latest\(")
    made = {one.notebook for one in EXPERIMENTS.values() if one.notebook and "study" in one.seeds}
    text = {name: (ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8") for name in made}
    assert [name for name, own in sorted(text.items()) if not shown.search(own)] == ["05_loss_scale"]


def test_there_is_a_first_notebook() -> None:
    assert "00_start_here" in [path.stem for path in NOTEBOOKS]


def test_numbers_are_used_once() -> None:
    numbers = [path.stem[:2] for path in NOTEBOOKS]
    assert len(numbers) == len(set(numbers))


def cell(kind: str, source: str, *tags: str) -> dict[str, Any]:
    return {"cell_type": kind, "source": [source], "metadata": {"tags": list(tags)}}


def test_the_rules_can_fail() -> None:
    good: list[dict[str, Any]] = [
        cell("markdown", "# Which one?\n\n**This one, at scale quick.**"),
        cell("code", 'scale = "quick"\nn = -1', "parameters"),
    ]
    meta, ran = {"kernelspec": {"name": "python3"}}, {"execution_count": 1}

    def html(text: str) -> dict[str, Any]:
        return {"output_type": "x", "data": {"text/html": [text]}}

    assert problems({"cells": good, "metadata": meta}) == []
    cases = {
        "the kernel must be python3": {"cells": good, "metadata": {}},
        "the title must be a question, found '# Which one.'": {
            "cells": [cell("markdown", "# Which one.\n\n**This.**"), good[1]]
        },
        "cell 3 defines f; definitions live in mtl/": {
            "cells": [*good, cell("code", "%time 1\nif 1:\n    def f(): ...")]
        },
        "16 cells, at most 15": {"cells": good + [cell("markdown", "x")] * 14},
        "the first code cell must be tagged parameters": {"cells": [good[0], cell("code", "1")]},
        "parameters are plain literals, found 'n = 1 + x'": {
            "cells": [good[0], cell("code", 'scale = "quick"\nn = 1 + x', "parameters")]
        },
        "parameters must hold scale = \"quick\", found 'smoke'": {
            "cells": [good[0], cell("code", 'scale = "smoke"', "parameters")]
        },
        "the answer has numbers that no output shows: 7.5": {
            "cells": [
                cell("markdown", "# Which?\n\n**7.5 of 12, up to 1e-3, not .04 ($x^2$, `n3`).**"),
                good[1],
                cell("code", "1")
                | ran
                | {
                    "outputs": [
                        html("<b>11.96</b> 7.56"),
                        {
                            "output_type": "stream",
                            "text": ["12, 0.001"],
                            "metadata": {"image/png": {"alt": "a caption of twenty letters, .0402"}},
                        },
                    ]
                },
            ]
        },
        "the answer stands below the title, one bold sentence": {
            "cells": [cell("markdown", "# Which one?\n\nIt depends."), good[1]]
        },
        "41 lines of code, at most 40": {"cells": [*good, cell("code", "x = 1\n" * 39)]},
        f"1 lines of more than 100 characters, the first {'x' * 40!r}": {"cells": [*good, cell("code", "x" * 101)]},
        "cell 3 leaves a log in its output": {
            "cells": [
                *good,
                cell("code", "1") | ran | {"outputs": [{"output_type": "stream", "text": ["[1/9] done\n"] * 41}]},
            ]
        },
        "cell 3 shows ** in a table": {"cells": [*good, cell("code", "1") | ran | {"outputs": [html("**1**")]}]},
        "cell 3 has a picture without alternative text; .ci/outputs --alt gives it": {
            "cells": [
                *good,
                cell("code", "1")
                | ran
                | {"outputs": [{"output_type": "x", "metadata": {}, "data": {"image/png": ""}}]},
            ]
        },
        "cell 3 has outputs but no number, which nbval takes for not run": {
            "cells": [*good, cell("code", "1") | {"execution_count": None, "outputs": [html("1")]}]
        },
    }
    for said, notebook in cases.items():
        assert problems({"metadata": meta} | notebook) == [said]


def test_claims_are_complete_and_named_once() -> None:
    found = claims()
    names = [claim["id"] for claim in found]
    assert len(names) == len(set(names)) and all(re.fullmatch(r"[a-z0-9-]+", name) for name in names)
    assert {claim["paper"] for claim in found} == {"EMTL", "FairGrad"}
    assert not [claim["id"] for claim in found if not all(str(value).strip() for value in claim.values())]


def test_copies_for_nbval_are_of_smoke_and_keep_what_is_compared(tmp_path: Path) -> None:
    made = copies(tmp_path)
    assert [path.name for path in made] == [path.name for path in NOTEBOOKS]
    for path in made:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        injected = [c for c in cells if "injected-parameters" in c["metadata"].get("tags", [])]
        assert 'scale = "smoke"' in "".join(injected[0]["source"])
        assert not [c for c in cells if c.get("outputs") and MARK not in "".join(c["source"])]


def test_papermill_reads_every_parameter() -> None:
    """Its parser gives up silently on some comments; the plan of a run compares what it found with the cell itself."""
    names = {job.name for job in plan("smoke")}
    assert names == {path.stem for path in NOTEBOOKS}
