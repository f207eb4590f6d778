"""What choosing a device does to the process."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys

import pytest

# Faults of pages as a step's tensors are made and freed, once the first steps have had theirs.
STEPS = """
import resource, torch
from acclimate_service.training.device import choose_device

def step():
    return [torch.ones(50_000) for _ in range(200)]  # 200 kB each

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def faults_a_step():
    for _ in range(3):
        step()
    before = faults()
    for _ in range(5):
        step()
    return (faults() - before) // 5

not_chosen = faults_a_step()
choose_device("cpu", threads=1)
print(not_chosen, faults_a_step())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    # Left to itself, malloc gives memory back or not as what lies above it happens to be.
    giving_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    words = [sys.executable, "-c", STEPS]
    ran = subprocess.run(words, env=giving_back, capture_output=True, check=True, timeout=120)
    not_chosen, chosen = map(int, ran.stdout.split())
    pages = 200 * 200_000 // resource.getpagesize()
    assert not_chosen > pages / 2
    assert chosen < pages / 100
