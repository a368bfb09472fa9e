"""Faults at the edges: does anything get lost, come out otherwise or end in a raw traceback, without a word?

    python -m benchmarks.faults api --n 5000      # odd arguments; also: files, checkpoints, disk, kills, commands

Every case has a seed of its own (part, number), so that `--only 17` shows one alone. What counts as right is the same
call or file without the fault; what counts as refused is an error that the package itself raises, or OSError. All else
is a finding: "lost", "other numbers" or "raw"; exit code 1 where there is one.
"""

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mtl
from mtl.errors import DataError, RunError
from mtl.ledger import Ledger, provenance, publish

PACKAGE = str(Path(mtl.__file__).parent)
OWN = (DataError, RunError, ValueError, TypeError, OSError)
RIGHT, REFUSED, LOST, OTHER, RAW = "right", "refused", "lost", "other numbers", "raw"


@dataclass
class Part:
    """What became of the cases of a part; one example of each finding."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, number: int, said: str = "") -> None:
        self.counts[kind] += 1
        if kind not in (RIGHT, REFUSED):
            self.examples.setdefault(f"{kind}: {said[:160]}", f"case {number}")


def seeded(part: str, number: int) -> random.Random:
    return random.Random(f"{part} {number}")


def outcome(call: Callable[[], Any], right: Callable[[Any], str] = lambda _: RIGHT) -> tuple[str, str]:
    """Kind of an outcome and what it was: `right` judges what came back; an error must be the package's own."""
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = call()
        kind = right(found)
        named = any(word in str(one.message) for one in told for word in ("are left out", "as it was published"))
        return (REFUSED, "") if kind == LOST and named else (kind, str(found)[:100])
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = last.filename.startswith(PACKAGE) or last.filename == __file__ or isinstance(error, OSError)
        if isinstance(error, OWN) and not isinstance(error, UnicodeError) and ours:
            return REFUSED, str(error)
        return RAW, f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {error}"


# Odd arguments

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 3, 7, 1.5, -0.5, float("nan"), float("inf"), 1e308, 1e-300, 10**30, "", "ls", "x", b"x",
    [], [1, 2], [1.0, float("nan")], {}, {"a": 1}, (0,), 1j, np.float32(2), np.int64(3), np.array(["a"]), np.zeros(0),
    torch.tensor(2.0), torch.tensor([1.0, 2.0]), torch.zeros(2, 2), object, len,
)  # fmt: skip
SCALES = (1e-30, 1e-8, 1.0, 1.0, 1.0, 1e8, 1e30)


def _finite(found: Any) -> str:
    tensors = [found] if isinstance(found, torch.Tensor) else found
    return RIGHT if all(bool(torch.isfinite(t).all()) for t in tensors if t is not None) else OTHER


