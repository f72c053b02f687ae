"""Losses against torch, torchvision, scikit-learn and the papers' formulas; what holds for all; their YAML."""

import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from scipy.ndimage import distance_transform_edt
from sklearn.metrics import jaccard_score
from torch import nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from vantage.cli import compose
from vantage.cli.check import check
from vantage.cli.errors import ConfigError
from vantage.tasks.losses import Losses
from vantage.tasks.segmentation.losses import OHEM, CrossEntropy, Focal
from vantage.tasks.segmentation.losses_boundary import Boundary, signed_distances
from vantage.tasks.segmentation.losses_dice import Dice, sums_by_class
from vantage.tasks.segmentation.losses_lovasz import Lovasz, extension, jaccard_steps

CONFIGS = Path(__file__).parents[3] / "configs"
OF_ANOTHER_TASK = {"l1", "charbonnier", "fft"}
CHOICES = sorted({path.stem for path in (CONFIGS / "task" / "loss").glob("*.yaml")} - OF_ANOTHER_TASK)
WEIGHTS = [0.5, 1.0, 2.0, 0.0, 3.0]
CLASSES = 5
TERMS = {
    "cross_entropy": CrossEntropy(),
    "cross_entropy_weighted": CrossEntropy(class_weights=WEIGHTS, label_smoothing=0.1),
    "ohem": OHEM(min_kept=40),
    "ohem_few": OHEM(threshold=0.1, min_kept=1),
    "focal": Focal(),
    "focal_weighted": Focal(gamma=0.5, alpha=WEIGHTS),
    "dice": Dice(),
    "dice_v_net": Dice(squared=True, include_background=False, include_absent=True),
    "dice_unsmoothed": Dice(smoothing=0.0),
    "lovasz": Lovasz(),
    "lovasz_per_image": Lovasz(per_image=True),
    "boundary": Boundary(),
}
all_terms = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)


