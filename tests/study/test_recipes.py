"""Recipes: what a study tells each base, and that members are trained at their L0."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from sae_baselines import fair_options
from sae_baselines.baselines import (
    covariance_of,
    get_baseline,
    load_covariance,
    save_covariance,
)
from sae_baselines.baselines.directions import start_directions
from sae_baselines.baselines.transcoder import TRANSCODERS
from sae_baselines.errors import UserError
from sae_baselines.study.build import Start, encoder_start, member_config, prepare_start
from sae_baselines.study.engine import StudyResult, train_study
from sae_baselines.study.identity import ALLOWED, training_of
from sae_baselines.study.l0_record import L0Record, recorded_l0, summary
from sae_baselines.study.plan import members_of
from sae_baselines.study.recipes import options_of_transcoder
from sae_baselines.study.spec import (
    PanelSpec,
    spec_difference,
    spec_from_dict,
    spec_hash,
    spec_to_dict,
)
from tests.helpers import activations, batches, make_sae, make_trainer
from tests.tiny_model import tiny_panel

MEMBERS = ["trained", "frozen_decoder", "frozen_decoder:cov"]
X = activations(512) * 3
CONTROLLED = ("jumprelu", "standard", "gated")


def spec_of(architecture: str | list[str], **overrides: Any) -> PanelSpec:
    options = {"d_sae": 64, "expansion": None, "members": MEMBERS, **overrides}
    return spec_from_dict(tiny_panel(Path("model"), architecture=architecture, **options))


def configs(tmp_path: Path, architecture: str, **overrides: Any) -> dict[str, Any]:
    """SAELens config of each member."""
    spec = spec_of(architecture, **overrides)
    covariance = tmp_path / "covariance.safetensors"
    save_covariance(covariance_of(X), covariance)
    start = Start(X, torch.zeros(16), float(X.pow(2).sum(dim=1).mean()), covariance)
    (panel,) = spec.panels()
    return {
        key.member: member_config(spec, key, member, start, 16, "cpu")
        for key, member in members_of(spec, panel).items()
    }


@pytest.mark.parametrize(
    ("hook", "says"), [("attn.hook_z", "hook_z"), ("hook_mlp_out", "none")]
)
def test_saes_of_heads_say_that_they_read_them_flattened(
    hook: str, says: str, tmp_path: Path
) -> None:
    made = configs(tmp_path, "topk", hook_name=f"blocks.1.{hook}")
    assert {config.reshape_activations for config in made.values()} == {says}


@pytest.mark.parametrize("recipe", ["revived", "fair"])
def test_silent_latents_are_brought_back_where_the_recipe_says_so(
    recipe: Any, tmp_path: Path
) -> None:
    threshold = encoder_start(X, 64, 6, 0, "iso", None).threshold
    for config in configs(tmp_path, "jumprelu", recipe=recipe).values():
        told = config.pre_act_loss_coefficient
        assert told == (pytest.approx(0.01 * threshold) if recipe == "revived" else None)


@pytest.mark.parametrize(("steps", "window"), [(10, 1), (400, 16), (30_000, 1000)])
def test_a_latent_is_silent_for_a_share_of_the_training(steps: int, window: int) -> None:
    length = {"training_tokens": 128 * steps - 1}
    assert spec_of("topk", **length).dead_feature_window == window
    for recipe in ("fair", "saelens", "first"):
        assert spec_of("topk", **length, recipe=recipe).dead_feature_window == 1000
    assert spec_of("topk", **length, dead_feature_window=7).dead_feature_window == 7


def test_what_has_a_k_starts_fitted_with_revived_and_a_transcoder_whatever_its_base() -> None:
    def starts(**options: Any) -> set[str]:
        spec = spec_of("topk", **options)
        bases = ("topk", "batchtopk", "matryoshka_batchtopk")
        return {spec.encoder_init_for(base) for base in bases}

    assert starts() == {"fitted"}
    for base in ("topk", "jumprelu", "gated"):
        assert spec_of(base).encoder_init_for(base, "soft_frozen_decoder") == "fitted"
        assert spec_of(base).encoder_init_for(base, "frozen_encoder") == "transposed"
        assert spec_of(base, encoder_init="fitted").encoder_init_for(
            base, "frozen_encoder"
        ) == ("fitted")
    assert starts(recipe="fair") == starts(encoder_init="transposed") == {"transposed"}
    assert spec_of("topk").encoder_init_for("standard") == "transposed"
    for base in ("transcoder_standard", "transcoder_batchtopk", "transcoder_jumprelu"):
        assert spec_of("topk").encoder_init_for(base) == "fitted"
        assert spec_of("topk", recipe="fair").encoder_init_for(base) == "transposed"


@pytest.mark.parametrize(("skip", "share"), [(True, 0.01), (False, 0.1)])
@pytest.mark.parametrize("scheme", ["iso", "cov"])
def test_a_transcoder_s_latents_write_little_of_the_output_at_first(
    scheme: Any, skip: bool, share: float, tmp_path: Path
) -> None:
    path = tmp_path / "covariance.safetensors"
    save_covariance(covariance_of(torch.cat([X, activations(512, seed=4)[:, :12]], 1)), path)
    chosen = path if scheme == "cov" else None
    start = encoder_start(X, 64, 6, 0, scheme, chosen, d_out=12, skip=skip)
    both = load_covariance(covariance_path=str(path)) if scheme == "cov" else None
    decoder, encoder = start_directions(64, 16, 12, seed=0, scheme=scheme, covariance=both)
    pre = start.scale * X @ encoder.T
    # The threshold is one of these values: rounding must not leave it out.
    latents = torch.where(pre >= start.scale * start.threshold * (1 - 1e-6), pre, 0.0)
    assert float((latents > 0).sum()) == pytest.approx(6 * len(X), rel=0.01)
    assert float(latents.pow(2).sum(dim=1).mean()) == pytest.approx(share * 12, rel=1e-4)
    # Rows of the decoder are unit and have nothing to do with each other, iso: that is written.
    written = float((latents @ decoder).pow(2).sum(dim=1).mean())
    assert scheme == "cov" or 6 * share < written < 30 * share


@pytest.mark.parametrize(("recipe", "asked"), [("revived", 0.003), ("fair", 1.0)])
def test_dead_latents_of_a_transcoder_ask_for_little(recipe: Any, asked: float) -> None:
    known = {"aux_loss_coefficient", "k"}
    said = options_of_transcoder("transcoder_topk", recipe, known)
    assert said.get("aux_loss_coefficient", 1.0) == asked
    assert options_of_transcoder("topk", recipe, known) == {}
    assert options_of_transcoder("transcoder_jumprelu", recipe, {"target_l0"}) == {}


def test_what_is_silent_fires_again(tmp_path: Path) -> None:
    """Where thresholds are held by the control, and only active entries are computed."""

    def alive(**options: Any) -> int:
        made = configs(tmp_path, "jumprelu", sparse_step="all", **options)
        sae = make_sae("frozen_decoder_jumprelu", **_set(made["frozen_decoder"]))
        with torch.no_grad():
            sae.b_enc[:32] -= 5 * sae.threshold[:32]
        trainer = make_trainer(
            sae,
            300,
            (3 * x for x in batches()),
            lr=1e-2,
            dead_feature_window=spec_of("topk", training_tokens=128 * 300).dead_feature_window,
        )
        trainer.fit()
        with torch.no_grad():
            return int((sae.encode(X) != 0).any(dim=0)[:32].sum())

    assert alive(recipe="fair") == 0
    assert alive() > 16


def _set(config: Any) -> dict[str, Any]:
    """Fields of a member's config that are not what the class has anyway."""
    usual = type(config)(d_in=config.d_in, d_sae=config.d_sae)
    return {k: v for k, v in vars(config).items() if k != "metadata" and v != vars(usual)[k]}


