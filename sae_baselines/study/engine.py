"""One engine for every study: plan, lock, resume, train, calibrate, export, measure.

A study's work is a list of named tasks, with files as the only interface between them; a
`Source` supplies activations, trains on them and measures on held-out ones.
"""

import gc
import importlib
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from sae_lens import SAE
from sae_lens.constants import SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors import SafetensorError
from safetensors.torch import save_file

from sae_baselines.compat.training import clipping_at
from sae_baselines.drift import DriftTracker
from sae_baselines.drift.record import DRIFT_FILE, HISTOGRAM_FILE
from sae_baselines.errors import StoppedError, UserError, did_you_mean, one_line
from sae_baselines.files import checksum_of, remove, sha256_of, unreadable
from sae_baselines.progress import progress
from sae_baselines.provenance import environment
from sae_baselines.study.build import Start, member_configs, prepare_start, set_b_dec
from sae_baselines.study.calibrate import calibrate
from sae_baselines.study.folder import (
    STUDY_FILE,
    StudyFolder,
    flaw_of_measurement,
    write_measurement,
    write_provenance,
)
from sae_baselines.study.identity import (
    OFF_TARGET,
    identity_of,
    off_target,
    trained_at,
)
from sae_baselines.study.l0_record import L0Record, recorded_l0
from sae_baselines.study.latents import LATENTS_FILE, Latents, latents_of
from sae_baselines.study.measure import Cosines, cosines_to_start
from sae_baselines.study.memory import bytes_in_training
from sae_baselines.study.plan import (
    MemberKey,
    PanelKey,
    Pass,
    all_members,
    controls_of,
    members_of,
    trained_of,
)
from sae_baselines.study.probe import Probe, free_memory, panels_that_fit, probe
from sae_baselines.study.reference.member import keep_published
from sae_baselines.study.runner import (
    assert_finite,
    clear_checkpoints,
    drift_of,
    remove_empty,
)
from sae_baselines.study.spec import (
    AUTO,
    PUBLISHED,
    HookSpec,
    MemberSpec,
    StudySpec,
    import_plugins,
    spec_hash,
)
from sae_baselines.study.untrained import make_controls, missing_controls
from sae_baselines.work.claims import FAILED, Share, Waiting, require_own
from sae_baselines.work.executor import Executor, require_same

logger = logging.getLogger("sae_baselines")

AnyStudy = TypeVar("AnyStudy", bound=StudySpec)

# Held-out activations for EV and L0 on the way.
_DRIFT_SAMPLES = 2048


@dataclass(frozen=True)
class PassRun:
    """One pass, as a source is asked to train it.

    Attributes:
        this_pass: Which panels, and the seed of the data.
        configs: SAELens config of each member.
        start: What members start from.
        checkpoints: Where to save and look for checkpoints.
        held_out: ``[n, d_in]`` raw activations for EV and L0 on the way.
        fractions: Of training, at which drift is recorded.
    """

    this_pass: Pass
    configs: dict[MemberKey, TrainingSAEConfig]
    start: Start
    checkpoints: Path
    held_out: torch.Tensor
    fractions: Sequence[float]

    @property
    def drift(self) -> Path:
        """Where drift is recorded until members have folders; kept when a pass is resumed."""
        return drift_of(self.checkpoints)

    def build(self, device: str) -> dict[str, TrainingSAE[Any]]:
        """SAEs by the members' names, with the common b_dec."""
        saes: dict[str, TrainingSAE[Any]] = {}
        for key, config in self.configs.items():
            sae_class, _ = get_sae_training_class(config.architecture())
            saes[key.name] = sae_class(config).to(device)
        set_b_dec(saes, self.start)
        return saes

    @property
    def l0(self) -> Path:
        """Where the L0 of training batches is recorded: there too; no member is called so."""
        return self.drift / "l0"

    @contextmanager
    def tracking(self, saes: dict[str, TrainingSAE[Any]]) -> Iterator[None]:
        """Record L0 of these SAEs while they train, and drift if it is asked for."""
        with ExitStack() as stack:
            stack.enter_context(L0Record(self.l0, saes))
            if self.fractions:
                on = self.held_out[:_DRIFT_SAMPLES]
                tracker = DriftTracker(self.drift, saes, fractions=self.fractions, held_out=on)
                stack.enter_context(tracker)
            yield


