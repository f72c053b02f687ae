"""Compiles the C++ sources in `kernels/<op>/` on first use and loads them.

The library uses torch's stable ABI, registers its kernels with `torch.ops.vantage`, and lies in a per-user cache, whose
key is made of the sources, the torch version, the compiler and the CPU's flags. VANTAGE_CACHE names another folder.
"""

import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

KERNELS = Path(__file__).resolve().parents[3] / "kernels"
HEADERS = {".cpp": (".h",), ".cu": (".h", ".cuh")}

log = logging.getLogger(__name__)


class BuildError(RuntimeError):
    """No compiler, no sources, or sources that do not compile: the message says what to do."""


def cache_folder() -> Path:
    chosen = os.environ.get("VANTAGE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vantage"


@functools.lru_cache
def cxx_compiler() -> str | None:
    """Path of the C++ compiler: $CXX, or g++, or clang++; None where there is none."""
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++")):
        found = shutil.which(shlex.split(name)[0])
        if found:
            return found
    return None


@functools.lru_cache
def cpu_flags() -> str:
    """The host's instruction sets as the compiler names them: what `-march=native` stands for."""
    compiler = cxx_compiler()
    result = subprocess.run(
        [compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True
    )
    # a compiler or CPU that does not know `native` builds portable code
    return result.stdout if result.returncode == 0 else ""


def torch_include() -> list[str]:
    root = Path(torch.__file__).parent / "include"
    return [f"-I{root}"]


def cxx_command(sources: Sequence[Path], output: Path, flags: Sequence[str] = ()) -> list[str]:
    march = ["-march=native"] if cpu_flags() else []
    return [
        cxx_compiler(), "-std=c++17", "-O3", *march, "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
        "-fPIC", "-shared", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020a000000000000", *torch_include(),
        *flags,
        *map(str, sources), "-o", str(output), f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu",
    ]  # fmt: skip


def sources_of(op: str, suffix: str) -> list[Path]:
    folder = KERNELS / op
    sources = sorted(folder.glob(f"*{suffix}"))
    if not sources:
        raise BuildError(f"{folder} holds no *{suffix} source; run from a checkout of the project, which has kernels/")
    return sources


def digest(op: str, sources: Sequence[Path], *parts: str) -> str:
    """Key of a build: everything that the library depends on."""
    key = hashlib.sha256()
    headers = sorted(p for p in (KERNELS / op).iterdir() if p.suffix in HEADERS[sources[0].suffix])
    for path in (*sources, *headers):
        key.update(path.name.encode() + path.read_bytes())
    for part in (torch.__version__, sys.platform, *parts):
        key.update(part.encode())
    return key.hexdigest()[:16]


@functools.cache
def load_cpu(op: str) -> Path:
    """Builds `kernels/<op>/*.cpp` unless the cache has it, loads it into torch, returns the library's path."""
    compiler = cxx_compiler()
    if compiler is None:
        raise BuildError(f"{op}: no C++ compiler was found (CXX, g++, clang++); install g++ or use another backend")
    sources = sources_of(op, ".cpp")
    command = cxx_command(sources, Path("OUT"))
    library = (
        cache_folder()
        / op
        / f"cpu-{digest(op, sources, shlex.join(command), compiler_version(compiler), cpu_flags())}.so"
    )
    build(op, library, lambda output: cxx_command(sources, output))
    load_library(library)
    return library


@functools.lru_cache
def compiler_version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout


def load_library(library: Path) -> None:
    """Loads a built library; what it registers appears in torch.ops."""
    ctypes.CDLL(str(library))


def build(op: str, library: Path, command) -> None:
    """Runs `command(output)` unless `library` is there; processes that build the same library wait for the first."""
    if library.exists():
        return
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        lock = open(library.with_suffix(".lock"), "w")  # noqa: SIM115 the with statement follows
    except OSError as error:
        raise BuildError(
            f"{op}: cannot write {library.parent} ({error.strerror}); set VANTAGE_CACHE to a folder"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():
            return
        start = time.perf_counter()
        # a name of its own, renamed when whole: an interrupted build leaves nothing that looks like a library
        output = library.with_name(f"{library.stem}.{os.getpid()}.tmp")
        arguments = command(output)
        result = subprocess.run(arguments, capture_output=True, text=True)
        if result.returncode:
            output.unlink(missing_ok=True)
            report = library.with_suffix(".log")
            report.write_text(shlex.join(arguments) + "\n" + result.stdout + result.stderr)
            first = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr.strip()[:300])
            raise BuildError(f"{op}: {arguments[0]} failed: {first} (whole output: {report}); or use another backend")
        output.rename(library)
        log.info("%s: compiled %s in %.1f s into %s", op, library.name, time.perf_counter() - start, library.parent)
