"""Run directories: where one launch keeps everything, never shared by two, even in the same second."""

import os
import platform
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from vantage.cli.environment import rank
from vantage.cli.errors import ConfigError

SHARED = "VANTAGE_RUN_DIR"  # how the processes of one distributed run agree on the directory
PACKAGES = ("vantage", "torch", "torchvision", "timm", "pytorch-lightning", "hydra-core", "torchmetrics", "wandb")


def stamp() -> str:
    return f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{secrets.token_hex(3)}"


def create(parent: Path) -> Path:
    """A new directory `<parent>/<date>_<time>_<unique>`; mkdir is atomic, so no other launch can have it."""
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        path = parent / stamp()
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path.resolve()


def refuse_used(path: Path) -> None:
    """Raises ConfigError unless `path` is free: absent, or an empty directory."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"run_dir={path} is a file; give a new or empty folder")
    if path.is_dir() and any(path.iterdir()):
        raise ConfigError(f"run_dir={path} is not empty; give a new folder, or leave run_dir out to get one")


def claim(path: Path, marker: str = "config.yaml") -> Path:
    """Takes a directory the user named: refused if used, or if another launch creates `marker` in it first."""
    refuse_used(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / marker).touch(exist_ok=False)
    except FileExistsError:
        raise ConfigError(f"run_dir={path} was just taken by another launch; give a new folder") from None
    except OSError as error:
        raise ConfigError(f"run_dir={path} cannot be created: {error.strerror}") from None
    return path.resolve()


def open_run_dir(cfg: DictConfig, command: str) -> Path:
    """The directory of this launch; the other processes of a distributed run join the first one's."""
    wanted = cfg.get("run_dir")
    if rank() > 0:
        shared = os.environ.get(SHARED) or wanted
        if not shared:
            raise ConfigError(f"process {rank()} of a distributed launch has no run directory; give run_dir=PATH")
        return joined(Path(shared))
    path = claim(Path(wanted)) if wanted else create(Path(cfg.paths.log_dir) / command)
    os.environ[SHARED] = str(path)
    return path


def joined(path: Path, seconds: float = 120.0) -> Path:
    """The directory of the first process, once that has written its config there."""
    deadline = time.monotonic() + seconds
    while not ((path / "config.yaml").is_file() and (path / "config.yaml").stat().st_size):
        if time.monotonic() > deadline:
            raise ConfigError(f"run_dir={path} was not made by the first process within {seconds:.0f} s")
        time.sleep(0.1)
    return path.resolve()


def write_config(cfg: DictConfig, run_dir: Path) -> None:
    """config.yaml: the resolved config, `launch` (how and from which revision it was started) included."""
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))


def describe_launch(cfg: DictConfig, overrides: Sequence[str], source_dir: Path) -> dict:
    """The command, the overrides, the git revision of `source_dir` and the versions of what matters.

    `links` are the config's interpolations, which are gone from the resolved config.yaml: an evaluation restores them,
    so that `attention.backend=...` on top of a run reaches `model.attention` too. `${key}` is written `{key}` in all of
    this, because it describes the launch and is not to be resolved.
    """
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]).replace("${", "{"),
        "overrides": [text.replace("${", "{") for text in overrides],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": git_revision(source_dir),
        "versions": {"python": platform.python_version()} | {name: version_of(name) for name in PACKAGES},
        "links": links(cfg),
    }


def links(node: DictConfig | ListConfig, prefix: str = "") -> dict[str, str]:
    """Dotted key -> the interpolation there, `${a.b}/c` written as `{a.b}/c` so that no reader resolves it."""
    found: dict[str, str] = {}
    for key in range(len(node)) if isinstance(node, ListConfig) else node:
        if OmegaConf.is_interpolation(node, key):
            text = OmegaConf.to_container(node, resolve=False)[key]
            if re.fullmatch(r"[^{}$]*(\$\{[\w.]+\}[^{}$]*)+", text):  # plain references; a resolver's value is final
                found[f"{prefix}{key}"] = text.replace("${", "{")
        elif not OmegaConf.is_missing(node, key) and isinstance(node[key], (DictConfig, ListConfig)):
            found |= links(node[key], f"{prefix}{key}.")
    return found


def restore_links(cfg: DictConfig, found: Mapping[str, str]) -> None:
    """The opposite: `cfg` gets its interpolations back, where it still has the keys."""
    for path, text in found.items():
        parent, _, key = path.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if isinstance(node, ListConfig):
            node[int(key)] = text.replace("{", "${")
        elif isinstance(node, DictConfig) and key in node:
            node[key] = text.replace("{", "${")


def git_revision(folder: Path) -> dict | None:
    """{revision, dirty}; None outside a git checkout or without git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
