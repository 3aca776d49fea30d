"""Panels trained on active entries are the panels that SAELens' dense step trains."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from sae_baselines.baselines import baseline_name, get_baseline
from sae_baselines.sparse import step
from sae_baselines.study.build import Start, member_config
from sae_baselines.study.engine import StudyResult, train_study
from sae_baselines.study.plan import members_of, panels_of
from sae_baselines.study.spec import spec_from_dict
from tests.tiny_model import tiny_panel

STEPS = 60
MEMBERS = ["trained", "frozen_decoder", "soft_frozen_decoder", "frozen_encoder"]


def configs(**overrides: Any) -> dict[str, Any]:
    """Config of each member of a panel."""
    spec = spec_from_dict(tiny_panel(Path("model"), d_sae=64, expansion=None, **overrides))
    start = Start(torch.zeros(2, 16), torch.zeros(16), 16.0, None)
    (panel,) = panels_of(spec)
    return {
        key.member: member_config(spec, key, member, start, 16, "cpu", {})
        for key, member in members_of(spec, panel).items()
    }


@pytest.mark.parametrize(
    ("which", "trained", "baselines"),
    [("none", False, False), ("baselines", False, True), ("all", True, True)],
)
def test_the_panel_says_which_members_train_sparse(
    which: str, trained: bool, baselines: bool
) -> None:
    made = configs(sparse_step=which)
    for member, config in made.items():
        if member == "trained":
            assert config.architecture() == "seeded_batchtopk"
            assert config.sparse_step is trained
        else:
            assert config.sparse_step is baselines
    name = baseline_name("seeded", "batchtopk")
    assert get_baseline(name).constraint.learned.startswith("everything")


def test_an_architecture_without_a_sparse_step_trains_as_ever() -> None:
    made = configs(architecture="abstopk", sparse_step="all")
    assert made["trained"].architecture() == "seeded_abstopk"


@pytest.fixture(scope="module")
def studies(
    model_folder: Path, text: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, StudyResult]:
    """The same panel trained both ways; a small SAE is too dense to be sparse by itself."""
    folder = tmp_path_factory.mktemp("sparse_step")
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "MAX_DENSITY", 1.0)
        for which in ("none", "all"):
            spec = spec_from_dict(
                tiny_panel(
                    model_folder,
                    members=MEMBERS,
                    training_tokens=128 * STEPS,
                    calibration_tokens=2048,
                    eval_tokens=2048,
                    sparse_step=which,
                )
            )
            results[which] = train_study(spec, folder / which, dataset=text)
    return results


def test_the_same_saes_come_out(studies: dict[str, StudyResult]) -> None:
    for key in studies["none"].measurements:
        member = Path("panels", key.panel.name, key.member, "sae_weights.safetensors")
        dense, sparse = (load_file(studies[w].folder / member) for w in ("none", "all"))
        assert dense.keys() == sparse.keys()
        # Not the same bits: then one of the two ways would have run twice.
        assert not all(torch.equal(dense[name], sparse[name]) for name in dense)
        for name, tensor in dense.items():
            # Rounding grows over the steps: Adam divides small differences by small numbers.
            change = (sparse[name] - tensor).norm() / tensor.norm()
            assert change < 2e-3, (key.name, name)


def test_the_same_measurements_come_out(studies: dict[str, StudyResult]) -> None:
    for key, dense in studies["none"].measurements.items():
        sparse = studies["all"].measurements[key]
        assert sparse["explained_variance"] == pytest.approx(
            dense["explained_variance"], abs=1e-3
        )
        assert sparse["l0"] == pytest.approx(dense["l0"], rel=1e-2)


def test_provenance_says_how_steps_were_computed(studies: dict[str, StudyResult]) -> None:
    for which, result in studies.items():
        for key in result.measurements:
            folder = result.folder / "panels" / key.panel.name / key.member
            steps = json.loads((folder / "provenance.json").read_text())["steps_since_start"]
            assert steps == ({"sparse": STEPS, "dense": {}} if which == "all" else None)
