"""Files that are either whole or absent, and values as JSON holds them."""

import hashlib
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on error.

    The temporary name keeps the suffix, so that writers which look at it (matplotlib, pandas)
    behave as they would with the final name.

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with atomic(folder / "a.txt") as part:
    ...     _ = part.write_text("whole")
    >>> [p.name for p in folder.iterdir()]
    ['a.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".part-", suffix="".join(path.suffixes), dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def seal(path: Path) -> None:
    """Append the sha256 of the file to it: one flipped bit anywhere is then seen by `unseal`.

    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "a"
    >>> _ = file.write_bytes(b"whole")
    >>> seal(file)
    >>> unseal(file)
    b'whole'
    """
    digest = hashlib.sha256(path.read_bytes()).digest()
    with path.open("ab") as file:
        file.write(digest)


def unseal(path: Path) -> bytes:
    """What was sealed; ValueError where it is not as it was."""
    content = path.read_bytes()
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise ValueError(f"{path.name}: content and its sha256 differ")
    return content[:-32]


def sweep(folder: Path, age: float = 3600.0) -> None:
    """Remove what writers that were killed left in a folder: parts that nobody has touched for `age` seconds."""
    for part in folder.glob(".part-*"):
        with suppress(FileNotFoundError):  # another process sweeps too
            if time.time() - part.stat().st_mtime > age:
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def root() -> Path:
    """Folder that holds data/, figures/ and paper/: $MTL_ROOT, else the checkout, else the working directory."""
    if named := os.environ.get("MTL_ROOT"):
        return Path(named).resolve()
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "pyproject.toml").exists() else Path.cwd()


def canonical(value: Any, name: str = "config") -> Any:
    """The one form of a value that keys are made of: 2, 2.0 and np.float32(2) are equal, tuples are lists.

    Raises ValueError for NaN and infinity and TypeError for what JSON cannot hold, naming the place.

    >>> canonical({"alpha": 2.0, "seeds": (0, 1)})
    {'alpha': 2, 'seeds': [0, 1]}
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): canonical(v, f"{name}.{k}") for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, list | tuple):
        return [canonical(v, f"{name}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{name}: a key is made of finite numbers, found {value}")
        return int(value) if value.is_integer() else value
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{name}: a key is made of numbers, strings, lists and dicts, found {type(value).__name__}")


def markdown(text: Any) -> str:
    r"""Text for a line of Markdown: no tag, link, entity, end of a cell or of the line; bold stays.

    >>> print(markdown("**a** | [x](y) <b> & &lt; 1 < 2"))
    **a** \| [x]\(y) &lt;b> & &amp;lt; 1 < 2
    """
    line = re.sub(r"&(?=[\w#]+;)", "&amp;", " ".join(str(text).split()))
    return re.sub(r"(?<=\])\(|\|", r"\\\g<0>", re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", line))


def plain(value: Any) -> Any:
    """What is written in a row: arrays become lists, NaN and infinity become None (null).

    >>> import torch
    >>> plain({"auc": float("nan"), "weights": torch.tensor([0.25, 0.75])})
    {'auc': None, 'weights': [0.25, 0.75]}
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
