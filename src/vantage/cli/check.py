"""The composition check: every key of a config against what will receive it, before anything is opened or built.

Hydra accepts `+trainer.foo=1`, an unknown key in an experiment file and a word where a number belongs; they fail late
or never. Here each node with a `_target_` is compared with that callable's signature and annotations, the root with
`vantage.schema`, and every complaint names the key, the file or override it came from, and the nearest valid name.
"""

import copy
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vantage import schema
from vantage.cli.annotations import describe, fits, hints_of
from vantage.cli.errors import ConfigError, nearest, one_line
from vantage.cli.sources import Sources

HYDRA_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
KEYWORDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def check(cfg: DictConfig, sources: Sources, command: str) -> None:
    """Raises ConfigError on the first thing in `cfg` that could not work."""
    Check(cfg, sources, command).run()


class Check:
    def __init__(self, cfg: DictConfig, sources: Sources, command: str):
        self.cfg = copy.deepcopy(cfg)
        self.sources = sources
        self.root = schema.types_of(schema.ROOTS[command])
        self.targets: dict[str, Callable] = {}  # path of a node -> what it builds

    def run(self) -> None:
        self.check_root()
        if self.sources.override_of("paths.run_dir"):
            raise ConfigError("'paths.run_dir' is filled in by the command; give run_dir=PATH")
        OmegaConf.update(self.cfg, "paths.run_dir", "RUN_DIR")  # made only once the config has passed
        for group in schema.OBJECT_GROUPS:
            self.check_object_group(group)
        for group in schema.NAMED_GROUPS:
            self.check_named_group(group)
        for name in self.root:
            if isinstance(self.cfg.get(name), DictConfig):
                self.walk(self.cfg[name], name)
        self.check_combination()

    # the root and the groups

    def check_root(self) -> None:
        for key in self.cfg:
            if key not in self.root:
                raise self.unknown(key, self.root, what="root keys")
        for key, annotation in self.root.items():
            if key not in self.cfg:
                raise ConfigError(f"the config lacks '{key}' ({self.sources.of(key)}); it cannot be left out")
            self.check_type(self.cfg, key, key, annotation)
        for group, kind in schema.NODES.items():
            annotations = schema.types_of(kind)
            for key in self.cfg.get(group) or ():
                if key in annotations:
                    self.check_type(self.cfg[group], key, f"{group}.{key}", annotations[key])
                elif group == "paths":
                    raise self.unknown(f"{group}.{key}", annotations)

    def check_object_group(self, group: str) -> None:
        node = self.cfg.get(group)
        if not node:
            return
        if "_target_" not in node:
            choice = self.sources.choice(group)
            chosen = f"{group}={choice}" if choice else f"the chosen {group}"
            path = f"{group}.{next(iter(node))}"
            raise ConfigError(f"unknown key '{path}' ({self.sources.of(path)}); {chosen} takes no keys")
        for name in schema.SUPPLIED.get(group, ()):
            if name in node:
                raise supplied(f"{group}.{name}", self.sources)

    def check_named_group(self, group: str) -> None:
        node = self.cfg.get(group)
        for name in node or ():
            path = f"{group}.{name}"
            entry = self.resolve(node, name, path)
            if entry is not None and not (isinstance(entry, DictConfig) and "_target_" in entry):
                raise ConfigError(
                    f"'{path}' ({self.sources.of(path)}) describes no object: an entry of {group} is a mapping with a "
                    f"_target_, or null{nearest(name, (key for key in node if key != name), what='entries')}"
                )

    # nodes and their targets

    def walk(self, node: DictConfig | ListConfig, path: str) -> None:
        if isinstance(node, DictConfig) and "_target_" in node:
            self.check_target(node, path)
        for key, child in self.children(node, path):
            self.walk(child, key)

    def children(self, node: DictConfig | ListConfig, path: str) -> Iterator[tuple[str, Any]]:
        """Containers below a node; an interpolation is skipped, because its goal is walked where it stands."""
        for key in range(len(node)) if isinstance(node, ListConfig) else node:
            child_path = f"{path}.{key}"
            value = self.resolve(node, key, child_path)
            if isinstance(value, (DictConfig, ListConfig)) and not OmegaConf.is_interpolation(node, key):
                yield child_path, value

    def check_target(self, node: DictConfig, path: str) -> None:
        target = self.locate(node, path)
        parameters, takes_any = parameters_of(target)
        hints = hints_of(target)
        given = [key for key in node if key not in HYDRA_KEYS]
        supplied = schema.SUPPLIED.get(path, ())
        for key in given:
            if path == "attention" and key == "roles":
                self.check_roles(node.roles, target)
            elif key in parameters:
                self.check_type(node, key, f"{path}.{key}", hints.get(key, Any), default=parameters[key].default)
            elif not takes_any:
                raise self.unknown(f"{path}.{key}", parameters.keys() - set(supplied), receiver=dotted(target))
        if not node.get("_partial_") and not node.get("_args_"):
            for name, parameter in parameters.items():
                if parameter.default is parameter.empty and name not in given and name not in supplied:
                    raise ConfigError(f"'{path}.{name}' is missing: {dotted(target)} needs it; give +{path}.{name}=...")

    def locate(self, node: DictConfig, path: str) -> Callable:
        name = self.resolve(node, "_target_", f"{path}._target_")
        try:
            target = import_object(name)
        except Exception as error:  # whatever a module raises when it is imported
            reason = one_line(error)
            raise ConfigError(
                f"'{path}._target_' ({self.sources.of(f'{path}._target_')}) is {name!r}, which cannot be imported: "
                f"{reason}"
            ) from error
        if not callable(target):
            raise ConfigError(f"'{path}._target_' ({self.sources.of(f'{path}._target_')}) is {name}, not a callable")
        self.targets[path] = target
        return target

    def check_roles(self, roles: DictConfig | None, target: Callable) -> None:
        """`attention.roles.<role>` holds keywords of the attention for slots of that role."""
        parameters, _ = parameters_of(target)
        hints = hints_of(target)
        own = parameters.keys() - set(schema.SUPPLIED["attention"])
        if roles is not None and not isinstance(roles, DictConfig):
            raise self.misfit("attention.roles", roles, dict[str, Any])
        for role in roles or ():
            path = f"attention.roles.{role}"
            if role not in schema.ROLE_KEYS:
                raise self.unknown(path, schema.ROLE_KEYS, what="roles")
            keywords = self.resolve(roles, role, path)
            if keywords is not None and not isinstance(keywords, DictConfig):
                raise self.misfit(path, keywords, dict[str, Any])
            for key in keywords or ():
                if key not in own:
                    raise self.unknown(f"{path}.{key}", own, receiver=dotted(target))
                self.check_type(keywords, key, f"{path}.{key}", hints.get(key, Any))

    # values

    def resolve(self, node: DictConfig | ListConfig, key: Any, path: str) -> Any:
        """The value of a key, its interpolation followed; ??? and an interpolation to nothing are refused."""
        try:
            if OmegaConf.is_missing(node, key):
                raise ConfigError(f"'{path}' ({self.sources.of(path)}) has no value yet; give {path}=...")
            return node[key]
        except OmegaConfBaseException as error:
            text = OmegaConf.to_container(node, resolve=False)[key]
            reason = str(error.__cause__ or error).partition("\n")[0]
            raise ConfigError(f"'{path}' ({self.sources.of(path)}) is {text}: {one_line(reason)}") from error

    def check_type(
        self, node: DictConfig, key: str, path: str, annotation: Any, *, default: Any = inspect.Parameter.empty
    ) -> None:
        value = self.resolve(node, key, path)
        if isinstance(value, (DictConfig, ListConfig)):
            if OmegaConf.is_interpolation(node, key):
                return
            value = OmegaConf.to_container(value, resolve=False)
            if holds_interpolation(value):
                return
        if value is None and default is None:
            return  # `size: int = None` means what it does
        if not fits(value, annotation):
            raise self.misfit(path, value, annotation)

    # what belongs together

    def check_combination(self) -> None:
        attention, position = self.targets.get("attention"), self.targets.get("position")
        if position is not None and attention is None:
            raise ConfigError(
                f"position={self.sources.choice('position')} needs an attention that takes it, and attention=native "
                "keeps the backbone's own; choose an attention, or position=none"
            )
        if position is not None:
            from vantage.attention.base import refuse_position

            try:
                refuse_position(attention, position)
            except ValueError as error:
                raise ConfigError(one_line(error)) from error
        self.check_variant()
        self.check_model_for_task()
        self.check_data_for_task()

    def check_variant(self) -> None:
        model = self.cfg.get("model")
        if not model or "family" not in model or "variant" not in model:
            return
        from vantage.backbones import build
        from vantage.backbones.sr.build import build_sr, check_sr_variant

        enlarges = self.targets.get("model") is build_sr
        try:
            (check_sr_variant if enlarges else build.check_variant)(model.family, model.variant)
        except ValueError as error:
            raise ConfigError(f"{one_line(error)} ({self.sources.of('model.variant')})") from error
        if self.targets.get("plug") is not None and not enlarges:
            try:
                build.check_plug(model.family, self.sources.choice("plug") or self.targets["plug"].__name__)
            except ValueError as error:
                raise ConfigError(one_line(error)) from error

    def check_model_for_task(self) -> None:
        """A super-resolution network has no features that another task could use."""
        from vantage.backbones.sr.build import build_sr

        task = self.targets.get("task")
        name = None if task is None else task_name(task) or self.sources.choice("task")
        if self.targets.get("model") is build_sr and name not in (None, "super_resolution"):
            raise ConfigError(
                f"model={self.cfg.model.family} makes larger pictures and gives task={name} no features; use "
                "task=super_resolution, or model=maxvit"
            )

    def check_data_for_task(self) -> None:
        """A data module may say which tasks it can feed: `tasks = ("classification",)`."""
        data, task = self.targets.get("data"), self.targets.get("task")
        offered = getattr(data, "tasks", None)
        if task is None or offered is None:
            return
        name = task_name(task) or self.sources.choice("task")
        if name is not None and name not in offered:
            raise ConfigError(
                f"data={self.sources.choice('data') or data.__name__} cannot feed task={name}: its labels are for "
                f"{', '.join(offered)}; leave data out to get a data set for {name}, or use task={offered[0]}"
            )

    # complaints

    def unknown(self, path: str, options: Iterable[str], *, what: str = "", receiver: str = "") -> ConfigError:
        parent, _, name = path.rpartition(".")
        reason = f": {receiver} takes no '{name}'" if receiver else ""
        hint = nearest(name, options, what=what or f"keys of {parent}", parent=parent)
        return ConfigError(f"unknown key '{path}' ({self.sources.of(path)}){reason}{hint}")

    def misfit(self, path: str, value: Any, annotation: Any) -> ConfigError:
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
        return ConfigError(f"'{path}' ({self.sources.of(path)}) is {shown}; it must be {describe(annotation)}")


