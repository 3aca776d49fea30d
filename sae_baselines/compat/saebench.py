"""What SAEBench's suites are asked for by name, and what is patched while they run.

SAEBench is imported only when one of its names is asked for. Patches are context managers that
put back what they found, whatever happens. tests/compat has one contract test per name.
"""

import ast
import hashlib
import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from sae_lens import SAE
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer
from transformers import PreTrainedTokenizerFast

from sae_baselines.errors import UserError
from sae_baselines.files import flaw_of, new_file, own_file

# SAEBench's own judge, fixed in its source.
SAEBENCH_MODEL = "gpt-4o-mini"
# The OpenAI client's own number of retries.
CLIENT_RETRIES = 2
# Seconds that it waits for a reply.
CLIENT_TIMEOUT = 600.0
MDL = "sae_bench.evals.mdl.main"
# Dataset of sparse probing to its configurations that SAEBench reads, where it has any.
CONFIGURATIONS = {"Helsinki-NLP/europarl": ("en-fr", "fr-it", "de-en", "es-fr", "nl-pt")}
# Rows whose active latents are counted at a time.
_ROWS = 4096

# Whether what is encoded counts.
_COUNTS: ContextVar[bool] = ContextVar("counts", default=True)

_INSTALL = "install sae-bench==0.6.0"
_EVALS = "sae_bench.evals"

# Name to the module that has it.
NAMES = {
    "SparseProbingEvalConfig": f"{_EVALS}.sparse_probing.eval_config",
    "SparseProbingSaeMetrics": f"{_EVALS}.sparse_probing.eval_output",
    "chosen_classes_per_dataset": "sae_bench.sae_bench_utils.dataset_info",
    "dataset_metadata": "sae_bench.sae_bench_utils.dataset_info",
    "str_to_dtype": "sae_bench.sae_bench_utils.general_utils",
    "SparseProbingSaeProbesEvalConfig": f"{_EVALS}.sparse_probing_sae_probes.eval_config",
    "DATASETS": "sae_probes",
    "METHODS": "sae_probes.run_baselines",
    "get_dataset_sizes": "sae_probes.utils_data",
    "ensure_dataset_activations": "sae_probes.generate_model_activations",
    "Activations": "sae_probes.generate_sae_activations",
    "generate_sae_activations": "sae_probes.generate_sae_activations",
    "get_save_metrics_path": "sae_probes.run_sae_evals",
    "get_sorted_indices": "sae_probes.run_sae_evals",
    "mean_act_normalization": "sae_probes.run_sae_evals",
    "find_best_reg": "sae_probes.utils_training",
    "get_xy_traintest": "sae_probes.utils_data",
    "create_meaned_model_activations": "sae_bench.sae_bench_utils.activation_collection",
    "get_sae_meaned_activations": "sae_bench.sae_bench_utils.activation_collection",
    "train_probe_on_activations": f"{_EVALS}.sparse_probing.probe_training",
    "ScrAndTppEvalConfig": f"{_EVALS}.scr_and_tpp.eval_config",
    "ScrMetrics": f"{_EVALS}.scr_and_tpp.eval_output",
    "COLUMN2_VALS_LOOKUP": f"{_EVALS}.scr_and_tpp.main",
    "RAVELEvalConfig": f"{_EVALS}.ravel.eval_config",
    "LLM_NAME_MAP": f"{_EVALS}.ravel.main",
    "AbsorptionEvalConfig": f"{_EVALS}.absorption.eval_config",
    "load_or_train_probe": f"{_EVALS}.absorption.common",
    "UnlearningEvalConfig": f"{_EVALS}.unlearning.eval_config",
    "get_metrics_df": f"{_EVALS}.unlearning.main",
    "MDLEvalConfig": f"{_EVALS}.mdl.eval_config",
    "MetaStructureEvalConfig": f"{_EVALS}.meta_structure.eval_config",
    "AutoInterpEvalConfig": f"{_EVALS}.autointerp.eval_config",
    "multiple_evals": f"{_EVALS}.core.main",
}
# Evaluations whose `main` has a `run_eval`.
RUNNABLE = (
    "sparse_probing",
    "sparse_probing_sae_probes",
    "scr_and_tpp",
    "ravel",
    "absorption",
    "unlearning",
    "meta_structure",
    "autointerp",
)


