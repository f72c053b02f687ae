"""Boundary F-score and HD95 against all pairs of pixels, distance transforms and the numbers of medpy and MONAI."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.spatial.distance import cdist

from vantage.tasks.segmentation.surface import SurfaceMetrics, both_ways, outline, points_by_class, tolerance_of


def measured(pictures, num_classes, **options):
    metric = SurfaceMetrics(num_classes, **options)
    for prediction, mask in pictures:
        metric.update(torch.as_tensor(prediction), torch.as_tensor(mask))
    return metric.compute()


def random_maps(shape, num_classes, seed, *, ignored=0.0, size=3):
    """A mask of blocks, a prediction that follows most of it, and ignored blocks."""
    random = np.random.default_rng(seed)

    def blocks(values):
        for axis, length in enumerate(shape):
            values = values.repeat(size, axis).take(range(length), axis)
        return values

    coarse = [-(-length // size) for length in shape]
    mask = blocks(random.integers(num_classes, size=coarse)).astype(np.uint8)
    other = random.integers(num_classes, size=shape).astype(np.uint8)
    prediction = np.where(random.random(shape) < 0.85, np.roll(mask, 1, axis=-1), other)
    mask = np.where(blocks(random.random(coarse)) < ignored, np.uint8(255), mask)
    return prediction, mask


def boundary_pixels(labels, label, *, with_edges):
    """Positions (N, axes), by looking at every pixel and each of its neighbours."""
    found = []
    for place in np.argwhere(labels == label):
        for axis, step in itertools.product(range(labels.ndim), (-1, 1)):
            beside = place.copy()
            beside[axis] += step
            is_inside = 0 <= beside[axis] < labels.shape[axis]
            if (is_inside and labels[tuple(beside)] not in (label, 255)) or (with_edges and not is_inside):
                found.append(place)
                break
    return np.array(found, dtype=float).reshape(-1, labels.ndim)


def by_all_pairs(prediction, mask, num_classes, theta, spacing):
    """(boundary_f, hd95), each (classes,)."""
    guess = np.where(mask == 255, 255, prediction)
    step = min(spacing)
    diagonal = math.sqrt(sum((length * size) ** 2 for length, size in zip(mask.shape, spacing)))
    tolerance = math.ceil(theta * diagonal / step) * step
    scores, distances = np.full(num_classes, np.nan), np.full(num_classes, np.nan)
    for label in range(num_classes):
        ours, theirs = (boundary_pixels(labels, label, with_edges=False) * spacing for labels in (guess, mask))
        if len(theirs):
            scores[label] = 0
            if len(ours):
                pairs = cdist(ours, theirs)
                precision = (pairs.min(1) <= tolerance + 1e-9).mean()
                recall = (pairs.min(0) <= tolerance + 1e-9).mean()
                scores[label] = 2 * precision * recall / max(precision + recall, 1e-9)
        ours, theirs = (boundary_pixels(labels, label, with_edges=True) * spacing for labels in (guess, mask))
        if len(ours) and len(theirs):
            pairs = cdist(ours, theirs)
            distances[label] = np.percentile([*pairs.min(1), *pairs.min(0)], 95)
    return scores, distances


@pytest.mark.parametrize("ignored", [0.0, 0.3])
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((13, 18), None),
        ((24, 9), (0.7, 1.9)),
        ((5, 11, 8), None),
        ((6, 9, 7), (2.5, 0.6, 0.9)),
        ((1, 8, 9), None),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_all_pairs(shape, spacing, ignored, seed):
    prediction, mask = random_maps(shape, 4, seed, ignored=ignored)
    sizes = np.ones(len(shape)) if spacing is None else np.array(spacing)
    # the smaller theta tells one pixel apart, the larger several
    for theta in (0.0075, 0.11):
        expected_f, expected_hd95 = by_all_pairs(prediction, mask, 4, theta, sizes)
        result = measured([(prediction, mask)], 4, theta=theta, spacing=spacing)
        np.testing.assert_allclose(result["per_class"]["boundary_f"], expected_f, rtol=1e-12)
        np.testing.assert_allclose(result["per_class"]["hd95"], expected_hd95, rtol=1e-12)
        assert result["boundary_f"].item() == pytest.approx(np.nanmean(expected_f), rel=1e-6)
        assert result["hd95"].item() == pytest.approx(np.nanmean(expected_hd95), rel=1e-6)


def ellipsoid(shape, centre, radii):
    grid = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return (sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii)) <= 1).astype(np.uint8)


# hd95 of medpy 0.5.2 (object, background) and of MONAI 1.6.1 (compute_hausdorff_distance, percentile=95; object), which
# computes in float32; 2026
PEERS = {
    "discs": ((64, 81), ((30, 40), (18, 18)), ((33, 47), (15, 22)), None, (10.198039027, 7.071067812), 10.720825195),
    "cut": ((47, 53), ((10, 50), (20, 14)), ((14, 48), (21, 11)), None, (4.123105626, 3.016227766), 4.384878159),
    "balls": (
        (21, 33, 40),
        ((10, 16, 20), (7, 11, 13)),
        ((11, 14, 23), (8, 9, 12)),
        None,
        (4.0, 2.236067977),
        4.242640495,
    ),
    "anisotropic": (
        (21, 33, 40),
        ((10, 16, 20), (7, 11, 13)),
        ((11, 14, 23), (8, 9, 12)),
        (2.5, 0.7, 0.8),
        (3.737646318, 2.5),
        4.216744423,
    ),
    "apart": ((50, 70), ((12, 12), (6, 6)), ((38, 55), (9, 4)), (0.5, 1.5), (67.298896750, 7.0), 67.515998840),
}


@pytest.mark.parametrize("case", PEERS)
def test_hd95_is_that_of_medpy_and_its_parts_give_that_of_monai(case):
    shape, one, other, spacing, (medpy, medpy_background), monai = PEERS[case]
    prediction, mask = ellipsoid(shape, *one), ellipsoid(shape, *other)
    found = measured([(prediction, mask)], 2, spacing=spacing)["per_class"]["hd95"]
    np.testing.assert_allclose(found, [medpy_background, medpy], rtol=0, atol=1e-8)
    surfaces = [points_by_class(outline(labels, with_edges=True), 2)[1] for labels in (prediction, mask)]
    parts = both_ways(*surfaces, shape, spacing or (1.0,) * len(shape))
    assert max(np.percentile(part, 95) for part in parts) == pytest.approx(monai, rel=1e-6)


def test_hd95_of_a_larger_picture_is_that_of_distance_transforms():
    prediction, mask = random_maps((150, 211), 3, seed=5, size=23)
    found = measured([(prediction, mask)], 3)["per_class"]["hd95"]
    for label in range(3):
        ours, theirs = ((labels == label) ^ binary_erosion(labels == label) for labels in (prediction, mask))
        both = np.concatenate([distance_transform_edt(~theirs)[ours], distance_transform_edt(~ours)[theirs]])
        assert found[label] == pytest.approx(np.percentile(both, 95), rel=1e-12)


@pytest.mark.parametrize("shape", [(40, 31), (6, 13, 9)])
def test_a_perfect_prediction_has_score_one_and_distance_zero(shape):
    _, mask = random_maps(shape, 4, seed=1, ignored=0.2)
    prediction = np.where(mask == 255, np.uint8(2), mask)
    result = measured([(prediction, mask)], 4)
    assert (result["boundary_f"].item(), result["hd95"].item()) == (1.0, 0.0)
    assert (result["missed"], result["spurious"]) == (0, 0)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shift", [1, 2, 5, 9])
def test_a_shifted_square_is_as_far_as_the_shift(shift, axis):
    """And its score falls as the shift leaves the tolerance: 0.0075 of 170 pixels is 2 once rounded up."""
    mask = np.zeros((120, 120), dtype=np.uint8)
    mask[30:80, 30:80] = 1
    result = measured([(np.roll(mask, shift, axis), mask)], 2)["per_class"]
    assert result["hd95"][1] == shift
    assert (result["boundary_f"][1] == 1) == (shift <= 2)
    with_spacing = measured([(np.roll(mask, shift, axis), mask)], 2, spacing=(3.0, 0.5))["per_class"]
    assert with_spacing["hd95"][1] == shift * (3.0, 0.5)[axis]


def test_prediction_and_truth_can_change_places():
    prediction, mask = random_maps((35, 44), 4, seed=2)
    one, other = measured([(prediction, mask)], 4), measured([(mask, prediction)], 4)
    for name in ("boundary_f", "hd95"):
        np.testing.assert_allclose(one["per_class"][name], other["per_class"][name], rtol=1e-14)


def test_the_unit_of_spacing_scales_distances_only():
    prediction, mask = random_maps((8, 15, 14), 3, seed=3)
    one = measured([(prediction, mask)], 3, theta=0.05, spacing=(2.0, 0.5, 0.5))["per_class"]
    larger = measured([(prediction, mask)], 3, theta=0.05, spacing=(20.0, 5.0, 5.0))["per_class"]
    np.testing.assert_allclose(larger["hd95"], 10 * one["hd95"], rtol=1e-12)
    np.testing.assert_allclose(larger["boundary_f"], one["boundary_f"], rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "theta", "spacing", "expected"),
    [
        ((512, 512), 0.0075, (1, 1), 6),  # 5.43
        ((10, 10), 0.0075, (1, 1), 1),  # 0.11
        ((300, 400), 0.01, (1, 1), 5),  # exactly 5
        ((300, 400), 0.0101, (1, 1), 6),
        ((300, 400), 0.01, (0.1, 0.1), 0.5),
        ((10, 30, 40), 0.05, (2.0, 0.5, 0.5), 2.0),  # diagonal 32.0, 1.6
    ],
)
def test_the_tolerance_is_rounded_up(shape, theta, spacing, expected):
    assert tolerance_of(shape, theta, spacing) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [1.0, 0.7])
def test_a_boundary_at_exactly_the_tolerance_counts(size):
    """Diagonal 50, theta 0.06: 3 pixels; 0.7 * 3 is not a sum of float64's."""
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[:, 20:] = 1
    scores = [
        measured(
            [(np.roll(mask, shift, 1) * (np.arange(40) > 5).astype(np.uint8), mask)], 2, theta=0.06, spacing=(size,) * 2
        )
        for shift in (3, 4)
    ]
    assert [score["boundary_f"].item() for score in scores] == [1.0, 0.0]


