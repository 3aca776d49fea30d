"""What is patched in SAEBench's RAVEL so that it runs on any language model, on any prompts.

`any_model` changes no number of the models that SAEBench knows, `sources_read_once` no number
at all; `own_prompts` is for prompts that are not SAEBench's. tests/compat has the contracts.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from sae_baselines.compat.saebench import kept_tensors, main_of
from sae_baselines.errors import UserError

_COLLECTION = "sae_bench.sae_bench_utils.activation_collection"
_INSTANCE = "sae_bench.evals.ravel.instance"


@contextmanager
def any_model(name: str, where: str | Path) -> Iterator[None]:
    """While open, SAEBench's RAVEL runs on a language model that it does not know.

    The name is on its map of names. Blocks are found in models of any class, and one that
    returns a tensor looks to SAEBench's hooks like one that returns a tuple. SAEBench lets
    weights take gradients that nothing uses, and goes back through blocks below the edit, half
    the time of a step; in float32 it does not here. In bfloat16 it does: without, torch
    multiplies on a CPU by other kernels, which take four times as long (torch 2.13).

    Args:
        name: Of the model, for SAEBench's JSON.
        where: Name on the Hub or folder that it is loaded from.
    """
    main = main_of("ravel")
    names: dict[str, str] = main.LLM_NAME_MAP

    def tokenizer(_: str, **given: Any) -> Any:
        return stock_tokenizer.from_pretrained(str(where), **given)

    def model(_: str, **given: Any) -> Any:
        loaded = stock_model.from_pretrained(str(where), **given)
        return loaded.requires_grad_(loaded.dtype != torch.float32)

    stock_tokenizer, stock_model = main.AutoTokenizer, main.AutoModelForCausalLM
    replaced: dict[str, Any] = {
        "AutoTokenizer": SimpleNamespace(from_pretrained=tokenizer),
        "AutoModelForCausalLM": SimpleNamespace(from_pretrained=model),
    }
    with (
        patch.dict(names, {name: names.get(name, name)}),
        patch.multiple(main, **replaced),
        patch.object(import_module(_COLLECTION), "get_module", _block_of),
    ):
        yield


class _Block:
    """A block whose forward hooks see a tuple, as SAEBench's expect, whatever it returns."""

    def __init__(self, block: torch.nn.Module) -> None:
        self.block = block

    def register_forward_hook(self, hook: Callable[..., Any]) -> Any:
        def shown(module: Any, inputs: Any, outputs: Any) -> Any:
            if isinstance(outputs, tuple):
                return hook(module, inputs, outputs)
            return hook(module, inputs, (outputs,))[0]

        return self.block.register_forward_hook(shown)


def _block_of(model: Any, number: int) -> _Block:
    count = model.config.get_text_config().num_hidden_layers
    found: dict[str, torch.nn.ModuleList] = {}
    for name, module in model.named_modules():
        # A block may have as many experts as the model has blocks.
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, torch.nn.ModuleList) and len(module) == count and not inside:
            found[name] = module
    if len(found) != 1:
        raise UserError(
            f"model: {type(model).__name__} has {len(found)} lists of {count} blocks "
            f"({', '.join(found) or 'none'}), so that SAEBench's RAVEL cannot be told where "
            "to edit; leave the suite ravel out"
        )
    (blocks,) = found.values()
    return _Block(blocks[number])


class _Enough(Exception):  # noqa: N818 (it is no error)
    """What was wanted is there; what SAEBench or a model would go on with is not."""


class _UpTo:
    """A language model that runs to the end of a block, and returns nothing."""

    def __init__(self, model: Any, block: int) -> None:
        self._model, self._block = model, block

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **given: Any) -> None:
        def end(*_: Any) -> Any:
            raise _Enough

        # After whoever else reads this block.
        block = import_module(_COLLECTION).get_module(self._model, self._block)
        handle = block.register_forward_hook(end)
        try:
            with suppress(_Enough):
                self._model(**given)
        finally:
            handle.remove()


