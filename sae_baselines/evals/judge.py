"""Who the judge of descriptions is, and whether it was found to judge anything.

A judge is known by its host, the name that it goes by there and, where a server on this machine
says that its model is a file here, the file's hash.
"""

import ipaddress
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scipy import stats

from sae_baselines.evals.endpoint import Endpoint, from_environment, quiet_clients
from sae_baselines.evals.metrics import Metric
from sae_baselines.files import check_shape, checksum_of, read_json, sha256_of, write_sealed
from sae_baselines.home import cache_dir

ALPHA = 0.05
# Of the concepts, those that must have a score: a judge that mostly makes no sense is none.
LEAST_SHARE = 0.75
_AGAIN = "delete it and run sae-baselines judge test again"
_SECONDS = 5.0
_SHAPE = {
    "judge": {"host": str, "model": str, "file?": str, "sha256?": str},
    "seed": int,
    "scores": dict,
    "floors": dict,
    "random": dict,
    "descriptions": {str: str},
    "asked": int,
    "prompts": {str: str},
    "created": str,
    "suite?": str,
}
AUTOINTERP = "autointerp"
# Of latents whose answer is known: the judge's score, its floor, and the lower end of the
# interval of their difference. Verdicts want that above 0.
JUDGE_SCORE, JUDGE_FLOOR, JUDGE_ABOVE = "judge_score", "judge_floor", "judge_above_floor"
# Of one latent, what its score varies by when it is judged again; of the SAE's mean.
REJUDGED_SD, REJUDGED_SE = "rejudged_sd", "rejudged_se"
OF_JUDGES = (JUDGE_SCORE, JUDGE_FLOOR, JUDGE_ABOVE, REJUDGED_SD, REJUDGED_SE)


@dataclass(frozen=True)
class JudgeTest:
    """What a judge scored on latents whose answer is known.

    Attributes:
        judge: See `identity`.
        seed: Of examples and prompts.
        scores: Concept to the share of examples that were predicted right, or to the AUC.
        floors: Concept to the same by the description of another concept.
        random: The same of latents that fire on words at random, which nobody can describe.
        descriptions: What the judge said of each.
        asked: How many concepts were asked for.
        prompts: SHA-256 of what it is told beside examples, by kind.
        created: When.
        suite: Whose prompts and whose score.
    """

    judge: dict[str, str]
    seed: int
    scores: dict[str, float]
    floors: dict[str, float]
    random: dict[str, float]
    descriptions: dict[str, str]
    asked: int
    prompts: dict[str, str]
    created: str = ""
    suite: str = AUTOINTERP
    gaps: list[float] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        both = [name for name in self.scores if name in self.floors]
        self.gaps.extend(self.scores[name] - self.floors[name] for name in both)

    @property
    def accuracy(self) -> float:
        """Mean over concepts; NaN of none."""
        return _mean(list(self.scores.values()))

    @property
    def measure(self) -> str:
        """What its scores are."""
        return "accuracy" if self.suite == AUTOINTERP else "AUC"

    @property
    def floor(self) -> float:
        """Mean over concepts; NaN of none."""
        return _mean(list(self.floors.values()))

    @property
    def interval(self) -> tuple[float, float]:
        """Of accuracy - floor over concepts; its lower end is that of a one-sided t test."""
        n = len(self.gaps)
        if n < 2:
            return math.nan, math.nan
        mean = _mean(self.gaps)
        variance = sum((gap - mean) ** 2 for gap in self.gaps) / (n - 1)
        half = float(stats.t.ppf(1 - ALPHA, n - 1)) * math.sqrt(variance / n)
        return mean - half, mean + half

    @property
    def flaw(self) -> str | None:
        """Why nothing that this judge says is a score; None if it may judge."""
        if len(self.gaps) < LEAST_SHARE * self.asked:
            return (
                f"only {len(self.gaps)} of {self.asked} replies on latents whose answer is "
                "known could be read"
            )
        low, high = self.interval
        if low > 0:
            return None
        return (
            "it is not above its floor on latents whose answer is known: "
            f"{self.accuracy:.3f} and {self.floor:.3f}, {1 - 2 * ALPHA:.0%} interval of the "
            f"difference [{low:+.3f}, "
            f"{high:+.3f}] over {len(self.gaps)} concepts"
        )

    @property
    def summary(self) -> dict[str, Any]:
        """For the record of what this judge scores."""
        return {
            "accuracy": self.accuracy,
            "floor": self.floor,
            "interval": list(self.interval),
            "concepts": len(self.gaps),
            "seed": self.seed,
            "created": self.created,
        }

    def save(self) -> Path:
        """Keep it for every study of this user."""
        path = _file(self.judge["host"], self.judge["model"], self.suite)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = asdict(self)
        del data["gaps"]
        write_sealed(path, data)
        return path


def last_test(host: str, model: str, suite: str = AUTOINTERP) -> JudgeTest | None:
    """The last test of a judge by a suite's prompts, if there was one.

    Raises:
        UserError: Its file is damaged or was changed.
    """
    path = _file(host, model, suite)
    if (data := read_json(path, _AGAIN)) is None:
        return None
    check_shape(path, data, _SHAPE, _AGAIN)
    return JudgeTest(**data)


