"""Shared forward passes give what unshared ones give, bit for bit."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformer

from sae_baselines.compat.saebench import answered_loader
from sae_baselines.errors import UserError
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.shared_model import Memory, SharedTransformer, sharing
from sae_baselines.study.spec import ModelSpec
from tests.tiny_model import HOOK, save_tiny_model

LAST = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("shared"))


OPEN = ExitStack()


@pytest.fixture(autouse=True)
def closed_afterwards() -> Iterator[None]:
    yield
    OPEN.close()


def share(model: Any, hook: str, memory: Memory) -> Any:
    """The model, which shares until the test is over."""
    OPEN.enter_context(sharing(model, hook, memory))
    return model


def load(folder: Path, hook: str = HOOK) -> Any:
    return load_language_model(ModelSpec(name=str(folder)), hook, "cpu")


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 18, (4, 16), generator=generator) for _ in range(3)]


def replacing(seed: int) -> Any:
    """A stand-in for a reconstruction: some function of the activations."""
    matrix = torch.randn(32, 32, generator=torch.Generator().manual_seed(seed)) / 32

    def hook(acts: torch.Tensor, hook: Any) -> torch.Tensor:
        del hook
        return acts + acts @ matrix

    return hook


def zeros(acts: torch.Tensor, hook: Any) -> torch.Tensor:
    del hook
    return torch.zeros_like(acts)


def halved(acts: torch.Tensor, hook: Any) -> torch.Tensor:
    del hook
    return acts * 0.5


def in_place(acts: torch.Tensor, hook: Any) -> torch.Tensor:
    del hook
    acts.mul_(0.5)
    return acts


@torch.no_grad()
def everything(model: Any, hook: str) -> list[torch.Tensor]:
    """The four passes of SAEBench's core suite, for two SAEs, on three batches."""
    found = []
    for seed in (0, 1):
        for tokens in batches():
            found += model(tokens, return_type="both", loss_per_token=True)
            for fn in (replacing(seed), zeros, in_place):
                found += model.run_with_hooks(
                    tokens,
                    return_type="both",
                    fwd_hooks=[(hook, partial(fn))],
                    loss_per_token=True,
                )
        for tokens in batches():
            stopped, cache = model.run_with_cache(
                tokens,
                prepend_bos=False,
                names_filter=[hook],
                stop_at_layer=int(hook.split(".")[1]) + 1,
            )
            found += [stopped, cache[hook]]
    return found


@pytest.mark.parametrize(
    "hook",
    [
        HOOK,
        LAST,
        "blocks.0.hook_resid_pre",
        "blocks.1.hook_mlp_out",
        "blocks.2.hook_attn_out",
    ],
)
def test_same_bit_for_bit(folder: Path, hook: str) -> None:
    stock = everything(load(folder, hook), hook)
    memory = Memory()
    shared = share(load(folder, hook), hook, memory)
    assert isinstance(shared, SharedTransformer)
    found = everything(shared, hook)
    assert len(found) == len(stock)
    for mine, theirs in zip(found, stock, strict=True):
        assert torch.equal(mine, theirs)
    assert memory.hits > 0


def test_a_vocabulary_is_read_for_what_an_sae_changes_alone(folder: Path) -> None:
    model = share(load(folder), HOOK, Memory())
    reads: list[int] = []
    model.unembed.register_forward_hook(lambda *_: reads.append(1))
    everything(model, HOOK)
    clean, zero, per_sae = len(batches()), 1, 2 * len(batches())
    assert len(reads) == clean + zero + 2 * per_sae


@pytest.mark.parametrize("limit", [0, 20_000])
def test_a_full_memory_computes_again(folder: Path, limit: int) -> None:
    stock = everything(load(folder), HOOK)
    memory = Memory(limit)
    found = everything(share(load(folder), HOOK, memory), HOOK)
    assert all(torch.equal(a, b) for a, b in zip(found, stock, strict=True))
    assert memory.bytes <= limit


def test_a_hook_in_another_block_is_not_shared(folder: Path) -> None:
    """What was kept of the clean model must not answer for a changed one."""
    stock, memory = load(folder), Memory()
    shared: Any = share(load(folder), HOOK, memory)
    tokens = batches()[0]
    with torch.no_grad():
        shared(tokens)
        for hook in ("blocks.0.hook_resid_post", "hook_embed", LAST, "ln_final.hook_scale"):
            hooks = [(hook, halved)]
            mine = shared.run_with_hooks(tokens, fwd_hooks=hooks)
            assert torch.equal(mine, stock.run_with_hooks(tokens, fwd_hooks=hooks))


def test_other_calls_pass_through(folder: Path) -> None:
    stock: Any = load(folder)
    shared: Any = share(load(folder), HOOK, Memory())
    tokens = batches()[0]
    with torch.no_grad():
        shared(tokens)
        assert torch.equal(shared("the cat sat"), stock("the cat sat"))
        for kwargs in ({"stop_at_layer": 1}, {"attention_mask": torch.ones_like(tokens)}):
            assert torch.equal(shared(tokens, **kwargs), stock(tokens, **kwargs))
        for model in (shared, stock):
            model.tokenizer.padding_side = "left"
        assert torch.equal(shared(tokens), stock(tokens))
    # With gradients nothing is kept, or they would be lost.
    loss = shared(tokens, return_type="loss")
    loss.backward()
    assert shared.W_E.grad is not None


def test_loader_is_answered_and_restored() -> None:
    before = vars(HookedTransformer)["from_pretrained_no_processing"]
    asked = []

    def answer(original: Any, name: str, **kwargs: Any) -> str:
        del original
        asked.append((name, kwargs))
        return "model"

    with answered_loader(answer):
        found = HookedTransformer.from_pretrained_no_processing("a-name", device="cpu")
    assert found == "model"
    assert asked == [("a-name", {"device": "cpu"})]
    assert vars(HookedTransformer)["from_pretrained_no_processing"] is before


def test_loader_that_moved_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        HookedTransformer, "from_pretrained_no_processing", staticmethod(lambda: None)
    )
    with pytest.raises(UserError, match="transformer-lens"), answered_loader(lambda: None):
        pass
