"""Processes in which Triton kernels are interpreted, or compiled for a GPU that is not there.

Whether kernels are interpreted is settled when triton is first imported, and SAELens imports
it: a process of its own is the only place where a test can choose, and it leaves nothing
behind for other tests.
"""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType

import torch


def start(*, interpret: bool, cache: Path, package: Path) -> ProcessPoolExecutor:
    """One process, without SAELens.

    Args:
        interpret: Whether Triton's interpreter runs kernels there.
        cache: Where triton keeps what it compiles.
        package: The folder of sae_baselines.
    """
    return ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(interpret, str(cache), package),
    )


def _begin(interpret: bool, cache: str, package: Path) -> None:
    assert "triton" not in sys.modules
    os.environ["TRITON_INTERPRET"] = "1" if interpret else "0"
    os.environ["TRITON_CACHE_DIR"] = cache
    os.environ["OMP_NUM_THREADS"] = "1"
    # The kernels need torch and triton alone; the package's own imports take many seconds.
    folders = {"sae_baselines": package, "sae_baselines.sparse": package / "sparse"}
    for name, folder in folders.items():
        stand_in = ModuleType(name)
        stand_in.__path__ = [str(folder)]
        sys.modules[name] = stand_in
    # Fills new tensors with NaN, so that what a kernel does not write is seen.
    torch.use_deterministic_algorithms(True)
