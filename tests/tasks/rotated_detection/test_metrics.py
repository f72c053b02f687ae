"""Mean average precision against the DOTA devkit's rule, the reference page's numbers, and itself in another order."""

import math

import numpy as np
import pytest
import torch

from vantage.tasks.rotated_detection.metrics import THRESHOLDS, RotatedMeanAveragePrecision


def truth(boxes, labels=None, difficult=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 5)
    labels = torch.zeros(len(boxes)) if labels is None else torch.tensor(labels)
    difficult = torch.zeros(len(boxes)) if difficult is None else torch.tensor(difficult)
    return {"boxes": boxes, "labels": labels.long(), "difficult": difficult.bool()}


def prediction(boxes, scores, labels=None):
    return {**truth(boxes, labels), "scores": torch.tensor(scores, dtype=torch.float32)}


def measured(predictions, targets, num_classes=1, **options):
    metric = RotatedMeanAveragePrecision(num_classes, **options)
    for one, other in zip(predictions, targets):
        metric.update([one], [other])
    return metric.compute()


FOUR = [[20.0, 20, 12, 6, 0.3], [60, 20, 12, 6, 1.2], [20, 60, 12, 6, -0.7], [60, 60, 12, 6, 0.0]]


def test_the_numbers_of_the_reference_page():
    """Three hits of four: 8/11 and 3/4; with one of the hit ones difficult, two of three: 7/11 and 2/3."""
    found = prediction(FOUR[:3], [0.9, 0.8, 0.7])
    every = measured([found], [truth(FOUR)])
    assert every["mAP50_voc07"].item() == pytest.approx(8 / 11)
    assert every["mAP50"].item() == pytest.approx(3 / 4)
    ignored = measured([found], [truth(FOUR, difficult=[1, 0, 0, 0])])
    assert ignored["mAP50_voc07"].item() == pytest.approx(7 / 11)
    assert ignored["mAP50"].item() == pytest.approx(2 / 3)


def random_scenes(seed, *, images=12, num_classes=3):
    """Objects, some in each other's way, and detections near and far from them, with duplicates and wrong classes."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    predictions, targets = [], []
    for image in range(images):
        count = 0 if image == 0 else int(rand(()) * 9)
        boxes = torch.cat([rand(count, 2) * 60, 6 + rand(count, 2) * 20, (rand(count, 1) - 0.5) * math.pi], 1)
        labels = (rand(count) * num_classes).long()
        targets.append({"boxes": boxes, "labels": labels, "difficult": rand(count) < 0.2})
        near = boxes.repeat(2, 1)
        near = near + (rand(*near.shape) - 0.5) * torch.tensor([5.0, 5, 5, 5, 0.4]) * rand(len(near), 1)
        found = torch.cat([near, torch.cat([rand(4, 2) * 60, 5 + rand(4, 2) * 20, rand(4, 1)], 1)])
        guesses = torch.cat([labels.repeat(2), torch.zeros(4, dtype=torch.long)])
        wrong = rand(len(guesses)) < 0.1
        guesses[wrong] = (rand(int(wrong.sum())) * num_classes).long()
        kept = rand(len(found)) < 0.7
        predictions.append({"boxes": found[kept], "labels": guesses[kept], "scores": rand(int(kept.sum()))})
    return predictions, targets


@pytest.mark.parametrize("seed", range(5))
def test_random_scenes_give_what_the_devkit_gives(seed):
    from .devkit import as_polygon, evaluate_class

    predictions, targets = random_scenes(seed)
    result = measured(predictions, targets, num_classes=3)
    expected = {name: torch.full((3, len(THRESHOLDS)), math.nan) for name in ("", "_voc07")}
    for label in range(3):
        detections = [
            (image, float(score), as_polygon(box))
            for image, one in enumerate(predictions)
            for box, score, own in zip(one["boxes"], one["scores"], one["labels"])
            if own == label
        ]
        truths = [
            (image, as_polygon(box), bool(difficult))
            for image, one in enumerate(targets)
            for box, own, difficult in zip(one["boxes"], one["labels"], one["difficult"])
            if own == label
        ]
        for column, threshold in enumerate(THRESHOLDS):
            for name, eleven in (("", False), ("_voc07", True)):
                value = evaluate_class(detections, truths, threshold, eleven_points=eleven)
                expected[name][label, column] = value
    for name, table in expected.items():
        np.testing.assert_allclose(result["per_class"][f"AP50{name}"], table[:, 0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(result["per_class"][f"AP75{name}"], table[:, 5], rtol=0, atol=1e-6)
        np.testing.assert_allclose(result["per_class"][f"AP{name}"], table.mean(1), rtol=0, atol=1e-6)
        assert result[f"mAP{name}"].item() == pytest.approx(table.nanmean().item(), abs=1e-6)


def test_overlap_must_exceed_the_threshold():
    """A box of twice the width covers IoU 1/2 exactly: no match at .5, one at .45."""
    double = prediction([[20.0, 20, 24, 6, 0.0]], [0.9])
    assert measured([double], [truth([[20.0, 20, 12, 6, 0.0]])])["mAP50"].item() == 0.0
    metric = RotatedMeanAveragePrecision(1, iou_thresholds=(0.45, 0.5, 0.75))
    metric.update([double], [truth([[20.0, 20, 12, 6, 0.0]])])
    assert metric.compute()["mAP"].item() == pytest.approx(1 / 3)


def test_a_second_detection_of_an_object_is_a_false_positive():
    found = prediction([FOUR[0], FOUR[0], FOUR[1]], [0.9, 0.8, 0.7])
    assert measured([found], [truth(FOUR[:2])])["mAP50"].item() == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_the_best_ground_truth_may_be_a_difficult_one():
    """The devkit's argmax includes difficult ones: nearer to a difficult box, the detection counts for nothing."""
    near = [20.5, 20, 12, 6, 0.3]
    result = measured([prediction([near], [0.9])], [truth([FOUR[0], near], difficult=[0, 1])])
    assert result["mAP50"].item() == 0.0
    assert len(result["curves"][0].recall) == 1
    assert result["curves"][0].precision.item() == 0.0


