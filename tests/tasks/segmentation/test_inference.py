"""Whole pictures: tiles against a plain loop, bands against whole arrays, panoramas that turn, memory that stays."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from vantage.attention import Neighborhood
from vantage.backbones.build import build_backbone
from vantage.tasks.segmentation.inference import WholePictures
from vantage.tasks.segmentation.resize import Resize, resize
from vantage.tasks.segmentation.windows import circle, line
from vantage.tasks.segmentation.wrap import wrap

CLASSES = 7


def convolutions(stride=1, kernel=3):
    """A model with a border, that gives its scores at a stride."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 8, kernel, stride=stride, padding=kernel // 2), nn.ReLU(), nn.Conv2d(8, CLASSES, 3, padding=1)
    )
    return net.eval()


def pointwise():
    torch.manual_seed(3)
    return nn.Conv2d(3, CLASSES, 1).eval()


def picture(height, width, seed=0):
    """Smooth, so that no two classes are as good as each other in many places."""
    torch.manual_seed(seed)
    return F.interpolate(torch.randn(1, 3, height // 6 + 2, width // 6 + 2), (height, width), mode="bicubic")[0]


def slid(whole, model, image):
    """The scores (K, H, W) before anything is decided."""
    with torch.no_grad():
        scores = whole.slide(model, image)
        return scores.rows(0, scores.height)[0]


class Network(nn.Module):
    """Maps of a backbone joined at the finest, and a convolution."""

    def __init__(self, family, **options):
        super().__init__()
        torch.manual_seed(5)
        self.backbone = build_backbone(family, f"{family}_pico32", **options)
        self.resize = Resize()
        self.head = nn.Conv2d(sum(self.backbone.channels), CLASSES, 3, padding=1)
        self.eval()

    def forward(self, x):
        maps = self.backbone.features(x)
        return self.head(torch.cat([self.resize(one, maps[0].shape[-2:]) for one in maps], 1)) * 10


# where tiles lie


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 100, 257])
@pytest.mark.parametrize("overlap", [0.0, 1 / 3, 0.5, 0.9])
def test_tiles_cover_an_axis_and_share_at_least_the_overlap(length, overlap):
    for make in (line, circle):
        axis = make(length, 32, overlap)
        assert axis.size == min(32, length)
        counts = torch.zeros(length)
        for start in axis.starts:
            for place, tile in axis.spans(start):
                assert place.stop - place.start == tile.stop - tile.start
                counts[place] += 1
        assert counts.min() >= 1
        torch.testing.assert_close(axis.counts(), counts)
        starts = axis.starts + ([axis.starts[0] + length] if make is circle else [])
        if length > 32:
            assert all(a + 32 - b >= math.floor(overlap * 32) for a, b in itertools.pairwise(starts))
    assert line(length, 32, overlap).starts[-1] == max(0, length - 32)