def labels(seed=0, *, size=(13, 18)):
    """(2, *size) blobs of classes 0 to 3, the second picture without class 2; a fifth of the pixels ignored."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 4, 3, 4, generator=generator)
    masks = F.interpolate(coarse, size, mode="bilinear").argmax(1).to(torch.uint8)
    masks[1][masks[1] == 2] = 0
    masks[torch.rand(masks.shape, generator=generator) < 0.2] = 255
    return masks


def scores(seed=0, *, size=(13, 18), scale=2.0, dtype=torch.float32):
    return scale * torch.randn(2, CLASSES, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def value_and_gradient(term, logits, masks):
    logits = logits.clone().requires_grad_()
    value = term(logits, masks)
    return value.detach(), *torch.autograd.grad(value, logits)


def certain(masks, *, size=1e4):
    """Logits that say exactly what the masks do, class 0 where they ignore."""
    hot = F.one_hot(masks.long().masked_fill(masks == 255, 0), CLASSES)
    return size * hot.movedim(-1, 1).float()


# what holds for every term


@all_terms
def test_ignored_pixels_change_neither_the_loss_nor_the_gradient(term):
    masks, logits = labels(), scores()
    ignored = (masks == 255)[:, None].expand_as(logits)
    other = torch.where(ignored, scores(1, scale=1000.0), logits)
    value, gradient = value_and_gradient(term, logits, masks)
    other_value, other_gradient = value_and_gradient(term, other, masks)
    assert value != 0
    assert torch.equal(value, other_value)
    assert torch.equal(gradient, other_gradient)
    assert not gradient[ignored].any()
    assert gradient[~ignored].any()


@all_terms
def test_a_picture_without_labels_changes_nothing(term):
    masks, logits = labels(), scores()
    expected, expected_gradient = value_and_gradient(term, logits, masks)
    masks = torch.cat([masks, torch.full_like(masks[:1], 255)])
    value, gradient = value_and_gradient(term, torch.cat([logits, scores(1)[:1]]), masks)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[:2], expected_gradient)
    assert not gradient[2].any()


@pytest.mark.parametrize("scale", [0.0, 1.0, 1000.0])
@all_terms
def test_without_any_label_the_loss_and_its_gradient_are_zero(term, scale):
    masks = torch.full((2, 13, 18), 255, dtype=torch.uint8)
    value, gradient = value_and_gradient(term, scores(scale=scale), masks)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@all_terms
def test_gradients_agree_with_differences(term):
    masks, logits = labels(size=(3, 4)), scores(size=(3, 4), dtype=torch.float64).requires_grad_()
    assert {0, 1, 255} < set(masks.unique().tolist())
    assert torch.autograd.gradcheck(lambda x: term(x, masks), logits)


@pytest.mark.parametrize("scale", [0.0, 1000.0])
@all_terms
def test_gradients_are_finite_for_no_and_for_perfect_certainty(term, scale):
    _, gradient = value_and_gradient(term, certain(labels(), size=scale), labels(1))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", [name for name in TERMS if name != "boundary"])
def test_where_a_pixel_lies_does_not_matter(name):
    masks, logits = labels(), scores()
    order = torch.randperm(13 * 18, generator=torch.Generator().manual_seed(0))
    moved = TERMS[name](logits.flatten(2)[..., order].view_as(logits), masks.flatten(1)[:, order].view_as(masks))
    torch.testing.assert_close(moved, TERMS[name](logits, masks))


@pytest.mark.parametrize("name", ["cross_entropy", "ohem", "focal", "dice", "lovasz", "lovasz_per_image", "boundary"])
def test_the_order_of_the_classes_does_not_matter(name):
    masks, logits = labels(), scores()
    order = torch.tensor([3, 0, 4, 1, 2])
    renamed = torch.full((256,), 255, dtype=torch.uint8)
    renamed[order] = torch.arange(5, dtype=torch.uint8)
    torch.testing.assert_close(TERMS[name](logits[:, order], renamed[masks.long()]), TERMS[name](logits, masks))


@pytest.mark.parametrize("name", ["cross_entropy", "ohem", "focal", "dice", "lovasz", "lovasz_per_image"])
def test_what_is_right_and_certain_costs_nothing(name):
    masks = labels()
    assert TERMS[name](certain(masks), masks).item() == pytest.approx(0, abs=1e-6)
    assert TERMS[name](certain(labels(1)), masks) > 0.3


@pytest.mark.parametrize("name", [name for name in TERMS if name != "ohem_few"])  # one pixel at a time
def test_each_term_alone_teaches_every_pixel_its_class(name):
    term, masks, logits = TERMS[name], labels(), scores(scale=0.1)
    counted = masks < (3 if getattr(term, "class_weights", getattr(term, "alpha", None)) else 4)  # class 3 weighs 0
    optimizer = torch.optim.Adam([logits.requires_grad_()], lr=0.3)
    for _ in range(80):
        optimizer.zero_grad()
        term(logits, masks).backward()
        optimizer.step()
    assert torch.equal(logits.argmax(1)[counted], masks.long()[counted])


# combined


def test_terms_are_weighted_by_name_and_a_weight_of_zero_leaves_one_out():
    masks, logits = labels(), scores()
    terms = {"cross_entropy": CrossEntropy(), "dice": Dice(), "lovasz": Lovasz()}
    values = Losses(terms, {"dice": 2.5, "lovasz": 0})(logits, masks)
    assert list(values) == ["cross_entropy", "dice"]
    torch.testing.assert_close(values["cross_entropy"], F.cross_entropy(logits, masks.long(), ignore_index=255))
    torch.testing.assert_close(values["dice"], 2.5 * Dice()(logits, masks))


def test_all_terms_together_survive_a_batch_without_labels():
    logits = scores().requires_grad_()
    sum(Losses(TERMS)(logits, torch.full((2, 13, 18), 255, dtype=torch.uint8)).values()).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_bfloat16_logits_are_scored_in_float32():
    masks, logits = labels(), scores().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        values = Losses(TERMS)(logits, masks)
    expected = Losses(TERMS)(logits.detach().float(), masks)
    for name, value in values.items():
        assert value.dtype == torch.float32
        assert value.ndim == 0
        assert torch.equal(value.detach(), expected[name]), name
    sum(values.values()).backward()
    assert logits.grad.dtype == torch.bfloat16
    assert logits.grad.isfinite().all()


def test_terms_run_outside_autocast():
    class Product(nn.Module):
        def forward(self, logits, masks):
            return (logits.flatten(1) @ logits.flatten(1).T).sum()

    logits = scores()
    with torch.autocast("cpu", torch.bfloat16):
        value = Losses({"product": Product()})(logits, labels())["product"]
    assert torch.equal(value, (logits.flatten(1) @ logits.flatten(1).T).sum())


# cross entropy and what is made of it


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 0.1, 3.0]])
def test_cross_entropy_equals_torchs(weights, smoothing):
    masks, logits = labels(), scores()
    as_tensor = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(logits, masks.long(), as_tensor, ignore_index=255, label_smoothing=smoothing)
    torch.testing.assert_close(CrossEntropy(weights, smoothing)(logits, masks), expected)


def test_labels_of_a_class_without_weight_are_no_division_by_zero():
    masks = torch.full((2, 13, 18), 3, dtype=torch.uint8)
    for smoothing in (0.0, 0.1):
        value, gradient = value_and_gradient(CrossEntropy(WEIGHTS, smoothing), scores(), masks)
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("min_kept", [1, 50, 200, 100_000])
@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.7, 1.0])
def test_ohem_equals_a_plain_sort(threshold, min_kept):
    masks, logits = labels(), scores()
    probabilities = logits.softmax(1).numpy()
    images, rows, columns = np.nonzero(masks.numpy() != 255)
    of_truth = np.sort(probabilities[images, masks.numpy()[images, rows, columns], rows, columns])
    kept = max((of_truth < threshold).sum(), min(min_kept, len(of_truth)))
    expected = -np.log(of_truth[:kept]).mean()
    assert OHEM(threshold, min_kept)(logits, masks).item() == pytest.approx(expected, rel=1e-5)


def test_ohem_keeps_all_that_are_equally_hard():
    logits, masks = torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)
    _, gradient = value_and_gradient(OHEM(threshold=0.1, min_kept=3), logits, masks)
    torch.testing.assert_close(gradient[0, 0], torch.full((4, 4), -0.5 / 16))


def test_focal_without_focus_is_cross_entropy():
    masks, logits = labels(), scores()
    torch.testing.assert_close(Focal(gamma=0.0)(logits, masks), CrossEntropy()(logits, masks))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_of_two_classes_is_torchvisions_of_their_difference(gamma):
    logits = scores()[:, :2].contiguous()
    masks = labels().clamp(max=1)
    masks[0, :3] = 255
    valid = masks != 255
    difference = (logits[:, 1] - logits[:, 0])[valid]
    expected = sigmoid_focal_loss(difference, masks[valid].float(), alpha=0.25, gamma=gamma, reduction="mean")
    torch.testing.assert_close(Focal(gamma, alpha=[0.75, 0.25])(logits, masks), expected)


# Dice


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("absent", [True, False])
@pytest.mark.parametrize(("squared", "smoothing"), [(False, 1.0), (True, 1.0), (True, 1e-3)])
def test_dice_equals_its_formula(squared, smoothing, background, absent):
    masks, logits = labels(), scores()
    valid = (masks != 255).numpy()
    probabilities = logits.double().softmax(1).numpy()
    expected = []
    for index in range(0 if background else 1, CLASSES):
        p, g = probabilities[:, index][valid], (masks.numpy() == index)[valid].astype(float)
        if absent or g.any():
            sizes = (p**2).sum() + (g**2).sum() if squared else p.sum() + g.sum()
            expected.append(1 - (2 * (p * g).sum() + smoothing) / (sizes + smoothing))
    assert len(expected) == 3 + background + absent
    dice = Dice(smoothing, squared, include_background=background, include_absent=absent)
    assert dice(logits, masks).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_dice_of_background_alone_is_zero_where_the_background_does_not_count():
    masks = torch.zeros(2, 13, 18, dtype=torch.uint8)
    value, gradient = value_and_gradient(Dice(include_background=False), scores(), masks)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_sums_count_past_what_float32_can():
    side = 4100
    assert side**2 > 2**24
    total = sums_by_class(torch.ones(()).expand(1, side, side), torch.ones((), dtype=int).expand(1, side, side), 3)
    torch.testing.assert_close(total, torch.tensor([0.0, side**2, 0.0]))


# Lovász


def test_lovasz_of_hard_predictions_is_one_minus_the_mean_iou_of_the_classes_present():
    masks, predicted = labels(), labels(1)
    predicted[0, :2] = 4  # a class that no mask has
    valid = masks != 255
    guessed = predicted.masked_fill(predicted == 255, 0)[valid]
    expected = 1 - jaccard_score(masks[valid].numpy(), guessed.numpy(), labels=[0, 1, 2, 3], average="macro")
    assert 0.3 < expected < 1
    assert Lovasz()(certain(predicted), masks).item() == pytest.approx(expected, rel=1e-6)


def test_lovasz_per_image_is_the_mean_over_pictures():
    masks, logits = labels(), scores()
    expected = torch.stack([Lovasz()(logits[i : i + 1], masks[i : i + 1]) for i in range(2)]).mean()
    torch.testing.assert_close(Lovasz(per_image=True)(logits, masks), expected)
    assert not torch.isclose(Lovasz()(logits, masks), expected)


def jaccard_loss(wrong: set, truth: set) -> float:
    """1 - IoU of the class where exactly the pixels `wrong` are classified wrongly."""
    predicted = truth ^ wrong
    return 1 - len(truth & predicted) / len(truth | predicted)


def test_lovasz_is_the_extension_of_the_jaccard_loss_by_its_definition():
    random = np.random.default_rng(0)
    for _ in range(20):
        probability, truth = random.random(9), set(random.choice(9, 4, replace=False).tolist())
        errors = [1 - probability[i] if i in truth else probability[i] for i in range(9)]
        order = sorted(range(9), key=lambda i: -errors[i])
        steps = [jaccard_loss(set(order[: i + 1]), truth) - jaccard_loss(set(order[:i]), truth) for i in range(9)]
        is_class = torch.tensor([i in truth for i in range(9)])
        value = extension(torch.from_numpy(probability), is_class, torch.ones(9, dtype=torch.bool))
        assert value.item() == pytest.approx(sum(errors[i] * step for i, step in zip(order, steps)), rel=1e-6)


def test_lovasz_is_convex_in_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    is_class = torch.rand(40, generator=generator) < 0.3
    valid = torch.ones(40, dtype=torch.bool)
    slack = []
    for _ in range(200):
        a, b, t = (torch.rand(n, generator=generator, dtype=torch.float64) for n in (40, 40, 1))
        mixed = extension(t * a + (1 - t) * b, is_class, valid)
        slack.append((t * extension(a, is_class, valid) + (1 - t) * extension(b, is_class, valid) - mixed).item())
    assert min(slack) > -1e-6
    assert max(slack) > 1e-3


def test_lovasz_steps_are_exact_over_a_million_pixels():
    is_class = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0)) < 0.2
    hit = is_class.numpy()
    total = hit.sum()
    iou = (total - np.cumsum(hit)) / (total + np.cumsum(~hit))
    expected = np.diff(1 - iou.astype(np.float64), prepend=0.0)
    np.testing.assert_allclose(jaccard_steps(is_class).numpy(), expected, rtol=1e-5, atol=1e-14)


# boundary


def distances_by_hand(mask: np.ndarray, classes: list[int]) -> np.ndarray:
    """phi from the distances between all pairs of pixels."""
    places = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing="ij"), -1).reshape(-1, 2)
    between = np.sqrt(((places[:, None] - places[None]) ** 2).sum(-1))
    flat = mask.reshape(-1)
    phi = np.zeros((len(classes), flat.size))
    for row, index in zip(phi, classes):
        own, other = flat == index, (flat != index) & (flat != 255)
        row[other] = between[other][:, own].min(1) - 0.5
        row[own] = 0.5 - between[own][:, other].min(1)
    return phi.reshape(len(classes), *mask.shape)


@pytest.mark.parametrize("seed", range(4))
def test_distances_are_those_to_the_nearest_pixel(seed):
    mask = labels(seed)[0].numpy()
    classes = np.unique(mask[mask != 255])
    assert len(classes) > 1
    found = signed_distances(mask, classes)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, distances_by_hand(mask, classes.tolist()), rtol=1e-6, atol=1e-6)


def test_distances_of_objects_are_as_published_but_for_half_a_pixel():
    """The paper's code transforms the mask and its complement, and takes one from the distances inside."""
    mask = np.zeros((21, 30), dtype=np.uint8)
    mask[4:15, 6:22] = 1
    mask[0:3, 27:] = 1
    expected = np.where(mask == 1, 1 - distance_transform_edt(mask), distance_transform_edt(1 - mask))
    background, objects = signed_distances(mask, np.array([0, 1]))
    np.testing.assert_allclose(objects, expected - 0.5, rtol=1e-6)
    np.testing.assert_allclose(background, -objects, rtol=1e-6)
    assert expected.min() == -5


