"""Softmax attention inside groups of tokens (windows, tiles, rows), with the mask laid out so that it is not repeated.

    out[b, h, g] = softmax(scale * q[b, h, g] k[b, h, g]^T + mask[h, g]) v[b, h, g]

The fused kernels of F.scaled_dot_product_attention take four dimensions and a mask that broadcasts over the first
two. Which of (batch, heads, groups) share a dimension therefore depends on the mask.
"""

import torch.nn.functional as F
from torch import Tensor


def grouped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """q (B, heads, groups, Q, d), k and v (B, heads, groups, K, d), views of any layout -> (B, heads, groups, Q, d).

    mask is added to the logits: (heads or 1, groups or 1, Q, K) of q's dtype, or None. is_causal excludes a mask.
    """
    batch, heads, groups = q.shape[:3]
    options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
    if mask is None or mask.shape[1] == 1:  # one mask for every group: groups join the batch
        q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))  # (B * groups, heads, ., d)
        mask = None if mask is None else mask.transpose(0, 1)
        out = F.scaled_dot_product_attention(q, k, v, mask, **options)
        return out.unflatten(0, (batch, groups)).transpose(1, 2)
    if mask.shape[0] == 1:  # one mask for every head: heads join the batch
        q, k, v = (t.flatten(0, 1) for t in (q, k, v))  # (B * heads, groups, ., d)
        return F.scaled_dot_product_attention(q, k, v, mask, **options).unflatten(0, (batch, heads))
    q, k, v = (t.flatten(1, 2) for t in (q, k, v))  # (B, heads * groups, ., d)
    mask = mask.expand(heads, groups, -1, -1).flatten(0, 1)[None]
    return F.scaled_dot_product_attention(q, k, v, mask, **options).unflatten(1, (heads, groups))
