"""The ledger: keys, rows that are whole or absent, provenance."""

import hashlib
import json
import math
import multiprocessing
import platform
import re
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtl import ledger as module
from mtl.errors import DataError
from mtl.ledger import Ledger, canonical, key, ledger, merge, plain, provenance, publish, stale

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


def test_rows_come_back_and_the_last_of_a_key_wins(tmp_path) -> None:
    book = Ledger(tmp_path / "deep" / "a")
    assert book.rows() == [] and book.find("k") is None
    book.append({"key": "k", "metrics": {"auc": math.nan}})
    assert book.rows()[0]["metrics"] == {"auc": None}
    book.append({"key": "other"})
    book.append({"metrics": {"auc": 0.5}, "key": "k"})
    assert [row["key"] for row in book.rows()] == ["k", "other"]
    assert book.find("k") == {"key": "k", "metrics": {"auc": 0.5}}
    assert sorted(path.name for path in (tmp_path / "deep" / "a").iterdir()) == ["k.json", "other.json"]
    text = (tmp_path / "deep" / "a" / "k.json").read_text()  # a line that `diff` and `git` can compare
    assert text == json.dumps(json.loads(text), sort_keys=True) + "\n"


def test_a_row_that_json_cannot_hold_is_named(tmp_path) -> None:
    with pytest.raises(TypeError, match=r"row: k must hold what JSON can, Object of type bytes"):
        Ledger(tmp_path / "a").append({"key": "k", "x": b"1"})
    with pytest.raises(TypeError, match=r"fingerprint: must be text, found 3"):
        key({}, 3)


@pytest.mark.parametrize("name", [None, "", 3, "../k", "a/k", "a\\k", ".k", "\0", torch.zeros(2)], ids=str)
def test_row_needs_a_key(tmp_path, name: object) -> None:
    with pytest.raises(
        ValueError, match=f"row: a ledger row needs a key that .* hidden, found {re.escape(repr(name))}"
    ):
        Ledger(tmp_path / "a").append({"metrics": {}, "key": name})
    assert not (tmp_path / "a").exists()


def test_a_short_write_is_an_error_and_leaves_the_row_that_was_there(tmp_path, monkeypatch) -> None:
    book = Ledger(tmp_path / "a")
    book.append({"key": "k", "n": 1})
    real = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: real(self, data[:-3]))
    with pytest.raises(OSError, match=r"k.json: 51 bytes were written and 48 came back; is there room"):
        book.append({"key": "k", "n": 2})
    assert book.find("k") == {"key": "k", "n": 1} and len(list(book.path.iterdir())) == 1


def test_a_killed_write_is_not_a_row(tmp_path) -> None:
    book = Ledger(tmp_path / "a")
    book.append({"key": "k"})
    (book.path / ".part-x.json").write_text('{"key": "')
    assert [row["key"] for row in book.rows()] == ["k"]


DAMAGES = ['{"key": "b"', "", "[]", '{"key": "c"}', "\udcff", '{"config": {}}', '{"key": "b", "provenance": null}']
DAMAGES += ['{"key": "b", "metrics": {"auc": NaN}}', '{"key": "b", "x": 1e999}', '{"key": "b", "config": []}']
DAMAGES += ['{"key": "b", "x": ' + "[" * 100_000, '{"key": "b", "n": 2, "sha256": "0f0f0f0f0f0f0f0f"}', "7", "null"]


def test_a_row_without_its_seal_is_not_believed(tmp_path) -> None:
    """Whoever changed a number took the seal away with it, and the row was shown."""
    book = Ledger(tmp_path / "a")
    book.append({"key": "k", "metrics": {"auc": 0.5}})
    path = book.path / "k.json"
    for seal in ("", ', "sha256": ""', ', "sha257": "0f0f0f0f0f0f0f0f"'):
        path.write_text('{"key": "k", "metrics": {"auc": 0.999}' + seal + "}\n")
        with pytest.raises(DataError, match=r"a/k.json is not the ledger row of its name \(its content is not that of"):
            book.find("k")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda text: text[:30].encode(errors="replace").decode())
