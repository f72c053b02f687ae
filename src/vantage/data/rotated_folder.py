"""Your own pictures with rotated boxes: images, DOTA label files (vantage.data.dota_labels), a list of classes.

root/classes.txt                    a class per line, in label order
root/train/images/*.png             any image format
root/train/labelTxt/*.txt           one for every picture, an empty one if nothing is on it
root/val/..., root/test/...         where they exist
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from vantage.data.augment import Augment
from vantage.data.base import require
from vantage.data.dota_labels import CUT, DotaLabels, read_labels
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.rotated import RotatedData
from vantage.data.rotated_augment import RotatedAugment
from vantage.data.rotated_dataset import Objects, RotatedSplit
from vantage.data.rotated_files import IMAGES, KNOWN, pair_files
from vantage.data.tiles import picture_of
from vantage.ops.rotated_boxes import from_corners

log = logging.getLogger(__name__)


class RotatedFolder(RotatedData):
    """Boxes are the smallest rectangles around the quadrilaterals of the label files.

    train: the folder of root to train on, so that tiles of vantage.data.tile can take the pictures' place
    (train=train_tiles); val and test are read whole, for results count on whole pictures.
    Without a val folder, val_fraction of the training pictures (cut by split_seed) becomes the validation split; where
    these are tiles, all tiles of a picture do.
    count_difficult: objects of flag 1 are objects like others; otherwise they are ignored, as those cut by a tile (2)
    always are.
    A picture without its label file, a label file without its picture, and a line that is no object are bad samples:
    under on_bad_sample=skip the pair or the line is left out, logged and counted.
    """

    def __init__(
        self,
        *,
        root: str,
        train: str = "train",
        labels: str = "labelTxt",
        count_difficult: bool = False,
        image_size: int | Sequence[int] = 1024,
        in_chans: int = 3,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        val_fraction: float = 0.1,
        batch_size: int = 2,
        eval_batch_size: int | None = 1,
        drop_last: bool = True,
        num_workers: int | str = "auto",
        cache: bool | str = "auto",
        cache_gb: float = 2.0,
        on_bad_sample: str = "raise",
        seed: int = 0,
        split_seed: int = 0,
        augment: RotatedAugment | Augment | dict | None = None,
        default_augment: RotatedAugment | None = None,
    ) -> None:
        super().__init__(
            image_size=image_size,
            in_chans=in_chans,
            mean=mean,
            std=std,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            drop_last=drop_last,
            num_workers=num_workers,
            cache=cache,
            cache_gb=cache_gb,
            on_bad_sample=on_bad_sample,
            seed=seed,
            split_seed=split_seed,
            augment=augment,
            default_augment=default_augment,
        )
        require(0 <= val_fraction < 1, "val_fraction", val_fraction, "in [0, 1)")
        self.root, self.train, self.labels, self.val_fraction = Path(root), train, labels, val_fraction
        self.count_difficult = count_difficult
        self._parts: dict[str, RotatedSplit] | None = None  # of train, once it is read: itself, and val cut from it

    def class_names(self) -> list[str]:
        path = self.root / "classes.txt"
        if not self.root.is_dir():
            raise DataNotFoundError(
                f"there is no folder {self.root.absolute()} (data.root={self.root}); classes.txt, "
                f"{self.train}/images/ and {self.train}/{self.labels}/ are expected in it"
            )
        if not path.is_file():
            raise DataNotFoundError(f"{path} is missing; write the classes into it, one per line, in label order")
        names = path.read_text(encoding="utf-8").split("\n")
        names = [name.strip() for name in names if name.strip()]
        for name in names:
            if len(name.split()) > 1:
                raise DataError(f"{path}: the class {name!r} holds a space, which label files cannot; use hyphens")
            if names.count(name) > 1:
                raise DataError(f"{path}: names the class {name!r} twice")
        if not names:
            raise DataError(f"{path} is empty; write the classes into it, one per line, in label order")
        return names

    def open(self, split: str) -> RotatedSplit | None:
        if split == "test":
            return self._open_test()
        if split == "val" and (self.root / "val").is_dir():
            return self._scan(self.root / "val", split)
        if self._parts is None:
            self._parts = self._cut_validation(self._scan(self.root / self.train, "train"))
        return self._parts.get(split)

    def _open_test(self) -> RotatedSplit | None:
        folder = self.root / "test"
        if not folder.is_dir():
            log.warning("there is no folder %s: nothing can be tested", folder)
            return None
        if not (folder / self.labels).is_dir():
            log.warning("%s has no %s: nothing can be tested, but eval.py predict= works", folder, self.labels)
            return None
        return self._scan(folder, "test")

    def _cut_validation(self, train: RotatedSplit) -> dict[str, RotatedSplit]:
        if (self.root / "val").is_dir():
            return {"train": train}
        if not self.val_fraction:
            log.warning("data.val_fraction=0 and there is no folder %s: nothing is validated", self.root / "val")
            return {"train": train}
        # all tiles of a picture go to one side, or what is validated on would have been trained on
        groups: dict[str, list[int]] = defaultdict(list)
        for i, name in enumerate(train.names):
            groups[picture_of(name)].append(i)
        pictures = list(groups.values())
        count = round(self.val_fraction * len(pictures))
        if not 0 < count < len(pictures):
            raise DataError(
                f"data.val_fraction={self.val_fraction} of {len(pictures)} training pictures is {count}, which "
                "leaves none to validate or to train on; use another fraction or a val folder"
            )
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(self.split_seed)).tolist()
        val, kept = (sorted(i for at in part for i in pictures[at]) for part in (order[:count], order[count:]))
        return {"val": train.select(val), "train": train.select(kept)}

    def _scan(self, folder: Path, split: str) -> RotatedSplit:
        pairs, bad_files = pair_files(folder, self.labels)
        classes = self.info.class_names
        source, objects, names, bad_lines = [], [], [], []
        for image, label in pairs:
            try:
                read = read_labels(label, classes)
            except DataError as error:
                bad_files.append(str(error))
                continue
            bad_lines.extend(read.bad)
            source.append(image)
            objects.append(as_objects(read, classes, self.count_difficult))
            names.append(Path(image).stem)
        what = f"{folder}: {len(bad_files)} files and {len(bad_lines)} lines of label files are bad and were skipped"
        self.report_bad(bad_files + bad_lines, what)
        if not source:
            raise DataError(f"{folder / IMAGES} holds no image ({KNOWN})")
        return RotatedSplit(source, objects, names)


def as_objects(labels: DotaLabels, classes: Sequence[str], count_difficult: bool = False) -> Objects:
    """Quadrilaterals as boxes; difficult those of flag 2, and those of flag 1 unless they count."""
    if not labels.objects:
        return Objects.none()
    points = torch.tensor([each.points for each in labels.objects], dtype=torch.float64).view(-1, 4, 2)
    flags = torch.tensor([each.difficult for each in labels.objects])
    return Objects(
        from_corners(points).float(),  # after float64, for coordinates reach 20,000
        torch.tensor([classes.index(each.name) for each in labels.objects]),
        flags == CUT if count_difficult else flags > 0,
    )
