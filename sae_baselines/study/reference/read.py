"""What a reference is, from its weights, its config and the files beside it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from sae_lens import SAE, Transcoder
from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.loading.pretrained_saes_directory import (
    get_pretrained_saes_directory,
    get_repo_id_and_folder_name,
)
from sae_lens.saes.sae import TrainingSAE

from sae_baselines.baselines import SEEDED, base_architectures, parse_name
from sae_baselines.controls.source import (
    check_class,
    hash_of_weights,
    load_sae,
    refuse_not_finite,
)
from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.files import ODD_FILES, parse_json, unreadable
from sae_baselines.provenance import samples_seen

# How SAELens marks, in a config's metadata, what an inference SAE was trained as.
_TRAINED_AS = "training_architecture"
# Ways of reading text that panels have not, with SAELens' defaults.
_NOT_REPLICATED: dict[str, Any] = {
    "disable_concat_sequences": False,
    "sequence_separator_token": "bos",
    "use_chat_formatting": False,
}


@dataclass(frozen=True)
class Reference:
    """A reference and everything that is recorded of it.

    Attributes:
        source: Where it is; a folder's path is absolute.
        shown: The same for reports: a folder's name alone.
        sae: On the CPU, as SAELens loads it.
        weights_sha256: Of its weights.
        base: Base architecture that its baselines have.
        metadata: SAELens' metadata.
        runner: The ``runner_cfg.json`` that SAELens' training runner leaves, or {}.
        training_tokens: Tokens it was trained on; None if that is not recorded.
        l0: Recorded L0; None if it is not.
        notes: What a reader must know, in sentences.
    """

    source: str
    shown: str
    sae: SAE[Any]
    weights_sha256: str
    base: str
    metadata: Mapping[str, Any]
    runner: Mapping[str, Any]
    training_tokens: int | None
    l0: float | None
    notes: tuple[str, ...] = field(default=())


def read_reference(source: str, architecture: str | None = None) -> Reference:
    """Load an SAE and read what is recorded of it.

    Args:
        source: SAELens folder, ``release:sae_id`` or ``user/repo:folder``.
        architecture: Base architecture of its baselines, where the config does not say what
            it was trained as.

    Raises:
        UserError: It cannot be loaded, or is of a kind that has no twins.
    """
    sae, where = load_sae(source)
    _refuse_unfit(sae, where)
    metadata = sae.cfg.metadata.to_dict()
    runner, notes = _runner_config(source, where)
    trained_as = metadata.get(_TRAINED_AS) or (runner.get("sae") or {}).get("architecture")
    base, more = _base(sae, str(trained_as or ""), architecture)
    notes += more
    dtype = str(next(iter(sae.state_dict().values())).dtype).removeprefix("torch.")
    if dtype != "float32":
        notes.append(f"its weights are {dtype}; everything is computed with them in float32")
    for name, usual in _NOT_REPLICATED.items():
        value = metadata.get(name, runner.get(name))
        if value is not None and value != usual:
            notes.append(
                f"it was trained with {name}={value!r}; here text is read with {usual!r}"
            )
    folder = Path(source).is_dir()
    return Reference(
        source=str(Path(source).resolve()) if folder else source,
        shown=Path(source).resolve().name if folder else source,
        sae=sae,
        weights_sha256=hash_of_weights(sae),
        base=base,
        metadata=metadata,
        runner=runner,
        training_tokens=_tokens(metadata, runner),
        l0=_recorded_l0(metadata, where),
        notes=tuple(notes),
    )


def _refuse_unfit(sae: SAE[Any], where: Mapping[str, Any]) -> None:
    if isinstance(sae, TrainingSAE):
        raise UserError(
            "sae: this is a training checkpoint, whose activation scale is not folded in yet; "
            "give the exported SAE (SAELens' save_inference_model)"
        )
    refuse_not_finite(sae, "sae")
    if isinstance(sae, Transcoder):
        _refuse_unfit_transcoder(sae, where)
        return
    try:
        check_class(type(sae))
    except UserError as error:
        reason = str(error).removeprefix("source: ")
        raise UserError(f"sae: no panel can be built around this SAE: {reason}") from error
    if sae.cfg.normalize_activations == "covariance_whitening":
        raise UserError(
            "sae: its config asks for whitened activations, but says not with which "
            "statistics; export it with SAELens, which folds them in"
        )
    if sae.cfg.metadata.hook_head_index is not None:
        raise UserError(
            f"sae: reads head {sae.cfg.metadata.hook_head_index} of "
            f"{sae.cfg.metadata.hook_name} alone, which panels cannot; use an SAE of all heads"
        )


_CROSS_LAYER = re.compile(r"(?:^|[/_ ])clt(?:[/_ ]|$)")
# In SAELens' list: an MLP's input behind the gain of its norm, where no hook is reached.
_BEHIND_THE_GAIN = (".hook_mlp_in", ".mlp.hook_in")


def _refuse_unfit_transcoder(sae: Transcoder, where: Mapping[str, Any]) -> None:
    if _is_cross_layer(where):
        raise UserError(
            "sae: this is one layer of a cross-layer transcoder, whose decoders into all "
            "layers SAELens adds up: what it writes stands for no layer's output. Only its "
            "latents mean something, and no baseline here has such"
        )
    metadata = sae.cfg.metadata
    if not metadata.hook_name_out:
        raise UserError(
            "sae: this is a transcoder, which writes in another space than it reads, and its "
            "metadata do not say where; write hook_name_out into the metadata of its cfg.json"
        )
    read = str(metadata.hook_name)
    if read.endswith(_BEHIND_THE_GAIN):
        block = read.removesuffix(".hook_mlp_in").removesuffix(".mlp.hook_in")
        raise UserError(
            f"sae: its hook_name is {read}, the input of the MLP behind the gain of the norm, "
            "which TransformerLens does not hand out; multiply the rows of W_enc (and the "
            f"columns of W_skip) by the model's {block}.ln2.w, set hook_name to "
            f"{block}.ln2.hook_normalized, and save it with SAELens' save_model"
        )
    if sae.cfg.normalize_activations != "none":
        raise UserError(
            f"sae: a transcoder with normalize_activations="
            f"{sae.cfg.normalize_activations!r} cannot be measured: SAELens says not how its "
            "output is scaled back; export it with the scale folded in"
        )


def _is_cross_layer(where: Mapping[str, Any]) -> bool:
    """Whether its name, or SAELens' list, says so."""
    release = get_pretrained_saes_directory().get(str(where.get("release")))
    loader = "" if release is None else str(release.conversion_func)
    return _CROSS_LAYER.search(f"{loader} {where.get('sae_id', '')}") is not None


