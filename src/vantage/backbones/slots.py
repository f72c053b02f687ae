"""Slots: the places of a backbone where an attention sits, how they are chosen, filled and reported."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from vantage.attention.base import ROLES, Attention

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Slot:
    """A place that takes a whole feature map (B, H, W, dim) and gives one back.

    `name` is the dotted name of the attention in the timm model, `stride` the pixels of the image per pixel of the
    map. `shifted` marks Swin's odd blocks; `default` is false where a swap must be asked for by name or role.
    """

    name: str
    role: str
    stage: int
    dim: int
    num_heads: int
    stride: int
    shifted: bool = False
    default: bool = True


@dataclass
class SwapReport:
    """Which tensors of the state dict a swap kept, re-used (copied into the new attention), made new and dropped.

    `swapped` and `native` name the slots that took the attention and those that stay as timm built them.
    """

    kept: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    swapped: list[str] = field(default_factory=list)
    native: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [f"{'tensors':<8} {'count':>5}  examples"]
        for kind in ("kept", "reused", "new", "dropped"):
            names = getattr(self, kind)
            rows.append(
                f"{kind:<8} {len(names):>5}  {', '.join(names[:2])}{', ...' if len(names) > 2 else ''}".rstrip()
            )
        rows.append(f"slots: {len(self.swapped)} swapped, {len(self.native)} native")
        return "\n".join(rows)


def choose_slots(slots: Sequence[Slot], wanted: str | Sequence[str]) -> list[Slot]:
    """The slots that `wanted` names: "default", "all", or a list of roles and patterns on slot names."""
    if wanted == "default":
        return [slot for slot in slots if slot.default]
    if wanted == "all":
        return list(slots)
    if isinstance(wanted, str):
        wanted = [wanted]
    for item in wanted:
        if not any(matches(slot, item) for slot in slots):
            roles = sorted({slot.role for slot in slots}, key=ROLES.index)
            raise ValueError(
                f"model.slots: {item!r} matches no slot; the roles here are {', '.join(roles) or 'none'} and the names "
                f"look like {slots[0].name!r}"
                if slots
                else f"model.slots: {item!r} matches no slot: there are none"
            )
    return [slot for slot in slots if any(matches(slot, item) for item in wanted)]


def matches(slot: Slot, item: str) -> bool:
    return item == slot.role or fnmatchcase(slot.name, item)


def make_attention(slot: Slot, attention: partial, position: partial | None) -> Attention:
    """Builds the attention of one slot: the keywords of its role are laid over the common ones.

    `roles` maps local, global, full to keyword overrides; `shifted` is laid on top where the slot is shifted.
    """
    keywords = {key: plain(value) for key, value in attention.keywords.items()}
    keywords.update(role_keywords(slot, attention.func, keywords.pop("roles", None) or {}))
    try:
        if position is not None:
            keywords["position"] = position(slot.dim // slot.num_heads, slot.num_heads)
        return attention.func(slot.dim, slot.num_heads, **keywords)
    except ValueError as error:
        raise ValueError(f"slot {slot.name} ({slot.role}, dim {slot.dim}, {slot.num_heads} heads): {error}") from error


def role_keywords(slot: Slot, target: type[Attention], roles: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    known = set(inspect.signature(target).parameters)
    for role, overrides in roles.items():
        if role not in (*ROLES, "shifted"):
            raise ValueError(f"attention.roles.{role}: there is no such role; use {', '.join(ROLES)} or shifted")
        for key in overrides or {}:
            if key not in known:
                raise ValueError(
                    f"attention.roles.{role}.{key}: {target.__name__} takes no {key!r}; "
                    f"it takes {', '.join(sorted(known - {'dim', 'num_heads', 'position'}))}"
                )
    chosen = dict(roles.get(slot.role) or {})
    if slot.shifted:
        chosen.update(roles.get("shifted") or {})
    return chosen


def plain(value: Any) -> Any:
    """A config node as Python values: attentions are deep-copied and pickled with what they were given."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


@torch.no_grad()
def reuse_weights(attention: Attention, native: Mapping[str, Tensor | None]) -> list[str]:
    """Copies timm's projections into tensors of equal name and shape; returns the names that were copied.

    `native` is in the layout of the attention contract: `qkv` has 3 * dim rows (q, k, v each heads-major). A bias
    that timm's attention does not have is None and becomes zero, which leaves what the projection computes alone.
    """
    reused = []
    own = dict(attention.named_parameters())
    for name, tensor in native.items():
        if name not in own:
            continue
        weight = f"{name.removesuffix('bias')}weight"
        if tensor is None:
            if weight in reused:
                own[name].zero_()
        elif own[name].shape == tensor.shape:
            own[name].copy_(tensor)
            reused.append(name)
    return reused


def linear_weights(qkv: nn.Module, proj: nn.Module, heads_first: int = 0) -> dict[str, Tensor | None]:
    """The projections of a fused attention in the layout of the contract.

    `heads_first` is the number of heads where the rows of `qkv` are (heads, 3, head_dim), 0 where they are
    (3, heads, head_dim) already. 1x1 convolutions become matrices.
    """
    weights = {"qkv.weight": qkv.weight, "qkv.bias": qkv.bias, "proj.weight": proj.weight, "proj.bias": proj.bias}
    for name, tensor in weights.items():
        if tensor is None:
            continue
        tensor = tensor.detach().flatten(1) if tensor.dim() == 4 else tensor.detach()
        if heads_first and name.startswith("qkv"):
            tensor = tensor.unflatten(0, (heads_first, 3, -1)).transpose(0, 1).flatten(0, 2)
        weights[name] = tensor
    return weights


def split_weights(q: nn.Linear, kv: nn.Linear, proj: nn.Linear) -> dict[str, Tensor | None]:
    """As `linear_weights`, for an attention whose queries are projected apart from its keys and values."""
    bias = None if q.bias is None else torch.cat([q.bias, kv.bias]).detach()
    return {
        "qkv.weight": torch.cat([q.weight, kv.weight]).detach(),
        "qkv.bias": bias,
        "proj.weight": proj.weight.detach(),
        "proj.bias": None if proj.bias is None else proj.bias.detach(),
    }
