"""A model at a glance: its slots and what fills them, parameters per part, operations per image."""

import re
from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from vantage.analysis.benchmark import count_flops, count_parameters
from vantage.attention.base import Attention

# seven columns with the names of slots in the 80 characters of a log
LOOK = {"box": box.SIMPLE_HEAD, "padding": 0}
MOST_PARTS = 8  # of a numbered row of modules; a longer one (ViT's blocks) is one line


def summary(backbone: nn.Module, image: Tensor) -> Group:
    """Tables to print for a Backbone and an input (1, C, H, W) on its device."""
    total, trainable = count_parameters(backbone)
    flops = count_flops(backbone, image)
    _, chans, height, width = image.shape
    parts = Table(show_footer=True, **LOOK)
    parts.add_column("part", footer="all")
    parts.add_column("parameters", footer=f"{total:,}", justify="right")
    for name, size in parameters_by_part(backbone.net).items():
        parts.add_row(name, f"{size:,}")
    frozen = f", {total - trainable:,} of them frozen" if trainable < total else ""
    cost = f"{flops / 1e9:.4g} GFLOPs per {chans}×{height}×{width} image (multiply-adds count twice){frozen}\n"
    return Group(Text(backbone.variant, style="bold"), slots_table(backbone), parts, Text(cost))


def slots_table(backbone: nn.Module) -> Table:
    """Slots that are alike but for a number in their name share a row, their names written as a pattern."""
    installed = {slot.name: attention for slot, attention in backbone.installed()}
    table = Table(**LOOK)
    table.add_column("slot", no_wrap=True)
    for heading in ("role", "attention"):
        table.add_column(heading, overflow="fold")
    for heading in ("stage", "dim", "heads", "stride"):
        table.add_column(heading, justify="right", no_wrap=True)
    groups: dict[tuple, list[str]] = {}
    for slot in backbone.slots():
        role = f"{slot.role}, shifted" if slot.shifted else slot.role
        numbers = (str(slot.stage), str(slot.dim), str(slot.num_heads), str(slot.stride))
        shape = re.sub(r"\d+", "*", slot.name)
        groups.setdefault((shape, role, filling(installed.get(slot.name)), *numbers), []).append(slot.name)
    for (_, *cells), names in groups.items():
        table.add_row(pattern(names), *cells)
    return table


def filling(attention: Attention | None) -> str:
    if attention is None:
        return "native"
    if attention.position is None:
        return attention.label()
    return f"{attention.label()} + {type(attention.position).__module__.rpartition('.')[2]}"


def pattern(names: Sequence[str]) -> str:
    """`stages.2.blocks.*.attn ×5`: what differs between the dotted names becomes a star."""
    if len(names) == 1:
        return names[0]
    parts = zip(*(name.split(".") for name in names))
    return ".".join(part[0] if len(set(part)) == 1 else "*" for part in parts) + f" ×{len(names)}"


def parameters_by_part(net: nn.Module) -> dict[str, int]:
    """Parameters of the stem, each stage, the head ...: top-level modules, numbered ones (stages.0) apart if few."""
    rows = (nn.Sequential, nn.ModuleList)
    numbered = {name: len(child) for name, child in net.named_children() if isinstance(child, rows)}
    sizes = Counter()
    for name, parameter in net.named_parameters():
        first, *rest = name.split(".")
        is_row = numbered.get(first, 0) in range(1, MOST_PARTS + 1) and not first[-1].isdigit()  # layer1 is a stage
        is_stage = is_row and len(rest) > 1
        sizes[f"{first}.{rest[0]}" if is_stage else first] += parameter.numel()
    return dict(sizes)
