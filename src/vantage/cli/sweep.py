"""A sweep: every job a process of its own, a failed one reported and the others carried on, one table at the end."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vantage.cli import run_dir as run_dirs
from vantage.cli.errors import ConfigError
from vantage.cli.sources import quote

CSV, RECORD = "sweep.csv", "multirun.yaml"
PATIENCE_SECONDS = 20  # an interrupted job closes its loggers and writes its last checkpoint

current: "Sweep | None" = None  # the sweep of this process, for the summary after Hydra has returned


@dataclass
class Job:
    index: int
    overrides: list[str]
    varied: dict[str, str]
    run_dir: Path
    status: str = "not started"
    error: str = ""
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.varied.items()) or "the one job"

    def command(self, sweep: str) -> list[str]:
        own = [text for text in self.overrides if key_of(text) != "run_dir"]
        given = {key_of(text) for text in own}
        own.append(f"run_dir={quote(str(self.run_dir))}")
        if "group" not in given:
            own.append(f"group={quote(sweep)}")
        if "name" not in given:
            own.append(f"name={quote(self.run_dir.name)}")
        return [sys.executable, os.path.abspath(sys.argv[0]), *flags(), *own]

    def close(self, code: int) -> None:
        """Reads what the job left behind: its metrics, or why it has none."""
        metrics = self.run_dir / "metrics.json"
        if code == 0:
            self.status = "done"
            if metrics.is_file():
                self.metrics = json.loads(metrics.read_text())
            return
        self.status = "failed"
        self.error = f"killed by {signal.Signals(-code).name}" if code < 0 else last_error(self.run_dir / "run.log")
        self.error = self.error or f"exit code {code}"


class Sweep:
    """Runs jobs in `directory`, `parallel` at a time."""

    def __init__(self, directory: Path, parallel: int):
        if not isinstance(parallel, int) or parallel < 1:
            raise ConfigError(f"hydra.launcher.jobs={parallel} is not a number of jobs; use 1 or more")
        self.existed = directory.is_dir()
        self.directory = run_dirs.claim(directory, marker=CSV)
        self.parallel = parallel
        self.jobs: list[Job] = []
        self.was_interrupted = False

    def discard(self) -> None:
        """Leaves no trace of a sweep that was refused before its first job."""
        if self.jobs:
            return
        for name in (CSV, RECORD):
            (self.directory / name).unlink(missing_ok=True)
        if not self.existed and not any(self.directory.iterdir()):
            self.directory.rmdir()

    def launch(self, job_overrides: Sequence[Sequence[str]], first: int, check: Callable[[list[str]], None]) -> None:
        """Checks every composition, then runs the jobs; the outcome of each is in sweep.csv as soon as it is known."""
        pairs = [dict(split(text) for text in overrides) for overrides in job_overrides]
        keys = dict.fromkeys(key for pair in pairs for key in pair)
        varied = [key for key in keys if len({pair.get(key) for pair in pairs}) > 1]
        if "run_dir" in varied:
            raise ConfigError("run_dir names the folder of the whole sweep; give one, the jobs get subfolders")
        for overrides, pair in zip(job_overrides, pairs):
            try:
                check(list(overrides))
            except ConfigError as error:
                job = " ".join(f"{key}={pair[key]}" for key in varied if key in pair)
                raise ConfigError(f"{error} [job {job}; no job was started]") from error
        batch = []
        for index, (overrides, pair) in enumerate(zip(job_overrides, pairs), first):
            own = {key: pair[key] for key in varied if key in pair}
            batch.append(Job(index, list(overrides), own, self.directory / folder_name(index, own)))
        self.jobs += batch
        self.write_csv()
        handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
        running: dict[int, tuple[Job, subprocess.Popen, float]] = {}
        try:
            self.run(batch, running)
        except KeyboardInterrupt:
            self.was_interrupted = True
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut the jobs' farewell short
            self.stop(running)
            raise
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.write_csv()

    def run(self, batch: list[Job], running: dict) -> None:
        waiting = list(batch)
        while waiting or running:
            while waiting and len(running) < self.parallel:
                job = waiting.pop(0)
                say(f"[{job.index + 1}/{len(self.jobs)}] {job.label} -> {job.run_dir}")
                running[id(job)] = (job, self.start(job), time.monotonic())
            for key, (job, process, started) in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[key]
                    self.ended(job, code, started)
            time.sleep(0.05)

    def start(self, job: Job) -> subprocess.Popen:
        environment = {name: value for name, value in os.environ.items() if name != run_dirs.SHARED}
        output = None
        if self.parallel > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.parallel)))
            output = (self.directory / f"{job.run_dir.name}.log").open("wb")
        job.status = "running"
        # A session of its own: Ctrl-C reaches the job once, from us, and its own children die with it.
        process = subprocess.Popen(
            job.command(self.directory.name),
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
        )
        if output:
            output.close()
        return process

    def ended(self, job: Job, code: int, started: float) -> None:
        job.seconds = round(time.monotonic() - started, 1)
        job.close(code)
        if job.status == "failed":
            say(f"[{job.index + 1}/{len(self.jobs)}] {job.label} failed: {job.error}", stream=sys.stderr)
        self.write_csv()

    def stop(self, running: dict) -> None:
        """Asks the running jobs to end, then makes them."""
        for number, wait in ((signal.SIGINT, PATIENCE_SECONDS), (signal.SIGTERM, 3), (signal.SIGKILL, 5)):
            deadline = time.monotonic() + wait
            alive = [process for _, process, _ in running.values() if process.poll() is None]
            for process in alive:
                signal_group(process, number)
            while any(process.poll() is None for process in alive) and time.monotonic() < deadline:
                time.sleep(0.05)
        for job, _, started in running.values():
            job.seconds = round(time.monotonic() - started, 1)
            job.status, job.error = "failed", "interrupted"

    # the outcome

    def write_csv(self) -> None:
        varied = list(dict.fromkeys(key for job in self.jobs for key in job.varied))
        metrics = sorted({name for job in self.jobs for name in job.metrics})
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["job", *varied, "status", *metrics, "seconds", "run_dir", "overrides", "error"])
        for job in self.jobs:
            values = [job.varied.get(key, "") for key in varied]
            numbers = [job.metrics.get(name, "") for name in metrics]
            overrides = " ".join(text for text in job.overrides if key_of(text) != "run_dir")
            writer.writerow([job.index, *values, job.status, *numbers, job.seconds, job.run_dir, overrides, job.error])
        partial = self.directory / f".{CSV}"
        partial.write_text(text.getvalue())
        partial.replace(self.directory / CSV)

    def finish(self) -> int:
        """Prints the summary; the exit code is 1 if a job has failed."""
        from rich.console import Console
        from rich.text import Text

        console = Console()
        if not console.is_terminal:
            console = Console(width=160)
        console.print(self.table(console.width))
        failed = [job for job in self.jobs if job.status != "done"]
        for job in failed:
            console.print(Text(f"job {job.index} ({job.label}) {job.status}: {job.error}"), soft_wrap=True)
        done = f"{len(self.jobs) - len(failed)} of {len(self.jobs)} jobs done"
        console.print(Text(f"{done}: {self.directory / CSV}"), soft_wrap=True)
        return 1 if failed else 0

    def table(self, width: int):
        """One row per job; test metrics as far as they fit, sweep.csv has them all."""
        from rich.table import Table
        from rich.text import Text

        varied = list(dict.fromkeys(key for job in self.jobs for key in job.varied))
        columns = {"job": [str(job.index) for job in self.jobs]}
        columns |= {key: [job.varied.get(key, "") for job in self.jobs] for key in varied}
        columns["status"] = [job.status for job in self.jobs]
        columns["seconds"] = [f"{job.seconds:.1f}" for job in self.jobs]
        left = width - 1 - sum(column_width(name, cells) for name, cells in columns.items())
        names = sorted({name for job in self.jobs for name in job.metrics})
        metrics = {}
        for name in [name for name in names if name.startswith("test/")] or names:
            cells = [f"{job.metrics[name]:.4f}" if name in job.metrics else "" for job in self.jobs]
            left -= column_width(name, cells)
            if left < 0:
                break
            metrics[name] = cells
        seconds = columns.pop("seconds")
        columns |= metrics | {"seconds": seconds}
        table = Table(title=f"Sweep {self.directory.name}", title_justify="left")
        for name in columns:
            table.add_column(name, justify="right" if name in metrics or name == "seconds" else "left")
        for job, cells in zip(self.jobs, zip(*columns.values())):
            table.add_row(*map(Text, cells), style="" if job.status == "done" else "red")
        return table


def column_width(name: str, cells: Sequence[str]) -> int:
    """Characters a column takes in the table, its padding and rule included."""
    return max(len(text) for text in (name, *cells)) + 3


def split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key, value


def key_of(override: str) -> str:
    return split(override)[0].lstrip("+~")


def folder_name(index: int, varied: dict[str, str]) -> str:
    """`0_attention=softmax,seed=0`, with what a file system or a shell would trip over replaced."""
    text = ",".join(f"{key}={value}" for key, value in varied.items())
    return f"{index}_{re.sub(r'[^A-Za-z0-9_=,.+-]+', '-', text)}"[:120].rstrip("_")


def flags() -> list[str]:
    """The flags that say where configs are found; a job needs them too."""
    from hydra.main import get_args_parser

    arguments = get_args_parser().parse_args()
    pairs = {
        "--config-path": arguments.config_path,
        "--config-name": arguments.config_name,
        "--config-dir": arguments.config_dir,
    }
    return [item for flag, value in pairs.items() if value for item in (flag, value)]


def last_error(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return next((line.partition("error: ")[2] for line in reversed(lines) if "error: " in line), "")


def signal_group(process: subprocess.Popen, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def interrupt(number: int, frame) -> None:
    raise KeyboardInterrupt


def say(text: str, stream=None) -> None:
    print(text, file=stream or sys.stdout, flush=True)
