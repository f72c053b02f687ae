"""A run that stops after two of four epochs and is resumed ends where the uninterrupted one ends, bit for bit."""

import csv

import pytest
import pytorch_lightning as pl
import torch

from vantage.training.ema import EMA
from vantage.training.schedule import Cosine

from .stubs import TinyData, fit, make_task, make_trainer

MIXED = {"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "mix_probability": 0.7, "label_smoothing": 0.1}


class Stop(pl.Callback):
    """As a kill after the second epoch would."""

    def on_train_epoch_end(self, trainer, task):
        trainer.should_stop = trainer.current_epoch == 1


def rows(run_dir):
    """metrics.csv without its time columns."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        found = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]
    assert found
    return found


def assert_same_weights(one, other):
    one, other = (torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (one, other))
    for key in ("state_dict", "current_model_state"):
        assert one.get(key, {}).keys() == other.get(key, {}).keys()
        for name, value in one.get(key, {}).items():
            assert torch.equal(value, other[key][name]), name
    assert one["optimizer_states"][0]["state"][0]["step"] == other["optimizer_states"][0]["state"][0]["step"]


@pytest.mark.parametrize("same_directory", [False, True], ids=["new_directory", "same_directory"])
@pytest.mark.parametrize(
    ("workers", "with_ema", "options"),
    [(0, False, {}), (0, True, {"accumulate_grad_batches": 2, "num_sanity_val_steps": 2}), (2, True, {})],
    ids=["plain", "ema_accumulation", "workers"],
)
def test_two_epochs_and_two_more_equal_four(tmp_path, workers, with_ema, options, same_directory):
    def run(run_dir, *callbacks, ckpt_path=None, seed=3):
        averaging = [EMA(decay=0.9)] if with_ema else []
        return fit(
            run_dir,
            seed=seed,
            data=TinyData(num_workers=workers),
            callbacks=[*averaging, *callbacks],
            trainer={"max_epochs": 4, "log_every_n_steps": 1, "gradient_clip_val": 0.5, **options},
            ckpt_path=ckpt_path,
            **MIXED,
        )

    whole, half = tmp_path / "whole", tmp_path / "half"
    resumed = half if same_directory else tmp_path / "resumed"
    run(whole)
    run(half, Stop())
    assert rows(half) == rows(whole)[: len(rows(half))]
    # another seed: everything random must come from the checkpoint
    run(resumed, ckpt_path=str(half / "checkpoints" / "last.ckpt"), seed=99)
    if same_directory:
        assert rows(resumed) == rows(whole)
    else:
        assert rows(resumed) == rows(whole)[len(rows(half)) :]
    assert_same_weights(resumed, whole)
    best = [torch.load(path / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] for path in (whole, resumed)]
    assert best[0] == best[1]


def test_one_seed_gives_one_metrics_file_with_workers(tmp_path):
    files = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        fit(tmp_path / name, seed=seed, data=TinyData(num_workers=2), callbacks=[EMA()], **MIXED)
        files.append(rows(tmp_path / name))
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_resuming_with_another_length_is_refused(tmp_path):
    fit(tmp_path / "a", scheduler=Cosine())
    trainer = make_trainer(tmp_path / "b", max_epochs=5)
    with pytest.raises(ValueError, match=r"belongs to a run of 14 updates and this one plans 35; resume with the same"):
        trainer.fit(make_task(), datamodule=TinyData(), ckpt_path=str(tmp_path / "a" / "checkpoints" / "last.ckpt"))
