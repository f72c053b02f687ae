"""What the data modules of dense tasks share: pictures of any size, evaluated whole, in lists of samples."""

from abc import abstractmethod
from typing import Any

from torch.utils.data import Dataset

from vantage.data.augment import Augment
from vantage.data.base import STAGES, VisionData
from vantage.data.errors import DataError
from vantage.data.info import DataInfo


class DenseData(VisionData):
    """A format defines `class_names` and `open`, a kind of task `build`; `palette` and `wraps` go into the info."""

    wraps = False  # panoramas: a picture's left and right edge are neighbours
    _absent: frozenset[str] = frozenset()  # splits that the data does not have

    @abstractmethod
    def class_names(self) -> list[str]:
        """In label order."""

    def palette(self) -> list[list[int]] | None:
        """RGB 0..255 per class, if the data set has agreed on colours."""
        return None

    @abstractmethod
    def open(self, split: str) -> Any | None:
        """The split of that name (train, val, test), or None if the data has none."""

    @abstractmethod
    def build(self, name: str, split: Any) -> Dataset:
        """The dataset of what `open` gave."""

    def setup(self, stage: str | None = None) -> None:
        if self._info is None:
            names = self.class_names()
            self._info = DataInfo(
                len(names), names, self.in_chans, self.image_size, self.mean, self.std, self.palette(), self.wraps
            )
        for name in STAGES[stage]:
            if name in self.datasets or name in self._absent:
                continue
            split = self.open(name)
            if split is not None:
                self.datasets[name] = self.build(name, split)
            elif name == "train":
                raise DataError("the data has no train split")
            else:
                self._absent = self._absent | {name}


def augment_of(kind: type, given: Any, default: Any, *, moves: str, files: str) -> Any:
    """The augmentation, of a task's own kind: others would leave behind what belongs to the pictures."""
    augment = given or default or kind()
    if isinstance(augment, Augment) and vars(augment) == vars(Augment()):
        return kind()  # augment=none
    if not isinstance(augment, kind):
        raise DataError(
            f"augment is of the kind {type(augment).__name__}, which does not move {moves}; use augment=default, "
            f"augment=none, or a file {files}*.yaml of configs/augment"
        )
    return augment