def _numbers(rng: random.Random, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return torch.randn(*shape, generator=generator, dtype=rng.choice([torch.float32, torch.float64]))


def _hyper(rng: random.Random, name: str, odd: bool) -> dict[str, Any]:
    from inspect import signature

    known = [*signature(mtl.METHODS[name].__init__).parameters][2:] if name in mtl.METHODS else []
    return (
        {rng.choice([*known, "nonsense"] if rng.random() < 0.1 or not known else known): rng.choice(ODD)} if odd else {}
    )


def _aggregate(rng: random.Random) -> tuple[Callable[[], Any], Callable[[Any], str]]:
    name, tasks = rng.choice([*mtl.METHODS]), rng.choice([1, 2, 2, 3, 5])
    grads, losses = _numbers(rng, tasks, rng.choice([1, 4, 9])), _numbers(rng, tasks).abs() + 0.1
    losses = losses.to(grads.dtype)
    what, hyper = rng.randrange(8), _hyper(rng, name, rng.random() < 0.3)
    given: list[Any] = [grads, losses]
    side = rng.randrange(2)
    if what == 0:
        given[side] = rng.choice(ODD)
    elif what == 1:
        given[side] = given[side].clone()
        given[side].view(-1)[0] = rng.choice([float("nan"), float("inf"), -1.0, 0.0])
    elif what == 2:
        given[side] = rng.choice(
            [given[side][:-1], given[side].int(), given[side].half(), given[side].numpy(), given[side][None]]
        )
    elif what == 3:
        given[0] = grads * rng.choice(SCALES)
    elif what == 4:
        given[0] = grads[:1].expand(tasks, -1) * rng.choice([0.0, 1.0])
    elif what == 5:  # the same numbers in another layout
        given[0] = grads.T.contiguous().T

    def right(found: Any) -> str:
        if found.direction.shape != grads.shape[1:] or _finite([found.direction, found.weights]) != RIGHT:
            return OTHER
        if what == 5 and not hyper:
            plain = mtl.aggregate(name, grads=grads, losses=losses)
            return RIGHT if torch.allclose(found.direction, plain.direction, rtol=1e-3, atol=1e-5) else OTHER
        return RIGHT

    return lambda: mtl.aggregate(name, grads=given[0], losses=given[1], **hyper), right


def _method(rng: random.Random) -> tuple[Callable[[], Any], Callable[[Any], str]]:
    name, tasks = rng.choice([*mtl.METHODS, rng.choice(ODD)]) if rng.random() < 0.1 else rng.choice([*mtl.METHODS]), 2
    given = rng.choice(ODD) if rng.random() < 0.2 else tasks
    hyper = _hyper(rng, name, True) if isinstance(name, str) else {}
    grads, losses = _numbers(rng, tasks, 4).double(), _numbers(rng, tasks).abs().double() + 0.1

    def call() -> Any:
        made = mtl.method(name, given, **hyper)
        if given != tasks or made.needs == "gradients" or made.masks:
            return torch.zeros(1)
        return made.weights(losses, grads @ grads.T)

    return call, _finite


def _backward(rng: random.Random) -> tuple[Callable[[], Any], Callable[[Any], str]]:
    name = rng.choice(["ls", "mgda", "fairgrad", "emtl", "nash", "pcgrad", "uw", "cagrad"])
    theta = torch.ones(3, requires_grad=True)
    heads = [torch.ones(2, requires_grad=True) for _ in range(2)]
    losses: Any = [(theta.sum() * head.sum() - i) ** 2 + 0.1 for i, head in enumerate(heads)]
    how: dict[str, Any] = {"shared": [theta], "heads": [[head] for head in heads]}
    if (what := rng.randrange(4)) == 0:
        first, second = losses
        odd = [losses[:1], [first, second.detach()], [first * float("nan"), second], [first.expand(2), second]]
        losses = rng.choice([*ODD, *odd, torch.stack(losses)[None], [None, None], [first, None]])
    elif what == 1:
        how[rng.choice(["shared", "heads"])] = rng.choice([*ODD, [torch.ones(2)], [heads[0]], [[theta], [heads[1]]]])
    elif what == 2:
        how[rng.choice(["features", "vjp", "check", "scale", "group", "retain_graph"])] = rng.choice(ODD)

    def call() -> Any:
        mtl.backward(losses, method=mtl.method(name, 2), **how)
        return [theta.grad, *(head.grad for head in heads)]

    return call, lambda found: RIGHT if what == 2 else _finite(found)  # a loss scale may overflow and says so


def _around(rng: random.Random) -> tuple[Callable[[], Any], Callable[[Any], str]]:
    from mtl.cli import arguments
    from mtl.files import canonical, markdown, plain
    from mtl.ledger import key
    from mtl.report import stats

    odd, other = rng.choice(ODD), rng.choice(ODD)
    word = "".join(rng.choice("0123456789-,=[]{}()'\"\\ eE.+_naif\n\0²٣") for _ in range(rng.randrange(1, 12)))
    budget = {"epochs": 1, "batch_size": 8, rng.choice(["lr", "patience", "halve_at", "last", "epochs"]): odd}
    calls: list[Callable[[], Any]] = [
        lambda: mtl.Budget(**budget),
        lambda: mtl.problem("digits", **{rng.choice(["scale", "tasks", "fallback", "noise"]): odd}),
        lambda: mtl.problem(odd, other),
        lambda: key({"a": odd, "b": [other]}, "f"),
        lambda: key(odd, other),
        lambda: canonical([odd, {"x": other}]),
        lambda: Ledger(rng.choice([SCRATCH / "a", SCRATCH / "file"])).append({"key": odd, "x": other}),
        lambda: Ledger(SCRATCH / "a").append({"key": "k", "x": odd}),
        lambda: plain({"a": odd}),
        lambda: markdown(odd),
        lambda: mtl.rule(rng.choice(["r", "ls", odd]), rng.choice([lambda x, k: x, odd]), needs=other),
        lambda: arguments.pairs([word, f"a={word}"]),
        lambda: arguments.seeds(word),
        lambda: arguments.device(word),
        lambda: arguments.seconds(rng.choice([None, 1.0, float("nan"), -1.0])),
        lambda: stats.mean_ci(rng.choice([odd, np.array([1.0, 2.0]), np.array([np.nan, 1.0]), np.zeros(0)])),
        lambda: stats.paired_permutation(
            rng.choice([odd, np.array([1.0, 2.0])]), rng.choice([other, np.array([2.0, 1.0]), np.zeros(1)]),
            generator=np.random.default_rng(0),
        ),
        lambda: mtl.fit(odd, mtl.method("ls", 2), model="mlp", seed=0, budget=mtl.Budget(1, 200)),
    ]  # fmt: skip
    return rng.choice(calls), lambda _: RIGHT


def api(n: int, first: int = 0) -> Part:
    """Calls with one odd thing in each."""
    part, kinds = Part(), (_aggregate, _aggregate, _method, _method, _backward, _around)
    (SCRATCH / "file").write_text("a file, no folder")
    for number in range(first, first + n):
        rng = seeded("api", number)
        kind = rng.choice(kinds)
        call, right = kind(rng)
        with redirect_stderr(StringIO()):
            part.add(*_numbered(number, kind.__name__, outcome(call, right)))
    return part


def _numbered(number: int, what: str, found: tuple[str, str]) -> tuple[str, int, str]:
    return found[0], number, f"{what}: {found[1]}"


# Damaged files


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One thing that happens to files."""
    if not data:
        return b"\0"
    at, size = rng.randrange(len(data)), rng.choice([1, 8, 64, 600])
    block = data[at : at + size]
    numbers = [b"NaN", b"1e999", b"-1", b"9" * 5000, b"\xff\xfe", b"null", b"[" * 50_000, b"0.5"]
    return rng.choice([
        data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
        data[:at],
        data[:at] + bytes(len(block)) + data[at + size :],
        data[:at] + rng.randbytes(size) + data[at:],
        data[:at] + data[at + size :],
        data[: at + size] + data[at:],
        b"",
        rng.randbytes(len(data)),
        data + rng.randbytes(size),
        data[:at] + rng.choice(numbers) + data[at + rng.randrange(4) :],
    ])  # fmt: skip


@dataclass
class Target:
    """Files that may be damaged, how they are read, and what must then be equal."""

    files: list[Path]
    read: Callable[[], Any]
    weight: int = 1


def _row(name: str) -> dict[str, Any]:
    made = provenance("cpu", ["mtl.solvers.kl"])
    metrics = {"score": len(name) / 7, "auc": hash_of(name)}
    config = {"method": name, "seed": 0, "problem": "digits"}
    return {"key": name, "config": config, "metrics": metrics, "status": "ok", "wall_s": 1.0, "provenance": made,
            "fingerprint": "f"}  # fmt: skip


def hash_of(name: str) -> float:
    return random.Random(name).random()


def targets() -> Iterator[tuple[str, Target]]:
    """Each kind of file that is read, by name; an answer is (identity, numbers)."""
    from mtl.cli.plan import _read, read_stamp
    from mtl.problems import census, multimnist
    from mtl.problems.aliexpress_files import convert
    from mtl.problems.aliexpress_like import write_files
    from mtl.problems.data import raw
    from mtl.problems.scenes.files import Folders
    from mtl.problems.scenes.nyuv2_files import Packed
    from mtl.report.verdicts import claims
    from tests import miniature
    from tests.problems import test_census, test_multimnist

    book = Ledger(SCRATCH / "book")
    for name in "abcdef":
        book.append(_row(name))
    yield (
        "rows",
        Target([*book.path.glob("*.json")], lambda: ({}, {k: r["metrics"] for k, r in book.latest().items()}), 4),
    )
    open_book = Ledger(SCRATCH / "open", also=[SCRATCH / "open.jsonl"])
    for name in "abcdef":
        open_book.append(_row(name))
    publish(open_book)
    seen = Ledger(SCRATCH / "open.jsonl")
    seen.path = SCRATCH / "none"
    yield (
        "published rows",
        Target([SCRATCH / "open.jsonl"], lambda: ({}, {k: r["metrics"] for k, r in seen.latest().items()}), 4),
    )

    place = SCRATCH / "data" / "census_income"
    test_census.write(place, test_census.rows(60, 0), test_census.TRAIN)
    test_census.write(place, test_census.rows(40, 1), test_census.TEST)

    def table() -> Any:
        found = mtl.problem("census")
        parts = [t.double().sum().item() for split in mtl.problems.SPLITS for t in found.data(split)]
        return found.fingerprint, parts

    yield "census", Target([*place.glob("*.gz")], table, 4)
    census.read(place)
    yield "census cache", Target([*(SCRATCH / "cache").glob("census*")], table, 3)
    test_multimnist.write(SCRATCH / "data" / "mnist", 12, 0, test_multimnist.TRAIN)
    test_multimnist.write(SCRATCH / "data" / "mnist", 6, 1, test_multimnist.TEST)

    def digits() -> Any:
        found = multimnist.read(SCRATCH / "data" / "mnist")
        return raw.fingerprint(found.values()), [int(a.sum()) for a in found.values()]

    yield "mnist", Target([*(SCRATCH / "data" / "mnist").iterdir()], digits, 2)
    digits()
    yield "mnist cache", Target([*(SCRATCH / "cache").glob("mnist*")], lambda: (0, digits()), 3)
    click = SCRATCH / "data" / "aliexpress" / "AliExpress_NL"
    write_files(click, 60, 40)

    def log() -> Any:
        made = convert(click / "train.csv", split=True)
        return made.sha256, [made.stats.mean.tolist(), [a.sum() for block in made.blocks(False) for a in block]]

    yield "click log", Target([click / "train.csv"], log, 3)
    packed = miniature.packed(SCRATCH / "data" / "nyuv2", 3, 2)

    def images(source: Any) -> Any:
        samples = [part for i in range(sum(source.counts.values())) for part in source.sample(i)]
        return source.digest, [float(part.sum()) for part in samples if part is not None]

    yield "packed images", Target([packed], lambda: images(Packed(packed)), 3)
    kinds = ("image", "label", "depth", "normal")
    folder = miniature.folders(SCRATCH / "folders", kinds, 2, 1)
    yield "image folders", Target([*folder.rglob("*.npy")], lambda: images(Folders(folder, kinds, "folders")), 3)
    (SCRATCH / "paper").mkdir(exist_ok=True)
    entry = 'id: a\n  paper: EMTL\n  section: "1"\n  sentence: s\n  test: t\n  figure: f\n'
    (SCRATCH / "paper" / "claims.yml").write_text(f"- {entry}- {entry.replace('id: a', 'id: b')}")
    yield "claims", Target([SCRATCH / "paper" / "claims.yml"], lambda: (str(claims()), 0))
    stamp = SCRATCH / "stamp.json"
    line = {"kind": "verdict", "claim": "a", "verdict": "reproduced", "evidence": "e", "figure": None}
    told = {
        "notebook": "00",
        "scale": "quick",
        "inputs": "i",
        "outputs": {"a": "b"},
        "seconds": 1.0,
        "manifest": [line],
    }
    stamp.write_text(json.dumps(told | {"finished": "2026-01-01"}))

    def stamped() -> Any:
        return str(read_stamp(stamp)), 0

    yield "stamps", Target([stamp], stamped)
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["x = 1\n"]}
    (SCRATCH / "00_a.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {"mtl": {"after": []}}}))
    yield "notebooks", Target([SCRATCH / "00_a.ipynb"], lambda: (str(_read(SCRATCH / "00_a.ipynb")), 0))


def files(n: int, first: int = 0) -> Part:
    """Files with one damage each: read right, refused, or made anew; never other numbers under the same identity."""
    return _read_damaged("files", targets(), n, first)


def checkpoints(n: int, first: int = 0) -> Part:
    """Checkpoints with one damage each: a run that goes on from one ends as it would have, or refuses it."""
    path, data = SCRATCH / "checkpoint.pt", mtl.problem("digits", tasks=2)

    def resumed(every: float = 30.0) -> Any:
        how: dict[str, Any] = {"model": "mlp", "seed": 0, "budget": mtl.Budget(1, 200), "checkpoint_every": every}
        return "", dict(mtl.fit(data, mtl.method("fairgrad", 2), checkpoint=path, **how).metrics)

    resumed(0.0)
    return _read_damaged("checkpoints", iter([("checkpoint", Target([path], resumed))]), n, first)


def _read_damaged(kind_of: str, given: Iterator[tuple[str, Target]], n: int, first: int) -> Part:
    part = Part()
    every = [(name, target, target.read()) for name, target in given]
    pool = [one for one in every for _ in range(one[1].weight)]
    for number in range(first, first + n):
        rng = seeded(kind_of, number)
        name, target, whole = rng.choice(pool)
        path = rng.choice(target.files)
        before = path.read_bytes()
        path.write_bytes(damaged(before, rng))

        def right(found: Any, whole: Any = whole) -> str:
            if found == whole:
                return RIGHT
            if isinstance(found[1], dict) and found[1].keys() < whole[1].keys():  # rows
                kept = {key: value for key, value in whole[1].items() if key in found[1]}
                return LOST if found[1] == kept else OTHER
            return RIGHT if found[0] != whole[0] else OTHER  # other data say so by another identity

        started = time.monotonic()
        kind, said = outcome(target.read, right)
        if time.monotonic() - started > 20:
            kind, said = RAW, f"took more than 20 s, {said}"
        if kind == REFUSED and said and path.name not in said:
            kind, said = RAW, f"does not name {path.name}: {said}"
        part.add(kind, number, f"{name}: {said}")
        path.write_bytes(before)
    return part


# A disk that is full, processes that are killed


def _work(rng: random.Random, book: Ledger, tell: Callable[[str], Any]) -> None:
    """Rows, published rows, tables, figures and caches; what is done is told."""
    import matplotlib.pyplot as plt
    import pandas as pd

    from mtl.problems.data import raw
    from mtl.report import save_figure, save_table

    facts: dict[str, Any] = {"data": "d", "scale": "quick", "n": 1, "synthetic": True, "command": "c", "caption": "A."}
    for i in range(40):
        name = f"r{i}"
        book.append(_row(name) | {"history": [{"x": "y" * rng.randrange(4000)}]})
        tell(name)
        if i % 9 == 3:
            publish(book)
            tell("published")
        if i % 9 == 4:
            save_table(pd.DataFrame({"a": ["x" * rng.randrange(20_000)]}), "table", **facts)
            tell("table")
        if i % 9 == 5:
            raw.cached_arrays(f"c{i}", lambda: {"a": np.arange(rng.randrange(9000))})
            tell("cached")
        if i % 30 == 8:
            fig = plt.figure(figsize=(1, 1))
            save_figure(fig, "figure", **facts)
            plt.close(fig)
            tell("figure")


def _forked(rng: random.Random, book: Ledger, limit: int | None, kill: float | None) -> list[str]:
    """Names of what a child did under a limit of file size, or until it was killed."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.close(read)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        kind, said = outcome(lambda: _work(rng, book, lambda name: os.write(write, f"{name}\n".encode())))
        os.write(write, f"{kind}: {said}\n".encode())
        os._exit(0)
    os.close(write)
    if kill is not None:
        time.sleep(kill)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(read) as lines:
        told = lines.read().splitlines()
    os.waitpid(child, 0)
    return told


def _verified(part: Part, number: int, told: list[str], book: Ledger) -> None:
    names = [name for name in told if name.startswith("r") and name[1:].isdigit()]

    def read() -> Any:
        rows = book.latest()
        Ledger(book.path / "x", also=book.also).published()
        return rows

    def right(rows: Any) -> str:
        if set(names) - set(rows):
            return LOST
        return RIGHT if all(rows[name]["metrics"] == _row(name)["metrics"] for name in names) else OTHER

    last = told[-1] if told else ""
    if last.startswith(RAW):
        part.add(RAW, number, last)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing may be damaged
            part.add(*_numbered(number, "rows", outcome(read, right)))


def disk(n: int, first: int = 0) -> Part:
    """No file may grow beyond a limit: what was told is there, what is there is whole."""
    part = Part()
    for number in range(first, first + n):
        rng = seeded("disk", number)
        book = Ledger(SCRATCH / f"disk{number}", also=[SCRATCH / f"disk{number}.jsonl"])
        told = _forked(rng, book, rng.choice([0, 100, 2_000, 4_000, 9_000, 30_000, 90_000]), None)
        _verified(part, number, told, book)
    return part


def kills(n: int, first: int = 0) -> Part:
    """SIGKILL at any moment: what was told is there, what is there is whole."""
    part = Part()
    for number in range(first, first + n):
        rng = seeded("kills", number)
        book = Ledger(SCRATCH / f"kill{number}", also=[SCRATCH / f"kill{number}.jsonl"])
        told = _forked(rng, book, None, rng.uniform(0.0, 0.6))
        _verified(part, number, [line for line in told if line.isalnum()], book)
    return part


# Odd commands

WORDS = ("{[]}", "None", "nan", "inf", "-1", "0", "3-1", "1e999", "", "*", "../x", "/etc/passwd", "gpu9", "cuda:99999",
         "\0", "x" * 5000, "0-99999999999", "²", "[", "a=b", "--", "'; true", "éü\n", "\udcff")  # fmt: skip
COMMANDS = (
    ("row", "{}"), ("row", "{}", "--again"), ("row", "bare", "--again"), ("data", "get", "{}"), ("doctor",),
    ("claims",),
    ("claims", "--markdown"), ("data", "list"),
    ("reproduce", "--dry-run", "-p", "{}={}"), ("reproduce", "--scale", "{}"),
    ("reproduce", "--notebooks", "{}", "--dry-run"), ("reproduce", "--jobs", "{}", "--dry-run"), ("run", "{}"),
    *(("run", "census", "--deadline", "0", *more) for more in (
        ("--seeds", "{}"), ("--methods", "{}"), ("--device", "{}"), ("--ledger", "{}"), ("-p", "{}"), ("-p", "jobs={}"),
        ("-p", "seeds={}"), ("-p", "tasks={}"), ("-p", "fallback={}"), ("--scale", "{}"), ("--jobs", "{}"),
        ("--scale", "smoke", "-p", "fallback=digits", "--device", "{}"),
        ("--scale", "smoke", "-p", "fallback=digits", "--ledger", "{}"),
    )),
    ("run", "census", "--deadline", "{}", "--methods", "none"),
)  # fmt: skip


def commands(n: int, first: int = 0) -> Part:
    """One sentence and exit code 1 (2 where typer itself refuses), or what was asked for."""
    from typer.testing import CliRunner

    from mtl.cli import app

    (SCRATCH / "data" / "ledger").mkdir(parents=True, exist_ok=True)
    bare = '{"key": "bare", "config": {"budget": 3, "options": null}}\n{"key": 7}\n[1]\n'
    (SCRATCH / "data" / "ledger" / "odd.jsonl").write_text(bare)
    (SCRATCH / "figures" / "executed").mkdir(parents=True, exist_ok=True)
    (SCRATCH / "paper").mkdir(exist_ok=True)
    (SCRATCH / "notebooks").mkdir(exist_ok=True)
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["jobs = 1\n"]}
    whole = {"paper/claims.yml": b"[]", "notebooks/00_a.ipynb": json.dumps({"cells": [cell], "metadata": {}}).encode()}
    whole["figures/executed/00.quick.json"] = b"{}"
    part = Part()
    for number in range(first, first + n):
        rng = seeded("commands", number)
        words = [word.format(*(rng.choice(WORDS) for _ in range(2))) for word in COMMANDS[number % len(COMMANDS)]]
        for path in ("paper/claims.yml", "notebooks/00_a.ipynb", "figures/executed/00.quick.json"):
            shape = rng.choice(
                [None, None, None, b"", b"[1]", b"7", b"{}", b"- a", b'{"cells": 3}', b"\xff", b"null", b"[" * 9999]
            )
            (SCRATCH / path).write_bytes(whole[path] if shape is None else shape)
        os.environ.pop("MTL_LEDGER", None)
        done = CliRunner().invoke(app, words)
        os.environ.pop("MTL_LEDGER", None)
        said = f"{words}: {done.output[-200:]!r} {done.exception!r}"
        clean = isinstance(done.exception, SystemExit | None) and "not foreseen" not in done.output
        clean = clean and (done.exit_code != 1 or words[0] in ("doctor",) or "mtl: " in done.output)
        part.add(RIGHT if clean and done.exit_code == 0 else REFUSED if clean else RAW, number, said)
    return part


