"""SAEBench's core suite: reconstruction, cross-entropy, KL, sparsity."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens import HookedTransformer

from sae_baselines.evals.measured import HIGHER, LOWER, Direction, Measured, from_mapping
from sae_baselines.evals.suite import Extras, Subject, Suite, SuiteCall
from sae_baselines.evals.variance import explained_variance

PAPER_EV = "explained_variance_paper"

_DIRECTIONS: dict[str, Direction] = {
    "kl_div_score": HIGHER,
    "kl_div_with_sae": LOWER,
    "ce_loss_score": HIGHER,
    "ce_loss_with_sae": LOWER,
    "explained_variance": HIGHER,
    "mse": LOWER,
    "cossim": HIGHER,
    "frac_alive": HIGHER,
    PAPER_EV: HIGHER,
}
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
    summary = "reconstruction, cross-entropy and KL with the SAE spliced in, sparsity"
    primary = (PAPER_EV, "ce_loss_score")
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
        if not subject.hook_name.startswith("blocks."):
            yield (
                f"hook_name: {subject.hook_name!r} is not a hook of a block of "
                "HookedTransformer, which SAEBench reads; train on blocks.<layer>.<hook>"
            )

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        from sae_bench.evals.core.main import multiple_evals  # noqa: PLC0415

        options = dict(call.options)
        n_first = options["n_eval_reconstruction_batches"]
        with _errors_of("sae_bench.evals.core.main") as errors, _recorded_tokens() as batches:
            multiple_evals(
                selected_saes=[(call.name, sae)],
                n_eval_reconstruction_batches=n_first,
                n_eval_sparsity_variance_batches=options["n_eval_sparsity_variance_batches"],
                eval_batch_size_prompts=call.subject.llm_batch_size,
                compute_featurewise_density_statistics=True,
                compute_featurewise_weight_based_metrics=True,
                exclude_special_tokens_from_reconstruction=options[
                    "exclude_special_tokens_from_reconstruction"
                ],
                dataset=options["dataset"],
                context_size=options["context_size"],
                output_folder=str(call.output),
                dtype=call.subject.llm_dtype,
                device=call.subject.device,
            )
        if not call.expected.exists():
            # SAEBench logs what goes wrong and carries on.
            raise RuntimeError("; ".join(errors) or "SAEBench wrote no result and no reason")
        model = HookedTransformer.from_pretrained_no_processing(
            call.subject.model_name,
            device=call.subject.device,
            dtype=sae.W_enc.dtype,
            **_model_kwargs(sae),
        )
        tokenizer: Any = model.tokenizer
        ignored = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
        ev, n = explained_variance(
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
        found = []
        for category, values in metrics.items():
            if category == "token_stats":
                continue
            for row in from_mapping(_with_nan(values), _DIRECTIONS):
                n = n_second if row.metric in _VARIANCE_METRICS else n_first
                if category == "misc_metrics":
                    n = n_second
                found.append(Measured(row.metric, row.value, row.direction, n=n))
        if PAPER_EV in extras:
            found.append(
                Measured(PAPER_EV, extras[PAPER_EV], HIGHER, n=extras["n_variance_tokens"])
            )
        return found


def _with_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """SAEBench writes -1 where a metric was not a number."""
    return {k: float("nan") if v == -1 else v for k, v in values.items()}


def _model_kwargs(sae: SAE[Any]) -> dict[str, Any]:
    cfg: Any = sae.cfg
    return dict(getattr(cfg, "model_from_pretrained_kwargs", None) or {})


@contextmanager
def _errors_of(logger_name: str) -> Iterator[list[str]]:
    found: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Collect(level=logging.ERROR)
    logger = logging.getLogger(logger_name)
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


@contextmanager
def _recorded_tokens() -> Iterator[list[torch.Tensor]]:
    """The token batches that SAEBench draws, in order."""
    batches: list[torch.Tensor] = []
    store: Any = ActivationsStore
    original = store.get_batch_tokens

    def recording(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        tokens = original(self, *args, **kwargs)
        batches.append(tokens.cpu())
        return tokens

    store.get_batch_tokens = recording
    try:
        yield batches
    finally:
        store.get_batch_tokens = original
