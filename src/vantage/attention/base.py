"""What every attention is: a token mixer over a feature map, with the facts a backbone needs to place it."""

import functools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vantage.position.base import Position

ROLES = ("local", "global", "full")

log = logging.getLogger(__name__)


class Attention(nn.Module):
    """Maps (B, H, W, C) to (B, H, W, C) for any H, W >= 1.

    Subclasses say what they are: `role_support` (slots they may fill), `needs_grid` (whether H and W matter or any
    token set will do), `supports_position` (hooks of a position they can call), `cost` (a one-line formula),
    `learns_in_forward` (whether a training pass moves its buffers, so that it must not be computed twice) and
    `own_start` (parameters whose first values are part of the mechanism: a swap replaces them by trained weights only).
    `flops(height, width)` is closed form, multiply-adds counted twice, for one image. `attention_map(x)` returns
    (B, heads, N, N), rows summing to one unless a position weighs them, or raises saying why the mechanism has none.
    A mechanism with a loss of its own offers `auxiliary_loss()`: that of the last training pass, already weighted, or
    None; the task adds it. It is handed over once, and nothing of it outlives the step.
    """

    role_support: tuple[str, ...] = ROLES
    needs_grid: bool = True
    supports_position: tuple[str, ...] = ()
    cost: str = ""
    learns_in_forward: bool = False
    own_start: tuple[str, ...] = ()

    def __init__(self, dim: int, num_heads: int, *, position: Position | None = None):
        super().__init__()
        if num_heads < 1 or dim < 1 or dim % num_heads:
            raise ValueError(f"{self.label()}: dim {dim} is not a multiple of num_heads {num_heads}")
        refuse_position(type(self), type(position) if position is not None else None)
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.position = position

    @classmethod
    def label(cls) -> str:
        """The name a user types: the module's stem, e.g. `neighborhood`."""
        return cls.__module__.rsplit(".", 1)[-1]

    def refuse_attn_drop(self, attn_drop: float) -> None:
        """Raises ValueError unless it is 0: for mechanisms without weights that could be dropped."""
        if attn_drop:
            raise ValueError(f"{self.label()}: attn_drop {attn_drop} has no attention matrix to drop from; use 0")

    def attention_map(self, x: Tensor) -> Tensor:
        raise ValueError(f"{self.label()}: this mechanism has no (N, N) attention map")

    def flops(self, height: int, width: int) -> int:
        raise TypeError(f"{self.label()}: flops(height, width) is not defined by {type(self).__name__}")


def refuse_position(attention: type[Attention], position: type[Position] | None) -> None:
    """Raises ValueError if the attention cannot take this kind of position; needs the classes only, no instance."""
    if position is None or position.hook in attention.supports_position:
        return
    taken = ", ".join(attention.supports_position)
    raise ValueError(
        f"attention={attention.label()} cannot take position={position.__module__.rsplit('.', 1)[-1]}, whose hook is "
        f"'{position.hook}'; "
        + (f"it takes positions with hook {taken}" if taken else "it takes none: use position=none")
    )


@functools.lru_cache
def log_once(message: str) -> None:
    log.info(message)


def note(message: str) -> None:
    """Logs a message once per process; says nothing while a graph is traced, where logging would break it."""
    if not torch.compiler.is_compiling():
        log_once(message)


def pair(value: int | Sequence[int], name: str, minimum: int = 1) -> tuple[int, int]:
    """(y, x) from one integer or two; `name` is 'attention.keyword' in the error."""
    values = (value, value) if isinstance(value, int) else value
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 2:
        raise ValueError(f"{name}={value!r}; use an integer or two of them (y, x)")
    if any(isinstance(item, bool) or not isinstance(item, int) or item < minimum for item in values):
        raise ValueError(f"{name}={value!r}; use integers of at least {minimum}")
    return values[0], values[1]


def check_odd(value: int, name: str, usual: int) -> None:
    """Raises ValueError unless it is a size that has a centre; `name` is 'attention.keyword', `usual` the paper's."""
    if not isinstance(value, int) or value < 1 or value % 2 == 0:
        raise ValueError(f"{name}={value!r} is not odd and positive; the paper uses {usual}")
