"""Files enlarged by a network whose answer is known: MATLAB's bicubic."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vantage.data.info import DataInfo
from vantage.ops.resize import resize
from vantage.tasks.super_resolution.inference import Upscale
from vantage.tasks.super_resolution.picture_files import PictureFile, read_picture, write_picture
from vantage.tasks.super_resolution.predict import enlarge, predict_files

COLOUR = DataInfo(0, [], 3, (48, 48), [0.4, 0.5, 0.6], [0.5, 1.0, 1.0], scale=2)
GREY = DataInfo(0, [], 1, (48, 48), [0.5], [1.0], scale=2)


def bicubic(x: Tensor) -> Tensor:
    return resize(x, 2)


@pytest.mark.parametrize("info", [COLOUR, GREY], ids=["colour network", "grey network"])
@pytest.mark.parametrize("chans", [1, 3])
@pytest.mark.parametrize("top", [255, 65535])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_every_kind_of_picture(info: DataInfo, chans: int, top: int, has_alpha: bool) -> None:
    pixels = torch.randint(0, top + 1, (chans, 40, 27), dtype=torch.int32)
    alpha = torch.randint(0, top + 1, (1, 40, 27), dtype=torch.int32) if has_alpha else None
    made = enlarge(bicubic, Upscale(2, tile=24, overlap=8), PictureFile(pixels, alpha, top), info, "cpu")
    for before, after in ((pixels, made.pixels), (alpha, made.alpha)):
        if before is None:
            assert after is None
            continue
        expected = resize(before.double(), 2).round().clamp(0, top)
        assert (after - expected).abs().max() <= math.ceil(top * 2e-6)


def test_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(rng.integers(0, 256, (30, 20, 4), dtype=np.uint8)).save(source / "seen.png")
    Image.fromarray(rng.integers(0, 256, (30, 20), dtype=np.uint8)).save(source / "grey.png")
    deep = torch.from_numpy(rng.integers(0, 65536, (3, 9, 8), dtype=np.int32))
    write_picture(source / "deep.png", PictureFile(deep, None, 65535))
    (source / "no.png").write_text("no picture")
    files = sorted(source.iterdir())
    report = predict_files(bicubic, Upscale(2, tile=16, overlap=8), files, COLOUR, folder=tmp_path / "out")
    assert report.made == 3
    assert [file.name for file, _ in report.failed] == ["no.png"]
    found = {Path(one["file"]).name: one for one in report.content["predictions"]}
    assert found["deep.png"]["bits"] == 16
    assert found["seen.png"]["size"] == [30, 20]
    for name, shape in (("seen", (3, 60, 40)), ("grey", (1, 60, 40)), ("deep", (3, 18, 16))):
        made = read_picture(tmp_path / "out" / "upscaled" / f"{name}.png")
        assert tuple(made.pixels.shape) == shape
        assert (made.alpha is not None) == (name == "seen")
        assert made.top == (65535 if name == "deep" else 255)
