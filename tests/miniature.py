"""Data sets of a few rendered rooms in the layouts of the real ones, for tests."""

import io
from functools import cache

import numpy as np
from PIL import Image

from mtl.problems.scenes.room_plans import Plan
from mtl.problems.scenes.rooms import render


@cache
def rendered(n, size=(96, 128), seed=5):
    """Image uint8 (n, H, W, 3), label uint8, depth in metres, unit normals (n, H, W, 3)."""
    image, label, depth, normal = render(Plan(n, seed), size)
    normal = normal.float() / normal.float().norm(dim=1, keepdim=True)
    return image.movedim(1, -1).numpy(), label.numpy(), depth.float().numpy(), normal.movedim(1, -1).numpy()


def packed(path, train=10, test=6, size=(96, 128), spoil=None):
    """`nyuv2_HxW.npz`; `spoil(kind, i, bytes or array)` may change what is stored."""
    image, label, depth, _ = rendered(train + test, size)
    label = np.where(label == 6, 255, label)
    blobs = {"rgb_jpeg": [], "depth_png": [], "label_png": []}
    coarse = np.rint(depth * 25.5).astype(np.uint8)
    for i in range(train + test):
        for kind, array in zip(blobs, (image[i], coarse[i], label[i]), strict=True):
            array = spoil(kind, i, array) if spoil else array
            if isinstance(array, bytes):
                blobs[kind].append(array)
                continue
            stream = io.BytesIO()
            Image.fromarray(array).save(stream, "JPEG" if kind == "rgb_jpeg" else "PNG")
            blobs[kind].append(stream.getvalue())
    parts = {}
    for kind, pieces in blobs.items():
        parts[kind] = np.frombuffer(b"".join(pieces), np.uint8)
        parts[f"{kind}_offsets"] = np.cumsum([0, *map(len, pieces)])
    order = np.random.default_rng(0).permutation(train + test).astype(np.int16)
    path.mkdir(parents=True, exist_ok=True)
    file = path / f"nyuv2_{size[0]}x{size[1]}.npz"
    np.savez(file, train=np.sort(order[:train]), test=np.sort(order[train:]), **parts)
    return file


def folders(path, kinds=("image", "label", "depth", "normal"), train=6, test=4, size=(96, 128), classes=13):
    """`train/` and `val/` with one folder per kind and one N.npy per image, void as -1."""
    image, label, depth, normal = rendered(train + test, size)
    label = np.where(label >= classes, -1, label.astype(int))
    parts = (image / 255.0, label.astype(np.float64), depth[..., None], normal)
    for place, rows in (("train", range(train)), ("val", range(train, train + test))):
        for kind, part in zip(kinds, parts, strict=False):
            (path / place / kind).mkdir(parents=True)
            for number, row in enumerate(rows):
                np.save(path / place / kind / f"{number}.npy", part[row])
    return path
