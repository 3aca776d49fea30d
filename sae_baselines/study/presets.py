"""Ready panel specs: the paper's settings (Section 4), a small one, and the demo's."""

from typing import Any

from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.study.spec import PanelSpec, spec_from_dict

PAPER_L0S = [80, 115, 160, 225, 320]
PAPER_ARCHITECTURES = ("batchtopk", "jumprelu", "standard", "topk")

# Main text: covariance directions for the frozen decoder, isotropic for the others; the
# appendix also has the frozen ones the other way round.
_PAPER_MEMBERS = [
    "trained",
    "frozen_decoder:cov",
    "frozen_decoder",
    "soft_frozen_decoder",
    "frozen_encoder",
    "frozen_encoder:cov",
]

# The paper: 500 M tokens of OpenWebText, context 512, learning rate 2e-4, batch 4098 (sic),
# expansion 32. It names AdamW without a weight decay; SAELens trains with Adam.
_PAPER: dict[str, Any] = {
    "dataset": {"path": "Skylion007/openwebtext", "streaming": True},
    "expansion": 32,
    "l0": PAPER_L0S,
    "seeds": [0],
    "training_tokens": 500_000_000,
    "context_size": 512,
    # BOS activations are orders of magnitude larger than any other and would set the scale.
    "exclude_special_tokens": True,
    "train_batch_size_tokens": 4096,
    "lr": 2e-4,
    "members": _PAPER_MEMBERS,
    "autocast": True,
    "autocast_lm": True,
    "calibration_tokens": 131_072,
    "eval_tokens": 131_072,
    "n_checkpoints": 20,
    "max_panels_per_pass": 1,
}

_PAPER_HOOKS = {
    "gemma-2-2b-layer-12": ("google/gemma-2-2b", "blocks.12.hook_resid_post"),
    "gemma-2-2b-layer-19": ("google/gemma-2-2b", "blocks.19.hook_resid_post"),
    "llama-3-8b-layer-16": ("meta-llama/Meta-Llama-3-8B", "blocks.16.hook_resid_post"),
}


def _presets() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for hook, (model, hook_name) in _PAPER_HOOKS.items():
        for architecture in PAPER_ARCHITECTURES:
            name = f"{hook}-{architecture}"
            found[name] = {
                "name": name,
                "model": {"name": model, "dtype": "bfloat16"},
                "hook_name": hook_name,
                "architecture": architecture,
                **_PAPER,
            }
    found["pythia-70m"] = {
        "name": "pythia-70m",
        "model": {"name": "EleutherAI/pythia-70m-deduped"},
        "hook_name": "blocks.3.hook_resid_post",
        "dataset": {"path": "monology/pile-uncopyrighted", "streaming": True},
        "architecture": "batchtopk",
        "expansion": 16,
        "l0": [40],
        "seeds": [0, 1, 2],
        "training_tokens": 20_000_000,
        "exclude_special_tokens": True,
        "lr": 5e-4,
        "train_batch_size_tokens": 2048,
    }
    return found


def preset_names() -> list[str]:
    """Names that `preset` knows."""
    return list(_presets())


def preset(name: str) -> PanelSpec:
    """A ready spec.

    Raises:
        UserError: On an unknown name, with the nearest known ones.
    """
    presets = _presets()
    if name not in presets:
        raise UserError(f"preset: {name!r} is unknown; {did_you_mean(name, list(presets))}")
    return spec_from_dict(presets[name], where=name)