def saebench(name: str) -> Any:
    """One of the `NAMES`; imports SAEBench, whose errors are its own."""
    return getattr(import_module(NAMES[name]), name)


def main_of(evaluation: str) -> Any:
    """The module with the ``run_eval`` of one of SAEBench's evaluations."""
    return import_module(f"{_EVALS}.{evaluation}.main")


@contextmanager
def answered_loader(load: Any) -> Iterator[None]:
    """Let ``HookedTransformer.from_pretrained_no_processing`` answer with ``load``.

    Every SAEBench suite loads its model through this public classmethod; this is how a model
    from a local folder, or one that is loaded already, reaches it.

    Args:
        load: Called as ``load(original, model_name, **kwargs)``.

    Raises:
        UserError: It is no classmethod any more.
    """
    name = "from_pretrained_no_processing"
    stored = vars(HookedTransformer).get(name)
    if not isinstance(stored, classmethod):
        raise UserError(
            "transformer-lens: HookedTransformer.from_pretrained_no_processing is no "
            "classmethod in this version; use transformer-lens<4"
        )
    original = getattr(HookedTransformer, name)

    def answer(cls: Any, model_name: str, *args: Any, **kwargs: Any) -> Any:
        del cls
        if args:
            return original(model_name, *args, **kwargs)
        return load(original, model_name, **kwargs)

    with patch.object(HookedTransformer, name, classmethod(answer)):
        yield


@contextmanager
def core_errors() -> Iterator[list[str]]:
    """What SAEBench's core suite logs as errors: it logs what goes wrong and carries on."""
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Collect(level=logging.ERROR)
    logger = logging.getLogger(f"{_EVALS}.core.main")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