@contextmanager
def sources_read_once(kept: Path) -> Iterator[None]:
    """While open, what edits put in place of a text's own is read to its block, and once.

    SAEBench runs the whole model, unembedding included, for what leaves one block, and again
    in every epoch and for every SAE, though they all see the same batches. A model that drops
    out at random, as it may in training mode, which SAEBench puts it into, is left to SAEBench;
    the first batch is, too, and tells.

    Args:
        kept: Where they are kept between SAEs.
    """
    collection = import_module(_COLLECTION)
    stock = collection.get_layer_activations
    # By whether the model is in training mode.
    draws: dict[bool, bool] = {}
    known: dict[str, torch.Tensor]

    def read(model: Any, block: int, inputs: Any, positions: torch.Tensor) -> torch.Tensor:
        if draws.get(model.training, True):
            before = _random_state(model.device)
            found = stock(model, block, inputs, positions)
            draws[model.training] = before != _random_state(model.device)
            return found
        batch = [inputs["input_ids"], inputs["attention_mask"], positions]
        asked = [block, model.dtype, *(tensor.tolist() for tensor in batch)]
        key = hashlib.sha256(repr(asked).encode()).hexdigest()
        found = known.get(key)
        if found is None:
            found = stock(_UpTo(model, block), block, inputs, positions)
            known[key] = found.cpu()
        return found.to(model.device, copy=True)

    with kept_tensors(kept) as known, patch.object(collection, "get_layer_activations", read):
        yield


def _random_state(device: torch.device) -> list[bytes]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return [state.numpy().tobytes() for state in states]


@contextmanager
def own_prompts() -> Iterator[None]:
    """While open, three of SAEBench's habits do not depend on the model's tokenizer.

    - Edited is the last token of the entity. SAEBench counts the tokens of what follows, with
      one for BOS, so that where the tokenizer adds none it edits the token after the entity.
    - Positions are counted from a text's first token. SAEBench leaves it to the model, which
      counts padding as well: learned positions are others then.
    - Generation goes on after EOS. Where all texts of a batch end, SAEBench would take the end
      of the prompt for an answer.
    """
    main, cls = main_of("ravel"), import_module(_INSTANCE).RAVELInstance
    build, load = cls.build_and_tokenize_prompts, main.AutoModelForCausalLM.from_pretrained

    def built(self: Any, tokenizer: Any) -> Any:
        prompts = build(self, tokenizer)
        for prompt in prompts:
            until = prompt.template.split("%s")[0] + prompt.entity_label
            shared = _shared(tokenizer.encode(until), prompt.input_ids)
            prompt.final_entity_token_pos = max(shared, 1) - 1 - len(prompt.input_ids)
        return prompts

    def loaded(*args: Any, **given: Any) -> Any:
        model = load(*args, **given)
        model.generation_config.eos_token_id = None
        if "position_ids" in inspect.signature(model.forward).parameters:
            model.register_forward_pre_hook(_counted, with_kwargs=True)
        return model

    replaced: Any = SimpleNamespace(from_pretrained=loaded)
    with (
        patch.object(cls, "build_and_tokenize_prompts", built),
        patch.object(main, "AutoModelForCausalLM", replaced),
    ):
        yield


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))


def _counted(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    mask, ids = kwargs.get("attention_mask"), kwargs.get("input_ids")
    if mask is None or ids is None or kwargs.get("position_ids") is not None:
        return args, kwargs
    if mask.shape == ids.shape:
        kwargs = {**kwargs, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    return args, kwargs


@contextmanager
def stopped_when_known() -> Iterator[list[Any]]:
    """SAEBench's RAVEL ends here, without an error, when it has found out what a model knows.

    Yields:
        Its prompts that the model answers, once it has ended.
    """
    main = main_of("ravel")
    stock, known = main.RAVELFilteredDataset, []

    def load(path: str) -> Any:
        known.extend(stock.load(path).prompts)
        raise _Enough

    with (
        suppress(_Enough),
        patch.object(main, "RAVELFilteredDataset", SimpleNamespace(load=load)),
    ):
        yield known
