"""eval, doctor, report and check from the command line, on the tiny Hub."""

import json
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from typer.testing import CliRunner

from sae_baselines.errors import UserError
from sae_baselines.evals import load_results
from sae_baselines.evals.spec import stored_spec
from sae_baselines.evals.store import EvalStore
from sae_baselines.files import read_json
from sae_baselines.study.folder import write_provenance
from sae_baselines_cli import app
from tests.evals.tiny_hub import HOOK, MODEL, QUICK_EVALS, tiny_sae

PANEL: dict[str, Any] = {
    "name": "tiny",
    "model": {"name": f"EleutherAI/{MODEL}"},
    "hook_name": HOOK,
    "dataset": {"path": "monology/pile-uncopyrighted"},
    "d_sae": 128,
    "l0": 8,
    "seeds": [0, 1],
    "members": ["trained", "frozen_decoder"],
    "training_tokens": 8192,
    "context_size": 64,
    "store_batch_size_prompts": 16,
    "n_batches_in_buffer": 16,
    "n_batches_for_norm_estimate": 2,
    "train_batch_size_tokens": 256,
    "lr": 2e-3,
    "calibration_tokens": 2048,
    "eval_tokens": 2048,
    "ce_tokens": 512,
    "n_checkpoints": 0,
    "evals": {
        **QUICK_EVALS,
        "margins": {"core/ce_loss_score": 0.05},
    },
}


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def checked(tiny_hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that ``check`` made, in ``<folder>/study``; ``<folder>/panel.yaml`` its file."""
    del tiny_hub
    folder = tmp_path_factory.mktemp("checked")
    (folder / "panel.yaml").write_text(yaml.safe_dump(PANEL))
    result = call("check", folder / "panel.yaml", "--out", folder / "study")
    assert result.exception is None, result.output
    assert result.exit_code == 0
    assert "trained" in result.output
    return folder


def test_check_goes_from_one_file_to_the_report(checked: Path) -> None:
    study = checked / "study"
    results = load_results(study)
    members = {f"batchtopk_l0_8_seed_{s}" for s in (0, 1)}
    assert set(results["panel"]) == members
    assert set(results["suite"]) == {"panel", "core"}
    core = results[results["metric"] == "explained_variance_paper"]
    assert len(core) == 4
    html = (study / "report.html").read_text()
    assert "frozen_decoder" in html
    assert "ce_loss_score" in (study / "report.md").read_text()
    assert list((study / "figures").glob("*.svg"))


def test_numbers_of_the_table_are_in_saebenchs_files(checked: Path) -> None:
    study = checked / "study"
    results = load_results(study)
    rows = results[results["metric"] == "ce_loss_score"]
    for _, row in rows.iterrows():
        name = f"{row['panel']}.{row['member']}"
        payload = json.loads(EvalStore(study).result_file("core", name).read_text())
        theirs = payload["eval_result_metrics"]["model_performance_preservation"]
        assert row["value"] == theirs["ce_loss_score"]


def test_check_again_repeats_nothing(checked: Path) -> None:
    store = EvalStore(checked / "study")
    before = {r.name: r.record["created"] for r in store.results()}
    result = call("check", checked / "panel.yaml", "--out", checked / "study")
    assert result.exit_code == 0
    assert "kept 4" in result.output
    assert {r.name: r.record["created"] for r in store.results()} == before


def test_margin_of_the_file_is_that_of_the_verdict(checked: Path) -> None:
    verdicts = (checked / "study" / "verdicts.csv").read_text()
    (line,) = [x for x in verdicts.splitlines() if "ce_loss_score" in x]
    assert ",0.05," in line


def test_eval_remembers_its_settings(checked: Path) -> None:
    result = call("eval", checked / "study", "--seeds", 1)
    assert result.exit_code == 0
    assert "Evaluated 0, kept 2 from before, failed 0" in result.output


def test_a_failure_has_its_exit_code(checked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = checked / "study"
    store = EvalStore(study)
    record = store.record_file("core", "batchtopk_l0_8_seed_1.trained")
    text = record.read_text()
    record.unlink()

    broken = Mock(side_effect=RuntimeError("no such luck"))
    monkeypatch.setattr("sae_bench.evals.core.main.multiple_evals", broken)
    result = call("eval", study)
    assert result.exit_code == 3
    assert "kept 3" in result.output
    assert [f.reason for f in store.failures()] == ["RuntimeError: no such luck"]
    # The report names it rather than leaving a blank.
    assert call("report", study).exit_code == 0
    assert "no such luck" in (study / "report.md").read_text()
    store.failure_file("core", "batchtopk_l0_8_seed_1.trained").unlink()
    record.write_text(text)


def test_force_evaluates_again(checked: Path) -> None:
    result = call("eval", checked / "study", "--seeds", 1, "--force")
    assert result.exit_code == 0
    assert "Evaluated 2, kept 0 from before" in result.output


def test_train_keeps_the_files_section_for_eval(checked: Path, tmp_path: Path) -> None:
    shutil.copytree(checked / "study", tmp_path / "study")
    shutil.rmtree(tmp_path / "study" / "evals")
    result = call("train", checked / "panel.yaml", "--out", tmp_path / "study")
    assert result.exit_code == 0
    kept = stored_spec(tmp_path / "study")
    assert kept is not None
    assert kept.options_of("core")["n_eval_reconstruction_batches"] == 1
    assert kept.margins == {"core/ce_loss_score": 0.05}


def test_a_member_trained_anew_does_not_keep_its_scores(checked: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(checked / "study", study)
    member = study / "panels" / "batchtopk_l0_8_seed_0" / "trained"
    tiny_sae(seed=5).save_model(member)
    write_provenance(member, read_json(member / "provenance.json") or {})
    result = call("report", study)
    assert isinstance(result.exception, UserError)
    assert "was changed after core scored it" in str(result.exception)


def test_check_refuses_before_training(tmp_path: Path, tiny_hub: Path) -> None:
    del tiny_hub
    suites = {**PANEL["evals"]["suites"], "ravel": {}}
    panel = {**PANEL, "evals": {**PANEL["evals"], "suites": suites}}
    (tmp_path / "panel.yaml").write_text(yaml.safe_dump(panel))
    result = call("check", tmp_path / "panel.yaml", "--out", tmp_path / "study")
    assert isinstance(result.exception, UserError)
    assert "ravel: " in str(result.exception)
    assert not (tmp_path / "study").exists()


def test_doctor_works_where_saebench_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("sae_bench")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sae_bench", None)
    real = metadata.version

    def version(package: str) -> str:
        if package == "sae-bench":
            raise metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(metadata, "version", version)
    result = call("doctor", "--suites", "core,sparse_probing")
    assert result.exit_code == 1, result.output
    assert "sae-bench is not installed" in " ".join(result.output.split())


def test_doctor_says_which_suites_can_run(
    checked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    result = call("doctor", checked / "study", "--suites", "core,ravel,autointerp")
    assert result.exit_code == 1
    lines = {line.split()[0]: line for line in result.output.splitlines() if line.strip()}
    assert "ok" in lines["core"]
    assert "cannot run" in lines["ravel"]
    assert "cannot run" in lines["autointerp"]


def test_eval_of_saes_on_their_own(checked: Path, tmp_path: Path) -> None:
    tiny_sae(seed=3).save_model(tmp_path / "mine")
    config = checked / "panel.yaml"
    out = tmp_path / "out"
    result = call("eval", tmp_path / "mine", "--config", config, "--out", out)
    assert result.exit_code == 0, result.output
    results = load_results(out)
    assert set(results["member"]) == {"mine"}
    assert set(results["constraint"]) == {"unknown"}
    # Some tokens switch no latent on: the cosine there is no number, which is said, not hidden.
    assert results.loc[results["metric"] == "cossim", "value"].isna().all()
    assert "cossim is not a number" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "nowhere:sae"], "out: needed"),
        (["eval", "STUDY", "--suites", "cor"], "did you mean core"),
        (["eval", "STUDY", "--seeds", "3"], "seeds: 3 of 2"),
        (["eval", "STUDY", "STUDY", "--out", "x"], "evaluate it on its own"),
        (["eval", "STUDY", "--out", "x"], "leave --out away"),
        (["report", "nowhere"], "study: there is no folder nowhere"),
        (["eval", "STUDY", "--model", "nowhere"], "model: nowhere is not a folder"),
    ],
)
def test_mistakes_are_one_line(checked: Path, arguments: list[str], message: str) -> None:
    given = [str(checked / "study") if a == "STUDY" else a for a in arguments]
    result = call(*given)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
