"""What the figures of a classifier show, checked against scikit-learn and the numbers that went in."""

import matplotlib.image
import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch.nn import functional as F

from vantage.analysis.confusion import count_confusions, draw_confusion, top_confusions
from vantage.analysis.figures import DPI, save
from vantage.data.info import DataInfo
from vantage.tasks.classification.pictures import (
    Evidence,
    confusion_title,
    draw_batch,
    draw_mistakes,
    draw_predictions,
    target_caption,
    to_pictures,
)


def info(num_classes: int, in_chans: int = 3) -> DataInfo:
    names = [f"class {k}" for k in range(num_classes)]
    return DataInfo(num_classes, names, in_chans, (16, 24), [0.25] * in_chans, [0.5] * in_chans)


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [text.get_text() for text in figure.texts]


def labels_and_predictions(num_classes: int, samples: int = 4000):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (samples,), generator=generator)
    other = torch.randint(num_classes, (samples,), generator=generator)
    return labels, torch.where(torch.rand(samples, generator=generator) < 0.9, labels, other)


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_confusion_counts_are_those_of_scikit_learn(num_classes):
    labels, predictions = labels_and_predictions(num_classes)
    counts = count_confusions(labels, predictions, num_classes)
    np.testing.assert_array_equal(counts, confusion_matrix(labels, predictions, labels=range(num_classes)))


def test_the_confusion_matrix_shows_the_counts_of_scikit_learn(tmp_path):
    labels, predictions = labels_and_predictions(10)
    expected = confusion_matrix(labels, predictions)
    counts = count_confusions(labels, predictions, 10)
    figure = draw_confusion(counts, info(10).class_names, title=confusion_title(counts, "test"))
    shown = {text.get_position(): int(text.get_text()) for text in figure.axes[0].texts}
    assert shown == {(j, i): expected[i, j] for i in range(10) for j in range(10) if expected[i, j]}
    shares = confusion_matrix(labels, predictions, normalize="true")
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), shares, rtol=1e-6)
    assert f"{(labels == predictions).sum()} of 4000 right" in " ".join(texts(figure))
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == info(10).class_names


def test_many_classes_list_their_confusions_and_a_class_without_samples_is_blank():
    counts = torch.zeros(100, 100, dtype=torch.long)
    counts.fill_diagonal_(50)
    counts[3, 7], counts[8, 2], counts[5] = 9, 4, 0
    figure = draw_confusion(counts, info(100).class_names, title="Confusions")
    assert not figure.axes[0].texts
    assert top_confusions(counts, info(100).class_names) == ["9×  class 3 → class 7", "4×  class 8 → class 2"]
    assert "class 3 → class 7" in " ".join(texts(figure))
    colours = figure.axes[0].images[0].get_array()
    assert colours[5].sum() == 0
    assert colours[3, 7] == pytest.approx(9 / 59)


@pytest.mark.parametrize("num_classes", [2, 10, 30, 100, 300])
def test_nothing_is_cut_off(num_classes, tmp_path):
    labels, predictions = labels_and_predictions(num_classes)
    names = [f"a rather long name {k}" for k in range(num_classes)]
    counts = count_confusions(labels, predictions, num_classes)
    figure = draw_confusion(counts, names, title=confusion_title(counts, "validation"))
    save(figure, tmp_path / "confusion.png")
    page, drawn = figure.bbox, figure.get_tightbbox()  # pixels, inches
    assert drawn.x0 >= 0
    assert drawn.y0 >= 0
    assert drawn.x1 * DPI <= page.width
    assert drawn.y1 * DPI <= page.height


def test_evidence_keeps_the_most_confident_mistakes_of_all_batches():
    data = info(3)
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(50) % 3
    images = torch.arange(50.0).view(50, 1, 1, 1).expand(50, 3, 4, 4)
    evidence = Evidence(data, limit=5)
    for batch in torch.arange(50).split(8):
        evidence.update(images[batch], logits[batch].bfloat16(), labels[batch], batch)
    probabilities, predictions = logits.bfloat16().float().softmax(1).max(1)
    wrong = [i for i in range(50) if predictions[i] != labels[i]]
    expected = sorted(wrong, key=lambda i: -probabilities[i])[:5]
    assert [mistake.index for mistake in evidence.mistakes] == expected
    assert [mistake.image[0, 0, 0].item() for mistake in evidence.mistakes] == expected
    assert evidence.mistakes[0].probability == pytest.approx(probabilities[expected[0]].item())
    assert evidence.counts.sum() == 50
    assert evidence.counts.trace() == 50 - len(wrong)
    figure = draw_mistakes(evidence.mistakes, [f"#{i}" for i in expected], data, split="test")
    for i in expected:
        assert {f"true class {labels[i]}", f"→ class {predictions[i]} · {probabilities[i]:.1%}", f"#{i}"} <= set(
            texts(figure)
        )


@pytest.mark.parametrize("in_chans", [1, 2, 3, 5])
def test_pictures_are_denormalised(in_chans):
    data = info(2, in_chans)
    pixels = torch.rand(2, in_chans, 4, 6)
    pictures = to_pictures((pixels - 0.25) / 0.5, data)
    assert pictures.shape == (2, 4, 6, 3)
    expected = pixels[:, :3] if in_chans >= 3 else pixels[:, :1].expand(-1, 3, -1, -1)
    np.testing.assert_allclose(pictures, expected.permute(0, 2, 3, 1), atol=1e-6)


def test_captions_of_mixed_and_smoothed_targets():
    data = info(4)
    assert target_caption(torch.tensor(2), data) == ("class 2",)
    mixed = 0.7 * F.one_hot(torch.tensor(1), 4) + 0.3 * F.one_hot(torch.tensor(3), 4)
    assert target_caption(mixed, data) == ("class 1 · 70%", "class 3 · 30%")
    smoothed = 0.9 * F.one_hot(torch.tensor(1), 4) + 0.1 / 4
    assert target_caption(smoothed, data) == ("class 1",)


def test_batch_and_prediction_sheets_have_the_expected_size(tmp_path):
    data = info(4)
    figure = draw_batch(torch.zeros(20, 3, 16, 24), torch.arange(20) % 4, data, limit=12)
    pixels = matplotlib.image.imread(save(figure, tmp_path / "pictures" / "batch.png"))
    width, height = figure.get_size_inches() * DPI
    assert pixels.shape[:2] == (int(height), int(width))
    assert len(figure.axes[0].images) == 12
    assert {round(image.get_extent()[2] - image.get_extent()[3], 4) for image in figure.axes[0].images} == {
        0.7
    }  # 16/24
    assert "12 of 20 images, 16×24 px" in " ".join(texts(figure))
    sheet = draw_predictions(
        np.zeros((2, 16, 24, 3)), [("cat · 97.0%", "a.png"), ("dog · 51.0%", "b.png")], page=1, pages=1
    )
    assert {"cat · 97.0%", "b.png"} <= set(texts(sheet))