def test_the_order_of_detections_and_images_does_not_matter():
    predictions, targets = random_scenes(7)
    for one in predictions:
        one["scores"] = (one["scores"] * 4).round() / 4  # many ties
    expected = measured(predictions, targets, num_classes=3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        order = torch.randperm(len(targets), generator=generator).tolist()
        shuffled = []
        for one in predictions:
            mixed = torch.randperm(len(one["scores"]), generator=generator)
            shuffled.append({name: values[mixed] for name, values in one.items()})
        result = measured([shuffled[i] for i in order], [targets[i] for i in order], num_classes=3)
        for name, value in expected.items():
            if name.startswith("mAP"):
                torch.testing.assert_close(result[name], value, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(result["confusion"], expected["confusion"])


def test_one_call_equals_many():
    predictions, targets = random_scenes(3)
    metric = RotatedMeanAveragePrecision(3)
    metric.update(predictions, targets)
    assert metric.compute()["mAP"] == measured(predictions, targets, num_classes=3)["mAP"]


def test_objects_of_another_size_are_ignored():
    """sqrt(area) 10 and 40: small and medium. A stray medium detection harms the medium objects only."""
    small, medium, stray = [20.0, 20, 20, 5, 0.1], [100.0, 20, 80, 20, 0.2], [100.0, 120, 80, 20, 0.2]
    found = prediction([small, medium, stray], [0.9, 0.7, 0.8])
    result = measured([found], [truth([small, medium])])
    assert result["mAP50_small"].item() == 1.0
    assert result["mAP50_medium"].item() == 0.5
    assert result["mAP50_large"].isnan()
    assert result["mAP50"].item() == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_a_class_without_ground_truth_is_left_out_of_the_mean():
    result = measured([prediction(FOUR[:2], [0.9, 0.8], [0, 2])], [truth(FOUR[:1], [0])], num_classes=3)
    assert result["mAP50"].item() == 1.0
    assert np.isnan(result["per_class"]["AP50"]).tolist() == [False, True, True]
    assert result["per_class"]["detections"].tolist() == [1, 0, 1]


@pytest.mark.parametrize("images", [0, 2])
def test_nothing_at_all_is_no_error(images):
    nothing = prediction([], [])
    result = measured([nothing] * images, [truth([])] * images, num_classes=2)
    assert result["mAP50"].isnan()
    assert result["confusion"].sum() == 0
    assert measured([nothing], [truth(FOUR)])["mAP50"].item() == 0.0


def test_curves_hold_a_point_per_score():
    found = prediction([FOUR[0], [5.0, 80, 9, 4, 0], FOUR[1], FOUR[2]], [0.9, 0.8, 0.7, 0.7])
    curve = measured([found], [truth(FOUR)])["curves"][0]
    np.testing.assert_allclose(curve.score, [0.9, 0.8, 0.7])
    np.testing.assert_allclose(curve.recall, [0.25, 0.25, 0.75])
    np.testing.assert_allclose(curve.precision, [1.0, 0.5, 0.75])


def test_confusion_counts_pairs_of_any_class_and_the_background():
    """Rows: true class or nothing; columns: predicted class or missed."""
    found = prediction([*FOUR[:3], [5.0, 90, 9, 4, 0], FOUR[0]], [0.9, 0.8, 0.2, 0.7, 0.4], [0, 1, 1, 1, 1])
    target = truth(FOUR, labels=[0, 0, 1, 1], difficult=[0, 0, 0, 1])
    counts = measured([found], [target], num_classes=2)["confusion"]
    # 0 found as 0; 0 found as 1; the third below the score: missed; the difficult one is not missed;
    # a stray and a second detection of the first are of nothing
    assert counts.tolist() == [[1, 1, 0], [0, 0, 1], [0, 2, 0]]


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"a predicted label is 3; labels are in 0..2"):
        measured([prediction(FOUR[:1], [0.9], [3])], [truth([])], num_classes=3)
    with pytest.raises(ValueError, match=r"not finite; the model has diverged"):
        measured([prediction([[math.nan, 0, 1, 1, 0]], [0.9])], [truth([])])
    with pytest.raises(ValueError, match=r"2 predictions for 1 targets"):
        RotatedMeanAveragePrecision(1).update([prediction([], [])] * 2, [truth([])])


def gather(rank, world_size, folder, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
    )
    predictions, targets = random_scenes(11)
    metric = RotatedMeanAveragePrecision(3)
    mine = {0: range(0, 7), 1: (), 2: range(7, len(targets))}[rank]  # the second process has no image
    for i in mine:
        metric.update([predictions[i]], [targets[i]])
    result = metric.compute()
    queue.put((rank, float(result["mAP"]), float(result["mAP50_voc07"]), result["confusion"].tolist()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_processes_agree_with_one_even_if_one_has_no_image(tmp_path):
    queue = torch.multiprocessing.get_context("fork").SimpleQueue()
    torch.multiprocessing.start_processes(gather, (3, str(tmp_path), queue), nprocs=3, start_method="fork")
    expected = measured(*random_scenes(11), num_classes=3)
    found = [queue.get() for _ in range(3)]
    assert sorted(rank for rank, *_ in found) == [0, 1, 2]
    for _, mean, voc07, confusion in found:
        assert mean == float(expected["mAP"])
        assert voc07 == float(expected["mAP50_voc07"])
        assert confusion == expected["confusion"].tolist()
