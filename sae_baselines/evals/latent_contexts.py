"""Contexts in which latents fire, and others: what suites tell them apart by.

Documents are cut in two halves: in the first are a latent's strongest contexts, in the second
those that are to be told from contexts in which it is silent.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE

from sae_baselines.errors import UserError, one_line
from sae_baselines.evals.concepts import CONCEPTS
from sae_baselines.evals.suite import Subject, SuiteCall
from sae_baselines.files import new_file
from sae_baselines.study.contexts import encoded_contexts, firings_in, largest_by_context
from sae_baselines.study.data import load_text, split_text
from sae_baselines.study.held_out import HeldOut, collect_held_out
from sae_baselines.study.language_model import token_texts
from sae_baselines.study.spec import DatasetSpec, ModelSpec, PanelSpec

# Of a context, tokens before and after the one that the latent fires on. Concepts made by hand
# are told better than with twice as many (AUC 0.73 and 0.68 on Wikipedia), and with these the
# whole context has a chance to be silent.
BEFORE, AFTER = 5, 2
# Of a latent, contexts that must have a negative to be told from.
LEAST_SHARE = 0.5
_TRIES = 100
_TEXT = "text.pt"


# Options of every suite that reads contexts, with their defaults.
DEFAULTS: dict[str, Any] = {
    "dataset": "Skylion007/openwebtext",
    "context_size": 128,
    "n_tokens": 131_072,
    "n_latents": 100,
    "n_top": 10,
    "n_held_out": 20,
}
LEAST_LATENTS = 5


def problems_of(
    subject: Subject, options: Mapping[str, Any], more: Sequence[str] = ()
) -> Iterator[str]:
    """What is wrong with those options, or with the hook.

    Args:
        subject: Whose contexts they are.
        options: Complete.
        more: Further options that are positive whole numbers.
    """
    for option in (*(name for name in DEFAULTS if name != "dataset"), *more):
        value = options[option]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield f"{option}: {value!r} is not a positive whole number"
            return
    if options["n_latents"] < LEAST_LATENTS:
        yield (
            f"n_latents: {options['n_latents']} is fewer than the {LEAST_LATENTS} that "
            "there must be for a score"
        )
    shortest = BEFORE + AFTER + 1
    if options["context_size"] < shortest:
        yield (
            f"context_size: {options['context_size']} is less than the {shortest} tokens "
            "of a latent's context"
        )
    if not subject.hook_name.startswith("blocks."):
        yield (
            f"hook_name: {subject.hook_name!r} is not a hook of a block of "
            "HookedTransformer; train on blocks.<layer>.<hook>"
        )


@dataclass(frozen=True)
class Firings:
    """Where a latent fires in one half of the text, in order.

    Attributes:
        places: In the half's contexts, flattened.
        values: How strongly.
    """

    places: np.ndarray
    values: np.ndarray


class Text:
    """Two halves of a text and what can be said of places in them.

    Args:
        tokenizer: Of transformers.
        halves: In the first are the top contexts, in the second those to be told.
    """

    def __init__(self, tokenizer: Any, halves: Sequence[HeldOut]) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self.width = halves[0].contexts.shape[1]
        self.ids = [half.contexts.reshape(-1).numpy() for half in halves]
        self.places = [half.places.numpy() for half in halves]
        every = np.concatenate(
            [ids[places] for ids, places in zip(self.ids, self.places, strict=True)]
        )
        self.counts = np.bincount(every)
        # Rare tokens count for more.
        self._weight = np.log(len(every) / np.maximum(self.counts, 1))

    def says(self, token: int) -> str:
        """A token by itself."""
        return token_texts(self._tokenizer, [token])[0]

    def span(self, place: int) -> tuple[int, int]:
        """The tokens around a place that are in its context."""
        begin = place // self.width * self.width
        return max(begin, place - BEFORE), min(begin + self.width, place + AFTER + 1)

    def tokens(self, half: int, place: int) -> list[int]:
        """Those that say something."""
        start, end = self.span(place)
        return [i for i in self.ids[half][start:end].tolist() if i not in self._special]

    def around(self, half: int, place: int) -> str:
        """What stands there."""
        return "".join(token_texts(self._tokenizer, self.tokens(half, place)))

    def marked(self, half: int, place: int) -> str:
        """The same, with the token between << and >>."""
        start, end = self.span(place)
        parts = [
            [i for i in self.ids[half][a:b].tolist() if i not in self._special]
            for a, b in ((start, place), (place, place + 1), (place + 1, end))
        ]
        before, here, after = ("".join(token_texts(self._tokenizer, part)) for part in parts)
        blank = " " if here[:1] == " " else ""
        return f"{before}{blank}<<{here.strip()}>>{after}".strip()

    def bag(self, half: int, place: int) -> dict[int, float]:
        """Tokens of a context by their weight, a unit vector."""
        tokens = set(self.tokens(half, place))
        norm = math.sqrt(sum(self._weight[i] ** 2 for i in tokens)) or 1.0
        return {i: self._weight[i] / norm for i in tokens}

    def at(self, half: int, place: int, ahead: int) -> int:
        """A token, or the one after it; -1 beyond the end of the context."""
        there = place + ahead
        return int(self.ids[half][there]) if there // self.width == place // self.width else -1


@dataclass(frozen=True)
class Examples:
    """What one latent is scored on.

    Attributes:
        top: Places of its top contexts, in the first half.
        held_out: Places where it fires, in the second.
        matched: Places where it is silent, at tokens as frequent.
    """

    top: list[int]
    held_out: list[int]
    matched: list[int]


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Share of pairs in which the positive one is larger; of equal ones half."""
    larger = positive[:, None] > negative
    return float((larger + 0.5 * (positive[:, None] == negative)).mean())


