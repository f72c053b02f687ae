"""Pictures with masks: a split as its format gives it, how its pairs are read and kept, and the dataset of samples."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from vantage.data.errors import DataError
from vantage.data.info import DataInfo
from vantage.data.rotated_files import read_large_image
from vantage.data.sample_dataset import Sample, SampleDataset
from vantage.data.segmentation_augment import SegmentationAugment
from vantage.data.store import pack

Pair = tuple[Tensor, Tensor]  # uint8 (C, H, W) or, of volumes, (D, C, H, W); uint8 (H, W) or (D, H, W)


@dataclass(frozen=True)
class SegmentationSplit:
    """Pictures and masks in the same order: tensors, or what the two functions read.

    read_image  (source, in_chans) -> uint8 (C, H, W), or (D, C, H, W) of a volume
    read_mask   mask -> uint8 (H, W) or (D, H, W): classes, 255 to ignore
    """

    source: Sequence[Any]
    masks: Sequence[Any]
    names: Sequence[str]
    read_image: Callable[[Any, int], Tensor] = read_large_image
    read_mask: Callable[[Any], Tensor] | None = None

    def __post_init__(self) -> None:
        assert len(self.source) == len(self.masks) == len(self.names)

    def select(self, index: Sequence[int]) -> "SegmentationSplit":
        picked = ([values[i] for i in index] for values in (self.source, self.masks, self.names))
        return SegmentationSplit(*picked, self.read_image, self.read_mask)

    @property
    def in_memory(self) -> bool:
        return len(self.source) > 0 and isinstance(self.source[0], Tensor)


@dataclass(frozen=True)
class FilePairs:
    """Reads a picture and its mask, which must be of one size; then resizes the picture and, to train, the mask."""

    split: SegmentationSplit
    in_chans: int
    resize: int | tuple[int, int] | None  # the shorter side, or (H, W)
    resize_masks: bool

    def read(self, index: int) -> Pair:
        split = self.split
        image, mask = split.source[index], split.masks[index]
        if not split.in_memory:
            image, mask = split.read_image(image, self.in_chans), split.read_mask(mask)
        if image.shape[-2:] != mask.shape[-2:]:
            (height, width), (rows, columns) = image.shape[-2:], mask.shape[-2:]
            raise DataError(
                f"{self.told(split.source[index], index)}: is {width}x{height} and its mask "
                f"{self.told(split.masks[index], index)} is {columns}x{rows} (width x height); a mask has a value for "
                "every pixel of its picture"
            )
        size = resized(tuple(image.shape[-2:]), self.resize)
        if size != tuple(image.shape[-2:]):
            image = F.resize(image, list(size), antialias=True)
            if self.resize_masks:
                mask = F.resize(mask[None], list(size), interpolation=v2.InterpolationMode.NEAREST_EXACT)[0]
        return image, mask

    def told(self, item: Any, index: int) -> str:
        """What to call a file in an error."""
        return str(item) if isinstance(item, str) else self.split.names[index]


def resized(size: tuple[int, int], wanted: int | tuple[int, int] | None) -> tuple[int, int]:
    """(H, W) after resizing so that the shorter side is `wanted`, or to `wanted` itself."""
    if wanted is None:
        return size
    if not isinstance(wanted, int):
        return wanted
    shorter = min(size)
    return round(size[0] * wanted / shorter), round(size[1] * wanted / shorter)


class MemoryPairs:
    """Pictures and masks as two buffers; see PackedStore for why these are no lists."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.images, self.masks = pack([image for image, _ in pairs]), pack([mask for _, mask in pairs])

    def read(self, index: int) -> Pair:
        return self.images.read(index), self.masks.read(index)


def read_all(pairs: FilePairs, count: int, threads: int) -> tuple[list[Pair], dict[int, str]]:
    """Every pair once, in threads, for decoders let go of Python's lock -> the good, {index: reason} of the bad."""

    def one(index: int) -> Pair | str:
        try:
            return pairs.read(index)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(one, range(count)))
    bad = {index: result for index, result in enumerate(results) if isinstance(result, str)}
    return [result for result in results if not isinstance(result, str)], bad


class SegmentationDataset(SampleDataset):
    """Samples, and batches of them as lists, for evaluated pictures have sizes of their own:

    image      float32 (C, H, W), normalised; of the data's image_size in training. A volume: (D, C, H, W)
    mask       uint8 (H, W), classes, 255 to ignore; in evaluation of the annotation's own size. A volume: (D, H, W)
    name       str;  index  int;  size  (H, W) of `image`
    """

    def __init__(
        self,
        pairs: FilePairs | MemoryPairs,
        names: Sequence[str],
        info: DataInfo,
        *,
        seed: int,
        skip_bad: bool,
        augment: SegmentationAugment | None = None,
    ) -> None:
        super().__init__(names, info, seed=seed, skip_bad=skip_bad, augments=augment is not None)
        self.pairs, self.augment = pairs, augment

    def read(self, index: int) -> Sample:
        image, mask = self.pairs.read(index)
        return {"image": image, "mask": mask}

    def augmented(self, sample: Sample) -> Sample:
        image, mask = self.augment(sample["image"], sample["mask"], self.info.image_size, self.fill)
        return sample | {"image": image, "mask": mask, "size": tuple(mask.shape)}
