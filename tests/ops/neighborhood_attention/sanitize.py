"""The native code under AddressSanitizer and UndefinedBehaviorSanitizer over all cases, values checked too:

    python -m tests.ops.neighborhood_attention.sanitize

Compiles the library with the sanitizers (g++), starts itself again with their run-time libraries loaded first, and runs
every shared case and some hundred random ones, forward and backward, in float32 and bfloat16. Exits 0 where nothing
was found. Leaks are not looked for: Python and torch keep memory until the process ends.
"""

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

RANDOM_CASES = 300


def compile_and_restart() -> int:
    from vantage.ops import build

    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "native.so"
        flags = (
            "-O1",
            "-g",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=undefined",
            "-fno-omit-frame-pointer",
        )
        sources = build.sources_of("neighborhood_attention", ".cpp")
        command = build.cxx_command(sources, library, (*flags, "-DVANTAGE_FRESH_SCRATCH"))
        print(" ".join(command), flush=True)
        subprocess.run(command, check=True)
        runtimes = [
            subprocess.run([command[0], f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
            for name in ("libasan.so", "libubsan.so")
        ]
        environment = {
            **os.environ,
            "VANTAGE_SANITIZED": str(library),
            "LD_PRELOAD": " ".join(runtimes),
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        }
        return subprocess.run([sys.executable, "-m", __spec__.name], env=environment).returncode


def random_case(generator: random.Random):
    from .cases import LAYOUTS, case

    axes = generator.choice((1, 2, 2, 2, 3))
    kernel, dilation, stride, is_causal, lengths = [], [], [], [], []
    plain = generator.random() < 0.6  # the fast path
    for _ in range(axes):
        kernel.append(generator.randint(1, 9 if axes < 3 else 4))
        dilation.append(generator.choice((1, 1, 2, 3)))
        stride.append(1 if plain else generator.randint(1, kernel[-1]))
        is_causal.append(not plain and generator.random() < 0.3)
        lengths.append(kernel[-1] * dilation[-1] + generator.choice((0, 1, 2, 5, 17)) * (1 if axes < 3 else 0))
    return case(
        tuple(lengths), tuple(kernel), tuple(dilation), tuple(stride), tuple(is_causal),
        head_dim=generator.choice((1, 3, 4, 8, 12, 16, 20, 33)), heads=generator.randint(1, 3),
        batch=generator.randint(1, 2), with_bias=generator.random() < 0.5, layout=generator.choice(LAYOUTS),
    )  # fmt: skip


def run() -> int:
    import torch

    from vantage.ops import build
    from vantage.ops.neighborhood_attention import native

    from .cases import CASES, check, through_op

    build.load_library(Path(os.environ["VANTAGE_SANITIZED"]))
    native.library_error = lambda: None  # this library, not the one in the cache
    generator = random.Random(0)
    cases = CASES + [random_case(generator) for _ in range(RANDOM_CASES)]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for case in cases:
            for dtype in (torch.float32, torch.bfloat16):
                check(through_op("native"), case, dtype)
        print(f"{threads} threads: {len(cases)} cases in float32 and bfloat16, forward and backward: clean", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run() if "VANTAGE_SANITIZED" in os.environ else compile_and_restart())