def test_a_damaged_row_is_named_and_blocks_no_other(tmp_path, damage: str) -> None:
    book = Ledger(tmp_path / "a")
    for name in "abc":
        book.append({"key": name})
    (book.path / "b.json").write_bytes(damage.encode(errors="surrogateescape"))
    with pytest.warns(UserWarning, match=r"1 rows are left out: a/b.json is not the ledger row of its name") as told:
        assert list(book.latest()) == ["a", "c"]
    assert len(told) == 1 and book.find("c") == {"key": "c"}
    with pytest.raises(DataError, match=r"a/b.json is not the ledger row of its name \(.*\); restore or remove it"):
        book.find("b")


@pytest.mark.parametrize("damage", DAMAGES[:1] + DAMAGES[5:], ids=lambda text: text[:30])
def test_a_damaged_line_is_named_and_blocks_no_other(tmp_path, damage: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"key": "a"}}\n{damage}\n{{"key": "c"}}\n')
    book = Ledger(path)
    with pytest.warns(
        UserWarning, match=r"1 rows are left out: a.jsonl: line 2 is not a ledger row \(.*restore"
    ) as told:
        assert [row["key"] for row in book.rows()] == ["a", "c"]
    assert len(told) == 1 and book.find("c") == {"key": "c"}
    if '"b"' in damage:
        with pytest.raises(DataError, match=r"a.jsonl: line 2 is not a ledger row"):
            book.find("b")
    with pytest.raises(DataError, match=r"a.jsonl: line 2 is not a ledger row"):
        publish(book)


def test_one_flipped_bit_in_a_row_is_seen(tmp_path) -> None:
    book = Ledger(tmp_path / "a")
    book.append({"key": "k", "metrics": {"auc": 0.875}})
    path = book.path / "k.json"
    whole = path.read_bytes()
    for place in range(len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = book.find("k")
        except DataError:
            continue
        assert found["key"] == "k" and found["metrics"] == {"auc": 0.875}  # the name of the field sha256 was hit


def test_append_and_find_take_no_longer_where_there_are_many_rows(tmp_path) -> None:
    line = b'{"key": "%08d", "history": "' + b"x" * 10_000 + b'"}\n'
    (tmp_path / "a.jsonl").write_bytes(b"".join(line % i for i in range(19_000)))  # 190 MB
    book = Ledger(tmp_path / "a.jsonl")
    for name in ("00000007", "none", "00018999"):
        best = math.inf
        for _ in range(3):
            started = time.process_time()
            book.append({"key": "other"})
            found = book.find(name)
            best = min(best, time.process_time() - started)
            assert (found and found["key"]) == (None if name == "none" else name)
        assert best < 0.2, name


def test_reading_makes_nothing_and_a_place_that_takes_no_row_is_told_before_a_run(tmp_path) -> None:
    book = Ledger(tmp_path / "a")
    assert book.rows() == [] and book.find("k") is None and book.latest() == {} and not any(tmp_path.iterdir())
    (tmp_path / "a").write_text("a file")
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        book.ready()


def test_a_jsonl_path_is_read_and_its_own_rows_lie_beside_it(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"key": "p"}\n')
    book = Ledger(path)
    book.append({"key": "l"})
    assert [row["key"] for row in book.rows()] == ["p", "l"]
    assert path.read_text() == '{"key": "p"}\n' and (tmp_path / "a" / "l.json").exists()


def _write(path: str, name: str, n: int) -> None:
    book = Ledger(path)
    for i in range(n):
        book.append({"key": f"{name}{i}", "padding": "x" * 500})


def test_two_processes_lose_nothing(tmp_path) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write, args=(str(tmp_path / "a"), name, 200)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)
    found = [row["key"] for row in Ledger(tmp_path / "a").rows()]
    assert found == sorted(f"{name}{i}" for name in "ab" for i in range(200))


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
    assert (tmp_path / "data" / "ledger" / "local" / "census" / "l.json").exists()
    monkeypatch.setenv("MTL_LEDGER", str(tmp_path / "elsewhere"))
    assert [row["key"] for row in ledger("census").rows()] == ["p"]


RUN = ["mtl.methods.emtl", "mtl.problems.digits", "mtl.training.fit"]


