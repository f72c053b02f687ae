"""metrics.csv row by row; W&B for real, offline, its system calls watched."""

import csv
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import wandb
from PIL import Image

from vantage.training.loggers import finish_loggers
from vantage.training.loggers.csv import CSVMetrics
from vantage.training.loggers.tensorboard import TensorBoard
from vantage.training.loggers.wandb import WandB, is_logged_in

from .stubs import fit


def rows(run_dir):
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_of_one_step_share_a_row_and_columns_grow(tmp_path):
    logger = CSVMetrics(save_dir=str(tmp_path))
    logger.log_metrics({"step/loss": 2.0, "epoch": 0}, step=4)
    logger.log_metrics({"val/acc1": 0.5, "epoch": 0}, step=9)
    logger.log_metrics({"train/loss": 1.5, "epoch": 0}, step=9)
    logger.log_metrics({"step/loss": 1.0, "epoch": 1}, step=14)
    assert (tmp_path / "metrics.csv").read_text() == (
        "epoch,step,step/loss,train/loss,val/acc1\n0,4,2.0,,\n0,9,,1.5,0.5\n1,14,1.0,,\n"
    )


def test_the_file_is_complete_after_every_call(tmp_path):
    logger = CSVMetrics(save_dir=str(tmp_path))
    for step in range(5):
        logger.log_metrics({"a": step}, step=step)
        logger.log_metrics({"b": step}, step=step)
        assert [(row["a"], row["b"]) for row in rows(tmp_path)] == [(f"{i}.0", f"{i}.0") for i in range(step + 1)]


def test_a_run_resumed_in_its_directory_replaces_what_it_repeats(tmp_path):
    first = CSVMetrics(save_dir=str(tmp_path))
    for step in range(4):
        first.log_metrics({"a": step}, step=step)
    again = CSVMetrics(save_dir=str(tmp_path))
    again.log_metrics({"a": 20.0, "b": 1.0}, step=2)
    assert [(row["step"], row["a"], row["b"]) for row in rows(tmp_path)] == [
        ("0", "0.0", ""),
        ("1", "1.0", ""),
        ("2", "20.0", "1.0"),
    ]


def test_columns_of_a_training(tmp_path):
    fit(tmp_path, trainer={"log_every_n_steps": 5, "gradient_clip_val": 1.0})
    header = list(rows(tmp_path)[0])
    assert header[:2] == ["epoch", "step"]
    assert header[2:] == sorted(header[2:])
    clock = {name for name in header if name.startswith("time/")}
    assert clock == {"time/epoch_seconds", "time/images_per_second"}
    assert set(header) - clock == {
        *("epoch", "step", "step/loss", "step/lr", "step/gradient_norm", "train/loss", "train/acc1"),
        *("val/loss", "val/acc1", "val/acc5", "val/mean_class_acc", "val/ece"),
    }
    assert [row["step"] for row in rows(tmp_path)] == ["4", "6", "9", "13"]  # every 5 updates, and epochs of 7


# W&B

SCRIPT = """
import sys
from vantage.training.loggers.wandb import WandB
from vantage.training.loggers import finish_loggers
logger = WandB(save_dir=sys.argv[1], group="sweep", tags=["a", "b"], name="first")
logger.log_hyperparams({"seed": 3})
logger.log_metrics({"train/loss": 1.0}, step=0)
run = logger.experiment
second = WandB(save_dir=sys.argv[1])          # the first run was left open
second.log_metrics({"train/loss": 2.0}, step=0)
assert second.experiment.id != run.id, "the open run was continued"
assert (run.group, run.name, tuple(run.tags), dict(run.config)) == ("sweep", "first", ("a", "b"), {"seed": 3})
finish_loggers()
import wandb
assert wandb.run is None
print(logger.mode, run.id, second.experiment.id)
"""


def offline_environment(home):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return {**environment, "HOME": str(home), "OMP_NUM_THREADS": "1"}


