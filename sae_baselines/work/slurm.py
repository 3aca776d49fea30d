"""Workers as a job array of SLURM, through submitit."""

import logging
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from sae_baselines.compat.submitit import sbatch_script
from sae_baselines.errors import StoppedError, UserError, did_you_mean, one_line
from sae_baselines.work.claims import is_over
from sae_baselines.work.executor import logs_of

logger = logging.getLogger("sae_baselines")

# Seconds between two looks at the queue.
_EVERY = 10.0

_Positive = Annotated[int, Field(ge=1)]
_Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Slurm:
    """An `Executor`: workers are the elements of a job array, each on a node of its own choice.

    A job whose time is over, or that is preempted, saves a checkpoint and is queued again.

    Attributes:
        workers: Elements of the array.
        time: Minutes of one job; longer work is queued again.
        cpus: A worker's, and its threads, unless ``OMP_NUM_THREADS`` says how many.
        memory_gb: A worker's; default: the partition's.
        gpus: A worker's.
        gres: The same in SLURM's words, e.g. ``gpu:a100:1``.
        partition: Where; default: SLURM's.
        account: Who pays.
        qos: Quality of service.
        constraint: Features that a node must have.
        setup: Shell lines before a worker starts, e.g. ``module load cuda``.
        throttle: At most so many workers at a time.
        requeues: How often a job whose time is over is queued again.
        warning: Seconds before its end at which a job is told to save.
        engine: submitit's executor; ``local`` for processes of this machine.
    """

    workers: _Positive = 2
    time: _Positive = 240
    cpus: _Positive = 1
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    gpus: _Count = 0
    gres: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: tuple[str, ...] = ()
    throttle: _Positive | None = None
    requeues: _Count = 100
    warning: _Positive = 120
    engine: str = "slurm"

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Slurm":
        """From a section ``cluster``.

        Raises:
            UserError: Names the field.
        """
        known = [field.name for field in fields(cls) if field.name != "engine"]
        for name in options:
            if name not in known:
                raise UserError(f"cluster.{name}: is unknown; {did_you_mean(name, known)}")
        try:
            return cls(**options)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise UserError(
                f"cluster.{name}: {first['input']!r:.80}: {first['msg']}"
            ) from error

    def script(self, root: Path) -> str:
        """The sbatch script, as it would be submitted.

        Raises:
            UserError: submitit is not there.
        """
        _require_submitit()
        return sbatch_script(lambda: self._executor(root), self.workers)

    def _executor(self, root: Path) -> Any:
        from submitit import AutoExecutor  # noqa: PLC0415  (an extra)

        executor = AutoExecutor(
            logs_of(root) / self.engine,
            cluster=self.engine,
            slurm_max_num_timeout=self.requeues,
        )
        of_slurm = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gres": self.gres,
            "array_parallelism": self.throttle,
            "signal_delay_s": self.warning,
            "setup": [*self.setup, f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{self.cpus}}}"],
            # A node that fails, or is wanted by others, costs no job.
            "additional_parameters": {"requeue": True},
        }
        executor.update_parameters(
            name=f"sae_{root.name}",
            timeout_min=self.time,
            cpus_per_task=self.cpus,
            **({"mem_gb": self.memory_gb} if self.memory_gb else {}),
            **({"gpus_per_node": self.gpus} if self.gpus else {}),
            **{f"slurm_{name}": v for name, v in of_slurm.items() if v is not None},
        )
        return executor

    def require_here(self) -> None:
        """Whether jobs can be submitted from this machine.

        Raises:
            UserError: submitit or SLURM is not there.
        """
        _require_submitit()
        if self.engine == "slurm" and shutil.which("sbatch") is None:
            raise UserError(
                "on: there is no SLURM here (sbatch); run this where jobs are submitted, or "
                "use --on devices"
            )

    def run(self, work: Callable[[], object], root: Path) -> None:
        self.require_here()
        executor = self._executor(root)
        from submitit.core.utils import FailedJobError  # noqa: PLC0415  (an extra)

        try:
            with executor.batch():
                jobs = [executor.submit(Requeued(work)) for _ in range(self.workers)]
        except FailedJobError as error:
            raise UserError(
                f"cluster: sbatch refuses: {one_line(error, 300)}; sinfo lists partitions and "
                "what they have, sacctmgr accounts"
            ) from error
        names = [job.job_id for job in jobs]
        whole = names[0].partition("_")[0]
        logger.info("job %s, %d workers (logs: %s)", whole, len(jobs), executor.folder)
        try:
            while not all(_has_ended(job, self.engine) for job in jobs):
                time.sleep(_EVERY if self.engine == "slurm" else 0.2)
        except KeyboardInterrupt:
            if self.engine != "slurm":
                for job in jobs:
                    job.cancel()
            logger.warning(
                "job %s goes on; end it with scancel %s, or wait for it with the same command",
                whole,
                whole,
            )
            raise
        lost = [job for job in jobs if not job.paths.result_pickle.exists()]
        unseen = [job for job in lost if not job.paths.stderr.exists()]
        if len(unseen) == len(jobs):
            raise UserError(
                f"out: {root}: job {whole} ended and left no log there; unless somebody "
                "cancelled it before it began, its nodes do not see that folder: use one on a "
                "file system that all nodes share"
            )
        for job in jobs:
            if job in lost:
                logger.error("job %s ended early (log: %s)", job.job_id, job.paths.stderr)
            elif error := job.exception():
                said = one_line(error, 100_000)[-300:]
                logger.error("job %s failed: %s (log: %s)", job.job_id, said, job.paths.stderr)


def _require_submitit() -> None:
    if find_spec("submitit") is None:
        raise UserError("on: slurm needs submitit; pip install 'sae-baselines[cluster]'")


def _has_ended(job: Any, engine: str) -> bool:
    """By what it left, or by the queue: not every cluster has SLURM's accounting."""
    if job.paths.result_pickle.exists():
        return True
    return is_over(job.job_id) if engine == "slurm" else job.done()


@plain_dataclass(frozen=True)
class Requeued:
    """Work that begins again where it was, as submitit asks for it.

    Args:
        work: What is called.
    """

    work: Callable[[], object]

    def __call__(self) -> None:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
        logging.getLogger("sae_baselines").setLevel(logging.INFO)
        try:
            self.work()
        except StoppedError as stopped:
            # Training took the signal, and has saved: now it is submitit's, which queues again.
            signal.raise_signal(stopped.number)

    def checkpoint(self) -> Any:
        """What the job does when it runs again: the same."""
        from submitit.helpers import DelayedSubmission  # noqa: PLC0415  (an extra)

        return DelayedSubmission(self)
