"""Whether a judge tells contexts of a latent from others, by its description of the latent."""

import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from sae_lens import SAE
from typing_extensions import override

from sae_baselines.compat.saebench import CLIENT_RETRIES, CLIENT_TIMEOUT, SAEBENCH_MODEL
from sae_baselines.controls.latents import flat_copy
from sae_baselines.errors import UserError
from sae_baselines.evals.detection import PROMPTS, Detector
from sae_baselines.evals.endpoint import (
    endpoint_problems,
    from_environment,
    without_secrets,
)
from sae_baselines.evals.judge import identity, last_test, same_judge
from sae_baselines.evals.latent_contexts import (
    DEFAULTS,
    LEAST_LATENTS,
    Examples,
    Text,
    auc,
    chosen,
    examples_of,
    halves_of,
    means,
    problems_of,
)
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

NAME = "interp_detection"
_AUC, _ACCURACY = "detection_auc", "detection_accuracy"
_EXCHANGED = "exchanged"
_NULL = {_EXCHANGED: "the description of a latent that fires about as often"}
_TITLES = {
    _AUC: "Contexts told by a judge, one at a time (AUC)",
    _ACCURACY: "Contexts told by a judge, one at a time (accuracy)",
}
_MARGIN = Margin(
    0.02,
    "2 points of AUC, as for contexts told by embedding; with 100 latents, whose AUC has a "
    "standard deviation of about 0.2, the standard error of one score is 0.02.",
)
# Of a latent's questions, those that must have an answer.
_LEAST_ANSWERS = 0.5
# They say how, and decide no score.
_HOW = ("retries", "timeout", "parallel")


