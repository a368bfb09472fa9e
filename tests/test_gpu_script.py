"""The one command for a GPU, small and on the CPU: it must not rot between two GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.step import captured
from benchmarks.workloads import channels_last, w3
from mtl.experiments.timer import net, ours
from mtl.files import root


def command(*words: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "benchmarks.gpu", *words]
    return subprocess.run(call, cwd=root(), capture_output=True, text=True, timeout=300)


def test_every_part_runs_without_a_gpu(tmp_path: Path) -> None:
    tmp_path = tmp_path / "a folder"
    done = command("--smoke", "--minutes", "4", "--out", str(tmp_path), "--git", "abc")
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "log.txt").read_text()
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert {name: one["rc"] for name, one in results.items()} == dict.fromkeys(
        ("doctor", "seeds", "step", "notebook", "table2"), 0
    )
    assert {row["row"] for row in results["step"]["measured"]["rows"]} >= {
        "mtl ls", "mtl fairgrad", "T backwards", "mtl fairgrad, captured", "T backwards, captured"
    }  # fmt: skip
    lines = {row["row"]: row for row in results["step"]["measured"]["rows"]}
    assert lines["T backwards, captured"]["x_captured"] == lines["T backwards"]["x_floor"] == 1
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows and all(one["row"]["status"] == "ok" for one in rows)
    # what may come back of a lent machine: at most 8 files, none below a folder
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "results.json", "log.txt", "notebook.ipynb"}


CARD = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("name", ["fairgrad", "emtl", "nash"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CARD)])
def test_a_captured_step_gives_the_gradients_of_ours(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On channels-last convolutions and on a net of eight tasks, at each replay anew."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    for work in (channels_last(w3(device, images=1, width=4)), net(8, width=16, rows=8, device=device)):
        step, same = captured(work, name), ours(work, name)
        for _ in range(2):
            same()
            wanted = [None if p.grad is None else p.grad.clone() for p in work.model.parameters()]
            work.clear()
            step()
            for p, grad in zip(work.model.parameters(), wanted, strict=True):
                assert p.grad is not None and grad is not None and p.grad.stride() == grad.stride()
                assert float((p.grad - grad).norm()) <= 1e-4 * float(grad.norm()) + 1e-7
                with torch.no_grad():
                    p -= 0.01 * grad
            work.clear()


def test_carried_packages_stay_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lent machine has no papermill: its wheels lie in a folder that PYTHONPATH names."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    session = gpu.Session(tmp_path / "out", "cpu", "", True, 0.0)
    assert session.environment()["PYTHONPATH"] == f"{root()}{os.pathsep}{tmp_path / 'site'}"
    monkeypatch.delenv("PYTHONPATH")
    assert session.environment()["PYTHONPATH"] == str(root())


def test_a_part_without_time_is_said_and_stops_nothing(tmp_path: Path) -> None:
    code = gpu.main(["--smoke", "--parts", "table2,papermill", "--minutes", "0.01", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert code == 1 and [one["said"] for one in results.values()] == [["no time was left"]] * 2


@pytest.mark.parametrize("words", [("--parts", "checks,all"), ("--minutes", "0"), ("--minutes", "nan")])
def test_odd_arguments_are_refused(words: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu.main(["--smoke", "--out", str(tmp_path), *words])
    said = capsys.readouterr().err
    assert words[0] in said and "found" in said


def test_on_a_card_commands_follow_each_other_and_the_log_has_them_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails, works = gpu.Command("first", 20, "timeit -n x"), gpu.Command("second", 20, "platform")
    monkeypatch.setattr(gpu, "PARTS", {"checks": (fails, works)})
    began: list[str] = []
    run = gpu.Session.run
    monkeypatch.setattr(gpu.Session, "run", lambda self, one: began.append(one.name) or run(self, one))
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    told, log = capsys.readouterr().out.splitlines(), (tmp_path / "log.txt").read_text()
    assert [line.partition(":")[0] for line in told] == began == ["first", "second"] and "second: exit 0" in told[1]
    assert log.index("$ python -m timeit -n x") < log.index("invalid") < log.index("$ python -m platform")
