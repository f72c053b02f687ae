"""The average against one computed by hand, and where it is used."""

import pytest
import pytorch_lightning as pl
import torch

from vantage.training import checkpoint as checkpoints
from vantage.training.ema import EMA
from vantage.training.schedule import Constant

from .stubs import TinyData, fit, make_task, make_trainer


def weights(task):
    return {key: value.clone() for key, value in task.state_dict().items()}


class Recorder(pl.Callback):
    """The weights after every update, and those that validation saw."""

    def __init__(self):
        self.steps, self.updates, self.validated = [], [], []

    def on_train_start(self, trainer, task):
        self.updates.append(weights(task))

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if trainer.global_step == len(self.updates):
            self.updates.append(weights(task))

    def on_validation_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if batch_idx == 0:
            self.steps.append(trainer.global_step)
            self.validated.append(weights(task))


def by_hand(updates, decay):
    """average <- d average + (1 - d) weights with d = min(decay, (1 + n) / (10 + n)), in float64."""
    average = {key: value.double() for key, value in updates[0].items()}
    for n, new in enumerate(updates[1:]):
        d = min(decay, (1 + n) / (10 + n))
        for key, value in new.items():
            average[key] = d * average[key] + (1 - d) * value if value.is_floating_point() else value.double()
    return average


def assert_same(got, expected, **tolerance):
    assert got.keys() == expected.keys()
    for key, value in got.items():
        torch.testing.assert_close(
            value.double(), expected[key].double(), msg=lambda m, key=key: f"{key}: {m}", **tolerance
        )


@pytest.mark.parametrize(("decay", "accumulate"), [(0.3, 1), (0.999, 1), (0.999, 2)])
def test_validation_sees_the_average_computed_by_hand(tmp_path, decay, accumulate):
    recorder = Recorder()
    trainer, task = fit(
        tmp_path,
        callbacks=[recorder, EMA(decay=decay)],
        trainer={"accumulate_grad_batches": accumulate},
        scheduler=Constant(),
    )
    assert trainer.global_step == len(recorder.updates) - 1 == (14 if accumulate == 1 else 8)
    for steps, validated in zip(recorder.steps, recorder.validated):
        expected = by_hand(recorder.updates[: steps + 1], decay)
        assert_same(validated, expected, rtol=1e-5, atol=1e-6)
        raw = recorder.updates[steps]
        assert not torch.allclose(validated["backbone.conv.weight"], raw["backbone.conv.weight"], atol=1e-4)
    assert len(recorder.steps) == 2
    assert_same(weights(task), recorder.validated[-1], rtol=0, atol=0)  # and training ends on it


def test_training_goes_on_from_the_raw_weights(tmp_path):
    with_ema, without = Recorder(), Recorder()
    fit(tmp_path / "a", callbacks=[with_ema, EMA()])
    fit(tmp_path / "b", callbacks=[without])
    for one, other in zip(with_ema.updates, without.updates, strict=True):
        assert_same(one, other, rtol=0, atol=0)


def test_an_untrained_average_is_never_evaluated(tmp_path):
    """Weights loaded after the callback was built, a sanity check, no update yet: validation sees those weights."""

    class Loads(pl.Callback):
        def on_fit_start(self, trainer, task):
            with torch.no_grad():
                task.backbone.head.weight.fill_(3.0)

    recorder = Recorder()
    fit(tmp_path, callbacks=[recorder, EMA(), Loads()], trainer={"num_sanity_val_steps": 1, "max_epochs": 1})
    assert recorder.steps == [0, 7]
    assert torch.all(recorder.validated[0]["backbone.head.weight"] == 3.0)
    assert_same(recorder.validated[1], by_hand(recorder.updates, 0.999), rtol=1e-5, atol=1e-6)


def test_the_checkpoint_holds_what_was_validated_and_a_test_uses_it(tmp_path):
    recorder = Recorder()
    trainer, task = fit(tmp_path, callbacks=[recorder, EMA()], trainer={"max_epochs": 3})
    path = checkpoints.pick(tmp_path)
    stored = torch.load(path, weights_only=True)
    epoch = stored["epoch"]
    assert_same(stored["state_dict"], recorder.validated[epoch], rtol=0, atol=0)
    assert_same(stored["current_model_state"], recorder.updates[7 * (epoch + 1)], rtol=0, atol=0)
    # the average is a BatchNorm model's too: a test of the checkpoint equals the validation of that epoch
    loaded = TinyData()
    loaded.test_dataloader = loaded.val_dataloader
    tested = trainer.test(task, datamodule=loaded, ckpt_path=str(path), verbose=False)[0]
    assert_same(weights(task), recorder.validated[epoch], rtol=0, atol=0)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    validated = [dict(zip(columns, row.split(","))) for row in rows[1:]]
    validated = next(row for row in validated if row["epoch"] == str(epoch) and row["val/loss"])
    assert tested["test/loss"] == float(validated["val/loss"])
    assert tested["test/acc1"] == float(validated["val/acc1"])


def test_resuming_with_and_without_the_callback_must_agree(tmp_path):
    fit(tmp_path / "ema", callbacks=[EMA()])
    fit(tmp_path / "raw")
    for source, callbacks, words in (
        ("ema", [], "was trained with the ema callback; resume it with ema"),
        ("raw", [EMA()], "was trained without the ema callback"),
    ):
        path = str(tmp_path / source / "checkpoints" / "last.ckpt")
        trainer = make_trainer(tmp_path / f"{source}2", callbacks=callbacks)
        with pytest.raises(ValueError, match=words):
            trainer.fit(make_task(), datamodule=TinyData(), ckpt_path=path)


def test_a_decay_of_one_is_refused():
    with pytest.raises(ValueError, match=r"callbacks.ema.decay is 1.0"):
        EMA(decay=1.0)
