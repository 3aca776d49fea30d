"""What to evaluate and how: the ``evals`` section of a panel file, or keyword arguments."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic import Field as PydanticField
from pydantic.dataclasses import dataclass

from sae_baselines.errors import UserError, did_you_mean, one_line
from sae_baselines.evals.registry import DEFAULT_SUITES, check_pattern, get_suite, suite_names
from sae_baselines.evals.store import EVALS
from sae_baselines.files import checksum_of, write_atomically
from sae_baselines.study.shared_model import DEFAULT_BYTES
from sae_baselines.yaml_text import read_yaml

logger = logging.getLogger("sae_baselines")

# What a score depends on; another version makes another result.
DECISIVE = ("sae-bench", "sae-probes", "sae-lens", "transformer-lens", "torch", "transformers")

DEFAULT_SEED = 42

_FILE = "evals.yaml"
_OF_TRANSCODERS = ("panel/explained_variance", "panel/ce_recovered")
# The paper's evaluations (Section 4); RAVEL knows no other model of the paper's.
_PAPER: dict[str, dict[str, Any]] = {
    "core": {},
    "sparse_probing": {},
    # 200 random live latents, firing rate 1e-6 or more (of 2 M tokens: twice).
    "autointerp": {"n_latents": 200, "dead_latent_threshold": 2},
}
_RAVEL = "gemma-2-2b"
_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)
# The largest that numpy's and scikit-learn's generators take.
_LARGEST_SEED = 2**32 - 1


class NoSAEBenchError(UserError):
    """SAEBench is not installed, or cannot be imported."""


@dataclass(config=_CONFIG, kw_only=True)
class EvalSpec:
    """How SAEs are evaluated.

    Args:
        suites: Suites and their options (SAEBench's config fields). A list of names means their
            default options.
        seed: For SAEBench's ``random_seed``; python, numpy and torch are seeded with it before
            every run, also for suites that forget to.
        llm_dtype: Dtype of the language model (and of the SAE, where SAEBench casts it).
        llm_batch_size: Prompts in one forward pass of the language model.
        device: Torch device.
        fold_decoder_norms: Fold W_dec's norms into the other weights first, for every SAE
            alike, as SAEBench does for released SAEs. Where SAELens cannot (TopK), a note says
            so.
        shared: Load the language model once and do not repeat forward passes that no SAE can
            change; scores are the same bit for bit.
        shared_gib: Most memory for that.
        primary: Metrics that verdicts are made of, as ``suite/metric``; default: each suite's.
        margins: Equivalence margins by ``suite/metric``, in place of the defaults.
        correct: What verdicts are corrected over: the metrics of each baseline, architecture
            and L0 by itself ("baseline"), or all tests of the study together ("study"), which
            is stricter.
    """

    suites: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {name: {} for name in DEFAULT_SUITES}
    )
    seed: int = PydanticField(default=DEFAULT_SEED, ge=0, le=_LARGEST_SEED)
    llm_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    llm_batch_size: int = PydanticField(default=16, gt=0)
    device: str = "auto"
    fold_decoder_norms: bool = True
    shared: bool = True
    shared_gib: float = PydanticField(default=DEFAULT_BYTES / 2**30, ge=0)
    primary: list[str] | None = None
    margins: dict[str, float] = field(default_factory=dict)
    correct: Literal["baseline", "study"] = "baseline"

    def __post_init__(self) -> None:
        if not self.suites:
            raise UserError("suites: none given; for example core")
        for name, options in self.suites.items():
            get_suite(name)
            # Without SAEBench the preflight says what to install.
            with contextlib.suppress(NoSAEBenchError):
                _complete(name, options)
        try:
            torch.device("cpu" if self.device == "auto" else self.device)
        except RuntimeError as error:
            raise UserError(
                f"device: {self.device!r} is not one; use auto, cpu, cuda or cuda:1"
            ) from error
        for pattern, margin in self.margins.items():
            check_pattern("margins", pattern)
            if not margin > 0:
                raise UserError(
                    f"margins: {pattern}: {margin:g} is not a positive number, in the "
                    "metric's own units; for example 0.01"
                )
        for pattern in self.primary or ():
            check_pattern("primary", pattern)

    def options_of(self, suite: str) -> dict[str, Any]:
        """A suite's options, complete."""
        return _complete(suite, self.suites.get(suite, {}))

    @property
    def primary_metrics(self) -> list[str]:
        """``suite/metric`` of the verdicts."""
        return primary_of({"primary": self.primary, "suites": self.suites})

    def only(self, names: list[str]) -> "EvalSpec":
        """The same with other suites; options given for them are kept.

        Raises:
            UserError: There is no such suite.
        """
        for name in names:
            get_suite(name)
        return dataclasses.replace(self, suites={n: self.suites.get(n, {}) for n in names})


def _complete(suite: str, options: dict[str, Any]) -> dict[str, Any]:
    try:
        return get_suite(suite).complete(options)
    except UserError:
        raise
    except Exception as error:  # defaults are SAEBench's, whose import may fail in many ways
        raise NoSAEBenchError(
            f"suites.{suite}: SAEBench cannot be imported ({one_line(error, 200)}); run "
            "sae-baselines doctor, or pip install 'sae-baselines[bench]'"
        ) from error


_ADAPTER = TypeAdapter(EvalSpec)


def eval_spec_from_dict(data: Any, where: str = "evals") -> EvalSpec:
    """Build from plain data, as YAML gave it.

    Raises:
        UserError: On the first thing that is wrong.
    """
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise UserError(f"{where}: is not a mapping of fields")
    suites = data.get("suites")
    if isinstance(suites, str):
        suites = [name.strip() for name in suites.split(",") if name.strip()]
    if isinstance(suites, list):
        for name in suites:
            if not isinstance(name, str):
                raise UserError(f"{where}: suites: {name!r} is not the name of a suite")
        data = {**data, "suites": {name: {} for name in suites}}
    elif isinstance(suites, dict):
        data = {**data, "suites": {name: options or {} for name, options in suites.items()}}
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        problem = error.errors()[0]
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, UserError):
            raise UserError(f"{where}: {cause}") from error
        location = ".".join(str(part) for part in problem["loc"])
        if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            hint = did_you_mean(location, [f.name for f in dataclasses.fields(EvalSpec)])
            raise UserError(f"{where}: {location}: is not a field; {hint}") from error
        value = problem.get("input")
        raise UserError(f"{where}: {location}: {value!r}: {problem['msg']}") from error


