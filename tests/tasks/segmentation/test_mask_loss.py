"""Losses of masks: assignment against all permutations, terms against every pixel, what is ignored, points."""

import math
from itertools import permutations

import pytest
import torch
from torch.nn import functional as F

from vantage.tasks.segmentation.decoders import mask_loss, mask_points
from vantage.tasks.segmentation.decoders.mask_loss import MaskLoss, pair_losses, point_losses
from vantage.tasks.segmentation.decoders.mask_points import choose_points, classes_at, logits_at

SIZE = (6, 8)


def pixel_centres(height, width):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([(columns + 0.5) / width, (rows + 0.5) / height], -1).view(-1, 2)


@pytest.fixture
def at_every_pixel(monkeypatch):
    """Every loss and cost is taken once at the centre of each pixel, which leaves no chance in it."""
    centres = pixel_centres(*SIZE)
    monkeypatch.setattr(mask_loss, "choose_points", lambda maps, *_: centres.expand(len(maps), -1, -1))
    monkeypatch.setattr(mask_loss, "random_points", lambda num_maps, *_: centres.expand(num_maps, -1, -1))
    return len(centres)


def random_case(batch=2, queries=4, classes=3, seed=0, ignored=0.2):
    torch.manual_seed(seed)
    logits = torch.randn(batch, queries, classes + 1, dtype=torch.float64)
    mask_logits = 3 * torch.randn(batch, queries, *SIZE, dtype=torch.float64)
    masks = torch.randint(0, classes, (batch, *SIZE))
    masks = masks.masked_fill(torch.rand(batch, *SIZE) < ignored, 255).to(torch.uint8)
    return logits, mask_logits, masks


def dense(logits, mask_logits, masks):
    """What the paper says, over all pixels, with the cheapest of all assignments; weights as published."""
    no_object = logits.shape[-1] - 1
    present = [[label for label in mask.unique().tolist() if label != 255] for mask in masks]
    count = sum(map(len, present))
    entropy, weight, bce_sum, dice_sum = 0.0, 0.0, 0.0, 0.0
    for image, labels in enumerate(present):
        known = masks[image] != 255
        probability = logits[image].softmax(-1)
        target = {label: (masks[image] == label)[known].double() for label in labels}

        def terms(query, label, image=image, known=known, target=target):
            p, t = mask_logits[image, query][known].sigmoid(), target[label]
            bce = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
            return bce, 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)

        def cost(chosen, labels=labels, probability=probability, terms=terms):
            total = 0.0
            for query, label in zip(chosen, labels):
                bce, dice = terms(query, label)
                total = total + 5 * bce + 5 * dice - 2 * probability[query, label]
            return float(total)

        best = min(permutations(range(logits.shape[1]), len(labels)), key=cost)
        meant = dict(zip(best, labels))
        for query in range(logits.shape[1]):
            w = 1.0 if query in meant else 0.1
            entropy = entropy - w * probability[query, meant.get(query, no_object)].log()
            weight += w
        for query, label in meant.items():
            bce, dice = terms(query, label)
            bce_sum, dice_sum = bce_sum + bce, dice_sum + dice
    return {"class": 2 * entropy / weight, "mask": 5 * bce_sum / count, "dice": 5 * dice_sum / count}


@pytest.mark.parametrize("seed", range(5))
def test_on_all_pixels_the_losses_are_the_papers_under_the_best_of_all_assignments(at_every_pixel, seed):
    case = random_case(seed=seed)
    losses = MaskLoss(3, num_points=at_every_pixel)([case[0]], [case[1]], case[2])
    expected = dense(*case)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name].float(), rtol=1e-4, atol=1e-5)


def test_layers_are_summed(at_every_pixel):
    one, two = random_case(seed=1), random_case(seed=2)
    loss = MaskLoss(3, num_points=at_every_pixel)
    both = loss([one[0], two[0]], [one[1], two[1]], one[2])
    alone = [loss([case[0]], [case[1]], one[2]) for case in (one, two)]
    for name, value in both.items():
        torch.testing.assert_close(value, alone[0][name] + alone[1][name])


