"""What file headers tell before anything is decoded: sizes that do not fit together, and pictures to be converted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from vantage.data.errors import DataError
from vantage.data.ground_truth import Header, read_header
from vantage.data.low_resolution_files import SCALES
from vantage.data.super_resolution_dataset import PicturePair

Size = tuple[int, int]  # (H, W)


@dataclass
class Checked:
    """The pairs that fit and their sizes, why the others do not, and how many files of which kind there are."""

    pairs: list[PicturePair] = field(default_factory=list)
    high: list[Size] = field(default_factory=list)
    low: list[Size] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)  # ("HR" or "LR", Header.kind)


def check_pairs(pairs: Sequence[PicturePair], scale: int, patch: Size | None) -> Checked:
    """patch: (h, w) of the LR patches to be cut; None for pictures that are taken whole."""
    checked = Checked()
    for pair in pairs:
        try:
            high = header_of(pair.high)
            low = None if pair.low is None else read_header(pair.low)
            size = check_sizes(pair, high, low, scale, patch)
        except DataError as error:
            checked.bad.append(str(error))
            continue
        checked.pairs.append(pair)
        checked.high.append((high.height, high.width))
        checked.low.append(size)
        checked.kinds.update((part, header.kind) for part, header in (("HR", high), ("LR", low)) if header)
    return checked


def header_of(picture: str | Tensor) -> Header:
    if isinstance(picture, str):
        return read_header(picture)
    return Header(*picture.shape[-2:], "RGB")


def check_sizes(pair: PicturePair, high: Header, low: Header | None, scale: int, patch: Size | None) -> Size:
    """-> (h, w) that the LR picture has or will have. Raises: DataError"""
    size = (high.height // scale, high.width // scale)
    height, width = patch or (1, 1)
    if size[0] < height or size[1] < width:
        if patch is None:
            raise DataError(f"{pair.told()}: is {_told(high)}, smaller than one pixel of x{scale}")
        fits = f"; data.image_size={min(size)} would fit" if min(size) >= 1 else ""
        raise DataError(
            f"{pair.told()}: is {_told(high)}, and a patch of data.image_size={width}x{height} at data.scale={scale} "
            f"is {scale * width}x{scale * height} of it{fits}"
        )
    if low is not None and (low.height, low.width) != size:
        others = [other for other in SCALES if (high.height // other, high.width // other) == (low.height, low.width)]
        fix = f"it is one of data.scale={others[0]}" if others else "data.lr=make makes LR pictures that fit"
        raise DataError(
            f"{pair.low}: is {_told(low)}, and the LR picture of {pair.told()}, {_told(high)}, is {size[1]}x{size[0]} "
            f"at data.scale={scale}; {fix}"
        )
    return size


def _told(picture: Header) -> str:
    """As sizes are usually told: width x height."""
    return f"{picture.width}x{picture.height}"
