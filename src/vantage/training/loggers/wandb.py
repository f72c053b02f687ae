"""Weights & Biases, offline unless the user is logged in or asks for it."""

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment

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