def test_masks_are_divided_by_their_number_over_the_processes(at_every_pixel, monkeypatch):
    logits, mask_logits, masks = random_case()
    loss, counts = MaskLoss(3, num_points=at_every_pixel), []
    alone = loss([logits], [mask_logits], masks)
    monkeypatch.setattr(mask_loss, "mean_over_processes", lambda value: counts.append(value) or 3 * value)
    among = loss([logits], [mask_logits], masks)
    assert counts == [6.0]  # two pictures of three classes
    torch.testing.assert_close(among["class"], alone["class"])
    torch.testing.assert_close(3 * among["mask"], alone["mask"])
    torch.testing.assert_close(3 * among["dice"], alone["dice"])


def test_a_picture_of_ignored_pixels_changes_nothing(at_every_pixel):
    logits, mask_logits, masks = random_case()
    loss = MaskLoss(3, num_points=at_every_pixel)
    alone = loss([logits[:1]], [mask_logits[:1]], masks[:1])
    masks[1] = 255
    beside = loss([logits], [mask_logits], masks)
    for name, value in beside.items():
        torch.testing.assert_close(value, alone[name])


def test_all_ignored_is_a_loss_of_zero_with_gradients_of_zero():
    logits, mask_logits, masks = random_case()
    logits.requires_grad_()
    mask_logits.requires_grad_()
    losses = MaskLoss(3, num_points=50)([logits], [mask_logits], torch.full_like(masks, 255))
    assert {name: value.item() for name, value in losses.items()} == {"class": 0.0, "mask": 0.0, "dice": 0.0}
    sum(losses.values()).backward()
    assert (logits.grad == 0).all()
    assert (mask_logits.grad == 0).all()


def test_more_classes_than_queries_train_all_queries(at_every_pixel):
    case = random_case(queries=2, classes=5, ignored=0.0)
    loss = MaskLoss(5, num_points=at_every_pixel)
    queries, classes = loss.assign(case[0][0].float(), case[1][0].float(), case[2][0], torch.arange(5))
    assert queries.tolist() == [0, 1]
    assert len(set(classes.tolist())) == 2
    assert all(value.isfinite() for value in loss([case[0]], [case[1]], case[2]).values())


def test_a_class_that_the_data_does_not_have_is_refused():
    logits, mask_logits, masks = random_case(classes=3)
    masks[0, 0, 0] = 7
    with pytest.raises(ValueError, match="a mask shows class 7 and the data has 3 classes, 0 to 2"):
        MaskLoss(3, num_points=10)([logits], [mask_logits], masks)


def test_nan_is_a_loss_of_nan():
    logits, mask_logits, masks = random_case()
    mask_logits[0, 1] = torch.nan
    assert MaskLoss(3, num_points=10)([logits], [mask_logits], masks)["class"].isfinite()
    assert MaskLoss(3, num_points=10)([logits], [mask_logits * torch.nan], masks)["mask"].isnan()


def test_under_autocast_losses_and_costs_are_those_of_float32(monkeypatch):
    logits, mask_logits, masks = random_case()
    logits, mask_logits = logits.bfloat16(), mask_logits.bfloat16()
    costs, results = [], []
    monkeypatch.setattr(mask_loss, "pair_losses", lambda *given: costs.append(pair_losses(*given)) or costs[-1])
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(MaskLoss(3, num_points=100)([logits], [mask_logits], masks))
    assert results[0] == results[1]
    torch.testing.assert_close(costs[:2], costs[2:], rtol=0, atol=0)


def test_dice_by_hand():
    logits = torch.tensor([[0.0, 0.0, 100.0, -100.0]])  # probabilities 1/2, 1/2, 1, 0
    inside = torch.tensor([[True, False, True, True]])
    valid = torch.tensor([[True, True, True, False]])
    bce, dice = point_losses(logits, inside, valid)
    # overlap 1/2 + 1, sums 2 and 2: the last point, wrong as it is, is ignored
    torch.testing.assert_close(dice, torch.tensor([1 - (2 * 1.5 + 1) / (2 + 2 + 1)]))
    torch.testing.assert_close(bce, torch.tensor([2 * math.log(2) / 3]))


