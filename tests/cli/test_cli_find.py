"""`list` and `show`: what there is, and what an SAE says about itself."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sae_baselines.baselines import CONSTRAINTS, baseline_architectures, covariance_of
from sae_baselines.controls import control_names, make_control
from sae_baselines.errors import UserError
from sae_baselines.evals.registry import suite_names
from sae_baselines.show import describe_sae
from sae_baselines.study import train_study
from sae_baselines.study.presets import preset_names
from sae_baselines.study.spec import spec_from_dict
from sae_baselines_cli import app
from tests.controls.test_controls import stock_sae
from tests.helpers import D_IN, D_SAE, activations, cosines, make_sae, randomise_, train
from tests.loopback_hub import RefusingHandler, point_clients_at, serving
from tests.tiny_model import HOOK, save_tiny_model, tiny_panel, tiny_text


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def words(result: Any) -> str:
    """What was printed, on one line."""
    assert result.exit_code == 0, result.exception
    return " ".join(result.output.split())


def said(result: Any) -> str:
    """The one line of a mistake."""
    assert isinstance(result.exception, UserError), result.exception
    line = str(result.exception)
    assert "\n" not in line
    return line


def shown(source: Any, *options: Any) -> dict[str, Any]:
    """What `show --json` prints."""
    result = call("show", source, "--json", *options)
    assert result.exit_code == 0, result.exception
    return json.loads(result.output)


def exported(folder: Path, name: str, steps: int = 4, **options: Any) -> Path:
    """An SAE that SAELens' trainer trained and exported."""
    sae = make_sae(name, init_seed=3, **options)
    if steps:
        train(sae, steps)
    sae.save_inference_model(folder)
    return folder


def change(folder: Path, **tensors: torch.Tensor) -> None:
    """Replace weights of a folder."""
    path = folder / "sae_weights.safetensors"
    save_file({**load_file(path), **tensors}, path)


def turned(row: torch.Tensor, angle: float, towards: torch.Tensor) -> torch.Tensor:
    """A row, turned by an angle in the plane of another; float64 inside, its norm kept."""
    a, b = row.double(), towards.double()
    unit = a / a.norm()
    across = b - (b @ unit) * unit
    across /= across.norm()
    return (a.norm() * (math.cos(angle) * unit + math.sin(angle) * across)).to(row.dtype)


def test_list_names_everything_once_asked():
    every = words(call("list"))
    twins = {t.name for t in baseline_architectures().values()}
    for name in [*twins, *preset_names(), *suite_names(), *control_names()]:
        assert name in every
    suites = words(call("list", "suites"))
    assert "ravel" in suites
    assert "pythia-70m" not in suites
    only = words(call("list", "architectures", "--constraint", "frozen_encoder"))
    assert "frozen_encoder_gated" in only
    assert "frozen_decoder" not in only


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("suite",), "what: 'suite' is unknown; did you mean suites?"),
        (("--constraint", "frozen_decodr"), "did you mean frozen_decoder"),
        (("presets", "--constraint", "frozen_decoder"), "presets have none"),
    ],
)
def test_mistakes_of_list(arguments: tuple[str, ...], message: str):
    assert message in said(call("list", *arguments))


