"""The benchmark runs, on a size that says nothing about speed; its errors are what they should be."""

import json
from pathlib import Path

import pytest

from vantage.ops import bench


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.GEMM_SIZE, "cpu", 64)
    monkeypatch.setitem(bench.COPY_BYTES, "cpu", 1 << 16)
    monkeypatch.setattr(bench, "SAMPLE_SECONDS", 0.0)


def test_every_case_has_its_rivals(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "samples.json"
    bench.main(["resize", "--device", "cpu", "--size", "72", "96", "--repeats", "3", "--json", str(file)])
    printed = capsys.readouterr().out
    result = json.loads(file.read_text())["result"]
    assert list(result) == [f"x1/{n} {kind}" for n in (4, 3, 2) for kind in ("float32", "uint8")] + ["x4 float32"]
    for name, found in result.items():
        errors = {row[0]: float(row[4]) for row in found["rows"]}
        assert ("Pillow" in errors) == ("uint8" in name)
        assert errors["ours"] < 1e-3 < errors["F.interpolate"]  # bytes: none of a level
    assert "goal 60 ms" in printed
    assert "goal 1200 ms" in printed