def test_pairs_are_the_losses_of_each_mask_with_each_region():
    torch.manual_seed(0)
    logits, inside, valid = 4 * torch.randn(5, 40), torch.rand(3, 40) < 0.4, torch.rand(40) < 0.8
    bce, dice = pair_losses(logits, inside, valid)
    for region in range(3):
        expected = point_losses(logits, inside[region].expand(5, -1), valid.expand(5, -1))
        torch.testing.assert_close((bce[:, region], dice[:, region]), expected)


def test_many_random_points_give_the_loss_of_the_whole_picture(monkeypatch):
    monkeypatch.setattr(mask_points, "IMPORTANCE", 0.0)
    torch.manual_seed(0)
    mask_logits, masks = 3 * torch.randn(1, 1, 5, 7), torch.randint(0, 2, (1, 10, 14), dtype=torch.uint8)
    masks *= 255  # class 0 or ignored
    masks[0, :4] = 1
    fine = 32
    logits = F.interpolate(mask_logits, (10 * fine, 14 * fine), mode="bilinear", align_corners=False)[0, 0]
    mask = masks[0].repeat_interleave(fine, 0).repeat_interleave(fine, 1)
    for label in (0, 1):
        losses = MaskLoss(2, num_points=200_000)
        monkeypatch.setattr(losses, "assign", lambda *_, label=label: (torch.tensor([0]), torch.tensor([label])))
        found = losses([torch.zeros(1, 1, 3)], [mask_logits], masks)["mask"]
        known = mask != 255
        expected = F.binary_cross_entropy_with_logits(logits[known], (mask == label)[known].float())
        assert float(found) == pytest.approx(5 * float(expected) / 2, rel=0.02)  # two classes are there


def test_points_on_pixel_centres_read_the_pixels():
    torch.manual_seed(0)
    maps, masks = torch.randn(2, *SIZE), torch.randint(0, 9, (2, *SIZE), dtype=torch.uint8)
    points = pixel_centres(*SIZE).expand(2, -1, -1)
    torch.testing.assert_close(logits_at(maps, points), maps.flatten(1))
    assert torch.equal(classes_at(masks, torch.tensor([1, 0]), points), masks.flip(0).flatten(1))
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).expand(2, -1, -1)
    expected = maps[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(logits_at(maps, corners), expected)
    assert torch.equal(classes_at(masks, torch.arange(2), corners), masks[:, [0, 0, -1, -1], [0, -1, 0, -1]])


def test_points_lie_where_the_mask_is_uncertain():
    torch.manual_seed(0)
    ramp = torch.linspace(-8, 8, 64).expand(3, 64, 64)
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    points = choose_points(ramp, masks, torch.zeros(3, dtype=torch.int64), 1000)
    assert points.shape == (3, 1000, 2)
    assert points.min() >= 0
    assert points.max() <= 1
    certainty = logits_at(ramp, points).abs()
    # the least certain quarter of three times as many: |logit| below 2; the last quarter anywhere
    assert certainty[:, :750].max() < 2.5
    assert certainty[:, 750:].mean() == pytest.approx(4, abs=0.3)


def test_uncertain_points_avoid_what_is_ignored():
    torch.manual_seed(0)
    maps = torch.full((1, 32, 32), 5.0)
    maps[..., :16] = 0.0  # never trained, always uncertain
    masks = torch.zeros(1, 32, 32, dtype=torch.uint8)
    masks[..., :16] = 255
    points = choose_points(maps, masks, torch.zeros(1, dtype=torch.int64), 400)
    assert (classes_at(masks, torch.zeros(1, dtype=torch.int64), points)[:, :300] == 0).all()


def test_no_points_are_refused():
    with pytest.raises(ValueError, match=r"task.decoder.num_points is 0; use at least 1"):
        MaskLoss(3, num_points=0)