@contextmanager
def recorded_tokens() -> Iterator[list[torch.Tensor]]:
    """The token batches that SAELens' stores draw while this is open, in order."""
    batches: list[torch.Tensor] = []
    original: Any = ActivationsStore.get_batch_tokens

    def recording(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        tokens = original(self, *args, **kwargs)
        batches.append(tokens.cpu())
        return tokens

    with patch.object(ActivationsStore, "get_batch_tokens", recording):
        yield batches


@dataclass
class Encoded:
    """What an SAE encoded, in numbers.

    Attributes:
        journal: File with a line a batch. What an interrupted run encoded is counted with what
            is encoded when it goes on; a batch that is encoded anew counts once.
        n: Activations, those left out that are 0 throughout: SAEBench's padding.
        active: Latents active on them, summed.
        finite: Whether all latents were numbers, and small enough to compute with.
    """

    journal: Path | None = None
    n: int = 0
    active: int = 0
    finite: bool = True

    def __post_init__(self) -> None:
        there = self.journal is not None and self.journal.exists()
        lines = self.journal.read_text().splitlines() if self.journal and there else []
        self._before = Counter(lines)
        for line in lines:
            n, active, _ = line.split()
            self.n, self.active = self.n + int(n), self.active + int(active)

    def add(self, x: torch.Tensor, latents: torch.Tensor) -> None:
        if not latents.numel():
            return
        latents = latents.detach().to_dense().reshape(-1, latents.shape[-1])
        tokens = x.detach().reshape(len(latents), -1).any(-1)
        n, active = int(tokens.sum()), 0
        for rows, part in zip(latents.split(_ROWS), tokens.split(_ROWS), strict=True):
            active += int(torch.count_nonzero(rows, dim=-1)[part].sum())
            self.finite &= bool(rows.float().square().sum().isfinite())
        line = f"{n} {active} {float(x.sum(dtype=torch.float64))!r}"
        if self._before[line]:
            self._before[line] -= 1
            return
        self.n, self.active = self.n + n, self.active + active
        if self.journal is not None:
            with own_file(self.journal).open("a") as file:
                file.write(f"{line}\n")

    def to_dict(self) -> dict[str, int]:
        return {"n": self.n, "active": self.active}


@contextmanager
def counted_latents(sae: SAE[Any], journal: Path | None = None) -> Iterator[Encoded]:
    """Count what SAEs of a class encode while open; every one of them encodes as before.

    All of SAEBench's suites but ``meta_structure``, which reads the decoder alone, go through
    ``SAE.encode``, on the SAE that they are given.
    """
    counted = Encoded(journal)
    kind: Any = type(sae)
    encode = kind.encode

    def counting(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        latents = encode(self, x, *args, **kwargs)
        if _COUNTS.get():
            counted.add(x, latents)
        return latents

    with patch.object(kind, "encode", counting):
        yield counted


@contextmanager
def uncounted() -> Iterator[None]:
    """What is encoded while open is no part of a suite's L0: nulls are not the score."""
    token = _COUNTS.set(False)
    try:
        yield
    finally:
        _COUNTS.reset(token)


@contextmanager
def words_in_order() -> Iterator[None]:
    """Let fast tokenizers list their vocabulary by number while this is open.

    They list it in an order that is another one every time they are asked. SAEBench draws words
    from that list, so without this no seed makes its absorption score come out twice the same.
    """
    listed = PreTrainedTokenizerFast.get_vocab

    def ordered(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
        return dict(sorted(listed(tokenizer).items(), key=lambda item: item[1]))

    with patch.object(PreTrainedTokenizerFast, "get_vocab", ordered):
        yield


@contextmanager
def absorption_in(scratch: Path, probes: Path) -> Iterator[None]:
    """Give SAEBench's two experiments the folders that they take and ``run_eval`` leaves out.

    Their defaults are inside the installed package, where files go by the name of the SAE and
    are taken for results of whatever SAE comes with that name.
    """
    main = main_of("absorption")
    sparse = scratch / "k_sparse_probing"
    folders = {
        "run_k_sparse_probing_experiment": {"experiment_dir": sparse},
        "run_feature_absortion_experiment": {
            "experiment_dir": scratch / "feature_absorption",
            "sparse_probing_experiment_dir": sparse,
        },
    }
    replaced: dict[str, Any] = {
        name: partial(getattr(main, name), probes_dir=probes, **given)
        for name, given in folders.items()
    }
    with patch.multiple(main, **replaced):
        yield


@contextmanager
def absorption_reads(position: int, kept: Path | None = None) -> Iterator[None]:
    """Let absorption's prompts end at the hook, and be read once for all SAEs.

    SAEBench runs the whole model, unembedding included, for what leaves one block, and again
    for every SAE, though the model's own probe chooses the prompts.

    Args:
        position: Of the word, from the end: the one that is kept.
        kept: Where activations are kept between runs; None: nowhere.
    """
    stock: Any = HookedTransformer.run_with_cache
    known: dict[str, torch.Tensor]

    def read(model: Any, prompts: list[str], *, names_filter: list[str]) -> Any:
        (hook,) = names_filter
        key = hashlib.sha256("\0".join([hook, *prompts]).encode()).hexdigest()
        found = known.get(key)
        if found is None:
            end = int(hook.split(".")[1]) + 1
            _, cache = stock(model, prompts, names_filter=names_filter, stop_at_layer=end)
            if kept is None:
                return None, cache
            found = known[key] = cache[hook][:, position].cpu().contiguous()
        word = found.to(model.cfg.device)[:, None]
        return None, {hook: word.expand(-1, abs(position), -1)}

    with kept_tensors(kept) as known, patch.object(HookedTransformer, "run_with_cache", read):
        yield


@contextmanager
def kept_tensors(file: Path | None) -> Iterator[dict[str, torch.Tensor]]:
    """What a file has, to be added to; written at the end, whatever happens, if it grew.

    Args:
        file: None: nothing is kept.
    """
    known = load_file(file) if file and file.exists() and not flaw_of(file) else {}
    before = len(known)
    try:
        yield known
    finally:
        if file and len(known) > before:
            with new_file(file) as scratch:
                save_file(known, scratch)


@dataclass
class Gathered:
    """What SAEBench's AutoInterp gathered in a run.

    Attributes:
        judge: The ``AutoInterp`` object; None before it gathered.
        examples: Latent to the examples on which a description is scored.
        rates: Latent to the share of tokens that it is active on.
    """

    judge: Any = None
    examples: dict[int, Any] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)


@contextmanager
def observed_judge() -> Iterator[Gathered]:
    """While open, SAEBench's AutoInterp leaves its examples here; it does nothing else anew.

    Raises:
        UserError: SAEBench has no such class, or it gathers in another way.
    """
    main = main_of("autointerp")
    stock: Any = getattr(main, "AutoInterp", None)
    if not hasattr(stock, "gather_data"):
        raise UserError(
            "suites.autointerp: this sae-bench has no evals.autointerp.main.AutoInterp."
            f"gather_data; {_INSTALL}"
        )
    gathered = Gathered()

    class Observed(stock):
        def __init__(self, *, sparsity: torch.Tensor, **given: Any) -> None:
            # SAEBench turns it into counts in place.
            gathered.rates = dict(enumerate(sparsity.tolist()))
            super().__init__(sparsity=sparsity, **given)

        def gather_data(self) -> Any:
            data = super().gather_data()
            gathered.judge, gathered.examples = self, data[1]
            return data

    with patch.object(main, "AutoInterp", Observed):
        yield gathered


# Words of a text, and which of them a latent fires on.
Marked = tuple[Sequence[str], Sequence[bool]]


def judge_of(
    config: Any, key: str, latents: Mapping[int, tuple[Sequence[Marked], Sequence[Marked]]]
) -> Any:
    """SAEBench's AutoInterp on latents made by hand, in place of an SAE's.

    Args:
        config: Its config, which names the latents.
        key: Of the API.
        latents: Of each, texts to describe it by and texts to predict it on; the latter are
            shown in an order that Python's generator draws.

    Returns:
        Its object: ``run()`` describes and predicts, with its own prompts.
    """
    main = main_of("autointerp")
    words: list[str] = []

    class Spelled:
        def to_str_tokens(self, ids: torch.Tensor) -> list[str]:
            return [words[i] for i in ids.tolist()]

    def example(marked: Marked) -> Any:
        text, fires = marked
        ids = list(range(len(words), len(words) + len(text)))
        words.extend(text)
        return main.Example(ids, [float(on) for on in fires], 0.5, Spelled())

    def gathered(which: int, shuffle: bool) -> dict[int, Any]:
        return {
            latent: main.Examples([example(one) for one in sides[which]], shuffle=shuffle)
            for latent, sides in latents.items()
        }

    class OnMade(main.AutoInterp):
        def gather_data(self) -> Any:
            return gathered(0, shuffle=False), self.scoring_examples

    none: Any = None
    judge = OnMade(config, none, none, none, none, "cpu", key)
    judge.scoring_examples = gathered(1, shuffle=True)
    return judge


def prompts_of(judge: Any, described: Any) -> dict[str, str]:
    """What SAEBench tells its judge besides examples and descriptions, by kind.

    Args:
        judge: Its AutoInterp.
        described: Examples, of which nothing is taken over.
    """
    asked = {
        "description": judge.get_generation_prompts(described),
        "prediction": judge.get_scoring_prompts("", described),
    }
    return {kind: messages[0]["content"] for kind, messages in asked.items()}


@contextmanager
def judged_by(
    model: str, retries: int = CLIENT_RETRIES, timeout: float = CLIENT_TIMEOUT
) -> Iterator[list[str]]:
    """Let SAEBench's AutoInterp ask another model than the one in its source, by one client.

    While open, the client that ``sae_bench.evals.autointerp.main`` makes for a request is made
    once, since each reads all of the system's certificates, and replaces the ``model`` of its
    requests. With SAEBench's own model and the client's own retries and patience the requests
    are left as they are.

    Args:
        model: Judge.
        retries: How often a failed request is sent again.
        timeout: Seconds that it waits for a reply.

    Yields:
        Models that SAEBench asked for, one for each request that went through here.

    Raises:
        UserError: SAEBench no longer makes its client there.
    """
    asked: list[str] = []
    main = main_of("autointerp")
    stock = getattr(main, "OpenAI", None)
    as_it_is = (model, retries, timeout) == (SAEBENCH_MODEL, CLIENT_RETRIES, CLIENT_TIMEOUT)
    if stock is None:
        if as_it_is:
            yield asked
            return
        raise UserError(
            f"suites.autointerp.model: {model!r} cannot be reached, since this sae-bench has "
            f"no evals.autointerp.main.OpenAI; {_INSTALL}"
        )

    def client_for(given: dict[str, Any]) -> Any:
        if as_it_is:
            return stock(**given)
        client = stock(**{**given, "max_retries": retries, "timeout": timeout})
        create = client.chat.completions.create

        def ask(**request: Any) -> Any:
            asked.append(request["model"])
            return create(**{**request, "model": model})

        client.chat.completions.create = ask
        return client

    made: dict[str, Any] = {}
    lock = threading.Lock()

    def make_client(**given: Any) -> Any:
        with lock:  # SAEBench asks from many threads
            key = repr(sorted(given.items()))
            if key not in made:
                made[key] = client_for(given)
            return made[key]

    with patch.object(main, "OpenAI", make_client):
        yield asked


def mdl_defects(device: str, module: str = MDL) -> list[str]:
    """Why the installed MDL suite cannot run as shipped, read from its source.

    Args:
        device: Torch device of the run.
        module: Where the suite is.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return [f"{module} is not installed; {_INSTALL}"]
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    called = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    defects = []
    if "loguru" in imported and find_spec("loguru") is None:
        defects.append(f"{module} imports loguru; pip install loguru, or set shim: true")
    if _reads_global(tree, "config"):
        defects.append(
            f"{module} reads a global `config` that only its command line sets; set shim: true"
        )
    if "cuda" in called and not device.startswith("cuda"):
        defects.append(
            f"{module} calls .cuda() whatever the device; use device cuda, or set shim: true"
        )
    return defects


@contextmanager
def runnable_mdl(config: Any, device: str, shim: bool) -> Iterator[Any]:
    """SAEBench's MDL module, made to run: see `mdl_defects`.

    Args:
        config: Its config, for the global that only its command line sets.
        device: Torch device; without CUDA tensors stay where they are.
        shim: Whether to supply anything.
    """
    if not shim:
        yield import_module(MDL)
        return
    main = _mdl_with_loguru()
    missing = not hasattr(main, "config")
    if missing:
        main.config = config
    tensor: Any = torch.Tensor
    stay = not device.startswith("cuda")
    if stay:
        # The method belongs to the base class: this hides it, deleting uncovers it.
        tensor.cuda = lambda self: self
    try:
        yield main
    finally:
        if missing:
            del main.config
        if stay:
            del tensor.cuda


def _mdl_with_loguru() -> Any:
    """The module, imported with a stand-in for loguru where that is missing."""
    if find_spec("loguru") is not None:
        return import_module(MDL)
    stand_in: Any = ModuleType("loguru")
    stand_in.logger = logging.getLogger(MDL)
    sys.modules["loguru"] = stand_in
    try:
        return import_module(MDL)
    finally:
        # Others must still find it missing.
        del sys.modules["loguru"]


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
