"""The scenes of vantage.data.digits_scene with their masks: nothing to download.

A pixel is background, ink of a digit (6 and 9 are one class, since at any angle they cannot be told apart), or under
an occluder and ignored.
"""

import logging
import time
from collections.abc import Sequence

from torchvision.transforms.v2 import functional as F

from vantage.data.augment import Augment
from vantage.data.base import SPLITS, require
from vantage.data.digits_scene import CLASS_NAMES, draw_split
from vantage.data.rotated_augment import RotatedAugment
from vantage.data.segmentation import SegmentationData
from vantage.data.segmentation_augment import SegmentationAugment
from vantage.data.segmentation_dataset import SegmentationSplit

log = logging.getLogger(__name__)


class DigitsSceneMasks(SegmentationData):
    """train, val and test are numbers of scenes. The scenes depend on split_seed only; the n-th is always the same."""

    num_classes = 1 + len(CLASS_NAMES)  # for what must know it before the data is opened

    def __init__(
        self,
        *,
        train: int = 720,
        val: int = 100,
        test: int = 200,
        image_size: int | Sequence[int] = 160,
        resize: int | Sequence[int] | None = None,
        in_chans: int = 3,
        mean: Sequence[float] = (0.47, 0.47, 0.47),
        std: Sequence[float] = (0.22, 0.22, 0.22),
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        drop_last: bool = True,
        num_workers: int | str = "auto",
        cache: bool | str = "auto",
        cache_gb: float = 2.0,
        on_bad_sample: str = "raise",
        seed: int = 0,
        split_seed: int = 0,
        augment: SegmentationAugment | RotatedAugment | Augment | dict | None = None,
        default_augment: SegmentationAugment | None = None,
    ) -> None:
        super().__init__(
            image_size=image_size,
            resize=resize,
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
        self.counts = dict(zip(SPLITS, (train, val, test)))
        for name, count in self.counts.items():
            require(count >= 1, name, count, "a number of scenes >= 1")

    def class_names(self) -> list[str]:
        return ["background", *CLASS_NAMES]

    def open(self, split: str) -> SegmentationSplit:
        started = time.perf_counter()
        scenes = draw_split(split, self.counts[split], self.split_seed)
        log.info("drew %d %s scenes in %.1f s", len(scenes), split, time.perf_counter() - started)
        images = [scene.image if self.in_chans == 3 else F.rgb_to_grayscale(scene.image) for scene in scenes]
        names = [f"{split}_{i:05d}" for i in range(len(scenes))]
        return SegmentationSplit(images, [scene.mask for scene in scenes], names)
