"""DaViT: window attention over space (`local`) and attention over channels (`global`, swapped only if asked for).

timm's model takes any size: it pads its windows without masking, which is part of the model and stays.
"""

from timm.models import davit
from torch import Tensor, nn

from vantage.attention.base import Attention
from vantage.backbones.adapters.base import Adapter, replace_attention
from vantage.backbones.slots import Slot, linear_weights


class MapDaViTBlock(nn.Module):
    """The forward of both of timm's blocks, with an attention that takes the map (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.cpe1(x).permute(0, 2, 3, 1)  # (B, H, W, C)
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = self.cpe2(x.permute(0, 3, 1, 2))
        if self.mlp is not None:
            x = x.permute(0, 2, 3, 1)
            x = (x + self.drop_path2(self.mlp(self.norm2(x)))).permute(0, 3, 1, 2)
        return x


class MapSpatialBlock(MapDaViTBlock, davit.SpatialBlock):
    pass


class MapChannelBlock(MapDaViTBlock, davit.ChannelBlock):
    pass


class DaViT(Adapter):
    family = "davit"
    modules = ("davit",)

    def slots(self, net: nn.Module) -> list[Slot]:
        slots = []
        for name, module in net.named_modules():
            is_spatial = isinstance(module, davit.SpatialBlock)
            if is_spatial or isinstance(module, davit.ChannelBlock):
                stage = int(name.split(".")[1])
                channels = net.feature_info[stage]["num_chs"]
                heads = (
                    module.attn.groups if isinstance(module.attn, davit.ChannelAttentionV2) else module.attn.num_heads
                )
                slots.append(
                    Slot(
                        name=f"{name}.attn",
                        role="local" if is_spatial else "global",
                        stage=stage,
                        dim=channels,
                        num_heads=heads,
                        stride=net.feature_info[stage]["reduction"],
                        default=is_spatial,
                    )
                )
        return slots

    def native_weights(self, net: nn.Module, slot: Slot) -> dict[str, Tensor | None]:
        attn = net.get_submodule(slot.name)
        return linear_weights(attn.qkv, attn.proj)

    def install(self, net: nn.Module, slot: Slot, attention: Attention) -> str:
        return replace_attention(net, slot, attention, MapSpatialBlock if slot.role == "local" else MapChannelBlock)
