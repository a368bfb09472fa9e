"""Grids of runs: what is run, what is found, what survives a failure, and how rows become a frame."""

import json
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from mtl.errors import RunError
from mtl.ledger import Ledger, key, provenance, publish, stale
from mtl.methods import METHODS
from mtl.methods.custom import rule
from mtl.report import frame
from mtl.runs import cells as runs
from mtl.runs import engines as pool
from mtl.runs.cells import Cell, grid
from mtl.runs.engines import run_grid
from mtl.runs.tuning import combine_stl, tune
from mtl.training.fit import Budget

TINY = Budget(epochs=1, batch_size=200)
TWO = [("LS", "ls", {}), ("MGDA", "mgda", {})]


def cells(seeds: tuple[int, ...] = (0, 1), methods: list[Any] = TWO, budget: Budget = TINY) -> list[Cell]:
    return grid("digits", methods, ["mlp"], seeds, "smoke", budget, tasks=2)


def bare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what time and machine put into them."""
    return [{k: v for k, v in row.items() if k not in ("wall_s", "provenance")} for row in rows]


def test_grid_holds_each_run_once_seeds_outermost() -> None:
    made = grid("digits", [*TWO, ("STL", "stl", {})], ["mlp"], [3, 4], "smoke", TINY, tasks=3)
    assert [str(c) for c in made[:5]] == [
        "LS · mlp · seed 3", "MGDA · mlp · seed 3", *(f"STL task {k} · single-task · seed 3" for k in range(3)),
    ]  # fmt: skip
    assert len(made) == 10 and len({c.key() for c in made}) == 10
    stl = made[3]
    assert (stl.select, stl.hyper, stl.options) == ("five-or-more/score", {"task": 1}, {"tasks": 3})
    assert made[0].key("cpu") != made[0].key("cuda")
    json.dumps(made[0].config)


def test_a_twin_differs_in_what_its_seed_alone_decides(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Initialisation and the method's generator are others, keys of runs without a twin as before."""
    made = cells((0, 1), [("RLW", "rlw", {})])
    twins = [cell.twin() for cell in made]
    assert "init_seed" not in made[0].config and twins[0].config == {**made[0].config, "init_seed": 1_000_000}
    given: list[Any] = []
    fit = runs.fit
    monkeypatch.setattr(runs, "fit", lambda *a, **k: given.append((a[1], k)) or fit(*a, **k))
    rows = run_grid([*made, *twins], ledger=book)
    assert [row["label"] for row in rows] == ["RLW", "RLW", "RLW A/A", "RLW A/A"]
    starts = [(m.generator.initial_seed(), k["seed"], k["init_seed"]) for m, k in given]
    assert starts == [(0, 0, None), (1, 1, None), (1_000_000, 0, 1_000_000), (1_000_001, 1, 1_000_001)]
    assert len({row["metrics"]["score"] for row in rows}) == 4
    assert Cell.of(rows[2]).key() == twins[0].key()
    assert [len(group) for group in pool._groups([*made, *twins])] == [2, 1, 1]
    assert [len(group) for group in pool._groups([replace(c, init_seed=5) for c in made])] == [1, 1]


def test_points_reach_method_and_budget() -> None:
    made = cells(methods=[("a", "cagrad", {"c": 0.4, "lr": 0.1, "weight_decay": 0.01})], seeds=(0,))[0]
    assert made.hyper == {"c": 0.4} and made.budget == Budget(TINY.epochs, TINY.batch_size, 0.1, 0.01)


def test_unknown_model_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="models: digits has mlp, single-task, found 'mmoe'"):
        grid("digits", TWO, ["mmoe"], [0], "smoke", TINY)


def test_stand_in_says_what_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtl.problems.digits import Digits

    monkeypatch.setattr(runs, "_build", lambda *_: Digits("smoke", tasks=2, stands_in_for="census"))
    made = grid("census", TWO, ["mmoe"], [0], "smoke", TINY, fallback="digits", tasks=2)[0]
    assert (made.problem, made.wanted, made.stands_in, made.model) == ("digits", "census", True, "mlp")
    assert made.config["stands_in_for"] == "census" and made.key() != cells((0,))[0].key()


