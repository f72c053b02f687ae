"""Loggers: metrics.csv always, W&B, TensorBoard."""

import os
import sys

# W&B's error reporting looks a name up even when offline; it is read when wandb is imported
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def finish_loggers(failed: bool | None = None) -> None:
    """Closes the W&B run, if one is open; call it in a `finally`, for an open run would be handed to the next one.

    The run is marked failed if `failed`, by default if an exception is on its way.
    """
    wandb = sys.modules.get("wandb")
    if wandb is None or getattr(wandb, "run", None) is None:
        return
    if failed is None:
        failed = sys.exc_info()[0] is not None
    wandb.finish(exit_code=int(failed))
