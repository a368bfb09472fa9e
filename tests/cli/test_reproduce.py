"""The runner of notebooks, on tiny notebooks in a folder of their own."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock
from rich.console import Console

from mtl import sources
from mtl.cli.plan import find, outputs, plan, read_stamp
from mtl.cli.reproduce import reproduce as run
from mtl.cli.reproduce import set_aside
from mtl.cli.summary import Outcome, summary
from mtl.errors import DataError, RunError
from mtl.report.verdicts import claims, claims_table

REPORT = """
import json, os, pathlib
root = pathlib.Path(os.environ["MTL_ROOT"])
def_figures = root / "figures"
for suffix in (".pdf", ".png", ".json"):
    (def_figures / f"{name}{suffix}").write_text(f"{name} {seeds} {scale}")
entries = [{"kind": "figure", "name": name, "path": f"figures/{name}.pdf"}]
verdict = {"claim": f"claim-{name}", "verdict": "contradicted", "evidence": "3 of 5", "figure": name}
entries += [{"kind": "verdict", **verdict}]
entries += [{"kind": "default", "name": "census", "used_by": name}]
with open(os.environ["MTL_MANIFEST"], "a") as file:
    file.writelines(json.dumps(entry) + "\\n" for entry in entries)
"""


def write(root: Path, stem: str, *cells: str, after: tuple[str, ...] = ()) -> Path:
    """A notebook with a parameters cell, then `cells`."""
    first = f'scale = "smoke"\nname = "{stem[3:]}"\nseeds = [0, 1]\nrate = 0.5'
    body: list[dict[str, Any]] = [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Does it run?"}]
    for i, source in enumerate((first, *cells)):
        tags = ["parameters"] if i == 0 else []
        body.append(
            {"cell_type": "code", "id": f"c{i}", "metadata": {"tags": tags}, "source": source}
            | {"outputs": [], "execution_count": None}
        )
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    meta = {"kernelspec": kernel, "mtl": {"after": list(after)}}
    path = root / "notebooks" / f"{stem}.ipynb"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"cells": body, "metadata": meta, "nbformat": 4, "nbformat_minor": 5}))
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root, with a space in its name, and a data module that has found nothing."""
    folder = tmp_path / "a root"
    folder.mkdir()
    monkeypatch.setattr("mtl.problems.data.download.status", lambda: [{"name": "census", "found": False}])
    monkeypatch.setenv("MTL_ROOT", str(folder))
    monkeypatch.delenv("MTL_LEDGER", raising=False)
    return folder


