"""Whether contexts of a latent are alike, judged by a model of sentences: no judge is asked."""

import importlib
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE
from typing_extensions import override

from sae_baselines.controls.latents import flat_copy
from sae_baselines.errors import UserError, one_line
from sae_baselines.evals.concepts import CONCEPTS
from sae_baselines.evals.measured import HIGHER, Measured
from sae_baselines.evals.metrics import Margin, Metric, null_name, with_floors
from sae_baselines.evals.nulls import exchanged
from sae_baselines.evals.store import local_path
from sae_baselines.evals.suite import (
    BYTES,
    Extras,
    Needs,
    OnRandomModel,
    Subject,
    Suite,
    SuiteCall,
)
from sae_baselines.evals.suites.core import language_model
from sae_baselines.files import new_file
from sae_baselines.study.contexts import (
    encoded_contexts,
    firings_in,
    largest_by_context,
)
from sae_baselines.study.data import load_text, split_text
from sae_baselines.study.held_out import HeldOut, collect_held_out
from sae_baselines.study.language_model import token_texts
from sae_baselines.study.spec import DatasetSpec, ModelSpec, PanelSpec

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
NO_ENCODER = "sentence-transformers is not installed; pip install 'sae-baselines[embedding]'"
# Of a context, tokens before and after the one that the latent fires on. Concepts made by hand
# are told better than with twice as many (AUC 0.73 and 0.68 on Wikipedia), and with these the
# whole context has a chance to be silent.
BEFORE, AFTER = 5, 2
LEAST_LATENTS = 5
# Latents nearest in firing rate, in whose contexts the harder negatives are.
_LIKE = 8
# Of a latent, contexts that must have a negative to be told from.
_LEAST_SHARE = 0.5
_TRIES = 100
_EXCHANGED = "exchanged"
_NULL = {_EXCHANGED: "closeness to the top contexts of a latent that fires about as often"}
_HARD = "_hard"
# By how a context is compared with the top contexts.
_EMBEDDING, _LEXICAL, _TOKEN, _NEXT = "embedding", "lexical", "token", "next_token"
_KINDS = {
    _EMBEDDING: "embedding",
    _LEXICAL: "words in common",
    _TOKEN: "the token itself",
    _NEXT: "the next token",
}
_CONCEPTS = "concepts_auc"
_TEXT, _CEILING = "text.pt", "concepts.json"
_POSITIVE = ("context_size", "n_tokens", "n_latents", "n_top", "n_held_out")


def _auc(name: str, negatives: str) -> tuple[Metric, ...]:
    """The score, its null and what stands beside it."""
    hard = _HARD if name.endswith(_HARD) else ""
    simpler = [
        Metric(
            f"{kind}_auc{hard}",
            title=f"AUC by {how}, against {negatives}",
            unit="fraction",
            depends="latents",
            tasks_paired=False,
        )
        for kind, how in _KINDS.items()
        if kind != _EMBEDDING
    ]
    ceiling = Metric(
        f"{_CONCEPTS}{hard}",
        title=f"AUC of concepts made by hand, against {negatives}",
        unit="fraction",
        tasks_paired=False,
    )
    score = Metric(
        name,
        HIGHER,
        f"Contexts told by embedding, against {negatives}",
        Margin(
            0.02,
            "2 points of AUC: with 100 latents, whose AUC has a standard deviation of 0.16 "
            "(SmolLM2-135M), the standard error of one score is 0.016.",
        ),
        "fraction",
        "latents",
        chance=0.5,
        tasks_paired=False,
        alongside=tuple(metric.name for metric in simpler),
    )
    return (*with_floors(score, _NULL, (ceiling.name,)), *simpler, ceiling)


