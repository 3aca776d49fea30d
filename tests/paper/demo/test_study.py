"""The demo as one study: on a tiny model, and what it says before it fetches anything."""

import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import sae_baselines.pipeline
from sae_baselines.evals import load_results
from sae_baselines.home import cache_dir
from sae_baselines.paper.demo.study import Demo, demo, fetched
from sae_baselines.study.spec import AUTO
from sae_baselines_cli import app
from tests.evals.tiny_hub import HOOK, MODEL, build_once
from tests.loopback_hub import point_clients_at, serving

METRICS = {
    "core": ["explained_variance_paper", "ce_loss_score"],
    "sparse_probing_sae_probes": ["sae_top_1_test_accuracy", "sae_top_5_test_accuracy"],
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.getbasetemp()
    root = build_once((base.parent if base.name.startswith("popen-") else base) / "tiny_hub")
    with pytest.MonkeyPatch.context() as patch, serving(root) as endpoint:
        point_clients_at(endpoint, tmp_path_factory.mktemp("huggingface"), patch)
        yield root


@pytest.fixture
def tiny(hub: Path) -> list[str]:
    """Options for a local model and text."""
    text = next((hub / "Skylion007/openwebtext/data").glob("*.parquet"))
    model = hub / "EleutherAI" / MODEL
    return [*("--model", str(model), "--dataset", str(text)), *("--hook", HOOK)]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["demo", *arguments])


def weights(study: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in study.rglob("*.safetensors")}


def test_from_nothing_to_the_page_and_interrupted_on_the_way(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study, opened = tmp_path / "study", []
    typed = [*tiny, "--quick", "--tokens", "4096", "--out", str(study)]

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(sae_baselines.pipeline, "_evaluate", stop)
        assert call(*typed).exit_code == 130
    trained = weights(study)
    assert len(trained) >= 5
    assert not (study / "report.html").exists()

    monkeypatch.setattr(webbrowser, "open", lambda url: bool(opened.append(url)))
    result = call(*typed, "--open")
    assert result.exit_code == 0, result.output
    assert weights(study) == trained
    assert "5 SAEs at blocks.0.hook_resid_post of " in result.output
    assert "4,096 tokens: one seed of trained, frozen_decoder, " in result.output
    assert "Evaluated 10, kept 0 from before, failed 0" in result.output
    assert opened == [(study / "report.html").as_uri()]
    assert f"open {study / 'report.html'}" in result.output.replace("\n", "")

    results = load_results(study)
    assert set(results["member"]) >= {"trained", "frozen_decoder", "random"}
    for suite, metrics in METRICS.items():
        scored = results[(results["suite"] == suite) & (results["task"] == "")]
        for metric in metrics:
            assert (scored["metric"] == metric).sum() == 5
    # What chance scores is beside them.
    assert results["metric"].str.contains("mean_ablation").any()
    assert results["metric"].str.contains("random_latents").any()
    page = (study / "report.html").read_text()
    for section in ("answer", "scores", "latents", "controls"):
        assert f'<section id="{section}">' in page
    assert (study / "latents.html").is_file()

    again = call(*typed)
    assert again.exit_code == 0, again.output
    assert "Evaluated 0, kept 10 from before" in again.output
    assert weights(study) == trained


def test_three_seeds_are_trained_at_once_and_the_trained_one_on_active_entries(
    tiny: list[str],
):
    asked = demo(model=tiny[1], dataset=tiny[3])
    assert (asked.spec.seeds, asked.spec.sparse_step) == ([0, 1, 2], "all")
    assert len(asked.spec.passes()) == 1
    assert "random" in [member.name for member in asked.spec.member_specs]
    assert len(asked.evals.suites["sparse_probing_sae_probes"]["dataset_names"]) == 2
    assert all(options["floors"] for options in asked.evals.suites.values())
    assert asked.evals.primary_metrics == [
        f"{suite}/{metric}" for suite, metrics in METRICS.items() for metric in metrics
    ]


def seconds(asked: Demo) -> float:
    return sum(stage.seconds for stage in asked.stages)


def test_quick_is_one_seed_in_a_third_of_the_time_and_a_study_of_its_own(tiny: list[str]):
    full, quick = (demo(model=tiny[1], dataset=tiny[3], quick=q) for q in (False, True))
    assert quick.spec.seeds == [0]
    assert seconds(quick) < 0.36 * seconds(full)
    # What is announced: 8 minutes and 2 on two cores, as it was measured.
    assert 7.5 * 60 < seconds(full) <= 8 * 60
    assert 1.5 * 60 < seconds(quick) < 2.5 * 60
    assert quick.spec.name == f"{full.spec.name}-quick"
    assert full.spec.name == f"demo-{MODEL}"


@pytest.mark.parametrize(
    ("name", "model", "hook", "text"),
    [
        (
            "pythia-70m",
            "EleutherAI/pythia-70m-deduped",
            "blocks.3.hook_resid_post",
            "monology/pile-uncopyrighted",
        ),
        (
            "gemma-2-2b",
            "google/gemma-2-2b",
            "blocks.12.hook_resid_post",
            "Skylion007/openwebtext",
        ),
    ],
)
def test_named_models_take_hook_text_and_recipe_of_their_preset(
    name: str, model: str, hook: str, text: str
):
    asked = demo(model=name)
    assert (asked.spec.model.name, asked.spec.hook_name) == (model, hook)
    assert (asked.spec.dataset.path, asked.spec.dataset.streaming) == (text, True)
    assert asked.evals.suites["core"]["dataset"] == text
    assert asked.spec.max_panels_per_pass == AUTO
    assert asked.spec.name == f"demo-{name}"
    own = demo(model=name, dataset="my/text", hook_name="blocks.1.hook_mlp_out")
    assert (own.spec.dataset.path, own.spec.hook_name) == ("my/text", "blocks.1.hook_mlp_out")


def test_what_is_downloaded_and_how_much_is_said(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SAE_BASELINES_CACHE", str(tmp_path))
    model, text = fetched()
    assert model.startswith("Downloads SmolLM2-135M-Instruct, once: 92.9 MB, ")
    assert text.startswith("Downloads English Wikipedia of 2006, once: 36.9 MB, ")
    assert all(str(cache_dir()) in line for line in (model, text))
    (only_text,) = fetched(model=str(hub / "EleutherAI" / MODEL))
    assert only_text == text

    size = (hub / "EleutherAI" / MODEL / "model.safetensors").stat().st_size
    of_model, of_text = fetched(model="pythia-70m")
    assert of_model.startswith(f"Reads EleutherAI/{MODEL} from the Hugging Face Hub: ")
    assert of_model.endswith(f"{size / 1e6:.2f} MB")
    assert of_text.startswith("Reads monology/pile-uncopyrighted from the Hugging Face Hub")
    # The Hub does not have it, which whoever reads it says.
    assert "from the Hugging Face Hub" in fetched(model="nobody/nothing", dataset="a/b")[0]


def test_what_is_there_is_not_downloaded_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sae_baselines.paper.demo.study.is_finished", lambda *_: True)
    assert [line.partition(" is there already: ")[0] for line in fetched()] == [
        "SmolLM2-135M-Instruct",
        "English Wikipedia of 2006",
    ]