def reproduce(parameters: dict[str, Any] | None = None, jobs: int | None = None) -> list[Outcome]:
    """All notebooks at scale smoke, with nothing said."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        return run(plan("smoke", parameters=parameters), jobs, False, Console(file=nowhere))


def test_finds_by_number_and_stem_and_names_the_nearest(root: Path) -> None:
    write(root, "00_start")
    write(root, "01_toy")
    assert [path.stem for path in find()] == ["00_start", "01_toy"]
    assert [path.stem for path in find(["01_toy", "00"])] == ["00_start", "01_toy"]
    with pytest.raises(
        ValueError, match=r"one of 00_start, 01_toy, or their numbers; found '01_toi' \(nearest: 01_toy"
    ):
        find(["01_toi"])


def test_no_notebooks_at_all(root: Path) -> None:
    with pytest.raises(ValueError, match=r"expected files notebooks/NN_name.ipynb under .*, found none"):
        find()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"seds": [1]}, r"00_start.ipynb has scale, name, seeds, rate; found 'seds' \(nearest: seeds\)"),
        ({"seeds": 3}, r"seeds of 00_start.ipynb is a list like \[0, 1\], found 3"),
        ({"rate": "fast"}, r"rate of 00_start.ipynb is a float like 0.5, found 'fast'"),
        ({"seeds": None}, r"seeds of 00_start.ipynb is a list like \[0, 1\], found None"),
        ({"rate": True}, r"rate of 00_start.ipynb is a float like 0.5, found True"),
        ({"scale": "quick"}, r"the scale is given by --scale"),
    ],
)
def test_parameters_are_checked_against_the_notebook(root: Path, parameters: dict[str, Any], said: str) -> None:
    write(root, "00_start")
    with pytest.raises(ValueError, match=said):
        plan("smoke", parameters=parameters)


def test_an_int_is_a_float_but_a_float_no_int(root: Path) -> None:
    write(root, "00_start")
    assert plan("smoke", parameters={"rate": 1})[0].parameters == {"scale": "smoke", "rate": 1}


def test_order_follows_the_metadata(root: Path) -> None:
    write(root, "00_claims", after=("*",))
    write(root, "01_second", after=("02",))
    write(root, "02_first")
    assert [job.name for job in plan("smoke")] == ["02_first", "01_second", "00_claims"]
    assert [job.name for job in plan("smoke", ["00", "01"])] == ["01_second", "00_claims"]
    write(root, "02_first", after=("00_claims",))
    with pytest.raises(ValueError, match="may not wait in a circle"):
        plan("smoke")
    write(root, "02_first", after=("07",))
    with pytest.raises(ValueError, match=r"02_first.ipynb: metadata mtl.after names 07, found none such"):
        plan("smoke")


def test_a_broken_notebook_is_named(root: Path) -> None:
    write(root, "00_start").write_text("{")
    with pytest.raises(ValueError, match=r"00_start.ipynb: expected a notebook"):
        plan("smoke")


def test_inputs_depend_on_sources_parameters_and_what_comes_before(root: Path) -> None:
    write(root, "00_start")
    write(root, "01_next", after=("00",))
    first = {job.name: job.inputs for job in plan("smoke")}
    assert first == {job.name: job.inputs for job in plan("smoke")}
    assert all(job.inputs != first[job.name] for job in plan("smoke", parameters={"rate": 0.25}))
    write(root, "00_start", "1 + 1")
    assert all(job.inputs != first[job.name] for job in plan("smoke"))


def test_inputs_depend_on_the_files_and_data_that_a_notebook_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, "00_start", "book = 'wine'", "papers = ['nyuv2.csv', 'claims.yml']")
    found = [plan("smoke")[0].inputs]
    for name in ("data/ledger/wine.jsonl", "paper/claims.yml", "paper/reported/nyuv2.csv"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("changed")
        found.append(plan("smoke")[0].inputs)
    rows = [{"name": "mnist", "found": True}, {"name": "wine", "found": True}]
    monkeypatch.setattr("mtl.problems.data.download.status", lambda: rows)
    found.append(plan("smoke")[0].inputs)
    assert len(set(found)) == len(found)
    for name in ("data/ledger/gap.jsonl", "paper/reported/qm9.csv"):
        (root / name).write_text("of no interest here")
    monkeypatch.setattr("mtl.problems.data.download.status", lambda: rows[1:])
    assert plan("smoke")[0].inputs == found[-1]


def test_inputs_depend_on_the_modules_that_a_notebook_goes_through(root: Path, package: Path) -> None:
    write(root, "00_start", "%time 1\nfrom mtl.report import stats")
    write(root, "01_other", "from mtl.solvers import kl")
    write(root, "02_shell", "%%bash\nif true; then echo no Python; fi")

    def changed(name: str) -> list[str]:
        before = {job.name: job.inputs for job in plan("smoke")}
        (package / name).write_text((package / name).read_text() + "# changed\n")
        return [job.name for job in plan("smoke") if job.inputs != before[job.name]]

    assert changed("report/stats.py") == ["00_start", "02_shell"]
    assert changed("solvers/kl.py") == ["01_other", "02_shell"]
    assert changed("cli/summary.py") == ["02_shell"], "a cell in another language may need anything"


def test_a_new_problem_method_or_experiment_reruns_no_notebook(package: Path) -> None:
    """Of the repository's own; those whose modules show every method run again for one in METHODS, as they must."""
    before = {job.name: job.inputs for job in plan("smoke")}
    register(package, "problems", "PROBLEMS")
    for room in ("methods", "experiments"):
        (package / room / "unregistered.py").write_text('"""New."""\n')
    assert {job.name: job.inputs for job in plan("smoke")} == before
    register(package, "methods", "METHODS")
    again = {job.path for job in plan("smoke") if job.inputs != before[job.name]}
    assert len(again) < len(before)
    assert all("mtl.methods.unheard" in sources.used_by(code(path)) for path in again)


