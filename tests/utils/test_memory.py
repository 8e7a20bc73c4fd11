"""Freed memory stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from ltpipe.utils.memory import keep_freed_memory
import torch

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
plain = faults()
done = keep_freed_memory()
torch.zeros(1 << 24)
print(done, plain, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_tensors_find_their_pages_again():
    command = [sys.executable, "-c", PROGRAM]
    done, plain, kept = subprocess.run(command, capture_output=True, text=True).stdout.split()
    assert done == "True"
    assert int(plain) > 1000
    assert int(kept) < int(plain) / 2
