"""Labels move with the pixels: what a mask says is painted into the picture and read again after every step."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from torchvision.transforms.v2 import functional as F

from vantage.data.errors import DataError
from vantage.data.segmentation_augment import SegmentationAugment, recolour

FILL = (7, 8, 9)
HEIGHT, WIDTH = 90, 120
EXACT = {"flip": 0.5, "vertical_flip": 0.5, "quarter_turn": True, "roll": True}
ALL = EXACT | {"scale": (0.5, 2.0), "rotate": 0.5, "photometric": 0.5, "color_jitter": 0.2, "most_of_one_class": 0.75}


def ramps(height=HEIGHT, width=WIDTH, label="x"):
    """Red is the column, green the row, blue neither; the mask is one of them, so it tells where a pixel came from."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([x, y, torch.full_like(x, 100)]).to(torch.uint8)
    return image, image[{"x": 0, "y": 1}[label]].clone()


def apply(options, image, mask, size=(HEIGHT, WIDTH), seed=0, fill=FILL):
    torch.manual_seed(seed)
    return SegmentationAugment(**options)(image, mask, size, fill)


def found(options, size=(HEIGHT, WIDTH), seeds=20, **picture):
    return [apply(options, *ramps(**picture), size, seed) for seed in range(seeds)]


# exact steps


def test_without_any_step_a_picture_of_the_size_is_itself():
    image, mask = ramps()
    out = apply({}, image, mask)
    assert torch.equal(out[0], image)
    assert torch.equal(out[1], mask)


@pytest.mark.parametrize(("option", "axis"), [("flip", 1), ("vertical_flip", 0)])
def test_flips(option, axis):
    image, mask = ramps()
    out_image, out_mask = apply({option: 1.0}, image, mask)
    assert np.array_equal(out_image.numpy(), np.flip(image.numpy(), 1 + axis))
    assert np.array_equal(out_mask.numpy(), np.flip(mask.numpy(), axis))
    changed = sum(
        not torch.equal(out[0], ramps(4, 4)[0]) for out in found({option: 0.3}, (4, 4), 200, height=4, width=4)
    )
    assert changed == pytest.approx(60, abs=25)


def test_quarter_turns_are_equally_often():
    _, mask = ramps(64, 64)
    turned = [np.rot90(mask.numpy(), k).tobytes() for k in range(4)]
    counts = [0] * 4
    for out_image, out_mask in found({"quarter_turn": True}, (64, 64), 200, height=64, width=64):
        assert torch.equal(out_image[0], out_mask)
        counts[turned.index(out_mask.numpy().tobytes())] += 1
    assert min(counts) > 30


def test_a_crop_that_is_no_square_is_turned_by_half_turns_alone():
    for label in "xy":
        _, mask = ramps(label=label)
        kinds = {out_mask.numpy().tobytes() for _, out_mask in found({"quarter_turn": True}, label=label)}
        assert kinds == {np.rot90(mask.numpy(), k).tobytes() for k in (0, 2)}


def test_a_roll_joins_left_and_right():
    shifts = set()
    for out_image, out_mask in found({"roll": True}, seeds=40):
        shift = int(out_mask[0, 0])
        assert np.array_equal(out_mask[3].numpy(), (np.arange(WIDTH) + shift) % WIDTH)
        assert torch.equal(out_image[0], out_mask)
        assert torch.equal(out_image[1], ramps()[0][1])
        shifts.add(shift)
    assert len(shifts) > 25
    assert max(shifts) > 0.8 * WIDTH


