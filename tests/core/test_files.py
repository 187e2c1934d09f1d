"""The lock that gives a file one writer, and what a write never replaces."""

import os
import signal
import subprocess
import sys
import time

import pytest

from moeapps.core.errors import ConfigError
from moeapps.core.files import atomic_write, locked

HOLDER = """
import sys, time
from moeapps.core.files import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path / "m"."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "m")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_writer_is_refused_with_the_pid_of_the_first_until_that_is_killed(holder, tmp_path):
    refused = pytest.raises(ConfigError, match=rf"m is being written by another process \(process {holder.pid}\)")
    with refused, locked(tmp_path / "m"):
        pass
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="another process"), locked(link / "m"):  # another name of the same file
        pass
    with locked(tmp_path / "other"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "m"):
        pass
    assert list(tmp_path.iterdir()) == []  # no lock files are left


def test_one_process_cannot_hold_a_lock_twice_and_a_forked_child_does_not_keep_it(tmp_path):
    read, write = os.pipe()
    with locked(tmp_path / "sub" / "m"):
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"), locked(tmp_path / "sub" / "m"):
            pass
        child = os.fork()
        if child == 0:
            os.read(read, 1)
            os._exit(0)
    with locked(tmp_path / "sub" / "m"):  # the child lives on
        pass
    os.write(write, b"x")
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)


def test_a_lock_is_waited_for_as_long_as_asked(holder, tmp_path):
    start = time.monotonic()
    with pytest.raises(ConfigError), locked(tmp_path / "m", wait=0.3):
        pass
    assert time.monotonic() - start >= 0.3
    holder.kill()
    with locked(tmp_path / "m", wait=10):
        pass


@pytest.mark.parametrize("kind", ["a pipe", "a link to a device", "a folder"])
def test_what_is_no_file_is_not_replaced_by_one(kind, tmp_path):
    path = tmp_path / "model.safetensors"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    before = path.lstat()
    with (
        pytest.raises(OSError, match=r"could not write .*model\.safetensors: it is a (folder|pipe)"),
        atomic_write(path) as file,
    ):
        file.write(b"x")
    after = path.lstat()
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert [child.name for child in tmp_path.iterdir()] == [path.name]
