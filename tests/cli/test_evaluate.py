"""A run is rebuilt from its directory or its checkpoint: the same numbers, predictions, costs and pictures."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vantage.cli import main

from .launching import launch

SHORT = ["model=vit", "attention=softmax", "logger=csv", "trainer.max_epochs=2", "+trainer.limit_train_batches=4"]


def evaluate(directory: Path, *overrides: str) -> dict[str, float] | int:
    return launch("eval", f"run_dir={directory}", *overrides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short training with all that could make evaluation differ: EMA, mixup, drop path, an odd evaluation batch."""
    directory = tmp_path_factory.mktemp("runs") / "trained"
    options = ["callbacks=[default,ema]", "task.mixup_alpha=0.4", "model.drop_path=0.1", "data.eval_batch_size=50"]
    return directory, launch("train", f"run_dir={directory}", *SHORT, *options)


def test_training_draws_its_pictures_and_summary(trained):
    directory, _ = trained
    drawn = {path.stem for path in (directory / "pictures").glob("*.png")}
    split = {
        f"{name}_{split}" for name in ("confusion_matrix", "worst_mistakes", "attention") for split in ("val", "test")
    }
    assert drawn == {"first_batch"} | split
    text = (directory / "summary.txt").read_text()
    state = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    total = sum(tensor.numel() for name, tensor in state.items() if name.startswith("backbone."))
    assert f"{total:,}" in text
    assert "softmax" in text


@pytest.mark.parametrize("by", ["run", "checkpoint"])
def test_the_numbers_are_those_of_the_training_to_the_last_digit(trained, tmp_path, by):
    directory, metrics = trained
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    source = f"run={directory}"
    if by == "checkpoint":  # all that is needed is in the file
        source = f"checkpoint={shutil.copy(directory / 'checkpoints' / 'best.ckpt', tmp_path / 'moved.ckpt')}"
    result = evaluate(tmp_path / "eval", source)
    assert result == {key: value for key, value in metrics.items() if key.startswith("test/")}
    assert len(result) == 5
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text()) == result
    assert (tmp_path / "eval" / "pictures" / "confusion_matrix_test.png").is_file()
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before  # the run is left alone


def test_the_validation_split(trained, tmp_path, capsys):
    directory, _ = trained
    result = evaluate(tmp_path / "eval", f"checkpoint={directory / 'checkpoints' / 'last.ckpt'}", "split=val")
    assert set(result) == {f"val/{key}" for key in ("loss", "acc1", "acc5", "mean_class_acc", "ece")}
    assert (tmp_path / "eval" / "pictures" / "confusion_matrix_val.png").is_file()
    assert evaluate(tmp_path / "other", f"run={directory}", "split=train") == main.REFUSED
    assert "split=train) is 'train'; it must be one of 'val', 'test'" in capsys.readouterr().err


def test_predict_a_folder_with_broken_files(trained, tmp_path, capsys):
    directory, _ = trained
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (40, 30), np.uint8)
        Image.fromarray(noise).save(images / f"{i}.png")
    (images / "broken.png").write_bytes((images / "0.png").read_bytes()[:600])
    result = evaluate(tmp_path / "eval", f"run={directory}", f"predict={images}")
    assert result == {"predict/files": 3, "predict/failed": 1}
    written = json.loads((tmp_path / "eval" / "predictions.json").read_text())
    assert [Path(one["file"]).name for one in written["predictions"]] == ["0.png", "1.png", "2.png"]
    assert [Path(one["file"]).name for one in written["failed"]] == ["broken.png"]
    assert sum(entry["probability"] for entry in written["predictions"][0]["top"]) <= 1
    assert {path.name for path in (tmp_path / "eval" / "pictures").iterdir()} == {"predictions_1.png", "attention.png"}
    said = capsys.readouterr().out.splitlines()
    assert "1 of 4 files could not be read; predictions.json says which and why" in said
    assert said[-1] == f"run directory: {tmp_path / 'eval'}"
    assert evaluate(tmp_path / "again", f"run={directory}", f"predict={images / 'broken.png'}") == main.FAILED
    assert re.search(r"none of 1 files could be read; .*broken.png: ", capsys.readouterr().err)
    assert json.loads((tmp_path / "again" / "predictions.json").read_text())["failed"]


def test_benchmark_with_and_without_a_run(trained, tmp_path):
    directory, _ = trained
    sizes = "benchmark_batch_sizes=[1,3]"
    of_run = evaluate(tmp_path / "of_run", f"run={directory}", "benchmark=true", sizes)
    fresh = evaluate(tmp_path / "fresh", *SHORT, "benchmark=true", sizes)
    for key in ("benchmark/parameters", "benchmark/gflops"):
        assert of_run[key] == fresh[key]
    assert json.loads((tmp_path / "fresh" / "metrics.json").read_text()) == fresh  # what a sweep's table shows
    written = json.loads((tmp_path / "fresh" / "benchmark.json").read_text())
    assert fresh["benchmark/images_per_second_3"] == written["batches"][1]["images_per_second"]
    assert [row["batch_size"] for row in written["batches"]] == [1, 3]
    assert (written["num_classes"], written["input"], written["weights"]) == (10, [1, 32, 32], "fresh")
    state = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert of_run["benchmark/parameters"] == sum(value.numel() for key, value in state.items() if "backbone" in key)


def test_benchmark_needs_no_data(tmp_path):
    options = [
        "data=cifar100",
        f"data.root={tmp_path / 'nowhere'}",
        "model.img_size=[32,48]",
        "benchmark_batch_sizes=[1]",
    ]
    evaluate(tmp_path / "eval", *SHORT, *options, "benchmark=true")
    written = json.loads((tmp_path / "eval" / "benchmark.json").read_text())
    assert (written["num_classes"], written["input"]) == (100, [3, 32, 48])
