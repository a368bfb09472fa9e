"""Rules that every committed notebook keeps: thin, parametrised, a question and its answer."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mtl.cli.plan import plan
from mtl.report.claims import claims

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_CELLS = 15


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
    if values.get("scale") != "smoke":
        found.append(f'parameters must hold scale = "smoke", found {values.get("scale")!r}')
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path) -> None:
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)
    assert problems(json.loads(path.read_text(encoding="utf-8"))) == []


def test_no_picture_of_the_data_sets_own_images_is_committed() -> None:
    cells = json.loads((ROOT / "notebooks" / "06_table2_scenes.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = [cell for cell in cells if "panel_figure" in "".join(cell["source"])]
    assert [cell["outputs"] for cell in shown] == [[]]


def test_there_is_a_first_notebook() -> None:
    assert "00_start_here" in [path.stem for path in NOTEBOOKS]


def test_numbers_are_used_once() -> None:
    numbers = [path.stem[:2] for path in NOTEBOOKS]
    assert len(numbers) == len(set(numbers))


def cell(kind: str, source: str, *tags: str) -> dict[str, Any]:
    return {"cell_type": kind, "source": [source], "metadata": {"tags": list(tags)}}


def test_the_rules_can_fail() -> None:
    good: list[dict[str, Any]] = [
        cell("markdown", "# Which one?"),
        cell("code", 'scale = "smoke"\nn = -1', "parameters"),
    ]
    meta = {"kernelspec": {"name": "python3"}}
    assert problems({"cells": good, "metadata": meta}) == []
    cases = {
        "the kernel must be python3": {"cells": good, "metadata": {}},
        "the title must be a question, found '# Which one.'": {"cells": [cell("markdown", "# Which one."), good[1]]},
        "cell 3 defines f; definitions live in mtl/": {
            "cells": [*good, cell("code", "%time 1\nif 1:\n    def f(): ...")]
        },
        "16 cells, at most 15": {"cells": good + [cell("markdown", "x")] * 14},
        "the first code cell must be tagged parameters": {"cells": [good[0], cell("code", "1")]},
        "parameters are plain literals, found 'n = 1 + x'": {
            "cells": [good[0], cell("code", 'scale = "smoke"\nn = 1 + x', "parameters")]
        },
        "parameters must hold scale = \"smoke\", found 'quick'": {
            "cells": [good[0], cell("code", 'scale = "quick"', "parameters")]
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_verdicts_in_notebooks_name_known_claims(path: Path) -> None:
    text = "".join("".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code")
    named = set(re.findall(r"verdict\(\s*[\"']([^\"']+)[\"']", text))
    assert named <= {claim["id"] for claim in claims()}


def test_papermill_reads_every_parameter() -> None:
    """Its parser gives up silently on some comments; the plan of a run compares what it found with the cell itself."""
    names = {job.name for job in plan("smoke")}
    assert names == {path.stem for path in NOTEBOOKS}
