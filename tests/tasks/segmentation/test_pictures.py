"""What the figures of a segmentation show, checked against the masks that went in, at every size and many classes."""

import matplotlib.image
import numpy as np
import pytest
import torch

from vantage.analysis.figures import DPI, save
from vantage.data.info import DataInfo
from vantage.tasks.segmentation.legend import MOST_ENTRIES, legend_of, legend_strip
from vantage.tasks.segmentation.metrics import SegmentationMetrics
from vantage.tasks.segmentation.paint import NOT_SCORED, WRONG_COLOUR
from vantage.tasks.segmentation.palette import palette
from vantage.tasks.segmentation.pictures import SegmentationPictures, middle_slice


def info(num_classes, own=None):
    names = [("background", "a rather long name", "sky")[k % 3] + f" {k}" for k in range(num_classes)]
    return DataInfo(num_classes, names, 3, (64, 64), [0.5] * 3, [0.25] * 3, own)


def scene(num_classes, size, seed, classes=None):
    """A sample and its prediction: blocks of random classes, a tenth of them wrong, the first rows ignored."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice(num_classes if classes is None else classes, (6, 8)).astype(np.uint8)
    wrong = np.where(rng.random(blocks.shape) < 0.1, blocks[0, 0], blocks)
    rows, columns = np.arange(size[0]) * 6 // size[0], np.arange(size[1]) * 8 // size[1]
    mask, prediction = (torch.from_numpy(values[rows][:, columns]) for values in (blocks, wrong))
    mask[: max(1, size[0] // 10)] = 255
    image = torch.from_numpy(rng.normal(size=(3, *size)).astype(np.float32))
    return {"image": image, "mask": mask, "name": f"scene_{seed}", "index": seed}, prediction


def finished(num_classes, sizes, classes=None, own=None, name=""):
    pairs = [scene(num_classes, size, seed, classes) for seed, size in enumerate(sizes)]
    for sample, _ in pairs:
        sample["name"] += name
    batch, predictions = [sample for sample, _ in pairs], [prediction for _, prediction in pairs]
    metric = SegmentationMetrics(num_classes)
    for sample, prediction in pairs:
        metric.update(prediction, sample["mask"])
    results = {"val": metric.compute()}
    pictures = SegmentationPictures(info(num_classes, own), results)
    pictures.start()
    pictures.update(batch, {"predictions": predictions})
    return pictures, pictures.finish("val", str), batch, predictions


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [text.get_text() for text in figure.texts]


def boxes_of(figure):
    """The boxes of all texts of a figure that was saved, in pixels (x0, y0, x1, y1), and the texts."""
    drawn = [*figure.texts]
    for axes in figure.axes:
        drawn += axes.texts
        if axes.axison:
            drawn += [*axes.get_yticklabels(), *axes.get_xticklabels(), axes.xaxis.label]
    drawn = [text for text in drawn if text.get_text().strip() and text.get_visible()]
    return np.array([text.get_window_extent().extents for text in drawn]), [text.get_text() for text in drawn]


def assert_nothing_overlaps(figure):
    boxes, names = boxes_of(figure)
    width, height = figure.bbox.width, figure.bbox.height
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= width).all(), names[boxes[:, 2].argmax()]
    assert (boxes[:, 3] <= height).all()
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    common = (np.minimum(high, boxes[:, 2:]) - np.maximum(low, boxes[:, :2])).min(-1)  # of each two boxes
    np.fill_diagonal(common, 0)
    i, j = np.unravel_index(common.argmax(), common.shape)
    assert common.max() <= 0.5, f"{names[i]!r} overlaps {names[j]!r}"  # half a pixel of a glyph's border


@pytest.mark.parametrize(
    ("num_classes", "sizes"),
    [
        (2, [(9, 7), (40, 40)]),
        (10, [(300, 20), (60, 4)]),
        (10, [(300, 40), (30, 210), (64, 64)]),
        (150, [(200, 256), (180, 180)]),
    ],
)
def test_every_figure_is_legible(tmp_path, num_classes, sizes):
    _, figures, *_ = finished(num_classes, sizes, name=" of a folder with a rather long name")
    assert set(figures) == {"predictions_val", "per_class_val", "confusion_matrix_val"}
    for name, figure in figures.items():
        pixels = matplotlib.image.imread(save(figure, tmp_path / f"{name}.png"))
        assert all(80 < side < 2400 for side in pixels.shape[:2])
        assert pixels.std() > 0.01
    assert_nothing_overlaps(figures["predictions_val"])
    assert_nothing_overlaps(figures["per_class_val"])


def test_a_row_shows_picture_truth_prediction_and_errors_of_one_sample():
    _, figures, (sample, *_), (prediction, *_) = finished(4, [(512, 384), (40, 40)])
    sheet = figures["predictions_val"].axes[0]
    assert len(sheet.images) == 8
    picture, truth, predicted, errors = (image.get_array() for image in sheet.images[:4])
    assert picture.shape == truth.shape == predicted.shape == errors.shape == (512, 384, 3)
    expected = (sample["image"].permute(1, 2, 0) * 0.25 + 0.5).clamp(0, 1) * 255
    np.testing.assert_allclose(picture, expected, atol=0.51)
    mask, prediction, colours = sample["mask"].numpy(), prediction.numpy(), np.array(palette(4))
    np.testing.assert_array_equal(truth[mask != 255], colours[mask[mask != 255]])
    np.testing.assert_array_equal(predicted, colours[prediction])
    is_red = (errors == WRONG_COLOUR).all(-1)
    np.testing.assert_array_equal(is_red, (mask != 255) & (mask != prediction))
    is_hatched = (errors[..., None, :] == NOT_SCORED).all(-1).any(-1)
    np.testing.assert_array_equal(is_hatched, mask == 255)


def test_a_row_is_captioned_with_its_own_scores():
    pictures = SegmentationPictures(info(3), {})
    mask = torch.tensor([[0, 0, 1, 1], [255, 0, 1, 1]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 0, 1, 0], [2, 0, 1, 1]], dtype=torch.uint8)
    sample = {"image": torch.zeros(3, 2, 4), "mask": mask, "name": "two"}
    nothing = {"image": torch.zeros(3, 2, 4), "mask": torch.full_like(mask, 255), "name": "none"}
    pictures.start()
    pictures.update([sample, nothing], {"predictions": [prediction, prediction]})
    figures = pictures.finish("val", str)
    assert set(figures) == {"predictions_val"}
    # IoU 3/4 of both classes, 6 of 7 pixels; the ignored pixel counts nowhere
    assert {"two", "ground truth", "prediction", "mIoU 0.750 · pixel acc. 0.857", "none", "nothing to score"} <= set(
        texts(figures["predictions_val"])
    )


def test_the_legend_lists_the_classes_shown_and_no_others():
    _, figures, _, predictions = finished(12, [(48, 64), (64, 48)], classes=[1, 4, 5, 11])
    assert set(torch.cat([mask.flatten() for mask in predictions]).tolist()) == {1, 4, 5, 11}
    names = [info(12).class_names[k] for k in (1, 4, 5, 11)]
    written = texts(figures["predictions_val"])
    assert written[-5:] == [*names, "ignored"]
    assert not (set(info(12).class_names) - set(names)) & set(written)
    swatches = [patch.get_facecolor()[:3] for patch in figures["predictions_val"].axes[0].patches]
    np.testing.assert_allclose(swatches[:4], np.array(palette(12))[[1, 4, 5, 11]] / 255)


def test_a_long_legend_keeps_the_classes_with_the_most_pixels():
    mask = np.repeat(np.arange(100, dtype=np.uint8), np.arange(1, 101))[None]
    entries = legend_of([mask], info(100).class_names, palette(100))
    assert len(entries) == MOST_ENTRIES + 1
    assert [entry.text for entry in entries[:-1]] == info(100).class_names[70:]
    assert entries[-1].text == "+70 more"


def test_a_strip_is_as_wide_as_its_picture_and_shows_the_colours():
    mask = np.array([[0, 3, 255]], np.uint8)
    for width in (480, 733, 2000):
        strip = legend_strip(legend_of([mask], info(4).class_names, palette(4)), width)
        assert strip.shape[1:] == (width, 3)
        assert (strip == (128, 128, 0)).all(-1).any()
        assert not (strip == (128, 0, 0)).all(-1).any()


def test_bars_are_the_ious_and_absent_classes_have_none():
    pictures, figures, *_ = finished(5, [(64, 64)], classes=[0, 2, 3])
    results = pictures.results["val"]
    axes = figures["per_class_val"].axes[0]
    order = [tick.get_text() for tick in axes.get_yticklabels()]
    iou = results["per_class"]["iou"]
    by_name = dict(zip(info(5).class_names, iou))
    widths = [bar.get_width() for bar in axes.patches]
    for name, width in zip(order, widths):
        expected = by_name[name]
        assert width == (0 if np.isnan(expected) else pytest.approx(expected))
    assert widths == sorted(widths, reverse=True)
    written = texts(figures["per_class_val"])
    assert written.count("absent") == len(results["absent"]) == 2
    assert {f"{value:.3f}" for value in iou[~np.isnan(iou)]} <= set(written)
    shares = results["per_class"]["pixels"] / results["per_class"]["pixels"].sum()
    assert {f"{share:.1%}" for share in shares} <= set(written)
    assert axes.lines[0].get_xdata()[0] == pytest.approx(float(results["mIoU"]))
    assert "over 3 of 5 classes" in " ".join(written)


def test_where_everything_is_ignored_figures_say_so(tmp_path):
    metric = SegmentationMetrics(3)
    metric.update(torch.zeros(4, 4, dtype=torch.uint8), torch.full((4, 4), 255, dtype=torch.uint8))
    pictures = SegmentationPictures(info(3), {"val": metric.compute()})
    figures = pictures.finish("val", str)
    for name, figure in figures.items():
        save(figure, tmp_path / f"{name}.png")
    assert texts(figures["per_class_val"]).count("absent") == 3


@pytest.mark.parametrize("num_classes", [3, 40])
def test_the_confusion_matrix_is_readable_with_millions_of_pixels(num_classes):
    pictures = SegmentationPictures(info(num_classes), {})
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    counts[0, 0], counts[0, 1], counts[1, 1] = 750_000_000, 250_000_000, 12_345
    figure = pictures.draw_confusions("val", counts)
    assert "75.00% of pixels right" in " ".join(texts(figure))
    colours = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(colours[0, :2], [0.75, 0.25])
    if num_classes == 3:
        shown = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
        assert shown == {(0, 0): "750", (1, 0): "250", (1, 1): "1000"}
    else:
        assert "counts in 1,000,000 pixels" in " ".join(texts(figure))
        assert "250×" in " ".join(texts(figure))


def test_the_first_batch_is_what_the_step_says_it_saw(tmp_path):
    samples = [scene(4, (64, 96), seed)[0] for seed in range(14)]
    images = torch.stack([sample["image"] for sample in samples]).bfloat16()
    masks = torch.full((14, 64, 96), 2, dtype=torch.uint8)
    pictures = SegmentationPictures(info(4), {})
    (figure,) = pictures.first_batch(samples, {"images": images, "masks": masks}).values()
    title = "First training batch as the model sees it: 12 of 14 images, 64×96 px"
    assert {title, *(f"scene_{seed}" for seed in range(12)), info(4).class_names[2]} <= set(texts(figure))
    assert "ignored" not in texts(figure)  # the samples have some, what the model saw has none
    assert len(figure.axes[0].images) == 12
    pixels = matplotlib.image.imread(save(figure, tmp_path / "first_batch.png"))
    assert pixels.shape[1] == int(figure.get_size_inches()[0] * DPI)
    assert_nothing_overlaps(figure)


def test_pictures_are_kept_up_to_the_limit_and_forgotten_by_start():
    batch, predictions = zip(*(scene(3, (20, 30), seed) for seed in range(4)))
    pictures = SegmentationPictures(info(3), {}, limit=5)
    pictures.start()
    for _ in range(2):
        pictures.update(list(batch), {"predictions": list(predictions)})
    assert [panel["name"] for panel in pictures.mask_panels("val")] == [f"scene_{k}" for k in (0, 1, 2, 3, 0)]
    pictures.start()
    assert pictures.mask_panels("val") == []
    assert pictures.finish("val", str) == {}


def test_mask_panels_are_masks_of_the_picture_in_the_size_shown():
    batch, predictions = zip(*(scene(3, size, 0) for size in [(600, 1200), (30, 20)]))
    batch[0]["image"] = batch[0]["image"][:, ::2, ::2]  # the data's `resize`: the mask keeps its size
    pictures = SegmentationPictures(info(3), {})
    pictures.update(list(batch), {"predictions": list(predictions)})
    large, tiny = pictures.mask_panels("test")
    for panel, size in ((large, (256, 512)), (tiny, (270, 180))):
        assert panel["image"].shape == (*size, 3)
        assert panel["prediction"].shape == panel["ground_truth"].shape == size
        assert {panel[name].dtype for name in ("image", "prediction", "ground_truth")} == {np.dtype(np.uint8)}
        assert panel["class_labels"] == dict(enumerate(info(3).class_names)) | {255: "ignore"}
    np.testing.assert_array_equal(tiny["prediction"][::9, ::9], predictions[1])
    np.testing.assert_array_equal(tiny["ground_truth"][::9, ::9], batch[1]["mask"])


def test_of_a_volume_the_middle_slice_with_the_most_classes_is_shown():
    mask = torch.zeros(9, 16, 16, dtype=torch.uint8)
    mask[2:7, :4] = 1
    mask[3:6, 4:8] = 2
    mask[8, :4], mask[8, 4:8], mask[8, 8:] = 255, 1, 0  # ignored pixels are no class
    assert middle_slice(mask) == 4
    assert middle_slice(torch.zeros(4, 2, 2, dtype=torch.uint8)) == 1
    image = torch.arange(9.0).view(9, 1, 1, 1).expand(9, 3, 16, 16) / 9
    prediction = mask.where(mask != 255, 0)
    prediction[0] = 1  # a mistake in a slice that is not shown
    pictures = SegmentationPictures(info(3), {})
    pictures.update([{"image": image, "mask": mask, "name": "case0001"}], {"predictions": [prediction]})
    (panel,) = pictures.mask_panels("test")
    assert panel["name"] == "case0001 · slice 5 of 9"
    np.testing.assert_array_equal(panel["ground_truth"][::16, ::16], mask[4])
    assert np.unique(panel["image"]).tolist() == [round((4 / 9 * 0.25 + 0.5) * 255)]
    figure = pictures.finish("test", str)["predictions_test"]
    scored = mask.numel() - 64
    assert f"pixel acc. {1 - 256 / scored:.3f}" in " ".join(texts(figure))  # of the whole volume


def test_colours_of_the_data_are_used():
    own = [[10, 20, 30], [200, 100, 50]]
    _, figures, _, (prediction,) = finished(2, [(300, 300)], own=own)
    np.testing.assert_array_equal(
        figures["predictions_val"].axes[0].images[2].get_array(), np.array(own)[prediction.numpy()]
    )
