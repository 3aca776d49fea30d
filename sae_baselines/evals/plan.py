"""A study's tasks before they are done: what each needs, and what the whole will cost."""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_baselines.errors import UserError
from sae_baselines.evals.registry import get_suite
from sae_baselines.evals.store import EvalStore
from sae_baselines.evals.study import model_width, target_name
from sae_baselines.study.activation_cache import bytes_needed
from sae_baselines.study.engine import (
    Task,
    is_done,
    needs,
    opened,
    tasks,
    with_panels_that_fit,
)
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.memory import bytes_in_training, bytes_on_disk
from sae_baselines.study.plan import Pass, all_members, trained_of
from sae_baselines.study.spec import PUBLISHED, HookSpec, PanelSpec, StudySpec
from sae_baselines.work.claims import DONE, Share


@dataclass(frozen=True)
class PlannedTask:
    """A task of a study.

    Attributes:
        name: ``<kind>:<what>``, as in `study_status`.
        needs: Tasks whose files it reads.
        activations: That it is trained or measured on; 0 where it reads none.
        memory: Bytes of the device, at the least or as probed; None where it is not known.
        disk: Bytes that it leaves, checkpoints at their most included; None where not known.
        seconds: On this machine; None where nothing was measured.
        by: What the seconds are from: ``probe``, or ``done`` tasks of this kind.
        done: Whether what it makes is there.
    """

    name: str
    needs: tuple[str, ...]
    activations: int = 0
    memory: int | None = None
    disk: int | None = None
    seconds: float | None = None
    by: str = ""
    done: bool = False

    @property
    def kind(self) -> str:
        """What it is counted with: its kind, and of evaluations the suite."""
        return ":".join(self.name.split(":")[: 2 if self.name.startswith(_OF_SUITES) else 1])


_WARM_UP = "warm_up:"
_OF_SUITES = ("eval:", _WARM_UP)


@dataclass(frozen=True)
class StudyPlan:
    """What a study takes.

    Attributes:
        spec: As it would be trained: with a number where the file says ``auto``.
        tasks: All, in an order in which each finds what it needs.
    """

    spec: StudySpec
    tasks: Sequence[PlannedTask]

    @property
    def left(self) -> list[PlannedTask]:
        return [task for task in self.tasks if not task.done]

    @property
    def unknown(self) -> list[PlannedTask]:
        """What is left and has no estimate, which `device_hours` lacks."""
        return [task for task in self.left if task.seconds is None]

    @property
    def device_hours(self) -> float:
        """Of what is left and has an estimate."""
        return sum(task.seconds or 0 for task in self.left) / 3600


def eval_task(suite: str, name: str) -> str:
    """Name of the task that evaluates an SAE."""
    return f"eval:{suite}:{name}"


def warm_up_task(suite: str, key: str) -> str:
    """Name of the task that fills a suite's cache.

    Args:
        suite: Its name.
        key: Of the cache; "" for whichever it will be.
    """
    return ":".join(part for part in ("warm_up", suite, key) if part)


def plan_study(
    spec: StudySpec,
    suites: Sequence[str] = (),
    out: str | Path | None = None,
    *,
    probe: bool = False,
    **inputs: Any,
) -> StudyPlan:
    """Every task of a study that training and evaluating it will do.

    Estimates are of this machine: of tasks of the same kind that are done in ``out``, else
    with ``probe`` of a few steps of each kind of pass. They hold for other numbers of devices
    of this kind, since every task has one.

    Args:
        spec: What is to be trained.
        suites: What it is to be evaluated under.
        out: Its folder, if it has begun.
        probe: Load model and text, and train a few steps; without it nothing is loaded.
        inputs: As for `train_study`.

    Raises:
        UserError: Bad input; or ``max_panels_per_pass: auto`` without ``probe``.
    """
    for suite in suites:
        get_suite(suite)
    folder = StudyFolder(out) if out is not None else None
    begun = folder is not None and folder.study_file.exists()
    if probe or begun:
        where = folder if begun and folder is not None else StudyFolder("not_begun")
        spec = with_panels_that_fit(spec, where, **inputs)
    found = [_of_training(spec, task) for task in tasks(spec)]
    store = EvalStore(folder.root) if begun and folder is not None else None
    names = [target_name(key) for key in all_members(spec)]
    if spec.reference is not None:
        names.append(PUBLISHED)
    for suite in suites:
        warm = [warm_up_task(suite, "")] if get_suite(suite).warm_up else []
        found += [PlannedTask(name, ()) for name in warm]
        found += [
            PlannedTask(
                eval_task(suite, name),
                (f"measure:{name}", *warm),
                # As `study_status` says it: results may have come from elsewhere.
                done=store is not None and store.record_file(suite, name).exists(),
            )
            for name in names
        ]
    if folder is not None and begun:
        found = _with_history(spec, folder, found)
    return StudyPlan(spec, _probed(spec, found, inputs) if probe else found)


