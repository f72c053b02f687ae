"""Lets a network see a panorama as the cylinder it is: what lies left of the first column is the last one.

Layers that pad keep their parameters, the shape of their output and the padding of their rows, and take columns from
the other edge where they took zeros:

    wrapped(x) = layer(... x x x ...)      the layer on the periodic picture, which has no left and right end

Rolling the input by a multiple of the layer's stride s then rolls the output, exactly, where s divides the width W and
the layer gives W / s columns (a transposed one W s). Other widths, and layers that pad so little that the map shrinks,
are computed as well, but what they give is no whole number of columns around the circle.
"""

import torch
from timm.layers import AvgPool2dSame, BlurPool2d, Conv2dSame
from timm.layers import to_2tuple as pair
from timm.layers.padding import pad_same_arg
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from vantage.attention.base import Attention


def wrap(module: nn.Module) -> list[str]:
    """Makes the layers in `module` treat the horizontal axis as a circle, in place; done again it changes nothing.

    Convolutions, transposed ones and pools, torch's and timm's "same" ones, and timm's blur change their class.
    A module with a boolean attribute `wraps` (Resize, operators of our own) gets it set to True and sees to itself; the
    layers below it are wrapped like all others. An attention stays as it is, with all that is below it.

    Right only where a forward pass sees the whole circle: a network that is given narrower tiles must not be wrapped.
    To be called before compiling: a compiled graph is not traced anew for it.

    Returns the names of layers that go on seeing the edges, for they pad and are of none of these kinds.
    """
    sees_to_itself = isinstance(getattr(module, "wraps", None), bool)
    if sees_to_itself:
        module.wraps = True
    if isinstance(module, Attention):
        return []
    left = []
    if type(module) in WRAPPED and can_wrap(module):
        if needs_columns(module):
            module.__class__ = WRAPPED[type(module)]
    elif not sees_to_itself and sees_edges(module):
        left.append("")
    for name, child in module.named_children():
        left += [f"{name}.{below}" if below else name for below in wrap(child)]
    return left


def pad_columns(x: Tensor, left: int, right: int) -> Tensor:
    """x (..., W) -> (..., left + W + right), periodic; any number of times around.

    Not F.pad(mode="circular"), which refuses more than one turn and gives up the channels-last layout.
    """
    width = x.shape[-1]
    if max(left, right) > width:
        return x.index_select(-1, torch.arange(-left, width + right, device=x.device) % width)
    return torch.cat([x[..., width - left :], x, x[..., :right]], -1) if left or right else x


class WrappedConv2d(nn.Conv2d):
    def pads(self, x: Tensor) -> tuple[int, int, int, int]:
        """Left, right, top, bottom."""
        if isinstance(self.padding, str):  # "same": the larger half of an odd number comes last
            rows, columns = (
                (size - 1) * step if self.padding == "same" else 0
                for size, step in zip(self.kernel_size, self.dilation)
            )
            return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2
        return self.padding[1], self.padding[1], self.padding[0], self.padding[0]

    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = self.pads(x)
        x = pad_columns(x, left, right)
        if self.padding_mode != "zeros":
            x, top = F.pad(x, (0, 0, top, bottom), mode=self.padding_mode), 0
        elif top != bottom:
            x, top = F.pad(x, (0, 0, top, bottom)), 0
        return F.conv2d(x, self.weight, self.bias, self.stride, (top, 0), self.dilation, self.groups)


class WrappedConv2dSame(Conv2dSame):
    def pads(self, x: Tensor) -> tuple[int, int, int, int]:
        return pads_same(self, x, self.dilation)

    forward = WrappedConv2d.forward


class WrappedMaxPool2d(nn.MaxPool2d):
    def forward(self, x: Tensor) -> Tensor:
        top, side = pair(self.padding)
        padded = pad_columns(x, side, side)
        out = F.max_pool2d(padded, self.kernel_size, self.stride, (top, 0), self.dilation, self.ceil_mode)
        return without_last(out, self, x)


class WrappedMaxPool2dSame(MaxPool2dSame):
    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = pads_same(self, x, self.dilation)
        x = F.pad(pad_columns(x, left, right), (0, 0, top, bottom), value=-float("inf"))
        return F.max_pool2d(x, self.kernel_size, self.stride, 0, self.dilation, self.ceil_mode)


