"""Where single latents fire: held-out text around it, measured once, kept beside the SAE.

One pass over the study's held-out activations for all members. Of a latent that is to be shown
are kept: the contexts in which it fires most, one at each percentile of its activations, *near
misses*, a histogram, and the tokens that its decoder row promotes and suppresses.

A near miss is a token on which the latent is silent though its encoder direction is as good as
met: of each held-out context the silent token with the highest pre-activation (up to the
latent's bias), contexts first in which the latent fires nowhere, the nearest misses of these.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME

from sae_baselines.controls.latents import flat_copy
from sae_baselines.errors import UserError
from sae_baselines.files import check_shape, read_json, reading, sha256_of, write_sealed
from sae_baselines.progress import progress
from sae_baselines.reconstruction import inputs
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.held_out import HeldOut
from sae_baselines.study.language_model import token_texts, unembedding
from sae_baselines.study.patches.latents import PERCENTILES, at_percentiles
from sae_baselines.study.plan import MemberKey
from sae_baselines.study.sources.text import TextSource
from sae_baselines.study.spec import PUBLISHED, PanelSpec

CONTEXTS_FILE = "contexts.json"
# Of a context, tokens shown before and after the one that it is about.
BEFORE, AFTER = 20, 8
TOP, NEAR = "top", "near"
N_TOP, N_NEAR, N_TOKENS, N_BARS = 6, 2, 10, 20
_DIGITS = 4
_AGAIN = "delete it and run sae-baselines latents on the study"
_SHAPE = {
    "weights": str,
    "n_tokens": int,
    "context_size": int,
    "latents": {
        str: {
            "firings": int,
            "largest": float,
            "bars": [int],
            "contexts": [
                {
                    "kind": str,
                    "value": float,
                    "peak": int,
                    "place": int,
                    "ids": [int],
                    "tokens": [str],
                    "on": [int],
                    "acts": [float],
                }
            ],
            "promoted": [{"id": int, "text": str, "logit": float}],
            "suppressed": [{"id": int, "text": str, "logit": float}],
            "logits": [int],
            "logit_range": [float],
        }
    },
}


@dataclass(frozen=True)
class Context:
    """Held-out text around one token.

    Attributes:
        kind: `TOP`, a percentile of the latent's activations ("75"), or `NEAR`.
        value: The latent's activation on the token; 0 for a near miss.
        peak: Which of ``tokens`` it is about.
        place: Where that is in the study's held-out contexts, flattened.
        ids: Up to `BEFORE` + 1 + `AFTER` tokens.
        tokens: What they say.
        on: Which of these the latent fires on.
        acts: How strongly, of each in ``on``.
    """

    kind: str
    value: float
    peak: int
    place: int
    ids: list[int]
    tokens: list[str]
    on: list[int]
    acts: list[float]


@dataclass(frozen=True)
class Moved:
    """A token whose logit a decoder row moves: which, what it says, by how much."""

    id: int
    text: str
    logit: float


@dataclass(frozen=True)
class LatentContexts:
    """What is shown of one latent.

    Attributes:
        firings: Held-out tokens that it fires on.
        largest: Largest absolute activation.
        bars: How many of its activations are in each of `N_BARS` equal bins of absolute
            activation, from 0 to ``largest``.
        contexts: Most active first, then by percentile, then near misses.
        promoted: Tokens whose logits its decoder row raises most; none where the hook is not of
            the residual stream.
        suppressed: Those that it lowers most.
        logits: How many tokens of the vocabulary it moves by how much: `N_BARS` equal bins.
        logit_range: Where the first of these begins and the last ends.
    """

    firings: int
    largest: float
    bars: list[int]
    contexts: list[Context]
    promoted: list[Moved]
    suppressed: list[Moved]
    logits: list[int]
    logit_range: list[float]


@dataclass(frozen=True)
class Contexts:
    """What `measure_contexts` keeps of an SAE.

    Attributes:
        weights: SHA-256 of the file of its weights.
        n_tokens: Held-out activations.
        context_size: Tokens of a held-out context.
        latents: By index.
    """

    weights: str
    n_tokens: int
    context_size: int
    latents: Mapping[int, LatentContexts]

    @classmethod
    def load(cls, folder: Path) -> "Contexts | None":
        """Of an SAE's folder; None where nothing is kept, or it is of other weights.

        Raises:
            UserError: The file is damaged or was changed.
        """
        path = folder / CONTEXTS_FILE
        if (data := read_json(path, _AGAIN)) is None:
            return None
        check_shape(path, data, _SHAPE, _AGAIN)
        weights = folder / SAE_WEIGHTS_FILENAME
        if weights.exists() and data["weights"] != sha256_of(weights):
            return None
        latents = {}
        for index, one in data["latents"].items():
            contexts = [Context(**context) for context in one["contexts"]]
            moved = {k: [Moved(**m) for m in one[k]] for k in ("promoted", "suppressed")}
            latents[int(index)] = LatentContexts(**{**one, **moved, "contexts": contexts})
        return cls(**{**data, "latents": latents})

    def save(self, folder: Path) -> None:
        """Write ``contexts.json`` with its checksum."""
        latents = {str(i): asdict(one) for i, one in sorted(self.latents.items())}
        write_sealed(folder / CONTEXTS_FILE, {**vars(self), "latents": latents})


@dataclass(frozen=True)
class Words:
    """What a language model calls its tokens, and what raises their logits.

    Attributes:
        tokenizer: Of transformers.
        unembedding: ``[d_in, vocabulary]``, or None; see `language_model.unembedding`.
    """

    tokenizer: Any
    unembedding: torch.Tensor | None

    @classmethod
    def of(cls, model: Any, spec: PanelSpec) -> "Words":
        """Of the model that a spec names.

        Raises:
            UserError: It has no tokenizer.
        """
        if getattr(model, "tokenizer", None) is None:
            raise UserError(
                f"model.name: {spec.model.name} has no tokenizer, without which its "
                "tokens cannot be shown; add the tokenizer's files to its folder"
            )
        return cls(model.tokenizer, unembedding(model, spec.hook_written))

    def texts(self, ids: torch.Tensor) -> list[str]:
        """Of tokens that follow one another."""
        return token_texts(self.tokenizer, ids.tolist())

    def moved(self, row: torch.Tensor) -> dict[str, Any]:
        """Fields of `LatentContexts` that a decoder row ``[d_in]`` says by itself."""
        if self.unembedding is None:
            return {"promoted": [], "suppressed": [], "logits": [], "logit_range": []}
        logits = row.float().cpu() @ self.unembedding.cpu()
        found: dict[str, Any] = {}
        for name, largest in (("promoted", True), ("suppressed", False)):
            most = logits.topk(min(N_TOKENS, len(logits)), largest=largest)
            pairs = zip(most.indices.tolist(), most.values.tolist(), strict=True)
            found[name] = [
                Moved(i, token_texts(self.tokenizer, [i])[0], _rounded(v)) for i, v in pairs
            ]
        bars, edges = np.histogram(logits.numpy(), N_BARS)
        ends = [_rounded(edges[0]), _rounded(edges[-1])]
        return {**found, "logits": bars.tolist(), "logit_range": ends}


@torch.no_grad()
def encoded_contexts(
    sae: SAE[Any], held_out: HeldOut
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Read the evaluation half context by context.

    Args:
        sae: From `flat_copy`.
        held_out: Activations.

    Yields:
        Of each context with any activation: where its activations begin among all of them,
        these ``[n, d_in]``, and what the SAE makes of them, dense ``[n, d_sae]``.
    """
    of_context = held_out.places // held_out.contexts.shape[1]
    sizes = torch.bincount(of_context, minlength=len(held_out.contexts)).tolist()
    first = 0
    for x in held_out.evaluation.split(sizes):
        if len(x) == 0:
            continue
        x = inputs(sae, x.to(sae.device))
        acts = sae.encode(x)
        yield first, x, acts.to_dense() if acts.is_sparse else acts
        first += len(x)


