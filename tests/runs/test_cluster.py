"""The engine ray: what is refused without a cluster, and two real nodes, one of which dies, as does the driver."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mtl import lacking
from mtl.errors import DataError, RunError
from mtl.ledger import Ledger, Row
from mtl.runs import cells as runs
from mtl.runs import cluster
from mtl.runs.cells import Cell, Refused, grid
from mtl.runs.engines import run_grid, shown
from mtl.training.fit import Budget

TWO = [("LS", "ls", {}), ("MGDA", "mgda", {})]
SHORT = Budget(epochs=2, batch_size=100)


def cells(seeds: tuple[int, ...], budget: Budget = SHORT, methods: list[Any] = TWO) -> list[Cell]:
    return grid("digits", methods, ["mlp"], seeds, "smoke", budget, tasks=2)


def bare(rows: list[Row]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("wall_s", "provenance")} for row in rows]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"engine": "dask"}, "engine: must be one of .*ray.*, found 'dask'"),
        ({"address": "here:1"}, "address: must be of a cluster of the engine ray, found 'here:1' for auto"),
        ({"engine": "ray", "together": True}, "engine: must be here where seeds train together, found 'ray'"),
        ({"engine": "here", "jobs": 2}, "jobs: must be 1 for the engine here, found 2"),
    ],
)
def test_engines_that_cannot_be_are_refused(book: Ledger, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run_grid(cells((0,)), ledger=book, **given)


def test_ray_is_of_an_extra(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError) as missing:
        run_grid(cells((0,)), ledger=book, engine="ray")
    assert lacking(missing.value) == "needs ray, which is not installed: pip install '.[ray]' in the checkout of mtl"


def test_a_run_without_a_ledger_leaves_the_row_to_the_caller(book: Ledger) -> None:
    (cell,) = cells((0,), methods=TWO[:1])
    assert bare([runs.run_cell(cell, None)]) == bare([runs.run_cell(cell, book)]) and len(book.rows()) == 1


@pytest.mark.parametrize("name", ["sources", "torch"])
def test_a_worker_that_differs_is_refused(name: str) -> None:
    own = cluster.alike()
    with pytest.raises(Refused, match=rf"worker on .*: {name} must be other, .*, found {own[name][:5]}"):
        cluster._work(cells((0,))[0], "cpu", True, own | {name: "other"})


def test_a_worker_without_the_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (cell, *_) = cells((0,))
    object.__setattr__(cell, "fingerprint", "others")
    with pytest.raises(Refused, match=r"worker on .*its data must be others, found others here: \w+"):
        cluster._work(cell, "cpu", True, cluster.alike())


def test_a_worker_that_lacks_the_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(*_: Any) -> None:
        raise DataError("census: must lie in $MTL_DATA, found in none")

    monkeypatch.setattr(cluster, "build", lacks)
    with pytest.raises(Refused, match=r"worker on .*: census: must lie in \$MTL_DATA, found in none"):
        cluster._work(cells((0,))[0], "cpu", True, cluster.alike())


class FakeRay:
    """What `cluster` uses of ray, in this process: its resources are its own, workers named in `lose` are lost."""

    class exceptions:
        class RayError(Exception): ...

        class RayTaskError(RayError):
            cause: Any = None

    def __init__(self, **have: float) -> None:
        self.have, self.asked, self.most = have, dict[str, Any](), 0
        self.lose = set[str]()
        self.cancelled = list[Any]()

    def is_initialized(self) -> bool:
        return True

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(gcs_address="fake:1")

    def cluster_resources(self) -> dict[str, float]:
        return self.have

    def remote(self, **asked: Any) -> Callable[..., Any]:
        self.asked = asked
        return lambda work: SimpleNamespace(remote=lambda *given: partial(work, *given))

    def wait(self, flying: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        self.most = max(self.most, len(flying))
        return flying[:1], flying[1:]

    def get(self, task: Any) -> Row:
        cell, device, *more = task.args
        if cell.label in self.lose:
            raise self.exceptions.RayError
        return task.func(cell, "cpu", *more) | {"key": cell.key(device)}

    def cancel(self, task: Any, force: bool) -> None:
        self.cancelled.append(task)


def test_a_run_asks_for_its_part_of_a_gpu(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four runs share a GPU: each asks for a quarter, and no more are at work than there is room for."""
    ray = FakeRay(CPU=64.0, GPU=1.0)
    monkeypatch.setitem(sys.modules, "ray", ray)
    made = cells((0, 1, 2))
    rows = run_grid(made, ledger=book, engine="ray", device="cuda", jobs=4)
    assert ray.asked == {"num_cpus": 1, "num_gpus": 0.25, "max_retries": 2, "max_calls": 0} and ray.most == 4
    assert [row["key"] for row in rows] == [cell.key("cuda") for cell in made] and len(book.rows()) == 6
    ray.have = {"CPU": 64.0}
    with pytest.raises(RunError, match=r"must have a core and a GPU for a run, found \{'CPU': 64.0\}"):
        run_grid(cells((3,)), ledger=book, engine="ray", device="cuda", jobs=4)


