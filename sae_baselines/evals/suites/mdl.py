"""SAEBench's MDL suite, which does not run as shipped, and the shim that makes it run."""

import ast
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from sae_lens import SAE

from sae_baselines.evals.measured import LOWER, NEITHER, Measured
from sae_baselines.evals.suite import Extras, Subject, Suite, SuiteCall, config_defaults

_MODULE = "sae_bench.evals.mdl.main"
# Context that SAEs are usually trained on; the SAE's own decides.
_USUAL_CONTEXT = 128
_CAVEAT = (
    "mdl: SAEBench's bins span 0 to at least 100 whatever the activations, and an inactive "
    "latent is quantised to the middle of the first bin; with smaller activations the "
    "description length is the entropy of which latents are on, and mse_loss says nothing "
    "about the SAE"
)


class Mdl(Suite):
    """SAEBench's ``mdl``: bits that describe which latents are on, and how strongly.

    As shipped it needs a package that SAEBench does not require, reads a global variable that
    only its command line sets, and moves tensors to CUDA. With ``shim: true`` all three are
    supplied from outside; no number is computed differently. A Python loop over latents, each
    of which looks at all of them, makes it slow for wide SAEs.
    """

    name = "mdl"
    summary = "bits needed to describe the activations of the latents"
    primary = ("description_length",)
    local_data = ("dataset_name",)

    def defaults(self) -> dict[str, Any]:
        from sae_bench.evals.mdl.eval_config import MDLEvalConfig  # noqa: PLC0415

        given = config_defaults(
            # context_length is never read: the SAE's own context is used.
            MDLEvalConfig,
            without=("model_name", "random_seed", "llm_dtype", "context_length"),
        )
        return {
            **given,
            # As SAEBench's command line sets them: its dataclass has values of k that are
            # applied to the check of the error but not to the description.
            "k_values": [None],
            "num_bins_values": [8, 16, 32, 64],
            "mse_epsilon_threshold": 0.2,
            # Its square is the number of prompts held at once: 64 would mean 34 GB for each
            # copy of the activations of 16 000 latents.
            "sae_batch_size": 16,
            "shim": True,
        }

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        if find_spec("sae_bench") is None:
            return
        if not isinstance(options["shim"], bool):
            yield f"shim: {options['shim']!r} is neither true nor false"
        elif not options["shim"]:
            yield from defects(subject.device)
        size = options["sae_batch_size"]
        if not isinstance(size, int) or size < 1:
            yield f"sae_batch_size: {size!r} is not a positive number of prompts"
            return
        for option in ("k_values", "num_bins_values"):
            if not isinstance(options[option], list) or not options[option]:
                yield f"{option}: {options[option]!r} is not a list with at least one value"
        # Activations, a copy of them, and which are positive.
        needed = 3 * 4 * size**2 * _USUAL_CONTEXT * subject.d_sae
        there = _memory(subject.device)
        if there is not None and needed > there:
            yield (
                f"sae_batch_size: {size} needs about {needed / 1e9:.0f} GB for "
                f"{subject.d_sae} latents, there are {there / 1e9:.0f}; half of it needs a "
                "quarter"
            )

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        from sae_bench.evals.mdl.eval_config import MDLEvalConfig  # noqa: PLC0415

        options = {name: value for name, value in call.options.items() if name != "shim"}
        config = MDLEvalConfig(
            model_name=call.subject.model_name,
            llm_dtype=call.subject.llm_dtype,
            random_seed=call.seed,
            **options,
        )
        selected: Any = [(call.name, sae)]
        # SAEBench turns gradients off and leaves them so.
        main = _module(call.options["shim"])
        with torch.no_grad(), _runnable(main, config, call):
            main.run_eval(config, selected, call.subject.device, str(call.output))
        return Extras(notes=[_CAVEAT])

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        del extras
        results: list[dict[str, Any]] = payload["eval_results"]
        # SAEBench's `pick_minimum_viable`, which it does not call.
        viable = [result for result in results if result["within_threshold"]] or results
        found = _rows(min(viable, key=lambda result: result["description_length"]), "")
        for result in results:
            k = "" if result["k"] is None else f"_k_{result['k']}"
            found += _rows(result, f"bins_{result['num_bins']}{k}")
        return found


def defects(device: str) -> list[str]:
    """Why the installed MDL suite cannot run as shipped, read from its source.

    Args:
        device: Torch device of the run.
    """
    spec = find_spec(_MODULE)
    if spec is None or spec.origin is None:
        return [f"{_MODULE} is not installed; install sae-bench==0.6.0"]
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    found = []
    if _imports(tree, "loguru") and find_spec("loguru") is None:
        found.append(f"{_MODULE} imports loguru; pip install loguru, or set shim: true")
    if _reads_global(tree, "config"):
        found.append(
            f"{_MODULE} reads a global `config` that only its command line sets; set shim: true"
        )
    if _calls(tree, "cuda") and not device.startswith("cuda"):
        found.append(
            f"{_MODULE} calls .cuda() whatever the device; use device cuda, or set shim: true"
        )
    return found


def _module(shim: bool) -> Any:
    """SAEBench's module, imported with a stand-in for loguru where that is missing."""
    if shim and find_spec("loguru") is None:
        stand_in: Any = ModuleType("loguru")
        stand_in.logger = logging.getLogger(_MODULE)
        sys.modules["loguru"] = stand_in
        try:
            from sae_bench.evals.mdl import main  # noqa: PLC0415
        finally:
            # Others must still find it missing.
            del sys.modules["loguru"]
    else:
        from sae_bench.evals.mdl import main  # noqa: PLC0415
    return main


@contextmanager
def _runnable(main: Any, config: Any, call: SuiteCall) -> Iterator[None]:
    """Supply the global ``config``, and let tensors stay where they are without CUDA."""
    if not call.options["shim"]:
        yield
        return
    tensor: Any = torch.Tensor
    stay = not call.subject.device.startswith("cuda")
    missing = not hasattr(main, "config")
    if missing:
        main.config = config
    if stay:
        # The method belongs to the base class: this hides it, deleting uncovers it.
        tensor.cuda = lambda self: self
    try:
        yield
    finally:
        if missing:
            del main.config
        if stay:
            del tensor.cuda


def _rows(result: Mapping[str, Any], task: str) -> list[Measured]:
    return [
        Measured("description_length", float(result["description_length"]), LOWER, task),
        Measured("mse_loss", float(result["mse_loss"]), NEITHER, task),
        Measured("within_threshold", float(result["within_threshold"]), NEITHER, task),
    ]


def _memory(device: str) -> int | None:
    """Bytes of the device, where they can be told."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[1] if torch.cuda.is_available() else None
    names: Mapping[str, int] = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _imports(tree: ast.Module, name: str) -> bool:
    return any(isinstance(node, ast.ImportFrom) and node.module == name for node in tree.body)


def _reads_global(tree: ast.Module, name: str) -> bool:
    """Whether a function reads a name that neither it nor the module defines."""
    assigned = [target for n in tree.body if isinstance(n, ast.Assign) for target in n.targets]
    if any(isinstance(target, ast.Name) and target.id == name for target in assigned):
        return False
    for function in (n for n in tree.body if isinstance(n, ast.FunctionDef)):
        own = {argument.arg for argument in function.args.args}
        uses = [n for n in ast.walk(function) if isinstance(n, ast.Name) and n.id == name]
        own |= {use.id for use in uses if isinstance(use.ctx, ast.Store)}
        if uses and name not in own:
            return True
    return False


def _calls(tree: ast.Module, method: str) -> bool:
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == method
        for node in ast.walk(tree)
    )
