"""What is promised of the scenes, measured on the pictures and masks and not on what the generator says."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from vantage.data.digits_scene import CLASS_NAMES, LABELS, DigitsScene
from vantage.data.errors import DataError
from vantage.data.rotated_augment import RotatedAugment
from vantage.ops.rotated_boxes import canonical, points_in_rotated_boxes, to_corners

LUMA = torch.tensor([0.299, 0.587, 0.114])
COUNTS = {"train": 200, "val": 20, "test": 100}


@pytest.fixture(scope="module")
def scenes():
    data = DigitsScene(**COUNTS)
    return {split: data.scenes(split) for split in COUNTS}


@pytest.fixture(scope="module")
def train(scenes):
    return scenes["train"]


def joined(scenes, name):
    return torch.cat([getattr(scene, name) for scene in scenes])


def test_numbers_of_digits_and_empty_scenes(scenes):
    for split, found in scenes.items():
        counts = [len(scene.labels) for scene in found]
        assert counts.count(0) == len(found) // 20
        assert {count for count in counts if count} == set(range(3, 9)), split


def test_sizes(train):
    sides = joined(train, "boxes")[:, 2]
    assert sides.min() >= 20 - 1e-3
    assert sides.max() <= 44 + 1e-3
    # log-uniform: half of them below the geometric mean
    assert (sides < math.sqrt(20 * 44)).float().mean() == pytest.approx(0.5, abs=0.06)
    shapes = [tuple(scene.image.shape[-2:]) for scene in train]
    larger = [shape for shape in shapes if shape != (160, 160)]
    assert len(larger) == len(train) // 20
    assert all(max(shape) > 160 for shape in larger)


def test_angles_are_uniform(train):
    angles = joined(train, "boxes")[:, 4]
    counts = torch.histc(angles, 6, -math.pi / 2, math.pi / 2)
    assert counts.min() > 0.6 * len(angles) / 6


def test_boxes_are_canonical_and_float32(train):
    boxes = joined(train, "boxes")
    assert boxes.dtype == torch.float32
    assert torch.equal(boxes, canonical(boxes))


def in_box_axes(scene, i, points):
    """Points (P, 2) in the axes of a box, (P, 2), in pixels from its centre."""
    cx, cy, _, _, angle = scene.boxes[i].tolist()
    x, y = points[:, 0] - cx, points[:, 1] - cy
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.stack([x * cos + y * sin, y * cos - x * sin], 1)


def whole_digits(scenes):
    """(scene, index, ink pixels) of digits that are wholly visible, by the mask."""
    for scene in scenes:
        ink = (scene.mask > 0).nonzero().flip(-1) + 0.5  # x, y
        values = scene.mask[scene.mask > 0]
        reach = scene.boxes + torch.tensor([0, 0, 3.0, 3.0, 0])
        inside = points_in_rotated_boxes(ink, reach) if len(ink) else torch.zeros(0, len(scene.boxes), dtype=torch.bool)
        for i, label in enumerate(scene.labels.tolist()):
            alone = inside[:, i] & (inside.sum(1) == 1)
            if float(scene.visible[i]) == 1 and bool((inside[:, i] == alone).all()):
                yield scene, i, ink[alone & (values == label + 1)]


def test_boxes_are_tight_along_the_digits_own_axes(train):
    """Every side of the box touches ink, to less than a pixel, and no ink lies outside."""
    gaps = []
    for scene, i, ink in whole_digits(train):
        own = in_box_axes(scene, i, ink)
        half = scene.boxes[i, 2:4] / 2
        gaps.append(torch.cat([half + own.min(0).values, half - own.max(0).values]))
    gaps = torch.stack(gaps)
    assert len(gaps) > 300
    assert gaps.min() > -0.05  # the centres of pixels of ink
    assert gaps.max() < 1.3
    # a pixel's centre lies 0 to 0.7 px inside of the edge of the ink that it shows
    assert 0.1 < gaps.mean() < 0.6


def test_masks_and_labels_agree(train):
    for scene, i, ink in whole_digits(train):
        values = scene.mask[ink[:, 1].long(), ink[:, 0].long()]
        assert set(values.tolist()) == {int(scene.labels[i]) + 1}
    values = joined([scene for scene in train if len(scene.labels) == 0], "mask").unique().tolist()
    assert values == [0]
    assert set(torch.cat([scene.mask.flatten() for scene in train]).unique().tolist()) == {*range(10), 255}


def test_ink_contrast(train):
    """Of the mean luma of the ink against the paper around it, where nothing covers either."""
    contrasts = []
    for scene, i, ink in whole_digits(train):
        luma = (scene.image.permute(1, 2, 0).float() / 255) @ LUMA
        height, width = luma.shape
        grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1).float() + 0.5
        around = points_in_rotated_boxes(grid.view(-1, 2), scene.boxes[i : i + 1])[:, 0].view(height, width)
        paper = luma[around & (scene.mask == 0)]
        if len(paper) > 40 and len(ink) > 20:
            contrasts.append(float((luma[ink[:, 1].long(), ink[:, 0].long()].mean() - paper.mean()).abs()))
    contrasts = np.array(contrasts)
    assert np.quantile(contrasts, 0.02) > 0.15  # soft edges of the ink are in the paper's mean
    assert joined(train, "contrast")[joined(train, "visible") > 0.05].min() >= 0.2
    signs = [float(scene.contrast.mean()) for scene in train if len(scene.labels)]
    assert max(signs) > 0.4


def test_clutter(scenes):
    for found in scenes.values():
        occluded = [bool((scene.mask == 255).any()) for scene in found]
        assert sum(occluded) >= 0.6 * len(found)
        assert all(scene.strokes >= 2 for scene in found)


def test_the_difficult_are_the_hidden_and_the_thin(scenes):
    for found in scenes.values():
        difficult, visible, boxes = (joined(found, name) for name in ("difficult", "visible", "boxes"))
        assert torch.equal(difficult, (visible < 0.4) | (boxes[:, 2:4].amin(1) < 8))
        assert 0 < difficult.float().mean() <= 0.1
        assert ((visible < 1) & (visible >= 0.4)).float().mean() > 0.1  # occlusion to learn from


def test_most_of_a_digit_is_on_the_canvas_or_it_is_difficult(train):
    for scene in train:
        height, width = scene.mask.shape
        corners = to_corners(scene.boxes)
        outside = (corners < 0).any((1, 2)) | (corners > torch.tensor([width, height])).any((1, 2))
        centre_out = (scene.boxes[:, :2] < 0).any(1) | (scene.boxes[:, :2] > torch.tensor([width, height])).any(1)
        assert (outside | ~centre_out).all()
    assert any(bool((to_corners(scene.boxes) < 0).any()) for scene in train)


def test_classes():
    assert len(CLASS_NAMES) == DigitsScene.num_classes == 9
    assert [CLASS_NAMES[label] for label in LABELS] == ["0", "1", "2", "3", "4", "5", "6_9", "7", "8", "6_9"]
    digits = load_digits().target
    for split, found in {s: DigitsScene(train=60, val=60, test=60).scenes(s) for s in COUNTS}.items():
        scans, labels = joined(found, "scans"), joined(found, "labels")
        assert labels.tolist() == [LABELS[digits[scan]] for scan in scans.tolist()], split


def test_splits_draw_different_digits(scenes):
    scans = {split: set(joined(found, "scans").tolist()) for split, found in scenes.items()}
    assert not scans["train"] & scans["test"]
    assert not scans["train"] & scans["val"]
    assert not scans["val"] & scans["test"]
    assert len(scans["train"]) > 500


def test_scenes_depend_on_the_seed_alone(train):
    again = DigitsScene(train=30, seed=9).scenes("train")
    for a, b in zip(train, again):  # however many are drawn
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.mask, b.mask)
        assert torch.equal(a.boxes, b.boxes)
    other = DigitsScene(train=30, split_seed=1).scenes("train")
    assert not any(torch.equal(a.image, b.image) for a, b in zip(train, other) if a.image.shape == b.image.shape)
    unique = {scene.image.numpy().tobytes() for scene in train}
    assert len(unique) == len(train)


def test_scenes_vary_in_brightness(train):
    lumas = torch.tensor([float((scene.image.float().mean((1, 2)) / 255) @ LUMA) for scene in train])
    assert lumas.std() > 0.1


def test_the_data_module():
    data = DigitsScene(train=40, val=20, test=20, num_workers=0, augment=RotatedAugment())
    data.setup()
    assert data.info.class_names == list(CLASS_NAMES)
    assert data.info.image_size == (160, 160)
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == 8
    for sample in batch:
        assert sample["image"].shape == (3, 160, 160)
        assert sample["masks"].shape == (160, 160)
        assert sample["masks"].dtype == torch.uint8
    whole = [sample for batch in data.test_dataloader() for sample in batch]
    assert [sample["name"] for sample in whole] == [f"test_{i:05d}" for i in range(20)]
    assert sum(sample["size"] != (160, 160) for sample in whole) == 1
    pixels = torch.cat([sample["image"].flatten(1) for sample in whole], 1)
    assert pixels.mean().abs() < 0.2
    assert pixels.std() == pytest.approx(1, abs=0.2)


def test_only_the_asked_split_is_drawn():
    data = DigitsScene(train=40, val=20, test=20, num_workers=0)
    data.setup("test")
    assert list(data.datasets) == ["test"]


def test_grey_scenes():
    data = DigitsScene(train=20, val=20, test=20, in_chans=1, num_workers=0)
    data.setup("validate")
    assert data.datasets["val"][0]["image"].shape[0] == 1


def test_a_number_of_scenes_is_needed():
    with pytest.raises(DataError, match=r"data.test=0 is not a number of scenes >= 1"):
        DigitsScene(test=0)
