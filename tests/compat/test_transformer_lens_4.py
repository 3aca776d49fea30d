"""What breaks on the day that SAELens allows TransformerLens 4, and what takes its place.

TransformerLens 4.0 has no HookedTransformer: models are TransformerBridges around those of
transformers. SAELens 6.54 keeps it out (its issue 738), and so does this package. When
`test_saelens_keeps_4_out` fails, the work is:

1. replace what `USES` lists, as it says (checked against the sources of 4.0.0);
2. load by ``TransformerBridge.boot_transformers`` in ``study/language_model.py``; what the
   bridge of 3.2 does already, and what it does not, is below;
3. count on other numbers: activations agree to float32 rounding, not bit for bit, so that
   results of before and after are not of one table (versions stand beside every result).
"""

import ast
import re
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.spec import ModelSpec
from tests.tiny_model import HOOK, save_tiny_model

ROOT = Path(__file__).parents[2]
# Module and name in TransformerLens 3: what is used of it, and what there is in 4.0.0.
USES = {
    ("transformer_lens", "HookedTransformer"): (
        "what SAEBench is handed, and the class that shares forward passes; removed: "
        "transformer_lens.model_bridge.TransformerBridge, once SAEBench takes one"
    ),
    ("transformer_lens.HookedTransformer", "Output"): (
        "logits and loss of one pass; removed with its module: a bridge gives a plain tuple"
    ),
    ("transformer_lens", "loading_from_pretrained"): (
        "a folder under an official name, Gemmas known by their sizes; removed, and needed no "
        "more: a bridge boots from a folder and reads its config"
    ),
    ("transformer_lens.loading_from_pretrained", "get_official_model_name"): (
        "aliases; moved to transformer_lens.supported_models"
    ),
    ("transformer_lens.components.abstract_attention", "AbstractAttention"): (
        "built with a mask that grows; removed, and needed no more: a bridge's attention is "
        "that of transformers, which has no mask of its own"
    ),
    ("transformer_lens.hook_points", "HookedRootModule"): (
        "an annotation; moved to transformer_lens itself. A bridge is none"
    ),
}
PIN = "transformer-lens"


def _imported() -> dict[tuple[str, str], set[str]]:
    """What the package imports of TransformerLens, and where."""
    found: dict[tuple[str, str], set[str]] = {}
    for file in (ROOT / "sae_baselines").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [(node.module, alias.name) for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [(alias.name, "") for alias in node.names]
            for name in names:
                if name[0].partition(".")[0] == "transformer_lens":
                    found.setdefault(name, set()).add(file.relative_to(ROOT).as_posix())
    return found


def _allowed(package: str) -> SpecifierSet:
    """Versions of TransformerLens that an installed package allows."""
    for line in requires(package) or ():
        requirement = Requirement(line)
        if requirement.name == PIN:
            return requirement.specifier
    return SpecifierSet()


def test_nothing_is_imported_that_the_table_does_not_have() -> None:
    imported = _imported()
    assert imported.keys() == USES.keys(), {k: imported[k] for k in imported.keys() - USES}


@pytest.mark.parametrize("use", USES, ids=".".join)
def test_what_is_imported_is_there(use: tuple[str, str]) -> None:
    assert hasattr(import_module(use[0]), use[1]), USES[use]


def test_saelens_keeps_4_out() -> None:
    assert not _allowed("sae-lens").contains("4.0.0"), (
        "SAELens allows TransformerLens 4: read this file's first lines"
    )


def test_this_package_does_not_allow_what_saelens_keeps_out() -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    line = re.search(rf'^ *"({PIN}[^"]*)",$', declared, re.MULTILINE)
    assert line is not None
    ours = Requirement(line[1]).specifier
    assert not ours.contains("4.0.0")
    assert ours.contains("3.2.1")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """One model twice: as it is loaded now, and as a bridge."""
    bridge = pytest.importorskip("transformer_lens.model_bridge").TransformerBridge
    folder = save_tiny_model(tmp_path_factory.mktemp("bridge") / "model")
    hooked = load_language_model(ModelSpec(name=str(folder)), HOOK, "cpu")
    return hooked, bridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)


_IDS = torch.randint(3, 20, (2, 16), generator=torch.Generator().manual_seed(0))


def _ablated(model: Any) -> torch.Tensor:
    def zero(x: torch.Tensor, hook: Any) -> torch.Tensor:
        del hook
        return torch.zeros_like(x)

    return model.run_with_hooks(_IDS, return_type="logits", fwd_hooks=[(HOOK, zero)])


# What panels and suites ask of a model: the same number from both.
ASKED: dict[str, Callable[[Any], torch.Tensor]] = {
    "activations": lambda m: m.run_with_cache(_IDS, names_filter=[HOOK])[1][HOOK],
    "activations, stopped": lambda m: m.run_with_cache(
        _IDS, names_filter=[HOOK], stop_at_layer=2
    )[1][HOOK],
    "logits": lambda m: m(_IDS, return_type="logits"),
    "loss per token": lambda m: m(_IDS, return_type="loss", loss_per_token=True),
    "logits with a hook": _ablated,
    "unembedding": lambda m: m.W_U,
    "weights of the last norm": lambda m: m.ln_final.w,
}


@pytest.mark.parametrize("what", ASKED)
def test_a_bridge_gives_what_is_asked_of_a_model(what: str, models: tuple[Any, Any]) -> None:
    with torch.no_grad():
        hooked, bridge = (ASKED[what](model) for model in models)
    torch.testing.assert_close(bridge, hooked, rtol=1e-4, atol=1e-4)


def test_a_bridge_has_the_hooks_and_sizes_by_the_names_that_are_read(
    models: tuple[Any, Any],
) -> None:
    hooked, bridge = models
    assert HOOK in bridge.hook_dict
    for name in ("n_ctx", "d_vocab", "d_model", "n_layers"):
        assert getattr(bridge.cfg, name) == getattr(hooked.cfg, name), name


def test_what_a_bridge_of_3_lacks(models: tuple[Any, Any]) -> None:
    hooked, bridge = models
    with torch.no_grad():
        _, cache = hooked.run_with_cache(_IDS, names_filter=[HOOK])
        hooked(cache[HOOK], start_at_layer=2)
        # Forward passes are shared by starting in the middle (study/shared_model.py): a bridge
        # shares none, so that suites are right and slower. 4.0 has start_at_layer again.
        with pytest.raises(NotImplementedError, match="start_at_layer"):
            bridge(cache[HOOK], start_at_layer=2)
        _, cache = bridge.run_with_cache(_IDS, names_filter=[HOOK])
    # Under a second name too: whoever takes the only entry of a cache must name it.
    assert set(cache.keys()) > {HOOK}
    # No table of sines to correct (compat.models.set_rotary_base): it reads the config's base.
    assert not hasattr(bridge.blocks[0].attn, "rotary_sin")
