"""eval.py: the config of a run, with overrides on top, each held against the same check."""

import pytest
from omegaconf import OmegaConf

from .small_project import launch


@pytest.fixture
def run(command, project):
    """A finished run; the project's YAML files change after it."""
    assert command("train", "attention.window_size=5", "model.depth=3", "run_dir=trained").code == 0
    neighborhood = project / "configs" / "attention" / "neighborhood.yaml"
    neighborhood.write_text(neighborhood.read_text().replace("shift: 0", "shift: 1"))
    return "trained"


class Seen:
    cfg = None

    def __call__(self, cfg, run_dir):
        self.cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
        self.run_dir = run_dir
        return {}


def test_the_config_is_the_one_the_run_wrote(command, project, run):
    seen = Seen()
    assert command("eval", f"run={run}", runner=seen).code == 0
    trained = OmegaConf.load(project / run / "config.yaml")
    assert seen.cfg.attention == trained.attention
    assert (seen.cfg.attention.window_size, seen.cfg.attention.shift) == (5, 0)
    assert seen.cfg.model == trained.model
    assert seen.cfg.data == trained.data
    assert seen.cfg.run == run
    assert seen.run_dir.parent == project / "logs" / "eval"
    # nothing may be written where the run was trained
    assert seen.cfg.paths.run_dir == str(seen.run_dir)
    assert seen.cfg.callbacks.saver.folder == f"{seen.run_dir}/checkpoints"
    assert {path.name for path in (project / run).iterdir()} == {"config.yaml", "run.log", "metrics.json"}


def test_overrides_reach_what_refers_to_them(command, run):
    seen = Seen()
    overrides = ["seed=7", "attention.shift=2", "data.root=/elsewhere", "trainer.accelerator=gpu", "+model.drop=0.5"]
    assert command("eval", f"run={run}", *overrides[:-1], "++model.drop=0.5", runner=seen).code == 0
    assert (seen.cfg.seed, seen.cfg.data.seed) == (7, 7)
    assert (seen.cfg.attention.shift, seen.cfg.model.attention.shift) == (2, 2)
    assert seen.cfg.data.root == "/elsewhere"
    assert seen.cfg.trainer.accelerator == "gpu"
    assert seen.cfg.model.drop == 0.5


def test_a_group_can_be_chosen_anew(command, run):
    seen = Seen()
    assert command("eval", f"run={run}", "logger=none", "attention=hilo", "attention.alpha=0.25", runner=seen).code == 0
    assert seen.cfg.logger == {}
    assert seen.cfg.attention._target_ == seen.cfg.model.attention._target_ == "fakes.Hilo"
    assert seen.cfg.model.attention.alpha == 0.25
    assert seen.cfg.model.depth == 3


def test_cfg_shows_it_and_runs_nothing(command, project, run):
    outcome = command("eval", f"run={run}", "--cfg", "job")
    assert outcome.code == 0
    assert OmegaConf.create(outcome.out).model.depth == 3
    assert not (project / "logs").exists()


def test_a_benchmark_needs_no_run(command):
    seen = Seen()
    assert command("eval", "benchmark=true", "attention=hilo", "benchmark_batch_sizes=[1,8]", runner=seen).code == 0
    assert seen.cfg.attention._target_ == "fakes.Hilo"
    assert list(seen.cfg.benchmark_batch_sizes) == [1, 8]


REFUSED = {
    "": "nothing to evaluate; give run=RUN_DIR or checkpoint=FILE, or benchmark=true",
    "predict=a.png": "predict=a.png needs trained weights; give run=RUN_DIR or checkpoint=FILE",
    "predict=a.png benchmark=true": "predict=a.png needs trained weights; give run=RUN_DIR or checkpoint=FILE",
    "run=trained checkpoint=x.ckpt": "run=trained and checkpoint=x.ckpt both say what to evaluate; give one of them",
    "run=3": "run=3 is not a directory; give the run directory that train.py printed",
    "run=nowhere": "run=nowhere is not a directory; give the run directory that train.py printed",
    "run=configs": "run=configs holds no config.yaml; give the run directory that train.py printed",
    "run=trained data.rot=x": "unknown key 'data.rot' (command line: data.rot=x); did you mean 'data.root'?",
    "run=trained +data.rot=x": "unknown key 'data.rot' (command line: +data.rot=x): fakes.Digits takes no 'rot'; did "
    "you mean 'data.root'?",
    "run=trained +foo=1": "unknown key 'foo' (command line: +foo=1); root keys: attention, augment, benchmark, "
    "benchmark_batch_sizes, callbacks, channels_last, checkpoint, compile, data, group, logger, model, name, "
    "optimizer, paths, plug, position, predict, resume, run, run_dir, scheduler, seed, split, tags, task, test, "
    "trainer",
    "run=trained trainer.max_epochs=ten": "'trainer.max_epochs' (command line: trainer.max_epochs=ten) is 'ten'; it "
    "must be int or null",
    "run=trained attention=hillo": "unknown attention 'hillo' (command line: attention=hillo); did you mean 'hilo'?",
    "run=trained split=tst": "'split' (command line: split=tst) is 'tst'; it must be one of 'val', 'test'",
    "run=trained experiment=x": "'experiment=x' cannot be put on top of a run; override single keys or groups",
    "run=trained data=boxes data.root=/b": "data=boxes cannot feed task=classification: its labels are for "
    "rotated_detection; leave data out to get a data set for classification, or use task=rotated_detection",
    "run=trained seed=1,2": "'seed=1,2' gives several values, which needs -m (one run each); a list is [a,b]",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_refused(command, project, run, line):
    outcome = command("eval", *line.split())
    assert (outcome.err, outcome.code) == (f"error: {REFUSED[line]}\n", 2)
    assert not (project / "logs").exists()


def test_a_process(project, run):
    done = launch(project, "eval", f"run={run}", "run_dir=tested")
    assert done.returncode == 0, done.stderr
    assert (project / "tested" / "metrics.json").is_file()


def test_a_run_that_was_edited_by_hand_is_checked_too(command, project, run):
    path = project / run / "config.yaml"
    path.write_text(path.read_text().replace("max_epochs: 3", "max_epoch: 3"))
    line = 1 + path.read_text().splitlines().index("  max_epoch: 3")
    assert command("eval", f"run={run}").err == (
        f"error: unknown key 'trainer.max_epoch' (trained/config.yaml, line {line}): fakes.Trainer takes no "
        "'max_epoch'; did you mean 'trainer.max_epochs'?\n"
    )
