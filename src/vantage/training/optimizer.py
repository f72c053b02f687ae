"""Optimizers over parameter groups: who decays, and at which learning rate per depth.

A group carries its own learning rate: lr * layer_decay^(last - layer), and outside the backbone times head_scale. Any
scheduler that scales a group's initial learning rate therefore keeps both; timm's `lr_scale` key works with timm's own
schedulers only.

No weight decay: parameters of at most one dimension (biases, norms, layer scales), what a timm model names in
`no_weight_decay()`, every parameter of a position, and what a module names in its attribute `no_decay`.
"""

from collections.abc import Callable
from fnmatch import fnmatch

from timm.models import group_parameters
from torch import nn
from torch.optim import Optimizer

from vantage.position.base import Position


class OptimizerFactory:
    """Builds `optimizer` (torch.optim.AdamW, partial) over the groups of a model's trainable parameters."""

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float,
        optimizer: Callable[..., Optimizer],
        layer_decay: float = 1.0,
        head_scale: float = 1.0,
    ):
        if not lr > 0:
            raise ValueError(f"optimizer.lr is {lr}; a learning rate is positive")
        if not weight_decay >= 0:
            raise ValueError(f"optimizer.weight_decay is {weight_decay}; it is 0 or positive")
        if not 0 < layer_decay <= 1:
            raise ValueError(f"optimizer.layer_decay is {layer_decay}; it is in (0, 1], and 1 switches it off")
        if not head_scale > 0:
            raise ValueError(f"optimizer.head_scale is {head_scale}; it is positive, and 1 switches it off")
        for key in ("lr", "weight_decay"):
            if key in getattr(optimizer, "keywords", {}):
                raise ValueError(f"optimizer.optimizer.{key} would be overwritten by the groups; set optimizer.{key}")
        self.lr = lr
        self.weight_decay = weight_decay
        self.layer_decay = layer_decay
        self.head_scale = head_scale
        self.optimizer = optimizer

    def __call__(self, model: nn.Module) -> Optimizer:
        groups = parameter_groups(
            model,
            lr=self.lr,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            head_scale=self.head_scale,
        )
        return self.optimizer(groups, lr=self.lr, weight_decay=self.weight_decay)


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, layer_decay: float = 1.0, head_scale: float = 1.0
) -> list[dict]:
    """Groups {params, lr, weight_decay, name} in order of depth; frozen parameters are in none of them."""
    exempt = no_decay_names(model)
    layers = layer_ids(model) if layer_decay < 1 else {}
    last = max(layers.values(), default=0)
    inside = backbone_prefix(model) if head_scale != 1 else ""
    groups: dict[tuple[int, bool, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, decays, is_head = layers.get(name, last), name not in exempt, not name.startswith(inside)
        group = groups.setdefault(
            (layer, is_head, decays),
            {
                "params": [],
                "lr": lr * layer_decay ** (last - layer) * (head_scale if is_head else 1.0),
                "weight_decay": weight_decay if decays else 0.0,
                "name": ", ".join(
                    [f"layer {layer}"] * bool(layers) + ["head"] * is_head + ["decay" if decays else "no decay"]
                ),
            },
        )
        group["params"].append(parameter)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no trainable parameter; every one of them is frozen")
    return [groups[key] for key in sorted(groups)]


def no_decay_names(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay would harm."""
    names = {name for name, parameter in model.named_parameters() if parameter.ndim <= 1}
    for prefix, module in model.named_modules():
        prefix = f"{prefix}." if prefix else ""
        own = [name for name, _ in module.named_parameters()]
        if isinstance(module, Position):
            names.update(prefix + name for name in own)
        for declared in getattr(module, "no_decay", ()):
            if declared not in own:
                raise ValueError(
                    f"{type(module).__name__}.no_decay names '{declared}', which is no parameter of '{prefix[:-1]}'; "
                    f"it has {', '.join(own) or 'none'}"
                )
            names.add(prefix + declared)
        if callable(getattr(module, "no_weight_decay", None)):
            patterns = module.no_weight_decay()
            names.update(prefix + name for name in own if any(fnmatch(name, pattern) for pattern in patterns))
    return names


def backbone_prefix(model: nn.Module) -> str:
    """What the names of the timm model's parameters begin with; those of a dense task's head do not."""
    for prefix, module in model.named_modules():
        if callable(getattr(module, "group_matcher", None)):
            prefix = f"{prefix}." if prefix else ""
            if all(name.startswith(prefix) for name, _ in model.named_parameters()):
                break
            return prefix
    raise ValueError(
        f"optimizer.head_scale needs a head beside a timm backbone, and {type(model).__name__} has none; use "
        "optimizer.head_scale=1"
    )


def layer_ids(model: nn.Module) -> dict[str, int]:
    """Depth of every parameter by name, 0 at the stem, from the grouping of the timm model inside.

    Parameters outside the timm model (a task's head) are as deep as its last layer. Frozen parameters count, so that
    freezing the stem leaves the learning rates of the rest alone.
    """
    for prefix, module in model.named_modules():
        if callable(getattr(module, "group_matcher", None)):
            prefix = f"{prefix}." if prefix else ""
            inside = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
            last = max(inside.values())
            layers = {name: last for name, _ in model.named_parameters()}
            layers.update({prefix + name: layer for name, layer in inside.items()})
            return layers
    raise ValueError(
        f"optimizer.layer_decay needs a model that knows its depth, and {type(model).__name__} holds none with a "
        "group_matcher() as timm's have; use optimizer.layer_decay=1"
    )