def test_provenance_says_what_made_the_row() -> None:
    found = json.loads(json.dumps(provenance("cpu", RUN), allow_nan=False))
    assert found["versions"]["torch"] == torch.__version__
    assert found["hardware"]["threads"] == torch.get_num_threads()
    assert found["hardware"]["gpu"] is None and found["hardware"]["cpu"]
    assert found["created"].endswith("+00:00") and len(found["sources"]) == 64 and found["modules"] == RUN
    assert "sources" not in provenance("cpu")


def test_a_processor_has_the_name_that_the_system_gives_it(monkeypatch) -> None:
    monkeypatch.setattr(
        Path, "read_text", lambda path, *_: "processor : 0\nmodel name\t: Some CPU @ 2 GHz\nflags : a b\n"
    )
    assert module._cpu() == "Some CPU @ 2 GHz"
    monkeypatch.setattr(Path, "read_text", lambda path, *_: "processor : 0\n")
    assert module._cpu() == (platform.processor() or platform.machine())


def test_stale_is_what_other_sources_made() -> None:
    made = provenance("cpu", RUN)
    assert not stale({"provenance": made})
    assert stale({}) and stale({"provenance": {"sources": made["sources"]}}) and stale({"provenance": {"modules": RUN}})
    assert stale({"provenance": made | {"sources": "0"}}) and stale({"provenance": made | {"modules": RUN[:2]}})
    assert stale({"provenance": made | {"modules": ["mtl.gone"], "sources": None}})


def test_older_local_rows_can_be_left_out(tmp_path) -> None:
    fresh, old = provenance("cpu", RUN), {"sources": "old"}
    (tmp_path / "p.jsonl").write_text('{"key": "p", "provenance": {"sources": "old"}, "n": 0}\n')
    book = Ledger(tmp_path / "a", also=[tmp_path / "p.jsonl"])
    for row in ({"key": "p", "n": 1}, {"key": "q", "n": 2}, {"key": "r", "n": 3, "provenance": fresh}):
        book.append({"provenance": old, **row})
    for older, expected in ((True, {"p": 1, "q": 2, "r": 3}), (False, {"p": 0, "r": 3})):
        assert {k: row["n"] for k, row in book.latest(older).items()} == expected
        found = {k: book.find(k, older) for k in "pqr"}
        assert {k: row["n"] for k, row in found.items() if row} == expected


def test_publishing_keeps_the_lines_that_are_there(tmp_path) -> None:
    made = provenance("cpu", RUN)
    path = tmp_path / "a.jsonl"
    path.write_text('{"key": "z", "n": 0}\n{"key": "y", "n": 0}\n')
    book = Ledger(path)
    before = path.read_bytes()
    assert publish(book) == path and path.read_bytes() == before
    for name in "yca":
        book.append({"key": name, "n": 1, "trace": [0], "provenance": made})
    publish(book, without=["trace"])
    assert (tmp_path / "a.jsonl.sha256").read_text().endswith("  a.jsonl\n")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["key"], row["n"], "trace" in row) for row in rows] == [
        ("z", 0, False), ("y", 1, False), ("a", 1, False), ("c", 1, False),
    ]  # fmt: skip
    book.append({"key": "b"})
    with pytest.raises(ValueError, match=r"book: rows to be published are made by the present sources, found 1 stale"):
        publish(book)


@pytest.mark.parametrize("name", ["table1", "scenes", "figures/start"])
def test_published_files_are_as_publishing_writes_them(name: str, tmp_path) -> None:
    source = Path(__file__).parents[1] / "data" / "ledger" / f"{name}.jsonl"
    copy = tmp_path / "a.jsonl"
    copy.write_bytes(source.read_bytes())
    assert publish(Ledger(copy)).read_bytes() == source.read_bytes()
    told = source.with_name(f"{source.name}.sha256").read_text().split()
    assert told == [hashlib.sha256(source.read_bytes()).hexdigest(), source.name]


