"""Running SAEBench's suites on SAEs: seeds, caches, resume, failures."""

import contextlib
import gc
import json
import logging
import math
import os
import shutil
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig, Transcoder

from sae_baselines.compat.saebench import counted_latents
from sae_baselines.controls import is_random_model
from sae_baselines.errors import StoppedError, UserError, one_line
from sae_baselines.evals.doctor import asked_of_hub, diagnose, require_runnable
from sae_baselines.evals.judge import with_test
from sae_baselines.evals.measured import not_finite
from sae_baselines.evals.models import LanguageModels
from sae_baselines.evals.plan import eval_task, warm_up_task
from sae_baselines.evals.registry import get_suite, suite_names
from sae_baselines.evals.spec import (
    DECISIVE,
    EvalSpec,
    eval_spec_from_dict,
    settings_hash,
    store_spec,
    stored_spec,
)
from sae_baselines.evals.store import (
    FLOORS,
    EvalStore,
    Failure,
    Result,
    fingerprints,
    hash_of_files,
    linked,
)
from sae_baselines.evals.suite import Extras, Subject, Suite, SuiteCall, from_seed
from sae_baselines.evals.target import Target, prepare, target_of
from sae_baselines.files import checksum_of, keep_links_inside, own_file
from sae_baselines.home import own_key
from sae_baselines.progress import progress
from sae_baselines.provenance import environment, now, versions
from sae_baselines.reach import say_if_silent
from sae_baselines.study.engine import resolve_device
from sae_baselines.study.language_model import say_if_emulated
from sae_baselines.study.redraw import RandomModel
from sae_baselines.work.claims import Share, TakenOverError, Waiting

logger = logging.getLogger("sae_baselines")

_THROWAWAY = "warm-up"
_THROWAWAY_LATENTS = 512


@dataclass(frozen=True)
class EvalReport:
    """What `evaluate` did.

    Attributes:
        out: Folder; results are in ``evals`` below it.
        done: (suite, name) evaluated by this call.
        kept: (suite, name) that were finished already.
        failures: What failed.
        notes: Sentences worth showing: suite, name, note.
    """

    out: Path
    done: list[tuple[str, str]]
    kept: list[tuple[str, str]]
    failures: list[Failure]
    notes: list[tuple[str, str, str]]


def evaluate(
    saes: Mapping[str, SAE[Any] | str | Path] | Sequence[Target],
    suites: EvalSpec | Mapping[str, Mapping[str, Any]] | Sequence[str] | None = None,
    out: str | Path = "evaluation",
    *,
    model: str | Path | None = None,
    force: bool = False,
    verbose: bool = False,
    command: str | None = None,
) -> EvalReport:
    """Run SAEBench's suites, unchanged, on every SAE.

    What is finished in ``out`` under the same settings is not repeated; a suite that fails on
    one SAE is recorded and the others go on. A score does not depend on the other SAEs, their
    order, or what was cached.

    Args:
        saes: Name to SAE, SAELens folder, or ``release:sae_id``; or prepared targets.
        suites: An `EvalSpec`, suite names, or suites with options.
        out: Folder to write to.
        model: Local folder of the language model; default: the model named in the SAEs, from
            the Hub.
        force: Evaluate again what is finished.
        verbose: Show SAEBench's own output instead of writing it to log files.
        command: Command line to record.

    Returns:
        What was done and what failed.

    Raises:
        UserError: Bad input, before any work.
    """
    targets = (
        [target_of(name, source) for name, source in saes.items()]
        if isinstance(saes, Mapping)
        else list(saes)
    )
    return prepared(targets, _spec(suites), out, model, force, verbose, command).run()


