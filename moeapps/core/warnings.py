"""Notes of our dependencies that a user can do nothing about, and how they are kept quiet."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["silence_warnings", "warnings_silenced"]

_LOGGERS = ("lightning.pytorch", "lightning.fabric")
_IN_TRAINING = (".*does not have many workers.*", ".*LeafSpec.*")
_IN_COMMANDS = (
    *_IN_TRAINING,
    ".*torch.jit.script.*",
    ".*The number of training batches.*",
    ".*max_epochs. was not set.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*The dirpath has changed.*",
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*Checkpoint directory .* exists and is not empty.*",
)


def silence_warnings() -> None:
    """For a process of ours: no such notes from now on."""
    for message in _IN_COMMANDS:
        warnings.filterwarnings("ignore", message=message)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch(\.|$)|lightning(\.|$)")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.formatwarning = _line


def _line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning as a command shows it: without the place in our code, of which a user knows nothing."""
    return f"warning: {' '.join(str(message).split())}\n"


@contextmanager
def warnings_silenced() -> Iterator[None]:
    """While an estimator trains in a process of the user's: Lightning's hints are off, warnings of ours still show."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _IN_TRAINING:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
