"""The demo as one study: what it fetches, trains and scores, and how long that takes."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from sae_baselines.evals import EvalSpec, eval_spec_from_dict
from sae_baselines.files import size_text
from sae_baselines.home import cache_dir
from sae_baselines.paper.demo.assets import MODEL, TEXT
from sae_baselines.paper.demo.packages import is_finished
from sae_baselines.paper.demo.specs import demo_spec
from sae_baselines.progress import Stage
from sae_baselines.reach import say_if_silent
from sae_baselines.study.plan import all_members
from sae_baselines.study.presets import preset
from sae_baselines.study.spec import AUTO, DEFAULT_MEMBERS, PanelSpec
from sae_baselines.study.stability import pairs_of

# Models that go by a short name, and the preset that knows their hook, text and recipe.
NAMED = {"pythia-70m": "pythia-70m", "gemma-2-2b": "gemma-2-2b-layer-12-batchtopk"}
# Of those: a width and a budget for minutes on a GPU.
_OF_NAMED: dict[str, Any] = {"expansion": 8, "training_tokens": 4_194_304, "l0": 64}

_TITLES = {MODEL.folder: "SmolLM2-135M-Instruct", TEXT.folder: "English Wikipedia of 2006"}
_MEMBERS = [*DEFAULT_MEMBERS, "random"]
# Short texts, and few of them, that come inside a package.
_PROBES = ["125_world_country_Italy", "154_athlete_sport_football"]

# What two CPU cores do in minutes. Cross-entropy is `core`'s to measure.
_ON_CPU: dict[str, Any] = {"expansion": 4, "train_batch_size_tokens": 512, "ce_tokens": 0}
# As many small steps as take a frozen decoder past one that was never trained in explained
# variance; before, it has no word. In cross-entropy it may still be below.
_SMALL: dict[str, Any] = {
    **_ON_CPU,
    "training_tokens": 122_880,
    "lr_decay_steps": 48,
    "calibration_tokens": 12_096,
    "eval_tokens": 12_096,
}
_QUICK: dict[str, Any] = {
    **_ON_CPU,
    "training_tokens": 24_576,
    "calibration_tokens": 4_032,
    "eval_tokens": 4_032,
}
# Cores at work on average where there are two: not all of it is done by both.
_CORES = 1.7


@dataclass(frozen=True)
class Demo:
    """What the demo asks of `sae_baselines.check`.

    Attributes:
        spec: What is trained.
        evals: What it is scored by.
        stages: How long its parts take, each next to the others.
        says: What is about to be done, a line each.
    """

    spec: PanelSpec
    evals: EvalSpec
    stages: list[Stage]
    says: list[str]


def fetched(model: str | None = None, dataset: str | None = None) -> list[str]:
    """What `demo` is about to download and how much of it, a line each.

    Args:
        model: As of `demo`.
        dataset: As of `demo`.
    """
    wanted = [MODEL] if model is None else []
    if dataset is None and model not in NAMED:
        wanted.append(TEXT)
    here = cache_dir()
    missing = [asset for asset in wanted if not is_finished(asset, here / asset.folder)]
    lines = []
    for asset in missing:
        size = size_text(sum(package.size for package in asset.packages), 1000)
        lines.append(
            f"Downloads {_TITLES[asset.folder]}, once: {size}, from a package registry with "
            f"pip ({asset.licence}), to {here}"
        )
    lines += [
        f"{_TITLES[asset.folder]} is there already: {here / asset.folder}"
        for asset in wanted
        if asset not in missing
    ]
    if model is not None and not Path(model).exists():
        name = preset(NAMED[model]).model.name if model in NAMED else model
        size = _size_on_hub(name)
        lines.append(f"Reads {name} from the Hugging Face Hub{f': {size}' if size else ''}")
    text = preset(NAMED[model]).dataset.path if model in NAMED and dataset is None else dataset
    if text is not None and not Path(text).exists():
        lines.append(f"Reads {text} from the Hugging Face Hub, as much as it needs")
    return lines


def _size_on_hub(name: str) -> str | None:
    """Of a model's weights, which its clients keep; None where the Hub does not say."""
    say_if_silent([name])
    try:
        files = [f for f in HfApi().list_repo_tree(name) if isinstance(f, RepoFile)]
    except Exception:  # whoever reads the model says why it cannot be read
        return None
    for ending in (".safetensors", ".bin"):
        sizes = [file.size for file in files if file.path.endswith(ending)]
        if sizes:
            return size_text(sum(sizes), 1000)
    return None


