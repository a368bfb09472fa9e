"""NYUv2: semantic segmentation (13 classes), depth and surface normals of 1449 indoor images."""

from typing import Any, ClassVar

from mtl.problems.scenes.base import SceneOptions, Scenes
from mtl.problems.scenes.files import prepare
from mtl.problems.scenes.nyuv2_files import CLASSES, find_source

SETTINGS = {
    "smoke": SceneOptions((96, 128), (8, 4, 4), 4, 3),
    "quick": SceneOptions((96, 128), (120, 40, 120), 8, 5),
    "study": SceneOptions((96, 128), None, 8, 5),
    "gpu": SceneOptions((96, 128), None, 8, 5),
    "paper": SceneOptions((288, 384), None, 64, 5),
}


class NYUv2(Scenes):
    """1449 indoor images (Silberman et al. 2012), official split: 795 to train on, of which 80 validate, 654 test.

    Validation images come in blocks of 8 consecutive ones, since neighbours show the same room. Options are those of
    `SceneOptions` and `partial=True`, which accepts fewer images. Where normals are not given they are derived from
    depth at the final resolution (`scenes.geometry`), and `describe` says so: angles then are not comparable with
    papers that use the official ones. Raises MissingDataError where there are no files, DataError for damaged or
    incomplete ones.
    """

    name: ClassVar[str] = "nyuv2"

    def __init__(self, scale: str = "smoke", *, partial: bool = False, **options: Any) -> None:
        chosen = SceneOptions.at(scale, SETTINGS, options)
        source = find_source(chosen.resolution)
        self.normals = source.normals
        ready = prepare(source, chosen.resolution, chosen.images, partial)
        super().__init__(scale, *ready, classes=CLASSES, chosen=chosen, options={"normals": self.normals})

    def describe(self) -> str:
        note = "; not comparable with angles to the official normals" if self.normals == "derived from depth" else ""
        return f"{super().describe()} Normals: {self.normals}{note}."
