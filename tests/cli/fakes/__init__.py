"""Targets for a small project whose configs need neither torch nor data: the command line shows without them."""

import json
import os
import signal
import time
from typing import Literal


class Model:
    def __init__(self, variant: str, *, attention=None, position=None, plug=None, depth: int = 2, drop: float = 0.0):
        pass


class Window:
    def __init__(self, dim: int, num_heads: int, *, window_size: int = 7, shift: int | Literal["half"] = 0):
        pass


class Hilo:
    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        alpha: float = 0.5,
        window_size: int | tuple[int, int] = 2,
        qkv_bias: bool = True,
        position=None,
    ):
        pass


class Digits:
    tasks = ("classification",)

    def __init__(self, *, root: str | None = None, batch_size: int = 8, sizes: list[int] | None = None, seed: int = 0):
        pass


class Boxes(Digits):
    tasks = ("rotated_detection",)


class Factory:
    def __init__(self, *, lr: float = 1e-3, inner=None):
        pass


class Trainer:
    def __init__(self, *, max_epochs: int | None = None, accelerator: str = "auto", callbacks=None, logger=None):
        pass


class Callback:
    def __init__(self, *, folder: str, every: int = 1, **extra):
        pass


def run(cfg, run_dir) -> dict[str, float]:
    """A job: its outcome is chosen by model.variant."""
    variant = cfg.model.variant
    if variant == "raise":
        raise ValueError(f"model.variant={variant} cannot be built\non any machine")
    if variant == "defect":
        raise TypeError("a defect of ours")
    if variant == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if variant == "sleep":
        (run_dir / "started").touch()
        time.sleep(60)
    metrics = {"test/acc1": 0.5 + cfg.seed / 10, "val/acc1": 0.25}
    (run_dir / "metrics.json").write_text(json.dumps(metrics))
    print(f"ran {variant} seed {cfg.seed}")
    return metrics
