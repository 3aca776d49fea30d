"""SAEBench's core suite: reconstruction, cross-entropy, KL, sparsity."""

from collections.abc import Iterable, Mapping
from typing import Any

from sae_lens import SAE
from transformer_lens import HookedTransformer

from sae_baselines.compat.saebench import core_errors, recorded_tokens, saebench
from sae_baselines.evals.measured import HIGHER, LOWER, Measured
from sae_baselines.evals.metrics import CE, KL, Metric, explained_variance
from sae_baselines.evals.suite import Extras, Needs, OnRandomModel, Subject, Suite, SuiteCall
from sae_baselines.evals.variance import explained_variance as explained_variance_of

PAPER_EV = "explained_variance_paper"

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
    """SAEBench's ``multiple_evals``, and the paper's EV on the very same tokens."""

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
        Metric(
            "kl_div_with_sae",
            LOWER,
            "KL divergence with the SAE",
            None,
            "nats",
            "reconstruction",
            rounded=("kl_div_with_sae",),
        ),
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
        options = dict(call.options)
        n_first = options["n_eval_reconstruction_batches"]
        with core_errors() as errors, recorded_tokens() as batches:
            saebench("multiple_evals")(
                selected_saes=[(call.name, sae)],
                eval_batch_size_prompts=call.subject.llm_batch_size,
                compute_featurewise_density_statistics=True,
                compute_featurewise_weight_based_metrics=True,
                output_folder=str(call.output),
                dtype=call.subject.llm_dtype,
                device=call.subject.device,
                **options,
            )
        if not call.expected.exists():
            raise RuntimeError("; ".join(errors) or "SAEBench wrote no result and no reason")
        model = HookedTransformer.from_pretrained_no_processing(
            call.subject.model_name,
            device=call.subject.device,
            dtype=sae.W_enc.dtype,
            **_model_kwargs(sae),
        )
        tokenizer: Any = model.tokenizer
        ignored = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
        ev, n = explained_variance_of(
            model, sae, call.subject.hook_name, batches[n_first:], ignored
        )
        trained_on = getattr(sae.cfg.metadata, "seqpos_slice", None) or (None,)
        notes = []
        if tuple(trained_on) != (None,):
            notes.append(
                f"SAEBench scores every position of a context; these SAEs were trained on "
                f"positions {list(trained_on)} (start, stop) alone"
            )
        return Extras({PAPER_EV: ev, "n_variance_tokens": n}, notes)

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


def _with_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """SAEBench writes -1 where a metric was not a number."""
    return {k: float("nan") if v == -1 else v for k, v in values.items()}


def _model_kwargs(sae: SAE[Any]) -> dict[str, Any]:
    cfg: Any = sae.cfg
    return dict(getattr(cfg, "model_from_pretrained_kwargs", None) or {})
