"""AutoInterp's null floor: what the judge scores with the descriptions of other latents.

Most of the 14 examples it judges do not activate the latent, so that a useless description
already scores well above zero; a score means little without that floor.
"""

import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sae_baselines.errors import UserError

# As many as SAEBench itself asks at once.
_WORKERS = 10


@dataclass
class Gathered:
    """What SAEBench's AutoInterp gathered in a run.

    Attributes:
        judge: The ``AutoInterp`` object; None before it gathered.
        examples: Latent to the examples on which a description is scored.
    """

    judge: Any = None
    examples: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NullFloor:
    """Scores with descriptions shuffled between latents.

    Attributes:
        scores: Latent to the score it got with another latent's description.
        unparseable: Replies that were no list of numbers.
        failed: Requests that failed.
    """

    scores: dict[int, float]
    unparseable: int = 0
    failed: int = 0

    @property
    def mean(self) -> float:
        """The floor; NaN without scores."""
        return sum(self.scores.values()) / len(self.scores) if self.scores else float("nan")


@contextmanager
def observed() -> Iterator[Gathered]:
    """While open, SAEBench's AutoInterp leaves its examples here; it does nothing else anew.

    Raises:
        UserError: SAEBench has no such class, or it gathers in another way.
    """
    from sae_bench.evals.autointerp import main  # noqa: PLC0415

    module: Any = main
    stock: Any = getattr(module, "AutoInterp", None)
    if not hasattr(stock, "gather_data"):
        raise UserError(
            "suites.autointerp: this sae-bench has no evals.autointerp.main.AutoInterp."
            "gather_data; install sae-bench==0.6.0"
        )
    gathered = Gathered()

    class Observed(stock):
        def gather_data(self) -> Any:
            found = super().gather_data()
            gathered.judge, gathered.examples = self, found[1]
            return found

    module.AutoInterp = Observed
    try:
        yield gathered
    finally:
        module.AutoInterp = stock


def exchanged(latents: list[int], seed: int) -> dict[int, int]:
    """Whose description each latent gets: never its own.

    Args:
        latents: At least two for anything to exchange.
        seed: Of the order in which descriptions are handed on.

    Returns:
        Latent to another latent, every one of them used once; empty for fewer than two.
    """
    if len(latents) < 2:
        return {}
    order = sorted(latents)
    random.Random(seed).shuffle(order)
    return dict(zip(order, [*order[1:], order[0]], strict=True))


def null_floor(
    gathered: Gathered,
    descriptions: Mapping[int, str],
    seed: int,
    failures: tuple[type[Exception], ...],
) -> NullFloor:
    """Score every latent again, by SAEBench's own methods, with another one's description.

    Args:
        gathered: Of the same run: the very examples of the true scores.
        descriptions: Latent to description, of the latents that were scored.
        seed: Of the exchange, and of SAEBench's prompts.
        failures: Errors of single requests, which are counted and cost one latent each.
    """
    judge = gathered.judge
    random.seed(seed)  # SAEBench's prompts show a random example of a reply
    prompts = {
        latent: judge.get_scoring_prompts(descriptions[other], gathered.examples[latent])
        for latent, other in sorted(exchanged(list(descriptions), seed).items())
    }

    def ask(latent: int) -> str | None:
        try:
            replies, _ = judge.get_api_response(
                prompts[latent], judge.cfg.max_tokens_in_prediction
            )
        except failures:
            return None
        return replies[0]

    with ThreadPoolExecutor(_WORKERS) as pool:
        replies = dict(zip(prompts, pool.map(ask, prompts), strict=True))
    answered = {latent: reply for latent, reply in replies.items() if reply is not None}
    scores = {}
    for latent, reply in answered.items():
        predictions = judge.parse_predictions(reply)
        if predictions is not None:
            scores[latent] = judge.score_predictions(predictions, gathered.examples[latent])
    return NullFloor(
        scores,
        unparseable=len(answered) - len(scores),
        failed=len(replies) - len(answered),
    )
