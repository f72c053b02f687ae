"""The CUDA backend: its kernels emulated on the CPU, compiled for GPUs that are not here, and run on one that is.

test_backends.py runs the shared cases on a GPU; `cuda_emulation` runs the same kernel code here. On a GPU also try
    compute-sanitizer --tool memcheck  python -m pytest -m gpu tests/ops/neighborhood_attention -k "cuda and k7"
and the same with --tool racecheck, --tool initcheck and --tool synccheck: an hour for all cases, minutes for a few.
"""

import ctypes
import dataclasses
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vantage.ops import build, build_cuda, neighborhood_attention
from vantage.ops.neighborhood_attention import cuda
from vantage.ops.neighborhood_attention.registration import window_of
from vantage.ops.neighborhood_attention.windows import Axis, window_bounds

from . import cuda_emulation
from .cases import CASES, case, check, inputs, through_op

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ARCHITECTURES = (80, 90)


@pytest.fixture(scope="session")
def emulated():
    if build.cxx_compiler() is None:
        pytest.skip("no C++ compiler to emulate the kernels with")
    return cuda_emulation.load_emulation()


@pytest.fixture
def roomy(emulated):
    """Two stages of copies, tables of the bias in shared memory, a block per tile."""
    return cuda_emulation.Emulation(emulated)


@pytest.fixture
def cramped(emulated):
    """One stage, tables in global memory, several tiles per block; threads and copies the other way round."""
    return cuda_emulation.Emulation(emulated, shared_limit=0, blocks_with_tables=3, falling=True, late_copies=True)


