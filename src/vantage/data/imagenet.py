"""ImageNet-1k as folders: root/train/<synset>/*, root/val/<synset>/*."""

import json
import logging
import re
from collections import Counter
from pathlib import Path

from vantage.data.errors import DataError
from vantage.data.image_folder import ImageFolder
from vantage.data.module import RawSplit

log = logging.getLogger(__name__)

NAME_FILES = ("LOC_synset_mapping.txt", "synset_words.txt", "imagenet_class_index.json")


class ImageNet(ImageFolder):
    """Labels are the sorted synsets, as in torchvision and timm.

    The official validation images have the only public labels, so they are the test split. With val_fraction=0 they
    validate as well, as the literature does; with val_fraction > 0 that share of train validates and they only test.
    Class names are read from one of NAME_FILES, in root or up to three folders above it; without one they are synsets.
    """

    num_classes = 1000

    def class_names(self, classes: list[str]) -> list[str]:
        strangers = [name for name in classes if not re.fullmatch(r"n\d{8}", name)]
        if strangers:
            raise DataError(
                f"{self.root / 'train' / strangers[0]} is not named by a synset like n01440764; "
                "data=image_folder takes classes of any name"
            )
        words = self._read_names()
        names = [words.get(synset, synset) for synset in classes]
        uses = Counter(names)  # ImageNet has two cranes and two maillots
        return [name if uses[name] == 1 else f"{name} ({synset})" for name, synset in zip(names, classes)]

    def _complete(self, splits: dict[str, RawSplit]) -> None:
        if "val" not in splits:
            raise DataError(f"there is no folder {self.root / 'val'}; ImageNet is expected in data.root/val/<synset>/")
        splits["test"] = splits.pop("val")
        if self.val_fraction:
            self._cut_validation(splits)
        else:
            splits["val"] = splits["test"]
            log.info("data.val_fraction=0: %s validates and tests", self.root / "val")

    def _read_names(self) -> dict[str, str]:
        for folder in [self.root, *list(self.root.absolute().parents)[:3]]:
            for name in NAME_FILES:
                if (folder / name).is_file():
                    return read_names(folder / name)
        log.info("no %s in or above %s: classes are named by synset", " or ".join(NAME_FILES), self.root)
        return {}


def read_names(path: Path) -> dict[str, str]:
    """{synset: first name}, from lines "n01440764 tench, Tinca tinca" or JSON {"0": ["n01440764", "tench"]}."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        try:
            return {synset: name.replace("_", " ") for synset, name in json.loads(text).values()}
        except (ValueError, AttributeError):
            raise DataError(f"{path} is not a mapping of label to [synset, name]") from None
    names = {}
    for line in text.splitlines():
        synset, _, words = line.strip().partition(" ")
        if synset:
            names[synset] = words.split(",")[0].strip() or synset
    return names
