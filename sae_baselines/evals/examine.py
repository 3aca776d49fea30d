"""Testing a judge on latents whose answer is known by construction.

SAEBench's own prompts and scoring, on short texts that are made here: each has one word in a
place where any word can stand, and a latent of a concept fires on it or on none.
"""

import asyncio
import math
import random
from collections.abc import Callable, Sequence

from sae_baselines.compat.saebench import CLIENT_RETRIES, Gathered, Marked, judge_of, judged_by
from sae_baselines.compat.saebench import saebench as from_saebench
from sae_baselines.errors import UserError
from sae_baselines.evals.concepts import CONCEPTS, Concept
from sae_baselines.evals.detection import PROMPTS
from sae_baselines.evals.endpoint import (
    Endpoint,
    check_endpoint,
    default_model,
    from_environment,
    without_secrets,
)
from sae_baselines.evals.judge import AUTOINTERP, JudgeTest, identity
from sae_baselines.evals.nulls import exchanged
from sae_baselines.evals.suite import from_seed
from sae_baselines.evals.suites.autointerp import (
    explained,
    null_floor,
    outside_loop,
    prompt_hashes,
)
from sae_baselines.evals.suites.interp_detection import NAME as DETECTION
from sae_baselines.evals.suites.interp_detection import InterpDetection, detector_of
from sae_baselines.provenance import now

# Any word can stand for the braces; none of the others is a concept's.
SENTENCES = (
    "He wrote {} on a card and left it there",
    "Somebody had painted {} above our door",
    "My neighbour kept saying {} while we waited",
    "She underlined {} in her notebook before lunch",
    "We could read {} on a sign near that bridge",
    "They asked what {} meant and nobody answered",
    "A child whispered {} and then ran away",
    "You will find {} on page after page",
    "It was {} that everybody remembered later",
    "I had typed {} into a search box",
    "Her letter mentioned {} only once",
    "Nobody expected {} to be printed there",
    "His talk began with {} and went on from it",
    "Our teacher spelled {} very slowly",
    "People still say {} around here",
    "That poster showed {} in tall letters",
)
_FILLERS = """
    table window quietly garden because engine yesterday paper running bottle sudden kitchen
    forest often bridge lamp clever stone carry basket winter simple village mirror
"""
FILLERS = tuple(_FILLERS.split())
# Latents that fire on words at random.
N_RANDOM = 2
# One at a time: texts that a latent is described by, and asked about on each side.
DESCRIBED, ASKED = 10, 10


def examine_judge(
    model: str | None = None, seed: int = 0, suite: str = AUTOINTERP
) -> JudgeTest:
    """Let the judge describe and predict latents that are known, and keep what it scores.

    `CONCEPTS` and `N_RANDOM` others: of `autointerp` three requests for each, of
    `interp_detection` one for each text. Evaluations by a judge that is not above its floor are
    refused from then on.

    Args:
        model: Judge at ``OPENAI_BASE_URL``; default: ``OPENAI_MODEL``, else SAEBench's own.
        seed: Of examples and prompts.
        suite: Whose prompts; the score is accuracy, of `interp_detection` AUC.

    Raises:
        UserError: There is no judge, it does not answer, or it fails on the way.
    """
    if suite not in _WAYS:
        raise UserError(f"suite: {suite!r} asks no judge; use {' or '.join(_WAYS)}")
    name = model or default_model()
    endpoint = from_environment()
    if (silent := check_endpoint(name, timeout=120.0)) is not None:
        raise UserError(f"judge: {silent}")
    try:
        test = without_secrets(
            endpoint, lambda: outside_loop(lambda: _WAYS[suite](name, endpoint, seed))
        )
    except UserError:
        raise
    except RuntimeError as error:
        raise UserError(f"judge: {endpoint.host}: {name!r} failed: {error}") from error
    done = JudgeTest(identity(endpoint, name), seed, *test, created=now(), suite=suite)
    done.save()
    return done


# Scores, floors, scores of random latents, descriptions, concepts asked for, prompts.
_Found = tuple[
    dict[str, float], dict[str, float], dict[str, float], dict[str, str], int, dict[str, str]
]


