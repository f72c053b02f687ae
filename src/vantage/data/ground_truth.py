"""Pictures that are a ground truth: read without a change of any value, or refused.

Grey, palette and CMYK pictures are converted, which the caller is to say (`Header.kind`). Refused are pictures of more
than 8 bits, for all else here has 256 levels, and alpha below 255: what shows through it is in no file, and blending
would make it up.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from vantage.data.errors import DataError
from vantage.data.images import to_tensor

# kind -> what is done to pictures of it
CONVERTED = {
    "grey": "their values are repeated in every channel",
    "palette": "its colours are looked up",
    "CMYK": "they are converted to RGB without a colour profile",
    "opaque alpha": "the alpha, which is 255 everywhere, is dropped",
}
ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")


@dataclass(frozen=True)
class Header:
    height: int
    width: int
    kind: str  # "RGB", or a key of CONVERTED, or the name that Pillow has for it


def read_header(path: str) -> Header:
    """What a file tells of itself without being decoded. Raises: DataError naming the file."""
    with opened(path) as image:
        return Header(image.height, image.width, kind_of(image))


def read_ground_truth(path: str, in_chans: int) -> Tensor:
    """A file -> uint8 (in_chans, H, W); in_chans 1 is the luma of ITU-R 601, 0..255. Raises: DataError naming it."""
    with opened(path) as image:
        if kind_of(image) == "opaque alpha":
            image = image.convert("RGBA")
            if image.getextrema()[3] != (255, 255):
                raise DataError(
                    "is transparent somewhere, and what shows through is in no file; save it without alpha, on the "
                    "background that is meant"
                )
        return to_tensor(image, in_chans)


def kind_of(image: Image.Image) -> str:
    """Raises: DataError for more than 8 bits per value."""
    if image.mode.startswith(("I", "F")) or _is_deep(image):
        raise DataError("has more than 8 bits per value, and ground truth of more is not supported; save it with 8")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        return "opaque alpha"
    return {"L": "grey", "1": "grey", "P": "palette"}.get(image.mode, image.mode)


def _is_deep(image: Image.Image) -> bool:
    """Whether Pillow, which has no colour of 16 bits, would drop the lower byte of this file's without a word."""
    for tile in image.tile:
        args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if isinstance(args[0], str) and re.search(r";16[BLNS]", args[0]):
            return True
        if tile.codec_name.startswith("ppm") and isinstance(args[-1], int) and args[-1] > 255:
            return True
    return False


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """The file's picture, not yet decoded; whatever is wrong with it is a DataError that begins with its name."""
    try:
        with Image.open(path) as image:
            yield image
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error ... on broken input
        reason = "not a readable image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise DataError(f"{path}: cannot be decoded ({reason or type(error).__name__})") from None
