"""The ledger: keys, rows that survive crashes and company, provenance."""

import json
import math
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtl import ledger as module
from mtl.errors import DataError
from mtl.ledger import Ledger, canonical, key, ledger, plain, provenance, sources, stale

CONFIG = {"method": "emtl", "hyper": {"alpha": 0.5, "rho": 0.3}, "seed": 0, "tasks": (1, 2)}


def test_key_is_pinned() -> None:
    """Published rows are found by it: it must never change."""
    assert key(CONFIG, "f00d") == "a2c78a47eff0cfbe"


def test_key_ignores_order_and_kind_of_number() -> None:
    other = {"tasks": [1.0, 2], "seed": np.int64(0), "hyper": {"rho": 0.3, "alpha": np.float64(0.5)}, "method": "emtl"}
    assert key(CONFIG, "f00d") == key(other, "f00d")
    assert key({"a": -0.0}, "x") == key({"a": 0}, "x")


@pytest.mark.parametrize("change", [{"seed": 1}, {"hyper": {"alpha": 0.5}}, {"seed": None}, {"seed": False}, {"x": 1}])
def test_key_tells_configurations_apart(change: dict[str, object]) -> None:
    assert key({**CONFIG, **change}, "f00d") != key(CONFIG, "f00d")


def test_key_depends_on_data() -> None:
    assert key(CONFIG, "f00d") != key(CONFIG, "beef")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_key_refuses_non_finite(bad: float) -> None:
    with pytest.raises(ValueError, match=r"config\.hyper\.rho: a key is made of finite numbers, found -?(nan|inf)"):
        key({"hyper": {"rho": bad}}, "")


def test_key_refuses_objects() -> None:
    with pytest.raises(TypeError, match=r"config\.m\[0\]: a key is made of numbers.*found object"):
        key({"m": [object()]}, "")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_canonical_survives_json(value: object) -> None:
    once = canonical(value)
    assert canonical(json.loads(json.dumps(once))) == once


def test_plain_makes_null_of_nan() -> None:
    found = plain({"a": [math.nan, np.float32(1.5)], "b": torch.tensor([math.inf]), "c": (np.nan, "x", True)})
    assert found == {"a": [None, 1.5], "b": [None], "c": [None, "x", True]}


def test_rows_come_back_and_last_key_wins(tmp_path) -> None:
    book = Ledger(tmp_path / "deep" / "a.jsonl")
    assert book.rows() == [] and book.find("k") is None
    book.append({"key": "k", "metrics": {"auc": math.nan}})
    book.append({"key": "other"})
    book.append({"key": "k", "metrics": {"auc": 0.5}})
    assert [row["key"] for row in book.rows()] == ["k", "other", "k"]
    assert book.rows()[0]["metrics"] == {"auc": None}
    assert book.find("k") == {"key": "k", "metrics": {"auc": 0.5}}


def test_row_needs_a_key(tmp_path) -> None:
    with pytest.raises(ValueError, match="row: a ledger row needs a key, found None"):
        Ledger(tmp_path / "a.jsonl").append({"metrics": {}})
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize("cut", [1, 7, 20])
@pytest.mark.parametrize("first", ["rows", "append"])
def test_torn_last_line_is_set_aside(tmp_path, cut: int, first: str) -> None:
    path = tmp_path / "a.jsonl"
    book = Ledger(path)
    for name in "ab":
        book.append({"key": name, "text": "line"})
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:cut])
    with pytest.warns(
        UserWarning, match=rf"a.jsonl: the last line was torn by a crash \({cut} bytes\).*a.jsonl.torn-1"
    ):
        _ = book.rows() if first == "rows" else book.append({"key": "c"})
    assert (tmp_path / "a.jsonl.torn-1").read_bytes() == whole[:cut]
    assert [row["key"] for row in book.rows()] == (["a", "b"] if first == "rows" else ["a", "b", "c"])
    path.write_bytes(path.read_bytes() + b'{"key')
    with pytest.warns(UserWarning, match="torn-2"):
        book.rows()


def test_every_cut_keeps_the_rows_before_it(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    book = Ledger(path)
    for name in "ab":
        book.append({"key": name})
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first + 1, len(whole)):
        path.write_bytes(whole[:cut])
        if cut == len(whole) - 1:  # only the end of line is missing: the row is whole
            assert [row["key"] for row in book.rows()] == ["a", "b"]
            assert path.read_bytes() == whole
        else:
            with pytest.warns(UserWarning, match="torn"):
                assert [row["key"] for row in book.rows()] == ["a"]


