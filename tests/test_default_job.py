"""The default job as a user runs it: `python train.py`, then eval.py on what it left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_default_job_reads_digits(tmp_path):
    def run(*arguments: str) -> None:
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    run("train.py", f"run_dir={tmp_path / 'train'}")
    run("eval.py", f"run={tmp_path / 'train'}", f"run_dir={tmp_path / 'eval'}")
    trained = json.loads((tmp_path / "train" / "metrics.json").read_text())
    tested = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert trained["test/acc1"] >= 0.985
    assert tested == {key: value for key, value in trained.items() if key.startswith("test/")}
