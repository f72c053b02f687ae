"""ResNet with mixers in the place of its 3x3 convolutions, as BoTNet (arXiv:2101.11605) and HaloNet (2103.12731).

A slot is the second convolution of a block where it keeps the width; by default those of the last stage. Where that
convolution has stride 2 (the first bottleneck of a stage) the map is mixed at full size and then averaged 2x2, as in
BoTNet. A convolution has no heads: the mixer gets heads of 32 channels, or of 16 where 32 does not divide the width.
Nothing of the convolution is re-used.

Plugs stand where stages 2 to 4 have 3x3 convolutions of one group, with whatever stride, that no attention replaced.

timm's models take any size, but the average pooling of the `aa` variants rounds down where the convolutions beside it
round up; here it rounds up.
"""

from functools import partial

from timm.models import resnet
from torch import Tensor, nn

from vantage.attention.base import Attention
from vantage.backbones.adapters.base import Adapter
from vantage.backbones.slots import Slot


class MapConv(nn.Module):
    """(B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)): an attention where a convolution was."""

    def __init__(self, attn: Attention, stride: int):
        super().__init__()
        self.attn = attn
        self.pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.attn(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class ResNet(Adapter):
    family = "resnet"
    modules = ("resnet",)
    takes_plugs = True
    first_map = 1

    def open_sizes(self, net: nn.Module) -> None:
        for module in net.modules():
            if type(module) is nn.AvgPool2d and module.kernel_size == 2:
                module.ceil_mode = True
                module.count_include_pad = False

    def slots(self, net: nn.Module) -> list[Slot]:
        slots = []
        for stage in range(4):
            stride = net.feature_info[stage + 1]["reduction"]
            for index, block in enumerate(getattr(net, f"layer{stage + 1}")):
                conv = block.conv2
                if not isinstance(conv, nn.Conv2d) or conv.in_channels != conv.out_channels:
                    continue
                head_dim = next(width for width in (32, 16, conv.in_channels) if conv.in_channels % width == 0)
                slots.append(
                    Slot(
                        name=f"layer{stage + 1}.{index}.conv2",
                        role="full",
                        stage=stage,
                        dim=conv.in_channels,
                        num_heads=conv.in_channels // head_dim,
                        # an anti-aliased block strides after its convolution: the mixer sees the larger map there too
                        stride=stride // block.stride if isinstance(block, resnet.Bottleneck) else stride,
                        default=stage == 3,
                    )
                )
        return slots

    def install(self, net: nn.Module, slot: Slot, attention: Attention) -> str:
        conv = net.get_submodule(slot.name)
        net.set_submodule(slot.name, MapConv(attention, conv.stride[0]))
        return f"{slot.name}.attn"

    def plug(self, net: nn.Module, plug: partial) -> list[str]:
        places = []
        for stage in (2, 3, 4):
            for index, block in enumerate(getattr(net, f"layer{stage}")):
                for name in ("conv1", "conv2"):
                    conv = getattr(block, name)
                    if type(conv) is nn.Conv2d and conv.kernel_size == (3, 3) and conv.groups == 1:
                        setattr(block, name, plug(conv))
                        places.append(f"layer{stage}.{index}.{name}")
        return places

    def head(self, net: nn.Module) -> list[nn.Module]:
        return [net.fc]