def test_fair_holds_l0_with_a_penalty_that_leaves_it_alone(tmp_path: Path) -> None:
    made = configs(tmp_path, "jumprelu")
    square_norm = float(X.pow(2).sum(dim=1).mean())
    for name, config in made.items():
        scheme: Any = "cov" if name.endswith("cov") else "iso"
        start = encoder_start(X, 64, 6, 0, scheme, tmp_path / "covariance.safetensors")
        assert config.l0_control == 0.1
        assert config.target_l0 == 6
        assert config.l0_coefficient == pytest.approx(square_norm / 6 / 400)
        assert config.encoder_init_scale == pytest.approx(start.scale)
        threshold = start.scale * start.threshold
        assert config.jumprelu_init_threshold == pytest.approx(threshold)
        assert config.jumprelu_bandwidth == pytest.approx(0.5 * threshold)


@pytest.mark.parametrize(("base", "share"), [("standard", 0.2), ("gated", 0.6)])
def test_a_coefficient_is_the_same_for_every_member(
    base: str, share: float, tmp_path: Path
) -> None:
    made = configs(tmp_path, base)
    threshold = encoder_start(X, 64, 6, 0, "iso", None).threshold
    for config in made.values():
        assert config.l1_coefficient == pytest.approx(share * threshold)
        assert (config.l0_control, config.target_l0) == (0.1, 6)


