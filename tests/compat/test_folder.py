"""SAELens folders as they are: every generation of configs, and folders that are none."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import SAE
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sae_baselines.controls import make_control
from sae_baselines.errors import UserError
from sae_baselines.show import describe_sae
from sae_baselines.study.reference.read import read_reference
from sae_baselines_cli import app
from tests.helpers import D_IN, D_SAE, make_sae, randomise_

HOOK = "blocks.7.hook_resid_pre"
SIZES = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "torch.float32", "device": "cpu"}
MODEL = {"model_name": "gpt2-small", "context_size": 128, "prepend_bos": True}
# What SAELens wrote in each generation, by version: config, and what it loads it as.
GENERATIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "1, hook_point": (
        {**SIZES, **MODEL, "hook_point": HOOK, "hook_point_layer": 7, "use_ghost_grads": False},
        "standard",
        "standard",
    ),
    "2, normalize_activations a truth value": (
        {**SIZES, **MODEL, "hook_point": HOOK, "normalize_activations": False},
        "standard",
        "standard",
    ),
    "3, activation_fn_str": (
        {
            **SIZES,
            **MODEL,
            **{"hook_name": HOOK, "hook_layer": 7, "hook_head_index": None},
            **{"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 32}},
            **{"sae_lens_training_version": "3.22.2", "normalize_activations": "none"},
        },
        "topk",
        "topk",
    ),
    "4, architecture": (
        {
            **SIZES,
            **MODEL,
            **{"architecture": "gated", "hook_name": HOOK, "activation_fn_str": "relu"},
            **{"activation_fn_kwargs": {}, "finetuning_scaling_factor": False},
            "sae_lens_training_version": "4.4.5",
        },
        "gated",
        "gated",
    ),
    "5, jumprelu": (
        {
            **SIZES,
            **MODEL,
            **{"architecture": "jumprelu", "hook_name": HOOK, "activation_fn": "relu"},
            **{"neuronpedia_id": None, "model_from_pretrained_kwargs": {}},
            "sae_lens_training_version": "5.5.1",
        },
        "jumprelu",
        "jumprelu",
    ),
    "6, metadata": (
        {
            **SIZES,
            **{"architecture": "topk", "k": 32},
            "metadata": {**MODEL, "hook_name": HOOK, "sae_lens_version": "6.0.0"},
        },
        "topk",
        "topk",
    ),
}


def folder_of(folder: Path, cfg: Any, of: str = "standard") -> Path:
    """A SAELens folder with this config and the weights of an exported ``of``."""
    sae = make_sae(of, init_seed=0) if "_" in of else make_sae(of)
    randomise_(sae)
    sae.save_inference_model(folder)
    (folder / "cfg.json").write_text(cfg if isinstance(cfg, str) else json.dumps(cfg))
    return folder


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_config_of_any_generation_is_what_saelens_loads_it_as(
    tmp_path: Path, generation: str
) -> None:
    cfg, of, architecture = GENERATIONS[generation]
    folder = folder_of(tmp_path / "sae", cfg, of)
    loaded = SAE.load_from_disk(folder)
    assert loaded.cfg.architecture() == architecture  # the trap is SAELens' own reading
    told = describe_sae(folder)
    facts = told.facts
    assert (facts["architecture"], facts["d_in"], facts["d_sae"]) == (architecture, D_IN, D_SAE)
    assert (facts["model"], facts["hook"], facts["context_size"]) == ("gpt2-small", HOOK, 128)
    assert told.warnings == []
    reference = read_reference(str(folder))
    assert (reference.base, reference.metadata["hook_name"]) == (architecture, HOOK)
    control = make_control(folder, "permuted_decoder", seed=0)
    assert control.sae.cfg.architecture() == architecture
    assert control.sae.cfg.metadata.hook_name == HOOK


def test_saelens_still_converts_old_configs_in_one_place() -> None:
    old = {**SIZES, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 32}}
    new = handle_config_defaulting(old)
    assert (new["architecture"], new["k"]) == ("topk", 32), (
        "handle_config_defaulting moved; compat/folder.py reads every cfg.json through it"
    )


def written(folder: Path, **tensors: torch.Tensor | None) -> None:
    path = folder / "sae_weights.safetensors"
    kept = {**load_file(path), **tensors}
    save_file({name: value for name, value in kept.items() if value is not None}, path)


GOOD = GENERATIONS["6, metadata"][0] | {"architecture": "standard"}
ODD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "metadata a text": (
        lambda f: folder_of(f, {**GOOD, "metadata": "x"}),
        r"cfg\.json: metadata: 'x' is a text, not a table",
    ),
    "details a list": (
        lambda f: folder_of(f, {**GOOD, "metadata": {"sae_baselines": [1]}}),
        r"cfg\.json: metadata\.sae_baselines: \[1\] is a list, not a table",
    ),
    "a list": (lambda f: folder_of(f, []), r"cfg\.json: is a list"),
    "a number": (lambda f: folder_of(f, 3), r"cfg\.json: is a whole number"),
    "d_in a text": (
        lambda f: folder_of(f, {**GOOD, "d_in": "x"}),
        r"cfg\.json: d_in: 'x' is not a whole number above 0",
    ),
    "d_sae null": (
        lambda f: folder_of(f, {**GOOD, "d_sae": None}),
        r"cfg\.json: d_sae: None is not a whole number above 0",
    ),
    "d_sae huge": (
        lambda f: folder_of(f, {**GOOD, "d_sae": 10**12}),
        r"W_dec has the shape \[32, 16\].*d_sae 1000000000000.*ask for",
    ),
    "d_sae of another": (
        lambda f: folder_of(f, {**GOOD, "d_sae": 64}),
        r"W_dec has the shape \[32, 16\].*ask for \[64, 16\]",
    ),
    "architecture": (
        lambda f: folder_of(f, {**GOOD, "architecture": "standart"}),
        r"cfg\.json: architecture: 'standart' is unknown; did you mean standard",
    ),
    "dtype": (lambda f: folder_of(f, {**GOOD, "dtype": "float33"}), r"cfg\.json: makes no SAE"),
    "deep": (lambda f: folder_of(f, "[" * 100_000), r"cfg\.json: is damaged"),
    "twice": (
        lambda f: folder_of(f, f'{{"d_in": 99, {json.dumps(GOOD)[1:]}'),
        r"cfg\.json: is damaged \(the key 'd_in' is there twice",
    ),
    "latin": (
        lambda f: (folder_of(f, GOOD) / "cfg.json").write_bytes(b'{"a": "\xe9"}'),
        r"cfg\.json: is damaged",
    ),
    "no W_enc": (
        lambda f: written(folder_of(f, GOOD), W_enc=None),
        r"has no W_enc, which a standard SAE has; it has W_dec, b_dec, b_enc",
    ),
    "W_dec transposed": (
        lambda f: written(folder_of(f, GOOD), W_dec=torch.zeros(D_IN, D_SAE)),
        r"W_dec has the shape \[16, 32\]",
    ),
    "no safetensors": (
        lambda f: (folder_of(f, GOOD) / "sae_weights.safetensors").write_bytes(b"PK\3\4" * 99),
        r"sae_weights\.safetensors: is damaged",
    ),
    "cut short": (
        lambda f: (folder_of(f, GOOD) / "sae_weights.safetensors").write_bytes(
            (f / "sae_weights.safetensors").read_bytes()[:-40]
        ),
        r"sae_weights\.safetensors: is damaged",
    ),
}


@pytest.mark.parametrize("odd", ODD)
def test_a_folder_that_is_no_sae_is_one_line_everywhere(tmp_path: Path, odd: str) -> None:
    make, message = ODD[odd]
    folder = tmp_path / "sae"
    make(folder)
    for ask in (describe_sae, read_reference, lambda f: make_control(f, "permuted_decoder")):
        with pytest.raises(UserError, match=message) as said:
            ask(str(folder))
        assert "\n" not in str(said.value)


def test_nan_and_surplus_tensors_are_shown_and_refused_where_they_count(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "nan", GOOD)
    W_enc = load_file(folder / "sae_weights.safetensors")["W_enc"]
    W_enc[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    written(folder, W_enc=W_enc)
    odd = "W_enc contains NaN or infinity (3 of 512 numbers)"
    assert [w for w in describe_sae(folder).warnings if w.startswith(odd)]
    for ask in (read_reference, lambda f: make_control(f, "permuted_decoder")):
        with pytest.raises(UserError, match=re.escape(odd)):
            ask(str(folder))
    folder = folder_of(tmp_path / "surplus", GOOD)
    written(folder, extra=torch.zeros(2), adapter=torch.zeros(2))
    (warning,) = describe_sae(folder).warnings
    assert warning.startswith("its weights hold adapter, extra")
    for ask in (read_reference, lambda f: make_control(f, "permuted_decoder")):
        with pytest.raises(UserError, match="holds adapter, extra"):
            ask(str(folder))


def test_training_checkpoints_are_shown_with_the_tensors_that_they_have(tmp_path: Path) -> None:
    for name in ("soft_frozen_decoder_gated", "batchtopk", "topk", "frozen_encoder"):
        sae = make_sae(name, **({"target_l0": 4.0} if "gated" in name else {}))
        sae.save_model(tmp_path / name)
        warnings = describe_sae(tmp_path / name).warnings
        if name.startswith("soft_frozen"):  # not trained at all
            (unbound,) = warnings
            assert unbound.startswith("the cap never bound")
        else:
            assert warnings == []


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)


BASELINE = "frozen_decoder_topk"
TABLES: dict[tuple[str, ...], list[str]] = {
    (): ["architecture", "d_in", "dtype", "metadata", "normalize_activations", "k"],
    ("metadata",): [
        *("model_name", "hook_name", "l0", "context_size", "sae_lens_version"),
        *("dataset_path", "training_architecture", "sae_baselines", "hook_head_index"),
        *("training_tokens", "training_architecture_details", "exclude_special_tokens"),
    ],
    ("metadata", "sae_baselines"): [
        *("architecture", "base_architecture", "control", "scheme", "l0_target"),
        *("samples_seen", "tokens_seen", "init_seed", "panel"),
    ],
    ("metadata", "training_architecture_details"): [
        *("constraint", "base_architecture", "tau", "init_seed", "init_scheme"),
        *("encoder_init_scale", "normalize_activations"),
    ],
}


@settings(max_examples=150, deadline=None)
@given(
    field=st.sampled_from(
        [(*table, name) for table, names in TABLES.items() for name in names]
    ),
    value=JUNK,
)
def test_any_value_of_any_field_is_shown_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, field: tuple[str, ...], value: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "junk"
    if not folder.exists():
        sae = make_sae(BASELINE)
        sae.save_inference_model(folder)
        (folder / "kept.json").write_bytes((folder / "cfg.json").read_bytes())
    cfg = json.loads((folder / "kept.json").read_text())
    table = cfg
    for name in field[:-1]:
        table = table.setdefault(name, {})
    table[field[-1]] = value
    (folder / "cfg.json").write_text(json.dumps(cfg))
    told = CliRunner().invoke(app, ["show", str(folder)])
    assert told.exit_code == 0 or isinstance(told.exception, UserError), told.exception
    assert "\n" not in str(told.exception or "")
    line = ""
    try:
        read_reference(str(folder))
    except UserError as error:
        line = str(error)
    assert "\n" not in line


@pytest.mark.parametrize("tokens", [500_000_000, 5e8])
def test_a_count_may_be_written_as_a_float(tokens: float, tmp_path: Path) -> None:
    metadata: Any = GOOD["metadata"]
    metadata = {**metadata, "training_tokens": tokens}
    folder = folder_of(tmp_path, {**GOOD, "metadata": metadata})
    describe_sae(folder)
    assert read_reference(str(folder)).training_tokens == 500_000_000