def firings_in(acts: torch.Tensor, first: int) -> tuple[np.ndarray, ...]:
    """Row (counted from ``first``), column and value of what is not 0 in ``[n, latents]``."""
    row, latent = acts.nonzero(as_tuple=True)
    found = (row + first, latent, acts[row, latent].float())
    return tuple(t.cpu().numpy() for t in found)


@torch.no_grad()
def contexts_of(
    sae: SAE[Any], held_out: HeldOut, wanted: Sequence[int], words: Words
) -> dict[int, LatentContexts]:
    """Read held-out activations context by context and keep what is shown of some latents.

    In memory at once are a context's latents (``context_size * d_sae`` numbers, and the
    encoder's temporary copies of them), and of the wanted ones 12 bytes for each firing and 13
    for each held-out context.

    Args:
        sae: Inference SAE.
        held_out: Its evaluation half is read.
        wanted: Latents.
        words: Of the model.

    Raises:
        UserError: One of them fires on no held-out token.
    """
    sae = flat_copy(sae).to(sae.device)
    chosen = torch.tensor(list(wanted), device=sae.device)
    encoder = sae.W_enc[:, chosen]
    fired: list[tuple[np.ndarray, ...]] = []
    misses: list[tuple[torch.Tensor, ...]] = []
    for first, x, acts in encoded_contexts(sae, held_out):
        acts = acts[:, chosen]
        fired.append(firings_in(acts, first))
        near = (sae.process_sae_in(x) @ encoder).float()
        near, at = near.masked_fill(acts != 0, -torch.inf).max(dim=0)
        silent = (acts == 0).all(dim=0)
        misses.append(tuple(t.cpu() for t in (near, at + first, silent)))
    rows, latents, values = (np.concatenate(parts) for parts in zip(*fired, strict=True))
    near, at, silent = (torch.stack(parts) for parts in zip(*misses, strict=True))
    # Contexts in which it fires nowhere, before any other.
    order = np.lexsort((-near.numpy(), ~silent.numpy()), axis=0)
    places = held_out.places.numpy()
    found = {}
    for j, index in enumerate(wanted):
        own = latents == j
        if not own.any():
            raise UserError(
                f"latent: {index} fires on none of the {len(places):,} held-out tokens, so "
                "that there is nothing to show; name another"
            )
        missed = [c for c in order[:, j] if near[c, j] > -torch.inf][:N_NEAR]
        found[index] = _latent(
            places[rows[own]],
            values[own],
            places[[int(at[c, j]) for c in missed]],
            held_out.contexts,
            words,
            words.moved(sae.W_dec[index]),
        )
    return found


