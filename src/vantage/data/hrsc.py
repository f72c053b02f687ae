"""HRSC2016: ships in satellite pictures, one XML file per picture.

Paper: A High Resolution Optical Satellite Image Dataset for Ship Recognition (Liu et al., 2017), ICPRAM.

    root/FullDataSet/AllImages/*.bmp, root/FullDataSet/Annotations/*.xml
    root/ImageSets/{train,val,test}.txt                                    the names of each split's pictures

An XML file holds HRSC_Image/HRSC_Objects/HRSC_Object with mbox_cx, mbox_cy, mbox_w, mbox_h in pixels, mbox_ang in
radians (clockwise), Class_ID (100000001 ...) and difficult.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from xml.parsers import expat

import torch

from vantage.data.augment import Augment
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.rotated import RotatedData
from vantage.data.rotated_augment import RotatedAugment
from vantage.data.rotated_dataset import Objects, RotatedSplit
from vantage.ops.rotated_boxes import canonical

log = logging.getLogger(__name__)

# Class_ID - 100000000 -> name; 21 and 23 are not used
FINE_CLASSES = {
    1: "ship", 2: "aircraft-carrier", 3: "warcraft", 4: "merchant-ship", 5: "Nimitz", 6: "Enterprise",
    7: "Arleigh-Burke", 8: "WhidbeyIsland", 9: "Perry", 10: "Sanantonio", 11: "Ticonderoga", 12: "Kitty-Hawk",
    13: "Kuznetsov", 14: "Abukuma", 15: "Austen", 16: "Tarawa", 17: "Blue-Ridge", 18: "Container", 19: "OXo|--)",
    20: "Car-carrier([]==[])", 22: "Hovercraft", 24: "yacht", 25: "CntShip(_|.--.--|_]=", 26: "Cruise",
    27: "submarine", 28: "lute", 29: "Medical", 30: "Car-carrier(======|", 31: "Ford-class", 32: "Midway-class",
    33: "Invincible-class",
}  # fmt: skip
BOX = ("mbox_cx", "mbox_cy", "mbox_w", "mbox_h", "mbox_ang")
IMAGES, ANNOTATIONS, SETS = "FullDataSet/AllImages", "FullDataSet/Annotations", "ImageSets"


class Hrsc2016(RotatedData):
    """fine_classes: the 31 types of ships; otherwise all are one class, as most papers evaluate.

    An object that cannot be read and a picture or XML file that is missing are bad samples.
    """

    def __init__(
        self,
        *,
        root: str,
        fine_classes: bool = False,
        image_size: int | Sequence[int] = 800,
        in_chans: int = 3,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
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
        self.root, self.fine_classes = Path(root), fine_classes
        self.num_classes = len(FINE_CLASSES) if fine_classes else 1

    def class_names(self) -> list[str]:
        for folder in (IMAGES, ANNOTATIONS, SETS):
            if not (self.root / folder).is_dir():
                raise DataNotFoundError(
                    f"there is no folder {(self.root / folder).absolute()} (data.root={self.root}); HRSC2016 is "
                    f"expected as {IMAGES}/*.bmp, {ANNOTATIONS}/*.xml and {SETS}/{{train,val,test}}.txt"
                )
        return list(FINE_CLASSES.values()) if self.fine_classes else ["ship"]

    def open(self, split: str) -> RotatedSplit | None:
        listed = self.root / SETS / f"{split}.txt"
        if not listed.is_file():
            log.warning("there is no file %s: no %s split", listed, split)
            return None
        source, objects, names, bad = [], [], [], []
        for number, name in enumerate(listed.read_text().split("\n"), 1):
            if not (name := name.strip()):
                continue
            image, xml = self.root / IMAGES / f"{name}.bmp", self.root / ANNOTATIONS / f"{name}.xml"
            missing = [path for path in (image, xml) if not path.is_file()]
            if missing:
                bad.append(f"{listed}, line {number}: {name} has no file {missing[0]}")
                continue
            try:
                read, problems = read_xml(xml, self.fine_classes)
            except DataError as error:
                bad.append(str(error))
                continue
            bad.extend(problems)
            source.append(str(image))
            objects.append(read)
            names.append(name)
        self.report_bad(bad, f"{listed}: {len(bad)} files and objects are bad and were skipped")
        if not source:
            raise DataError(f"{listed} names no picture")
        return RotatedSplit(source, objects, names)


def read_xml(path: str | Path, fine_classes: bool = False) -> tuple[Objects, list[str]]:
    """The objects of an XML file, and a sentence for each that cannot be used.

    Raises: DataError, if the file is no XML or has no element HRSC_Objects. An empty one is a picture without ships.
    """
    rows, labels, difficult, bad = [], [], [], []
    for line, fields in _objects(path):
        try:
            rows.append(_box(fields))
            labels.append(_label(fields) if fine_classes else 0)
            difficult.append(fields.get("difficult", "0").strip() not in ("", "0"))
        except DataError as error:
            del rows[len(difficult) :], labels[len(difficult) :]
            bad.append(f"{path}, line {line}: {error}")
    if not rows:
        return Objects.none(), bad
    boxes = canonical(torch.tensor(rows, dtype=torch.float64)).float()
    return Objects(boxes, torch.tensor(labels), torch.tensor(difficult)), bad


def _box(fields: dict[str, str]) -> list[float]:
    missing = [name for name in BOX if not fields.get(name, "").strip()]
    if missing:
        raise DataError(f"HRSC_Object has no {missing[0]}; a box is {', '.join(BOX)}")
    values = []
    for name in BOX:
        try:
            value = float(fields[name])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{name} is {fields[name].strip()!r}, which is not a finite number")
        values.append(value)
    for name, side in zip(BOX[2:4], values[2:4]):
        if side <= 0:
            raise DataError(f"{name} is {side:g}, so that the box has no area")
    return values


def _label(fields: dict[str, str]) -> int:
    text = fields.get("Class_ID", "").strip()
    known = {str(100000000 + number): label for label, number in enumerate(FINE_CLASSES)}
    if text not in known:
        raise DataError(f"Class_ID is {text!r}, and known are 100000001 to 100000033 without 21 and 23")
    return known[text]


def _objects(path: str | Path) -> list[tuple[int, dict[str, str]]]:
    """(line, {element: text}) of every HRSC_Object. expat, because ElementTree forgets the lines."""
    found: list[tuple[int, dict[str, str]]] = []
    open_elements: list[str] = []
    seen = set()
    parser = expat.ParserCreate()

    def start(name: str, _: dict) -> None:
        open_elements.append(name)
        seen.add(name)
        if name == "HRSC_Object":
            found.append((parser.CurrentLineNumber, {}))

    def end(_: str) -> None:
        open_elements.pop()

    def text(content: str) -> None:
        if open_elements[-2:-1] == ["HRSC_Object"]:
            fields = found[-1][1]
            fields[open_elements[-1]] = fields.get(open_elements[-1], "") + content

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    try:
        parser.Parse(Path(path).read_bytes(), True)
    except expat.ExpatError as error:
        raise DataError(f"{path}, line {error.lineno}: is not XML ({expat.ErrorString(error.code)})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if "HRSC_Objects" not in seen:
        raise DataError(
            f"{path}, line 1: has no element HRSC_Objects; an empty one says that nothing is on the picture"
        )
    return found
