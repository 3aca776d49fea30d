"""The panels around an SAE follow what is recorded of it; what is missing is asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_baselines.errors import UserError
from sae_baselines.evals import eval_spec_from_dict
from sae_baselines.evals.doctor import diagnose, require_runnable
from sae_baselines.evals.study import subject_of_panel
from sae_baselines.pipeline import suites_for
from sae_baselines.study import PanelSpec
from sae_baselines.study.reference.read import read_reference
from sae_baselines.study.reference.recipe import (
    CheckOptions,
    described,
    recipe_of,
    spec_at,
    whole_number,
)
from sae_baselines.study.spec import spec_hash
from tests.study.reference.conftest import MODEL_NAME, make_published
from tests.tiny_model import HOOK

RUNNER = {
    "training_tokens": 1_000_000,
    "lr": 1e-4,
    "train_batch_size_tokens": 8192,
    "adam_beta1": 0.0,
    "lr_warm_up_steps": 100,
    "lr_decay_steps": 20,
    "sae": {"jumprelu_bandwidth": 0.02, "l0_coefficient": 3.0},
}


@pytest.fixture
def folder(tmp_path: Path, activations: Callable[[str], torch.Tensor]) -> Path:
    make_published(activations(HOOK)).save_model(tmp_path / "theirs")
    return tmp_path / "theirs"


def spec_of(folder: Path, l0: float = 6.5, **options: Any) -> PanelSpec:
    published = read_reference(str(folder))
    recipe = recipe_of(published, CheckOptions(**options))
    return spec_at(recipe, published, l0, None)


def notes_of(spec: PanelSpec) -> str:
    assert spec.published is not None
    return " | ".join(spec.published.facts["notes"])


def change(folder: Path, **metadata: Any) -> None:
    path = folder / "cfg.json"
    cfg = json.loads(path.read_text())
    cfg["metadata"] = {**cfg["metadata"], **metadata}
    path.write_text(json.dumps(cfg))


def test_everything_that_is_recorded_is_used(folder: Path) -> None:
    (folder / "runner_cfg.json").write_text(json.dumps(RUNNER))
    change(folder, exclude_special_tokens=True, seqpos_slice=[1, None], prepend_bos=False)
    spec = spec_of(folder, tokens=100_000)
    assert (spec.model.name, spec.model.recorded_name) == (MODEL_NAME, MODEL_NAME)
    assert (spec.hook_name, spec.d_in, spec.d_sae) == (HOOK, 32, 128)
    assert (spec.dataset.path, spec.dataset.streaming) == ("somebody/text", True)
    assert (spec.context_size, spec.prepend_bos) == (32, False)
    assert (spec.seqpos_slice, spec.exclude_special_tokens) == ([1, None], True)
    assert (spec.lr, spec.train_batch_size_tokens, spec.adam_beta1) == (1e-4, 8192, 0.0)
    # A tenth of the budget, a tenth of the warm-up.
    assert (spec.lr_warm_up_steps, spec.lr_decay_steps) == (10, 2)
    # What sets its sparsity is the panel's: baselines have its L0, not its coefficient.
    assert spec.sae == {"apply_b_dec_to_input": True, "jumprelu_bandwidth": 0.02}
    assert spec.n_batches_in_buffer * 31 >= 2 * 8192
    assert spec.seeds == [0, 1, 2, 3, 4]
    assert spec.l0s == [6.5]
    assert "trained on 1,000,000 tokens, the others here on 100,000" in notes_of(spec)
    assert any("it 1,000,000; each of the others 100,000" in line for line in described(spec))


def test_what_is_missing_is_asked_for_or_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"tokens: how many .* say it with --tokens"):
        spec_of(folder)
    asked: list[str] = []

    def answer(option: str, question: str) -> str:
        asked.append(f"{option}: {question}")
        return "2e5"

    published = read_reference(str(folder))
    recipe = recipe_of(published, CheckOptions(), answer)
    assert recipe.fields["training_tokens"] == 200_000
    assert [line.split(":")[0] for line in asked] == ["tokens"]
    for field, option in (("model_name", "model"), ("dataset_path", "dataset")):
        known = json.loads((folder / "cfg.json").read_text())["metadata"][field]
        change(folder, **{field: None})
        with pytest.raises(UserError, match=f"^{option}: .* say it with --{option}"):
            spec_of(folder, tokens=10_000)
        change(folder, **{field: known})


def test_the_budget_that_is_recorded_is_the_default(folder: Path) -> None:
    (folder / "runner_cfg.json").write_text(json.dumps(RUNNER))
    spec = spec_of(folder)
    assert spec.training_tokens == 1_000_000
    assert spec.lr_warm_up_steps == 100


def test_another_text_or_an_unknown_recipe_is_noted(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words")
    spec = spec_of(folder, tokens=10_000, dataset=str(text), model="other/model")
    assert spec.dataset.streaming is False
    # All SAEs of the study name one model, which SAEBench then loads.
    assert (spec.model.name, spec.model.recorded_name) == ("other/model", "other/model")
    local = spec_of(folder, tokens=10_000, model=str(tmp_path))
    assert local.model.recorded_name == MODEL_NAME
    notes = notes_of(spec)
    assert "names the text somebody/text; here everything is trained and measured on text" in (
        notes
    )
    assert str(tmp_path) not in notes
    assert "learning rate and batch size are not recorded" in notes
    assert "may have seen text that is held out" in notes
    assert any("Token budget: it not recorded" in line for line in described(spec))


def test_overrides_win_and_bad_ones_are_named(folder: Path) -> None:
    spec = spec_of(folder, tokens=10_000, overrides={"lr": 5e-5, "encoder_init": "transposed"})
    assert (spec.lr, spec.encoder_init) == (5e-5, "transposed")
    nested = spec_of(folder, tokens=10_000, overrides={"model": {"dtype": "bfloat16"}})
    assert (nested.model.dtype, nested.model.recorded_name) == ("bfloat16", MODEL_NAME)
    told = {"lr": 5e-5, "train_batch_size_tokens": 1024}
    assert "learning rate" in notes_of(spec)
    assert "learning rate" not in notes_of(spec_of(folder, tokens=10_000, overrides=told))
    wide = spec_of(folder, tokens=10**6, overrides={"train_batch_size_tokens": 65_536})
    assert wide.n_batches_in_buffer * 32 >= 2 * 65_536
    with pytest.raises(UserError, match=r"model: 'gpt2' is not a mapping"):
        spec_of(folder, tokens=10_000, overrides={"model": "gpt2"})
    with pytest.raises(UserError, match=r"check: learning_rate: is not a field; did you mean"):
        spec_of(folder, tokens=10_000, overrides={"learning_rate": 1.0})
    with pytest.raises(UserError, match=r"members: 'frozen_dekoder' is unknown; did you mean"):
        spec_of(folder, tokens=10_000, members=("frozen_dekoder",))
    with pytest.raises(UserError, match="'published' is kept"):
        spec_of(folder, tokens=10_000, members=("trained", "published"))


def test_activations_of_a_centred_model(folder: Path) -> None:
    change(folder, model_from_pretrained_kwargs={"center_writing_weights": True})
    spec = spec_of(folder, tokens=10_000)
    assert spec.model.center_writing_weights
    evals = eval_spec_from_dict({})
    kept, notes = suites_for(spec, evals, None)
    # SAEBench loads the model as the SAE says in core; elsewhere it does not.
    assert list(kept.suites) == ["core"]
    assert "sparse_probing_sae_probes" in notes[0]
    with pytest.raises(UserError, match=r"suites: the SAE reads .* sparse_probing"):
        suites_for(spec, evals, ["sparse_probing"])
    change(folder, model_from_pretrained_kwargs={"center_writing_weights": False})
    plain = spec_of(folder, tokens=10_000)
    assert suites_for(plain, evals, None) == (evals, [])
    # The same holds of every command that evaluates.
    subject = subject_of_panel(spec, evals)
    with pytest.raises(UserError, match=r"sparse_probing_sae_probes: these SAEs read a model"):
        require_runnable(diagnose(subject, ["sparse_probing_sae_probes"], timeout=0.01))
    problems = diagnose(subject, ["core"], timeout=0.01)[0].problems
    assert not [problem for problem in problems if "centred" in problem]
    assert spec_hash(plain) != spec_hash(spec)


def test_special_tokens_are_left_out_where_nothing_is_recorded(folder: Path) -> None:
    change(folder, exclude_special_tokens=None, prepend_bos=None)
    spec = spec_of(folder, tokens=10_000)
    assert (spec.exclude_special_tokens, spec.prepend_bos) == (True, True)
    assert "trained on special tokens such as BOS is not recorded" in notes_of(spec)
    assert "whether BOS was prepended is not recorded" in notes_of(spec)
    change(folder, exclude_special_tokens=False, prepend_bos=False)
    spec = spec_of(folder, tokens=10_000)
    assert (spec.exclude_special_tokens, spec.prepend_bos) == (False, False)
    assert "special tokens" not in notes_of(spec)
    assert "BOS" not in notes_of(spec)


def test_what_is_recorded_and_not_taken_over_is_listed(folder: Path) -> None:
    runner = {
        **RUNNER,
        "lr_scheduler_name": "cosineannealing",
        "lr_end": 1e-5,
        "sae": {
            "architecture": "jumprelu",
            "normalize_activations": "none",
            "jumprelu_bandwidth": 0.02,
            "pre_act_loss_coefficient": 3e-6,
            "k": 4,
        },
    }
    (folder / "runner_cfg.json").write_text(json.dumps(runner))
    spec = spec_of(folder)
    assert spec.normalize_activations == "none"
    assert (spec.lr_scheduler_name, spec.sae["jumprelu_bandwidth"]) == ("cosineannealing", 0.02)
    listed = "not taken over: lr_end=1e-05, pre_act_loss_coefficient=3e-06"
    assert listed in notes_of(spec)
    runner["sae"]["normalize_activations"] = "covariance_whitening"
    (folder / "runner_cfg.json").write_text(json.dumps(runner))
    whitened = spec_of(folder)
    assert whitened.normalize_activations == "expected_average_only_in"
    assert "normalize_activations='covariance_whitening'" in notes_of(whitened)


def test_the_architecture_may_be_recorded_beside_the_sae(folder: Path) -> None:
    runner = {**RUNNER, "sae": {"architecture": "batchtopk", "aux_loss_coefficient": 0.5}}
    (folder / "runner_cfg.json").write_text(json.dumps(runner))
    spec = spec_of(folder)
    assert spec.architectures == ["batchtopk"]
    assert spec.sae["aux_loss_coefficient"] == 0.5
    assert "exported as jumprelu too" not in notes_of(spec)
    change(folder, training_architecture="their_own")
    spec = spec_of(folder)
    assert spec.architectures == ["jumprelu"]
    assert "trained as their_own, which is not registered here" in notes_of(spec)


def test_where_it_was_found_does_not_make_another_study(folder: Path) -> None:
    spec = spec_of(folder, tokens=10_000)
    moved = folder.rename(folder.with_name("moved"))
    other = spec_of(moved, tokens=10_000)
    assert spec.published != other.published
    assert spec_hash(spec) == spec_hash(other)
    assert spec_hash(spec) != spec_hash(spec_of(moved, l0=7.5, tokens=10_000))


@pytest.mark.parametrize(("measured", "target"), [(6.5432, 6.54), (0.123456, 0.123), (63, 63)])
def test_the_target_is_the_measured_l0(folder: Path, measured: float, target: float) -> None:
    assert spec_of(folder, l0=measured, tokens=10_000).l0s == [target]


@given(st.integers(1, 10**12))
def test_counts_as_people_write_them(number: int) -> None:
    assert whole_number("tokens", f"{number:_}") == number
    assert whole_number("tokens", f"{number:,}") == number


@pytest.mark.parametrize("text", ["", "many", "-5", "0", "1.5", "inf", "nan"])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(UserError, match=r"tokens: .* is not a whole number above 0"):
        whole_number("tokens", text)
