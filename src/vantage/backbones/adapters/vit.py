"""Plain ViT, with or without class and register tokens: every block is a `full` slot over the one map.

The blocks of timm see tokens and never the height and width of the map, so a swapped model runs its blocks here. It
has no class token: a mixer over the map has no place for it, so the head averages the patches instead. Register
tokens bypass the mixer: in a swapped block they pass its MLP only.
"""

import logging

import torch
from timm.layers import Attention as TokenAttention
from timm.models import vision_transformer
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from vantage.attention.base import Attention
from vantage.backbones.adapters.base import Adapter, replace_attention
from vantage.backbones.slots import Slot, linear_weights

log = logging.getLogger(__name__)


def mix_patches(attn: Attention, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Applies the mixer to the map that follows the prefix in x (B, prefix + H * W, C); the prefix gets zeros."""
    height, width = size
    prefix = x.shape[1] - height * width
    out = attn(x[:, prefix:].unflatten(1, size)).flatten(1, 2)
    return torch.cat([out.new_zeros(x.shape[0], prefix, x.shape[2]), out], dim=1) if prefix else out


class MapBlock(vision_transformer.Block):
    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.drop_path1(self.ls1(mix_patches(self.attn, self.norm1(x), size)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class MapResPostBlock(vision_transformer.ResPostBlock):
    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        prefix = x.shape[1] - size[0] * size[1]
        branch = self.norm1(mix_patches(self.attn, x, size)[:, prefix:])
        branch = torch.cat([branch.new_zeros(x.shape[0], prefix, x.shape[2]), branch], dim=1) if prefix else branch
        x = x + self.drop_path1(branch)
        return x + self.drop_path2(self.norm2(self.mlp(x)))


class MapViT(vision_transformer.VisionTransformer):
    """timm's ViT whose blocks are told the size of the map."""

    def forward_features(self, x: Tensor) -> Tensor:
        size = self.patch_embed.dynamic_feat_size(x.shape[-2:])
        x = self.norm_pre(self._pos_embed(self.patch_embed(x)))
        for block in self.blocks:
            arguments = (x, size) if isinstance(block, MapBlock | MapResPostBlock) else (x,)
            x = checkpoint(block, *arguments) if self.grad_checkpointing else block(*arguments)
        return self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


BLOCKS = {vision_transformer.Block: MapBlock, vision_transformer.ResPostBlock: MapResPostBlock}


class ViT(Adapter):
    family = "vit"
    modules = ("vision_transformer", "deit")

    def refuse(self, variant: str) -> str | None:
        return "its distillation token needs a second head" if "distilled" in variant else None

    def arguments(self, variant: str, img_size: tuple[int, int] | None) -> dict[str, object]:
        arguments: dict[str, object] = {"dynamic_img_size": True, "dynamic_img_pad": True}
        if img_size is not None:
            arguments["img_size"] = img_size
        return arguments

    def slots(self, net: nn.Module) -> list[Slot]:
        return [
            Slot(
                name=f"blocks.{index}.attn",
                role="full",
                stage=0,
                dim=net.embed_dim,
                num_heads=block.attn.num_heads,
                stride=net.patch_embed.feat_ratio(),
            )
            for index, block in enumerate(net.blocks)
            if type(block) in BLOCKS
        ]

    def native_weights(self, net: nn.Module, slot: Slot) -> dict[str, Tensor | None]:
        attn = net.get_submodule(slot.name)
        return linear_weights(attn.qkv, attn.proj) if type(attn) is TokenAttention else {}

    def install(self, net: nn.Module, slot: Slot, attention: Attention) -> str:
        block = net.get_submodule(slot.name.rpartition(".")[0])
        return replace_attention(net, slot, attention, BLOCKS[type(block)])

    def after_swap(self, net: nn.Module) -> None:
        net.__class__ = MapViT
        if not net.has_class_token:
            return
        if net.pos_embed is not None and not net.no_embed_class:
            net.pos_embed = nn.Parameter(net.pos_embed.detach()[:, 1:].clone())
        net.cls_token = None
        net.has_class_token = False
        net.num_prefix_tokens -= 1
        if net.global_pool == "token":
            net.global_pool = "avg"
        log.info("swapped ViT: the class token is dropped, the head averages the patch tokens")

    def maps(self, net: nn.Module) -> list[tuple[int, int]]:
        return [(net.embed_dim, net.patch_embed.feat_ratio())]

    def features(self, net: nn.Module, x: Tensor) -> list[Tensor]:
        size = net.patch_embed.dynamic_feat_size(x.shape[-2:])
        # the final norm is one of `norm` and `fc_norm`, the other does nothing; timm's head pools before `fc_norm`
        tokens = net.fc_norm(net.forward_features(x)[:, net.num_prefix_tokens :])
        return [tokens.unflatten(1, size).permute(0, 3, 1, 2)]

    def head(self, net: nn.Module) -> list[nn.Module]:
        return [net.head] if net.attn_pool is None else [net.attn_pool, net.head]
