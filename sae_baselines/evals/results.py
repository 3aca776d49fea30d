"""The results table of a study's folder: collected from measurements and suites' files."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from sae_lens.constants import SAE_WEIGHTS_FILENAME

from sae_baselines.errors import UserError
from sae_baselines.evals.judge import judge_rows, same_judge
from sae_baselines.evals.measured import HIGHER, LOWER, NEITHER, Direction, Measured
from sae_baselines.evals.metrics import AFFINE, null_name
from sae_baselines.evals.registry import get_suite, suite_names
from sae_baselines.evals.spec import DECISIVE
from sae_baselines.evals.store import EvalStore, Result
from sae_baselines.evals.study import (
    facts_of_member,
    measurements,
    saes_of,
    study_targets,
    training_versions,
)
from sae_baselines.evals.target import hash_of_folder
from sae_baselines.files import is_sealed, reading
from sae_baselines.results import (
    CAP_BOUND,
    KEY,
    MEASURED_L0,
    PANEL_SUITE,
    RESULTS_FILE,
    SAME_WEIGHTS,
    check_table,
    checksum_file,
    load_results,
    read_table,
    refuse_empty,
    row,
    table_of,
    versions_text,
    write_table,
)
from sae_baselines.study.folder import (
    MEASUREMENT_FILE,
    STUDY_FILE,
    StudyFolder,
    load_study,
    read_measurement,
)
from sae_baselines.study.identity import CAP_SHARE, SKIP, WEIGHTS, identity_of, training_of
from sae_baselines.study.plan import MemberKey
from sae_baselines.study.spec import MemberSpec

# The panel's own measurement: name and direction.
_PANEL: dict[str, Direction] = {
    "explained_variance": HIGHER,
    "l0": NEITHER,
    "alive": NEITHER,
    "ev_median_token": NEITHER,
    "error_in_few": NEITHER,
    "ce_recovered": HIGHER,
    "ce_loss_clean": NEITHER,
    "ce_loss_with_sae": NEITHER,
    "cos_to_start_mean": NEITHER,
    "cos_to_start_min": NEITHER,
    # Of transcoders: with the whole layer replaced, and by the affine map alone.
    "kl": LOWER,
    **{null_name(m, AFFINE): NEITHER for m in ("explained_variance", "ce_recovered", "kl")},
}
# What is measured of the SAEs of a vision study; `collect` takes no part in it.
_VISION: dict[str, Direction] = {
    "explained_variance": HIGHER,
    "l0": NEITHER,
    "dead": NEITHER,
    "rare": NEITHER,
    "rare_patches": NEITHER,
    "rare_photographs": NEITHER,
    "rare_on_one_photograph": NEITHER,
    "cos_to_start_mean": NEITHER,
}
_COUNT_TOKENS = ("explained_variance", "ev_median_token", "error_in_few", "l0")
_VERSIONS = ("sae-baselines", *DECISIVE)
_VISION_VERSIONS = ("sae-baselines", "sae-lens", "torch", "transformers")


@dataclass(frozen=True)
class Checks:
    """What nothing vouches for in a study's results.

    Attributes:
        unverified: ``suite of SAE`` whose file is not in the folder: the numbers are those of
            ``results.csv``.
        edited: Rows in which ``results.csv`` said other than the file that they are from; the
            file's number is used.
        unsealed: Files without a checksum, made before there were any.
    """

    unverified: tuple[str, ...] = ()
    edited: tuple[str, ...] = ()
    unsealed: int = 0


def collect(root: str | Path) -> pd.DataFrame:
    """Every number of a study (or of an `evaluate` folder), checked.

    Args:
        root: Folder with ``evals``, and ``study.yaml`` if it is a study.

    Returns:
        The table; sorted, so that equal results give equal files.

    Raises:
        UserError: Results of one suite were made under different settings, a row is there
            twice, or a file that the numbers are from was changed.
    """
    root = Path(root)
    hashes = None
    if (root / STUDY_FILE).exists():
        hashes = {target.name: target.weights for target in study_targets(root)}
    return _table(root, EvalStore(root).results(), hashes)


def _table(root: Path, results: list[Result], hashes: Mapping[str, str] | None) -> pd.DataFrame:
    """Rows of these results and of the measurements in the folder."""
    results = [r for r in results if r.suite in suite_names()]
    _check_settings(results)
    rows: list[dict[str, Any]] = []
    if hashes is not None:
        rows.extend(_panel_rows(root))
        _check_weights(root, results, hashes)
    for result in results:
        store = EvalStore(root)
        record = store.record_file(result.suite, result.name)
        path = store.result_file(result.suite, result.name)
        with reading(path, f"delete {record.name} beside it and evaluate again"):
            rows.extend(_rows(result))
    return _sorted(table_of(rows))


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values(list(KEY), kind="stable", ignore_index=True)


def write_results(root: str | Path) -> pd.DataFrame:
    """Collect and write ``results.csv``; returns the table."""
    table = collect(root)
    write_table(table, Path(root) / RESULTS_FILE)
    return table


def write_vision_results(
    folder: StudyFolder,
    members: Mapping[MemberKey, MemberSpec],
    measurements: Mapping[MemberKey, Mapping[str, Any]],
) -> Path:
    """Write ``results.csv`` of a vision study."""
    path = folder.root / RESULTS_FILE
    write_table(vision_results(folder, members, measurements), path)
    return path


def vision_results(
    folder: StudyFolder,
    members: Mapping[MemberKey, MemberSpec],
    measurements: Mapping[MemberKey, Mapping[str, Any]],
) -> pd.DataFrame:
    """The table of a vision study; ``n`` counts held-out patches."""
    # Statistics match members by the panel's L0, wherever it is from.
    metrics = {**{("vision", metric): metric for metric in _VISION}, MEASURED_L0: "l0"}
    rows = [
        row(
            facts_of_member(key, members[key].constraint).to_dict(),
            metric,
            float(measured[name]),
            direction=_VISION[name],
            n=measured["n_patches"],
            n_of="patches",
            versions=versions_text(training_versions(folder.member(key)), _VISION_VERSIONS),
        )
        for key, measured in measurements.items()
        for metric, name in metrics.items()
        if measured[name] is not None
    ]
    saes = (
        (facts_of_member(key, members[key].constraint).to_dict(), folder.member(key), measured)
        for key, measured in measurements.items()
    )
    return table_of([*rows, *identity_rows(saes, _VISION_VERSIONS)])


def identity_rows(
    saes: Iterable[tuple[Mapping[str, Any], Path, Mapping[str, Any]]],
    packages: Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """Rows that say how training met its target, whose cap held how many rows, and which SAEs
    have the same weights.

    Args:
        saes: Per SAE its columns of the table, its folder and its measurement.
        packages: Whose versions the rows name; None leaves the column out.
    """
    rows: list[dict[str, Any]] = []
    first: dict[str, str] = {}
    for facts, folder, measured in saes:
        who = identity_of(folder, measured)
        used = training_versions(folder)
        versions = None if packages is None else versions_text(used, packages)
        rows += [
            row(facts, (PANEL_SUITE, metric), value, versions=versions)
            for metric, value in training_of(folder, measured).items()
        ]
        share = who[CAP_SHARE]
        if share is not None:
            n = measured.get("d_sae")
            rows.append(row(facts, CAP_BOUND, share, n=n, n_of="latents", versions=versions))
        if who[WEIGHTS] is None:
            continue
        known = first.setdefault(who[WEIGHTS], name := f"{facts['panel']}/{facts['member']}")
        if known != name:
            rows.append(row(facts, SAME_WEIGHTS, 1.0, task=known, versions=versions))
    return rows


def current_results(root: str | Path) -> tuple[pd.DataFrame, Checks]:
    """What the files in a study say, ``results.csv`` where they are not there.

    A table that is not what the files say is written again, unless some are missing.

    Raises:
        UserError: As `checked_results`.
    """
    path = Path(root) / RESULTS_FILE
    table, checks = checked_results(root)
    if not checks.unverified and not (path.exists() and table.equals(read_table(path))):
        write_table(table, path)
    return table, checks


def checked_results(root: str | Path) -> tuple[pd.DataFrame, Checks]:
    """The same, and nothing is written.

    Every number whose file is there is the file's. Of a published study, or one whose files
    were left behind, the others are taken from ``results.csv`` and named.

    Args:
        root: Study folder.

    Raises:
        UserError: As `load_results` and `collect`; or ``results.csv`` was edited where its
            numbers are needed.
    """
    root, store = Path(root), EvalStore(root)
    path = root / RESULTS_FILE
    records = {(r["suite"], r["name"]) for r in store.records()}
    # What a suite of a plugin says, only its plugin can read.
    unread = {pair for pair in records if pair[0] not in suite_names()}
    absent = {pair for pair in records if not store.result_file(*pair).exists()} | unread
    if not path.exists() and (absent or not records):
        load_results(root)  # says what to do
    saes = saes_of(root)
    measured = {n: folder for n, (_, folder) in saes.items() if read_measurement(folder)}
    if records and not absent:
        fresh = collect(root)
    else:
        results = [r for pair in sorted(records - absent) if (r := store.load(*pair))]
        here = {r.name: saes[r.name][1] for r in results if r.name in saes}
        # Weights that were left behind cannot be compared.
        there = {n: f for n, f in here.items() if (f / SAE_WEIGHTS_FILENAME).exists()}
        fresh = _table(root, results, {name: hash_of_folder(f) for name, f in there.items()})
    files = [
        *(f / MEASUREMENT_FILE for f in measured.values()),
        *(store.record_file(*p) for p in records),
    ]
    unsealed = sum(not is_sealed(file) for file in files)
    stored = read_table(path) if path.exists() else fresh
    names = {(facts.panel, facts.member): name for name, (facts, _) in saes.items()}
    columns = ("suite", "panel", "member", "metric", "task")
    whose, only_here = [], []
    for suite, panel, member, metric, task in zip(*(stored[c] for c in columns), strict=True):
        saes_of_row = [(panel, member)]
        if (suite, metric) == SAME_WEIGHTS:
            saes_of_row.append(tuple(task.rsplit("/", 1)))
        named = [names.get(sae, ".".join(sae)) for sae in saes_of_row]
        lost = (name for name in named if name not in measured)
        whose.append((suite, next(lost, named[0])))
        # Where there are records at all, a result counts only with one.
        only_here.append(
            whose[-1][1] not in measured
            if suite == PANEL_SUITE
            else not records or whose[-1] in absent
        )
    if not any(only_here):
        refuse_empty(fresh, path)
        return fresh, Checks(unsealed=unsealed)
    load_results(root)  # its numbers count, so it must be as it was written
    unvouched = {pair for pair, here in zip(whose, only_here, strict=True) if here}
    kept = stored.loc[only_here]
    table = _sorted(check_table(pd.concat([fresh, kept], ignore_index=True)))
    return table, Checks(
        unverified=tuple(f"{suite} of {name}" for suite, name in sorted(unvouched)),
        edited=_edited(stored.drop(index=kept.index), fresh),
        unsealed=unsealed + (not checksum_file(path).exists()),
    )


def _edited(stored: pd.DataFrame, fresh: pd.DataFrame) -> tuple[str, ...]:
    """Rows in which a stored table says other than the files."""
    both = stored.merge(fresh, on=list(KEY), suffixes=("", "_of_file"))
    same = (both["value"] == both["value_of_file"]) | (
        both["value"].isna() & both["value_of_file"].isna()
    )
    columns = ["suite", "metric", "panel", "member", "value", "value_of_file"]
    return tuple(
        f"{suite}/{metric} of {panel}/{member}: {value:.6g} in {RESULTS_FILE}, {own:.6g} in "
        "its file"
        for suite, metric, panel, member, value, own in both.loc[~same, columns].itertuples(
            index=False
        )
    )


def _panel_rows(root: Path) -> Iterable[dict[str, Any]]:
    there = measurements(root)
    has_skip = bool(load_study(root)[0].sae.get("skip"))
    yield from identity_rows(((s.to_dict(), f, m) for s, f, m in there), _VERSIONS)
    for sae, folder, measured in there:
        versions = versions_text(training_versions(folder), _VERSIONS)
        if has_skip:
            yield row(sae.to_dict(), (PANEL_SUITE, SKIP), 1.0, versions=versions)
        for metric, direction in _PANEL.items():
            if measured.get(metric) is not None:
                yield row(
                    sae.to_dict(),
                    (PANEL_SUITE, metric),
                    float(measured[metric]),
                    direction=direction,
                    **_counted(metric, measured),
                    versions=versions,
                )


def _counted(metric: str, measured: Mapping[str, Any]) -> dict[str, Any]:
    """What a number of the panel counts over."""
    if metric in _COUNT_TOKENS:
        return {"n": int(measured["n_tokens"]), "n_of": "tokens"}
    if metric == "alive" and "d_sae" in measured:
        return {"n": int(measured["d_sae"]), "n_of": "latents"}
    return {}


def _rows(result: Result) -> Iterable[dict[str, Any]]:
    versions = versions_text(result.record["versions"], _VERSIONS)
    measured = list(get_suite(result.suite).scores(result.payload, result.record["extras"]))
    encoded = result.record.get("encoded") or {}
    # SAEBench's own number where it has one.
    if encoded.get("n") and not any(m.metric == "l0" and not m.task for m in measured):
        l0 = encoded["active"] / encoded["n"]
        measured.append(Measured("l0", l0, n=encoded["n"], n_of="tokens"))
    judge = result.record["extras"].get("judge")
    if judge and get_suite(result.suite).needs.judge:
        measured += [Measured(name, value) for name, value in judge_rows(judge)]
    for m in measured:
        yield row(
            result.record["facts"],
            (result.suite, m.metric),
            m.value if math.isfinite(m.value) else math.nan,
            direction=m.direction,
            task=m.task,
            n=m.n,
            n_of=m.n_of,
            versions=versions,
        )


def _check_weights(root: Path, results: list[Result], hashes: Mapping[str, str]) -> None:
    """A member that was trained anew must not stand beside its predecessor's scores."""
    known = saes_of(root)
    for result in results:
        if result.name not in known:
            raise UserError(
                f"results: {result.suite} of {result.name} is of no member of this study; move "
                f"{EvalStore(root).record_file(result.suite, result.name)} away"
            )
        if hashes.get(result.name, result.record["weights"]) != result.record["weights"]:
            raise UserError(
                f"results: {result.name} was changed after {result.suite} scored it; run "
                f"sae-baselines eval --suites {result.suite} again"
            )


def _check_settings(results: list[Result]) -> None:
    """Scores made under different options, seeds or versions must not stand side by side."""
    first: dict[str, Result] = {}
    for result in results:
        known = first.setdefault(result.suite, result)
        judges = [one.record["extras"].get("judge") for one in (result, known)]
        if all(judges) and not same_judge(*judges):
            names = (
                f"{j['model']} at {j['host']} ({j.get('file', 'no file')})" for j in judges
            )
            raise UserError(
                f"results: {result.suite} of {result.name} and of {known.name} are of two "
                f"judges, {' and '.join(names)}; run sae-baselines eval --suites "
                f"{result.suite} again for all"
            )
        if result.record["settings"] != known.record["settings"]:
            raise UserError(
                f"results: {result.suite} of {result.name} and of {known.name} were made under "
                "different settings (options, seed, dtype or versions); run sae-baselines eval "
                f"--suites {result.suite} again for all"
            )
