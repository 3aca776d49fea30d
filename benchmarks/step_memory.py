"""Peak memory of a training step: weights, Adam's moments, gradients and activations."""

import contextlib
import gc
import multiprocessing
import os
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from step_members import SHAPES, Shape, Stepper, activations

_MIB = 2**20


def cpu_peak_mib(
    base: str,
    member: str,
    shape: Shape,
    threshold: float,
    *,
    autocast: bool = False,
    half_dead: bool = False,
) -> float:
    """Growth of the resident set of a process of its own, at its peak within one step."""
    # Large blocks go back to the system when freed, so that the peak is that of live
    # tensors and not of what the allocator has kept. Read when the server process starts.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
    # A server that has imported everything and trained nothing; its children start clean.
    methods = multiprocessing.get_all_start_methods()
    method = "forkserver" if "forkserver" in methods else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        # Not step_members: the server does not look for modules beside this file.
        context.set_forkserver_preload(["sae_baselines.panel.build"])
    with context.Pool(1) as pool:
        options = (autocast, half_dead, torch.get_num_threads())
        return pool.apply(_cpu_peak, (base, member, shape, threshold, *options))


def cuda_peak_mib(build: Callable[[], Stepper]) -> tuple[Stepper, float]:
    """Build a member; also returns what its steps add to torch's allocated memory at most."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    stepper = build()
    stepper.steps(2)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    stepper.steps(2)
    torch.cuda.synchronize()
    return stepper, (torch.cuda.max_memory_allocated() - before) / _MIB


def _cpu_peak(
    base: str,
    member: str,
    shape: Shape,
    threshold: float,
    autocast: bool,
    half_dead: bool,
    threads: int,
) -> float:
    torch.set_num_threads(threads)
    # A tiny run first: library code, thread pools and workspaces are then in memory.
    tiny = SHAPES["quick"]
    Stepper(base, member, tiny, activations(tiny, "cpu"), 0.0, autocast=autocast).steps(2)
    batches = activations(shape, "cpu")[:2]
    gc.collect()
    before = _resident()
    stepper = Stepper(
        base, member, shape, batches, threshold, autocast=autocast, half_dead=half_dead
    )
    stepper.steps(1)
    gc.collect()
    _reset_peak()
    stepper.steps(1)
    return (_peak_resident() - before) / _MIB


def _status(field: str) -> int | None:
    """A field of Linux' /proc/self/status, in bytes."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _resident() -> int:
    return _status("VmRSS") or _rusage_peak()


def _peak_resident() -> int:
    # ru_maxrss is the same number, but cannot be reset: on Linux it would include the
    # construction of the SAE, and the parent's peak.
    return _status("VmHWM") or _rusage_peak()


def _rusage_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
