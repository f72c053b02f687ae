"""Cache for index tensors and masks that depend on sizes alone, so that a forward pass does not rebuild them."""

import functools
from collections import OrderedDict
from collections.abc import Callable

import torch

MAX_CACHED = 32  # entries per function, least recently used first out


def cached_constant(build: Callable) -> Callable:
    """Decorates a function of hashable arguments (sizes, torch.device, torch.dtype) that returns tensors.

    Three traps make functools.lru_cache wrong here. Under torch.compile and torch.export the function is traced
    instead, so that the graph holds no foreign tensor. A tensor born in inference mode (Lightning validates before
    it trains) could never be saved for backward, so it is built outside of that mode. A fake tensor (a shape-only
    run) and one wrapped by torch.func.grad must not outlive what made them, so only plain tensors are kept.
    """
    cache: OrderedDict[tuple, object] = OrderedDict()

    @functools.wraps(build)
    def cached(*args):
        if torch.compiler.is_compiling():
            return build(*args)
        if args in cache:
            cache.move_to_end(args)
            return cache[args]
        with torch.inference_mode(False), torch.no_grad():
            made = build(*args)
        tensors = made if isinstance(made, tuple) else (made,)
        if all(tensor is None or is_plain(tensor) for tensor in tensors):
            cache[args] = made
            if len(cache) > MAX_CACHED:
                cache.popitem(last=False)
        return made

    return cached


def is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor) is torch.Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
