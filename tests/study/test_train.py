"""Studies end to end on a tiny model, through SAELens' runner."""

import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from filelock import FileLock
from sae_lens import SAE
from safetensors.torch import load_file

from sae_baselines.baselines import sample_directions
from sae_baselines.baselines.cap import AT_EDGE
from sae_baselines.baselines.frozen_decoder import FrozenDecoderMixin
from sae_baselines.errors import UserError
from sae_baselines.evals import write_results
from sae_baselines.show import describe_sae
from sae_baselines.stats import Verdict, verdicts
from sae_baselines.study import StudyResult, train_study
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.runner import complete_checkpoints
from sae_baselines.study.sources import text as text_source
from sae_baselines.study.spec import PanelSpec, spec_from_dict, spec_to_yaml
from tests.forked import Forked, start_command
from tests.tiny_model import tiny_panel

MEMBERS = ["trained", "frozen_decoder", "soft_frozen_decoder", "frozen_encoder"]


def _spec(model_folder: Path, **overrides: Any) -> PanelSpec:
    return spec_from_dict(tiny_panel(model_folder, **overrides))


@pytest.fixture(scope="module")
def study(
    model_folder: Path, text: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PanelSpec, StudyResult]:
    spec = _spec(
        model_folder,
        seeds=[0, 7],
        members=[*MEMBERS, "frozen_decoder:cov"],
        training_tokens=128 * 200,
        calibration_tokens=4096,
        eval_tokens=4096,
    )
    out = tmp_path_factory.mktemp("studies") / "tiny"
    return spec, train_study(spec, out, dataset=text)


def test_the_layout_is_the_documented_one(study: tuple[PanelSpec, StudyResult]):
    spec, result = study
    stored = yaml.safe_load((result.folder / "study.yaml").read_text())
    assert stored["spec"]["hook_name"] == spec.hook_name
    assert {"sae-lens", "torch", "sae-baselines"} <= set(stored["versions"])
    for seed in (0, 7):
        panel = result.folder / "panels" / f"batchtopk_l0_6_seed_{seed}"
        assert sorted(p.name for p in panel.iterdir()) == sorted(
            [*MEMBERS, "frozen_decoder_cov"]
        )
        for member in panel.iterdir():
            assert {"cfg.json", "sae_weights.safetensors", "sparsity.safetensors"} <= {
                p.name for p in member.iterdir()
            }
    assert not (result.folder / "checkpoints").exists()


