"""`--help`: the groups with their choices, examples, and where results go; folder names are read, nothing is built."""

import shutil
import textwrap
from pathlib import Path

import yaml

TRAIN = """\
train.py: train a vision model in which attention is a config value.

Usage: python train.py [group=choice ...] [key.subkey=value ...] [-m to sweep over comma-separated values]
"""
TRAIN_EXAMPLES = """\
  python train.py                                                 the default job (MaxViT, digits)
  python train.py model=swin attention=window seed=1              another backbone, another attention
  python train.py data=image_folder data.root=DIR trainer.max_epochs=30
  python train.py -m attention=softmax,window,hilo,agent seed=0,1 a sweep, one process per job
  python train.py attention=neighborhood attention.kernel_size=5 --cfg job   show the config, run nothing
"""
EVAL = """\
eval.py: test, predict with or benchmark what train.py made.

Usage: python eval.py run=RUN_DIR | checkpoint=FILE [predict=PATH] [benchmark=true] [key.subkey=value ...]
"""
EVAL_EXAMPLES = """\
  python eval.py run=RUN_DIR                                      the test numbers of the run, to the last digit
  python eval.py checkpoint=FILE data.root=DIR                    one checkpoint, the data somewhere else
  python eval.py run=RUN_DIR predict=FOLDER_OR_FILE               predictions.json and pictures
  python eval.py run=RUN_DIR benchmark=true                       parameters, GFLOPs, images/s, memory
  python eval.py model=maxvit attention=hilo benchmark=true       the same without a run
"""
RESULTS = """\
Results: logs/{command}/<date>_<time>_<unique>/, or run_dir=PATH (new or empty; with -m the folder of the sweep):
  {files}
"""
FILES = {
    "train": "config.yaml metrics.json metrics.csv checkpoints/{best,last}.ckpt pictures/ wandb/ run.log",
    "eval": "config.yaml metrics.json, predictions.json, benchmark.json and pictures/ where asked for, run.log",
}
FLAGS = """\
Flags: --cfg job (print the config)  -m (sweep)  --config-dir DIR (your own configs)  --hydra-help (all flags)
       hydra.launcher.jobs=N (parallel jobs of a sweep)  VANTAGE_TRACEBACK=1 (full traceback of an error)
"""


def text(command: str, config_dir: Path) -> str:
    intro, examples = (EVAL, EVAL_EXAMPLES) if command == "eval" else (TRAIN, TRAIN_EXAMPLES)
    results = RESULTS.format(command=command, files=FILES[command])
    groups = "Groups and their choices (*: default):\n" + "\n".join(group_lines(command, config_dir)) + "\n"
    return "\n".join((intro, groups, "Examples:\n" + examples, results, FLAGS))


def group_lines(command: str, config_dir: Path) -> list[str]:
    defaults = read_defaults(config_dir / f"{command}.yaml")
    width = min(shutil.get_terminal_size((120, 24)).columns, 120)
    folders = sorted(path for path in config_dir.rglob("*") if path.is_dir())
    order = [*defaults, *(path.relative_to(config_dir).as_posix() for path in folders)]
    lines = []
    for group in dict.fromkeys(order):
        choices = sorted(path.stem for path in (config_dir / group).glob("*.yaml"))
        chosen = defaults.get(group)
        chosen = [followed(config_dir / group, choice) for choice in chosen or ()]
        marked = [f"{choice}*" if choice in chosen else choice for choice in choices]
        if choices and group != "hydra":
            lines += textwrap.wrap(
                ", ".join(marked),
                width,
                initial_indent=f"  {group:<12}" if len(group) < 12 else f"  {group} ",
                subsequent_indent=" " * 14,
            )
    return lines


def followed(folder: Path, choice: str) -> str:
    """The choice, or the one that its file points to: data/classification.yaml holds `defaults: [digits]` alone."""
    path = folder / f"{choice}.yaml"
    node = (yaml.safe_load(path.read_text()) if path.is_file() else None) or {}
    if list(node) == ["defaults"] and len(node["defaults"]) == 1 and isinstance(node["defaults"][0], str):
        return followed(folder, node["defaults"][0])
    return choice


def read_defaults(path: Path) -> dict[str, list[str]]:
    """Group -> its default choices, from the primary config's defaults list; `${task}` follows the task's default."""
    defaults: dict[str, list[str]] = {}
    for entry in yaml.safe_load(path.read_text()).get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            defaults |= read_defaults(path.with_name(f"{entry}.yaml"))
        for group, choice in (entry if isinstance(entry, dict) else {}).items():
            group = group.removeprefix("override ").strip("/")
            if isinstance(choice, str) and choice.startswith("${"):
                choice = defaults.get(choice[2:-1], [""])[0]
            defaults[group] = choice if isinstance(choice, list) else [str(choice)]
    return defaults
