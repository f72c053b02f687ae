"""Which backend runs: auto chooses and says so once, a named one runs or says what is missing."""

import logging
import subprocess
import sys

import pytest
import torch

from vantage.ops import neighborhood_attention
from vantage.ops.neighborhood_attention import BACKENDS, choose, dispatch, native, resolve_backend
from vantage.ops.neighborhood_attention.windows import Axis

AXES = (Axis(6, 3), Axis(8, 3))


@pytest.fixture(autouse=True)
def forget():
    """What a test made the machine look like is no answer for the next."""
    caches = (dispatch.cached_resolved, dispatch.log_choice, native.library_error)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def no_compiler(monkeypatch):
    missing = "no C++ compiler was found; install g++ or clang++"
    monkeypatch.setattr(native, "library_error", lambda: missing)
    return missing


def tokens(dtype=torch.float32):
    return torch.randn(3, 1, 6, 8, 2, 4, dtype=dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_named_backend_is_taken_at_its_word(backend, monkeypatch):
    if backend not in dispatch.COMPOSITES:
        pytest.skip("needs kernels; test_backends.py runs them")
    q, k, v = tokens()
    neighborhood_attention(q, k, v, 3, backend=backend)
    ran = []
    for name in dispatch.FUNCTIONS:
        monkeypatch.setitem(dispatch.FUNCTIONS, name, lambda *args, name=name: ran.append(name) or (q, None))
    neighborhood_attention(q, k, v, 3, backend=backend)
    assert ran == [backend]


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_a_backend_for_gpus_says_so_on_a_cpu(backend):
    reason = rf"backend='{backend}' runs on an? .*GPU and q is on cpu; use backend='auto'"
    with pytest.raises(RuntimeError, match=rf"neighborhood_attention: backend='{backend}' cannot run: ({reason})"):
        neighborhood_attention(*tokens(), 3, backend=backend)


def test_native_without_a_compiler_says_what_to_install(no_compiler):
    with pytest.raises(RuntimeError, match=f"backend='native' cannot run: {no_compiler}".replace("+", r"\+")):
        neighborhood_attention(*tokens(), 3, backend="native")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_native_names_a_dtype_it_does_not_take(dtype):
    with pytest.raises(RuntimeError, match=rf"backend='native' .*takes float32 or bfloat16 and q is {dtype}"):
        neighborhood_attention(*tokens(dtype), 3, backend="native")


def test_auto_without_a_compiler_says_once_that_it_uses_tiled(no_compiler, caplog):
    with caplog.at_level(logging.INFO, logger="vantage.ops"):
        for shape in ((16, 20), (20, 16)):  # wide enough for native
            q, k, v = torch.randn(3, 1, *shape, 2, 4)
            neighborhood_attention(q, k, v, 3)
            neighborhood_attention(q, k, v, 3)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"neighborhood_attention: backend 'tiled' for float32 on cpu; native cannot run: {no_compiler}"
    )


def test_auto_logs_each_choice_once(caplog):
    with caplog.at_level(logging.INFO, logger="vantage.ops"):
        for dtype in (torch.float64, torch.float64, torch.float16):
            neighborhood_attention(*tokens(dtype), 3)
    assert [record.getMessage() for record in caplog.records] == [
        "neighborhood_attention: backend 'tiled' for float64 on cpu",
        "neighborhood_attention: backend 'tiled' for float16 on cpu",
    ]


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps", "xpu"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_auto_always_has_a_last_resort(device, dtype):
    names = choose.candidates(device, dtype, AXES)
    assert names[-1] == "tiled"
    assert set(names) <= set(BACKENDS)


def test_waste_of_dense():
    assert choose.waste_of_dense((Axis(7, 7), Axis(7, 7))) == 1
    assert choose.waste_of_dense((Axis(56, 7), Axis(28, 7))) == 32


def test_the_answer_is_for_the_dtype_of_autocast():
    q, _, _ = tokens()
    with torch.autocast("cpu", torch.float16):
        assert resolve_backend("auto", q, AXES) == "tiled"


def test_flex_has_no_backward_on_a_cpu():
    q, k, v = tokens().requires_grad_()
    with pytest.raises(RuntimeError, match=r"backend='flex' has no backward on a CPU.*torch.no_grad\(\)"):
        neighborhood_attention(q, k, v, 3, backend="flex")
    with torch.no_grad():
        assert neighborhood_attention(q, k, v, 3, backend="flex").isfinite().all()


def test_importing_the_op_neither_imports_backends_nor_builds():
    code = (
        "import sys, vantage.ops\n"
        "heavy = [name for name in sys.modules if name == 'torch._dynamo' or "
        "name.startswith('vantage.ops') and name.rpartition('.')[2] in ('native', 'triton', 'cuda', 'flex', 'build')]\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
