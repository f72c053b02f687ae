"""Tiles and ensembles against the picture taken whole, and against a loop written out."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vantage.tasks.super_resolution.inference import Upscale, kept, small_enough


class Net(nn.Module):
    """x2 with a reach of 3 pixels, and no symmetry; borders as convolutions see them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 7, padding=3, dtype=torch.float64)
        self.largest = 0

    def forward(self, x: Tensor) -> Tensor:
        self.largest = max(self.largest, *x.shape[-2:])
        return F.pixel_shuffle(self.conv(x), 2)


@pytest.mark.parametrize("size", [(40, 57), (16, 16), (17, 200), (5, 33), (1, 1)])
def test_tiles_give_the_whole_picture(size: tuple[int, int]) -> None:
    net, picture = Net(), torch.rand(3, *size, dtype=torch.float64)
    whole = net(picture[None])[0]
    net.largest = 0
    torch.testing.assert_close(Upscale(2, tile=16, overlap=6)(net, picture), whole, rtol=0, atol=1e-14)
    assert net.largest <= 16
    torch.testing.assert_close(Upscale(2)(net, picture), whole)


def test_a_smaller_overlap_differs_at_the_seams_only() -> None:
    net, picture = Net(), torch.rand(3, 40, 40, dtype=torch.float64)
    wrong = (Upscale(2, tile=20, overlap=4)(net, picture) - net(picture[None])[0]).abs().amax(0) > 1e-12
    near = torch.zeros_like(wrong)
    near[34:38] = near[:, 34:38] = True  # the seam lies at 18 small pixels, where each tile ends 2 pixels on
    assert wrong[near].any()
    assert not wrong[~near].any()


@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(100, 32, 8), (33, 32, 31), (32, 32, 8), (7, 32, 8), (65, 32, 0)]
)
def test_tiles_share_an_axis_without_gaps(length: int, tile: int, overlap: int) -> None:
    places = kept(length, tile, overlap)
    pixels = [pixel for _, part in places for pixel in range(part.start, part.stop)]
    assert pixels == list(range(length))
    for start, part in places:
        assert start <= part.start
        assert part.stop <= start + tile
        assert part.start == 0 or part.start - start >= overlap // 2
        assert part.stop == length or start + tile - part.stop >= overlap // 2


def test_ensemble_is_the_mean_of_eight_views() -> None:
    net, x = Net(), torch.rand(3, 9, 14, dtype=torch.float64)
    views = []
    for transposed in (False, True):
        for dims in ([], [-1], [-2], [-1, -2]):
            view = (x.mT if transposed else x).flip(dims)
            back = net(view[None])[0].flip(dims)
            views.append(back.mT if transposed else back)
    torch.testing.assert_close(Upscale(2, ensemble=True)(net, x), torch.stack(views).mean(0))
    turned = Upscale(2, ensemble=True)(net, x.rot90(1, (-2, -1)))
    torch.testing.assert_close(turned, Upscale(2, ensemble=True)(net, x).rot90(1, (-2, -1)))


def test_small_pictures_are_mirrored_outward() -> None:
    seen = []

    def network(x: Tensor) -> Tensor:
        seen.append(x)
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    x = torch.arange(6.0).view(1, 1, 2, 3)
    made = small_enough(network, 4)(x)
    assert torch.equal(made, x.repeat_interleave(2, -1).repeat_interleave(2, -2))
    assert seen[0][0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [0, 1, 2, 2]]
    large = torch.rand(1, 1, 4, 6)
    small_enough(network, 4)(large)
    assert seen[1] is large


def test_errors() -> None:
    with pytest.raises(ValueError, match="a tile of 32 pixels does not reach beyond an overlap of 32"):
        Upscale(2, tile=32)
    with pytest.raises(ValueError, match=r"task\.tile_overlap is -1"):
        Upscale(2, overlap=-1)
