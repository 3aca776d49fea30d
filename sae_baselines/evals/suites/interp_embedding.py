"""Whether contexts of a latent are alike, judged by a model of sentences: no judge is asked."""

import importlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from sae_lens import SAE
from typing_extensions import override

from sae_baselines.errors import UserError, one_line
from sae_baselines.evals.latent_contexts import (
    DEFAULTS,
    LEAST_SHARE,
    Firings,
    Text,
    all_examples,
    auc,
    by_concept,
    means,
    problems_of,
    silent,
)
from sae_baselines.evals.measured import HIGHER
from sae_baselines.evals.metrics import Margin, Metric, null_name, with_floors
from sae_baselines.evals.nulls import exchanged
from sae_baselines.evals.suite import (
    Extras,
    Needs,
    OnRandomModel,
    Subject,
    SuiteCall,
)
from sae_baselines.evals.suites.context_suite import EXCHANGED, ContextSuite
from sae_baselines.files import new_file
from sae_baselines.study.held_out import HeldOut

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
NO_ENCODER = "sentence-transformers is not installed; pip install 'sae-baselines[embedding]'"
# Latents nearest in firing rate, in whose contexts the harder negatives are.
_LIKE = 8
_NULL = {EXCHANGED: "closeness to the top contexts of a latent that fires about as often"}
_HARD = "_hard"
# By how a context is compared with the top contexts.
_EMBEDDING, _LEXICAL, _TOKEN, _NEXT = "embedding", "lexical", "token", "next_token"
_KINDS = {
    _EMBEDDING: "embedding",
    _LEXICAL: "words in common",
    _TOKEN: "the token itself",
    _NEXT: "the next token",
}
_SCORE = f"{_EMBEDDING}_auc"
_CONCEPTS = "concepts_auc"
_CEILING = "concepts.json"


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


class InterpEmbedding(ContextSuite):
    """Of each latent: are contexts in which it fires nearer to its top contexts than others?

    Near is meant in the space of a model of sentences. A proxy of interpretability, and a
    deterministic one: what contexts have in common is seen only as far as that model sees it.
    Top contexts are from one half of the documents, contexts to be told from the other.
    """

    name = "interp_embedding"
    summary = "contexts of a latent told from others by closeness to its top contexts; no judge"
    primary = (_SCORE,)
    metrics = (
        *_auc(_SCORE, "tokens as frequent"),
        *_auc(f"{_SCORE}{_HARD}", "contexts of latents that fire about as often"),
        Metric("*", tasks_paired=False),
    )
    needs = Needs(as_sae_says=True)
    local_data = ("dataset", "encoder")
    spread_of = of_each = (_SCORE, f"{_SCORE}{_HARD}")
    tested = "n_held_out"
    of_the_text = (_CONCEPTS,)
    on_random_model = OnRandomModel(
        "verdict",
        "Contexts of its latents are as alike as tokens alone make them; an SAE whose contexts "
        "are no more alike shows nothing of what the model computes.",
    )

    def defaults(self) -> dict[str, Any]:
        return {**DEFAULTS, "encoder": ENCODER}

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        if find_spec("sentence_transformers") is None:
            yield NO_ENCODER
        yield from problems_of(subject, options)

    @override
    def problems_of_file(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        return [p for p in super().problems_of_file(subject, options) if p != NO_ENCODER]

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        options = call.options
        tokenizer, halves = self.halves(sae, call)
        text = EmbeddedText(
            tokenizer, halves, _encoder(options["encoder"], call.subject.device)
        )
        ceiling = call.cache / _CEILING
        if not ceiling.exists():
            made = scores_of(by_concept(text), text, options, call.seed)
            with new_file(ceiling) as scratch:
                known = {**means(made), "n": len(made)}
                scratch.write_text(json.dumps(known), encoding="utf-8")
        found, counts = self.chosen(sae, halves, call)
        scores = scores_of(found, text, options, call.seed)
        concepts = json.loads(ceiling.read_text(encoding="utf-8"))
        counts["n_concepts"] = concepts["n"]
        known = {
            name.replace(_SCORE, _CONCEPTS): value
            for name, value in concepts.items()
            if name in self.of_each
        }
        return self.written(call, scores, counts, of_the_text=known)


class EmbeddedText(Text):
    """A text, and its contexts as vectors.

    Args:
        tokenizer: Of transformers.
        halves: See `Text`.
        encoder: Of sentence-transformers.
    """

    def __init__(self, tokenizer: Any, halves: Sequence[HeldOut], encoder: Any) -> None:
        super().__init__(tokenizer, halves)
        self._encoder = encoder
        self._vectors: dict[str, np.ndarray] = {}

    def embedded(self, half: int, places: Sequence[int]) -> np.ndarray:
        """``[places, dimensions]``, unit rows."""
        texts = [self.around(half, place) for place in places]
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


def scores_of(
    found: Mapping[int, list[Firings]],
    text: EmbeddedText,
    options: Mapping[str, Any],
    seed: int,
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
    examples, rates = all_examples(found, text, options, draw)
    if len(examples) < 2:
        return {}
    partner = exchanged(examples, seed, rates)
    tops = {i: text.embedded(0, one.top).mean(axis=0) for i, one in examples.items()}
    scores: dict[int, dict[str, float]] = {}
    for i, one in examples.items():
        # The null is closeness to the partner's top contexts, to which its own are closest.
        others = sorted(
            examples.keys() - {i, partner[i]}, key=lambda k: abs(rates[k] - rates[i])
        )
        pool = [place for k in others[:_LIKE] for place in examples[k].held_out]
        like = silent(pool, found[i][1].places, text, len(one.held_out), draw)
        own: dict[str, float] = {}
        for hard, negatives in (("", one.matched), (_HARD, like)):
            if len(negatives) < LEAST_SHARE * options["n_held_out"]:
                continue
            sides = (one.held_out, negatives)
            vectors = [text.embedded(1, places) for places in sides]
            name = f"{_EMBEDDING}_auc{hard}"
            own[name] = auc(*(side @ tops[i] for side in vectors))
            own[null_name(name, EXCHANGED)] = auc(
                *(side @ tops[partner[i]] for side in vectors)
            )
            for kind, near in _baselines(one.top, text).items():
                told = (np.array([near(place) for place in places]) for places in sides)
                own[f"{kind}_auc{hard}"] = auc(*told)
        scores[i] = own
    return scores


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
