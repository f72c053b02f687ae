"""Pretrained weights come from timm's own loading code; this keeps a machine without network from waiting for it."""

import contextlib
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
from huggingface_hub import constants
from torch import nn


def has_weights(variant: str) -> bool:
    cfg = timm.get_pretrained_cfg(variant, allow_unregistered=True)
    return cfg is not None and cfg.has_weights


def create_pretrained(variant: str, arguments: dict[str, object]) -> nn.Module:
    """`timm.create_model` with weights; ValueError of one sentence if they are neither cached nor reachable."""
    if not has_weights(variant):
        raise ValueError(f"model.variant={variant} has no pretrained weights; use model.pretrained=false")
    try:
        with offline_if_unreachable():
            return timm.create_model(variant, pretrained=True, **arguments)
    except Exception as error:  # the hub, the network and the file system each have exceptions of their own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0].split(". ")[0].rstrip(".")
        cache = os.environ.get("HF_HUB_CACHE", constants.HF_HUB_CACHE)
        raise ValueError(
            f"model.pretrained=true: the weights of {variant} could not be loaded ({reason}); connect to the network "
            f"once, or copy them into {cache}, or use model.pretrained=false"
        ) from error


@contextlib.contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Where the hub has no address, reads its cache at once: it would retry for a minute, also for what is cached."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not hub_has_address()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def hub_has_address() -> bool:
    if getproxies():  # the proxy looks names up
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True
