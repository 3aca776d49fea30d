"""How far the directions of a run moved: its records, or what can be measured without any."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sae_baselines.compat.folder import saved_config
from sae_baselines.drift import DriftLog, drift_from_checkpoints, drift_table, find_drift
from sae_baselines.drift.sphere import (
    expected_best_cosine,
    log_cap_bound,
    log_cap_probability,
    log_chance_of_best,
)
from sae_baselines.errors import UserError
from sae_baselines.files import keep_links_inside, write_atomically
from sae_baselines.report.drift_plots import drift_figure
from sae_baselines.study.folder import STUDY_FILE
from sae_baselines.yaml_text import read_yaml

_RECOVERED = 0.8
_RECORD = "put drift: [0.05, 0.1, 0.25, 0.5, 1.0] in its file and train"


@dataclass(frozen=True)
class RunDrift:
    """The drift of every SAE of a run.

    Attributes:
        logs: Name to records.
        notes: What chance can reach, and what must be said about the records.
        folder: Where ``drift.csv`` and a figure per SAE are.
    """

    logs: dict[str, DriftLog]
    notes: list[str]
    folder: Path


def show_drift(
    run: str | Path, start: str | Path | None = None, out: str | Path | None = None
) -> RunDrift:
    """Read or measure how far directions moved from their start; write a table and figures.

    Args:
        run: Study or run folder with records, or a folder of SAELens checkpoints.
        start: SAELens folder to measure checkpoints from; default: ``init_seed``.
        out: Folder to write to; default: ``drift`` in the run.

    Raises:
        UserError: There is nothing to read or to measure, or a link leads out of the run.
    """
    run = Path(run)
    logs, notes = _logs(run, None if start is None else Path(start))
    folder = Path(out) if out is not None else run / "drift"
    if out is None:
        keep_links_inside(run)
    write_atomically(folder / "drift.csv", drift_table(logs).to_csv(index=False))
    for name, log in logs.items():
        figure = drift_figure(name, log)
        if figure is not None:
            write_atomically(folder / f"{figure.name}.png", figure.png)
            write_atomically(folder / f"{figure.name}.svg", figure.svg)
    return RunDrift(logs, [*_chance(logs), *notes], folder)


def _logs(run: Path, start: Path | None) -> tuple[dict[str, DriftLog], list[str]]:
    if not run.is_dir():
        raise UserError(f"run: {run} is not a folder")
    if start is None:
        recorded = {name: log for name, log in find_drift(run).items() if log.records}
        if recorded:
            return recorded, []
        if (run / STUDY_FILE).is_file():
            return _members(run)
    measured = drift_from_checkpoints(run, start)
    return {name or run.resolve().name: log for name, log in measured.items()}, []


def _members(study: Path) -> tuple[dict[str, DriftLog], list[str]]:
    """The ends of training of a study that kept no records."""
    stored = read_yaml(study / STUDY_FILE)
    spec = stored.get("spec") if isinstance(stored, dict) else None
    whitened = {"normalize_activations": "covariance_whitening"}
    if isinstance(spec, dict) and whitened.items() <= spec.items():
        raise UserError(
            f"run: {study} was trained on whitened activations, and exports are not in their "
            "space; train again with drift: [0.05, 0.1, 0.25, 0.5, 1.0] in its file"
        )
    logs: dict[str, DriftLog] = {}
    left_out = []
    for weights in sorted(study.glob("panels/*/*/sae_weights.safetensors")):
        name = "/".join(weights.parent.parts[-2:])
        facts = (saved_config(weights.parent).get("metadata") or {}).get("sae_baselines") or {}
        if "control" in facts:
            continue  # made, not trained; or of another language model
        try:
            logs[name] = drift_from_checkpoints(weights.parent)[""]
        except UserError as error:
            left_out.append(f"left out {name}: {error}")
    if not logs:
        raise UserError(
            f"run: {study} is a study without records of drift and without members to measure; "
            f"{_RECORD}"
        )
    note = (
        "No records of training: this is the end alone. For its course, "
        f"{_RECORD} in another folder."
    )
    return logs, [note, *left_out]


def _chance(logs: Mapping[str, DriftLog]) -> list[str]:
    """What random directions reach in the same space (paper, Appendix D)."""
    sizes = {(log.header.get("d_in"), log.header.get("d_sae")) for log in logs.values()}
    lines = []
    for n, m in sorted((n, m) for n, m in sizes if n and m):
        one, one_bound, best, best_bound = (
            f"10^{float(log) / math.log(10):.1f}"
            for log in (
                log_cap_probability(n, _RECOVERED),
                log_cap_bound(n, _RECOVERED),
                log_chance_of_best(n, m, _RECOVERED),
                log_cap_bound(n, _RECOVERED, m),
            )
        )
        lines.append(
            f"By chance in R^{n}: a random direction has cosine >= {_RECOVERED:g} with a given "
            f"one with probability {one} (bound exp(-n t^2 / 2): {one_bound}); one of {m:,} "
            f"with {best} (bound: {best_bound}). The best of {m:,} has cosine "
            f"{expected_best_cosine(n, m):.3f} on average."
        )
    return lines
