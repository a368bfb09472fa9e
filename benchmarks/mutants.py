"""Does the suite notice a wrong formula? Mutants of solvers, methods, statistics and ledger, sampled with a fixed seed.

    python -m benchmarks.mutants --n 400 --seed 0

Each mutant is one small change (operator, comparison, constant, condition) in a copy of the package; one of the
tests that call the changed function must fail (which do is recorded first; the fastest go first, for at most 20
seconds). Rows go to benchmarks/results/mutants.jsonl as they come; a second call runs what is missing. A
survivor that no test can tell from the original (the same numbers by another way) stands with its reason in
benchmarks/results/equivalent.yml; all others are missing tests.
"""

import argparse
import ast
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# Where mutants are made, and the tests that must notice them, the fastest first.
TESTS = {
    "mtl/solvers": ("tests/solvers", "tests/methods"),
    "mtl/methods": ("tests/methods", "tests/gradients/test_backward.py", "tests/gradients/test_absent.py"),
    "mtl/report/stats.py": ("tests/report/test_stats.py", "tests/report/test_report.py"),
    "mtl/ledger.py": ("tests/test_ledger.py", "tests/runs"),
}
SECONDS = 300.0  # a mutant that hangs is noticed
BUDGET = 20.0  # processor seconds of tests for one mutant, the fastest first
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Add,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Add, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
COMPARISON: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "amin": "amax", "amax": "amin", "sum": "mean", "mean": "sum", "any": "all"}


def mutate(node: ast.AST) -> Iterator[str]:
    """Change `node` in place, one way after the other; says what was done and undoes it when resumed."""
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC:
        old = node.op
        node.op = ARITHMETIC[type(old)]()
        yield f"{type(old).__name__} -> {type(node.op).__name__}"
        node.op = old
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISON:
        op = node.ops[0]
        node.ops = [COMPARISON[type(op)]()]
        yield f"{type(op).__name__} -> {type(node.ops[0]).__name__}"
        node.ops = [op]
    elif isinstance(node, ast.BoolOp):
        both = node.op
        node.op = ast.Or() if isinstance(both, ast.And) else ast.And()
        yield f"{type(both).__name__} -> {type(node.op).__name__}"
        node.op = both
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        sign = node.op
        node.op = ast.UAdd() if isinstance(sign, ast.USub) else ast.Not()
        if isinstance(sign, ast.Not):
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
        yield f"{type(sign).__name__} left out"
        node.op = sign
        if isinstance(sign, ast.Not):
            assert isinstance(node.operand, ast.UnaryOp)
            node.operand = node.operand.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float) and node.value is not None:
        value = node.value
        node.value = (
            (not value) if isinstance(value, bool) else value + 1 if isinstance(value, int) else 2 * value or 1.0
        )
        yield f"{value!r} -> {node.value!r}"
        node.value = value
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        name = node.attr
        node.attr = NAMES[name]
        yield f".{name} -> .{node.attr}"
        node.attr = name
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        test = node.test
        node.test = ast.UnaryOp(ast.Not(), test)
        yield f"{type(node).__name__} negated"
        node.test = test


