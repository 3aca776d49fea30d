"""From a reference to a study around it, ready to be trained."""

import dataclasses
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from transformer_lens.hook_points import HookedRootModule

from sae_baselines.controls.latents import measured_l0
from sae_baselines.errors import UserError
from sae_baselines.study.data import load_text
from sae_baselines.study.engine import resolve_device
from sae_baselines.study.folder import STUDY_FILE, load_study
from sae_baselines.study.held_out import Data, study_data
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.reference.member import as_measured
from sae_baselines.study.reference.read import Reference, read_reference
from sae_baselines.study.reference.recipe import (
    Ask,
    CheckOptions,
    Recipe,
    recipe_of,
    spec_at,
    study_name,
)
from sae_baselines.study.spec import PanelSpec

logger = logging.getLogger("sae_baselines")


@dataclass(frozen=True)
class Prepared:
    """A study around a reference.

    Attributes:
        spec: What to train.
        folder: Study folder.
        model: The language model, where it was loaded to measure L0.
    """

    spec: PanelSpec
    folder: Path
    model: HookedRootModule | None


def prepare_check(
    source: str,
    options: CheckOptions | None = None,
    out: str | Path | None = None,
    ask: Ask | None = None,
) -> Prepared:
    """Read a reference, measure its L0 and write down the panels around it.

    The baselines have its d_sae, hook, L0, text and, as far as these are recorded, its
    context, learning rate, batch size and normalisation. Nothing is written.

    Args:
        source: SAELens folder, ``release:sae_id`` or ``user/repo:folder``.
        options: The user's decisions.
        out: Study folder; default ``studies/check-<name>``. If a study of this SAE is there,
            its L0 is not measured again.
        ask: See `recipe_of`.

    Returns:
        For `train_study`.

    Raises:
        UserError: The SAE cannot be loaded or has no twins; something it does not
            record was not given; it does not fit the model or is dead on the text.
    """
    options = options or CheckOptions()
    with warnings.catch_warnings():
        # SAELens' remark on a missing scaling factor; the factor is measured below.
        warnings.filterwarnings("ignore", message="norm_scaling_factor not found")
        warnings.filterwarnings("ignore", message=r"\s*This SAE has non-empty model_from_pre")
        reference = read_reference(source, options.architecture)
    folder = Path(out) if out is not None else Path("studies") / study_name(reference)
    stored = _stored(folder, reference)
    if stored is not None and stored.published is not None:
        # As its text was split and members trained, which older versions did otherwise.
        then = {"held_out_spread": stored.held_out_spread, "recipe": stored.recipe}
        kept = {**then, **options.overrides}
        options = dataclasses.replace(options, overrides=kept)
        recipe = recipe_of(reference, options, _answers_of(stored))
        l0 = float(stored.published.facts["l0_measured"])
        spec = spec_at(recipe, reference, l0, stored.published.input_scale)
        return Prepared(spec, folder, None)
    recipe = recipe_of(reference, options, ask)
    l0, input_scale, model = _measure(recipe, reference)
    return Prepared(spec_at(recipe, reference, l0, input_scale), folder, model)


def _stored(folder: Path, reference: Reference) -> PanelSpec | None:
    """The study of this SAE that is in the folder already, if one is."""
    if not (folder / STUDY_FILE).exists():
        return None
    stored = load_study(folder)[0]
    around = stored.published
    if around is None or around.weights_sha256 != reference.weights_sha256:
        raise UserError(
            f"out: {folder} holds another study; name a new folder with --out, or remove it"
        )
    return stored


def _answers_of(stored: PanelSpec) -> Ask:
    """What was answered when the study began is not asked again."""
    answers = {
        "model": stored.model.name,
        "hook": stored.hook_name,
        "dataset": stored.dataset.path,
        "tokens": str(stored.training_tokens),
    }
    return lambda option, _: answers[option]


def read_text(recipe: Recipe, reference: Reference) -> tuple[PanelSpec, HookedRootModule, Data]:
    """The model, and the held-out text that an SAE is measured on.

    Returns:
        A spec that says of the text what the study's will, the model, and what it reads.

    Raises:
        UserError: Model or text cannot be read, or do not fit.
    """
    # Any valid L0 will do for this.
    spec = spec_at(recipe, reference, 1.0, None)
    spec = dataclasses.replace(spec, published=None, members=["trained"])
    device = resolve_device(spec.device)
    text = load_text(spec.dataset)
    model = load_language_model(spec.model, spec.hook_name, device)
    return spec, model, study_data(spec, model, text, device)


def measured_at(
    reference: Reference, activations: torch.Tensor
) -> tuple[SAE[Any], float | None]:
    """The SAE as it is measured here, and the factor of its inputs that was folded into it.

    Args:
        reference: The SAE.
        activations: ``[n, d_in]``, held out.

    Raises:
        UserError: Its weights are not finite.
    """
    scale = None
    if reference.sae.cfg.normalize_activations == "expected_average_only_in":
        scale = activations.shape[1] ** 0.5 / float(activations.norm(dim=-1).mean())
    sae = as_measured(reference.sae, scale)
    if not all(bool(torch.isfinite(w).all()) for w in sae.state_dict().values()):
        raise UserError("sae: its weights contain NaN or infinity")
    return sae, scale


def _measure(
    recipe: Recipe, reference: Reference
) -> tuple[float, float | None, HookedRootModule]:
    _, model, data = read_text(recipe, reference)
    activations = data.held_out.calibration
    sae, scale = measured_at(reference, activations)
    l0 = measured_l0(sae, activations)
    if not 0 < l0 < sae.cfg.d_sae / 2:
        raise UserError(
            f"sae: {l0:.4g} of its {sae.cfg.d_sae} latents are active on this text on "
            "average; is it the model, hook and text that it was trained on?"
        )
    logger.info("L0 on %d held-out activations: %.4g", len(activations), l0)
    return l0, scale, model