def test_failed_cells_are_summed_up_and_the_others_kept(
    book: Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = FakeRay(CPU=2.0)
    ray.lose = {"MGDA"}
    monkeypatch.setitem(sys.modules, "ray", ray)
    said = r"2 of 4 runs failed, the others are in book: MGDA · mlp · seed 0 \(RunError: its worker was lost 3 times"
    with pytest.raises(RunError, match=said):
        run_grid(cells((0, 1)), ledger=book, engine="ray", progress=shown("digits"))
    assert ray.asked["num_gpus"] == 0 and ray.most == 2
    assert [row["config"]["method"] for row in book.rows()] == ["ls", "ls"]
    assert "digits: 2 of 4 runs, 2 failed, " in capsys.readouterr().err
    with pytest.raises(Refused, match=r"torch must be 0.1"), monkeypatch.context() as patch:
        patch.setattr(cluster, "alike", iter([{"torch": "0.1"}, {"torch": "0.2"}]).__next__)
        run_grid(cells((2, 3)), ledger=book, engine="ray")
    assert len(ray.cancelled) == 2, "what is at work stops"


def test_auto_is_what_the_environment_says(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(CPU=2.0)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("MTL_ENGINE", "ray")
    assert bare(run_grid(cells((0,)), ledger=book)) and ray.asked
    monkeypatch.setenv("MTL_ENGINE", "dask")
    with pytest.raises(ValueError, match=r"engine: must be one of .*found 'dask'"):
        run_grid(cells((0,)), ledger=book)
    monkeypatch.setenv("MTL_ENGINE", "here")
    ray.asked = {}
    assert len(run_grid(cells((0, 1)), ledger=book, jobs=2)) == 4 and not ray.asked


@pytest.mark.parametrize("address", ["nowhere", "ray://a:1", "a/b:7", ":6379"])
def test_an_address_that_is_none(book: Ledger, address: str) -> None:
    with pytest.raises(ValueError, match="address: must be host:port or auto, found"):
        run_grid(cells((0,)), ledger=book, engine="ray", address=address)


def test_an_address_where_nobody_answers(book: Ledger) -> None:
    began = time.monotonic()
    with pytest.raises(RunError, match=r"address: 127.0.0.1:\d+ must be of a Ray cluster, cannot be reached"):
        run_grid(cells((0,)), ledger=book, engine="ray", address=f"127.0.0.1:{_port()}")
    assert time.monotonic() - began < 30
    with pytest.raises(ValueError, match=r"device: must be cpu or cuda on a cluster, .*found 'cuda:1'"):
        run_grid(cells((0,)), ledger=book, engine="ray", device="cuda:1")


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Node:
    """`ray start --block`: one core, a store of its own; killed with all that it started."""

    def __init__(self, log: Path, *words: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", *words]
        command += ["--object-store-memory=100000000", "--disable-usage-stats", "--include-log-monitor=false"]
        for _ in range(4):  # a node waits 15 seconds for its agents, too short on a machine that is at work
            with log.open("wb") as file:
                self.process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
            try:
                wait(lambda: self.process.poll() is not None or b"runtime started" in log.read_bytes(), 150)
                if self.process.poll() is None:
                    return
            except BaseException:
                self.kill()
                raise
            self.kill()
        pytest.fail(log.read_text())

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def wait(ready: Callable[[], object], seconds: float, why: Callable[[], object] = str) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, why()
        time.sleep(0.1)


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, list[Node]]]:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # a token in ~/.ray, of some other cluster, would be asked for by the head and not be shown by the second node
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    address, nodes = f"127.0.0.1:{_port()}", list[Node]()
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as short:  # a socket's path is short
        head = (
            "--head",
            "--no-monitor",
            f"--port={address.partition(':')[2]}",
            "--include-dashboard=false",
            f"--temp-dir={short}",
        )
        try:
            for words in (head, (f"--address={address}",)):
                nodes.append(Node(tmp_path / f"node{len(nodes)}.log", *words))
            yield address, nodes
        finally:
            ray.shutdown()
            for node in reversed(nodes):
                node.kill()


DRIVER = """
import sys
from tests.runs.test_cluster import LONG, cells
from mtl.ledger import Ledger
from mtl.runs.engines import run_grid
run_grid(cells((0, 1, 2, 3), LONG), ledger=Ledger(sys.argv[1]), engine="ray", address=sys.argv[2])
"""
LONG = Budget(epochs=30, batch_size=50)


@pytest.mark.slow
def test_two_nodes_give_the_same_rows_whoever_dies(two_nodes: Any, book: Ledger, tmp_path: Path) -> None:
    """One test, since a cluster takes a minute to start: driver killed, rows equal, node killed, bad cell, refusal."""
    address, nodes = two_nodes
    how: dict[str, Any] = {"ledger": book, "engine": "ray", "address": address}
    made = cells((0, 1, 2, 3), LONG)

    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(book.path), address], cwd=Path(__file__).parents[2])
    try:
        wait(lambda: len(list(book.path.glob("*.json"))) >= 2 or driver.poll() is not None, 120)
    finally:
        driver.kill()
        driver.wait()
    first = len(book.rows())
    assert 2 <= first < len(made)

    heard = Counter[str]()
    rows = run_grid(made, **how, progress=lambda event: heard.update([event["event"]]))
    assert heard == {"found": first, "done": len(made) - first}
    assert bare(rows) == bare(run_grid(made, ledger=Ledger(tmp_path / "here")))
    assert not list((tmp_path / "data" / "checkpoints").glob("*.pt"))

    wrong = [("LS", "ls", {}), ("bad", "ls", {"nonsense": 1}), ("UW", "uw", {})]
    with pytest.raises(RunError, match=r"2 of 6 runs failed, .* in book: bad · mlp · seed 7 \(ValueError: "):
        run_grid(cells((7, 8), methods=wrong), **how)
    assert len(book.rows()) == len(made) + 4
    # which worker found it, and both values
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "alike", lambda: {"torch": "0.1"})
        with pytest.raises(Refused, match=r"worker on \S+: torch must be 0.1, as where the rows are written, found "):
            run_grid(cells((9,)), **how)

    import ray

    killed = threading.Event()

    def kill(event: Any) -> None:
        if not killed.is_set():
            killed.set()
            nodes[1].kill()

    again = Ledger(tmp_path / "again")
    assert ray.cluster_resources()["CPU"] == 2
    lone = run_grid(made, **how | {"ledger": again}, progress=kill)
    assert bare(lone) == bare(rows) and len(again.rows()) == len(made)
    wait(lambda: ray.cluster_resources()["CPU"] == 1, 60)
