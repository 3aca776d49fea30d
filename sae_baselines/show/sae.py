"""What one SAE is, and how far it is from its start."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from safetensors.torch import load_file

from sae_baselines.baselines.cap import share_at_edge
from sae_baselines.baselines.constraint import CONSTRAINTS, VECTORS, held_side
from sae_baselines.compat.folder import check_tensors, not_finite, saved_config
from sae_baselines.controls.kinds import TRAINED, is_trained_control, kind_of
from sae_baselines.drift.cosines import drift_of
from sae_baselines.drift.start import Rows, saved_sae_rows, seeded_rows
from sae_baselines.errors import UserError
from sae_baselines.evals.target import constraint_of
from sae_baselines.files import read_json
from sae_baselines.provenance import samples_seen
from sae_baselines.stats.fitness import LEAST_BOUND
from sae_baselines.study.folder import PROVENANCE_FILE, STUDY_FILE, read_measurement
from sae_baselines.study.identity import (
    CAP_SHARE,
    COVARIANCE_FILE,
    WEIGHTS,
    above,
    identity_of,
)
from sae_baselines.study.measure import l0_matches
from sae_baselines.yaml_text import read_yaml

_WHITENED = "covariance_whitening"


@dataclass(frozen=True)
class Promise:
    """What a constraint promises, and whether the weights keep it.

    Attributes:
        text: The promise, in words.
        holds: None where it cannot be checked.
        reason: The number that decided, or why there is none.
    """

    text: str
    holds: bool | None
    reason: str


@dataclass(frozen=True)
class SAEDescription:
    """One SAE.

    Attributes:
        source: What was asked about.
        facts: Plain data, None where not recorded: ``architecture`` as exported,
            ``trained_as``, ``base_architecture``, ``constraint`` and ``constraint_words``,
            ``tau``, ``learned`` (by a frozen encoder), ``cap_bound_share`` (of directions
            that the cap holds), ``seed``, ``init_scheme``, ``model``, ``hook``, ``d_in``,
            ``d_sae``, ``context_size``, ``dataset``, ``tokens_seen``, ``l0_target``, ``l0``
            with ``l0_measured`` (on what), ``explained_variance``, ``versions``.
        start: Where it started, in words; None if that is not known.
        start_unknown: Why not.
        drift: ``facts`` of `sae_baselines.drift.cosines.drift_of` for "decoder" and "encoder".
        promise: What its constraint promises, and whether it holds; None if it promises
            nothing.
    """

    source: str
    facts: dict[str, Any]
    start: str | None
    start_unknown: str
    drift: dict[str, dict[str, Any] | None] | None
    promise: Promise | None
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "source": self.source,
            **self.facts,
            "start": self.start,
            "start_unknown": self.start_unknown or None,
            "drift": self.drift,
            "claim": None if self.promise is None else vars(self.promise),
            "warnings": self.warnings,
        }


def describe_sae(
    source: str | Path,
    sae: SAE[Any] | None = None,
    *,
    covariance: Path | None = None,
    l0_stated: float | None = None,
) -> SAEDescription:
    """Describe a SAELens folder, or an SAE that was loaded from elsewhere.

    Args:
        source: The folder, or what to call the SAE.
        sae: The SAE where ``source`` is not a folder.
        covariance: File with the covariance of an SAE that started with ``cov``; default: the
            one of the study that a folder is in.
        l0_stated: L0 that the publisher states.

    Raises:
        UserError: There is no SAE there, or it is damaged.
    """
    folder = Path(source) if sae is None else None
    if folder is not None:
        cfg = _config(folder)
        surplus = check_tensors(folder, cfg)
        now = saved_sae_rows(folder, str(folder))
        odd = not_finite(load_file(folder / SAE_WEIGHTS_FILENAME))
    else:
        assert sae is not None
        cfg, now = sae.cfg.to_dict(), _rows_of(sae)
        surplus, odd = [], not_finite(sae.state_dict())
    metadata = dict(cfg.get("metadata") or {})
    details = dict(metadata.get("training_architecture_details") or {})
    facts = _facts(cfg, metadata, details)
    if folder is not None:
        facts |= _measured(folder)
        facts["versions"] |= (read_json(folder / PROVENANCE_FILE) or {}).get("versions", {})
    elif l0_stated and facts["l0"] is None:
        facts |= {"l0": l0_stated, "l0_measured": "as SAELens' directory states it"}
    start, unknown = _start({**cfg, **details}, facts, folder, covariance)
    drift = None if start is None else _drift(now, start)
    promise = _promise(facts, drift, now.decoder, unknown)
    warnings = _warnings(facts, promise)
    if start is not None and facts["tau"] is not None:
        side = held_side(facts["constraint"])
        facts[CAP_SHARE] = share_at_edge(getattr(now, side), getattr(start, side), facts["tau"])
    warnings += _not_another(facts, folder)
    return SAEDescription(
        source=str(source),
        facts=facts,
        start=None if start is None else start.source,
        start_unknown=unknown,
        drift=drift,
        promise=promise,
        warnings=[*_odd(surplus, odd), *warnings],
    )


def _promise(
    facts: Mapping[str, Any],
    drift: Mapping[str, Mapping[str, Any] | None] | None,
    weights: torch.Tensor,
    unknown: str,
) -> Promise | None:
    """Compare a constraint with how far the weights are from their start."""
    constraint = CONSTRAINTS.get(str(facts["constraint"]))
    promised = constraint and constraint.promise(facts, _precision_of(weights))
    if promised is None:
        return None
    what = VECTORS[promised.side]
    moved = drift[promised.side] if drift is not None else None
    if moved is None:
        return Promise(promised.text, None, unknown or f"it has no {what} to compare")
    lost = moved["zero_norm"] + moved["not_finite"]
    if lost or not moved["n"]:
        return Promise(promised.text, False, f"{lost:,} {what} are zero or not finite")
    lowest = moved["quantiles"]["0"]
    return Promise(promised.text, lowest >= promised.least, f"least cosine {lowest:.7f}")


def _precision_of(weights: torch.Tensor) -> str:
    """The shortest format that holds these numbers: they may be stored in a longer one."""
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(weights.to(dtype).to(weights.dtype), weights):
            return str(dtype).removeprefix("torch.")
    return "float32"


def _config(folder: Path) -> dict[str, Any]:
    cfg = saved_config(folder)
    if not cfg:
        raise UserError(f"{folder}: is not an SAE of SAELens: it has no cfg.json")
    for name in ("d_in", "d_sae"):
        if name not in cfg:
            raise UserError(f"{folder / 'cfg.json'}: has no {name}; it is not an SAE's")
    return cfg


def _rows_of(sae: Any) -> Rows:
    decoder, encoder = getattr(sae, "W_dec", None), getattr(sae, "W_enc", None)
    if not isinstance(decoder, torch.Tensor):
        raise UserError(f"sae: a {sae.cfg.architecture()} SAE has no W_dec to look at")
    known = isinstance(encoder, torch.Tensor)
    return Rows(decoder.detach(), encoder.detach().T if known else None, "")


def _facts(
    cfg: Mapping[str, Any],
    metadata: Mapping[str, Any],
    details: Mapping[str, Any],
) -> dict[str, Any]:
    ours = dict(metadata.get("sae_baselines") or {})
    # A training checkpoint has in its config what an export has in its metadata.
    trained_as = metadata.get("training_architecture") or ours.get("architecture")
    checkpoint = trained_as is None and "init_seed" in cfg
    trained_as = cfg.get("architecture") if checkpoint else trained_as
    control = ours.get("control")
    constraint = control or details.get("constraint") or constraint_of(str(trained_as or ""))
    options = {name: details.get(name, cfg.get(name)) for name in ("tau", "learned")}
    l0 = metadata.get("l0")
    return {
        "architecture": cfg.get("architecture"),
        "trained_as": trained_as,
        "base_architecture": ours.get("base_architecture") or details.get("base_architecture"),
        "constraint": constraint,
        "constraint_words": in_words(constraint, trained_as, options),
        **options,
        "seed": details.get("init_seed", ours.get("init_seed", cfg.get("init_seed"))),
        "init_scheme": ours.get("scheme") or details.get("init_scheme", cfg.get("init_scheme")),
        "model": metadata.get("model_name"),
        "hook": metadata.get("hook_name"),
        "d_in": cfg["d_in"],
        "d_sae": cfg["d_sae"],
        "context_size": metadata.get("context_size"),
        "dataset": metadata.get("dataset_path"),
        "tokens_seen": samples_seen(ours),
        "l0_target": ours.get("l0_target"),
        "l0": l0,
        "l0_measured": None if l0 is None else _measured_on(ours),
        "explained_variance": None,
        "versions": {
            name: metadata[key]
            for name, key in (
                ("sae-lens", "sae_lens_version"),
                ("sae-lens (training)", "sae_lens_training_version"),
            )
            if metadata.get(key)
        },
    }


def _measured_on(ours: Mapping[str, Any]) -> str:
    """What the L0 in an SAE's metadata was measured on."""
    # Panels write theirs over SAELens', which is that of the last training batches.
    if "panel" in ours and ("l0_held_out" in ours or "tokens_seen" in ours):
        text = "held_out_documents" in ours or "tokens_seen" in ours
        return f"on held-out {'text' if text else 'activations'}, by its panel"
    return "at the end of training, by SAELens"


