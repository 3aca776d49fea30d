"""The language model a panel reads activations from."""

import contextlib
import dataclasses
import difflib
import io
import json
import logging
import re
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from sae_lens.load_model import HookedProxyLM, load_model
from transformer_lens.hook_points import HookedRootModule
from transformer_lens.loading_from_pretrained import get_official_model_name
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_baselines.compat.arithmetic import emulates
from sae_baselines.compat.models import growing_masks, known_as, official_name, set_rotary_base
from sae_baselines.errors import UserError, one_line
from sae_baselines.files import flaw_of, unreadable
from sae_baselines.reach import say_if_silent
from sae_baselines.study.redraw import RandomModel, redraw
from sae_baselines.study.spec import ModelSpec

logger = logging.getLogger("sae_baselines")

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_TOKENIZERS = ("tokenizer.*", "vocab.*", "*.model", "*.tiktoken", "merges.txt", "spiece.*")


@cache
def say_if_emulated(dtype: str, device: str) -> None:
    """Warn, once a process, of a dtype that a device has no instructions for.

    Args:
        dtype: The language model's: "float32", "bfloat16" or "float16".
        device: Torch device.
    """
    if emulates(getattr(torch, dtype), device):
        logger.warning(
            "%s has no instructions for %s: the language model may take tens of times as long "
            "as in float32; use float32 (model.dtype of a panel, llm_dtype of an evaluation)",
            device,
            dtype,
        )


