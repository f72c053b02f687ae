"""MaxViT and MaxxViT: a block partition (`local`) and a grid partition (`global`) in every block.

The partitions of timm assert that the window divides the map. Here a map that it does not divide is padded, the
padded keys are masked out, and the result is cropped; maps that it divides take timm's own path. The 2x2 pooling of
the convolution shortcut rounds down in timm where the strided convolution beside it rounds up: it rounds up here.
"""

import torch
import torch.nn.functional as F
from timm.models import maxxvit
from torch import Tensor, nn

from vantage.attention.base import Attention
from vantage.backbones.adapters.base import Adapter, replace_attention
from vantage.backbones.slots import Slot, linear_weights


class PaddedPartition(maxxvit.PartitionAttentionCl):
    """timm's partition attention (B, H, W, C) -> (B, H, W, C) at sizes its window does not divide."""

    def _partition_attn(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        pad_h, pad_w = -height % self.partition_size[0], -width % self.partition_size[1]
        if pad_h == 0 and pad_w == 0:
            return super()._partition_attn(x)
        size = [height + pad_h, width + pad_w]
        if self.partition_block:
            partition, reverse = maxxvit.window_partition, maxxvit.window_reverse
        else:
            partition, reverse = maxxvit.grid_partition, maxxvit.grid_reverse
        valid = F.pad(x.new_ones(1, height, width, 1), (0, 0, 0, pad_w, 0, pad_h))
        valid = partition(valid, self.partition_size).flatten(1) > 0  # (windows, N)
        windows = partition(F.pad(x, (0, 0, 0, pad_w, 0, pad_h)), self.partition_size)  # (B * windows, h, w, C)
        return reverse(masked_attention(self.attn, windows, valid), self.partition_size, size)[:, :height, :width]


def masked_attention(attn: maxxvit.AttentionCl, x: Tensor, valid: Tensor) -> Tensor:
    """timm's attention over windows x (B * windows, h, w, C), without the keys that are not valid (windows, N)."""
    windows, tokens = valid.shape
    if attn.head_first:
        qkv = attn.qkv(x).view(-1, windows, tokens, attn.num_heads, 3, attn.dim_head).permute(4, 0, 1, 3, 2, 5)
    else:
        qkv = attn.qkv(x).view(-1, windows, tokens, 3, attn.num_heads, attn.dim_head).permute(3, 0, 1, 4, 2, 5)
    q, k, v = qkv.unbind(0)  # (B, windows, heads, N, head_dim)
    mask = torch.zeros(windows, 1, 1, tokens, dtype=q.dtype, device=q.device)
    mask = mask.masked_fill(~valid[:, None, None], float("-inf"))
    bias = q.new_zeros(1, 1, tokens, 1) if attn.rel_pos is None else attn.rel_pos.get_bias().to(q.dtype)
    mask = mask + bias  # (windows, heads or 1, N, N)
    dropout = attn.attn_drop.p if attn.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return attn.proj_drop(attn.proj(out.transpose(2, 3).reshape(x.shape)))


class MapPartition(maxxvit.PartitionAttentionCl):
    def _partition_attn(self, x: Tensor) -> Tensor:
        return self.attn(x)


class MapPartition2d(maxxvit.PartitionAttention2d):
    def _partition_attn(self, x: Tensor) -> Tensor:
        return self.attn(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MaxViT(Adapter):
    family = "maxvit"
    modules = ("maxxvit",)
    first_map = 1

    def refuse(self, variant: str) -> str | None:
        if "coat" in variant:
            return "CoAtNet's attention changes the size and width of its map, so it has no slot"
        if "_pm" in variant:
            return "its parallel partitions halve the width, so it has no slot"
        return None

    def arguments(self, variant: str, img_size: tuple[int, int] | None) -> dict[str, object]:
        # timm makes the window img_size / 32. That is kept where it gives a window of at least 4; smaller or
        # indivisible images keep the window of the variant, padded and masked, as a window of 1 is no attention.
        if img_size is None or any(side % 32 or side < 128 for side in img_size):
            return {}
        return {"img_size": img_size}

    def open_sizes(self, net: nn.Module) -> None:
        for module in net.modules():
            if type(module) is maxxvit.PartitionAttentionCl:
                module.__class__ = PaddedPartition
            elif isinstance(module, maxxvit.Downsample2d):
                pool = module.pool
                if type(pool) in (nn.AvgPool2d, nn.MaxPool2d) and pool.kernel_size in (2, (2, 2)):
                    pool.ceil_mode = True
                    pool.count_include_pad = False

    def slots(self, net: nn.Module) -> list[Slot]:
        slots = []
        for name, module in net.named_modules():
            if isinstance(module, maxxvit.PartitionAttentionCl | maxxvit.PartitionAttention2d):
                stage = int(name.split(".")[1])
                slots.append(
                    Slot(
                        name=f"{name}.attn",
                        role="local" if module.partition_block else "global",
                        stage=stage,
                        dim=net.feature_info[stage + 1]["num_chs"],
                        num_heads=module.attn.num_heads,
                        stride=net.feature_info[stage + 1]["reduction"],
                    )
                )
        return slots

    def native_weights(self, net: nn.Module, slot: Slot) -> dict[str, Tensor | None]:
        attn = net.get_submodule(slot.name)
        return linear_weights(attn.qkv, attn.proj, heads_first=attn.num_heads if attn.head_first else 0)

    def install(self, net: nn.Module, slot: Slot, attention: Attention) -> str:
        block = net.get_submodule(slot.name.rpartition(".")[0])
        flat = isinstance(block, maxxvit.PartitionAttentionCl)
        return replace_attention(net, slot, attention, MapPartition if flat else MapPartition2d)
