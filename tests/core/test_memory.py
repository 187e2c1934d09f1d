"""Freed memory is kept, in processes of their own since the setting is the process's."""

import ctypes
import subprocess
import sys

import pytest

# glibc's struct mallinfo2: the fourth number counts blocks of their own mapping, the ninth the free bytes that are kept
KEPT = """
import ctypes, os
import torch
from moeapps.core.memory import keep_freed_memory, return_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(str(i), ctypes.c_size_t) for i in range(10)]

info = ctypes.CDLL(None).mallinfo2
info.restype = Info

def measure(keep, mebibytes):
    size = mebibytes * 2**20
    parameter = torch.empty(size, dtype=torch.uint8)
    if keep:
        keep_freed_memory([parameter])
    before = getattr(info(), "3")
    block = torch.empty(size, dtype=torch.uint8)
    mapped = getattr(info(), "3") - before
    del block
    kept = getattr(info(), "8") >= size
    return_freed_memory()
    before = getattr(info(), "3")
    block = torch.empty(size, dtype=torch.uint8)
    print(keep, mebibytes, mapped, kept, getattr(info(), "3") - before, flush=True)

for keep in (True, False):
    for mebibytes in SIZES:
        child = os.fork()  # from a process that has imported torch and done nothing else
        if child == 0:
            measure(keep, mebibytes)
            os._exit(0)
        os.waitpid(child, 0)
"""
SIZES = [30, 100, 600]


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, str], list[str]]:
    """Blocks that were mapped, whether the freed one was kept, blocks mapped at the end; by setting and size."""
    command = [sys.executable, "-c", KEPT.replace("SIZES", str(SIZES))]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {(keep, size): found for keep, size, *found in map(str.split, lines)}


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc's malloc")
@pytest.mark.parametrize("mebibytes", SIZES)
@pytest.mark.parametrize("keep", [True, False])
def test_a_block_as_large_as_a_parameter_is_not_given_back(mebibytes, keep, measured):
    mapped, kept, after = measured[str(keep), str(mebibytes)]
    assert (int(mapped), kept) == ((0, "True") if keep else (1, "False"))
    if mebibytes > 32:  # once training has ended, what is larger than glibc itself keeps is given back again
        assert after == "1"
