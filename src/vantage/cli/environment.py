"""Process-wide settings that must be in the environment before torch is imported; what the user has set stays."""

import os

DEFAULTS = {
    # A thread pool that spins between operators takes the cores that loader workers need.
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    # Hydra re-raises its typed errors instead of printing them, so that they can be told in one sentence.
    "HYDRA_FULL_ERROR": "1",
}


def prepare() -> None:
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def rank() -> int:
    """The global rank of this process: torchrun, Lightning's own children and SLURM each name it differently."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0