@pytest.mark.parametrize("base", ["batchtopk", "gated", "jumprelu"])
# A cap on the encoder is for transcoders alone.
@pytest.mark.parametrize("constraint", [c for c in CONSTRAINTS if c != "soft_frozen_encoder"])
def test_a_trained_baseline_keeps_its_promise_and_a_changed_one_is_found_out(
    tmp_path: Path, constraint: str, base: str
):
    name = f"{constraint}_{base}"
    folder = exported(tmp_path / "sae", name)
    told = shown(folder)
    assert told["trained_as"] == make_sae(name).cfg.architecture()
    assert told["constraint"] == constraint
    assert (told["seed"], told["init_scheme"]) == (3, "iso")
    assert (told["d_in"], told["d_sae"]) == (D_IN, D_SAE)
    assert told["claim"]["holds"] is True
    if constraint == "soft_frozen_decoder":
        # So few steps bring no row to its cap.
        assert told["cap_bound_share"] == 0
        assert [w.partition(":")[0] for w in told["warnings"]] == ["the cap never bound"]
    else:
        assert told["warnings"] == []
    assert told["start"] == "init_seed 3, iso"

    side, other = (
        ("encoder", "decoder") if constraint == "frozen_encoder" else ("decoder", "encoder")
    )
    assert told["drift"][other]["quantiles"]["0"] < 1 - 1e-6
    # The numbers, by another route: SAELens' own start of a fresh SAE.
    fresh, now = make_sae(name, init_seed=3), load_file(folder / "sae_weights.safetensors")
    expected = cosines(now["W_dec"], fresh.W_dec).mean()
    assert told["drift"]["decoder"]["mean"] == pytest.approx(float(expected), abs=1e-6)
    expected = cosines(now["W_enc"].T, fresh.W_enc.T).min()
    assert told["drift"]["encoder"]["quantiles"]["0"] == pytest.approx(
        float(expected), abs=1e-6
    )

    weight = "W_dec" if side == "decoder" else "W_enc"
    rows = (now[weight] if side == "decoder" else now[weight].T).clone()
    angle = 1.0 if constraint == "soft_frozen_decoder" else 0.005
    start = (fresh.W_dec if side == "decoder" else fresh.W_enc.T).detach()
    rows[5] = turned(start[5], angle, start[6])
    change(folder, **{weight: (rows if side == "decoder" else rows.T).contiguous()})
    told = shown(folder)
    assert told["claim"]["holds"] is False
    assert told["drift"][side]["quantiles"]["0"] == pytest.approx(math.cos(angle), abs=1e-5)
    text = words(call("show", folder))
    assert "NO (least cosine" in text
    assert f"WARNING: its config says {constraint}, but its weights do not" in text


@hypothesis_settings(deadline=None, max_examples=25)
@given(
    angle=st.floats(0.0, 1.5), tau=st.sampled_from([0.5, 0.8, 0.95]), scale=st.floats(0.01, 100)
)
def test_the_cap_is_checked_at_its_edge(angle: float, tau: float, scale: float):
    sae = make_sae("soft_frozen_decoder", init_seed=1, tau=tau)
    with torch.no_grad():
        sae.W_dec[2] = scale * turned(sae.W_dec[2], angle, sae.W_dec[3])
    claim = describe_sae("mine", sae).promise
    assert claim is not None
    if abs(math.cos(angle) - tau) > 1e-5:
        assert claim.holds is (math.cos(angle) > tau)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounding_and_not_movement(tmp_path: Path, dtype: str):
    folder = exported(tmp_path / "sae", "frozen_decoder", steps=0)
    rows = load_file(folder / "sae_weights.safetensors")["W_dec"]
    scale = torch.linspace(0.3, 3, len(rows))[:, None]
    # As it is after folding: scaled, and rounded again.
    kind = getattr(torch, dtype)
    change(folder, W_dec=(rows.to(kind).float() * scale).to(kind))
    told = shown(folder)
    assert told["claim"]["holds"] is True
    assert told["drift"]["decoder"]["quantiles"]["0"] < 1


def test_a_row_without_direction_is_no_frozen_row(tmp_path: Path):
    folder = exported(tmp_path / "sae", "frozen_decoder", steps=0)
    rows = load_file(folder / "sae_weights.safetensors")["W_dec"]
    rows[0] = 0
    change(folder, W_dec=rows)
    claim = shown(folder)["claim"]
    assert claim["holds"] is False
    assert "1 decoder rows are zero" in claim["reason"]


def test_the_start_of_cov_needs_its_covariance(tmp_path: Path):
    right, wrong = tmp_path / "right.safetensors", tmp_path / "wrong.safetensors"
    save_file({"covariance": covariance_of(activations(400))}, right)
    save_file({"covariance": torch.diag(torch.linspace(1, 9, D_IN).double())}, wrong)
    options = {"init_scheme": "cov", "init_covariance_path": str(right)}
    folder = exported(tmp_path / "sae", "frozen_decoder", 4, **options)
    told = shown(folder)
    assert told["start"] is None
    assert told["claim"]["holds"] is None
    assert "give --covariance" in told["start_unknown"]
    assert "frozen as claimed not checked: it started with the covariance" in words(
        call("show", folder)
    )
    assert shown(folder, "--covariance", right)["claim"]["holds"] is True
    assert shown(folder, "--covariance", wrong)["claim"]["holds"] is False
    assert "there is no file" in said(call("show", folder, "--covariance", "none"))
    # The file that a study keeps is found by itself.
    (tmp_path / "study.yaml").write_text("spec: {}")
    shutil.copy(right, tmp_path / "init_covariance.safetensors")
    assert shown(folder)["claim"]["holds"] is True