def prepared(
    targets: Sequence[Target],
    spec: EvalSpec,
    out: str | Path,
    model: str | Path | None,
    force: bool,
    verbose: bool,
    command: str | None,
    share: Share | None = None,
) -> "Prepared":
    """Everything that `evaluate` refuses is refused here, before anything is written."""
    keep_links_inside(Path(out))
    stored_spec(out)
    _check_names(targets)
    device = resolve_device(spec.device)
    runs: list[tuple[Runner, list[Target]]] = []
    notes: list[tuple[str, str, str]] = []
    for drawn, of_model in _by_random_model(targets).items():
        suites = list(spec.suites)
        if drawn is not None:
            refused = {name: get_suite(name).on_random_model for name in suites}
            refused = {name: on for name, on in refused.items() if on.use == "refused"}
            notes += [
                (name, target.name, f"is not run on a model with random weights. {on.says}")
                for name, on in refused.items()
                for target in of_model
            ]
            suites = [name for name in suites if name not in refused]
        if not suites:
            continue
        own = spec.only(suites)
        subject = subject_of(of_model, own, device, model)
        say_if_silent(asked_of_hub(subject, own.suites))
        say_if_emulated(subject.llm_dtype, subject.device)
        diagnoses = diagnose(subject, suites, own.suites, out)
        require_runnable(diagnoses)
        for diagnosis in diagnoses:
            for warning in diagnosis.warnings:
                logger.warning("%s: %s", diagnosis.suite, warning)
        runner = Runner(EvalStore(out), own, subject, force, verbose, command, share)
        runs.append((runner, of_model))
    if not runs:
        raise UserError(f"suites: none of {', '.join(spec.suites)} runs on a random model")
    return Prepared(Path(out), runs, notes)


def _by_random_model(targets: Sequence[Target]) -> dict[RandomModel | None, list[Target]]:
    """SAEs of the model as it is, then those of each random one."""
    found: dict[RandomModel | None, list[Target]] = {}
    for target in targets:
        is_of_one = is_random_model(target.facts.constraint)
        drawn = RandomModel.of_metadata(target.load().cfg.metadata) if is_of_one else None
        found.setdefault(drawn, []).append(target)
    return dict(sorted(found.items(), key=lambda item: item[0] is not None))


@dataclass(frozen=True)
class Prepared:
    """An evaluation that was found possible.

    Attributes:
        out: Folder that results are written to.
        runs: A runner for each language model, and its SAEs.
        notes: What is not run, and why.
    """

    out: Path
    runs: list[tuple["Runner", list[Target]]]
    notes: list[tuple[str, str, str]]

    def run(self) -> EvalReport:
        """Evaluate, one language model after the other."""
        return self._joined(runner.run(targets) for runner, targets in self.runs)

    def standing(self) -> EvalReport:
        """What is finished, whoever did it, and what failed of the rest."""
        return self._joined(runner.standing(targets) for runner, targets in self.runs)

    def _joined(self, parts: Iterable[EvalReport]) -> EvalReport:
        report = EvalReport(self.out, [], [], [], list(self.notes))
        for part in parts:
            report.done.extend(part.done)
            report.kept.extend(part.kept)
            report.failures.extend(part.failures)
            report.notes.extend(part.notes)
        return report


def _spec(suites: Any) -> EvalSpec:
    if isinstance(suites, EvalSpec):
        return suites
    if suites is None:
        return EvalSpec()
    if isinstance(suites, str):
        raise UserError(f"suites: give a list of names, not the text {suites!r}")
    if not isinstance(suites, Mapping):
        suites = {name: {} for name in suites}
    given = {name: dict(options) for name, options in suites.items()}
    return eval_spec_from_dict({"suites": given}, where="evaluate")


def _check_names(targets: Sequence[Target]) -> None:
    if not targets:
        raise UserError("saes: none given")
    names = [t.name for t in targets]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UserError(f"saes: {', '.join(twice)}: names must differ in files; rename one")


