"""What the tests of the backbones share: one small variant per family and attentions to put in it."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from vantage.attention.base import Attention
from vantage.attention.softmax import Softmax
from vantage.backbones.build import ADAPTERS, Backbone, build_backbone

FAMILIES = list(ADAPTERS)
SIZES = [(32, 32), (33, 47), (100, 60)]
each_family = pytest.mark.parametrize("family", FAMILIES)
softmax = partial(Softmax)


class LocalMean(Attention):
    """A mixer that is no softmax: 3x3 mean of a projection. It fills local slots only and takes no position."""

    role_support = ("local",)

    def __init__(self, dim: int, num_heads: int, *, kernel_size: int = 3, position=None):
        super().__init__(dim, num_heads, position=position)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} is even; use an odd one")
        self.kernel_size = kernel_size
        self.value = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        pool = nn.functional.avg_pool2d
        x = self.value(x).permute(0, 3, 1, 2)
        return pool(x, self.kernel_size, stride=1, padding=self.kernel_size // 2).permute(0, 2, 3, 1)


def small(family: str, attention: partial | None = None, **arguments) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(family, f"{family}_pico32", attention=attention, **{"num_classes": 5, **arguments})


def images(size: tuple[int, int] = (32, 32), batch: int = 2, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, *size, generator=generator)


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Gradients of a random projection of the output with respect to the parameters and the image."""
    x = x.clone().requires_grad_()
    torch.manual_seed(3)  # dropout
    out = model(x)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    (out * weights).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {**found, "image": x.grad, "output": out.detach()}
