"""Results tables of a study around a published SAE, with known answers."""

from typing import Any

import numpy as np
import pandas as pd

from sae_baselines.evals.registry import metric_of
from sae_baselines.report import ReportContext
from tests.report.studies import VERSIONS

GROUP: dict[str, Any] = {"architecture": "jumprelu", "l0": 32.0}
SEEDS = 5
CONSTRAINTS = {
    "trained": "trained",
    "soft_frozen_decoder": "soft_frozen_decoder",
    "frozen_decoder": "frozen_decoder",
    "frozen_encoder": "frozen_encoder",
    "random": "random",
    "permuted_decoder": "permuted_decoder",
}
# Suite, metric, direction, tasks, published, levels of CONSTRAINTS in order, sd over seeds.
METRICS: tuple[tuple[str, str, int, tuple[str, ...], float, tuple[float, ...], float], ...] = (
    ("panel", "explained_variance", 1, (), 0.842, (0.79, 0.75, 0.43, 0.48, 0.12, -1.9), 0.002),
    ("panel", "ce_recovered", 1, (), 0.961, (0.951, 0.93, 0.61, 0.7, 0.05, -3.0), 0.004),
    (
        "core",
        "explained_variance_paper",
        1,
        (),
        0.840,
        (0.79, 0.75, 0.43, 0.48, 0.12, -1.9),
        0.002,
    ),
    ("core", "kl_div_with_sae", -1, (), 0.21, (0.25, 0.31, 1.4, 1.1, 8.0, 9.0), 0.01),
    (
        "sparse_probing",
        "sae_top_1_test_accuracy",
        1,
        ("ag_news", "bias_in_bios", "europarl"),
        0.712,
        (0.715, 0.684, 0.671, 0.668, 0.612, 0.712),
        0.012,
    ),
    (
        "absorption",
        "mean_absorption_fraction_score",
        -1,
        (),
        0.031,
        (0.05, 0.03, 0.01, 0.02, 0.3, 0.4),
        0.004,
    ),
)
# What they give where there is nothing to find: no trained or published SAE is at it.
FLOORS = {"sparse_probing": 0.5, "absorption": 0.6}
PRIMARY = tuple(f"{suite}/{metric}" for suite, metric, *_ in METRICS)
RECORD: dict[str, Any] = {
    "source": "some-release-res:layer_12/width_16k/average_l0_32",
    "weights_sha256": "5f0c" * 16,
    "architecture": "jumprelu",
    "base_architecture": "jumprelu",
    "d_in": 576,
    "d_sae": 16_384,
    "hook_name": "blocks.12.hook_resid_post",
    "model_name": "org/some-model-2b",
    "l0_measured": 31.4,
    "l0_recorded": 32.9,
    "tokens_recorded": 4_000_000_000,
    "training_tokens": 20_000_000,
    "dataset_recorded": "org/uncopyrighted-pile",
    "dataset": "articles.parquet",
    "notes": [
        "its learning rate and batch size are not recorded; its baselines have this package's",
        "its context size is not recorded; 128 tokens are used",
    ],
    "versions": {"sae-lens": "5.1.0"},
}


def row(member: str, seed: int, suite: str, metric: str, **more: Any) -> dict[str, Any]:
    """One row; the published SAE's has no panel of its own and seed -1."""
    published = member == "published"
    return {
        "panel": "published" if published else f"jumprelu_l0_32_seed_{seed}",
        "member": member,
        "constraint": "published" if published else CONSTRAINTS[member],
        **GROUP,
        "seed": -1 if published else seed,
        "suite": suite,
        "metric": metric,
        "task": "",
        "n": 1000,
        "n_of": "tokens",
        "versions": VERSIONS,
        **more,
    }


def checked(
    members: tuple[str, ...] = tuple(CONSTRAINTS), seeds: int = SEEDS, seed: int = 0
) -> pd.DataFrame:
    """A study as `sae-baselines check` leaves it.

    The published SAE is better than every random member on reconstruction, in the midst of
    the soft-frozen decoder's seeds on absorption (lower is better), and like ``trained`` on
    probing.
    A permuted decoder has the published SAE's latents, so its probing scores.
    """
    rng = np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    for suite, metric, direction, tasks, own, levels, sd in METRICS:
        base = {"suite": suite, "metric": metric, "direction": direction}
        found += _scored("published", -1, own, tasks, base)
        for member, level in zip(CONSTRAINTS, levels, strict=True):
            noise = rng.normal(size=seeds) * sd
            if (member, suite) == ("permuted_decoder", "sparse_probing"):
                noise = np.zeros(seeds)
            if member in members:
                for s in range(seeds):
                    found += _scored(member, s, level + float(noise[s]), tasks, base)
        # Those of the panel are transcoders'.
        for floor in metric_of(suite, metric).floors if suite in FLOORS else ():
            nothing = {"suite": suite, "metric": floor, "direction": 0}
            every = [("published", -1), *((m, s) for m in members for s in range(seeds))]
            for member, s in every:
                found += _scored(member, s, FLOORS[suite], tasks, nothing)
    suites = dict.fromkeys(["panel", *(suite for suite, *_ in METRICS)])
    measured = [(suite, "l0", 31.4, 32.0) for suite in suites]
    for suite, name, own, level in (*measured, ("panel", "alive", 16_000.0, 16_300.0)):
        told = {"suite": suite, "metric": name, "direction": 0}
        found.append(row("published", -1, **told, value=own))
        for member in members:
            for s in range(seeds):
                value = own if member == "permuted_decoder" else level + 0.03 * s
                found.append(row(member, s, **told, value=value))
    return pd.DataFrame(found)


def _scored(
    member: str, seed: int, value: float, tasks: tuple[str, ...], base: dict[str, Any]
) -> list[dict[str, Any]]:
    rows = [row(member, seed, **base, value=value)]
    middle = (len(tasks) - 1) / 2
    shifted = [(task, value + 0.05 * (i - middle)) for i, task in enumerate(tasks)]
    return rows + [row(member, seed, **base, task=task) | {"value": v} for task, v in shifted]


def context(**changes: Any) -> ReportContext:
    """What goes with `checked`."""
    fields: dict[str, Any] = {
        "study": "check-some-release",
        "model": RECORD["model_name"],
        "hook": RECORD["hook_name"],
        "d_in": RECORD["d_in"],
        "d_sae": RECORD["d_sae"],
        "training_tokens": RECORD["training_tokens"],
        "l0s": (32.0,),
        "seeds": tuple(range(SEEDS)),
        "spec": {"name": "check-some-release", "data_order": "shared"},
        "versions": {"train": {"torch": "2.13.0"}, "eval": {"torch": "2.13.0"}},
        "hardware": {"train": "2 cores"},
        "commands": (f"sae-baselines check {RECORD['source']} --tokens 20_000_000",),
        "suites": ("panel", "core", "sparse_probing", "absorption"),
        "primary": PRIMARY,
        "published": RECORD,
        "folder": "studies/check-some-release",
    }
    return ReportContext(**{**fields, **changes})
