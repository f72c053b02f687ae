"""SwinIR's own token mixer: window attention with a relative position bias, and the names its release saves it under.

Paper: SwinIR: Image Restoration Using Swin Transformer (Liang et al., 2021), arXiv:2108.10257, after Swin, 2103.14030
    out_w = softmax(Q_w K_w^T / sqrt(d) + B + mask) V_w        B[h, q, k] = table[h, y_k - y_q, x_k - x_q]
What differs from attention=window: the map is a whole number of windows, and an axis with one window is shifted too,
which leaves two halves that do not see each other. The release's networks were trained for maps of many windows and
keep their shift on a small one. Where it adds -100 to keep tokens apart, this adds minus infinity.
Cost: 8 N dim^2 + 4 N window_size^2 dim; a table of heads (2 window_size - 1)^2.
"""

import math

from torch import Tensor, nn

from vantage.attention.window import Window
from vantage.position.rel_bias import RelBias


class SwinIRWindow(Window):
    """(B, H, W, dim) -> the same; `is_shifted` displaces the windows by half of their size."""

    def __init__(self, dim: int, num_heads: int, *, window_size: int, is_shifted: bool):
        shift = window_size // 2 if is_shifted else 0
        position = RelBias(dim // num_heads, num_heads)
        super().__init__(dim, num_heads, window_size=window_size, shift=shift, position=position)
        self.register_load_state_dict_pre_hook(rename_table)

    def layout(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return self.window_size, self.shift


def rename_table(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before loading: the release's table is ((2 w - 1)^2, heads) and counts query - key; its index buffer is derived.

    The side is read off the table, so that a table of another window fails in load_state_dict, which names it.
    """
    state_dict.pop(f"{prefix}relative_position_index", None)
    table = state_dict.pop(f"{prefix}relative_position_bias_table", None)
    if table is not None:
        side = math.isqrt(len(table))
        state_dict[f"{prefix}position.table"] = table.T.unflatten(1, (side, side)).flip(1, 2)