@growing_masks()
def load_language_model(
    spec: ModelSpec, hook_name: str, device: str, drawn: RandomModel | None = None
) -> HookedRootModule:
    """Load a model by Hub name or from a local folder, as SAELens would.

    HookedTransformer is loaded without processing, the way SAEBench loads it; weights are
    not centred (unless the spec says so), so that activations are the original model's.

    Args:
        spec: The model.
        hook_name: Must be one of the model's hooks.
        device: Torch device.
        drawn: Draw its weights anew, before either loader sees them, so that both have the
            same random model; None for the model as it is.

    Raises:
        UserError: The model or hook does not exist, or the model cannot be loaded.
    """
    local = Path(spec.name)
    dtype = getattr(torch, spec.dtype)
    if local.exists():
        check_model_folder(local)
    say_if_silent([spec.name])
    say_if_emulated(spec.dtype, device)
    again = None
    if dtype != torch.float32:
        whole = dataclasses.replace(spec, dtype="float32")
        again = partial(load_language_model, whole, hook_name, device, drawn)
    try:
        if spec.loader == "AutoModelForCausalLM":
            tokenizer, hf_model = _whole_model(spec.name, dtype, drawn)
            # As SAELens' `load_model`, which does not say what weights are missing.
            model = HookedProxyLM(hf_model.to(device), tokenizer, hook_names=[hook_name])
        elif local.is_dir():
            center = spec.center_writing_weights
            model = _from_folder(local, dtype, device, center, drawn, again)
        else:
            kwargs: dict[str, Any] = {
                "center_writing_weights": spec.center_writing_weights,
                "dtype": dtype,
            }
            if drawn is not None:
                kwargs["tokenizer"], kwargs["hf_model"] = _whole_model(
                    hub_name(spec.name), dtype, drawn
                )
            model = load_model(spec.loader, spec.name, device, kwargs)
            if drawn is not None:
                _assert_same_model(model, kwargs["hf_model"].to(device), local, again)
    except UserError:
        raise
    except Exception as error:  # transformers and TransformerLens raise what comes
        if "hook_names not found" in str(error):
            raise UserError(
                f"hook_name: {hook_name!r} is not a module of {spec.name}"
            ) from error
        raise UserError(
            f"model.name: cannot load {spec.name!r}: {reason_of_model(error)}"
        ) from error
    if hook_name not in model.hook_dict:
        near = difflib.get_close_matches(hook_name, list(model.hook_dict), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see model.hook_dict"
        raise UserError(f"hook_name: {hook_name!r} is not a hook of {spec.name}; {hint}")
    model.eval()
    return model


def _config_of(model: Any, ours: str, theirs: str) -> int | None:
    """A number that TransformerLens and transformers call by names of their own."""
    found = getattr(getattr(model, "cfg", None), ours, None)
    if found is None:
        found = getattr(getattr(getattr(model, "model", None), "config", None), theirs, None)
    return found if isinstance(found, int) else None


def n_ctx_of(model: HookedRootModule) -> int | None:
    """The longest context that a model reads, where it says so."""
    return _config_of(model, "n_ctx", "max_position_embeddings")


def n_vocab_of(model: HookedRootModule) -> int | None:
    """How many token ids a model knows, where it says so."""
    return _config_of(model, "d_vocab", "vocab_size")


# Hooks that write to the residual stream as it is, which the unembedding reads.
_RESIDUAL = re.compile(r"hook_resid_(pre|mid|post)|hook_(attn|mlp)_out|\d+")


def unembedding(model: Any, hook_name: str) -> torch.Tensor | None:
    """What a direction at a hook adds to each token's logit, float32 ``[d_model, vocabulary]``.

    With the last norm's weights, where TransformerLens keeps them apart, and without its scale,
    which is another at each token: logits are relative to one another.

    Args:
        model: The language model.
        hook_name: Of the residual stream; at others a direction is none of the unembedding's.

    Returns:
        The map; None for other hooks, or where the model has no such matrix.
    """
    if not _RESIDUAL.fullmatch(hook_name.rsplit(".", 1)[-1]):
        return None
    weights = getattr(model, "W_U", None)
    if weights is None:
        head = getattr(getattr(model, "model", None), "get_output_embeddings", lambda: None)()
        return None if head is None else head.weight.detach().T.float()
    norm = getattr(getattr(model, "ln_final", None), "w", None)
    weights = weights.detach().float()
    return weights if norm is None else weights * norm.detach().float()[:, None]


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each of these tokens says, a space before it where it has one.

    A character whose bytes are spread over tokens stands with the first of them, and the others
    say nothing; bytes that are no character are one replacement character each.
    """
    texts = [_token_text(tokenizer, i) for i in ids]
    first = 0
    while first < len(texts):
        last = first
        while last < len(texts) and _BROKEN in texts[last]:
            last += 1
            if _BROKEN not in (whole := tokenizer.decode(list(ids[first:last]))):
                texts[first:last] = [whole, *[""] * (last - first - 1)]
                break
        first = max(last, first + 1)
    return texts


def _token_text(tokenizer: Any, token: int) -> str:
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    # Decoders leave out the space before the first word.
    raw = tokenizer.convert_ids_to_tokens(token)
    return f" {text}" if str(raw)[:1] == "\u2581" and text[:1] != " " else text


def check_model_folder(folder: Path, *, tokenizer: bool = True) -> None:
    """Refuse a folder whose files say themselves that they are none of a model.

    Args:
        folder: Of transformers.
        tokenizer: Whether it needs one.

    Raises:
        UserError: Names the file.
    """
    if not folder.is_dir():
        raise UserError(f"model.name: {folder} is a file; name the model's folder")
    again = "copy the model again, all files of it"
    for path in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")):
        try:
            flaw = flaw_of(path, ours=path.name == "config.json")
        except OSError as error:
            raise unreadable(path, error) from error
        if flaw is not None:
            raise UserError(f"model.name: {path} is damaged ({flaw}); {again}")
    for path in folder.glob("*.index.json"):
        told = json.loads(path.read_text(encoding="utf-8")).get("weight_map")
        for name in sorted(set(told.values())) if isinstance(told, dict) else []:
            if not (folder / str(name)).is_file():
                raise UserError(f"model.name: {folder / str(name)} is missing; {again}")
    if not (folder / "config.json").is_file():
        raise UserError(f"model.name: cannot load {folder}: it has no config.json; {again}")
    if tokenizer and not any(p for name in _TOKENIZERS for p in folder.glob(name)):
        raise UserError(
            f"model.name: cannot load {folder}: it has no tokenizer (tokenizer.json or the "
            f"like); {again}"
        )


def reason_of_model(error: Exception) -> str:
    """What another package says of a model that it cannot load, and what may help."""
    said = f"{type(error).__name__}: {one_line(error, 300)}"
    absent = re.search(r"has no attribute '(\w+)'", said)
    if absent is not None:
        name = absent[1]
        like = " (the value of its n_positions)" if name == "n_ctx" else ""
        return f"its config.json has no {name!r}; add it{like}"
    if re.search(r"(?i)mismatch|ignore_mismatched_sizes", said):
        return f"its config.json does not fit its weights: {said}"
    if isinstance(error, OSError | ValueError):
        return one_line(error, 300)
    return f"{said}; is its config.json whole?"


def hub_name(name: str) -> str:
    """A model's repository on the Hub: TransformerLens has short names for some."""
    try:
        return get_official_model_name(name)
    except ValueError:
        return name


def _whole_model(
    name: str | Path, dtype: torch.dtype, drawn: RandomModel | None = None
) -> tuple[Any, Any]:
    """Tokenizer and model of transformers, with no weight left to chance but as asked."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = _weights_of(name, dtype)
    if drawn is not None:
        full = model if dtype == torch.float32 else _weights_of(name, torch.float32)
        redraw(full, drawn)
        for weight, new in zip(model.parameters(), full.parameters(), strict=True):
            weight.data.copy_(new.data)
    return tokenizer, model


def _weights_of(name: str | Path, dtype: torch.dtype) -> Any:
    """A model of transformers, whole.

    Raises:
        UserError: Weights are missing.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        name, torch_dtype=dtype, output_loading_info=True
    )
    model, told = loaded
    if missing := sorted(told["missing_keys"]):
        raise UserError(
            f"model.name: the weights of {name} lack {len(missing)} tensors that its "
            f"config.json asks for, such as {missing[0]}; are they of one model?"
        )
    return model


