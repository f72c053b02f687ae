"""Tiles and views: boxes come back to where they were, objects in overlaps count once."""

import itertools
import math

import pytest
import torch

from vantage.ops.rotated_boxes import canonical, to_corners
from vantage.tasks.rotated_detection.postprocess import Detections
from vantage.tasks.rotated_detection.whole import VIEWS, WholeImages, view, view_back, windows

from .scenes import paint, random_target, target


@pytest.mark.parametrize("size", [(100, 100), (101, 250), (64, 64), (30, 500), (10, 10)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_tiles_cover_the_picture_and_share_at_least_the_overlap(size, overlap):
    found = windows(size, (64, 64), overlap)
    seen = torch.zeros(size)
    for left, top, width, height in found:
        assert left + width <= size[1]
        assert top + height <= size[0]
        assert (width, height) == (min(64, size[1]), min(64, size[0]))
        seen[top : top + height, left : left + width] += 1
    assert seen.min() >= 1
    for axis in (0, 1):
        starts = sorted({window[axis] for window in found})
        assert all(a + 64 - b >= overlap * 64 - 1e-6 for a, b in itertools.pairwise(starts))
    assert windows(size, None, overlap) == [(0, 0, size[1], size[0])]


@pytest.mark.parametrize(("turns", "mirrored"), VIEWS["flips_rotations"])
def test_a_box_of_a_view_goes_back_to_where_it_was_painted(turns, mirrored):
    """What is painted from the boxes of the view, turned back, is what is painted from the boxes that come back."""
    boxes = target([[30.0, 20, 40, 8, 0.5], [45, 50, 20, 6, -1.2]], [0, 1])
    seen = view_back(boxes["boxes"], (64, 64), turns, mirrored)
    there, here = paint(boxes), view(paint({**boxes, "boxes": seen}), turns, mirrored)
    assert (there != here).any(0).float().mean() < 0.01
    # and not square: corners of the picture
    height, width = 40, 60
    image = torch.zeros(1, height, width)
    image[0, 5, 50] = 1.0
    y, x = (view(image, turns, mirrored)[0] == 1).nonzero()[0].tolist()
    back = view_back(torch.tensor([[x + 0.5, y + 0.5, 3, 1, 0.0]]), (height, width), turns, mirrored)
    torch.testing.assert_close(back[0, :2], torch.tensor([50.5, 5.5]))


def finder(boxes, size):
    """Stands for a detector: the picture's pixels say where the piece lies, and it finds the boxes seen by half."""

    def detect(images):
        results = []
        for image in images:
            top, left = int(image[1].min()), int(image[0].min())
            inside = boxes[:, :2] - torch.tensor([left, top])
            height, width = image.shape[-2:]
            seen = (inside >= 0).all(1) & (inside[:, 0] < width) & (inside[:, 1] < height)
            found = torch.cat([inside[seen], boxes[seen, 2:]], 1)
            # nearer to the middle is surer
            middle = (inside[seen] - torch.tensor([width / 2, height / 2])).norm(dim=1)
            order = middle.argsort()
            results.append(Detections(found[order], 1 / (1 + middle[order]), torch.zeros(len(found), dtype=torch.long)))
        return results

    height, width = size
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return detect, torch.stack([xs, ys, xs]).float()


@pytest.mark.parametrize("size", [(64, 64), (150, 97)])
def test_objects_seen_by_several_tiles_count_once(size):
    height, width = size
    centres = itertools.product(range(12, width - 5, 24), range(12, height - 5, 24))
    boxes = torch.tensor([[x, y, 16.0, 6.0, 0.7] for x, y in centres])
    detect, image = finder(boxes, size)
    whole = WholeImages((64, 64), 0.3, "none", nms_threshold=0.1, max_detections=1000)
    (found,) = whole(detect, [image])
    assert len(found) == len(boxes)
    distance = (to_corners(found.boxes)[:, None] - to_corners(boxes)[None]).norm(dim=-1).amax(2)
    assert distance.amin(0).max() < 1e-3
    assert (found.scores.diff() <= 0).all()


@pytest.mark.parametrize("views", VIEWS)
def test_all_views_of_a_symmetric_detector_agree(views):
    """A detector that finds the brightest pixel finds the same one in every view."""

    def detect(images):
        results = []
        for image in images:
            y, x = divmod(int(image[0].argmax()), image.shape[2])
            box = torch.tensor([[x + 0.5, y + 0.5, 9.0, 9.0, 0.0]])
            results.append(Detections(box, torch.tensor([0.9]), torch.zeros(1, dtype=torch.long)))
        return results

    image = torch.zeros(3, 40, 60)
    image[:, 11, 37] = 1.0
    whole = WholeImages(None, 0.0, views, nms_threshold=0.1, max_detections=10)
    (found,) = whole(detect, [image])
    assert len(found) == 1
    torch.testing.assert_close(found.boxes[:, :2], torch.tensor([[37.5, 11.5]]))


def test_a_picture_alone_gives_what_it_gives_among_others():
    def detect(images):
        assert len({tuple(image.shape) for image in images}) == 1
        count = int(images[0, 0, 0, 0])
        boxes = canonical(random_target(count, 3)["boxes"])
        return [Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.long)) for _ in images]

    images = [torch.full((3, side, 64), float(side)) for side in (30, 64, 30, 50)]
    whole = WholeImages((64, 64), 0.2, "none", nms_threshold=0.1, max_detections=10, batch_size=2)
    for alone, among in zip([whole(detect, [image])[0] for image in images], whole(detect, images)):
        torch.testing.assert_close(alone.boxes, among.boxes)


def test_unknown_views_and_overlaps_are_refused():
    with pytest.raises(
        ValueError, match=r"task.test_views is 'all'; use one of none, flips, rotations, flips_rotations"
    ):
        WholeImages(None, 0.0, "all", 0.1, 10)
    with pytest.raises(ValueError, match=r"task.tile_overlap is 1.0; it is a share of the tile, in \[0, 1\)"):
        WholeImages(None, 1.0, "none", 0.1, 10)
    assert math.isfinite(windows((1, 1), (64, 64), 0.99)[0][2])
