"""Cells that differ in the seed alone, trained side by side: what `run_grid(..., together=True)` does."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from filelock import FileLock

from mtl.errors import RunError
from mtl.files import root
from mtl.ledger import Ledger, Row, key
from mtl.runs.cells import Cell, build, one_thread, run_cell, unchanged
from mtl.training.fit import Budget, Run
from mtl.training.together import fit_seeds, fresh, refusal

Result = Callable[[], Row]


def groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells with all but the seed in common, in the order of the first of them; those that cannot be stay alone."""
    alike: dict[str, list[Cell]] = {}
    for cell in cells:
        alike.setdefault(key({**cell.config, "seed": None}, cell.fingerprint), []).append(cell)
    found = []
    for group in alike.values():
        config, data = group[0].config, build(group[0])
        chosen = fresh(config["method"], len(data.tasks), config["seed"], config["hyper"])
        if len(group) > 1 and (why := refusal(chosen, data.model(config["model"], config["seed"]))):
            warnings.warn(f"{group[0]} and {len(group) - 1} more run one by one: {why}", stacklevel=3)
            found += [[cell] for cell in group]
        else:
            found.append(group)
    return found


def results(
    group: Sequence[Cell], book: Ledger, device: str, checkpoints: bool, older: bool
) -> Iterator[tuple[Cell, Result]]:
    """Run a group; each cell with what gives its row, or raises what went wrong."""
    if len(group) == 1:
        yield group[0], partial(run_cell, group[0], book, device, checkpoints, older)
        return
    broken: Exception = RunError("it has left no row")
    rows: dict[str, Row] = {}
    try:
        run_together(group, book, device, older, rows)
    except Exception as error:  # seeds that were done before have their rows
        broken = error

    def result(name: str) -> Row:
        if name not in rows:
            raise broken
        return rows[name]

    for cell in group:
        yield cell, partial(result, cell.key(torch.device(device).type))


def run_together(cells: Sequence[Cell], book: Ledger, device: str, older: bool, rows: dict[str, Row]) -> None:
    """Fill `rows` by key; each is appended to `book` as soon as its seed is done.

    A row that another process has written meanwhile is taken. There is no checkpoint: after an interruption the
    seeds that have no row yet start again.
    """
    names = {cell.key(torch.device(device).type): cell for cell in cells}
    folder = root() / "data" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        for name in sorted(names):  # in one order everywhere, so that nobody waits in a circle
            locks.enter_context(FileLock(folder / f"{name}.lock"))
        known = book.latest(older)
        rows |= {name: known[name] for name in names if name in known}
        left = {cell.config["seed"]: name for name, cell in names.items() if name not in rows}

        def done(run: Run) -> None:
            name = left[run.row["config"]["seed"]]
            if run.row["key"] != name:
                raise RunError(f"{names[name]}: its row has key {run.row['key']} instead of {name}")
            book.append(run.row)
            rows[name] = run.row

        if left:
            config = cells[0].config
            with one_thread():
                fit_seeds(
                    unchanged(cells[0]),
                    config["method"],
                    config["hyper"],
                    model=config["model"],
                    seeds=list(left),
                    budget=Budget(**config["budget"]),
                    device=device,
                    select=config["select"],
                    config={k: v for k, v in config.items() if k != "seed"},
                    done=done,
                )
        for name in names:
            (folder / f"{name}.lock").unlink(missing_ok=True)
