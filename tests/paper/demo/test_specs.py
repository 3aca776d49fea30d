"""The demo's panel, without its downloads."""

from pathlib import Path

import pytest

from sae_baselines.errors import UserError
from sae_baselines.paper.demo import specs
from sae_baselines.paper.demo.specs import demo_spec, middle_hook
from tests.tiny_model import save_tiny_model


def test_another_model_gets_its_own_middle_layer_and_tokenisation(tmp_path: Path):
    folder = save_tiny_model(tmp_path / "model")
    spec = demo_spec(model=str(folder), dataset="some/dataset", training_tokens=2048)
    assert spec.hook_name == "blocks.1.hook_resid_post"  # of three layers
    assert spec.prepend_bos
    assert spec.seqpos_slice == [None]
    assert spec.training_tokens == 2048
    assert [m.name for m in spec.member_specs] == [
        "trained",
        "frozen_decoder",
        "soft_frozen_decoder",
        "frozen_encoder",
    ]


@pytest.mark.parametrize(("emulated", "dtype"), [(False, "bfloat16"), (True, "float32")])
def test_the_dtype_is_one_that_is_fast_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulated: bool, dtype: str
):
    monkeypatch.setattr(specs, "emulates", lambda *_: emulated)
    folder = save_tiny_model(tmp_path / "model")
    assert demo_spec(model=str(folder), dataset="some/dataset").model.dtype == dtype


def test_a_model_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="model: cannot load"):
        middle_hook(str(tmp_path / "none"))
