"""How far a study's tasks are, whoever does them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sae_baselines.evals.plan import eval_task
from sae_baselines.evals.spec import stored_spec
from sae_baselines.evals.store import EvalStore
from sae_baselines.evals.study import saes_of
from sae_baselines.study.engine import is_done, tasks
from sae_baselines.study.folder import StudyFolder, load_study
from sae_baselines.work.claims import FAILED, TASKS, Attempt, Share


@dataclass(frozen=True)
class TaskStatus:
    """Where a task stands.

    Attributes:
        name: ``<kind>:<what>``.
        state: What its files and its last attempt say.
        attempts: How often it was tried.
        said: Who is at it, or why it failed; else "".
        log: Of the last attempt; it is there if anything was logged.
    """

    name: str
    state: Literal["done", "running", "waiting", "failed"]
    attempts: int
    said: str
    log: Path | None

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]


def study_status(study: str | Path) -> list[TaskStatus]:
    """Every task of a study, in the order in which they can be done.

    Evaluations are those of the suites that the study is evaluated with by default, and those
    that were begun.

    Raises:
        UserError: No study there, or a file of it cannot be read.
    """
    spec, _ = load_study(study)
    folder, share, store = StudyFolder(study), Share(Path(study)), EvalStore(study)
    found = [
        _status(share, task.name, is_done(spec, folder, task), None) for task in tasks(spec)
    ]
    settings = stored_spec(study)
    begun = sorted(path.name for path in (folder.root / TASKS / "eval").glob("*/"))
    for suite in dict.fromkeys([*(settings.suites if settings else ()), *begun]):
        for name in saes_of(study):
            done = store.record_file(suite, name).exists()
            log = store.log_file(suite, name)
            found.append(_status(share, eval_task(suite, name), done, log))
    return found


def _status(share: Share, name: str, done: bool, log: Path | None) -> TaskStatus:
    attempts = share.attempts(name)
    last: Attempt | None = attempts[-1] if attempts else None
    end = last.end if last else None
    log = log or (last.log if last else None)
    if done:
        return TaskStatus(name, "done", len(attempts), "", log)
    if last and share.holder(name):
        return TaskStatus(name, "running", len(attempts), last.by, log)
    if end and end["state"] == FAILED:
        return TaskStatus(name, "failed", len(attempts), str(end["reason"]), log)
    return TaskStatus(name, "waiting", len(attempts), "", log)