def squares(*corners):
    mask = np.zeros((30, 30), dtype=np.uint8)
    for label, (top, left) in enumerate(corners, start=1):
        mask[top : top + 8, left : left + 8] = label
    return mask


def test_a_missing_class_is_counted_and_has_no_distance():
    both, first = squares((2, 2), (15, 15)), squares((2, 2))
    missed = measured([(first, both)], 4)
    assert missed["per_class"]["missed"].tolist() == [0, 0, 1, 0]
    assert missed["per_class"]["pictures"].tolist() == [1, 1, 1, 0]
    assert np.isnan(missed["per_class"]["hd95"]).tolist() == [False, False, True, True]
    assert missed["per_class"]["boundary_f"][1:3].tolist() == [1.0, 0.0]  # nothing of its boundary was found
    assert (missed["missed"], missed["spurious"]) == (1, 0)
    spurious = measured([(both, first)], 4)
    assert spurious["per_class"]["spurious"].tolist() == [0, 0, 1, 0]
    assert np.isnan(spurious["per_class"]["hd95"]).tolist() == [False, False, True, True]
    assert np.isnan(spurious["per_class"]["boundary_f"]).tolist() == [False, False, True, True]
    assert spurious["per_class"]["boundary_f"][0] < 1  # the background it was taken from pays
    assert (spurious["missed"], spurious["spurious"]) == (0, 1)