def test_training_checkpoints_and_unconstrained_twins(tmp_path: Path):
    sae = make_sae("seeded_batchtopk", init_seed=3)
    train(sae, 4)
    sae.save_model(tmp_path)
    told = shown(tmp_path)
    assert told["trained_as"] == "seeded_batchtopk"
    assert told["claim"] is None
    assert 0 < told["drift"]["decoder"]["mean"] < 1
    assert "none: everything was trained" in told["constraint_words"]


def test_where_the_start_is_not_known_it_says_so(tmp_path: Path):
    source = stock_sae("jumprelu")
    source.save_model(tmp_path / "stock")
    told = shown(tmp_path / "stock")
    assert told["start"] is None
    assert told["drift"] is None
    assert "names no init_seed" in told["start_unknown"]
    make_control(source, "permuted_decoder", seed=1).save(tmp_path / "null")
    told = shown(tmp_path / "null")
    assert told["constraint"] == "permuted_decoder"
    assert "a control, not trained" in told["constraint_words"]
    assert told["start_unknown"] == "it was not trained, so it has none"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    members = ["trained", "frozen_decoder:cov", "soft_frozen_decoder", "permuted_decoder"]
    panel = tiny_panel(save_tiny_model(folder / "model"), members=members)
    return train_study(spec_from_dict(panel), folder / "tiny", dataset=tiny_text()).folder


def test_a_study_is_its_members(study: Path):
    members = {Path(m["source"]).name: m for m in shown(study)["members"]}
    assert set(members) == {
        "trained",
        "frozen_decoder_cov",
        "soft_frozen_decoder",
        "permuted_decoder",
    }
    holds = {name: m["claim"] and m["claim"]["holds"] for name, m in members.items()}
    assert holds == {
        "trained": None,
        "frozen_decoder_cov": True,
        "soft_frozen_decoder": True,
        "permuted_decoder": None,
    }
    for name, told in members.items():
        folder = study / "panels" / "batchtopk_l0_6_seed_0" / name
        measured = json.loads((folder / "measurement.json").read_text())
        assert told["l0"] == measured["l0"]
        assert told["explained_variance"] == measured["explained_variance"]
        if measured["cos_to_start_mean"] is not None:
            mean = told["drift"]["decoder"]["mean"]
            assert mean == pytest.approx(measured["cos_to_start_mean"], abs=1e-6)
        assert told["hook"] == HOOK
        # Of a build for CUDA, torch itself says more.
        assert torch.__version__.startswith(told["versions"]["torch"])
    text = words(call("show", study))
    assert "4 members on" in text
    assert "1.000 / 1.000" in text


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"panel": "p", "tokens_seen": 5}, "on held-out text, by its panel"),
        (
            {"panel": "p", "l0_held_out": 3.0, "held_out_documents": 2},
            "on held-out text, by its panel",
        ),
        (
            {"panel": "p", "l0_held_out": 3.0, "held_out_photographs": 2},
            "on held-out activations, by its panel",
        ),
        ({"panel": "p", "samples_seen": 5}, "at the end of training, by SAELens"),
        ({}, "at the end of training, by SAELens"),
    ],
)
def test_what_an_l0_was_measured_on_is_said_of_each_source(
    facts: dict[str, Any], words: str, study: Path, tmp_path: Path
):
    member = study / "panels" / "batchtopk_l0_6_seed_0" / "trained"
    shutil.copytree(member, tmp_path / "alone")
    (tmp_path / "alone" / "measurement.json").unlink()
    file = tmp_path / "alone" / "cfg.json"
    cfg = json.loads(file.read_text())
    cfg["metadata"]["sae_baselines"] = facts
    file.write_text(json.dumps(cfg))
    assert shown(tmp_path / "alone")["l0_measured"] == words


def test_a_member_on_its_own_says_what_its_l0_was_measured_on(study: Path, tmp_path: Path):
    folder = study / "panels" / "batchtopk_l0_6_seed_0" / "trained"
    for name in ("cfg.json", "sae_weights.safetensors"):  # as the Hub has it
        shutil.copy(folder / name, tmp_path / name)
    alone = shown(tmp_path)
    measured = json.loads((folder / "measurement.json").read_text())
    assert alone["l0"] == measured["l0"]
    assert alone["l0_measured"] == "on held-out text, by its panel"


