"""What the figures of a detector show, checked against the numbers that went in."""

import math

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection

from vantage.analysis.figures import DPI, save
from vantage.data.info import DataInfo
from vantage.ops.rotated_boxes import to_corners
from vantage.tasks.rotated_detection.metrics import RotatedMeanAveragePrecision
from vantage.tasks.rotated_detection.pictures import (
    LABELS_UP_TO,
    Panel,
    RotatedDetectionPictures,
    draw_panels,
    shown,
    to_picture,
)
from vantage.tasks.rotated_detection.postprocess import Detections

from .scenes import paint, random_target, target

INFO = DataInfo(2, ["plane", "ship"], 3, (64, 64), [0.5] * 3, [0.25] * 3)


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [text.get_text() for text in figure.texts]


def panel(one, scores=None, size=(64, 64)):
    return Panel(np.zeros((*size, 3)), one["boxes"], one["labels"], scores, one["difficult"], "a picture")


def lines_of(figure):
    """(outlines, thick edges), each a list of (P, 2) in inches."""
    drawn = [one for one in figure.axes[0].collections if isinstance(one, LineCollection)]
    return [[path for path in one.get_segments()] for one in drawn]


def test_a_box_is_drawn_at_its_corners_with_an_edge_along_w_thick():
    one = target([[32.0, 24, 40, 10, 0.4]])
    figure = draw_panels([panel(one)], INFO.class_names, columns=1, title="", panel_inches=3.2)
    outlines, edges = lines_of(figure)
    picture = figure.axes[0].images[0].get_extent()  # left, right, bottom, top in inches
    scale = 3.2 / 64
    expected = to_corners(one["boxes"])[0].numpy() * scale + (picture[0], picture[3])
    np.testing.assert_allclose(outlines[0][:4], expected, atol=1e-5)
    np.testing.assert_allclose(outlines[0][4], expected[0], atol=1e-5)
    length = np.linalg.norm(edges[0][1] - edges[0][0]) / scale
    assert length == pytest.approx(40, abs=1e-3)
    direction = (edges[0][1] - edges[0][0]) / (length * scale)
    np.testing.assert_allclose(direction, [math.cos(0.4), math.sin(0.4)], atol=1e-4)


def test_labels_have_names_and_scores_until_there_are_too_many():
    one = target([[20.0, 20, 20, 10, 0], [44, 44, 20, 10, 1]], [0, 1])
    figure = draw_panels([panel(one, torch.tensor([0.91, 0.4]))], INFO.class_names, columns=1, title="Title")
    assert {"plane 0.91", "ship 0.40", "Title", "a picture"} <= set(texts(figure))
    figure = draw_panels([panel(one)], INFO.class_names, columns=1, title="Title")
    assert {"plane", "ship"} <= set(texts(figure))
    many = random_target(0, LABELS_UP_TO + 1)
    figure = draw_panels([panel(many)], INFO.class_names, columns=1, title="Title")
    assert set(texts(figure)) == {"Title", "a picture"}
    assert len(lines_of(figure)[0]) == LABELS_UP_TO + 1


def test_pictures_of_other_shapes_and_channels():
    grey = to_picture(torch.zeros(1, 10, 20), DataInfo(2, ["a", "b"], 1, (10, 20), [0.25], [0.5]))
    assert grey.shape == (10, 20, 3)
    assert grey.min() == grey.max() == 0.25
    panels = [panel(random_target(i, 4), size=size) for i, size in enumerate([(64, 64), (30, 90), (120, 40)])]
    figure = draw_panels(panels, INFO.class_names, columns=2, title="t")
    height = figure.get_size_inches()[1]
    assert max(image.get_extent()[2] for image in figure.axes[0].images) < height


def finished(tmp_path, sample_count=4):
    targets = [random_target(seed, 5) for seed in range(sample_count)]
    batch = [{**one, "image": paint(one) * 4 - 2, "name": f"P{i:04d}"} for i, one in enumerate(targets)]
    detections = [
        Detections(one["boxes"][1:] + 0.3, torch.linspace(0.95, 0.2, len(one["boxes"]) - 1), one["labels"][1:])
        for one in targets
    ]
    metric = RotatedMeanAveragePrecision(2)
    metric.update([one.as_dict() for one in detections], targets)
    results = {"val": metric.compute()}
    pictures = RotatedDetectionPictures(INFO, results)
    pictures.start()
    pictures.update(batch, {"detections": detections})
    figures = pictures.finish("val", str)
    for name, figure in figures.items():
        save(figure, tmp_path / f"{name}.png")
    return figures, results["val"], batch, pictures


def test_of_two_classes_at_one_place_the_best_is_drawn_and_neighbours_stay():
    boxes = torch.tensor([[20.0, 20, 16, 8, 0.3], [20, 20, 16, 8, 0.4], [30, 20, 16, 8, 0.3], [50, 50, 9, 8, 0.0]])
    found = Detections(boxes, torch.tensor([0.6, 0.7, 0.5, 0.29]), torch.tensor([0, 1, 0, 1]))
    drawn, labels, scores = shown(found)
    assert labels.tolist() == [1, 0]
    assert scores.tolist() == pytest.approx([0.7, 0.5])
    torch.testing.assert_close(drawn, boxes[[1, 2]])
    nothing = Detections(boxes[:0], torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert [len(part) for part in shown(nothing)] == [0, 0, 0]


def test_a_validation_leaves_predictions_curves_and_confusions(tmp_path):
    figures, results, batch, pictures = finished(tmp_path)
    assert set(figures) == {"predictions_val", "pr_curves_val", "confusion_matrix_val"}
    written = texts(figures["predictions_val"])
    assert "P0000 · ground truth: 5" in written
    assert any(text.startswith("prediction, score ≥ 0.3") for text in written)
    lines = figures["pr_curves_val"].axes[0].lines
    np.testing.assert_allclose(lines[1].get_xdata()[1:], results["curves"][1].recall)
    np.testing.assert_allclose(lines[1].get_ydata()[1:], results["curves"][1].precision)
    assert lines[0].get_label() == f"plane  {results['per_class']['AP50'][0]:.3f}"
    cells = figures["confusion_matrix_val"].axes[0]
    assert [tick.get_text() for tick in cells.get_yticklabels()] == ["plane", "ship", "background"]
    first = pictures.first_batch(batch, {"images": torch.zeros(4, 3, 64, 64)})["first_batch"]
    assert "First training batch as the model sees it: 4 of 4 images, 64×64 px" in texts(first)
    pictures.start()
    assert set(pictures.finish("val", str)) == {"pr_curves_val", "confusion_matrix_val"}
    assert pictures.finish("test", str) == {}


def test_nothing_is_cut_off(tmp_path):
    figures, *_ = finished(tmp_path)
    for name in ("pr_curves_val", "confusion_matrix_val"):
        page, drawn = figures[name].bbox, figures[name].get_tightbbox()  # pixels, inches
        assert drawn.x0 >= 0
        assert drawn.y0 >= 0
        assert drawn.x1 * DPI <= page.width
        assert drawn.y1 * DPI <= page.height