def eval_spec_to_dict(spec: EvalSpec) -> dict[str, Any]:
    """Plain data, complete: suites with every option."""
    data = _ADAPTER.dump_python(spec, mode="json")
    data["suites"] = {name: spec.options_of(name) for name in spec.suites}
    return data


def has_eval_spec(path: str | Path) -> bool:
    """Whether a panel file has a section ``evals``."""
    data = read_yaml(path)
    return isinstance(data, dict) and "evals" in data


def load_eval_spec(path: str | Path) -> EvalSpec:
    """The ``evals`` section of a panel file; without one, the defaults.

    Raises:
        UserError: No such file, not YAML, or not valid.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds no fields; write evals: and what belongs to it")
    section = data.get("evals")
    return eval_spec_from_dict(section, where=f"{Path(path).name}: evals")


def settings_hash(
    suite: str, spec: EvalSpec, versions: dict[str, str], conditions: dict[str, Any]
) -> str:
    """Hash of all that must be equal for two results of a suite to be compared.

    Args:
        suite: Its name.
        spec: How it is run.
        versions: Of the packages that decide.
        conditions: Where it is run: device, contents of local models and data, judge.
    """
    data = {
        "suite": suite,
        # Without floors, which change no score: a result made without them is completed.
        "options": get_suite(suite).deciding(spec.options_of(suite)),
        # As in hashes of before where a seed changes nothing.
        "seed": spec.seed if get_suite(suite).seeded else DEFAULT_SEED,
        "llm_dtype": spec.llm_dtype,
        "llm_batch_size": spec.llm_batch_size,
        "fold_decoder_norms": spec.fold_decoder_norms,
        "versions": versions,
        "conditions": conditions,
    }
    return checksum_of(data)[:16]


def stored_spec(root: str | Path, *, to_run: bool = False) -> EvalSpec | None:
    """Settings of the last evaluation in a folder, or None.

    Args:
        root: The folder.
        to_run: Its suites will run: others must not take their place.

    Raises:
        UserError: The file is damaged, or no suite of it is known that should run.
    """
    path = Path(root) / EVALS / _FILE
    if not path.exists():
        return None
    data, unknown = read_yaml(path), _unknown_suites(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds no settings; delete it and evaluate again")
    for name in unknown:
        logger.warning("%s: suite %r is unknown here (of a plugin?); left out", path, name)
    if unknown:
        known = {n: options for n, options in data["suites"].items() if n not in unknown}
        data = {**data, "suites": known}
        if not known and to_run:
            raise UserError(
                f"{path}: suites: {', '.join(unknown)}: unknown here; name others with "
                "--suites, or import the study's plugins with --allow-plugins"
            )
        if not known:
            return None
    return eval_spec_from_dict(data, where=str(path))


def _unknown_suites(path: Path) -> dict[str, Any]:
    """Options of the suites in stored settings that only a plugin knows."""
    data = read_yaml(path) if path.exists() else None
    suites = data.get("suites") if isinstance(data, dict) else None
    known = suite_names()
    named = suites.items() if isinstance(suites, dict) else ()
    return {name: options for name, options in named if name not in known}


def store_spec(root: str | Path, spec: EvalSpec) -> None:
    """Keep settings; suites evaluated before under a call that left them out stay listed, and
    so do those that are unknown here."""
    path = Path(root) / EVALS / _FILE
    before = stored_spec(root)
    if before is not None:
        spec = dataclasses.replace(spec, suites={**before.suites, **spec.suites})
    # The device is the machine's, not the study's.
    data = eval_spec_to_dict(dataclasses.replace(spec, device="auto"))
    data["suites"] = {**_unknown_suites(path), **data["suites"]}
    write_atomically(path, yaml.safe_dump(data, sort_keys=False))


# What a record says of how its scores were made.
_RECORDED = ("seed", "llm_dtype", "llm_batch_size", "fold_decoder_norms", "shared")


def settings_of(root: str | Path, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the scores in a folder were made and what verdicts are made of; {} if there are none.

    Records say it; what they lack (a suite without a result, records of older versions) is
    taken from the stored settings.

    Args:
        root: Study folder.
        records: Of its results.

    Returns:
        Fields of `EvalSpec`, complete. One that differs between suites is a mapping of suite to
        value; None where it changes nothing.
    """
    stored = stored_spec(root)
    found = eval_spec_to_dict(stored) if stored is not None else {}
    latest = sorted(records, key=lambda record: str(record.get("created", "")))
    latest = [record for record in latest if record["suite"] in suite_names()]
    options = {r["suite"]: r["options"] for r in latest if "options" in r}
    if found or options:
        found["suites"] = {**found.get("suites", {}), **options}
    for name in _RECORDED:
        values = {r["suite"]: r[name] for r in latest if name in r}
        if values:
            same = len({json.dumps(value) for value in values.values()}) == 1
            found[name] = next(iter(values.values())) if same else values
    choices = [r["choice"] for r in records if "choice" in r]
    if choices:
        last = max(choices, key=lambda choice: choice["created"])
        found |= {k: last[k] for k in ("primary", "margins", "correct") if k in last}
    return found


def primary_of(settings: Mapping[str, Any], transcoders: bool = False) -> list[str]:
    """``suite/metric`` of the verdicts.

    Args:
        settings: From `settings_of`.
        transcoders: Whether that is what was evaluated. No suite scores what they reconstruct
            (`core` replaces what it reads), so that the panel's own measurements do.
    """
    if settings.get("primary") is not None:
        return list(settings["primary"])
    suites = settings.get("suites", {})
    names = [f"{name}/{metric}" for name in suites for metric in get_suite(name).primary]
    return [*_OF_TRANSCODERS, *names] if names and transcoders else names


def preset_evals(name: str) -> dict[str, Any]:
    """The ``evals`` section of a preset: how the ready panels are evaluated.

    Args:
        name: A preset's name.
    """
    if name.startswith("pythia"):
        return {"suites": {name: {} for name in DEFAULT_SUITES}}
    ravel = {"ravel": {}} if name.startswith(_RAVEL) else {}
    return {"suites": {**_PAPER, **ravel}, "llm_dtype": "bfloat16"}


def preset_evals_yaml(name: str) -> str:
    """The section as YAML."""
    return yaml.safe_dump({"evals": preset_evals(name)}, sort_keys=False)
