"""Image files as they are and as large as they come: 8 and 16 bits, grey and colour, with their transparency.

Pillow reads and writes all but 16-bit colour, which it would cut to 8 without a word: such PNG files are read by
torchvision and written here (PNG, W3C recommendation: an IHDR, zlib-packed rows each behind a filter byte, an IEND).
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_png, read_file

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class PictureFile:
    """pixels: integers (1 or 3, H, W) of 0..top; alpha: (1, H, W) of the same range, or None."""

    pixels: Tensor
    alpha: Tensor | None
    top: int  # 255 or 65535


def read_picture(path: Path) -> PictureFile:
    """Raises: ValueError, OSError and what else decoders raise."""
    head = path.open("rb").read(26)
    if head.startswith(PNG_SIGNATURE) and head[24] == 16:
        pixels = decode_png(read_file(str(path)), ImageReadMode.UNCHANGED).to(torch.int32)
        top = 65535
    else:
        pixels, top = from_pillow(path)
    chans = len(pixels)
    has_alpha = chans in (2, 4)
    return PictureFile(pixels[: chans - 1] if has_alpha else pixels, pixels[-1:] if has_alpha else None, top)


def from_pillow(path: Path) -> tuple[Tensor, int]:
    with Image.open(path) as image:
        if image.mode.startswith("I;16"):
            return torch.from_numpy(np.asarray(image).astype(np.int32))[None], 65535
        if image.mode in ("I", "F"):
            raise ValueError(f"has pixels of mode {image.mode}, whose range is not known; use 8 or 16 bits")
        transparent = image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info
        grey = image.mode in ("1", "L", "LA")
        mode = ("LA" if transparent else "L") if grey else ("RGBA" if transparent else "RGB")
        values = np.array(image.convert(mode))
    return torch.from_numpy(values.reshape(*values.shape[:2], -1)).permute(2, 0, 1), 255


def write_picture(path: Path, picture: PictureFile) -> None:
    """A PNG of the picture's own depth."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [picture.pixels] if picture.alpha is None else [picture.pixels, picture.alpha]
    values = torch.cat(parts).permute(1, 2, 0).numpy()  # (H, W, channels)
    if picture.top == 255:
        values = values.astype(np.uint8)
        Image.fromarray(values[..., 0] if values.shape[2] == 1 else values, MODES[values.shape[2]]).save(path)
    else:
        path.write_bytes(png16(values))


def png16(values: np.ndarray) -> bytes:
    """(H, W, channels) of 0..65535 -> a PNG file."""
    height, width, chans = values.shape
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)  # filter 0: as they are
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOUR_TYPES[chans], 0, 0, 0)
    return PNG_SIGNATURE + b"".join(
        chunk(*part) for part in ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b""))
    )


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
