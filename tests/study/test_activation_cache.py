"""Activations written once and read by every pass: the same numbers, checked, and no more."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import ActivationsStore

from sae_baselines.errors import UserError
from sae_baselines.evals.plan import plan_study
from sae_baselines.study import activation_cache as cache_module
from sae_baselines.study import spec_from_dict, train_study
from sae_baselines.study.activation_cache import ActivationCache
from sae_baselines.study.engine import run_task, tasks
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.spec import PanelSpec, spec_hash
from tests.study.test_tasks import _results
from tests.tiny_model import tiny_panel

MEMBERS = ["trained", "frozen_decoder"]


def _spec(model_folder: Path, **fields: Any) -> PanelSpec:
    panel = tiny_panel(model_folder, members=MEMBERS, seeds=[0, 1], max_panels_per_pass=1)
    spec = spec_from_dict({**panel, "training_tokens": 128 * 20, **fields})
    assert isinstance(spec, PanelSpec)
    return spec


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Contexts that the language model is asked for while SAEs are trained."""
    asked: list[int] = []
    original = ActivationsStore.get_multi_hook_activations

    def read(store: ActivationsStore, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        if store.total_training_tokens > 1:  # of held-out text there is one
            asked.append(len(tokens))
        return original(store, tokens)

    monkeypatch.setattr(ActivationsStore, "get_multi_hook_activations", read)
    return asked


@pytest.mark.parametrize("sliced", [[None], [2, None]])
def test_the_numbers_are_the_same_and_the_model_is_run_once(
    model_folder: Path, text: Dataset, tmp_path: Path, reads: list[int], sliced: list[Any]
):
    plain = _spec(model_folder, seqpos_slice=sliced)
    train_study(plain, tmp_path / "plain", dataset=text)
    assert reads
    reads.clear()
    cached = _spec(model_folder, seqpos_slice=sliced, cache_activations=True)
    assert spec_hash(cached) == spec_hash(plain)
    train_study(cached, tmp_path / "cached", dataset=text)
    assert not reads
    assert _results(tmp_path / "cached") == _results(tmp_path / "plain")
    assert not StudyFolder(tmp_path / "cached").caches.exists()


@pytest.mark.filterwarnings("ignore:All samples in the training dataset")
def test_a_text_that_is_read_over_again_is_right_too(
    model_folder: Path, text: Dataset, tmp_path: Path
):
    # Its second reading begins in the middle of a batch.
    few = text.select(range(60))
    fields = {"calibration_tokens": 256, "eval_tokens": 256, "ce_tokens": 0}
    train_study(_spec(model_folder, **fields), tmp_path / "plain", dataset=few)
    spec = _spec(model_folder, **fields, cache_activations=True)
    train_study(spec, tmp_path / "cached", dataset=few)
    assert _results(tmp_path / "cached") == _results(tmp_path / "plain")


def test_it_is_a_task_that_every_pass_waits_for_and_a_change_is_seen(
    model_folder: Path, text: Dataset, tmp_path: Path, reads: list[int]
):
    spec = _spec(model_folder, cache_activations=True)
    assert [task.name for task in tasks(spec)][:3] == ["cache", "train:pass_0", "train:pass_1"]
    planned = {task.name: task for task in plan_study(spec).tasks}
    assert planned["train:pass_1"].needs == ("cache",)
    out = tmp_path / "out"
    run_task(spec, out, "cache", dataset=text)
    folder = StudyFolder(out)
    written = list(folder.cache("").rglob("*.arrow"))
    on_disk = sum(path.stat().st_size for path in written)
    assert on_disk == pytest.approx(planned["cache"].disk, rel=0.1)
    run_task(spec, out, "train:pass_0", dataset=text)
    assert not reads
    whole = written[0].read_bytes()
    written[0].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"is not as it was written; delete .*activations"):
        run_task(spec, out, "train:pass_1", dataset=text)
    shutil.rmtree(folder.cache(""))
    run_task(spec, out, "cache", dataset=text)
    run_task(spec, out, "train:pass_1", dataset=text)
    assert not reads


def test_a_cache_of_other_activations_is_refused(
    model_folder: Path, text: Dataset, tmp_path: Path
):
    spec = _spec(model_folder, cache_activations=True)
    run_task(spec, tmp_path / "out", "cache", dataset=text)
    other = _spec(model_folder, cache_activations=True, autocast_lm=True)
    with pytest.raises(UserError, match="is of another study"):
        ActivationCache(other, StudyFolder(tmp_path / "out").cache(""), 32).open()


def test_a_full_disk_is_told_before_anything_is_run(
    model_folder: Path, text: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = _spec(model_folder, cache_activations=True)
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: full)
    with pytest.raises(
        UserError, match=r"cache_activations: .* are needed .* 1,000 B are free"
    ):
        train_study(spec, tmp_path / "out", dataset=text)


def test_one_pass_caches_nothing(model_folder: Path):
    spec = _spec(model_folder, cache_activations=True, max_panels_per_pass=None)
    assert "cache" not in {task.kind for task in tasks(spec)}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"data_order": "per_seed"}, "no two passes read the same; use data_order: shared"),
        (
            {
                "architecture": "transcoder_topk",
                "hook_name": "blocks.1.ln2.hook_normalized",
                "hook_name_out": "blocks.1.hook_mlp_out",
            },
            "SAELens caches one hook, and a transcoder has two",
        ),
    ],
)
def test_what_cannot_be_cached_is_refused(
    model_folder: Path, fields: dict[str, Any], said: str
):
    with pytest.raises(UserError, match=said):
        _spec(model_folder, cache_activations=True, **fields)
