"""The command line: one clear sentence on errors, the right exit code, no traceback."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner, Result

import mtl
from mtl.cli import app
from mtl.cli.plan import read_stamp
from mtl.errors import DataError, RunError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = dict.fromkeys(("problem", "scale", "options", "method", "hyper", "model", "seed", "select", "budget"), 0)


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


def test_data_get_of_what_comes_by_hand_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"name": "far", "found": False, "where": "not found", "size": 0, "licence": "", "route": "by hand: unpack"}]
    monkeypatch.setattr("mtl.problems.data.download.status", lambda: rows)
    result = call("data", "get", "far")
    assert result.exit_code == 1 and "mtl: far: no package registry has it; by hand: unpack" in said(result)


def test_data_get_of_an_unknown_name(fetched: list[str]) -> None:
    result = call("data", "get", "nowhere")
    assert result.exit_code == 1 and fetched == []
    assert said(result) == "mtl: data get: one of here, gone, new, found 'nowhere'"


def test_data_list(fetched: list[str]) -> None:
    assert "here yes 2.0 MB MIT" in said(call("data", "list"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("reproduce",), "mtl: notebooks: expected files notebooks/NN_name.ipynb under"),
        (("reproduce", "-p", "seeds"), "mtl: -p: expected key=value, found 'seeds'"),
        (("reproduce", "--scale", "huge"), "mtl: scale: must be one of smoke, quick, paper, found 'huge'"),
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

    monkeypatch.setattr("mtl.cli.plan.plan", stop)
    result = call("reproduce")
    assert result.exit_code == 130 and "mtl: interrupted; the same command goes on from here" in said(result)


def test_dry_run_lists_and_runs_nothing(root: Path, fetched: list[str]) -> None:
    first = {
        "cell_type": "code",
        "id": "a",
        "metadata": {"tags": ["parameters"]},
        "source": 'scale = "smoke"\njobs = 1',
    }
    cells = [first | {"outputs": [], "execution_count": None}]
    meta = {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
    (root / "notebooks").mkdir()
    notebook = {"cells": cells, "metadata": meta, "nbformat": 4, "nbformat_minor": 5}
    (root / "notebooks/00_start.ipynb").write_text(json.dumps(notebook))
    result = call("reproduce", "--dry-run", "--scale", "smoke")
    assert result.exit_code == 0 and said(result) == "00_start: would run"
    assert not (root / "figures").exists()
    typo = call("reproduce", "--dry-run", "-p", "scal=smoke")
    assert typo.exit_code == 1 and "00_start.ipynb has scale, jobs; found 'scal' (nearest: scale)" in said(typo)
    for value, found in (("{[]}", "'{[]}'"), ("None", "None"), ("1.5", "1.5")):
        result = call("reproduce", "--dry-run", "-p", f"jobs={value}")
        assert result.exit_code == 1
        assert said(result) == f"mtl: parameters: jobs of 00_start.ipynb is a int like 1, found {found}"


def test_claims_of_this_checkout_without_a_run() -> None:
    rows = [line for line in call("claims").output.splitlines() if line.startswith(("emtl", "fairgrad", "gap"))]
    assert len(rows) >= 20 and not any("not tested" in row for row in rows)
    said = call("claims", "--why", "emtl-table2-best").output
    for line in (
        "verdict: inconclusive (assay)",
        "  converged: FAILED; moves",
        "  Nash-MTL +1.02 [+0.114, +1.92], d = 0.68",
    ):
        assert line in said
    assert "one of emtl-fig1-bandit, " in call("claims", "--why", "emtl").output


def test_doctor_looks_at_everything(fetched: list[str]) -> None:
    result = call("doctor")
    assert result.exit_code == 0, result.output
    for what in ("mtl", "python", "torch build", "device", "cores", "data gone", "free disk", "ledger"):
        assert f"\n{what} " in f"\n{result.output}"


def test_doctor_marks_a_folder_of_data_that_is_none(fetched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_DATA", "/no/such/folder")
    result = call("doctor")
    assert "/no/such/folder is no folder WRONG" in said(result) and result.exit_code == 1


def test_doctor_s_exit_code_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl.cli.doctor.examine", lambda: iter([("torch", "not installed", "WRONG")]))
    result = call("doctor")
    assert result.exit_code == 1 and said(result) == "torch not installed WRONG"


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"status": "ok"}', '{"key": "a", "metrics": {"auc": NaN}}'])
def test_doctor_marks_a_bad_line(root: Path, fetched: list[str], line: str) -> None:
    (root / "data/ledger").mkdir(parents=True)
    (root / "data/ledger/census.jsonl").write_text(f'{{"key": "a"}}\n{line}\n{{"key": "b"}}\n')
    (root / "data/ledger/scenes.jsonl").write_text('{"key": "a"}\n')
    result = call("doctor")
    assert result.exit_code == 1 and "census.jsonl: line 2 is not a ledger row (" in said(result)
    assert "scenes.jsonl readable" in said(result)


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["claims"], ["reproduce", "--help"]])
def test_a_command_waits_for_no_torch_that_needs_none(words: list[str]) -> None:
    code = (
        f"import sys; from mtl.cli import app; app({words!r}, standalone_mode=False); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_gives_what_it_names() -> None:
    assert all(getattr(mtl, name) is not None for name in mtl.__all__) and {*mtl.__all__} <= {*dir(mtl)}
    assert mtl.method is mtl.methods.method and mtl.problem is mtl.problems.problem
    with pytest.raises(AttributeError, match=r"module 'mtl' has METHODS, .*, rule, found no 'methd'"):
        _ = mtl.methd


class Fake:
    """An experiment of `rows` whose deadline leaves `left` of them."""

    def __init__(self, rows: int = 2, left: int = 0, failed: int = 0) -> None:
        self.rows, self.events = rows, {"left": left, "failed": failed}
        self.asked: dict[str, Any] | None = None

    def entries(self, scale: str) -> list[tuple[str, str, Any]]:
        return [(label, "ls", {}) for label in ("LS", "LS, losses 1", "FairGrad (alpha=2)")]

    def run(self, scale: str, seeds: Any = None, methods: Any = None, *, progress: Any, **how: Any) -> list[Any]:
        self.asked = {"scale": scale, "seeds": seeds, "methods": methods, **how}
        for event, count in self.events.items():
            for i in range(count):
                progress({"event": event, "cell": "LS", "done": i, "total": self.rows, "error": "no"})
        if self.events["failed"]:
            raise RunError("1 of 2 runs failed, the others are in census.jsonl: LS (no)")
        return [{"status": "ok"}] * self.rows


DESIGNED = {"designed": lambda scale: SimpleNamespace(rows=[0, 1])}


@pytest.fixture
def experiments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    found = {"census": Fake(), "late": Fake(left=1), "bad": Fake(failed=1, left=1)}
    monkeypatch.setitem(sys.modules, "mtl.experiments.registry", SimpleNamespace(EXPERIMENTS=found, DESIGNED=DESIGNED))
    monkeypatch.setenv("MTL_LEDGER", "")  # which a test may set, and gets back
    return found


def test_run_hands_on_what_is_asked(experiments: dict[str, Fake], tmp_path: Path) -> None:
    words = (
        "run census --scale study --seeds 0-2,5 --jobs 2 --device cuda:1 --deadline 60 --together --keep-stale --again"
    )
    words += " --engine ray --address host:6379"
    result = call(
        *words.split(), "--methods", "LS, FairGrad (alpha=2),LS, losses 1", "-p", "tasks=3", "--ledger", str(tmp_path)
    )
    assert result.exit_code == 0, result.output
    assert experiments["census"].asked == {
        "scale": "study",
        "seeds": (0, 1, 2, 5),
        "methods": ["LS", "FairGrad (alpha=2)", "LS, losses 1"],
        "jobs": 2,
        "device": "cuda:1",
        "deadline": 60.0,
        "together": True,
        "rerun_stale": False,
        "rerun_published": True,
        "engine": "ray",
        "address": "host:6379",
        "tasks": 3,
    }
    assert os.environ["MTL_LEDGER"] == str(tmp_path) and "2 rows, 0 without a result, 0 left" in said(result)


def test_run_makes_the_row_without_inputs_of_every_variant(experiments: dict[str, Fake]) -> None:
    fake: Any = experiments["census"]
    fake.problem, fake.variants, asked = "census", {"study": ()}, []
    fake.chosen = lambda scale, **options: [{"tasks": tasks} | options for tasks in (2, 3)]
    fake.blind = lambda scale, **variant: asked.append((scale, variant)) or {"key": f"k{len(asked)}"}
    result = call("run", "census", "--scale", "study", "--blind")
    assert result.exit_code == 0 and said(result).startswith("k1: census without inputs")
    assert asked == [("study", {"tasks": 2}), ("study", {"tasks": 3})] and fake.asked is None, "no run"
    result = call("run", "census", "--scale", "nope", "--blind")
    assert result.exit_code == 1 and said(result) == "mtl: scale: must be one of study, found 'nope'"


@pytest.mark.parametrize(
    "option",
    ["--device=cuda", "--device=cpu", "--deadline=0", "--address=h:1", "--together", "--keep-stale", "--again",
     "--jobs=-1", "--seeds=99", "--methods=LS", "--engine=bogus"],
)  # fmt: skip
def test_what_a_run_does_not_take_is_refused(experiments: dict[str, Fake], option: str, tmp_path: Path) -> None:
    flag = option.partition("=")[0]
    result = call("run", "designed", "--scale", "study", "--ledger", str(tmp_path), option)
    assert result.exit_code == 1 and said(result) == f"mtl: designed: takes --scale, --ledger alone, found {flag}"
    result = call("run", "census", "--blind", "-p", "tasks=2", option)
    assert result.exit_code == 1 and said(result) == f"mtl: --blind: takes --scale, --ledger, -p alone, found {flag}"
    assert said(call("run", "designed", "--ledger", str(tmp_path))) == "2 rows"


def test_run_without_options_leaves_them_to_the_experiment(experiments: dict[str, Fake]) -> None:
    assert call("run", "census").exit_code == 0
    how = {
        "jobs": 1,
        "device": "cpu",
        "deadline": None,
        "together": False,
        "rerun_stale": True,
        "rerun_published": False,
    }
    how |= {"engine": "auto", "address": None}
    assert experiments["census"].asked == {"scale": "quick", "seeds": None, "methods": None, **how}


@pytest.mark.parametrize(("name", "code"), [("census", 0), ("bad", 1), ("late", 3)])
def test_run_s_exit_code_tells(experiments: dict[str, Fake], name: str, code: int) -> None:
    assert call("run", name).exit_code == code


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["cencus"], "experiment: one of census, late, bad, designed, found 'cencus' (nearest: census)"),
        (["census", "--seeds", "3-1"], "seeds: like 0-4 or 0,2,5, each range upwards, found '3-1'"),
        (["census", "--seeds", "x"], "seeds: like 0-4 or 0,2,5, each range upwards, found 'x'"),
        (["census", "--seeds", ","], "seeds: like 0-4 or 0,2,5, found ','"),
        (["census", "--seeds", "0-99999999"], "seeds: at most 10,000 in a range, found '0-99999999'"),
        (["census", "--seeds", "9" * 10], f"seeds: like 0-4 or 0,2,5, each range upwards, found '{'9' * 10}'"),
        (["census", "--device", "cuda:999"], "device: cpu, cuda or cuda:N, found 'cuda:999'"),
        (["census", "--deadline", "nan"], "deadline: seconds, at least 0 and finite, found nan"),
        (["census", "--deadline", "-1"], "deadline: seconds, at least 0 and finite, found -1.0"),
        (["census", "--device", "gpu9"], "device: cpu, cuda or cuda:N, found 'gpu9'"),
        (["census", "-p", "tasks"], "-p: expected key=value, found 'tasks'"),
        (["census", "-p", "jobs=2"], "-p jobs: it has an option of its own, --jobs"),
    ],
)
def test_run_says_what_is_wrong(experiments: dict[str, Fake], words: list[str], sentence: str) -> None:
    result = call("run", *words)
    assert result.exit_code == 1 and said(result) == f"mtl: {sentence}"
    assert experiments["census"].asked is None


def test_what_nobody_foresaw_is_a_sentence_too(experiments: dict[str, Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fake, "run", lambda *_, **__: {}["x"])
    result = call("run", "census")
    assert result.exit_code == 1 and said(result) == "mtl: 'x' (KeyError, not foreseen: MTL_DEBUG=1 shows where)"


def test_a_reader_that_has_read_enough_is_no_error(root: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        command = [sys.executable, "-m", "mtl", "doctor"]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_says_how_to_go_on_and_leaves_no_child(root: Path, number: signal.Signals) -> None:
    words = ["run", "census", "--scale", "smoke", "--jobs", "2", "-p", "fallback=digits"]
    how: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    how["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # what runs in the background ignores it
    process = subprocess.Popen([sys.executable, "-m", "mtl.cli", *words], **how)
    children: list[psutil.Process] = []
    while not children and process.poll() is None:  # they still start up
        time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    assert told == "mtl: interrupted; the same command goes on from here\n"
    assert psutil.wait_procs(children, timeout=30)[1] == []


STAMP = {"notebook": "00", "scale": "quick", "inputs": "i", "outputs": {}, "seconds": 1.0, "finished": "2026"}
CLAIM = {"kind": "verdict", "claim": "a", "verdict": "reproduced", "evidence": "e", "figure": None}


@pytest.mark.parametrize(
    "stamp",
    [[1], {}, STAMP, STAMP | {"manifest": 3}, STAMP | {"manifest": [3]}, STAMP | {"manifest": [{"kind": "verdict"}]},
     STAMP | {"manifest": [CLAIM], "scale": "huge"}, STAMP | {"manifest": [CLAIM | {"claim": []}]}],
)  # fmt: skip
def test_an_odd_stamp_is_none(tmp_path: Path, stamp: Any) -> None:
    for name, content in (("odd", stamp), ("whole", STAMP | {"manifest": [CLAIM]})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert read_stamp(tmp_path / "odd.json") is None and read_stamp(tmp_path / "whole.json") is not None


@pytest.mark.parametrize(
    ("text", "wording"),
    [
        ("3", "must be a list of claims, found int"),
        ("", "must be a list of claims, found NoneType"),
        ("- 3", "entry 1 needs figure, id, paper"),
        ("- {id: [1], paper: p, section: '1', sentence: s, test: t, figure: f}", "entry 1 needs figure, id, paper"),
        ("[" * 5000, "is not YAML"),
        ("\udcff", "is not YAML"),
    ],
)
def test_odd_claims_are_named(root: Path, text: str, wording: str) -> None:
    (root / "paper").mkdir()
    (root / "paper/claims.yml").write_bytes(text.encode(errors="surrogateescape"))
    result = call("claims")
    assert result.exit_code == 1 and said(result).startswith("mtl: paper/claims.yml") and wording in said(result)


@pytest.mark.parametrize("key", ["*", "", "/etc/passwd", "../x", "\0", "[", "x" * 300])
def test_an_odd_key_is_one_sentence(root: Path, key: str) -> None:
    result = call("row", key)
    assert result.exit_code == 1 and said(result).startswith("mtl: key: no ledger below data/ledger has")


@pytest.mark.parametrize(
    ("row", "lacks"),
    [
        ({}, "problem"),
        ({"config": {"problem": "census"}}, "scale"),
        ({"config": CONFIG}, "fingerprint"),
        (
            {"config": CONFIG | {"problem": "mt10"}, "fingerprint": "f", "metrics": {"m": 1}},
            "a problem of `mtl.PROBLEMS`",
        ),
    ],
)
def test_an_incomplete_row_is_not_run_again(root: Path, row: dict[str, Any], lacks: str) -> None:
    (root / "data/ledger").mkdir(parents=True)
    (root / "data/ledger/gap.jsonl").write_text(json.dumps({"key": "a"} | row) + "\n")
    result = call("row", "a", "--again")
    sentence = f"mtl: a: only a whole row of a training run can be run again, this one lacks {lacks}"
    assert result.exit_code == 1 and result.output.splitlines()[-1] == sentence
    assert "--again" not in call("row", "a").output, "what cannot be done is not offered"


def test_the_version_is_said() -> None:
    assert call("--version").output == f"mtl {mtl.__version__}\n"


def test_a_merge_knows_the_ledgers_of_the_experiments(root: Path) -> None:
    (root / "rows.jsonl").write_text('{"ledger": "scene", "row": {"key": "a"}}\n')
    result = call("ledger", "merge", str(root))
    assert result.exit_code == 1 and re.search(r"one of alpha, .*, scenes, .*found 'scene'", said(result))


def test_rows_of_other_sources_are_run_again_and_captions_say_how_it_went(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtl.ledger import _write, provenance
    from mtl.report import caption
    from mtl.report.again import outcome

    made = provenance("cpu", ["mtl.solvers.kl"])
    row = {"config": CONFIG, "fingerprint": "f", "metrics": {"auc": 0.5}, "wall_s": 1.0}
    rows: list[Any] = [
        row | {"key": "same", "provenance": made | {"sources": "older"}},
        row | {"key": "moved", "metrics": {"auc": 0.6}, "provenance": made | {"sources": "older"}},
        row | {"key": "slow", "wall_s": 1e3, "provenance": made | {"sources": "older"}},
        row | {"key": "present", "provenance": made},
    ]
    other = made | {"sources": "older", "hardware": made["hardware"] | {"cpu": "another"}}
    rows.append(row | {"key": "elsewhere", "provenance": other})
    folder = root / "data" / "ledger"
    folder.mkdir(parents=True)
    _write({folder / "demo.jsonl": [json.dumps(one).encode() + b"\n" for one in rows]})
    monkeypatch.setattr("mtl.runs.cells.again", lambda one: one | {"metrics": {"auc": 0.5}, "provenance": made})
    result = call("ledger", "again", "demo")
    assert result.exit_code == 1 and "1 of 2 identical, drawn from 2 rows of other sources" in said(result)
    assert [outcome(one) for one in rows] == [True, False, None, None, None]
    text = caption("T.", data="d", scale="quick", n=1, rows=rows)
    assert "Code that 4 of 5 rows depend on was changed after they were run, 2 of them run again: 1 identical." in text
    assert call("ledger", "again", "nothing").exit_code == 1
    for words, told in (
        (["--rows", "-1"], "rows: at least 1, found -1"),
        (["--rows", "0"], "rows: at least 1, found 0"),
        (["--longest", "-5"], "longest: seconds, at least 0 and finite, found -5.0"),
        (["--longest", "nan"], "longest: seconds, at least 0 and finite, found nan"),
        (["--longest", "0.5"], "demo: nothing was compared, no comparable row of other sources took 0.5 s or less"),
    ):
        result = call("ledger", "again", "demo", *words)
        assert result.exit_code == 1 and f"mtl: {told}" in said(result)
    gave = lambda one: {"auc": 0.5 if one["key"] == "elsewhere" else 0.7}  # noqa: E731
    monkeypatch.setattr("mtl.report.again.sources_at", lambda commit: nullcontext(gave))
    result = call("ledger", "again", "demo", "--at", "older", "--longest", "1e4", "--rows", "9")
    assert result.exit_code == 1 and "3 of 4 identical, drawn from 4 rows of other sources" in said(result)
    assert [outcome(one) for one in rows] == [True, False, True, None, True], "its own numbers count where they can"


def test_the_sources_of_another_commit_run_a_row_here(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtl.ledger import Ledger
    from mtl.report.again import sources_at
    from mtl.runs.cells import again

    if not (ROOT / ".git").exists():
        pytest.skip("no repository")
    rows = Ledger(ROOT / "data" / "ledger" / "figures" / "alpha.jsonl").published()
    row = min(rows, key=lambda one: (one["config"]["problem"] != "digits", one["wall_s"]))
    with sources_at("HEAD") as then:
        assert then(row) == again(row)["metrics"]
        with pytest.raises(RunError, match="sources of HEAD gave"):
            then(row | {"fingerprint": "another"})
    monkeypatch.setattr("mtl.report.again._RUN", "import json, mtl; print(json.dumps({'from': mtl.__file__}))")
    with sources_at("HEAD") as then:
        assert not Path(then(row)["from"]).is_relative_to(ROOT), "an installed checkout must not come first"
    with pytest.raises(DataError, match="found 'nowhere'"), sources_at("nowhere"):
        pass


@pytest.mark.parametrize(
    ("words", "told"),
    [(("run",), "EXPERIMENT: table1"), (("row",), 'KEY is one of the "labels"'), (("data", "get"), "Fetch NAMES of"),
     (("ledger", "merge"), "FOLDER/rows.jsonl"), (("ledger", "again"), "NAME is a ledger")],
)  # fmt: skip
def test_help_says_what_a_positional_argument_is(words: tuple[str, ...], told: str) -> None:
    """In the command's own words: help given to the argument is lost with some releases of click."""
    assert told in said(call(*words, "--help"))
