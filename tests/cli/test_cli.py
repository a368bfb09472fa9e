"""The command line: one clear sentence on errors, the right exit code, no traceback."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mtl.cli import app
from mtl.cli.doctor import Check
from mtl.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


def call(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def said(result: Result) -> str:
    return " ".join(result.output.split())


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    monkeypatch.delenv("MTL_DEBUG", raising=False)
    return tmp_path


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Data functions that fetch nothing; the list of names asked for."""
    asked: list[str] = []
    rows = [
        {"name": "here", "found": True, "where": "data/raw/here", "size": 2_000_000, "licence": "MIT", "route": "r"},
        {"name": "gone", "found": False, "where": "not found", "size": 0, "licence": "MIT", "route": "pip, gone==1"},
        {"name": "new", "found": False, "where": "not found", "size": 0, "licence": "MIT", "route": "pip, new==1"},
    ]

    def get(name: str) -> Path:
        asked.append(name)
        if name == "gone":
            raise DataError("gone: the package registry must be reachable,\n found no connection; check the network")
        return Path("data/raw") / name

    monkeypatch.setattr("mtl.problems.data.download.status", lambda: rows)
    monkeypatch.setattr("mtl.problems.data.download.get", get)
    return asked


def test_data_get_says_what_is_there_and_what_it_fetched(fetched: list[str]) -> None:
    result = call("data", "get", "here", "new")
    assert result.exit_code == 0 and fetched == ["here", "new"], "what is there is verified too"
    assert "here: fetching" not in said(result)
    assert "here: found, data/raw/here" in said(result) and "new: now in data/raw/new" in said(result)


def test_data_get_goes_on_after_a_failure_and_says_it(fetched: list[str]) -> None:
    result = call("data", "get", "gone", "new")
    assert result.exit_code == 1 and fetched == ["gone", "new"]
    assert "mtl: gone: the package registry must be reachable, found no connection; check the network" in result.output


def test_data_get_of_an_unknown_name(fetched: list[str]) -> None:
    result = call("data", "get", "nowhere")
    assert result.exit_code == 1 and fetched == []
    assert said(result) == "mtl: data get: one of here, gone, new, found 'nowhere'"


def test_data_list_and_where(fetched: list[str]) -> None:
    assert "here yes 2.0 MB MIT" in said(call("data", "list"))
    assert "gone: not found in $MTL_DATA, data/raw or ../shared/data" in said(call("data", "where"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("reproduce",), "mtl: notebooks: expected files notebooks/NN_name.ipynb under"),
        (("reproduce", "-p", "seeds"), "mtl: -p: expected key=value, found 'seeds'"),
        (("reproduce", "--scale", "huge"), "mtl: scale: one of smoke, quick, paper, found 'huge'"),
        (("claims",), "mtl: paper/claims.yml is not in"),
    ],
)
def test_errors_are_one_sentence(root: Path, fetched: list[str], words: tuple[str, ...], sentence: str) -> None:
    result = call(*words)
    assert result.exit_code == 1
    assert said(result).startswith(sentence) and "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_debug_shows_the_traceback(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_DEBUG", "1")
    assert isinstance(call("claims").exception, DataError)


def test_ctrl_c_says_how_to_go_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mtl.cli.reproduce.reproduce", stop)
    result = call("reproduce")
    assert result.exit_code == 130 and "mtl: interrupted; the same command goes on from here" in said(result)


def test_dry_run_lists_and_runs_nothing(root: Path, fetched: list[str]) -> None:
    first = {"cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]}, "source": 'scale = "smoke"'}
    cells = [first | {"outputs": [], "execution_count": None}]
    meta = {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
    (root / "notebooks").mkdir()
    notebook = {"cells": cells, "metadata": meta, "nbformat": 4, "nbformat_minor": 5}
    (root / "notebooks/00_start.ipynb").write_text(json.dumps(notebook))
    result = call("reproduce", "--dry-run", "--scale", "smoke")
    assert result.exit_code == 0 and said(result) == "00_start: would run"
    assert not (root / "figures").exists()
    typo = call("reproduce", "--dry-run", "-p", "scal=smoke")
    assert typo.exit_code == 1 and "00_start.ipynb has scale; found 'scal' (nearest: scale)" in said(typo)


def test_claims_of_this_checkout_without_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper/claims.yml").write_text((ROOT / "paper/claims.yml").read_text())
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    rows = [line for line in call("claims").output.splitlines() if line.startswith(("emtl", "fairgrad", "gap"))]
    assert len(rows) >= 20 and all("not run" in row for row in rows)


def test_doctor_looks_at_everything(fetched: list[str]) -> None:
    result = call("doctor")
    assert result.exit_code == 0, result.output
    for what in ("python", "torch build", "device", "cores", "constraints.txt", "data: gone", "free disk", "ledger"):
        assert what in result.output


def test_doctor_s_exit_code_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl.cli.doctor.examine", lambda: [Check("torch", "not installed", "WRONG")])
    result = call("doctor")
    assert result.exit_code == 1 and "torch not installed WRONG" in said(result)


def test_doctor_reports_a_damaged_ledger(root: Path, fetched: list[str]) -> None:
    (root / "data/ledger").mkdir(parents=True)
    (root / "data/ledger/census.jsonl").write_text('{"key": "a"}\nnonsense\n{"key": "b"}\n')
    result = call("doctor")
    assert result.exit_code == 1 and "census.jsonl: line 2 is not a ledger row" in said(result)
