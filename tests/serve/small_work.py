"""What processes do in tests of their restarts; it imports nothing, so that they start at once."""

import time


def wait(number, pipe):
    """Be ready, and go on until the end."""
    pipe.send({"ready": {"number": number}})
    time.sleep(60)


def fail(number, pipe):
    """Tell why not."""
    pipe.send({"failed": f"number {number} is not ready"})
