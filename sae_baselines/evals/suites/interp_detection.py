"""Whether a judge tells contexts of a latent from others, by its description of the latent."""

import math
import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from sae_lens import SAE
from typing_extensions import override

from sae_baselines.compat.saebench import CLIENT_RETRIES, CLIENT_TIMEOUT
from sae_baselines.evals.detection import PROMPTS, Detector
from sae_baselines.evals.endpoint import (
    Endpoint,
    default_model,
    endpoint_problems,
    from_environment,
    without_secrets,
)
from sae_baselines.evals.judge import (
    JUDGE_FLOOR,
    JUDGE_SCORE,
    REJUDGED_SE,
    judge_conditions,
    judge_metrics,
    judge_record,
    moved_by_judging,
    refusals,
    wrong_options,
    wrong_rejudged,
)
from sae_baselines.evals.latent_contexts import (
    DEFAULTS,
    Examples,
    Text,
    all_examples,
    problems_of,
)
from sae_baselines.evals.measured import HIGHER, Measured
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

NAME = "interp_detection"
_AUC, _ACCURACY = "detection_auc", "detection_accuracy"
_NULL = {EXCHANGED: "the description of a latent that fires about as often"}
_TITLES = {
    _AUC: "Contexts told by a judge, one at a time (AUC)",
    _ACCURACY: "Contexts told by a judge, one at a time (accuracy)",
}
_MARGIN = Margin(
    0.02,
    "2 points of AUC, as for contexts told by embedding; with 100 latents, whose AUC has a "
    "standard deviation of about 0.2, the standard error of one score is 0.02.",
)
# They say how, and decide no score.
_HOW = ("retries", "timeout", "parallel")


