"""SAEBench's automated interpretability, with its null floor and its drop-outs."""

import asyncio
import hashlib
import json
import math
import os
import random
import shutil
import statistics
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from sae_lens import SAE
from typing_extensions import override

from sae_baselines.compat.saebench import (
    CLIENT_RETRIES,
    CLIENT_TIMEOUT,
    SAEBENCH_MODEL,
    Gathered,
    judged_by,
    main_of,
    observed_judge,
    prompts_of,
)
from sae_baselines.errors import one_line
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
from sae_baselines.evals.measured import HIGHER, Measured
from sae_baselines.evals.metrics import Margin, Metric, null_name, with_floors
from sae_baselines.evals.nulls import exchanged
from sae_baselines.evals.suite import (
    Extras,
    Needs,
    OnRandomModel,
    SAEBenchSuite,
    Subject,
    SuiteCall,
    from_seed,
)
from sae_baselines.evals.versions import Requirement

T = TypeVar("T")

_COUNTS = (
    "n_requested",
    "n_scored",
    "n_dropped",
    "n_dead",
    "n_unparseable",
    "n_null_scored",
    "n_null_unparseable",
    "n_null_failed",
)
# Latents that must have a score for there to be one of the SAE. A latent's score is a share of
# 14 examples, with a standard deviation above 0.1 over latents: of fewer than 5 the mean has a
# standard error of more than 0.05, several margins, and one latent decides it.
LEAST_LATENTS = 5
# Those that drop out (dead, or described so that the judge's reply made no sense) are not like
# the others: a mean of survivors is better than the SAE.
LEAST_SHARE = 0.75
_EXCHANGED = "exchanged"
# As many as SAEBench itself asks at once.
_WORKERS = 10


@dataclass(frozen=True)
class NullFloor:
    """Scores with descriptions shuffled between latents.

    Most of the 14 examples that the judge is shown do not activate the latent, so that a
    useless description already scores well above zero; a score means little without that floor.

    Attributes:
        scores: Latent to the score it got with another latent's description.
        unparseable: Replies that were no list of numbers.
        failed: Requests that failed.
        exchanged: Latent to the one whose description it got.
    """

    scores: dict[int, float]
    unparseable: int = 0
    failed: int = 0
    exchanged: dict[int, int] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """The floor; NaN without scores."""
        return sum(self.scores.values()) / len(self.scores) if self.scores else float("nan")