def in_words(
    constraint: str | None, trained_as: str | None, options: Mapping[str, Any] | None
) -> str:
    """What is fixed in an SAE and what learned."""
    control = kind_of(constraint or "")
    if control is not None:
        how = (
            "trained on something random" if is_trained_control(control.name) else "not trained"
        )
        return f"a control, {how}: {control.what}"
    if constraint in CONSTRAINTS:
        return CONSTRAINTS[constraint].in_words(options or {})
    if trained_as is None:
        return "none is recorded"
    return "none: everything was trained"


def _measured(folder: Path) -> dict[str, Any]:
    """What the panel measured on held-out tokens."""
    measured = read_measurement(folder) or {}
    names = ("l0", "l0_target", "explained_variance")
    facts = {name: measured[name] for name in names if name in measured}
    if "l0" in facts:
        facts["l0_measured"] = "of the exported SAE, on held-out activations"
    return facts


def _start(
    fields: dict[str, Any],
    facts: Mapping[str, Any],
    folder: Path | None,
    covariance: Path | None,
) -> tuple[Rows | None, str]:
    """The start, or why it is not known."""
    constraint = facts["constraint"] or ""
    if kind_of(constraint) is not None and not is_trained_control(constraint):
        return None, "it was not trained, so it has none"
    if fields.get("init_seed") is None:
        return None, (
            "its config names no init_seed; SAELens draws the start of its own architectures "
            "from the state of the global generator, which is not kept"
        )
    recorded = (fields, {} if folder is None else _study_spec(folder))
    if any(part.get("normalize_activations") == _WHITENED for part in recorded):
        return None, (
            "it was trained on whitened activations, and its export is not in that space"
        )
    if fields.get("init_scheme") == "cov":
        covariance = covariance or (None if folder is None else _covariance_of(folder))
        if covariance is None:
            return None, (
                "it started with the covariance of activations, which is not here; give "
                f"--covariance {COVARIANCE_FILE}, a file of the study it is from"
            )
        fields |= {"init_activations_path": None, "init_covariance_path": str(covariance)}
    try:
        return seeded_rows(fields), ""
    except (ValueError, OSError) as error:
        raise UserError(f"covariance: {error}") from error