PARTS = {
    "api": (api, 5000),
    "files": (files, 2000),
    "checkpoints": (checkpoints, 200),
    "disk": (disk, 100),
    "kills": (kills, 130),
    "commands": (commands, 300),
}
SCRATCH = Path()


def campaign(name: str, n: int, first: int = 0) -> Part:
    """One part in a root of its own, with the settings of the process as they were afterwards."""
    global SCRATCH
    earlier = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        SCRATCH = Path(folder)
        os.environ |= {"MTL_ROOT": folder, "MTL_DATA": f"{folder}/data", "MTL_CACHE": f"{folder}/cache"}
        os.environ.pop("MTL_DEBUG", None)
        try:
            return PARTS[name][0](n, first)
        finally:
            os.environ.clear()
            os.environ.update(earlier)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--n", type=int, help="how many cases; default: the whole campaign")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="one case")
    args = parser.parse_args(argv)
    wrong = 0
    for name in args.parts or PARTS:
        first, n = (args.first, args.n or PARTS[name][1]) if args.only is None else (args.only, 1)
        started = time.monotonic()
        part = campaign(name, n, first)
        found = {kind: part.counts[kind] for kind in (RIGHT, REFUSED, LOST, OTHER, RAW)}
        print(f"{name}: {n} cases in {time.monotonic() - started:.0f} s: {found}", flush=True)
        print("".join(f"  {where}: {said}\n" for said, where in part.examples.items()), end="")
        wrong += sum(found[kind] for kind in (LOST, OTHER, RAW))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
