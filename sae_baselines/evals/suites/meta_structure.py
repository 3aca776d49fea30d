"""SAEBench's meta-structure suite: how well a small SAE explains the decoder."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from sae_lens import SAE

from sae_baselines.errors import one_line
from sae_baselines.evals.measured import LOWER, Direction, Measured, from_mapping
from sae_baselines.evals.suite import Extras, Subject, Suite, SuiteCall, config_defaults

_EXPLAINED = "decoder_fraction_variance_explained"
# SAEBench's README: "higher explained variance means more shared structure between decoder
# directions". Bussmann et al. 2025 (arXiv 2503.17547, appendix D.1), whose experiment it is,
# count less shared structure as better: latents that are not made of one another.
_DIRECTIONS: dict[str, Direction] = {_EXPLAINED: LOWER}
_CAVEAT = (
    "meta_structure: less variance explained counts as better, but random directions share no "
    "structure by construction: a random decoder that wins here is not therefore interpretable"
)


class MetaStructure(Suite):
    """SAEBench's ``meta_structure``: trains a BatchTopK SAE on the rows of ``W_dec``.

    Needs no language model and no data. SAEBench seeds it on its command line only, so it runs
    on the random state that the caller set.
    """

    name = "meta_structure"
    summary = "how much of the decoder's variance a smaller SAE explains"
    primary = (_EXPLAINED,)

    def defaults(self) -> dict[str, Any]:
        from sae_bench.evals.meta_structure.eval_config import (  # noqa: PLC0415
            MetaStructureEvalConfig,
        )

        return config_defaults(MetaStructureEvalConfig, without=("random_seed",))

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        if find_spec("sae_bench") is None:
            return
        try:
            config = _config(options, seed=0)
        except (ValueError, TypeError) as error:
            yield one_line(error)
            return
        for option in ("k", "train_steps", "train_batch_size", "eval_batch_size"):
            if getattr(config, option) < 1:
                yield f"{option}: {getattr(config, option)} is not positive"
        if not 0 < config.width_ratio <= 1:
            yield f"width_ratio: {config.width_ratio} is not a fraction of the SAE's width"
        if config.k > subject.d_sae:
            yield f"k: {config.k} is more than the {subject.d_sae} latents"

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        from sae_bench.evals.meta_structure.main import run_eval  # noqa: PLC0415

        selected: Any = [(call.name, sae)]
        # It trains: other suites leave gradients off.
        with torch.enable_grad():
            run_eval(
                _config(call.options, call.seed),
                selected,
                call.subject.device,
                str(call.output),
            )
        return Extras(notes=[_CAVEAT])

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        del extras
        metrics = dict(payload["eval_result_metrics"]["meta_structure"])
        # Of the machine, not of the SAE.
        del metrics["train_time_seconds"]
        d_sae = payload["sae_cfg_dict"]["d_sae"]
        return list(from_mapping(metrics, _DIRECTIONS, n=d_sae))


def _config(options: Mapping[str, Any], seed: int) -> Any:
    from sae_bench.evals.meta_structure.eval_config import (  # noqa: PLC0415
        MetaStructureEvalConfig,
    )

    return MetaStructureEvalConfig(random_seed=seed, **options)
