"""The demo's panel."""

from pathlib import Path

from sae_baselines.demo.assets import prepare_model, prepare_text
from sae_baselines.panel.spec import PanelSpec, spec_from_dict


def demo_spec(
    *,
    model: str | None = None,
    dataset: str | None = None,
    hook_name: str | None = None,
    training_tokens: int | None = None,
) -> PanelSpec:
    """Four members at a middle layer, sized for two CPU cores.

    Args:
        model: Hub name or local folder; default SmolLM2-135M from a package registry.
        dataset: Hub name or local file; default English Wikipedia from a package registry.
        hook_name: Default: the middle layer's residual stream of SmolLM2.
        training_tokens: Default 204,800.

    Raises:
        AssetError: The default model or text cannot be obtained.
    """
    ours = model is None
    if model is None:
        model = str(prepare_model())
    if dataset is None:
        text = prepare_text()
        dataset = str(next(iter(sorted(Path(text).glob("*.parquet")))))
    return spec_from_dict(
        {
            "name": "demo",
            "model": {
                "name": model,
                "dtype": "bfloat16",
                "label": "HuggingFaceTB/SmolLM2-135M-Instruct" if ours else None,
            },
            "hook_name": hook_name or "blocks.9.hook_resid_post",
            "dataset": {"path": dataset},
            "architecture": "batchtopk",
            "expansion": 8,
            "l0": 32,
            "seeds": [0],
            "training_tokens": training_tokens or 204_800,
            "context_size": 128,
            "prepend_bos": not ours,
            # The first positions of SmolLM2 have enormous norms and swamp everything else.
            "seqpos_slice": [2, None] if ours else [None],
            "store_batch_size_prompts": 16,
            "n_batches_in_buffer": 128,
            "n_batches_for_norm_estimate": 4,
            "train_batch_size_tokens": 1024,
            "lr": 2e-3,
            "dead_feature_window": 100,
            "calibration_tokens": 24_192,
            "eval_tokens": 24_192,
            "ce_tokens": 2_016,
            "n_checkpoints": 4,
        },
        where="demo",
    )
