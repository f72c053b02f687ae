"""What every positional encoding is: one hook that a softmax-family attention calls."""

from torch import nn

HOOKS = ("rotate", "bias", "logits", "weigh")


class Position(nn.Module):
    """Base of the positional encodings; `hook` says which of the four methods a subclass offers.

    rotate(q, k, coords) -> (q, k)     q, k (..., N, head_dim); coords (N, 2) float (y, x) in pixels of the map
    bias(offsets, extent) -> (heads, ...)   offsets integer (..., 2) = key - query in (y, x); extent (eh, ew) bounds
                                        them: |dy| < eh and |dx| < ew, so that a table can be resized to it
    logits(q, k, offsets) -> (..., heads, N, M)        added to the logits, which must be materialised
    weigh(probabilities, offsets) -> probabilities     after the softmax, which must be materialised

    An attention with a window of its own announces it once, at construction, through `fit(extent)`.
    """

    hook: str = ""

    def __init__(self, head_dim: int, num_heads: int):
        super().__init__()
        if self.hook not in HOOKS:
            raise TypeError(f"{type(self).__name__}.hook is {self.hook!r}; a position offers one of {', '.join(HOOKS)}")
        self.head_dim = head_dim
        self.num_heads = num_heads

    def fit(self, extent: tuple[int, int]) -> None:
        """Told the extent that the attention will ask for, before any training; a table may take its size from it."""
