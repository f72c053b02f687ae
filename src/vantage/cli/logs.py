"""Python logging of a run: everything goes to run.log, what matters to the console."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
LIGHTNING = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")


class ConsoleHandler(logging.Handler):
    """Prints through Rich's shared console, so that lines appear above a progress bar instead of inside it."""

    def emit(self, record: logging.LogRecord) -> None:
        from rich import get_console
        from rich.text import Text

        try:
            prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
            get_console().print(Text(prefix + record.getMessage()), soft_wrap=True)
        except Exception:
            self.handleError(record)


def important(record: logging.LogRecord) -> bool:
    """Ours from INFO on; of other packages only warnings, and Python warnings stay in the file."""
    if record.name.split(".")[0] == "vantage":
        return record.levelno >= logging.INFO
    return record.levelno >= logging.WARNING and record.name != "py.warnings"


@contextmanager
def run_log(run_dir: Path, rank: int) -> Iterator[logging.Handler]:
    """Sends logging to run.log (run.rank1.log for another process of a distributed run) and to the console."""
    to_file = logging.FileHandler(run_dir / ("run.log" if rank == 0 else f"run.rank{rank}.log"))
    to_file.setFormatter(logging.Formatter(FORMAT))
    handlers: list[logging.Handler] = [to_file]
    if rank == 0:
        console = ConsoleHandler()
        console.addFilter(important)
        handlers.append(console)
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    root.setLevel(logging.INFO)
    root.handlers[:] = handlers
    for name in LIGHTNING:  # imported before, they hold a handler to stderr of their own
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.captureWarnings(True)
    try:
        yield to_file
    finally:
        logging.captureWarnings(False)
        root.setLevel(before[0])
        root.handlers[:] = before[1]
        to_file.close()
