"""CelebA: forty attributes of photographs of faces, from the official files; no copy was at hand."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mtl.errors import DataError
from mtl.models.images import nine_layers, nine_layers_single_task
from mtl.problems.base import SPLITS, Batch, BinaryProblem, check_scale, cuts
from mtl.problems.data import raw

FOLDER, ATTRIBUTES, PARTITION, IMAGES = "celeba", "list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba"
COUNT, SIZE = 40, (218, 178)  # attributes; height and width of the aligned pictures
SIDE = 64  # pixels of the square that nets see, as in FAMO
OFFICIAL = (162_770, 19_867, 19_962)
ROWS = {"smoke": (200, 100, 100), "quick": (2_000, 1_000, 1_000), "paper": (None, None, None)}
SIZES = {
    "smoke": {"width": 4, "hidden": 16}, "quick": {"width": 8, "hidden": 64}, "paper": {"width": 64, "hidden": 512},
}  # fmt: skip
MODELS = {"nine-layers": nine_layers, "single-task": nine_layers_single_task}


class CelebA(BinaryProblem):
    """202,599 faces (Liu et al. 2015) with forty yes-or-no attributes, in the official split.

    Pictures are brought to 64 x 64 pixels by area and kept as bytes. Smaller scales take the first so many of each
    part; `partial=True` accepts fewer than the official numbers. Raises MissingDataError where the files are not
    found; DataError with file and line for other than forty attributes, values other than 1 and -1, lists that do not
    name the same pictures, pictures that are missing, not listed or damaged.
    """

    name: ClassVar[str] = "celeba"
    models: ClassVar[tuple[str, ...]] = tuple(MODELS)
    builders, net_sizes, net_inputs = MODELS, SIZES, (COUNT,)

    def __init__(self, scale: str = "smoke", *, partial: bool = False) -> None:
        check_scale(scale, ROWS)
        folder = raw.find(self.name, FOLDER, (ATTRIBUTES, PARTITION)).path
        tasks, files, labels = attributes(folder / ATTRIBUTES)
        part = partition(folder / PARTITION, files)
        counts = tuple(int((part == i).sum()) for i in range(3))
        if counts != OFFICIAL and not (partial and min(counts)):
            _fault(PARTITION, None, f"must give {OFFICIAL} pictures to {', '.join(SPLITS)}, found {counts}")
        have = {path.name for path in (folder / IMAGES).glob("*.jpg")}
        for said, names in (("listed and missing", set(files) - have), ("there and not listed", have - set(files))):
            if names:
                _fault(IMAGES, None, f"must hold the pictures of {ATTRIBUTES}, found {len(names)} {said}: {min(names)}")
        rows = [np.flatnonzero(part == i)[:count] for i, count in enumerate(ROWS[scale])]
        splits, digest = {}, []
        for split, own in zip(SPLITS, rows, strict=True):
            images, sums = _pictures(folder / IMAGES, [files[i] for i in own])
            digest.append(sums)
            splits[split] = (images, torch.from_numpy((labels[own] > 0).astype(np.float32)))
        super().__init__(
            scale, tasks, splits, source=f"CelebA, {len(files):,} aligned pictures at {SIDE} x {SIDE}",
            fingerprint=raw.fingerprint([labels[own] for own in rows], *tasks, *digest), options={"partial": partial},
        )  # fmt: skip

    def _in_order(self, split: str, device: torch.device | str) -> Iterator[Batch]:
        """In smaller pieces than a table's: wide layers on whole pictures would fill the memory."""
        tensors = self.data(split, device)
        return (tuple(t[rows] for t in tensors) for rows in cuts(self.sizes[split], 512))


def attributes(path: Path) -> tuple[tuple[str, ...], list[str], NDArray[np.int8]]:
    """Names of the forty attributes, of the pictures, and values (N, 40) of 1 and -1."""
    lines = _lines(path)
    tasks = tuple(lines[1].split()) if len(lines) > 1 else ()
    if len(tasks) != COUNT or len(set(tasks)) != COUNT:
        _fault(path.name, 2, f"must name {COUNT} attributes, found {len(set(tasks))}")
    files, values = [], np.zeros((len(lines) - 2, COUNT), np.int8)
    for i, line in enumerate(lines[2:]):
        name, *cells = line.split() or [""]
        if len(cells) != COUNT:
            _fault(path.name, i + 3, f"must be a picture and {COUNT} values, found {len(cells)} values")
        if wrong := [cell for cell in cells if cell not in ("1", "-1")]:
            _fault(path.name, i + 3, f"values must be 1 or -1, found {wrong[0]!r}")
        files.append(name)
        values[i] = cells
    if lines[0].strip() != str(len(files)) or len(set(files)) != len(files):
        _fault(path.name, 1, f"must be the number of different pictures, {len(set(files))}, found {lines[0]!r}")
    return tasks, files, values


def partition(path: Path, files: Sequence[str]) -> NDArray[np.int8]:
    """0 train, 1 validation, 2 test for each of the pictures, which the file must name in the same order."""
    found = np.zeros(len(files), np.int8)
    lines = _lines(path)
    if len(lines) != len(files):
        _fault(path.name, None, f"must have a line for each of {len(files)} pictures, found {len(lines)}")
    for i, (line, name) in enumerate(zip(lines, files, strict=True)):
        if line.split()[:-1] != [name] or line.split()[-1] not in ("0", "1", "2"):
            _fault(path.name, i + 1, f"must be {name} and 0, 1 or 2, found {line!r}")
        found[i] = int(line.split()[-1])
    return found


def _pictures(folder: Path, files: Sequence[str]) -> tuple[Tensor, str]:
    """Pictures (N, 3, 64, 64) as bytes, decoded once and kept whole or not at all; a hash of their files."""
    sums = hashlib.sha256("".join(f"{name} {raw.sha256(folder / name)}\n" for name in files).encode()).hexdigest()

    def decode() -> dict[str, NDArray[np.uint8]]:
        made = np.zeros((len(files), 3, SIDE, SIDE), np.uint8)
        for i, name in enumerate(files):
            try:
                with Image.open(folder / name) as picture:
                    if (picture.mode, picture.size) != ("RGB", SIZE[::-1]):  # before anything is unpacked
                        raise ValueError(f"must be RGB of {SIZE[::-1]}, found {picture.mode} of {picture.size}")
                    made[i] = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX)).transpose(2, 0, 1)
            except Exception as error:  # Pillow raises many kinds for a damaged picture
                raise DataError(f"{IMAGES}/{name}: must be a whole picture ({error}); copy it again") from error
        return {"images": made}

    return torch.from_numpy(raw.cached_arrays(f"celeba-{SIDE}-{sums[:16]}", decode)["images"]), sums


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: must be a whole text file ({error}); copy it again") from error


def _fault(where: str, line: int | None, said: str) -> NoReturn:
    raise DataError(f"{where}{'' if line is None else f' line {line}'}: {said}; take the official files")
