"""The section ``evals``: whatever is wrong with it is found before anything is done."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_baselines import pipeline
from sae_baselines.errors import UserError
from sae_baselines.evals import EvalSpec, eval_spec_from_dict, evaluate, suite_names
from sae_baselines.evals import registry as suites
from sae_baselines.evals.measured import HIGHER
from sae_baselines.evals.metrics import Metric
from sae_baselines.evals.spec import (
    load_eval_spec,
    primary_of,
    settings_hash,
    settings_of,
    store_spec,
    stored_spec,
)
from sae_baselines.evals.store import EvalStore
from sae_baselines.study.patches.spec import VisionSpec
from sae_baselines.study.spec import load_spec
from tests.evals.fake_suite import FakeSuite
from tests.evals.tiny_hub import HOOK, MODEL, tiny_sae

PANEL: dict[str, Any] = {
    "name": "tiny",
    "model": {"name": f"EleutherAI/{MODEL}"},
    "hook_name": HOOK,
    "dataset": {"path": "monology/pile-uncopyrighted"},
    "d_in": 64,
    "d_sae": 128,
    "l0": 8,
    "training_tokens": 8192,
}

SCORE = Metric("score", HIGHER)

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"suites": ["corr"]}, "'corr' is unknown; did you mean core"),
    ({"suites": [["core"]]}, "['core'] is not the name of a suite"),
    ({"suites": {1: {}}}, "1"),
    ({"suites": {"core": {"contxt_size": 1}}}, "'contxt_size' is not an option; did you mean"),
    ({"suites": {"core": {"context_size": 0}}}, "context_size: 0 is not"),
    ({"suites": {"core": {"context_size": math.nan}}}, "context_size: nan is not finite"),
    (
        {"suites": {"core": {"dataset": "no/such/file.jsonl"}}},
        "'no/such/file.jsonl' is neither",
    ),
    ({"suites": {"core": {"dataset": "text.jsonl"}}}, "'text.jsonl' is neither"),
    ({"suites": {"sparse_probing": {"dataset_names": ["bios"]}}}, "'bios' is unknown"),
    ({"suites": {"sparse_probing": {"k_values": [129]}}}, "129 is not between 1 and the 128"),
    ({"suites": {"autointerp": {"n_latents": 0}}}, "n_latents: 0 is not positive"),
    ({"suites": {"mdl": {"num_bins_values": [0]}}}, "num_bins_values: 0 is not a positive"),
    ({"suites": {"mdl": {"mse_epsilon_threshold": math.inf}}}, "inf is not finite"),
    ({"suites": {"meta_structure": {"k": 999}}}, "k: 999 is more than the 128 latents"),
    ({"suites": {"unlearning": {}}}, "SAEBench has prompts for"),
    ({"suites": {"ravel": {}}}, "is unknown to SAEBench's RAVEL"),
    ({"margins": {"core/ce_loss_score": -1}}, "core/ce_loss_score: -1 is not a positive"),
    ({"margins": {"core/ce_loss_score": 0}}, "core/ce_loss_score: 0 is not a positive"),
    ({"margins": {"core/ce_loss_score": math.nan}}, "nan"),
    ({"margins": {"core/ce_loss_score": math.inf}}, "inf"),
    ({"margins": {"core/ce_los_score": 0.1}}, "did you mean core/ce_loss_score"),
    ({"margins": {"corr/ce_loss_score": 0.1}}, "did you mean core"),
    ({"margins": {"core/l0": 0.1}}, "'core/l0' is no metric that verdicts are made of"),
    ({"margins": {"ce_los_score": 0.1}}, "did you mean ce_loss_score"),
    ({"primary": ["core/ev"]}, "'core/ev' is no metric"),
    ({"seed": -1}, "seed: -1"),
    ({"seed": 2**32}, "seed: 4294967296"),
    ({"llm_dtype": "float64"}, "llm_dtype: 'float64'"),
    ({"llm_batch_size": 0}, "llm_batch_size: 0"),
    ({"shared_gib": math.inf}, "shared_gib: inf"),
    ({"device": "gpu"}, "device: 'gpu' is not one"),
    ({"sed": 1}, "sed: is not a field; did you mean seed"),
    ({"margins": [1]}, "margins"),
]


@pytest.mark.parametrize(("evals", "named"), WRONG, ids=[named for _, named in WRONG])
def test_what_is_wrong_with_evals_is_found_before_training(
    evals: dict[str, Any], named: str, tmp_path: Path
) -> None:
    file = tmp_path / "panel.yaml"
    file.write_text(yaml.safe_dump({**PANEL, "evals": evals}))
    with pytest.raises(UserError) as caught:
        pipeline.train(file, tmp_path / "study")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "study").exists()


GOOD = [
    "core/ce_loss_score",
    "ce_loss_score",
    "*/explained_variance*",
    "ravel/*",
    "panel/explained_variance",
    "toy_chanin/recovered_share",
    "vision/explained_variance",
    "sparse_probing/sae_top_1_test_accuracy",
    "scr/scr_metric_threshold_20",
]


@pytest.mark.parametrize("pattern", GOOD)
def test_margins_of_metrics_that_there_are(pattern: str) -> None:
    assert EvalSpec(margins={pattern: 0.1}, primary=[pattern]).margins == {pattern: 0.1}


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)
FIELDS = st.sampled_from([*EvalSpec.__dataclass_fields__, "suite", ""])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(FIELDS, JUNK, max_size=2))
def test_any_section_is_a_spec_or_one_line(section: dict[str, Any]) -> None:
    try:
        spec = eval_spec_from_dict(section)
    except UserError as error:
        lines, known = str(error).splitlines(), True
    else:
        lines, known = [""], set(spec.suites) <= set(suite_names())
    assert len(lines) == 1
    assert known


def test_other_studies_have_no_evals(tmp_path: Path) -> None:
    file = tmp_path / "vision.yaml"
    file.write_text("evals: {suites: [core]}\n")
    with pytest.raises(UserError, match="evals: "):
        load_spec(file, VisionSpec)


def test_a_seed_that_changes_nothing_is_no_setting() -> None:
    def hashed(suite: str, seed: int) -> str:
        return settings_hash(suite, EvalSpec(suites={suite: {}}, seed=seed), {}, {})

    assert hashed("core", 1) == hashed("core", 42)
    assert hashed("meta_structure", 1) != hashed("meta_structure", 42)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tiny_hub: Path) -> None:
    del tiny_hub
    monkeypatch.setitem(suites._suites, "fake", FakeSuite)


@pytest.mark.usefixtures("fake")
def test_a_refused_evaluation_writes_nothing(tmp_path: Path) -> None:
    tiny_sae().save_model(tmp_path / "sae")
    config = tmp_path / "panel.yaml"
    config.write_text("evals: {suites: {fake: {fail_on: early}}}\n")
    with pytest.raises(UserError, match="fail_on: 'early' is refused"):
        pipeline.evaluate(tmp_path / "sae", out=tmp_path / "out", config=config)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("fake")
def test_settings_are_those_that_scores_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused call, an interrupted one and an edited file change nothing that is shown."""

    def run(seed: int, margin: float, **options: Any) -> None:
        given = EvalSpec(suites={"fake": options}, seed=seed, margins={"fake/score": margin})
        evaluate({"a": tiny_sae()}, given, tmp_path)

    def shown() -> tuple[Any, ...]:
        evals = settings_of(tmp_path, EvalStore(tmp_path).records())
        return evals["seed"], evals["margins"], evals["suites"]["fake"]["fail_on"]

    monkeypatch.setattr(FakeSuite, "metrics", (SCORE,))
    run(1, 0.5, fail_on="")
    assert shown() == (1, {"fake/score": 0.5}, "")
    before = (tmp_path / "evals" / "evals.yaml").read_bytes()
    with pytest.raises(UserError, match="early"):
        run(2, 0.9, fail_on="early")
    with pytest.raises(KeyboardInterrupt):
        run(2, 0.9, kill_on="a")
    assert (tmp_path / "evals" / "evals.yaml").read_bytes() == before
    text = before.decode().replace("seed: 1", "seed: 7").replace("0.5", "0.7")
    (tmp_path / "evals" / "evals.yaml").write_text(text)
    assert shown() == (1, {"fake/score": 0.5}, "")
    # Margins change no score, so that a result that is kept is judged by the new ones.
    run(1, 0.9, fail_on="")
    assert shown() == (1, {"fake/score": 0.9}, "")
    (record,) = EvalStore(tmp_path).records()
    assert record["seed"] == 1
    assert EvalStore(tmp_path).load("fake", "a") is not None