def halves_of(suite: str, model: Any, sae: SAE[Any], call: SuiteCall) -> list[HeldOut]:
    """Activations on the two halves of the documents, which are the same for all SAEs."""
    file = call.cache / _TEXT
    if not file.exists():
        options, metadata = call.options, sae.cfg.metadata
        local = Path(options["dataset"]).exists()
        where = DatasetSpec(path=options["dataset"], streaming=not local)
        positions = getattr(metadata, "seqpos_slice", None) or (None,)
        try:
            spec = PanelSpec(
                name=call.name[:40],
                model=ModelSpec(name=call.subject.model_name),
                hook_name=call.subject.hook_name,
                dataset=where,
                d_sae=call.subject.d_sae,
                l0=1,
                context_size=options["context_size"],
                prepend_bos=bool(getattr(metadata, "prepend_bos", True)),
                seqpos_slice=list(positions),
                exclude_special_tokens=True,
                eval_tokens=-(-options["n_tokens"] // 2),
                calibration_tokens=1,
                training_tokens=max(options["n_tokens"], options["context_size"]),
                train_batch_size_tokens=1,
                store_batch_size_prompts=call.subject.llm_batch_size,
            )
            first = split_text(load_text(where), spec, model)
            parts = (first.held_out, split_text(first.train, spec, model).held_out)
            d_in, device = call.subject.d_in, call.subject.device
            found = [collect_held_out(model, part, spec, d_in, device) for part in parts]
        except UserError as error:
            raise UserError(
                f"suites.{suite}: {one_line(error)} (dataset: {options['dataset']}, "
                f"n_tokens: {options['n_tokens']:,})"
            ) from error
        kept = [(half.evaluation, half.contexts, half.places) for half in found]
        with new_file(file) as scratch:
            torch.save(kept, scratch)
    return [
        HeldOut(x[:0], x, contexts[:0], contexts, places)
        for x, contexts, places in torch.load(file, weights_only=True)
    ]


@torch.no_grad()
def chosen(
    sae: SAE[Any], halves: Sequence[HeldOut], options: Mapping[str, Any], seed: int
) -> tuple[dict[int, list[Firings]], dict[str, Any]]:
    """Latents at random of those that fire in enough contexts, and where they fire.

    Two passes: what all latents do would be too much to keep.
    """
    needed = (options["n_top"], options["n_held_out"])
    in_contexts = torch.zeros(2, sae.cfg.d_sae, dtype=torch.long, device=sae.device)
    for half, held_out in enumerate(halves):
        for _, _, acts in encoded_contexts(sae, held_out):
            in_contexts[half] += (acts != 0).any(dim=0)
    enough = (in_contexts >= torch.tensor(needed, device=sae.device)[:, None]).all(dim=0)
    eligible = enough.nonzero().flatten().cpu().numpy()
    drawn = np.random.default_rng(seed).permutation(eligible)[: options["n_latents"]]
    wanted = np.sort(drawn)
    found: dict[int, list[Firings]] = {int(i): [] for i in wanted}
    columns = torch.as_tensor(wanted, device=sae.device)
    for held_out in halves:
        parts = [
            firings_in(acts[:, columns], first)
            for first, _, acts in encoded_contexts(sae, held_out)
        ]
        rows, latents, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        places = held_out.places.numpy()
        for j, latent in enumerate(found):
            own = latents == j
            found[latent].append(Firings(places[rows[own]], np.abs(values[own])))
    counts = {
        "n_requested": min(options["n_latents"], sae.cfg.d_sae),
        "n_firing": int((in_contexts.sum(dim=0) > 0).sum()),
        "n_eligible": len(eligible),
    }
    return found, counts


def by_concept(text: Text) -> dict[int, list[Firings]]:
    """Latents made by hand: they fire, all alike, on the words of a concept."""
    vocabulary = {i: text.says(i) for i in np.flatnonzero(text.counts).tolist()}
    found = {}
    for index, concept in enumerate(CONCEPTS):
        ids = [i for i, token in vocabulary.items() if concept.fires_on(token)]
        on = [
            places[np.isin(all_ids[places], ids)]
            for all_ids, places in zip(text.ids, text.places, strict=True)
        ]
        found[index] = [Firings(places, np.ones(len(places))) for places in on]
    return found


def examples_of(
    first: Firings, second: Firings, text: Text, options: Mapping[str, Any], draw: Any
) -> Examples | None:
    """Of one latent; None where it fires in too few contexts, or is hardly ever silent."""
    top = largest_by_context(first.values, first.places, text.width, options["n_top"])
    # In proportion to the activation, without replacement.
    keys = np.log(second.values) + draw.gumbel(size=len(second.values))
    order = largest_by_context(keys, second.places, text.width, options["n_held_out"])
    if len(top) < options["n_top"] or len(order) < options["n_held_out"]:
        return None
    held_out = second.places[order].tolist()
    ids, places = text.ids[1], text.places[1]
    bins = np.frexp(text.counts[ids[places]])[1]
    matched: list[int] = []
    for place in held_out:
        as_frequent = places[bins == np.frexp(text.counts[ids[place]])[1]]
        pool = draw.choice(as_frequent, _TRIES)
        taken = silent([p for p in pool.tolist() if p not in matched], second.places, text, 1)
        matched += taken
    if len(matched) < LEAST_SHARE * options["n_held_out"]:
        return None
    return Examples(first.places[top].tolist(), held_out, matched)


def all_examples(
    found: Mapping[int, Sequence[Firings]], text: Text, options: Mapping[str, Any], draw: Any
) -> tuple[dict[int, Examples], dict[int, float]]:
    """Of every latent that has enough of them, and how often each of these fires."""
    drawn = {i: examples_of(of[0], of[1], text, options, draw) for i, of in found.items()}
    examples = {i: one for i, one in drawn.items() if one is not None}
    return examples, {i: float(sum(len(half.places) for half in found[i])) for i in examples}


def silent(
    pool: Sequence[int], fires: np.ndarray, text: Text, n: int, draw: Any = None
) -> list[int]:
    """The first places (in a drawn order) around which a latent does not fire, at most n."""
    order = range(len(pool)) if draw is None else draw.permutation(len(pool)).tolist()
    found: list[int] = []
    for place in (pool[k] for k in order):
        start, end = text.span(place)
        if np.searchsorted(fires, start) == np.searchsorted(fires, end) and place not in found:
            found.append(place)
            if len(found) == n:
                break
    return found


def means(scores: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Of every metric over the latents that have it."""
    names = dict.fromkeys(name for one in scores.values() for name in one)
    each = {n: [one[n] for one in scores.values() if n in one] for n in names}
    return {name: math.fsum(values) / len(values) for name, values in each.items()}
