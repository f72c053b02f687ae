"""The C library's memory, as training and benchmarks on a CPU want it."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
KEPT_AT_MOST = 1 << 30  # bytes of freed memory at the end of the heap
MAPPED_FROM = 32 << 20  # bytes; glibc allows no more


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
