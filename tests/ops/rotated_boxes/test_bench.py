"""The benchmark runs, on sizes that say nothing about speed."""

import json

import pytest

from vantage.ops import bench
from vantage.ops.rotated_boxes import bench as rotated_bench


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(bench.GEMM_SIZE, "cpu", 64)
    monkeypatch.setitem(bench.COPY_BYTES, "cpu", 1 << 16)
    monkeypatch.setattr(bench, "SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(rotated_bench, "SIZES", dict.fromkeys(rotated_bench.SIZES, 12) | {"nms": 60})
    monkeypatch.setattr(rotated_bench, "CHECKED_PAIRS", 100)


def run(options: str) -> None:
    bench.main(["rotated_boxes", "--device", "cpu", *options.split()])


def test_every_contender_gets_a_row_or_a_reason(tmp_path, capsys):
    file = tmp_path / "samples.json"
    run(f"--repeats 3 --json {file}")
    printed = capsys.readouterr().out
    titles = ("12 x 12 boxes scattered", "12 x 12 boxes that all", "12 x 12 boxes and their", "12 aligned", "NMS of 60")
    assert all(title in printed for title in titles)
    assert "wanted of native: 100 ms" in printed
    timed = {row["backend"] for row in json.loads(file.read_text())["result"]["scattered"]["seconds"]}
    for name in ("native", "reference", "torchvision", "shapely"):
        assert name in timed or f"{name}: " in printed


def test_one_case_one_backend(capsys):
    run("--repeats 1 --cases pairs --backends reference")
    printed = capsys.readouterr().out
    assert "reference, forward + backward" in printed
    assert "native" not in printed.partition("load average")[2].partition("\n\n")[2].replace("native is faster by", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--cases all", "--cases: 'all' is unknown; use scattered, overlapping, jittered, pairs, nms"),
        ("--backends mmcv", "--backends: 'mmcv' is unknown; use native, cuda, reference, torchvision, shapely"),
    ],
)
def test_unknown_values_are_named(options, message):
    with pytest.raises(SystemExit, match=message):
        run(options)
