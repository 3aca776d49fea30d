"""A tiny model and text on disk, and SAEs that somebody else might have published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata

from sae_baselines.study import ModelSpec
from sae_baselines.study.language_model import load_language_model
from tests import tiny_model as tiny_model_module
from tests.tiny_model import D_MODEL, HOOK, save_tiny_model, tiny_text

MODEL_NAME = "somebody/tiny"
D_SAE = 4 * D_MODEL

# A check that is not interrupted needs no checkpoint.
QUICK: dict[str, Any] = {**tiny_model_module.QUICK, "n_checkpoints": 0}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    tiny_text().to_json(path)
    return path


@pytest.fixture(scope="session")
def activations(tiny_model: Path) -> Callable[[str], torch.Tensor]:
    """Activations of a hook, ``[n, 32]``, read without this package's panel."""
    model: Any = load_language_model(ModelSpec(name=str(tiny_model)), HOOK, "cpu")

    def read(hook: str) -> torch.Tensor:
        texts = tiny_text()["text"][:60]
        tokens = model.to_tokens(texts, prepend_bos=True)[:, :32]
        _, cache = model.run_with_cache(tokens, names_filter=[hook])
        return cache[hook].flatten(2).flatten(0, 1).detach()

    return read


def make_published(
    x: torch.Tensor,
    architecture: str = "jumprelu",
    hook: str = HOOK,
    l0: float = 6.0,
    row_norms: bool = False,
    metadata: dict[str, Any] | None = None,
    **options: Any,
) -> SAE[Any]:
    """An SAE that reconstructs something: tied random directions, thresholds of its own.

    Args:
        x: ``[n, d_in]`` what its encoder reads, after its own normalisation.
        architecture: Of the export.
        hook: Recorded in it.
        l0: On ``x``.
        row_norms: Decoder rows of different length, taken up by the encoder.
        metadata: More of it.
        options: Config fields.
    """
    generator = torch.Generator().manual_seed(7)
    rows = torch.randn(D_SAE, x.shape[1], generator=generator)
    rows /= rows.norm(dim=1, keepdim=True)
    fields: dict[str, Any] = {
        "architecture": architecture,
        "d_in": x.shape[1],
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "metadata": SAEMetadata(
            **{
                "model_name": MODEL_NAME,
                "hook_name": hook,
                "context_size": 32,
                "prepend_bos": True,
                "dataset_path": "somebody/text",
                **(metadata or {}),
            }
        ).to_dict(),
        **({"k": round(l0)} if architecture == "topk" else {}),
        **options,
    }
    sae: Any = SAE.from_dict(fields)
    mean = x.mean(dim=0)
    lengths = torch.linspace(0.5, 2, D_SAE)[:, None] if row_norms else torch.ones(D_SAE, 1)
    with torch.no_grad():
        sae.W_dec.copy_(rows * lengths)
        sae.W_enc.copy_((rows / lengths).T)
        sae.b_dec.copy_(mean)
        if not sae.cfg.apply_b_dec_to_input:
            sae.b_enc.sub_(mean @ sae.W_enc)
        pre = (x - mean) @ sae.W_enc
        cut = torch.quantile(pre.flatten()[:500_000].clamp(min=0), 1 - l0 / D_SAE)
        if architecture == "jumprelu":
            # Not one threshold for all, as in Gemma Scope.
            sae.threshold.copy_(cut * torch.linspace(0.8, 1.2, D_SAE))
        elif architecture == "standard":
            sae.b_enc.sub_(cut)
        elif architecture == "gated":
            sae.b_gate.sub_(cut)
    return sae