class InterpDetection(Suite):
    """A judge describes latents and says of one context at a time whether it fits.

    Contexts are those of `interp_embedding`, so that with the same ``n_top``, ``n_held_out``,
    ``n_tokens`` and text the first latents are the same. The judge sees no list and need not
    count, so that small ones can do it, which fail at SAEBench's AutoInterp.
    """

    name = NAME
    summary = "a judge describes latents and tells their contexts, one at a time"
    primary = (_AUC,)
    n_of = "latents"
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
                alongside=(_ACCURACY,),
            ),
            _NULL,
        ),
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
    local_data = ("dataset",)
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
            "model": os.environ.get("OPENAI_MODEL") or SAEBENCH_MODEL,
            "retries": CLIENT_RETRIES,
            "timeout": CLIENT_TIMEOUT,
            "parallel": 4,
        }

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        yield from (unreachable := list(endpoint_problems()))
        yield from (wrong := list(self.problems_of_file(subject, options)))
        if unreachable or wrong:
            return
        known = last_test(from_environment().host, options["model"], NAME)
        if known is not None and known.flaw is not None:
            yield (
                f"model: {options['model']!r} is no judge: {known.flaw}; name another, or run "
                f"sae-baselines judge test --suite {NAME} again if it is another model by now"
            )

    @override
    def problems_of_file(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        yield from problems_of(subject, options, ("n_asked", "parallel"))
        if not isinstance(options["model"], str) or not options["model"]:
            yield f"model: {options['model']!r} is not the name of a model"
        retries, seconds = options["retries"], options["timeout"]
        if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
            yield f"retries: {retries!r} is not a number of retries, 0 or more"
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds <= 0:
            yield f"timeout: {seconds!r} is not a number of seconds above 0"

    @override
    def datasets(self, options: Mapping[str, Any]) -> Iterable[str]:
        return [] if local_path(options["dataset"]) else [options["dataset"]]

    @override
    def disk(self, subject: Subject, options: Mapping[str, Any]) -> float:
        return options["n_tokens"] * subject.d_in * BYTES["float32"]

    @override
    def requests(self, options: Mapping[str, Any]) -> int:
        # A description, and both sides' contexts by its own and by another's.
        return options["n_latents"] * (1 + 4 * options["n_asked"])

    @override
    def deciding(self, options: Mapping[str, Any]) -> dict[str, Any]:
        decide = super().deciding(options)
        return {name: value for name, value in decide.items() if name not in _HOW}

    @override
    def conditions(self, options: Mapping[str, Any]) -> dict[str, Any]:
        known = identity(from_environment(), options["model"])
        file = {"judge_file": known["sha256"]} if "sha256" in known else {}
        return {"judge_host": known["host"], "prompts": PROMPTS, **file}

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        endpoint = from_environment()
        return without_secrets(
            endpoint, lambda: self._run(sae, call, detector_of(call.options))
        )

    def _run(self, sae: SAE[Any], call: SuiteCall, detector: Detector) -> Extras:
        options = call.options
        model, _ = language_model(sae, call)
        if model.tokenizer is None:
            raise UserError(
                f"model: {call.subject.model_name} has no tokenizer, without which there are "
                "no contexts to show"
            )
        halves = halves_of(self.name, model, sae, call)
        text = Text(model.tokenizer, halves)
        found, counts = chosen(flat_copy(sae).to(sae.device), halves, options, call.seed)
        draw = np.random.default_rng(call.seed)
        drawn = {i: examples_of(of[0], of[1], text, options, draw) for i, of in found.items()}
        examples = {i: one for i, one in drawn.items() if one is not None}
        rates = {i: float(sum(len(half.places) for half in found[i])) for i in examples}
        scores, said, unread = judged(detector, examples, rates, text, options, call.seed)
        payload = {
            "eval_type_id": self.name,
            "eval_config": dict(options),
            "eval_result_metrics": {self.name: means(scores)},
            "eval_result_unstructured": {
                str(i): {"explanation": said[i], **one} for i, one in scores.items()
            },
        }
        call.expected.write_text(json.dumps(payload, indent=2), encoding="utf-8")
        counts |= {
            "n_scored": len(scores),
            "n_unreadable": unread,
            "judge": self._judge_of(detector, call),
        }
        note = (
            f"{counts['n_eligible']} of {counts['n_firing']} latents that fire do so in enough "
            f"contexts; {len(scores)} of {counts['n_requested']} were scored; {unread} replies "
            "were neither yes nor no"
        )
        if detector.without_probabilities:
            note += "; the judge says no probabilities, so that AUC has three values a question"
        return Extras(counts, [note])

    def _judge_of(self, detector: Detector, call: SuiteCall) -> dict[str, Any]:
        judge: dict[str, Any] = identity(detector.endpoint, call.options["model"])
        judge["prompts"] = PROMPTS
        known = last_test(judge["host"], judge["model"], NAME)
        if known is not None and same_judge(known.judge, judge):
            judge["test"] = known.summary
        return judge

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        told = payload["eval_result_metrics"][self.name]
        latents = payload["eval_result_unstructured"]
        n = len(latents)
        few = f"{n} latents have a score, {LEAST_LATENTS} must" if n < LEAST_LATENTS else ""
        rows = []
        for name in (m.name for m in self.metrics if "*" not in m.name):
            value = math.nan if few else told.get(name, math.nan)
            row = self.number(name, value, n=n)
            rows.append(replace(row, missing=few) if few else row)
        each = [one[_AUC] for one in latents.values()]
        spread = statistics.stdev(each) if n > 1 else math.nan
        rows.append(self.number(f"{_AUC}_std_dev", spread, n=n))
        rows += [
            self.number(name, float(extras[name]))
            for name in sorted(extras)
            if name[:2] == "n_"
        ]
        asked = payload["eval_config"]["n_asked"]
        return rows + [
            self.number(name, one[name], f"latent_{i}", asked, "contexts")
            for name in (_AUC, null_name(_AUC, _EXCHANGED))
            for i, one in latents.items()
            if name in one
        ]


def detector_of(options: Mapping[str, Any]) -> Detector:
    """The judge that the environment and these options name."""
    how = {name: options[name] for name in _HOW}
    return Detector(from_environment(), options["model"], **how)


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
        rates: How often each fires.
        text: What contexts stand in.
        options: ``n_asked``.
        seed: Of the exchange of descriptions.
    """
    said = {
        i: detector.describe([text.marked(0, place) for place in one.top])
        for i, one in examples.items()
    }
    partner = exchanged(examples, seed, dict(rates)) if len(examples) > 1 else {}
    scores: dict[int, dict[str, float]] = {}
    unread = 0
    for i, one in examples.items():
        sides = [places[: options["n_asked"]] for places in (one.held_out, one.matched)]
        shown = [text.around(1, place) for places in sides for place in places]
        own: dict[str, float] = {}
        for kind, by in (("", i), (_EXCHANGED, partner.get(i))):
            if by is None:
                continue
            odds = np.array(detector.decide(said[by], shown))
            unread += int(np.isnan(odds).sum())
            on, off = odds[: len(sides[0])], odds[len(sides[0]) :]
            on, off = on[~np.isnan(on)], off[~np.isnan(off)]
            if min(len(on), len(off)) < _LEAST_ANSWERS * options["n_asked"]:
                continue
            right = (float((on > 0).mean()) + float((off < 0).mean())) / 2
            for name, value in ((_AUC, auc(on, off)), (_ACCURACY, right)):
                own[null_name(name, kind) if kind else name] = value
        if _AUC in own:
            scores[i] = own
    return scores, said, unread
