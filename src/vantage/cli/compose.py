"""Composition around Hydra: its errors as one sentence, and the config of an evaluation taken from a run."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import yaml
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from vantage import schema
from vantage.cli.check import import_object, parameters_of, supplied
from vantage.cli.errors import ConfigError, nearest, one_line
from vantage.cli.run_dir import restore_links, stamp
from vantage.cli.sources import Layer, Sources, parse, shown

# Hydra raises a bare ValueError for a choice that is no name, such as model=3.
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)


@cache
def sweep_stamp() -> str:
    """One name per process, however often Hydra resolves hydra.sweep.dir."""
    return stamp()


def register_resolvers() -> None:
    OmegaConf.register_new_resolver(
        "vantage.sweep_dir",
        lambda run_dir, log_dir: run_dir or f"{log_dir}/sweeps/{sweep_stamp()}",
        replace=True,
    )


@contextmanager
def config_loader(config_dir: Path) -> Iterator[ConfigLoader]:
    """Hydra's loader over `config_dir`, for use outside hydra.main."""
    with initialize_config_dir(str(Path(config_dir).resolve()), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def compose(loader: ConfigLoader, config_name: str, overrides: Sequence[str]) -> tuple[DictConfig, Sources]:
    """A config without its hydra node, and where its keys came from."""
    cfg = loader.load_configuration(config_name, list(overrides), RunMode.RUN)
    with open_dict(cfg):
        hydra = cfg.pop("hydra")
    return cfg, Sources.of_composition(loader, hydra, config_name, overrides)


# Hydra's errors


def explain(error: Exception, config_dir: Path, config_name: str, overrides: Sequence[str]) -> ConfigError:
    """The sentence for what Hydra, OmegaConf or the YAML parser raised during composition."""
    if isinstance(error, OverrideParseException):
        reason = re.sub(r"Error parsing override '.*'\s*", "", error.message)
        return ConfigError(
            f"cannot read the override '{error.override}': {first_line(reason)}; write key=value, and quote for the "
            "shell what holds brackets, braces or spaces"
        )
    if isinstance(error, yaml.YAMLError):
        return explain_yaml(error)
    if isinstance(error, MissingConfigException):
        return explain_missing(error, config_dir, overrides)
    if isinstance(error, ValueError):
        for override in parse_leniently(overrides):
            if is_group(override, config_dir) and not isinstance(override.value(), (str, list, type(None))):
                group = override.key_or_group
                source = f"command line: {override.input_line}"
                return unknown_choice(group, str(override.value()), source, choices_of(group, config_dir))
    message = str(error)
    ambiguous = re.search(r"Ambiguous value for argument '(.*?)'|Sweep parameters '(.*?)' requires", message)
    if ambiguous:
        return several_values(ambiguous[1] or ambiguous[2])
    key = re.search(r"Could not override '(.*?)'", message)
    if key:
        return explain_unknown(key[1], config_dir, config_name, overrides)
    if isinstance(error.__cause__, (ConfigAttributeError, ConfigKeyError)) and error.__cause__.full_key:
        return explain_unknown(error.__cause__.full_key, config_dir, config_name, overrides)
    if "Could not append to config" in message:
        added = re.search(r"already at '(.*?)'", message)
        return ConfigError(f"'+{added[1]}=...' adds a key that is there already; leave out the +")
    causes = [text for text in (message, str(error.__cause__ or "")) if text.strip()]
    return ConfigError("; ".join(first_line(text) for text in causes) or type(error).__name__)


def several_values(override: str) -> ConfigError:
    return ConfigError(f"'{override}' gives several values, which needs -m (one run each); a list is [a,b]")


def explain_yaml(error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    where = f"{shown(Path(mark.name))}, line {mark.line + 1}" if mark else "a config file"
    return ConfigError(f"{where} is not valid YAML: {one_line(getattr(error, 'problem', None) or error)}")


def explain_missing(error: MissingConfigException, config_dir: Path, overrides: Sequence[str]) -> ConfigError:
    missing = (error.missing_cfg_file or "").removesuffix(".yaml")
    group, _, name = missing.rpartition("/")
    if not group:
        return ConfigError(first_line(str(error)))
    if not (config_dir / group).is_dir():
        groups = [path.name for path in config_dir.iterdir() if path.is_dir()]
        return ConfigError(f"there is no group '{group}' in {shown(config_dir)}{nearest(group, groups, what='groups')}")
    parent = re.search(r"In '(.+?)'", str(error))
    asked_by = shown(config_dir / f"{parent[1]}.yaml") if parent else "defaults list"
    source = choice_source(group, name, config_dir, overrides) or asked_by
    return unknown_choice(group, name, source, error.options or choices_of(group, config_dir))


def choices_of(group: str, config_dir: Path) -> list[str]:
    return [path.stem for path in (config_dir / group).glob("*.yaml")]


def unknown_choice(group: str, name: str, source: str, options: Sequence[str]) -> ConfigError:
    return ConfigError(f"unknown {group} '{name}' ({source}){nearest(name, options)}")


def choice_source(group: str, name: str, config_dir: Path, overrides: Sequence[str]) -> str | None:
    """Who chose `group: name`: an override, or the defaults list of a file that an override chose."""
    parsed = parse_leniently(overrides)
    for override in reversed(parsed):
        if override.key_or_group == group:
            return f"command line: {override.input_line}"
    for override in reversed(parsed):
        for choice in re.findall(r"[\w/.-]+", str(override.value())):
            path = config_dir / override.key_or_group / f"{choice}.yaml"
            lines = path.read_text().splitlines() if path.is_file() else []
            for number, line in enumerate(lines, 1):
                if re.search(rf"\b{re.escape(group)}\s*:.*\b{re.escape(name)}\b", line):
                    return f"{shown(path)}, line {number}"
    return None


def explain_unknown(key: str, config_dir: Path, config_name: str, overrides: Sequence[str]) -> ConfigError:
    """An override of a key that the config does not have: what it has instead, or that a `+` would add it."""
    try:
        with config_loader(config_dir) as loader:
            groups = [override for override in parse(overrides) if is_group(override, config_dir)]
            cfg, sources = compose(loader, config_name, [override.input_line for override in groups])
    except COMPOSITION_ERRORS as error:
        return ConfigError(f"unknown key '{key}': {first_line(str(error))}")
    sources.overrides = parse_leniently(overrides)
    return unknown_key(key, cfg, sources, config_dir)


def unknown_key(key: str, cfg: DictConfig, sources: Sources, config_dir: Path) -> ConfigError:
    parts = key.replace("/", ".").split(".")
    if parts[0] == "hydra":
        return ConfigError(f"unknown key '{key}'; --hydra-help and --cfg hydra show what Hydra itself has")
    node, depth = cfg, 0
    while depth < len(parts) and isinstance(node, DictConfig) and parts[depth] in node:
        node, depth = node[parts[depth]], depth + 1
    parent, name = ".".join(parts[:depth]), parts[min(depth, len(parts) - 1)]
    source = f"unknown key '{key}' ({sources.of('.'.join(parts))})"
    if not isinstance(node, DictConfig) or not len(node):
        choice = sources.choice(parent)
        return ConfigError(f"{source}; {f'{parent}={choice}' if choice else parent or 'it'} has no keys")
    if depth == 0:
        groups = [path.name for path in config_dir.iterdir() if path.is_dir()]
        return ConfigError(f"{source}{nearest(name, [*node, *groups], what='root keys')}")
    if name in schema.SUPPLIED.get(parent, ()):
        return supplied(f"{parent}.{name}", sources)
    if len(parts) == depth + 1 and name in accepted(node, parent):
        override = sources.override_of(key)
        return ConfigError(
            f"{source} is not set by the config but can be added: +{override.input_line if override else key}"
        )
    keys = [key for key in node if not key.startswith("_")]
    return ConfigError(f"{source}{nearest(name, keys, what=f'keys of {parent}', parent=parent)}")


def accepted(node: DictConfig, path: str) -> set[str]:
    """Names the node's `_target_` takes; the schema knows them without an import for the common nodes."""
    listed = set(schema.types_of(schema.NODES[path])) if path in schema.NODES else set()
    if "_target_" not in node:
        return listed
    try:
        return set(parameters_of(import_object(node["_target_"]))[0]) - set(schema.SUPPLIED.get(path, ()))
    except Exception:  # the walker reports a target that cannot be imported
        return listed


def is_group(override: Override, config_dir: Path) -> bool:
    return (config_dir / override.key_or_group).is_dir()


def parse_leniently(overrides: Sequence[str]) -> list[Override]:
    try:
        return parse(overrides)
    except HydraException:
        return []


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "").rstrip(".")


# An evaluation takes its config from a run


def names_a_run(overrides: Sequence[str]) -> bool:
    """True if `run=` or `checkpoint=` is among the overrides with a value."""
    chosen = [override for override in parse(overrides) if override.key_or_group in ("run", "checkpoint")]
    return any(override.value() is not None for override in chosen)


def compose_from_run(loader: ConfigLoader, config_dir: Path, overrides: Sequence[str]) -> tuple[DictConfig, Sources]:
    """What was trained, with the evaluation's own keys and the other overrides on top.

    The config of the run is the resolved one that it wrote, not a new composition: YAML files may have changed since.
    """
    parsed = parse(overrides)
    for override in parsed:
        if override.is_sweep_override():
            raise several_values(override.input_line)
    keys = set(schema.types_of(schema.EvalRoot)) - set(schema.types_of(schema.TrainRoot)) | {"run_dir"}
    eval_defaults = loader.load_configuration("eval", [], RunMode.RUN)
    own = OmegaConf.create({key: eval_defaults[key] for key in sorted(keys)})
    apply([override for override in parsed if override.key_or_group in keys], own)
    refuse_contradiction(own)
    trained, origin = load_trained(own)

    with open_dict(trained):
        restore_links(trained, (trained.pop("launch", None) or {}).get("links") or {})
        trained.update(own)
        trained.paths.run_dir = None
        trained.paths.log_dir = eval_defaults.paths.log_dir
    OmegaConf.set_struct(trained, True)
    layers = [Layer(origin, "", "")]
    rest = [override for override in parsed if override.key_or_group not in keys and not override.is_hydra_override()]
    for override in rest:
        if override.key_or_group in ("experiment", "debug"):
            raise ConfigError(f"'{override.input_line}' cannot be put on top of a run; override single keys or groups")
        if is_group(override, config_dir):
            chosen, sources = compose(loader, "eval", [override.input_line])
            layers += [layer for layer in sources.layers if layer.group == override.key_or_group]
            with open_dict(trained):
                trained[override.key_or_group] = chosen._get_node(override.key_or_group)
    sources = Sources(lambda: layers, parsed)
    try:
        apply([override for override in rest if not is_group(override, config_dir)], trained)
    except ConfigCompositionException as error:
        key = re.search(r"Could not override '(.*?)'", str(error))
        raise (
            unknown_key(key[1], trained, sources, config_dir) if key else ConfigError(first_line(str(error)))
        ) from error
    return trained, sources


def apply(overrides: Sequence[Override], cfg: DictConfig) -> None:
    """Hydra's own rules for `key=`, `+key=`, `++key=` and `~key`, outside a composition."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    OmegaConf.set_struct(cfg, True)
    ConfigLoaderImpl._apply_overrides_to_config(list(overrides), cfg)


def refuse_contradiction(cfg: DictConfig) -> None:
    """run and checkpoint exclude each other; without either, eval.py can only benchmark a fresh model."""
    if cfg.run and cfg.checkpoint:
        raise ConfigError(f"run={cfg.run} and checkpoint={cfg.checkpoint} both say what to evaluate; give one of them")
    if not cfg.run and not cfg.checkpoint:
        if cfg.predict:
            raise ConfigError(f"predict={cfg.predict} needs trained weights; give run=RUN_DIR or checkpoint=FILE")
        if not cfg.benchmark:
            raise ConfigError("nothing to evaluate; give run=RUN_DIR or checkpoint=FILE, or benchmark=true")


def load_trained(own: DictConfig) -> tuple[DictConfig, Path]:
    """The config a run wrote, or the copy inside a checkpoint, and the file it was read from."""
    if own.run:
        path = Path(str(own.run)) / "config.yaml"
        if not path.is_file():
            state = "holds no config.yaml" if path.parent.is_dir() else "is not a directory"
            raise ConfigError(f"run={own.run} {state}; give the run directory that train.py printed")
        return OmegaConf.load(path), path
    from vantage.cli.build import load_run

    try:
        return load_run(checkpoint=own.checkpoint)[0], Path(own.checkpoint)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(one_line(error)) from error