def subject_of(
    targets: Sequence[Target], spec: EvalSpec, device: str, model: str | Path | None
) -> Subject:
    """What the SAEs have in common.

    Raises:
        UserError: They belong to different models or hooks, which no comparison bridges, or
            do not name theirs.
    """
    found: dict[tuple[str, str, str | None, int, bool], str] = {}
    drawn: RandomModel | None = None
    widths = []
    for target in targets:
        sae = target.load()
        metadata: Any = sae.cfg.metadata
        name = getattr(metadata, "model_name", None)
        hook = getattr(metadata, "hook_name", None)
        if not name or not hook:
            raise UserError(
                f"{target.name}: its metadata lacks model_name or hook_name, which SAEBench "
                "needs; set sae.cfg.metadata.model_name and .hook_name"
            )
        kwargs = getattr(metadata, "model_from_pretrained_kwargs", None) or {}
        centred = bool(kwargs.get("center_writing_weights"))
        drawn = RandomModel.of_metadata(metadata)
        if drawn is not None and drawn.name != str(name):
            raise UserError(
                f"{target.name}: its metadata name {name} as its model, and {drawn.name} as "
                "the random one that it was trained on; use the SAE as it was exported"
            )
        writes = _hook_out(target.name, sae)
        of = (str(name), str(hook), writes, int(sae.cfg.d_in), centred)
        found.setdefault(of, target.name)
        widths.append(int(sae.cfg.d_sae))
    if len(found) > 1:
        listed = "; ".join(
            f"{who}: {m}{', centred' if c else ''}, {h}{f' to {o}' if o else ''}, d_in {d}"
            for (m, h, o, d, c), who in found.items()
        )
        raise UserError(f"saes: not of one model and hook ({listed}); evaluate them apart")
    ((model_name, hook_name, hook_name_out, d_in, centred),) = found
    folder = None
    if model is not None:
        folder = Path(model).resolve()
        if not folder.is_dir():
            raise UserError(f"model: {model} is not a folder; leave it out for the Hub's")
    return Subject(
        model_name=model_name,
        hook_name=hook_name,
        d_in=d_in,
        d_sae=min(widths),
        device=device,
        llm_dtype=spec.llm_dtype,
        llm_batch_size=spec.llm_batch_size,
        local_model=folder,
        centred=centred,
        drawn=drawn,
        hook_name_out=hook_name_out,
    )


def _hook_out(name: str, sae: SAE[Any]) -> str | None:
    """Where a transcoder writes; None for an SAE."""
    if not isinstance(sae, Transcoder):
        return None
    found = sae.cfg.metadata.hook_name_out
    if not found:
        raise UserError(
            f"{name}: its metadata lacks hook_name_out, where it writes; set "
            "sae.cfg.metadata.hook_name_out"
        )
    return str(found)


