"""The same seed gives the same run; another seed another one."""

import csv
from pathlib import Path

import pytest

from .launching import launch

SHORT = ["model=vit", "attention=neighborhood", "logger=csv", "trainer.max_epochs=2", "+trainer.limit_train_batches=4",
         "trainer.log_every_n_steps=1", "task.mixup_alpha=0.2", "model.drop_path=0.1"]  # fmt: skip


def rows_without_times(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [
            {key: value for key, value in row.items() if not key.startswith("time/")} for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("workers", [0, 2])
def test_two_runs_with_one_seed_write_the_same_metrics(tmp_path, workers):
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        launch("train", f"run_dir={tmp_path / name}", f"data.num_workers={workers}", f"seed={seed}", *SHORT)
    first, second, other = (rows_without_times(tmp_path / name) for name in ("first", "second", "other"))
    assert len(first) == 9  # eight steps and the test
    assert first == second
    assert first != other
