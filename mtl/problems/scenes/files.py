"""Image data sets on disk, read strictly, brought to one resolution, cached whole or not at all."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mtl.errors import DataError
from mtl.problems.base import SPLITS
from mtl.problems.data import raw
from mtl.problems.scenes.geometry import normals_from_depth

VOID = 255
RECIPE = "1"  # of resampling and normals: a new one makes new caches and new fingerprints
PARTS = ("image", "label", "depth", "normal")
BLOCK, EVERY, CHOSEN = 8, 10, 4  # validation: of the blocks of 8 consecutive training images, each tenth


class Sample(NamedTuple):
    """One image as stored: image uint8 (H, W, 3), label uint8, depth (0 missing) and normal float, or no normal."""

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]
    depth: NDArray[np.float32]
    normal: NDArray[np.float32] | None = None


class Source:
    """Images 0 .. n_train - 1 are the training set, the others the test set; `digest` hashes what the files hold."""

    words: str
    counts: dict[str, int]
    digest: str
    classes: ClassVar[int] = 13
    official: ClassVar[dict[str, int]] = {"train": 795, "test": 654}
    normals: str = "derived from depth"  # or "given" or "none"
    focal: float = 518.86 / 624  # of the camera, in image widths
    noise: float = 0.01  # of depth, in metres

    def sample(self, index: int) -> Sample:
        """One image; DataError names the file and what is wrong with it."""
        raise NotImplementedError

    def complete(self, partial: bool) -> None:
        """DataError unless all images of the official split are there, or `partial` allows fewer."""
        if self.counts != self.official and not partial:
            train, test = self.official.values()
            raise DataError(
                f"{self.words}: must hold {train} training and {test} test images, found {self.counts['train']} and "
                f"{self.counts['test']}; copy it again, or accept what is there with partial=True"
            )

    def check(self, sample: Sample, name: str) -> Sample:
        """The sample itself if its parts agree in size and hold valid values; else DataError naming the file."""
        size = sample.image.shape[:2]
        for kind, part in (("label", sample.label), ("depth", sample.depth), ("normal", sample.normal)):
            whole = (*size, 3) if kind == "normal" else size
            if part is not None and part.shape != whole:
                raise DataError(f"{name}: {kind} must be of the image's size {whole}, found {part.shape}")
        bad = sample.label[(sample.label >= self.classes) & (sample.label != VOID)]
        if bad.size:
            raise DataError(f"{name}: labels must be 0..{self.classes - 1} or 255 (void), found {int(bad[0])}")
        wrong = sample.depth[~(np.isfinite(sample.depth) & (sample.depth >= 0))]
        if wrong.size:
            raise DataError(f"{name}: depth must be finite and not negative (0: missing), found {float(wrong[0])}")
        if sample.normal is not None and not np.isfinite(sample.normal).all():
            raise DataError(f"{name}: normals must be finite, found {int((~np.isfinite(sample.normal)).sum())} others")
        return sample


class Folders(Source):
    """`train/` and `val/` with one folder per kind and one N.npy per image: the preprocessed files of MTAN.

    `kinds` are the folders of image, label, depth and (if any) normal. Label -1 is void.
    """

    @staticmethod
    def begun(folder: Path) -> bool:
        """Whether some of it is there: half a copy is refused, never passed over for another place."""
        return any((folder / place).is_dir() for place in ("train", "val"))

    def __init__(self, folder: Path, kinds: Sequence[str], words: str) -> None:
        self.folder, self.kinds, self.words = folder, tuple(kinds), words
        self.normals = "given" if len(kinds) == len(PARTS) else type(self).normals
        self.counts, self.names = {}, []
        for split, place in (("train", "train"), ("test", "val")):
            held = {kind: {p.stem for p in (folder / place / kind).glob("*.npy")} for kind in kinds}
            every = set().union(*held.values())
            every |= {str(i) for i in range(len(every))}
            for kind, stems in held.items():
                if lost := sorted(every - stems, key=lambda stem: (len(stem), stem)):
                    found = f"{len(stems)} of {len(every)} files"
                    raise DataError(f"{place}/{kind}/{lost[0]}.npy: missing, found {found}; copy the folder again")
            self.counts[split] = len(every)
            self.names += [(place, i) for i in range(len(every))]
        files = [folder / place / kind / f"{i}.npy" for place, i in self.names for kind in kinds]
        state = [(p.relative_to(folder).as_posix(), raw.sha256(p)) for p in files]
        self.digest = hashlib.sha256(repr(state).encode()).hexdigest()

    def sample(self, index: int) -> Sample:
        place, i = self.names[index]
        image, label, depth, *normal = (self._load(place, kind, i) for kind in self.kinds)
        if image.ndim != 3 or image.shape[2] != 3:
            raise DataError(f"{place}/{self.kinds[0]}/{i}.npy: must be (H, W, 3), found {image.shape}")
        if not (np.isfinite(image) & (image >= 0) & (image <= 1)).all():
            raise DataError(f"{place}/{self.kinds[0]}/{i}.npy: values must be in [0, 1], found others")
        marked = np.where(label == -1, VOID, label)
        bad = marked[~np.isin(marked, [*range(self.classes), VOID])]
        if bad.size:
            rule = f"labels must be 0..{self.classes - 1}, or -1 or 255 (void)"
            raise DataError(f"{place}/{self.kinds[1]}/{i}.npy: {rule}, found {bad[0]:g}")
        found = Sample(
            np.rint(image * 255).astype(np.uint8),
            marked.astype(np.uint8),
            (depth[..., 0] if depth.ndim == 3 and depth.shape[2] == 1 else depth).astype(np.float32),
            normal[0].astype(np.float32) if normal else None,
        )
        return self.check(found, f"{place}/{self.kinds[2]}/{i}.npy and its companions")

    def _load(self, place: str, kind: str, i: int) -> NDArray[Any]:
        path = self.folder / place / kind / f"{i}.npy"
        try:
            found = np.asarray(np.load(path, allow_pickle=False))
            if found.dtype.kind not in "biuf":
                raise TypeError(f"it holds {found.dtype}")
            return found
        except Exception as error:  # numpy raises many kinds for a damaged file
            raise DataError(f"{place}/{kind}/{i}.npy: must be a whole .npy file of numbers ({error})") from error


def split_rows(n_train: int, n_test: int, wanted: Sequence[int] | None) -> dict[str, NDArray[np.int64]]:
    """Image numbers per split, sorted; with `wanted`, a fixed random choice of so many of each.

    >>> {name: len(rows) for name, rows in split_rows(795, 654, None).items()}
    {'train': 715, 'validation': 80, 'test': 654}
    """
    every = np.arange(n_train)
    held = every // BLOCK % EVERY == CHOSEN
    if not held.any():  # a miniature
        held = every % 4 == 3
    rows = dict(zip(SPLITS, (every[~held], every[held], n_train + np.arange(n_test)), strict=True))
    if wanted is None:
        return rows
    chosen = {}
    for seed, (name, count) in enumerate(zip(SPLITS, wanted, strict=True)):
        if count > len(rows[name]):
            raise ValueError(f"images: at most {len(rows[name])} for {name}, found {count}")
        chosen[name] = np.sort(rows[name][raw.permutation(len(rows[name]), seed)[:count]])
    return chosen


def prepare(
    source: Source, size: Sequence[int], wanted: Sequence[int] | None, partial: bool
) -> tuple[dict[str, tuple[Tensor, ...]], str, str]:
    """Splits, words and fingerprint of a source at one resolution; DataError unless it is whole, or `partial`."""
    source.complete(partial)
    rows = split_rows(source.counts["train"], source.counts["test"], wanted)
    digest = raw.fingerprint(list(rows.values()), source.digest, RECIPE, str(tuple(size)))
    words = f"{source.words}, {source.counts['train']} + {source.counts['test']} images"
    return load(source, size, rows), words, digest


def load(source: Source, size: Sequence[int], rows: Mapping[str, NDArray[np.int64]]) -> dict[str, tuple[Tensor, ...]]:
    """The splits that `rows` name, as tensors in the dtypes of `Scenes`, at one resolution.

    Asked for at least half of the images, it keeps the whole set under data/cache, written at once when all
    is decoded (`raw.cached`). Fewer are decoded directly.
    """
    total = sum(source.counts.values())

    def decode(wanted: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        for index in np.split(wanted, range(32, len(wanted), 32)):
            for part, values in canonical([source.sample(int(i)) for i in index], size, source).items():
                arrays.setdefault(part, np.zeros((total, *values.shape[1:]), values.dtype))[index] = values
        return arrays

    needed = np.unique(np.concatenate(list(rows.values())))
    if 2 * len(needed) < total:
        arrays = decode(needed)
    else:
        name = hashlib.sha256(f"{source.digest} {RECIPE} {tuple(size)}".encode()).hexdigest()[:16]
        arrays = raw.cached_arrays(f"scenes-{size[0]}x{size[1]}-{name}", lambda: decode(np.arange(total)))
    return {split: tuple(torch.from_numpy(a[index]) for a in arrays.values()) for split, index in rows.items()}


def canonical(samples: Sequence[Sample], size: Sequence[int], source: Source) -> dict[str, NDArray[Any]]:
    """Samples at one resolution, in the dtypes of `Scenes`: image by area, label nearest, depth by area over its
    known pixels (half of them must be known), normals by area and scaled to length one, or derived from depth."""
    parts: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for sample in samples:
        h, w = sample.label.shape
        y = torch.arange(size[0]) * h // size[0] + h // size[0] // 2
        x = torch.arange(size[1]) * w // size[1] + w // size[1] // 2
        parts["image"].append(_area(torch.tensor(sample.image).permute(2, 0, 1), size).round().to(torch.uint8))
        parts["label"].append(torch.tensor(sample.label)[y][:, x])
        metres = torch.tensor(sample.depth)[None]
        known = _area((metres > 0).float(), size)
        parts["depth"].append(torch.where(known >= 0.5, _area(metres, size) / known.clamp(min=1e-6), 0.0)[0])
        if sample.normal is not None:
            mean = _area(torch.tensor(sample.normal).permute(2, 0, 1), size)
            parts["normal"].append(torch.where(mean.norm(dim=0) > 0.1, F.normalize(mean, dim=0), 0.0))
    depth = torch.stack(parts["depth"])
    arrays = {
        "image": torch.stack(parts["image"]).numpy(),
        "label": torch.stack(parts["label"]).numpy(),
        "depth": depth.half().numpy(),
    }
    if source.normals == "none":
        return arrays
    given = torch.stack(parts["normal"]) if parts["normal"] else None
    derived = normals_from_depth(depth, source.focal * size[1], noise=source.noise) if given is None else given
    return arrays | {"normal": (derived * 127).round().to(torch.int8).numpy()}


def _area(plane: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(plane[None].float(), tuple(size), mode="area")[0]
