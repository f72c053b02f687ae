"""The scenes of digits with a class per pixel; tests/data/test_digits_scene.py is about the scenes themselves."""

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from vantage.data.digits_scene import CLASS_NAMES, DigitsScene
from vantage.data.digits_scene_masks import DigitsSceneMasks
from vantage.data.errors import DataError
from vantage.data.segmentation_augment import SegmentationAugment

COUNTS = {"train": 40, "val": 20, "test": 20}


@pytest.fixture(scope="module")
def data():
    data = DigitsSceneMasks(**COUNTS, num_workers=0, augment=SegmentationAugment())
    data.setup()
    return data


@pytest.fixture(scope="module")
def scenes():
    data = DigitsScene(**COUNTS)
    return {split: data.scenes(split) for split in COUNTS}


def test_pictures_and_masks_are_those_of_the_scenes(data, scenes):
    for split, drawn in scenes.items():
        dataset = data.datasets[split]
        assert len(dataset) == COUNTS[split]
        for i, scene in enumerate(drawn):
            sample = dataset.raw(i)
            assert torch.equal(sample["image"], scene.image)
            assert torch.equal(sample["mask"], scene.mask)
            assert sample["name"] == f"{split}_{i:05d}"


def test_a_pixel_is_background_ink_of_a_class_or_ignored(data, scenes):
    assert data.info.class_names == ["background", *CLASS_NAMES]
    assert data.info.num_classes == DigitsSceneMasks.num_classes == 10
    seen = set()
    for i, scene in enumerate(scenes["train"]):
        values = set(data.datasets["train"].raw(i)["mask"].unique().tolist())
        assert values - {0, 255} <= {1 + label for label in scene.labels.tolist()}
        seen |= values
    assert seen == {*range(10), 255}


def test_ink_is_where_the_classes_boxes_are(data, scenes):
    """Of digits that are seen whole: the centre of a class's ink lies in a box of that class."""
    checked = 0
    for i, scene in enumerate(scenes["test"]):
        mask = data.datasets["test"].raw(i)["mask"]
        for box, label, visible in zip(scene.boxes, scene.labels.tolist(), scene.visible.tolist()):
            if visible < 1 or scene.labels.tolist().count(label) > 1:
                continue
            ink = (mask == 1 + label).nonzero().flip(-1) + 0.5  # x, y
            reach = float(box[2:4].norm()) / 2
            assert ((ink - box[:2]).norm(dim=1) < reach + 1).all()
            assert len(ink) > 0.1 * float(box[2] * box[3])
            checked += 1
    assert checked > 30


def test_splits_share_no_picture_and_no_scan(data, scenes):
    scans = {split: set(torch.cat([scene.scans for scene in drawn]).tolist()) for split, drawn in scenes.items()}
    pictures = {
        split: {data.datasets[split].raw(i)["image"].numpy().tobytes() for i in range(count)}
        for split, count in COUNTS.items()
    }
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not scans[first] & scans[second]
        assert not pictures[first] & pictures[second]


def test_the_larger_scenes_are_evaluated_whole_and_trained_on_in_windows(data):
    samples = [sample for batch in data.test_dataloader() for sample in batch]
    assert len(samples) == 20
    larger = [sample for sample in samples if sample["size"] != (160, 160)]
    assert len(larger) == 1  # one in 20
    for sample in samples:
        assert sample["image"].shape == (3, *sample["size"])
        assert sample["mask"].shape == sample["size"]
        assert min(sample["size"]) >= 160
    training = [sample for batch in data.train_dataloader() for sample in batch]
    assert {(*sample["image"].shape, *sample["mask"].shape) for sample in training} == {(3, 160, 160, 160, 160)}


def test_a_window_of_a_scene_keeps_its_labels(data, scenes):
    """Without augmentation a training sample is a piece of its scene; of most it is all of it."""
    whole = 0
    for sample in (data.datasets["train"][i] for i in range(40)):
        scene = scenes["train"][sample["index"]]
        if scene.mask.shape == (160, 160):
            assert torch.equal(sample["mask"], scene.mask)
            whole += 1
        else:
            first_rows = (scene.mask[:-159].unfold(1, 160, 1) == sample["mask"][0]).all(-1).nonzero().tolist()
            windows = [scene.mask[top : top + 160, left : left + 160] for top, left in first_rows]
            assert any(torch.equal(window, sample["mask"]) for window in windows)
    assert whole == 38


def test_pixels_are_normalised_by_the_defaults(data):
    pixels = torch.cat([data.datasets["test"][i]["image"].flatten(1) for i in range(20)], 1)
    assert pixels.mean().abs() < 0.2
    assert pixels.std() == pytest.approx(1, abs=0.2)


def test_only_the_asked_split_is_drawn_and_grey_is_the_luma(scenes):
    data = DigitsSceneMasks(**COUNTS, in_chans=1, num_workers=0)
    data.setup("validate")
    assert list(data.datasets) == ["val"]
    sample = data.datasets["val"].raw(3)
    assert torch.equal(sample["image"], F.rgb_to_grayscale(scenes["val"][3].image))
    assert torch.equal(sample["mask"], scenes["val"][3].mask)


def test_scenes_depend_on_the_split_seed_alone(data):
    counts = COUNTS | {"val": 10}
    same, other = (DigitsSceneMasks(**counts, num_workers=0, **seeds) for seeds in ({"seed": 9}, {"split_seed": 1}))
    for kind in (same, other):
        kind.setup("validate")
    equal = [
        [torch.equal(data.datasets["val"].raw(i)["mask"], kind.datasets["val"].raw(i)["mask"]) for i in range(10)]
        for kind in (same, other)
    ]
    assert all(equal[0])
    assert sum(equal[1]) <= 2  # empty scenes are alike


def test_a_number_of_scenes_is_needed():
    with pytest.raises(DataError, match=r"data.val=0 is not a number of scenes >= 1"):
        DigitsSceneMasks(val=0)
