"""A study of transcoders: two hooks of one model, through the engine, measured and checked."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sae_lens import SAE

from sae_baselines.controls import question_of
from sae_baselines.errors import UserError
from sae_baselines.evals.registry import get_suite, is_null_for, suite_names
from sae_baselines.evals.results import collect
from sae_baselines.evals.spec import EvalSpec
from sae_baselines.evals.study import subject_of_panel
from sae_baselines.evals.target import facts_of
from sae_baselines.reconstruction import explained_variance, sides
from sae_baselines.show.sae import describe_sae
from sae_baselines.stats import verdicts
from sae_baselines.stats.against_random import against_random
from sae_baselines.study.data import load_text
from sae_baselines.study.engine import StudyResult, train_study
from sae_baselines.study.held_out import Data, study_data
from sae_baselines.study.identity import training_of
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.latents import Latents
from sae_baselines.study.measure import (
    affine_null,
    base_losses,
    loss_and_divergence,
    splice_loss,
)
from sae_baselines.study.redraw import shuffle_mlp
from sae_baselines.study.reference.check import prepare_check
from sae_baselines.study.reference.recipe import CheckOptions
from sae_baselines.study.runner import complete_checkpoints
from sae_baselines.study.spec import PanelSpec, spec_from_dict, spec_hash, spec_to_yaml
from tests.forked import start_command
from tests.tiny_model import D_MODEL, QUICK, tiny_panel

READ, WRITE = "blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out"
D_READ = 64
NORMED = "blocks.1.ln2.hook_normalized"
MEMBERS = ["trained", "frozen_decoder", "frozen_encoder:cov", "soft_frozen_encoder"]


def spec_of(folder: Path, **more: Any) -> PanelSpec:
    fields = {
        "architecture": "transcoder_batchtopk",
        "hook_name": READ,
        "hook_name_out": WRITE,
        "d_sae": 96,
        "expansion": None,
        "members": MEMBERS,
        "training_tokens": 128 * 12,
        "sae": {"skip": True},
        "drift": [1.0],
        "n_checkpoints": 0,
    }
    return spec_from_dict({**tiny_panel(folder), **fields, **more})


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Any:
    return load_language_model(spec_of(model_folder).model, READ, "cpu")


@pytest.fixture(scope="module")
def data(model_folder: Path, model: Any, text: Dataset) -> Data:
    spec = spec_of(model_folder)
    return study_data(spec, model, load_text(spec.dataset, text), "cpu")


@pytest.fixture(scope="module")
def study(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, text: Dataset
) -> StudyResult:
    out = tmp_path_factory.mktemp("transcoders") / "study"
    return train_study(spec_of(model_folder), out, dataset=text)


def member(study: StudyResult, name: str) -> Path:
    return study.folder / "panels" / "transcoder_batchtopk_l0_6_seed_0" / name


def test_held_out_activations_are_a_tokens_at_both_hooks(data: Data, model: Any) -> None:
    assert data.d_in == D_READ
    held_out = data.held_out
    assert held_out.evaluation.shape[1] == D_READ + D_MODEL
    with torch.no_grad():
        _, cache = model.run_with_cache(held_out.contexts[:4], prepend_bos=False)
    expected = torch.cat([cache[READ], cache[WRITE]], dim=-1).flatten(0, 1)
    torch.testing.assert_close(held_out.evaluation[: len(expected)], expected)


def test_members_are_trained_exported_and_measured(study: StudyResult, data: Data) -> None:
    found = {key.member: m for key, m in study.measurements.items()}
    assert set(found) == {*MEMBERS[:2], "frozen_encoder_cov", "soft_frozen_encoder"}
    for name, measured in found.items():
        sae: Any = SAE.load_from_disk(member(study, name))
        assert type(sae).__name__ == "JumpReLUSkipTranscoder"
        assert sae.cfg.metadata.hook_name_out == WRITE
        x, y = (t.double() for t in sides(sae, data.held_out.evaluation))
        error = (y - sae(x.float()).detach().double()).pow(2).sum()
        ev = 1 - error / (y - y.mean(dim=0)).pow(2).sum()
        assert measured["explained_variance"] == pytest.approx(float(ev), rel=1e-5)
        assert 5 < measured["l0"] < 7
        latents = Latents.load(member(study, name))
        assert latents is not None
        assert latents.explained_variance == pytest.approx(float(ev), abs=1e-4)
        drift = json.loads((member(study, name) / "drift.json").read_text())
        assert drift["records"]
    assert found["frozen_decoder"]["cos_to_start_mean"] == pytest.approx(1, abs=1e-6)
    assert found["frozen_decoder"]["encoder_cos_to_start_mean"] < 0.999
    assert found["frozen_encoder_cov"]["encoder_cos_to_start_mean"] == pytest.approx(
        1, abs=1e-6
    )
    assert found["frozen_encoder_cov"]["cos_to_start_mean"] < 0.999
    held = found["soft_frozen_encoder"]
    # Short columns turn until their cap stops them. Measured against where they started, short,
    # which is the cap's direction rounded once more.
    assert 0.8 - 1e-7 < held["encoder_cos_to_start_mean"] < 1
    promise = describe_sae(member(study, "soft_frozen_encoder")).promise
    assert promise is not None
    assert promise.holds is True
    assert held["cos_to_start_mean"] < 0.999
    drift = json.loads((member(study, "soft_frozen_encoder") / "drift.json").read_text())
    last = drift["records"][-1]
    assert 0.8 - 1e-7 < last["encoder"]["mean"] < 1
    assert held["cap_bound_share"] == last["cap_bound_share"] > 0.5


def test_the_affine_null_is_least_squares_and_stands_beside_each(
    study: StudyResult, data: Data, model: Any, model_folder: Path
) -> None:
    fit, on = data.held_out.calibration.double(), data.held_out.evaluation.double()
    with_one = [
        np.concatenate([t[:, :D_READ], np.ones((len(t), 1))], axis=1) for t in (fit, on)
    ]
    best = np.linalg.lstsq(with_one[0], fit[:, D_READ:].numpy(), rcond=None)[0]
    y = on[:, D_READ:].numpy()
    ev = 1 - ((y - with_one[1] @ best) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum()
    spec = spec_of(model_folder)
    losses = base_losses(model, spec, data.held_out)
    null = affine_null(model, spec, data.held_out, D_READ, losses)
    # hook_mlp_out is a linear map of hook_post, so the null is everything here.
    assert ev == pytest.approx(1, abs=1e-4)
    assert null.explained_variance_null_affine == pytest.approx(ev, abs=1e-4)
    assert null.kl_null_affine == pytest.approx(0, abs=1e-4)
    assert null.ce_recovered_null_affine == pytest.approx(1, abs=1e-2)
    for measured in study.measurements.values():
        assert measured["explained_variance_null_affine"] == pytest.approx(ev, abs=1e-4)


def test_the_layer_is_replaced_where_it_writes_by_what_was_read(
    data: Data, model: Any, model_folder: Path
) -> None:
    spec, tokens = spec_of(model_folder), data.held_out.tokens
    clean = splice_loss(model, spec, tokens, None)
    mlp = model.blocks[1].mlp
    same = lambda x: x @ mlp.W_out + mlp.b_out  # noqa: E731
    assert splice_loss(model, spec, tokens, same) == pytest.approx(clean, rel=1e-5)
    loss, divergence = loss_and_divergence(model, spec, tokens, same)
    assert loss == splice_loss(model, spec, tokens, same)
    assert divergence == pytest.approx(0, abs=1e-5)
    losses = base_losses(model, spec, data.held_out)
    assert losses is not None
    zeros = lambda x: x.new_zeros(len(x), D_MODEL)  # noqa: E731
    assert splice_loss(model, spec, tokens, zeros) == losses.zero != pytest.approx(clean)
    assert loss_and_divergence(model, spec, tokens, zeros)[1] > 1e-3


@pytest.fixture(scope="module")
def nulls(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, text_file: Path
) -> StudyResult:
    """Of a whole MLP, with the nulls that are trained."""
    fields = {
        "dataset": {"path": str(text_file)},
        "hook_name": NORMED,
        "members": ["trained", "shuffled_pairs", "shuffled_mlp"],
        "seeds": [0, 1],
        "training_tokens": 128 * 60,
        "drift": [],
    }
    out = tmp_path_factory.mktemp("nulls") / "study"
    return train_study(spec_of(model_folder, **fields), out)


def of_nulls(study: StudyResult, seed: int, name: str) -> dict[str, Any]:
    (found,) = (
        m for k, m in study.measurements.items() if (k.panel.seed, k.member) == (seed, name)
    )
    return found


def test_shuffled_pairs_are_measured_on_true_pairs(nulls: StudyResult) -> None:
    for seed in (0, 1):
        trained, null = (of_nulls(nulls, seed, n) for n in ("trained", "shuffled_pairs"))
        # The most that there is to learn is the mean.
        assert null["explained_variance"] < 0.05 < 0.2 < trained["explained_variance"]
        assert null["kl"] > trained["kl"]
        floors = [name for name in trained if "_null_affine" in name]
        assert len(floors) == 3
        assert [null[name] for name in floors] == [trained[name] for name in floors]
        assert null["l0"] == pytest.approx(6, rel=0.1)


def test_a_shuffled_mlp_is_measured_on_its_own_outputs(
    nulls: StudyResult, model_folder: Path, model: Any, text: Dataset
) -> None:
    spec = spec_of(
        model_folder, hook_name=NORMED, members=["trained", "shuffled_mlp"], seeds=[1]
    )
    drawn = spec.random_models["shuffled_mlp_seed_1"]
    other = load_language_model(spec.model, NORMED, "cpu")
    shuffle_mlp(other, NORMED, WRITE, 1, drawn.seed)
    for name, weight in model.state_dict().items():
        new = other.state_dict()[name]
        assert torch.equal(weight, new) == (not name.startswith("blocks.1.mlp.W_")), name
        assert torch.equal(weight.flatten().sort()[0], new.flatten().sort()[0])
    held_out = study_data(spec, other, load_text(spec.dataset, text), "cpu").held_out
    folder = nulls.folder / "panels" / "transcoder_batchtopk_l0_6_seed_1" / "shuffled_mlp"
    ev = explained_variance(SAE.load_from_disk(folder), held_out.evaluation)[0]
    null = of_nulls(nulls, 1, "shuffled_mlp")
    assert null["explained_variance"] == pytest.approx(ev, rel=1e-4)
    assert null["explained_variance"] > 0.2
    # Its floor is the affine map of its own MLP, and what it would replace is no model's.
    own = affine_null(other, spec, held_out, D_MODEL, None).explained_variance_null_affine
    assert null["explained_variance_null_affine"] == pytest.approx(own, abs=1e-4)
    assert null["explained_variance_null_affine"] != pytest.approx(
        of_nulls(nulls, 1, "trained")["explained_variance_null_affine"], abs=1e-3
    )
    assert null["ce_recovered"] is None


def test_shuffled_members_say_what_they_are_and_decide_nothing_about_random(
    nulls: StudyResult,
) -> None:
    panel = nulls.folder / "panels" / "transcoder_batchtopk_l0_6_seed_0"
    for name in ("shuffled_pairs", "shuffled_mlp"):
        metadata: Any = SAE.load_from_disk(panel / name).cfg.metadata
        assert metadata.sae_baselines["control"] == name
        # Suites read the model as it is, at the hook that both read.
        trained: Any = SAE.load_from_disk(panel / "trained").cfg.metadata
        assert metadata.model_name == trained.model_name
        assert facts_of("it", SAE.load_from_disk(panel / name)).constraint == name
        assert question_of(name) is None
        told = describe_sae(panel / name)
        assert "trained on something random" in told.facts["constraint_words"]
        assert told.start is not None
    table = collect(nulls.folder)
    found = {(v.baseline, v.metric): v for v in verdicts(table, on_missing="exclude")}
    metrics = {m for b, m in found if b == "shuffled_pairs"}
    assert metrics >= {"explained_variance", "ce_recovered"}
    # Not compared: its outputs are another function's.
    assert not {m for b, m in found if b == "shuffled_mlp"}
    assert is_null_for("shuffled_mlp", "sparse_probing_sae_probes", "sae_test_accuracy")
    assert not against_random(list(found.values()))


def test_a_published_transcoder_gets_panels_around_it(
    study: StudyResult, data: Data, model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    trained = member(study, "trained")
    options = CheckOptions(
        tokens=1280,
        seeds=1,
        model=str(model_folder),
        dataset=str(text_file),
        overrides=dict(QUICK),
    )
    ready = prepare_check(str(trained), options, tmp_path / "check")
    spec = ready.spec
    assert (spec.hook_name, spec.hook_name_out, spec.d_out) == (READ, WRITE, D_MODEL)
    assert spec.architecture == "transcoder_batchtopk"
    assert spec.sae["skip"] is True
    assert spec.members == [
        "trained",
        "frozen_decoder",
        "soft_frozen_decoder",
        "frozen_encoder",
    ]
    l0 = explained_variance(SAE.load_from_disk(trained), data.held_out.calibration)[1]
    assert spec.l0s[0] == pytest.approx(l0, rel=0.02)
    train_study(spec, ready.folder, resume=True, model=ready.model)
    table = collect(ready.folder)
    table = table[(table["suite"] == "panel") & (table["task"] == "")]
    columns = (table[name] for name in ("member", "metric", "value"))
    values = {(member, metric): value for member, metric, value in zip(*columns, strict=True)}
    # The published one beside its twins, and all of them beside what needs no latents.
    for name in ("published", "frozen_decoder", "soft_frozen_decoder", "frozen_encoder"):
        assert values[name, "explained_variance_null_affine"] == pytest.approx(
            values["published", "explained_variance_null_affine"]
        )
        assert math.isfinite(values[name, "kl"])
    (theirs,) = (m for k, m in study.measurements.items() if k.member == "trained")
    assert values["published", "explained_variance"] == pytest.approx(
        theirs["explained_variance"], abs=0.02
    )


@pytest.fixture(scope="module")
def bases(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, text: Dataset
) -> StudyResult:
    """Every base without a skip, beside the same on a random language model."""
    fields = {
        "architecture": ["transcoder_topk", "transcoder_jumprelu", "transcoder_standard"],
        "hook_name": NORMED,
        "sae": {"skip": False},
        "members": ["trained", "frozen_decoder", "frozen_encoder", "random_model"],
        "training_tokens": 128 * 400,
        "calibration_tokens": 4096,
        "eval_tokens": 4096,
        "drift": [],
    }
    out = tmp_path_factory.mktemp("bases") / "study"
    return train_study(spec_of(model_folder, **fields), out, dataset=text)


def test_every_base_is_trained_at_the_l0_that_it_is_measured_at(bases: StudyResult) -> None:
    assert len(bases.measurements) == 12
    for key, measured in bases.measurements.items():
        assert measured["l0"] == pytest.approx(6, rel=0.1), key
        folder = bases.folder / "panels" / key.panel.name / key.member
        assert training_of(folder, measured)["l0_in_training"] == pytest.approx(1, abs=0.1), key


def test_a_random_model_s_transcoders_are_measured_on_its_own_pairs(
    bases: StudyResult, model_folder: Path, model: Any, text: Dataset
) -> None:
    spec = spec_of(model_folder, hook_name=NORMED)
    true = study_data(spec, model, load_text(spec.dataset, text), "cpu").held_out.evaluation
    for base in ("topk", "jumprelu", "standard"):
        panel = bases.folder / "panels" / f"transcoder_{base}_l0_6_seed_0"
        found = {
            key.member: measured
            for key, measured in bases.measurements.items()
            if key.panel.architecture == f"transcoder_{base}"
        }
        null: Any = SAE.load_from_disk(panel / "random_model")
        assert null.cfg.metadata.hook_name_out == WRITE
        # Another function: not what it makes of the true model's pairs, nor that one's floor.
        assert (
            found["random_model"]["explained_variance"]
            > 0.05 + explained_variance(null, true)[0]
        )
        floors = [
            found[name]["explained_variance_null_affine"]
            for name in ("random_model", "trained", "frozen_encoder")
        ]
        assert floors[0] != pytest.approx(floors[1], abs=1e-3)
        assert floors[1] == floors[2]


@pytest.mark.parametrize(
    ("skip", "names"),
    [
        (False, ["topk"]),
        pytest.param(True, ["jumprelu", "standard"], marks=pytest.mark.thorough),
    ],
)
def test_every_base_goes_on_where_it_was_killed(
    skip: bool, names: list[str], model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    fields = {
        "architecture": [f"transcoder_{name}" for name in names],
        "sae": {"skip": skip},
        "hook_name": "blocks.0.attn.hook_z",  # no MLP's
        "hook_name_out": "blocks.1.hook_resid_post",
        "members": ["trained", "frozen_decoder", "frozen_encoder"],
        "normalize_activations": "none",
        "dataset": {"path": str(text_file)},
        "training_tokens": 128 * 40,
        "n_checkpoints": 10,
        "drift": [],
    }
    spec = spec_of(model_folder, **fields)
    whole = train_study(spec, tmp_path / "whole")
    panel, out = tmp_path / "panel.yaml", tmp_path / "killed"
    panel.write_text(spec_to_yaml(spec))
    process = start_command("train", panel, "--out", out)
    deadline = time.monotonic() + 240
    while not complete_checkpoints(out / "checkpoints" / "pass_0"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    resumed = train_study(spec, out, resume=True)
    assert len(resumed.measurements) == 3 * len(names)
    for key, measured in resumed.measurements.items():
        provenance = out / "panels" / key.panel.name / key.member / "provenance.json"
        facts = json.loads(provenance.read_text())
        assert 0 < facts["resumed_at_samples"] < facts["samples_seen"] == spec.training_tokens
        # SAELens mixes the rest of the text anew, so that batches are others.
        ev = whole.measurements[key]["explained_variance"]
        assert measured["explained_variance"] == pytest.approx(ev, abs=0.05), key
        assert math.isfinite(measured["kl"])


def test_suites_that_read_latents_or_the_decoder_take_transcoders(model_folder: Path) -> None:
    spec = spec_of(model_folder, d_in=D_READ)
    subject = subject_of_panel(spec, EvalSpec(suites={"core": {}}))
    problems = {n: list(get_suite(n).transcoder_problems(subject)) for n in suite_names()}
    assert {name for name, found in problems.items() if not found} == {
        "sparse_probing",
        "sparse_probing_sae_probes",
        "interp_embedding",
        "interp_detection",
        "autointerp",
        "meta_structure",
    }
    for name, found in problems.items():
        for why in found:
            told = f"hook_name_out: these are transcoders, which write at {WRITE} and not"
            assert why.startswith(told), name
            assert why.endswith("Leave the suite out"), name
    assert "in the place of what is read" in problems["core"][0]
    assert "among the directions that latents write" in problems["absorption"][0]


def test_a_study_of_saes_is_hashed_as_before(model_folder: Path) -> None:
    spec = spec_from_dict(tiny_panel(model_folder))
    assert spec.hook_name_out is None
    assert spec_hash(spec) != spec_hash(spec_of(model_folder))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hook_name_out": None}, "architecture: 'transcoder_batchtopk'.*give hook_name_out"),
        ({"architecture": "batchtopk"}, "'batchtopk' is an SAE.*use transcoder_batchtopk"),
        (
            {"architecture": ["transcoder_topk", "gated"]},
            "'gated' is an SAE.*use transcoder_standard, transcoder_topk",
        ),
        ({"hook_name_out": READ}, "hook_name_out: .* is hook_name too"),
        ({"hook_name_out": None, "architecture": "topk", "d_out": 32}, "d_out: 32 is of the"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations: 'layer_norm' is for"),
        ({"members": ["trained", "random"]}, "writes in another space than it reads"),
        ({"sae": {"d_out": 3}}, "sae: 'd_out' is set by the panel"),
        ({"sae": {"shuffled_pairs": True}}, "sae: 'shuffled_pairs' is set by the panel"),
        (
            {
                "members": ["trained", "shuffled_pairs"],
                "hook_name_out": None,
                "architecture": "topk",
                "sae": {},
            },
            "members: shuffled_pairs: is of transcoders.*give hook_name_out",
        ),
        (
            {
                "members": ["trained", "shuffled_mlp"],
                "hook_name_out": "blocks.2.hook_resid_post",
            },
            "shuffled_mlp: hook_name_out is blocks.2.hook_resid_post, not the output of an MLP",
        ),
        ({"members": ["trained", "shuffled_pairs:cov"]}, "did you mean shuffled_pairs"),
        (
            {"members": ["trained", "shuffled_mlp"]},  # which reads blocks.1.mlp.hook_post
            "shuffled_mlp: hook_name is blocks.1.mlp.hook_post, inside the MLP.*blocks.1.ln2",
        ),
        (
            {
                "members": ["trained", "soft_frozen_encoder"],
                "hook_name_out": None,
                "architecture": "topk",
                "sae": {},
            },
            "members: .*'soft_frozen_encoder_topk' does not exist: an SAE's encoder",
        ),
        (
            {"model": {"name": "m", "loader": "AutoModelForCausalLM"}},
            "model.loader: 'AutoModelForCausalLM' is not possible with hook_name_out",
        ),
    ],
)
def test_a_spec_that_cannot_be_is_refused(
    model_folder: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        spec_of(model_folder, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hook_name_out": "blocks.0.hook_mlp_out"}, "is before hook_name, .* in the model"),
        ({"hook_name_out": "blocks.1.ln2.hook_normalized"}, "is before hook_name"),
        ({"hook_name_out": "blocks.9.hook_mlp_out"}, "is not a hook of the model that is read"),
        (
            {"hook_name_out": "blocks.2.attn.hook_pattern"},
            r"hook_name_out: .* gives an array of shape \(1, 4, 3, 3\)",
        ),
        ({"d_out": 31}, "d_out: 31 does not match blocks.1.hook_mlp_out, which has 32"),
    ],
)
def test_hooks_that_do_not_fit_the_model_are_refused(
    model: Any, model_folder: Path, text: Dataset, fields: dict[str, Any], message: str
) -> None:
    spec = spec_of(model_folder, **fields)
    with pytest.raises(UserError, match=message):
        study_data(spec, model, load_text(spec.dataset, text), "cpu")


def test_an_mlp_is_not_permuted_in_front_of_what_is_read(model_folder: Path) -> None:
    spec = spec_of(model_folder)
    other = load_language_model(spec.model, READ, "cpu")
    with pytest.raises(UserError, match=rf"shuffled_mlp: {READ} is inside the MLP of block 1"):
        shuffle_mlp(other, READ, WRITE, 1, seed=0)
    with pytest.raises(UserError, match="permuting the MLP of block 2 changes nothing at"):
        shuffle_mlp(other, NORMED, WRITE, 2, seed=0)