def test_the_language_model_may_be_elsewhere(
    model_folder: Path, text: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To torch, the CPU is one device under two names."""
    asked: list[tuple[str, str | None]] = []
    load = text_source.load_language_model
    config = text_source.MultiSAETrainingRunnerConfig

    def loaded(spec: Any, hook_name: str, device: str, *more: Any) -> Any:
        asked.append(("model", device))
        return load(spec, hook_name, device, *more)

    def configured(**given: Any) -> Any:
        asked.append((given["device"], given["llm_device"]))
        return config(**given)

    monkeypatch.setattr(text_source, "load_language_model", loaded)
    monkeypatch.setattr(text_source, "MultiSAETrainingRunnerConfig", configured)
    short = {
        "members": ["trained", "frozen_decoder"],
        "training_tokens": 128 * 8,
        "device": "cpu",
    }
    here = _spec(model_folder, **short)
    there = _spec(model_folder, **short, llm_device="cpu:0")
    one, two = (
        train_study(spec, tmp_path / name, dataset=text)
        for spec, name in ((here, "one"), (there, "two"))
    )
    assert asked == [("model", "cpu"), ("cpu", "cpu"), ("model", "cpu:0"), ("cpu", "cpu:0")]
    for key in one.measurements:
        path = Path("panels") / key.panel.name / key.member
        old, new = (
            load_file(run.folder / path / "sae_weights.safetensors") for run in (one, two)
        )
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert one.measurements == two.measurements
    gone = _spec(model_folder, **short, llm_device="cuda:99")
    with pytest.raises(UserError, match=r"^llm_device: 'cuda:99' cannot be used"):
        train_study(gone, tmp_path / "three", dataset=text)


def test_members_carry_their_provenance_and_no_path(study: tuple[PanelSpec, StudyResult]):
    _, result = study
    for key in result.measurements:
        folder = result.folder / "panels" / key.panel.name / key.member
        provenance = json.loads((folder / "provenance.json").read_text())
        assert provenance["samples_seen"] == 128 * 200
        assert provenance["epochs"] > 0
        l0 = result.measurements[key]["l0"]
        assert provenance["l0_held_out"] == l0
        assert SAE.load_from_disk(folder).cfg.metadata.l0 == l0
        assert provenance["init_seed"] == key.panel.seed
        assert provenance["versions"]["sae-lens"]
        assert len(provenance["spec_hash"]) == 64
        cfg = (folder / "cfg.json").read_text()
        assert "/" not in cfg.replace("torch/", "")
        assert json.loads(cfg)["architecture"] == "jumprelu"


def test_every_member_meets_its_target_l0(study: tuple[PanelSpec, StudyResult]):
    _, result = study
    assert result.off_target == []
    for measured in result.measurements.values():
        assert measured["l0"] == pytest.approx(6, rel=0.05)


def test_members_keep_their_constraint_against_the_seeded_start(
    study: tuple[PanelSpec, StudyResult],
):
    _, result = study
    for seed in (0, 7):
        panel = result.folder / "panels" / f"batchtopk_l0_6_seed_{seed}"
        start = sample_directions(128, 32, seed=seed)

        def rows(member: str, panel: Path = panel) -> torch.Tensor:
            weights = load_file(panel / member / "sae_weights.safetensors")
            return torch.nn.functional.normalize(weights["W_dec"], dim=1)

        def columns(member: str, panel: Path = panel) -> torch.Tensor:
            weights = load_file(panel / member / "sae_weights.safetensors")
            return torch.nn.functional.normalize(weights["W_enc"].T, dim=1)

        cos = (rows("soft_frozen_decoder").double() * start.double()).sum(1)
        assert cos.min() >= 0.8 - 1e-6
        assert cos.max() < 0.9999
        torch.testing.assert_close(rows("frozen_decoder"), start, atol=1e-6, rtol=0)
        torch.testing.assert_close(columns("frozen_encoder"), start, atol=1e-6, rtol=0)
        assert (rows("trained") * start).sum(1).min() < 0.8
        assert (columns("frozen_decoder") * start).sum(1).min() < 0.99


def test_training_itself_writes_how_many_rows_the_cap_held(
    study: tuple[PanelSpec, StudyResult],
):
    spec, result = study
    hashes = []
    for key in result.measurements:
        folder = StudyFolder(result.folder).member(key)
        weights = load_file(folder / "sae_weights.safetensors")
        written = json.loads((folder / "measurement.json").read_text())
        share = None
        if key.member == "soft_frozen_decoder":
            start = sample_directions(128, 32, seed=key.panel.seed).double()
            rows = torch.nn.functional.normalize(weights["W_dec"].double(), dim=1)
            share = int(((rows * start).sum(1) <= spec.tau + AT_EDGE).sum()) / 128
            assert share > 0.01
        assert written["cap_bound_share"] == share
        hashes.append(written["weights_sha256"])
    assert len(set(hashes)) == len(hashes) == 10
    assert "the cap never bound" not in _verdicts(result, "soft_frozen_decoder")[0].reason


def test_a_cap_that_never_binds_and_one_sae_under_two_names_are_written_down(
    model_folder: Path, text: Dataset, tmp_path: Path
):
    twin = {"constraint": "soft_frozen_decoder", "label": "twin"}
    members = ["trained", "soft_frozen_decoder", twin]
    free = {"members": members, "tau": -0.99, "seeds": [0, 1], "drift": [1.0]}
    result = train_study(_spec(model_folder, **free), tmp_path, dataset=text)
    of_seed: dict[int, set[str]] = {}
    for key in result.measurements:
        folder = StudyFolder(result.folder).member(key)
        written = json.loads((folder / "measurement.json").read_text())
        held = None if key.member == "trained" else 0.0
        assert written["cap_bound_share"] == held
        drift = json.loads((folder / "drift.json").read_text())
        assert drift["records"][-1]["cap_bound_share"] == held
        of_seed.setdefault(key.panel.seed, set()).add(written["weights_sha256"])
    assert {seed: len(hashes) for seed, hashes in of_seed.items()} == {0: 2, 1: 2}
    (verdict,) = _verdicts(result, "soft_frozen_decoder")
    assert verdict.word == "no verdict"
    assert verdict.reason.startswith("the cap never bound")
    assert any("has the weights of twin" in caveat for caveat in verdict.caveats)


def _verdicts(result: StudyResult, member: str) -> list[Verdict]:
    found = verdicts(write_results(result.folder), metrics=["panel/explained_variance"])
    return [v for v in found if v.baseline == member]


def test_the_trained_sae_explains_most_and_soft_frozen_more_than_frozen(
    study: tuple[PanelSpec, StudyResult],
):
    _, result = study
    for seed in (0, 7):
        ev = {
            k.member: m["explained_variance"]
            for k, m in result.measurements.items()
            if k.panel.seed == seed
        }
        assert ev["trained"] > ev["soft_frozen_decoder"]
        assert ev["soft_frozen_decoder"] > max(ev["frozen_decoder"], ev["frozen_encoder"])


def test_a_finished_study_is_recognised_without_its_model(
    study: tuple[PanelSpec, StudyResult],
):
    spec, result = study
    gone = dataclasses.replace(spec)
    files = {p: p.stat().st_mtime_ns for p in result.folder.rglob("*.safetensors")}
    again = train_study(gone, result.folder)
    assert again.trained == []
    assert again.measurements == result.measurements
    assert {p: p.stat().st_mtime_ns for p in result.folder.rglob("*.safetensors")} == files


def test_another_spec_is_refused_and_nothing_overwritten(
    study: tuple[PanelSpec, StudyResult], text: Dataset
):
    spec, result = study
    before = (result.folder / "study.yaml").read_bytes()
    with pytest.raises(UserError, match=r"another spec \(differs in: lr\)"):
        train_study(dataclasses.replace(spec, lr=1e-3), result.folder, dataset=text)
    assert (result.folder / "study.yaml").read_bytes() == before


def test_a_study_of_other_code_is_refused_by_name(
    study: tuple[PanelSpec, StudyResult], text: Dataset, tmp_path: Path
):
    # What an unset field stands for has changed: no field differs, and the hash does.
    spec, result = study
    folder = tmp_path / "study"
    folder.mkdir()
    stored = yaml.safe_load((result.folder / "study.yaml").read_text())
    stored["spec_hash"] = "0" * 64
    stored["git_revision"] = "abcdef0123"
    (folder / "study.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(
        UserError, match=r"other code \(sae_baselines [\d.]+, revision abcdef0\)"
    ):
        train_study(spec, folder, dataset=text)


def test_another_process_in_the_folder_is_refused(
    study: tuple[PanelSpec, StudyResult],
):
    spec, result = study
    with (
        FileLock(result.folder / ".lock"),
        pytest.raises(UserError, match="another process is working"),
    ):
        train_study(spec, result.folder)


def test_stock_saelens_loads_a_member(study: tuple[PanelSpec, StudyResult]):
    _, result = study
    folder = result.folder / "panels" / "batchtopk_l0_6_seed_0" / "frozen_decoder"
    sae = SAE.load_from_disk(folder)
    assert sae.cfg.architecture() == "jumprelu"
    details = sae.cfg.metadata.training_architecture_details
    assert details["constraint"] == "frozen_decoder"


def test_seeds_share_or_vary_the_data_order_as_asked(
    model_folder: Path, text: Dataset, tmp_path: Path
):
    seeds = {}
    for order in ("shared", "per_seed"):
        spec = _spec(model_folder, seeds=[1, 2], members=["trained"], data_order=order)
        result = train_study(spec, tmp_path / order, dataset=text)
        seeds[order] = [
            json.loads(p.read_text())["data_seed"]
            for p in sorted(result.folder.rglob("provenance.json"))
        ]
    assert seeds == {"shared": [1, 1], "per_seed": [1, 2]}


@pytest.mark.parametrize(
    ("architecture", "steps"),
    [
        pytest.param("jumprelu", 300, marks=pytest.mark.thorough),
        ("topk", 100),
        ("matryoshka_batchtopk", 60),
    ],
)
def test_other_architectures_meet_their_target(
    architecture: str, steps: int, model_folder: Path, text: Dataset, tmp_path: Path
):
    spec = _spec(
        model_folder,
        architecture=architecture,
        training_tokens=128 * steps,
        calibration_tokens=4096,
        eval_tokens=4096,
    )
    result = train_study(spec, tmp_path / "out", dataset=text)
    assert result.off_target == []


def test_a_miss_is_said(model_folder: Path, text: Dataset, tmp_path: Path):
    spec = _spec(model_folder, architecture="standard", training_tokens=128 * 3)
    result = train_study(spec, tmp_path / "out", dataset=text)
    assert len(result.off_target) == 4


@pytest.mark.parametrize("normalize", ["layer_norm", "none"])
def test_other_normalisations_work(
    normalize: str, model_folder: Path, text: Dataset, tmp_path: Path
):
    spec = _spec(
        model_folder,
        architecture="jumprelu",
        normalize_activations=normalize,
        members=[*MEMBERS, "frozen_decoder:cov"],
    )
    result = train_study(spec, tmp_path / "out", dataset=text)
    for key, measured in result.measurements.items():
        if key.member.startswith("frozen_decoder"):
            assert measured["cos_to_start_min"] == pytest.approx(1, abs=1e-6)


def test_finished_passes_leave_no_sae_in_memory_and_no_checkpoint(
    model_folder: Path, text: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    alive: list[int] = []
    kept: list[int] = []
    base_losses = text_source.base_losses

    def look(*given: Any) -> Any:
        found = [o for o in gc.get_objects() if isinstance(o, FrozenDecoderMixin)]
        alive.append(len(found))
        kept.append(len(list((tmp_path / "out" / "checkpoints").glob("*"))))
        return base_losses(*given)

    monkeypatch.setattr(text_source, "base_losses", look)
    spec = _spec(model_folder, l0=[4, 6], max_panels_per_pass=1, training_tokens=128 * 5)
    before = len([o for o in gc.get_objects() if isinstance(o, FrozenDecoderMixin)])
    train_study(spec, tmp_path / "out", dataset=text)
    assert alive == [before]
    assert kept == [0]


def test_an_architecture_of_ones_own_makes_a_panel(
    model_folder: Path, text: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plugin = tmp_path / "own_topk_plugin.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig\n"
        "from sae_lens import register_sae_training_class, TopKSAEConfig\n"
        "@dataclass\n"
        "class OwnConfig(TopKTrainingSAEConfig):\n"
        "    @classmethod\n"
        "    def architecture(cls): return 'own_topk'\n"
        "    def get_inference_config_class(self): return TopKSAEConfig\n"
        "class OwnTopK(TopKTrainingSAE): pass\n"
        "register_sae_training_class('own_topk', OwnTopK, OwnConfig)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = _spec(model_folder, architecture="own_topk", plugins=["own_topk_plugin"])
    result = train_study(spec, tmp_path / "out", dataset=text)
    assert result.off_target == []
    assert len(result.measurements) == 4


def test_nan_in_activations_stops_the_run(model_folder: Path, text: Dataset, tmp_path: Path):
    spec = _spec(model_folder)
    model = load_language_model(spec.model, spec.hook_name, "cpu")
    with torch.no_grad():
        model.W_E[5] = torch.nan  # type: ignore[index]
    with pytest.raises(UserError, match="contain NaN or infinity"):
        train_study(spec, tmp_path / "out", dataset=text, model=model)
    assert not (tmp_path / "out" / "panels").exists()


def test_divergence_is_caught_before_it_is_saved(
    model_folder: Path, text: Dataset, tmp_path: Path
):
    spec = _spec(model_folder, architecture="standard", lr=1e30, members=["trained"])
    with pytest.raises(UserError, match=r"lr: .* diverged"):
        train_study(spec, tmp_path / "out", dataset=text)
    assert not list((tmp_path / "out").rglob("sae_weights.safetensors")) or not list(
        (tmp_path / "out").rglob("complete.json")
    )


def test_a_wrong_d_in_is_named(model_folder: Path, text: Dataset, tmp_path: Path):
    with pytest.raises(UserError, match=r"d_in: 64 does not match .* which has 32"):
        train_study(_spec(model_folder, d_in=64), tmp_path / "out", dataset=text)


def test_l0_is_checked_against_the_expanded_width(
    model_folder: Path, text: Dataset, tmp_path: Path
):
    with pytest.raises(UserError, match="l0: 200 is not below d_sae=128"):
        train_study(_spec(model_folder, l0=200), tmp_path / "out", dataset=text)


def test_an_unwritable_folder_is_named(model_folder: Path, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"out: .* cannot be written"):
        train_study(_spec(model_folder), tmp_path / "file" / "out")


def test_a_folder_with_other_things_in_it_is_refused(model_folder: Path, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"is not empty .*thesis.tex"):
        train_study(_spec(model_folder), tmp_path)


def _started(panel: Path, out: Path, anew: bool) -> subprocess.Popen[str] | Forked:
    """Training in a process of its own; ``anew`` in a new interpreter, as it is typed."""
    command = ["train", str(panel), "--out", str(out)]
    if not anew:
        return start_command(*command)
    return subprocess.Popen(
        [sys.executable, "-m", "sae_baselines_cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for_checkpoint(process: subprocess.Popen[str] | Forked, out: Path) -> None:
    deadline = time.monotonic() + 240
    while not complete_checkpoints(out / "checkpoints" / "pass_0"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.thorough),
        pytest.param(signal.SIGINT, marks=pytest.mark.thorough),
    ],
)
def test_a_stopped_run_continues_from_its_last_checkpoint(
    number: signal.Signals, model_folder: Path, text_file: Path, tmp_path: Path
):
    spec = _spec(
        model_folder,
        training_tokens=128 * 150,
        n_checkpoints=10,
        dataset=str(text_file),
    )
    panel, out = tmp_path / "panel.yaml", tmp_path / "out"
    panel.write_text(spec_to_yaml(spec))
    process = _started(panel, out, anew=number == signal.SIGINT)
    _wait_for_checkpoint(process, out)
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert "continue with --resume" in stderr
    (checkpoint,) = complete_checkpoints(out / "checkpoints" / "pass_0")[-1:]
    seen = int(checkpoint.name)
    assert seen < spec.training_tokens

    # every member of the checkpoint has seen the same batches
    states = [torch.load(p, weights_only=True) for p in checkpoint.rglob("trainer_state.pt")]
    assert {s["n_training_samples"] for s in states} == {seen}
    assert len(states) == 4

    with pytest.raises(UserError, match="holds an unfinished run; continue it with --resume"):
        train_study(spec, out)

    result = train_study(spec, out, resume=True)
    assert len(result.measurements) == 4
    for key in result.measurements:
        folder = out / "panels" / key.panel.name / key.member
        provenance = json.loads((folder / "provenance.json").read_text())
        assert provenance["resumed_at_samples"] == seen
        assert provenance["samples_seen"] == spec.training_tokens
    soft = result.folder / "panels" / "batchtopk_l0_6_seed_0" / "soft_frozen_decoder"
    rows = load_file(soft / "sae_weights.safetensors")["W_dec"].double()
    cos = torch.nn.functional.cosine_similarity(rows, sample_directions(128, 32, seed=0), dim=1)
    assert cos.min() >= 0.8 - 1e-6


def test_a_damaged_checkpoint_is_named(model_folder: Path, text_file: Path, tmp_path: Path):
    spec = _spec(
        model_folder,
        training_tokens=128 * 150,
        n_checkpoints=10,
        dataset=str(text_file),
    )
    panel, out = tmp_path / "panel.yaml", tmp_path / "out"
    panel.write_text(spec_to_yaml(spec))
    process = _started(panel, out, anew=False)
    _wait_for_checkpoint(process, out)
    process.kill()
    process.communicate()
    checkpoint = complete_checkpoints(out / "checkpoints" / "pass_0")[-1]
    weights = next(checkpoint.rglob("sae_weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(UserError, match=r"checkpoint .* is damaged"):
        train_study(spec, out, resume=True)


def test_the_specs_clipping_and_what_an_encoder_learns_reach_the_members(
    model_folder: Path, text: Dataset, tmp_path: Path
) -> None:
    paper = {"constraint": "frozen_encoder", "learned": "threshold"}
    options = {"members": ["trained", paper], "training_tokens": 128 * 4}
    # Adam divides by the size of gradients, unless they are far below its epsilon.
    spec = _spec(model_folder, clip_grad_norm=1e-13, normalize_activations="none", **options)
    out = train_study(spec, tmp_path / "clipped", dataset=text).folder
    panel = out / "panels" / "batchtopk_l0_6_seed_0"
    trained, encoder = (
        SAE.load_from_disk(panel / name) for name in ("trained", "frozen_encoder_threshold")
    )
    rows = sample_directions(*trained.W_dec.shape, seed=0)
    for sae in (trained, encoder):
        assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(len(rows)), atol=1e-4)
        assert torch.allclose(sae.W_dec, rows, atol=1e-4)
    # It keeps the unit columns that it starts with; the trained SAE has one factor more.
    assert torch.allclose(encoder.W_enc, rows.T, atol=1e-4)
    # b_dec has not moved, so that both subtract the same, in their own ways.
    assert encoder.cfg.apply_b_dec_to_input is False
    assert torch.allclose(
        encoder.get_parameter("b_enc"), -trained.b_dec @ encoder.W_enc, atol=1e-3
    )
    described = describe_sae(panel / "frozen_encoder_threshold")
    assert described.facts["learned"] == "threshold"
    assert "biases that are no threshold" in described.facts["constraint_words"]
    assert described.promise is not None
    assert described.promise.holds