def demo(
    *,
    model: str | None = None,
    dataset: str | None = None,
    hook_name: str | None = None,
    training_tokens: int | None = None,
    quick: bool = False,
) -> Demo:
    """Three seeds of an SAE, its baselines and an untrained control, and what scores them.

    Args:
        model: One of `NAMED`, a Hub name or a local folder; default SmolLM2-135M from a package
            registry.
        dataset: Hub name or local file; default English Wikipedia from a package registry, or
            what the preset of a named model reads.
        hook_name: Default: the residual stream after a middle layer, or the preset's.
        training_tokens: Default: as many as take minutes.
        quick: One seed, and less of everything.

    Raises:
        AssetError: The default model or text cannot be obtained.
        UserError: The given model cannot be read.
    """
    changes: dict[str, Any] = {
        "name": _name(model, quick),
        # Of a batch's, one threshold serves all tokens, and L0 on the probes' texts differs by
        # more than a verdict allows.
        "architecture": "topk",
        "seeds": [0] if quick else [0, 1, 2],
        "members": list(_MEMBERS),
        "sparse_step": "all",
    }
    if model in NAMED:
        spec = preset(NAMED[model])
        changes |= {**_OF_NAMED, "max_panels_per_pass": AUTO, "n_checkpoints": 4}
        if dataset is not None:
            changes["dataset"] = replace(spec.dataset, path=dataset, streaming=False)
        if hook_name is not None:
            changes["hook_name"] = hook_name
        if quick:
            changes["training_tokens"] //= 4
    else:
        spec = demo_spec(model=model, dataset=dataset, hook_name=hook_name)
        changes |= _QUICK if quick else _SMALL
    if training_tokens is not None:
        changes["training_tokens"] = training_tokens
    spec = replace(spec, **changes)
    stages = _stages(spec, 1 if quick else len(_PROBES))
    evals = _evals(spec, model in NAMED, _PROBES[1:] if quick else _PROBES, 2 if quick else 4)
    return Demo(spec, evals, stages, _says(spec, stages, model is None))


def _name(model: str | None, quick: bool) -> str:
    """Of the study, so that each kind of demo has a folder of its own."""
    of_model = re.sub(r"[^\w.-]+", "-", Path(model).name) if model is not None else ""
    return "-".join(part for part in ("demo", of_model[:40], "quick" if quick else "") if part)


def _evals(spec: PanelSpec, on_gpu: bool, probes: list[str], batches: int) -> EvalSpec:
    core = {
        "dataset": spec.dataset.path,
        "context_size": min(128, spec.context_size),
        "n_eval_reconstruction_batches": 16 if on_gpu else batches,
        "n_eval_sparsity_variance_batches": 64 if on_gpu else 3 * batches,
    }
    suites = {"core": core, "sparse_probing_sae_probes": {"dataset_names": probes}}
    suites = {name: {**options, "floors": True} for name, options in suites.items()}
    return eval_spec_from_dict(
        {"suites": suites, "llm_batch_size": 16 if on_gpu else 4}, where="demo"
    )


def _stages(spec: PanelSpec, probes: int) -> list[Stage]:
    """Seconds on two CPU cores, counted on one; on a GPU, how they compare is a guess."""
    members = all_members(spec)
    n, trained = len(members), sum(not member.is_control for member in members.values())
    held_out = spec.calibration_tokens + spec.eval_tokens
    tokens = spec.training_tokens
    stages = [
        Stage("Held-out activations", 10 + 1e-3 * held_out, "reading", "batches of text"),
        Stage(
            "Training Multi-SAE",
            12 + (1e-3 + 4e-5 * trained) * tokens,
            f"training {trained} SAEs",
            "tokens",
        ),
        Stage(
            "Calibrating and exporting",
            3e-4 * spec.calibration_tokens * trained,
            "calibrating",
            "SAEs",
        ),
        Stage("Measuring", (1 + 2.5e-4 * spec.eval_tokens) * n, "measuring", "SAEs"),
        Stage("Seeds against seeds", 0.8 * len(pairs_of(spec)), "seeds against seeds", "pairs"),
        Stage("Contexts", 8, "text of single latents", "SAEs"),
        Stage("Evaluating core", 25 + 18 * n, "variance and cross-entropy", "SAEs"),
        Stage(
            "Evaluating sparse_probing_sae_probes",
            15 + (20 + 2 * n) * probes,
            "probing",
            "SAEs",
        ),
        Stage("Writing the report", 10, "report", "pages"),
    ]
    return [replace(stage, seconds=stage.seconds / _CORES) for stage in stages]


def _says(spec: PanelSpec, stages: list[Stage], ours: bool) -> list[str]:
    n, seeds = len(all_members(spec)), len(spec.seeds)
    names = ", ".join(member.name for member in spec.member_specs)
    lines = [
        f"{n} SAEs at {spec.hook_name} of {spec.model.recorded_name}, {spec.training_tokens:,} "
        f"tokens: {f'{seeds} seeds' if seeds > 1 else 'one seed'} of {names}",
        "One seed gives numbers; a verdict takes two, better three"
        if seeds == 1
        else "Then scores, with what chance scores beside them, a verdict and a page",
    ]
    if ours:
        minutes = round(sum(stage.seconds for stage in stages) / 60)
        lines.append(f"About {minutes} minutes where two CPU cores have nothing else to do")
    lines.append("Ctrl-C stops it; the same command goes on where it was")
    return lines