def test_boundary_of_two_classes_has_the_gradient_of_the_papers_loss_of_one():
    masks, logits = labels().clamp(max=1), scores()[:, :2].contiguous()
    phi = torch.from_numpy(np.stack([distances_by_hand(mask, [0, 1])[1] for mask in masks.numpy()])).float()
    _, expected = value_and_gradient(lambda x, _: (x.softmax(1)[:, 1] * phi).mean(), logits, masks)
    torch.testing.assert_close(value_and_gradient(Boundary(), logits, masks)[1], expected)


def test_boundary_is_the_mean_over_pixels_and_the_classes_of_each_picture():
    masks, logits = labels(), scores()
    probabilities = logits.softmax(1).numpy()
    total = 0.0
    for mask, probability, classes in zip(masks.numpy(), probabilities, [[0, 1, 2, 3], [0, 1, 3]]):
        total += (probability[classes] * distances_by_hand(mask, classes)).sum() / len(classes)
    expected = total / (masks != 255).sum().item()
    assert Boundary()(logits, masks).item() == pytest.approx(expected, rel=1e-5)


def test_boundary_prefers_right_to_unsure_to_wrong_and_says_nothing_of_one_class():
    masks = labels()
    other = torch.where(masks == 255, masks, (masks + 1) % 4)
    choices = (certain(masks), torch.zeros(2, 5, 13, 18), certain(other))
    right, unsure, wrong = (Boundary()(logits, masks) for logits in choices)
    assert right < 0 < unsure < wrong
    one = torch.where(masks == 255, masks, 2)
    value, gradient = value_and_gradient(Boundary(), scores(), one)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


