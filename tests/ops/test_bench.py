"""The benchmark runs, on sizes that say nothing about speed."""

import json

import pytest

from vantage.ops import bench
from vantage.ops.neighborhood_attention import bench as neighborhood_bench
from vantage.ops.neighborhood_attention.bench import Shape


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(bench.GEMM_SIZE, "cpu", 64)
    monkeypatch.setitem(bench.COPY_BYTES, "cpu", 1 << 16)
    monkeypatch.setattr(bench, "SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(neighborhood_bench, "OVERHEAD_LOOPS", 2)
    monkeypatch.setattr(neighborhood_bench, "SAME_TOKENS", (Shape(4, 7, 1, 8, 3), Shape(1, 14, 1, 8, 3)))
    shapes = {"A": Shape(1, 9, 2, 8, 3), "A4": Shape(2, 9, 2, 8, 2, 4)}
    monkeypatch.setitem(neighborhood_bench.SHAPES, "cpu", shapes)


def run(options: str) -> None:
    bench.main(["neighborhood_attention", "--device", "cpu", *options.split()])


def test_every_contender_gets_a_row_or_a_reason(tiny, tmp_path, capsys):
    file = tmp_path / "samples.json"
    run(f"--repeats 3 --backends tiled,reference,sdpa,flex,triton --json {file}")
    printed = capsys.readouterr().out
    for heading in ("A: (1, 9, 9, 2, 8) k3 float32", "A4: (2, 9, 9, 2, 8) k2 dilation 4 float32", "Call overhead"):
        assert heading in printed
    assert "triton: backend='triton' cannot run" in printed
    assert "load average before the start" in printed
    record = json.loads(file.read_text())
    timed = record["result"]["A"]["seconds"]
    assert {(row["backend"], row["part"]) for row in timed} == {
        *((name, part) for name in ("tiled", "reference", "sdpa") for part in ("forward", "forward + backward")),
        ("flex", "forward"),
    }
    assert all(len(row["samples"]) == 3 and min(row["samples"]) > 0 for row in timed)
    assert record["result"]["A"]["gemm_flops_per_second"] > 0
    assert {row["dtype"] for row in record["result"]["bfloat16 and float32"]["samples"]} == {
        "torch.float32",
        "torch.bfloat16",
    }


def test_one_shape_one_backend(tiny, capsys):
    run("--repeats 1 --backends tiled --shapes A4 --dtype bfloat16")
    printed = capsys.readouterr().out
    assert "A4: (2, 9, 9, 2, 8) k2 dilation 4 bfloat16" in printed
    assert "A: " not in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--shapes Z", "--shapes: 'Z' is unknown; use A, A4"),
        ("--backends numpy", "--backends: 'numpy' is unknown; use native"),
        ("--dtype int8", "--dtype: 'int8' is unknown; use float32, bfloat16, float16"),
    ],
)
def test_unknown_values_are_named(tiny, options, message):
    with pytest.raises(SystemExit, match=message):
        run(options)


def test_a_wrong_output_is_not_timed(tiny, monkeypatch, capsys):
    monkeypatch.setattr(neighborhood_bench, "sdpa", lambda axes, q, k, v: v)
    run("--repeats 1 --backends tiled,sdpa --shapes A")
    assert "sdpa: AssertionError: differs from tiled" in capsys.readouterr().out


def test_flops_are_those_of_the_issue():
    assert neighborhood_bench.SHAPES["cpu"]["A"].flops == 4 * 2 * 4 * 56 * 56 * 49 * 32


@pytest.mark.slow
def test_real_shapes_run():
    run("--repeats 1 --backends native,tiled --shapes A,B")
