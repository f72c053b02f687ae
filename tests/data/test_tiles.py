"""Windows, names of tiles, and the way back from tiles to pictures."""

import itertools
import math

import numpy as np
import pytest
import torch

from vantage.data.errors import DataError
from vantage.data.tiles import Tile, is_tile_name, merge_tiles, starts, windows


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (1, [0]),
        (1024, [0]),
        (1025, [0, 1]),
        (1111, [0, 87]),
        (1848, [0, 824]),
        (1849, [0, 824, 825]),
        (4000, [0, 824, 1648, 2472, 2976]),
    ],
)
def test_windows_of_1024_with_overlap_200(length, expected):
    assert starts(length, 1024, 824) == expected


def test_windows_cover_the_picture_and_overlap():
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 300, 2).tolist()
        size = int(rng.integers(16, 120))
        overlap = int(rng.integers(0, size))
        seen = np.zeros((height, width), dtype=bool)
        found = windows(height, width, size, overlap)
        assert len(set(found)) == len(found)
        for x, y in found:
            assert 0 <= x <= max(0, width - size)
            assert 0 <= y <= max(0, height - size)
            seen[y : y + size, x : x + size] = True
        assert seen.all()
        columns = sorted({x for x, _ in found})
        assert all(b - a <= size - overlap for a, b in itertools.pairwise(columns))
    with pytest.raises(DataError, match=r"overlap=64 does not fit tiles of 64; it must be in 0..63"):
        windows(100, 100, 64, 64)


def test_names():
    assert str(Tile("P0706", 1024, 824, 0)) == "P0706__1024__824___0"
    assert Tile.parse("P0706__2048__824___0", 1024) == Tile("P0706", 2048, 824, 0)
    assert Tile.parse("a__b__3__1024__0___7", 1024) == Tile("a__b__3", 1024, 0, 7)
    assert Tile.parse("P0706__0.5__824___10", 1024) == Tile("P0706", 1024, 824, 10, 0.5)  # the development kit's
    assert Tile.parse("P0706__1__824___10", 1024).rate == 1
    with pytest.raises(DataError, match="'P0706' is no name of a tile; tiles are called name__size__x___y"):
        Tile.parse("P0706", 1024)
    assert is_tile_name("P0706__1__824___10")
    assert not is_tile_name("P0706")


def test_boxes_come_back_to_the_picture():
    box = torch.tensor([[100.0, 50, 20, 10, 0.3]])
    assert torch.allclose(Tile("P", 512, 1000, 2000).to_picture(box, 1024), torch.tensor([[1050.0, 2025, 10, 5, 0.3]]))
    # the development kit resizes the picture by the rate, then cuts tiles of 1024 at (x, y)
    by_rate = Tile.parse("P__0.5__824___0", 1024).to_picture(box, 1024)
    assert torch.allclose(by_rate, torch.tensor([[1848.0, 100, 40, 20, 0.3]]))


def test_merging_keeps_the_best_of_each_object_and_class():
    here, there = torch.tensor([[950.0, 100, 80, 20, 0.5]]), torch.tensor([[126.0, 100, 80, 20, 0.5]])  # the same
    other = torch.tensor([[126.0, 100, 80, 20, 0.5]])
    results = [
        ("P__1024__0___0", here, torch.tensor([0.6]), torch.tensor([2])),
        ("P__1024__824___0", there, torch.tensor([0.9]), torch.tensor([2])),
        ("P__1024__824___0", other, torch.tensor([0.7]), torch.tensor([3])),
        ("P__2048__0___0", torch.tensor([[475.0, 50.5, 40, 10, 0.5]]), torch.tensor([0.3]), torch.tensor([2])),
        ("Q__1024__0___0", torch.zeros(0, 5), torch.zeros(0), torch.zeros(0, dtype=torch.int64)),
    ]
    merged = merge_tiles(results, tile_size=1024)
    assert set(merged) == {"P", "Q"}
    boxes, scores, labels = merged["P"]
    assert torch.allclose(scores, torch.tensor([0.9, 0.7]))
    assert labels.tolist() == [2, 3]
    assert torch.allclose(boxes, torch.tensor([[950.0, 100, 80, 20, 0.5]]).expand(2, 5))
    assert len(merged["Q"][0]) == 0


def test_cutting_and_merging_is_the_identity_on_ground_truth():
    """Every object of a picture, found on each tile that shows all of it, comes back once and where it was."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(60, 1940, 90), np.arange(60, 1440, 90)), -1).reshape(-1, 2)
    sizes = np.sort(rng.uniform(8, 60, (len(grid), 2)))[:, ::-1]
    angles = rng.uniform(-math.pi / 2, math.pi / 2, (len(grid), 1))
    boxes = torch.from_numpy(np.concatenate([grid, sizes, angles], 1)).float()
    labels = torch.arange(len(boxes)) % 3
    for size in (400, 256):
        results = []
        for x, y in windows(1500, 2000, size, 128):
            reach = boxes[:, 2:4].norm(dim=1) / 2
            inside = (boxes[:, 0] - reach >= x) & (boxes[:, 0] + reach <= x + size)
            inside &= (boxes[:, 1] - reach >= y) & (boxes[:, 1] + reach <= y + size)
            scale = torch.tensor([512 / size] * 4 + [1.0])
            found = (boxes[inside] - torch.tensor([x, y, 0, 0, 0])) * scale
            results.append((str(Tile("P", size, x, y)), found, torch.rand(int(inside.sum())), labels[inside]))
        back, _, found_labels = merge_tiles(results, tile_size=512)["P"]
        assert len(back) == len(boxes)
        nearest = torch.cdist(back[:, :2], boxes[:, :2]).argmin(1)
        assert nearest.unique().numel() == len(boxes)
        assert (back - boxes[nearest]).abs().max() < 1e-2
        assert torch.equal(found_labels, labels[nearest])