def largest_by_context(size: np.ndarray, places: np.ndarray, width: int, n: int) -> list[int]:
    """Which are largest, the first of each context alone; at most ``n``.

    Args:
        size: ``[firings]``.
        places: Of each, where it is in the contexts, flattened.
        width: Tokens of a context.
        n: Contexts.
    """
    found: dict[int, int] = {}
    for i in np.argsort(-size, kind="stable").tolist():
        found.setdefault(int(places[i]) // width, i)
        if len(found) == n:
            break
    return list(found.values())


def _latent(
    places: np.ndarray,
    values: np.ndarray,
    missed: np.ndarray,
    contexts: torch.Tensor,
    words: Words,
    moved: Mapping[str, Any],
) -> LatentContexts:
    width, size = contexts.shape[1], np.abs(values)
    active = dict(zip(places.tolist(), values.tolist(), strict=True))

    def around(kind: str, place: int) -> Context:
        begin = place // width * width
        start, end = max(begin, place - BEFORE), min(begin + width, place + AFTER + 1)
        on = [p for p in range(start, end) if p in active]
        ids = contexts.reshape(-1)[start:end]
        return Context(
            kind,
            _rounded(active.get(place, 0.0)),
            place - start,
            place,
            ids.tolist(),
            token_texts(words.tokenizer, ids.tolist()),
            [p - start for p in on],
            [_rounded(active[p]) for p in on],
        )

    strongest = largest_by_context(size, places, width, N_TOP)
    shown = [around(TOP, int(places[i])) for i in strongest]
    at = at_percentiles(torch.from_numpy(size))
    shown += [
        around(str(percentile), int(places[i]))
        for percentile, i in zip(PERCENTILES, at, strict=True)
        if percentile < 100
    ]
    shown += [around(NEAR, int(place)) for place in missed]
    largest = float(size.max())
    bars, _ = np.histogram(size, N_BARS, (0, largest))
    return LatentContexts(len(values), _rounded(largest), bars.tolist(), shown, **moved)


def _rounded(value: Any) -> float:
    return float(f"{float(value):.{_DIGITS}g}")


def measure_contexts(
    spec: PanelSpec,
    root: str | Path,
    wanted: Mapping[MemberKey, Sequence[int]],
    **inputs: Any,
) -> dict[MemberKey, Contexts]:
    """Keep contexts of these latents beside their SAEs; what is there already is not repeated.

    The model reads the held-out text once for all members that lack any (random language models
    read it for themselves). A member is finished when its file is written.

    Args:
        spec: The study, measured.
        root: Its folder.
        wanted: Latents by member.
        inputs: ``dataset`` and ``model`` in memory, as for `TextSource`.

    Raises:
        UserError: Model or text cannot be read, no tokenizer, a latent that never fires.
    """
    folder = StudyFolder(root)
    found: dict[MemberKey, Contexts] = {}
    with folder.locked():
        for name in spec.source_names:
            here = {m.name for m in spec.members_on(name)} | (
                {PUBLISHED} if not name else set()
            )
            missing: dict[MemberKey, list[int]] = {}
            for key, latents in wanted.items():
                if key.member not in here or key.panel not in spec.panels(name):
                    continue
                stored = Contexts.load(folder.member(key))
                if stored is not None:
                    found[key] = stored
                there = stored.latents if stored else {}
                if lacking := sorted(set(latents) - set(there)):
                    missing[key] = lacking
            if not missing:
                continue
            source = TextSource(spec, folder, name, **inputs)
            words, held_out = Words.of(source.model, spec), source.data.held_out
            for key, lacking in progress(missing.items(), desc="Contexts", unit="SAE"):
                path = folder.member(key)
                with reading(path):
                    sae = SAE.load_from_disk(path, device=source.device)
                try:
                    new = contexts_of(sae, held_out, lacking, words)
                except UserError as error:
                    raise UserError(f"{key.name}: {error}") from None
                weights = sha256_of(path / SAE_WEIGHTS_FILENAME)
                n = len(held_out.evaluation)
                there = found[key].latents if key in found else {}
                found[key] = Contexts(weights, n, spec.context_size, {**there, **new})
                found[key].save(path)
    return found


def check_same_model(spec: PanelSpec, folders: Mapping[MemberKey, Path]) -> None:
    """Refuse members that were trained on different models or hooks.

    Raises:
        UserError: Names one of another model than the first.
    """
    on_random = {m.name for m in spec.member_specs if m.on_random_model} | {PUBLISHED}
    known: dict[str, Any] = {}
    for key, folder in folders.items():
        if key.member not in on_random:
            found = (read_json(folder / SAE_CFG_FILENAME) or {}).get("metadata")
            known[key.name] = found or {}
    refuse_others(known, "members", "leave one out with --members")


def refuse_others(known: Mapping[str, Mapping[str, Any]], field: str, remedy: str) -> None:
    """Refuse SAEs that were trained on different models or hooks.

    Args:
        known: SAELens' metadata of each.
        field: Where they were named.
        remedy: What to do.

    Raises:
        UserError: Names one of another model than the first.
    """
    found: dict[tuple[Any, Any], str] = {}
    for name, metadata in known.items():
        found.setdefault((metadata.get("model_name"), metadata.get("hook_name")), name)
    if len(found) > 1:
        (first, a), (second, b) = list(found.items())[:2]
        raise UserError(
            f"{field}: {b} is of {' '.join(map(str, second))} and {a} of "
            f"{' '.join(map(str, first))}; latents of different models have nothing to be "
            f"matched by, so {remedy}"
        )
