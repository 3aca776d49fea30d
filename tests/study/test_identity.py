"""Which weights an exported SAE has, and how many rows its cap holds."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_baselines.baselines.cap import share_at_edge
from sae_baselines.show.sae import describe_sae
from sae_baselines.study.identity import CAP_SHARE, WEIGHTS, identity_of
from tests.helpers import make_sae

HELD = 5
WEIGHTS_FILE = "sae_weights.safetensors"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A soft-frozen member, `HELD` of whose rows lie at the edge of their cap."""
    folder = tmp_path_factory.mktemp("panel") / "soft_frozen_decoder"
    sae = make_sae("soft_frozen_decoder", tau=0.8)
    start = sae.W_dec.detach().clone()
    turned = torch.linalg.qr(torch.stack([start[0], start[1]], 1))[0].T
    for i in range(HELD):
        unit = start[i] / start[i].norm()
        away = turned[1] - (turned[1] @ unit) * unit
        sae.W_dec.data[i] = 0.8 * unit + 0.6 * away / away.norm()
    sae.save_inference_model(folder)
    assert share_at_edge(sae.W_dec.detach(), start, 0.8) == HELD / len(start)
    return folder


@pytest.fixture
def member(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "panel" / exported.name)


def test_what_an_older_study_does_not_record_is_computed_from_the_export(member: Path) -> None:
    d_sae = len(load_file(member / WEIGHTS_FILE)["W_dec"])
    who = identity_of(member, {})
    assert who[CAP_SHARE] == HELD / d_sae
    assert identity_of(member, who) == who
    # The least cosine is enough where it clears the cap.
    assert identity_of(member, {"cos_to_start_min": 0.93})[CAP_SHARE] == 0
    assert identity_of(member, {"cos_to_start_min": 0.8})[CAP_SHARE] == HELD / d_sae
    # What was measured stands.
    assert identity_of(member, {CAP_SHARE: 0.25})[CAP_SHARE] == 0.25


def test_the_hash_is_of_the_tensors_whatever_else_the_file_says(member: Path) -> None:
    first = identity_of(member, {})[WEIGHTS]
    tensors = load_file(member / WEIGHTS_FILE)
    save_file(tensors, member / WEIGHTS_FILE, metadata={"note": "x"})
    assert identity_of(member, {})[WEIGHTS] == first
    tensors["b_dec"][0] += 1
    save_file(tensors, member / WEIGHTS_FILE)
    assert identity_of(member, {})[WEIGHTS] != first


@pytest.mark.parametrize("details", ["x", [], {"tau": "x"}, {"tau": 0.8}, {}, None])
def test_a_config_that_says_nothing_of_a_cap_gives_no_share(
    member: Path, details: object
) -> None:
    path = member / "cfg.json"
    config = json.loads(path.read_text())
    config["metadata"]["training_architecture_details"] = details
    path.write_text(json.dumps(config))
    assert identity_of(member, {})[CAP_SHARE] is None


@pytest.mark.parametrize("name", [WEIGHTS_FILE, "cfg.json"])
def test_damaged_and_missing_files_are_not_known(member: Path, name: str) -> None:
    path = member / name
    path.write_bytes(path.read_bytes()[:100])
    who = identity_of(member, {})
    assert who[CAP_SHARE] is None
    assert (who[WEIGHTS] is None) == (name == WEIGHTS_FILE)
    path.unlink()
    assert identity_of(member, {})[CAP_SHARE] is None
    if name == WEIGHTS_FILE:
        # A study without its weights still says that the cap never bound.
        measured = {"cos_to_start_min": 0.93}
        assert identity_of(member, measured) == {WEIGHTS: None, CAP_SHARE: 0.0}


def test_a_damaged_neighbour_is_no_fault_of_an_sae(member: Path) -> None:
    twin = member.parent / "twin"
    shutil.copytree(member, twin)
    if member.name != "trained":
        shutil.copytree(member, member.parent / "trained")
    (member.parent / "trained" / "measurement.json").write_text("{")
    describe_sae(twin)