class InterpEmbedding(Suite):
    """Of each latent: are contexts in which it fires nearer to its top contexts than others?

    Near is meant in the space of a model of sentences. A proxy of interpretability, and a
    deterministic one: what contexts have in common is seen only as far as that model sees it.
    Top contexts are from one half of the documents, contexts to be told from the other.
    """

    name = "interp_embedding"
    summary = "contexts of a latent told from others by closeness to its top contexts; no judge"
    primary = ("embedding_auc",)
    n_of = "latents"
    metrics = (
        *_auc("embedding_auc", "tokens as frequent"),
        *_auc(f"embedding_auc{_HARD}", "contexts of latents that fire about as often"),
        Metric("*", tasks_paired=False),
    )
    needs = Needs(as_sae_says=True)
    local_data = ("dataset", "encoder")
    on_random_model = OnRandomModel(
        "verdict",
        "Contexts of its latents are as alike as tokens alone make them; an SAE whose contexts "
        "are no more alike shows nothing of what the model computes.",
    )

    def defaults(self) -> dict[str, Any]:
        return {
            "dataset": "Skylion007/openwebtext",
            "context_size": 128,
            "n_tokens": 131_072,
            "n_latents": 100,
            "n_top": 10,
            "n_held_out": 20,
            "encoder": ENCODER,
        }

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        if find_spec("sentence_transformers") is None:
            yield NO_ENCODER
        for option in _POSITIVE:
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

    @override
    def problems_of_file(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        return [p for p in super().problems_of_file(subject, options) if p != NO_ENCODER]

    @override
    def datasets(self, options: Mapping[str, Any]) -> Iterable[str]:
        return [] if local_path(options["dataset"]) else [options["dataset"]]

    @override
    def disk(self, subject: Subject, options: Mapping[str, Any]) -> float:
        return options["n_tokens"] * subject.d_in * BYTES["float32"]

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        options = call.options
        model, _ = language_model(sae, call)
        if model.tokenizer is None:
            raise UserError(
                f"model: {call.subject.model_name} has no tokenizer, without which there are "
                "no contexts to compare"
            )
        halves = _halves(model, sae, call)
        text = Text(model.tokenizer, halves, _encoder(options["encoder"], call.subject.device))
        ceiling = call.cache / _CEILING
        if not ceiling.exists():
            made = scores_of(_by_concept(text), text, options, call.seed)
            with new_file(ceiling) as scratch:
                known = {**_means(made), "n": len(made)}
                scratch.write_text(json.dumps(known), encoding="utf-8")
        found, counts = _chosen(flat_copy(sae).to(sae.device), halves, options, call.seed)
        scores = scores_of(found, text, options, call.seed)
        concepts = json.loads(ceiling.read_text(encoding="utf-8"))
        payload = {
            "eval_type_id": self.name,
            "eval_config": dict(options),
            "eval_result_metrics": {
                self.name: {
                    **_means(scores),
                    **{
                        name.replace(f"{_EMBEDDING}_auc", _CONCEPTS): value
                        for name, value in concepts.items()
                        if name in ("embedding_auc", f"embedding_auc{_HARD}")
                    },
                }
            },
            "eval_result_unstructured": {str(i): one for i, one in scores.items()},
        }
        call.expected.write_text(json.dumps(payload, indent=2), encoding="utf-8")
        counts["n_scored"], counts["n_concepts"] = len(scores), concepts["n"]
        note = (
            f"{counts['n_eligible']} of {counts['n_firing']} latents that fire do so in enough "
            f"contexts; {len(scores)} of {counts['n_requested']} were scored"
        )
        return Extras(counts, [note])

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        means = payload["eval_result_metrics"][self.name]
        latents = payload["eval_result_unstructured"]
        n = len(latents)
        few = f"{n} latents have a score, {LEAST_LATENTS} must" if n < LEAST_LATENTS else ""
        rows = []
        for name in (m.name for m in self.metrics if "*" not in m.name):
            value = means.get(name)
            of_sae = not name.startswith(_CONCEPTS)
            if value is None or (few and of_sae):
                value = math.nan
            row = self.number(name, value, n=n if of_sae else None)
            rows.append(replace(row, missing=few) if few and of_sae else row)
        for name in ("embedding_auc", f"embedding_auc{_HARD}"):
            each = [one[name] for one in latents.values() if name in one]
            spread = statistics.stdev(each) if len(each) > 1 else math.nan
            rows.append(self.number(f"{name}_std_dev", spread, n=len(each)))
        rows += [
            self.number(name, float(extras[name]))
            for name in sorted(extras)
            if name[:2] == "n_"
        ]
        tested = payload["eval_config"]["n_held_out"]
        rows += [
            self.number(name, one[name], f"latent_{i}", tested, "contexts")
            for name in ("embedding_auc", f"embedding_auc{_HARD}")
            for i, one in latents.items()
            if name in one
        ]
        return rows


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
        encoder: Of sentence-transformers.
    """

    def __init__(self, tokenizer: Any, halves: Sequence[HeldOut], encoder: Any) -> None:
        self._tokenizer, self._encoder = tokenizer, encoder
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
        self._vectors: dict[str, np.ndarray] = {}

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

    def embedded(self, half: int, places: Sequence[int]) -> np.ndarray:
        """``[places, dimensions]``, unit rows."""
        texts = ["".join(token_texts(self._tokenizer, self.tokens(half, p))) for p in places]
        new = sorted({text for text in texts if text not in self._vectors})
        if new:
            rows = self._encoder.encode(
                new,
                batch_size=64,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
            self._vectors.update(zip(new, rows, strict=True))
        return np.stack([self._vectors[text] for text in texts])

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


def _halves(model: Any, sae: SAE[Any], call: SuiteCall) -> list[HeldOut]:
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
                f"suites.interp_embedding: {one_line(error)} (dataset: {options['dataset']}, "
                f"n_tokens: {options['n_tokens']:,})"
            ) from error
        kept = [(half.evaluation, half.contexts, half.places) for half in found]
        with new_file(file) as scratch:
            torch.save(kept, scratch)
    return [
        HeldOut(x[:0], x, contexts[:0], contexts, places)
        for x, contexts, places in torch.load(file, weights_only=True)
    ]


def _encoder(name: str, device: str) -> Any:
    try:
        library = importlib.import_module("sentence_transformers")
        return library.SentenceTransformer(name, device=device)
    except Exception as error:  # whatever a third party's files may cause
        raise UserError(
            f"suites.interp_embedding: encoder: {name!r} cannot be loaded "
            f"({type(error).__name__}: {one_line(error, 200)}); give a name that "
            "sentence-transformers knows, or a folder"
        ) from error


@torch.no_grad()
def _chosen(
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


def _by_concept(text: Text) -> dict[int, list[Firings]]:
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


def scores_of(
    found: Mapping[int, list[Firings]], text: Text, options: Mapping[str, Any], seed: int
) -> dict[int, dict[str, float]]:
    """Every AUC, and its nulls, of every latent with enough examples.

    Args:
        found: Latent to where it fires in either half.
        text: The halves.
        options: ``n_top`` and ``n_held_out``.
        seed: Of what is drawn.

    Returns:
        Latent to metric to AUC; without the harder negatives where there are too few.
    """
    draw = np.random.default_rng(seed)
    drawn = {
        i: _examples(halves[0], halves[1], text, options, draw) for i, halves in found.items()
    }
    examples = {i: one for i, one in drawn.items() if one is not None}
    if len(examples) < 2:
        return {}
    rates = {i: float(sum(len(half.places) for half in found[i])) for i in examples}
    partner = exchanged(examples, seed, rates)
    tops = {i: text.embedded(0, one.top).mean(axis=0) for i, one in examples.items()}
    scores: dict[int, dict[str, float]] = {}
    for i, one in examples.items():
        # The null is closeness to the partner's top contexts, to which its own are closest.
        others = sorted(
            examples.keys() - {i, partner[i]}, key=lambda k: abs(rates[k] - rates[i])
        )
        pool = [place for k in others[:_LIKE] for place in examples[k].held_out]
        like = _silent(pool, found[i][1].places, text, len(one.held_out), draw)
        own: dict[str, float] = {}
        for hard, negatives in (("", one.matched), (_HARD, like)):
            if len(negatives) < _LEAST_SHARE * options["n_held_out"]:
                continue
            sides = (one.held_out, negatives)
            vectors = [text.embedded(1, places) for places in sides]
            name = f"{_EMBEDDING}_auc{hard}"
            own[name] = auc(*(side @ tops[i] for side in vectors))
            own[null_name(name, _EXCHANGED)] = auc(
                *(side @ tops[partner[i]] for side in vectors)
            )
            for kind, near in _baselines(one.top, text).items():
                told = (np.array([near(place) for place in places]) for places in sides)
                own[f"{kind}_auc{hard}"] = auc(*told)
        scores[i] = own
    return scores


def _examples(
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
        taken = _silent([p for p in pool.tolist() if p not in matched], second.places, text, 1)
        matched += taken
    if len(matched) < _LEAST_SHARE * options["n_held_out"]:
        return None
    return Examples(first.places[top].tolist(), held_out, matched)


def _silent(
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


def _baselines(top: Sequence[int], text: Text) -> dict[str, Callable[[int], float]]:
    """How near a place of the second half is to top contexts, without a model of sentences."""
    bags: defaultdict[int, float] = defaultdict(float)
    for place in top:
        for token, weight in text.bag(0, place).items():
            bags[token] += weight
    here = Counter(text.at(0, place, 0) for place in top)
    after = Counter(text.at(0, place, 1) for place in top)
    return {
        _LEXICAL: lambda p: sum(bags.get(i, 0.0) * w for i, w in text.bag(1, p).items()),
        _TOKEN: lambda p: here[text.at(1, p, 0)],
        _NEXT: lambda p: after[text.at(1, p, 1)],
    }


def _means(scores: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Of every metric over the latents that have it."""
    names = dict.fromkeys(name for one in scores.values() for name in one)
    each = {n: [one[n] for one in scores.values() if n in one] for n in names}
    return {name: math.fsum(values) / len(values) for name, values in each.items()}
