"""The errors a data set can cause: one sentence each, printed by the command line without a traceback."""

import re


class DataError(ValueError):
    """Something is wrong with the data or with a data option."""

    def __init__(self, message: str) -> None:
        # A loader worker re-raises as "Caught DataError in DataLoader worker process 0.\nOriginal Traceback ...":
        # keep the sentence only.
        if re.match(r"Caught \w+ in (DataLoader worker|pin memory)", message):
            message = message.rstrip().rpartition("DataError: ")[2]
        super().__init__(message)


class DataNotFoundError(DataError, FileNotFoundError):
    """The data set, or a part of it, is not where it is expected."""
