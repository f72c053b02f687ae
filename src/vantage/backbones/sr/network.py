"""What every super-resolution network is, to the tasks and to the command line."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from vantage.attention.base import Attention
from vantage.backbones.adapters.base import Adapter
from vantage.backbones.slots import Slot, linear_weights
from vantage.backbones.swappable import Swappable


class SRModel(Protocol):
    """A family's class: `Family(scale=..., in_chans=..., **its own keywords)`, and VARIANTS beside it in its file."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, h, w) -> (B, in_chans, scale h, scale w), any h, w >= 1, both normalised alike."""

    def slots(self) -> list[Slot]:
        """Its token mixers that take a whole map (B, h, w, dim); none of a purely convolutional network."""


class SRAdapter(Adapter):
    """Our own networks know their slots, and what sits there takes the whole map already."""

    def __init__(self, family: str):
        self.family = family

    def slots(self, net: nn.Module) -> list[Slot]:
        return net.slots()

    def native_weights(self, net: nn.Module, slot: Slot) -> Mapping[str, Tensor | None]:
        native = net.get_submodule(slot.name)
        return linear_weights(native.qkv, native.proj) if hasattr(native, "qkv") else {}

    def install(self, net: nn.Module, slot: Slot, attention: Attention) -> str:
        net.set_submodule(slot.name, attention)
        return slot.name


class SRNetwork(Swappable):
    """`net` with its slots; `scale` is what it was built for."""

    def __init__(self, net: nn.Module, family: str, variant: str, *, scale: int, in_chans: int):
        super().__init__(net, SRAdapter(family), variant)
        self.scale = scale
        self.in_chans = in_chans
        self.num_classes = 0

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_chans, h, w), normalised -> (B, in_chans, scale h, scale w), normalised alike."""
        return self.net(x)
