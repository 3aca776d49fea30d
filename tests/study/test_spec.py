"""Panel specs: what is accepted, what is refused and in which words."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sae_baselines.errors import UserError
from sae_baselines.study.presets import PAPER_L0S, preset, preset_names
from sae_baselines.study.spec import (
    json_schema,
    load_spec,
    spec_difference,
    spec_from_dict,
    spec_hash,
    spec_to_dict,
    spec_to_yaml,
)
from tests.tiny_model import tiny_panel

BASE = tiny_panel(Path("model"), d_sae=64, expansion=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architecture": "batchtpok"},
            "architecture: 'batchtpok' is unknown; did you mean batch",
        ),
        ({"architecture": "frozen_decoder"}, "architecture: 'frozen_decoder' is a baseline"),
        ({"members": ["trained", "frozen_decodr"]}, "members: 'frozen_decodr' is unknown; did"),
        ({"members": ["frozen_decoder"]}, "members: 'trained' is missing"),
        ({"members": ["trained", "trained"]}, "names repeat"),
        ({"members": ["trained", "frozen_decoder:kov"]}, "scheme 'kov' is unknown"),
        ({"tau": 1.5}, "tau: 1.5 is out of range"),
        ({"tau": -1.0}, "tau: -1.0 is out of range"),
        (
            {"threshold_return": 2},
            "threshold_return: 2: Input should be less than or equal to 1",
        ),
        ({"clip_grad_norm": 0}, "clip_grad_norm: 0: Input should be greater than 0"),
        (
            {"members": ["trained", {"constraint": "frozen_decoder", "learned": "threshold"}]},
            "frozen_decoder_threshold: learned belongs to frozen_encoder, not to frozen_dec",
        ),
        ({"l0": 0}, "l0: 0 is out of range"),
        ({"l0": -3}, "l0: -3 is out of range"),
        ({"l0": 64}, "l0: 64 is not below d_sae=64"),
        ({"l0": [8, 8]}, "values repeat"),
        (
            {"l0": 2.5, "architecture": "topk"},
            "l0: 2.5 is not an integer, but k of topk is one",
        ),
        ({"training_tokens": 5}, "training_tokens: 5 is less than one batch of 128"),
        ({"trainin_tokens": 5}, "trainin_tokens: is not a field; did you mean training_tokens"),
        ({"model": {"nme": "x"}}, "model.name: is missing"),
        ({"n_batches_in_buffer": 1}, "n_batches_in_buffer: 1 contexts hold 32 tokens"),
        ({"expansion": 4.0}, "d_sae, expansion: give exactly one"),
        ({"d_sae": "many"}, "d_sae: 'many'"),
        (
            {"sae": {"aux_los_coefficient": 1}},
            "has no field 'aux_los_coefficient'; did you mean",
        ),
        ({"sae": {"k": 3}}, "sae: 'k' is set by the panel"),
        ({"sae": {"sparse_step": False}}, "sae: 'sparse_step' is set by the panel"),
        ({"sparse_step": "some"}, "sparse_step: 'some'"),
        ({"seeds": [1, 1]}, "seeds: [1, 1]: use distinct seeds"),
        ({"seeds": []}, "seeds: the list is empty"),
        ({"name": "a/b"}, "name: 'a/b' names a folder"),
        ({"seqpos_slice": [40, None]}, "seqpos_slice"),
        (
            {"normalize_activations": "layer_norm"},
            "'layer_norm' stops SAELens' dead-latent loss",
        ),
        (
            {"normalize_activations": "covariance_whitening"},
            "not possible with soft_frozen_decoder",
        ),
        (
            {"architecture": "matching_pursuit"},
            "cannot be told a target L0",
        ),
        ({"sae": {"aux_loss_coefficient": "abc"}}, "sae: aux_loss_coefficient: 'abc'"),
        ({"lr_scheduler_name": "foo"}, "lr_scheduler_name: 'foo'"),
        ({"seqpos_slice": []}, "seqpos_slice: []"),
        ({"seqpos_slice": [0, 5, 0]}, "seqpos_slice: [0, 5, 0]"),
        (
            {"data_order": "per_seed", "dataset": {"path": "d", "streaming": True}},
            "data_order: 'per_seed' is not possible with dataset.streaming",
        ),
        ({"plugins": ["no_such_module"]}, "plugins: cannot import 'no_such_module'"),
    ],
)
def test_bad_input_gets_one_line_that_names_the_field(change: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        spec_from_dict({**BASE, **change}, where="panel.yaml")
    text = str(caught.value)
    assert message in text
    assert text.startswith("panel.yaml: ")
    assert "\n" not in text


def test_yaml_round_trip_keeps_everything(tmp_path: Path):
    spec = spec_from_dict(
        {
            **BASE,
            "members": [
                "trained",
                "frozen_decoder:cov",
                {"constraint": "soft_frozen_decoder", "tau": 0.9},
            ],
        }
    )
    path = tmp_path / "panel.yaml"
    path.write_text(spec_to_yaml(spec))
    again = load_spec(path)
    assert spec_to_dict(again) == spec_to_dict(spec)
    assert spec_hash(again) == spec_hash(spec)
    assert [m.name for m in again.member_specs] == [
        "trained",
        "frozen_decoder_cov",
        "soft_frozen_decoder_tau0.9",
    ]


def test_hash_changes_with_what_changes_results_and_with_nothing_else():
    original = spec_hash(spec_from_dict(BASE))
    assert spec_hash(spec_from_dict({**BASE, "lr": 1e-3})) != original
    assert spec_hash(spec_from_dict({**BASE, "seeds": [1]})) != original
    assert spec_hash(spec_from_dict({**BASE, "name": "other", "n_checkpoints": 7})) == original


@pytest.mark.parametrize("content", ["a: [", "- just\n- a list\n"])
def test_a_file_that_is_no_mapping_is_refused_in_one_line(tmp_path: Path, content: str):
    path = tmp_path / "panel.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"panel\.yaml") as caught:
        load_spec(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        load_spec(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_valid_spec_that_survives_yaml(name: str):
    spec = preset(name)
    assert spec_to_dict(spec_from_dict(yaml.safe_load(spec_to_yaml(spec)))) == spec_to_dict(
        spec
    )


def test_paper_presets_have_the_papers_numbers():
    spec = preset("gemma-2-2b-layer-12-batchtopk")
    assert spec.l0s == PAPER_L0S == [80, 115, 160, 225, 320]
    assert spec.training_tokens == 500_000_000
    assert spec.width(2304) == 73_728
    assert (spec.context_size, spec.lr) == (512, 2e-4)
    assert preset("llama-3-8b-layer-16-jumprelu").width(4096) == 131_072


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="did you mean pythia-70m"):
        preset("pythia-70")


def test_json_schema_names_every_field():
    properties = json_schema()["properties"]
    assert {"hook_name", "l0", "members", "tau"} <= set(properties)


def test_a_study_from_before_splits_its_text_as_it_did() -> None:
    stored = spec_to_dict(spec_from_dict(BASE))
    del stored["held_out_spread"]
    spec = spec_from_dict(stored, stored=True)
    assert spec.held_out_spread == 1
    fresh = {k: v for k, v in BASE.items() if k != "held_out_spread"}
    assert spec_from_dict(fresh).held_out_spread > 1
    assert spec_hash(spec) == spec_hash(spec_from_dict({**BASE, "held_out_spread": 1}))
    assert spec_difference(stored, spec_to_dict(spec)) == []


def test_what_came_later_changes_no_hash_where_it_is_as_before() -> None:
    member: dict[str, Any] = {"constraint": "frozen_encoder", "init_scheme": "cov"}
    plain = {**BASE, "members": ["trained", member]}
    spec = spec_from_dict(plain)
    stored = spec_to_dict(spec)
    del stored["clip_grad_norm"], stored["members"][1]["learned"]
    assert spec_difference(stored, spec_to_dict(spec)) == []
    assert spec_hash(spec_from_dict(stored, stored=True)) == spec_hash(spec)
    free = spec_from_dict({**plain, "clip_grad_norm": None})
    assert spec_difference(stored, spec_to_dict(free)) == ["clip_grad_norm, which is 1.0 there"]
    paper = spec_from_dict(
        {**plain, "members": ["trained", {**member, "learned": "threshold"}]}
    )
    assert paper.member_specs[1].name == "frozen_encoder_cov_threshold"
    assert len({spec_hash(each) for each in (spec, free, paper)}) == 3
