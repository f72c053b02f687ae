"""The CUDA backend: its kernels run as C++ here, compiled for GPUs that are not here, and run on one that is."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vantage.ops import build, build_cuda
from vantage.ops.rotated_boxes import cuda, rotated_iou

from . import emulated_cuda

ARCHITECTURES = (80, 90)
SOURCE = build.KERNELS / "rotated_boxes" / "cuda.cu"


@pytest.fixture(scope="module")
def emulation() -> Path:
    if build.cxx_compiler() is None:
        pytest.skip("no C++ compiler to compile the kernels with")
    flags = ("-O1", "-DVANTAGE_EMULATE", "-x", "c++")
    key = build.digest(
        "rotated_boxes", [SOURCE], *flags, build.compiler_version(build.cxx_compiler()), build.cpu_flags()
    )
    library = build.cache_folder() / "rotated_boxes" / f"cuda-emulation-{key}.so"
    build.build("rotated_boxes", library, lambda output: build.cxx_command([SOURCE], output, flags))
    return library


def test_the_kernels_run_as_c_plus_plus_agree_with_the_reference(emulation):
    command = [sys.executable, emulated_cuda.__file__, str(emulation)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [check.__name__ for check in emulated_cuda.CHECKS]


def test_compiles_for_sm_80_and_sm_90_and_attaches_to_cuda_tensors():
    if build_cuda.nvcc_compiler() is None or build.cxx_compiler() is None:
        pytest.skip("no nvcc (CUDA_HOME, PATH, /usr/local/cuda), or no C++ compiler for it")
    library = build_cuda.build_cuda("rotated_boxes", ARCHITECTURES)
    if torch.version.cuda is None:
        pytest.skip("compiled; this PyTorch has no CUDA to attach to")
    code = (
        "import sys, torch; from vantage.ops import build; from vantage.ops.rotated_boxes import registration\n"
        "build.load_library(sys.argv[1])\n"
        "for op in registration.SCHEMAS:\n"
        "    assert torch._C._dispatch_has_kernel_for_dispatch_key(f'vantage::{op}', 'CUDA'), op\n"
        "    assert not torch._C._dispatch_has_kernel_for_dispatch_key(f'vantage::{op}', 'CPU'), op"
    )
    subprocess.run([sys.executable, "-c", code, str(library)], check=True)


def test_refuses_other_devices_and_says_why():
    boxes = torch.tensor([[5.0, 5, 4, 2, 0.3]])
    with pytest.raises(
        RuntimeError, match="backend='cuda' cannot run: it runs on an NVIDIA GPU and the boxes are on cpu"
    ):
        rotated_iou(boxes, boxes, backend="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("check", emulated_cuda.CHECKS, ids=lambda check: check.__name__)
def test_agrees_with_the_reference_on_a_gpu(check):
    assert cuda.library_error() is None, cuda.library_error()
    torch.manual_seed(0)
    check("cuda")
