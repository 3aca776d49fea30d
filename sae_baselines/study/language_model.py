"""The language model a panel reads activations from."""

import contextlib
import difflib
import io
import tempfile
from pathlib import Path
from typing import Any

import torch
from sae_lens.load_model import load_model
from transformer_lens.hook_points import HookedRootModule
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_baselines.compat.models import official_name, set_rotary_base
from sae_baselines.errors import UserError, one_line
from sae_baselines.study.spec import ModelSpec


def load_language_model(spec: ModelSpec, hook_name: str, device: str) -> HookedRootModule:
    """Load a model by Hub name or from a local folder, as SAELens would.

    HookedTransformer is loaded without processing, the way SAEBench loads it; weights are
    not centred (unless the spec says so), so that activations are the original model's.

    Args:
        spec: The model.
        hook_name: Must be one of the model's hooks.
        device: Torch device.

    Raises:
        UserError: The model or hook does not exist, or the model cannot be loaded.
    """
    local = Path(spec.name)
    dtype = getattr(torch, spec.dtype)
    try:
        if spec.loader == "AutoModelForCausalLM":
            kwargs = {"torch_dtype": dtype}
            model = load_model(spec.loader, spec.name, device, kwargs, [hook_name])
        elif local.is_dir():
            model = _from_folder(local, dtype, device, spec.center_writing_weights)
        else:
            kwargs = {"center_writing_weights": spec.center_writing_weights, "dtype": dtype}
            model = load_model(spec.loader, spec.name, device, kwargs)
    except (OSError, ValueError) as error:
        if "hook_names not found" in str(error):
            raise UserError(
                f"hook_name: {hook_name!r} is not a module of {spec.name}"
            ) from error
        reason = one_line(error, 300)
        raise UserError(f"model.name: cannot load {spec.name!r}: {reason}") from error
    if hook_name not in model.hook_dict:
        near = difflib.get_close_matches(hook_name, list(model.hook_dict), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see model.hook_dict"
        raise UserError(f"hook_name: {hook_name!r} is not a hook of {spec.name}; {hint}")
    model.eval()
    return model


def _config_of(model: Any, ours: str, theirs: str) -> int | None:
    """A number that TransformerLens and transformers call by names of their own."""
    found = getattr(getattr(model, "cfg", None), ours, None)
    if found is None:
        found = getattr(getattr(getattr(model, "model", None), "config", None), theirs, None)
    return found if isinstance(found, int) else None


def n_ctx_of(model: HookedRootModule) -> int | None:
    """The longest context that a model reads, where it says so."""
    return _config_of(model, "n_ctx", "max_position_embeddings")


def n_vocab_of(model: HookedRootModule) -> int | None:
    """How many token ids a model knows, where it says so."""
    return _config_of(model, "d_vocab", "vocab_size")


def _from_folder(
    folder: Path, dtype: torch.dtype, device: str, center_writing_weights: bool
) -> HookedRootModule:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    hf_model: Any = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=dtype)
    with tempfile.TemporaryDirectory(prefix="sae_baselines_") as scratch:
        # TransformerLens reads families off the name ("llama", "gemma") before it reads the
        # config, so the folder is shown to it under a neutral name.
        alias = Path(scratch) / "local_model"
        alias.symlink_to(folder.resolve(), target_is_directory=True)
        kwargs = {
            "hf_model": hf_model,
            "tokenizer": tokenizer,
            "center_writing_weights": center_writing_weights,
            "dtype": dtype,
        }
        # SAELens prints the alias.
        with official_name(str(alias)), contextlib.redirect_stdout(io.StringIO()):
            model = load_model("HookedTransformer", str(alias), device, kwargs)
    set_rotary_base(model, hf_model.config)
    _assert_same_model(model, hf_model.to(device), folder)
    return model


@torch.no_grad()
def _assert_same_model(model: Any, hf_model: Any, folder: Path) -> None:
    """Stop unless the hooked model predicts what transformers' model predicts."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(hf_model.config.vocab_size, (1, 32), generator=generator)
    tokens = tokens.to(next(hf_model.parameters()).device)
    expected = hf_model(tokens).logits.float().log_softmax(-1)
    found = model(tokens, return_type="logits").float().log_softmax(-1)
    divergence = float((expected.exp() * (expected - found)).sum(-1).mean())
    # bfloat16 rounding alone is of order 1e-3 nats; a wrong position encoding above 0.1.
    if not divergence < 0.02:
        raise UserError(
            f"model.name: TransformerLens' version of {folder.name} predicts otherwise than "
            f"transformers' (KL {divergence:.3g} nats); use model.loader=AutoModelForCausalLM"
        )
