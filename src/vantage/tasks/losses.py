"""Losses by config: named terms and their weights.

A term is a module (predictions, targets) -> scalar, of one task; see the losses of segmentation and super-resolution.
One of your own:
    '+task.loss.terms.mine={_target_: my.module.Mine}' '+task.loss.weights.mine=0.5'
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Losses(nn.Module):
    """predictions of any float type, targets as the task gives them -> {name: weight * term}, float32 scalars.

    terms    by name; computed in float32, outside autocast
    weights  by a term's name, 1 where there is none; 0 leaves the term out
    """

    def __init__(self, terms: Mapping[str, nn.Module], weights: Mapping[str, float] | None = None):
        super().__init__()
        weights = dict(weights or {})
        for name, term in terms.items():
            if not isinstance(term, nn.Module):
                raise ValueError(f"task.loss.terms.{name} is {term}, not a loss; give it a _target_ or leave it out")
        for name, weight in weights.items():
            if name not in terms:
                raise ValueError(
                    f"task.loss.weights.{name} is {weight} and there is no such term; the terms are {', '.join(terms)}"
                )
            if not 0 <= weight < math.inf:
                raise ValueError(f"task.loss.weights.{name} is {weight}; it must be 0 or more")
        self.weights = {name: float(weights.get(name, 1.0)) for name in terms}
        self.terms = nn.ModuleDict({name: term for name, term in terms.items() if self.weights[name]})
        if not self.terms:
            raise ValueError("task.loss has no term with a weight above 0; choose one with task/loss=NAME")

    def forward(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        with torch.autocast(predictions.device.type, enabled=False):
            predictions = predictions.float()
            return {name: self.weights[name] * term(predictions, targets) for name, term in self.terms.items()}

    def check_task(self, task: str, usual: str) -> None:
        """Raises ValueError if a term of ours belongs to another task than `task`, for which `usual` ones exist."""
        for name, term in self.terms.items():
            package, _, rest = type(term).__module__.partition("vantage.tasks.")
            if not package and not rest.startswith(f"{task}."):
                raise ValueError(f"task/loss={name} is for {rest.partition('.')[0]}, not for {task}; use {usual}")

    def extra_repr(self) -> str:
        return f"weights={self.weights}"
