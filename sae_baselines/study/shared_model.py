"""A language model that SAE after SAE is spliced into: asked nothing twice.

Everything below the hooked block is the same for all SAEs; so is the clean model, and so is the
model with zeros at the hook, logits included. `SharedTransformer` starts such passes from what
it has seen before, through TransformerLens' own ``start_at_layer``, so results are the same bit
for bit.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookedRootModule
from transformer_lens.HookedTransformer import Output

from sae_baselines.compat.models import as_class

_BLOCK = re.compile(r"^blocks\.(\d+)\.")
# What is shared is only what these arguments cannot change.
_ALLOWED = {"return_type", "loss_per_token", "prepend_bos", "stop_at_layer"}

DEFAULT_BYTES = 4 * 2**30


def block_of(hook_name: str) -> int | None:
    """Number of the block a hook belongs to; None for hooks outside blocks."""
    match = _BLOCK.match(hook_name)
    return int(match.group(1)) if match else None


class Memory:
    """Residual streams and logits by key, up to a number of bytes; kept on the CPU.

    Args:
        limit: Bytes; what comes after is not kept and computed again.
    """

    def __init__(self, limit: int = DEFAULT_BYTES) -> None:
        self.limit = limit
        self.bytes = 0
        self.hits = 0
        self._kept: dict[Any, torch.Tensor] = {}

    def get(self, key: Any, device: torch.device) -> torch.Tensor | None:
        """What was put there, or None."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        self.hits += 1
        # A copy: a hook that writes in place must not change what is kept.
        return kept.to(device, copy=True)

    def put(self, key: Any, value: torch.Tensor, share: float = 1.0) -> None:
        """Keep a copy, if there is room in this share of the limit."""
        size = value.element_size() * value.nelement()
        if key in self._kept or self.bytes + size > share * self.limit:
            return
        self._kept[key] = value.detach().to("cpu", copy=True)
        self.bytes += size


class SharedTransformer(HookedTransformer):
    """See the module. A loaded model is one while `sharing` is open."""

    shared_block: int
    memory: Memory

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        """As HookedTransformer's; shares what it can."""
        if args or not self._shareable(input, kwargs):
            return super().forward(input, *args, **kwargs)
        tokens = input.to(self.cfg.device or input.device)
        key = _key(tokens)
        block = self.shared_block
        below = self._below(tokens, key)
        stop = kwargs.pop("stop_at_layer", None)
        here = self._blocks(below, block, block + 1)
        if stop == block + 1:
            return here
        known = self._known(here, key)
        returned = kwargs.get("return_type", "logits")
        # On a GPU reading a vocabulary is cheaper than bringing it there.
        if known is None or returned not in ("logits", "both") or here.device.type != "cpu":
            top = self._above(here, known)
            return super().forward(
                top, start_at_layer=self.cfg.n_layers, tokens=tokens, **kwargs
            )
        logits = self._logits(here, known)
        if returned == "logits":
            return logits
        loss = self.loss_fn(logits, tokens, per_token=kwargs.get("loss_per_token", False))
        return Output(logits, loss)

    def _blocks(self, input: Any, start: int | None, stop: int) -> torch.Tensor:
        run: Any = super().forward  # its overloads leave stop_at_layer's result out
        return run(input, start_at_layer=start, stop_at_layer=stop)

    def _shareable(self, input: Any, kwargs: dict[str, Any]) -> bool:
        stop = kwargs.get("stop_at_layer")
        return (
            isinstance(input, torch.Tensor)
            and not input.is_floating_point()
            and input.ndim == 2
            and set(kwargs) <= _ALLOWED
            and (stop is None or stop == self.shared_block + 1)
            and not torch.is_grad_enabled()
            # Left padding needs an attention mask, which start_at_layer does not compute.
            and (self.tokenizer is None or self.tokenizer.padding_side == "right")
            and self.cfg.positional_embedding_type != "shortformer"
            and all(block == self.shared_block for block in self._hooked())
        )

    def _hooked(self) -> set[int | None]:
        """Blocks that have hooks now; None stands for hooks elsewhere."""
        return {
            block_of(name)
            for name, point in self.hook_dict.items()
            if point.fwd_hooks or point.bwd_hooks
        }

    def _below(self, tokens: torch.Tensor, key: bytes) -> torch.Tensor:
        """The residual stream that enters the hooked block."""
        found = self.memory.get(("below", key), tokens.device)
        if found is None:
            found = self._blocks(tokens, None, self.shared_block)
            self.memory.put(("below", key), found)
        return found

    def _known(self, here: torch.Tensor, tokens_key: bytes) -> tuple[Any, ...] | None:
        """What everything above the hooked block depends on; None for a replaced hook."""
        if not self._hooked():
            return ("clean", tokens_key)
        if bool((here == here.flatten()[0]).all()):
            # Ablated: what follows depends on the constant and the shape alone.
            return ("constant", float(here.flatten()[0]), tuple(here.shape))
        return None

    def _above(self, here: torch.Tensor, known: tuple[Any, ...] | None) -> torch.Tensor:
        """The residual stream after the last block, from what leaves the hooked one."""
        found = None if known is None else self.memory.get(known, here.device)
        if found is None:
            found = self._blocks(here, self.shared_block + 1, self.cfg.n_layers)
            if known is not None:
                self.memory.put(known, found)
        return found

    def _logits(self, here: torch.Tensor, known: tuple[Any, ...]) -> torch.Tensor:
        """Logits, from what leaves the hooked block."""
        key = ("logits", *known)
        found = self.memory.get(key, here.device)
        if found is None:
            top = self._above(here, known)
            run: Any = super().forward
            found = run(top, start_at_layer=self.cfg.n_layers, return_type="logits")
            # They are large: half of the room is for what is small.
            self.memory.put(key, found, share=0.5)
        return found


def _key(tokens: torch.Tensor) -> bytes:
    data = tokens.detach().cpu().contiguous()
    described = f"{tuple(data.shape)}{data.dtype}".encode()
    return hashlib.blake2b(described + data.numpy().tobytes(), digest_size=16).digest()


@contextmanager
def sharing(model: HookedRootModule, hook_name: str, memory: Memory) -> Iterator[None]:
    """While open, a loaded model shares forward passes around one hook.

    Args:
        model: Its class is `SharedTransformer` for that time.
        hook_name: Hook of the SAEs; a hook outside blocks shares nothing.
        memory: Where residual streams are kept.
    """
    block = block_of(hook_name)
    if block is None or type(model) is not HookedTransformer or not model.cfg.n_layers:
        yield
        return
    with as_class(model, SharedTransformer):
        assert isinstance(model, SharedTransformer)
        model.shared_block = block
        model.memory = memory
        yield
