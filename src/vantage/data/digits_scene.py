"""Scenes of real handwritten digits at any angle, drawn on the spot: nothing to download.

The digits are scikit-learn's 1,797 scans; vantage.data.digits_scene_render says what a scene is made of. 6 and 9 are
one class, 6_9, since at any angle they cannot be told apart. Training, validation and test draw different scans.
One scene in 20 is empty, one in 20 larger than 160x160.
"""

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.datasets import load_digits
from torchvision.transforms.v2 import functional as F

from vantage.data.augment import Augment
from vantage.data.base import SPLITS, require
from vantage.data.digits_scene_render import Glyphs, Scene, draw_scenes
from vantage.data.rotated import RotatedData
from vantage.data.rotated_augment import RotatedAugment
from vantage.data.rotated_dataset import Objects, RotatedSplit
from vantage.data.splits import stratified_split

log = logging.getLogger(__name__)

CLASS_NAMES = ("0", "1", "2", "3", "4", "5", "6_9", "7", "8")
LABELS = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 6])  # of each digit
SCAN_FRACTIONS = {"val": 0.1, "test": 0.2}


class DigitsScene(RotatedData):
    """train, val and test are numbers of scenes. The scenes depend on split_seed only; the n-th is always the same."""

    num_classes = len(CLASS_NAMES)  # for what must know it before the data is opened

    def __init__(
        self,
        *,
        train: int = 800,
        val: int = 100,
        test: int = 200,
        image_size: int | Sequence[int] = 160,
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
        self.counts = dict(zip(SPLITS, (train, val, test)))
        for name, count in self.counts.items():
            require(count >= 1, name, count, "a number of scenes >= 1")

    def class_names(self) -> list[str]:
        return list(CLASS_NAMES)

    def open(self, split: str) -> RotatedSplit:
        started = time.perf_counter()
        scenes = self.scenes(split)
        log.info("drew %d %s scenes in %.1f s", len(scenes), split, time.perf_counter() - started)
        images = [scene.image for scene in scenes]
        if self.in_chans == 1:
            images = [F.rgb_to_grayscale(image) for image in images]
        objects = [Objects(scene.boxes, scene.labels, scene.difficult) for scene in scenes]
        names = [f"{split}_{i:05d}" for i in range(len(scenes))]
        return RotatedSplit(images, objects, names, [scene.mask for scene in scenes])

    def scenes(self, split: str) -> list[Scene]:
        """The scenes of a split with all that is known of them."""
        return draw_split(split, self.counts[split], self.split_seed)


def draw_split(split: str, count: int, split_seed: int) -> list[Scene]:
    """The first `count` scenes of train, val or test, of scans that no other split has."""
    scans, digits = load_digits(return_X_y=True)
    parts = stratified_split(torch.from_numpy(digits), list(SCAN_FRACTIONS.values()), split_seed)
    own = dict(zip([*SCAN_FRACTIONS, "train"], parts))[split].numpy()
    glyphs = Glyphs(scans.reshape(-1, 8, 8)[own], LABELS[digits[own]], own)
    return draw_scenes(glyphs, count, seed=split_seed, split=SPLITS.index(split))