def test_a_published_file_that_lost_lines_says_so(tmp_path) -> None:
    book = Ledger(tmp_path / "a.jsonl")
    for name in "abc":
        book.append({"key": name, "provenance": provenance("cpu", RUN)})
    path = publish(book)
    whole = path.read_bytes()
    seen = Ledger(tmp_path / "none", also=[path])
    assert len(seen.published()) == 3
    for less in (b"", whole[: whole.index(b"\n") + 1]):
        path.write_bytes(less)
        with pytest.warns(UserWarning, match=r"a.jsonl is not as it was published \(see a.jsonl.sha256\): restore it"):
            seen.published()
    path.unlink()
    with pytest.warns(UserWarning, match=r"a.jsonl is not as it was published"):
        seen.published()


def test_a_file_that_lost_lines_is_not_sealed_anew(tmp_path, monkeypatch) -> None:
    file, _ = foreign(tmp_path, monkeypatch)
    book = Ledger(tmp_path / "data/ledger/scenes.jsonl")
    book.append({"key": "a", "provenance": provenance("cpu", RUN)})
    path = publish(book)
    path.write_bytes(b"")
    for write in (lambda: merge(file, ["scenes"]), lambda: publish(book)):
        with pytest.raises(DataError, match=r"scenes.jsonl is not as it was published \(see scenes.jsonl.sha256\)"):
            write()
        assert path.read_bytes() == b"" and module.damage(path)


@pytest.mark.parametrize("last", [".jsonl", ".sha256"])
def test_a_first_publishing_that_ends_between_its_two_files_is_done_again(last, tmp_path, monkeypatch) -> None:
    book = Ledger(tmp_path / "a.jsonl")
    book.append({"key": "a", "provenance": provenance("cpu", RUN)})
    real = Path.replace
    with monkeypatch.context() as ended:
        ended.setattr(Path, "replace", lambda one, to: 1 / 0 if to.suffix == last else real(one, to))
        with pytest.raises(ZeroDivisionError):
            publish(book)
    assert module.damage(publish(book)) == "" and (tmp_path / "a.jsonl.sha256").exists()


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


def foreign(tmp_path: Path, monkeypatch, **changes: object) -> tuple[Path, dict[str, object]]:
    """rows.jsonl with one row of the present sources, and the published rows' folder as the root's."""
    monkeypatch.setattr(module, "root", lambda: tmp_path)
    row = {"key": key(CONFIG, "f00d"), "config": CONFIG, "fingerprint": "f00d", "metrics": {"auc": 0.9}}
    row |= {"provenance": provenance("cpu", ["mtl.solvers.kl"]) | {"git": "abc"}}
    row |= {"status": "ok", "wall_s": 1.0, "source": "made", "synthetic": True, "embedded_default": False}
    row = {name: value for name, value in (row | changes).items() if value != "lacks"}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"ledger": "scenes", "row": plain(row)}) + "\n")
    return file, row


def test_rows_of_another_machine_are_merged_once(tmp_path, monkeypatch) -> None:
    file, row = foreign(tmp_path, monkeypatch)
    assert merge(file, ["scenes"]) == {"scenes": 1}
    assert merge(file, ["scenes"]) == {"scenes": 0}
    assert Ledger(tmp_path / "data/ledger/scenes.jsonl").published() == [plain(row)]


NEEDED = ["config", "metrics", "status", "wall_s", "source", "synthetic", "embedded_default"]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"key": "0123456789abcdef"}, "the key must be that of configuration and data"),
        ({"fingerprint": "beef"}, "the key must be that of configuration and data"),
        ({"provenance": {"git": "abc", "modules": ["mtl.solvers.kl"], "sources": "x"}}, "made by the present sources"),
        ({"provenance": provenance("cpu", ["mtl.solvers.kl"]) | {"git": None}}, "must name its commit"),
        ({"config": None}, "line 1 is not a ledger row"),
        ({"wall_s": "1"}, "line 1 is not a ledger row \\(its wall_s is str\\)"),
        *(({name: "lacks"}, f"line 1: a2c.* must have all that a row has, found no {name}") for name in NEEDED),
    ],
)
def test_what_cannot_be_trusted_is_not_merged(changes, found, tmp_path, monkeypatch) -> None:
    file, _ = foreign(tmp_path, monkeypatch, **changes)
    with pytest.raises(DataError, match=found):
        merge(file, ["scenes"])
    assert not (tmp_path / "data").exists()


