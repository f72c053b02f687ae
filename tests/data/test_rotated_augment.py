"""Boxes move with the pixels: each object is painted in a colour of its own and found again after every step."""

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from vantage.data.errors import DataError
from vantage.data.rotated_augment import IGNORE, RotatedAugment, as_tensors, as_tv_tensors, move, with_sight
from vantage.ops.rotated_boxes import canonical, from_corners, points_in_rotated_boxes, to_corners

FILL = (7, 8, 9)
BOXES = torch.tensor(
    [
        [40.0, 30, 36, 14, 0.4],
        [100, 40, 30, 30, 0.0],
        [60, 90, 50, 12, -1.2],
        [120, 100, 20, 8, 1.5],
        [25, 75, 24, 10, 0],
    ]
)


def sample(boxes=BOXES, height=120, width=150, masks=True):
    """Object i is a rectangle of grey 100 + 20 i, and of i + 1 in the mask."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = torch.stack([x, y], -1).view(-1, 2) + 0.5
    mask = torch.zeros(height, width, dtype=torch.uint8)
    for i, inside in enumerate(points_in_rotated_boxes(centres, boxes).unbind(1)):
        mask[inside.view(height, width)] = i + 1
    grey = torch.where(mask > 0, 80 + 20 * mask, 30).to(torch.uint8)
    pixels = grey.expand(3, -1, -1).contiguous()
    made = {"image": pixels, "boxes": canonical(boxes), "labels": torch.arange(len(boxes))}
    made |= {"difficult": torch.zeros(len(boxes), dtype=torch.bool), "name": "a", "index": 3, "size": (height, width)}
    return made | ({"masks": mask} if masks else {})


def nothing():
    raise AssertionError("no mosaic was asked for")


def apply(augment, given, size=(120, 150), seed=0, another=nothing):
    torch.manual_seed(seed)
    return augment(given, size, FILL, another)


def check_against_pixels(out, tolerance=1.6):
    """Every object wholly on the picture has the box that its pixels have."""
    height, width = out["size"]
    assert out["image"].shape[-2:] == (height, width)
    assert out["image"].dtype == torch.uint8
    assert torch.equal(out["boxes"], canonical(out["boxes"]))
    found = 0
    for box, label in zip(out["boxes"], out["labels"].tolist()):
        corners = to_corners(box)
        if bool((corners < 1).any() | (corners > torch.tensor([width - 1, height - 1])).any()):
            continue
        ink = (out["masks"] == label + 1).nonzero().flip(-1) + 0.5
        assert len(ink), f"object {label} is not where its box is"
        assert abs(len(ink) - float(box[2] * box[3])) < 0.12 * len(ink) + 8
        seen = from_corners(ink)
        assert (seen[:2] - box[:2]).norm() < tolerance
        expected = to_corners(box + torch.tensor([0, 0, -1, -1, 0]))  # between the centres of the outermost pixels
        assert torch.cdist(expected, to_corners(seen)).min(1).values.max() < 2 * tolerance
        inside = out["image"][0][out["masks"] == label + 1]
        assert (inside.float() - (100 + 20 * label)).abs().median() <= 2
        found += 1
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"flip": 1.0},
        {"vertical_flip": 1.0},
        {"transpose": 1.0},
        {"quarter_turn": True},
        {"flip": 1.0, "transpose": 1.0, "vertical_flip": 0.5},
        {"rotate": 1.0, "rotate_deg": 180.0},
        {"zoom": (0.5, 1.5)},
        {"rotate": 1.0, "zoom": (0.7, 1.3), "flip": 0.5, "transpose": 0.5},
    ],
    ids=str,
)
def test_boxes_masks_and_pixels_move_together(options):
    augment = RotatedAugment(**options)
    found = 0
    for seed in range(8):
        size = (120, 120) if "transpose" in options or "quarter_turn" in options else (120, 150)  # never padded
        found += check_against_pixels(apply(augment, sample(), size, seed))
    assert found >= 12


def test_exact_steps_by_hand():
    box = sample(torch.tensor([[40.0, 30, 36, 14, 0.4]]))

    def moved(**options):
        size = (150, 120) if "transpose" in options else (120, 150)
        return apply(RotatedAugment(**options), box, size)["boxes"][0]

    assert torch.allclose(moved(flip=1.0), torch.tensor([110.0, 30, 36, 14, -0.4]), atol=1e-5)
    assert torch.allclose(moved(vertical_flip=1.0), torch.tensor([40.0, 90, 36, 14, -0.4]), atol=1e-5)
    assert torch.allclose(moved(transpose=1.0), torch.tensor([30.0, 40, 36, 14, math.pi / 2 - 0.4]), atol=1e-5)
    upright = sample(torch.tensor([[40.0, 30, 36, 14, -math.pi / 2]]))
    assert float(apply(RotatedAugment(flip=1.0), upright)["boxes"][0, 4]) == -torch.tensor(math.pi / 2)


@pytest.mark.parametrize(("angle", "scale"), [(30.0, 1.0), (-75.0, 1.3), (180.0, 0.6), (90.0, 1.0)])
def test_turned_and_scaled_boxes_are_exact(angle, scale):
    geometry = pytest.importorskip("shapely.geometry", reason="the dev extra has shapely")
    given = sample()
    options = {"angle": angle, "translate": [0, 0], "scale": scale, "shear": [0.0, 0.0]}
    moved = with_sight(move(as_tv_tensors(given), F.affine, FILL, **options))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    centre = torch.tensor([75.0, 60], dtype=torch.float64)
    turn = scale * torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)  # clockwise: y points down
    expected = (to_corners(given["boxes"].double()) - centre) @ turn.T + centre
    for corners, wanted in zip(to_corners(as_tensors(moved)["boxes"]), expected):
        a, b = geometry.Polygon(corners.tolist()), geometry.Polygon(wanted.tolist())
        assert a.intersection(b).area / a.union(b).area > 0.9999


def test_half_a_turn_moves_pixels_as_two_flips_do():
    """A picture is turned around its centre and not around that of its middle pixel, as boxes are."""
    given = as_tv_tensors(sample())
    turned = move(given, F.affine, FILL, angle=180.0, translate=[0, 0], scale=1.0, shear=[0.0, 0.0])
    assert torch.equal(turned["image"], given["image"].flip(-1, -2))
    assert torch.equal(turned["masks"], given["masks"].flip(-1, -2))


def test_without_any_step_the_sample_is_the_same():
    given = sample()
    out = apply(RotatedAugment(), given)
    assert torch.equal(out["image"], given["image"])
    assert torch.equal(out["masks"], given["masks"])
    assert torch.allclose(out["boxes"], given["boxes"], atol=1e-5)
    assert {type(out[key]) for key in ("image", "boxes", "masks")} == {torch.Tensor}
    assert (out["name"], out["index"], out["size"]) == ("a", 3, (120, 150))


def test_the_edge_shrinks_no_box():
    """torchvision's default clamping would."""
    boxes = torch.tensor([[2.0, 60, 40, 16, 0.7]])
    out = apply(RotatedAugment(flip=1.0), sample(boxes))
    assert torch.allclose(out["boxes"][0, 2:4], torch.tensor([40.0, 16]), atol=1e-4)


