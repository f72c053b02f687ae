"""Files to uint8 tensors, and tensors to the size a model sees."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from vantage.data.errors import DataError
from vantage.data.info import DataInfo

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"})
INTERPOLATIONS = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}


def to_tensor(image: Image.Image, in_chans: int) -> Tensor:
    """Any 8 or 16 bit picture -> uint8 (in_chans, H, W).

    in_chans 1: grey by ITU-R 601 luma. in_chans 3: grey is repeated, palettes are looked up, CMYK is converted and
    alpha is dropped. 16 bit grey keeps its upper byte. Other depths have no agreed range and are refused.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise DataError(
            f"pixels of mode {image.mode!r} (32 bit) have no agreed range; save the image with 8 or 16 bits"
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the direct way warns on every file
    pixels = np.array(image.convert("L" if in_chans == 1 else "RGB"))
    pixels = pixels[None] if in_chans == 1 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def read_image(path: str | Path, in_chans: int) -> Tensor:
    """A file -> uint8 (in_chans, H, W).

    Raises: DataError naming the file, if it is missing, corrupt, truncated or of an unknown kind.
    """
    # Pillow and not torchvision.io: libjpeg fills what is missing of a truncated file with grey and reports nothing.
    try:
        with Image.open(path) as image:
            return to_tensor(image, in_chans)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error ... on broken input
        reason = "not a readable image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise DataError(f"{path}: cannot be decoded ({reason or type(error).__name__})") from None


def fit(image: Tensor, size: tuple[int, int], center_crop: float = 1.0, interpolation: str = "bilinear") -> Tensor:
    """Resize (..., C, h, w) so that it covers size / center_crop, keeping its aspect, then cut `size` from the centre.

    center_crop is the share of the resized picture that is kept (0.875 in the ImageNet protocol).
    """
    height, width = image.shape[-2:]
    scale = max(size[0] / height, size[1] / width) / center_crop
    resized = [max(round(height * scale), size[0]), max(round(width * scale), size[1])]
    if resized != [height, width]:
        image = F.resize(image, resized, interpolation=INTERPOLATIONS[interpolation], antialias=True)
    if resized != list(size):
        image = F.center_crop(image, list(size))
    return image


def as_evaluated(image: Image.Image, info: DataInfo, *, center_crop: float, interpolation: str) -> Tensor:
    """Any picture -> normalised (C, H, W), as the validation and test splits of the data are prepared."""
    return info.normalize(fit(to_tensor(image, info.in_chans), info.image_size, center_crop, interpolation))
