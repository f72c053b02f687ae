"""Data sets whose test labels nobody has: results are reported on their validation pictures."""

import logging

from vantage.data.segmentation_dataset import SegmentationDataset, SegmentationSplit
from vantage.data.segmentation_files import SegmentationFiles

log = logging.getLogger(__name__)


class TestedOnVal(SegmentationFiles):
    """The official val pictures are the test split, unless `scan` finds labels for another one.

    val_fraction=0: they validate as well, as in the literature, so that the best checkpoint is picked on what it is
    tested on. val_fraction > 0: that share of train validates (cut by split_seed), and they only test.
    """

    def testing(self) -> SegmentationSplit | None:
        if self.scanned("test") is not None or self.scanned("val") is None:
            return super().testing()
        if not self.val_fraction:
            log.info(
                "%s has no labels for testing: the val pictures validate and test, as in the literature, so that the "
                "best checkpoint is picked on what it is tested on (data.val_fraction > 0: train validates)",
                self.root,
            )
        return self.scanned("val")

    def validation(self) -> SegmentationSplit | None:
        if self.val_fraction and self.scanned("test") is None:
            return None
        return self.scanned("val")

    def build(self, name: str, split: SegmentationSplit) -> SegmentationDataset:
        """One dataset, and one copy in memory, where the same pictures validate and test."""
        if name == "test" and "val" in self.datasets and split is self.validation():
            return self.datasets["val"]
        return super().build(name, split)
