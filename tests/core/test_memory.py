"""Freed memory is kept, in a process of its own since the setting is the process's."""

import ctypes
import subprocess
import sys

import pytest

# glibc's struct mallinfo2: the fourth number counts blocks of their own mapping, the ninth the free bytes that are kept
KEPT = """
import ctypes, sys
import torch
from moeapps.core.memory import keep_freed_memory, return_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(str(i), ctypes.c_size_t) for i in range(10)]

info = ctypes.CDLL(None).mallinfo2
info.restype = Info
size = int(sys.argv[2]) * 2**20
parameter = torch.empty(size, dtype=torch.uint8)
if sys.argv[1] == "keep":
    keep_freed_memory([parameter])
before = getattr(info(), "3")
block = torch.empty(size, dtype=torch.uint8)
mapped = getattr(info(), "3") - before
del block
print(mapped, getattr(info(), "8") >= size)
return_freed_memory()
before = getattr(info(), "3")
block = torch.empty(size, dtype=torch.uint8)
print(getattr(info(), "3") - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc's malloc")
@pytest.mark.parametrize("mebibytes", [30, 100, 600])
@pytest.mark.parametrize("keep", [True, False])
def test_a_block_as_large_as_a_parameter_is_not_given_back(mebibytes, keep):
    command = [sys.executable, "-c", KEPT, "keep" if keep else "leave", str(mebibytes)]
    mapped, kept, after = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert (int(mapped), kept) == ((0, "True") if keep else (1, "False"))
    if mebibytes > 32:  # once training has ended, what is larger than glibc itself keeps is given back again
        assert after == "1"
