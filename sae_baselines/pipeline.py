"""The stages of a study as one call each, and all of them in one go."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE

from sae_baselines.baselines.directions import read_tensor
from sae_baselines.controls import PUBLISHED, TRAINED, Control, make_control
from sae_baselines.errors import UserError
from sae_baselines.evals import (
    EvalReport,
    EvalSpec,
    Target,
    eval_spec_from_dict,
    load_eval_spec,
    study_targets,
    suite_names,
    write_results,
)
from sae_baselines.evals.doctor import (
    Diagnosis,
    diagnose,
    require_possible,
    require_runnable,
)
from sae_baselines.evals.endpoint import check_endpoint
from sae_baselines.evals.registry import get_suite
from sae_baselines.evals.results import PANEL_SUITE, checked_results
from sae_baselines.evals.run import Prepared, prepared, subject_of
from sae_baselines.evals.spec import has_eval_spec, store_spec, stored_spec
from sae_baselines.evals.store import EvalStore
from sae_baselines.evals.study import local_model_of, subject_of_panel, targets_of
from sae_baselines.files import new_folder
from sae_baselines.home import own_key
from sae_baselines.progress import progress as bar
from sae_baselines.provenance import environment, now
from sae_baselines.reach import say_if_silent
from sae_baselines.report import Report, report
from sae_baselines.report.exports import Member, write_neuronpedia, write_saedashboard
from sae_baselines.report.gallery import PAGE, Shown
from sae_baselines.report.latents_page import (
    BLIND_PAGE,
    About,
    rows_of,
    write_blind,
    write_gallery,
)
from sae_baselines.stats import METHOD, Plan, planned, read_spreads
from sae_baselines.stats.spreads import Spread, spreads_of
from sae_baselines.study import PanelSpec, StudyResult, load_spec
from sae_baselines.study.contexts import Contexts, check_same_model, measure_contexts
from sae_baselines.study.engine import measure_latents, resolve_device, run_study
from sae_baselines.study.folder import STUDY_FILE, StudyFolder, load_study
from sae_baselines.study.latents import LATENTS_FILE, Latents
from sae_baselines.study.plan import MemberKey, all_members, members_named, panel_named
from sae_baselines.study.reference.check import prepare_check
from sae_baselines.study.reference.loose import Loose, read_loose
from sae_baselines.study.reference.recipe import Ask, CheckOptions, described
from sae_baselines.study.sources.text import kept_open
from sae_baselines.study.spec import SECTIONS, import_plugins
from sae_baselines.study.stability import Nearest, measure_stability, nearest_latents
from sae_baselines.work.claims import Share
from sae_baselines.work.executor import Executor, require_same
from sae_baselines.yaml_text import read_yaml

FIGURE_FILES = (".png", ".svg")
PANEL_FILES = (".yaml", ".yml")

_Wanted = Mapping[MemberKey, Sequence[int]]


@dataclass(frozen=True)
class Evaluation(EvalReport):
    """What an evaluation did, and the numbers.

    Attributes:
        results: The tidy table, as in ``results.csv`` of ``out``.
        primary_metrics: ``suite/metric`` that the verdicts are on.
    """

    results: pd.DataFrame
    primary_metrics: list[str]


def train(
    panel: PanelSpec | str | Path,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    device: str | None = None,
    on: Executor | None = None,
    retry_failed: bool = False,
) -> StudyResult:
    """Train an SAE and its baselines on one activation stream.

    Args:
        panel: What to train, or a panel file (YAML); its section ``evals`` is kept as what
            `evaluate` does by default.
        out: Study folder; default ``studies/<name>``.
        resume: Continue unfinished work in ``out``.
        device: Torch device; default: the panel's.
        on: What starts processes that share the work; default: it is done in this one.
        retry_failed: With ``on``, try again what failed before.

    Returns:
        Folder and measurements.

    Raises:
        UserError: Bad input, in one line; nothing finished is lost.
        InterruptedTrainingError: SIGINT or SIGTERM; a checkpoint was saved.
    """
    file = None if isinstance(panel, PanelSpec) else Path(panel)
    if file is not None and (file / STUDY_FILE).is_file():
        raise UserError(
            f"panel: {file} is a study; name the panel file it was made from, with --resume"
        )
    if file is not None and not file.is_file():
        raise UserError(
            f"panel: there is no file {file}; make one with sae-baselines preset pythia-70m > "
            f"{file}"
        )
    spec = panel if isinstance(panel, PanelSpec) else load_spec(panel)
    if device is not None:
        spec = dataclasses.replace(spec, device=device)
    folder = Path(out or Path("studies") / spec.name)
    evals = load_eval_spec(file) if file is not None and has_eval_spec(file) else None
    say_if_silent((spec.model.name, spec.dataset.path))
    if evals is not None:
        _require_possible(spec, evals)
    result = run_study(spec, folder, on, resume=resume, retry_failed=retry_failed)
    if evals is not None:
        store_spec(folder, evals)
    return result


def _require_possible(spec: PanelSpec, evals: EvalSpec) -> None:
    """What a panel file says of suites can work, on whatever machine they will run."""
    try:
        subject = subject_of_panel(spec, dataclasses.replace(evals, device="cpu"))
    except UserError:
        return  # the model cannot be read: training says why
    require_possible(subject, evals.suites)


def latents(
    study: str | Path, *, device: str | None = None, allow_plugins: bool = False
) -> dict[MemberKey, Latents]:
    """What each latent of a study's SAEs does on held-out text; measured where it is not yet.

    Seeds are held against each other too (``stability.json``).

    Args:
        study: Study folder, finished, with its weights; model and text are read again.
        device: Torch device; default: the panel's.
        allow_plugins: As of `evaluate`.

    Raises:
        UserError: Bad input, in one line.
    """
    spec = _spec_here(study, device, allow_plugins)
    found = measure_latents(spec, study)
    with StudyFolder(study).locked():
        measure_stability(spec, study)
    return found


def _spec_here(study: str | Path, device: str | None, allow_plugins: bool) -> PanelSpec:
    """Of a study whose model is to be read again."""
    spec, _ = load_study(study)
    if allow_plugins:
        import_plugins(spec.plugins)
    if device is not None:
        spec = dataclasses.replace(spec, device=device)
    # As stored, the path of a local model may be relative to the study.
    if local := local_model_of(study):
        spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, name=str(local)))
    return spec


@dataclass(frozen=True)
class GalleryOptions:
    """What `gallery` shows, and what it writes.

    Attributes:
        panel: Name of the panel; default the first.
        members: Names; default all of the panel.
        per_decade: Rows of each decade of the firing rate.
        seed: Draws them.
        named: Member and index of latents that get a row of their own, first.
        blind: Pairs with the names hidden instead, and their key.
        out: The page; default ``latents.html`` or ``latents_blind.html`` in the study.
        neuronpedia: Folder for Neuronpedia's files of the same latents.
        saedashboard: Folder for SAEDashboard's.
    """

    panel: str | None = None
    members: Sequence[str] | None = None
    per_decade: int = 4
    seed: int = 0
    named: Sequence[tuple[str, int]] = ()
    blind: bool = False
    out: Path | None = None
    neuronpedia: Path | None = None
    saedashboard: Path | None = None


def gallery(
    study: str | Path,
    options: GalleryOptions | None = None,
    *,
    device: str | None = None,
    allow_plugins: bool = False,
    **inputs: Any,
) -> list[Path]:
    """Latents of a panel side by side, with the held-out text on which they fire.

    Text is read where contexts of one of the latents are not kept yet.

    Args:
        study: Study folder, whose `latents` are measured.
        options: What to show and to write.
        device: Torch device; default: the panel's.
        allow_plugins: As of `evaluate`.
        inputs: ``dataset`` and ``model`` in memory.

    Returns:
        Files and folders that were written.

    Raises:
        UserError: Bad input, in one line.
    """
    options = options or GalleryOptions()
    spec, folder = _spec_here(study, device, allow_plugins), StudyFolder(study)
    chosen = panel_named(spec, options.panel)
    keys = members_named(spec, chosen, options.members)
    if spec.published is not None and options.members is None:
        keys.insert(0, MemberKey(chosen, PUBLISHED))
    check_same_model(spec, {key: folder.member(key) for key in keys})
    known = {key: Latents.load(folder.member(key)) for key in keys}
    measured = {key: found for key, found in known.items() if found is not None}
    if len(measured) < len(keys):
        raise UserError(
            f"study: latents of {study} are not measured; run sae-baselines latents"
        )
    about = About(f"`{chosen.name}` of `{spec.name}`", spec.model.recorded_name, spec.hook_name)
    trained = [m.name for m in spec.member_specs if m.constraint == TRAINED]
    return _write_gallery(
        Path(study),
        options,
        _Seen(
            spec,
            measured,
            partial(measure_contexts, spec, study, **inputs),
            partial(nearest_latents, spec, study),
        ),
        about,
        trained,
        str(load_study(study)[1].get("created", "")),
    )


def loose_gallery(
    sources: Sequence[str | Path],
    out: str | Path,
    options: GalleryOptions | None = None,
    about: CheckOptions | None = None,
) -> list[Path]:
    """`gallery` of SAEs that are of no study: their model reads text for them.

    Args:
        sources: SAELens folders, ``release:sae_id`` or ``user/repo:folder``, all of one model
            and hook. A blind page asks which latent is the first one's.
        out: Folder for the page.
        options: What to show and to write; ``panel`` and ``members`` say nothing here.
        about: Model, hook, text and context size where the first SAE does not record them.

    Returns:
        Files and folders that were written.

    Raises:
        UserError: Bad input, in one line.
    """
    found = read_loose([str(source) for source in sources], about)
    names = [key.member for key in found.latents]
    return _write_gallery(
        Path(out),
        options or GalleryOptions(),
        found,
        About(
            ", ".join(f"`{name}`" for name in names),
            found.spec.model.recorded_name,
            found.spec.hook_name,
        ),
        names[:1],
        now(),
    )


@dataclass(frozen=True)
class _Seen:
    """SAEs of a study as a gallery shows them: what `Loose` is for SAEs of none."""

    spec: PanelSpec
    latents: Mapping[MemberKey, Latents]
    contexts: Callable[[_Wanted], Mapping[MemberKey, Contexts]]
    nearest: Callable[[_Wanted], Mapping[tuple[MemberKey, int], list[Nearest]]]


def _write_gallery(
    folder: Path,
    options: GalleryOptions,
    of: _Seen | Loose,
    about: About,
    trained: Sequence[str],
    created: str,
) -> list[Path]:
    measured = of.latents
    rows = rows_of(measured, options.named, options.per_decade, options.seed)
    keys = list(measured)
    wanted = {key: [row[key] for _, row in rows] for key in keys}
    contexts = of.contexts(wanted)
    near = {} if options.blind else of.nearest(wanted)

    def called(other: MemberKey) -> str:
        same = other.panel == keys[0].panel
        return other.member if same else f"{other.member} (seed {other.panel.seed})"

    shown = [
        (
            decade,
            [
                Shown(
                    key.member,
                    i,
                    float(measured[key].rates[i]),
                    float(measured[key].cos_to_start[i]),
                    contexts[key].latents[i],
                    {called(n.key): n for n in near.get((key, i), [])},
                    blind=options.blind,
                )
                for key, i in row.items()
            ],
        )
        for decade, row in rows
    ]
    out = options.out or folder / (BLIND_PAGE if options.blind else PAGE)
    if options.blind:
        written = write_blind(out, shown, trained, options.seed, about)
    else:
        written = write_gallery(out, [key.member for key in keys], shown, options.seed, about)
    saes = [Member((key.panel.name, key.member), contexts[key], created) for key in keys]
    if options.neuronpedia is not None:
        written += write_neuronpedia(options.neuronpedia, of.spec, saes)
    if options.saedashboard is not None:
        written += write_saedashboard(options.saedashboard, saes)
    return written


def evaluate(
    sources: str | Path | Sequence[str | Path],
    suites: Sequence[str] | None = None,
    out: str | Path | None = None,
    *,
    config: str | Path | None = None,
    device: str | None = None,
    seeds: int | None = None,
    model: str | Path | None = None,
    force: bool = False,
    clean: bool = False,
    verbose: bool = False,
    command: str | None = None,
    allow_plugins: bool = False,
    on: Executor | None = None,
    retry_failed: bool = False,
) -> Evaluation:
    """Run SAEBench's suites on a study, on SAELens folders, or on published SAEs.

    What is finished is not repeated; a suite that fails on one SAE is recorded and the others
    go on.

    Args:
        sources: A study folder; or SAELens folders and ``release:sae_id``.
        suites: Names, or ``["all"]``; default: as last time, or the default suites.
        out: Folder; a study is evaluated in its own.
        config: Panel file whose section ``evals`` says how; default: as last time.
        device: Torch device; default: the settings'.
        seeds: Only the first so many training seeds of a study.
        model: Local folder of the language model; default: the study's, or the Hub.
        force: Evaluate again what is finished.
        clean: Remove cached activations at the end.
        verbose: Show SAEBench's own output instead of writing it to log files.
        command: Command line to record.
        allow_plugins: Import the modules that a study names under ``plugins``, where its SAEs
            have a class that only they know. They run: only for studies whose code you trust.
        on: What starts processes that share the work; default: it is done in this one.
        retry_failed: With ``on``, try again what failed before.

    Raises:
        UserError: Bad input, before any work.
    """
    if on is not None and force:
        raise UserError("force: makes all anew in one process; leave --on away")
    named = [str(s) for s in ([sources] if isinstance(sources, str | Path) else sources)]
    study = len(named) == 1 and _is_study(named[0])
    if study and out is not None:
        raise UserError("out: a study is evaluated in its own folder; leave --out away")
    absent = [s for s in named if ":" not in s and not Path(s).exists()]
    if absent:
        raise UserError(f"sources: {absent[0]} is neither a folder nor a release:sae_id")
    if out is None and not study:
        raise UserError(
            f"out: needed for SAEs that are not a study, and {named[0]} is none; e.g. --out "
            "evaluation"
        )
    root = Path(out or named[0])
    plugins = load_study(root)[0].plugins if study and allow_plugins else []
    import_plugins(plugins)
    spec, model = _settings(root, config, suites, device), _model(named, model)
    if on is None:
        done = _evaluate(_targets(named, seeds), spec, root, model, force, verbose, command)
    else:
        share = Share(root.absolute(), retry_failed=retry_failed)
        asked = partial(
            _prepared, named, seeds, spec, share.root, model, verbose, command, plugins, share
        )
        done = _evaluate_on(on, asked, share, spec)
    if clean:
        EvalStore(root).clean()
    return done


def _evaluate(
    targets: list[Target],
    spec: EvalSpec,
    root: Path,
    model: str | Path | None,
    force: bool,
    verbose: bool,
    command: str | None,
) -> Evaluation:
    # Before anything is written.
    ready = prepared(targets, spec, root, model, force, verbose, command)
    with StudyFolder(root).locked():
        done = ready.run()
        results = write_results(root)
    return Evaluation(results=results, primary_metrics=spec.primary_metrics, **vars(done))


def _prepared(
    named: list[str],
    seeds: int | None,
    spec: EvalSpec,
    root: Path,
    model: str | Path | None,
    verbose: bool,
    command: str | None,
    plugins: list[str],
    share: Share,
) -> Prepared:
    """Of plain data, so that another process can be asked for it."""
    import_plugins(plugins)
    targets = _targets(named, seeds)
    return prepared(targets, spec, root, model, False, verbose, command, share)


def _evaluate_on(
    workers: Executor, asked: Callable[[], Prepared], share: Share, spec: EvalSpec
) -> Evaluation:
    with StudyFolder(share.root).joined(share):
        own_key()  # of which each worker would make its own
        before = asked().standing()
    workers.run(partial(share_evaluation, asked, share, environment()), share.root)
    with StudyFolder(share.root).joined(share):
        done = asked().standing()
        results = write_results(share.root)
    new = [name for name in done.kept if name not in before.kept]
    found = {**vars(done), "done": new, "kept": before.kept}
    return Evaluation(results=results, primary_metrics=spec.primary_metrics, **found)


def share_evaluation(
    asked: Callable[[], Prepared], share: Share, expected: Mapping[str, Any]
) -> None:
    """Evaluate beside other processes that call this, until nothing is left to do.

    Args:
        asked: What to evaluate, and how.
        share: Who does what.
        expected: The `environment` of who started this.

    Raises:
        UserError: This machine does not see the folder, or has other versions.
    """
    require_same(share.root, ".", expected)
    ready = asked()
    with StudyFolder(share.root).joined(share):
        ready.run()


def examine(
    source: str | Path | None = None,
    suites: Sequence[str] | None = None,
    *,
    config: str | Path | None = None,
    device: str | None = None,
    model: str | Path | None = None,
) -> tuple[list[Diagnosis], str | None]:
    """Which suites can run here; arguments as of `evaluate`, without ``suites`` all.

    Returns:
        One diagnosis a suite, and what the judge answers of those that ask one, a line each.

    Raises:
        UserError: Bad input.
    """
    named = [] if source is None else [str(source)]
    root = Path(named[0]) if named and _is_study(named[0]) else None
    spec = _settings(root, config, suites if suites is not None else ["all"], device)
    subject = None
    if named:
        targets = _targets(named, None)[:1]
        subject = subject_of(targets, spec, resolve_device(spec.device), _model(named, model))
    diagnoses = diagnose(subject, list(spec.suites), spec.suites, root or Path.cwd())
    judges = []
    for suite in (d.suite for d in diagnoses if d.ok and get_suite(d.suite).needs.judge):
        options = spec.options_of(suite)
        trouble = check_endpoint(options["model"])
        answer = f"does not answer as it should: {trouble}" if trouble else "answers"
        judges.append(
            f"{suite}: the judge {options['model']} {answer}; an SAE takes at most "
            f"{get_suite(suite).requests(options):,} requests"
        )
    return diagnoses, "\n".join(judges) or None


def _is_study(source: str) -> bool:
    return (Path(source) / STUDY_FILE).exists()


def _settings(
    root: Path | None,
    config: str | Path | None,
    suites: Sequence[str] | None,
    device: str | None,
) -> EvalSpec:
    spec = load_eval_spec(config) if config is not None else None
    if spec is None and root is not None:
        spec = stored_spec(root, to_run=suites is None)
    spec = spec or eval_spec_from_dict({})
    if suites is not None:
        spec = spec.only(suite_names() if list(suites) == ["all"] else list(suites))
    return dataclasses.replace(spec, device=device) if device is not None else spec


def _targets(sources: list[str], seeds: int | None) -> list[Target]:
    if len(sources) == 1 and _is_study(sources[0]):
        return study_targets(sources[0], seeds)
    studies = [s for s in sources if _is_study(s)]
    if studies:
        raise UserError(f"sources: {studies[0]} is a study; evaluate it on its own")
    if seeds is not None:
        raise UserError("seeds: belongs to a study, not to single SAEs")
    return targets_of(sources)


def _model(sources: list[str], model: str | Path | None) -> str | Path | None:
    if model is not None or not _is_study(sources[0]):
        return model
    return local_model_of(sources[0])


def check(
    source: PanelSpec | str | Path,
    out: str | Path | None = None,
    *,
    suites: Sequence[str] | None = None,
    options: CheckOptions | None = None,
    config: str | Path | None = None,
    evals: EvalSpec | None = None,
    side_by_side: GalleryOptions | None = None,
    device: str | None = None,
    verbose: bool = False,
    command: str | None = None,
    on: Executor | None = None,
    retry_failed: bool = False,
    ask: Ask | None = None,
    progress: Callable[[str | Evaluation | Report, Path], None] | None = None,
) -> bool:
    """Train, evaluate and report in one go; call it again to continue.

    With a panel: the SAEs it describes. With an SAE: baselines and controls are trained
    around it, with its width, hook, L0 and text, and the report says where it falls among them.

    Args:
        source: A panel, or its file (``.yaml``); or an SAE: SAELens folder,
            ``release:sae_id`` or ``user/repo:folder``.
        out: Study folder; default ``studies/<name>``.
        suites: Names; ``["panel"]`` for this package's own measurements alone.
        options: Decisions about the panels around an SAE; None for a panel.
        config: YAML with further fields of the panels around an SAE, and a section ``evals``.
        evals: Instead of what a file says, or of the defaults.
        side_by_side: Have a `gallery` of a study on text, and some of it in the report.
        device: Torch device.
        verbose: Show SAEBench's own output.
        command: Command line to record.
        on: What starts processes that share the work; default: it is done in this one.
        retry_failed: With ``on``, try again what failed before.
        ask: Called with an option and a question for what an SAE does not record; None where
            nobody can be asked.
        progress: Called with what there is to show, as soon as it is there, and the study
            folder: lines of text, the evaluation, the report.

    Returns:
        Whether everything was evaluated.

    Raises:
        UserError: Bad input; before training, where that can be known.
        InterruptedTrainingError: SIGINT or SIGTERM; a checkpoint was saved.
    """

    def tell(found: str | Evaluation | Report) -> None:
        if progress is not None:
            progress(found, root)

    model = None
    if isinstance(source, PanelSpec) or str(source).endswith(PANEL_FILES):
        if options is not None or config is not None:
            raise UserError("options: are for an SAE; a panel says these things itself")
        if isinstance(source, PanelSpec):
            spec, evals = source, evals or eval_spec_from_dict({})
        else:
            spec, evals = load_spec(source), evals or load_eval_spec(source)
        root = Path(out or Path("studies") / spec.name)
    else:
        options = options or CheckOptions()
        overrides = {**_overrides(config), **options.overrides}
        options = dataclasses.replace(options, device=device, overrides=overrides)
        if evals is None and config and has_eval_spec(config):
            evals = load_eval_spec(config)
        for name in suites or ():
            if name != PANEL_SUITE:
                get_suite(name)
        ready = prepare_check(str(source), options, out, ask)
        spec, root, model = ready.spec, ready.folder, ready.model
        evals = evals or stored_spec(root) or eval_spec_from_dict({})
        evals, notes = suites_for(spec, evals, suites)
        for line in [*described(spec), *notes]:
            tell(line)
    if device is not None:
        spec = dataclasses.replace(spec, device=device)
        evals = dataclasses.replace(evals, device=device)
    say_if_silent((spec.model.name, spec.dataset.path))
    # Before hours of training: an upgrade meanwhile must not leave two versions in one process.
    import_module("sae_baselines.report.plots")
    train_panels = partial(_train, spec, root, model, on, retry_failed, side_by_side)
    if suites is not None and list(suites) == [PANEL_SUITE]:
        train_panels()
        write_results(root)
        tell(_reported(root))
        return True
    if suites is not None:
        evals = evals.only([name for name in suites if name != PANEL_SUITE])
    _require_possible(spec, evals)
    for line in power_lines(_power(spec, evals, read_spreads())):
        tell(line)
    subject = subject_of_panel(spec, evals)
    require_runnable(diagnose(subject, list(evals.suites), evals.suites, root))
    train_panels()
    local = local_model_of(root)
    if on is None:
        done = _evaluate(study_targets(root), evals, root, local, False, verbose, command)
    else:
        share = Share(root.absolute(), retry_failed=retry_failed)
        named = [str(share.root)]
        asked = partial(
            _prepared, named, None, evals, share.root, local, verbose, command, [], share
        )
        done = _evaluate_on(on, asked, share, evals)
    tell(done)
    tell(_reported(root))
    return not done.failures


def _reported(root: Path) -> Report:
    with bar(total=1, desc="Writing the report", unit="page") as written:
        made = report(root)
        written.update()
    return made


def _train(
    spec: PanelSpec,
    root: Path,
    model: Any,
    on: Executor | None,
    retry_failed: bool,
    side_by_side: GalleryOptions | None,
) -> None:
    with kept_open() if side_by_side is not None else nullcontext():
        run_study(spec, root, on, resume=True, retry_failed=retry_failed, model=model)
        folder = StudyFolder(root)
        # Of studies of before, `latents` measures it.
        if all((folder.member(key) / LATENTS_FILE).exists() for key in all_members(spec)):
            with folder.locked():
                measure_stability(spec, root)
        if side_by_side is not None:
            gallery(root, side_by_side, device=spec.device, model=model)


def _overrides(config: str | Path | None) -> dict[str, Any]:
    """Fields of a panel file in a YAML file, without its section 'evals'."""
    if config is None:
        return {}
    data = read_yaml(config)
    if not isinstance(data, dict):
        raise UserError(f"{config}: is not a mapping of fields; see 'sae-baselines preset'")
    fixed = sorted({"published", "d_sae", "d_in", "expansion", "l0"} & set(data))
    if fixed:
        raise UserError(f"{config}: {fixed[0]} is the SAE's own; leave it away")
    if "architecture" in data:
        raise UserError(f"{config}: architecture: use --architecture")
    return {name: value for name, value in data.items() if name not in SECTIONS}


def power(panel: PanelSpec | str | Path, pilot: str | Path | None = None) -> Plan:
    """What a study's seeds can show, before it is run.

    Args:
        panel: What is to be trained, or a panel file (YAML), whose section ``evals`` says which
            metrics verdicts are on.
        pilot: Study folder whose spreads over seeds are taken; default: those of this package's
            own studies (``sae_baselines/stats/spreads.csv``).

    Raises:
        UserError: Bad input; a pilot without two seeds to compare.
    """
    spec = panel if isinstance(panel, PanelSpec) else load_spec(panel)
    evals = eval_spec_from_dict({}) if isinstance(panel, PanelSpec) else load_eval_spec(panel)
    return _power(spec, evals, read_spreads() if pilot is None else _of_pilot(pilot))


def _of_pilot(pilot: str | Path) -> list[Spread]:
    spec, _ = load_study(pilot)
    spreads = spreads_of(
        checked_results(pilot)[0],
        source=str(pilot),
        model=spec.model.name,
        hook=spec.hook_name,
        tokens=spec.training_tokens,
    )
    if not spreads:
        raise UserError(
            f"pilot: {pilot} has no metric that two seeds or more were compared on; train it "
            "with more seeds, or leave --pilot out"
        )
    return spreads


def _power(spec: PanelSpec, evals: EvalSpec, spreads: Sequence[Spread]) -> Plan:
    compared = sum(m.constraint != TRAINED for m in spec.member_specs)
    groups = len(spec.architectures) * len(spec.l0s)
    return planned(
        spreads,
        evals.primary_metrics,
        seeds=len(spec.seeds),
        constraints={m.constraint for m in spec.member_specs},
        architectures=spec.architectures,
        margins=evals.margins,
        families=compared * groups if evals.correct == "study" else 1,
    )


def power_notes(plan: Plan) -> list[str]:
    """How the numbers of a plan are meant, and what it has none for."""
    lines = []
    if plan.planned:
        lines.append(
            f"{METHOD.power:.0%} power at level {METHOD.alpha:g}/{plan.n_tests} (the first "
            f"step of {METHOD.correction}). Spreads are of {', '.join(plan.sources)}; in "
            "brackets: seeds if the true spread is at the upper 80 % limit of these few seeds. "
            "Another model, layer, width or budget may spread more or less."
        )
    lines += [f"No study at hand has measured {name}: give a --pilot." for name in plan.unknown]
    if plan.seeds < 2:
        lines.append("One seed gives numbers and no word.")
    return lines


def power_lines(plan: Plan) -> list[str]:
    """What the seeds of a study can and cannot show, a line per metric."""
    n = plan.seeds
    if n < 2:
        return ["What 1 seed can show: numbers, and no verdict."]
    lines = [
        f"What {n} seeds can show ({METHOD.power:.0%} power, {METHOD.correction} over "
        f"{plan.n_tests} tests; see sae-baselines power):"
    ]
    for p in plan.planned:
        line = f"- {p.name}: differences of {p.smallest(n):.2g} ({n + 1} seeds: "
        line += f"{p.smallest(n + 1):.2g})"
        if p.margin is not None:
            most = f"more than {METHOD.most_seeds}"
            needed = [str(k or most) for k in (p.to_differ(), p.to_match())]
            line += (
                f"; of its margin {p.margin.value:g} with {needed[0]} seeds, equivalence with "
                f"{needed[1]}"
            )
        lines.append(line)
    return lines + [f"- {name}: not known, as no earlier study has it" for name in plan.unknown]


def save_power_figure(plan: Plan, path: str | Path) -> None:
    """Draw power over seeds.

    Raises:
        UserError: Not a name of a PNG or SVG file, or nothing to draw.
    """
    from sae_baselines.report.power_plot import power_figure  # noqa: PLC0415

    path = Path(path)
    if path.suffix not in FIGURE_FILES:
        raise UserError(f"figure: {path} is neither a .png nor a .svg file")
    if not any(p.margin for p in plan.planned):
        raise UserError("figure: no metric has a margin and a known spread; give a pilot")
    figure = power_figure(plan)
    path.write_bytes(figure.png if path.suffix == ".png" else figure.svg)


def suites_for(
    spec: PanelSpec, evals: EvalSpec, names: Sequence[str] | None
) -> tuple[EvalSpec, list[str]]:
    """The suites that can score SAEs of this study, and a note on those that cannot.

    Args:
        spec: The study.
        evals: How it is evaluated.
        names: Suites that were asked for; to leave one of these out is an error.

    Raises:
        UserError: A suite was named that reads other activations than the SAE does.
    """
    subject = subject_of_panel(spec, evals)

    def unfit(suites: Sequence[str]) -> list[str]:
        several = [get_suite(name) for name in suites if name != PANEL_SUITE]
        return [suite.name for suite in several if not suite.reads_what_the_sae_reads(subject)]

    why = (
        "the SAE reads activations of a model whose writing weights are centred "
        "(center_writing_weights), and SAEBench reads them as they are in"
    )
    if names and unfit(names):
        raise UserError(f"suites: {why} {', '.join(unfit(names))}; use core")
    dropped = unfit(list(evals.suites)) if names is None else []
    if not dropped:
        return evals, []
    kept = [name for name in evals.suites if name not in dropped] or ["core"]
    return evals.only(kept), [f"Not run: {', '.join(dropped)}: {why} these."]


def control(
    source: SAE[Any] | str | Path,
    kind: str,
    out: str | Path,
    *,
    activations: torch.Tensor | str | Path | None = None,
    l0: float | None = None,
    seed: int = 0,
) -> Control:
    """Make an SAE without training from any SAE, and save it as a SAELens folder.

    Args:
        source: An SAE, a SAELens folder or ``release:sae_id``.
        kind: Which; see `sae_baselines.controls.CONTROLS`.
        out: Folder for the new SAE; empty, or not there.
        activations: Of the SAE's hook, ``[n, d_in]``; or a ``.npy``, or ``.safetensors`` with
            a tensor ``activations``. A random control needs them.
        l0: L0 of a random control; default: the source's.
        seed: Seed (>= 0).

    Returns:
        The control, which is saved.

    Raises:
        UserError: As `sae_baselines.controls.make_control`; a file or folder that is not as it
            should be.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"out: {folder} is not an empty folder; use another")
    if isinstance(activations, str | Path):
        try:
            activations = read_tensor(Path(activations), "activations", "activations")
        except ValueError as error:
            raise UserError(str(error)) from error
    made = make_control(source, kind, seed=seed, activations=activations, l0=l0)
    with new_folder(folder.resolve()) as scratch:
        made.save(scratch)
    return made
