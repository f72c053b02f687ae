"""How well boundaries are met, per class over pictures or volumes: boundary F-score and 95 % Hausdorff distance.

Boundary F-score of class c in a picture; B, B* its boundary pixels in prediction and truth, d the Euclidean distance:
    P = |{b in B: d(b, B*) <= tolerance}| / |B|      R = |{b in B*: d(b, B) <= tolerance}| / |B*|      F = 2PR / (P + R)
    tolerance = theta * diagonal of the picture, rounded up to whole pixels, so never below 1
Source: Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013 (theta = 0.75 %);
Perazzi et al., DAVIS, CVPR 2016 (the disk as tolerance, rounded up).
Counted in pictures whose truth has a boundary of c; 0 if the prediction has none there. The mean is over the class's
pictures, then over classes: a rare class weighs as much as a common one. SegNet (arXiv:1511.00561) and others average
over the classes of a picture first.

HD95 of class c; S, S* its surface pixels in prediction and truth:
    HD95 = the 95th percentile of {d(s, S*): s in S} and {d(s, S): s in S*} put together
as in medpy.metric.binary.hd95 and the Synapse figures made with it, distance from pixel centre to pixel centre. MONAI
takes the larger of the two sets' own percentiles, which is as much or more (interpolation aside).
A class that only the truth has is `missed`, one that only the prediction has is `spurious`: no distance exists, they
are counted and not averaged (as 0, as code for Synapse does, missing an organ would improve the mean).

A boundary pixel of c is one of c beside a pixel (4 neighbours, 6 in a volume) of another class. A surface pixel is
that or a pixel of c on the picture's edge: medpy erodes from outside, while a boundary that the camera cut is none.
Pixels that the mask ignores belong to no class in the prediction either, and no boundary runs along them. VOC, whose
objects are ringed by ignored pixels, has next to no boundary left to score.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torchmetrics
from scipy.spatial import KDTree
from torch import Tensor

from vantage.data.masks import IGNORE
from vantage.tasks.segmentation.metrics import checked_classes, checked_maps


class SurfaceMetrics(torchmetrics.Metric):
    """update(prediction, mask): integer class map and uint8 mask (H, W) of one picture, or (D, H, W) of one volume (a
    batch of pictures would be taken for a volume).

    theta: tolerance of the F-score as a share of the diagonal. spacing: size of a pixel along each axis, for distances
    in millimetres; the tolerance is then rounded up to whole steps of the finest axis. None: pixels.
    compute() -> {
        "boundary_f", "hd95"   means over the classes that have a value; NaN if none has
        "missed", "spurious"   pairs of a picture and a class that only the truth, only the prediction has
        "per_class"            {name: array (classes,)}: boundary_f, hd95 (NaN where there is none),
                               boundary_f_pictures, hd95_pictures (how many were averaged), pictures (whose truth has
                               the class), missed, spurious
    }
    Memory is O(classes). Runs on the CPU, whatever device the maps are on.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    def __init__(self, num_classes: int, *, theta: float = 0.0075, spacing: Sequence[float] | None = None):
        super().__init__()
        if theta <= 0:
            raise ValueError(f"theta is {theta}; give a positive share of the diagonal, 0.0075 say")
        if spacing is not None and min(spacing) <= 0:
            raise ValueError(f"spacing is {tuple(spacing)}; a pixel's size along an axis is positive")
        self.num_classes = checked_classes(num_classes)
        self.theta = theta
        self.spacing = None if spacing is None else tuple(spacing)
        for name in ("boundary_f_sum", "hd95_sum"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("boundary_f_pictures", "hd95_pictures", "pictures", "missed", "spurious"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, mask: Tensor) -> None:
        prediction, mask = checked_maps(prediction, mask, self.num_classes)
        guess, truth = without_ignored(prediction.cpu().numpy(), mask.cpu().numpy())
        spacing = checked_spacing(self.spacing, truth.shape)
        is_true, is_guessed = (present(labels, self.num_classes) for labels in (truth, guess))
        scores = {
            "boundary_f": boundary_f(
                guess, truth, self.num_classes, tolerance_of(truth.shape, self.theta, spacing), spacing
            ),
            "hd95": hd95(guess, truth, self.num_classes, spacing),
        }
        for name, values in scores.items():
            self.add(f"{name}_sum", np.nan_to_num(values))
            self.add(f"{name}_pictures", ~np.isnan(values))
        self.add("pictures", is_true)
        self.add("missed", is_true & ~is_guessed)
        self.add("spurious", is_guessed & ~is_true)

    def add(self, name: str, values: np.ndarray) -> None:
        state = getattr(self, name)
        state += torch.from_numpy(values).to(state)

    def compute(self) -> dict:
        per_class = {
            "boundary_f": self.boundary_f_sum / self.boundary_f_pictures,  # 0 / 0 = NaN
            "hd95": self.hd95_sum / self.hd95_pictures,
        }
        counts = ("boundary_f_pictures", "hd95_pictures", "pictures", "missed", "spurious")
        means = {name: values.nanmean().float() for name, values in per_class.items()}
        per_class |= {name: getattr(self, name) for name in counts}
        return {
            **means,
            "missed": int(self.missed.sum()),
            "spurious": int(self.spurious.sum()),
            "per_class": {name: values.cpu().numpy().copy() for name, values in per_class.items()},
        }


def boundary_f(
    guess: np.ndarray, truth: np.ndarray, num_classes: int, tolerance: float, spacing: Sequence[float]
) -> np.ndarray:
    """(classes,) F-scores of one picture, NaN where the truth has no boundary of the class; maps as `without_ignored`
    gives them."""
    scores = np.full(num_classes, np.nan)
    guesses, truths = (points_by_class(outline(labels, with_edges=False), num_classes) for labels in (guess, truth))
    reach = tolerance * (1 + 1e-9)  # sums of squared spacings round: a distance that equals the tolerance is within
    for label in range(num_classes):
        if not len(truths[label]):
            continue
        scores[label] = 0.0
        if len(guesses[label]):
            pair = guesses[label], truths[label]
            precision, recall = (
                np.isfinite(distances).mean() for distances in both_ways(*pair, truth.shape, spacing, reach=reach)
            )
            if precision + recall:
                scores[label] = 2 * precision * recall / (precision + recall)
    return scores


def hd95(guess: np.ndarray, truth: np.ndarray, num_classes: int, spacing: Sequence[float]) -> np.ndarray:
    """(classes,) distances of one picture, NaN where prediction or truth has no surface of the class; maps as
    `without_ignored` gives them."""
    values = np.full(num_classes, np.nan)
    guesses, truths = (points_by_class(outline(labels, with_edges=True), num_classes) for labels in (guess, truth))
    for label in range(num_classes):
        if len(guesses[label]) and len(truths[label]):
            distances = both_ways(guesses[label], truths[label], truth.shape, spacing)
            values[label] = np.percentile(np.concatenate(distances), 95)
    return values


def without_ignored(prediction: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and mask, both 255 where the mask is."""
    return np.where(mask == IGNORE, np.uint8(IGNORE), prediction), mask


def present(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.bincount(labels.ravel(), minlength=IGNORE + 1)[:num_classes] > 0


def tolerance_of(shape: Sequence[int], theta: float, spacing: Sequence[float]) -> float:
    """theta of the diagonal, rounded up to whole steps of the finest axis."""
    step = min(spacing)
    # the subtraction keeps an exact multiple, 0.01 of a diagonal of 500 say, from being rounded up by its last bit
    return math.ceil(theta * math.hypot(*(n * s for n, s in zip(shape, spacing))) / step - 1e-9) * step


def outline(labels: np.ndarray, *, with_edges: bool) -> np.ndarray:
    """The map with only its boundary pixels, 255 elsewhere; with_edges: also those on the edge of the picture."""
    is_labelled = labels != IGNORE
    is_boundary = np.zeros(labels.shape, dtype=bool)
    for axis in range(labels.ndim):
        before, after = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        differ = (labels[before] != labels[after]) & is_labelled[before] & is_labelled[after]
        is_boundary[before] |= differ
        is_boundary[after] |= differ
        if with_edges:
            for end in (0, -1):
                is_boundary[(slice(None),) * axis + (end,)] = True
    return np.where(is_boundary, labels, np.uint8(IGNORE))


def points_by_class(outlines: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """Per class the flat indices of its pixels, ascending."""
    points = np.flatnonzero(outlines != IGNORE)
    labels = outlines.ravel()[points]
    order = labels.argsort(kind="stable")
    return np.split(points[order], np.bincount(labels, minlength=num_classes).cumsum()[:-1])


def both_ways(
    ones: np.ndarray, others: np.ndarray, shape: Sequence[int], spacing: Sequence[float], *, reach: float = math.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each of `ones` to the nearest of `others`, and the other way; flat indices (N,), (M,) -> (N,), (M,).

    From `reach` on a distance is infinite.
    """
    return nearest(ones, others, shape, spacing, reach), nearest(others, ones, shape, spacing, reach)


def nearest(
    points: np.ndarray, targets: np.ndarray, shape: Sequence[int], spacing: Sequence[float], reach: float
) -> np.ndarray:
    # a tree of outline pixels, for a distance transform visits the area: 10x the time on pictures and volumes;
    # what lies on a target, most of a good prediction, needs no search
    values = np.zeros(len(points))
    is_off = ~np.isin(points, targets, assume_unique=True)
    if is_off.any():
        # on a grid splitting at the middle is balanced enough, and builds faster than by medians
        tree = KDTree(positions(targets, shape, spacing), leafsize=32, balanced_tree=False, compact_nodes=False)
        values[is_off] = tree.query(positions(points[is_off], shape, spacing), distance_upper_bound=reach)[0]
    return values


def positions(points: np.ndarray, shape: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """Flat indices (N,) -> coordinates (N, axes)."""
    return np.stack(np.unravel_index(points, shape), axis=1) * np.asarray(spacing)


def checked_spacing(spacing: Sequence[float] | None, shape: Sequence[int]) -> Sequence[float]:
    if len(shape) not in (2, 3):
        raise ValueError(f"the maps are {tuple(shape)}; give one picture (H, W) or one volume (D, H, W) per call")
    if spacing is None:
        return (1.0,) * len(shape)
    if len(spacing) != len(shape):
        raise ValueError(f"spacing {tuple(spacing)} does not fit maps of shape {tuple(shape)}; give one size per axis")
    return spacing
