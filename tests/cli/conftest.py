import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from .small_project import HERE, make_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the small project, which is also the working directory."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(HERE))
    for name in ("VANTAGE_RUN_DIR", "RANK", "LOCAL_RANK", "SLURM_PROCID", "VANTAGE_DATA", "VANTAGE_LOGS"):
        monkeypatch.setenv(name, "")  # so that it is put back even where the command sets it
        monkeypatch.delenv(name)
    return tmp_path


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def command(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs `train.py` or `eval.py` of the small project in this process, which takes a tenth of a second."""
    import fakes

    from vantage.cli.main import main

    def run(name: str, *arguments: str, runner=fakes.run) -> Outcome:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main(name, project / "configs", runner)
        return Outcome(exit_info.value.code, *capsys.readouterr())

    return run
