"""Sweeps: refused whole before the first job, otherwise every job a process whose death is its own."""

import csv
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vantage.cli.sources import quote
from vantage.cli.sweep import Job, Sweep, folder_name

from .small_project import launch, write


def rows(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_with_jobs_that_fail_and_die(project):
    done = launch(project, "train", "-m", "model.variant=raise,kill,pico", "seed=1", "run_dir=sweep")
    assert done.returncode == 1
    found = rows(project / "sweep")
    assert [row["status"] for row in found] == ["failed", "failed", "done"]
    assert found[0]["error"] == "model.variant=raise cannot be built on any machine"
    assert found[1]["error"] == "killed by SIGKILL"
    assert float(found[2]["test/acc1"]) == 0.6
    assert found[2]["overrides"] == "model.variant=pico seed=1"
    assert float(found[2]["seconds"]) > 0
    assert "[2/3] model.variant=kill failed: killed by SIGKILL" in done.stderr
    assert "1 of 3 jobs done" in done.stdout
    assert "0.6000" in done.stdout
    # every job has a directory of its own, and says in its config that it belongs to the sweep
    run = project / "sweep" / "2_model.variant=pico"
    assert found[2]["run_dir"] == str(run)
    cfg = OmegaConf.load(run / "config.yaml")
    assert (cfg.group, cfg.name, cfg.seed) == ("sweep", "2_model.variant=pico", 1)


def test_jobs_side_by_side(project):
    write(project, "experiment/a", "# @package _global_\nseed: 2\n")
    write(project, "experiment/b", "# @package _global_\nattention: {window_size: 3}\n")
    options = ["hydra.launcher.jobs=4", "experiment=a,b", "callbacks=[default],[default,more]", "group=mine"]
    done = launch(project, "train", "-m", *options)
    assert done.returncode == 0, done.stderr
    (sweep,) = (project / "logs" / "sweeps").iterdir()
    found = rows(sweep)
    assert [row["experiment"] for row in found] == ["a", "a", "b", "b"]
    assert all(row["status"] == "done" for row in found)
    configs = [OmegaConf.load(Path(row["run_dir"]) / "config.yaml") for row in found]
    assert [cfg.seed for cfg in configs] == [2, 2, 0, 0]
    assert [cfg.attention.window_size for cfg in configs] == [7, 7, 3, 3]
    assert [len(cfg.callbacks) for cfg in configs] == [1, 2, 1, 2]
    assert {cfg.group for cfg in configs} == {"mine"}
    assert "ran pico seed 2" in Path(found[0]["run_dir"] + ".log").read_text()
    # what the table names can be evaluated as it stands, commas and equal signs included
    done = launch(project, "eval", f"run={found[3]['run_dir']}")
    assert done.returncode == 0, done.stderr


def test_ranges_tasks_and_pointers(project):
    write(project, "data/rotated_detection", "defaults: [boxes]\nroot: /boxes\n")
    done = launch(project, "train", "-m", "task=classification,rotated_detection", "seed=range(2)", "run_dir=sweep")
    assert done.returncode == 0, done.stderr
    found = rows(project / "sweep")
    assert [(row["task"], row["seed"]) for row in found] == [
        (task, seed) for task in ("classification", "rotated_detection") for seed in "01"
    ]
    assert OmegaConf.load(Path(found[3]["run_dir"]) / "config.yaml").data._target_ == "fakes.Boxes"


REFUSED = {
    "attention=neighborhood,hilow": "unknown attention 'hilow' (command line: attention=neighborhood,hilow); did you "
    "mean 'hilo'?",
    "attention=neighborhood,hilo ++attention.shift=1": "unknown key 'attention.shift' (command line: "
    "++attention.shift=1): fakes.Hilo takes no 'shift'; keys of attention: alpha, qkv_bias, window_size [job "
    "attention=hilo; no job was started]",
    "trainer.max_epochs=1,ten": "'trainer.max_epochs' (command line: trainer.max_epochs=ten) is 'ten'; it must be int "
    "or null [job trainer.max_epochs=ten; no job was started]",
    "seed=0,1 +foo=1": None,
    "model.varient=x,y": "unknown key 'model.varient' (command line: model.varient=x,y); did you mean 'model.variant'?",
    "seed=0,1 hydra.launcher.jobs=0": "hydra.launcher.jobs=0 is not a number of jobs; use 1 or more",
    "run_dir=a,b": "run_dir names the folder of the whole sweep; give one, the jobs get subfolders",
    "seed=0,1 run_dir=configs": "run_dir=configs is not empty; give a new folder, or leave run_dir out to get one",
    "seed=0,": None,
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_sweep_that_cannot_compose_starts_no_job(command, project, line, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)  # a job would crash here
    before = set(project.rglob("*"))
    outcome = command("train", "-m", *line.split())
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    if REFUSED[line]:
        assert outcome.err == f"error: {REFUSED[line]}\n"
    assert [path for path in set(project.rglob("*")) - before if path.is_file()] == []


def test_a_refused_sweep_leaves_the_users_empty_folder(command, project):
    (project / "mine").mkdir()
    assert command("train", "-m", "seed=0,x", "run_dir=mine").code == 2
    assert list((project / "mine").iterdir()) == []


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_an_interrupt_stops_the_jobs_and_still_reports(project, number, code):
    sweep = project / "sweep"
    arguments = [sys.executable, "train.py", "-m", "model.variant=sleep", "seed=0,1", f"run_dir={sweep}"]
    # a test run in the background of a shell ignores SIGINT, and so would its children
    listen = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    parent = subprocess.Popen(
        arguments, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen
    )
    started = sweep / "0_seed=0" / "started"
    deadline = time.monotonic() + 200
    while not started.exists():
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    pids = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    parent.send_signal(number)
    out, err = parent.communicate(timeout=200)
    assert parent.returncode == code
    assert "Traceback" not in err
    assert "0 of 2 jobs done" in out
    assert [(row["status"], row["error"]) for row in rows(sweep)] == [("failed", "interrupted"), ("not started", "")]
    assert not any(alive(pid) for pid in pids)


def test_eval_sweeps_over_runs(project):
    for name in ("first", "second"):
        assert launch(project, "train", f"run_dir={name}", f"seed={len(name)}").returncode == 0
    done = launch(project, "eval", "-m", "run=first,second", "run_dir=evals")
    assert done.returncode == 0, done.stderr
    metrics = [json.loads((Path(row["run_dir"]) / "metrics.json").read_text()) for row in rows(project / "evals")]
    assert [round(entry["test/acc1"], 3) for entry in metrics] == [1.0, 1.1]


def test_the_table_shows_the_metrics_that_fit(tmp_path):
    from rich.console import Console

    sweep = Sweep(tmp_path / "sweep", 1)
    metrics = {"test/acc1": 0.98765, "test/acc5": 0.9, "test/ece": 0.01, "test/loss": 0.1, "val/acc1": 0.5}
    for index, name in enumerate(("softmax", "neighborhood")):
        sweep.jobs.append(Job(index, [f"attention={name}"], {"attention": name}, tmp_path / name))
    sweep.jobs[0].status, sweep.jobs[0].metrics, sweep.jobs[0].seconds = "done", metrics, 12.5
    sweep.jobs[1].status, sweep.jobs[1].error = "failed", "killed by SIGKILL"

    def lines(width: int) -> list[str]:
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(sweep.table(width))
        return [line.rstrip() for line in console.export_text().splitlines()]

    wide = lines(100)
    assert "│ 0   │ softmax      │ done   │    0.9877 │    0.9000 │   0.0100 │    0.1000 │    12.5 │" in wide
    assert "│ 1   │ neighborhood │ failed │           │           │          │           │     0.0 │" in wide
    assert "│ 0   │ softmax      │ done   │    0.9877 │    12.5 │" in lines(62)


def test_folder_names():
    assert folder_name(0, {"attention": "softmax", "seed": "0"}) == "0_attention=softmax,seed=0"
    assert folder_name(3, {}) == "3"
    assert folder_name(1, {"callbacks": "[default,ema]", "data.root": "/a b/c"}) == (
        "1_callbacks=-default,ema-,data.root=-a-b-c"
    )
    assert len(folder_name(1, {"data.root": "x" * 500})) <= 120


@pytest.mark.parametrize("value", ["plain", "a=b,c", "it's", "[x] {y}", "back\\slash"])
def test_quoting_survives_the_override_grammar(value):
    from vantage.cli.sources import parse

    assert parse([f"run_dir={quote(value)}"])[0].value() == value
