"""Results tables and contexts with known answers."""

from typing import Any

import pandas as pd

from sae_baselines.evals.registry import metric_of
from sae_baselines.report import ReportContext
from tests.stats.tables import rows

BASELINES = ("soft_frozen_decoder", "frozen_decoder", "frozen_encoder")
MEMBERS = ("trained", *BASELINES)
VERSIONS = "sae-baselines=0.1; sae-lens=6.54.12; torch=2.13.0"
D_SAE = 1000
# Small, and not symmetric about 0, so that no difference is the same in every seed.
_NOISE = {
    "trained": (0.0004, -0.0007, 0.0003, 0.0001),
    "soft_frozen_decoder": (-0.0002, 0.0006, -0.0001, -0.0003),
    "frozen_decoder": (0.0007, 0.0002, -0.0005, 0.0002),
    "frozen_encoder": (-0.0006, -0.0001, 0.0008, 0.0003),
}
PRIMARY = (
    "core/explained_variance_paper",
    "absorption/mean_absorption_fraction_score",
    "ravel/disentanglement_score",
)

# What metrics give where there is nothing to find: no member is at it.
FLOORS = (
    ("absorption", "mean_absorption_fraction_score", 0.5),
    ("ravel", "disentanglement_score", 0.2),
)


def score(
    level: dict[str, float], seeds: int, scale: float = 1.0
) -> dict[tuple[str, int], float]:
    """By member and seed: the member's level and a little noise."""
    return {(m, s): level[m] + scale * _NOISE[m][s] for m in level for s in range(seeds)}


def levels(*values: float) -> dict[str, float]:
    return dict(zip(MEMBERS, values, strict=True))


def clean(
    seeds: int = 4,
    l0s: tuple[float, ...] = (32,),
    architectures: tuple[str, ...] = ("batchtopk",),
) -> pd.DataFrame:
    """A study without any reason for caution.

    Trained wins explained variance against all; on absorption, where lower is better, it wins
    against all but ties with the soft-frozen decoder; on RAVEL it loses to the soft-frozen
    decoder.
    """
    found: list[dict[str, Any]] = []
    for architecture in architectures:
        for l0 in l0s:
            where: dict[str, Any] = {"architecture": architecture, "l0": l0}
            ev = score(levels(0.85, 0.78, 0.45, 0.47), seeds)
            found += rows(ev, metric="explained_variance_paper", **where)
            found += rows(ev, metric="explained_variance", **where)
            found += rows(
                score(levels(0.10, 0.1003, 0.30, 0.31), seeds),
                suite="absorption",
                metric="mean_absorption_fraction_score",
                direction=-1,
                **where,
            )
            tasks = {
                key: {"city": value + 0.05, "name": value - 0.05}
                for key, value in score(levels(0.6, 0.7, 0.4, 0.41), seeds).items()
            }
            found += rows(tasks, suite="ravel", metric="disentanglement_score", **where)
            for suite, metric, level in FLOORS:
                for floor in metric_of(suite, metric).floors:
                    nothing = score(levels(*[level] * 4), seeds, 2)
                    found += rows(nothing, suite=suite, metric=floor, direction=0, **where)
            for metric, value in (("l0", l0), ("alive", 990)):
                same = {(m, s): value for m in MEMBERS for s in range(seeds)}
                found += rows(same, suite="panel", metric=metric, direction=0, **where)
            for suite in ("core", "absorption", "ravel"):
                same = {(m, s): 0.9 * l0 for m in MEMBERS for s in range(seeds)}
                found += rows(same, suite=suite, metric="l0", direction=0, **where)
    frame = pd.DataFrame(found)
    frame["n"], frame["versions"] = 100, VERSIONS
    return frame


def autointerp(seeds: int = 3, floor: float | None = 0.71) -> pd.DataFrame:
    """Scores of single latents."""
    found: list[dict[str, Any]] = []
    base = clean(seeds)
    for member in MEMBERS:
        for seed in range(seeds):
            top = 0.9 if member == "trained" else 0.8
            cycle = 8 + MEMBERS.index(member)
            latents = {f"latent_{i}": top - 0.02 * ((i + seed) % cycle) for i in range(30)}
            values: dict[tuple[str, int], Any] = {(member, seed): latents}
            found += rows(values, suite="autointerp", metric="autointerp_score")
            judge = dict.fromkeys(values, 0.1)
            found += rows(judge, suite="autointerp", metric="judge_above_floor", direction=0)
            if floor is not None:
                of_seed = {(member, seed): floor}
                found += rows(of_seed, suite="autointerp", metric="null_floor", direction=0)
    frame = pd.DataFrame(found)
    frame["n"], frame["versions"] = 14, VERSIONS
    return pd.concat([base, frame], ignore_index=True)


def context(**changes: Any) -> ReportContext:
    """What goes with `clean`."""
    fields: dict[str, Any] = {
        "study": "tiny",
        "model": "org/model",
        "hook": "blocks.3.hook_resid_post",
        "d_in": 64,
        "d_sae": D_SAE,
        "training_tokens": 1_000_000,
        "l0s": (32,),
        "seeds": (0, 1, 2, 3),
        "spec": {"name": "tiny", "data_order": "per_seed"},
        "versions": {"train": {"torch": "2.13.0"}, "eval": {"torch": "2.13.0"}},
        "hardware": {"train": "2 cores"},
        "commands": ("sae-baselines train panel.yaml", "sae-baselines eval studies/tiny"),
        "suites": ("core", "absorption", "ravel"),
        "primary": PRIMARY,
        "folder": "studies/tiny",
    }
    return ReportContext(**{**fields, **changes})


def change(
    frame: pd.DataFrame, value: Any, column: str = "value", **where: Any
) -> pd.DataFrame:
    """The table with one column changed where others have these values."""
    frame = frame.copy()
    chosen = pd.Series(True, index=frame.index)
    for name, wanted in where.items():
        chosen &= frame[name] == wanted
    assert bool(chosen.any())
    frame[column] = frame[column].where(~chosen, value)
    return frame
