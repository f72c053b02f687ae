"""The Triton kernels, interpreted on the CPU in a second process; test_backends.py runs them on a GPU.

What the interpreter cannot see, whether types and shapes pass Triton's compiler, is in test_triton_compiles.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vantage.ops.neighborhood_attention import triton as backend
from vantage.ops.neighborhood_attention.windows import Axis

from .cases import CASES, LAYOUTS, SMALL_CASES, Case, case, inputs, through_op

pytest.importorskip("triton", reason="Triton is not installed")

TESTS = Path(__file__).parents[1]  # from which the second process imports this package


@pytest.fixture(scope="module")
def interpreter():
    """run(task, *arguments): a function of triton_interpreter.py in a process that has TRITON_INTERPRET from its start,
    one process for all tests of a worker."""
    process = subprocess.Popen(
        [sys.executable, "-m", "neighborhood_attention.triton_interpreter"],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(*task) -> None:
        print(json.dumps(task), file=process.stdin, flush=True)
        answer = process.stdout.readline()
        assert answer, "the interpreting process ended"
        wrong = json.loads(answer)
        assert not wrong, wrong

    yield run
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()


def with_one_head(shape: Case) -> Case:
    """The interpreter takes milliseconds for every tile of every head; views keep two, because strides matter."""
    return shape._replace(batch=1, heads=1 if shape.layout == "contiguous" else 2)


SMALL = [with_one_head(shape) for shape in SMALL_CASES]
SEVERAL_TILES = [with_one_head(shape) for shape in CASES if shape.lengths in ((33, 21), (40, 17))]
TWO_HEADS = case((7, 9), (3, 5), with_bias=True)


@pytest.mark.parametrize("shape", [*SMALL, *SEVERAL_TILES, TWO_HEADS], ids=str)
def test_float32(interpreter, shape):
    interpreter("agrees", shape, "float32")


@pytest.mark.parametrize("shape", [*SMALL[1::6], SEVERAL_TILES[0]], ids=str)
def test_bfloat16(interpreter, shape):
    interpreter("agrees", shape, "bfloat16")


@pytest.mark.parametrize("shape", SMALL[4::12], ids=str)
def test_float16(interpreter, shape):
    interpreter("agrees", shape, "float16")


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        *(("gradients_of_one_result", which) for which in ("out", "lse")),
        *(("gradients_of_other_layouts", layout) for layout in LAYOUTS[-2:]),
        *(("bias_of_any_floating_dtype", dtype) for dtype in ("bfloat16", "float64")),
        ("large_logits_do_not_overflow", None),
    ],
)
def test_as_other_backends(interpreter, name, argument):
    interpreter("passes_test_of_backends", name, argument)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", CASES, ids=str)
def test_every_case(interpreter, shape, dtype):
    interpreter("agrees", shape, dtype)


@pytest.mark.parametrize("tile", [1, 2, 4, 8])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
def test_ranges_of_keys_and_queries_are_exact(interpreter, stride, is_causal, tile):
    interpreter("ranges_are_exact", stride, is_causal, tile)


@pytest.mark.parametrize(("programs", "workspace"), [(1, 64 << 20), (10**6, 64 << 20), (10**6, 0)])
def test_gradient_of_the_bias_in_any_number_of_splits(interpreter, programs, workspace):
    interpreter("sums_in_splits", TWO_HEADS._replace(heads=1), programs, workspace)


def test_opcheck(interpreter):
    interpreter("passes_opcheck", case((4, 5), 2, with_bias=True))


@pytest.mark.skipif(backend.IS_INTERPRETED, reason="TRITON_INTERPRET is set")
@pytest.mark.parametrize(
    ("q", "capability", "message"),
    [
        ({}, (8, 0), None),
        ({"head_dim": 128, "dtype": torch.bfloat16}, (9, 0), None),
        ({"device": "cpu"}, (9, 0), "runs on a GPU and q is on cpu; use backend='auto'"),
        ({"device": "meta"}, (9, 0), "runs on a GPU and q is on meta; use backend='auto'"),
        ({"dtype": torch.float64}, (9, 0), "takes float16, bfloat16 or float32 and q is torch.float64; use"),
        ({"head_dim": 129}, (9, 0), "takes a head_dim up to 128, not 129; use backend='tiled'"),
        ({}, (7, 5), "needs compute capability 8.0, cuda:0 has 7.5; use backend='tiled'"),
    ],
)
def test_says_what_is_missing(monkeypatch, q, capability, message):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    said = backend.unavailable(like(**q), (Axis(4, 3),))
    assert said is None if message is None else message in said


def like(device="cuda:0", dtype=torch.float32, head_dim=8):
    return SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(1, 4, 2, head_dim))


def test_says_how_to_get_triton(monkeypatch):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert "pip install triton" in backend.unavailable(like(), (Axis(4, 3),))


def plan(*axes, dtype=torch.bfloat16, head_dim=32, has_bias=False):
    return backend.plan_of(axes, dtype, head_dim, has_bias)


def test_tiles_fit_the_window():
    assert plan(Axis(56, 7), Axis(56, 7)).stays == (1, 8, 8)  # a halo of 14 x 14 keys in 7 steps of 2 x 16
    assert plan(Axis(4096, 33)).stays == (1, 1, 64)
    assert plan(Axis(1, 1), Axis(4096, 33)).stays == (1, 1, 64)
    assert plan(Axis(56, 1), Axis(56, 31)).streams[1] == plan(Axis(56, 1), Axis(56, 31)).stays[1]
    assert plan(Axis(16, 3), Axis(16, 3), Axis(16, 3)).stays == (2, 2, 16)  # nothing is outside along x
    assert plan(Axis(64, 7, 8), Axis(64, 7)).tiles == 8 * plan(Axis(8, 7), Axis(64, 7)).tiles


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_twice_on_cuda(dtype):
    shape = case((61, 67), (7, 5), head_dim=32, batch=5, heads=3, with_bias=True)
    made = inputs(shape, dtype, "cuda")
    leaves = [made[name].requires_grad_() for name in ("q", "k", "v", "bias")]
    runs = []
    for _ in range(3):
        results = through_op("triton")(*leaves[:3], shape.axes, 0.3, leaves[3])
        runs.append([*results, *torch.autograd.grad(results, leaves, (made["grad_out"], made["grad_lse"]))])
    assert all(map(torch.equal, runs[0], runs[1]))
    assert all(map(torch.equal, runs[0], runs[2]))
