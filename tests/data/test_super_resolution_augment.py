"""The window of the HR picture is that of the LR picture: read from pixels that tell where they come from."""

from collections import Counter

import numpy as np
import pytest
import torch

from vantage.data.errors import DataError
from vantage.data.super_resolution_augment import SuperResolutionAugment

ALL = {"flip": 0.5, "quarter_turn": True}


def places(height, width, scale):
    """LR and HR whose channels are the row and the column of the LR pixel, and in HR also of the pixel within it."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    low = torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)
    high = low.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    inner = torch.arange(scale**2).view(scale, scale).tile(height, width)
    high[2] = inner
    return low, high


def drawn(options, low, high, size, scale, count):
    for seed in range(count):
        torch.manual_seed(seed)
        yield SuperResolutionAugment(**options)(low, high, size, scale)


@pytest.mark.parametrize("options", [{}, ALL])
@pytest.mark.parametrize(("scale", "size"), [(2, (6, 6)), (3, (5, 8)), (4, (3, 4)), (8, (10, 12))])
def test_both_windows_show_the_same_and_all_of_it(options, scale, size):
    low, high = places(10, 12, scale)
    seen = set()
    for small, large in drawn(options, low, high, size, scale, 400):
        assert (small.shape, large.shape) == ((3, *size), (3, scale * size[0], scale * size[1]))
        assert torch.equal(large[:2], small[:2].repeat_interleave(scale, 1).repeat_interleave(scale, 2))
        blocks = large[2].unfold(0, scale, scale).unfold(1, scale, scale).flatten(2)
        assert (blocks.sort(-1).values == torch.arange(scale**2)).all()
        seen |= set(map(tuple, small[:2].flatten(1).T.tolist()))
    assert len(seen) == 120  # every pixel is in some window, those of the borders too


def test_without_options_nothing_is_moved():
    low, high = places(9, 7, 2)
    for small, large in drawn({}, low, high, (4, 4), 2, 20):
        top, left = (int(value) for value in small[:2, 0, 0])
        assert torch.equal(small, low[:, top : top + 4, left : left + 4])
        assert torch.equal(large, high[:, 2 * top : 2 * top + 8, 2 * left : 2 * left + 8])


def test_the_eight_symmetries_are_equally_often():
    low, high = places(6, 6, 2)
    picture = low[0].numpy() * 10 + low[1].numpy()
    kinds = {np.rot90(flip, k).tobytes(): 0 for flip in (picture, picture[:, ::-1]) for k in range(4)}
    assert len(kinds) == 8
    counts = Counter((small[0] * 10 + small[1]).numpy().tobytes() for small, _ in drawn(ALL, low, high, (6, 6), 2, 400))
    assert counts.keys() == kinds.keys()
    assert min(counts.values()) > 25


def test_a_patch_that_is_no_square_is_turned_by_half_turns_alone():
    low, high = places(4, 6, 2)
    picture = low[0].numpy() * 10 + low[1].numpy()
    found = {
        (small[0] * 10 + small[1]).numpy().tobytes()
        for small, _ in drawn({"quarter_turn": True}, low, high, (4, 6), 2, 40)
    }
    assert found == {picture.tobytes(), np.rot90(picture, 2).tobytes()}


@pytest.mark.parametrize("options", [{}, ALL])
def test_patches_own_their_memory(options):
    """A view would be sent to another process with all pictures that it is a part of, and writing would change them."""
    low, high = places(10, 12, 2)
    for patches in drawn(options, low, high, (6, 6), 2, 10):
        for patch in patches:
            assert patch.is_contiguous()
            assert patch.untyped_storage().nbytes() == patch.numel()


def test_options_are_checked():
    with pytest.raises(DataError, match=r"augment.flip=1.5 is outside 0..1"):
        SuperResolutionAugment(flip=1.5)