@pytest.mark.parametrize("size", [(30, 50), (90, 50), (1, 1), (31, 120)])
def test_crops_come_from_everywhere(size):
    corners = []
    for label in "xy":
        for out_image, out_mask in found({}, size, 150, label=label):
            left, top = int(out_image[0, 0, 0]), int(out_image[1, 0, 0])
            expected = torch.stack(torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij"))
            assert torch.equal(out_image[:2].int(), (expected + torch.tensor([top, left])[:, None, None]).flip(0).int())
            assert torch.equal(out_mask, out_image["xy".index(label)])
            corners.append((top, left))
    for at, side in enumerate((HEIGHT - size[0], WIDTH - size[1])):
        places = [corner[at] for corner in corners]
        assert min(places) <= 0.05 * side
        assert max(places) >= 0.95 * side
        assert np.mean(places) == pytest.approx(side / 2, abs=0.1 * side + 1e-9)


@pytest.mark.parametrize("size", [(120, 150), (120, 60), (40, 150), (91, 120)])
def test_small_pictures_are_padded_and_the_padding_is_ignored(size):
    places = set()
    for out_image, out_mask in found({}, size, 30):
        padding = out_mask == 255
        assert int((~padding).sum()) == min(size[0], HEIGHT) * min(size[1], WIDTH)
        assert (out_image[:, padding] == torch.tensor(FILL)[:, None]).all()
        assert torch.equal(out_image[0][~padding], out_mask[~padding])
        rows, columns = (~padding).nonzero().unbind(1)
        assert (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1) == (~padding).sum()  # one piece
        places.add((int(rows.min()), int(columns.min())))
    assert len(places) > 1


# steps that resample: where a pixel came from can be read from the mask (nearest) and the picture (bilinear)


@pytest.mark.parametrize("label", ["x", "y"])
@pytest.mark.parametrize("scale", [(0.5, 0.5), (0.75, 0.75), (1.3, 1.3), (2.0, 2.0)])
def test_scaled_labels_stay_where_the_pixels_are(scale, label):
    factor = scale[0]
    for out_image, out_mask in found({"scale": scale}, (40, 56), 10, label=label):
        inside = (out_mask != 255) & (out_image[2] == 100)
        assert inside.float().mean() > 0.7
        apart = out_image["xy".index(label)][inside].float() - out_mask[inside].float()
        assert apart.abs().max() <= 0.5 + 0.5 / factor + 1e-3  # rounding, and half of a source pixel
        assert apart.mean().abs() < 0.25  # no shift; half a pixel of the result would be 0.25 to 1


def slopes(image):
    """Of red along a row and green down a column: source pixels per pixel."""
    red, green = image[0].float(), image[1].float()
    return (
        float(red[:, -1].median() - red[:, 0].median()) / (image.shape[2] - 1),
        float(green[-1].median() - green[0].median()) / (image.shape[1] - 1),
    )


def test_factors_are_uniform_between_the_two_and_keep_the_aspect():
    factors = []
    for out_image, out_mask in found({"scale": (0.8, 1.6)}, (40, 56), 200):
        assert not (out_mask == 255).any()
        across, down = slopes(out_image)
        assert across == pytest.approx(down, rel=0.06)
        factors.append(1 / across)
    assert 0.77 < min(factors) < 0.85
    assert 1.5 < max(factors) < 1.67
    assert np.mean(factors) == pytest.approx(1.2, abs=0.06)


def test_pictures_made_smaller_than_the_crop_are_padded():
    for out_image, out_mask in found({"scale": (0.5, 0.5)}, seeds=5):
        padding = out_mask == 255
        assert float((~padding).float().mean()) == pytest.approx(0.25, abs=0.01)
        kept = out_image[:, padding].float() - torch.tensor(FILL)[:, None]
        assert (kept.abs().amax(0) > 0).float().mean() < 0.03  # but for the rim


def test_pictures_made_smaller_are_averaged():
    """Without smoothing, a third of the size takes every third pixel of noise as it is."""
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 300, 300), dtype=np.uint8))
    out_image, _ = apply({"scale": (1 / 3, 1 / 3)}, noise, noise[0] % 3, (100, 100))
    assert out_image.float().std() < 0.4 * noise.float().std()


@pytest.mark.parametrize("label", ["x", "y"])
def test_rotated_labels_stay_where_the_pixels_are(label):
    angles = []
    for out_image, out_mask in found({"rotate": 1.0, "rotate_deg": 30.0}, seeds=30, label=label):
        inside = (out_mask != 255) & (out_image[2] == 100)
        assert inside.float().mean() > 0.6
        apart = out_image["xy".index(label)][inside].float() - out_mask[inside].float()
        assert apart.abs().max() <= 1 + 1e-3  # half a source pixel and rounding
        assert apart.mean().abs() < 0.1
        red = out_image[0, 40:50, 55:65].float()
        angles.append(
            math.degrees(math.atan2(float((red[-1] - red[0]).mean()), float((red[:, -1] - red[:, 0]).mean())))
        )
    assert -33 < min(angles) < -18
    assert 18 < max(angles) < 33


@pytest.mark.parametrize("channels", [1, 3])
def test_the_corners_of_a_rotation_are_ignored_and_of_the_mean_colour(channels):
    image, mask = torch.full((channels, 60, 80), 200, dtype=torch.uint8), torch.zeros(60, 80, dtype=torch.uint8)
    for seed in range(10):
        out_image, out_mask = apply({"rotate": 1.0, "rotate_deg": 45.0}, image, mask, (60, 80), seed, FILL[:channels])
        assert set(out_mask.unique().tolist()) == {0, 255}
        corner = out_mask == 255
        filled = (out_image == torch.tensor(FILL[:channels])[:, None, None]).all(0)
        kept = (out_image == 200).all(0)
        assert (filled & ~corner).sum() == 0
        assert (kept & corner).sum() == 0
        assert (~filled & ~kept).float().mean() < 0.08  # the rim
    still = apply({"rotate": 1.0, "rotate_deg": 0.0}, *ramps())
    assert torch.equal(still[0], ramps()[0])


