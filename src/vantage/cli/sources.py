"""Where a key of a composed config came from: composition keeps no record, so the defaults list is read again."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

Line = tuple[str, int]


@dataclass
class Layer:
    """One YAML file of a composition and the package (dotted place) its keys land in."""

    path: Path
    package: str
    group: str  # `attention` for configs/attention/softmax.yaml, empty for a primary config

    @cached_property
    def lines(self) -> dict[str, int]:
        """Dotted key in the composed config -> line in this file."""
        found: dict[str, int] = {}
        prefix = [part for part in self.package.split(".") if part and part != "_global_"]
        root = yaml.compose(self.path.read_text())
        if isinstance(root, yaml.MappingNode):
            collect_lines(root, prefix, found)
        return found

    @property
    def is_pointer(self) -> bool:
        """True for a file that has a defaults list and nothing else."""
        return bool(self.lines) and all(".defaults" in f".{key}" for key in self.lines)

    def __hash__(self) -> int:
        return hash((self.path, self.package))


def collect_lines(node: yaml.MappingNode, prefix: list[str], found: dict[str, int]) -> None:
    for key, value in node.value:
        path = [*prefix, str(key.value)]
        found[".".join(path)] = key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode):
            collect_lines(value, path, found)
        elif isinstance(value, yaml.SequenceNode):
            for index, item in enumerate(value.value):
                if isinstance(item, yaml.MappingNode):
                    collect_lines(item, [*path, str(index)], found)


class Sources:
    """The layers of a composition, in the order they were merged, and the overrides applied last.

    Only a complaint asks where something came from, so the layers are read then.
    """

    def __init__(self, read_layers: Callable[[], list[Layer]], overrides: list[Override]):
        self.read_layers = read_layers
        self.overrides = overrides

    @cached_property
    def layers(self) -> list[Layer]:
        return self.read_layers()

    @classmethod
    def of_composition(
        cls, loader: ConfigLoader, hydra: DictConfig, config_name: str, overrides: Sequence[str]
    ) -> "Sources":
        """`hydra` is the composed hydra node, which knows the folders that were searched."""

        def read_layers() -> list[Layer]:
            folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
            layers = []
            for default in loader.compute_defaults_list(config_name, list(overrides), RunMode.RUN).defaults:
                paths = [folder / f"{default.config_path}.yaml" for folder in folders]
                path = next((path for path in paths if path.is_file()), None)
                if path is not None:
                    layers.append(Layer(path, default.package or "", str(Path(default.config_path).parent).strip(".")))
            return layers

        return cls(read_layers, parse(overrides))

    def of(self, key: str) -> str:
        """`command line: model.varient=x` or `configs/experiment/try.yaml, line 4`: the last to have set the key."""
        override = self.override_of(key)
        if override is not None:
            return f"command line: {override.input_line}"
        for layer in reversed(self.layers):
            if key in layer.lines:
                return f"{shown(layer.path)}, line {layer.lines[key]}"
        below = [override for override in self.overrides if override.key_or_group.startswith(f"{key}.")]
        if below:
            return f"command line: {below[-1].input_line}"
        parent = key.rpartition(".")[0]
        return self.of(parent) if parent else "composed config"

    def override_of(self, key: str) -> Override | None:
        for override in reversed(self.overrides):
            name = override.key_or_group.replace("/", ".")
            if key == name or (key.startswith(f"{name}.") and isinstance(override.value(), (dict, list))):
                return override
        return None

    def choice(self, group: str) -> str | None:
        """The option chosen for a group, after pointers such as data/classification.yaml have been followed."""
        layers = [layer for layer in self.layers if layer.group == group and not layer.is_pointer]
        return layers[-1].path.stem if layers else None


def parse(overrides: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(overrides))


def quote(value: str) -> str:
    """A string for Hydra's override grammar, in which commas, braces and quotes have a meaning."""
    return "'" + value.replace("'", "\\'") + "'"


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """The command line with paths that exist quoted, so that a sweep's run directory can be given as it is printed.

    `run=logs/sweeps/x/0_attention=softmax,seed=0` would be read as a choice between two values.
    """
    quoted = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        is_path = re.fullmatch(r"[\w.+]+", key) and re.search(r"[^\w/.-]", value) and Path(value).exists()
        quoted.append(f"{key}={quote(value)}" if is_path else argument)
    return quoted


def shown(path: Path) -> str:
    """A path as a user would type it: relative to the working directory where that is possible."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