def supplied(path: str, sources: Sources) -> ConfigError:
    name = path.rpartition(".")[2]
    advice = f"choose with {name}=..." if name in schema.types_of(schema.Root) else "leave it out"
    return ConfigError(f"'{path}' ({sources.of(path)}) is given by the code that builds it; {advice}")


def import_object(name: str) -> Any:
    """`package.module.Class`, as Hydra finds it; the error says which part of the name does not exist."""
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    for end, part in enumerate(parts[1:], 1):
        if not hasattr(found, part):
            path = ".".join(parts[:end])
            if not inspect.ismodule(found) or importlib.util.find_spec(f"{path}.{part}") is None:
                raise ImportError(f"{path} has no '{part}'{nearest(part, public_names(found), what='names')}")
            importlib.import_module(f"{path}.{part}")
        found = getattr(found, part)
    return found


def public_names(found: Any) -> list[str]:
    names = [name for name in vars(found) if not name.startswith("_")]
    return [name for name in names if callable(getattr(found, name))]


def parameters_of(target: Callable) -> tuple[dict[str, inspect.Parameter], bool]:
    """The keyword parameters of a callable, and whether it takes any other too (`**kwargs`)."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return {}, True
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in KEYWORDS}, takes_any


def task_name(task: Callable) -> str | None:
    """`vantage.tasks.classification.module.Classification` is the task `classification`."""
    parts = task.__module__.split(".")
    return parts[parts.index("tasks") + 1] if "tasks" in parts[:-1] else None


def dotted(target: Callable) -> str:
    return f"{target.__module__}.{getattr(target, '__qualname__', repr(target))}"


def holds_interpolation(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(holds_interpolation, value.values()))
    if isinstance(value, list):
        return any(map(holds_interpolation, value))
    return isinstance(value, str) and "${" in value