def _by_saebench(model: str, endpoint: Endpoint, seed: int) -> _Found:
    from openai import OpenAIError  # noqa: PLC0415

    names = [concept.name for concept in CONCEPTS]
    every = range(len(names) + N_RANDOM)
    config = from_saebench("AutoInterpEvalConfig")(
        n_latents=None, override_latents=list(every), model_name="made by hand"
    )
    counts = (config.n_ex_for_generation, config.n_correct_for_scoring)
    silent = config.n_ex_for_scoring - config.n_correct_for_scoring
    with from_seed(seed), judged_by(model, CLIENT_RETRIES), explained(model):
        latents = {
            i: _texts(CONCEPTS[i] if i < len(names) else None, *counts, silent) for i in every
        }
        judge = judge_of(config, endpoint.key, latents)
        found = asyncio.run(judge.run())
        concepts = {i: found[i] for i in found if i < len(names)}
        said = {i: str(one["explanation"]) for i, one in concepts.items()}
        gathered = Gathered(judge, judge.scoring_examples, dict.fromkeys(every, 0.0))
        null = null_floor(gathered, said, seed, (OpenAIError,))
    return (
        {names[i]: float(one["score"]) for i, one in sorted(concepts.items())},
        {names[i]: score for i, score in sorted(null.scores.items())},
        {
            f"words at random, {i - len(names) + 1}": float(found[i]["score"])
            for i in sorted(found)
            if i >= len(names)
        },
        {names[i]: text for i, text in sorted(said.items())},
        len(names),
        prompt_hashes(judge, judge.scoring_examples, seed),
    )


def _one_at_a_time(model: str, endpoint: Endpoint, seed: int) -> _Found:
    detector = detector_of(endpoint, {**InterpDetection().defaults(), "model": model})
    names = [concept.name for concept in CONCEPTS]
    every: list[Concept | None] = [*CONCEPTS, *[None] * N_RANDOM]
    with from_seed(seed):
        texts = [_texts(concept, DESCRIBED, ASKED, ASKED) for concept in every]
    said = {
        i: detector.describe([_marked(one) for one in top]) for i, (top, _) in enumerate(texts)
    }
    partner = exchanged(range(len(names)), seed)
    scores: dict[int, float] = {}
    floors: dict[int, float] = {}
    for i, (_, shown) in enumerate(texts):
        fit, other = (
            ["".join(tokens).strip() for tokens, on in shown if any(on) is side]
            for side in (True, False)
        )
        for into, by in ((scores, i), (floors, partner.get(i))):
            if by is None:
                continue
            told = detector.tell(said[by], fit, other, ASKED)
            if not math.isnan(told.auc):
                into[i] = told.auc
    return (
        {names[i]: scores[i] for i in range(len(names)) if i in scores},
        {names[i]: score for i, score in floors.items()},
        {
            f"words at random, {i - len(names) + 1}": score
            for i, score in scores.items()
            if i >= len(names)
        },
        {names[i]: said[i] for i in range(len(names))},
        len(names),
        dict(PROMPTS),
    )


_WAYS: dict[str, Callable[[str, Endpoint, int], _Found]] = {
    AUTOINTERP: _by_saebench,
    DETECTION: _one_at_a_time,
}


def _marked(text: Marked) -> str:
    tokens, on = text
    return "".join(
        f" <<{token.strip()}>>" if active else token
        for token, active in zip(tokens, on, strict=True)
    ).strip()


def _texts(
    concept: Concept | None, described: int, active: int, silent: int
) -> tuple[list[Marked], list[Marked]]:
    """Texts to describe a latent by, and to predict it on; None: one of words at random."""
    words: Sequence[str] = FILLERS if concept is None else sorted(concept.words)

    def text(on: bool) -> Marked:
        word = random.choice(words if on else FILLERS)
        sentence = random.choice(SENTENCES).format(word)
        tokens = [f" {token}" for token in sentence.split()]
        if concept is not None:
            return tokens, [concept.fires_on(token) for token in tokens]
        at = random.randrange(len(tokens))
        return tokens, [on and i == at for i in range(len(tokens))]

    return [text(True) for _ in range(described)], [
        text(on) for on in [True] * active + [False] * silent
    ]
