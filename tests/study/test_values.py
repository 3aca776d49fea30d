"""No field takes a number, a name or a text that no study can use; each gets one line."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_baselines.errors import UserError
from sae_baselines.study import memory
from sae_baselines.study.engine import resolve_device
from sae_baselines.study.held_out import hook_width, study_data
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.memory import check_memory
from sae_baselines.study.patches.spec import VisionSpec
from sae_baselines.study.spec import PanelSpec, load_spec, spec_from_dict
from sae_baselines.study.synthetic.spec import ToySpec
from tests.tiny_model import tiny_panel, tiny_text

PANEL = tiny_panel(Path("model"), d_sae=64, expansion=None)
VISION = {
    "name": "v",
    "model": {"name": "m"},
    "hook_name": "h",
    "images": {"path": "p"},
    "d_sae": 64,
}
KINDS: list[tuple[Any, dict[str, Any]]] = [
    (PanelSpec, PANEL),
    (VisionSpec, VISION),
    (ToySpec, {}),
]
# What may hold anything: facts that are recorded, options that their own packages know.
FREE = ("facts", "models", "sae")
NUMBERS = (math.inf, -math.inf, math.nan, True, 10**400, "x", [[]], {"a": 1})


def _fields(kind: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a spec and of the specs in it, by its dotted name."""
    for name, hint in get_type_hints(kind).items():
        if name not in {f.name for f in dataclasses.fields(kind)} or name in FREE:
            continue
        inside = [t for t in (hint, *get_args(hint)) if dataclasses.is_dataclass(t)]
        yield before + name, hint
        for spec in inside:
            yield from _fields(spec, f"{before}{name}.")


def _with(data: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    first, _, rest = name.partition(".")
    inside = data.get(first)
    return (
        {**data, first: _with(inside if isinstance(inside, dict) else {}, rest, value)}
        if (rest)
        else {**data, first: value}
    )


def _refused(data: dict[str, Any], kind: Any) -> str:
    with pytest.raises(UserError) as caught:
        spec_from_dict(data, "panel.yaml", kind)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("kind", "data"), KINDS, ids=lambda k: getattr(k, "__name__", ""))
def test_no_number_of_any_field_may_be_one_that_no_study_can_use(kind: Any, data: Any):
    looked_at = 0
    for name, hint in _fields(kind):
        if not {int, float} & {hint, *get_args(hint)}:
            continue
        looked_at += 1
        whole = float not in {hint, *get_args(hint)}
        for value in (*NUMBERS, 2**64) if whole else NUMBERS:
            said = _refused(_with(data, name, value), kind)
            assert said.startswith(f"panel.yaml: {name}"), (name, value, said)
            assert len(said) < 400
    assert looked_at > 15


@pytest.mark.parametrize(("kind", "data"), KINDS, ids=lambda k: getattr(k, "__name__", ""))
def test_no_text_may_be_empty_or_hold_what_cannot_be_printed(kind: Any, data: Any):
    for name, hint in _fields(kind):
        if str not in {hint, *get_args(hint)} or name == "images.licence":
            continue
        for value in ("", " ", "a\0b", "a\nb", "\x1b[31m", "\ud800", "x" * 5000):
            assert name.split(".")[0] in _refused(_with(data, name, value), kind)


@pytest.mark.parametrize(
    "path",
    ["/data/My\N{NO-BREAK SPACE}Drive", "/data/\N{IDEOGRAPHIC SPACE}a", "/a\u200d\U0001f525"],
)
def test_spaces_and_signs_of_other_languages_are_text(path: str):
    assert spec_from_dict(_with(PANEL, "dataset.path", path)).dataset.path == path


def test_prose_may_have_lines_and_what_is_stored_stays_readable():
    licence = "Photographs: A.\nCC BY 4.0\n"
    data = _with(VISION, "images.licence", licence)
    assert spec_from_dict(data, kind=VisionSpec).images.licence == licence
    before = {**_with(PANEL, "dataset.path", "x" * 2000), "members": ["trained", "a", "A"]}
    before["members"] = [
        "trained",
        *({"constraint": "frozen_decoder", "label": n} for n in "aA"),
    ]
    assert spec_from_dict(before, stored=True).dataset.path == "x" * 2000
    for path in ("a\0b", "\x1b[31m", "\ud800"):
        with pytest.raises(UserError, match=r"dataset\.path"):
            spec_from_dict(_with(PANEL, "dataset.path", path), stored=True)


