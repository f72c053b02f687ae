"""Semantic FPN: the stages of a feature pyramid are brought to its finest resolution and summed.

Paper: Panoptic Feature Pyramid Networks (Kirillov et al., 2019), arXiv:1901.02446, section 3.1
    M_i = lateral(C_i) + up(M_{i+1}),  R_i = num_convs times (conv3x3, batch norm, ReLU) of M_i
    S_i = (conv3x3, group norm, ReLU, up) of R_i once per step from level i to the finest; the finest without `up`
    logits = W dropout(sum_i S_i)
Departs from it: num_convs is 1 there (one 3x3 convolution, which serves the detector on the same pyramid, without norm
and ReLU), here 0 as in segmentation_models_pytorch or as many as a small backbone needs; all resizes are bilinear, also
the pyramid's own.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from vantage.tasks.segmentation.decoders.layers import ConvNormAct, choose_levels, classifier, group_norm
from vantage.tasks.segmentation.resize import Resize


class SemanticFPN(nn.Module):
    """forward(maps of the backbone, finest first) -> logits (B, num_classes, h, w) at the finest stride used.

    pyramid_width  channels of the pyramid
    width          channels of the branches that are summed
    num_convs      3x3 convolutions on each level before its branch
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
        num_convs: int = 0,
        dropout: float = 0.1,
        finest_stride: int = 4,
    ):
        super().__init__()
        self.levels = choose_levels(backbone_strides, finest_stride)
        self.laterals = nn.ModuleList(nn.Conv2d(channels[level], pyramid_width, 1) for level in self.levels)
        self.refine = nn.ModuleList(
            nn.Sequential(*(ConvNormAct(pyramid_width, pyramid_width) for _ in range(num_convs))) for _ in self.levels
        )
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
        merged = [refine(one) for refine, one in zip(self.refine, merged)]
        for index, branch in enumerate(self.branches):
            for step, block in enumerate(branch, start=1):
                # by the sizes of the levels between, not by 2: odd maps are not exact halves of each other
                merged[index] = self.resize(block(merged[index]), sizes[max(0, index - step)])
        return self.classifier(sum(merged[1:], merged[0]))
