"""Compiles the CUDA sources in `kernels/<op>/` with nvcc on first use, for the GPUs of this machine, and loads them.

As `build.py` does for C++: torch's stable ABI, the same cache, and nothing but nvcc and a C++ compiler is needed.
"""

import functools
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from vantage.ops import build

SUPPORTED_FROM = 80  # compute capability 8.0: bfloat16 matrix instructions, asynchronous copies


@functools.lru_cache
def nvcc_compiler() -> str | None:
    """Path of nvcc: of $CUDA_HOME, else on the PATH, else of /usr/local/cuda; None where there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    for candidate in (home and f"{home}/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc"):
        found = candidate and shutil.which(candidate)
        if found:
            return found
    return None


def nvcc_command(sources: Sequence[Path], output: Path, architectures: Sequence[int]) -> list[str]:
    """architectures: compute capabilities, 80 for 8.0. The CUDA runtime is linked in, so that its version is nvcc's."""
    codes = (flag for a in architectures for flag in ("-gencode", f"arch=compute_{a},code=sm_{a}"))
    libraries = Path(torch.__file__).parent / "lib"
    present = [name for name in ("torch_cpu", "torch_cuda") if (libraries / f"lib{name}.so").exists()]
    return [
        nvcc_compiler(), "-std=c++17", "-O3", "-shared", "-cudart=static", "-Xcompiler=-fPIC,-fvisibility=hidden",
        "-split-compile=0", *codes, "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", *build.torch_include(),
        *map(str, sources), "-o", str(output), f"-L{libraries}", *(f"-l{name}" for name in present),
    ]  # fmt: skip


def visible_architectures() -> tuple[int, ...]:
    """Of all GPUs that the kernels can run on: one library serves them all."""
    found = {torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())}
    return tuple(sorted(a for a in (10 * major + minor for major, minor in found) if a >= SUPPORTED_FROM))


def build_cuda(op: str, architectures: tuple[int, ...]) -> Path:
    """Builds `kernels/<op>/*.cu` unless the cache has it; returns the library's path."""
    compiler = nvcc_compiler()
    if compiler is None:
        raise build.BuildError(
            f"{op}: nvcc was not found (CUDA_HOME, PATH); install the CUDA toolkit or use another backend"
        )
    sources = build.sources_of(op, ".cu")
    command = shlex.join(nvcc_command(sources, Path("OUT"), architectures))
    names = "-".join(map(str, architectures))
    key = build.digest(op, sources, command, build.compiler_version(compiler))
    library = build.cache_folder() / op / f"cuda-{names}-{key}.so"
    if not library.exists():
        build.log.info("%s: compiling CUDA kernels for sm_%s, which takes about a minute, once", op, names)
    build.build(op, library, lambda output: nvcc_command(sources, output, architectures))
    return library


@functools.cache
def load_cuda(op: str, architectures: tuple[int, ...]) -> Path:
    """Builds the library and loads it into torch."""
    library = build_cuda(op, architectures)
    build.load_library(library)
    return library
