"""Learning-rate schedules, stepped once per optimizer update.

Each is a small callable (optimizer, total_steps, steps_per_epoch) -> torch scheduler. All scale the learning rate of
every group by one factor, so that layer decay survives. Their state holds numbers only and loads with
weights_only=True.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


class OneCycle:
    """Up to the peak in the first `pct_start` of the updates, then down to peak / div_factor / final_div_factor.

    The peak is optimizer.lr. Smith and Topin, Super-Convergence (2018), arXiv:1708.07120, as torch's OneCycleLR.
    With `cycle_momentum` the momentum (Adam's first beta) runs from 0.95 to 0.85 and back, whatever the optimizer's
    own value.
    """

    def __init__(
        self,
        *,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        cycle_momentum: bool = False,
    ):
        if not 0 <= pct_start < 1:
            raise ValueError(f"scheduler.pct_start is {pct_start}; it is the share of the warm-up, in [0, 1)")
        self.pct_start = pct_start
        self.div_factor = div_factor
        self.final_div_factor = final_div_factor
        self.cycle_momentum = cycle_momentum

    def __call__(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LRScheduler:
        pct_start = self.pct_start
        if math.isclose(pct_start * total_steps, 1.0):
            pct_start *= 1 - 1e-6  # torch divides by the length of the warm-up, pct_start * total_steps - 1
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=total_steps,
            pct_start=pct_start,
            div_factor=self.div_factor,
            final_div_factor=self.final_div_factor,
            cycle_momentum=self.cycle_momentum,
        )


class WarmUp:
    """Linear warm-up from `warmup_lr` to optimizer.lr, then `decay` down to `min_lr` over the remaining updates.

    The warm-up is given once: in epochs, in steps (updates), or as a fraction of all updates.
    """

    def __init__(
        self,
        *,
        warmup_epochs: float | None = None,
        warmup_steps: int | None = None,
        warmup_fraction: float | None = None,
        warmup_lr: float = 1e-6,
        min_lr: float = 1e-5,
    ):
        given = {"warmup_epochs": warmup_epochs, "warmup_steps": warmup_steps, "warmup_fraction": warmup_fraction}
        given = {key: value for key, value in given.items() if value is not None}
        if len(given) > 1:
            raise ValueError(
                f"scheduler: {' and '.join(given)} are both set; give the warm-up once, set the other null"
            )
        for key, value in given.items():
            if value < 0 or (key == "warmup_fraction" and value >= 1):
                raise ValueError(f"scheduler.{key} is {value}; it is 0 or positive, and a fraction is below 1")
        self.warmup_epochs = warmup_epochs
        self.warmup_steps = warmup_steps
        self.warmup_fraction = warmup_fraction
        self.warmup_lr = warmup_lr
        self.min_lr = min_lr

    def warmup_length(self, total_steps: int, steps_per_epoch: int) -> int:
        if self.warmup_epochs is not None:
            return round(self.warmup_epochs * steps_per_epoch)
        if self.warmup_fraction is not None:
            return round(self.warmup_fraction * total_steps)
        return self.warmup_steps or 0

    def __call__(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LRScheduler:
        peak = max(group["lr"] for group in optimizer.param_groups)
        warmup = self.warmup_length(total_steps, steps_per_epoch)
        if warmup >= total_steps:
            raise ValueError(
                f"scheduler: a warm-up of {warmup} updates leaves nothing of the run's {total_steps}; shorten it or "
                "raise trainer.max_epochs"
            )
        if self.min_lr > peak:
            raise ValueError(f"scheduler.min_lr is {self.min_lr}, above optimizer.lr {peak}; use a smaller one")

        def factor(step: int) -> float:
            if step < warmup:
                return (self.warmup_lr + (peak - self.warmup_lr) * step / warmup) / peak
            progress = min((step - warmup) / (total_steps - warmup), 1.0)
            return (self.min_lr + (peak - self.min_lr) * self.decay(progress)) / peak

        return LambdaLR(optimizer, factor)

    @abstractmethod
    def decay(self, progress: float) -> float:
        """From 1 to 0 as progress goes from 0 to 1."""


class Cosine(WarmUp):
    """Half a cosine."""

    def decay(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))


class Poly(WarmUp):
    """(1 - progress)^power, segmentation's schedule since DeepLab (Chen et al., 2016, arXiv:1606.00915)."""

    def __init__(
        self,
        *,
        power: float = 0.9,
        warmup_epochs: float | None = None,
        warmup_steps: int | None = None,
        warmup_fraction: float | None = None,
        warmup_lr: float = 1e-6,
        min_lr: float = 0.0,
    ):
        if not power > 0:
            raise ValueError(f"scheduler.power is {power}; it is positive, 1 for a straight line")
        super().__init__(
            warmup_epochs=warmup_epochs,
            warmup_steps=warmup_steps,
            warmup_fraction=warmup_fraction,
            warmup_lr=warmup_lr,
            min_lr=min_lr,
        )
        self.power = power

    def decay(self, progress: float) -> float:
        return (1 - progress) ** self.power


class MultiStep:
    """optimizer.lr times gamma once for every milestone that is behind: super-resolution's usual schedule.

    milestones  shares of all updates, rising, in (0, 1): a run of another length keeps its shape. The usual 250k, 400k,
                450k and 475k of 500k are 0.5, 0.8, 0.9 and 0.95
    """

    def __init__(self, *, milestones: Sequence[float] = (0.5, 0.8, 0.9, 0.95), gamma: float = 0.5):
        self.milestones = [float(share) for share in milestones]
        if self.milestones != sorted(set(self.milestones)) or not all(0 < share < 1 for share in self.milestones):
            raise ValueError(
                f"scheduler.milestones is {self.milestones}; they are shares of all updates, rising, each in (0, 1)"
            )
        if not 0 < gamma <= 1:
            raise ValueError(f"scheduler.gamma is {gamma}; it is in (0, 1]")
        self.gamma = gamma

    def __call__(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LRScheduler:
        steps = [round(share * total_steps) for share in self.milestones]
        return LambdaLR(optimizer, lambda step: self.gamma ** sum(step >= at for at in steps))


class Constant:
    """optimizer.lr throughout."""

    def __call__(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LRScheduler:
        return LambdaLR(optimizer, lambda step: 1.0)
