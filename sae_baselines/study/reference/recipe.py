"""The panels around a reference: its own recipe, as far as it is recorded."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_lens import TopKTrainingSAE, Transcoder

from sae_baselines.baselines import get_baseline
from sae_baselines.controls import is_control
from sae_baselines.errors import UserError
from sae_baselines.study.reference.read import Reference
from sae_baselines.study.spec import (
    PER_TOKEN_NORMS,
    SET_BY_PANEL,
    ModelSpec,
    PanelSpec,
    PublishedSpec,
    has_integer_k,
    spec_from_dict,
)

# Baselines, the same SAE trained here, one that was never trained, and the SAE itself with its
# directions or its pairing broken.
DEFAULT_MEMBERS = (
    "trained",
    "frozen_decoder",
    "soft_frozen_decoder",
    "frozen_encoder",
    "random",
    "permuted_decoder",
    "permuted_pairing",
)
DEFAULT_SEEDS = 5

# What is answered to an option and a question; None where nobody answers.
Ask = Callable[[str, str], str | None]

# Fields of SAELens' runner config that a panel has under the same name.
_TRAINING = (
    "lr",
    "lr_scheduler_name",
    "adam_beta1",
    "adam_beta2",
    "train_batch_size_tokens",
    "dead_feature_window",
    "feature_sampling_window",
)
_OF_LENGTH = ("lr_warm_up_steps", "lr_decay_steps")
# Hyperparameters of the SAE that do not set its sparsity, which panels set themselves.
_OF_SAE = (
    "aux_loss_coefficient",
    "jumprelu_bandwidth",
    "lp_norm",
    "matryoshka_widths",
    "topk_threshold_lr",
)
# What a learning-rate schedule has besides its name.
_OF_SCHEDULE = ("lr_end", "n_restart_cycles")
_NORMALISED_HERE = ("none", "expected_average_only_in", *PER_TOKEN_NORMS)
_HARMLESS_KWARGS = {"center_writing_weights", "fold_ln", "dtype", "torch_dtype", "n_devices"}


@dataclass(frozen=True)
class CheckOptions:
    """What the user decides about a check; None leaves it to what is recorded.

    Attributes:
        tokens: Training tokens of each member.
        seeds: How many training seeds.
        members: Members of each panel.
        architecture: Base architecture of the baselines.
        model: Hub name or local folder of the language model.
        dataset: Hub name or local file of the text.
        dataset_config: Configuration of a Hub dataset.
        hook_name: Where the SAE reads.
        context_size: Tokens of a context.
        device: Torch device.
        overrides: Fields of `PanelSpec`, which win over everything else.
    """

    tokens: int | None = None
    seeds: int = DEFAULT_SEEDS
    members: tuple[str, ...] = DEFAULT_MEMBERS
    architecture: str | None = None
    model: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    hook_name: str | None = None
    context_size: int | None = None
    device: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A panel without its target L0, and what must be said about how it came about."""

    fields: dict[str, Any]
    notes: tuple[str, ...]


