"""What tasks exchange between the processes of a distributed training; a process alone is its own answer."""

from torch import Tensor, distributed


def is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def mean_over_processes(value: Tensor, *, least: float = 1.0) -> Tensor:
    """The mean of a number over the processes of a distributed training, at least `least`: what losses are divided by.

    Gradients are averaged over processes, so this makes them those of one process with all the images.
    """
    value = value.detach().clone()
    if is_distributed():
        distributed.all_reduce(value)
        value /= distributed.get_world_size()
    return value.clamp(min=least)


def gathered(rows: list) -> list:
    """The rows of all processes."""
    if not is_distributed():
        return list(rows)
    parts: list[list] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, rows)
    return [row for part in parts for row in part]
