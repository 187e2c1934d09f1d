"""What an alarm starts: a command or a request to a URL, in the background, within bounds.

One alarm at a time is delivered by a thread. At most 100 wait; further ones are dropped and counted. A delivery has 60
seconds, and one that fails is logged. Nothing of this stops or slows the run.
"""

import logging
import os
import queue
import shlex
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from moeapps.core.errors import ConfigError
from moeapps.core.json_text import json_bytes
from moeapps.stream.alarms import DriftAlarm

__all__ = ["AlarmHook"]

log = logging.getLogger("moeapps.stream")

MOST = 100
"""Alarms that may wait."""

SECONDS = 60.0
"""Seconds that a delivery may take, and that the end of a run waits for those that are not done."""


class AlarmHook:
    """Gives alarms to a command or a URL.

    Parameters
    ----------
    target : str
        A command, which is started without a shell (``sh -c '...'`` for one): it gets the alarm as JSON on standard
        input, and as environment variables ``MOEAPPS_ALARM_NUMBER``, ``..._INSTANCE``, ``..._EVENT``, ``..._TIME``,
        ``..._METRIC``, ``..._BEFORE``, ``..._AFTER``, ``..._RENEWED``. Or an ``http://`` or ``https://`` URL, to which
        the JSON is posted.
    seconds : float, default 60
        Seconds that a delivery may take.

    Attributes
    ----------
    delivered, failed : int
        Alarms that were delivered, and that were not.

    Raises
    ------
    ConfigError
        If the command cannot be found.
    """

    def __init__(self, target: str, seconds: float = SECONDS) -> None:
        self.target, self.seconds = target, seconds
        self.delivered = self.failed = 0
        self._deliver: Callable[[DriftAlarm], None] = self._run
        if target.startswith(("http://", "https://")):
            self._deliver = self._post
        else:
            try:
                self._command = shlex.split(target)
            except ValueError as error:
                raise ConfigError(f"--on-drift {target}: {error}") from None
            if not self._command or shutil.which(self._command[0]) is None:
                name = self._command[0] if self._command else ""
                raise ConfigError(f"--on-drift {target}: there is no command {name!r}")
        self._queue: queue.Queue[DriftAlarm | None] = queue.Queue(MOST)
        self._thread: threading.Thread | None = None

    def __call__(self, alarm: DriftAlarm) -> None:
        """Deliver an alarm soon; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="alarms", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(alarm)
        except queue.Full:
            self.failed += 1
            log.error("--on-drift: alarm %d is dropped, %d wait", alarm.number, MOST)

    def close(self) -> None:
        """Wait for what is not delivered yet, about as long as one delivery may take."""
        if self._thread is None:
            return
        end = time.monotonic() + self.seconds + 1.0
        with suppress(queue.Full):
            self._queue.put(None, timeout=self.seconds)
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            log.error("--on-drift: the run ends with alarms that are not delivered")

    def _work(self) -> None:
        while (alarm := self._queue.get()) is not None:
            try:
                self._deliver(alarm)
                self.delivered += 1
            except Exception as error:
                self.failed += 1
                log.error("--on-drift %s: alarm %d: %s", self.target, alarm.number, _reason(error))

    def _run(self, alarm: DriftAlarm) -> None:
        values = alarm.as_dict()
        names = {f"MOEAPPS_ALARM_{name.upper()}": "" if value is None else str(value) for name, value in values.items()}
        subprocess.run(
            self._command, input=json_bytes(values) + b"\n", env={**os.environ, **names}, check=True,
            timeout=self.seconds, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def _post(self, alarm: DriftAlarm) -> None:
        content = json_bytes(alarm.as_dict())
        request = urllib.request.Request(self.target, content, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=min(self.seconds, 10.0)) as answer:
            answer.read(1)


def _reason(error: Any) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        said = (error.stderr or b"").decode(errors="replace").strip()[-200:]
        return f"exit status {error.returncode}{f': {said}' if said else ''}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"not done after {error.timeout:.0f} s, ended"
    return f"{type(error).__name__}: {error}"
