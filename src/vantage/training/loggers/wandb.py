"""Weights & Biases, offline unless the user is logged in or asks for it."""

import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

MODES = ("auto", "online", "offline", "disabled")


class WandB(WandbLogger):
    """Logs to SAVE_DIR/wandb. `mode` is one of auto, online, offline, disabled.

    auto: what WANDB_MODE says if it is set, else online for a user who is logged in, else offline. Offline needs no
    account and opens no network connection; `wandb sync` uploads such a run later.
    """

    def __init__(
        self,
        *,
        save_dir: str,
        project: str = "vantage",
        mode: str = "auto",
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
    ):
        if mode not in MODES:
            raise ValueError(f"logger.wandb.mode is '{mode}'; use one of {', '.join(MODES)}")
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if is_logged_in() else "offline")
        super().__init__(
            name=name,
            project=project,
            save_dir=save_dir,
            group=group,
            tags=list(tags or []),
            mode=mode,
            reinit="finish_previous",
        )
        self._wandb_init.pop("anonymous")  # Lightning passes it on, wandb warns that it means nothing
        self.mode = mode

    @property
    @rank_zero_experiment
    def experiment(self):
        """The W&B run, begun on first use; a run that something left open is closed first, never continued."""
        if self._experiment is None:
            import wandb

            Path(self.save_dir).mkdir(parents=True, exist_ok=True)  # wandb would fall back to /tmp
            settings = wandb.Settings(console="off", disable_git=True, disable_job_creation=True)
            self._experiment = wandb.init(**self._wandb_init, settings=settings)
            self._experiment.define_metric("trainer/global_step")
            self._experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return self._experiment

    @rank_zero_only
    def log_masks(self, key: str, panels: Sequence[dict], step: int | None = None) -> None:
        """Pictures with a prediction and a ground truth that can be laid over them, class by class.

        panels: name, image (H, W, 3), prediction and ground_truth (H, W), all uint8, and class_labels {value: name},
        with a name for 255. W&B shows pictures of one key in the first one's size, so smaller ones are padded: white,
        and 255 in the masks.
        """
        import wandb

        size = [max(panel["image"].shape[axis] for panel in panels) for axis in (0, 1)]
        images = [
            wandb.Image(
                Image.fromarray(padded(panel["image"], size)),  # of an array it would drop sides of one pixel
                caption=panel["name"],
                masks={
                    name: {"mask_data": padded(panel[name], size), "class_labels": panel["class_labels"]}
                    for name in ("prediction", "ground_truth")
                },
            )
            for panel in panels
        ]
        self.log_metrics({key: images}, step)


def padded(pixels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """uint8 (H, W, ...) -> (*size, ...), 255 below and to the right."""
    whole = np.full((*size, *pixels.shape[2:]), 255, np.uint8)
    whole[: pixels.shape[0], : pixels.shape[1]] = pixels
    return whole


def is_logged_in() -> bool:
    """Whether W&B would find a key: in the environment, or for its host in the netrc file `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    home = Path.home()
    for path in (os.environ.get("NETRC"), home / ".netrc", home / "_netrc"):
        if path and Path(path).is_file():
            try:
                return netrc.netrc(str(path)).authenticators(host) is not None
            except (netrc.NetrcParseError, OSError):
                return False
    return False
