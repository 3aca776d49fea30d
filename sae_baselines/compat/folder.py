"""A SAELens folder as it is on disk: its config by SAELens' own conversion, and its tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
from safetensors import SafetensorError, safe_open

from sae_baselines.compat.saes import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from sae_baselines.errors import UserError, did_you_mean, one_line
from sae_baselines.files import failed, parse_json, unreadable

# What SAELens' loaders turn into other tensors, or leave out.
_CONVERTED = {"log_threshold": "threshold"}
_LEFT_OUT = ("scaling_factor", "init_pending_")
# What fields hold that this package reads, and where; null and what is left out are fine.
_OURS, _DETAILS = "metadata.sae_baselines", "metadata.training_architecture_details"
_FIELDS: dict[tuple[str, str], tuple[type, ...]] = {
    ("", "metadata"): (dict,),
    ("metadata", "sae_baselines"): (dict,),
    ("metadata", "training_architecture_details"): (dict,),
}
for _names, _tables, _types in (
    ("architecture dtype", ("",), (str,)),
    ("model_name hook_name training_architecture sae_lens_version", ("metadata",), (str,)),
    ("sae_lens_training_version", ("metadata",), (str,)),
    ("architecture base_architecture control scheme panel member", (_OURS,), (str,)),
    ("constraint base_architecture init_scheme normalize_activations", (_DETAILS,), (str,)),
    ("init_activations_path init_covariance_path", ("", _DETAILS), (str,)),
    ("init_scheme", ("",), (str,)),
    ("init_seed", ("", _OURS, _DETAILS), (int,)),
    ("samples_seen tokens_seen", (_OURS,), (int, float)),  # 5e8 is one
    ("training_tokens", ("metadata",), (int, float)),
    ("hook_head_index", ("metadata",), (int,)),
    ("l0", ("metadata",), (int, float)),
    ("l0_target", (_OURS,), (int, float)),
    ("tau encoder_init_scale", ("", _DETAILS), (int, float)),
):
    _FIELDS |= {(table, name): _types for table in _tables for name in _names.split()}
# What SAELens' code raises on contents that nobody thought of.
ODD_CONTENTS = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError),
    *(RuntimeError, MemoryError, OverflowError, SafetensorError),
)


def saved_config(folder: Path, name: str = SAE_CFG_FILENAME) -> dict[str, Any]:
    """``cfg.json`` of a SAELens folder, as SAELens reads it; empty if there is none.

    Configs from before SAELens 6 are flat and have other names; they are converted as SAELens
    converts them, so that an architecture, a model and a hook are what it loads.

    Raises:
        UserError: It cannot be read, or is no config.
    """
    path = folder / name
    if not path.is_file():
        return {}
    try:
        cfg = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {failed(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is damaged ({one_line(error, 200)})") from error
    if not isinstance(cfg, dict):
        raise UserError(f"{path}: is a {_kind(cfg)}, not the fields of a config")
    return _as_saelens_reads(cfg, path) if name == SAE_CFG_FILENAME else cfg


def check_fields(cfg: Mapping[str, Any], where: str | Path) -> None:
    """Whether fields of a config hold what they should.

    Raises:
        UserError: One does not.
    """
    for (table, name), types in _FIELDS.items():
        fields: Any = cfg
        for part in filter(None, table.split(".")):
            fields = fields.get(part) or {}
        value = fields.get(name)
        fits = isinstance(value, types) and not isinstance(value, bool)
        if value is not None and not fits:
            field = ".".join(filter(None, (table, name)))
            raise UserError(
                f"{where}: {field}: {_short(value)} is a {_kind(value)}, not a "
                f"{_KINDS[types[-1]]}"
            )


def _as_saelens_reads(cfg: dict[str, Any], path: Path) -> dict[str, Any]:
    check_fields(cfg, path)
    metadata = cfg.get("metadata") or {}
    for field in ("d_in", "d_sae"):
        value = cfg.get(field, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{path}: {field}: {_short(value)} is not a whole number above 0")
    try:
        converted = handle_config_defaulting(dict(cfg))
    except KeyError as error:
        known = [*SAE_CLASS_REGISTRY]
        hint = did_you_mean(str(cfg.get("architecture")), known)
        raise UserError(f"{path}: architecture: {error} is unknown; {hint}") from error
    except ODD_CONTENTS as error:
        raise UserError(f"{path}: SAELens cannot read it: {one_line(error, 200)}") from error
    merged = {**cfg, **converted}
    return {**merged, "metadata": {**metadata, **converted.get("metadata", {})}}


def check_tensors(folder: Path, cfg: Mapping[str, Any]) -> list[str]:
    """Names of tensors of a folder that an SAE of its config has not.

    Args:
        folder: With weights.
        cfg: Of `saved_config`.

    Raises:
        UserError: The file cannot be read, or lacks a tensor, or one has another shape.
    """
    path = folder / SAE_WEIGHTS_FILENAME
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"{folder}: is not an SAE: it has no {path.name}") from error
    except (SafetensorError, OSError) as error:
        why = unreadable(path, error, "save it again")
        raise UserError(f"{folder}: is not an SAE that SAELens can load: {why}") from error
    shapes = {
        _CONVERTED.get(k) or k: v for k, v in shapes.items() if not k.startswith(_LEFT_OUT)
    }
    architecture = str(cfg.get("architecture"))
    # A training checkpoint has the name of its training class, and tensors of its own.
    registries: tuple[Any, ...] = (SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY)
    of_classes = [
        _shapes_of(r[architecture], cfg, path) for r in registries if architecture in r
    ]
    if not of_classes:
        hint = did_you_mean(architecture, [*SAE_CLASS_REGISTRY])
        raise UserError(
            f"{folder / SAE_CFG_FILENAME}: architecture: {architecture!r} is unknown; {hint}"
        )
    wanted = next((s for s in of_classes if s == shapes), of_classes[0])
    if len(of_classes) > 1 and of_classes[1].keys() - of_classes[0].keys() & shapes.keys():
        wanted = of_classes[1]
    missing = sorted(wanted.keys() - shapes.keys())
    if missing:
        raise UserError(
            f"{path}: has no {', '.join(missing)}, which a {architecture} SAE has; it has "
            f"{', '.join(sorted(shapes)) or 'nothing'}"
        )
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise UserError(
                f"{path}: {name} has the shape {list(shapes[name])}, where d_in "
                f"{cfg.get('d_in')} and d_sae {cfg.get('d_sae')} of its config ask for "
                f"{list(shape)}"
            )
    return sorted(shapes.keys() - wanted.keys())


def _shapes_of(
    classes: tuple[Any, Any], cfg: Mapping[str, Any], path: Path
) -> dict[str, tuple[int, ...]]:
    """Of an SAE that takes no memory."""
    try:
        sae = classes[0](classes[1].from_dict({**cfg, "device": "meta"}))
        return {name: tuple(value.shape) for name, value in sae.state_dict().items()}
    except ODD_CONTENTS as error:
        raise UserError(
            f"{path.with_name(SAE_CFG_FILENAME)}: makes no SAE: {one_line(error, 200)}"
        ) from error


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Every tensor that contains NaN or infinity, in words."""
    found = []
    for name, tensor in tensors.items():
        n = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if n:
            share = f"{n:,} of {tensor.numel():,} numbers"
            found.append(f"{name} contains NaN or infinity ({share})")
    return found


_KINDS = {
    **{dict: "table", list: "list", str: "text", bool: "truth value"},
    **{int: "whole number", float: "number"},
}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "null")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
