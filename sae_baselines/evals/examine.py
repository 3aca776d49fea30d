"""Testing a judge on latents whose answer is known by construction.

SAEBench's own prompts and scoring, on short texts that are made here: each has one word in a
place where any word can stand, and a latent of a concept fires on it or on none.
"""

import asyncio
import random
from collections.abc import Sequence

from sae_baselines.compat.saebench import CLIENT_RETRIES, Gathered, Marked, judge_of, judged_by
from sae_baselines.compat.saebench import saebench as from_saebench
from sae_baselines.errors import UserError
from sae_baselines.evals.concepts import CONCEPTS, Concept
from sae_baselines.evals.endpoint import check_endpoint, from_environment, without_secrets
from sae_baselines.evals.judge import JudgeTest, identity
from sae_baselines.evals.suite import from_seed
from sae_baselines.evals.suites.autointerp import (
    AutoInterp,
    explained,
    null_floor,
    outside_loop,
    prompt_hashes,
)
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


def examine_judge(model: str | None = None, seed: int = 0) -> JudgeTest:
    """Let the judge describe and predict latents that are known, and keep what it scores.

    Three requests for each of `CONCEPTS` and of `N_RANDOM` others. Evaluations by a judge that
    is not above its floor are refused from then on.

    Args:
        model: Judge at ``OPENAI_BASE_URL``; default: ``OPENAI_MODEL``, else SAEBench's own.
        seed: Of examples and prompts.

    Raises:
        UserError: There is no judge, it does not answer, or it fails on the way.
    """
    name = str(model or AutoInterp().defaults()["model"])
    endpoint = from_environment()
    if (silent := check_endpoint(name, timeout=120.0)) is not None:
        raise UserError(f"judge: {silent}")
    try:
        test = without_secrets(
            endpoint, lambda: outside_loop(lambda: _examine(name, endpoint.key, seed))
        )
    except UserError:
        raise
    except RuntimeError as error:
        raise UserError(f"judge: {endpoint.host}: {name!r} failed: {error}") from error
    done = JudgeTest(identity(endpoint, name), seed, *test, created=now())
    done.save()
    return done


def _examine(
    model: str, key: str, seed: int
) -> tuple[
    dict[str, float], dict[str, float], dict[str, float], dict[str, str], int, dict[str, str]
]:
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
        judge = judge_of(config, key, latents)
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
