import importlib
import json
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sae_lens import LanguageModelSAERunnerConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.llm_sae_training_runner import _parse_cfg_args
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import TrainingSAE
from sae_lens.synthetic import (
    SyntheticModelConfig,
    SyntheticSAERunner,
    SyntheticSAERunnerConfig,
)
from sae_lens.training.multi_sae_trainer import MultiSAETrainer

import sae_baselines
from sae_baselines.baselines import (
    base_architectures,
    baseline_architectures,
    baseline_name,
    get_baseline,
    register_baselines,
)
from tests import stock_process
from tests.helpers import (
    BASES,
    BATCH,
    CONSTRAINTS,
    D_IN,
    D_SAE,
    base_options,
    batches,
    cosines,
    make_sae,
    train,
)

NAMES = [
    *CONSTRAINTS,
    *(f"{constraint}_{base}" for constraint in CONSTRAINTS for base in BASES),
    "frozen_decoder_matching_pursuit",
    "soft_frozen_decoder_matching_pursuit",
]


@pytest.mark.parametrize("name", [*NAMES, *(f"seeded_{base}" for base in BASES)])
def test_every_name_is_a_subclass_of_its_base_in_saelens_registry(name: str) -> None:
    sae_class, config_class = SAE_TRAINING_CLASS_REGISTRY[name]
    baseline = get_baseline(name)
    assert (baseline.sae_class, baseline.config_class) == (sae_class, config_class)
    base_class, base_config = SAE_TRAINING_CLASS_REGISTRY[baseline.base]
    assert issubclass(sae_class, base_class)
    assert issubclass(config_class, base_config)
    assert name.endswith(baseline.base) or name in CONSTRAINTS
    assert name.startswith(baseline.constraint.name)
    # What a saved config says leads back to the same class.
    assert SAE_TRAINING_CLASS_REGISTRY[config_class.architecture()][0] is sae_class


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_the_bare_name_is_batchtopk(constraint: str) -> None:
    assert get_baseline(constraint).base == "batchtopk"
    assert get_baseline(constraint) is get_baseline(f"{constraint}_batchtopk")
    assert make_sae(f"{constraint}_batchtopk").cfg.architecture() == constraint
    assert baseline_name(constraint, "batchtopk") == constraint
    assert baseline_name(constraint, "topk") == f"{constraint}_topk"
    assert "seeded" not in SAE_TRAINING_CLASS_REGISTRY
    assert baseline_name("seeded", "batchtopk") == "seeded_batchtopk"


def test_lists_of_bases_and_baselines_do_not_mix() -> None:
    bases, baselines = base_architectures(), baseline_architectures()
    assert set(BASES) <= set(bases)
    assert set(NAMES) <= set(baselines)
    assert not set(bases) & set(baselines)
    assert not any(name.startswith("seeded") for name in [*bases, *baselines])
    assert not any(name.startswith(CONSTRAINTS) for name in bases)


