"""The random generators of a run: seeded anew for each epoch, and stored in checkpoints as plain tensors and numbers.

Two parts make a resumed run draw what the uninterrupted one draws. The state is captured with a checkpoint and
restored before the loaders are built, for samplers that draw from the global generator. And the first batch of an
epoch seeds the generators by (run's seed, epoch, rank), for mixup and dropout: a loader draws from the global
generator when its workers start, once per run if they persist, and that must not shift what follows.
"""

import random

import numpy as np
import torch


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators; each process draws its own numbers."""
    words = np.random.SeedSequence([seed, epoch, rank]).generate_state(2)
    torch.manual_seed(int(words[0]))
    np.random.seed(words[1])  # noqa: NPY002  libraries draw from the global one
    random.seed(int(words[1]))


def capture() -> dict:
    """State of Python's, NumPy's and torch's global generators; loads with weights_only=True."""
    version, internal, gauss_next = random.getstate()
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state()  # noqa: NPY002
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached_gaussian)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(state: dict) -> None:
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, cached_gaussian = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached_gaussian))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
