"""Patches that grow."""

import pytest
import torch

from vantage.tasks.super_resolution.patches import checked_schedule, side_at, smaller_patches


def test_schedule() -> None:
    schedule = checked_schedule([[0, 24], [0.5, 32], [0.8, 48]], 48)
    assert [side_at(schedule, share) for share in (0, 0.49, 0.5, 0.79, 0.8, 1.0)] == [24, 24, 32, 32, 48, 48]
    assert checked_schedule(None, 48) == []
    assert side_at([], 0.5) is None


def test_windows_belong_together() -> None:
    images = torch.arange(2 * 3 * 20 * 24).view(2, 3, 20, 24)
    targets = images.repeat_interleave(3, -1).repeat_interleave(3, -2)
    tops = set()
    for _ in range(20):
        small, large = smaller_patches(images, targets, 8, 3)
        assert small.shape == (2, 3, 8, 8)
        assert torch.equal(large, small.repeat_interleave(3, -1).repeat_interleave(3, -2))
        tops.add(int(small[0, 0, 0, 0]))
    assert len(tops) > 5


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ([[0.2, 24]], "must rise from 0 to below 1"),
        ([[0, 24], [0.5, 32], [0.4, 48]], "must rise"),
        ([[0, 24], [1.0, 48]], "must rise"),
        ([[0, 24], [0.5, 64]], "a side of 64 and the data cuts patches of 48"),
    ],
)
def test_errors(schedule: list, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        checked_schedule(schedule, 48)