@pytest.mark.parametrize("base", CONTROLLED)
def test_saelens_own_defaults_are_reachable(base: str, tmp_path: Path) -> None:
    stock = get_baseline(f"seeded_{base}").config_class(d_in=16, d_sae=64)
    for config in configs(tmp_path, base, recipe="saelens").values():
        for field in ("l0_coefficient", "l1_coefficient", "l0_control", "jumprelu_bandwidth"):
            if hasattr(stock, field):
                assert getattr(config, field) == getattr(stock, field)
        assert config.encoder_init_scale == 1.0
        assert config.target_l0 == (6 if base == "jumprelu" else None)


def test_the_first_recipe_is_what_it_was(tmp_path: Path) -> None:
    for config in configs(tmp_path, "jumprelu", recipe="first").values():
        assert config.l0_control == 0
        assert config.l0_coefficient == 16 / 6
        assert config.jumprelu_bandwidth == 0.05
        assert config.encoder_init_scale == 1.0


def test_a_study_from_before_frozen_encoders_had_their_own_start_is_another(
    tmp_path: Path,
) -> None:
    """Its frozen encoders, if it were gone on with, would start in two ways."""
    fields = {"d_sae": 64, "expansion": None}
    for members, same in (
        ([*MEMBERS, "frozen_encoder"], False),
        (["trained", "frozen_decoder"], True),
    ):
        now = tiny_panel(tmp_path, **fields, architecture="topk", recipe="revived")
        now["members"] = members
        before = {**now, "encoder_init": "fitted"}
        assert (spec_difference(before, now) == []) == same


def test_a_study_from_before_thresholds_went_back_faster_is_another() -> None:
    """Half of its SAEs would be trained in another way."""
    made = {
        (base, recipe): spec_to_dict(
            spec_from_dict(
                tiny_panel(Path("m"), architecture=base, recipe=recipe), kind=PanelSpec
            )
        )
        for base in ("jumprelu", "topk", "standard")
        for recipe in ("revived", "fair", "saelens")
    }
    for (base, recipe), now in made.items():
        before = {k: v for k, v in now.items() if k != "threshold_return"}
        other = ["threshold_return, which is 0.01 there"]
        expected = other if base == "jumprelu" and recipe != "saelens" else []
        assert spec_difference(before, now) == expected
        assert spec_from_dict(before, kind=PanelSpec, stored=True).threshold_return == 0.01


@pytest.mark.parametrize(
    ("recipe", "own", "expected"),
    [("revived", {}, 0.03), ("fair", {}, 0.03), ("fair", {"threshold_return": 0.5}, 0.5)],
)
def test_a_recipe_says_how_far_thresholds_go_back(
    recipe: str, own: dict[str, float], expected: float, tmp_path: Path
) -> None:
    for config in configs(tmp_path, "jumprelu", recipe=recipe, **own).values():
        assert config.threshold_return == expected


def test_own_options_go_before_a_recipe(tmp_path: Path) -> None:
    own = {"l0_coefficient": 0.5, "jumprelu_bandwidth": 0.3, "l0_control": 0.02}
    for config in configs(tmp_path, "jumprelu", sae=own).values():
        assert {name: getattr(config, name) for name in own} == own


def test_a_stored_study_without_a_recipe_has_the_first(tmp_path: Path) -> None:
    del tmp_path
    stored = spec_from_dict(
        tiny_panel(Path("model"), architecture="jumprelu"), kind=PanelSpec, stored=True
    )
    assert stored.recipe == "first"
    assert stored.encoder_init_for("jumprelu") == "transposed"


def test_a_recipe_counts_where_it_changes_something() -> None:
    def hashed(architecture: Any, **options: Any) -> str:
        return spec_hash(spec_of(architecture, **options))

    for base in ("batchtopk", "topk"):
        same = {hashed(base, recipe=r) for r in ("fair", "saelens", "first")}
        assert hashed(base) not in same
        assert same == {hashed(base, encoder_init="transposed", dead_feature_window=1000)}
    for base in CONTROLLED:
        assert len({hashed(base, recipe=r) for r in ("fair", "saelens", "first")}) == 3
    # As version 0.1.0-dev wrote it, with neither field.
    data = tiny_panel(Path("model"), d_sae=64, expansion=None, members=MEMBERS)
    old, new = {**data, "encoder_init": "transposed"}, {**data, "recipe": "fair"}
    assert spec_difference(old, new) == []