class AutoInterp(SAEBenchSuite):
    """SAEBench's ``autointerp``: a language model describes latents, then tells by the
    description where they activate.

    The judge is asked at its own temperature, so that scores differ from run to run whatever
    the seed; the seed chooses latents, examples and the exchange of descriptions. It is set
    anew for every SAE, and filling the cache of tokens draws nothing: no warm-up is needed.
    """

    name = "autointerp"
    n_of = "latents"
    on_transcoders = None
    summary = "a language model describes latents and predicts by that where they activate"
    primary = ("autointerp_score",)
    metrics = (
        *with_floors(
            Metric(
                "autointerp_score",
                HIGHER,
                "AutoInterp score",
                Margin(
                    0.02,
                    "2 points of judge accuracy: with 200 latents at accuracy 0.9 the standard "
                    "error of one score is 0.01 or more.",
                ),
                "fraction",
                tasks_paired=False,
                alongside=(JUDGE_SCORE, JUDGE_FLOOR, REJUDGED_SE),
            ),
            {_EXCHANGED: "descriptions exchanged between latents that fire about as often"},
        ),
        *judge_metrics("accuracy"),
        Metric("*", tasks_paired=False),
    )
    needs = Needs(judge=True)
    requirements = (Requirement("openai", ">=1", "SAEBench asks the judge through it"),)
    local_data = ("dataset_name",)
    evaluation = "autointerp"
    config_name = "AutoInterpEvalConfig"
    on_random_model = OnRandomModel(
        "verdict",
        "Its latents can be described as far as tokens alone make them describable (Heap et "
        "al., arXiv 2501.17727); an SAE whose latents are no better described shows nothing of "
        "what the model computes.",
    )
    # Without scoring, SAEBench fails at the end.
    not_offered = ("scoring",)
    own = {
        "model": SAEBENCH_MODEL,
        "retries": CLIENT_RETRIES,
        "timeout": CLIENT_TIMEOUT,
        "null_floor": True,
        "least_latents": LEAST_LATENTS,
        "least_share": LEAST_SHARE,
        # Latents that are judged again, with other examples.
        "rejudged": 0,
    }

    def defaults(self) -> dict[str, Any]:
        return {**super().defaults(), "model": default_model()}

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        yield from (problems := list(endpoint_problems()))
        yield from self.problems_of_file(subject, options)
        if not problems and isinstance(options["model"], str):
            yield from refusals(options["model"], self.name)

    @override
    def problems_of_file(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        if find_spec("sae_bench") is None:
            return
        yield from wrong_options(options)
        if not isinstance(options["null_floor"], bool):
            yield f"null_floor: {options['null_floor']!r} is neither true nor false"
        yield from wrong_rejudged(options)
        least, share = options["least_latents"], options["least_share"]
        if not isinstance(least, int) or least < 2:
            yield f"least_latents: {least!r} is not a number of latents, 2 or more"
            least = 2
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            yield f"least_share: {share!r} is not a share between 0 and 1"
        try:
            config = self.config(options)
        except (ValueError, TypeError, AssertionError) as error:
            yield (
                f"{one_line(error) or 'override_latents needs n_latents: null'}; give "
                "n_latents (a number), or override_latents with n_latents: null"
            )
            return
        beyond = [i for i in config.override_latents or () if not 0 <= i < subject.d_sae]
        if config.n_latents < 1:
            yield f"n_latents: {config.n_latents} is not positive"
        elif not beyond and min(config.n_latents, subject.d_sae) < least:
            yield (
                f"n_latents: {min(config.n_latents, subject.d_sae)} is fewer than "
                f"least_latents: {least}, so that there can be no score; raise n_latents or "
                "lower the other"
            )
        if beyond:
            yield f"override_latents: {beyond[0]} is not among the {subject.d_sae} latents"
        if config.llm_context_size <= 2 * config.buffer:
            yield (
                f"llm_context_size: {config.llm_context_size} leaves no token outside the "
                f"buffer of {config.buffer} on both sides; give more than {2 * config.buffer}"
            )

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        endpoint = from_environment()
        # SAEBench turns gradients off and leaves them so.
        with torch.no_grad(), _private_copy(call.cache / "autointerp", call.work) as artifacts:
            return without_secrets(
                endpoint,
                lambda: outside_loop(lambda: self._run(sae, call, endpoint, artifacts)),
            )

    def _run(
        self, sae: SAE[Any], call: SuiteCall, endpoint: Endpoint, artifacts: Path
    ) -> Extras:
        from openai import OpenAIError  # noqa: PLC0415

        model, retries = call.options["model"], call.options["retries"]
        config = self.config(call.options, **call.config)
        null = None
        with (
            judged_by(model, retries, call.options["timeout"]) as asked,
            observed_judge() as gathered,
            explained(model, call.options["timeout"]),
        ):
            main_of(self.evaluation).run_eval(
                config,
                [(call.name, sae)],
                call.subject.device,
                endpoint.key,
                str(call.output),
                artifacts_path=str(artifacts),
            )
            written = call.expected.read_text()
            if endpoint.key_in(written):
                call.expected.unlink()
                raise RuntimeError("SAEBench's result contained the API key and was deleted")
            latents = json.loads(written)["eval_result_unstructured"]
            if call.options["null_floor"]:
                descriptions = {
                    int(i): str(found["explanation"]) for i, found in latents.items()
                }
                null = null_floor(gathered, descriptions, call.seed, (OpenAIError,))
            n_gathered = len(gathered.examples)
            told = None
            if gathered.examples:
                told = prompt_hashes(gathered.judge, gathered.examples, call.seed)
            judge = judge_record(endpoint, model, self.name, told)
            again = self._again(sorted(map(int, latents)), sae, call, endpoint, artifacts)
        if model != SAEBENCH_MODEL and latents and not asked:
            call.expected.unlink()
            raise RuntimeError(
                f"no request reached model {model!r}: this sae-bench asks in another way; "
                "install sae-bench==0.6.0"
            )
        requested = min(config.n_latents, call.subject.d_sae)
        return _extras(
            {
                "least_latents": call.options["least_latents"],
                "least_share": call.options["least_share"],
                "model": model,
                "endpoint": endpoint.host,
                "n_requested": requested,
                "n_scored": len(latents),
                "n_dropped": requested - len(latents),
                "n_dead": requested - n_gathered,
                "n_unparseable": n_gathered - len(latents),
                "judge": judge,
                **again,
            },
            null,
        )

    def _again(
        self,
        scored: list[int],
        sae: SAE[Any],
        call: SuiteCall,
        endpoint: Endpoint,
        artifacts: Path,
    ) -> dict[str, Any]:
        """Scores of some of the latents by all of SAEBench's pipeline with the next seed."""
        n = min(call.options["rejudged"], len(scored))
        if n < 2:
            return {}
        latents = sorted(random.Random(call.seed).sample(scored, n))
        options = {**call.options, "n_latents": None, "override_latents": latents}
        with from_seed(call.seed + 1):
            main_of(self.evaluation).run_eval(
                self.config(options, **{**call.config, "random_seed": call.seed + 1}),
                [(call.name, sae)],
                call.subject.device,
                endpoint.key,
                str(call.work / "again"),
                artifacts_path=str(artifacts),
            )
        text = (call.work / "again" / call.expected.name).read_text(encoding="utf-8")
        found = json.loads(text)["eval_result_unstructured"]
        return {"rejudged": {latent: float(one["score"]) for latent, one in found.items()}}

    @override
    def requests(self, options: Mapping[str, Any]) -> int:
        # A description, a prediction and a null prediction each; of what is judged again the
        # first two.
        chosen = options["override_latents"]
        latents = options["n_latents"] if chosen is None else len(chosen)
        return latents * (3 if options["null_floor"] else 2) + 2 * options["rejudged"]

    @override
    def deciding(self, options: Mapping[str, Any]) -> dict[str, Any]:
        # How long one waits changes no score, and what is judged again comes after them.
        decide = super().deciding(options)
        return {k: value for k, value in decide.items() if k not in ("rejudged", "timeout")}

    def conditions(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return judge_conditions(options["model"])

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        metrics = payload["eval_result_metrics"]["autointerp"]
        scores = {
            int(latent): float(found["score"])
            for latent, found in payload["eval_result_unstructured"].items()
        }
        n = len(scores)
        score, spread = _summary(list(scores.values()))
        for name, value in (("autointerp_score", score), ("autointerp_std_dev", spread)):
            theirs = float(metrics[name])
            if math.isfinite(value) and not math.isclose(theirs, value, abs_tol=1e-5):
                raise ValueError(
                    f"{name} is {theirs} in SAEBench's result, but {value} over its latents"
                )
        why = _too_few(n, extras)
        rows = [
            self.number("autointerp_score", math.nan if why else score, n=n),
            self.number("autointerp_std_dev", spread, n=n),
        ]
        rows[0] = replace(rows[0], missing=why)
        if "null_floor" in extras:
            n_null = extras["n_null_scored"]
            # NaN travels as None: it is no JSON.
            floor = extras["null_floor"]
            few = _too_few(n_null, extras)
            value = math.nan if floor is None or few else float(floor)
            rows.append(self.number("null_floor", value, n=n_null))
            if "null_exchanged" in extras:
                name = null_name("autointerp_score", _EXCHANGED)
                rows.append(self.number(name, value, n=n_null))
        rows += [self.number(name, float(extras[name])) for name in _COUNTS if name in extras]
        rows += self._rejudged(scores, extras)
        examples = _examples(payload["eval_config"])
        null = {int(i): float(s) for i, s in extras.get("null_scores", {}).items()}
        for metric, by_latent in (("autointerp_score", scores), ("null_score", null)):
            rows += [
                self.number(metric, value, f"latent_{latent}", examples, "examples")
                for latent, value in sorted(by_latent.items())
            ]
        return rows

    def _rejudged(
        self, scores: Mapping[int, float], extras: Mapping[str, Any]
    ) -> list[Measured]:
        """How far scores move when nothing but the draw and the replies is another."""
        again = {int(i): float(s) for i, s in extras.get("rejudged", {}).items()}
        values = moved_by_judging(scores, again)
        return self.numbers(values, n=len(again))


def prompt_hashes(judge: Any, examples: Mapping[int, Any], seed: int) -> dict[str, str]:
    """SHA-256 of what SAEBench tells its judge besides examples, by kind.

    Args:
        judge: Its AutoInterp.
        examples: Of any latents.
        seed: Of the example of a reply that a prompt shows.
    """
    with from_seed(seed):
        told = prompts_of(judge, next(iter(examples.values())))
    return {kind: hashlib.sha256(text.encode()).hexdigest() for kind, text in told.items()}


def _too_few(n: int, extras: Mapping[str, Any]) -> str:
    """Why so many scored latents make no score of the SAE; "" if they do."""
    least = extras.get("least_latents", LEAST_LATENTS)
    share = extras.get("least_share", LEAST_SHARE)
    requested = extras.get("n_requested", n)
    needed = max(least, math.ceil(share * requested))
    if n >= needed:
        return ""
    return (
        f"{n} of {requested} latents have a score, {needed} must (least_latents: {least}, "
        f"least_share: {share:g})"
    )


def _extras(values: dict[str, Any], null: NullFloor | None) -> Extras:
    notes = [
        f"autointerp: {values['n_dropped']} of {values['n_requested']} latents dropped out "
        f"({values['n_dead']} dead, {values['n_unparseable']} unparseable)"
    ]
    if null is None:
        return Extras(values, notes)
    lost = [
        f"{count} {what}"
        for count, what in ((null.failed, "failed"), (null.unparseable, "unparseable"))
        if count
    ]
    few = _too_few(len(null.scores), values)
    if not few:
        text = f"null floor {null.mean:.2f} (descriptions shuffled between latents"
    else:
        text = f"no null floor ({few}"
    notes.append(f"autointerp: {'; '.join([text, *lost])})")
    values |= {
        "null_floor": None if few else null.mean,
        "null_scores": {str(latent): score for latent, score in null.scores.items()},
        "n_null_scored": len(null.scores),
        "n_null_unparseable": null.unparseable,
        "n_null_failed": null.failed,
        # Of records without it, descriptions went to any latent.
        "null_exchanged": {str(latent): other for latent, other in null.exchanged.items()},
    }
    return Extras(values, notes)


def _summary(scores: list[float]) -> tuple[float, float]:
    """Mean and standard deviation; NaN of none, and of one.

    SAEBench adds up in float32 in the order in which replies came in, so that its last digit
    changes from run to run; these do not.
    """
    mean = math.fsum(scores) / len(scores) if scores else float("nan")
    return mean, statistics.stdev(scores) if len(scores) > 1 else float("nan")


def _examples(config: Mapping[str, Any]) -> int:
    """Examples that each latent is judged on."""
    kinds = ("top", "random", "iw_sampled")
    return sum(int(config[f"n_{kind}_ex_for_scoring"]) for kind in kinds)


@contextmanager
def explained(model: str, timeout: float = CLIENT_TIMEOUT) -> Iterator[None]:
    """Say what went wrong where SAEBench's own error does not."""
    from openai import APITimeoutError  # noqa: PLC0415

    try:
        yield
    except APITimeoutError as error:
        raise RuntimeError(
            f"model {model!r} did not reply within {timeout:g} seconds, as often as it was "
            "asked; raise timeout, or retries"
        ) from error
    except AssertionError as error:
        if traceback.extract_tb(error.__traceback__)[-1].name != "load_and_tokenize_dataset":
            raise
        raise RuntimeError(
            "too little text: SAEBench reads five characters for each of total_tokens, and "
            "they held fewer tokens; choose another dataset_name"
        ) from error
    except AttributeError as error:
        # It reads the text of a reply without looking whether there is any.
        if "'NoneType' object has no attribute 'strip'" not in str(error):
            raise
        raise RuntimeError(
            f"model {model!r} replied without text (it refused, or was still thinking when "
            "SAEBench's few tokens were spent), where SAEBench cannot go on"
        ) from error


@contextmanager
def _private_copy(shared: Path, work: Path) -> Iterator[Path]:
    """A copy of the shared cache; new files go back when all went well.

    SAEBench writes its tokens in place: a run that is killed meanwhile would leave half a
    file, on which every later run fails.
    """
    private = work / "artifacts"
    shutil.rmtree(private, ignore_errors=True)
    shared.mkdir(parents=True, exist_ok=True)
    shutil.copytree(shared, private)
    yield private
    for new in private.rglob("*.pt"):
        target = shared / new.relative_to(private)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(f".{os.getpid()}.part")
            shutil.move(new, partial)
            partial.replace(target)
    shutil.rmtree(private)


def outside_loop(work: Callable[[], T]) -> T:
    """Do it where no event loop runs: notebooks have one, and SAEBench starts its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        running = False
    else:
        running = True
    if not running:
        return work()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def null_floor(
    gathered: Gathered,
    descriptions: Mapping[int, str],
    seed: int,
    failures: tuple[type[Exception], ...],
) -> NullFloor:
    """Score every latent again, by SAEBench's own methods, with another one's description.

    Descriptions are exchanged between latents that fire about as often, so that what a judge
    gets right from that alone is in the floor.

    Args:
        gathered: Of the same run: the very examples of the true scores.
        descriptions: Latent to description, of the latents that were scored.
        seed: Of the exchange, and of SAEBench's prompts.
        failures: Errors of single requests, which are counted and cost one latent each.
    """
    judge = gathered.judge
    others = exchanged(descriptions, seed, gathered.rates)
    random.seed(seed)  # SAEBench's prompts show a random example of a reply
    prompts = {
        latent: judge.get_scoring_prompts(descriptions[other], gathered.examples[latent])
        for latent, other in sorted(others.items())
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
        exchanged=others,
    )
