"""Freed memory is kept: the next block is not taken from the system page by page."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, json, os, resource, sys
from sae_baselines_cli.allocator import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
size = 2**26

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
    libc.memset(block, 1, ctypes.c_size_t(size))
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = [faults(), faults()]
keep_freed_memory()
faults()
left = {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")}
print(json.dumps([first, faults(), left, "torch" in sys.modules]))
"""

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""),
    reason="glibc's",
)


def told(**environment: str) -> tuple[list[int], int, dict[str, str]]:
    mine = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**mine, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    before, after, left, torch_is_imported = json.loads(done.stdout)
    assert not torch_is_imported
    return before, after, left


def test_a_block_is_taken_again_without_asking_the_system() -> None:
    before, after, left = told()
    # 64 MiB are 16,384 pages; some kernels hand out larger ones.
    assert min(before) > 10 * max(after, 1)
    # For processes that this one starts.
    assert left == {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}


def test_who_has_decided_is_obeyed() -> None:
    asked = {"MALLOC_MMAP_MAX_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}
    before, after, left = told(**asked)
    assert left == asked
    assert after >= min(before) / 2