def test_a_class_averages_its_own_pictures_then_classes_are_averaged():
    """Class 1 in three pictures, once missed; class 2 in one. A mean over pictures first would weigh class 1 thrice."""
    one, far, both = squares((2, 2)), squares((8, 2)), squares((2, 2), (15, 15))
    pictures = [(one, one), (far, one), (np.zeros_like(one), one), (both, both)]
    result = measured(pictures, 3, theta=1e-6)
    alone = [measured([picture], 3, theta=1e-6)["per_class"] for picture in pictures]
    for name, counted in (("boundary_f", [4, 4, 1]), ("hd95", [4, 3, 1])):
        expected = np.nanmean([scores[name] for scores in alone], axis=0)
        np.testing.assert_allclose(result["per_class"][name], expected, rtol=1e-12)
        assert result["per_class"][f"{name}_pictures"].tolist() == counted
        assert result[name].item() == pytest.approx(expected.mean(), rel=1e-6)
    assert result["missed"] == 1
    # the missed picture counts for F as 0, for the distance not at all: class 1 has 0, 6 and 0
    assert result["per_class"]["hd95"][1] == pytest.approx(alone[1]["hd95"][1] / 3)


def test_results_do_not_change_with_later_updates():
    metric = SurfaceMetrics(3)
    metric.update(*map(torch.from_numpy, random_maps((20, 21), 3, seed=0)))
    first = metric.compute()["per_class"]
    kept = {name: values.copy() for name, values in first.items()}
    metric.update(*map(torch.from_numpy, random_maps((20, 21), 3, seed=1)))
    assert metric.compute()["per_class"]["pictures"].tolist() == [2, 2, 2]
    for name, values in kept.items():
        np.testing.assert_array_equal(first[name], values)


def test_predictions_under_ignored_pixels_do_not_matter():
    prediction, mask = random_maps((40, 33), 4, seed=6, ignored=0.3)
    other = np.where(mask == 255, np.random.default_rng(0).integers(4, size=mask.shape).astype(np.uint8), prediction)
    assert (other != prediction).mean() > 0.1
    one, two = measured([(prediction, mask)], 4), measured([(other, mask)], 4)
    assert one["boundary_f"] == two["boundary_f"]
    for name, values in one["per_class"].items():
        np.testing.assert_array_equal(values, two["per_class"][name])
    # a class predicted there only is not predicted
    only_there = measured([(np.where(mask == 255, np.uint8(4), mask), mask)], 5)
    assert only_there["spurious"] == 0


