import pytest
import torch

from vantage.data.splits import stratified_split


@pytest.fixture(scope="module")
def labels():
    counts = torch.tensor([180, 7, 33, 1, 2, 500, 61])
    return torch.repeat_interleave(torch.arange(7), counts)[torch.randperm(784, generator=torch.manual_seed(1))]


def test_parts_are_disjoint_complete_and_proportional(labels):
    val, test, train = stratified_split(labels, [0.1, 0.2], seed=0)
    assert torch.equal(torch.cat([val, test, train]).sort().values, torch.arange(len(labels)))
    assert abs(len(val) - 78.4) <= 1
    assert abs(len(test) - 156.8) <= 1
    for part, fraction in ((val, 0.1), (test, 0.2)):
        for label in range(7):
            wanted = fraction * (labels == label).sum()
            assert abs((labels[part] == label).sum() - wanted) <= 1.5
    assert labels[train].unique().tolist() == list(range(7))


def test_seed_decides(labels):
    first, again, other = (stratified_split(labels, [0.1], seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_rare_classes_are_still_validated():
    labels = torch.arange(50).repeat(4)  # 4 samples each: a tenth is never one of them
    val, _ = stratified_split(labels, [0.1], seed=0)
    assert len(val) == 20