def _of_training(spec: StudySpec, task: Task) -> PlannedTask:
    # As the file calls them: tokens, patches or samples.
    def of(*names: str) -> int:
        return next((getattr(spec, name) for name in names if hasattr(spec, name)), 0)

    d_in = _width(spec)
    d_out = getattr(spec, "d_out", None)
    export = bytes_on_disk(spec, d_in, d_out) if d_in else None
    if task.kind == "train":
        (this_pass,) = (p for p in spec.passes(task.source) if p.name == task.what)
        members = _members(spec, this_pass, task.source)
        training = members * bytes_in_training(spec, d_in, d_out) if d_in else None
        disk = None
        if training is not None and export is not None:
            # A new checkpoint is whole before an old one is deleted.
            disk = members * export + training * (spec.keep_checkpoints + 1)
        activations = of("training_tokens", "training_samples")
        return PlannedTask(task.name, tuple(needs(spec, task)), activations, training, disk)
    if task.kind == "cache":
        assert isinstance(spec, PanelSpec)
        disk = bytes_needed(spec, d_in) if d_in else None
        return PlannedTask(task.name, (), spec.training_tokens, None, disk)
    activations = of("eval_tokens", "eval_samples") if task.kind == "measure" else 0
    made = sum(member.is_control for member in all_members(spec).values())
    disk = made * export if task.kind == "controls" and export is not None else 0
    return PlannedTask(task.name, tuple(needs(spec, task)), activations, export, disk)


def _width(spec: StudySpec) -> int | None:
    if isinstance(spec, PanelSpec):
        return spec.d_in or model_width(spec)
    return spec.d_in if isinstance(spec, HookSpec) else getattr(spec, "n", None)


def _members(spec: StudySpec, this_pass: Pass, source: str) -> int:
    return sum(len(trained_of(spec, panel, source)) for panel in this_pass.panels)


def _with_history(
    spec: StudySpec, folder: StudyFolder, planned: list[PlannedTask]
) -> list[PlannedTask]:
    """What is done, and how long tasks of each kind took."""
    share = Share(folder.root)
    done = {task.name for task in tasks(spec) if is_done(spec, folder, task)}
    took: dict[str, list[float]] = {}
    for task in planned:
        last = share.last(task.name)
        if last is not None and last.end is not None and last.end["state"] == DONE:
            took.setdefault(task.kind, []).append(float(last.end["seconds"]))
            if task.kind.startswith(_WARM_UP):
                done.add(task.name)
    known: Mapping[str, float] = {kind: statistics.median(all_) for kind, all_ in took.items()}
    return [
        dataclasses.replace(
            task,
            done=task.done or task.name in done,
            seconds=known.get(task.kind),
            by="done" if task.kind in known else "",
        )
        for task in planned
    ]


def _probed(
    spec: StudySpec, planned: list[PlannedTask], inputs: Mapping[str, Any]
) -> list[PlannedTask]:
    """With seconds and memory of passes, and seconds of measurements, from a few steps."""
    changes: dict[str, dict[str, Any]] = {}
    unknown = {task.name: task for task in planned if task.seconds is None}
    batch = _batch(spec)
    for source in spec.source_names:
        mine = [task for task in tasks(spec) if task.source == source and task.name in unknown]
        if not mine:
            continue
        # Passes of the same architectures take the same.
        kinds: dict[tuple[Any, ...], list[Pass]] = {}
        for one in spec.passes(source):
            bases = Counter(panel.architecture for panel in one.panels)
            kinds.setdefault(tuple(sorted(bases.items())), []).append(one)
        with opened(spec, source, **inputs) as work:
            for alike in kinds.values():
                found = work.probe(alike[0])
                for name in (Task("train", source, one.name).name for one in alike):
                    if name in unknown:
                        seconds = found.seconds(unknown[name].activations, batch)
                        told = {"seconds": seconds, "by": "probe", "memory": found.peak}
                        changes[name] = told
            seconds = work.seconds_to_measure(spec.panels(source)[0])
        for task in mine:
            if task.kind == "measure":
                changes[task.name] = {"seconds": seconds, "by": "probe"}
    return [dataclasses.replace(task, **changes.get(task.name, {})) for task in planned]


def _batch(spec: StudySpec) -> int:
    for name in ("train_batch_size_tokens", "train_batch_size"):
        if hasattr(spec, name):
            return int(getattr(spec, name))
    raise UserError(f"plan: {type(spec).__name__} has no size of batches")