def recipe_of(reference: Reference, options: CheckOptions, ask: Ask | None = None) -> Recipe:
    """Everything a panel needs but the L0, which has to be measured.

    Args:
        reference: The SAE.
        options: The user's decisions.
        ask: Called for what is neither recorded nor given.

    Raises:
        UserError: Something is missing and nobody answers.
    """
    runner, notes = reference.runner, list(reference.notes)
    meta = {**runner, **{k: v for k, v in reference.metadata.items() if v is not None}}
    overridden = set(options.overrides)

    def decide(option: str, value: Any, recorded: Any, question: str) -> Any:
        if value is not None or recorded:
            return recorded if value is None else value
        answer = None if ask is None else ask(option, question)
        if answer is None:
            raise UserError(f"{option}: {question}; say it with --{option}")
        return answer

    model = decide(
        "model", options.model, meta.get("model_name"), "the SAE does not name its model"
    )
    hook = decide("hook", options.hook_name, meta.get("hook_name"), "the SAE names no hook")
    recorded_text = meta.get("dataset_path")
    dataset = str(
        decide("dataset", options.dataset, recorded_text, "the SAE does not name its text")
    )
    tokens = decide(
        "tokens",
        options.tokens or options.overrides.get("training_tokens"),
        reference.training_tokens,
        "how many tokens it was trained on is not recorded, and its baselines need a budget",
    )
    local = Path(dataset).exists()
    if recorded_text and dataset != recorded_text:
        notes.append(
            f"its config names the text {recorded_text}; here everything is trained and "
            f"measured on {Path(dataset).name if local else dataset}"
        )
    notes.append(
        "it may have seen text that is held out from the others, which favours it if at all"
    )
    members = list(options.members)
    of_pair: dict[str, Any] = {}
    if isinstance(reference.sae, Transcoder):
        of_pair = {
            "hook_name_out": reference.metadata["hook_name_out"],
            "d_out": reference.sae.cfg.d_out,
        }
        if options.members == DEFAULT_MEMBERS:
            members = [m for m in members if not is_control(m)]  # a transcoder has none
    panel: dict[str, Any] = {
        "name": study_name(reference),
        "model": _model(str(model), meta, notes),
        "hook_name": hook,
        **of_pair,
        "dataset": {
            "path": dataset,
            "name": options.dataset_config,
            "streaming": not local,
        },
        "architecture": reference.base,
        "d_sae": reference.sae.cfg.d_sae,
        "d_in": reference.sae.cfg.d_in,
        "seeds": list(range(options.seeds)),
        "members": members,
        "training_tokens": whole_number("tokens", tokens),
        "encoder_init": "fitted",
        "prepend_bos": _bos(meta, notes),
        "seqpos_slice": list(meta.get("seqpos_slice") or [None]),
        "exclude_special_tokens": _special(meta, notes),
        "normalize_activations": _normalisation(reference, notes),
        **{k: runner[k] for k in _TRAINING if runner.get(k) is not None},
        "sae": _sae_fields(reference),
    }
    context = options.context_size or meta.get("context_size")
    if context:
        panel["context_size"] = int(context)
    elif "context_size" not in overridden:
        notes.append("its context size is not recorded; 128 tokens are used")
    notes += _not_replicated(reference)
    if not runner and not {"lr", "train_batch_size_tokens"} <= overridden:
        notes.append(
            "its learning rate and batch size are not recorded; its baselines have this "
            "package's"
        )
    panel.update(_schedule(runner, panel["training_tokens"], reference.training_tokens))
    if options.device is not None:
        panel["device"] = options.device
    for name, value in options.overrides.items():
        known = panel.get(name)
        if isinstance(known, Mapping) and not isinstance(value, Mapping):
            raise UserError(f"{name}: {value!r} is not a mapping of fields")
        panel[name] = {**known, **value} if isinstance(known, Mapping) else value
    panel = {**_buffer(panel), **panel}
    if reference.training_tokens and reference.training_tokens != panel["training_tokens"]:
        notes.append(
            f"it was trained on {reference.training_tokens:,} tokens, the others here on "
            f"{panel['training_tokens']:,}"
        )
    return Recipe(panel, tuple(notes))