def test_runs_what_is_missing_and_nothing_else(book: Ledger, own_root: Path) -> None:
    heard: list[dict[str, Any]] = []
    first = run_grid(cells((0,)), ledger=book, progress=heard.append)
    assert [event["event"] for event in heard] == ["done", "done"]
    assert [(event["done"], event["total"]) for event in heard] == [(1, 2), (2, 2)]
    heard.clear()
    both = run_grid(cells((0, 1)), ledger=book, progress=heard.append)
    assert sorted(event["event"] for event in heard) == ["done", "done", "found", "found"]
    assert bare(both)[:2] == bare(first) and [row["label"] for row in both] == ["LS", "MGDA"] * 2
    assert len(book.rows()) == 4 and "label" not in book.rows()[0]
    assert [row["config"]["seed"] for row in both] == [0, 0, 1, 1]
    assert list((own_root / "data" / "checkpoints").iterdir()) == []


@pytest.mark.slow
def test_worker_processes_give_the_same_bits(tmp_path: Path, book: Ledger) -> None:
    alone = run_grid(cells(), ledger=Ledger(tmp_path / "alone"))
    torch.manual_seed(5)
    several = run_grid(cells(), ledger=book, jobs=2)
    assert bare(alone) == bare(several)
    assert {row["provenance"]["hardware"]["threads"] for row in alone + several} == {1}


def test_a_run_in_this_process_takes_one_thread_and_gives_the_others_back(book: Ledger) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        rows = run_grid(cells((0,)), ledger=book)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {row["provenance"]["hardware"]["threads"] for row in rows} == {1}


def test_one_failure_costs_no_other_run(book: Ledger) -> None:
    wrong = [("LS", "ls", {}), ("bad", "ls", {"nonsense": 1}), ("MGDA", "mgda", {})]
    heard: list[dict[str, Any]] = []
    said = r"1 of 3 runs failed, the others are in book: bad · mlp · seed 0 \(\w+: .*nonsense"
    with pytest.raises(RunError, match=said):
        run_grid(cells((0,), wrong), ledger=book, progress=heard.append)
    assert [event["event"] for event in heard] == ["done", "failed", "done"]
    assert {row["config"]["method"] for row in book.rows()} == {"ls", "mgda"}


def test_diverged_run_is_a_row_not_a_failure(book: Ledger) -> None:
    (row,) = run_grid(cells((0,), [("LS", "ls", {"lr": 1e30})], Budget(epochs=3, batch_size=100)), ledger=book)
    assert row["status"] == "non-finite" and set(row["metrics"].values()) == {None}
    assert frame([row])["score"].isna().all()


def _suicidal(cell: Cell, *rest: Any) -> dict[str, Any]:
    """Stands in for `run_cell` in a worker: the MGDA run takes its worker down."""
    if cell.method == "mgda":
        os.kill(os.getpid(), signal.SIGKILL)
    return ORIGINAL(cell, *rest)


ORIGINAL = runs.run_cell


@pytest.mark.slow
def test_a_worker_that_dies_takes_only_its_own_run_down(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "run_cell", _suicidal)
    with pytest.raises(RunError, match=r"1 of 3 runs failed.*: MGDA · mlp · seed 0 \(its worker process died twice"):
        run_grid(cells((0,), [*TWO, ("UW", "uw", {})]), ledger=book, jobs=2)
    assert sorted(row["config"]["method"] for row in book.rows()) == ["ls", "uw"]


def _endless(path: str) -> None:
    long = Budget(epochs=100_000, batch_size=50)
    run_grid(grid("digits", TWO, ["mlp"], [0], "smoke", long), ledger=Ledger(path), jobs=2)


