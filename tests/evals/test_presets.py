"""Presets are evaluated as the paper did."""

import pytest

from sae_baselines.evals.spec import eval_spec_from_dict, preset_evals
from sae_baselines.study.presets import preset_names


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_has_a_valid_section(name: str) -> None:
    spec = eval_spec_from_dict(preset_evals(name))
    assert "core" in spec.suites
    assert ("ravel" in spec.suites) == name.startswith("gemma-2-2b")
    for suite in spec.suites:
        assert any(metric.startswith(f"{suite}/") for metric in spec.primary_metrics)


def test_the_papers_latents() -> None:
    spec = eval_spec_from_dict(preset_evals("gemma-2-2b-layer-12-batchtopk"))
    assert spec.options_of("autointerp")["n_latents"] == 200
