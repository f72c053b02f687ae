"""Predictions for files: what is read, what is told of the rest, and that pictures are prepared as in evaluation."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vantage.data.images import as_evaluated
from vantage.data.info import DataInfo
from vantage.tasks.classification.predict import draw_sheets, predict_files
from vantage.tasks.files import find_files

INFO = DataInfo(3, ["red", "green", "blue"], 3, (8, 12), [0.5] * 3, [0.25] * 3)


class Colour(nn.Module):
    """Logits are the mean of each channel."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.scale * images.mean((2, 3))

    def installed(self):
        return []


def transform(image):
    return as_evaluated(image, INFO, center_crop=1.0, interpolation="bilinear")


@pytest.fixture
def folder(tmp_path):
    """Nine pictures of three colours and several modes in two folders, and four files that are none."""
    (tmp_path / "more").mkdir()
    for i in range(9):
        pixels = np.zeros((20 + i, 30, 3), np.uint8)
        pixels[..., i % 3] = 255
        image = Image.fromarray(pixels)
        image = image.convert("RGBA") if i == 4 else image.convert("P") if i == 5 else image
        image.save(tmp_path / ("more" if i > 5 else "") / f"{i}_{INFO.class_names[i % 3]}.png")
    whole = (tmp_path / "0_red.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden").write_text("neither")
    return tmp_path


def test_every_file_is_predicted_or_listed_as_failed(folder):
    files = find_files(folder)
    assert len(files) == 13
    result = predict_files(Colour(), files, transform, batch_size=4, top_k=2)
    assert sorted([one.file for one in result.made] + [file for file, _ in result.failed]) == files
    assert [file.name for file, _ in result.failed] == [".hidden", "broken.png", "empty.jpg", "notes.txt"]
    assert all(reason for _, reason in result.failed)
    assert len(result.images) == 9

    written = result.as_json(INFO.class_names)
    for one in written["predictions"]:
        classes = [entry["class"] for entry in one["top"]]
        probabilities = [entry["probability"] for entry in one["top"]]
        assert one["file"].endswith(f"_{classes[0]}.png")
        assert len(classes) == 2
        assert probabilities == sorted(probabilities, reverse=True)
    # channels are -2, -2 and 2 after normalisation
    assert probabilities[0] == pytest.approx(np.exp(2) / (np.exp(2) + 2 * np.exp(-2)), abs=1e-4)
    assert {entry["file"] for entry in written["failed"]} == {str(file) for file, _ in result.failed}


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_the_batch_size_changes_nothing(folder, batch_size):
    expected = predict_files(Colour(), find_files(folder), transform, batch_size=4)
    result = predict_files(Colour(), find_files(folder), transform, batch_size=batch_size)
    assert result.made == expected.made
    assert result.failed == expected.failed


def test_one_file_and_what_is_not_there(folder):
    file = folder / "0_red.png"
    assert find_files(file) == [file]
    with pytest.raises(FileNotFoundError, match=r"predict=.*nowhere does not exist"):
        find_files(folder / "nowhere")
    (folder / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match="without files"):
        find_files(folder / "bare")


def test_nothing_readable_is_no_prediction(folder):
    result = predict_files(Colour(), [folder / "notes.txt", folder / "empty.jpg"], transform, batch_size=4)
    assert not result.made
    assert len(result.failed) == 2


def test_sheets_show_every_file_with_its_class(folder):
    result = predict_files(Colour(), find_files(folder), transform, batch_size=4)
    sheets = draw_sheets(result, Colour(), INFO)
    assert list(sheets) == ["predictions_1"]  # no attention is installed, so no picture of one
    texts = [text.get_text() for text in sheets["predictions_1"].axes[0].texts]
    assert {f"{i}_{INFO.class_names[i % 3]}.png" for i in range(9)} <= set(texts)
    assert sum(text.startswith("red · 9") for text in texts) == 3
