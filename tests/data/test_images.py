import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from vantage.data.errors import DataError
from vantage.data.images import fit, read_image, to_tensor

from .writers import picture


@pytest.fixture(scope="module")
def color():
    return picture(np.random.default_rng(0), 20, 30)


def test_rgb_and_grey_agree_with_torchvision(color):
    assert torch.equal(to_tensor(color, 3), v2.functional.pil_to_tensor(color))
    assert torch.equal(to_tensor(color, 1), v2.functional.pil_to_tensor(color.convert("L")))
    ours = to_tensor(color, 1).int()
    assert (ours - v2.functional.rgb_to_grayscale(to_tensor(color, 3)).int()).abs().max() <= 1


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_the_channels_asked_for(color, mode):
    image = color.convert("RGB").convert(mode) if mode != "LA" else color.convert("L").convert("LA")
    expected = v2.functional.pil_to_tensor(image.convert("RGB"))
    assert torch.equal(to_tensor(image, 3), expected)
    assert to_tensor(image, 1).shape == (1, 20, 30)


def test_alpha_is_dropped_also_of_palettes(color):
    transparent = color.convert("RGBA")
    transparent.putalpha(0)
    assert torch.equal(to_tensor(transparent, 3), to_tensor(color, 3))
    palette = color.convert("P")
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=bytes([0] * 256))
    assert torch.equal(to_tensor(Image.open(buffer), 3), to_tensor(palette.convert("RGB"), 3))


def test_sixteen_bits_keep_the_upper_byte(tmp_path):
    values = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "deep.png")
    pixels = read_image(tmp_path / "deep.png", 1)
    assert torch.equal(pixels[0], torch.from_numpy((values >> 8).astype(np.uint8)))


def test_float_images_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match=r"f\.tif.*32 bit"):
        read_image(tmp_path / "f.tif", 3)


@pytest.mark.parametrize("extension", ["jpg", "png", "bmp", "webp", "tif", "gif"])
def test_truncated_files_are_named(tmp_path, extension):
    path = tmp_path / f"half.{extension}"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(path)
    assert read_image(path, 3).shape == (3, 64, 64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"half\.{extension}"):
        read_image(path, 3)


@pytest.mark.parametrize("content", [b"", b"these are words", b"\xff\xd8\xff\xe0" + bytes(40)])
def test_files_that_are_no_images_are_named(tmp_path, content):
    path = tmp_path / "wrong.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"wrong\.jpg") as caught:
        read_image(path, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("shape", "target"), [((50, 80), 32), ((80, 50), 32), ((33, 33), 32), ((16, 24), 32)])
@pytest.mark.parametrize("share", [1.0, 0.875])
def test_fit_is_resize_and_center_crop(shape, target, share):
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.manual_seed(0))
    ours = fit(image, (target, target), share)
    scale = target / min(shape) / share
    resized = [round(side * scale) for side in shape]
    theirs = v2.Compose([v2.Resize(resized, antialias=True), v2.CenterCrop(target)])(image)
    assert torch.equal(ours, theirs)


def test_fit_covers_a_size_of_another_aspect_without_black():
    white = torch.full((3, 40, 100), 255, dtype=torch.uint8)
    for size in [(64, 48), (31, 97), (200, 30)]:
        fitted = fit(white, size)
        assert fitted.shape == (3, *size)
        assert fitted.min() == 255


def test_fit_leaves_the_right_size_alone():
    image = torch.randint(0, 256, (3, 32, 40), dtype=torch.uint8)
    assert fit(image, (32, 40)) is image
