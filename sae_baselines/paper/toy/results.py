"""A finished synthetic study, read from its folder: tidy rows, arrays, chance, verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from safetensors.torch import load_file

from sae_baselines.controls import Question
from sae_baselines.errors import UserError
from sae_baselines.evals.results import identity_rows
from sae_baselines.files import parse_json, reading
from sae_baselines.paper.toy.chance import SimulatedRecovery, simulate_recovery
from sae_baselines.results import PANEL_SUITE, SAEKey, row
from sae_baselines.stats import (
    AgainstRandom,
    Correct,
    Verdict,
    against_random,
    differences,
    verdicts,
)
from sae_baselines.stats.by_rate import Rated
from sae_baselines.study.folder import MEASURE_AGAIN, MEASUREMENT_FILE, STUDY_FILE, StudyFolder
from sae_baselines.study.latents import Latents
from sae_baselines.study.plan import all_members
from sae_baselines.study.spec import spec_from_dict
from sae_baselines.study.synthetic.curve import read_curve
from sae_baselines.study.synthetic.measure import FEATURES_FILE, PerFeature
from sae_baselines.study.synthetic.recovery import RECOVERED_ABOVE, best_cosine
from sae_baselines.study.synthetic.spec import ToyPanelKey, ToySpec
from sae_baselines.yaml_text import read_yaml

# What the paper compares, EV and its recovery count, and the continuous form of the latter: a
# count that is 0 or all in every seed has no spread to test.
PRIMARY = ("explained_variance", "recovered_share", "mean_best_cosine")
# A setting's model is written when any of its SAEs is worked on.
_MODEL_AGAIN = f"delete {MEASUREMENT_FILE} of one of its SAEs and run with --resume"
# Random dictionaries per setting, beside the closed form.
_DRAWS = 20

# Field of the measurement: name in results.csv, direction.
_METRICS: tuple[tuple[str, str, int], ...] = (
    ("ev", "explained_variance", 1),
    ("recovered_share", "recovered_share", 1),
    ("recovered", "recovered", 0),
    ("recovered_alive", "recovered_alive", 0),
    ("recovered_one_to_one", "recovered_one_to_one", 0),
    ("mean_best_cosine", "mean_best_cosine", 1),
    ("mcc", "mcc", 1),
    ("uniqueness", "uniqueness", 0),
    ("precision", "precision", 1),
    ("recall", "recall", 1),
    ("f1", "f1", 1),
    ("shrinkage", "shrinkage", 0),
    ("l0", "l0", 0),
    ("true_l0", "true_l0", 0),
    ("dead", "dead", 0),
    ("ev_saelens", "explained_variance_saelens", 0),
    ("cos_to_start_mean", "cos_to_start_mean", 0),
    ("cos_to_start_min", "cos_to_start_min", 0),
    ("encoder_cos_to_start_mean", "encoder_cos_to_start_mean", 0),
)

# The paper's EV and recovered share of its trained SAEs, n = 100, 3200 features, L0 20.
PAPER_EV = {
    ("constant", "batchtopk"): 0.67,
    ("constant", "jumprelu"): 0.67,
    ("variable", "batchtopk"): 0.71,
    ("variable", "jumprelu"): 0.71,
}
PAPER_RECOVERED = {
    ("constant", "batchtopk"): 3 / 3200,
    ("constant", "jumprelu"): 3 / 3200,
    ("constant", "topk"): 0.999,
    ("constant", "matryoshka_batchtopk"): 0.0003,
    ("variable", "batchtopk"): 297 / 3200,
    ("variable", "jumprelu"): 225 / 3200,
    ("variable", "topk"): 0.43,
}


@dataclass(frozen=True)
class ToyResults:
    """A finished synthetic study.

    Attributes:
        spec: What was trained.
        record: study.yaml.
        rows: Tidy rows with a column ``setting``; suite is ``toy_<setting>``.
        frame: One row per member, as `report.toy_plots` wants it.
        features: Per setting, architecture, member and seed: arrays per feature.
        curves: Snapshots of all runs.
        sizes: Per setting: d_in, number of features, mean active features.
        chance: Per setting, recovery of these features by random dictionaries.
        rated: By panel and member, latents and features by how often they fire, where it is
            stored of latents.
    """

    spec: ToySpec
    record: dict[str, Any]
    rows: pd.DataFrame
    frame: pd.DataFrame
    features: list[tuple[dict[str, Any], PerFeature]]
    curves: pd.DataFrame
    sizes: dict[str, tuple[int, int, float]]
    chance: dict[str, SimulatedRecovery]
    rated: dict[SAEKey, Rated] = field(default_factory=dict)

    @property
    def is_the_papers(self) -> bool:
        """Whether sizes and L0 are the paper's, so that its numbers may stand beside."""
        s = self.spec
        sizes = (s.n, s.m, s.d_sae, s.l0, s.mean_active)
        return sizes == (100, 3200, 3200, 20, 20) and s.reading == "sigma"