def test_offline_opens_no_network_connection_and_closes_its_runs(tmp_path):
    """Nobody is logged in under this HOME, so `auto` is offline. Unix sockets to wandb's own service are allowed."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run")]
    trace = tmp_path / "trace"
    watch = ["strace", "-f", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace)]
    if shutil.which("strace") and subprocess.run([*watch, "true"], capture_output=True).returncode == 0:
        command = watch + command  # a container may forbid tracing
    done = subprocess.run(command, env=offline_environment(tmp_path), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    mode, *ids = done.stdout.split()[-3:]
    assert mode == "offline"
    directories = sorted(path.name for path in (tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert sorted(name.rsplit("-", 1)[1] for name in directories) == sorted(ids)
    # W&B 0.22 says of every offline run that it ignores `resume`; later versions do not
    said = [line for line in done.stderr.splitlines() if "`resume` will be ignored" not in line]
    assert "WARNING" not in "\n".join(said)
    if command[0] != "strace":
        pytest.skip("the run is right, but without strace nobody watched its network calls")
    calls = trace.read_text()
    assert "AF_UNIX" in calls  # the trace works: the service is reached over a socket
    outside = [line for line in calls.splitlines() if re.search(r"sa_family=AF_INET6?\b", line)]
    assert [line for line in outside if "127.0.0.1" not in line and '"::1"' not in line] == []


def test_error_reporting_is_off_before_wandb_is_imported():
    code = (
        "import os, sys, vantage.training.loggers; "
        "assert os.environ['WANDB_ERROR_REPORTING'] == 'false' and 'wandb' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


def test_masks_are_written_with_the_names_of_their_classes(tmp_path):
    """In an offline run, as files that `wandb sync` uploads; pictures of other sizes are padded to the largest."""
    rng = np.random.default_rng(0)
    labels = {0: "road", 1: "sky", 254: "the last one", 255: "ignore"}
    panels = [
        {
            "name": f"picture {number}",
            "image": rng.integers(0, 255, (*size, 3)).astype(np.uint8),
            "prediction": rng.choice([0, 1, 254], size).astype(np.uint8),
            "ground_truth": rng.choice([0, 1, 254, 255], size).astype(np.uint8),
            "class_labels": labels,
        }
        for number, size in enumerate([(6, 9), (8, 1)])
    ]
    logger = WandB(save_dir=str(tmp_path), mode="offline")
    try:
        logger.log_masks("pictures/masks_val", panels, step=7)
        (run,) = (tmp_path / "wandb").glob("offline-run-*")
    finally:
        finish_loggers()
        wandb.teardown()  # a run that is finished may still be on its way to the disk

    def whole(pixels):
        padding = [(0, 8 - len(pixels)), (0, 9 - pixels.shape[1]), (0, 0)][: pixels.ndim]
        return np.pad(pixels, padding, constant_values=255).tobytes()

    def written(folder):
        return {np.asarray(Image.open(path)).tobytes() for path in (run / "files" / "media" / folder).glob("*.png")}

    assert written("images/pictures") == {whole(panel["image"]) for panel in panels}
    masks = {whole(panel[name]) for panel in panels for name in ("prediction", "ground_truth")}
    assert written("images/mask/pictures") == masks
    (log,) = run.glob("run-*.wandb")
    content = log.read_bytes()
    for name in ("prediction", "ground_truth"):
        told = f'"pictures/masks_val_wandb_delimeter_{name}","value":{{"0":"road","1":"sky","254":"the last one","255":'
        assert f'{told}"ignore"}}'.encode() in content
    assert b'"picture 0","picture 1"' in content


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    for key in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_auto_is_online_only_for_who_is_logged_in(nobody, monkeypatch):
    def mode(asked="auto"):
        return WandB(save_dir=str(nobody), mode=asked).mode

    assert mode() == "offline"
    (nobody / ".netrc").write_text("machine example.org login user password x\n")
    assert mode() == "offline"
    (nobody / ".netrc").write_text("machine api.wandb.ai login user password " + "0" * 40 + "\n")
    assert is_logged_in()
    assert mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert mode() == "offline"
    assert mode("disabled") == "disabled"
    with pytest.raises(ValueError, match=r"logger.wandb.mode is 'on'; use one of auto, online, offline, disabled"):
        mode("on")


def test_finish_marks_a_run_failed_while_an_exception_passes(monkeypatch):
    codes = []
    monkeypatch.setattr(wandb, "finish", lambda exit_code: codes.append(exit_code))
    monkeypatch.setattr(wandb, "run", None)
    finish_loggers()
    monkeypatch.setattr(wandb, "run", object())
    finish_loggers()
    with pytest.raises(RuntimeError):
        fail_and_finish()
    assert codes == [0, 1]


def fail_and_finish():
    try:
        raise RuntimeError
    finally:
        finish_loggers()


def test_tensorboard_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    import vantage.training.loggers.tensorboard as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="logger=tensorboard needs the package tensorboard: pip install"):
        TensorBoard(save_dir=str(tmp_path))
