"""Layer attention (LAM): the maps of a network's layers mix by how unlike they are.

Paper: Single Image Super-Resolution via a Holistic Attention Network (Niu et al., 2020), arXiv:2008.08767
    F = the maps of N layers, each flattened to a row of CHW numbers        (N, CHW)
    E = F F^T,  W = softmax over j of (max_k E_ik - E_ij)                   (N, N)
    out = F + gamma W F                                                     gamma starts at 0: the identity
Cost: 4 N^2 CHW per image; (B, N, N) weights in float32. gamma is the only parameter.
The less a layer resembles another, the more it takes from it; this is the release's sign (wwlCape/HAN).

E is a sum over CHW numbers: it grows with the picture, and its softmax is all but one-hot, so that a whole picture is
mixed with other weights than its tiles or the crops of training. `scaled` divides E by CHW. Not by its root, as is done
for products of independent numbers: layers of one trunk correlate, E grows like CHW, and only the mean product E / CHW
is the same whatever the size.
"""

import torch
from torch import Tensor, nn


class LayerAttention(nn.Module):
    def __init__(self, *, scaled: bool = False):
        """scaled: weights from mean products, not from their sums (the release's)."""
        super().__init__()
        self.scaled = scaled
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, C, H, W) -> the same, in the same order."""
        mixed = self.weights(x).to(x.dtype) @ x.flatten(2)  # (B, N, CHW)
        return x + (self.gamma * mixed).to(x.dtype).view_as(x)

    def weights(self, x: Tensor) -> Tensor:
        """x (B, N, C, H, W) -> W (B, N, N), float32 at least: half precision rounds E to steps far above 1."""
        layers = x.flatten(2).to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):
            energies = layers @ layers.mT
            return weigh(energies / layers.shape[-1] if self.scaled else energies)

    def extra_repr(self) -> str:
        return f"scaled={self.scaled}"


def weigh(energies: Tensor) -> Tensor:
    """E (..., N, N) -> W (..., N, N), rows of sum 1; softmax cancels a row's maximum, so that it need not be added."""
    return (-energies).softmax(-1)
