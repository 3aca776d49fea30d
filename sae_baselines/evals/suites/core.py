"""SAEBench's core suite: reconstruction, cross-entropy, KL, sparsity."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from transformer_lens import HookedTransformer

from sae_baselines.compat.saebench import core_errors, recorded_tokens, saebench
from sae_baselines.evals.measured import HIGHER, LOWER, Measured
from sae_baselines.evals.metrics import (
    CE,
    KL,
    Metric,
    explained_variance,
    null_name,
    with_floors,
)
from sae_baselines.evals.store import FLOORS
from sae_baselines.evals.suite import Extras, Needs, OnRandomModel, Subject, Suite, SuiteCall
from sae_baselines.evals.variance import explained_variance as explained_variance_of
from sae_baselines.evals.variance import mean_activation
from sae_baselines.files import new_file, write_atomically

PAPER_EV = "explained_variance_paper"

_MEAN = {"mean_ablation": "the mean activation in place of every one"}
# In the cache: the tokens of the first part, and what they score with their mean.
_TOKENS, _MEAN_SCORES = "tokens.pt", "mean_ablation.json"
_VARIANCE_METRICS = {
    "explained_variance",
    "explained_variance_legacy",
    "mse",
    "cossim",
    "l0",
    "l1",
    "l2_norm_in",
    "l2_norm_out",
    "l2_ratio",
    "relative_reconstruction_bias",
}


class Core(Suite):
    """SAEBench's ``multiple_evals``, and the paper's EV on the very same tokens.

    Its scores are 0 by definition where activations are zero (CE, KL) or their mean (EV), which
    is `Metric.least`. What CE and KL score where every activation is the mean is measured.
    """

    name = "core"
    n_of = "tokens"
    seeded = False
    summary = "reconstruction, cross-entropy and KL with the SAE spliced in, sparsity"
    primary = (PAPER_EV, "ce_loss_score")
    metrics = (
        explained_variance(
            title="Explained variance, SAEBench's formula", rounded=("explained_variance",)
        ),
        explained_variance(PAPER_EV, "Explained variance, the paper's definition"),
        Metric("explained_variance*", unit="fraction", depends="reconstruction"),
        *with_floors(
            Metric(
                "kl_div_score",
                HIGHER,
                "KL divergence score",
                KL,
                "fraction",
                "reconstruction",
                least=0,
                rounded=("kl_div_with_sae", "kl_div_with_ablation"),
            ),
            _MEAN,
        ),
        Metric(
            "kl_div_with_sae",
            LOWER,
            "KL divergence with the SAE",
            None,
            "nats",
            "reconstruction",
            rounded=("kl_div_with_sae",),
        ),
        *with_floors(
            Metric(
                "ce_loss_score",
                HIGHER,
                "Cross-entropy loss score",
                CE,
                "fraction",
                "reconstruction",
                least=0,
                rounded=("ce_loss_with_sae", "ce_loss_with_ablation", "ce_loss_without_sae"),
            ),
            _MEAN,
        ),
        Metric(
            "ce_loss_with_sae",
            LOWER,
            "Cross-entropy with the SAE",
            None,
            "nats",
            "reconstruction",
            rounded=("ce_loss_with_sae",),
        ),
        Metric("mse", LOWER, depends="reconstruction", rounded=("mse",)),
        Metric("cossim", HIGHER, depends="reconstruction", rounded=("cossim",)),
        Metric("frac_alive", HIGHER, unit="fraction", depends="latents", favours=("random",)),
        Metric("l0", unit="latents", depends="latents"),
    )
    needs = Needs(as_sae_says=True)
    on_random_model = OnRandomModel(
        "refused",
        "A random model predicts nothing, so that no loss is there to recover; L0 and "
        "explained variance on its own activations are among the panel's measurements.",
    )
    local_data = ("dataset",)

    def defaults(self) -> dict[str, Any]:
        return {
            # As SAEBench runs all its suites.
            "n_eval_reconstruction_batches": 200,
            "n_eval_sparsity_variance_batches": 2000,
            "dataset": "Skylion007/openwebtext",
            "context_size": 128,
            "exclude_special_tokens_from_reconstruction": True,
        }

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        for option in ("n_eval_reconstruction_batches", "n_eval_sparsity_variance_batches"):
            value = options[option]
            if not isinstance(value, int) or value < 1:
                yield f"{option}: {value!r} is not a positive number of batches"
        size = options["context_size"]
        if not isinstance(size, int) or size < 2:
            yield f"context_size: {size!r} is not a number of tokens, 2 or more"
        only = "exclude_special_tokens_from_reconstruction"
        if not isinstance(options[only], bool):
            yield f"{only}: {options[only]!r} is neither true nor false"
        if not subject.hook_name.startswith("blocks."):
            yield (
                f"hook_name: {subject.hook_name!r} is not a hook of a block of "
                "HookedTransformer, which SAEBench reads; train on blocks.<layer>.<hook>"
            )

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        n_first = call.options["n_eval_reconstruction_batches"]
        with recorded_tokens() as batches:
            errors = _evaluate(sae, call, call.output)
        if not call.expected.exists():
            raise RuntimeError("; ".join(errors) or "SAEBench wrote no result and no reason")
        model, ignored = language_model(sae, call)
        ev, n = explained_variance_of(
            model, sae, call.subject.hook_name, batches[n_first:], ignored
        )
        if call.options[FLOORS] and not (call.cache / _TOKENS).exists():
            _keep(batches[:n_first], call.cache / _TOKENS)
        trained_on = getattr(sae.cfg.metadata, "seqpos_slice", None) or (None,)
        notes = []
        if tuple(trained_on) != (None,):
            notes.append(
                f"SAEBench scores every position of a context; these SAEs were trained on "
                f"positions {list(trained_on)} (start, stop) alone"
            )
        return Extras({PAPER_EV: ev, "n_variance_tokens": n}, notes)

    def floors(self, sae: SAE[Any], call: SuiteCall) -> list[Measured]:
        """CE and KL with the mean activation in place of every one: the same for all SAEs."""
        known = call.cache / _MEAN_SCORES
        if not known.exists():
            write_atomically(known, json.dumps(self._mean_ablated(sae, call)))
        return self.numbers(json.loads(known.read_text(encoding="utf-8")))

    def _mean_ablated(self, sae: SAE[Any], call: SuiteCall) -> dict[str, float]:
        """Scores of SAEBench's own functions on an SAE that says the mean of its tokens."""
        same = StandardSAE(StandardSAEConfig(d_in=sae.cfg.d_in, d_sae=1, dtype="float32"))
        same.cfg.metadata = sae.cfg.metadata
        # As SAEBench turns it, so that all ask for one and the same language model.
        same = same.to(call.subject.device, saebench("str_to_dtype")(call.subject.llm_dtype))
        few = {"n_eval_sparsity_variance_batches": 1}
        with torch.no_grad():
            for weight in same.parameters():
                weight.zero_()
        tokens = call.cache / _TOKENS
        if not tokens.exists():
            with recorded_tokens() as batches:
                _evaluate(same, call, call.work / "zero", **few)
            _keep(batches[: call.options["n_eval_reconstruction_batches"]], tokens)
        model, ignored = language_model(same, call)
        with torch.no_grad():
            same.b_dec.copy_(
                mean_activation(model, sae, call.subject.hook_name, torch.load(tokens), ignored)
            )
        output = call.work / "mean"
        errors = _evaluate(same, call, output, **few)
        file = output / call.expected.name
        if not file.exists():
            raise RuntimeError("; ".join(errors) or "SAEBench wrote no result and no reason")
        metrics = json.loads(file.read_text(encoding="utf-8"))["eval_result_metrics"]
        return {
            null_name(name, kind): _with_nan(metrics[category])[name]
            for kind in _MEAN
            for category, name in (
                ("model_performance_preservation", "ce_loss_score"),
                ("model_behavior_preservation", "kl_div_score"),
            )
        }

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        metrics: Mapping[str, Any] = payload["eval_result_metrics"]
        stats = metrics["token_stats"]
        n_first = int(stats["total_tokens_eval_reconstruction"])
        n_second = int(stats["total_tokens_eval_sparsity_variance"])
        rows = []
        for category, values in metrics.items():
            if category == "token_stats":
                continue
            for name, value in _with_nan(values).items():
                second = category == "misc_metrics" or name in _VARIANCE_METRICS
                rows += self.numbers({name: value}, n=n_second if second else n_first)
        if PAPER_EV in extras:
            rows.append(self.number(PAPER_EV, extras[PAPER_EV], n=extras["n_variance_tokens"]))
        return rows


