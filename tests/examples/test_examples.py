"""The examples run as they stand, and what they say is so."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from sae_lens import SAE, LanguageModelSAERunnerConfig

from sae_baselines.baselines import CONSTRAINTS, get_baseline
from sae_baselines.show import describe_sae
from tests.tiny_model import save_tiny_model, tiny_text

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> Any:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook, run from top to bottom with no Hub to ask."""
    found = nbformat.read(EXAMPLES / "random_baselines.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in found.cells)
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        client = NotebookClient(
            found, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        client.execute()
    assert list(folder.iterdir()) == []
    return found


def outputs(notebook: Any) -> str:
    """All that was printed."""
    parts = (o for cell in notebook.cells for o in cell.get("outputs", []))
    return "".join(o.get("text", "") for o in parts if o.output_type == "stream")


@pytest.mark.thorough
def test_the_notebook_runs_without_a_warning_and_shows_two_figures(notebook: Any):
    shown = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert not [o.text for o in shown if o.output_type == "stream" and o.name == "stderr"]
    assert sum("image/png" in o.get("data", {}) for o in shown) == 2


@pytest.mark.thorough
def test_the_notebook_s_numbers_say_what_its_text_says(notebook: Any):
    said = json.loads("".join(o.text for o in notebook.cells[-2].outputs))
    # "about two thirds of what the trained SAE explains", and "it has recovered none"
    assert 0.55 < said["frozen_share_of_trained_ev"] < 0.75
    assert said["frozen_recovered_share"] < 0.02
    assert said["trained_recovered_share"] > 0.3
    # "beats if it lies above 0"; the L0s "agree within 5 %"
    assert said["word_over_frozen"] == "beats"
    assert 0 < said["ev_over_frozen_low"] < said["ev_over_frozen"]
    assert said["ev_over_random_low"] > 0
    assert said["largest_l0_gap"] < 0.05
    assert said["word_of_one_seed"] == "single seed"
    # "a frozen decoder stays at 1"
    assert said["frozen_cosine_to_start"] == pytest.approx(1, abs=1e-6)
    assert said["trained_cosine_to_start"] < 0.9
    assert "-> True (least cosine 1.0000000)" in outputs(notebook)


def test_an_ordinary_config_of_saelens_trains_a_baseline(tmp_path: Path):
    fields = yaml.safe_load((EXAMPLES / "frozen_decoder.yaml").read_text())
    # As it stands it is a complete config of SAELens.
    cfg = LanguageModelSAERunnerConfig.from_dict(fields)
    assert cfg.sae.architecture() == "frozen_decoder"
    assert (cfg.sae.d_in, cfg.sae.d_sae) == (512, 8192)
    # The same run on a model and a text that are here.
    (tmp_path / "text").mkdir()
    tiny_text().to_parquet(tmp_path / "text" / "text.parquet")
    small = {
        **fields,
        "sae": {**fields["sae"], "d_in": 32, "d_sae": 64, "k": 4},
        "model_name": str(save_tiny_model(tmp_path / "model")),
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "model.layers.1",
        "dataset_path": str(tmp_path / "text"),
        "context_size": 32,
        "training_tokens": 4096,
        "train_batch_size_tokens": 128,
        "n_batches_in_buffer": 16,
        "store_batch_size_prompts": 8,
        "device": "cpu",
        "output_path": str(tmp_path / "out"),
        "checkpoint_path": None,
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    load("frozen_decoder").main(tmp_path / "small.yaml")
    assert SAE.load_from_disk(tmp_path / "out").cfg.architecture() == "jumprelu"
    about = describe_sae(tmp_path / "out")
    assert about.facts["trained_as"] == "frozen_decoder"
    assert about.promise is not None
    assert about.promise.holds is True
    assert about.drift is not None
    assert about.drift["encoder"] is not None
    assert about.drift["encoder"]["mean"] < 1


def test_an_architecture_of_one_s_own_gets_its_baselines():
    example = load("own_architecture")
    # A cap on the encoder is for transcoders alone.
    assert set(CONSTRAINTS) - {"soft_frozen_encoder"} == set(example.CONSTRAINTS)
    with pytest.raises(ValueError, match="use soft_frozen_decoder_small_topk"):
        get_baseline("soft_frozen_encoder_small_topk")
    for name in example.CONSTRAINTS:
        baseline = get_baseline(f"{name}_small_topk")
        assert issubclass(baseline.sae_class, example.SmallTopK)
    scores = example.main()
    ours = scores.pop("small_topk")
    assert set(scores) == {f"{name}_small_topk" for name in example.CONSTRAINTS}
    assert all(0.2 < score < ours < 1 for score in scores.values())


def run_cells(tmp_path: Path, run: str) -> list[str]:
    """Lines that the notebook for one's own SAE prints."""
    found = nbformat.read(EXAMPLES / "check_your_own_sae.ipynb", as_version=4)
    code = [cell for cell in found.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)
    # As shipped it takes the toy; what needs a GPU or the network says so in its first line.
    assert code[0].source.startswith('RUN = "toy"')
    code[0].source = f"RUN = {run!r}"
    marked = [c for c in code if {"gpu", "network"} & set(c.metadata.get("tags", ()))]
    assert len(marked) == 4
    for cell in marked:
        assert re.match(r"# (GPU|NETWORK): ", cell.source), cell.source
    if run == "toy":  # Needs neither: everything else runs without.
        found.cells = [cell for cell in found.cells if cell not in marked]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        resources = {"metadata": {"path": tmp_path}}
        client = NotebookClient(found, timeout=3600, kernel_name="python3", resources=resources)
        client.execute()
    return outputs(found).splitlines()


@pytest.mark.slow  # half a minute; tests/study/reference checks one SAE each time
def test_the_notebook_for_one_s_own_sae_runs_with_the_toy(tmp_path: Path):
    lines = run_cells(tmp_path, "toy")
    assert "complete: True" in lines
    placed = json.loads(lines[-1])
    # "more than every frozen decoder and every untrained SAE, and less than `trained`"
    assert placed.pop("trained") == placed.pop("soft_frozen_decoder") == "below all 3 seeds"
    assert placed == dict.fromkeys(("frozen_decoder", "random"), "above all 3 seeds")


@pytest.mark.slow  # a quarter of an hour; needs the demo's downloads
def test_the_notebook_for_one_s_own_sae_runs_with_a_real_model(tmp_path: Path):
    lines = run_cells(tmp_path, "smollm2")
    assert "complete: True" in lines
    placed = json.loads(lines[-1])
    # "above all of them, above `trained` too"
    assert len(placed) == 4
    assert set(placed.values()) == {"above all 3 seeds"}
