"""The script that submitit hands to sbatch, without handing it over."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def sbatch_script(make: Callable[[], Any], n: int) -> str:
    """What submitit would submit for an array of jobs, also where there is no SLURM.

    Args:
        make: Makes submitit's ``AutoExecutor`` for SLURM, with its parameters.
        n: Elements of the array.
    """
    with _as_on_a_cluster():
        slurm = make()._executor
    # As it does itself: one job is no array.
    slurm.parameters.update({"map_count": n} if n > 1 else {})
    return slurm._make_submission_file_text(slurm._submitit_command_str, "")


@contextmanager
def _as_on_a_cluster() -> Iterator[None]:
    """submitit makes no executor where it sees no ``srun``."""
    from submitit import SlurmExecutor  # noqa: PLC0415  (an extra)

    before = SlurmExecutor.__dict__["affinity"]
    SlurmExecutor.affinity = classmethod(lambda _: 1)  # type: ignore[method-assign]
    try:
        yield
    finally:
        SlurmExecutor.affinity = before
