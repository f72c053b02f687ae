"""Process-wide settings that must be in the environment before torch is imported; what the user has set stays."""

import os

from vantage.malloc import keep_freed_memory

DEFAULTS = {
    # How long threads spin for the next operator before they sleep. For ever takes the cores that loader workers
    # need; not at all pays for waking them up at every operator (a fifth to a third of a small
    # model's step in a noisy measurement on two cores).
    "GOMP_SPINCOUNT": "10000",
    "KMP_BLOCKTIME": "1",
    # Hydra re-raises its typed errors instead of printing them, so that they can be told in one sentence.
    "HYDRA_FULL_ERROR": "1",
}


def prepare() -> None:
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    keep_freed_memory()


def rank() -> int:
    """The global rank of this process: torchrun, Lightning's own children and SLURM each name it differently."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0
