"""PEM: queries become masks with classes; each layer reads one prototype pixel per query and head.

Paper: PEM: Prototype-based Efficient MaskFormer for Image Segmentation (Cavagnero et al., 2024), arXiv:2402.19422
    features, memory = pixel decoder(maps),  q_0 learned,  q_{i+1} = layer_i(q_i, memory_{i mod levels}, mask of q_i)
    class(q) = linear(LN(q)) over K classes and "no object",  mask(q) = MLP(LN(q)) . features
    score(class k, pixel) = sum_q softmax(class(q))_k sigmoid(mask(q))
The layers take turns over the memory's levels, coarsest first; a backbone of fewer maps has fewer to take turns over.
Every q_i, q_0 included, is trained with the losses of mask_loss.py. See there, in prototype_attention.py and in
pem_pixel_decoder.py for the parts and what `legacy` changes in them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vantage.tasks.segmentation.decoders.layers import choose_levels
from vantage.tasks.segmentation.decoders.mask_loss import MaskLoss
from vantage.tasks.segmentation.decoders.pem_pixel_decoder import PixelDecoder
from vantage.tasks.segmentation.decoders.prototype_attention import PrototypeLayer, sine_position
from vantage.tasks.segmentation.resize import Resize


class Outputs(NamedTuple):
    """Of the learned queries and after every layer: class logits (B, Q, K + 1), mask logits (B, Q, h, w)."""

    logits: list[Tensor]
    masks: list[Tensor]


class PEM(nn.Module):
    """forward(maps of the backbone) -> Outputs; loss(outputs, masks) and semantic(outputs) use them.

    width            channels of the pixel decoder
    dim              channels of the queries and the mask features, divisible by 4 (sine positions) and by num_heads
    class_weight, mask_weight, dice_weight
                     of the losses, and of the costs that match queries with classes
    no_object_weight of queries without a class in the class loss
    num_points       at which a mask's loss is taken
    finest_stride    of the backbone's maps that are used, unless all are finer
    legacy           the released code's deviations from its equations
    """

    def __init__(
        self,
        channels: Sequence[int],
        backbone_strides: Sequence[int],
        *,
        num_classes: int,
        width: int = 128,
        dim: int = 256,
        num_queries: int = 100,
        num_layers: int = 6,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        finest_stride: int = 4,
        legacy: bool = False,
    ):
        super().__init__()
        if dim % 4 or dim % num_heads:
            raise ValueError(
                f"task.decoder.dim is {dim}, not divisible by 4 and by task.decoder.num_heads={num_heads}; use e.g. "
                f"dim={4 * num_heads * max(1, round(dim / (4 * num_heads)))}"
            )
        if num_layers < 1:
            raise ValueError(f"task.decoder.num_layers is {num_layers}; use at least 1")
        self.dim = dim
        self.levels = choose_levels(backbone_strides, finest_stride)
        # memory that no layer reads would leave parameters without gradient
        num_memory = min(3, num_layers, max(1, len(self.levels) - 1))
        self.pixel_decoder = PixelDecoder(
            [channels[index] for index in self.levels], width=width, mask_dim=dim, num_memory=num_memory, legacy=legacy
        )
        self.memory_proj = nn.ModuleList(nn.Conv2d(width, dim, 1) for _ in range(num_memory))
        self.level_embed = nn.Parameter(torch.randn(num_memory, dim))
        self.query = nn.Parameter(torch.randn(num_queries, dim))
        self.query_position = nn.Parameter(torch.randn(num_queries, dim))
        self.layers = nn.ModuleList(PrototypeLayer(dim, num_heads, ffn_dim, legacy=legacy) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.to_logits = nn.Linear(dim, num_classes + 1)
        self.to_mask = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim)
        )
        self.resize = Resize()
        self.mask_loss = MaskLoss(
            num_classes,
            class_weight=class_weight,
            mask_weight=mask_weight,
            dice_weight=dice_weight,
            no_object_weight=no_object_weight,
            num_points=num_points,
        )
        for proj in self.memory_proj:
            nn.init.kaiming_uniform_(proj.weight, a=1)
            nn.init.zeros_(proj.bias)

    def forward(self, maps: Sequence[Tensor]) -> Outputs:
        features, memory = self.pixel_decoder([maps[index] for index in self.levels])
        memory = [self.placed(one, *parts) for one, *parts in zip(memory, self.memory_proj, self.level_embed)]
        queries, position = (one.expand(len(features), -1, -1) for one in (self.query, self.query_position))
        outputs = Outputs([], [])
        self.predict(queries, features, outputs)
        for index, layer in enumerate(self.layers):
            level = memory[index % len(memory)]
            masked = self.resize(outputs.masks[-1].detach(), level.shape[-2:]).flatten(2) < 0
            queries = layer(queries, position, level, masked)
            self.predict(queries, features, outputs)
        return outputs

    def placed(self, memory: Tensor, proj: nn.Module, level_embed: Tensor) -> Tensor:
        """A level of memory (B, width, H, W) -> (B, dim, H, W) that tells its level and where its pixels lie."""
        placed = proj(memory) + level_embed[:, None, None]
        return placed + sine_position(*memory.shape[-2:], self.dim, memory.device).to(placed.dtype)

    def predict(self, queries: Tensor, features: Tensor, outputs: Outputs) -> None:
        """Appends what the queries (B, Q, dim) say."""
        queries = self.norm(queries)
        outputs.logits.append(self.to_logits(queries))
        outputs.masks.append(torch.einsum("bqd,bdhw->bqhw", self.to_mask(queries), features))

    def loss(self, outputs: Outputs, masks: Tensor) -> dict[str, Tensor]:
        """masks (B, H, W) uint8 -> "class", "mask" and "dice", weighted, each the sum over the outputs."""
        return self.mask_loss(outputs.logits, outputs.masks, masks)

    def semantic(self, outputs: Outputs) -> Tensor:
        """(B, K, h, w) float32 scores >= 0 of the last layer; "no object" has none."""
        logits, masks = outputs.logits[-1], outputs.masks[-1]
        with torch.autocast(masks.device.type, enabled=False):
            probability = logits.float().softmax(-1)[..., :-1]
            return torch.einsum("bqk,bqhw->bkhw", probability, masks.float().sigmoid())
