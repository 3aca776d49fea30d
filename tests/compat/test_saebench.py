"""One contract per name of SAEBench (and of what it runs on): a failure says what moved."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_bench.sae_bench_utils import activation_collection
from sae_lens import JumpReLUSAE
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens import HookedTransformer
from transformers import PreTrainedTokenizerFast

from sae_baselines.compat import saebench as compat
from sae_baselines.compat.saebench_nulls import SCORED_BY_SCR
from sae_baselines.compat.saebench_ravel import sources_read_once
from sae_baselines.evals.registry import get_suite, suite_names
from sae_baselines.evals.suite import SAEBenchSuite
from tests.evals.tiny_hub import tiny_sae


@pytest.mark.parametrize("name", compat.NAMES)
def test_a_name_is_where_it_was(name: str) -> None:
    module = import_module(compat.NAMES[name])
    assert hasattr(module, name), f"{compat.NAMES[name]}.{name} moved; see compat/saebench.py"


@pytest.mark.parametrize("name", compat.CONFIGURATIONS)
def test_configurations_of_a_dataset_are_those_that_are_read(name: str) -> None:
    module = import_module("sae_bench.sae_bench_utils.dataset_utils")
    read = inspect.getsource(getattr(module, f"get_{name.split('/')[1]}_dataset"))
    assert set(re.findall(r'"(\w\w-\w\w)"', read)) == set(compat.CONFIGURATIONS[name])


@pytest.mark.parametrize("evaluation", compat.RUNNABLE)
def test_an_evaluation_is_run_as_before(evaluation: str) -> None:
    given = list(inspect.signature(compat.main_of(evaluation).run_eval).parameters)
    first = ["config", "selected_saes", "device"]
    assert given[:3] == first, f"sae_bench.evals.{evaluation}.main.run_eval takes {given}"


@pytest.mark.parametrize("name", suite_names())
def test_fields_that_are_set_per_call_are_saebenchs(name: str) -> None:
    suite = get_suite(name)
    if not isinstance(suite, SAEBenchSuite):
        return
    fields = {f.name for f in dataclasses.fields(compat.saebench(suite.config_name))}
    ours = {*suite.per_call, *suite.not_offered, *suite.positive}
    assert ours <= fields, f"{suite.config_name} has no {ours - fields}"


def test_core_takes_its_options() -> None:
    given = inspect.signature(compat.saebench("multiple_evals")).parameters
    wanted = {*get_suite("core").defaults(), "selected_saes", "output_folder", "device"}
    assert wanted <= set(given), f"multiple_evals no longer takes {wanted - set(given)}"


def test_absorption_takes_its_folders() -> None:
    main = compat.main_of("absorption")
    for name, wanted in (
        ("run_k_sparse_probing_experiment", {"experiment_dir", "probes_dir"}),
        (
            "run_feature_absortion_experiment",
            {"experiment_dir", "probes_dir", "sparse_probing_experiment_dir"},
        ),
    ):
        given = inspect.signature(getattr(main, name)).parameters
        assert wanted <= set(given), f"{name} no longer takes {wanted - set(given)}"
    assert main.HookedTransformer is HookedTransformer


def test_autointerp_is_observed_and_asked_through_its_names() -> None:
    main = compat.main_of("autointerp")
    assert hasattr(main, "OpenAI"), "evals.autointerp.main.OpenAI moved: judged_by"
    methods = (
        "gather_data",
        "get_scoring_prompts",
        "get_api_response",
        "parse_predictions",
        "score_predictions",
    )
    gone = [name for name in methods if not hasattr(main.AutoInterp, name)]
    made = inspect.signature(main.Example).parameters
    assert list(made) == ["toks", "acts", "act_threshold", "model"], "Example: judge_of"
    assert list(inspect.signature(main.Examples).parameters) == ["examples", "shuffle"]
    assert not gone, f"AutoInterp has no {gone}: observed_judge and the null floor"
    assert f'model="{compat.SAEBENCH_MODEL}"' in inspect.getsource(main)


def test_mdl_is_where_its_defects_are_read() -> None:
    assert not [d for d in compat.mdl_defects("cpu") if "not installed" in d]


def _patches(tmp_path: Path) -> dict[str, tuple[AbstractContextManager[Any], Any, str]]:
    autointerp, absorption = compat.main_of("autointerp"), compat.main_of("absorption")
    loader = compat.answered_loader(lambda *_, **__: None)
    return {
        "loader": (loader, HookedTransformer, "from_pretrained_no_processing"),
        "tokens": (compat.recorded_tokens(), ActivationsStore, "get_batch_tokens"),
        "latents": (compat.counted_latents(tiny_sae()), JumpReLUSAE, "encode"),
        "words": (compat.words_in_order(), PreTrainedTokenizerFast, "get_vocab"),
        "folders": (
            compat.absorption_in(tmp_path, tmp_path),
            absorption,
            "run_k_sparse_probing_experiment",
        ),
        "reads": (compat.absorption_reads(-6), HookedTransformer, "run_with_cache"),
        "sources": (
            sources_read_once(tmp_path / "kept"),
            activation_collection,
            "get_layer_activations",
        ),
        "observed": (compat.observed_judge(), autointerp, "AutoInterp"),
        "judge": (compat.judged_by("another"), autointerp, "OpenAI"),
    }


def _interrupted(patch: AbstractContextManager[Any], patched: Callable[[Any], bool]) -> None:
    with patch as opened:
        assert patched(opened)
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "name",
    [
        "loader",
        "tokens",
        "latents",
        "words",
        "folders",
        "reads",
        "sources",
        "observed",
        "judge",
    ],
)
def test_a_patch_is_undone_whatever_happens(name: str, tmp_path: Path) -> None:
    patch, owner, attribute = _patches(tmp_path)[name]
    before = inspect.getattr_static(owner, attribute)
    local = attribute in vars(owner)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(patch, lambda _: inspect.getattr_static(owner, attribute) is not before)
    assert inspect.getattr_static(owner, attribute) is before, f"{attribute} stayed patched"
    assert (attribute in vars(owner)) == local


def test_mdl_leaves_nothing_behind_whatever_happens() -> None:
    patch = compat.runnable_mdl(object(), "cpu", shim=True)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(patch, lambda m: hasattr(m, "config") and "cuda" in vars(torch.Tensor))
    assert "cuda" not in vars(torch.Tensor), "torch.Tensor.cuda stayed patched"
    assert not hasattr(import_module(compat.MDL), "config")


@pytest.mark.parametrize("architecture", ["jumprelu", "topk", "standard"])
def test_latents_are_counted_and_left_as_they_are(architecture: str) -> None:
    sae = tiny_sae(architecture=architecture)
    x = torch.randn(3, 5, sae.cfg.d_in, generator=torch.Generator().manual_seed(1))
    x[1, 2:] = 0  # as SAEBench hands over padding
    before, one = sae.encode(x), sae.encode(x[0, 0])
    with compat.counted_latents(sae) as encoded:
        assert torch.equal(sae.encode(x), before)
        assert torch.equal(sae.encode(x[0, 0]), one)
        sae.encode(x[:0])
    tokens = (x != 0).any(-1)
    active = int((before != 0).sum(-1)[tokens].sum()) + int((one != 0).sum())
    assert encoded.to_dict() == {"n": 12 + 1, "active": active}
    assert encoded.active > encoded.n
    sae.encode(x)
    assert encoded.n == 13, "counting went on"


def test_what_is_encoded_for_a_null_is_not_counted() -> None:
    sae = tiny_sae()
    x = torch.ones(2, sae.cfg.d_in)
    with compat.counted_latents(sae) as encoded:
        with compat.uncounted():
            sae.encode(x)
        assert encoded.n == 0
        sae.encode(x)
    assert encoded.n == 2


def test_ravel_loads_hooks_and_asks_through_its_names() -> None:
    """What compat/saebench_ravel.py replaces."""
    main = compat.main_of("ravel")
    instance = import_module("sae_bench.evals.ravel.instance")
    collection = import_module("sae_bench.sae_bench_utils.activation_collection")
    assert instance.RAVELFilteredDataset is main.RAVELFilteredDataset
    wanted: dict[Any, list[str]] = {
        collection.get_module: ["model", "layer_num"],
        instance.RAVELInstance.build_and_tokenize_prompts: ["self", "tokenizer"],
        main.RAVELFilteredDataset.load: ["load_path"],
    }
    for function, names in wanted.items():
        given = list(inspect.signature(function).parameters)
        assert given == names, f"{function.__name__} takes {given}"
    source = inspect.getsource(main)
    for name in (
        "LLM_NAME_MAP[config.model_name]",
        "AutoModelForCausalLM.from_pretrained(",
        "AutoTokenizer.from_pretrained(config.model_name)",
        "RAVELFilteredDataset.load(",
    ):
        assert name in source, f"evals.ravel.main: {name} moved"


def test_nulls_are_where_saebench_scores() -> None:
    """What compat/saebench_nulls.py wraps: by these names, called with these arguments."""
    scr_and_tpp = compat.main_of("scr_and_tpp")
    ravel = import_module("sae_bench.evals.ravel.intervention")
    absorption = import_module("sae_bench.evals.absorption.feature_absorption")
    calculator = import_module("sae_bench.evals.absorption.feature_absorption_calculator")
    wanted: dict[Any, list[str]] = {
        ravel.generate_batched_interventions: ["model", "mdbm", "tokenizer", "val_loader"],
        absorption.calculate_projection_and_cos_sims: ["calculator", "sae", "probe"],
        scr_and_tpp.perform_feature_ablations: [
            "probes",
            "sae",
            "sae_batch_size",
            "all_test_acts_BLD",
            "node_effects",
            "top_n_values",
            "chosen_classes",
            "probe_batch_size",
            "perform_scr",
        ],
        scr_and_tpp.get_scr_plotting_dict: ["class_accuracies", "llm_clean_accs"],
        scr_and_tpp.create_tpp_plotting_dict: ["class_accuracies", "llm_clean_accs"],
    }
    for function, first in wanted.items():
        given = list(inspect.signature(function).parameters)
        assert given[: len(first)] == first, f"{function.__name__} takes {given}"
    assert compat.main_of("ravel").intervention is ravel
    collection = import_module("sae_bench.sae_bench_utils.activation_collection")
    assert ravel.activation_collection is collection
    source = inspect.getsource(calculator.FeatureAbsorptionCalculator)
    for name in ("self._build_prompts(", "sae.encode(", "sae.W_dec", "run_with_cache("):
        assert name in source, f"FeatureAbsorptionCalculator: {name} moved"
    assert set(SCORED_BY_SCR) <= set(
        import_module("sae_bench.sae_bench_utils.dataset_info").PAIRED_CLASS_KEYS
    )


def test_what_the_probes_of_nulls_call_is_called_as_before() -> None:
    wanted = {
        "find_best_reg": {"X_train", "y_train", "X_test", "y_test", "penalty", "seed"},
        "get_sorted_indices": {"X_train_sae", "y_train", "normalize_fn"},
        "get_xy_traintest": {"num_train", "model_name", "model_cache_path", "seed"},
        "get_save_metrics_path": {"dataset", "hook_name", "reg_type", "setting"},
        "Activations": {"X_train", "X_test", "y_train", "y_test"},
        "create_meaned_model_activations": {"all_llm_activations_BLD"},
        "generate_sae_activations": {"sae", "setting", "dataset", "num_train", "frac", "seed"},
        "ensure_dataset_activations": {"model_cache_path", "device"},
        "train_probe_on_activations": {"train_activations", "test_activations", "select_top_k"},
        "get_sae_meaned_activations": {"all_llm_activations_BLD", "sae", "sae_batch_size"},
    }
    for name, arguments in wanted.items():
        given = set(inspect.signature(compat.saebench(name)).parameters)
        assert arguments <= given, f"{name} no longer takes {arguments - given}"


def test_what_is_encoded_can_be_seen_where_probes_are_trained() -> None:
    """sae-probes calls a name of its own module, SAEBench one of a module that it imports."""
    probes = inspect.getsource(import_module("sae_probes.run_sae_evals").run_sae_eval)
    assert "generate_sae_activations(" in probes
    main = inspect.getsource(compat.main_of("sparse_probing").run_eval_single_dataset)
    assert main.count("activation_collection.get_sae_meaned_activations(") == 2
