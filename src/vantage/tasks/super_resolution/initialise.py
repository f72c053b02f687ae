"""Starting from the weights of another scale: x3 and x4 from x2, as the field does."""

import logging
from pathlib import Path

import torch
from torch import nn

log = logging.getLogger(__name__)


@torch.no_grad()
def initialise(network: nn.Module, checkpoint: str | Path) -> None:
    """Copies every tensor that the task of a checkpoint has under the same name and in the same shape.

    network: the task, whose other tensors stay as they are, which is said. Raises: ValueError, FileNotFoundError
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"task.init_from={checkpoint} is not a file; give a .ckpt of train.py")
    stored = torch.load(path, map_location="cpu", weights_only=True).get("state_dict")
    if not stored:
        raise ValueError(f"task.init_from={checkpoint} holds no state_dict; give a .ckpt of train.py")
    own = network.state_dict()
    fitting = {name: value for name, value in stored.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise ValueError(
            f"task.init_from={checkpoint} has no tensor of this network: it begins with {next(iter(stored))} and the "
            f"network with {next(iter(own))}; use the same model and attention"
        )
    network.load_state_dict(fitting, strict=False)
    fresh = [name for name in own if name not in fitting]
    log.info(
        "task.init_from: %d of %d tensors from %s; %d stay as they were (%s)",
        len(fitting),
        len(own),
        path,
        len(fresh),
        ", ".join(fresh[:4]) + (", ..." if len(fresh) > 4 else ""),
    )
