"""The CUDA kernels on a CPU: compiled by the C++ compiler against emulation.h, behind the same ops for CPU tensors.

Loading them registers CPU kernels of `vantage::neighborhood_attention_cuda`; the backend refuses CPU tensors as before.
"""

import ctypes
import dataclasses
from pathlib import Path

from torch import Tensor

from vantage.ops import build
from vantage.ops.neighborhood_attention import cuda
from vantage.ops.neighborhood_attention.windows import Axis

HERE = Path(__file__).parent


class Gpu(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("shared_limit", "blocks_with_tables", "falling", "late_copies")]


def load_emulation() -> ctypes.CDLL:
    """Compiles the kernels for the CPU unless the cache of native builds has them."""
    op = "neighborhood_attention"
    flags = ("-O1", "-w", "-DVANTAGE_EMULATE", f"-I{build.KERNELS / op}", f"-I{HERE}")
    sources = [build.KERNELS / op / "cuda.cu", *sorted(HERE.glob("*.[ch]*"))]  # with the .cuh files beside the first
    compiler = build.compiler_version(build.cxx_compiler())
    key = build.digest(op, sources, *flags, compiler, build.cpu_flags())
    library = build.cache_folder() / op / f"cuda-emulation-{key}.so"
    build.build(op, library, lambda output: build.cxx_command([HERE / "driver.cpp"], output, flags))
    build.load_library(library)
    return ctypes.CDLL(str(library))


@dataclasses.dataclass(frozen=True)
class Emulation:
    """A GPU with `shared_limit` bytes of shared memory per block that runs threads and copies in a given order."""

    library: ctypes.CDLL
    shared_limit: int = 227 << 10  # 0: as little as the kernels can do with
    blocks_with_tables: int = 2048
    falling: bool = False
    late_copies: bool = False

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, axes: tuple[Axis, ...], scale: float, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Its backward pass runs on the GPU that was used last."""
        self.library.run_on(Gpu(self.shared_limit, self.blocks_with_tables, self.falling, self.late_copies))
        return cuda.attend(q, k, v, axes, scale, bias)
