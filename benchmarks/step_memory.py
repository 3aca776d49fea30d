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
_PRELOADED = ["sae_baselines.study.build"]


def cpu_peak_mib(
    base: str,
    member: str,
    shape: Shape,
    threshold: float,
    *,
    autocast: bool = False,
    half_dead: bool = False,
    dense: bool = False,
) -> float:
    """Growth of the resident set of a process of its own, at its peak within one step."""
    context = clean_processes()
    with context.Pool(1) as pool:
        options = (autocast, half_dead, dense, torch.get_num_threads())
        return pool.apply(_cpu_peak, (base, member, shape, threshold, *options))


def clean_processes(*preload: str) -> Any:
    """The context of processes that have imported everything and trained nothing.

    Args:
        preload: Modules of installed packages that the script imports, beside SAELens. Told
            once, before the first process is started.
    """
    # Large blocks go back to the system when freed, so that the peak is that of live
    # tensors and not of what the allocator has kept. Read when the server process starts.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
    methods = multiprocessing.get_all_start_methods()
    method = "forkserver" if "forkserver" in methods else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        # Not step_members: the server does not look for modules beside this file.
        _PRELOADED.extend(preload)
        context.set_forkserver_preload(_PRELOADED)
    return context


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


def available_mib() -> float:
    """Memory that a new process could use before the machine runs out; infinity if unknown."""
    kib = _field(Path("/proc/meminfo"), "MemAvailable")
    return float("inf") if kib is None else kib / 1024


def set_limit(device: str, gib: float) -> float:
    """Let this process take so much memory on top of what it holds now.

    On a CPU a limit on its address space, which is never less than its memory; on CUDA
    torch's share of the device.

    Returns:
        MiB of address space held now (0 on CUDA).
    """
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total))
        return 0.0
    own = _status("VmSize") or _rusage_peak()
    most = own + int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return own / _MIB


def peak_mib(device: str) -> float:
    """The most that this process has held so far: resident, or on CUDA allocated by torch."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / _MIB
    return _peak_resident() / _MIB


def _cpu_peak(
    base: str,
    member: str,
    shape: Shape,
    threshold: float,
    autocast: bool,
    half_dead: bool,
    dense: bool,
    threads: int,
) -> float:
    torch.set_num_threads(threads)
    # A tiny run first: library code, thread pools and workspaces are then in memory.
    tiny = SHAPES["quick"]
    # A JumpReLU's estimator is as wide as a share of its threshold, which cannot be 0.
    Stepper(base, member, tiny, activations(tiny, "cpu"), 1.0, autocast=autocast).steps(2)
    batches = activations(shape, "cpu")[:2]
    gc.collect()
    before = _resident()
    stepper = Stepper(
        base,
        member,
        shape,
        batches,
        threshold,
        autocast=autocast,
        half_dead=half_dead,
        dense=dense,
    )
    stepper.steps(1)
    gc.collect()
    _reset_peak()
    stepper.steps(1)
    return (_peak_resident() - before) / _MIB


def _status(name: str) -> int | None:
    """A field of Linux' /proc/self/status, in bytes."""
    kib = _field(Path("/proc/self/status"), name)
    return None if kib is None else kib * 1024


def _field(file: Path, name: str) -> int | None:
    """A number of KiB in a file of Linux' /proc."""
    try:
        text = file.read_text()
    except OSError:
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else None


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
