"""What manifest.toml pins: data sets that a package registry carries, their files and where they lie.

Apart from `download`, which decides no number: a problem's rows do not depend on how its files came.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from mtl.errors import DataError
from mtl.problems.data import raw

MANIFEST = Path(__file__).with_name("manifest.toml")


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
    instead: str = ""  # one file that the problem reads as well, which no registry has

    def place(self) -> raw.Found | None:
        """The first place where all files are, whatever is in them."""
        places = raw.places(self.folder)
        return next((p for p in places if all((p.path / file.name).is_file() for file in self.files)), None)

    def verify(self, found: raw.Found) -> Path:
        """The folder, if each file in it is the pinned one; else DataError."""
        for file in self.files:
            if (digest := raw.sha256(found.path / file.name)) != file.sha256:
                rule = f"must have sha256 {file.sha256}, found {digest}"
                advice = f"remove the folder and run `mtl data get {self.name}` again"
                raise DataError(f"{found.where}/{file.name}: {rule}; {advice}")
        return found.path


@cache
def manifest() -> dict[str, Entry]:
    """The data sets that can be fetched, from manifest.toml beside this file.

    >>> sorted(manifest())
    ['census', 'mnist', 'qm9']
    """
    tables = tomllib.loads(MANIFEST.read_text(encoding="utf-8"))
    files = {name: tuple(Member(**file) for file in table.pop("files")) for name, table in tables.items()}
    return {name: Entry(name=name, files=files[name], **table) for name, table in tables.items()}


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
