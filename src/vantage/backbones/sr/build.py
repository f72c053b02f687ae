"""Builds a super-resolution network of one of the families and puts attentions of ours in its slots."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from functools import partial

from torch import nn

from vantage.backbones.sr.network import SRNetwork
from vantage.backbones.swappable import check_checkpointing, name_of

FAMILIES = {
    "sr_trunk": "SRTrunk",
    "swinir": "SwinIR",
    "catanet": "CATANet",
    "cat_sr": "CATSR",
    "han": "HAN",
    "edsr": "EDSR",
}


def build_sr(
    family: str,
    variant: str,
    *,
    attention: partial | None = None,
    position: partial | None = None,
    plug: partial | None = None,
    slots: str | Sequence[str] = "default",
    scale: int = 2,
    in_chans: int | None = 3,
    drop_path: float = 0.0,
    grad_checkpointing: bool = False,
) -> SRNetwork:
    """Builds `variant` of `family` for one scale, then swaps attention into its slots; see build_backbone.

    Raises: ValueError for what the family cannot do, and for an attention where it has no slot
    """
    check_sr_variant(family, variant)
    if plug:
        raise ValueError(f"plug={name_of(plug)} finds no place in model={family}; use plug=none")
    if position and not attention:
        raise ValueError(
            f"position={name_of(position)} needs an attention that takes one, and attention=native keeps the "
            "network's own; use position=none or another attention"
        )
    if attention and grad_checkpointing:
        check_checkpointing(attention)
    kind = family_class(family)
    keywords = dict(variants_of(family)[variant])
    takes = inspect.signature(kind).parameters
    for name, value in (("drop_path", drop_path), ("grad_checkpointing", grad_checkpointing)):
        if name in takes:
            keywords[name] = value
        elif value:
            raise ValueError(f"model.{name}={value}: {family} has no such thing; leave it {type(value)()}")
    in_chans = in_chans or 3
    network = SRNetwork(
        kind(scale=scale, in_chans=in_chans, **keywords), family, variant, scale=scale, in_chans=in_chans
    )
    if attention:
        network.swap(attention, position or None, slots)
    return network


def family_class(family: str) -> type[nn.Module]:
    return getattr(importlib.import_module(f"vantage.backbones.sr.{family}"), FAMILIES[family])


def variants_of(family: str) -> Mapping[str, Mapping[str, object]]:
    """Variant -> keywords of its class."""
    return importlib.import_module(f"vantage.backbones.sr.{family}").VARIANTS


def check_sr_variant(family: str, variant: str) -> None:
    if family not in FAMILIES:
        raise ValueError(f"model.family={family} is no super-resolution network; there are {', '.join(FAMILIES)}")
    known = variants_of(family)
    if variant not in known:
        raise ValueError(f"model.variant={variant} is no {family} variant; there are {', '.join(known)}")
