"""The executor that a command line asks for."""

from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.work.devices import Devices
from sae_baselines.work.executor import Executor

HERE = "here"
EXECUTORS = (HERE, "devices")


def executor(
    on: str, *, devices: str | None = None, workers: int | None = None
) -> Executor | None:
    """What starts workers; None for work in this process.

    Args:
        on: Name of an executor.
        devices: Numbers of GPUs, comma-separated.
        workers: How many workers on the CPU.

    Raises:
        UserError: A name is unknown, or does not go with an option.
    """
    if on not in EXECUTORS:
        raise UserError(f"on: {on!r} is unknown; {did_you_mean(on, list(EXECUTORS))}")
    if on == HERE:
        if devices is not None or workers is not None:
            raise UserError("on: --devices and --workers need --on devices")
        return None
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
