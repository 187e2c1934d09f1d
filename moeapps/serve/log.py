"""The log of the server and its worker: to standard error, and bounded, since clients can cause most of its lines."""

import logging
import time

__all__ = ["Bounded", "log_to_stderr"]


class Bounded(logging.Filter):
    """Lets a number of messages of one kind through per minute; the next one says how many were left out.

    Parameters
    ----------
    count : int, default 20
        Messages per kind and minute. A kind is a line of the source that logs.
    length : int, default 20000
        Characters of a message; what is longer is cut.
    """

    def __init__(self, count: int = 20, length: int = 20_000) -> None:
        super().__init__()
        self.count, self.length = count, length
        self._kinds: dict[tuple[str, int], list[float]] = {}  # start of the minute, let through, left out

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message is written."""
        now = time.monotonic()
        state = self._kinds.setdefault((record.pathname, record.lineno), [now, 0, 0])
        if now - state[0] >= 60:
            if state[2]:
                record.msg = f"({state[2]:.0f} like this were left out) {record.msg}"
            state[:] = now, 0, 0
        state[1] += 1
        if state[1] > self.count:
            state[2] += 1
            return False
        message = record.getMessage()
        if len(message) > self.length:
            record.msg, record.args = f"{message[: self.length]}...", ()
        return True


def log_to_stderr(name: str = "") -> None:
    """Send warnings and errors of the server and of what it is built on to standard error, bounded.

    Parameters
    ----------
    name : str, default=""
        Which of several servers this is; it stands in every line.
    """
    handler = logging.StreamHandler()
    handler.addFilter(Bounded())
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)s %(name)s: {name + ': ' if name else ''}%(message)s")
    )
    for source in ("moeapps.serve", "uvicorn", "asyncio"):
        logger = logging.getLogger(source)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.WARNING)
