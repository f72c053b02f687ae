"""Launches a command of the project in this process."""

import sys
from pathlib import Path

import pytest

from vantage.cli import main
from vantage.cli.run_dir import SHARED

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def launch(command: str, *overrides: str) -> dict[str, float] | int:
    """What `python <command>.py <overrides>` does: its numbers, or the exit code of a failure."""
    runner, numbers = main.default_runner(command), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{command}.py", *overrides])
        patch.delenv(SHARED, raising=False)
        with pytest.raises(SystemExit) as end:
            main.main(command, CONFIGS, lambda cfg, directory: numbers.update(runner(cfg, directory)))
    return end.value.code or numbers