def _from_folder(
    folder: Path,
    dtype: torch.dtype,
    device: str,
    center_writing_weights: bool,
    drawn: RandomModel | None,
    in_float32: Callable[[], Any] | None,
) -> HookedRootModule:
    tokenizer, hf_model = _whole_model(folder, dtype, drawn)
    with tempfile.TemporaryDirectory(prefix="sae_baselines_") as scratch:
        # TransformerLens reads families off the name ("llama", "gemma") before it reads the
        # config, so the folder is shown to it under a neutral name.
        alias = Path(scratch) / "local_model"
        alias.symlink_to(folder.resolve(), target_is_directory=True)
        kwargs = {
            "hf_model": hf_model,
            "tokenizer": tokenizer,
            "center_writing_weights": center_writing_weights,
            "dtype": dtype,
        }
        name = known_as(hf_model.config) or str(alias)
        # SAELens prints the name.
        with official_name(str(alias)), contextlib.redirect_stdout(io.StringIO()):
            model = load_model("HookedTransformer", name, device, kwargs)
    set_rotary_base(model, hf_model.config)
    _assert_same_model(model, hf_model.to(device), folder, in_float32)
    return model


@torch.no_grad()
def _assert_same_model(
    model: Any, hf_model: Any, folder: Path, in_float32: Callable[[], Any] | None
) -> None:
    """Stop unless the hooked model predicts what transformers' model predicts.

    Args:
        model: The hooked model.
        hf_model: Transformers'.
        folder: Where they are from.
        in_float32: Loads both once more and raises if they differ, where rounding alone may
            tell the two apart: random weights make much of it, and so does a loop in place of
            instructions. None: they are in float32.
    """
    generator = torch.Generator().manual_seed(0)
    length = min(32, n_ctx_of(model) or 32)
    tokens = torch.randint(hf_model.config.vocab_size, (1, length), generator=generator)
    tokens = tokens.to(next(hf_model.parameters()).device)
    expected = hf_model(tokens).logits.float().log_softmax(-1)
    if not expected.isfinite().all():
        raise UserError(
            f"model.name: {folder} predicts NaN or infinity; its weights are damaged, or too "
            "large for model.dtype"
        )
    found = model(tokens, return_type="logits").float().log_softmax(-1)
    divergence = float((expected.exp() * (expected - found)).sum(-1).mean())
    # bfloat16 rounding alone is of order 1e-3 nats (Gemma on a CPU that emulates it: .027); a
    # wrong position encoding above 0.1.
    if divergence < 0.02:
        return
    if in_float32 is None:
        raise UserError(
            f"model.name: TransformerLens' version of {folder.name} predicts otherwise than "
            f"transformers' (KL {divergence:.3g} nats); use model.loader=AutoModelForCausalLM"
        )
    in_float32()
