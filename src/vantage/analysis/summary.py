"""A model at a glance: its slots and what fills them, parameters per part, operations per image."""

from collections import Counter

from rich.console import Group
from rich.table import Table
from torch import Tensor, nn

from vantage.analysis.benchmark import count_flops, count_parameters

MOST_PARTS = 8  # of a numbered row of modules; a longer one (ViT's blocks) is one line


def summary(backbone: nn.Module, image: Tensor) -> Group:
    """Tables to print for a Backbone and an input (1, C, H, W) on its device."""
    total, trainable = count_parameters(backbone)
    flops = count_flops(backbone, image)
    _, chans, height, width = image.shape
    parts = Table(title=f"{backbone.family} {backbone.variant}", title_justify="left", show_footer=True)
    parts.add_column("part", footer="all")
    parts.add_column("parameters", footer=f"{total:,}", justify="right")
    for name, size in parameters_by_part(backbone.net).items():
        parts.add_row(name, f"{size:,}")
    frozen = f", {total - trainable:,} of them frozen" if trainable < total else ""
    parts.caption = f"{flops / 1e9:.4g} GFLOPs per {chans}×{height}×{width} image (multiply-adds count twice){frozen}"
    parts.caption_justify = "left"
    return Group(slots_table(backbone), parts)


def slots_table(backbone: nn.Module) -> Table:
    installed = {slot.name: attention for slot, attention in backbone.installed()}
    table = Table(title="Slots", title_justify="left")
    for heading in ("slot", "role", "attention"):
        table.add_column(heading, no_wrap=True)
    for heading in ("stage", "dim", "heads", "stride"):
        table.add_column(heading, justify="right")
    for slot in backbone.slots():
        attention = installed.get(slot.name)
        role = f"{slot.role}, shifted" if slot.shifted else slot.role
        filled = "native" if attention is None else attention.label()
        if attention is not None and attention.position is not None:
            filled += f" + {type(attention.position).__module__.rpartition('.')[2]}"
        table.add_row(slot.name, role, filled, str(slot.stage), str(slot.dim), str(slot.num_heads), str(slot.stride))
    return table


def parameters_by_part(net: nn.Module) -> dict[str, int]:
    """Parameters of the stem, each stage, the head ...: top-level modules, numbered ones (stages.0) apart if few."""
    rows = (nn.Sequential, nn.ModuleList)
    numbered = {name: len(child) for name, child in net.named_children() if isinstance(child, rows)}
    sizes = Counter()
    for name, parameter in net.named_parameters():
        first, *rest = name.split(".")
        is_stage = numbered.get(first, 0) in range(1, MOST_PARTS + 1) and len(rest) > 1
        sizes[f"{first}.{rest[0]}" if is_stage else first] += parameter.numel()
    return dict(sizes)