@pytest.mark.slow
def test_workers_die_with_a_killed_parent(book: Ledger, own_root: Path) -> None:
    parent = multiprocessing.get_context("spawn").Process(target=_endless, args=(str(book.path),))
    parent.start()
    locks = own_root / "data" / "checkpoints"
    try:
        until = time.monotonic() + 300
        while (n := len(list(locks.glob("*.lock")))) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        assert n == 2
    finally:
        parent.kill()
        parent.join()
    for lock in locks.glob("*.lock"):
        runs.FileLock(lock).acquire(timeout=10).lock.release()  # free only once its holder is gone


def test_deadline_starts_nothing_new(book: Ledger) -> None:
    heard: list[dict[str, Any]] = []
    assert run_grid(cells((0,)), ledger=book, deadline=0, progress=heard.append) == []
    assert [event["event"] for event in heard] == ["left", "left"] and book.rows() == []
    run_grid(cells((0,)), ledger=book)
    assert len(run_grid(cells((0, 1)), ledger=book, deadline=0)) == 2  # what is there is given


def test_resumes_a_killed_run(book: Ledger, own_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cells((0,), budget=Budget(epochs=4, batch_size=100))[0]
    whole = run_grid([cell], ledger=Ledger(own_root / "whole"))
    monkeypatch.setattr(runs, "fit", lambda *a, **k: FIT(*a, **k, checkpoint_every=0))
    data = runs.build(cell)
    losses, calls = data.losses, []

    def stops(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return losses(*arguments)

    monkeypatch.setattr(data, "losses", stops)
    with pytest.raises(KeyboardInterrupt):
        run_grid([cell], ledger=book)
    assert (own_root / "data" / "checkpoints" / f"{cell.key()}.pt").exists()
    assert bare(run_grid([cell], ledger=book)) == bare(whole)
    assert len(calls) == 24 + 1 and not list((own_root / "data" / "checkpoints").iterdir())


FIT = runs.fit


def test_stale_rows_are_run_again_unless_published_or_kept(book: Ledger, own_root: Path) -> None:
    cell = cells((0,))[0]
    row = run_grid([cell], ledger=book)[0]
    assert not stale(row) and row["provenance"]["modules"] == [
        "mtl.methods.losses", "mtl.problems.digits", "mtl.training.fit",
    ]  # fmt: skip
    old = {**row, "metrics": {"score": -1.0}}
    book.append(old)
    publish(published := Ledger(own_root / "new", also=[publish(Ledger(book.path.with_suffix(".jsonl")))]))
    book.append(old | {"provenance": {"sources": "old"}})
    assert run_grid([cell], ledger=book, rerun_stale=False)[0]["metrics"]["score"] == -1.0
    assert run_grid([cell], ledger=book)[0]["metrics"] == row["metrics"]
    assert run_grid([cell], ledger=published)[0]["metrics"]["score"] == -1.0 and not published.path.exists()
    made = run_grid([cell], ledger=published, rerun_published=True)
    assert made[0]["metrics"] == row["metrics"] == run_grid([cell], ledger=published)[0]["metrics"], "kept here"
    assert run_grid([cell], ledger=published, rerun_published=True) == made, "which is current"


def test_an_edited_class_of_the_users_own_is_run_again(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows were found under the name alone, and shown for those of the new text."""

    def made(value: float) -> type:
        class Mine(METHODS["ls"]):  # type: ignore[misc]
            def weights(self, losses: torch.Tensor, gram: torch.Tensor | None = None) -> torch.Tensor:
                return losses.new_tensor([value, 1.0])

        return Mine

    names = []
    for value in (1.0, 100.0, 1.0):
        monkeypatch.setitem(METHODS, "mine", made(value))
        (row,) = run_grid(cells((0,), [("Mine", "mine", {})]), ledger=book)
        names.append(row["key"])
        assert Cell.of(row).key() == row["key"]
    assert names[0] == names[2] != names[1] and len(book.rows()) == 2


def test_a_row_is_found_by_the_problem_and_method_that_made_it_whatever_else_changes(book: Ledger) -> None:
    """The hash of a run holds what its base method imports, and nothing of another method."""
    rows = run_grid(cells((0,), [("Fair", "fair-loss", {"base": "mgda"}), ("UW", "uw", {})]), ledger=book)
    assert [row["provenance"]["modules"][:-2] for row in rows] == [
        ["mtl.methods.emtl", "mtl.methods.gram"], ["mtl.methods.learned"],
    ]  # fmt: skip
    assert rows[0]["provenance"]["sources"] != rows[1]["provenance"]["sources"]


def test_a_damaged_row_fails_its_own_run_and_no_other(book: Ledger) -> None:
    made = cells((0,))
    run_grid(made, ledger=book)
    path = book.path / f"{made[0].key()}.json"
    path.write_text(path.read_text()[:-40])
    with (
        pytest.warns(UserWarning, match="1 rows are left out"),
        pytest.raises(RunError, match=rf"1 of 2 runs failed.*LS.*book/{path.name} is not the ledger row of its name"),
    ):
        run_grid(made, ledger=book)
    path.unlink()
    assert len(run_grid(made, ledger=book)) == 2


def test_a_row_that_cannot_be_written_keeps_its_checkpoint(book: Ledger, own_root: Path, monkeypatch: Any) -> None:
    cell = cells((0,))[0]
    monkeypatch.setattr(runs, "fit", lambda *a, **k: FIT(*a, **k, checkpoint_every=0))
    monkeypatch.setattr(Ledger, "append", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(RunError, match="OSError: no room"):
        run_grid([cell], ledger=book)
    assert (own_root / "data" / "checkpoints" / f"{cell.key()}.pt").exists() and book.rows() == []


LEDGERS = Path(__file__).parents[2] / "data" / "ledger"


@pytest.mark.parametrize("path", sorted(LEDGERS.rglob("*.jsonl")), ids=lambda path: path.stem)
def test_keys_of_published_rows_last(path: Path) -> None:
    """They are found by them: a cell made from a row's configuration has its key, and gives that configuration."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    own = ("ab_test", "gap", "gap_anew", "blind", "checks", "mt10", "mt10_checks", "readings")  # which no cell gives
    if path.stem in own:
        with pytest.raises(ValueError, match="must be of one run of a method, found"):
            Cell.of(rows[0])
        return
    for row in rows[:: max(1, len(rows) // 20)] + rows[-1:]:
        cell = Cell.of(row)
        assert cell.key(row["config"]["device"]) == row["key"]
        assert cell.config | {"device": row["config"]["device"]} == row["config"]
        assert key(row["config"], row["fingerprint"]) == row["key"]


def test_the_key_of_one_published_row_is_pinned() -> None:
    cell = Cell(
        "LS", "census", "study", {"tasks": 2.0}, "ls", {}, "mmoe", 0, Budget(4, 2048, 0.008, 1e-6), "score",
        "60ae89acda08d325f37482d4cef3dd9b9628055f47db687dbd4229190728894a", "census",
    )  # fmt: skip
    assert cell.key() == "34c26b4b31cb6715"


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")
def test_rows_of_another_device_are_taken_if_accepted(book: Ledger) -> None:
    cell = cells((0,))[0]
    book.append({"key": cell.key("cuda"), "config": {}, "provenance": provenance("cpu", ["mtl.training.fit"])})
    with pytest.raises(RunError, match="device: 1 of 1 runs need 'cuda', found no CUDA device here"):
        run_grid(cells((1,))[:1], ledger=book, device="cuda")
    assert run_grid([cell], ledger=book, device="cuda")[0]["key"] == cell.key("cuda")
    assert run_grid([cell], ledger=book)[0]["key"] == cell.key("cpu")


def test_a_rule_runs_in_the_process_that_knows_it(book: Ledger, request: pytest.FixtureRequest) -> None:
    """Workers did not know it, so that its runs failed once all others were made."""
    name = rule("mine", lambda losses, K: torch.ones_like(losses))
    request.addfinalizer(lambda: METHODS.pop(name))
    made = cells((0, 1), [*TWO, ("mine", name, {})])
    rows = run_grid(made, ledger=book, jobs=2)
    assert [row["label"] for row in rows] == ["LS", "MGDA", "mine"] * 2
    with pytest.raises(ValueError, match=f"engine: must be here for {name}, a rule of this process, found 'ray'"):
        run_grid(cells((2,), [("mine", name, {})]), ledger=book, engine="ray")


def test_bad_numbers_are_refused(book: Ledger) -> None:
    for jobs in (0, "2", True):
        with pytest.raises(ValueError, match="jobs: must be a whole number of at least 1, found"):
            run_grid(cells(), ledger=book, jobs=jobs)  # type: ignore[arg-type]
    for device in ("cudda", None):
        with pytest.raises(ValueError, match=r"device: must be cpu, cuda, cuda:1, \.\.\., found"):
            run_grid(cells(), ledger=book, device=device)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="deadline: must not be negative, found -1"):
        run_grid(cells(), ledger=book, deadline=-1)


def test_stl_is_one_row_of_each_tasks_own_run(book: Ledger) -> None:
    made = run_grid(cells(methods=[("LS", "ls", {}), ("STL", "stl", {})]), ledger=book)
    ls0, a, b = made[:3]
    first, stl, *_ = combine_stl(made)
    assert first == ls0 and [row["config"]["method"] for row in combine_stl(made)] == ["ls", "stl"] * 2
    assert stl["metrics"]["odd/auc"] == a["metrics"]["odd/auc"]
    assert stl["metrics"]["five-or-more/auc"] == b["metrics"]["five-or-more/auc"]
    assert stl["metrics"]["score"] == pytest.approx(
        (a["metrics"]["odd/score"] + b["metrics"]["five-or-more/score"]) / 2
    )
    assert stl["keys"] == [a["key"], b["key"]] and stl["config"]["hyper"] == {} and stl["label"] == "STL"
    assert set(stl["metrics"]) == set(a["metrics"])
    with pytest.raises(
        ValueError, match=r"rows: STL of seed 0 needs one run for each of \['odd', 'five-or-more'\], found"
    ):
        combine_stl([a])
    bad = {**b, "status": "non-finite", "metrics": dict.fromkeys(b["metrics"])}
    (half,) = combine_stl([a, bad])
    assert half["status"] == "non-finite" and half["metrics"]["score"] is None and half["metrics"]["odd/auc"] > 0


def test_single_task_run_trains_only_its_task(book: Ledger) -> None:
    budget = Budget(epochs=6, batch_size=50, lr=0.01)
    a, b = run_grid(cells((0,), [("STL", "stl", {})], budget), ledger=book)
    assert a["validation"]["odd/auc"] > 0.9 > a["validation"]["five-or-more/auc"]
    assert b["validation"]["five-or-more/auc"] > 0.85 > b["validation"]["odd/auc"]


def test_each_task_of_stl_has_a_point_of_its_own(book: Ledger) -> None:
    """A rate that only one of the tasks can learn at is chosen for that one alone, and runs with it."""
    how: dict[str, Any] = {"model": "mlp", "seeds": (0, 1), "scale": "smoke", "budget": TINY, "options": {"tasks": 2}}
    rates = [{"lr": 1e-2}, {"lr": 1e-3}, {"lr": 3e-2}]
    found = tune("digits", {"STL": rates}, methods={"STL": "stl"}, ledger=book, **how)
    rows = [row for row in book.rows() if row["config"]["method"] == "stl"]
    best = []
    for task in ("odd", "five-or-more"):
        own = [row for row in rows if row["config"]["select"] == f"{task}/score"]
        score = {p["lr"]: sum(r["validation"][f"{task}/score"] for r in own if r["config"]["budget"]["lr"] == p["lr"])
                 for p in rates}  # fmt: skip
        best.append(max(rates, key=lambda p: score[p["lr"]])["lr"])
    assert found.best["STL"] == ({"lr": best[0]} if best[0] == best[1] else {"lr": best})
    mixed = {"lr": [1e-2, 3e-2]}
    one, two = run_grid(cells((0,), [("STL", "stl", mixed)], TINY), ledger=book)
    assert [row["config"]["budget"]["lr"] for row in (one, two)] == mixed["lr"]
    (row,) = combine_stl([one, two])
    assert row["config"]["budget"]["lr"] == mixed["lr"] and row["metrics"]["odd/auc"] == one["metrics"]["odd/auc"]


def test_tuning_looks_at_validation_only_and_gives_equal_budgets(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"model": "mlp", "seeds": (0, 1), "scale": "smoke", "budget": TINY, "options": {"tasks": 2}}
    grids = {"ls": [{"lr": 1e-5}, {"lr": 1e-2}, {"lr": 1e30}], "cagrad": [{"c": 0.4, "lr": 1e-2}, {"lr": 1e-6}, {}]}
    chosen = tune("digits", grids, ledger=book, **how)
    assert chosen.best == {"ls": {"lr": 1e-2}, "cagrad": {"c": 0.4, "lr": 1e-2}}
    assert chosen.trials.query("chosen")["point"].tolist() == ["lr=0.01", "c=0.4, lr=0.01"]
    assert len(chosen.trials) == 6 and chosen.trials["validation score"].iloc[2] == -math.inf
    wrong = [
        {**row, "metrics": dict.fromkeys(row["metrics"], 1.0 - row["config"]["budget"]["lr"])} for row in book.rows()
    ]
    monkeypatch.setattr(Ledger, "latest", lambda *_, **__: {row["key"]: row for row in wrong})
    pd.testing.assert_frame_equal(tune("digits", grids, ledger=book, **how).trials, chosen.trials)
    with pytest.raises(
        ValueError, match=r"grids: every method gets the same number of points, found {'ls': 1, 'uw': 2}"
    ):
        tune("digits", {"ls": [{}], "uw": [{}, {"lr": 1.0}]}, ledger=book, **how)


def test_a_bar_leaves_one_line_behind(book: Ledger, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    progress, made = pool.shown("digits"), cells((0,))
    run_grid(made, ledger=book, progress=progress)
    err = capsys.readouterr().err
    assert re.fullmatch(r"digits: 2 of 2 runs, 0 failed, \d+ s\n", err)
    run_grid([*made, *cells((1,))], ledger=book, progress=progress, deadline=0)  # the same one may be used again
    assert re.fullmatch(r"digits: 2 of 4 runs, 0 failed, 2 not started, \d+ s\n", capsys.readouterr().err)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run_grid(made, ledger=book, progress=progress)
    drawn = capsys.readouterr().err
    assert drawn.count("\n") == 1 and "██████████░░░░░░░░░░ 1/2 LS · mlp · seed 0" in drawn


def test_a_bar_of_a_notebook_is_one_output_that_changes(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, str]] = []

    class Handle:
        def display(self, data: dict[str, str], raw: bool) -> None:
            said.append(("display", data["text/plain"]))

        def update(self, data: dict[str, str], raw: bool) -> None:
            said.append(("update", data["text/plain"]))

    kernel = SimpleNamespace(kernel=None)
    fake = SimpleNamespace(get_ipython=lambda: kernel, display=SimpleNamespace(DisplayHandle=Handle))
    monkeypatch.setitem(sys.modules, "IPython", fake)
    run_grid(cells((0,)), ledger=book, progress=pool.shown())
    assert [what for what, _ in said] == ["display", "update"] and said[-1][1].startswith("runs: 2 of 2 runs, 0 failed")


def test_seeds_trained_together_give_the_rows_of_single_runs(book: Ledger, tmp_path: Path) -> None:
    made = cells(seeds=(0, 1, 2), methods=[*TWO, ("STL", "stl", {})])
    heard: list[dict[str, Any]] = []
    apart = run_grid(made, ledger=Ledger(tmp_path / "apart"))
    rows = run_grid(made, ledger=book, together=True, progress=heard.append)
    assert [row["key"] for row in rows] == [row["key"] for row in apart] == [cell.key() for cell in made]
    for row, lone in zip(rows, apart, strict=True):
        assert row["together"] == [0, 1, 2] and "together" not in lone and lone["provenance"] != row["provenance"]
        assert row["metrics"] == pytest.approx(lone["metrics"], abs=1e-4) and row["label"] == lone["label"]
    assert [event["event"] for event in heard] == ["done"] * 12 and heard[-1]["done"] == 12
    assert run_grid(made, ledger=book) == rows, "rows are found, however they were made"
    assert not list((tmp_path / "data" / "checkpoints").iterdir())


def test_together_leaves_alone_what_cannot_be_and_wants_one_job(book: Ledger) -> None:
    made = cells(methods=[("AdaTask", "adatask", {}), ("LS", "ls", {})])
    with pytest.warns(UserWarning, match="AdaTask · mlp · seed 0 and 1 more run one by one: name: must be a method"):
        rows = run_grid(made, ledger=book, together=True)
    assert ["together" in row for row in rows] == [False, True, False, True]
    with pytest.raises(ValueError, match="jobs: must be 1 where seeds train together, found 2"):
        run_grid(made, ledger=book, together=True, jobs=2)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_group_that_is_stopped_keeps_the_seeds_that_were_done(book: Ledger, error: type, monkeypatch) -> None:
    real, calls = pool.fit_seeds, list[list[int]]()

    def stopped(*args: Any, **how: Any) -> None:
        calls.append(how["seeds"])
        real(*args, **{**how, "seeds": how["seeds"][:1]})
        raise error("no more")

    made = cells(seeds=(0, 1, 2), methods=TWO[:1])
    monkeypatch.setattr(pool, "fit_seeds", stopped)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else RunError, match=r"no more|2 of 3 runs"):
        run_grid(made, ledger=book, together=True)
    assert [row["config"]["seed"] for row in book.rows()] == [0]
    monkeypatch.setattr(pool, "fit_seeds", lambda *a, **how: calls.append(how["seeds"]) or real(*a, **how))
    assert len(run_grid(made, ledger=book, together=True)) == 3 and calls == [[0, 1, 2], [1, 2]]


def test_deadline_starts_no_group(book: Ledger) -> None:
    heard: list[dict[str, Any]] = []
    assert run_grid(cells(), ledger=book, together=True, deadline=0, progress=heard.append) == []
    assert [event["event"] for event in heard] == ["left"] * 4


def test_a_run_at_work_elsewhere_is_said_and_its_row_taken(book: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    (cell,) = cells((0,), TWO[:1])
    made = runs._made(cell, "cpu")

    def other() -> None:
        with runs.locked(cell.key()):
            started.set()
            time.sleep(2)
            book.append(made)

    started = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    started.wait()
    assert bare([runs.run_cell(cell, book)]) == bare([made])
    thread.join()
    assert caplog.messages == [f"run {cell.key()} is at work in another process; waiting for its row"]


@pytest.mark.parametrize("change", [{"budget": {}}, {"budget": 3}, {"options": None}, {"hyper": 1j}])
def test_an_odd_row_is_no_cell(change: dict[str, Any]) -> None:
    (cell,) = cells((0,), TWO[:1])
    row = {"key": "k", "fingerprint": cell.fingerprint, "config": cell.config}
    assert Cell.of(row) == replace(cell, label="ls")
    with pytest.raises((ValueError, TypeError), match=r"row: k must be of one run of a method, found"):
        Cell.of(row | {"config": cell.config | change})


def test_a_ledger_that_takes_no_row_is_told_before_any_run(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    book.path.write_text("a file")
    monkeypatch.setattr(pool, "run_cell", lambda *_: pytest.fail("it was run"))
    with pytest.raises(OSError, match=r"File exists"):
        run_grid(cells((0,)), ledger=book)
