"""Twins: SVT alternates windows (LSA, `local`) and sub-sampled attention (GSA, `global`); PCPVT has GSA only (`full`).

timm's patch embeddings drop the rows and columns that the patch does not divide, although they assert at construction
that there are none; here they are padded instead. timm has no gradient checkpointing for Twins; it is added.
"""

import torch
import torch.nn.functional as F
from timm.models import twins
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from vantage.attention.base import Attention
from vantage.backbones.adapters.base import Adapter, replace_attention
from vantage.backbones.slots import Slot, linear_weights, split_weights


class PaddedPatchEmbed(twins.PatchEmbed):
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        pad_h, pad_w = -x.shape[2] % self.patch_size[0], -x.shape[3] % self.patch_size[1]
        return super().forward(F.pad(x, (0, pad_w, 0, pad_h)) if pad_h or pad_w else x)


class NativeTwinsBlock(twins.Block):
    grad_checkpointing = False

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(self.compute, x, size)
        return self.compute(x, size)

    def compute(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return super().forward(x, size)


class MapTwinsBlock(NativeTwinsBlock):
    def compute(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x).unflatten(1, size)).flatten(1, 2))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class Twins(Adapter):
    family = "twins"
    modules = ("twins",)

    def open_sizes(self, net: nn.Module) -> None:
        for module in net.modules():
            if type(module) is twins.PatchEmbed:
                module.__class__ = PaddedPatchEmbed
            elif type(module) is twins.Block:
                module.__class__ = NativeTwinsBlock

    def slots(self, net: nn.Module) -> list[Slot]:
        blocks = [
            (stage, index, block.attn) for stage, blocks in enumerate(net.blocks) for index, block in enumerate(blocks)
        ]
        has_windows = any(isinstance(attn, twins.LocallyGroupedAttn) for _, _, attn in blocks)
        sub_sampled = "global" if has_windows else "full"
        return [
            Slot(
                name=f"blocks.{stage}.{index}.attn",
                role="local" if isinstance(attn, twins.LocallyGroupedAttn) else sub_sampled,
                stage=stage,
                dim=attn.dim,
                num_heads=attn.num_heads,
                stride=net.feature_info[stage]["reduction"],
            )
            for stage, index, attn in blocks
        ]

    def native_weights(self, net: nn.Module, slot: Slot) -> dict[str, Tensor | None]:
        attn = net.get_submodule(slot.name)
        if isinstance(attn, twins.LocallyGroupedAttn):
            return linear_weights(attn.qkv, attn.proj)
        return split_weights(attn.q, attn.kv, attn.proj)

    def install(self, net: nn.Module, slot: Slot, attention: Attention) -> str:
        return replace_attention(net, slot, attention, MapTwinsBlock)

    def checkpoint(self, net: nn.Module) -> None:
        for module in net.modules():
            if isinstance(module, NativeTwinsBlock):
                module.grad_checkpointing = True