def places(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that decide a number: no annotations, decorators, messages of errors or text."""
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop(0)
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.If) and all(isinstance(part, ast.Raise) for part in node.body):
            queue = [node.test, *node.orelse, *queue]  # a check counts, its wording does not
            continue
        yield node
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_comment"):
                continue
            queue += [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, ast.AST)]


def changes(path: Path) -> Iterator[tuple[str, int, ast.Module]]:
    """(what, line, the changed tree) of every mutant of a file; the tree is changed back when this resumes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in places(tree):
        for change in mutate(node):
            yield change, getattr(node, "lineno", 0), tree


def sample(n: int, seed: int) -> list[dict[str, Any]]:
    """`n` mutants of all targets, drawn without replacement: file, line, change and the whole source of each."""
    targets = [ROOT / target for target in TESTS]
    files = [path for one in targets for path in (sorted(one.rglob("*.py")) if one.is_dir() else [one])]
    every = [(path, i) for path in files for i, _ in enumerate(changes(path))]
    drawn = set(random.Random(seed).sample(every, min(n, len(every))))
    found = []
    for path in files:
        for i, (change, line, tree) in enumerate(changes(path)):
            if (path, i) in drawn:
                file, text = path.relative_to(ROOT).as_posix(), ast.unparse(tree)
                name = hashlib.sha256(f"{file}\0{text}".encode()).hexdigest()[:12]
                found.append({"id": name, "file": file, "line": line, "change": change, "source": text})
    return found


class Calls:
    """Pytest plugin: which functions of the targets each test calls, and its seconds of processor time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.found = f"{folder}{os.sep}", dict[str, Any]()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        called: set[tuple[str, int]] = set()

        def see(frame: FrameType, event: str, _: Any) -> None:
            if event == "call" and frame.f_code.co_filename.startswith(self.folder):
                called.add((frame.f_code.co_filename[len(self.folder) :], frame.f_code.co_firstlineno))

        started = time.process_time()
        sys.setprofile(see)
        yield
        sys.setprofile(None)
        ours = sorted([*one] for one in called if one[0].startswith(tuple(TESTS)))
        self.found[item.nodeid] = [round(time.process_time() - started, 3), ours]


class Only:
    """Pytest plugin: run just these tests, in this order."""

    def __init__(self, chosen: list[str]) -> None:
        self.place = {name: i for i, name in enumerate(chosen)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((x for x in items if x.nodeid in self.place), key=lambda x: self.place[x.nodeid])


def calls(folder: Path) -> dict[str, Any]:
    """`Calls.found` of all tests on the unchanged package."""
    out = folder / "calls.json"
    if (child := os.fork()) == 0:
        _run(folder, [*{part: None for tests in TESTS.values() for part in tests}, *TESTS], Calls(folder), out)
    os.waitpid(child, 0)
    return dict(json.loads(out.read_text()))


def function(path: Path, line: int) -> int | None:
    """First line of the innermost function around a line."""
    inside = [
        (min([node.lineno, *(one.lineno for one in node.decorator_list)]), node)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    return max((first for first, node in inside if first <= line <= (node.end_lineno or 0)), default=None)


def chosen(mutant: dict[str, Any], called: dict[str, Any]) -> list[str]:
    """Tests that call the changed function (for a line outside of all: any of the file), the fastest first."""
    first = function(ROOT / mutant["file"], mutant["line"])
    names: list[str] = []
    spent = 0.0
    for name, (seconds, ours) in sorted(called.items(), key=lambda item: float(item[1][0])):
        if any(file == mutant["file"] and first in (None, line) for file, line in ours):
            spent += seconds
            if names and spent > BUDGET:
                break
            names.append(name)
    return names


def killed(mutant: dict[str, Any], folder: Path, called: dict[str, Any]) -> str | None:
    """The test that fails on the mutant, or None; `folder` holds a copy of package and tests."""
    names = chosen(mutant, called)
    if not names:
        return None
    target, out = folder / mutant["file"], folder / "failed"
    original = target.read_text(encoding="utf-8")
    target.write_text(mutant["source"], encoding="utf-8")
    out.unlink(missing_ok=True)
    try:
        if (child := os.fork()) == 0:
            _run(folder, sorted({name.split("::")[0] for name in names}), Only(names))
        until = time.monotonic() + SECONDS
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "time"
            time.sleep(0.05)
        code = os.waitstatus_to_exitcode(ended[1])
        return None if code == 0 else out.read_text() if out.is_file() else "import"
    finally:
        target.write_text(original, encoding="utf-8")


class Failed:
    """Pytest plugin: write down the first test that fails."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            Path("failed").write_text(report.nodeid)


def _run(folder: Path, parts: list[str], plugin: Any, out: Path | None = None) -> None:
    """In a forked child: the tests of some files, in the copy; never returns."""
    os.chdir(folder)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.path[:] = [str(folder), *[place for place in sys.path if Path(place or ".").resolve() != ROOT]]
    stop = [] if out else ["-x"]
    options = [*stop, "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--doctest-modules", *parts]
    code = pytest.main(options, plugins=[plugin, Failed()])
    if out:
        out.write_text(json.dumps(plugin.found))
    os._exit(int(code))


def main() -> int:
    """Run what is missing of the sample; exit code 1 if a survivor is not accounted for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no mutant after so long")
    given = parser.parse_args()
    import hypothesis  # noqa: F401 - imported once, before the forks
    import pandas  # noqa: F401
    import scipy.optimize  # noqa: F401
    import torch

    torch.set_num_threads(1)
    book = RESULTS / "mutants.jsonl"
    known = {row["id"]: row for row in map(json.loads, book.read_text().splitlines())} if book.is_file() else {}
    drawn = sample(given.n, given.seed)
    missing = [one for one in drawn if one["id"] not in known]
    until = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as scratch, book.open("a") as file:
        for part in ("mtl", "tests", "paper", "data", "benchmarks", "notebooks"):
            ignored = shutil.ignore_patterns("__pycache__", "raw", "cache", "local", "checkpoints")
            shutil.copytree(ROOT / part, Path(scratch) / part, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", scratch)
        called = calls(Path(scratch)) if missing else {}
        for mutant in missing:
            if time.monotonic() > until:
                break
            started = time.monotonic()
            row = {k: mutant[k] for k in ("id", "file", "line", "change")} | {
                "killed_by": killed(mutant, Path(scratch), called)
            }
            known[mutant["id"]] = row
            file.write(json.dumps(row | {"seconds": round(time.monotonic() - started, 1)}) + "\n")
            file.flush()
    listed = RESULTS / "equivalent.yml"
    equivalent = yaml.safe_load(listed.read_text()) if listed.is_file() else {}
    done = [known[one["id"]] for one in drawn if one["id"] in known]
    alive = [row for row in done if row["killed_by"] is None]
    open_ones = [row for row in alive if row["id"] not in equivalent]
    for row in open_ones:
        print(f"survived {row['id']} {row['file']}:{row['line']} {row['change']}")
    counted = Counter(row["file"].split("/")[1] for row in done if row["killed_by"])
    real = len(done) - (len(alive) - len(open_ones))
    print(f"{real - len(open_ones)} of {real} killed ({100 * (1 - len(open_ones) / max(real, 1)):.1f} %), "
          f"{len(alive) - len(open_ones)} equivalent, {len(drawn) - len(done)} not run; {dict(counted)}")  # fmt: skip
    return int(bool(open_ones))


if __name__ == "__main__":
    sys.exit(main())
