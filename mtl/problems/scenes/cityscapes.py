"""Cityscapes, preprocessed for two tasks: semantic segmentation (7 classes) and disparity, at 128 x 256."""

from pathlib import Path
from typing import Any, ClassVar

from mtl.problems.data import raw
from mtl.problems.scenes.base import SceneOptions, Scenes
from mtl.problems.scenes.files import Folders, prepare

CLASSES = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
KINDS = ("image", "label_7", "depth")
SETTINGS = {
    "smoke": SceneOptions((64, 128), (8, 4, 4), 4, 3),
    "quick": SceneOptions((64, 128), (120, 40, 120), 8, 5),
    "paper": SceneOptions((128, 256), None, 64, 5),
}


class Files(Folders):
    """`train/` and `val/` with image, label_7 and depth (an inverse depth, 0 where missing) as N.npy each."""

    classes = 7
    official: ClassVar[dict[str, int]] = {"train": 2975, "test": 500}
    normals = "none"


class Cityscapes(Scenes):
    """Street scenes (Cordts et al. 2016) as preprocessed by the MTAN authors: 2975 to train on, 500 to test.

    The published table has no validation split; here each tenth block of 8 consecutive training images
    validates. Depth is the files' own disparity, in no physical unit. Options as in `NYUv2`. Raises
    MissingDataError where there are no files, DataError for damaged or incomplete ones.
    """

    name: ClassVar[str] = "cityscapes"

    def __init__(self, scale: str = "smoke", *, partial: bool = False, **options: Any) -> None:
        chosen = SceneOptions.at(scale, SETTINGS, options)
        source = Files(_folder(), KINDS, "Cityscapes as preprocessed folders (.npy)")
        ready = prepare(source, chosen.resolution, chosen.images, partial)
        super().__init__(scale, *ready, classes=CLASSES, chosen=chosen, depth_unit="")


def _folder() -> Path:
    places = raw.places("cityscapes")
    for path, _ in places:
        if Folders.begun(path):
            return path
    raise raw.MissingDataError(
        f"cityscapes: found train/{KINDS[0]}/*.npy in none of {', '.join(where for _, where in places)}; "
        f"put the preprocessed folders there (`mtl data` names the sources)"
    )