@dataclass(frozen=True)
class Trained:
    """A finished pass.

    Attributes:
        trainers: SAELens' trainer of each member, by its name.
        facts: For metadata and provenance of every member.
        record: For provenance alone.
    """

    trainers: Mapping[str, SAETrainer[Any, Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Activations of a study, opened: made as ``source(spec, folder, name, **inputs)``.

    Attributes:
        device: Torch device of members and batches.
        calibration: float32 CPU ``[n, d_in]`` held-out activations, raw, for thresholds; where
            there is an attribute ``d_in``, of transcoders' inputs and outputs side by side.
        held_out: ``[n, d_in]`` the same, for EV and L0 on the way.
        evaluation: ``[n, d_in]`` raw activations that `measure` is on, or the like.
        facts: Where held-out activations are from; for metadata of every member.
        start_folder: Where the covariance of ``cov`` members is kept.
        scratch: Patterns of files in the study that nothing needs once all is measured.
    """

    device: str
    calibration: torch.Tensor
    held_out: torch.Tensor
    evaluation: torch.Tensor
    facts: Mapping[str, Any]
    start_folder: Path
    scratch: ClassVar[Sequence[str]]

    def train(self, run: PassRun) -> Trained:
        """Train every member of a pass; a pass that was interrupted is resumed.

        Raises:
            UserError: Bad input, or diverged weights.
            InterruptedTrainingError: SIGINT or SIGTERM; a checkpoint was saved.
        """
        ...

    def measure(
        self, sae: SAE[Any], folder: Path, l0_target: float, cosines: Cosines | None
    ) -> dict[str, Any]:
        """``measurement.json`` of an exported SAE: ``explained_variance``, ``l0``,
        ``l0_matches`` and the source's own; further files go to the SAE's folder."""
        ...


@runtime_checkable
class CachingSource(Protocol):
    """A source whose activations can be written once for all passes, where a spec `caches`."""

    def cache_activations(self) -> None:
        """Write what every pass reads to ``StudyFolder.cache``.

        Raises:
            UserError: There is no room.
        """
        ...


@dataclass(frozen=True)
class Task:
    """A piece of a study's work that can be asked for by name.

    Attributes:
        kind: ``cache`` what passes read, ``train`` one, make ``controls``, ``measure`` an SAE.
        source: Name of its source.
        what: The pass, or the member (``<panel>.<member>``); "" for a cache and controls.
    """

    kind: Literal["cache", "train", "controls", "measure"]
    source: str
    what: str

    @property
    def name(self) -> str:
        return ":".join(part for part in (self.kind, self.what or self.source) if part)


@dataclass(frozen=True)
class StudyResult:
    """What `train_study` leaves behind.

    Attributes:
        folder: The study folder.
        measurements: Per member, what `measurement.json` says.
        trained: Members trained (controls: made) by this call; the others were finished
            already.
    """

    folder: Path
    measurements: dict[MemberKey, dict[str, Any]]
    trained: list[MemberKey]

    @property
    def off_target(self) -> list[MemberKey]:
        """Members whose measured L0 is more than 5 % off."""
        return [k for k, m in self.measurements.items() if not m["l0_matches"]]


def train_study(
    spec: StudySpec, out: str | Path, *, resume: bool = False, **inputs: Any
) -> StudyResult:
    """Train, calibrate, export and measure every member of every panel.

    Controls are not trained but made, from each panel's trained member once it is exported.
    A study that is finished is recognised and not repeated.

    Args:
        spec: What to train.
        out: Study folder.
        resume: Continue unfinished work in ``out``.
        inputs: For the source instead of what the spec names: ``dataset`` (in memory) and
            ``model`` (loaded) of a study on text.

    Returns:
        Folder and measurements.

    Raises:
        UserError: Bad input, in one line; nothing finished is lost.
        InterruptedTrainingError: SIGINT or SIGTERM; a checkpoint was saved.
    """
    folder, share = StudyFolder(out), Share(Path(out))
    spec = with_panels_that_fit(spec, folder, **inputs)
    with folder.locked():
        unmeasured = unfinished(spec, folder)
        finished = not unmeasured
        folder.open(spec, resume=resume or (finished and folder.study_file.exists()))
        trained: list[MemberKey] = []
        if finished:
            logger.info("%s is finished; nothing to do", folder.root)
        else:
            for path, flaw in unmeasured.items():
                if path.exists():
                    logger.warning("%s: %s; it is made again", path, flaw)
            trained = _do_all(spec, folder, share, inputs)
        # Also where a run died after its last measurement.
        _clean_up(spec, folder)
        return StudyResult(folder.root, measurements_of(spec, folder), trained)


def run_study(
    spec: StudySpec,
    out: str | Path,
    on: Executor | None,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    **inputs: Any,
) -> StudyResult:
    """`train_study`, or `train_on` where something starts workers.

    Args:
        spec: What to train.
        out: Study folder.
        on: What starts workers; None for this process.
        resume: Continue unfinished work in ``out``.
        retry_failed: With ``on``, try again what failed before.
        inputs: As for `train_study`; workers read theirs by themselves.

    Raises:
        UserError: As those two.
    """
    if on is None:
        return train_study(spec, out, resume=resume, **inputs)
    return train_on(on, spec, out, resume=resume, retry_failed=retry_failed)


def train_on(
    workers: Executor,
    spec: StudySpec,
    out: str | Path,
    *,
    resume: bool = False,
    retry_failed: bool = False,
) -> StudyResult:
    """`train_study` by several processes, which take its tasks one by one.

    A task that fails leaves the others. The same call again, also at the same time, does what
    is missing.

    Args:
        workers: What starts the processes.
        spec: What to train; model and text are read by each process.
        out: Study folder, which all of them see.
        resume: Continue unfinished work in ``out``.
        retry_failed: Try tasks again that failed in an earlier call.

    Raises:
        UserError: Bad input; or something is not finished, and why.
        StoppedError: The processes were asked to stop; checkpoints were saved.
    """
    root = Path(out).absolute()
    folder, share = StudyFolder(root), Share(root, retry_failed=retry_failed)
    spec = with_panels_that_fit(spec, folder, getattr(workers, "sharing_memory", 1))
    before = unfinished(spec, folder)
    with folder.joined(share, spec, resume or not before):
        pass
    if before:
        workers.run(partial(share_study, spec, root, share, environment()), root)
    if left := unfinished(spec, folder):
        raise UserError(f"study: {len(left)} of its SAEs are not finished: {_why(spec, share)}")
    with folder.joined(share), share.doing("finish:study") as mine:
        if mine:
            _clean_up(spec, folder)
    keys = [key for key in all_members(spec) if folder.member(key) in before]
    return StudyResult(root, measurements_of(spec, folder), keys)


def share_study(spec: StudySpec, root: Path, share: Share, expected: Mapping[str, Any]) -> None:
    """Do tasks of a study, beside other processes that call this, until none is left to do.

    Args:
        spec: The study.
        root: Its folder.
        share: Who does what.
        expected: The `environment` of who started this.

    Raises:
        UserError: This machine does not see the folder, or has other versions.
    """
    require_same(root, STUDY_FILE, expected)
    import_plugins(list(getattr(spec, "plugins", ())))
    folder = StudyFolder(root)
    with folder.joined(share):
        _do_all(spec, folder, share, {}, leave_failures=True)


def with_panels_that_fit(
    spec: AnyStudy, folder: StudyFolder, sharing: int = 1, **inputs: Any
) -> AnyStudy:
    """The spec with a number for ``max_panels_per_pass: auto``: the study's, if it has begun.

    Args:
        spec: What is to be trained.
        folder: Where.
        sharing: Processes that share the device's memory.
        inputs: As for `train_study`.

    Raises:
        UserError: Model or text cannot be read.
    """
    if not isinstance(spec, HookSpec) or spec.max_panels_per_pass != AUTO:
        return spec
    if folder.study_file.exists():
        begun = folder.stored_spec().get("max_panels_per_pass")
        return replace(spec, max_panels_per_pass=begun)
    fit, each = len(spec.panels()), replace(spec, max_panels_per_pass=1)
    for source in spec.source_names if fit > 1 else ():
        with opened(each, source, **inputs) as work:
            free = free_memory(work.source.device, sharing)
            for panels in _pairs(each, source):
                one, two = (
                    work.probe(Pass("probe", panels[0].seed, panels[:n])) for n in (1, 2)
                )
                members = len(trained_of(each, panels[1], source))
                least = members * bytes_in_training(each, work.d_in, work.start.d_out)
                these = 1 if free is None else panels_that_fit(one, two, least, free)
                fit = min(fit, these)
    logger.info("max_panels_per_pass: auto is %d here", fit)
    return replace(spec, max_panels_per_pass=fit)


def _pairs(spec: StudySpec, source: str) -> list[tuple[PanelKey, ...]]:
    """Of each architecture two panels; another's where it has one alone."""
    panels, found = spec.panels(source), []
    for base in spec.architectures:
        own = [panel for panel in panels if panel.architecture == base]
        others = [panel for panel in panels if panel.architecture != base]
        found.append(tuple([*own, *others][:2]))
    return found


@contextmanager
def opened(spec: StudySpec, source: str, **inputs: Any) -> Iterator["Work"]:
    """A source of a study, in a folder that is gone afterwards."""
    with TemporaryDirectory(prefix="sae_baselines_") as scratch:
        root = Path(scratch)
        work = Work(spec, StudyFolder(root), source, inputs, Share(root))
        try:
            yield work
        finally:
            work.close()
            del work
            gc.collect()


def _why(spec: StudySpec, share: Share) -> str:
    """The first failure of a task, and where all are listed."""
    for task in tasks(spec):
        last = share.last(task.name)
        if last is not None and last.end is not None and last.end["state"] == FAILED:
            said = f"{task.name} failed: {last.end['reason']}"
            return f"{said}; mend it and go on with --resume --retry-failed (log: {last.log})"
    return f"see sae-baselines status {share.root}, and go on with --resume"


def _do_all(
    spec: StudySpec,
    folder: StudyFolder,
    share: Share,
    inputs: Mapping[str, Any],
    leave_failures: bool = False,
) -> list[MemberKey]:
    """Do every task that is not done, each once what it needs is there.

    Returns:
        Members that were trained or made by this process.
    """
    made: list[MemberKey] = []
    left, opened, idle, waiting = tasks(spec), None, 0, Waiting()
    try:
        # Twice: what others finished meanwhile may have made something ready.
        while left and idle < 2:
            still, busy = [], False
            for task in left:
                if is_done(spec, folder, task):
                    continue
                if leave_failures and share.given_up(task.name) is not None:
                    continue
                still.append(task)
                if not _is_ready(spec, folder, task) or share.holder(task.name):
                    continue
                if opened is None or opened.name != task.source:
                    if opened is not None:
                        opened.close()
                    opened = None
                    gc.collect()  # the model of the source before
                    opened = Work(spec, folder, task.source, inputs, share)
                try:
                    with share.doing(task.name, _inputs_of(spec, folder, task)) as mine:
                        # Another process may have been quicker.
                        if mine and not is_done(spec, folder, task):
                            busy = True
                            made += opened.do(task)
                except Exception as error:
                    if isinstance(error, StoppedError) or not leave_failures:
                        raise
                    logger.error("%s failed: %s", task.name, one_line(error, 500))
            left = still
            if busy:
                idle, waiting = 0, Waiting()
            elif any(share.holder(task.name) for task in left):
                idle = 0
                waiting.again()
            else:
                idle += 1
    finally:
        if opened is not None:
            opened.close()
    return made


def is_done(spec: StudySpec, folder: StudyFolder, task: Task) -> bool:
    """Whether what a task makes is there, whoever made it.

    Raises:
        UserError: A file cannot be read, whatever is in it.
    """
    if task.kind == "train":
        return all(folder.is_trained(key) for key in _members_in(spec, task))
    if task.kind == "cache":
        of = [one for one in tasks(spec) if one.kind == "train" and one.source == task.source]
        trained = all(is_done(spec, folder, one) for one in of)
        return trained or folder.has_cache(task.source)
    if task.kind == "controls":
        ready = _is_ready(spec, folder, task)
        return ready and not missing_controls(spec, folder, spec.panels(task.source))
    if task.what == PUBLISHED:
        return folder.flaw_of_published() is None
    (key,) = _members_in(spec, task)
    return folder.flaw(key) is None


def _is_ready(spec: StudySpec, folder: StudyFolder, task: Task) -> bool:
    """Whether what a task needs is there; a copy of a published SAE is made on the way."""
    if task.kind == "train":
        return not spec.caches(task.source) or folder.has_cache(task.source)
    if task.kind == "controls":
        panels = [] if spec.reference is not None else spec.panels(task.source)
        trained = (key for p in panels for key in trained_of(spec, p, task.source))
        return all(folder.is_trained(key) for key in trained)
    if task.kind == "measure" and task.what != PUBLISHED:
        return all(folder.is_trained(key) for key in _members_in(spec, task))
    return True


def _members_in(spec: StudySpec, task: Task) -> list[MemberKey]:
    """What is trained in a pass; whom a measurement is of."""
    if task.kind == "train":
        (this_pass,) = (p for p in spec.passes(task.source) if p.name == task.what)
        return [k for p in this_pass.panels for k in trained_of(spec, p, task.source)]
    members = (k for p in spec.panels(task.source) for k in members_of(spec, p, task.source))
    return [key for key in members if key.name == task.what]


def _inputs_of(spec: StudySpec, folder: StudyFolder, task: Task) -> str:
    """Hash of the spec and of the weights that a task reads."""
    keys = [] if task.kind in ("cache", "train") else _members_in(spec, task)
    if task.kind == "controls":
        panels = spec.panels(task.source)
        keys = [k for p in panels for k in trained_of(spec, p, task.source)]
    paths = [folder.published] if spec.reference is not None else []
    files = [path / SAE_WEIGHTS_FILENAME for path in (*paths, *map(folder.member, keys))]
    return checksum_of(
        [spec_hash(spec), task.name, [sha256_of(f) for f in files if f.exists()]]
    )


def tasks(spec: StudySpec) -> list[Task]:
    """All work of a study, in an order in which each task finds what it needs."""
    out: list[Task] = []
    for source in spec.source_names:
        panels = spec.panels(source)
        if spec.caches(source):
            out.append(Task("cache", source, ""))
        out += [Task("train", source, this_pass.name) for this_pass in spec.passes(source)]
        members = [key for panel in panels for key in members_of(spec, panel, source)]
        if any(controls_of(spec, panel, source) for panel in panels):
            out.append(Task("controls", source, ""))
        if spec.reference is not None and source == spec.source_names[0]:
            out.append(Task("measure", source, PUBLISHED))
        out += [Task("measure", source, key.name) for key in members]
    return out


def needs(spec: StudySpec, task: Task) -> list[str]:
    """Names of the tasks whose files a task reads."""
    passes = [Task("train", task.source, p.name) for p in spec.passes(task.source)]
    if task.kind == "train" and spec.caches(task.source):
        return [Task("cache", task.source, "").name]
    if task.kind in ("cache", "train") or task.what == PUBLISHED:
        return []
    if task.kind == "controls":
        return [] if spec.reference is not None else [one.name for one in passes]
    (key,) = _members_in(spec, task)
    if key in controls_of(spec, key.panel, task.source):
        return [Task("controls", task.source, "").name]
    return [one.name for one in passes if key in _members_in(spec, one)]


def run_task(spec: StudySpec, out: str | Path, name: str, **inputs: Any) -> list[MemberKey]:
    """Do one task of a study; what is done already is not repeated.

    Args:
        spec: The study.
        out: Its folder; begun here if it is not there.
        name: `Task.name`, e.g. ``train:pass_0`` or
            ``measure:batchtopk_l0_32_seed_0.frozen_decoder``.
        inputs: As for `train_study`.

    Returns:
        Members that were trained or made.

    Raises:
        UserError: No such task, or as `train_study`.
    """
    known = {task.name: task for task in tasks(spec)}
    if name not in known:
        raise UserError(f"task: {name!r} is unknown; {did_you_mean(name, list(known))}")
    folder = StudyFolder(out)
    with folder.locked():
        folder.open(spec, resume=True)
        task, share, made = known[name], Share(Path(out)), []
        if not is_done(spec, folder, task):
            work = Work(spec, folder, task.source, inputs, share)
            with share.doing(name, _inputs_of(spec, folder, task)) as mine:
                if not mine:
                    raise UserError(f"task: {name} is being done by another process")
                made = work.do(task)
            work.close()
        if is_finished(spec, folder):
            _clean_up(spec, folder)
        return made


def measure_latents(
    spec: StudySpec, out: str | Path, **inputs: Any
) -> dict[MemberKey, Latents]:
    """Measure the latents of members that lack it, from their weights; see `latents_of`.

    Studies of today have it from their training on.

    Args:
        spec: The study, which must be finished.
        out: Its folder.
        inputs: As for `train_study`.

    Returns:
        Latents of every member.

    Raises:
        UserError: A member is not finished; model or text cannot be read.
    """
    folder = StudyFolder(out)
    with folder.locked():
        if flaws := unfinished(spec, folder):
            path, flaw = next(iter(flaws.items()))
            raise UserError(
                f"study: {path} is not finished ({flaw}); run sae-baselines train --resume "
                "first"
            )
        for source in spec.source_names:
            keys = [k for panel in spec.panels(source) for k in members_of(spec, panel, source)]
            missing = [k.name for k in keys if Latents.load(folder.member(k)) is None]
            first = source == spec.source_names[0]
            if first and spec.reference and Latents.load(folder.published) is None:
                missing.append(PUBLISHED)
            if missing:
                work = Work(spec, folder, source, inputs, Share(Path(out)))
                work.measure_latents(missing)
        found = {key: Latents.load(folder.member(key)) for key in all_members(spec)}
        return {key: latents for key, latents in found.items() if latents is not None}


def is_finished(spec: StudySpec, folder: StudyFolder) -> bool:
    """Whether everything of a study is whole and measured."""
    return folder.study_file.exists() and not unfinished(spec, folder)


def unfinished(spec: StudySpec, folder: StudyFolder) -> dict[Path, str]:
    """Folders of SAEs that are not whole or not measured, and what they lack.

    Raises:
        UserError: A file cannot be read, whatever is in it.
    """
    found = {folder.member(key): folder.flaw(key) for key in all_members(spec)}
    if spec.reference is not None:
        found[folder.published] = folder.flaw_of_published()
    return {path: flaw for path, flaw in found.items() if flaw is not None}


def _source_class(spec: StudySpec) -> type[Source]:
    module, name = spec.source.split(":")
    return getattr(importlib.import_module(module), name)


def _clean_up(spec: StudySpec, folder: StudyFolder) -> None:
    """Delete what nothing needs once everything is measured."""
    for source in spec.source_names:
        for this_pass in spec.passes(source):
            clear_checkpoints(folder.checkpoints / this_pass.name, spec_hash(spec))
    remove_empty(folder.checkpoints)
    remove(folder.caches)
    for pattern in _source_class(spec).scratch:
        for path in folder.root.glob(pattern):
            remove(path)


def measurements_of(spec: StudySpec, folder: StudyFolder) -> dict[MemberKey, dict[str, Any]]:
    """Measurements of the members that have one."""
    found = {key: folder.measurement(key) for key in all_members(spec)}
    return {key: m for key, m in found.items() if m}


def resolve_device(device: str, field: str = "device") -> str:
    """``auto`` is CUDA if there is any, else the CPU.

    Raises:
        UserError: A device that torch does not know or does not have; names ``field``.
    """
    if device == "auto":
        # Not MPS: measurements sum in float64, which it does not have.
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        if place.type == "cpu" and place.index:
            raise RuntimeError("there is one CPU, cpu")
        float(torch.ones(1, dtype=torch.float64, device=place))  # "meta" has no numbers
    except Exception as error:  # each backend has its own
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{field}: {device!r} cannot be used: {reason}; use auto, cpu or cuda"
        ) from error
    return device


class Work:
    """An opened source, and the tasks on it."""

    def __init__(
        self,
        spec: StudySpec,
        folder: StudyFolder,
        name: str,
        inputs: Mapping[str, Any],
        share: Share,
    ) -> None:
        self.spec, self.folder, self.name = spec, folder, name
        self._bar: Any = None
        self.members = {
            key.name: (key, member)
            for panel in spec.panels(name)
            for key, member in members_of(spec, panel, name).items()
        }
        # Keyword arguments are each source's own.
        open_source: Any = _source_class(spec)
        self.source: Source = open_source(spec, folder, name, **inputs)
        self.source.start_folder.mkdir(parents=True, exist_ok=True)
        # Of transcoders, activations are inputs and outputs side by side.
        width = self.source.calibration.shape[1]
        self.d_in = getattr(self.source, "d_in", width)
        self.start = prepare_start(
            spec, self.source.calibration, self.source.start_folder, self.d_in
        )

        waiting = Waiting()
        while spec.reference is not None and not folder.has_published():
            with share.doing("copy:published") as mine:
                if mine and not folder.has_published():
                    keep_published(spec, folder)
            if not mine:
                waiting.again()

    def do(self, task: Task) -> list[MemberKey]:
        """Do a task; who was trained or made."""
        if task.kind == "cache":
            assert isinstance(self.source, CachingSource)
            self.source.cache_activations()
            return []
        if task.kind == "train":
            return self._train(task.what)
        if task.kind == "controls":
            return self._make_controls()
        if self._bar is None:
            where = f" ({self.name})" if self.name else ""
            missing = [w for w in self.members if not self._is_measured(w)]
            n = len(missing) + (task.what == PUBLISHED)
            self._bar = progress(total=n, desc=f"Measuring{where}", unit="SAE")
        self._measure(task.what)
        self._bar.update()
        return []

    def close(self) -> None:
        """Nothing more is done with it."""
        if self._bar is not None:
            self._bar.close()

    def _train(self, name: str) -> list[MemberKey]:
        spec, folder = self.spec, self.folder
        (this_pass,) = (p for p in spec.passes(self.name) if p.name == name)
        members = {
            k: m for p in this_pass.panels for k, m in trained_of(spec, p, self.name).items()
        }
        # Members see the same batches whoever trains beside them: only what is lost is trained.
        members = {k: m for k, m in members.items() if not folder.is_trained(k)}
        checkpoints = folder.checkpoints / name
        if not members:
            clear_checkpoints(checkpoints, spec_hash(spec))
            return []
        began = time.monotonic()
        run = self._run_of(this_pass, members)
        with clipping_at(spec.clip_grad_norm):
            trained = self.source.train(run)
        seconds = round(time.monotonic() - began, 1)
        for key in progress(members, desc="Calibrating and exporting", unit="SAE"):
            self._export(key, trained, run, seconds)
        # SAELens' runner and trainer refer to each other: without this the SAEs and
        # optimisers of finished passes stay in memory.
        del trained
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        require_own()
        clear_checkpoints(checkpoints, spec_hash(spec))
        return list(members)

    def _run_of(self, this_pass: Pass, members: Mapping[MemberKey, MemberSpec]) -> PassRun:
        source = self.source
        return PassRun(
            this_pass,
            member_configs(self.spec, members, self.start, self.d_in, source.device),
            self.start,
            self.folder.checkpoints / this_pass.name,
            source.held_out,
            self.spec.drift,
        )

    def probe(self, this_pass: Pass) -> Probe:
        """A pass's first steps; see `study.probe`."""
        panels = (trained_of(self.spec, panel, self.name) for panel in this_pass.panels)
        run = self._run_of(this_pass, {k: m for of_one in panels for k, m in of_one.items()})
        with clipping_at(self.spec.clip_grad_norm):
            model_on = getattr(self.source, "llm_device", None)
            found = probe(lambda: self.source.train(run), self.source.device, model_on)
        remove(run.checkpoints)
        remove(run.drift)
        return found

    def seconds_to_measure(self, panel: PanelKey) -> float:
        """Of a member; what is read once for all is not counted."""
        key, member = next(iter(trained_of(self.spec, panel, self.name).items()))
        run = self._run_of(Pass("measured", panel.seed, (panel,)), {key: member})
        (sae,) = run.build(self.source.device).values()
        folder = self.folder.root / "measured"
        sae.save_inference_model(folder)

        def measure() -> float:
            began = time.monotonic()
            loaded = SAE.load_from_disk(folder, device=self.source.device)
            self.source.measure(loaded, folder, panel.l0, None)
            self._measure_latents(folder, loaded, None)
            return time.monotonic() - began

        return min(measure(), measure())

    def _export(self, key: MemberKey, trained: Trained, run: PassRun, seconds: float) -> None:
        """Bring a trained member to its L0 and write its folder."""
        trainer = trained.trainers[key.name]
        sae: TrainingSAE[Any] = trainer.sae
        assert_finite(key.name, sae)
        calibration = calibrate(sae, self.source.calibration, key.panel.l0)
        _, member = self.members[key.name]
        l0 = recorded_l0(run.l0, key.name)
        facts = {
            "panel": key.panel.name,
            "member": key.member,
            "architecture": sae.cfg.architecture(),
            "base_architecture": key.panel.architecture,
            "l0_target": key.panel.l0,
            "init_seed": key.panel.seed,
            "data_seed": run.this_pass.data_seed,
            "spec_hash": spec_hash(self.spec),
            "samples_seen": trainer.n_training_samples,
            "training_steps": trainer.n_training_steps,
            "calibration": asdict(calibration),
            "l0_in_training": l0["end"],
            **({"control": member.constraint} if member.is_trained_control else {}),
            **trained.facts,
            **self.source.facts,
        }
        _tell_l0(key.name, facts, alive=1 - float(trainer.dead_neurons.float().mean()))
        sae.cfg.metadata.sae_baselines = facts
        with self.folder.new_member(key) as scratch:
            sae.save_inference_model(scratch)
            sparsity = trainer.log_feature_sparsity.contiguous()
            save_file({"sparsity": sparsity}, scratch / SPARSITY_FILENAME)
            provenance = {
                **facts,
                "pass_seconds": seconds,
                "l0_over_training": l0,
                "steps_since_start": _kinds_of_steps(sae),
                **trained.record,
                **environment(),
            }
            write_provenance(scratch, provenance)
            for name in (DRIFT_FILE, HISTOGRAM_FILE):
                if self.spec.drift and (run.drift / key.name / name).exists():
                    shutil.copy(run.drift / key.name / name, scratch / name)

    def _make_controls(self) -> list[MemberKey]:
        return make_controls(
            self.spec,
            self.folder,
            self.source.calibration,
            self.source.facts,
            self.spec.panels(self.name),
        )

    def _is_measured(self, what: str) -> bool:
        return flaw_of_measurement(self._folder_of(what)) is None

    def _folder_of(self, what: str) -> Path:
        return (
            self.folder.published
            if what == PUBLISHED
            else self.folder.member(self.members[what][0])
        )

    def _measure(self, what: str) -> None:
        folder, target = self._folder_of(what), self.spec.l0s[0]
        if what != PUBLISHED:
            target = self.members[what][0].panel.l0
        sae, cosines = self._load(what)
        measured = self.source.measure(sae, folder, target, cosines)
        self._measure_latents(folder, sae, cosines)
        require_own()
        # Last: who has a measurement is finished.
        write_measurement(folder, {**measured, **identity_of(folder, measured)})

    def _measure_latents(self, folder: Path, sae: SAE[Any], cosines: Cosines | None) -> None:
        decoder = None if cosines is None else cosines[0]
        latents_of(sae, self.source.evaluation, decoder).save(folder / LATENTS_FILE)

    def measure_latents(self, work: Sequence[str]) -> None:
        """Measure latents of members that were measured before there was such a file."""
        for what in progress(work, desc="Latents", unit="SAE"):
            self._measure_latents(self._folder_of(what), *self._load(what))

    def _load(self, what: str) -> tuple[SAE[Any], Cosines | None]:
        """An exported SAE, and where its directions are relative to their start."""
        folder, cosines = self._folder_of(what), None
        try:
            sae = SAE.load_from_disk(folder, device=self.source.device)
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise unreadable(
                folder, error, f"delete {folder} and run with --resume, which makes it again"
            ) from error
        if what != PUBLISHED:
            key, member = self.members[what]
            # Whitening leaves the start's space; controls have no training to move them.
            if self.spec.normalization != "covariance_whitening" and not member.is_control:
                cosines = cosines_to_start(
                    sae, key.panel.seed, member.init_scheme, self.start.covariance_path
                )
        return sae, cosines


def _tell_l0(name: str, facts: Mapping[str, Any], alive: float) -> None:
    """Say that a member gets no verdict for its L0; a report would be long after.

    Args:
        name: The member's.
        facts: Its provenance.
        alive: Share of its latents that fired within SAELens' window.
    """
    for metric, ratio in trained_at(facts).items():
        if off_target(metric, ratio):
            logger.warning(
                "%s: %s %.3g, so it gets no verdict (target %g; %.0f %% of its latents are "
                "alive). Use an l0 that it can be held at, or more training_tokens: a control "
                "needs some 300 steps",
                *(name, OFF_TARGET[metric], ratio, facts["l0_target"], 100 * alive),
            )
            return


def _kinds_of_steps(sae: TrainingSAE[Any]) -> dict[str, Any] | None:
    """How many steps ran on active entries, and why others did not; None without them."""
    state = getattr(sae, "sparse_state", None)
    if state is None or not sae.cfg.sparse_step:
        return None
    return {"sparse": state.sparse_steps, "dense": state.dense_steps}
