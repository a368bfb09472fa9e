"""What a number depends on is found from imports, so that a new benchmark or method makes no other row stale."""

from pathlib import Path

import pytest

from mtl import sources
from mtl.methods import METHODS
from mtl.problems import PROBLEMS

RUN = ["mtl.problems.census", "mtl.methods.emtl", "mtl.training.fit"]


def test_a_row_depends_on_its_own_modules_and_on_no_other_method_or_problem() -> None:
    found = set(sources.closure(RUN))
    assert {"mtl.solvers.kl", "mtl.models.recsys", "mtl.gradients.update", "mtl.training.loop"} <= found
    assert not {"mtl.methods.gram", "mtl.problems.scenes.nyuv2", "mtl.methods", "mtl.problems", "mtl"} & found
    assert not [name for name in found if name.startswith(("mtl.report", "mtl.experiments", "mtl.cli", "mtl.runs"))]


def test_every_registered_name_has_a_module() -> None:
    assert {k: kind.__module__ for k, kind in METHODS.items()} == sources.entries("mtl.methods")
    assert {k: kind.__module__ for k, kind in PROBLEMS.items()} == sources.entries("mtl.problems")


NOTEBOOK = """
from mtl import report
from mtl.problems import problem
data = problem("census")
methods = ["emtl", "ls"]
"""


def test_what_is_new_and_unrelated_changes_no_hash_and_no_notebook(package: Path) -> None:
    row, notebook = sources.digest(RUN), sources.used_by(NOTEBOOK)
    bytes_before = {name: path.read_bytes() for name, path in notebook.items()}
    for new in ("problems/fresh.py", "methods/fresh.py", "experiments/fresh.py"):
        (package / new).write_text('"""New."""\n\n\nclass Fresh:\n    pass\n')
    for room, registry, file in (("methods", "METHODS", "__init__.py"), ("problems", "PROBLEMS", "registry.py")):
        face = package / room / file
        text = face.read_text()
        text = text.replace("\n\nfrom", f"\n\nfrom mtl.{room}.fresh import Fresh\nfrom", 1)
        head, sep, tail = text.partition(f"{registry}: dict")
        first, brace, rest = tail.partition("= {\n")
        face.write_text(head + sep + first + brace + '    "fresh": Fresh,\n' + rest)
        assert sources.entries(f"mtl.{room}")["fresh"] == f"mtl.{room}.fresh"
    assert sources.digest(RUN) == row
    after = sources.used_by(NOTEBOOK)
    assert {name: path.read_bytes() for name, path in after.items()} == bytes_before
    assert "mtl.methods.fresh" in sources.used_by(NOTEBOOK + 'extra = "fresh"\n')
    assert "mtl.methods.fresh" in sources.used_by("from mtl.methods import METHODS\n")


@pytest.mark.parametrize("name", ["solvers/kl.py", "methods/emtl.py", "training/loop.py", "gradients/__init__.py"])
def test_a_change_on_the_way_of_a_run_changes_its_hash(package: Path, name: str) -> None:
    before = sources.digest(RUN)
    (package / name).write_text((package / name).read_text() + "# changed\n")
    assert sources.digest(RUN) != before


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"module: must be a module of mtl, found 'mtl.nothing'"):
        sources.closure(["mtl.nothing"])