class Runner:
    """The evaluation of SAEs of one language model."""

    def __init__(
        self,
        store: EvalStore,
        spec: EvalSpec,
        subject: Subject,
        force: bool,
        verbose: bool,
        command: str | None,
        share: Share | None = None,
    ) -> None:
        self.store, self.spec, self.subject = store, spec, subject
        self.force, self.verbose, self.command = force, verbose, command
        self.share = share or Share(store.root)
        found = versions()
        self.versions = {name: found[name] for name in DECISIVE if name in found}
        self._stored: set[str] = set()
        self._without_floors: dict[str, list[tuple[Target, Result]]] = {}
        self._known: dict[str, dict[str, Any]] = {}
        self._hash_of_model: str | None = None
        self.done: list[tuple[str, str]] = []
        self.kept: list[tuple[str, str]] = []
        self.failures: list[Failure] = []
        self.notes: list[tuple[str, str, str]] = []

    def run(self, targets: Sequence[Target]) -> EvalReport:
        jobs = self._jobs(targets)
        waiting = Waiting()
        with contextlib.ExitStack() as bars:
            opened: dict[str, Any] = {}
            while True:
                left = sum(map(len, jobs.values()))
                for name, missing in jobs.items():
                    n = len(missing) + len(self._without_floors.get(name, ()))
                    if not n:
                        continue
                    if name not in opened:
                        bar = progress(total=n, desc=f"Evaluating {name}", unit="SAE")
                        opened[name] = bars.enter_context(bar)
                    jobs[name] = self._run_suite(get_suite(name), missing, opened[name])
                    self._without_floors.pop(name, None)
                    if not jobs[name]:
                        opened[name].close()
                # Other processes are at what is left; they may die.
                if not any(jobs.values()):
                    break
                if sum(map(len, jobs.values())) < left:
                    waiting = Waiting()
                waiting.again()
        return self._report()

    def standing(self, targets: Sequence[Target]) -> EvalReport:
        """What is finished, whoever did it, and what failed of the rest."""
        known = {(failure.suite, failure.name): failure for failure in self.store.failures()}
        for suite, missing in self._jobs(targets).items():
            for target in missing:
                why = "nobody came to its end with it; see sae-baselines status"
                unknown = Failure(suite, target.name, why, target.facts.to_dict())
                self.failures.append(known.get((suite, target.name), unknown))
        return self._report()

    def _jobs(self, targets: Sequence[Target]) -> dict[str, list[Target]]:
        wanted = [name for name in suite_names() if name in self.spec.suites]
        return {name: self._open(name, targets) for name in wanted}

    def _report(self) -> EvalReport:
        return EvalReport(self.store.root, self.done, self.kept, self.failures, self.notes)

    def _open(self, suite: str, targets: Sequence[Target]) -> list[Target]:
        """The targets that have no result under these settings."""
        missing = []
        settings = self._settings(suite)
        floors = self.spec.options_of(suite).get(FLOORS, False)
        for target in targets:
            found = self.store.load(suite, target.name)
            if found is None or self.force:
                missing.append(target)
            elif not self._is_of(found, target, settings):
                logger.info("%s %s: other settings or weights; again", suite, target.name)
                missing.append(target)
            else:
                self.kept.append((suite, target.name))
                self._note(suite, target.name, found.record["notes"])
                self._has_run(suite)
                self._choose(found)
                self._add_test(found)
                if floors and FLOORS not in found.record["extras"]:
                    self._without_floors.setdefault(suite, []).append((target, found))
        return missing

    @staticmethod
    def _is_of(found: Result, target: Target, settings: str) -> bool:
        of = found.record["settings"], found.record["weights"]
        return of == (settings, target.weights)

    def _is_finished(self, suite: str, target: Target) -> bool:
        found = self.store.load(suite, target.name)
        return found is not None and self._is_of(found, target, self._settings(suite))

    def _has_run(self, suite: str) -> None:
        """Settings are stored with the first result made under them, and not before."""
        if suite not in self._stored:
            store_spec(self.store.root, self.spec.only([suite]))
            self._stored.add(suite)

    @property
    def _choice(self) -> dict[str, Any]:
        """What verdicts are to be made of, which changes no score."""
        spec = self.spec
        return {
            "primary": spec.primary,
            "margins": dict(spec.margins),
            "correct": spec.correct,
        }

    def _choose(self, found: Result) -> None:
        """A result that is kept is judged as asked now."""
        choice = found.record.get("choice")
        if choice is None or {k: choice.get(k) for k in self._choice} != self._choice:
            self.store.amend(found, choice={**self._choice, "created": now()})

    def _add_test(self, found: Result) -> None:
        """The test of a result's judge, where it came after the scores."""
        extras = found.record["extras"]
        judge = extras.get("judge")
        if judge and "test" not in judge:
            tested = with_test(judge, found.suite)
            if "test" in tested:
                self.store.amend(found, extras={**extras, "judge": tested})

    def _conditions(self, suite: str) -> dict[str, Any]:
        """What a score depends on that no option says."""
        if suite not in self._known:
            adapter, local = get_suite(suite), self.subject.local_model
            options = self.spec.options_of(suite)
            self._known[suite] = {
                "device": torch.device(self.subject.device).type,
                "local_model": None if local is None else self._model_hash(local),
                "data": fingerprints(options, adapter.local_data),
                **adapter.conditions(options),
            }
        return self._known[suite]

    def _model_hash(self, folder: Path) -> str:
        if self._hash_of_model is None:
            self._hash_of_model = hash_of_files(folder)
        return self._hash_of_model

    def _settings(self, suite: str) -> str:
        return settings_hash(suite, self.spec, self.versions, self._conditions(suite))

    def _note(self, suite: str, name: str, notes: Sequence[str]) -> None:
        self.notes.extend((suite, name, note) for note in notes)

    def _run_suite(self, suite: Suite, targets: Sequence[Target], bar: Any) -> list[Target]:
        """Evaluate; the targets that other processes are at are left, and returned."""
        models = LanguageModels(
            self.subject, self.spec.shared, int(self.spec.shared_gib * 2**30)
        )
        key = self._cache_key(suite)
        scored = self._without_floors.get(suite.name, [])
        like = [*targets, *(target for target, _ in scored)][0]
        filled = self.store.cache(suite.name, key) / ("warm" if suite.warm_up else "filled")
        filling, left = warm_up_task(suite.name, key), []
        try:
            if suite.warm_up and not filled.exists():
                if self.share.given_up(filling) is not None:
                    return []  # who tried it has said so of all
                bar.set_postfix_str("caches")
                try:
                    with self.share.doing(filling) as mine:
                        if mine:
                            self._warm_up(suite, like, models, key)
                except Exception as error:
                    for target in targets:
                        self._fail(suite, target, error)
                        bar.update()
                    for target, _ in scored:
                        self._no_floors(suite, target, error)
                        bar.update()
                    return []
                if not mine:
                    return list(targets)
            with contextlib.ExitStack() as alone:
                # Without a warm-up, the first that is scored fills the cache.
                if not filled.exists() and not alone.enter_context(self.share.doing(filling)):
                    return list(targets)
                for target in targets:
                    bar.set_postfix_str(target.name)
                    if not self._take(suite, target, models, key):
                        left.append(target)
                        continue
                    bar.update()
                    scored_now = self.done[-1:] == [(suite.name, target.name)]
                    if scored_now and not filled.exists():
                        filled.touch()
                        alone.close()
                for target, found in scored:
                    bar.set_postfix_str(f"floors of {target.name}")
                    with self.share.doing(f"floors:{suite.name}:{target.name}") as mine:
                        if mine:
                            self._add_floors(suite, target, found, models, key)
                    bar.update()
        finally:
            models.forget()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return left

    def _take(self, suite: Suite, target: Target, models: LanguageModels, key: str) -> bool:
        """Evaluate a target, or record that it fails; False where another process is at it."""
        task = eval_task(suite.name, target.name)
        if self.share.given_up(task) is not None:
            return True
        # Done by another process meanwhile: no attempt of ours, which would look like a second.
        if not self.force and self._is_finished(suite.name, target):
            return True
        try:
            with self.share.doing(task, self._inputs(suite, target)) as mine:
                if mine and (self.force or not self._is_finished(suite.name, target)):
                    self._run_one(suite, target, models, key)
        except StoppedError:
            raise
        except TakenOverError as error:
            logger.warning("%s", error)
            return False
        except Exception as error:
            self._fail(suite, target, error)
            return True
        return mine

    def _inputs(self, suite: Suite, target: Target) -> str:
        return checksum_of([self._settings(suite.name), target.weights])

    def _cache_key(self, suite: Suite) -> str:
        """Of everything that can change what is cached, which no SAE is part of."""
        data = {
            "settings": self._settings(suite.name),
            "model": self.subject.model_name,
            "hook": self.subject.hook_name,
            # Of this user's own making, since some of it is pickled.
            "owner": own_key(),
        }
        if self.subject.drawn is not None:
            data["drawn"] = self.subject.drawn.name
        return checksum_of(data)[:16]

    def _warm_up(self, suite: Suite, like: Target, models: LanguageModels, key: str) -> None:
        marker = self.store.cache(suite.name, key) / "warm"
        if marker.exists():
            return
        sae = throwaway(like.load(), self.subject)
        work = self.store.work(suite.name, _THROWAWAY)
        call = self._call(suite, _THROWAWAY, key, work)
        if FLOORS in call.options:
            call = replace(call, options={**call.options, FLOORS: False})
        self._execute(suite, sae, call, models, self.store.log_file(suite.name, _THROWAWAY))
        shutil.rmtree(work, ignore_errors=True)
        marker.touch()

    def _run_one(self, suite: Suite, target: Target, models: LanguageModels, key: str) -> None:
        sae, note = prepare(target.load(), self.subject.device, self.spec.fold_decoder_norms)
        work = self._own_work(suite, target)
        call = self._call(suite, target.name, key, work)
        began = time.monotonic()
        log = self.store.log_file(suite.name, target.name)
        with counted_latents(sae, work / "encoded") as encoded:
            extras = self._execute(suite, sae, call, models, log)
        if not encoded.finite:
            raise RuntimeError("its latents are not finite, or overflow where they are squared")
        # Only where it encoded anything.
        extras.values.update({"fired": encoded.active > 0} if encoded.n else {})
        if call.options.get(FLOORS, False):
            del sae
            extras.values.update(self._floors(suite, target, call, models))
        payload = json.loads(call.expected.read_text(encoding="utf-8"))
        rows = suite.scores(payload, extras.values)
        why = {row.metric: f": {row.missing}" for row in rows if row.missing and not row.task}
        bad = not_finite(rows)
        primary = [f"{m}{why.get(m, '')}" for m in bad if m in suite.primary]
        if primary:
            raise RuntimeError(f"not a number: {', '.join(primary)}")
        notes = [*([note] if note else []), *extras.notes]
        notes += [f"{metric} is not a number{why.get(metric, '')}" for metric in bad]
        record = {
            "suite": suite.name,
            "name": target.name,
            "facts": target.facts.to_dict(),
            "options": self.spec.options_of(suite.name),
            "seed": self.spec.seed if suite.seeded else None,
            "llm_dtype": self.spec.llm_dtype,
            "llm_batch_size": self.spec.llm_batch_size,
            "fold_decoder_norms": self.spec.fold_decoder_norms,
            "shared": self.spec.shared,
            "warm_up": suite.warm_up,
            "model_name": self.subject.model_name,
            "hook_name": self.subject.hook_name,
            "settings": self._settings(suite.name),
            "conditions": self._conditions(suite.name),
            "command": self.command,
            "weights": target.weights,
            "extras": extras.values,
            "encoded": encoded.to_dict(),
            "notes": notes,
            "seconds": round(time.monotonic() - began, 1),
            "choice": {**self._choice, "created": now()},
            **environment(),
        }
        self.store.keep(suite.name, target.name, call.expected, record)
        shutil.rmtree(work, ignore_errors=True)
        self._has_run(suite.name)
        self.done.append((suite.name, target.name))
        self._note(suite.name, target.name, notes)

    def _floors(
        self, suite: Suite, target: Target, call: SuiteCall, models: LanguageModels
    ) -> dict[str, Any]:
        """What a record says of a suite's floors; nothing where they could not be measured, so
        that the scores stay and the next evaluation completes them."""
        sae, _ = prepare(target.load(), self.subject.device, self.spec.fold_decoder_norms)
        log = self.store.log_file(suite.name, f"{target.name}.{FLOORS}")
        try:
            with self._inside(call, models, log):
                rows = suite.floors(sae, call)
        except Exception as error:
            self._no_floors(suite, target, error)
            return {}
        numbers = [row for row in rows if math.isfinite(row.value)]
        return {FLOORS: [[r.metric, r.value, r.task, r.n, r.n_of] for r in numbers]}

    def _add_floors(
        self,
        suite: Suite,
        target: Target,
        found: Result,
        models: LanguageModels,
        key: str,
    ) -> None:
        """Measure the floors of a result that was made without; its scores stay."""
        work = self._own_work(suite, target)
        floors = self._floors(suite, target, self._call(suite, target.name, key, work), models)
        if not floors:
            return
        # What is judged of it may have been changed meanwhile.
        latest = self.store.load(suite.name, target.name) or found
        record = latest.record
        self.store.amend(
            latest,
            extras={**record["extras"], **floors},
            options={**record.get("options", {}), FLOORS: True},
        )
        shutil.rmtree(work, ignore_errors=True)

    def _no_floors(self, suite: Suite, target: Target, error: Exception) -> None:
        reason = f"floors were not measured: {type(error).__name__}: {one_line(error, 500)}"
        self._note(suite.name, target.name, [reason])
        logger.error("%s %s: %s", suite.name, target.name, reason)

    def _own_work(self, suite: Suite, target: Target) -> Path:
        """Scratch that an interrupted run of the same SAE and settings continues in."""
        work = self.store.work(suite.name, target.name)
        owner = work / "owner"
        mine = f"{checksum_of([self._settings(suite.name), own_key()])} {target.weights}"
        if work.exists() and (not owner.exists() or owner.read_text() != mine):
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
        owner.write_text(mine)
        return work

    def _call(self, suite: Suite, name: str, key: str, work: Path) -> SuiteCall:
        cache = self.store.cache(suite.name, key)
        output = work / "output"
        shutil.rmtree(output, ignore_errors=True)
        for folder in (cache, output):
            folder.mkdir(parents=True, exist_ok=True)
        link = work / "cache"
        if not link.is_symlink():
            link.symlink_to(cache, target_is_directory=True)
        options = self.spec.options_of(suite.name)
        return SuiteCall(
            subject=self.subject,
            options=suite.resolve(linked(options, suite.local_data, work)),
            seed=self.spec.seed,
            name=name,
            output=output,
            cache=cache,
            work=work,
        )

    def _execute(
        self, suite: Suite, sae: SAE[Any], call: SuiteCall, models: LanguageModels, log: Path
    ) -> Extras:
        with self._inside(call, models, log):
            extras = suite.run(sae, call)
        if not call.expected.exists():
            raise RuntimeError("SAEBench wrote no result")
        return extras

    @contextlib.contextmanager
    def _inside(self, call: SuiteCall, models: LanguageModels, log: Path) -> Iterator[None]:
        """Everything that a suite may take for granted while it runs."""
        with (
            _output_to(None if self.verbose else log),
            _chdir(call.work),
            models.answering(),
            from_seed(call.seed),
        ):
            yield

    def _fail(self, suite: Suite, target: Target, error: Exception) -> None:
        reason = f"{type(error).__name__}: {one_line(error, 500)}"
        trace = "".join(traceback.format_exception(error))
        log = self.store.log_file(suite.name, target.name)
        with own_file(log).open("a", encoding="utf-8") as file:
            file.write(trace)
        facts = target.facts.to_dict()
        failure = {"reason": reason, "facts": facts, **environment()}
        self.store.fail(suite.name, target.name, failure)
        self._has_run(suite.name)
        self.failures.append(Failure(suite.name, target.name, reason, facts))
        logger.error("%s %s failed: %s (log: %s)", suite.name, target.name, reason, log)


def throwaway(like: SAE[Any], subject: Subject) -> SAE[Any]:
    """An untrained SAE that runs first where SAEBench treats the first differently.

    Args:
        like: For its metadata.
        subject: Width and device.
    """
    # Of one width whatever the SAEs: the language model's probes are trained after its own, by
    # random numbers of which it has taken as many as it has latents.
    cfg = StandardSAEConfig(d_in=subject.d_in, d_sae=_THROWAWAY_LATENTS, device=subject.device)
    cfg.metadata = like.cfg.metadata
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        sae = StandardSAE(cfg)
    with torch.no_grad():
        rows = torch.randn(sae.W_dec.shape, generator=generator)
        rows = rows / rows.norm(dim=-1, keepdim=True)
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
    return sae.to(subject.device).eval()


@contextlib.contextmanager
def _chdir(folder: Path) -> Iterator[None]:
    # contextlib.chdir came with Python 3.11.
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _output_to(path: Path | None) -> Iterator[None]:
    """What SAEBench prints goes to a file, so that one progress bar remains readable."""
    if path is None:
        yield
        return
    with (
        own_file(path).open("w", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield
