"""SAEBench's automated interpretability, with its null floor and its drop-outs."""

import asyncio
import json
import math
import os
import shutil
import statistics
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from sae_lens import SAE

from sae_baselines.errors import one_line
from sae_baselines.evals.measured import HIGHER, Direction, Measured
from sae_baselines.evals.suite import Extras, Subject, Suite, SuiteCall, config_defaults
from sae_baselines.evals.suites.autointerp_null import NullFloor, null_floor, observed
from sae_baselines.evals.suites.endpoint import (
    CLIENT_RETRIES,
    SAEBENCH_MODEL,
    Endpoint,
    endpoint_problems,
    from_environment,
    judged_by,
    without_secrets,
)

T = TypeVar("T")

# Ours; everything else is a field of SAEBench's config.
_OWN = ("model", "retries", "null_floor")
_COUNTS = ("n_requested", "n_scored", "n_dropped", "n_dead", "n_unparseable")
_NULL_COUNTS = ("n_null_scored", "n_null_unparseable", "n_null_failed")


class AutoInterp(Suite):
    """SAEBench's ``autointerp``: a language model describes latents, then tells by the
    description where they activate.

    The judge is asked at its own temperature, so that scores differ from run to run whatever
    the seed; the seed chooses latents, examples and the exchange of descriptions.
    """

    name = "autointerp"
    summary = "a language model describes latents and predicts by that where they activate"
    primary = ("autointerp_score",)
    local_data = ("dataset_name",)
    # The seed is set anew for every SAE, and filling the cache of tokens draws nothing.
    warm_up = False

    def defaults(self) -> dict[str, Any]:
        from sae_bench.evals.autointerp.eval_config import (  # noqa: PLC0415
            AutoInterpEvalConfig,
        )

        given = config_defaults(
            AutoInterpEvalConfig,
            # Without scoring, SAEBench fails at the end.
            without=("model_name", "random_seed", "llm_batch_size", "llm_dtype", "scoring"),
        )
        model = os.environ.get("OPENAI_MODEL") or SAEBENCH_MODEL
        return {**given, "model": model, "retries": CLIENT_RETRIES, "null_floor": True}

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        yield from endpoint_problems()
        if find_spec("sae_bench") is None:
            return
        if not isinstance(options["model"], str) or not options["model"]:
            yield f"model: {options['model']!r} is not the name of a model"
        if not isinstance(options["retries"], int) or options["retries"] < 0:
            yield f"retries: {options['retries']!r} is not a number of retries, 0 or more"
        if not isinstance(options["null_floor"], bool):
            yield f"null_floor: {options['null_floor']!r} is neither true nor false"
        try:
            config = _config(subject, options, seed=0)
        except (ValueError, TypeError, AssertionError) as error:
            yield (
                f"{one_line(error) or 'override_latents needs n_latents: null'}; give "
                "n_latents (a number), or override_latents with n_latents: null"
            )
            return
        if config.n_latents < 1:
            yield f"n_latents: {config.n_latents} is not positive"
        beyond = [i for i in config.override_latents or () if not 0 <= i < subject.d_sae]
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
                endpoint, lambda: _outside_loop(lambda: _run(sae, call, endpoint, artifacts))
            )

    def conditions(self, options: Mapping[str, Any]) -> dict[str, Any]:
        del options
        return {"judge_host": from_environment().host}

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
        found = [
            Measured("autointerp_score", score, HIGHER, n=n),
            Measured("autointerp_std_dev", spread, n=n),
        ]
        if "null_floor" in extras:
            n_null = extras["n_null_scored"]
            # NaN travels as None: it is no JSON.
            floor = extras["null_floor"]
            value = float("nan") if floor is None else float(floor)
            found.append(Measured("null_floor", value, n=n_null))
        found += [
            Measured(name, float(extras[name]))
            for name in (*_COUNTS, *_NULL_COUNTS)
            if name in extras
        ]
        examples = _examples(payload["eval_config"])
        found += _per_latent("autointerp_score", scores, HIGHER, examples)
        null = {int(i): float(s) for i, s in extras.get("null_scores", {}).items()}
        return found + _per_latent("null_score", null, 0, examples)


def requests_needed(options: Mapping[str, Any]) -> int:
    """Most requests that one SAE costs: a description, a prediction and a null prediction each.

    Args:
        options: Complete options of the suite.
    """
    chosen = options["override_latents"]
    latents = options["n_latents"] if chosen is None else len(chosen)
    return latents * (3 if options["null_floor"] else 2)


def _config(subject: Subject, options: Mapping[str, Any], seed: int) -> Any:
    from sae_bench.evals.autointerp.eval_config import AutoInterpEvalConfig  # noqa: PLC0415

    return AutoInterpEvalConfig(
        model_name=subject.model_name,
        llm_dtype=subject.llm_dtype,
        llm_batch_size=subject.llm_batch_size,
        random_seed=seed,
        **{name: value for name, value in options.items() if name not in _OWN},
    )


def _run(sae: SAE[Any], call: SuiteCall, endpoint: Endpoint, artifacts: Path) -> Extras:
    from openai import OpenAIError  # noqa: PLC0415
    from sae_bench.evals.autointerp.main import run_eval  # noqa: PLC0415

    model, retries = call.options["model"], call.options["retries"]
    config = _config(call.subject, call.options, call.seed)
    null = None
    with judged_by(model, retries) as asked, observed() as gathered, _explained(model):
        run_eval(
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
            descriptions = {int(i): str(found["explanation"]) for i, found in latents.items()}
            null = null_floor(gathered, descriptions, call.seed, (OpenAIError,))
    if model != SAEBENCH_MODEL and latents and not asked:
        call.expected.unlink()
        raise RuntimeError(
            f"no request reached model {model!r}: this sae-bench asks in another way; "
            "install sae-bench==0.6.0"
        )
    requested = min(config.n_latents, call.subject.d_sae)
    return _extras(
        {
            "model": model,
            "endpoint": endpoint.host,
            "n_requested": requested,
            "n_scored": len(latents),
            "n_dropped": requested - len(latents),
            "n_dead": requested - len(gathered.examples),
            "n_unparseable": len(gathered.examples) - len(latents),
        },
        null,
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
    if null.scores:
        text = f"null floor {null.mean:.2f} (descriptions shuffled between latents"
    else:
        text = "no null floor (it takes two scored latents"
    notes.append(f"autointerp: {'; '.join([text, *lost])})")
    values |= {
        "null_floor": null.mean if null.scores else None,
        "null_scores": {str(latent): score for latent, score in null.scores.items()},
        "n_null_scored": len(null.scores),
        "n_null_unparseable": null.unparseable,
        "n_null_failed": null.failed,
    }
    return Extras(values, notes)


def _summary(scores: list[float]) -> tuple[float, float]:
    """Mean and standard deviation; NaN of none, and of one.

    SAEBench adds up in float32 in the order in which replies came in, so that its last digit
    changes from run to run; these do not.
    """
    mean = math.fsum(scores) / len(scores) if scores else float("nan")
    return mean, statistics.stdev(scores) if len(scores) > 1 else float("nan")


def _per_latent(
    metric: str, scores: Mapping[int, float], direction: Direction, examples: int
) -> list[Measured]:
    return [
        Measured(metric, score, direction, f"latent_{latent}", examples)
        for latent, score in sorted(scores.items())
    ]


def _examples(config: Mapping[str, Any]) -> int:
    """Examples that each latent is judged on."""
    kinds = ("top", "random", "iw_sampled")
    return sum(int(config[f"n_{kind}_ex_for_scoring"]) for kind in kinds)


@contextmanager
def _explained(model: str) -> Iterator[None]:
    """Say what went wrong where SAEBench's own error does not."""
    try:
        yield
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


def _outside_loop(work: Callable[[], T]) -> T:
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
