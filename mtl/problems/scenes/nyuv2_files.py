"""The three forms in which NYUv2 is found on disk: packed archive, official .mat, preprocessed folders."""

import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mtl.errors import DataError
from mtl.problems.data import raw
from mtl.problems.scenes.files import VOID, Folders, Sample, Source

CLASSES = (
    *("bed", "books", "ceiling", "chair", "floor", "furniture", "objects"),
    *("picture", "sofa", "table", "tv", "wall", "window"),
)
MAT = ("nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat", "class13Mapping.mat")
KINDS = ("image", "label", "depth", "normal")
BORDER = (6, 8)  # rows and columns cut from each side of the official 480 x 640 images: white frame


class Packed(Source):
    """`nyuv2_HxW.npz`: compressed images end to end in byte arrays, with offsets; depth 8-bit, metres = v / 25.5."""

    noise = 0.02  # half a step of depth

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, packed_size(path)
        kinds = ("rgb_jpeg", "depth_png", "label_png")
        wanted = {"train": ("iu", 1), "test": ("iu", 1)} | dict.fromkeys(kinds, ("u", 1))
        self.parts = raw.arrays(path, path.name, wanted | {f"{kind}_offsets": ("iu", 1) for kind in kinds})
        self.digest = raw.fingerprint(list(self.parts.values()))
        self.order = np.concatenate([self.parts["train"], self.parts["test"]]).astype(np.int64)
        for kind in kinds:
            ends = self.parts[f"{kind}_offsets"] = self.parts[f"{kind}_offsets"].astype(np.int64)
            n, size = len(self.order), len(self.parts[kind])
            if len(ends) != n + 1 or (np.diff(ends) <= 0).any() or (ends[0], ends[-1]) != (0, size):
                raise DataError(f"{path.name}: {kind}_offsets must rise from 0 to {size} in {n} steps")
        if not np.array_equal(np.sort(self.order), np.arange(len(self.order))):
            raise DataError(f"{path.name}: train and test must name each of {len(self.order)} images once")
        self.counts = {"train": len(self.parts["train"]), "test": len(self.parts["test"])}
        self.words = f"NYUv2 packed as {path.name}"

    def sample(self, index: int) -> Sample:
        i = int(self.order[index])
        image, depth, label = (self._decode(kind, i) for kind in ("rgb_jpeg", "depth_png", "label_png"))
        found = Sample(image, label, depth.astype(np.float32) / np.float32(25.5))
        return self.check(found, f"{self.path.name}, image {i}")

    def _decode(self, kind: str, i: int) -> NDArray[np.uint8]:
        start, stop = self.parts[f"{kind}_offsets"][i : i + 2]
        try:
            with Image.open(io.BytesIO(self.parts[kind][start:stop].tobytes())) as picture:
                mode = "RGB" if kind == "rgb_jpeg" else "L"
                if (picture.mode, picture.size) != (mode, self.size[::-1]):  # before anything is unpacked
                    raise ValueError(f"must be {mode} of {self.size[::-1]}, found {picture.mode} of {picture.size}")
                return np.asarray(picture)
        except Exception as error:  # Pillow raises many kinds for a damaged image
            raise DataError(f"{self.path.name}, image {i}: {kind} cannot be decoded ({error})") from error


class Official(Source):
    """`nyu_depth_v2_labeled.mat` (HDF5, read with h5py), with the published splits and 894 -> 40 -> 13 class maps."""

    def __init__(self, folder: Path) -> None:
        absent = [name for name in MAT if not (folder / name).is_file()]
        if absent:
            raise DataError(f"nyuv2: {', '.join(MAT)} must lie together, found no {', '.join(absent)} beside others")
        try:
            import h5py
        except ImportError as error:
            raise DataError(f"{MAT[0]}: reading it needs h5py, which is not installed; `pip install h5py`") from error
        from scipy.io import loadmat

        try:
            splits = loadmat(folder / MAT[1])
            self.order = np.concatenate([splits[f"{s}Ndxs"].ravel().astype(int) - 1 for s in ("train", "test")])
            self.counts = {s: int(splits[f"{s}Ndxs"].size) for s in ("train", "test")}
            to40 = np.insert(loadmat(folder / MAT[2])["mapClass"][0].astype(int), 0, 0)
            to13 = np.insert(np.ravel(loadmat(folder / MAT[3])["classMapping13"][0][0][0]).astype(int), 0, 0)
            self.table = np.where(to13[to40] > 0, to13[to40] - 1, VOID)
            self.file = h5py.File(folder / MAT[0], "r")
            stored = self.file["images"].shape[0]
        except Exception as error:  # scipy and h5py raise many kinds for a damaged file
            words = f"{', '.join(MAT)}: must be the whole labelled data set ({error}); download it again"
            raise DataError(words) from error
        if self.order.max() >= stored:
            raise DataError(f"{MAT[1]}: names image {self.order.max() + 1}, found {stored} in {MAT[0]}")
        self.words = "NYU Depth V2 labelled data set (.mat)"
        sums = [raw.sha256(folder / name) for name in MAT]
        self.digest = hashlib.sha256(repr(sums).encode()).hexdigest()

    def sample(self, index: int) -> Sample:
        i = int(self.order[index])
        rows, columns = (slice(b, -b) for b in BORDER)
        # MATLAB stores column by column: HDF5 shows (N, 3, W, H) and (N, W, H)
        image = np.asarray(self.file["images"][i]).transpose(2, 1, 0)[rows, columns]
        label = np.asarray(self.file["labels"][i]).T[rows, columns].astype(int)
        depth = np.asarray(self.file["depths"][i]).T[rows, columns].astype(np.float32)
        if label.max() >= len(self.table):
            raise DataError(f"{MAT[0]}, image {i}: labels must be 0..{len(self.table) - 1}, found {label.max()}")
        found = Sample(image.astype(np.uint8), self.table[label].astype(np.uint8), depth)
        return self.check(found, f"{MAT[0]}, image {i}")


def packed_size(path: Path) -> tuple[int, int]:
    """Height and width that the name of a packed archive tells."""
    if not (told := re.fullmatch(r"nyuv2_(\d{1,5})x(\d{1,5})", path.stem)):
        raise DataError(f"{path.name}: must be named nyuv2_HEIGHTxWIDTH.npz; rename it or move it away")
    return int(told[1]), int(told[2])


def find_source(resolution: Sequence[int]) -> Source:
    """The first form found, place by place: packed archive (the smallest that is large enough), folders, .mat."""
    seen = []
    for path, where in raw.places("nyuv2"):
        packed = []
        for file in path.glob("nyuv2_*.npz"):
            height, width = packed_size(file)
            packed.append((height < resolution[0] or width < resolution[1], height, file))
        fitting = sorted(p for p in packed if not p[0]) or sorted(packed, reverse=True)
        if fitting:
            return Packed(fitting[0][2])
        if Folders.begun(path):
            given = (path / "train" / "normal").is_dir() or (path / "val" / "normal").is_dir()
            return Folders(path, KINDS if given else KINDS[:3], "NYUv2 as preprocessed folders (.npy)")
        if any((path / name).is_file() for name in MAT):
            return Official(path)
        seen.append(where)
    raise raw.MissingDataError(
        f"nyuv2: found nyuv2_*.npz, train/image/*.npy or {MAT[0]} in none of {', '.join(seen)}; put one of them "
        f"there (`mtl data` names the sources), or accept the stand-in with fallback='rooms'"
    )