def _keep(batches: list[torch.Tensor], path: Path) -> None:
    with new_file(path) as scratch:
        torch.save(batches, scratch)


def _evaluate(sae: SAE[Any], call: SuiteCall, output: Path, **options: Any) -> list[str]:
    """Run SAEBench's core; returns what it logged as errors."""
    theirs = {k: v for k, v in {**call.options, **options}.items() if k != FLOORS}
    with core_errors() as errors:
        saebench("multiple_evals")(
            selected_saes=[(call.name, sae)],
            eval_batch_size_prompts=call.subject.llm_batch_size,
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
            output_folder=str(output),
            dtype=call.subject.llm_dtype,
            device=call.subject.device,
            **theirs,
        )
    return errors


def language_model(sae: SAE[Any], call: SuiteCall) -> tuple[HookedTransformer, set[Any]]:
    """The language model, and the tokens that SAEBench leaves out."""
    model = HookedTransformer.from_pretrained_no_processing(
        call.subject.model_name,
        device=call.subject.device,
        dtype=sae.W_enc.dtype,
        **_model_kwargs(sae),
    )
    tokenizer: Any = model.tokenizer
    return model, {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}


def _with_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """SAEBench writes -1 where a metric was not a number."""
    return {k: float("nan") if v == -1 else v for k, v in values.items()}


def _model_kwargs(sae: SAE[Any]) -> dict[str, Any]:
    # Not of the config itself, where SAEBench copies it when it takes an SAE up.
    return dict(sae.cfg.metadata.model_from_pretrained_kwargs or {})