@pytest.mark.parametrize("scheme", ["iso", "cov"])
@pytest.mark.parametrize("base", CONTROLLED)
def test_configs_of_ones_own_can_have_what_panels_have(
    base: str, scheme: Any, tmp_path: Path
) -> None:
    made = configs(tmp_path, base)
    member = made["frozen_decoder_cov" if scheme == "cov" else "frozen_decoder"]
    path = tmp_path / "covariance.safetensors" if scheme == "cov" else None
    options = fair_options(base, X, 6, 64, init_scheme=scheme, covariance_path=path)
    config = get_baseline(f"frozen_decoder_{base}").config_class(d_in=16, **options)
    ours, panels = vars(config), vars(member)
    assert {name for name in panels if ours[name] != panels[name]} <= {
        "metadata",
        "normalize_activations",
        "device",
        "sparse_step",
    }


@pytest.mark.parametrize("scheme", ["iso", "cov"])
@pytest.mark.parametrize("base", TRANSCODERS)
def test_a_transcoder_of_ones_own_can_have_what_panels_have(
    base: str, scheme: Any, tmp_path: Path
) -> None:
    x, skip = activations(3000) * 3, scheme == "iso"
    pairs = torch.cat([x, 2 * x[:, :12].relu() + 1], dim=1)
    spec = spec_of(base, hook_name_out="blocks.1.hook_mlp_out", sae={"skip": skip})
    start = prepare_start(spec, pairs, tmp_path, 16)
    (panel,) = spec.panels()
    wanted = "frozen_decoder" if scheme == "iso" else "frozen_decoder_cov"
    ((key, member),) = [i for i in members_of(spec, panel).items() if i[0].member == wanted]
    panels = vars(member_config(spec, key, member, start, 16, "cpu"))
    path = start.covariance_path if scheme == "cov" else None
    asked = {"init_scheme": scheme, "covariance_path": path, "d_in": 16, "skip": skip}
    options = fair_options(base, pairs, 6, 64, **asked)
    config = get_baseline(f"frozen_decoder_{base}").config_class(d_in=16, **options)
    assert panels["encoder_init_scale"] != 1.0
    differing = {name for name in panels if vars(config)[name] != panels[name]}
    assert differing <= {"metadata", "hook_name_out", "device", "sparse_step"}


@pytest.mark.parametrize("constraint", ["frozen_decoder", "frozen_encoder"])
@pytest.mark.parametrize("base", ["topk", "batchtopk", "jumprelu"])
def test_a_config_of_ones_own_starts_as_the_panels_do(
    base: str, constraint: str, tmp_path: Path
) -> None:
    made = configs(tmp_path, base, members=["trained", constraint])
    options = fair_options(base, X, 6, 64, constraint=constraint)
    assert made[constraint].encoder_init_scale == options.get("encoder_init_scale", 1.0)
    assert made["trained"].encoder_init_scale != 1.0
    assert (options.get("encoder_init_scale") is None) == (constraint == "frozen_encoder")
    config = get_baseline(f"{constraint}_{base}").config_class(d_in=16, **options)
    assert getattr(config, "k", 6) == getattr(config, "target_l0", 6) == 6


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"architecture": "jumpreluu"}, "architecture: 'jumpreluu' is unknown.*jumprelu"),
        (
            {"architecture": "transcoder_topkk", "d_in": 9},
            "architecture: 'transcoder_topkk' is un",
        ),
        ({"architecture": "transcoder_topk"}, "d_in: None .*how many of the 16 columns"),
        ({"architecture": "transcoder_topk", "d_in": 16}, "d_in: 16 is no width of inputs"),
        ({"d_in": 16}, "architecture: 'topk' is an SAE, and d_in and skip are of"),
        ({"constraint": "frozen_encode"}, "constraint: 'frozen_encode' is unknown.*encoder"),
    ],
)
def test_options_of_what_there_is_not_are_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        fair_options(
            **{"architecture": "topk", "activations": X, "l0": 6, "d_sae": 64, **asked}
        )


