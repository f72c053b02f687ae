"""metrics.csv: one row per logged step, columns in alphabetical order after epoch and step.

Everything a row says about the clock is in columns named time/..., so that two runs with one seed write equal files
but for those.
"""

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only


class CSVMetrics(Logger):
    """Writes SAVE_DIR/metrics.csv as the run goes; metrics logged at one step share a row.

    A file that is there already, of a run resumed in the same directory, is continued: its rows from the first
    logged step on are replaced.
    """

    def __init__(self, *, save_dir: str):
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self.columns: list[str] = []
        self._open_step: int | None = None  # step of the last row, which may still grow
        self._open_row: dict[str, Any] = {}
        self._open_at = 0  # its offset in the file

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any) -> None:
        """The config lies beside metrics.csv in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        step = int(step or 0)
        if self._open_step is None:
            self.start(step)
        row = {key: int(value) if key == "epoch" else float(value) for key, value in metrics.items()}
        if step == self._open_step:
            row = self._open_row | row
        else:
            self._open_at = self.path.stat().st_size if self.path.is_file() else 0
        self._open_step, self._open_row = step, row | {"step": step}
        if new := set(self._open_row) - set(self.columns):
            self.widen(new)
        with self.path.open("r+", newline="") as file:
            file.seek(self._open_at)
            file.truncate()
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(self._open_row)

    def start(self, step: int) -> None:
        """Creates the file, or drops what a resumed run is about to write again."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = []
        if self.path.is_file():
            with self.path.open(newline="") as file:
                reader = csv.DictReader(file)
                rows = [row for row in reader if int(row["step"]) < step]
                self.columns = list(reader.fieldnames or [])
        self.write_all(rows)

    def widen(self, new: set[str]) -> None:
        """Rewrites the file with more columns; the open row is written again by the caller."""
        with self.path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) != self._open_step]
        self.columns = ["epoch", "step", *sorted({*self.columns, *new} - {"epoch", "step"})]
        self.write_all(rows)
        self._open_at = self.path.stat().st_size

    def write_all(self, rows: list[dict[str, Any]]) -> None:
        with self.path.open("w", newline="") as file:
            if self.columns:
                writer = csv.DictWriter(file, self.columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