@pytest.mark.parametrize("length", [2, 10, 50, 64, 66, 94, 250])
@pytest.mark.parametrize("overlap", [0.0, 1 / 3, 0.6])
def test_tiles_on_a_circle_are_the_same_after_half_a_turn(length, overlap):
    starts = circle(length, 32, overlap).starts
    assert sorted((start + length // 2) % length for start in starts) == sorted(starts)
    assert len(starts) % 2 == 0
    most = 32 - math.ceil(overlap * 32) if length > 32 else length
    assert length / len(starts) <= most
    assert len(starts) == 2 or length / (len(starts) - 2) > most  # the least even number


# sliding


def naive(predict, image, tile, overlap, wraps):
    """The loop that everybody writes: pixel indices of every tile, dense sums and counts."""
    height, width = image.shape[-2:]
    rows = line(height, tile[0], overlap)
    columns = (circle if wraps else line)(width, tile[1], overlap)
    sums, counts = torch.zeros(CLASSES, height, width, dtype=torch.float64), torch.zeros(height, width)
    for top, left in itertools.product(rows.starts, columns.starts):
        y = torch.arange(top, top + min(tile[0], height))[:, None]
        x = torch.arange(left, left + min(tile[1], width)) % width
        logits = predict(image[:, y, x][None])
        sums[:, y, x] += F.interpolate(logits, (len(y), len(x)), mode="bilinear")[0].double()
        counts[y, x] += 1
    return sums / counts


@pytest.mark.parametrize("size", [(50, 70), (33, 20), (20, 97), (1, 80), (80, 1), (32, 48)])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("wraps", [False, True])
def test_sliding_is_the_plain_loop(size, stride, wraps):
    model, image = convolutions(stride), picture(*size)
    for overlap, max_batch in ((0.0, 1), (1 / 3, 4), (0.6, 3)):
        whole = WholePictures("slide", tile=(32, 48), overlap=overlap, wraps=wraps, max_batch=max_batch)
        with torch.no_grad():
            expected = naive(model, image, (32, 48), overlap, wraps)
            scores = slid(whole, model, image)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, expected.float(), rtol=1e-5, atol=1e-5)
        labels = whole(model, image, size)
        assert labels.dtype == torch.uint8
        assert labels.shape == size
        assert (labels != expected.argmax(0)).float().mean() < 1e-3


@pytest.mark.parametrize("size", [(50, 70), (33, 20), (20, 97), (1, 80), (80, 1)])
@pytest.mark.parametrize("wraps", [False, True])
def test_a_model_without_surroundings_needs_no_whole_picture(size, wraps):
    model, image = pointwise(), picture(*size)
    whole = WholePictures("whole", wraps=wraps)
    slide = WholePictures("slide", tile=(16, 24), wraps=wraps)
    with torch.no_grad():
        torch.testing.assert_close(slid(slide, model, image), model(image[None])[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(slide(model, image, size), whole(model, image, size))
    assert torch.equal(whole(model, image, size), model(image[None])[0].argmax(0).byte())


def test_tiles_are_batched_in_order_and_never_padded():
    seen = []

    def predict(images):
        seen.append(tuple(images.shape))
        return images

    WholePictures("slide", tile=(16, 16), overlap=0.0, max_batch=4)(predict, picture(16, 16 * 9), (16, 16 * 9))
    assert seen == [(3, 3, 16, 16)] * 3  # not 4, 4 and 1
    seen.clear()
    WholePictures("slide", tile=(64, 16), overlap=0.5, max_batch=2)(predict, picture(20, 16), (20, 16))
    assert seen == [(1, 3, 20, 16)]
    seen.clear()
    WholePictures("slide", tile=(64, 64), max_batch=8, wraps=True)(predict, picture(20, 16), (20, 16))
    assert seen == [(2, 3, 20, 16)]  # itself and turned by half


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_scores_of_half_precision_and_channels_last_are_resized_and_summed_in_single(mode):
    model, image, options = convolutions(4), picture(50, 70), {"mode": mode, "tile": (32, 32)}
    half = WholePictures(**options).with_confidence(
        lambda images: channels_last(model(images).bfloat16()), image, (90, 61)
    )
    full = WholePictures(**options).with_confidence(lambda images: model(images).bfloat16().float(), image, (90, 61))
    torch.testing.assert_close(half[1], full[1], rtol=1e-5, atol=1e-6)
    assert torch.equal(half[0], full[0])


def test_a_model_may_give_its_next_scores_in_the_same_memory():
    """As one does that was compiled into a CUDA graph."""
    model, image, kept = convolutions(4), picture(50, 70), torch.empty(1, CLASSES, 8, 8)
    slide = WholePictures("slide", tile=(32, 32), max_batch=1, flip=True)
    expected = slide.with_confidence(model, image, (50, 70))
    again = slide.with_confidence(lambda images: kept.copy_(model(images)), image, (50, 70))
    assert all(torch.equal(one, other) for one, other in zip(again, expected))


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


# panoramas


@pytest.mark.parametrize("attention", [None, partial(Neighborhood, kernel_size=3)])
@pytest.mark.parametrize("tile", [(32, 48), (64, 256)])
def test_a_panorama_turned_by_half_gives_the_labels_turned_by_half(attention, tile):
    """For attentions too, whose windows know no circle."""
    model, size = Network("maxvit", attention=attention), (40, 148)
    image = picture(*size)
    turned = image.roll(74, -1)
    slide = WholePictures("slide", tile=tile, wraps=True)
    with torch.no_grad():
        scores, back = slid(slide, model, image), slid(slide, model, turned).roll(-74, -1)
        torch.testing.assert_close(back, scores, rtol=1e-4, atol=1e-4)
    for to in (size, (61, 222), (20, 74)):
        same = slide(model, turned, to).roll(-(to[1] // 2), -1) == slide(model, image, to)
        assert same.float().mean() >= 0.99
    flat = WholePictures("slide", tile=tile)
    with torch.no_grad():
        difference = slid(flat, model, turned).roll(-74, -1) - slid(flat, model, image)
    assert difference.abs().max() > 0.1  # the seam shows


def test_a_wrapped_model_turns_in_one_piece_at_all_scales():
    model, size = Network("resnet"), (40, 128)
    image = picture(*size)
    whole = WholePictures("whole", wraps=True, scales=(0.5, 1.0, 1.25), flip=True)
    seam = whole.with_confidence(model, image.roll(64, -1), (50, 160))[1].roll(80, -1)
    assert (seam - whole.with_confidence(model, image, (50, 160))[1]).abs().max() > 0.01
    assert wrap(model) == []
    labels, confidence = whole.with_confidence(model, image, (50, 160))
    turned, its_confidence = whole.with_confidence(model, image.roll(64, -1), (50, 160))
    torch.testing.assert_close(its_confidence.roll(80, -1), confidence, rtol=1e-4, atol=1e-4)
    assert (turned.roll(80, -1) == labels).float().mean() >= 0.999


# views


def test_views_average_probabilities_on_the_output():
    """Against the sentence it implements, written with whole arrays."""
    model, size, to = convolutions(2), (50, 70), (44, 90)
    image = picture(*size)
    expected, scales = torch.zeros(CLASSES, *to), (0.8, 1.0, 1.5)
    with torch.no_grad():
        for scale in scales:
            scaled = [2 * round(side * scale / 2) for side in size]
            view = F.interpolate(image[None], scaled, mode="bilinear", antialias=True)
            for mirrored in (False, True):
                logits = model(view.flip(-1) if mirrored else view)
                logits = logits.flip(-1) if mirrored else logits
                expected += F.interpolate(logits, to, mode="bilinear")[0].softmax(0) / 6
    labels, confidence = WholePictures("whole", scales=scales, flip=True).with_confidence(model, image, to)
    torch.testing.assert_close(confidence, expected.amax(0), rtol=1e-4, atol=1e-5)
    assert (labels != expected.argmax(0)).float().mean() < 1e-3
    one_tile = WholePictures("slide", tile=(200, 200), scales=scales, flip=True).with_confidence(model, image, to)
    torch.testing.assert_close(one_tile[1], confidence, rtol=0.05, atol=0.05)  # resized twice


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_a_model_that_knows_no_left_and_right_is_not_changed_by_mirroring(mode):
    model, image = convolutions(), picture(40, 64)
    for layer in (model[0], model[2]):
        layer.weight.data += layer.weight.data.flip(-1)
    # tiles that lie symmetrically: 0, 16, 32 of 64
    options = {"mode": mode, "tile": (40, 32), "overlap": 0.5}
    plain = WholePictures(**options).with_confidence(model, image, (80, 128))
    mirrored = WholePictures(**options, flip=True).with_confidence(model, image, (80, 128))
    torch.testing.assert_close(mirrored[1], plain[1], rtol=1e-4, atol=1e-5)
    assert (mirrored[0] != plain[0]).float().mean() < 1e-3
    model[0].weight.data[..., 0] += 1  # now it does
    other = WholePictures(**options, flip=True).with_confidence(model, image, (80, 128))
    assert (other[1] - WholePictures(**options).with_confidence(model, image, (80, 128))[1]).abs().max() > 0.01


def test_probabilities_are_averaged_as_they_are():
    model, image = pointwise(), picture(40, 50)

    def predict(images):
        return model(images).sigmoid()  # independent of each other, as scores of masks are

    scores = predict(image[None])[0]
    labels, confidence = WholePictures("whole", scores="probabilities").with_confidence(predict, image, (40, 50))
    assert torch.equal(labels, scores.argmax(0).byte())
    torch.testing.assert_close(confidence, scores.amax(0) / scores.sum(0))
    views = WholePictures("whole", scores="probabilities", flip=True).with_confidence(predict, image, (40, 50))
    torch.testing.assert_close(views[1], confidence)
    nothing = WholePictures("whole", scores="probabilities").with_confidence(torch.zeros_like, image, (40, 50))
    assert torch.equal(nothing[1], torch.zeros(40, 50))


def test_no_view_is_smaller_than_backbones_take():
    seen = []
    whole = WholePictures("whole", scales=(0.25, 1.0, 1.5))
    whole(lambda images: seen.append(tuple(images.shape[-2:])) or images, picture(33, 200), (33, 200))
    assert seen == [(32, 50), (33, 200), (50, 300)]


# the last step, by bands


@pytest.mark.parametrize("size", [(64, 300), (301, 97), (40, 1), (1, 40)])
@pytest.mark.parametrize("to", [(64, 300), (650, 401), (33, 50), (301, 97)])
@pytest.mark.parametrize("wraps", [False, True])
def test_bands_decide_as_whole_arrays_do(size, to, wraps):
    torch.manual_seed(1)
    scores = torch.randn(1, 40, *size)  # 40 classes: several bands
    whole = WholePictures("whole", wraps=wraps)
    labels, confidence = whole.with_confidence(lambda _: scores, torch.zeros(3, *size), to)
    expected = resize(scores, to, wraps=wraps)[0]
    best = expected.softmax(0).amax(0)
    torch.testing.assert_close(confidence, best, rtol=1e-4, atol=1e-5)
    chosen = expected.gather(0, labels[None].long())[0]
    torch.testing.assert_close(chosen, expected.amax(0), rtol=0, atol=1e-5)
    assert (labels != expected.argmax(0)).sum() <= 1 + labels.numel() // 100_000  # as good as each other
    assert torch.equal(whole(lambda _: scores, torch.zeros(3, *size), to), labels)


def test_of_equal_scores_the_first_class_wins_and_255_classes_fit():
    whole = WholePictures("whole")
    assert not whole(lambda x: torch.ones(1, 5, 8, 8), torch.zeros(3, 8, 8), (8, 8)).any()
    scores = torch.eye(255).view(1, 255, 15, 17)
    labels = whole(lambda x: scores, torch.zeros(3, 15, 17), (15, 17))
    assert labels.flatten().tolist() == list(range(255))


# sizes and errors


@pytest.mark.parametrize("family", ["maxvit", "resnet", "vit"])
@pytest.mark.parametrize("size", [(32, 32), (32, 161), (117, 40), (65, 97)])
def test_pictures_of_any_size(family, size):
    model, image = Network(family), picture(*size)
    for mode, wraps in itertools.product(("whole", "slide"), (False, True)):
        whole = WholePictures(mode, tile=(64, 48), wraps=wraps, scales=(0.75, 1.0), flip=True)
        labels = whole(model, image, (50, 31))
        assert labels.shape == (50, 31)
        assert labels.max() < CLASSES


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "slide"}, "task.inference is slide and task.tile is null; set task.tile or use"),
        (
            {"mode": "slide", "tile": (0, 32)},
            r"task.tile is \(0, 32\); it is the height and width of a tile, in pixels",
        ),
        ({"mode": "whole", "overlap": 1.0}, r"task.tile_overlap is 1.0; it is a share of the tile, in \[0, 1\)"),
        ({"mode": "whole", "overlap": -0.1}, r"task.tile_overlap is -0.1; it is a share of the tile, in \[0, 1\)"),
        ({"mode": "whole", "scales": (1.0, 0.0)}, r"task.test_scales is \(1.0, 0.0\); use positive numbers"),
        ({"mode": "whole", "scales": ()}, r"task.test_scales is \(\); use positive numbers"),
        ({"mode": "slide", "tile": (32, 32), "max_batch": 0}, "max_batch is 0; use at least one tile per forward pass"),
    ],
)
def test_what_cannot_work_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        WholePictures(**options)


# memory


def peak(function, *args):
    """The most bytes that torch held at once for what `function` did, in its operators too."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function(*args)
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    most = held = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("scales", [(1.0,), (0.8, 1.0, 1.2)])
@pytest.mark.parametrize("stride", [1, 4])
def test_memory_is_one_map_of_scores_whatever_the_size_of_the_picture(stride, scales):
    classes = 40
    model = nn.Conv2d(3, classes, 1, stride=stride)
    slide = WholePictures("slide", tile=(64, 64), scales=scales)
    beyond = []
    for size in ((300, 400), (600, 800)):  # their scores are more than is worked on at once
        pixels = size[0] * size[1]
        largest = 0 if len(scales) == 1 else max(scales) ** 2 * pixels  # of a view, beside which the result is held
        maps = 4 * classes * (pixels + largest)
        used = peak(slide, model, picture(*size), size) - pixels - 3 * 4 * largest  # but labels and resized picture
        beyond.append(used - maps)
    assert beyond[1] < beyond[0] + 1e6
    assert beyond[0] < 60e6  # a few bands of eight megabytes
    if stride == 4 and len(scales) == 1:
        assert used < maps / 2  # the tiles' own scores are enough
