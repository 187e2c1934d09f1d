"""What processes do in tests of their restarts; it imports nothing, so that they start at once."""

import signal
import time


def wait(number, pipe):
    """Be ready, and go on until the end."""
    pipe.send({"ready": {"number": number}})
    time.sleep(60)


def fail(number, pipe):
    """Tell why not."""
    pipe.send({"failed": f"number {number} is not ready"})


def reload(number, pipe):
    """Tell of every SIGHUP; the first process says that a client has had it load the file anew."""
    signal.signal(signal.SIGHUP, lambda *_: pipe.send({"failed": "asked to reload"}))
    pipe.send({"ready": {"number": number}})
    if number == 0:
        pipe.send({"reloaded": "model"})
    time.sleep(60)