@pytest.fixture(scope="module")
def study(
    model_folder: Path, text: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> StudyResult:
    spec = spec_from_dict(
        tiny_panel(
            model_folder,
            architecture=list(CONTROLLED),
            members=["trained", "frozen_decoder"],
            training_tokens=128 * 400,
            calibration_tokens=4096,
            eval_tokens=4096,
        )
    )
    return train_study(spec, tmp_path_factory.mktemp("studies") / "fair", dataset=text)


def test_members_are_trained_at_the_l0_that_they_are_measured_at(study: StudyResult) -> None:
    folders = [path.parent for path in study.folder.glob("panels/*/*/cfg.json")]
    assert len(folders) == 6
    for folder in folders:
        measured = json.loads((folder / "measurement.json").read_text())
        found = training_of(folder, measured)
        assert found["l0_in_training"] == pytest.approx(1, abs=0.1)
        assert found["l0_as_trained"] == pytest.approx(1, abs=0.1)
        if folder.parent.name.startswith("jumprelu"):
            assert found["threshold_factor"] == pytest.approx(1, abs=0.1)
        record = json.loads((folder / "provenance.json").read_text())["l0_over_training"]
        assert record["end"] == pytest.approx(6 * found["l0_in_training"])
        assert (record["steps"][0], record["steps"][-1]) == (4, 400)
        assert len(record["l0"]) == 100


def test_a_control_that_did_not_reach_its_target_is_said_when_training_ends(
    model_folder: Path, text: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"architecture": "standard", "members": ["trained", "frozen_decoder"]}
    spec = spec_from_dict(tiny_panel(model_folder, training_tokens=128 * 3, **fields))
    train_study(spec, tmp_path / "short", dataset=text)
    said = [m for m in caplog.messages if "so it gets no verdict" in m]
    assert [m.split(":")[0].rsplit(".", 1)[1] for m in said] == ["trained", "frozen_decoder"]
    assert all("L0 over the target in the last training batches was" in m for m in said)
    assert all("(target 6; 100 % of its latents are alive). Use an l0" in m for m in said)


def test_a_target_that_cannot_be_held_is_said_or_refused(
    model_folder: Path, text: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Of an encoder that stays, half of the 128 latents are below 0.
    member = {"constraint": "frozen_encoder", "learned": "threshold"}
    fields = {"members": ["trained", member], "l0": 120, "training_tokens": 128 * 100}
    spec = spec_from_dict(tiny_panel(model_folder, architecture="gated", **fields))
    train_study(spec, tmp_path / "gated", dataset=text)
    said = [m for m in caplog.messages if "so it gets no verdict" in m]
    assert any("frozen_encoder_threshold" in m and "(target 120; " in m for m in said)
    spec = spec_from_dict(tiny_panel(model_folder, architecture="jumprelu", **fields))
    with pytest.raises(UserError, match="l0: 120 is more than 'jumprelu' can start at"):
        train_study(spec, tmp_path / "jumprelu", dataset=text)
    assert not (tmp_path / "jumprelu" / "panels").exists()


def test_thresholds_that_were_moved_far_are_said_too(
    model_folder: Path,
    text: Dataset,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for metric in ALLOWED:
        allowed = (2, 3) if metric == "threshold_factor" else (0, math.inf)
        monkeypatch.setitem(ALLOWED, metric, allowed)
    fields = {"architecture": "jumprelu", "members": ["trained"]}
    train_study(
        spec_from_dict(tiny_panel(model_folder, **fields)), tmp_path / "m", dataset=text
    )
    assert any("its thresholds were multiplied by" in m for m in caplog.messages)


def test_l0_over_training_is_that_of_each_batch_also_of_a_resumed_run(tmp_path: Path) -> None:
    l0 = []
    data = batches()
    for steps in (range(7), range(7, 20)):
        # The second run begins anew, as after a checkpoint at step 7.
        sae = make_sae("frozen_decoder_standard")
        trainer = make_trainer(sae, 20)
        trainer.n_training_samples = steps[0] * 64
        with L0Record(tmp_path, {"a": sae}):
            for _ in steps:
                acts = trainer.step(next(data)).feature_acts.to_dense()
                l0.append(float((acts != 0).float().sum(-1).mean()))
            # One more, which the next run does again.
            if steps[0] == 0:
                trainer.step(next(batches(seed=9)))
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), l0, rtol=1e-6)
    assert recorded_l0(tmp_path, "a")["end"] == pytest.approx(l0[-1])


def test_more_steps_than_a_file_can_hold_are_one_line(tmp_path: Path) -> None:
    sae = make_sae("frozen_decoder_standard")
    trainer = make_trainer(sae, 10**17)
    with (
        pytest.raises(UserError, match=r"a\.npy: the L0 of 100,000,.* steps cannot be") as said,
        L0Record(tmp_path, {"a": sae}),
    ):
        trainer.step(next(batches()))
    assert "\n" not in str(said.value)


def test_l0_of_a_run_that_is_known_in_part() -> None:
    l0 = np.full(1000, np.nan, dtype=np.float32)
    assert summary(l0) == {"end": None, "steps": [], "l0": []}
    l0[500:] = np.arange(500)
    found = summary(l0)
    assert found["end"] == pytest.approx(np.arange(450, 500).mean())
    assert found["steps"] == list(range(510, 1001, 10))
    assert found["l0"][0] == 4.5