def spec_at(
    recipe: Recipe, reference: Reference, l0_measured: float, input_scale: float | None
) -> PanelSpec:
    """The panels at the SAE's own L0.

    Args:
        recipe: The rest.
        reference: The SAE.
        l0_measured: Mean number of active latents on held-out activations.
        input_scale: What is folded into its weights, or None.

    Raises:
        UserError: On the first field that is wrong.
    """
    base = reference.base
    target = _target(reference, base, l0_measured)
    notes = list(recipe.notes)
    if input_scale is not None:
        notes.append(
            "its config asks for activations of mean norm sqrt(d_in) and records no factor; "
            f"the factor measured here, {input_scale:.4g}, is folded into its weights"
        )
    if reference.l0 is not None and abs(reference.l0 - l0_measured) > 0.1 * reference.l0:
        notes.append(
            f"its L0 is recorded as {reference.l0:.4g}; on the text used here it is "
            f"{l0_measured:.4g}"
        )
    version = reference.metadata.get("sae_lens_training_version")
    facts = {
        "source": reference.shown,
        "weights_sha256": reference.weights_sha256,
        "architecture": reference.sae.cfg.architecture(),
        "base_architecture": base,
        "d_in": reference.sae.cfg.d_in,
        "d_sae": reference.sae.cfg.d_sae,
        "hook_name": recipe.fields["hook_name"],
        "model_name": ModelSpec(**recipe.fields["model"]).recorded_name,
        "l0_measured": l0_measured,
        "l0_recorded": reference.l0,
        "tokens_recorded": reference.training_tokens,
        "dataset_recorded": reference.metadata.get("dataset_path"),
        "notes": notes,
        "versions": {"sae-lens": str(version)} if version else {},
    }
    around = PublishedSpec(
        source=reference.source,
        weights_sha256=reference.weights_sha256,
        input_scale=input_scale,
        facts=facts,
    )
    fields = {"l0": target, **recipe.fields, "published": dataclasses.asdict(around)}
    return spec_from_dict(fields, where="check")


def _target(reference: Reference, base: str, l0: float) -> float:
    if has_integer_k(base):
        k = getattr(reference.sae.cfg, "k", None)
        return float(k if isinstance(k, int) else max(1, round(l0)))
    # It names folders; far finer than the 5 % within which members are compared.
    return float(f"{l0:.3g}")


def study_name(reference: Reference) -> str:
    """Name of the study around an SAE."""
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", reference.shown).strip("-.")
    return f"check-{slug}"[:80].rstrip("-.")