def test_matching_pursuit_has_no_frozen_encoder_and_the_error_says_why() -> None:
    assert "frozen_encoder_matching_pursuit" not in SAE_TRAINING_CLASS_REGISTRY
    reason = "its encoder is its decoder transposed.*frozen_decoder_matching_pursuit"
    with pytest.raises(ValueError, match=reason):
        get_baseline("frozen_encoder_matching_pursuit")
    with pytest.raises(ValueError, match=reason):
        baseline_name("frozen_encoder", "matching_pursuit")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: register_baselines("batchtopkk"), "architecture: 'batchtopkk'.*did you mean"),
        (lambda: register_baselines("jumprellu"), "did you mean jumprelu"),
        (lambda: get_baseline("frozen_decodr_topk"), "did you mean.*frozen_decoder_topk"),
        (
            lambda: baseline_name("frozen_decode", "topk"),
            "constraint: 'frozen_decode'.*frozen_dec",
        ),
        (lambda: baseline_name("frozen_decoder", "gatd"), "'gatd'.*did you mean gated"),
        (lambda: register_baselines("zzz"), "'zzz' is unknown; known: .*batchtopk.*topk"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(ask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask()


@pytest.mark.parametrize("name", ["frozen_decoder", "soft_frozen_decoder_topk", "seeded_gated"])
def test_a_baseline_has_no_baselines(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is a baseline already"):
        register_baselines(name)


def test_registering_again_changes_nothing() -> None:
    before = dict(SAE_TRAINING_CLASS_REGISTRY)
    names = register_baselines("batchtopk")
    assert names == [*CONSTRAINTS, "seeded_batchtopk"]
    assert register_baselines("topk") == [f"{c}_topk" for c in (*CONSTRAINTS, "seeded")]
    importlib.reload(sae_baselines)
    assert before == SAE_TRAINING_CLASS_REGISTRY
    assert list(before) == list(SAE_TRAINING_CLASS_REGISTRY)


@pytest.mark.parametrize("name", NAMES)
def test_saelens_runner_config_reads_and_writes_every_name(name: str) -> None:
    base = get_baseline(name).base
    fields: dict[str, Any] = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "init_seed": 3,
        **base_options(base),
    }
    if name.startswith("soft"):
        fields["tau"] = 0.9
    given = {
        "sae": {"architecture": name, **fields},
        "logger": {"log_to_wandb": False},
        "verbose": False,
    }
    config = LanguageModelSAERunnerConfig.from_dict(given)
    again = LanguageModelSAERunnerConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    for read in (config.sae, again.sae):
        assert type(read) is get_baseline(name).config_class
        for field, value in fields.items():
            assert getattr(read, field) == value, field


def parsed(arguments: str) -> Any:
    return _parse_cfg_args([*arguments.split(), "--verbose", "false"]).sae


def test_saelens_command_line_takes_the_architecture_and_its_fields() -> None:
    config = parsed("--architecture frozen_decoder --d_in 16 --d_sae 64 --k 3 --init_seed 4")
    assert get_baseline("frozen_decoder").config_class is type(config)
    assert (config.d_in, config.d_sae, config.k, config.init_seed) == (16, 64, 3, 4)
    config = parsed("--architecture soft_frozen_decoder_gated --tau 0.6 --target_l0 12")
    assert get_baseline("soft_frozen_decoder_gated").config_class is type(config)
    assert (config.tau, config.target_l0) == (0.6, 12.0)


@pytest.mark.parametrize("name", [*CONSTRAINTS, "frozen_encoder_gated"])
def test_saelens_synthetic_runner_trains_one_from_config_alone(
    name: str, tmp_path: Any
) -> None:
    model = SyntheticModelConfig(num_features=40, hidden_dim=D_IN, seed=1, bias=False)
    base = get_baseline(name).base
    config = SyntheticSAERunnerConfig.from_dict(
        {
            "synthetic_model": model.to_dict(),
            "sae": {
                "architecture": name,
                "d_in": D_IN,
                "d_sae": D_SAE,
                "init_scheme": "cov",
                "init_cov_samples": 100,
                **base_options(base),
            },
            "training_samples": 20 * BATCH,
            "batch_size": BATCH,
            "lr": 5e-2,
            "eval_samples": 256,
            "checkpoint_path": None,
            "output_path": str(tmp_path / "out"),
            "logger": {"log_to_wandb": False},
        }
    )
    result = SyntheticSAERunner(config).run()
    sae = result.sae
    assert type(sae) is get_baseline(name).sae_class
    assert sae.start_is_pending is False
    assert result.final_eval is not None
    stored = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert stored["metadata"]["training_architecture"] == name
    if name == "soft_frozen_decoder":
        assert cosines(sae.W_dec, sae.get_buffer("W_dec_start")).min() >= 0.8 - 1e-6
    else:
        moved = sae.W_enc.T if name == "frozen_decoder" else sae.W_dec
        fixed = sae.W_dec if name == "frozen_decoder" else sae.W_enc.T
        torch.testing.assert_close(fixed.norm(dim=1), torch.ones(D_SAE))
        assert (moved - fixed).abs().max() > 1e-2


def test_saelens_trainer_for_several_trains_all_three_beside_the_original() -> None:
    names = [*CONSTRAINTS, "seeded_batchtopk"]
    saes: dict[str, TrainingSAE[Any]] = {name: make_sae(name) for name in names}
    start = saes["seeded_batchtopk"].W_dec.detach().clone()

    def stream() -> Iterator[dict[str, torch.Tensor]]:
        for batch in batches():
            yield {"hook": batch}

    config = SAETrainerConfig(
        total_training_samples=30 * BATCH, train_batch_size_samples=BATCH, lr=2e-2, lr_end=2e-2
    )
    trainer = MultiSAETrainer(config, saes, dict.fromkeys(names, "hook"), stream())
    trainer.fit()
    assert torch.equal(saes["frozen_decoder"].W_dec, start)
    assert cosines(saes["soft_frozen_decoder"].W_dec, start).min() >= 0.8 - 1e-6
    assert torch.equal(saes["frozen_encoder"].W_enc, start.T)
    # Side by side they learn what each learns alone.
    for name in names:
        alone = make_sae(name)
        train(alone, 30, lr=2e-2)
        assert torch.equal(alone.W_dec, saes[name].W_dec), name
        assert torch.equal(alone.W_enc, saes[name].W_enc), name


@pytest.mark.parametrize("name", NAMES)
def test_a_config_can_be_sent_to_another_process(name: str) -> None:
    config = make_sae(name, init_seed=3).cfg
    assert pickle.loads(pickle.dumps(config)) == config


RELOAD = """
import importlib, json, sys, warnings
import torch
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY as registry
import sae_baselines
from sae_baselines.baselines import baseline_architectures, get_baseline, register_baselines

def escapes(sae):
    '''How many rows are outside their cap after a step that turns them around.'''
    start = sae.W_dec.detach().clone()
    optimizer = torch.optim.SGD(sae.parameters(), lr=1.0)
    sae.W_dec.grad = 2.5 * sae.W_dec.detach()
    optimizer.step()
    return int((torch.nn.functional.cosine_similarity(sae.W_dec, start) < 0.79).sum())

def soft():
    sae_class, config = registry["soft_frozen_decoder"]
    return sae_class(config(d_in=8, d_sae=16, k=2))

found = {}
before = dict(registry)
old = soft()
importlib.reload(sae_baselines)
found["same registry after a reload"] = before == registry
found["escapes after a reload"] = escapes(old)

old = soft()
mine = [m for n, m in sorted(sys.modules.items()) if n.startswith("sae_baselines")]
for module in reversed(mine):
    importlib.reload(module)
found["same registry after reloading every module"] = before == registry
found["old escapes after reloading every module"] = escapes(old)
found["new escapes after reloading every module"] = escapes(soft())
found["twins after reloading every module"] = sorted(sys.modules[
    "sae_baselines.baselines.registry"].baseline_architectures())

old = soft()
for name in [n for n in sys.modules if n.startswith("sae_baselines")]:
    del sys.modules[name]
import sae_baselines as again
found["imported anew"] = again is not sae_baselines
from sae_baselines.baselines import baseline_architectures, register_baselines
found["same registry after a second import"] = before == registry
found["old escapes after a second import"] = escapes(old)
found["new escapes after a second import"] = escapes(soft())
found["twins after a second import"] = sorted(baseline_architectures())
found["names after a second import"] = register_baselines("topk")

# Another package has a class of the name that one of SAELens' has.
import pickle
from dataclasses import dataclass
from sae_lens import register_sae_training_class
from sae_lens.saes import standard_sae

@dataclass
class StandardTrainingSAEConfig(standard_sae.StandardTrainingSAEConfig):
    @classmethod
    def architecture(cls):
        return "better"

    def get_inference_config_class(self):
        return standard_sae.StandardSAEConfig

class StandardTrainingSAE(standard_sae.StandardTrainingSAE):
    pass

register_sae_training_class("better", StandardTrainingSAE, StandardTrainingSAEConfig)
again.register_baselines("better")
found["not to be pickled"] = {}
for name in ("frozen_decoder_standard", "frozen_decoder_better"):
    config = registry[name][1](d_in=4, d_sae=8)
    try:
        assert pickle.loads(pickle.dumps(config)) == config
    except Exception as error:
        found["not to be pickled"][name] = str(error)
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    run = stock_process.run(RELOAD)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.split("FOUND")[1])


def test_reloading_or_importing_again_leaves_saelens_registry_as_it_is(
    found: dict[str, Any],
) -> None:
    assert found["imported anew"]
    assert found["same registry after a reload"]
    assert found["same registry after reloading every module"]
    assert found["same registry after a second import"]


def test_reloading_or_importing_again_finds_all_baselines_again(found: dict[str, Any]) -> None:
    assert set(NAMES) <= set(found["twins after reloading every module"])
    assert set(NAMES) <= set(found["twins after a second import"])
    assert found["names after a second import"] == register_baselines("topk")


def test_reloading_or_importing_again_does_not_stop_the_projection(
    found: dict[str, Any],
) -> None:
    assert {name: n for name, n in found.items() if "escapes" in name and n != 0} == {}


def test_a_class_of_the_same_name_in_another_package_does_not_get_in_the_way(
    found: dict[str, Any],
) -> None:
    assert found["not to be pickled"] == {}
