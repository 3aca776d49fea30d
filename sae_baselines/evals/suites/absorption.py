"""SAEBench's absorption of first letters, with one set of probes and one order of words."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from sae_lens import SAE
from transformers import PreTrainedTokenizerFast, set_seed
from typing_extensions import override

from sae_baselines.errors import UserError
from sae_baselines.evals.caches import all_or_nothing
from sae_baselines.evals.measured import LOWER, Direction, Measured, from_mapping
from sae_baselines.evals.option_checks import positive_problems, validated
from sae_baselines.evals.suite import Extras, Subject, Suite, SuiteCall, config_defaults

_PER_CALL = ("model_name", "llm_dtype", "llm_batch_size", "random_seed")
# Ours: whether the tokenizer lists its words by number during the run.
_ORDER = "words_in_order"
_RESID_POST = re.compile(r"blocks\.\d+\.hook_resid_post")
# SAEBench's FeatureAbsorptionCalculator.topk_feats.
_LEAST_LATENTS = 10
_DIRECTIONS: dict[str, Direction] = {
    "mean_absorption_fraction_score": LOWER,
    "mean_full_absorption_score": LOWER,
}
# What the aggregates are means of, by the names of the aggregates.
_OF_A_LETTER = {
    "mean_absorption_fraction": "mean_absorption_fraction_score",
    "full_absorption_rate": "mean_full_absorption_score",
    "num_split_features": "mean_num_split_features",
}


class Absorption(Suite):
    """SAEBench's ``absorption``.

    Its first SAE trains probes on the language model and so leaves the generators in another
    state than the next one finds. Here the probes are trained before, by SAEBench's function,
    and the seed, which SAEBench never sets, is set after that: no warm-up is needed.

    Wherever CUDA is available SAEBench reads those probes in bfloat16, whatever ``llm_dtype``.
    """

    name = "absorption"
    summary = "how often the latents of a first letter are replaced by those of single words"
    primary = ("mean_absorption_fraction_score",)

    def defaults(self) -> dict[str, Any]:
        from sae_bench.evals.absorption.eval_config import (  # noqa: PLC0415
            AbsorptionEvalConfig,
        )

        return {**config_defaults(AbsorptionEvalConfig, _PER_CALL), _ORDER: True}

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        from sae_bench.evals.absorption.eval_config import (  # noqa: PLC0415
            AbsorptionEvalConfig,
        )

        if not _RESID_POST.fullmatch(subject.hook_name):
            yield (
                f"hook_name: {subject.hook_name!r}: SAEBench feeds the SAE what leaves the "
                "block, whatever it was trained on; train on blocks.<layer>.hook_resid_post"
            )
        config, refused = validated(AbsorptionEvalConfig, _theirs(options))
        yield from refused
        if config is None:
            return
        yield from positive_problems(config, "max_k_value", "k_sparse_probe_num_epochs")
        least = max(_LEAST_LATENTS, config.max_k_value)
        if subject.d_sae < least:
            yield (
                f"d_sae: the smallest SAE has {subject.d_sae} latents and SAEBench ranks "
                f"{least}; evaluate larger SAEs"
            )
        if config.min_feats_for_eval < 2:
            yield "min_feats_for_eval: SAEBench needs 2 letters for a spread; give 2 or more"
        if config.prompt_template.count("{word}") != 1:
            yield (
                f"prompt_template: {config.prompt_template!r} must have {{word}} once, where "
                "the word goes"
            )

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        from sae_bench.evals.absorption import main  # noqa: PLC0415
        from sae_bench.evals.absorption.eval_config import (  # noqa: PLC0415
            AbsorptionEvalConfig,
        )

        config = AbsorptionEvalConfig(
            **call.config,
            **_theirs(call.options),
        )
        ordered = words_in_order() if call.options[_ORDER] else nullcontext()
        # What was drawn before an interruption cannot be drawn again: from the start.
        scratch = call.work / "absorption"
        shutil.rmtree(scratch, ignore_errors=True)
        with ordered, torch.enable_grad():
            with all_or_nothing(call.cache / "probes") as probes:
                if not any(probes.iterdir()):
                    _train_probes(config, call, probes)
            set_seed(call.seed)
            with _folders(main, scratch, probes):
                main.run_eval(
                    config,
                    [(call.name, sae)],
                    call.subject.device,
                    str(call.output),
                    force_rerun=True,
                )
        if not call.expected.exists():
            raise UserError(_too_few_letters(config, call))
        notes = [] if call.options[_ORDER] else [f"{_ORDER}: false: not reproducible"]
        return Extras(notes=notes)

    @override
    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        found = list(from_mapping(payload["eval_result_metrics"]["mean"], _DIRECTIONS))
        for detail in payload["eval_result_details"]:
            values = {_OF_A_LETTER.get(k) or k: value for k, value in detail.items()}
            found += from_mapping(
                values,
                _DIRECTIONS,
                task=detail["first_letter"],
                n=detail["num_probe_true_positives"],
            )
        return found


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


def _theirs(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != _ORDER}


@contextmanager
def _folders(main: Any, scratch: Path, probes: Path) -> Iterator[None]:
    """Give SAEBench's two experiments the folders that they take and ``run_eval`` leaves out.

    Their defaults are inside the installed package, where files go by the name of the SAE and
    are taken for results of whatever SAE comes with that name.
    """
    sparse, absorption = scratch / "k_sparse_probing", scratch / "feature_absorption"
    given = {
        "run_k_sparse_probing_experiment": {"experiment_dir": sparse},
        "run_feature_absortion_experiment": {
            "experiment_dir": absorption,
            "sparse_probing_experiment_dir": sparse,
        },
    }
    replaced: dict[str, Any] = {
        name: partial(getattr(main, name), probes_dir=probes, **folders)
        for name, folders in given.items()
    }
    with patch.multiple(main, **replaced):
        yield


def _train_probes(config: Any, call: SuiteCall, folder: Path) -> None:
    """SAEBench's own training of probes on the language model, on its own model."""
    from sae_bench.evals.absorption.common import load_or_train_probe  # noqa: PLC0415
    from sae_bench.evals.absorption.main import HookedTransformer  # noqa: PLC0415
    from sae_bench.sae_bench_utils.general_utils import str_to_dtype  # noqa: PLC0415

    model = HookedTransformer.from_pretrained_no_processing(
        config.model_name, device=call.subject.device, dtype=str_to_dtype(config.llm_dtype)
    )
    _check_position(model.tokenizer, config)
    set_seed(call.seed)
    load_or_train_probe(
        model=model,
        base_template=config.prompt_template,
        pos_idx=config.prompt_token_pos,
        layer=int(call.subject.hook_name.split(".")[1]),
        probes_dir=folder,
        device=call.subject.device,
    )


def _check_position(tokenizer: Any, config: Any) -> None:
    """SAEBench reads one position, which is the word's only if the tokenizer splits alike."""
    after = config.prompt_template.partition("{word}")[2]
    position = -1 - len(tokenizer.encode(after, add_special_tokens=False))
    if config.prompt_token_pos != position:
        raise UserError(
            f"suites.absorption: prompt_token_pos: {config.prompt_token_pos} is not where the "
            f"word ends in this model's tokens; use {position}"
        )


def _too_few_letters(config: Any, call: SuiteCall) -> str:
    file = f"{call.name}_custom_sae_k_sparse_probing.json"
    letters = json.loads((Path("artifacts") / "absorption" / file).read_text(encoding="utf-8"))
    good = sum(letter["f1_probe"] > config.min_GT_probe_f1 for letter in letters)
    return (
        f"suites.absorption: {good} of 26 first letters can be read off {config.model_name} at "
        f"{call.subject.hook_name} (F1 above {config.min_GT_probe_f1}), fewer than "
        f"min_feats_for_eval: {config.min_feats_for_eval}; use an earlier layer or a larger "
        "model, or lower one of the two"
    )