class InterpDetection(ContextSuite):
    """A judge describes latents and says of one context at a time whether it fits.

    Contexts are those of `interp_embedding`, so that with the same ``n_top``, ``n_held_out``,
    ``n_tokens`` and text the first latents are the same. The judge sees no list and need not
    count, so that small ones can do it, which fail at SAEBench's AutoInterp.
    """

    name = NAME
    summary = "a judge describes latents and tells their contexts, one at a time"
    primary = (_AUC,)
    metrics = (
        *with_floors(
            Metric(
                _AUC,
                HIGHER,
                _TITLES[_AUC],
                _MARGIN,
                "fraction",
                "latents",
                chance=0.5,
                tasks_paired=False,
                alongside=(_ACCURACY, JUDGE_SCORE, JUDGE_FLOOR, REJUDGED_SE),
            ),
            _NULL,
        ),
        *judge_metrics("AUC"),
        *with_floors(
            Metric(
                _ACCURACY,
                HIGHER,
                _TITLES[_ACCURACY],
                _MARGIN,
                "fraction",
                "latents",
                chance=0.5,
                tasks_paired=False,
            ),
            _NULL,
        ),
        Metric("*", tasks_paired=False),
    )
    needs = Needs(as_sae_says=True, judge=True)
    spread_of = (_AUC,)
    of_each = (_AUC, null_name(_AUC, EXCHANGED))
    tested = "n_asked"
    on_random_model = OnRandomModel(
        "verdict",
        "Its latents can be described as far as tokens alone make them describable (Heap et "
        "al., arXiv 2501.17727); an SAE whose latents are no better described shows nothing of "
        "what the model computes.",
    )

    def defaults(self) -> dict[str, Any]:
        return {
            **DEFAULTS,
            # Of the contexts in which it fires, those that the judge is asked about.
            "n_asked": 10,
            # Latents that are judged again, on other contexts.
            "rejudged": 0,
            "model": default_model(),
            "retries": CLIENT_RETRIES,
            "timeout": CLIENT_TIMEOUT,
            "parallel": 4,
        }

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        yield from (unreachable := list(endpoint_problems()))
        yield from (wrong := list(self.problems_of_file(subject, options)))
        if not unreachable and not wrong:
            yield from refusals(options["model"], NAME)

    @override
    def problems_of_file(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        yield from problems_of(subject, options, ("n_asked", "parallel"))
        yield from wrong_options(options)
        yield from wrong_rejudged(options)

    @override
    def requests(self, options: Mapping[str, Any]) -> int:
        # A description, and both sides' contexts by its own and by another's.
        each = 1 + 2 * options["n_asked"]
        return (
            options["n_latents"] * (each + 2 * options["n_asked"]) + options["rejudged"] * each
        )

    @override
    def deciding(self, options: Mapping[str, Any]) -> dict[str, Any]:
        decide = super().deciding(options)
        # What is judged again comes after the scores.
        return {k: value for k, value in decide.items() if k not in (*_HOW, "rejudged")}

    @override
    def conditions(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"prompts": PROMPTS, **judge_conditions(options["model"])}

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        endpoint = from_environment()
        return without_secrets(
            endpoint, lambda: self._run(sae, call, detector_of(endpoint, call.options))
        )

    def _run(self, sae: SAE[Any], call: SuiteCall, detector: Detector) -> Extras:
        options = call.options
        tokenizer, halves = self.halves(sae, call)
        text = Text(tokenizer, halves)
        found, counts = self.chosen(sae, halves, call)
        draw = np.random.default_rng(call.seed)
        examples, rates = all_examples(found, text, options, draw)
        scores, said, unread = judged(detector, examples, rates, text, options, call.seed)
        chosen = random.Random(call.seed).sample(
            sorted(scores), min(options["rejudged"], len(scores))
        )
        if len(chosen) > 1:
            some = {i: found[i] for i in chosen}
            draw = np.random.default_rng(call.seed + 1)
            others, _ = all_examples(some, text, options, draw)
            again = judged(detector, others, {}, text, options, call.seed + 1)[0]
            counts["rejudged"] = {str(i): one[_AUC] for i, one in again.items()}
        counts |= {
            "n_unreadable": unread,
            "judge": judge_record(detector.endpoint, detector.model, NAME, PROMPTS),
        }
        words = {i: {"explanation": one} for i, one in said.items()}
        extras = self.written(call, scores, counts, words)
        extras.notes[0] += f"; {unread} replies were neither yes nor no"
        if detector.without_probabilities:
            extras.notes[0] += (
                "; the judge says no probabilities, so that AUC has three values a question"
            )
        return extras

    @override
    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        again = {int(i): float(auc) for i, auc in extras.get("rejudged", {}).items()}
        each = payload["eval_result_unstructured"]
        scores = {int(i): one[_AUC] for i, one in each.items() if _AUC in one}
        moved = self.numbers(moved_by_judging(scores, again), n=len(again))
        return [*super().rows(payload, extras), *moved]


def detector_of(endpoint: Endpoint, options: Mapping[str, Any]) -> Detector:
    """The judge at an endpoint that these options name."""
    return Detector(endpoint, options["model"], **{name: options[name] for name in _HOW})


def judged(
    detector: Detector,
    examples: Mapping[int, Examples],
    rates: Mapping[int, float],
    text: Text,
    options: Mapping[str, Any],
    seed: int,
) -> tuple[dict[int, dict[str, float]], dict[int, str], int]:
    """Every latent's scores and nulls; descriptions; how many replies could not be read.

    Args:
        detector: The judge.
        examples: Of every latent.
        rates: How often each fires; none leaves the null out.
        text: What contexts stand in.
        options: ``n_asked``.
        seed: Of the exchange of descriptions.
    """
    said = {
        i: detector.describe([text.marked(0, place) for place in one.top])
        for i, one in examples.items()
    }
    partner = exchanged(examples, seed, dict(rates)) if len(examples) > 1 and rates else {}
    scores: dict[int, dict[str, float]] = {}
    unread = 0
    for i, one in examples.items():
        on, off = (
            [text.around(1, place) for place in places[: options["n_asked"]]]
            for places in (one.held_out, one.matched)
        )
        own: dict[str, float] = {}
        for kind, by in (("", i), (EXCHANGED, partner.get(i))):
            if by is None:
                continue
            told = detector.tell(said[by], on, off, options["n_asked"])
            unread += told.unreadable
            if math.isnan(told.auc):
                continue
            for name, value in ((_AUC, told.auc), (_ACCURACY, told.accuracy)):
                own[null_name(name, kind) if kind else name] = value
        if _AUC in own:
            scores[i] = own
    return scores, said, unread