def test_damage_inside_is_an_error(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"key": "a"}\n{"key": \n{"key": "c"}\n')
    with pytest.raises(DataError, match=r"a.jsonl: line 2 is not a ledger row"):
        Ledger(path).rows()


def _write(path: str, name: str, n: int) -> None:
    book = Ledger(path)
    for i in range(n):
        book.append({"key": f"{name}{i}", "padding": "x" * 500})


def test_two_processes_lose_nothing(tmp_path) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write, args=(str(tmp_path / "a.jsonl"), name, 200)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)
    found = [row["key"] for row in Ledger(tmp_path / "a.jsonl").rows()]
    assert sorted(found) == sorted(f"{name}{i}" for name in "ab" for i in range(200))
    assert [k for k in found if k[0] == "a"] == [f"a{i}" for i in range(200)]


def test_published_rows_are_read_and_never_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    monkeypatch.delenv("MTL_LEDGER", raising=False)
    published = tmp_path / "data" / "ledger" / "census.jsonl"
    published.parent.mkdir(parents=True)
    published.write_text('{"key": "p"}\n')
    book = ledger("census")
    book.append({"key": "l"})
    assert [row["key"] for row in book.rows()] == ["p", "l"]
    assert published.read_text() == '{"key": "p"}\n'
    assert (tmp_path / "data" / "ledger" / "local" / "census.jsonl").exists()
    monkeypatch.setenv("MTL_LEDGER", str(tmp_path / "elsewhere"))
    assert [row["key"] for row in ledger("census").rows()] == ["p"]


def test_provenance_says_what_made_the_row() -> None:
    found = json.loads(json.dumps(provenance("cpu"), allow_nan=False))
    assert found["versions"]["torch"] == torch.__version__
    assert found["hardware"]["threads"] == torch.get_num_threads()
    assert found["hardware"]["gpu"] is None and found["hardware"]["cpu"]
    assert found["created"].endswith("+00:00") and len(found["sources"]) == 64
    assert not stale({"provenance": found}) and stale({}) and stale({"provenance": {"sources": "0"}})


def test_sources_follow_code_that_runs_go_through(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "PACKAGE", tmp_path)
    (tmp_path / "methods").mkdir()
    for name in ("methods/a.py", "report.py"):
        (tmp_path / name).write_text("x = 1\n")
    fresh = sources.__wrapped__
    before = fresh()
    (tmp_path / "report.py").write_text("x = 2\n")
    assert fresh() == before
    (tmp_path / "methods" / "a.py").write_text("x = 2\n")
    changed = fresh()
    (tmp_path / "methods" / "a.py").rename(tmp_path / "methods" / "b.py")
    assert len({before, changed, fresh()}) == 3


def test_sources_hold_every_module_that_a_run_imports() -> None:
    """A new module on the way of a run must be named in PARTS, or stale rows would pass for fresh ones."""
    code = (
        "import sys, mtl.training.fit, mtl.problems, mtl.methods; print(*[m for m in sys.modules if m[:4] == 'mtl.'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    tops = {name.split(".")[1] for name in done.stdout.split()}
    assert "gradients" in tops and tops - {"errors", "files", "ledger"} <= module.PARTS


def test_older_local_rows_can_be_left_out(tmp_path) -> None:
    fresh, old = {"sources": sources()}, {"sources": "old"}
    (tmp_path / "p.jsonl").write_text('{"key": "p", "provenance": {"sources": "old"}, "n": 0}\n')
    book = Ledger(tmp_path / "a.jsonl", also=[tmp_path / "p.jsonl"])
    for row in ({"key": "p", "n": 1}, {"key": "q", "n": 2}, {"key": "q", "n": 3, "provenance": fresh}):
        book.append({"provenance": old, **row})
    assert {k: row["n"] for k, row in book.latest().items()} == {"p": 1, "q": 3}
    assert {k: row["n"] for k, row in book.latest(older=False).items()} == {"p": 0, "q": 3}


def test_git_state_in_and_outside_a_checkout(tmp_path, monkeypatch) -> None:
    package = tmp_path / "mtl"
    package.mkdir()
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(module, "PACKAGE", package)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    state = module.git_state.__wrapped__
    assert state() == (None, None)
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    sha, dirty = state()
    assert len(sha) == 40 and dirty is False
    (tmp_path / "figure.pdf").write_text("made by a run")
    assert state() == (sha, False)
    (package / "a.py").write_text("x = 2\n")
    assert state() == (sha, True)
