"""A published SAE in a study folder: a copy to measure, evaluate and make controls of."""

import json
from pathlib import Path
from typing import Any

from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata

from sae_baselines.controls.source import (
    hash_of_weights,
    load_sae,
    rebuilt,
)
from sae_baselines.errors import UserError
from sae_baselines.provenance import environment
from sae_baselines.study.folder import StudyFolder, write_provenance
from sae_baselines.study.spec import PUBLISHED, PanelSpec, PublishedSpec, StudySpec, spec_hash

# What its config and files record, and what the panels around it were trained on.
RECORD_FILE = "record.json"


def load_published(published: PublishedSpec) -> SAE[Any]:
    """Load it again and make sure that it is still the same.

    Raises:
        UserError: It cannot be loaded, or its weights are others by now.
    """
    sae = load_sae(published.source)[0]
    found = hash_of_weights(sae)
    if found != published.weights_sha256:
        raise UserError(
            f"published: the weights of {published.source} have changed since the study began "
            f"(SHA-256 {found[:12]}..., was {published.weights_sha256[:12]}...); use another "
            "folder"
        )
    return as_measured(sae, published.input_scale)


def as_measured(sae: SAE[Any], input_scale: float | None) -> SAE[Any]:
    """The SAE as it is measured and evaluated here.

    Args:
        sae: As SAELens loads it.
        input_scale: Factor of its inputs to fold into the weights, or None.

    Returns:
        A float32 copy on the CPU; SAEBench computes in float32 as well.
    """
    weights = {k: v.detach().cpu().float() for k, v in sae.state_dict().items()}
    copy = rebuilt(sae, weights, dtype="float32")
    if input_scale is not None:
        copy.fold_activation_norm_scaling_factor(input_scale)
    return copy


def keep_published(spec: StudySpec, folder: StudyFolder) -> None:
    """Put a copy of the published SAE into the study folder, unless it is there.

    Raises:
        UserError: As `load_published`.
    """
    published = spec.reference
    assert published is not None
    assert isinstance(spec, PanelSpec)
    if folder.has_published():
        return
    sae = load_published(published)
    sae.cfg.metadata = _metadata(sae.cfg.metadata, spec)
    facts = {
        "panel": PUBLISHED,
        "member": PUBLISHED,
        "base_architecture": spec.architectures[0],
        "l0_target": spec.l0s[0],
        "spec_hash": spec_hash(spec),
        "source": published.facts.get("source", published.source),
        "weights_sha256": published.weights_sha256,
        "input_scale": published.input_scale,
    }
    shown = Path(spec.dataset.path)
    known = {
        **published.facts,
        "training_tokens": spec.training_tokens,
        "dataset": shown.name if shown.exists() else spec.dataset.path,
    }
    with folder.new_published() as scratch:
        sae.save_model(scratch)
        (scratch / RECORD_FILE).write_text(json.dumps(known, indent=2))
        write_provenance(scratch, {**facts, **environment()})


def model_kwargs(spec: PanelSpec) -> dict[str, Any]:
    """What the SAEs record of how their model is loaded, beyond SAELens' default."""
    return {"center_writing_weights": True} if spec.model.center_writing_weights else {}


def _metadata(known: SAEMetadata, spec: PanelSpec) -> SAEMetadata:
    """Its own metadata; model and hook as the other members of the study name them."""
    metadata = SAEMetadata(**known.to_dict())
    metadata.model_name = spec.model.recorded_name
    metadata.hook_name = spec.hook_name
    if spec.hook_name_out is not None:
        metadata.hook_name_out = spec.hook_name_out
    # Whatever else its own names (a dtype, say) is not how the model is loaded here.
    metadata.model_from_pretrained_kwargs = model_kwargs(spec)
    return metadata
