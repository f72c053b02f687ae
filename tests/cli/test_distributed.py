"""Training in two processes on the CPU: one run directory, the metrics of all samples."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TWO = ["trainer=two_cores"]
# 181 validation images in batches of 90: one process has two batches and the other one
SHORT = ["logger=csv", "data.val_fraction=0.101", "data.eval_batch_size=90", "trainer.max_epochs=1",
         "+trainer.limit_train_batches=2"]  # fmt: skip


def run(script: str, *overrides: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "VANTAGE_RUN_DIR"}
    done = subprocess.run([sys.executable, script, *overrides], cwd=ROOT, env=environment, capture_output=True,
                          text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_two_processes_validate_unequal_numbers_of_batches(tmp_path):
    run("train.py", f"run_dir={tmp_path / 'two'}", *SHORT, *TWO)
    trained = json.loads((tmp_path / "two" / "metrics.json").read_text())
    one = ["trainer.devices=1", "trainer.strategy=auto"]
    run("eval.py", f"run={tmp_path / 'two'}", f"run_dir={tmp_path / 'one'}", *one)
    alone = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert trained["test/acc1"] == alone["test/acc1"]
    assert abs(trained["test/loss"] - alone["test/loss"]) < 1e-5