def test_crops_keep_the_mostly_visible():
    boxes = torch.tensor([[50.0, 50, 40, 20, 0.0]])
    augment = RotatedAugment(keep_visible=0.7)
    seen = set()
    for seed in range(200):
        out = apply(augment, sample(boxes), (60, 60), seed)
        if not len(out["boxes"]):
            assert not (out["masks"] == 1).any()
            seen.add("gone")
            continue
        (_, _, w, h, _), share = out["boxes"][0].tolist(), float((out["masks"] == 1).sum()) / 800
        assert (w, h) == (40, 20)  # never clipped
        assert bool(out["difficult"]) == (share < 0.7 - 1e-6)
        assert 0 < share <= 1.1
        seen.add("cut" if out["difficult"] else "kept")
        assert check_against_pixels(out) in (0, 1)
    assert seen == {"gone", "cut", "kept"}


def test_an_object_cut_before_is_measured_by_what_was_visible():
    boxes = torch.tensor([[0.0, 60, 40, 16, 0.0]])  # half outside
    out = apply(RotatedAugment(flip=1.0), sample(boxes))
    assert out["difficult"].tolist() == [False]
    marked = sample(boxes) | {"difficult": torch.tensor([True])}
    assert apply(RotatedAugment(flip=1.0), marked)["difficult"].tolist() == [True]


def test_small_pictures_are_padded_with_the_fill_colour():
    out = apply(RotatedAugment(), sample(height=120, width=150), (200, 180), seed=1)
    padding = out["masks"] == IGNORE
    assert int(padding.sum()) == 200 * 180 - 120 * 150
    assert (out["image"][:, padding] == torch.tensor(FILL)[:, None]).all()
    assert check_against_pixels(out) == 5
    wide = apply(RotatedAugment(), sample(height=120, width=150), (200, 100), seed=1)
    assert wide["image"].shape == (3, 200, 100)


def test_what_left_the_picture_does_not_come_back_with_padding():
    augment = RotatedAugment(rotate=1.0, zoom=(1.3, 1.3))
    lost = 0
    for seed in range(30):
        out = apply(augment, sample(), (300, 300), seed)  # the whole canvas of the rotation, and padding
        for label, difficult in zip(out["labels"].tolist(), out["difficult"].tolist()):
            visible = int((out["masks"] == label + 1).sum()) / float(BOXES[label, 2] * BOXES[label, 3] * 1.3**2)
            assert visible > 0
            assert difficult == (visible < 0.7) or abs(visible - 0.7) < 0.12
        lost += len(BOXES) - len(out["boxes"])
    assert lost > 5


