"""Errors as one sentence: what a user sees when a config is refused or a run cannot go on."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

SHOW_TRACEBACK = "VANTAGE_TRACEBACK"  # set to 1: the console shows the traceback too


class ConfigError(Exception):
    """A config or command line that is refused before anything was opened or built."""


def nearest(name: str, options: Iterable[str], *, what: str = "choices", parent: str = "") -> str:
    """`; did you mean 'softmax'?`, or else the list of options, or nothing if there are none."""
    options = sorted({str(option) for option in options})
    match = get_close_matches(name, options, n=1, cutoff=0.6)
    if match:
        return f"; did you mean '{parent}.{match[0]}'?" if parent else f"; did you mean '{match[0]}'?"
    return f"; {what}: {', '.join(options)}" if options else ""


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def root_cause(error: BaseException) -> BaseException:
    """Hydra's `instantiate` wraps what a constructor raised; the wrapped error is the one to show."""
    from hydra.errors import InstantiationException

    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def as_sentence(error: BaseException) -> str | None:
    """The sentence for an error that speaks to the user; None for one that is a defect and deserves its traceback."""
    error = root_cause(error)
    kind = type(error)
    if kind.__name__ == "OutOfMemoryError":
        return (
            f"out of memory; use a smaller data.batch_size or model.grad_checkpointing=true ({one_line(error)[:120]})"
        )
    ours = kind.__module__.split(".")[0] == "vantage"
    if ours or isinstance(error, (ValueError, FileNotFoundError, PermissionError, NotADirectoryError)):
        text = one_line(error)
        return re.sub(r"^\[Errno \d+\] ", "", text) or kind.__name__
    return None
