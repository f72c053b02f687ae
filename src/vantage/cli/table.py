"""The last lines a command prints: a table of its final metrics and the directory that holds everything else."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

SPLITS = ("train", "val", "test")


def print_metrics(metrics: Mapping[str, float], run_dir: Path | str, *, console: Console | None = None) -> None:
    """Prints one row per metric with a column per split, what belongs to no split below, and the run directory."""
    console = console or Console()
    console.print(metrics_table(metrics))
    for name, value in metrics.items():
        if name.partition("/")[0] not in SPLITS:
            console.print(f"{name} {show_number(value)}", highlight=False, soft_wrap=True)
    print_run_dir(run_dir, console=console)


def print_run_dir(run_dir: Path | str, *, console: Console | None = None) -> None:
    (console or Console()).print(Text(f"run directory: {run_dir}"), soft_wrap=True)


def metrics_table(metrics: Mapping[str, float]) -> Table:
    splits = [split for split in SPLITS if any(name.startswith(f"{split}/") for name in metrics)]
    names = list(dict.fromkeys(name.partition("/")[2] for name in metrics if name.partition("/")[0] in SPLITS))
    table = Table("metric", title="Final metrics", title_justify="left")
    for split in splits:
        table.add_column(split, justify="right")
    for name in names:
        values = (metrics.get(f"{split}/{name}") for split in splits)
        table.add_row(name, *("" if value is None else show_number(value) for value in values))
    return table


def show_number(value: float) -> str:
    """Four decimals for a fraction or a loss, fewer for what is large; metrics.json keeps every digit."""
    return str(value) if isinstance(value, int) else f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"
