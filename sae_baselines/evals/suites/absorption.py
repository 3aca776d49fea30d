"""SAEBench's absorption of first letters, with one set of probes and one order of words."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from sae_lens import SAE
from transformers import set_seed
from typing_extensions import override

from sae_baselines.compat.saebench import (
    absorption_in,
    absorption_reads,
    main_of,
    saebench,
    words_in_order,
)
from sae_baselines.compat.saebench_nulls import LetterWords, observed_letters
from sae_baselines.errors import UserError
from sae_baselines.evals.measured import LOWER, Measured
from sae_baselines.evals.metrics import Margin, Metric, with_floors
from sae_baselines.evals.nulls import Nulls, NullsInRun, exchanged
from sae_baselines.evals.store import all_or_nothing
from sae_baselines.evals.suite import (
    Extras,
    Needs,
    OnRandomModel,
    Subject,
    SuiteCall,
    means_over_tasks,
    resid_post_problems,
)

# Ours: whether the tokenizer lists its words by number during the run.
_ORDER = "words_in_order"
# SAEBench's FeatureAbsorptionCalculator.topk_feats.
_LEAST_LATENTS = 10
_MARGIN = Margin(0.02, "2 points of the share of first-letter features absorbed (0 to 1).")
# What the aggregates are means of, by the names of the aggregates.
_OF_A_LETTER = {
    "mean_absorption_fraction": "mean_absorption_fraction_score",
    "full_absorption_rate": "mean_full_absorption_score",
    "num_split_features": "mean_num_split_features",
}


_SHUFFLED = "shuffled_letters"
_NULLS = {_SHUFFLED: "main latents of another letter"}


class Absorption(NullsInRun):
    """SAEBench's ``absorption``.

    Its first SAE trains probes on the language model and so leaves the generators in another
    state than the next one finds. Here the probes are trained before, by SAEBench's function,
    and the seed, which SAEBench never sets, is set after that: no warm-up is needed.

    Wherever CUDA is available SAEBench reads those probes in bfloat16, whatever ``llm_dtype``.
    """

    name = "absorption"
    n_of = "words"
    on_transcoders = (
        "it looks for directions of what is read among the directions that latents write"
    )
    summary = "how often the latents of a first letter are replaced by those of single words"
    # Latents that tell no letter are not replaced by others.
    primary = ()
    metrics = (
        *with_floors(
            Metric(
                "mean_absorption_fraction_score",
                LOWER,
                "Absorption fraction",
                _MARGIN,
                "fraction",
                favours=("dead", "random"),
            ),
            _NULLS,
        ),
        *with_floors(
            Metric(
                "mean_full_absorption_score",
                LOWER,
                "Full absorption",
                _MARGIN,
                "fraction",
                favours=("dead", "random"),
            ),
            _NULLS,
        ),
        Metric("*", margin=_MARGIN, unit="fraction"),
    )
    needs = Needs(data=False)
    evaluation = "absorption"
    config_name = "AbsorptionEvalConfig"
    on_random_model = OnRandomModel(
        "refused",
        "It needs a model that has learned to spell.",
    )
    own = {_ORDER: True}
    positive = ("max_k_value", "k_sparse_probe_num_epochs")

    def subject_problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        del options
        return resid_post_problems(
            subject, "SAEBench feeds the SAE what leaves the block, whatever it"
        )

    def option_problems(self, subject: Subject, config: Any) -> Iterable[str]:
        yield from super().option_problems(subject, config)
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
        config = self.config(call.options, **call.config)
        ordered = words_in_order() if call.options[_ORDER] else nullcontext()
        # What was drawn before an interruption cannot be drawn again: from the start.
        scratch = call.work / "absorption"
        shutil.rmtree(scratch, ignore_errors=True)
        position = config.prompt_token_pos
        with ordered:
            with (
                all_or_nothing(call.cache / "probes") as probes,
                torch.enable_grad(),
                absorption_reads(position),
            ):
                if not any(probes.iterdir()):
                    _train_probes(config, call, probes)
            set_seed(call.seed)
            nulls = Nulls(call)
            looking = observed_letters(_scorer(nulls, call.seed))
            with (
                absorption_in(scratch, probes),
                absorption_reads(position, call.cache / "words.safetensors"),
                looking if nulls.wanted else nullcontext(),
            ):
                self.run_eval(config, sae, call, force_rerun=True)
        if not call.expected.exists():
            raise UserError(_too_few_letters(config, call))
        # Of the letters that SAEBench scores.
        letters = {detail["first_letter"] for detail in call.payload["eval_result_details"]}
        nulls.leave(means_over_tasks([row for row in nulls.rows if row.task in letters]))
        notes = [] if call.options[_ORDER] else [f"{_ORDER}: false: not reproducible"]
        return Extras(notes=notes)

    @override
    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        rows = self.numbers(payload["eval_result_metrics"]["mean"])
        for detail in payload["eval_result_details"]:
            values = {_OF_A_LETTER.get(k) or k: value for k, value in detail.items()}
            rows += self.numbers(
                values, detail["first_letter"], detail["num_probe_true_positives"]
            )
        return rows


def _scorer(nulls: Nulls, seed: int) -> Callable[[LetterWords], None]:
    """What is done with the words of one letter after the other."""

    def score(words: LetterWords) -> None:
        with nulls.aside():
            letters = sorted(words.main)
            other = letters[exchanged(range(len(letters)), seed)[letters.index(words.letter)]]
            fractions, full = words.again(words.main[other])
            values = {
                "mean_absorption_fraction_score": mean(fractions),
                "mean_full_absorption_score": mean(map(float, full)),
            }
            nulls.add(_SHUFFLED, values, words.letter, len(fractions))

    return score


def _train_probes(config: Any, call: SuiteCall, folder: Path) -> None:
    """SAEBench's own training of probes on the language model, on its own model."""
    model = main_of("absorption").HookedTransformer.from_pretrained_no_processing(
        config.model_name,
        device=call.subject.device,
        dtype=saebench("str_to_dtype")(config.llm_dtype),
    )
    _check_position(model.tokenizer, config)
    set_seed(call.seed)
    saebench("load_or_train_probe")(
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
