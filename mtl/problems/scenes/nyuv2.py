"""NYUv2: semantic segmentation (13 classes), depth and surface normals of 1449 indoor images."""

from collections.abc import Sequence
from typing import ClassVar

from mtl.problems.base import check_scale
from mtl.problems.data import raw
from mtl.problems.scenes.base import Scenes, Setting, counts_of, size_of
from mtl.problems.scenes.files import RECIPE, load, split_rows
from mtl.problems.scenes.nyuv2_files import CLASSES, find_source

SETTINGS = {
    "smoke": Setting((96, 128), (8, 4, 4), 4, 3),
    "quick": Setting((96, 128), (120, 40, 120), 8, 5),
    "study": Setting((96, 128), None, 8, 5),
    "paper": Setting((288, 384), None, 64, 5),
}


class NYUv2(Scenes):
    """1449 indoor images (Silberman et al. 2012), official split: 795 to train on, of which 80 validate, 654 test.

    Validation images come in blocks of 8 consecutive ones, since neighbours show the same room. `resolution`,
    `images` (how many to train on, validate, test; None: all), `width`, `depth` override the scale's. Where
    normals are not given they are derived from depth at the final resolution (`scenes.geometry`), and `describe`
    says so: angles then are not comparable with papers that use the official ones. Raises MissingDataError
    where there are no files, DataError for damaged or incomplete ones (`partial=True` accepts fewer images).
    """

    name: ClassVar[str] = "nyuv2"

    def __init__(
        self,
        scale: str = "smoke",
        *,
        resolution: str | Sequence[int] | None = None,
        images: str | Sequence[int] | None = None,
        width: int | None = None,
        depth: int | None = None,
        partial: bool = False,
        augment: bool = True,
        amp: bool = False,
        channels_last: bool = True,
        official_split: bool = False,
    ) -> None:
        setting = SETTINGS[check_scale(scale, SETTINGS)]
        size, wanted = size_of(resolution, setting), counts_of(images, setting)
        source = find_source(size)
        source.complete(partial)
        rows = split_rows(source.counts["train"], source.counts["test"], wanted)
        self.normals = source.normals
        splits = load(source, size, rows)
        super().__init__(
            scale,
            splits,
            classes=CLASSES,
            source=f"{source.words}, {source.counts['train']} + {source.counts['test']} images",
            fingerprint=raw.fingerprint(list(rows.values()), source.digest, RECIPE, str(size)),
            width=width or setting.width,
            depth=depth or setting.depth,
            augment=augment,
            amp=amp,
            channels_last=channels_last,
            official_split=official_split,
            options={"normals": self.normals},
        )

    def describe(self) -> str:
        note = "; not comparable with angles to the official normals" if self.normals == "derived from depth" else ""
        return f"{super().describe()} Normals: {self.normals}{note}."