def _drift(now: Rows, start: Rows) -> dict[str, dict[str, Any] | None]:
    drift = {"decoder": drift_of(now.decoder, start.decoder, "decoder").facts, "encoder": None}
    if now.encoder is not None and start.encoder is not None:
        drift["encoder"] = drift_of(now.encoder, start.encoder, "encoder").facts
    return drift


def _odd(surplus: list[str], lost: list[str]) -> list[str]:
    """What is wrong with the weights whatever they promise."""
    warnings = []
    if lost:
        warnings.append(f"{', '.join(lost)}; so will what it computes")
    if surplus:
        warnings.append(
            f"its weights hold {', '.join(surplus)}, which an SAE of its architecture has not; "
            "SAELens refuses to load it"
        )
    return warnings


def _warnings(facts: Mapping[str, Any], promise: Promise | None) -> list[str]:
    warnings = []
    if promise is not None and promise.holds is False:
        warnings.append(
            f"its config says {facts['constraint']}, but its weights do not: it promises "
            f"{promise.text}; {promise.reason}. Do not use it as a baseline (unless it was "
            "trained on whitened activations, which an export does not record)"
        )
    l0, target = facts["l0"], facts["l0_target"]
    held_out = str(facts["l0_measured"]).startswith("of the exported")
    if held_out and l0 and target and not math.isnan(target) and not l0_matches(l0, target):
        warnings.append(
            f"its L0 {l0:.4g} is more than 5 % off its target {target:g}; compare it with "
            "nothing at another L0"
        )
    return warnings


def _not_another(facts: Mapping[str, Any], folder: Path | None) -> list[str]:
    """Whether it is an SAE that its panel has under another name, or as good as one."""
    warnings = []
    share, what = facts.get(CAP_SHARE), VECTORS[held_side(facts["constraint"])]
    if share is not None and share < LEAST_BOUND:
        warnings.append(
            f"the cap never bound: at the end of training it holds {share:.2%} of the {what}, "
            f"fewer than {LEAST_BOUND:.0%}; no verdict is given against it"
        )
    trained = None if folder is None else folder.resolve().parent / TRAINED
    if folder is not None and trained is not None and folder.resolve() != trained:
        own, theirs = None, None
        with suppress(UserError):  # a neighbour that is damaged is no fault of this one
            own, theirs = (
                identity_of(f, read_measurement(f) or {})[WEIGHTS] for f in (folder, trained)
            )
        if own is not None and own == theirs:
            warnings.append(
                "it has the weights of its panel's trained SAE: nothing was held or frozen "
                "that training moved, and no verdict is given against it"
            )
    return warnings


def _covariance_of(folder: Path) -> Path | None:
    """The covariance that the study around a member keeps."""
    return above(folder, COVARIANCE_FILE)


def _study_spec(folder: Path) -> dict[str, Any]:
    """The spec of the study around a member; empty if there is none that can be read."""
    file = above(folder, STUDY_FILE)
    try:
        stored = read_yaml(file) if file is not None else {}
        return dict(stored.get("spec", {}))
    except (AttributeError, TypeError, ValueError):
        return {}
