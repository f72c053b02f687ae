"""What an adapter knows about one family of timm models; the subclasses differ in what timm left different."""

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from vantage.attention.base import Attention
from vantage.backbones.slots import Slot


class Adapter:
    """Stateless: every method takes the timm model `net`.

    `modules` are the timm modules whose models belong to the family. Swapping changes the class of a block to a
    subclass whose forward gives its attention the whole map, so that timm's parameter names stay.
    """

    family: str
    modules: tuple[str, ...]
    takes_plugs = False
    first_map = 0  # index of the first stage in timm's `forward_intermediates`, where the stem comes before it

    def refuse(self, variant: str) -> str | None:
        """Why a model of timm's module is not supported, or None."""
        return None

    def arguments(self, variant: str, img_size: tuple[int, int] | None) -> dict[str, object]:
        """Keywords for `timm.create_model` beyond the common ones."""
        return {}

    def open_sizes(self, net: nn.Module) -> None:
        """Lets the model take any input size >= 32, leaving what it computes at its own sizes alone."""

    def slots(self, net: nn.Module) -> list[Slot]:
        raise NotImplementedError

    def native_weights(self, net: nn.Module, slot: Slot) -> Mapping[str, Tensor | None]:
        """The projections of timm's attention in the layout of the attention contract; empty where there are none."""
        return {}

    def install(self, net: nn.Module, slot: Slot, attention: Attention) -> str:
        """Puts the attention in the slot and returns its dotted name there."""
        raise NotImplementedError

    def after_swap(self, net: nn.Module) -> None:
        """What the model needs once some of its slots are swapped."""

    def plug(self, net: nn.Module, plug: partial) -> list[str]:
        """Puts a plug, made from the convolution it replaces, into each of its places and returns their names."""
        return []

    def checkpoint(self, net: nn.Module) -> None:
        net.set_grad_checkpointing(True)

    def maps(self, net: nn.Module) -> list[tuple[int, int]]:
        """(channels, stride) of each map that `features` gives."""
        return [(info["num_chs"], info["reduction"]) for info in net.feature_info[self.first_map :]]

    def features(self, net: nn.Module, x: Tensor) -> list[Tensor]:
        """The maps (B, channels, ceil(H / stride), ceil(W / stride)), the last after the final norm if there is one."""
        indices = list(range(self.first_map, len(net.feature_info)))
        return net.forward_intermediates(x, indices=indices, norm=True, intermediates_only=True)

    def head(self, net: nn.Module) -> list[nn.Module]:
        """What logits and pooled features pass and `features` do not; some have a norm, also without classes."""
        return [net.head]


def replace_attention(net: nn.Module, slot: Slot, attention: Attention, block_class: type[nn.Module]) -> str:
    """Sets the attention under the slot's own name and turns the block around it into `block_class`."""
    net.set_submodule(slot.name, attention)
    net.get_submodule(slot.name.rpartition(".")[0]).__class__ = block_class
    return slot.name