@pytest.mark.parametrize(("kind", "data"), KINDS, ids=lambda k: getattr(k, "__name__", ""))
def test_a_wrong_name_is_named_itself_at_every_depth(kind: Any, data: Any):
    places = {name.rpartition(".")[0] for name, _ in _fields(kind)}
    for place in places - {"members", "published"}:
        at = f"{place}." if place else ""
        said = _refused(_with(data, f"{at}lable", 1), kind)
        assert f"{at}lable: is not a field; " in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": [{"lable": "x"}]}, "members.0.lable: is not a field; did you mean label?"),
        ({"members": ["trained", {"constraint": 3}]}, "members.1.constraint: 3"),
        ({"l0": [4, "x"]}, "l0.1: 'x'"),
        ({"l0": [4.0000001, 4.0000002]}, "l0: [4.0000001, 4.0000002]: values repeat"),
        ({"architecture": ["topk", "topk"]}, "names repeat"),
        ({"seeds": [2**64]}, "seeds: [18446744073709551616]: is too large"),
        ({"seqpos_slice": [None, None, -1]}, "seqpos_slice: [None, None, -1] is not"),
        ({"seqpos_slice": [0, 1000]}, "1000 is beyond context_size, 32"),
        ({"dataset": {"path": "d", "shuffle_seed": -1}}, "dataset.shuffle_seed: -1"),
        ({"dataset": {"path": ""}}, "dataset.path: '': is empty"),
        ({"context_size": 6000}, "context_size: 6000 is more than all of training_tokens"),
        ({"store_batch_size_prompts": -1}, "store_batch_size_prompts: -1"),
        ({"n_batches_for_norm_estimate": -2}, "n_batches_for_norm_estimate: -2"),
        ({"n_checkpoints": 10**9}, "n_checkpoints: 1000000000"),
        (
            {"sae": {"aux_loss_coefficient": math.nan}},
            "aux_loss_coefficient: nan: use a f",
        ),
        ({"sae": {"aux_loss_coefficient": -1}}, "sae: aux_loss_coefficient: -1: use a finite"),
        ({"sae": {"aux_loss_coefficient": True}}, "aux_loss_coefficient: True: is a truth"),
        ({"expansion": math.inf, "d_sae": None}, "expansion: inf"),
    ],
)
def test_what_else_no_panel_may_say(change: dict[str, Any], message: str):
    assert message in _refused({**PANEL, **change}, PanelSpec)


@pytest.mark.parametrize(
    "labels", [["x" * 300], ["a", "A"], ["a/b"], ["../a"], ["a\n"], ["."], [" "], ["\x1b[0m"]]
)
def test_labels_name_folders_on_every_disk(labels: list[str]):
    members = [{"constraint": "frozen_decoder", "label": label} for label in labels]
    assert "members" in _refused({**PANEL, "members": ["trained", *members]}, PanelSpec)


def test_options_that_yaml_takes_for_text_are_numbers():
    spec = spec_from_dict({**PANEL, "lr": "1e-3", "sae": {"aux_loss_coefficient": "1e-2"}})
    assert (spec.lr, spec.sae["aux_loss_coefficient"]) == (1e-3, 1e-2)


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["path", "name", "label", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=60)
@given(st.sampled_from([f.name for f in dataclasses.fields(PanelSpec)]), _PLAIN)
def test_any_yaml_is_a_panel_or_refused_in_one_line(field: str, value: Any):
    if field == "plugins":
        return
    text = yaml.safe_dump({**PANEL, field: value}, allow_unicode=True)
    said = ""
    try:
        spec_from_dict(yaml.safe_load(text), "panel.yaml")
    except UserError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize("device", ["meta", "cpu:5", "cuda:99", "nosuch", "", "mps"])
def test_a_device_that_holds_no_numbers_is_refused(device: str):
    with pytest.raises(UserError, match=r"device: .* cannot be used: .*; use auto"):
        resolve_device(device)


def test_memory_is_said_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "memory_of", lambda _="cpu": 2**30)
    spec = spec_from_dict({**PANEL, "d_sae": 100_000, "seeds": [0, 1]})
    # 8 members train at once: 4 x 32 x 100,000 x 4 bytes each, 48.8 MiB.
    check_memory(spec, 32)
    with pytest.raises(UserError, match=r"100,000 at d_in 320 .*488 MiB .*3.81 GiB for "):
        check_memory(spec, 320)
    wide = spec_from_dict({**PANEL, "d_sae": None, "expansion": 1e15})
    with pytest.raises(UserError, match=r"d_sae: .* PiB"):
        wide.check_hook(32)
    long = spec_from_dict({**PANEL, "calibration_tokens": 10**10})
    with pytest.raises(UserError, match=r"calibration_tokens, eval_tokens: .* take 1.16 TiB"):
        long.check_hook(32)
    with pytest.raises(UserError, match="d_sae: 10,000,000,000 at d_in 100"):
        check_memory(ToySpec(d_sae=10**10), 100)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Any:
    spec = spec_from_dict(tiny_panel(model_folder))
    return load_language_model(spec.model, spec.hook_name, "cpu")


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("blocks.1.attn.hook_pattern", r"gives an array of shape \(1, 4, 3, 3\) for 3 tokens"),
        ("blocks.1.attn.hook_attn_scores", "an SAE reads a vector a token"),
        ("blocks.1.attn.hook_result", "is never reached as the model is loaded"),
        ("blocks.1.hook_mlp_in", "is never reached"),
    ],
)
def test_a_hook_without_a_vector_a_token_is_refused(model: Any, hook: str, message: str):
    with pytest.raises(UserError, match=message):
        hook_width(model, hook)


@pytest.mark.parametrize(
    ("hook", "d_in"),
    [
        ("blocks.1.attn.hook_z", 32),
        ("blocks.1.attn.hook_k", 32),
        ("blocks.1.mlp.hook_post", 64),
    ],
)
def test_heads_count_as_one_vector(model: Any, hook: str, d_in: int):
    assert hook_width(model, hook) == d_in


def test_a_context_longer_than_the_models_is_refused(model: Any, model_folder: Path):
    spec = spec_from_dict(tiny_panel(model_folder, context_size=65))
    with pytest.raises(UserError, match="context_size: 65 is more than the 64 tokens"):
        study_data(spec, model, tiny_text(10), "cpu")


def test_a_panel_in_utf_16_is_refused_with_a_remedy(tmp_path: Path):
    path = tmp_path / "panel.yaml"
    path.write_text(yaml.safe_dump(PANEL), encoding="utf-16")
    with pytest.raises(UserError, match="UTF-16"):
        load_spec(path)