# What SAELens' transcoders are trained as, where nothing says what they were.
_TRANSCODERS = {
    "transcoder": "transcoder_standard",
    "skip_transcoder": "transcoder_standard",
    "jumprelu_transcoder": "transcoder_jumprelu",
    "jumprelu_skip_transcoder": "transcoder_jumprelu",
}


def _base(sae: SAE[Any], recorded: str, asked: str | None) -> tuple[str, list[str]]:
    """Base architecture of the baselines, and what must be said about it.

    Args:
        sae: As exported.
        recorded: What it was trained as, or "".
        asked: What the user wants.
    """
    exported = str(sae.cfg.architecture())
    nearest = _TRANSCODERS.get(exported, exported)
    if asked is not None:
        if asked not in base_architectures():
            hint = did_you_mean(asked, list(base_architectures()))
            raise UserError(f"architecture: {asked!r} is unknown; {hint}")
        return asked, [f"its baselines are {asked}, as was asked; it is exported as {exported}"]
    parsed = parse_name(recorded)
    if parsed is not None:
        constraint, base = parsed
        if constraint is not SEEDED:
            return base, [f"it is itself a baseline: {recorded}"]
        recorded = base
    if recorded in base_architectures():
        return recorded, []
    if nearest not in base_architectures():
        hint = did_you_mean(exported, list(base_architectures()))
        raise UserError(
            f"sae: a {exported!r} SAE has no training architecture here; name the nearest with "
            f"--architecture ({hint})"
        )
    notes = []
    if recorded:
        notes.append(
            f"it was trained as {recorded}, which is not registered here; its baselines are "
            f"{nearest}, as it is exported (--architecture says otherwise)"
        )
    elif nearest == "transcoder_jumprelu":
        notes.append(
            "BatchTopK transcoders are exported as jumprelu_transcoder too and its config does "
            "not say what it was trained as; its baselines are transcoder_jumprelu "
            "(--architecture says otherwise)"
        )
    elif exported == "jumprelu":
        notes.append(
            "BatchTopK and Matryoshka SAEs are exported as jumprelu too and its config does "
            "not say what it was trained as; its baselines are jumprelu (--architecture says "
            "otherwise)"
        )
    return nearest, notes


def _runner_config(source: str, where: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """``runner_cfg.json`` beside the weights, or {}; and a note where that is not known."""
    if "folder" in where:
        path = Path(source) / RUNNER_CFG_FILENAME
        if not path.exists():
            return {}, []
    else:
        repo, folder = get_repo_id_and_folder_name(where["release"], where["sae_id"])
        try:
            path = Path(hf_hub_download(repo, f"{folder}/{RUNNER_CFG_FILENAME}"))
        except (LocalEntryNotFoundError, OSError) as error:
            if isinstance(error, EntryNotFoundError) and not isinstance(
                error, LocalEntryNotFoundError
            ):
                return {}, []  # as with most published SAEs; what is missing is asked for
            return {}, [
                f"the Hub could not be asked whether a {RUNNER_CFG_FILENAME} lies beside it"
            ]
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except ODD_FILES as error:
        why = unreadable(path, error, "save it again")
        raise UserError(
            f"sae: {RUNNER_CFG_FILENAME} beside it cannot be read: {why}"
        ) from error
    return (found if isinstance(found, dict) else {}), []


def _tokens(metadata: Mapping[str, Any], runner: Mapping[str, Any]) -> int | None:
    ours = metadata.get("sae_baselines")
    known = [
        runner.get("training_tokens"),
        samples_seen(ours) if isinstance(ours, Mapping) else None,
        metadata.get("training_tokens"),
    ]
    for value in known:
        if isinstance(value, int | float) and value > 0 and float(value).is_integer():
            return int(value)
    return None


def _recorded_l0(metadata: Mapping[str, Any], where: Mapping[str, Any]) -> float | None:
    value = metadata.get("l0")
    release = get_pretrained_saes_directory().get(str(where.get("release")))
    if value is None and release is not None:
        value = release.expected_l0.get(where["sae_id"])
    return float(value) if isinstance(value, int | float) and value > 0 else None
