"""Controls as members of a panel: made after training, resumed, measured like any other."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import SAE
from safetensors.torch import load_file

from sae_baselines.baselines import sample_directions
from sae_baselines.controls.source import hash_of_weights
from sae_baselines.errors import UserError
from sae_baselines.evals.study import study_targets
from sae_baselines.evals.target import facts_of, target_of
from sae_baselines.study import StudyResult, train_study
from sae_baselines.study.spec import PanelSpec, spec_from_dict
from tests.tiny_model import tiny_panel

CONTROLS = ["random", "random:cov", "random:kaiming", "permuted_decoder", "permuted_pairing"]
FOLDERS = [name.replace(":", "_") for name in CONTROLS]


def _spec(model_folder: Path, **overrides: Any) -> PanelSpec:
    members = ["trained", "frozen_decoder", *CONTROLS]
    return spec_from_dict(tiny_panel(model_folder, **{"members": members, **overrides}))


@pytest.fixture(scope="module")
def study(
    model_folder: Path, text: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PanelSpec, StudyResult]:
    spec = _spec(
        model_folder,
        seeds=[0, 7],
        training_tokens=128 * 100,
        calibration_tokens=4096,
        eval_tokens=4096,
    )
    out = tmp_path_factory.mktemp("studies") / "controls"
    return spec, train_study(spec, out, dataset=text)


def _panel(result: StudyResult, seed: int) -> Path:
    return result.folder / "panels" / f"batchtopk_l0_6_seed_{seed}"


def test_controls_are_complete_members_that_nobody_trained(
    study: tuple[PanelSpec, StudyResult],
):
    _, result = study
    for seed in (0, 7):
        panel = _panel(result, seed)
        source = hash_of_weights(SAE.load_from_disk(panel / "trained"))
        for folder, name in zip(FOLDERS, CONTROLS, strict=True):
            record = json.loads((panel / folder / "provenance.json").read_text())
            assert (record["samples_seen"], record["training_steps"]) == (0, 0)
            assert (record["control"], record["seed"]) == (name, seed)
            assert record["source"]["weights_sha256"] == source
            assert record["source"]["member"] == "trained"
            assert record["source"]["samples_seen"] == 128 * 100
            cfg = (panel / folder / "cfg.json").read_text()
            assert "/" not in cfg
            assert json.loads(cfg)["architecture"] == "jumprelu"
            rates = load_file(panel / folder / "sparsity.safetensors")["sparsity"]
            l0 = record.get("calibration", {}).get("l0", record["l0_held_out"])
            assert float((10**rates).sum()) == pytest.approx(l0, rel=0.05)


def test_controls_are_at_the_target_l0_and_lose_what_they_should(
    study: tuple[PanelSpec, StudyResult],
):
    _, result = study
    assert result.off_target == []
    for seed in (0, 7):
        measured = {k.member: m for k, m in result.measurements.items() if k.panel.seed == seed}
        trained = measured["trained"]
        for folder in FOLDERS:
            assert measured[folder]["cos_to_start_mean"] is None
            assert measured[folder]["explained_variance"] < trained["explained_variance"]
        for folder in FOLDERS[3:]:
            assert measured[folder]["l0"] == trained["l0"]
            assert measured[folder]["alive"] == trained["alive"]
            assert measured[folder]["explained_variance"] < 0


def test_random_is_where_the_panels_members_started(study: tuple[PanelSpec, StudyResult]):
    _, result = study
    for seed in (0, 7):
        rows = SAE.load_from_disk(_panel(result, seed) / "random").W_dec.data
        torch.testing.assert_close(rows, sample_directions(128, 32, seed=seed))


def test_evaluation_knows_controls_in_a_study_and_by_themselves(
    study: tuple[PanelSpec, StudyResult],
):
    _, result = study
    found = {t.facts.member: t.facts for t in study_targets(result.folder)}
    for folder, name in zip(FOLDERS, CONTROLS, strict=True):
        assert found[folder].constraint == name
        alone = target_of("alone", _panel(result, 0) / folder).facts
        assert (alone.constraint, alone.architecture) == (name, "batchtopk")
        assert alone.l0 == 6
    trained = SAE.load_from_disk(_panel(result, 0) / "trained")
    assert facts_of("x", trained).constraint == "trained"


def test_resume_makes_what_is_missing_or_stale_and_nothing_else(
    study: tuple[PanelSpec, StudyResult], text: Dataset, tmp_path: Path
):
    spec, result = study
    root = tmp_path / "again"
    shutil.copytree(result.folder, root)
    panel = root / "panels" / "batchtopk_l0_6_seed_7"
    before = {f: (panel / f / "sae_weights.safetensors").read_bytes() for f in FOLDERS}
    shutil.rmtree(panel / "random")
    # A control of another SAE than the trained one that lies beside it.
    stale = panel / "permuted_pairing" / "provenance.json"
    record = json.loads(stale.read_text())
    record["source"]["weights_sha256"] = "0" * 64
    stale.write_text(json.dumps(record))
    again = train_study(spec, root, resume=True, dataset=text)
    assert sorted(k.member for k in again.trained) == ["permuted_pairing", "random"]
    assert {k.panel.seed for k in again.trained} == {7}
    for folder, weights in before.items():
        assert (panel / folder / "sae_weights.safetensors").read_bytes() == weights
    assert again.measurements == result.measurements


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            ["trained", "permuted_decodr"],
            "'permuted_decodr' is unknown; did you mean perm",
        ),
        (["trained", "random:kov"], "members: kind: random has no scheme 'kov'"),
        (["trained", "permuted_decoder:cov"], "has no scheme 'cov'; leave it away"),
        (["trained", "random", "random"], "names repeat"),
        (["random"], "members: 'trained' is missing"),
        (
            ["trained", {"constraint": "random", "init_scheme": "cov"}],
            "init_scheme: belongs to baselines; name the control random:cov",
        ),
        (["trained", {"constraint": "random", "tau": 0.9}], "tau belongs to soft_frozen"),
    ],
)
def test_mistakes_are_named_before_training(
    model_folder: Path, members: list[Any], message: str
):
    with pytest.raises(UserError, match=message):
        _spec(model_folder, members=members)


def test_a_control_can_have_a_label_and_a_trained_member_too(model_folder: Path):
    spec = _spec(
        model_folder,
        members=[
            {"constraint": "trained", "label": "ours"},
            {"constraint": "random:kaiming", "label": "null"},
        ],
    )
    assert [(m.name, m.is_control) for m in spec.member_specs] == [
        ("ours", False),
        ("null", True),
    ]