def code(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def register(package: Path, room: str, registry: str) -> None:
    """A new file in a room, with its line in the registry."""
    (package / room / "unheard.py").write_text('"""New."""\n\n\nclass Unheard:\n    pass\n')
    face = next(path for path in (package / room / "registry.py", package / room / "__init__.py") if path.is_file())
    head, name, tail = face.read_text().partition(f"{registry}: dict")
    first, brace, rest = tail.partition("= {\n")
    head = head.replace("\n\nfrom", f"\n\nfrom mtl.{room}.unheard import Unheard\nfrom", 1)
    face.write_text(head + name + first + brace + '    "unheard": Unheard,\n' + rest)


def test_runs_then_only_what_is_missing(root: Path) -> None:
    committed = [write(root, "00_start", REPORT), write(root, "01_next", REPORT, after=("00",))]
    texts = [path.read_bytes() for path in committed]
    assert [one.status for one in reproduce({"seeds": [7]})] == ["done", "done"]
    assert (root / "figures/start.pdf").read_text() == "start [7] smoke"
    assert (root / "figures/executed/smoke/00_start.ipynb").is_file()
    assert (root / "figures/logs/00_start.log").is_file()
    stamp = read_stamp(root / "figures/executed/00_start.smoke.json")
    assert stamp is not None and set(stamp["outputs"]) == {f"figures/start.{s}" for s in ("pdf", "png", "json")}
    (root / "figures/smoke").mkdir(exist_ok=True)
    (root / "figures/smoke/.part-x.pdf").write_text("left by a killed run")
    again = reproduce({"seeds": [7]})
    assert [one.status for one in again] == ["unchanged", "unchanged"]
    assert not list(root.rglob("figures/**/.part-*"))
    stamp = read_stamp(root / "figures/executed/01_next.smoke.json")
    assert stamp is not None and "claim-next" in [line.get("claim") for line in stamp["manifest"]]
    (root / "figures/next.png").write_text("another run's")
    third = reproduce({"seeds": [7]})
    assert [one.status for one in third] == ["unchanged", "done"]
    assert (root / "figures/next.png").read_text() == "next [7] smoke"
    assert [path.read_bytes() for path in committed] == texts, "a run writes copies, never the notebook itself"


def test_a_failure_is_named_and_stops_only_what_follows_it(root: Path) -> None:
    write(root, "00_bad", "1 + 1", "raise ValueError('no such column')")
    write(root, "01_next", after=("00",))
    write(root, "02_other", REPORT)
    outcomes = {one.name: one for one in reproduce(jobs=2)}
    assert {name: one.status for name, one in outcomes.items()} == {
        "00_bad": "FAILED",
        "01_next": "not run",
        "02_other": "done",
    }
    assert outcomes["00_bad"].error == "cell 4: ValueError: no such column (log: figures/logs/00_bad.log)"
    assert outcomes["01_next"].error == "it follows 00_bad"
    assert "no such column" in (root / "figures/logs/00_bad.log").read_text()
    left = {path.name for path in (root / "figures/executed").rglob("*.ipynb")}
    assert left == {"00_bad.failed.ipynb", "02_other.ipynb"}
    assert not (root / "figures/executed/00_bad.smoke.json").exists()


def test_a_reported_output_that_is_not_there_is_a_failure(root: Path) -> None:
    write(root, "00_start", REPORT + "\n(def_figures / 'start.png').unlink()")
    (one,) = reproduce()
    assert one.status == "FAILED" and "reported start.png, which is not there" in one.error


def test_a_dead_kernel_is_named(root: Path) -> None:
    write(root, "00_start", "import os; os.kill(os.getpid(), 9)")
    (one,) = reproduce()
    assert one.status == "FAILED" and one.error.startswith("cell 3: DeadKernelError")


SCRIPT = """
import sys
from rich.console import Console
from mtl.cli.plan import plan
from mtl.cli.reproduce import reproduce
sys.exit(0 if all(one.ok for one in reproduce(plan("smoke"), 1, False, Console())) else 1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_killed_run_and_the_next_one_goes_through(root: Path, number: signal.Signals) -> None:
    beat = "import pathlib, time\nfor i in range(10_000 if not pathlib.Path('second').exists() else 0):\n"
    beat += "    pathlib.Path('beat').write_text(str(i)); time.sleep(0.02)"
    write(root, "00_start", beat, REPORT)
    run = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (root / "beat").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    family = psutil.Process(run.pid).children(recursive=True)
    assert len(family) >= 2  # worker and kernel
    run.send_signal(number)
    run.wait(30)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert not list((root / "figures/executed").rglob("[!.]*.ipynb"))
    (root / "second").touch()
    assert [one.status for one in reproduce()] == ["done"]


def test_two_runs_at_once_are_refused(root: Path) -> None:
    write(root, "00_start")
    (root / "figures/executed").mkdir(parents=True)
    with FileLock(root / "figures/executed/.lock"), pytest.raises(RunError, match="another `mtl reproduce` is at work"):
        reproduce()


def test_jobs_below_one(root: Path) -> None:
    write(root, "00_start")
    with pytest.raises(ValueError, match="jobs: at least 1, found 0"):
        reproduce(jobs=0)


def test_fresh_keeps_what_it_sets_aside(root: Path) -> None:
    local = root / "data/ledger/local"
    local.mkdir(parents=True)
    (local / "census.jsonl").write_text("{}\n")
    checkpoint = root / "data/checkpoints"
    checkpoint.mkdir()
    (checkpoint / "a.pt").write_text("weights")
    write(root, "00_start")
    (job,) = plan("smoke")
    stamp = job.file("stamp")
    stamp.parent.mkdir(parents=True)
    stamp.write_text("{}")
    old = set_aside([job])
    assert old is not None and (old / "census.jsonl").read_text() == "{}\n"
    assert (old / "checkpoints/a.pt").read_text() == "weights"
    assert not stamp.exists() and not checkpoint.exists() and not list(local.glob("*.jsonl"))
    assert set_aside([]) is None


def test_outputs_of_a_manifest(root: Path) -> None:
    (root / "paper/generated").mkdir(parents=True)
    (root / "paper/generated/fig_toy.tex").touch()
    lines = [{"kind": "figure", "path": "figures/toy.pdf"}, {"kind": "table", "path": "paper/generated/t.tex"}]
    assert outputs([*lines, {"kind": "verdict"}]) == [
        *(f"figures/toy.{suffix}" for suffix in ("json", "pdf", "png")),
        "paper/generated/fig_toy.tex",
        *(f"paper/generated/t.{suffix}" for suffix in ("json", "md", "tex")),
    ]


def test_summary_says_what_counts(root: Path) -> None:
    lines = [
        {"kind": "figure", "name": "toy"},
        {"kind": "verdict", "claim": "emtl-eq10", "verdict": "contradicted", "evidence": "0 of 5"},
        {"kind": "verdict", "claim": "emtl-thm1", "verdict": "reproduced", "evidence": "word " * 500},
        {"kind": "default", "name": "census", "used_by": "t"},
    ]
    screen = Console(record=True, width=120, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    bad = Outcome("01_b", "FAILED", 1.0, [], "cell 2: ValueError: x (log: figures/logs/01_b.log)")
    summary([Outcome("00_a", "done", 75.0, lines), bad], screen, 80.0)
    text = screen.export_text()
    for said in (
        "00_a      done    1 min 15 s  1",
        "emtl-eq10: contradicted (0 of 5)",
        "emtl-thm1: reproduced (word word",
        "mtl claims --why CLAIM says why",
        "census (in t)",
        "01_b FAILED in cell 2: ValueError: x (log: figures/logs/01_b.log)",
        "1 of 2 notebooks, 1 figures, 0 tables, 1 min 20 s",
    ):
        assert said in text
    assert max(map(len, text.splitlines())) < 120, "a verdict is a line"


def test_claims_without_rows_are_not_tested(root: Path) -> None:
    with pytest.raises(DataError, match=r"paper/claims.yml is not in"):
        claims()
    (root / "paper").mkdir()
    entry = "{id: a, paper: EMTL, section: '1', sentence: s, test: t, figure: f}"
    (root / "paper/claims.yml").write_text(f"- {entry}\n")
    screen = Console(record=True, width=120, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    screen.print(claims_table([]))
    assert "not tested" in screen.export_text()
    (root / "paper/claims.yml").write_text("- {id: a}\n")
    with pytest.raises(DataError, match=r"entry 1 needs figure, id, paper, section, sentence, test as text"):
        claims()


def test_the_engine_reaches_the_notebooks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ray all of them go to one cluster, which is joined, or started, once."""
    write(root, "00_start")
    (module,) = {sys.modules[run.__module__]}
    told: list[dict[str, str]] = []
    monkeypatch.setattr(module, "_run", lambda todo, jobs, console, given: told.append(given) or [])
    monkeypatch.setattr("mtl.runs.cluster.connect", lambda address, jobs: address or f"here:{jobs}")
    how = (plan("smoke"), 3, False, Console(file=io.StringIO()))
    for engine, address in (("auto", None), ("processes", None), ("ray", None), ("ray", "head:1")):
        run(*how, engine, address)
    assert told == [
        {},
        {"MTL_ENGINE": "processes"},
        {"MTL_ENGINE": "ray", "RAY_ADDRESS": "here:3"},
        {"MTL_ENGINE": "ray", "RAY_ADDRESS": "head:1"},
    ]
    with pytest.raises(ValueError, match="engine: one of auto, here, processes, ray, found 'ranks'"):
        run(*how, "ranks")
    with pytest.raises(ValueError, match="address: must be of a cluster of the engine ray, found 'a:1' for here"):
        run(*how, "here", "a:1")
