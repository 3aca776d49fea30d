"""Where latents fire: the contexts that are kept are those that brute force finds."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sae_baselines.errors import UserError
from sae_baselines.study.contexts import (
    AFTER,
    BEFORE,
    CONTEXTS_FILE,
    N_NEAR,
    N_TOP,
    NEAR,
    TOP,
    Contexts,
    Words,
    contexts_of,
)
from sae_baselines.study.held_out import HeldOut
from sae_baselines.study.language_model import token_texts
from sae_baselines.study.spec import spec_from_dict
from tests.helpers import D_IN, activations, make_sae
from tests.tiny_model import tiny_panel

_CONTEXTS, _WIDTH, _FIRST = 30, 40, 2


def _bytes_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, as byte-level tokenizers have for what is rare."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


_TOKENIZER = _bytes_tokenizer()


@settings(max_examples=40)
@given(st.text(max_size=20).filter(lambda text: "\N{REPLACEMENT CHARACTER}" not in text))
def test_characters_that_are_spread_over_tokens_are_whole(text: str):
    ids = _TOKENIZER.encode(text)
    texts = token_texts(_TOKENIZER, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text


def _held_out() -> tuple[Any, HeldOut, Words]:
    torch.manual_seed(0)
    sae = make_sae("topk")
    used = (_WIDTH - _FIRST) * _CONTEXTS
    every = torch.arange(_CONTEXTS * _WIDTH).reshape(_CONTEXTS, _WIDTH)
    x = activations(used, seed=3)
    # No latent of these contexts fires where it did.
    x[: 10 * (_WIDTH - _FIRST)] *= -1
    held_out = HeldOut(
        calibration=x[:0],
        evaluation=x,
        tokens=every[:0],
        contexts=every % 200,
        places=every[:, _FIRST:].reshape(-1),
    )
    return sae, held_out, Words(_TOKENIZER, torch.eye(D_IN, 50))


def test_contexts_are_those_of_brute_force():
    sae, held_out, words = _held_out()
    acts = torch.zeros(_CONTEXTS * _WIDTH, sae.cfg.d_sae)
    acts[held_out.places] = sae.encode(held_out.evaluation).detach()
    pre = torch.full_like(acts, -torch.inf)
    pre[held_out.places] = (sae.process_sae_in(held_out.evaluation) @ sae.W_enc).detach()
    wanted = acts.count_nonzero(dim=0).argsort(descending=True)[[0, 3, 8]].tolist()
    found = contexts_of(sae, held_out, wanted, words)
    for latent, one in found.items():
        own, by_context = acts[:, latent], acts[:, latent].reshape(_CONTEXTS, _WIDTH)
        assert one.firings == own.count_nonzero() == sum(one.bars)
        top = [c for c in one.contexts if c.kind == TOP]
        best = by_context.max(dim=1).values.sort(descending=True).values
        assert [c.value for c in top] == pytest.approx(best[:N_TOP].tolist(), rel=1e-3)
        assert len({c.place // _WIDTH for c in top}) == N_TOP
        size = own[own != 0].sort().values.numpy()
        for kind in ("75", "50", "25"):
            (context,) = [c for c in one.contexts if c.kind == kind]
            rank = (size < float(own[context.place])).sum()
            assert abs(rank - int(kind) / 100 * (len(size) - 1)) <= 0.5
        near = [c for c in one.contexts if c.kind == NEAR]
        silent = pre[:, latent].where(own == 0, -torch.inf).reshape(_CONTEXTS, _WIDTH)
        quiet = (by_context == 0).all(dim=1)
        nearest = silent.max(dim=1).values
        if quiet.sum() >= N_NEAR:
            nearest = nearest.where(quiet, -torch.inf)
            assert [float(pre[c.place, latent]) for c in near] == pytest.approx(
                nearest.sort(descending=True).values[:N_NEAR].tolist()
            )
        assert all(c.value == 0 and own[c.place] == 0 for c in near)
        for c in one.contexts:
            start = c.place - c.peak
            assert start == max(c.place // _WIDTH * _WIDTH, c.place - BEFORE)
            assert len(c.ids) == len(c.tokens) <= BEFORE + 1 + AFTER
            assert c.ids == held_out.contexts.reshape(-1)[start : start + len(c.ids)].tolist()
            there = own[start : start + len(c.ids)]
            assert c.on == there.nonzero().flatten().tolist()
            assert c.acts == pytest.approx(there[there != 0].tolist(), rel=1e-3)
        # The unembedding is the identity: logits are the decoder row.
        row = sae.W_dec[latent].detach()
        assert one.promoted[0].id == row.argmax()
        assert one.promoted[0].logit == pytest.approx(float(row.max()), rel=1e-3)
        assert one.suppressed[0].id == row.argmin()
        assert sum(one.logits) == 50
    assert any(found[i].contexts != found[j].contexts for i in found for j in found)


def test_a_latent_that_never_fires_is_named():
    sae, held_out, words = _held_out()
    with torch.no_grad():
        sae.b_enc[5] = -100
    with pytest.raises(UserError, match="latent: 5 fires on none of the 1,140 held-out tokens"):
        contexts_of(sae, held_out, [5], words)


def test_what_is_kept_is_of_these_weights_and_unchanged(tmp_path: Path):
    sae, held_out, words = _held_out()
    acts = sae.encode(held_out.evaluation)
    latent = int(acts.count_nonzero(dim=0).argmax())
    kept = Contexts("", len(acts), _WIDTH, contexts_of(sae, held_out, [latent], words))
    kept.save(tmp_path)
    assert Contexts.load(tmp_path) == kept
    path = tmp_path / CONTEXTS_FILE
    text = path.read_text()
    path.write_text(text.replace('"n_tokens": 1140', '"n_tokens": 1141'))
    with pytest.raises(UserError, match="was changed after it was written"):
        Contexts.load(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"contexts\.json: is damaged"):
        Contexts.load(tmp_path)
    path.write_text(text)
    (tmp_path / SAE_WEIGHTS_FILENAME).write_bytes(b"others")
    assert Contexts.load(tmp_path) is None


def test_a_model_without_a_tokenizer_is_named(tmp_path: Path):
    spec = spec_from_dict(tiny_panel(tmp_path / "some-model"))
    with pytest.raises(UserError, match="some-model has no tokenizer"):
        Words.of(SimpleNamespace(tokenizer=None), spec)
