"""Every refusal is a sentence with the numbers and the fix."""

import pytest
import torch

from vantage.ops import neighborhood_attention

QKV = (1, 6, 8, 2, 4)


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (7, {}, r"kernel_size 7 does not fit axis 0 of length 6; use at most 6"),
        ((3, 3), {"dilation": (2, 3)}, r"kernel_size 3 with dilation 3 does not fit axis 1 .* use dilation <= 2"),
        (3, {"stride": 4}, r"stride 4 exceeds kernel_size 3 of axis 0 of length \d+; use stride <= 3"),
        (0, {}, r"kernel_size=0; use one or 2 positive integers"),
        ((3, -1), {}, r"kernel_size=\(3, -1\); use one or 2 positive integers"),
        ((3, 3, 3), {}, r"kernel_size=\(3, 3, 3\); use one or 2 positive integers"),
        (3.0, {}, r"kernel_size=3.0; use one or 2 positive integers"),
        ((3.0, 3), {}, r"kernel_size=\(3.0, 3\); use one or 2 positive integers"),
        ("3", {}, r"kernel_size='3'; use one or 2 positive integers"),
        (True, {}, r"kernel_size=True; use one or 2 positive integers"),
        (3, {"dilation": 0}, r"dilation=0; use one or 2 positive integers"),
        (3, {"stride": (1, 1, 1)}, r"stride=\(1, 1, 1\); use one or 2 positive integers"),
        (3, {"is_causal": 1}, r"is_causal=1; use one or 2 booleans"),
        (3, {"is_causal": (True, 0)}, r"is_causal=\(True, 0\); use one or 2 booleans"),
        (3, {"bias": torch.zeros(2, 5, 6)}, r"bias has shape \(2, 5, 6\); use .* = \(2, 5, 5\)"),
        (3, {"bias": torch.zeros(2, 5, 5).long()}, r"bias is torch.int64; use a floating dtype"),
        (3, {"bias": torch.zeros(2, 5, 5, device="meta")}, r"bias is on meta and q on cpu; move them to one device"),
        (
            3,
            {"backend": "cudnn"},
            r"backend='cudnn' is unknown; use auto, native, triton, cuda, flex, tiled, reference",
        ),
    ],
)
def test_bad_arguments_are_named(kernel, options, message):
    q, k, v = torch.randn(3, *QKV)
    neighborhood_attention(q, k, v, 3, stride=1, is_causal=True)  # what fits is remembered, its look-alikes are not
    with pytest.raises(ValueError, match=message):
        neighborhood_attention(q, k, v, kernel, **options)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 6, 8)] * 3, r"q has shape \(1, 6, 8\); use \(B, \*lengths, heads, head_dim\) with 1 to 3 lengths"),
        ([(1, *QKV, 3, 3)] * 3, r"use \(B, \*lengths, heads, head_dim\) with 1 to 3 lengths"),
        ([QKV, QKV, (1, 6, 8, 2, 5)], "differ; give them one shape"),
        ([QKV, (2, 6, 8, 2, 4), QKV], "differ; give them one shape"),
        ([(1, 6, 8, 0, 4)] * 3, "every size but the batch must be at least 1"),
        ([(1, 6, 8, 2, 0)] * 3, "every size but the batch must be at least 1"),
        ([(1, 0, 8, 2, 4)] * 3, "every size but the batch must be at least 1"),
    ],
)
def test_bad_shapes_are_named(shapes, message):
    with pytest.raises(ValueError, match=message):
        neighborhood_attention(*(torch.randn(shape) for shape in shapes), 3)


def test_an_empty_batch_must_fit_too():
    q, k, v = torch.randn(3, 0, *QKV[1:])
    with pytest.raises(ValueError, match="kernel_size 7 does not fit axis 0 of length 6"):
        neighborhood_attention(q, k, v, 7)
    with pytest.raises(ValueError, match="backend='cudnn' is unknown"):
        neighborhood_attention(q, k, v, 3, backend="cudnn")


def test_mixed_dtypes_are_named():
    q, k, v = torch.randn(3, *QKV)
    with pytest.raises(ValueError, match=r"q is torch.float32, k torch.float64 .* give them one floating dtype"):
        neighborhood_attention(q, k.double(), v, 3)


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_other_dtypes_are_named(dtype):
    q = torch.zeros(QKV, dtype=dtype)
    with pytest.raises(ValueError, match=rf"q is {dtype}.* give them one floating dtype"):
        neighborhood_attention(q, q, q, 3)


def test_mixed_devices_are_named():
    q, k, v = torch.randn(3, *QKV)
    with pytest.raises(ValueError, match="q is on cpu, k on meta and v on cpu; move them to one device"):
        neighborhood_attention(q, k.to("meta"), v, 3)
