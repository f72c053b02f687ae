import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from vantage.data.augment import Augment, affine
from vantage.data.errors import DataError


def pictures(count=64, channels=3, height=12, width=16):
    generator = torch.manual_seed(3)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def test_none_is_the_identity():
    images, augment = pictures(), Augment()
    assert torch.equal(augment.change(images), images)
    assert torch.equal(augment.erase_boxes(images.float()), images.float())
    assert augment.is_light


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
def test_pad_crop_gives_every_window_of_the_padded_picture_and_nothing_else(mode):
    image = pictures(1)
    batch = image.expand(3000, -1, -1, -1)
    torch.manual_seed(0)
    cropped = Augment(crop="pad", padding=2, padding_mode=mode, flip=0.5).change(batch)
    padded = F.pad(image.float(), (2, 2, 2, 2), mode=mode).to(torch.uint8)[0]
    seen = {}
    for flipped in (False, True):
        for y in range(5):
            for x in range(5):
                window = TF.crop(padded, y, x, 12, 16)
                window = window.flip(-1) if flipped else window
                seen[flipped, y, x] = int((cropped == window).flatten(1).all(1).sum())
    assert sum(seen.values()) == 3000
    assert min(seen.values()) > 25  # 60 expected of each; 25 is 4.5 standard deviations below
    assert torch.equal(batch, image.expand(3000, -1, -1, -1))


@pytest.mark.parametrize(("option", "axis"), [("flip", -1), ("vertical_flip", -2)])
def test_flips(option, axis):
    images = pictures(2000)
    torch.manual_seed(0)
    changed = Augment(**{option: 0.25}).change(images)
    same = (changed == images).flatten(1).all(1)
    mirrored = (changed == images.flip(axis)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 0.21 < mirrored.float().mean() < 0.29
    assert torch.equal(Augment(**{option: 1.0}).change(images), images.flip(axis))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20)])
def test_affine_agrees_with_torchvision(height, width):
    images = pictures(6, 1, height, width)
    angles = torch.tensor([0.0, 10.0, -25.0, 0.0, 7.0, -3.0])
    zooms = torch.tensor([1.0, 1.0, 1.2, 0.8, 1.1, 0.9])
    dx, dy = torch.tensor([2.0, 0.0, 1.0, -3.0, 0.0, 1.0]), torch.tensor([-1.0, 0.0, 2.0, 0.0, 1.0, 0.0])
    for i in range(6):
        # torchvision maps input to output: rotate by the angle, scale, then translate
        theirs = TF.affine(
            images[i].float(), float(angles[i]), [float(dx[i]), float(dy[i])], float(zooms[i]), [0.0],
            interpolation=v2.InterpolationMode.BILINEAR,
        )  # fmt: skip
        # ours maps output to input: p -> A p + shift with A = R(-angle) / zoom, shift = -A t
        angle, scale = torch.deg2rad(-angles[i]), 1 / zooms[i]
        rotation = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]]) * scale
        shift = -rotation @ torch.stack([dx[i], dy[i]])
        ours = affine(images[i : i + 1], *(v.view(1) for v in (angle, torch.tensor(0.0), scale, shift[1], shift[0])))
        assert (ours[0].float() - theirs).abs().max() <= 0.51  # ours is rounded to uint8


def test_shear_agrees_with_torchvision():
    images = pictures(1, 3, 12, 20)
    tangent = torch.tensor([0.2])
    zero, one = torch.zeros(1), torch.ones(1)
    ours = affine(images, zero, tangent, one, zero, zero)[0].float()
    # x_in = x_out + tan y_out in ours; torchvision's shear x by s degrees is x_in = x_out + tan(s) y_out
    degrees = math.degrees(math.atan(0.2))
    candidates = [
        TF.affine(
            images[0].float(), 0.0, [0, 0], 1.0, [sign * degrees, 0.0], interpolation=v2.InterpolationMode.BILINEAR
        )
        for sign in (1, -1)
    ]
    assert min((ours - theirs).abs().max() for theirs in candidates) <= 0.51


def test_affine_draws_within_its_limits():
    # the brightest pixel of a picture with one dot tells where the centre went
    images = torch.zeros(500, 1, 41, 41, dtype=torch.uint8)
    images[:, :, 19:22, 19:22] = 255
    torch.manual_seed(0)
    moved = Augment(translate=0.2).change(images).float()
    mass = moved.sum((1, 2, 3))
    y = (moved.sum((1, 3)) * torch.arange(41)).sum(1) / mass - 20
    x = (moved.sum((1, 2)) * torch.arange(41)).sum(1) / mass - 20
    for offset in (y, x):
        assert offset.abs().max() <= 8.3
        assert offset.min() < -7
        assert offset.max() > 7


def test_erasing_boxes():
    torch.manual_seed(0)
    images = torch.ones(4000, 2, 32, 48)
    erased = Augment(erase=0.4, erase_scale=(0.05, 0.2), erase_ratio=(0.5, 2.0)).erase_boxes(images)
    holes = erased == 0
    assert torch.equal(holes[:, 0], holes[:, 1])
    holes = holes[:, 0]
    hit = holes.flatten(1).any(1)
    assert 0.36 < hit.float().mean() < 0.44
    height, width = holes[hit].any(2).sum(1), holes[hit].any(1).sum(1)
    assert torch.equal(height * width, holes[hit].sum((1, 2)))  # each hole is one full box
    area = height * width / (32 * 48)
    assert area.min() > 0.03
    assert area.max() < 0.23
    assert abs(area.mean() - 0.125) < 0.005
    assert (height / width).max() < 2.4
    assert (height / width).min() > 0.4
    where = holes[hit].float().mean(0)
    assert where.min() > 0  # also the corners are reached


def test_erasing_with_noise_changes_only_boxes():
    torch.manual_seed(0)
    images = torch.full((300, 3, 16, 16), 7.0)
    noisy = Augment(erase=1.0, erase_value="noise").erase_boxes(images)
    noise = noisy[noisy != 7.0]
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert 0.1 < (noisy != 7.0).float().mean() < 0.25


def test_resized_crop_is_torchvisions():
    images = [pictures(1, 3, 40, 50)[0], pictures(1, 3, 33, 21)[0]]
    torch.manual_seed(5)
    ours = Augment(crop="resized", crop_scale=(0.3, 0.9)).crop_resized(images, (16, 24), "bilinear")
    torch.manual_seed(5)
    theirs = v2.RandomResizedCrop((16, 24), scale=(0.3, 0.9), ratio=(0.75, 1.3333), antialias=True)
    assert torch.equal(ours, torch.stack([theirs(image) for image in images]))


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_and_jitter_differ_between_samples(channels):
    image = pictures(1, channels, 16, 16).expand(16, -1, -1, -1)
    torch.manual_seed(0)
    for augment in (Augment(rand_augment_ops=2), Augment(color_jitter=0.4)):
        assert not augment.is_light
        changed = augment.change(image)
        assert changed.dtype == torch.uint8
        assert changed.shape == image.shape
        assert len(changed.flatten(1).unique(dim=0)) > 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "random"}, "augment.crop='random' is not one of none, pad, resized"),
        ({"flip": 1.5}, "augment.flip=1.5 is outside 0..1"),
        ({"erase_scale": (0.5, 0.2)}, "augment.erase_scale"),
        ({"crop_ratio": (0.0, 2.0)}, "augment.crop_ratio"),
        ({"rand_augment_magnitude": 31}, "augment.rand_augment_magnitude=31"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(DataError) as caught:
        Augment(**options)
    assert message in str(caught.value)
