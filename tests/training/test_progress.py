"""What a user sees: lines without a terminal, a bar with one; and that it costs next to nothing."""

import io
import re
import time

import pytest
from rich.console import Console

from vantage.training.meter import EpochMeter
from vantage.training.progress import ProgressReport, as_clock

from .stubs import TinyData, fit


def report(terminal, **options):
    progress = ProgressReport(**options)
    progress.console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    return progress


def test_without_a_terminal_one_line_per_epoch(tmp_path):
    progress = report(False)
    trainer, task = fit(tmp_path, callbacks=[progress])
    last = float(trainer.callback_metrics["val/acc1"])
    trainer.test(task, datamodule=TinyData(), verbose=False)
    lines = progress.console.file.getvalue().splitlines()
    pattern = r"epoch (\d)/2  loss (\d\.\d{4})  val/acc1 (\d\.\d{4})  \d+ images/s(  0:\d\d left)?"
    found = [re.fullmatch(pattern, line) for line in lines]
    assert len(lines) == 2
    assert all(found), lines
    assert [match[1] for match in found] == ["1", "2"]
    assert float(found[1][3]) == pytest.approx(last, abs=1e-4)


def test_long_epochs_print_lines_in_between(tmp_path):
    progress = report(False, line_seconds=0.0)
    fit(tmp_path, callbacks=[progress], trainer={"max_epochs": 1})
    lines = progress.console.file.getvalue().splitlines()
    assert len(lines) == 8
    assert lines[2].startswith("epoch 1/1 batch 3/7  loss ")


def test_a_terminal_gets_a_bar_with_loss_metric_rate_and_time_left(tmp_path):
    progress = report(True, refresh_seconds=0.0)
    fit(tmp_path, callbacks=[progress])
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", progress.console.file.getvalue())
    assert re.search(r"epoch 2/2 batch 3/7 .*━.* loss \d\.\d+  val/acc1 \d\.\d+  \d+ images/s  \d:\d\d left", shown)
    assert progress.bar is None


def test_the_bar_goes_away_when_the_run_fails(tmp_path):
    class Fails(TinyData):
        def val_dataloader(self):
            raise RuntimeError("no such file")

    progress = report(True)
    with pytest.raises(RuntimeError, match="no such file"):
        fit(tmp_path, callbacks=[progress], data=Fails())
    assert progress.bar is None


def test_remaining_time_is_proportional_to_what_is_left(monkeypatch):
    progress = report(False)
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    progress.begin(40, "training")
    now[0], progress._done = 110.0, 8
    assert progress.remaining() == "0:40 left"
    assert [as_clock(value) for value in (0.4, 61, 3725)] == ["0:00", "1:01", "1:02:05"]


def test_the_rate_leaves_validation_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    meter = EpochMeter()
    meter.start_clock()
    meter.add(30, {})
    now[0] = 2.0
    meter.stop_clock()
    now[0] = 50.0
    meter.start_clock()
    meter.add(30, {})
    now[0] = 51.0
    assert meter.seconds == 3.0
    assert meter.images_per_second == 20.0
