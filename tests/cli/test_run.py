"""What happens around a run: errors, interrupts, the log, the environment, --help."""

import logging
import os
import subprocess
import sys
import warnings

import pytest

from vantage.cli import environment, help
from vantage.cli.errors import as_sentence
from vantage.cli.logs import important

from .small_project import ROOT, launch


class VantageError(RuntimeError):
    """An error of ours that is no ValueError."""


VantageError.__module__ = "vantage.training.nan_guard"


def log_of(project) -> str:
    (run,) = (project / "logs" / "train").iterdir()
    return (run / "run.log").read_text()


def test_an_error_of_the_user_is_a_sentence_and_the_log_has_the_traceback(command, project):
    outcome = command("train", "model.variant=raise")
    (run,) = (project / "logs" / "train").iterdir()
    assert outcome.err == f"error: model.variant=raise cannot be built on any machine ({run}/run.log has the details)\n"
    assert outcome.code == 1
    assert "Traceback" in log_of(project)
    assert "ValueError: model.variant=raise cannot be built\non any machine" in log_of(project)


def test_the_traceback_on_the_console_where_asked_for(command, monkeypatch):
    monkeypatch.setenv("VANTAGE_TRACEBACK", "1")
    assert "Traceback" in command("train", "model.variant=raise").err


def test_a_defect_shows_its_traceback(command):
    outcome = command("train", "model.variant=defect")
    assert "Traceback" in outcome.err
    assert "error: TypeError: a defect of ours" in outcome.err
    assert outcome.code == 1


def test_what_counts_as_a_sentence():
    from hydra.errors import InstantiationException

    wrapped = InstantiationException("Error in call to target 'x':\nValueError('no')")
    wrapped.__cause__ = ValueError("kernel_size 9 does not\nfit")
    assert as_sentence(wrapped) == "kernel_size 9 does not fit"
    assert as_sentence(VantageError("loss is nan at step 3")) == "loss is nan at step 3"
    assert as_sentence(FileNotFoundError(2, "No such file or directory", "a/b")) == "No such file or directory: 'a/b'"
    assert as_sentence(RuntimeError("shape mismatch")) is None
    assert as_sentence(KeyError("x")) is None


def test_ctrl_c_ends_cleanly(command, project):
    def interrupted(cfg, run_dir):
        raise KeyboardInterrupt

    outcome = command("train", runner=interrupted)
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    assert "interrupted; what was written is in" in outcome.out


def test_ctrl_c_that_lightning_has_turned_into_an_exit(command):
    def interrupted(cfg, run_dir):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    assert command("train", runner=interrupted).code == 130


def test_the_log(command, project):
    def talk(cfg, run_dir):
        logging.getLogger("vantage.backbones").info("4 slots swapped")
        logging.getLogger("vantage.backbones").debug("too much")
        logging.getLogger("pytorch_lightning").info("GPU available: False")
        logging.getLogger("timm").warning("missing keys")
        warnings.warn("deprecated", UserWarning, stacklevel=1)

    outcome = command("train", runner=talk)
    assert outcome.out == "4 slots swapped\nwarning: missing keys\n"
    log = log_of(project)
    for text in ("4 slots swapped", "GPU available: False", "missing keys", "deprecated"):
        assert text in log
    assert "too much" not in log


def test_logging_is_put_back_after_a_run(command):
    handlers = list(logging.getLogger().handlers)
    command("train")
    assert logging.getLogger().handlers == handlers


def test_what_reaches_the_console():
    def record(name: str, level: int) -> logging.LogRecord:
        return logging.LogRecord(name, level, __file__, 0, "text", None, None)

    assert important(record("vantage.cli", logging.INFO))
    assert important(record("timm", logging.WARNING))
    assert not important(record("timm", logging.INFO))
    assert not important(record("py.warnings", logging.WARNING))


def test_the_users_thread_settings_win(monkeypatch):
    for name in environment.DEFAULTS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    environment.prepare()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert os.environ["KMP_BLOCKTIME"] == environment.DEFAULTS["KMP_BLOCKTIME"]


def test_the_rank(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert environment.rank() == 0
    monkeypatch.setenv("LOCAL_RANK", "1")  # a child that Lightning started
    assert environment.rank() == 1
    monkeypatch.setenv("RANK", "8")  # torchrun, on the second node
    assert environment.rank() == 8


# --help and --cfg

PROBE = """\
import runpy, sys, time
start = time.process_time()
sys.argv = {argv!r}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as exit:
    assert not exit.code, exit.code
heavy = [name for name in ("torch", "timm", "pytorch_lightning", "wandb", "matplotlib", "rich") if name in sys.modules]
print(f"took {{time.process_time() - start:.2f}} s, imported {{heavy}}", file=sys.stderr)
"""


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"]])
@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_and_cfg_are_light(script, flags):
    """The promise is 1.5 s on an idle machine; processor time holds on a busy one too."""
    probe = PROBE.format(argv=[script, *flags])
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    print(script, *flags, done.stderr)
    assert "imported []" in done.stderr
    assert float(done.stderr.split()[1]) < 1.5


def test_help_names_the_groups_the_examples_and_the_results():
    text = help.text("train", ROOT / "configs")
    for group in ("task", "model", "attention", "position", "data", "augment", "trainer", "logger", "experiment"):
        assert f"\n  {group:<12}" in text
    assert "neighborhood*" in text
    assert "maxvit*" in text  # what model=classification points to
    assert "digits*" in text
    assert text.count("\n  python train.py") == 5
    assert "logs/train/<date>_<time>_<unique>/" in text
    assert max(map(len, text.splitlines())) <= 120


def test_help_follows_the_small_project(project):
    done = launch(project, "eval", "-h")
    assert done.returncode == 0
    assert "  attention   hilo, native, neighborhood*\n" in done.stdout
    assert "python eval.py run=RUN_DIR" in done.stdout


def test_every_example_of_help_composes(command):
    """The examples' groups and keys exist in the real configs."""
    from vantage.cli import compose
    from vantage.cli.sources import parse

    compose.register_resolvers()
    with compose.config_loader(ROOT / "configs") as loader:
        for name, examples in (("train", help.TRAIN_EXAMPLES), ("eval", help.EVAL_EXAMPLES)):
            for line in examples.strip().splitlines():
                words = line.split("   ")[0].split()[2:]
                overrides = [word for word in words if "=" in word]
                parse(overrides)
                if "-m" not in words and not compose.names_a_run(overrides):
                    compose.compose(loader, name, overrides)
