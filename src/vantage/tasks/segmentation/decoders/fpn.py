"""Semantic FPN: the stages of a feature pyramid are brought to its finest resolution and summed.

Paper: Panoptic Feature Pyramid Networks (Kirillov et al., 2019), arXiv:1901.02446, section 3.1
    M_i = lateral(C_i) + up(M_{i+1})
    S_i = (conv3x3, group norm, ReLU, up) once per step from level i to the finest; without `up` on the finest itself
    logits = W dropout(sum_i S_i)
Departs from it: no 3x3 convolution between M_i and S_i, which there serves the detector on the same pyramid; all
resizes are bilinear, also the pyramid's own.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from vantage.tasks.segmentation.decoders.layers import ConvNormAct, choose_levels, classifier, group_norm
from vantage.tasks.segmentation.resize import Resize


class SemanticFPN(nn.Module):
    """forward(maps of the backbone, finest first) -> logits (B, num_classes, h, w) at the finest stride used.

    pyramid_width  channels of the pyramid
    width          channels of the branches that are summed
    finest_stride  maps finer than this are left out, unless all are
    """

    def __init__(
        self,
        channels: Sequence[int],
        backbone_strides: Sequence[int],
        *,
        num_classes: int,
        pyramid_width: int = 256,
        width: int = 128,
        dropout: float = 0.1,
        finest_stride: int = 4,
    ):
        super().__init__()
        self.levels = choose_levels(backbone_strides, finest_stride)
        self.laterals = nn.ModuleList(nn.Conv2d(channels[level], pyramid_width, 1) for level in self.levels)
        self.branches = nn.ModuleList(
            nn.ModuleList(
                ConvNormAct(width if step else pyramid_width, width, norm=group_norm) for step in range(max(1, index))
            )
            for index in range(len(self.levels))
        )
        self.classifier = classifier(width, num_classes, dropout)
        self.resize = Resize()

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        merged = [lateral(maps[level]) for lateral, level in zip(self.laterals, self.levels)]
        sizes = [one.shape[-2:] for one in merged]
        for fine in range(len(merged) - 2, -1, -1):
            merged[fine] = merged[fine] + self.resize(merged[fine + 1], sizes[fine])
        for index, branch in enumerate(self.branches):
            for step, block in enumerate(branch, start=1):
                # by the sizes of the levels between, not by 2: odd maps are not exact halves of each other
                merged[index] = self.resize(block(merged[index]), sizes[max(0, index - step)])
        return self.classifier(sum(merged[1:], merged[0]))