def load_toy(root: str | Path) -> ToyResults:
    """Read a study that `train_study` finished.

    Raises:
        UserError: No synthetic study, or members that are missing.
    """
    folder = StudyFolder(root)
    if not folder.study_file.exists():
        raise UserError(f"{folder.root}: holds no {STUDY_FILE}; run 'sae-baselines toy' first")
    record = read_yaml(folder.study_file)
    spec = record.get("spec") if isinstance(record, dict) else None
    spec = spec_from_dict(spec, str(folder.study_file), ToySpec, stored=True)
    rows: list[dict[str, Any]] = []
    saes: list[tuple[dict[str, Any], Path, dict[str, Any]]] = []
    frame: list[dict[str, Any]] = []
    features: list[tuple[dict[str, Any], PerFeature]] = []
    sizes: dict[str, tuple[int, int, float]] = {}
    rated: dict[SAEKey, Rated] = {}
    for key, member in all_members(spec).items():
        measured = folder.measurement(key)
        if measured is None:
            raise UserError(
                f"{folder.member(key)}: is not measured yet; continue the study with --resume"
            )
        assert isinstance(key.panel, ToyPanelKey)
        setting = key.panel.setting
        weights = folder.root / "models" / setting / "synthetic_model_config.json"
        with reading(weights, _MODEL_AGAIN):
            d_in = int(parse_json(weights.read_text())["hidden_dim"])
        sizes[setting] = (d_in, measured["n_features"], measured["true_l0"])
        who = {
            "setting": setting,
            "panel": key.panel.name,
            "member": key.member,
            "constraint": member.constraint,
            "architecture": key.panel.architecture,
            "l0": key.panel.l0,
            "seed": key.panel.seed,
        }
        counted = {"n": measured["n_samples"], "n_of": "samples"}
        for name, metric, direction in _METRICS:
            if name not in measured:
                continue  # a control has no start to be compared with
            suite = f"toy_{setting}"
            rows.append(
                row(who, (suite, metric), measured[name], direction=direction, **counted)
            )
        # By these members are matched and collapsed ones found.
        alive = spec.d_sae - measured["dead"]
        panel = {"l0": measured["l0"], "explained_variance": measured["ev"], "alive": alive}
        rows += [
            row(who, (PANEL_SUITE, name), value, **counted) for name, value in panel.items()
        ]
        saes.append((who, folder.member(key), measured))
        training = {"lr": spec.lr, "samples": spec.training_samples}
        frame.append({**measured, **who, "l0": measured["l0"], **training})
        arrays = PerFeature.load(folder.member(key) / FEATURES_FILE)
        features.append(({**who, "n_samples": measured["n_samples"]}, arrays))
        latents = Latents.load(folder.member(key))
        if latents is not None:
            found = arrays.firings / measured["n_samples"], arrays.best_cosine > RECOVERED_ABOVE
            rated[key.panel.name, key.member] = replace(
                Rated.of(latents),
                recovers=_recovers(folder.member(key), weights.parent),
                truth={(f"toy_{setting}", "recovered_share"): found},
            )
    curves = []
    for path in sorted((folder.root / "curves").glob("*.csv")):
        curves.append(read_curve(path, "delete it, which leaves its curve out"))
    return ToyResults(
        spec,
        record,
        pd.DataFrame([*rows, *identity_rows(saes)]),
        pd.DataFrame(frame),
        features,
        pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(),
        sizes,
        {setting: _chance(folder.root / "models" / setting, spec) for setting in sizes},
        rated,
    )


def _chance(model: Path, spec: ToySpec) -> SimulatedRecovery:
    features = _features(model)
    return simulate_recovery(features, spec.d_sae, seed=spec.model_seed, draws=_DRAWS)


def _features(model: Path) -> torch.Tensor:
    path = model / "synthetic_model.safetensors"
    with reading(path, _MODEL_AGAIN):
        return load_file(path)["feature_vectors"]


def _recovers(member: Path, model: Path) -> np.ndarray | None:
    """Whether each latent recovers any feature; None where the weights were left behind."""
    path = member / SAE_WEIGHTS_FILENAME
    if not path.exists():
        return None
    with reading(path, MEASURE_AGAIN):
        rows = load_file(path)["W_dec"]
    found = np.zeros(len(rows), dtype=bool)
    has_direction = rows.norm(dim=1) > 0
    best = best_cosine(_features(model), rows[has_direction])
    found[has_direction.numpy()] = (best > RECOVERED_ABOVE).numpy()
    return found


def toy_verdicts(
    results: ToyResults, correct: Correct = "baseline"
) -> dict[str, list[Verdict]]:
    """Verdicts per setting, on `PRIMARY`.

    Args:
        results: Of the study.
        correct: As of `stats.verdicts`; the study is all settings.
    """
    if len(results.spec.member_specs) == 1:
        return {setting: [] for setting in results.spec.settings}
    compared = {
        setting: differences(
            results.rows.loc[results.rows["setting"] == setting].drop(columns="setting"),
            metrics=[f"toy_{setting}/{metric}" for metric in PRIMARY],
        )
        for setting in results.spec.settings
    }
    if correct == "study":
        found = iter(verdicts([c for cs in compared.values() for c in cs], correct=correct))
        return {setting: [next(found) for _ in cs] for setting, cs in compared.items()}
    return {setting: verdicts(cs) for setting, cs in compared.items()}


def toy_answers(
    found: Mapping[str, Sequence[Verdict]], question: Question, correct: Correct
) -> dict[str, list[AgainstRandom]]:
    """Per setting, `toy_verdicts` against all baselines of a question."""
    if correct == "baseline":
        return {setting: against_random(vs, question) for setting, vs in found.items()}
    every = against_random([v for vs in found.values() for v in vs], question, correct)
    return {setting: [a for a in every if a.suite == f"toy_{setting}"] for setting in found}
