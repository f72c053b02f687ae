"""Every mistake ends in one sentence that names the key, where it came from and what would work."""

import pytest

from .small_project import launch, write

EXPERIMENT = "# @package _global_\n"
ROOT_KEYS = (
    "attention, augment, callbacks, channels_last, compile, data, group, logger, model, name, optimizer, paths, plug, "
    "position, resume, run_dir, scheduler, seed, tags, task, test, trainer"
)

# command line -> the sentence after `error: `
MISTAKES = {
    # unknown keys
    "model.varient=x": "unknown key 'model.varient' (command line: model.varient=x); did you mean 'model.variant'?",
    "+model.varient=x": "unknown key 'model.varient' (command line: +model.varient=x): fakes.Model takes no 'varient'; "
    "did you mean 'model.variant'?",
    "++model.varient=x": "unknown key 'model.varient' (command line: ++model.varient=x): fakes.Model takes no "
    "'varient'; did you mean 'model.variant'?",
    "foo=1": "unknown key 'foo' (command line: foo=1); root keys: "
    + ROOT_KEYS.replace("data,", "data, debug, experiment,").replace("group,", "group, hydra,"),
    "+foo=1": f"unknown key 'foo' (command line: +foo=1); root keys: {ROOT_KEYS}",
    "+trainer.foo=1": "unknown key 'trainer.foo' (command line: +trainer.foo=1): fakes.Trainer takes no 'foo'; keys of "
    "trainer: accelerator, max_epochs",
    "sed=1": "unknown key 'sed' (command line: sed=1); did you mean 'seed'?",
    "modle.variant=x": "unknown key 'modle.variant' (command line: modle.variant=x); did you mean 'model'?",
    "model.variant.x=1": "unknown key 'model.variant.x' (command line: model.variant.x=1); model.variant has no keys",
    "attention.window_sise=3": "unknown key 'attention.window_sise' (command line: attention.window_sise=3); did you "
    "mean 'attention.window_size'?",
    "+optimizer.inner.moment=1": "unknown key 'optimizer.inner.moment' (command line: +optimizer.inner.moment=1): "
    "fakes.Factory takes no 'moment'; keys of optimizer.inner: inner, lr",
    "model.position.x=1": "unknown key 'model.position.x' (command line: model.position.x=1); model.position has no "
    "keys",
    "+paths.cache=x": "unknown key 'paths.cache' (command line: +paths.cache=x); keys of paths: data_dir, log_dir, "
    "run_dir",
    "attention=native attention.window_size=3": "unknown key 'attention.window_size' (command line: "
    "attention.window_size=3); attention=native has no keys",
    "attention=native +attention.window_size=3": "unknown key 'attention.window_size' (command line: "
    "+attention.window_size=3); attention=native takes no keys",
    "+attention.roles.glob.shift=1": "unknown key 'attention.roles.glob' (command line: "
    "+attention.roles.glob.shift=1); did you mean 'attention.roles.global'?",
    "+attention.roles.global.shft=1": "unknown key 'attention.roles.global.shft' (command line: "
    "+attention.roles.global.shft=1): fakes.Window takes no 'shft'; did you mean 'attention.roles.global.shift'?",
    "hydra.foo=1": "unknown key 'hydra.foo'; --hydra-help and --cfg hydra show what Hydra itself has",
    # a key that can be added, is there already, or is not the user's to give
    "scheduler.lr=1": "unknown key 'scheduler.lr' (command line: scheduler.lr=1) is not set by the config but can be "
    "added: +scheduler.lr=1",
    "data.num_workers=2": "unknown key 'data.num_workers' (command line: data.num_workers=2); keys of data: "
    "batch_size, root, seed, sizes",
    "model.attention.position=1": "unknown key 'model.attention.position' (command line: model.attention.position=1); "
    "keys of model.attention: roles, shift, window_size",
    "+trainer.accelerator=gpu": "'+trainer.accelerator=...' adds a key that is there already; leave out the +",
    "trainer.callbacks=1": "'trainer.callbacks' (command line: trainer.callbacks=1) is given by the code that builds "
    "it; choose with callbacks=...",
    "+attention.dim=64": "'attention.dim' (command line: +attention.dim=64) is given by the code that builds it; leave "
    "it out",
    "paths.run_dir=x": "'paths.run_dir' is filled in by the command; give run_dir=PATH",
    "~attention": "the config lacks 'attention' (command line: ~attention); it cannot be left out",
    # choices
    "attention=neigborhood": "unknown attention 'neigborhood' (command line: attention=neigborhood); did you mean "
    "'neighborhood'?",
    "position=rope": "unknown position 'rope' (command line: position=rope); choices: none",
    "callbacks=[default,mor]": "unknown callbacks 'mor' (command line: callbacks=[default,mor]); did you mean 'more'?",
    "atention=hilo": "unknown key 'atention' (command line: atention=hilo); did you mean 'attention'?",
    "experiment=nope": "unknown experiment 'nope' (command line: experiment=nope)",
    # values
    "trainer.max_epochs=ten": "'trainer.max_epochs' (command line: trainer.max_epochs=ten) is 'ten'; it must be int or "
    "null",
    "trainer.max_epochs=1.5": "'trainer.max_epochs' (command line: trainer.max_epochs=1.5) is 1.5; it must be int or "
    "null",
    "trainer.max_epochs=true": "'trainer.max_epochs' (command line: trainer.max_epochs=true) is true; it must be int "
    "or null",
    "seed=x": "'seed' (command line: seed=x) is 'x'; it must be int",
    "seed=null": "'seed' (command line: seed=null) is null; it must be int",
    "compile=maybe": "'compile' (command line: compile=maybe) is 'maybe'; it must be bool (true or false)",
    "tags=a": "'tags' (command line: tags=a) is 'a'; it must be list of str or null",
    "model.drop=lots": "'model.drop' (command line: model.drop=lots) is 'lots'; it must be float",
    "optimizer.inner.lr=x": "'optimizer.inner.lr' (command line: optimizer.inner.lr=x) is 'x'; it must be float",
    "data.sizes=[8,a]": "'data.sizes' (command line: data.sizes=[8,a]) is [8, 'a']; it must be list of int or null",
    "attention.shift=full": "'attention.shift' (command line: attention.shift=full) is 'full'; it must be int or "
    "'half'",
    "attention.roles.shifted.shift=full": "'attention.roles.shifted.shift' (command line: "
    "attention.roles.shifted.shift=full) is 'full'; it must be int or 'half'",
    "model=3": "unknown model '3' (command line: model=3); choices: classification, maxvit, rotated_detection",
    "data=boxes": "'data.root' (configs/data/boxes.yaml, line 2) has no value yet; give data.root=...",
    "data.root=${paths.dat_dir}": "'data.root' (command line: data.root=${paths.dat_dir}) is ${paths.dat_dir}: "
    "Interpolation key 'paths.dat_dir' not found",
    "~callbacks.saver.folder": "'callbacks.saver.folder' is missing: fakes.Callback needs it; give "
    "+callbacks.saver.folder=...",
    "callbacks.saver=1": "'callbacks.saver' (command line: callbacks.saver=1) describes no object: an entry of "
    "callbacks is a mapping with a _target_, or null; entries: ema",
    "model._target_=fakes.Modle": "'model._target_' (command line: model._target_=fakes.Modle) is 'fakes.Modle', which "
    "cannot be imported: fakes has no 'Modle'; did you mean 'Model'?",
    "model._target_=fakse.Model": "'model._target_' (command line: model._target_=fakse.Model) is 'fakse.Model', which "
    "cannot be imported: No module named 'fakse'",
    # what does not belong together
    "task=rotated_detection data=digits": "data=digits cannot feed task=rotated_detection: its labels are for "
    "classification; leave data out to get a data set for rotated_detection, or use task=classification",
    # the command line itself
    "seed=0,1": "'seed=0,1' gives several values, which needs -m (one run each); a list is [a,b]",
    "seed=range(3)": "'seed=range(3)' gives several values, which needs -m (one run each); a list is [a,b]",
    "data.sizes=[1": "cannot read the override 'data.sizes=[1': no viable alternative at input '[1'; write key=value, "
    "and quote for the shell what holds brackets, braces or spaces",
    "attention": "cannot read the override 'attention': missing EQUAL at '<EOF>'; write key=value, and quote for the "
    "shell what holds brackets, braces or spaces",
    "--multi-run": "unrecognized arguments: --multi-run; --help shows how to use this command",
    "run_dir=configs": "run_dir=configs is not empty; give a new folder, or leave run_dir out to get one",
    "run_dir=train.py": "run_dir=train.py is a file; give a new or empty folder",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_sentence(command, project, line):
    outcome = command("train", *line.split())
    assert outcome.err == f"error: {MISTAKES[line]}\n"
    assert outcome.code == 2
    assert outcome.out == ""
    assert not (project / "logs").exists()  # nothing is left behind


EXPERIMENTS = {
    "an unknown key": (
        "trainer:\n  max_epoch: 3\n",
        "unknown key 'trainer.max_epoch' (configs/experiment/try.yaml, line 3): fakes.Trainer takes no 'max_epoch'; "
        "did you mean 'trainer.max_epochs'?",
    ),
    "an unknown root key": (
        "seeds: 3\n",
        "unknown key 'seeds' (configs/experiment/try.yaml, line 2); did you mean 'seed'?",
    ),
    "an unknown choice": (
        "defaults:\n  - override /attention: hilow\n",
        "unknown attention 'hilow' (configs/experiment/try.yaml, line 3); did you mean 'hilo'?",
    ),
    "a wrong type": (
        "trainer:\n  # long enough\n  max_epochs: ten\n",
        "'trainer.max_epochs' (configs/experiment/try.yaml, line 4) is 'ten'; it must be int or null",
    ),
    "a key of another attention": (
        "defaults:\n  - override /attention: hilo\nattention:\n  shift: 3\n",
        "unknown key 'attention.shift' (configs/experiment/try.yaml, line 5): fakes.Hilo takes no 'shift'; keys of "
        "attention: alpha, qkv_bias, window_size",
    ),
    "bad YAML": (
        "trainer:\n  max_epochs: [1\nseed: 2\n",
        "configs/experiment/try.yaml, line 4 is not valid YAML: expected ',' or ']', but got ':'",
    ),
}


@pytest.mark.parametrize("kind", EXPERIMENTS)
def test_a_mistake_in_an_experiment_file(command, project, kind):
    text, sentence = EXPERIMENTS[kind]
    write(project, "experiment/try", EXPERIMENT + text)
    outcome = command("train", "experiment=try")
    assert (outcome.err, outcome.code) == (f"error: {sentence}\n", 2)


def test_a_task_without_a_data_set(command, project):
    outcome = command("train", "task=rotated_detection")
    assert outcome.err == (
        "error: unknown data 'rotated_detection' (configs/train.yaml); choices: boxes, classification, digits\n"
    )
    write(project, "data/rotated_detection", "defaults: [boxes]\nroot: /boxes\n")
    assert command("train", "task=rotated_detection").code == 0


def test_a_missing_data_set_is_told_by_name_through_the_pointer(command, project):
    write(project, "data/rotated_detection", "defaults: [digits]\n")
    assert "error: data=digits cannot feed task=rotated_detection" in command("train", "task=rotated_detection").err


def test_a_real_process_says_the_same(project):
    done = launch(project, "train", "model.varient=x")
    assert done.stderr == f"error: {MISTAKES['model.varient=x']}\n"
    assert (done.returncode, done.stdout) == (2, "")


def test_the_traceback_can_be_asked_for(command, monkeypatch):
    monkeypatch.setenv("VANTAGE_TRACEBACK", "1")
    outcome = command("train", "attention=neigborhood")
    assert "Traceback" in outcome.err
    assert "MissingConfigException" in outcome.err
    assert outcome.err.endswith(f"error: {MISTAKES['attention=neigborhood']}\n")