# what is refused


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: CrossEntropy([1.0, -1.0]), r"cross_entropy.class_weights is \[1.0, -1.0\]; each must be 0 or more"),
        (lambda: CrossEntropy(label_smoothing=1.0), r"cross_entropy.label_smoothing is 1.0; it is in \[0, 1\)"),
        (lambda: OHEM(threshold=0.0), r"ohem.threshold is 0.0; it is a probability"),
        (lambda: OHEM(min_kept=0), r"ohem.min_kept is 0; it must be 1 or more"),
        (lambda: Focal(gamma=-1.0), r"focal.gamma is -1.0; it must be 0 or more"),
        (lambda: Focal(alpha=[math.nan]), r"focal.alpha is \[nan\]; each must be 0 or more"),
        (lambda: Dice(smoothing=-1.0), r"dice.smoothing is -1.0; it must be 0 or more"),
        (lambda: Dice(0.0, include_absent=True), r"dice.smoothing is 0, .* use smoothing=1.0 or include_absent=false"),
        (lambda: Losses({}), r"task.loss has no term with a weight above 0; choose one with task/loss=NAME"),
        (lambda: Losses({"dice": Dice()}, {"dice": 0}), r"no term with a weight above 0"),
        (lambda: Losses({"dice": Dice()}, {"dice": -1}), r"task.loss.weights.dice is -1; it must be 0 or more"),
        (lambda: Losses({"dice": Dice()}, {"dise": 2}), r"weights.dise is 2 and there is no such term; the terms are "),
        (lambda: Losses({"dice": None}), r"task.loss.terms.dice is None, not a loss; give it a _target_"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("term", [CrossEntropy([1.0, 2.0, 3.0]), Focal(alpha=[1.0, 2.0, 3.0])])
def test_as_many_class_weights_as_classes_are_needed(term):
    with pytest.raises(ValueError, match=r"task.loss.terms.\S+ has 3 numbers and the data has 5 classes; give one for"):
        term(scores(), labels())


# the YAML


@pytest.fixture(scope="module")
def loader():
    compose.register_resolvers()
    with compose.config_loader(CONFIGS) as loader:
        yield loader


def composed(loader, choice, *overrides):
    """The node task.loss of a config that has passed the check."""
    cfg, sources = compose.compose(loader, "train", ["task=segmentation", f"task/loss={choice}", *overrides])
    check(cfg, sources, "train")
    return cfg.task.loss


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_composes_and_its_terms_and_weights_have_the_same_names(loader, choice):
    node = composed(loader, choice)
    assert set(node) == {"_target_", "terms", "weights"}
    assert list(node.terms) == list(node.weights)
    losses = instantiate(node)
    assert list(losses.terms) == list(node.terms)
    logits = scores().requires_grad_()
    sum(losses(logits, labels()).values()).backward()
    assert logits.grad.any()


@pytest.mark.parametrize("choice", CHOICES)
def test_a_term_repeats_no_default_that_disagrees_with_its_signature(loader, choice):
    for term in composed(loader, choice).terms.values():
        node = OmegaConf.to_container(term)
        signature = inspect.signature(get_class(node.pop("_target_"))).parameters
        assert node == {name: parameter.default for name, parameter in signature.items()}


def test_choices_add_up_and_weights_are_set_by_name(loader):
    losses = instantiate(composed(loader, "[ce_dice,boundary]", "task.loss.weights.dice=2"))
    assert losses.weights == {"cross_entropy": 1, "dice": 2, "boundary": 0.01}
    target = "vantage.tasks.segmentation.losses_lovasz.Lovasz"
    losses = instantiate(composed(loader, "ce_dice", f"+task.loss.terms.lovasz={{_target_: {target}}}"))
    assert losses.weights == {"cross_entropy": 1, "dice": 1, "lovasz": 1}
    losses = instantiate(composed(loader, "cross_entropy", "task.loss.terms.cross_entropy.class_weights=[1,2,3,4,5]"))
    assert losses.terms.cross_entropy.class_weights == (1, 2, 3, 4, 5)


def test_a_typo_below_the_loss_is_found(loader):
    for override, sentence in {
        "+task.loss.terms.dice.smoothin=1": "did you mean 'task.loss.terms.dice.smoothing'?",
        "task.loss.terms.dice.smoothing=one": "is 'one'; it must be float",
        "task.loss.terms.cross_entropy.class_weights=2": "is 2; it must be list of float or null",
    }.items():
        with pytest.raises(ConfigError) as caught:
            composed(loader, "ce_dice", override)
        assert sentence in str(caught.value)
    with pytest.raises(InstantiationException, match=r"there is no such term; the terms are cross_entropy, dice"):
        instantiate(composed(loader, "ce_dice", "+task.loss.weights.dise=2"))
