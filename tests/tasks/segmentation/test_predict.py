"""Predictions for files: masks in the file's own size, overlays, and numbers that a reader can check."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vantage.data.images import to_tensor
from vantage.data.info import DataInfo
from vantage.tasks.files import find_files
from vantage.tasks.segmentation import predict
from vantage.tasks.segmentation.palette import IGNORE_COLOUR, palette
from vantage.tasks.segmentation.predict import NARROWEST, draw_overlay, predict_files

INFO = DataInfo(3, ["dark", "red", "green"], 3, (16, 16), [0.5] * 3, [0.25] * 3)


def read(image):
    """As a task's: the model wants half the size."""
    small = image.convert("RGB").resize((-(-image.width // 2), -(-image.height // 2)), Image.Resampling.NEAREST)
    return INFO.normalize(to_tensor(small, 3)), (image.height, image.width)


def predict_map(image, size):
    """The class is the brightest channel's, if there is one; sure of the left half, less so of the right."""
    assert not torch.is_grad_enabled()
    labels = torch.zeros(image.shape[-2:], dtype=torch.uint8)
    labels[image[0] > 0], labels[image[1] > 0] = 1, 2
    labels = labels.repeat_interleave(2, 0).repeat_interleave(2, 1)[: size[0], : size[1]]
    confidence = torch.full(size, 0.9, dtype=torch.float32)
    confidence[:, size[1] // 2 :] = 0.5
    return labels, confidence


def painted(height, width):
    """The upper half red, of the lower half the left green and the right black."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, :, 0] = 200
    pixels[height // 2 :, : width // 2, 1] = 200
    return pixels


def expected_labels(height, width):
    labels = np.zeros((height, width), np.uint8)
    labels[: height // 2], labels[height // 2 :, : width // 2] = 1, 2
    return labels


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in" / "more").mkdir(parents=True)
    Image.fromarray(painted(8, 12)).save(tmp_path / "in" / "small.png")
    Image.fromarray(painted(8, 12)).save(tmp_path / "in" / "more" / "small.png")
    Image.fromarray(painted(600, 500)).save(tmp_path / "in" / "tall.bmp")
    (tmp_path / "in" / "notes.txt").write_text("not a picture")
    return tmp_path


def run(folder, info=INFO):
    return predict_files(predict_map, find_files(folder / "in"), info, folder=folder / "out", read=read)


def test_masks_have_the_size_and_the_classes_of_their_files(folder):
    report = run(folder)
    assert report.made == 3
    masks = {path.stem: path for path in (folder / "out" / "masks").iterdir()}
    assert {"tall"} < set(masks)
    assert len(masks) == 3
    for name, path in masks.items():
        with Image.open(path) as image:
            assert image.mode == "P"
            size = (600, 500) if name == "tall" else (8, 12)
            np.testing.assert_array_equal(np.asarray(image), expected_labels(*size))
            colours = np.array(image.getpalette()).reshape(256, 3)
        assert colours[:3].tolist() == palette(3)
        assert tuple(colours[255]) == IGNORE_COLOUR


def test_every_file_is_reported_with_shares_and_confidences(folder):
    report = run(folder)
    content = json.loads(json.dumps(report.content))
    assert [one["file"] for one in content["predictions"]] == [
        str(folder / "in" / name) for name in ("more/small.png", "small.png", "tall.bmp")
    ]
    for one in content["predictions"]:
        assert list(one["classes"].items()) == [("red", 0.5), ("dark", 0.25), ("green", 0.25)]
        assert one["confidence"] == pytest.approx(0.7)
        assert one["class_confidence"] == pytest.approx({"red": 0.7, "dark": 0.5, "green": 0.9})
    assert [one["size"] for one in content["predictions"]] == [[8, 12], [8, 12], [600, 500]]
    assert content["failed"] == [{"file": str(folder / "in" / "notes.txt"), "reason": report.failed[0][1]}]
    assert report.failed[0][0] == folder / "in" / "notes.txt"


def test_a_class_that_is_not_found_is_not_reported():
    labels, confidence = torch.full((2, 3), 1, dtype=torch.uint8), torch.full((2, 3), 0.25, dtype=torch.bfloat16)
    assert predict.as_json(labels, confidence, INFO.class_names) == {
        "classes": {"red": 1.0},
        "confidence": 0.25,
        "class_confidence": {"red": 0.25},
    }


def test_overlays_show_the_picture_in_its_size_over_a_legend(folder):
    run(folder)
    with Image.open(folder / "out" / "overlays" / "tall.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape[1] == 500
    assert 600 < len(pixels) < 680
    assert pixels[10, 10].tolist() == [164, 0, 0]  # half of the picture's 200, half of the class's 128
    assert pixels[599, 10].tolist() == [0, 164, 0]
    assert pixels[599, 499].tolist() == [0, 0, 0]
    assert pixels[299, 10].tolist() == [255, 255, 255]  # the outline
    strip = {tuple(colour) for colour in pixels[600:].reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in palette(3)} <= strip
    assert len(list((folder / "out" / "overlays").iterdir())) == 3


def test_overlays_of_large_and_of_narrow_pictures():
    mask = np.ones((30, 4100), np.uint8)
    large = draw_overlay(np.zeros((30, 4100, 3), np.uint8), mask, INFO.class_names, palette(3))
    assert large.shape[1] == 2000
    assert (large[:15] == (64, 0, 0)).all()
    narrow = draw_overlay(np.zeros((50, 7, 3), np.uint8), mask[:1].repeat(50, 0)[:, :7], INFO.class_names, palette(3))
    assert narrow.shape[1] == NARROWEST
    assert (narrow[:50, :7] == (64, 0, 0)).all()
    assert (narrow[:50, 7:] == 255).all()


def test_only_the_first_files_get_an_overlay(folder, monkeypatch):
    monkeypatch.setattr(predict, "MOST_PICTURES", 2)
    assert run(folder).made == 3
    assert len(list((folder / "out" / "masks").iterdir())) == 3
    assert len(list((folder / "out" / "overlays").iterdir())) == 2


def test_colours_of_the_data_are_used(folder):
    own = [[9, 9, 9], [1, 2, 3], [70, 130, 180]]
    info = DataInfo(3, INFO.class_names, 3, (16, 16), INFO.mean, INFO.std, palette=own)
    run(folder, info)
    with Image.open(folder / "out" / "masks" / "tall.png") as image:
        assert np.array(image.getpalette()).reshape(256, 3)[:3].tolist() == own


def test_a_file_that_the_task_refuses_is_listed_with_its_reason(folder):
    def refuse(image):
        raise ValueError("too\n  small")

    report = predict_files(predict_map, [folder / "in" / "small.png"], INFO, folder=folder / "out", read=refuse)
    assert report.made == 0
    assert report.content["failed"] == [{"file": str(folder / "in" / "small.png"), "reason": "too small"}]
