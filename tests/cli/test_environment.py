import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from vantage.cli import environment
environment.prepare()
def step():
    buffers = [bytearray(20 << 20) for _ in range(3)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**extra):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    result = subprocess.run([sys.executable, "-c", FAULTS], env=env | extra, capture_output=True, text=True, check=True)
    return int(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_freed_by_a_step_serves_the_next_one():
    pages = 5 * 3 * (20 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert faults() < 0.01 * pages
    assert (
        faults(MALLOC_TRIM_THRESHOLD_="1048576", MALLOC_MMAP_THRESHOLD_="1048576") > 0.5 * pages
    )  # the user's word counts
