"""Losses of mask classification: each class of a picture is learned by the one query that is assigned to it.

Paper: Masked-attention Mask Transformer for Universal Image Segmentation (Cheng et al., 2022), arXiv:2112.01527
    cost(query, class) = -w_class p(class) + w_mask BCE(mask, region of the class) + w_dice Dice(mask, region)
    assignment         = one query per class, with the least total cost
    loss               = w_class CE(class or "no object") + sum over the assigned (w_mask BCE + w_dice Dice) / count
    BCE = mean over points,  Dice = 1 - (2 sum p t + 1) / (sum p + sum t + 1),  p = sigmoid(mask), t in {0, 1}
The mean in CE weighs queries without a class by `no_object_weight`; count, the number of classes in the batch's
pictures, is averaged over processes. The cost takes uniformly random points, the same for a picture's masks, the loss
those of mask_points.py. Of more classes than queries the cheapest ones to assign are learned.
Departs from the authors' code, which knows no ignored pixels: points on them weigh nothing, and a picture that has
nothing but ignored pixels teaches its queries nothing, not that they have no class.
"""

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from vantage.data.masks import IGNORE
from vantage.tasks.distributed import mean_over_processes
from vantage.tasks.segmentation.decoders.mask_points import choose_points, classes_at, logits_at, random_points


class MaskLoss:
    """(logits, mask_logits, masks) -> dict of weighted float32 scalars "class", "mask", "dice".

    logits       class logits (B, Q, num_classes + 1) of every layer, "no object" last
    mask_logits  (B, Q, h, w) of the same layers
    masks        (B, H, W) uint8, any size
    Layers are assigned each by itself and their losses summed. Raises: ValueError for a class that is not one of
    num_classes.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
    ):
        if num_points < 1:
            raise ValueError(f"task.decoder.num_points is {num_points}; use at least 1, as published 12544")
        self.num_classes = num_classes
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.no_object_weight = no_object_weight
        self.num_points = num_points

    def __call__(self, logits: Sequence[Tensor], mask_logits: Sequence[Tensor], masks: Tensor) -> dict[str, Tensor]:
        present = [classes_of(mask, self.num_classes) for mask in masks]
        count = torch.tensor(float(sum(len(classes) for classes in present)), device=masks.device)
        count = mean_over_processes(count)
        weights = torch.tensor([self.class_weight, self.mask_weight, self.dice_weight], device=masks.device)
        with torch.autocast(masks.device.type, enabled=False):
            layers = [self.layer(a.float(), b.float(), masks, present, count) for a, b in zip(logits, mask_logits)]
        return dict(zip(("class", "mask", "dice"), weights * torch.stack(layers).sum(0)))

    def layer(
        self, logits: Tensor, mask_logits: Tensor, masks: Tensor, present: Sequence[Tensor], count: Tensor
    ) -> Tensor:
        """The three terms (3,) of one layer, without their weights."""
        assigned = [self.assign(*picture) for picture in zip(logits, mask_logits, masks, present)]
        image = torch.cat([torch.full_like(queries, index) for index, (queries, _) in enumerate(assigned)])  # (N,)
        query, label = (torch.cat(parts) for parts in zip(*assigned))  # (N,)

        targets = torch.full(logits.shape[:2], self.num_classes, device=logits.device)  # (B, Q)
        targets[image, query] = label
        weight = torch.where(targets == self.num_classes, self.no_object_weight, 1.0)
        known = torch.tensor([float(len(classes) > 0) for classes in present], device=logits.device)
        weight = weight * known[:, None]
        entropy = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")

        chosen = mask_logits[image, query]  # (N, h, w)
        points = choose_points(chosen, masks, image, self.num_points)
        classes = classes_at(masks, image, points)
        bce, dice = point_losses(logits_at(chosen, points), classes == label[:, None], classes != IGNORE)
        mean_entropy = (weight * entropy).sum() / weight.sum().clamp(min=1e-6)
        return torch.stack([mean_entropy, bce.sum() / count, dice.sum() / count])

    @torch.no_grad()
    def assign(self, logits: Tensor, mask_logits: Tensor, mask: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Of one picture: logits (Q, K + 1), mask_logits (Q, h, w), mask (H, W), its T classes.

        Returns the queries and their classes, both (min(Q, T),).
        """
        points = random_points(1, self.num_points, logits.device)
        at_points = logits_at(mask_logits, points.expand(len(mask_logits), -1, -1))  # (Q, P)
        classes = classes_at(mask[None], present.new_zeros(1), points)  # (1, P)
        bce, dice = pair_losses(at_points, classes == present[:, None], classes[0] != IGNORE)
        probability = logits.softmax(-1)[:, present]
        cost = self.mask_weight * bce + self.dice_weight * dice - self.class_weight * probability  # (Q, T)
        # where training has diverged the loss shall be NaN, and not SciPy's complaint
        rows, columns = linear_sum_assignment(cost.nan_to_num().cpu().numpy())
        rows, columns = (torch.from_numpy(one).to(present) for one in (rows, columns))
        return rows, present[columns]


def classes_of(mask: Tensor, num_classes: int) -> Tensor:
    """The classes (T,) int64 that a mask (H, W) uint8 shows, in order."""
    classes = mask.unique().long()
    classes = classes[classes != IGNORE]
    if len(classes) and classes[-1] >= num_classes:
        raise ValueError(
            f"a mask shows class {int(classes[-1])} and the data has {num_classes} classes, 0 to {num_classes - 1}; "
            f"map other values to {IGNORE}"
        )
    return classes


def point_losses(logits: Tensor, inside: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """BCE and Dice (N,) of N masks: logits, inside (bool), valid (bool) (N, P)."""
    inside, valid = (inside & valid).to(logits.dtype), valid.to(logits.dtype)
    bce = F.binary_cross_entropy_with_logits(logits, inside, weight=valid, reduction="none")
    probability = logits.sigmoid() * valid
    overlap = (probability * inside).sum(1)
    dice = 1 - (2 * overlap + 1) / (probability.sum(1) + inside.sum(1) + 1)
    return bce.sum(1) / valid.sum(1).clamp(min=1), dice


def pair_losses(logits: Tensor, inside: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """BCE and Dice (Q, T) of every mask with every region: logits (Q, P), inside (T, P) bool, valid (P,) bool."""
    inside, valid = (inside & valid).to(logits.dtype), valid.to(logits.dtype)
    # -t log p - (1 - t) log(1 - p) = softplus(logit) - t logit: no (Q, T, P) tensor
    bce = (F.softplus(logits) @ valid)[:, None] - logits @ inside.T
    probability = logits.sigmoid() * valid
    dice = 1 - (2 * probability @ inside.T + 1) / (probability.sum(1)[:, None] + inside.sum(1) + 1)
    return bce / valid.sum().clamp(min=1), dice
