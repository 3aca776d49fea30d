"""An architecture that another package has registered with SAELens gets its baselines."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, register_sae_class, register_sae_training_class
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import (
    SAEConfig,
    TrainCoefficientConfig,
    TrainingSAE,
    TrainingSAEConfig,
    TrainStepInput,
)
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

from sae_baselines.baselines import get_baseline, register_baselines
from tests.helpers import (
    BATCH,
    CONSTRAINTS,
    activations,
    cosines,
    gradients,
    make_sae,
    randomise_,
    set_weights,
    step_input,
    train,
    weights,
)

# --- the other package: an SAE with a margin, an extra field and an extra loss ---


@dataclass
class MarginSAEConfig(SAEConfig):
    margin: float = 0.1

    @classmethod
    def architecture(cls) -> str:
        return "margin"


class MarginSAE(SAE[MarginSAEConfig]):
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.gain = torch.nn.Parameter(torch.ones(self.cfg.d_sae, device=self.device))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return (self.process_sae_in(x) @ self.W_enc * self.gain - self.cfg.margin).relu()

    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        return feature_acts @ self.W_dec + self.b_dec


@dataclass
class MarginTrainingSAEConfig(TrainingSAEConfig):
    margin: float = 0.1
    crowd_coefficient: float = 0.5

    @classmethod
    def architecture(cls) -> str:
        return "margin"


class MarginTrainingSAE(TrainingSAE[MarginTrainingSAEConfig]):
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.gain = torch.nn.Parameter(torch.ones(self.cfg.d_sae, device=self.device))

    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_pre = self.process_sae_in(x) @ self.W_enc * self.gain - self.cfg.margin
        return hidden_pre.relu(), hidden_pre

    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return {"crowd": self.cfg.crowd_coefficient}

    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        del hidden_pre, sae_out
        crowd = feature_acts.sum(dim=-1).pow(2).mean()
        return {"crowd_loss": step_input.coefficients["crowd"] * crowd}


# --- one whose encoder is its decoder ---


@dataclass
class TiedTrainingSAEConfig(MarginTrainingSAEConfig):
    @classmethod
    def architecture(cls) -> str:
        return "tied"

    def get_inference_config_class(self) -> type[SAEConfig]:
        return MarginSAEConfig


class TiedTrainingSAE(MarginTrainingSAE):
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_pre = self.process_sae_in(x) @ self.W_dec.T - self.cfg.margin
        return hidden_pre.relu(), hidden_pre


# --- one that changes how b_dec enters, and leaves the encoder to SAELens ---


@dataclass
class UnitInputTrainingSAEConfig(StandardTrainingSAEConfig):
    @classmethod
    def architecture(cls) -> str:
        return "unit_input"

    def get_inference_config_class(self) -> type[SAEConfig]:
        return MarginSAEConfig


class UnitInputTrainingSAE(StandardTrainingSAE):
    def process_sae_in(self, sae_in: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(sae_in - self.b_dec, dim=-1)


# --- one that is SAELens' TopK with another field ---


@dataclass
class WarmTopKTrainingSAEConfig(TopKTrainingSAEConfig):
    warmth: float = 2.0

    @classmethod
    def architecture(cls) -> str:
        return "warm_topk"

    def get_inference_config_class(self) -> type[SAEConfig]:
        return MarginSAEConfig


class WarmTopKTrainingSAE(TopKTrainingSAE):
    pass


register_sae_class("margin", MarginSAE, MarginSAEConfig)
register_sae_training_class("margin", MarginTrainingSAE, MarginTrainingSAEConfig)
register_sae_training_class("tied", TiedTrainingSAE, TiedTrainingSAEConfig)
register_sae_training_class("unit_input", UnitInputTrainingSAE, UnitInputTrainingSAEConfig)
register_sae_training_class("warm_topk", WarmTopKTrainingSAE, WarmTopKTrainingSAEConfig)
NAMES = {name: register_baselines(name) for name in ("margin", "tied", "unit_input")}
register_baselines("warm_topk")


def test_it_gets_its_three_and_its_seeded_self() -> None:
    assert NAMES["margin"] == [f"{c}_margin" for c in (*CONSTRAINTS, "seeded")]
    for name in NAMES["margin"]:
        sae_class, config_class = SAE_TRAINING_CLASS_REGISTRY[name]
        assert issubclass(sae_class, MarginTrainingSAE)
        assert issubclass(config_class, MarginTrainingSAEConfig)
        assert config_class.architecture() == name
    assert register_baselines("margin") == NAMES["margin"]


def test_which_of_its_biases_is_a_threshold_is_not_guessed() -> None:
    for name in ("frozen_encoder_margin", "frozen_encoder_warm_topk"):
        with pytest.raises(ValueError, match=r"learned: 'threshold' is not possible .* use"):
            make_sae(name, learned="threshold")


def test_a_name_that_is_nearly_its_name_leads_there() -> None:
    with pytest.raises(ValueError, match="'margn' is unknown; did you mean margin"):
        register_baselines("margn")
    with pytest.raises(ValueError, match=r"did you mean.*frozen_decoder_margin"):
        get_baseline("frozen_decoder_margn")


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_its_fields_and_losses_are_kept(constraint: str) -> None:
    sae = make_sae(f"{constraint}_margin", margin=0.3, crowd_coefficient=0.7)
    stock = make_sae("margin", margin=0.3, crowd_coefficient=0.7)
    randomise_(sae)
    set_weights(stock, weights(sae))
    x = activations(BATCH)
    ours = sae.training_forward_pass(step_input(sae, x))
    theirs = stock.training_forward_pass(step_input(stock, x))
    assert ours.losses.keys() == {"mse_loss", "crowd_loss"}
    for name, loss in theirs.losses.items():
        assert loss > 0
        assert torch.equal(ours.losses[name], loss)
    wanted = gradients(stock, theirs.loss)
    got = gradients(sae, ours.loss)
    frozen = {"frozen_decoder": {"W_dec"}, "frozen_encoder": {"W_enc"}}.get(constraint, set())
    assert got.keys() == wanted.keys() - frozen
    for name in got:
        assert torch.equal(got[name], wanted[name]), name


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_its_baselines_are_constrained_and_export_as_its_own_class(
    tmp_path: Path, constraint: str
) -> None:
    sae = make_sae(f"{constraint}_margin", margin=0.2)
    start = sae.W_dec.detach().clone()
    train(sae, 20, lr=3e-2)
    if constraint == "frozen_decoder":
        assert torch.equal(sae.W_dec, start)
    elif constraint == "frozen_encoder":
        assert torch.equal(sae.W_enc, start.T)
    else:
        assert cosines(sae.W_dec, start).min() >= 0.8 - 1e-6
        assert not torch.equal(sae.W_dec, start)
    sae.save_inference_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == "margin"
    assert config["margin"] == 0.2
    details = config["metadata"]["training_architecture_details"]
    assert details["base_architecture"] == "margin"
    assert details["crowd_coefficient"] == 0.5
    exported = SAE.load_from_disk(tmp_path)
    assert type(exported) is MarginSAE
    x = activations(50)
    torch.testing.assert_close(exported(x), sae(x), rtol=1e-6, atol=1e-6)


def test_an_encoder_that_depends_on_the_decoder_is_refused_a_frozen_one() -> None:
    with pytest.raises(
        ValueError, match=r"frozen_encoder_tied.*'tied' encodes depends on its decoder"
    ):
        make_sae("frozen_encoder_tied")
    # Nothing else is refused it.
    for name in ("frozen_decoder_tied", "soft_frozen_decoder_tied", "frozen_encoder_margin"):
        train(make_sae(name), 2)


def test_rescaling_by_the_decoder_norm_is_pinned_for_relatives_of_topk() -> None:
    sae = make_sae("frozen_encoder_warm_topk", k=3, warmth=5.0)
    assert sae.cfg.rescale_acts_by_decoder_norm is False
    assert sae.cfg.warmth == 5.0
    with pytest.raises(ValueError, match="rescale_acts_by_decoder_norm"):
        make_sae("frozen_encoder_warm_topk", k=3, rescale_acts_by_decoder_norm=True)


@pytest.mark.parametrize("constraint", ["frozen_decoder", "soft_frozen_decoder"])
def test_the_gradient_of_b_dec_is_right_when_it_enters_in_another_way(
    constraint: str,
) -> None:
    sae = make_sae(f"{constraint}_unit_input", l1_coefficient=0.1)
    stock = make_sae("unit_input", l1_coefficient=0.1)
    randomise_(sae)
    set_weights(stock, weights(sae))
    x = activations(BATCH)
    ours = sae.training_forward_pass(step_input(sae, x))
    theirs = stock.training_forward_pass(step_input(stock, x))
    assert torch.equal(ours.loss, theirs.loss)
    got, wanted = gradients(sae, ours.loss), gradients(stock, theirs.loss)
    torch.testing.assert_close(got["b_dec"], wanted["b_dec"], rtol=1e-4, atol=1e-5)


def test_a_name_that_another_package_has_taken_is_not_overwritten() -> None:
    base, taken = "margin_again", "frozen_decoder_margin_again"
    try:
        register_sae_training_class(base, MarginTrainingSAE, MarginTrainingSAEConfig)
        register_sae_training_class(taken, MarginTrainingSAE, MarginTrainingSAEConfig)
        with pytest.raises(ValueError, match=rf"'{taken}' is already registered.*cannot use"):
            register_baselines(base)
        assert SAE_TRAINING_CLASS_REGISTRY[taken][0] is MarginTrainingSAE
    finally:
        for name in (base, taken):
            SAE_TRAINING_CLASS_REGISTRY.pop(name, None)


def test_configs_of_its_baselines_survive_dictionaries_and_pickling() -> None:
    for name in NAMES["margin"]:
        config: Any = make_sae(name, margin=0.4, init_seed=6).cfg
        again: Any = TrainingSAEConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert type(again) is type(config)
        assert (again.margin, again.init_seed) == (0.4, 6)
        assert pickle.loads(pickle.dumps(config)) == config