def identity(endpoint: Endpoint, model: str) -> dict[str, str]:
    """Host and model and, of a server on this machine that names a file here, its hash."""
    known = {"host": endpoint.host, "model": model}
    if (path := _served_file(endpoint, model)) is not None:
        known |= {"file": path.name, "sha256": sha256_of(path)}
    return known


def wrong_options(options: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with ``model``, ``retries`` and ``timeout`` of a suite with a judge."""
    model, retries, seconds = (options[name] for name in ("model", "retries", "timeout"))
    if not isinstance(model, str) or not model:
        yield f"model: {model!r} is not the name of a model"
    if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
        yield f"retries: {retries!r} is not a number of retries, 0 or more"
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds <= 0:
        yield f"timeout: {seconds!r} is not a number of seconds above 0"


def refusals(model: str, suite: str) -> Iterator[str]:
    """Why the judge at the environment's endpoint is none, if its last test says so."""
    known = last_test(from_environment().host, model, suite)
    if known is not None and known.flaw is not None:
        asked = "" if suite == AUTOINTERP else f" --suite {suite}"
        yield (
            f"model: {model!r} is no judge: {known.flaw}; name another, or run "
            f"sae-baselines judge test{asked} again if it is another model by now"
        )


def judge_conditions(model: str) -> dict[str, Any]:
    """What scores depend on besides the judge's name."""
    known = identity(from_environment(), model)
    # Only where it is known: others are known by host and model.
    file = {"judge_file": known["sha256"]} if "sha256" in known else {}
    return {"judge_host": known["host"], **file}


def judge_record(
    endpoint: Endpoint, model: str, suite: str, prompts: Mapping[str, str] | None
) -> dict[str, Any]:
    """Who judged, told what, and how well it does on latents that are known.

    Args:
        endpoint: Where it answers.
        model: Its name there.
        suite: Whose test of it counts.
        prompts: SHA-256 of what it was told, by kind; None where it was told nothing.
    """
    judge: dict[str, Any] = identity(endpoint, model)
    if prompts is not None:
        judge["prompts"] = prompts
    return with_test(judge, suite)


def with_test(judge: Mapping[str, Any], suite: str) -> dict[str, Any]:
    """A record's judge and its last test by a suite's prompts, if there was one."""
    known = last_test(judge["host"], judge["model"], suite)
    if known is None or not same_judge(known.judge, judge):
        return dict(judge)
    return {**judge, "test": known.summary}


def judge_metrics(score: str) -> tuple[Metric, ...]:
    """What stands beside the scores of a suite with a judge.

    Args:
        score: What its test measures.
    """
    titles = {
        JUDGE_SCORE: f"The judge's {score} on latents that are known",
        JUDGE_FLOOR: "The same with descriptions exchanged",
        REJUDGED_SE: "Standard error that judging alone gives it",
    }
    return tuple(
        Metric(name, title=title, unit="fraction", tasks_paired=False)
        for name, title in titles.items()
    )


def wrong_rejudged(options: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the option ``rejudged``."""
    again = options["rejudged"]
    if not isinstance(again, int) or isinstance(again, bool) or again < 0 or again == 1:
        yield f"rejudged: {again!r} is not a number of latents, 0 or 2 or more"


def moved_by_judging(
    scores: Mapping[int, float], again: Mapping[int, float]
) -> dict[str, float]:
    """How far scores move when nothing but the draw and the replies is another.

    Args:
        scores: Of all latents of an SAE.
        again: Of some of them, judged with another seed.

    Returns:
        `REJUDGED_SD` and `REJUDGED_SE`; nothing where fewer than two were judged again.
    """
    moved = [again[i] - scores[i] for i in again if i in scores]
    if len(moved) < 2:
        return {}
    # Each of the two scores has half of the difference's variance.
    sd = math.sqrt(math.fsum(d * d for d in moved) / len(moved) / 2)
    return {REJUDGED_SD: sd, REJUDGED_SE: sd / math.sqrt(len(scores))}


def judge_rows(judge: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Metrics that say how good a record's judge is; none of one that was never tested."""
    test = judge.get("test")
    if test is None:
        return []
    return [
        (JUDGE_SCORE, float(test["accuracy"])),
        (JUDGE_FLOOR, float(test["floor"])),
        (JUDGE_ABOVE, float(test["interval"][0])),
    ]


def same_judge(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two records name one judge."""
    return all(a.get(name) == b.get(name) for name in ("host", "model", "sha256"))


def _served_file(endpoint: Endpoint, model: str) -> Path | None:
    if endpoint.base_url is None or not _is_here(endpoint.host):
        return None
    from openai import OpenAI  # noqa: PLC0415

    try:
        with quiet_clients():
            client = OpenAI(api_key=endpoint.key, timeout=_SECONDS, max_retries=0)
            served = [one.id for one in client.models.list().data]
    except Exception:  # a server need not list its models, and answers what it likes
        return None
    named = [name for name in served if name == model] or served
    # llama.cpp's server calls a model by its path, unless an alias was given.
    path = Path(named[0]) if len(named) == 1 else None
    return path if path is not None and path.is_absolute() and path.is_file() else None


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _file(host: str, model: str, suite: str) -> Path:
    # Of AutoInterp's as it was when there was no other.
    named = [host, model] if suite == AUTOINTERP else [host, model, suite]
    return cache_dir() / "judges" / f"{checksum_of(named)[:16]}.json"


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
