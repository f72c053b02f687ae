"""`hydra/launcher: vantage`: the jobs of `-m` as processes of their own.

Hydra's basic launcher runs them in one process, where a crash ends the sweep and W&B hands the next job the old run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class LauncherConfig:
    _target_: str = "hydra_plugins.vantage_launcher.launcher.VantageLauncher"
    jobs: int = 1


ConfigStore.instance().store(group="hydra/launcher", name="vantage", node=LauncherConfig, provider="vantage")


class VantageLauncher(Launcher):
    """Runs up to `jobs` jobs at a time; `vantage.cli.sweep` does the work and keeps the outcome."""

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from vantage.cli import sweep

        self.loader = hydra_context.config_loader
        self.config = config
        sweep.current = sweep.Sweep(Path(config.hydra.sweep.dir), self.jobs)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from vantage.cli import sweep

        sweep.current.launch(job_overrides, initial_job_idx, self.check)
        # Hydra's sweeper raises on a failed job and ends the sweep; the summary reports them instead.
        return [
            JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED, _return_value=None)
            for overrides in job_overrides
        ]

    def check(self, overrides: list[str]) -> None:
        """Composes one job as its own process will, and checks it."""
        from vantage.cli import check, compose

        name = self.config.hydra.job.config_name
        if name == "eval" and compose.names_a_run(overrides):
            config_dir = next(Path(source.path) for source in self.loader.get_sources() if source.provider == "main")
            cfg, sources = compose.compose_from_run(self.loader, config_dir, overrides)
        else:
            cfg, sources = compose.compose(self.loader, name, overrides)
        check.check(cfg, sources, name)