class WrappedAvgPool2d(nn.AvgPool2d):
    def forward(self, x: Tensor) -> Tensor:
        top, side = pair(self.padding)
        padded = pad_columns(x, side, side)
        out = F.avg_pool2d(
            padded,
            self.kernel_size,
            self.stride,
            (top, 0),
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )
        return without_last(out, self, x)


class WrappedAvgPool2dSame(AvgPool2dSame):
    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = pads_same(self, x, (1, 1))
        x = F.pad(pad_columns(x, left, right), (0, 0, top, bottom))
        return F.avg_pool2d(x, self.kernel_size, self.stride, 0, self.ceil_mode, self.count_include_pad)


class WrappedBlurPool2d(BlurPool2d):
    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = self.padding
        x = F.pad(pad_columns(x, left, right), (0, 0, top, bottom), mode=self.pad_mode)
        return F.conv2d(x, self.filt.expand(x.shape[1], -1, -1, -1), stride=self.stride, groups=x.shape[1])


class WrappedConvTranspose2d(nn.ConvTranspose2d):
    def reach(self, output_padding: int) -> tuple[int, int]:
        """How many columns left of the first and right of the last one the output depends on.

        Column i of the input reaches columns i s - p .. i s - p + d (k - 1) of the output.
        """
        beyond = self.dilation[1] * (self.kernel_size[1] - 1) - self.padding[1]
        return max(0, beyond // self.stride[1]), max(0, (beyond + output_padding) // self.stride[1])

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        output_padding = self._output_padding(
            x, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation
        )
        left, right = self.reach(output_padding[1])
        # to the output each column before the first adds a stride of columns, which are cut off again
        start = left * self.stride[1]
        padded = pad_columns(x, left, right)
        out = F.conv_transpose2d(
            padded, self.weight, self.bias, self.stride, self.padding, output_padding, self.groups, self.dilation
        )
        width = out.shape[-1] - (left + right) * self.stride[1]
        return out[..., start : start + width]


WRAPPED = {
    nn.Conv2d: WrappedConv2d,
    Conv2dSame: WrappedConv2dSame,
    nn.MaxPool2d: WrappedMaxPool2d,
    MaxPool2dSame: WrappedMaxPool2dSame,
    nn.AvgPool2d: WrappedAvgPool2d,
    AvgPool2dSame: WrappedAvgPool2dSame,
    BlurPool2d: WrappedBlurPool2d,
    nn.ConvTranspose2d: WrappedConvTranspose2d,
}


def pads_same(layer: nn.Module, x: Tensor, dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    return tuple(pad_same_arg(x.shape[-2:], pair(layer.kernel_size), pair(layer.stride), dilation))


def without_last(out: Tensor, pool: nn.Module, x: Tensor) -> Tensor:
    """Without the window that begins in the padding on the right, which a pool with ceil_mode leaves out."""
    return out[..., : -(-(x.shape[-1] + pair(pool.padding)[1]) // pair(pool.stride)[1])]


def can_wrap(layer: nn.Module) -> bool:
    return not getattr(layer, "return_indices", False)  # they would be places in the padded map


def needs_columns(layer: nn.Module) -> bool:
    """Whether one of the classes in WRAPPED ever looks beyond an edge."""
    if isinstance(layer, nn.ConvTranspose2d):
        return max(WrappedConvTranspose2d.reach(layer, layer.stride[1] - 1)) > 0  # whatever output_size is asked for
    if isinstance(layer, Conv2dSame | MaxPool2dSame | AvgPool2dSame):
        return pair(layer.kernel_size)[1] > 1
    return column_padding(layer) > 0


def sees_edges(layer: nn.Module) -> bool:
    """Whether a layer of another class does, as far as its attributes tell."""
    if isinstance(layer, tuple(WRAPPED.values())):
        return False
    if isinstance(layer, nn.Upsample):
        return layer.mode != "nearest"
    return column_padding(layer) > 0


def column_padding(layer: nn.Module) -> int:
    """`padding` as layers over (B, C, H, W) have it: a number, (rows, columns), (left, right, top, bottom), a word."""
    padding = getattr(layer, "padding", 0)
    if padding == "same":
        return pair(layer.kernel_size)[1] - 1
    if isinstance(padding, int):
        return padding
    if isinstance(padding, tuple | list) and len(padding) in (2, 4):
        return padding[1] if len(padding) == 2 else max(padding[:2])
    return 0
