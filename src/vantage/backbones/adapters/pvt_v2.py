"""PVT v2: every block attends to a spatially reduced copy of the whole map (`full`).

timm's model takes any size >= 32. Its queries are projected apart from its keys and values; a swap joins the three.
"""

from timm.models import pvt_v2
from torch import Tensor, nn

from vantage.attention.base import Attention
from vantage.backbones.adapters.base import Adapter, replace_attention
from vantage.backbones.slots import Slot, split_weights


class MapPVTBlock(pvt_v2.Block):
    def forward(self, x: Tensor, feat_size: tuple[int, int]) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x).unflatten(1, feat_size)).flatten(1, 2))
        return x + self.drop_path2(self.mlp(self.norm2(x), feat_size))


class PVTv2(Adapter):
    family = "pvt_v2"
    modules = ("pvt_v2",)

    def slots(self, net: nn.Module) -> list[Slot]:
        return [
            Slot(
                name=f"stages.{stage}.blocks.{index}.attn",
                role="full",
                stage=stage,
                dim=block.attn.dim,
                num_heads=block.attn.num_heads,
                stride=net.feature_info[stage]["reduction"],
            )
            for stage, module in enumerate(net.stages)
            for index, block in enumerate(module.blocks)
        ]

    def native_weights(self, net: nn.Module, slot: Slot) -> dict[str, Tensor | None]:
        attn = net.get_submodule(slot.name)
        return split_weights(attn.q, attn.kv, attn.proj)

    def install(self, net: nn.Module, slot: Slot, attention: Attention) -> str:
        return replace_attention(net, slot, attention, MapPVTBlock)
