"""The executor that a command line asks for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.work.devices import Devices
from sae_baselines.work.executor import Executor
from sae_baselines.work.slurm import Slurm
from sae_baselines.yaml_text import parse_yaml, read_yaml

HERE = "here"
EXECUTORS = (HERE, "devices", "slurm")


def executor(
    on: str,
    *,
    devices: str | None = None,
    workers: int | None = None,
    file: Path | None = None,
    settings: Sequence[str] = (),
) -> Executor | None:
    """What starts workers; None for work in this process.

    Args:
        on: Name of an executor.
        devices: Numbers of GPUs, comma-separated.
        workers: How many workers, on the CPU or of a cluster.
        file: Panel file, whose section ``cluster`` SLURM reads.
        settings: ``name=value`` each, which go before those of the section.

    Raises:
        UserError: A name is unknown, or does not go with an option.
    """
    if on not in EXECUTORS:
        raise UserError(f"on: {on!r} is unknown; {did_you_mean(on, list(EXECUTORS))}")
    if on != "devices" and devices is not None:
        raise UserError("devices: are for --on devices; a cluster has --cluster gpus=1")
    if on == HERE and workers is not None:
        raise UserError("workers: are for --on devices and --on slurm; here is one process")
    if on != "slurm" and settings:
        raise UserError("cluster: is for --on slurm; leave it away, or name --on slurm")
    if on == HERE:
        return None
    if on == "slurm":
        given = {} if workers is None else {"workers": workers}
        return Slurm.of({**_section(file), **_settings(settings), **given})
    return _devices(devices, workers)


def _section(file: Path | None) -> dict[str, Any]:
    if file is None or not file.is_file():
        return {}  # who reads the rest of it says so
    data = read_yaml(file)
    section = data.get("cluster") if isinstance(data, dict) else None
    if not isinstance(section, dict | None):
        raise UserError(f"{file}: cluster: {section!r:.80} is no mapping of fields")
    return section or {}


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"cluster: {pair!r} is no name=value, such as partition=gpu")
        if name == "setup":
            found.setdefault(name, []).append(value)
        else:
            found[name] = parse_yaml(value.encode()) if value else None
    return found


def _devices(devices: str | None, workers: int | None) -> Devices:
    if devices is None and workers is None:
        raise UserError(
            "devices: say which GPUs, e.g. --devices 0,1, or how many --workers on the CPU"
        )
    if devices is None:
        return Devices(workers=workers or 0)
    if workers is not None:
        raise UserError("workers: are of the CPU; a GPU has one worker, name --devices alone")
    numbers = [part.strip() for part in devices.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise UserError(f"devices: {devices!r} is no list of numbers such as 0,1")
    return Devices([int(number) for number in numbers])
