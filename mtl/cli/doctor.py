"""`mtl doctor`: what this installation is made of and what would not work here."""

import platform
import re
import shutil
import sys
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from mtl.errors import DataError
from mtl.files import root

ENOUGH_DISK_GB = 3.0


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, what was found, and "", "note" or "WRONG"."""

    what: str
    found: str
    mark: str = ""


def pins(path: Path) -> dict[str, str]:
    """Name -> exact version of a constraints file; ValueError for a line that is not `name==version`.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "constraints.txt"
    >>> _ = file.write_text("# exact\\nNumPy==2.0.1\\n")
    >>> pins(file)
    {'numpy': '2.0.1'}
    """
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        name, sign, exact = text.partition("==")
        if not sign or not exact or any(c in text for c in " @+;/*"):
            raise ValueError(f"{path.name}: line {number} must be name==version, found {text!r}")
        found[_plain(name)] = exact
    return found


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def installed(name: str) -> str | None:
    """Installed version without its build suffix (2.13.0+cpu counts as 2.13.0), or None."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


def examine() -> list[Check]:
    """All checks, in the order in which a reader would ask."""
    return [*_python(), *_packages(), *_constraints(), *_machine(), *_data(), *_disk(), *_ledgers()]


def _python() -> list[Check]:
    ok = sys.version_info >= (3, 11)
    return [
        Check(
            "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", "" if ok else "WRONG"
        )
    ]


def _packages() -> list[Check]:
    names = ["mtl", *(text.split(";")[0] for text in requires("mtl") or () if "extra ==" not in text)]
    checks = []
    for text in names:
        name = _name(text)
        found = installed(name)
        checks.append(Check(name, found or "not installed", "" if found else "WRONG"))
    return checks


def _constraints() -> list[Check]:
    path = root() / "constraints.txt"
    if not path.is_file():
        return [Check("constraints.txt", "not here", "note")]
    other = [f"{n} {have} (not {pin})" for n, pin in pins(path).items() if (have := installed(n)) and have != pin]
    if not other:
        return [Check("constraints.txt", "met by everything installed")]
    shown = ", ".join(other[:5]) + (f" and {len(other) - 5} more" if len(other) > 5 else "")
    return [Check("constraints.txt", f"other versions: {shown}", "note")]


def _machine() -> list[Check]:
    import torch

    from mtl.cli.reproduce import cores

    cuda = torch.version.cuda
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [
        Check("torch build", f"{torch.__version__}, {f'CUDA {cuda}' if cuda else 'CPU only'}"),
        Check("device", ", ".join(devices) or "CPU", "" if devices or not cuda else "note"),
        Check("cores", f"{cores()} usable, {torch.get_num_threads()} torch threads"),
    ]


def _data() -> list[Check]:
    from mtl.problems.data.download import status

    def found(row: dict[str, object]) -> Check:
        said = str(row["where"]) if row["found"] else f"not found; {row['route']}"
        return Check(f"data: {row['name']}", said, "" if row["found"] else "note")

    return [found(row) for row in status()]


def _disk() -> list[Check]:
    free = shutil.disk_usage(root()).free / 1e9
    return [Check("free disk", f"{free:.1f} GB in {root()}", "" if free > ENOUGH_DISK_GB else "note")]


def _ledgers() -> list[Check]:
    from mtl.ledger import Ledger

    folder = root() / "data" / "ledger"
    checks = []
    for path in sorted(folder.glob("*.jsonl")):
        try:
            checks.append(Check(f"ledger: {path.name}", f"{len(Ledger(path).published())} rows"))
        except DataError as damaged:
            checks.append(Check(f"ledger: {path.name}", str(damaged), "WRONG"))
    for path in sorted(folder.glob("local/*/")):
        if not path.name.startswith("old-"):
            with warnings.catch_warnings(record=True) as damage:
                warnings.simplefilter("always")
                rows = Ledger(path).local()
            said = [f"{len(rows)} rows", *(str(one.message) for one in damage)]
            checks.append(Check(f"ledger: local/{path.name}", "; ".join(said), "note" if damage else ""))
    return checks or [Check("ledgers", "none yet", "note")]