def test_no_boundary_runs_along_ignored_pixels():
    """An object cut by an ignored strip, and one ringed by it: VOC's way, which leaves nothing to score."""
    mask = squares((10, 10))
    cut = mask.copy()
    cut[:, 14:17] = 255
    assert not (outline(cut, with_edges=False)[11:17, 13] == 1).any()  # inside the object, beside the strip
    assert (outline(cut, with_edges=False)[10, 10:14] == 1).all()
    perfect = measured([(mask, cut)], 2)
    assert (perfect["boundary_f"].item(), perfect["hd95"].item()) == (1.0, 0.0)
    ringed = np.full_like(mask, 0)
    ringed[9:19, 9:19] = 255
    ringed[10:18, 10:18] = 1
    result = measured([(mask, ringed)], 2)
    assert np.isnan(result["per_class"]["boundary_f"]).all()
    assert result["per_class"]["hd95"][0] == 0  # the picture's edge
    assert np.isnan(result["per_class"]["hd95"][1])
    assert (result["missed"], result["spurious"]) == (0, 0)


def test_the_edge_of_the_picture_is_a_surface_but_no_boundary():
    full = np.ones((9, 12), dtype=np.uint8)
    result = measured([(full, full)], 2)
    assert result["boundary_f"].isnan()
    assert result["hd95"].item() == 0
    with_hole = full.copy()
    with_hole[4, 5] = 0
    assert measured([(with_hole, full)], 2)["boundary_f"].isnan()
    assert measured([(full, with_hole)], 2)["boundary_f"].item() == 0


@pytest.mark.parametrize("pictures", [0, 1])
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # compute before update
def test_nothing_at_all_is_no_error(pictures):
    nothing = np.zeros((4, 5), dtype=np.uint8), np.full((4, 5), 255, dtype=np.uint8)
    result = measured([nothing] * pictures, 3)
    assert result["boundary_f"].isnan()
    assert result["hd95"].isnan()
    assert (result["missed"], result["spurious"]) == (0, 0)


def test_wrong_input_is_refused():
    picture = torch.zeros(6, 7, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"prediction is \(7, 6\) and the mask \(6, 7\); resize"):
        SurfaceMetrics(3).update(picture.T, picture)
    with pytest.raises(ValueError, match=r"a mask holds the label 3; labels are 0..2"):
        SurfaceMetrics(3).update(picture, picture + 3)
    with pytest.raises(ValueError, match=r"the maps are \(1, 1, 6, 7\); give one picture \(H, W\) or one volume"):
        SurfaceMetrics(3).update(picture[None, None], picture[None, None])
    with pytest.raises(ValueError, match=r"spacing \(1, 2, 3\) does not fit maps of shape \(6, 7\); give one size per"):
        SurfaceMetrics(3, spacing=[1, 2, 3]).update(picture, picture)
    with pytest.raises(ValueError, match=r"spacing is \(1.0, 0.0\); a pixel's size along an axis is positive"):
        SurfaceMetrics(3, spacing=(1.0, 0.0))
    with pytest.raises(ValueError, match=r"theta is 0; give a positive share"):
        SurfaceMetrics(3, theta=0)
    with pytest.raises(ValueError, match=r"num_classes is 1; masks hold 2 to 255 classes"):
        SurfaceMetrics(1)


def gather(rank, world_size, folder, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
    )
    metric = SurfaceMetrics(5)
    for seed in {0: (0, 1, 2), 1: (), 2: (3,)}[rank]:  # the second process has no picture
        metric.update(*map(torch.from_numpy, random_maps((20, 30), 4, seed, ignored=0.1)))
    result = metric.compute()
    queue.put((rank, {name: values.tolist() for name, values in result["per_class"].items()}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_processes_agree_with_one_even_if_one_has_no_picture(tmp_path):
    queue = torch.multiprocessing.get_context("fork").SimpleQueue()
    torch.multiprocessing.start_processes(gather, (3, str(tmp_path), queue), nprocs=3, start_method="fork")
    expected = measured([random_maps((20, 30), 4, seed, ignored=0.1) for seed in range(4)], 5)["per_class"]
    found = [queue.get() for _ in range(3)]
    assert sorted(rank for rank, _ in found) == [0, 1, 2]
    for _, per_class in found:
        assert per_class.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(per_class[name], values, rtol=1e-14)
