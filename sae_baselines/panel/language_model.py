"""The language model a panel reads activations from."""

import difflib
import tempfile
from pathlib import Path

import torch
from sae_lens.load_model import load_model
from transformer_lens import loading_from_pretrained
from transformer_lens.hook_points import HookedRootModule
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_baselines.errors import UserError
from sae_baselines.panel.spec import ModelSpec


def load_language_model(spec: ModelSpec, hook_name: str, device: str) -> HookedRootModule:
    """Load a model by Hub name or from a local folder, as SAELens would.

    HookedTransformer is loaded without processing, the way SAEBench loads it; weights are
    not centred, so that activations are the original model's.

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
            model = _from_folder(local, dtype, device)
        else:
            kwargs = {"center_writing_weights": False, "dtype": dtype}
            model = load_model(spec.loader, spec.name, device, kwargs)
    except (OSError, ValueError) as error:
        if "hook_names not found" in str(error):
            raise UserError(
                f"hook_name: {hook_name!r} is not a module of {spec.name}"
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"model.name: cannot load {spec.name!r}: {reason}") from error
    if hook_name not in model.hook_dict:
        near = difflib.get_close_matches(hook_name, list(model.hook_dict), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see model.hook_dict"
        raise UserError(f"hook_name: {hook_name!r} is not a hook of {spec.name}; {hint}")
    model.eval()
    return model


def _from_folder(folder: Path, dtype: torch.dtype, device: str) -> HookedRootModule:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    hf_model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=dtype)
    with tempfile.TemporaryDirectory(prefix="sae_baselines_") as scratch:
        # TransformerLens reads families off the name ("llama", "gemma") before it reads the
        # config, so the folder is shown to it under a neutral name.
        alias = Path(scratch) / "local_model"
        alias.symlink_to(folder.resolve(), target_is_directory=True)
        known: list[str] = vars(loading_from_pretrained)["OFFICIAL_MODEL_NAMES"]
        known.append(str(alias))
        try:
            return load_model(
                "HookedTransformer",
                str(alias),
                device,
                {
                    "hf_model": hf_model,
                    "tokenizer": tokenizer,
                    "center_writing_weights": False,
                    "dtype": dtype,
                },
            )
        finally:
            known.remove(str(alias))