def test_a_suite_of_a_plugin_is_kept_and_no_other_runs_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "evals" / "evals.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump({"suites": {"theirs": {"x": 1}}}))
    assert stored_spec(tmp_path) is None  # for a report
    with pytest.raises(UserError, match=r"theirs: unknown here; .*--allow-plugins"):
        stored_spec(tmp_path, to_run=True)
    store_spec(tmp_path, eval_spec_from_dict({"suites": ["core"]}))
    stored = yaml.safe_load(path.read_text())["suites"]
    assert list(stored) == ["theirs", "core"]
    assert stored["theirs"] == {"x": 1}
    kept = stored_spec(tmp_path, to_run=True)
    assert kept is not None
    assert list(kept.suites) == ["core"]


@pytest.mark.parametrize("text", ["", "- core\n", "core\n"])
def test_a_file_without_fields_is_not_the_defaults(text: str, tmp_path: Path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml: holds no fields"):
        load_eval_spec(tmp_path / "c.yaml")


def test_what_transcoders_reconstruct_is_judged_though_no_suite_scores_it() -> None:
    probing = {"suites": {"sparse_probing_sae_probes": {}}}
    own = ["panel/explained_variance", "panel/ce_recovered"]
    assert primary_of(probing, transcoders=True) == own + primary_of(probing)
    assert primary_of({}, transcoders=True) == []  # then all are
    named = {**probing, "primary": ["panel/kl"]}
    assert primary_of(named, transcoders=True) == ["panel/kl"]