def test_other_metrics_under_one_key_are_not_merged(tmp_path, monkeypatch) -> None:
    merge(foreign(tmp_path, monkeypatch)[0], ["scenes"])
    before = (tmp_path / "data/ledger/scenes.jsonl").read_bytes()
    file, _ = foreign(tmp_path, monkeypatch, metrics={"auc": 0.8})
    with pytest.raises(
        DataError, match=r"line 1: scenes.jsonl has a2c78a47eff0cfbe with other metrics, auc 0.9 and not 0.8"
    ):
        merge(file, ["scenes"])
    file.write_text(file.read_text() + file.read_text().replace("0.8", "0.7"))
    with pytest.raises(DataError, match=r"line 2: rows.jsonl: line 1 has a2c.* metrics, auc 0.8 and not 0.7"):
        merge(file, ["scenes"])
    assert (tmp_path / "data/ledger/scenes.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["..", "scene", "", 1, ["scenes"], "b" * 300], ids=str)
def test_a_ledger_that_nobody_has_is_not_made(name: object, tmp_path, monkeypatch) -> None:
    file, row = foreign(tmp_path, monkeypatch)
    merge(file, ["scenes"])
    file.write_text(json.dumps({"ledger": name, "row": plain(row)}) + "\n")
    sentence = f"rows.jsonl: line 1: the ledger must be one of census, scenes, found {name!r}"
    with pytest.raises(DataError, match=re.escape(sentence)):
        merge(file, ["census"])
    assert [path.name for path in (tmp_path / "data/ledger").glob("*.jsonl")] == ["scenes.jsonl"]


def test_a_file_without_rows_is_not_merged(tmp_path) -> None:
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(DataError, match=r"rows.jsonl: must hold a row or more, found none"):
        merge(tmp_path / "rows.jsonl", ["scenes"])


@pytest.mark.parametrize("second", ["merge", "publish"])
def test_two_that_write_published_rows_at_once_lose_none(second: str, tmp_path, monkeypatch) -> None:
    file, row = foreign(tmp_path, monkeypatch)
    book = Ledger(tmp_path / "data/ledger/scenes.jsonl")
    book.append({"key": "a", "provenance": provenance("cpu", RUN)})
    other = tmp_path / "other.jsonl"
    config = CONFIG | {"seed": 1}
    held = {"ledger": "scenes", "row": plain(row | {"config": config, "key": key(config, "f00d")})}
    other.write_text(json.dumps(held) + "\n")
    given = (other, ["scenes"]) if second == "merge" else (book,)
    late = threading.Thread(target=getattr(module, second), args=given)
    real = module._write

    def slow(*words: object) -> None:
        if threading.current_thread() is not late:
            late.start()
            late.join(0.5)
        real(*words)

    monkeypatch.setattr(module, "_write", slow)
    merge(file, ["scenes"])
    late.join(timeout=60)
    kept = [one["key"] for one in Ledger(tmp_path / "none", also=[book.also[0]]).published()]
    assert kept == [row["key"], held["row"]["key"] if second == "merge" else "a"]


def test_rows_of_several_ledgers_are_merged_or_none(tmp_path, monkeypatch) -> None:
    file, _ = foreign(tmp_path, monkeypatch)
    line = file.read_text()
    file.write_text(line + line.replace('"ledger": "scenes"', '"ledger": "census"'))
    folder = tmp_path / "data/ledger"
    (folder / "census.jsonl").mkdir(parents=True)
    with pytest.raises(DataError, match=r"census.jsonl must be a file, found a folder"):
        merge(file, ["scenes"])
    (folder / "census.jsonl").rmdir()
    real = module._sum_of
    monkeypatch.setattr(module, "_sum_of", lambda path, name: real(path, name) if name == "scenes.jsonl" else 1 / 0)
    with pytest.raises(ZeroDivisionError):  # as a full disk would, after the other file's part is written
        merge(file, ["scenes", "census"])
    assert [path.name for path in folder.iterdir()] == [".lock"]
