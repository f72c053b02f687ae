"""Files of every depth, read and written: against Pillow and torchvision, which decode what we write."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_png, read_file

from vantage.tasks.super_resolution.picture_files import PictureFile, read_picture, write_picture


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_eight_bits(mode: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 7, len(mode)), dtype=np.uint8)
    Image.fromarray(values[..., 0] if mode == "L" else values, mode).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert (picture.top, picture.alpha is not None) == (255, "A" in mode)
    colours = values[..., :-1] if "A" in mode else values
    assert np.array_equal(picture.pixels.permute(1, 2, 0).numpy(), colours)
    write_picture(tmp_path / "new" / "b.png", picture)
    with Image.open(tmp_path / "new" / "b.png") as image:
        assert image.mode == mode
        assert np.array_equal(np.asarray(image).reshape(values.shape), values)


@pytest.mark.parametrize("chans", [1, 2, 3, 4])
def test_sixteen_bits(chans: int, tmp_path: Path) -> None:
    values = torch.from_numpy(np.random.default_rng(0).integers(0, 65536, (chans, 5, 7), dtype=np.int32))
    alpha = values[-1:] if chans in (2, 4) else None
    path = tmp_path / "a.png"
    write_picture(path, PictureFile(values if alpha is None else values[:-1], alpha, 65535))
    decoded = decode_png(read_file(str(path)), ImageReadMode.UNCHANGED)
    assert decoded.dtype == torch.uint16
    assert torch.equal(decoded.to(torch.int32), values)
    with Image.open(path) as image:  # another decoder, which checks the sums; it cuts colour to 8 bits
        image.load()
        assert image.size == (7, 5)
        if chans == 1:
            assert np.array_equal(np.asarray(image), values[0].numpy())
    back = read_picture(path)
    assert back.top == 65535
    assert torch.equal(back.pixels, values if alpha is None else values[:-1])
    assert (back.alpha is None) == (alpha is None)


def test_palettes_bits_and_jpeg(tmp_path: Path) -> None:
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8))
    colours.quantize(4).save(tmp_path / "palette.png")
    picture = read_picture(tmp_path / "palette.png")
    with Image.open(tmp_path / "palette.png") as image:
        assert np.array_equal(picture.pixels.permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))
    colours.convert("1").save(tmp_path / "bits.png")
    assert sorted(read_picture(tmp_path / "bits.png").pixels.unique().tolist()) == [0, 255]
    colours.convert("CMYK").save(tmp_path / "print.jpg")
    assert read_picture(tmp_path / "print.jpg").pixels.shape == (3, 9, 8)


def test_floats_have_no_known_range(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="mode F, whose range is not known"):
        read_picture(tmp_path / "a.tif")
