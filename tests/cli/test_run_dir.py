"""Run directories: never shared, refused when used, and complete about how the run was started."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vantage.cli import run_dir
from vantage.cli.errors import ConfigError

from .small_project import launch


def test_launches_in_the_same_second_get_directories_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run_dir.time, "strftime", lambda text: "2026-01-01_00-00-00")
    with ThreadPoolExecutor(16) as pool:
        paths = list(pool.map(lambda _: run_dir.create(tmp_path / "logs"), range(64)))
    assert len(set(paths)) == 64
    assert all(path.is_dir() for path in paths)


def test_a_name_that_is_taken_is_tried_again(tmp_path, monkeypatch):
    names = iter(["taken", "taken", "free"])
    monkeypatch.setattr(run_dir, "stamp", lambda: next(names))
    assert run_dir.create(tmp_path).name == "taken"
    assert run_dir.create(tmp_path).name == "free"


def test_one_of_many_simultaneous_launches_gets_the_directory_they_all_name(tmp_path, monkeypatch):
    goal = tmp_path / "mine"
    monkeypatch.setattr(run_dir, "refuse_used", lambda path: None)  # all have looked before any has written

    def claim(_) -> str:
        try:
            return str(run_dir.claim(goal))
        except ConfigError as error:
            return str(error)

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(claim, range(16)))
    assert outcomes.count(str(goal)) == 1
    assert sum("just taken by another launch" in text for text in outcomes) == 15


def test_two_processes_at_once(project):
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: launch(project, "train"), range(2)))
    assert [process.returncode for process in done] == [0, 0]
    runs = list((project / "logs" / "train").iterdir())
    assert len(runs) == 2
    assert all((run / "metrics.json").is_file() for run in runs)


def test_what_a_run_leaves_and_what_its_config_says(command, project):
    outcome = command("train", "attention=hilo", "seed=3", "run_dir=my runs/first".replace(" ", "_"))
    assert outcome.code == 0
    path = project / "my_runs" / "first"
    assert {"config.yaml", "run.log", "metrics.json"} <= {file.name for file in path.iterdir()}
    cfg = OmegaConf.load(path / "config.yaml")
    assert cfg.attention._target_ == cfg.model.attention._target_ == "fakes.Hilo"
    assert cfg.run_dir == cfg.paths.run_dir == str(path)
    assert cfg.callbacks.saver.folder == f"{path}/checkpoints"
    assert cfg.data.root == f"{project}/data/digits"  # absolute: another working directory finds it too
    assert list(cfg.launch.overrides) == ["attention=hilo", "seed=3", "run_dir=my_runs/first"]
    assert cfg.launch.command.endswith("train.py attention=hilo seed=3 run_dir=my_runs/first")
    assert cfg.launch.git is None  # the small project is no checkout
    assert cfg.launch.versions.torch == run_dir.version_of("torch")
    assert cfg.launch.links["model.attention"] == "{attention}"
    assert "${" not in (path / "config.yaml").read_text()


def test_the_default_place(command, project, monkeypatch):
    command("train")
    (run,) = (project / "logs" / "train").iterdir()
    assert len(run.name) == len("2026-01-31_23-59-59_a1b2c3")
    monkeypatch.setenv("VANTAGE_LOGS", str(project / "elsewhere"))
    command("train")
    assert len(list((project / "elsewhere" / "train").iterdir())) == 1


def test_an_empty_folder_is_taken_and_a_used_one_is_left_alone(command, project):
    (project / "empty").mkdir()
    assert command("train", "run_dir=empty").code == 0
    before = {path: path.read_bytes() for path in (project / "empty").iterdir()}
    outcome = command("train", "run_dir=empty", "seed=1")
    assert outcome.code == 2
    assert "run_dir=empty is not empty" in outcome.err
    assert {path: path.read_bytes() for path in (project / "empty").iterdir()} == before


def test_the_git_revision(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    assert run_dir.git_revision(tmp_path) == {"revision": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "file").write_text("2")
    assert run_dir.git_revision(tmp_path)["dirty"] is True
    assert run_dir.git_revision(Path("/")) is None


def test_the_children_of_a_distributed_run_join_its_directory(command, project, monkeypatch):
    assert command("train", "run_dir=shared").code == 0  # leaves the directory in the environment, as a parent does
    config = (project / "shared" / "config.yaml").read_bytes()
    monkeypatch.setenv("LOCAL_RANK", "1")
    seen = []
    assert command("train", "run_dir=shared", runner=lambda cfg, path: seen.append((cfg.paths.run_dir, path))).code == 0
    assert seen == [(str(project / "shared"), project / "shared")]
    assert (project / "shared" / "config.yaml").read_bytes() == config
    assert (project / "shared" / "run.rank1.log").is_file()


def test_a_distributed_process_without_a_directory_is_refused(command, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    outcome = command("train")
    assert outcome.err == "error: process 3 of a distributed launch has no run directory; give run_dir=PATH\n"
    assert outcome.code == 2


@pytest.mark.parametrize("text", ["${a}", "${a.b}/c", "x-${a}-${b.c}"])
def test_links_are_found_and_restored(text):
    cfg = OmegaConf.create({"a": 1, "b": {"c": 2}, "node": {"key": text, "list": [0, text]}})
    cfg.a = OmegaConf.create({"b": 3}) if "a.b" in text else 1
    found = run_dir.links(cfg)
    assert found == {key: text.replace("${", "{") for key in ("node.key", "node.list.1")}
    resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    run_dir.restore_links(resolved, found)
    assert OmegaConf.to_container(resolved, resolve=False) == OmegaConf.to_container(cfg, resolve=False)


def test_the_value_of_a_resolver_is_final(monkeypatch):
    monkeypatch.setenv("PLACE", "here")
    assert run_dir.links(OmegaConf.create({"a": "${oc.env:PLACE}", "b": "plain", "c": "{braces}"})) == {}
