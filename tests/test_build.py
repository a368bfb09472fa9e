"""pyproject.toml, constraints.txt, environment.yml, Makefile and .ci/run say the same thing."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import mtl

ROOT = Path(__file__).resolve().parent.parent
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = SETTINGS["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def pins(path: Path) -> dict[str, str]:
    """Name -> exact version of a constraints file; ValueError for a line that is not `name==version`."""
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if text := line.partition("#")[0].strip():
            name, sign, exact = text.partition("==")
            if not sign or not exact or any(c in text for c in " @+;/*"):
                raise ValueError(f"{path.name}: line {number} must be name==version, found {text!r}")
            found[canonicalize_name(name)] = exact
    return found


PINS = pins(ROOT / "constraints.txt")


def requirements() -> list[Requirement]:
    every = [Requirement(text) for text in [*PROJECT["dependencies"], *(t for group in EXTRAS.values() for t in group)]]
    return [one for one in every if one.name != "mtl"]  # an extra that holds another


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_each_requirement_is_pinned_within_its_range(requirement: Requirement) -> None:
    pin = PINS.get(canonicalize_name(requirement.name))
    assert pin is not None, f"{requirement.name} has no line in constraints.txt"
    assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} excludes the pin {pin}"


def test_constraints_name_released_versions_only() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"^-e|://|\+|@", text, flags=re.M)
    assert all(Version(pin).local is None for pin in PINS.values())
    assert "mtl" not in PINS


def test_torch_is_the_cpu_build_s_version_and_the_metadata_only_asks_for_recent() -> None:
    assert PINS["torch"] == "2.13.0"
    assert "torch>=2.6" in PROJECT["dependencies"]
    assert not [name for name in PINS if name.startswith(("nvidia-", "triton"))], (
        "a build with GPU libraries was frozen"
    )


def test_a_malformed_pin_is_named(tmp_path: Path) -> None:
    for line in ("torch>=2", "torch==2.13.0+cpu", "torch @ file:///x", "torch"):
        (tmp_path / "constraints.txt").write_text(f"# versions\n{line}\n")
        with pytest.raises(ValueError, match=r"constraints.txt: line 2 must be name==version, found 'torch"):
            pins(tmp_path / "constraints.txt")


def test_the_pins_are_closed_under_dependencies() -> None:
    """Whatever an install of the extras pulls in has a pin, so that tomorrow's install is today's."""
    todo = [(Requirement(f"mtl[{extra}]"), extra) for extra in ("notebooks", "test")]
    seen: set[tuple[str, str]] = set()
    unpinned = set()
    while todo:
        requirement, _ = todo.pop()
        name = canonicalize_name(requirement.name)
        if name not in PINS and name != "mtl":
            unpinned.add(name)
        try:
            declared = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        for extra in requirement.extras or {""}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in declared:
                child = Requirement(text)
                if child.marker is None or any(child.marker.evaluate({"extra": e}) for e in {"", extra}):
                    todo.append((child, extra))
    assert not unpinned


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="not the environment that make setup creates")
def test_this_environment_is_the_pinned_one() -> None:
    other = {}
    for name, pin in PINS.items():
        try:
            have = distribution(name).version.partition("+")[0]
        except PackageNotFoundError:
            continue
        if have != pin:
            other[name] = (have, pin)
    assert not other


def test_environment_yml() -> None:
    found = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python, pip, from_pip = found
    assert pip == "pip"
    assert from_pip == {"pip": ["-c constraints.txt", "-e .[notebooks,test]"]}
    assert {"notebooks", "test"} <= EXTRAS.keys()
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.partition("=")[2])


def test_make_installs_torch_first_alone_and_by_its_pin() -> None:
    text = (ROOT / "Makefile").read_text()
    installs = [line for line in text.splitlines() if "-m pip install" in line]
    assert len(installs) == 3 and all("-c constraints.txt" in line for line in installs)
    assert "grep '^torch==' constraints.txt" in installs[0] and "-e" not in installs[0].split()
    assert '-e ".[notebooks,test]"' in installs[1] and '-e ".[docs]"' in installs[2]
    assert (ROOT / "constraints.txt").read_text().count("\ntorch==") == 1


def test_ci_runs_make_test_and_nothing_cleverer() -> None:
    script = ROOT / ".ci" / "run"
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert os.access(script, os.X_OK)
    assert lines[0] == "set -e" and "make test" in lines[-1] and len(lines) <= 4


def test_make_help_names_each_target() -> None:
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("setup", "figures", "data", "test", "lab", "bench", "clean"):
        assert f"make {target}" in done.stdout


@pytest.mark.parametrize(
    "given",
    [
        "SCALE=study",
        "SCALE=quick smoke",
        "SCALE=$(shell touch run)",
        "NOTEBOOKS=00; touch run",
        "NOTEBOOKS=00 01",
        'NOTEBOOKS=00"',
        "JOBS=2x",
        "FRESH=yes",
        "SLOW=yes",
        "ENGINE=dask",
        "ENGINE=ray; touch run",
        "ADDRESS=host:1 $(shell touch run)",
        "TEST_JOBS=2 && touch run",
        "PYTHON=`touch run`",
        "TORCH_ARGS=--pre 'x'",
        "LAB_ARGS=--ip=$(shell touch run)",
    ],
)
def test_make_looks_at_a_value_before_the_shell_does(tmp_path: Path, given: str) -> None:
    call = ["make", "-s", "-f", str(ROOT / "Makefile"), "help", given]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    name, _, value = given.partition("=")
    assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.iterdir())
    assert re.search(rf"\*\*\* {name}: .*, found '{re.escape(value)}'", done.stderr) and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "command"),
    [
        (
            ["figures", "NOTEBOOKS=00,01_toy", "JOBS=2", "FRESH=1"],
            "--scale quick --notebooks 00,01_toy --jobs 2 --fresh",
        ),
        (["figures", "SCALE=smoke", "FRESH=0"], "--scale smoke"),
        (["figures", "ENGINE=ray", "ADDRESS=head:6379"], "--scale quick --engine ray --address head:6379"),
        (["figures"], "reproduce --scale quick --without 19"),
        (["figures", "RL=1"], "reproduce --scale quick"),
        (
            ["lab", "LAB_ARGS=--allow-root --ip=0.0.0.0"],
            "jupyterlab --allow-root --ip=0.0.0.0 notebooks/00_start_here.ipynb",
        ),
        (["setup", "TORCH_ARGS=--index-url https://a.b/c"], "--index-url https://a.b/c"),
    ],
)
def test_make_passes_values_on(tmp_path: Path, given: list[str], command: str) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = subprocess.run(["make", "-n", *given], cwd=tmp_path, capture_output=True, text=True, check=True)
    said = " ".join(done.stdout.split())
    assert command in said and ("--without" in said) == (
        given[0] == "figures" and not {"RL=1", "NOTEBOOKS=00,01_toy"} & {*given}
    )


def test_figures_fetch_no_data_that_no_notebook_reads() -> None:
    (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if "data get" in line and "||" in line]
    assert " get census ||" in line


def test_the_workflow_runs_the_same_command_on_each_python() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]
    *_, weekly, last = jobs["test"]["steps"]
    assert last == {"run": ".ci/run"}
    assert weekly["if"] == "github.event_name == 'schedule'" and weekly["run"].endswith('-e ".[molecules]"')
    supported = SpecifierSet(PROJECT["requires-python"])
    assert all(supported.contains(python) for python in jobs["test"]["strategy"]["matrix"]["python"])


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "mtl/py.typed").is_file() and "py.typed" in SETTINGS["tool"]["setuptools"]["package-data"]["mtl"]


def test_make_says_what_is_wrong_with_a_python(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    call = ["make", "setup", "PYTHON=/no/such/python"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "PYTHON=/no/such/python does not start as Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_citation_names_both_papers_and_no_person_for_the_software() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["authors"] == [{"name": "the mtl authors"}]
    assert citation["version"] == mtl.__version__
    numbers = [identifier["value"] for paper in citation["references"] for identifier in paper["identifiers"]]
    assert numbers == ["arXiv:2306.09373", "arXiv:2402.15638"]


def test_sentences_of_the_paper_refer_to_what_stands_in_it_and_to_all_of_it() -> None:
    text = "".join(path.read_text() for path in sorted((ROOT / "paper/sections").glob("*.tex")))
    shown = [ROOT / f"paper/{name}.tex" for name in re.findall(r"\\(?:input|generated){(generated/\w+)}", text)]
    floats = [label for path in shown for label in re.findall(r"\\label{([^}]+)}", path.read_text())]
    assert len(floats) > 30
    found = set(re.findall(r"ref{([^}]+)}", text))
    assert not set(floats) - found, "a float that no sentence refers to"
    assert not found - {*floats, *re.findall(r"\\label{([^}]+)}", text)}, "a sentence that refers to nothing"
    cited = {key for keys in re.findall(r"\\cite{([^}]+)}", text) for key in keys.split(",")}
    assert cited <= set(re.findall(r"^@\w+{(\w+),", (ROOT / "paper/references.bib").read_text(), flags=re.M))


@pytest.mark.skipif(shutil.which("latexmk") is None, reason="no latexmk")
def test_the_paper_typesets(tmp_path: Path) -> None:
    """main.tex with the committed tables, figures and proofs: no error, no undefined reference, all on the page."""
    for folder in ("paper", "figures"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", f"-outdir={tmp_path / 'out'}", "main"]
    run = subprocess.run(command, cwd=tmp_path / "paper", capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-2000:]
    log = (tmp_path / "out" / "main.log").read_text(errors="replace")
    assert not re.search(r"^LaTeX Warning: .*(undefined|multiply)", log, flags=re.M)
    wide = [float(size) for size in re.findall(r"^Overfull \\hbox \(([\d.]+)pt", log, flags=re.M)]
    assert max(wide, default=0.0) < 10
    (page,) = re.findall(r"newlabel{fig:verdicts}{{1}{(\d+)}", (tmp_path / "out" / "main.aux").read_text())
    assert int(page) <= 2, "the verdicts are looked for on the first two pages"
    if shutil.which("pdffonts"):
        fonts = subprocess.run(["pdffonts", tmp_path / "out/main.pdf"], capture_output=True, text=True, check=True)
        assert "Type 3" not in fonts.stdout