def test_a_study_on_whitened_activations_is_not_compared(study: Path, tmp_path: Path):
    shutil.copytree(study, tmp_path / "white", ignore=shutil.ignore_patterns("checkpoints"))
    file = tmp_path / "white" / "study.yaml"
    stored = yaml.safe_load(file.read_text())
    stored["spec"]["normalize_activations"] = "covariance_whitening"
    file.write_text(yaml.safe_dump(stored))
    member = tmp_path / "white" / "panels" / "batchtopk_l0_6_seed_0" / "frozen_decoder_cov"
    assert "whitened activations" in shown(member)["start_unknown"]


def test_mistakes_on_this_machine(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(study.parent)
    assert "there is no such folder; did you mean tiny?" in said(call("show", "tinny"))
    assert "did you mean gpt2-small-res-jb" in said(call("show", "gpt2-smal-res-jb"))
    assert "SAEs in it: " in said(call("show", study / "panels"))
    assert "neither an SAE of SAELens" in said(call("show", tmp_path))
    assert "is a file" in said(call("show", study / "study.yaml"))
    near = said(call("show", "gpt2-small-res-jb:blocks.8.hook_resid_pr"))
    assert "did you mean blocks.8.hook_resid_pre" in near
    assert "gpt2-small-res-jb:blocks.8.hook_resid_pre" in words(
        call("show", "gpt2-small-res-jb")
    )
    (tmp_path / "cfg.json").write_text('{"architecture": "topk"}')
    assert "has no d_in" in said(call("show", tmp_path))
    (tmp_path / "cfg.json").write_text('{"d_in": 4, "d_sae": 8}')
    assert "has no sae_weights.safetensors" in said(call("show", tmp_path))
    (tmp_path / "sae_weights.safetensors").write_text("x")
    assert "is damaged" in said(call("show", tmp_path))


def test_a_repository_lists_its_saes_and_shows_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    repo = tmp_path / "hub" / "someone" / "baselines"
    for name in ("frozen_decoder", "soft_frozen_decoder"):
        exported(repo / "batchtopk" / "l0_4" / "seed_3" / name, name)
    (repo / "README.md").write_text("about")
    with serving(tmp_path / "hub") as endpoint:
        point_clients_at(endpoint, tmp_path / "home", monkeypatch)
        told = shown("someone/baselines")
        assert told["saes"] == [
            "batchtopk/l0_4/seed_3/frozen_decoder",
            "batchtopk/l0_4/seed_3/soft_frozen_decoder",
        ]
        text = words(call("show", "someone/baselines"))
        assert "someone/baselines:batchtopk/l0_4/seed_3/frozen_decoder" in text
        one = "batchtopk/l0_4/seed_3/frozen_decoder"
        told = shown(f"someone/baselines:{one}")
        local = shown(repo / one)
        assert told["claim"]["holds"] is True
        same = ("constraint", "seed", "trained_as", "drift", "d_sae", "start")
        assert {k: told[k] for k in same} == {k: local[k] for k in same}
        wrong = said(call("show", "someone/baselines:batchtopk/l0_4/seed_3/frozen_decodr"))
        assert f"did you mean {one}" in wrong
        assert "nor a repository of the Hub that you may see" in said(
            call("show", "someone/nothing")
        )


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", "is gated; accept its terms"),
        (401, "RepoNotFound", "a private one needs hf auth login"),
        (418, "", "the Hub answers"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: str, message: str
):
    with serving(tmp_path, RefusingHandler, status=status, code=code) as endpoint:
        point_clients_at(endpoint, tmp_path, monkeypatch)
        assert message in said(call("show", "someone/theirs"))


def test_without_a_network_it_is_one_line_and_names_what_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with serving(tmp_path) as endpoint:
        pass  # closed: nobody listens there any more
    point_clients_at(endpoint, tmp_path, monkeypatch)
    assert "the Hub cannot be reached" in said(call("show", "someone/theirs"))
    (tmp_path / "studies" / "demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "did you mean studies/demo?" in said(call("show", "studies/dem"))


def test_weights_that_are_random_but_said_to_be_trained_are_not_hidden():
    sae = make_sae("seeded_jumprelu", init_seed=2)
    randomise_(sae, scale=10.0)
    drift = describe_sae("mine", sae).drift
    assert drift is not None
    assert drift["decoder"] is not None
    assert abs(drift["decoder"]["mean"]) < 3 / math.sqrt(D_IN * D_SAE) + 0.2