def test_windows_and_their_inverse_follow_the_border_rule(emulated):
    compared = 0
    for length, kernel in itertools.product(range(1, 20), range(1, 20)):
        for dilation, stride in itertools.product(range(1, length // kernel + 1), range(1, kernel + 1)):
            for is_causal in (False, True):
                axis = Axis(length, kernel, dilation, stride, is_causal)
                first, last = window_bounds(axis, torch.arange(length))
                for residue in range(dilation):
                    mine = slice(residue, None, dilation)
                    windows = torch.stack([first[mine], last[mine]], 1) // dilation
                    assert torch.equal(bounds(emulated, axis, residue, inverse=False), windows)
                    index = torch.arange(len(windows))
                    sees = (windows[:, :1] <= index) & (index <= windows[:, 1:])  # (queries, keys)
                    from_to = bounds(emulated, axis, residue, inverse=True)
                    seen = (from_to[:, :1] <= index) & (index <= from_to[:, 1:])  # (keys, queries)
                    assert torch.equal(seen, sees.T), axis
                    compared += 1
    assert compared > 2000


def bounds(emulated, axis: Axis, residue: int, inverse: bool) -> torch.Tensor:
    """(class length, 2) first and last index, as the kernels compute them."""
    found = torch.empty((axis.length - residue - 1) // axis.dilation + 1, 2, dtype=torch.int64)
    values = (ctypes.c_int64 * 5)(*map(int, axis))
    emulated.windows(values, ctypes.c_int64(residue), ctypes.c_int64(inverse), ctypes.c_void_p(found.data_ptr()))
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("poisoned")
def test_emulated(roomy, cramped, case, dtype):
    check(roomy.attend, case, dtype)
    check(cramped.attend, case, dtype)


def test_order_of_threads_makes_no_difference(roomy):
    """To the bit: no sum depends on who comes first."""
    shape = case((11, 19), 5, with_bias=True, batch=1)
    other = dataclasses.replace(roomy, falling=True, late_copies=True)
    results = [run(emulation.attend, shape, torch.float32, "cpu") for emulation in (roomy, other)]
    assert all(map(torch.equal, *results))


def run(attend, shape, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """out, lse and the gradients of q, k, v and bias."""
    made = inputs(shape, dtype, device)
    leaves = [made[name].requires_grad_() for name in ("q", "k", "v", "bias")]
    results = attend(*leaves[:3], shape.axes, 0.3, leaves[3])
    return [*results, *torch.autograd.grad(results, leaves, (made["grad_out"], made["grad_lse"]))]


def test_the_registered_ops_keep_their_promises(roomy):
    """Schemas, fake kernels, autograd and compilation, with and without a bias."""
    for shape in (case((5, 6), 3, with_bias=True), case((7,), 4, layout="sliced")):
        made = inputs(shape, torch.float32)
        roomy.attend(*(made[name] for name in "qkv"), shape.axes, 0.3, made.get("bias"))  # on this GPU from here on
        leaves = [made[name].requires_grad_() if name in made else None for name in ("q", "k", "v", "bias")]
        window = window_of(shape.axes)
        forward = torch.ops.vantage.neighborhood_attention_cuda.default
        torch.library.opcheck(forward, (*leaves, *window, 0.3))
        with torch.no_grad():
            results = forward(*leaves, *window, 0.3)
            backward = torch.ops.vantage.neighborhood_attention_cuda_backward.default
            torch.library.opcheck(backward, (made["grad_out"], None, *leaves, *results, *window, 0.3))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": (1, 6, 8, 2, 8)}, "a tensor differs from q in shape, dtype or device"),
        ({"bias": (2, 5, 7)}, "bias has another size or device"),
        ({"kernel": [7, 3]}, "the window does not fit axis 0 of length 6"),
        ({"kernel": [3]}, "one window parameter per axis is needed"),
        ({"head_dim": 136}, "head_dim over 128"),
    ],
)
def test_the_op_itself_refuses_what_it_would_read_out_of_bounds(roomy, changed, message):
    """The public function checks before; the op can be called without it, and must not read memory it does not own."""
    q = torch.randn(1, 6, 8, 2, changed.get("head_dim", 4))
    k = torch.randn(changed.get("k", q.shape))
    bias = torch.randn(changed.get("bias", (2, 5, 5)))
    with pytest.raises(RuntimeError, match=message):
        torch.ops.vantage.neighborhood_attention_cuda(
            q, k, q, bias, changed.get("kernel", [3, 3]), [1, 1], [1, 1], [0, 0], 0.3
        )


@pytest.fixture(scope="module")
def compiled() -> Path:
    """The library for both architectures, from the cache of native builds where that has it; else a minute passes."""
    if build_cuda.nvcc_compiler() is None:
        pytest.skip("no nvcc (CUDA_HOME, PATH, /usr/local/cuda)")
    if build.cxx_compiler() is None:
        pytest.skip("nvcc needs a C++ compiler, and there is none")
    return build_cuda.build_cuda("neighborhood_attention", ARCHITECTURES)


def test_compiles_for_sm_80_and_sm_90_and_spills_nothing(compiled):
    """No kernel has a stack: neither registers that did not fit nor arrays that are indexed at run time."""
    tool = cuobjdump()
    if tool is None:
        pytest.skip("compiled; no cuobjdump (beside nvcc, on PATH, in Triton) to look into the library with")
    listed = subprocess.run([tool, "-res-usage", compiled], capture_output=True, text=True, check=True).stdout
    for architecture, of_this in zip(ARCHITECTURES, by_architecture(listed)):
        kernels = {name: [int(n) for n in numbers] for name, *numbers in USAGE.findall(of_this)}
        count = len(DTYPES) * 3  # head dimensions up to 32, 64 and 128
        for name in ("forward", "query_gradient", "key_gradient"):
            registers = [used[0] for mangled, used in kernels.items() if f"{name}_kernelI" in mangled]
            assert len(registers) == count
            print(f"sm_{architecture}: {name}: {min(registers)} to {max(registers)} registers")
        assert len(kernels) == 3 * count + 1  # and the sum of the partial tables
        assert all(stack == local == 0 for _, stack, local in kernels.values()), kernels


# mangled name, registers, bytes of stack, bytes of local memory
USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


def cuobjdump() -> str | None:
    found = shutil.which("cuobjdump", path=f"{Path(build_cuda.nvcc_compiler()).resolve().parent}:{os.environ['PATH']}")
    triton = importlib.util.find_spec("triton")
    if found or triton is None:
        return found
    return shutil.which("cuobjdump", path=Path(triton.origin).parent / "backends/nvidia/bin")


def by_architecture(listed: str) -> list[str]:
    """What cuobjdump lists for sm_80 and for sm_90; a library may hold several objects for each."""
    objects = re.split(r"^arch = ", listed, flags=re.MULTILINE)[1:]
    assert {text.split()[0] for text in objects} == {f"sm_{a}" for a in ARCHITECTURES}
    return ["".join(text for text in objects if text.startswith(f"sm_{a}")) for a in ARCHITECTURES]


def test_needs_the_stable_abi_alone(compiled):
    if torch.version.cuda is not None:
        subprocess.run([sys.executable, "-c", LOADS_WITHOUT_A_GPU, str(compiled)], check=True)
    if shutil.which("nm") is None:
        pytest.skip("no nm to list the symbols with")
    command = ["nm", "-D", "-C", "--undefined-only", str(compiled)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    undefined = [line.split(maxsplit=1)[1] for line in listed.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in undefined)
    assert not [name for name in undefined if "at::" in name or "c10::" in name]


LOADS_WITHOUT_A_GPU = """
import sys, torch
from vantage.ops import build
from vantage.ops.neighborhood_attention import cuda
build.load_library(sys.argv[1])
for op in ("vantage::neighborhood_attention_cuda", "vantage::neighborhood_attention_cuda_backward"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA"), op
"""


@pytest.mark.parametrize(
    ("q", "capability", "message"),
    [
        ({"device": "cpu"}, (9, 0), "runs on an NVIDIA GPU and q is on cpu; use backend='auto'"),
        ({"dtype": torch.float64}, (9, 0), "takes float16, bfloat16 or float32 and q is torch.float64; use"),
        ({"head_dim": 160}, (9, 0), "takes a head_dim up to 128, not 160; use backend='tiled'"),
        ({}, (7, 5), "needs compute capability 8.0 and cuda:0 has 7.5; use backend='triton'"),
        ({}, (9, 0), "nvcc was not found (CUDA_HOME, PATH); install the CUDA toolkit or use another backend"),
    ],
)
def test_says_what_is_missing(monkeypatch, q, capability, message):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(build_cuda, "nvcc_compiler", lambda: None)
    monkeypatch.setattr(cuda, "library_error", cuda.library_error.__wrapped__)
    device = torch.device(q.get("device", "cuda:0"))
    like = SimpleNamespace(device=device, dtype=q.get("dtype", torch.float32), shape=(1, 4, 2, q.get("head_dim", 8)))
    assert message in cuda.unavailable(like, (Axis(4, 3),))


def test_the_public_function_says_so_on_a_cpu():
    q, k, v = torch.randn(3, 1, 6, 8, 2, 4)
    with pytest.raises(RuntimeError, match=r"backend='cuda' cannot run: .* q is on cpu; use backend='auto'"):
        neighborhood_attention(q, k, v, 3, backend="cuda")


def test_compiles_for_the_gpus_that_are_there(monkeypatch):
    """One library for all of them, without those that the kernels cannot run on."""
    capabilities = [(9, 0), (7, 5), (8, 0), (9, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device])
    assert build_cuda.visible_architectures() == ARCHITECTURES
    monkeypatch.setattr(build_cuda, "nvcc_compiler", lambda: "nvcc")
    command = build_cuda.nvcc_command([Path("a.cu")], Path("a.so"), ARCHITECTURES)
    assert [word for word in command if "arch=" in word] == [
        "arch=compute_80,code=sm_80",
        "arch=compute_90,code=sm_90",
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_twice_on_a_gpu(dtype):
    """Over a thousand tiles with a bias, so that blocks go through several."""
    shape = case((61, 50), 7, head_dim=32, heads=3, batch=24, with_bias=True)
    results = [run(through_op("cuda"), shape, dtype, "cuda") for _ in range(3)]
    assert all(map(torch.equal, results[0], results[1]))
    assert all(map(torch.equal, results[0], results[2]))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [case((64, 64), 21, head_dim=64), case((9, 30, 31), (5, 7, 9), head_dim=32)], ids=str)
def test_large_windows_on_a_gpu(shape, dtype):
    check(through_op("cuda"), shape._replace(with_bias=True), dtype, device="cuda")


@pytest.mark.gpu
def test_runs_on_the_current_stream():
    """Work before and after on a side stream is ordered with the kernels without synchronising."""
    shape = case((40, 40), 7, head_dim=32)
    made = inputs(shape, torch.float32, "cuda")
    q, k, v = (made[name] for name in "qkv")
    wanted, _ = through_op("cuda")(2 * q, k, v, shape.axes, 0.3, None)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        got, _ = through_op("cuda")(2 * q, k, v, shape.axes, 0.3, None)
        equal = (got == wanted).all()
    torch.cuda.synchronize()
    assert equal.item()
