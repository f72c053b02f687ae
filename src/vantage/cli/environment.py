"""Process-wide settings that must be in the environment before torch is imported; what the user has set stays."""

import ctypes
import os

DEFAULTS = {
    # How long threads spin for the next operator before they sleep. For ever takes the cores that loader workers
    # need; not at all pays for waking them up at every operator (a fifth to a third of a small
    # model's step in a noisy measurement on two cores).
    "GOMP_SPINCOUNT": "10000",
    "KMP_BLOCKTIME": "1",
    # Hydra re-raises its typed errors instead of printing them, so that they can be told in one sentence.
    "HYDRA_FULL_ERROR": "1",
}


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
KEPT_AT_MOST = 1 << 30  # bytes of freed memory at the end of the heap
MAPPED_FROM = 32 << 20  # bytes; glibc allows no more


def prepare() -> None:
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Tells glibc to keep what a training step frees for the next one. By default it hands megabytes back to the system
    at every step and takes page faults to get them again, a tenth of the time of a small model on a CPU. Without
    effect where there is no glibc, or where the user has set malloc's thresholds."""
    if any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_TRIM_THRESHOLD, KEPT_AT_MOST)
    mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)


def rank() -> int:
    """The global rank of this process: torchrun, Lightning's own children and SLURM each name it differently."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0
