"""The comparison behind the kill-and-resume check can fail; the check itself takes minutes: benchmarks/kill_resume."""

import json
from pathlib import Path

import pytest

from benchmarks.kill_resume import differences, prepare, results


def fill(folder: Path) -> Path:
    for name in ("figures/smoke", "figures/executed", "paper/generated", "data/ledger/local/census"):
        (folder / name).mkdir(parents=True)
    (folder / "figures/smoke/toy.png").write_bytes(b"picture")
    (folder / "figures/smoke/toy.json").write_text(
        json.dumps({"n": 5, "wall_s": 1.0, "provenance": {"created": "now"}})
    )
    (folder / "figures/executed/a.json").write_text("{}")
    (folder / "paper/generated/t.tex").write_text("0.91")
    row = {"key": "a", "status": "ok", "metrics": {"auc": 0.9}, "wall_s": 3.0}
    (folder / "data/ledger/local/census/a.json").write_text(json.dumps(row))
    return folder


def test_equal_roots_are_equal_and_time_does_not_count(tmp_path: Path) -> None:
    one, other = fill(tmp_path / "one"), fill(tmp_path / "other")
    (other / "figures/smoke/toy.json").write_text(
        json.dumps({"n": 5, "wall_s": 2.0, "provenance": {"created": "later"}})
    )
    expected = ["figures/smoke/toy.json", "figures/smoke/toy.png", "paper/generated/t.tex", "row census a"]
    assert sorted(results(one)) == expected
    assert differences(results(one), results(other)) == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("figures/smoke/toy.png", "another", "figures/smoke/toy.png: not equal"),
        ("figures/smoke/toy.json", '{"n": 4}', "figures/smoke/toy.json: not equal"),
        ("paper/generated/t.tex", "0.92", "paper/generated/t.tex: not equal"),
        ("paper/generated/u.tex", "0.92", "paper/generated/u.tex: only in the killed run"),
        ("data/ledger/local/census/a.json", '{"key": "a", "metrics": {"auc": 0.8}}', "row census a: not equal"),
        ("data/ledger/local/census/b.json", '{"key": "b"}', "row census b: only in the killed run"),
    ],
)
def test_a_difference_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    one, other = fill(tmp_path / "one"), fill(tmp_path / "other")
    (other / name).write_text(text)
    assert differences(results(one), results(other)) == [said]


def test_a_second_root_has_the_inputs_and_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(tmp_path / "source")
    (source / "notebooks").mkdir()
    (source / "notebooks/00_start.ipynb").write_text("{}")
    (source / "data/ledger/census.jsonl").write_text("{}\n")
    monkeypatch.setenv("MTL_ROOT", str(source))
    made = prepare(tmp_path / "made")
    files = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
    assert files == ["data/ledger/census.jsonl", "notebooks/00_start.ipynb"]
