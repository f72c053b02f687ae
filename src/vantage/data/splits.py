"""Stratified splits."""

import numpy as np
import torch
from torch import Tensor


def stratified_split(labels: Tensor, fractions: list[float], seed: int) -> list[Tensor]:
    """Disjoint sorted indices: one tensor per fraction, and a last one with the rest.

    Every class is cut in the same proportions (rounded so that the sizes of the parts add up as they should), and
    the rest keeps at least one sample of every class. The same labels, fractions and seed always give the same split.
    """
    generator = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in range(len(fractions) + 1)]
    owed = np.zeros(len(fractions))  # what rounding kept from each part so far; carried to the next class
    for label in labels.unique():
        members = generator.permutation((labels == label).nonzero().flatten().numpy())
        start = 0
        for part, fraction in enumerate(fractions):
            wanted = fraction * len(members) + owed[part]
            taken = max(0, min(round(wanted), len(members) - 1 - start))
            owed[part] = min(wanted - taken, 1.0)
            parts[part].append(members[start : start + taken])
            start += taken
        parts[-1].append(members[start:])
    return [torch.from_numpy(np.sort(np.concatenate(part))) for part in parts]
