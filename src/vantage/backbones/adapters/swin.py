"""Swin: windows (`local`), shifted in every second block.

timm pads a map that its window does not divide without masking; that is part of its model and stays. What it asserts
is that the patch size divides the image: here the image is padded to it.
"""

from timm.models import swin_transformer
from torch import Tensor, nn

from vantage.attention.base import Attention
from vantage.backbones.adapters.base import Adapter, replace_attention
from vantage.backbones.slots import Slot, linear_weights


class MapSwinBlock(swin_transformer.SwinTransformerBlock):
    def _attn(self, x: Tensor) -> Tensor:
        return self.attn(x)


class Swin(Adapter):
    family = "swin"
    modules = ("swin_transformer",)

    def arguments(self, variant: str, img_size: tuple[int, int] | None) -> dict[str, object]:
        arguments: dict[str, object] = {"strict_img_size": False}
        if img_size is not None:
            # the windows of a small map are those of its padded image; every patch size here divides 4
            arguments["img_size"] = tuple(side + -side % 4 for side in img_size)
        return arguments

    def open_sizes(self, net: nn.Module) -> None:
        net.patch_embed.dynamic_img_pad = True

    def slots(self, net: nn.Module) -> list[Slot]:
        return [
            Slot(
                name=f"layers.{stage}.blocks.{index}.attn",
                role="local",
                stage=stage,
                dim=block.dim,
                num_heads=block.attn.num_heads,
                stride=net.feature_info[stage]["reduction"],
                shifted=any(block.target_shift_size),
            )
            for stage, layer in enumerate(net.layers)
            for index, block in enumerate(layer.blocks)
        ]

    def native_weights(self, net: nn.Module, slot: Slot) -> dict[str, Tensor | None]:
        attn = net.get_submodule(slot.name)
        return linear_weights(attn.qkv, attn.proj)

    def install(self, net: nn.Module, slot: Slot, attention: Attention) -> str:
        return replace_attention(net, slot, attention, MapSwinBlock)