# which crop is taken


def shares(options, mask, size, seeds=150):
    """Of the most frequent class among the labelled pixels of crops; 1 if none is labelled."""
    image = mask.expand(3, -1, -1)
    largest = []
    for seed in range(seeds):
        _, labels = apply(options, image, mask, size, seed)
        counts = np.bincount(labels.numpy().ravel(), minlength=256)[:255]
        largest.append(counts.max() / counts.sum() if counts.sum() else 1.0)
    return np.array(largest)


def test_crops_of_mostly_one_class_are_drawn_again():
    mask = torch.zeros(100, 100, dtype=torch.uint8)
    mask[30:70, 30:70] = 1
    free = (shares({}, mask, (30, 30)) > 0.75).mean()
    assert 0.5 < free < 0.8
    assert (shares({"most_of_one_class": 0.75}, mask, (30, 30)) > 0.75).mean() < max(0.05, 3 * free**10)
    assert (shares({"most_of_one_class": 0.75, "scale": (1.0, 1.2)}, mask, (30, 30)) > 0.78).mean() < 0.1


def test_ignored_pixels_do_not_count():
    """Two classes in turn every tenth column, all else ignored: nothing to draw again, though 9 of 10 are of a kind."""
    mask = torch.full((60, 100), 255, dtype=torch.uint8)
    mask[:, ::20], mask[:, 10::20] = 3, 4
    image, _ = ramps(60, 100)
    for seed in range(20):
        free, chosen = (apply(o, image, mask, (30, 30), seed) for o in ({}, {"most_of_one_class": 0.75}))
        assert torch.equal(free[0], chosen[0])
    mask[:, :70] = 255  # a crop in which nothing is labelled is no better than one of a class
    free, chosen = (shares(o, mask, (30, 30), 60) for o in ({}, {"most_of_one_class": 0.75}))
    assert (free == 1).mean() > 0.6
    assert (chosen == 1).mean() < 0.25


def test_a_picture_of_one_class_is_taken_all_the_same():
    mask = torch.full((50, 50), 2, dtype=torch.uint8)
    out_image, out_mask = apply({"most_of_one_class": 0.5}, mask.expand(3, -1, -1), mask, (20, 20))
    assert (out_mask == 2).all()
    assert (out_image == 2).all()


# colour


def photograph():
    """Without the lightest and darkest, so that no step has to cut."""
    image = torch.from_numpy(load_sample_image("flower.jpg")[100:240:2, 200:420:2].copy()).permute(2, 0, 1)
    return (60 + image.float() * 0.45).round().to(torch.uint8)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.2])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_change_as_in_torchvision(name, factor):
    image = photograph()
    wanted = getattr(F, f"adjust_{name}")(image.float() / 255, factor) * 255
    assert (recolour(image, **{name: factor}).float() - wanted).abs().max() < 0.51


def test_together_they_are_one_after_the_other():
    image = photograph()
    wanted = image.float() / 255
    for name in ("brightness", "contrast", "saturation"):
        wanted = getattr(F, f"adjust_{name}")(wanted, 1.1)
    got = recolour(image, brightness=1.1, contrast=1.1, saturation=1.1)
    assert (got.float() - wanted.clamp(0, 1) * 255).abs().max() < 0.51


@pytest.mark.parametrize("hue", [1 / 3, -1 / 3])
def test_a_third_of_a_turn_exchanges_the_channels_as_in_torchvision(hue):
    image = photograph()
    assert (recolour(image, hue=hue).int() - F.adjust_hue(image, hue).int()).abs().max() <= 1


@pytest.mark.parametrize("hue", [0.05, -0.05])
def test_small_turns_change_colours_as_torchvisions_do_and_keep_the_brightness(hue):
    image = photograph()
    ours, theirs = (out.float() - image for out in (recolour(image, hue=hue), F.adjust_hue(image, hue)))
    assert ours.mean(0).abs().max() < 0.51
    theirs = theirs - theirs.mean(0)  # it keeps the brightest channel instead
    assert theirs.abs().mean() > 2
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.94
    assert float(ours.std() / theirs.std()) == pytest.approx(1, abs=0.15)


