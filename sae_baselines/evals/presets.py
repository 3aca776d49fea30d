"""How the ready panels are evaluated: the paper's four evaluations (Section 4)."""

from typing import Any

import yaml

_PAPER: dict[str, Any] = {
    "suites": {
        "core": {},
        "sparse_probing": {},
        # 200 random live latents, firing rate 1e-6 or more (of 2 M tokens: twice).
        "autointerp": {"n_latents": 200, "dead_latent_threshold": 2},
    },
    "llm_dtype": "bfloat16",
}
# RAVEL knows no other model of the paper's.
_RAVEL = "gemma-2-2b"


def preset_evals(name: str) -> dict[str, Any]:
    """The ``evals`` section of a preset.

    Args:
        name: A preset's name.
    """
    if name.startswith("pythia"):
        return {"suites": {"core": {}, "sparse_probing_sae_probes": {}}}
    if name.startswith(_RAVEL):
        return {**_PAPER, "suites": {**_PAPER["suites"], "ravel": {}}}
    return dict(_PAPER)


def preset_evals_yaml(name: str) -> str:
    """The section as YAML."""
    return yaml.safe_dump({"evals": preset_evals(name)}, sort_keys=False)
