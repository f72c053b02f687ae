"""Triton compiles its kernels for GPUs that are not here: what the interpreter lets pass, types and shapes, fails.

The launches of a call are recorded on tensors without memory, and each is compiled as Triton would for its arguments.
"""

import itertools
import re
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vantage.ops.neighborhood_attention import triton as backend
from vantage.ops.neighborhood_attention.registration import window_of

from .cases import Case, case, inputs

triton = pytest.importorskip("triton", reason="Triton is not installed")
targets = pytest.importorskip("triton.backends.compiler", reason="Triton has no compiler here")

pytestmark = pytest.mark.skipif(backend.IS_INTERPRETED, reason="TRITON_INTERPRET is set, so that nothing is compiled")

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
SHARED_MEMORY = 99 << 10  # bytes: what a program may have at most on GPUs of compute capability 8.6 and 8.9
SPILLED = 128  # bytes per thread at most, of registers that did not suffice: some, at head_dim 128
ARCHITECTURES = [80, 90]

FEW = {
    "map": (case((56, 56), 7, head_dim=32, heads=4, with_bias=True), torch.bfloat16),
    "line": (case(37, 7, stride=2, is_causal=True, head_dim=12), torch.float32),
    "volume": (
        case((9, 10, 19), (3, 4, 2), dilation=(1, 2, 3), is_causal=(True, False, False), head_dim=80, layout="qkv"),
        torch.float16,
    ),
}
MANY = {
    f"{len(lengths)}d-{head_dim}-{str(dtype).removeprefix('torch.')}{'-bias' * with_bias}": (
        case(lengths, 5, stride=2, head_dim=head_dim, heads=2, with_bias=with_bias, layout=layout),
        dtype,
    )
    for (lengths, layout), head_dim, dtype, with_bias in itertools.product(
        [((40,), "channels_first"), ((30, 33), "heads_first"), ((10, 11, 12), "contiguous")],
        [3, 16, 64, 128],
        TYPES,
        [False, True],
    )
}


class Recorder(SimpleNamespace):
    """Takes the place of a kernel: kernel[grid](*arguments, **options) is kept for later."""

    def __getitem__(self, grid):
        return lambda *args, **options: self.launches.append((self.kernel, args, options))


def launches(shape: Case, dtype: torch.dtype, monkeypatch) -> list[tuple]:
    """(kernel, arguments, options) of a forward and a backward pass."""
    recorded = []
    kernels = {name: Recorder(kernel=kernel, launches=recorded) for name, kernel in vars(backend.kernels()).items()}
    monkeypatch.setattr(backend, "kernels", lambda: SimpleNamespace(**kernels))
    made = inputs(shape, dtype)
    made = {name: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for name, t in made.items()}
    q, k, v, bias = (made.get(name) for name in ("q", "k", "v", "bias"))
    window = (*window_of(shape.axes), shape.head_dim**-0.5)
    out, lse = backend.forward(q, k, v, bias, *window)
    backend.backward(made["grad_out"], made["grad_lse"], q, k, v, bias, out, lse, *window)
    assert len(recorded) == 3 + shape.with_bias
    return recorded


def compile_launch(kernel, args: tuple, options: dict, architecture: int):
    """As Triton's launcher does it: ones are constants, multiples of 16 are known as such, pointers are aligned."""
    named = dict(zip(kernel.arg_names, args)) | options
    signature, constants, attributes = {}, {}, {}
    for position, parameter in enumerate(kernel.params):
        value = named.pop(parameter.name)
        is_specialized = not parameter.do_not_specialize
        is_one = type(value) is int and value == 1 and is_specialized
        if parameter.is_constexpr or value is None or is_one:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            is_tensor = isinstance(value, torch.Tensor)
            integer = "i32" if is_tensor or abs(value) < 2**31 else "i64"
            signature[parameter.name] = TYPES[value.dtype] if is_tensor else integer
            if is_specialized and (is_tensor or value % 16 == 0):
                attributes[(position,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=targets.GPUTarget("cuda", architecture, 32), options=named)


def registers_and_stack(cubin: bytes, folder: Path) -> tuple[int, int]:
    """Per thread: registers, and bytes of stack: of spilled registers, because the kernels have no arrays."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = dict(re.findall(r"(REG|STACK):(\d+)", listed))
    return int(usage["REG"]), int(usage["STACK"])


def compile_pass(shape: Case, dtype: torch.dtype, architecture: int, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # empty: everything is compiled
    started = time.perf_counter()
    found = launches(shape, dtype, monkeypatch)
    for kernel, args, options in found:
        compiled = compile_launch(kernel, args, options, architecture)
        assert re.search(rf"\.target sm_{architecture}a?\b", compiled.asm["ptx"])
        assert compiled.asm["cubin"][:4] == b"\x7fELF"
        assert not re.search(r"\b(atom|red)\.", compiled.asm["ptx"])
        shared = compiled.metadata.shared
        registers, stack = registers_and_stack(compiled.asm["cubin"], tmp_path)
        name = compiled.metadata.name
        print(f"{name} sm_{architecture}: {registers} registers, {stack} bytes spilled, {shared} bytes shared")
        assert shared <= SHARED_MEMORY, name
        assert stack <= SPILLED, name
    print(f"{len(found)} kernels for sm_{architecture} in {time.perf_counter() - started:.1f} s: {shape}, {dtype}")


@pytest.mark.parametrize(("name", "architecture"), [("map", 80), ("map", 90), ("line", 80), ("volume", 90)])
def test_compiles(name, architecture, monkeypatch, tmp_path):
    compile_pass(*FEW[name], architecture, monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", FEW | MANY)
def test_compiles_at_any_size(name, architecture, monkeypatch, tmp_path):
    compile_pass(*(FEW | MANY)[name], architecture, monkeypatch, tmp_path)
