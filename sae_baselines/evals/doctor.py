"""Which suites can run here, and why the others cannot, before an hour is spent."""

import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets.config
import torch
from datasets.naming import camelcase_to_snakecase
from huggingface_hub import constants, get_token, try_to_load_from_cache
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sae_baselines.errors import UserError, one_line
from sae_baselines.evals.endpoint import endpoint_problems
from sae_baselines.evals.registry import get_suite
from sae_baselines.evals.suite import BYTES, Needs, Subject, Suite
from sae_baselines.evals.versions import (
    VersionProblem,
    problems_of_every_suite,
    version_problems,
)
from sae_baselines.files import size_text
from sae_baselines.reach import TIMEOUT, silence
from sae_baselines.study.language_model import hub_name

Options = Mapping[str, Mapping[str, Any]]

_OPENAI = "https://api.openai.com/v1"
# Repositories whose licence has to be accepted before the Hub gives the weights away.
_GATED = ("google/gemma", "meta-llama/")
_GATEKEEPER = "https://huggingface.co"
# Published weights have at least two bytes per parameter.
_BYTES_ON_DISK = 2
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([mb])(?![a-z0-9])", re.IGNORECASE)
_UNITS = {"m": 1e6, "b": 1e9}
# Size in a name is rounded, sometimes up.
_NAME_IS_AT_LEAST = 0.8
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Diagnosis:
    """Of one suite.

    Attributes:
        suite: Its name.
        problems: Why it cannot run here, each with its remedy; empty if it can.
        warnings: What may go wrong, or could not be checked.
        unchecked: Whether it hangs on what could not be looked at: its data, its model.
    """

    suite: str
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unchecked: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is known that keeps it from running."""
        return not self.problems


def diagnose(
    subject: Subject | None,
    suites: Iterable[str],
    options: Options | None = None,
    out: str | Path = ".",
    *,
    timeout: float = TIMEOUT,
) -> list[Diagnosis]:
    """Check the suites against versions, data, model, judge, memory and disk.

    Loads no model and downloads nothing; the Hub and the judge's address are asked for a sign
    of life. No secret is read further than to see that it is there.

    Args:
        subject: Model, hook and device of the SAEs; None to check the machine alone.
        suites: Names.
        options: The user's options by suite.
        out: Where evaluations and their caches will be written; need not exist.
        timeout: Seconds to wait for a sign of life.

    Returns:
        One diagnosis per suite, in that order.

    Raises:
        UserError: There is no such suite.
    """
    adapters = [get_suite(name) for name in suites]
    machine = _Machine(subject, Path(out), timeout)
    return [machine.diagnose(suite, (options or {}).get(suite.name, {})) for suite in adapters]


def require_runnable(diagnoses: Sequence[Diagnosis]) -> None:
    """Stop unless every suite can run.

    Raises:
        UserError: All problems, in one line.
    """
    problems = [f"{d.suite}: {problem}" for d in diagnoses for problem in d.problems]
    if problems:
        raise UserError("; ".join(problems))


def require_possible(subject: Subject, suites: Options) -> None:
    """Stop if what a file says of suites can work on no machine.

    Args:
        subject: Model, hook and width of SAEs that need not be there yet.
        suites: Options by suite.

    Raises:
        UserError: All problems, in one line.
    """
    problems = []
    for name, given in suites.items():
        suite = get_suite(name)
        try:
            options = suite.complete(given)
            found = [
                *suite.data_problems(options),
                *suite.problems_of_file(subject, options),
            ]
        except UserError:
            raise
        except Exception:  # without SAEBench, which need not be where SAEs are trained
            continue
        problems.append(Diagnosis(f"evals: suites.{name}", tuple(found)))
    require_runnable(problems)


def print_diagnoses(diagnoses: Sequence[Diagnosis], console: Console) -> None:
    """A table: suite, verdict, reasons. A reason of several suites is a note below it."""
    said = Counter(text for d in diagnoses for text in (*d.problems, *d.warnings))
    notes = [text for text, times in said.items() if times > 1]
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("suite", no_wrap=True)
    table.add_column("here", no_wrap=True)
    table.add_column("why", overflow="fold")
    for d in diagnoses:
        word = Text("ok", style="green") if d.ok else Text("cannot run", style="red")
        if d.ok and d.unchecked:
            word = Text("not checked", style="yellow")
        reasons = [(t, "red") for t in d.problems] + [(t, "yellow") for t in d.warnings]
        # Text, since reasons hold square brackets, which are markup in a str.
        own = [Text(t, style=style) for t, style in reasons if t not in notes]
        for style in ("red", "yellow"):
            numbers = [str(notes.index(t) + 1) for t, s in reasons if s == style and t in notes]
            if numbers:
                own.append(Text(f"see {', '.join(numbers)}", style=style))
        table.add_row(d.suite, word, Text("\n").join(own))
    console.print(table)
    for number, text in enumerate(notes, start=1):
        console.print(Text(f"{number}  {text}"), soft_wrap=True)


class _Machine:
    """What is the same for all suites, looked up when first needed."""

    def __init__(self, subject: Subject | None, out: Path, timeout: float) -> None:
        self.subject = subject
        self.out = out
        self.timeout = timeout
        self.planned = 0.0

    def diagnose(self, suite: Suite, given: Mapping[str, Any]) -> Diagnosis:
        need = suite.needs
        versions = [*self.versions, *version_problems(suite.requirements)]
        problems, warnings = [str(p) for p in versions], []
        options: dict[str, Any] | None = None
        if self.subject is None:
            if need.judge:
                problems += endpoint_problems()
        elif any(p.package in ("sae-bench", "torchvision") for p in versions):
            pass  # the adapter asks SAEBench for its defaults, which cannot be imported
        else:
            found, options = _of_adapter(suite, self.subject, given)
            problems += found
            if options is not None:
                cached, more = self._disk(suite, self.subject, options)
                problems += cached
                warnings += more
        if self.subject is None:
            warnings.append("without SAEs their model, device and disk are not checked")
        else:
            problems += self.model_problems if need.model else []
            problems += self.device_problems(need)
            if not suite.reads_what_the_sae_reads(self.subject):
                problems.append(
                    "these SAEs read a model whose writing weights are centred "
                    "(center_writing_weights), and this suite reads it as it is; use core"
                )
        unseen = self._reach(suite, options or given)
        warnings += unseen
        unchecked = bool(unseen) or self.subject is None
        return Diagnosis(suite.name, tuple(dict.fromkeys(problems)), tuple(warnings), unchecked)

    @cached_property
    def versions(self) -> list[VersionProblem]:
        return problems_of_every_suite()

    @cached_property
    def hub_silence(self) -> str | None:
        return silence(constants.ENDPOINT, self.timeout)

    @cached_property
    def judge_silence(self) -> str | None:
        return silence(os.environ.get("OPENAI_BASE_URL") or _OPENAI, self.timeout)

    @cached_property
    def model_problems(self) -> list[str]:
        """Why the language model cannot be had."""
        subject = self.subject
        if subject is None:
            return []
        if subject.local_model is not None:
            if (subject.local_model / "config.json").is_file():
                return []
            return [f"no model in {subject.local_model}: it has no config.json"]
        repo = hub_name(subject.weights_of)
        if in_cache(repo):
            return []
        if constants.HF_HUB_OFFLINE:
            return [
                f"model {repo} is not in the Hub's cache and HF_HUB_OFFLINE is set; unset it, "
                "or give a local folder"
            ]
        if self.hub_silence is not None:
            return [
                f"model {repo} is not in the Hub's cache and {constants.ENDPOINT} does not "
                f"answer ({self.hub_silence}); give a local folder, or set HF_ENDPOINT"
            ]
        problems = []
        is_gated = repo.startswith(_GATED) and constants.ENDPOINT == _GATEKEEPER
        if is_gated and not get_token():
            problems.append(
                f"model {repo} is gated and there is no Hugging Face token; accept its licence "
                f"at {_GATEKEEPER}/{repo}, then run: hf auth login"
            )
        cache = Path(constants.HF_HUB_CACHE)
        wanted, free = model_on_disk(subject), _free(cache)
        if free < wanted:
            problems.append(
                f"{cache} has {size_text(free)} free and {repo} takes {size_text(wanted)} or "
                "more; free some, or set HF_HOME to another disk"
            )
        return problems

    def device_problems(self, need: Needs) -> list[str]:
        """Whether the device exists and holds the model and an SAE."""
        subject = self.subject
        if subject is None or not subject.device.startswith("cuda"):
            return []
        if not torch.cuda.is_available():
            return [f"device {subject.device}: torch sees no GPU; use --device cpu"]
        try:
            free, _ = torch.cuda.mem_get_info(torch.device(subject.device))
        except (RuntimeError, ValueError, AssertionError) as error:
            return [f"device {subject.device}: {one_line(error, 120)}; name another"]
        model = model_in_memory(subject) if need.model else 0.0
        wanted = sae_in_memory(subject) + (model or 0.0)
        if free >= wanted:
            return []
        return [
            f"{subject.device} has {size_text(free)} free and model and SAE take "
            f"{size_text(wanted)} or more; end what else runs there, use --device cpu, or a "
            "smaller llm_dtype"
        ]

    def _disk(
        self, suite: Suite, subject: Subject, options: Mapping[str, Any]
    ) -> tuple[list[str], list[str]]:
        """Room for cached activations: of this suite, and of those before it as well."""
        try:
            wanted = suite.disk(subject, options)
        except (KeyError, TypeError):
            return [], []  # an option of another type, which the adapter has complained about
        free = _free(self.out)
        self.planned += wanted
        where = f"{self.out} has {size_text(free)} free and cached activations"
        remedy = "or more; free some, or choose another folder"
        if wanted > free:
            return [f"{where} take {size_text(wanted)} {remedy}"], []
        if wanted and self.planned > free:
            return [], [f"{where} of all suites {size_text(self.planned)} {remedy}"]
        return [], []

    @property
    def without_hub(self) -> str | None:
        """Why nothing comes from the Hub; None if it may."""
        if constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE is set"
        if self.hub_silence is None:
            return None
        return f"{constants.ENDPOINT} does not answer ({self.hub_silence})"

    def _reach(self, suite: Suite, options: Mapping[str, Any]) -> list[str]:
        """Addresses that give no sign of life; a proxy or a cache may make up for it."""
        found = []
        if asks_for_data(suite, options) and self.without_hub is not None:
            names = list(suite.datasets(options))
            absent = [name for name in names if not dataset_in_cache(name)]
            if absent or not names:
                text = f"{self.without_hub}: runs only if its datasets are cached"
                if absent:
                    be = "is" if len(absent) == 1 else "are"
                    where = datasets.config.HF_DATASETS_CACHE
                    text += f", and {', '.join(absent)} {be} not in {where}"
                found.append(text)
        # Silence of an address that is unset or malformed was reported with its remedy.
        judged = suite.needs.judge and not list(endpoint_problems())
        if judged and self.judge_silence is not None:
            found.append(f"the judge's address does not answer ({self.judge_silence})")
        return found


def asks_for_data(suite: Suite, options: Mapping[str, Any]) -> bool:
    """Whether a suite's data is the Hub's, and not a dataset that is here."""
    given = options.get("dataset") or options.get("dataset_name")
    # Entities that are named are never the Hub's.
    here = (given and Path(str(given)).exists()) or options.get("entities")
    return suite.needs.data and not here


def asked_of_hub(subject: Subject, suites: Options) -> list[str]:
    """What these suites will ask of the Hub, in words: the model, their data."""
    model = [hub_name(subject.weights_of)]
    if subject.local_model is not None or not any(get_suite(s).needs.model for s in suites):
        model = []
    data = [s for s, options in suites.items() if asks_for_data(get_suite(s), options)]
    return [*model, f"the data of {', '.join(data)}"] if data else model


def dataset_in_cache(name: str) -> bool:
    """Whether `datasets` has prepared a dataset before, which it then reads without the Hub.

    Args:
        name: ``owner/name``, or ``owner/name/configuration``.
    """
    *owner, own, config = name.split("/") if name.count("/") == 2 else [*name.split("/"), "*"]
    # As `datasets` names its folders.
    folder = "___".join([*owner, camelcase_to_snakecase(own)])
    cache = Path(datasets.config.HF_DATASETS_CACHE).expanduser()
    return any(cache.glob(f"{folder}/{config}/*/*/dataset_info.json"))


def in_cache(repo: str) -> bool:
    """Whether the Hub's cache has the model's configuration, so that it was loaded before."""
    return "/" in repo and isinstance(try_to_load_from_cache(repo, "config.json"), str)


def model_parameters(subject: Subject) -> float | None:
    """Number of parameters of the language model, as far as it is known without loading it.

    Counted in weight files where there are any, else read from the name ("pythia-70m").
    """
    repo = hub_name(subject.weights_of)
    if subject.local_model is not None:
        folder: Path | None = subject.local_model
    else:
        config = try_to_load_from_cache(repo, "config.json") if "/" in repo else None
        folder = Path(config).parent if isinstance(config, str) else None
    counted = None if folder is None else _counted(folder)
    if counted is not None:
        return counted
    sizes = _SIZE.findall(repo.rpartition("/")[2])
    if len(sizes) != 1:
        return None
    number, unit = sizes[0]
    return _NAME_IS_AT_LEAST * float(number) * _UNITS[unit.lower()]


def model_on_disk(subject: Subject) -> float:
    """Least bytes that a download of the model takes; 0 if there is none to come."""
    if subject.local_model is not None or in_cache(hub_name(subject.weights_of)):
        return 0.0
    return _BYTES_ON_DISK * (model_parameters(subject) or 0.0)


def model_in_memory(subject: Subject) -> float | None:
    """Least bytes that the language model takes on its device; None if its size is unknown."""
    parameters = model_parameters(subject)
    return None if parameters is None else parameters * BYTES[subject.llm_dtype]


def sae_in_memory(subject: Subject) -> float:
    """Least bytes of one SAE, which is float32."""
    return 2.0 * subject.d_in * subject.d_sae * 4


def _counted(folder: Path) -> float | None:
    """Parameters in the safetensors files of a folder; None if one is missing or unreadable."""
    try:
        if (folder / _INDEX).exists():
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            files = sorted(set(index["weight_map"].values()))
        else:
            files = [_WEIGHTS]
        return float(sum(_in_header(folder / file) for file in files))
    except (OSError, ValueError, KeyError):
        return None


def _in_header(file: Path) -> int:
    """A safetensors file starts with the length of a JSON header that has all shapes."""
    with file.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        if size > _LARGEST_HEADER:
            raise ValueError(f"{file} is no safetensors file")
        header = json.loads(handle.read(size))
    return sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")


def _of_adapter(
    suite: Suite, subject: Subject, given: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any] | None]:
    """What the adapter itself says, and its options; None if they are wrong."""
    try:
        options = suite.complete(given)
        problems = [
            *suite.transcoder_problems(subject),
            *suite.data_problems(options),
            *suite.problems(subject, options),
        ]
        return problems, options
    except UserError as error:
        return [str(error)], None
    except Exception as error:  # importing SAEBench may fail in ways of its own
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        return [f"cannot be imported ({reason}); pip install 'sae-baselines[bench]'"], None


def _free(folder: Path) -> int:
    """Free bytes where a folder is or will be."""
    folder = folder.absolute()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    return shutil.disk_usage(existing).free