def _model(model: str, meta: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    recorded = meta.get("model_name")
    kwargs = dict(meta.get("model_from_pretrained_kwargs") or {})
    odd = sorted(set(kwargs) - _HARMLESS_KWARGS)
    if odd or kwargs.get("fold_ln"):
        named = ", ".join(odd or ["fold_ln"])
        notes.append(f"its model was loaded with {named}, which is not done here")
    loader = str(meta.get("model_class_name") or "HookedTransformer")
    if loader not in ("HookedTransformer", "AutoModelForCausalLM"):
        raise UserError(
            f"sae: its model is a {loader}, which panels cannot read; HookedTransformer and "
            "AutoModelForCausalLM they can"
        )
    return {
        "name": model,
        "loader": loader,
        # A folder's name says nothing elsewhere; the reference names its model.
        "label": str(recorded) if recorded and Path(model).is_dir() else None,
        "center_writing_weights": bool(kwargs.get("center_writing_weights", False)),
    }


def _bos(meta: Mapping[str, Any], notes: list[str]) -> bool:
    found = meta.get("prepend_bos")
    if found is None:
        notes.append("whether BOS was prepended is not recorded; here it is")
    return found is None or bool(found)


def _special(meta: Mapping[str, Any], notes: list[str]) -> bool:
    """Whether special tokens are left out; where that is not recorded, they are.

    At BOS many models have activations tens of times as long as elsewhere, which would decide
    EV. An SAE that never saw them must not be measured on them, and one that did is not judged
    worse without.
    """
    found = meta.get("exclude_special_tokens")
    if found is None:
        notes.append(
            "whether it was trained on special tokens such as BOS is not recorded; here they "
            "are left out for every SAE"
        )
    elif isinstance(found, list | tuple):
        notes.append(
            f"it was trained without the tokens {list(found)}; here without the tokenizer's "
            "special tokens"
        )
    return found is None or bool(found)


def _normalisation(reference: Reference, notes: list[str]) -> str:
    own = reference.sae.cfg.normalize_activations
    if own not in PER_TOKEN_NORMS:
        # Folded at export: how SAEs train, not what they are.
        trained = (reference.runner.get("sae") or {}).get("normalize_activations")
        return "none" if trained == "none" else "expected_average_only_in"
    if issubclass(get_baseline(f"seeded_{reference.base}").sae_class, TopKTrainingSAE):
        notes.append(
            f"it normalises each activation by itself ({own}), which SAELens cannot train a "
            f"{reference.base} SAE with; its baselines are trained on activations scaled by "
            "one factor"
        )
        return "expected_average_only_in"
    return own


def _sae_fields(reference: Reference) -> dict[str, Any]:
    config = get_baseline(f"seeded_{reference.base}").config_class
    known = {f.name for f in dataclasses.fields(config)}
    trained = reference.runner.get("sae") or {}
    details = reference.metadata.get("training_architecture_details") or {}
    recorded = {**details, **trained}
    found = {k: recorded[k] for k in _OF_SAE if k in known and recorded.get(k) is not None}
    if isinstance(reference.sae, Transcoder):
        return {"skip": hasattr(reference.sae, "W_skip"), **found}
    return {"apply_b_dec_to_input": reference.sae.cfg.apply_b_dec_to_input, **found}


def _not_replicated(reference: Reference) -> list[str]:
    """What is recorded of its training, differs from SAELens' default and is not taken over."""
    config = get_baseline(f"seeded_{reference.base}").config_class
    usual = {f.name: f.default for f in dataclasses.fields(config)}
    trained = reference.runner.get("sae") or {}
    if (trained.get("architecture") or reference.base) != reference.base:
        return []
    looked_at = {"normalize_activations", "rescale_acts_by_decoder_norm"}
    taken = {*_OF_SAE, "apply_b_dec_to_input", *(SET_BY_PANEL - looked_at)}
    odd = {
        name: value
        for name, value in trained.items()
        if name in usual and name not in taken and value != usual[name]
    }
    if odd.get("normalize_activations") in _NORMALISED_HERE:
        del odd["normalize_activations"]
    if reference.runner.get("lr_scheduler_name", "constant") != "constant":
        odd |= {k: reference.runner[k] for k in _OF_SCHEDULE if k in reference.runner}
    if not odd:
        return []
    named = ", ".join(f"{name}={value!r}" for name, value in sorted(odd.items()))
    return [f"recorded of its training and not taken over: {named}"]


def _schedule(runner: Mapping[str, Any], tokens: int, recorded: int | None) -> dict[str, int]:
    """Warm-up and decay take the share of training that they took."""
    share = tokens / recorded if recorded else 1.0
    return {k: round(runner[k] * share) for k in _OF_LENGTH if runner.get(k)}


def _buffer(panel: Mapping[str, Any]) -> dict[str, int]:
    """A shuffling buffer of at least two batches."""
    batch = panel.get("train_batch_size_tokens", 4096)
    stop = panel.get("context_size", 128)
    context = len(range(stop)[slice(*panel["seqpos_slice"])]) or 1
    return {"n_batches_in_buffer": max(64, -(-2 * batch // context))}


def whole_number(name: str, text: Any) -> int:
    """A count as people write it: 500_000_000, 5e8 or 500,000,000.

    Raises:
        UserError: It is none, or not above 0.
    """
    try:
        number = float(str(text).replace("_", "").replace(",", ""))
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf or number != int(number):
        raise UserError(f"{name}: {text!r} is not a whole number above 0")
    return int(number)


def described(spec: PanelSpec) -> list[str]:
    """What is checked, with which budget, and everything that must be said about it."""
    reference = spec.published
    assert reference is not None
    facts = reference.facts
    recorded = facts["tokens_recorded"]
    budget = f"{recorded:,}" if recorded else "not recorded"
    lines = [
        f"{facts['source']}: {facts['architecture']}, d_sae {facts['d_sae']:,}, "
        f"{facts['hook_name']} of {facts['model_name']}, L0 {facts['l0_measured']:.4g} on "
        "held-out text",
        f"Token budget: it {budget}; each of the others {spec.training_tokens:,}. "
        f"Baselines: {facts['base_architecture']} at L0 {spec.l0s[0]:g}, {len(spec.seeds)} "
        "seeds.",
    ]
    return lines + [f"- {note[0].upper()}{note[1:]}." for note in facts["notes"]]
