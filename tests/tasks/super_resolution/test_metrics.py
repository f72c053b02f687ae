"""PSNR and SSIM against scikit-image, against published protocol numbers on its photographs, and what must fail."""

import math

import numpy as np
import pytest
import skimage.data
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.datasets import load_sample_image
from torch import Tensor

from vantage.ops.resize import resize
from vantage.tasks.super_resolution.metrics import PSNR, SSIM, compared, luma, psnr, ssim, to_bytes


def tensor(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


# bicubic x4, both pictures rounded once, luma, border 4: measured with the reference kernel outside of this project
PHOTOGRAPHS = {
    "astronaut": (lambda: skimage.data.astronaut(), 26.844, 0.8429),
    "chelsea": (lambda: skimage.data.chelsea(), 31.476, 0.8064),
    "coffee": (lambda: skimage.data.coffee(), 27.292, 0.7649),
    "china": (lambda: load_sample_image("china.jpg"), 22.425, 0.6371),
    "flower": (lambda: load_sample_image("flower.jpg"), 30.717, 0.9182),
    "motorcycle": (lambda: skimage.data.stereo_motorcycle()[0], 25.359, 0.7507),
}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_the_protocol_on_photographs(name: str) -> None:
    load, decibels, similarity = PHOTOGRAPHS[name]
    picture = tensor(load())
    height, width = (side // 4 * 4 for side in picture.shape[-2:])
    picture = picture[:, :height, :width]
    made = resize(resize(picture, 1 / 4, rounding="once"), 4, rounding="once")
    peak, structure = PSNR(border=4), SSIM(border=4)
    assert float(peak(made, picture)) == pytest.approx(decibels, abs=6e-4)
    assert float(structure(made, picture)) == pytest.approx(similarity, abs=6e-5)


def pair(channels: int = 3) -> tuple[Tensor, Tensor]:
    truth = torch.randint(0, 256, (channels, 37, 52), dtype=torch.uint8)
    noise = torch.randint(-30, 31, truth.shape)
    return (truth.int() + noise).clamp(0, 255).to(torch.uint8), truth


@pytest.mark.parametrize("channel", ["y", "rgb"])
@pytest.mark.parametrize("border", [0, 3])
def test_equal_to_scikit_image(channel: str, border: int) -> None:
    prediction, truth = pair()
    a, b = (one.numpy() for one in compared(prediction, truth, border, channel))
    assert a.shape == (3 if channel == "rgb" else 1, 37 - 2 * border, 52 - 2 * border)
    expected = peak_signal_noise_ratio(b, a, data_range=255)
    assert float(psnr(torch.from_numpy(a), torch.from_numpy(b))) == pytest.approx(expected, abs=1e-12)
    expected = structural_similarity(
        a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=0
    )
    assert float(ssim(torch.from_numpy(a), torch.from_numpy(b))) == pytest.approx(expected, abs=1e-12)


def test_luma_of_known_colours() -> None:
    colours = torch.tensor([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]).T[..., None]
    assert luma(colours).flatten().tolist() == pytest.approx([235, 16, 81.481, 144.553, 40.966], abs=1e-9)
    grey = torch.arange(6).view(1, 2, 3)
    torch.testing.assert_close(luma(grey), luma(grey.expand(3, -1, -1)))


def test_the_border_is_left_out() -> None:
    prediction, truth = pair()
    inner = prediction[:, 4:-4, 4:-4].clone()
    prediction.zero_()[:, 4:-4, 4:-4] = inner
    assert torch.equal(psnr(*compared(prediction, truth, 4, "y")), psnr(*compared(inner, truth[:, 4:-4, 4:-4], 0, "y")))
    assert psnr(*compared(prediction, truth, 3, "y")) < psnr(*compared(prediction, truth, 4, "y"))


def test_pictures_count_alike_whatever_their_size() -> None:
    metric = PSNR(border=0)
    values = []
    for side in (16, 64):
        truth = torch.full((3, side, side), 100, dtype=torch.uint8)
        values.append(float(metric(truth + side // 8, truth)))
    assert float(metric.compute()) == pytest.approx(sum(values) / 2)


def test_equal_pictures_and_none() -> None:
    truth = pair()[1]
    assert float(PSNR(border=0)(truth, truth)) == math.inf
    assert float(SSIM(border=0)(truth, truth)) == pytest.approx(1)
    assert math.isnan(PSNR(border=0).compute())


def test_bytes_are_clamped_and_rounded() -> None:
    values = torch.tensor([-0.1, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.2])
    assert to_bytes(values).tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize(
    ("prediction", "truth", "border", "told"),
    [
        ((3, 30, 30), (3, 30, 31), 0, r"\(3, 30, 30\) and the target \(3, 30, 31\); they must be equal"),
        ((3, 18, 30), (3, 18, 30), 4, "a picture of 30x18 has no 11x11 window inside a border of 4"),
    ],
)
def test_what_cannot_be_compared(prediction: tuple, truth: tuple, border: int, told: str) -> None:
    zeros = [torch.zeros(shape, dtype=torch.uint8) for shape in (prediction, truth)]
    with pytest.raises(ValueError, match=told):
        PSNR(border=border).update(*zeros)


def test_floats_are_refused() -> None:
    with pytest.raises(ValueError, match=r"both must be bytes"):
        SSIM(border=0).update(torch.rand(3, 20, 20), torch.rand(3, 20, 20))
    with pytest.raises(ValueError, match="channel='luma'; use y or rgb"):
        PSNR(border=0, channel="luma")