def test_grey_stays_grey_and_bright_stays_in_range():
    grey = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    for options in ({"hue": 0.05}, {"saturation": 1.5}, {"hue": -0.5, "saturation": 0.3}):
        assert torch.equal(recolour(grey.repeat(3, 1, 1), **options), grey.repeat(3, 1, 1))
    bright = recolour(grey.repeat(3, 1, 1), brightness=1.5, contrast=1.5)
    assert bright.min() == 0
    assert bright.max() == 255
    assert (bright[0].flatten().int().diff() >= 0).all()  # nothing wraps around
    one = recolour(grey, brightness=0.9, contrast=1.2, saturation=0.2, hue=0.05)
    assert torch.equal(one.expand(3, -1, -1), recolour(grey.repeat(3, 1, 1), brightness=0.9, contrast=1.2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", [{"photometric": 1.0}, {"color_jitter": 0.4}], ids=str)
def test_colour_is_of_the_picture_alone(options, channels):
    image, mask = photograph()[:channels], torch.randint(0, 5, photograph().shape[1:], dtype=torch.uint8)
    seen = set()
    for seed in range(10):
        out_image, out_mask = apply(options, image, mask, tuple(mask.shape), seed, FILL[:channels])
        assert torch.equal(out_mask, mask)
        assert out_image.shape == image.shape
        seen.add(out_image.numpy().tobytes())
    assert len(seen) == 10
    before = image.clone()
    apply(options, image, mask, tuple(mask.shape), 0, FILL[:channels])
    assert torch.equal(image, before)  # which lies in the store


def test_each_change_of_colour_has_the_probability():
    image, mask = photograph(), torch.zeros(photograph().shape[1:], dtype=torch.uint8)
    same = sum(
        torch.equal(apply({"photometric": 0.3}, image, mask, tuple(mask.shape), i)[0], image) for i in range(200)
    )
    assert same == pytest.approx(200 * 0.7**4, abs=25)


# all together


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (7, 200), (90, 120), (64, 64)])
@pytest.mark.parametrize("size", [(33, 70), (64, 64), (1, 5)])
def test_any_picture_comes_out_in_the_size(shape, size, channels):
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (channels, *shape), dtype=np.uint8))
    mask = torch.from_numpy(rng.integers(0, 4, shape, dtype=np.uint8))
    before = image.clone(), mask.clone()
    for seed in range(6):
        out_image, out_mask = apply(ALL, image, mask, size, seed, FILL[:channels])
        assert (out_image.shape, out_image.dtype) == ((channels, *size), torch.uint8)
        assert (out_mask.shape, out_mask.dtype) == (size, torch.uint8)
        assert set(out_mask.unique().tolist()) <= {0, 1, 2, 3, 255}
        assert out_image.is_contiguous()
        assert out_mask.is_contiguous()
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


def test_the_seed_alone_decides():
    first, again, other = (apply(ALL, *ramps(), (50, 70), seed) for seed in (4, 4, 5))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_exact_steps_together_move_labels_with_pixels():
    for label in "xy":
        for out_image, out_mask in found(EXACT, (60, 60), 15, label=label):
            assert torch.equal(out_image["xy".index(label)], out_mask)


def test_what_costs_little_is_known():
    assert SegmentationAugment(**EXACT, most_of_one_class=0.75).is_light
    for name in ("scale", "rotate", "photometric", "color_jitter"):
        assert not SegmentationAugment(**{name: ALL[name]}).is_light
    assert vars(SegmentationAugment(**ALL)) == vars(SegmentationAugment(**ALL))  # configs are compared by it


def test_options_out_of_range_are_refused():
    for name, value, sentence in (
        ("flip", 1.5, r"augment.flip=1.5 is outside 0..1"),
        ("vertical_flip", -0.1, r"augment.vertical_flip=-0.1 is outside 0..1"),
        ("rotate", "often", r"augment.rotate=often is outside 0..1"),
        ("photometric", math.nan, r"augment.photometric=nan is outside 0..1"),
        ("color_jitter", 2, r"augment.color_jitter=2 is outside 0..1"),
        ("rotate_deg", 270.0, r"augment.rotate_deg=270.0 is outside 0..180"),
        ("most_of_one_class", 0.0, r"augment.most_of_one_class=0.0 is outside 0..1"),
        ("scale", (2.0, 0.5), r"augment.scale=\(2.0, 0.5\) is not a pair 0 < low <= high"),
        ("scale", (0.0, 1.0), r"augment.scale=\(0.0, 1.0\) is not a pair 0 < low <= high"),
        ("scale", [1.0], r"augment.scale=\[1.0\] is not a pair 0 < low <= high"),
        ("scale", 1.5, r"augment.scale=1.5 is not a pair 0 < low <= high"),
    ):
        with pytest.raises(DataError, match=sentence):
            SegmentationAugment(**{name: value})