def test_what_was_never_on_the_picture_does_not_enter_it():
    boxes = torch.tensor([[75.0, 60, 40, 16, 0.7], [75.0, -40, 40, 16, 0.7]])
    out = apply(RotatedAugment(zoom=(0.4, 0.4)), sample(boxes))
    assert out["labels"].tolist() == [0]


def test_padding_is_no_sight_of_an_object():
    """A picture lower than the window, and wider: rows are padded, columns cut."""
    boxes = torch.tensor([[60.0, 2, 30, 12, 0.0]])  # a third of it above the picture, as labels have it
    seen = set()
    for seed in range(60):
        out = apply(RotatedAugment(), sample(boxes, 40, 120), (100, 50), seed)
        for box, difficult in zip(out["boxes"], out["difficult"].tolist()):
            x = float(box[0])
            assert difficult == (min(50.0, x + 15) - max(0.0, x - 15) < 0.7 * 30)
            seen.add(difficult)
    assert seen == {True, False}


def test_rotation_fills_the_corners():
    out = apply(RotatedAugment(rotate=1.0, rotate_deg=45.0), sample(), seed=2)
    corner = out["masks"] == IGNORE
    assert 0.02 < corner.float().mean() < 0.5
    assert (out["image"][:, corner].float() - torch.tensor(FILL)[:, None]).abs().median() == 0


def test_mosaic_joins_four_pictures():
    others = iter(range(1000))

    def another():
        made = sample(BOXES + 0.0)
        made["labels"] = made["labels"] + 10 * (1 + next(others) % 3)
        return made

    found = 0
    for seed in range(20):
        out = apply(RotatedAugment(mosaic=1.0), sample(), (160, 160), seed, another)
        assert out["image"].shape == (3, 160, 160)
        assert out["masks"].shape == (160, 160)
        assert len(out["boxes"]) == len(out["labels"]) == len(out["difficult"])
        corners = to_corners(out["boxes"])
        assert (corners[..., 0].amax(1) > 0).all()
        for box, label, difficult in zip(out["boxes"], out["labels"].tolist(), out["difficult"].tolist()):
            x, y = (int(v) for v in box[:2])
            if not difficult and 0 <= x < 160 and 0 <= y < 160:
                assert int(out["image"][0, y, x]) == 100 + 20 * (label % 10)
                found += 1
    assert found > 60


@pytest.mark.parametrize("masks", [True, False])
def test_a_picture_without_objects(masks):
    augment = RotatedAugment(
        mosaic=0.5, flip=0.5, transpose=0.5, rotate=0.7, zoom=(0.5, 2.0), quarter_turn=True, color_jitter=0.3
    )
    for seed in range(10):
        empty = sample(torch.zeros(0, 5), masks=masks)
        out = apply(augment, empty, (100, 90), seed, lambda: sample(torch.zeros(0, 5), masks=masks))
        assert out["boxes"].shape == (0, 5)
        assert out["image"].shape == (3, 100, 90)
        assert ("masks" in out) == masks


def test_thousands_of_boxes():
    rng = torch.Generator().manual_seed(0)
    boxes = torch.rand(5000, 5, generator=rng) * torch.tensor([300.0, 300, 20, 20, 3]) + torch.tensor(
        [0, 0, 4, 4, -1.5]
    )
    made = sample(BOXES, 300, 300, masks=False) | {
        "boxes": canonical(boxes),
        "labels": torch.zeros(5000, dtype=torch.int64),
        "difficult": torch.zeros(5000, dtype=torch.bool),
    }
    out = apply(RotatedAugment(flip=0.5, rotate=1.0, zoom=(0.8, 1.2)), made, (256, 256))
    assert 1000 < len(out["boxes"]) < 5000
    assert out["boxes"].isfinite().all()


def test_colour_changes_pixels_alone():
    given = sample()
    out = apply(RotatedAugment(color_jitter=0.5), given)
    assert not torch.equal(out["image"], given["image"])
    assert torch.allclose(out["boxes"], given["boxes"], atol=1e-5)
    assert torch.equal(out["masks"], given["masks"])


def test_options_out_of_range_are_refused():
    for options, sentence in {
        (("flip", 1.5),): r"augment.flip=1.5 is outside 0..1",
        (("rotate_deg", 270.0),): r"augment.rotate_deg=270.0 is outside 0..180",
        (("zoom", (1.5, 0.5)),): r"augment.zoom=\[1.5, 0.5\] is not a pair 0 < low <= high",
        (("keep_visible", -1.0),): r"augment.keep_visible=-1.0 is outside 0..1",
    }.items():
        with pytest.raises(DataError, match=sentence):
            RotatedAugment(**dict(options))
