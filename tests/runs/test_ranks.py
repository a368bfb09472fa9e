"""The engine ranks: torchrun with two processes gives the row of one process, to rounding; what it refuses."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mtl.errors import RunError
from mtl.ledger import Ledger
from mtl.runs import ranks
from mtl.runs.cells import Cell, grid
from mtl.runs.engines import run_grid
from mtl.training.fit import Budget

METHODS = [("FairGrad", "fairgrad", {}), ("FAMO", "famo", {}), ("RLW", "rlw", {}), ("PCGrad", "pcgrad", {})]
PROGRAM = """
import sys
from pathlib import Path
from tests.runs.test_ranks import METHODS, cells
from mtl.ledger import Ledger
from mtl.runs import cells as runs
from mtl.runs.engines import run_grid
if sys.argv[2:]:
    fit, steps = runs.fit, []
    def stopped(data, *a, **how):
        losses = data.losses
        def stops(*given):
            steps.append(1)
            if len(steps) == 15:
                sys.exit(3)
            return losses(*given)
        data.losses = stops
        every = how["checkpoint_every"]
        return fit(data, *a, **how | {"checkpoint_every": 0 if every == 30 else every})
    runs.fit = stopped
run_grid(cells(METHODS[: 1 if sys.argv[2:] else None]), ledger=Ledger(sys.argv[1]), engine="ranks")
"""


def cells(methods: list[Any] = METHODS) -> list[Cell]:
    return grid("digits", methods, ["mlp"], [0], "smoke", Budget(3, 99), tasks=2)  # 99: parts of unequal size


def torchrun(n: int, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", *words]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}  # the program takes its cells from here
    return subprocess.run(command, capture_output=True, text=True, timeout=170, env=env)


def test_without_torchrun_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="engine: ranks are processes that torchrun starts, found no RANK; torchrun --n"):
        run_grid(cells(), ledger=Ledger(tmp_path / "book"), engine="ranks")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("WORLD_SIZE", "0", "at least 1, found '0'"), ("WORLD_SIZE", "two", "at least 1, found 'two'"),
     ("RANK", "2", "in 0..1, found '2'"), ("RANK", "-1", "in 0..1, found '-1'")],
)  # fmt: skip
def test_a_world_that_cannot_be(name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, own in (("RANK", "0"), ("WORLD_SIZE", "2"), (name, value)):
        monkeypatch.setenv(key, own)
    with pytest.raises(RunError, match=f"engine: {name} must be a whole number, {said}; torchrun --nproc-per-node N"):
        ranks.join("cpu")


@pytest.mark.slow
def test_two_ranks_give_the_rows_of_one_process(tmp_path: Path) -> None:
    """Stopped after fourteen steps and resumed; refused with another number of ranks."""
    program, book = tmp_path / "program.py", Ledger(tmp_path / "book")
    program.write_text(PROGRAM)
    assert "exitcode  : 3" in (stopped := torchrun(2, str(program), str(book.path), "stop")).stderr, stopped.stderr
    (saved,) = (tmp_path / "data" / "checkpoints").glob("*.pt")
    assert saved.name == f"{cells()[0].key()}.2.pt" and not book.rows()

    refused = torchrun(1, str(program), str(book.path))
    assert f"checkpoint {saved.name}: a run goes on with as many ranks as it began with, found 1" in refused.stderr

    assert (done := torchrun(2, str(program), str(book.path))).returncode == 0, done.stderr
    assert not list((tmp_path / "data" / "checkpoints").glob("*.pt"))
    whole = run_grid(cells(), ledger=Ledger(tmp_path / "alone"))
    for cell, lone in zip(cells(), whole, strict=True):
        row = book.find(cell.key())
        assert row is not None and row["ranks"] == 2 and row["steps"] == lone["steps"]
        assert torch.tensor(row["trace"]) == pytest.approx(torch.tensor(lone["trace"]), abs=2e-4), str(cell)
        assert row["metrics"] == pytest.approx(lone["metrics"], abs=1e-3), str(cell)
