"""What suites have in common that tell contexts in which latents fire from others."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from sae_lens import SAE
from typing_extensions import override

from sae_baselines.controls.latents import flat_copy
from sae_baselines.errors import UserError
from sae_baselines.evals.judge import OF_JUDGES
from sae_baselines.evals.latent_contexts import (
    LEAST_LATENTS,
    Firings,
    chosen,
    halves_of,
    means,
)
from sae_baselines.evals.measured import Measured
from sae_baselines.evals.store import local_path
from sae_baselines.evals.suite import BYTES, Extras, Subject, Suite, SuiteCall
from sae_baselines.evals.suites.core import language_model
from sae_baselines.study.held_out import HeldOut

EXCHANGED = "exchanged"


class ContextSuite(Suite):
    """Reads contexts, and makes rows of what each latent scored.

    Attributes:
        spread_of: Scores of a latent whose spread over latents is reported.
        of_each: Those that have a row for each latent.
        tested: Option that says on how many contexts.
        of_the_text: How the names of metrics begin that are no SAE's.
    """

    n_of = "latents"
    local_data = ("dataset",)
    on_transcoders = None
    spread_of: ClassVar[tuple[str, ...]]
    of_each: ClassVar[tuple[str, ...]]
    tested: ClassVar[str]
    of_the_text: ClassVar[tuple[str, ...]] = ()

    @override
    def datasets(self, options: Mapping[str, Any]) -> Iterable[str]:
        return [] if local_path(options["dataset"]) else [options["dataset"]]

    @override
    def disk(self, subject: Subject, options: Mapping[str, Any]) -> float:
        return options["n_tokens"] * subject.d_in * BYTES["float32"]

    def halves(self, sae: SAE[Any], call: SuiteCall) -> tuple[Any, list[HeldOut]]:
        """The model's tokenizer, and the text that contexts are of.

        Raises:
            UserError: There is no tokenizer, or too little text.
        """
        model, _ = language_model(sae, call)
        if model.tokenizer is None:
            raise UserError(
                f"model: {call.subject.model_name} has no tokenizer, without which there are "
                "no contexts to compare"
            )
        return model.tokenizer, halves_of(self.name, model, sae, call)

    def chosen(
        self, sae: SAE[Any], halves: list[HeldOut], call: SuiteCall
    ) -> tuple[dict[int, list[Firings]], dict[str, Any]]:
        """See `latent_contexts.chosen`."""
        return chosen(flat_copy(sae).to(sae.device), halves, call.options, call.seed)

    def written(
        self,
        call: SuiteCall,
        scores: Mapping[int, Mapping[str, float]],
        counts: dict[str, Any],
        said: Mapping[int, Mapping[str, str]] | None = None,
        of_the_text: Mapping[str, float] | None = None,
    ) -> Extras:
        """Leave the result where it is expected, and say how many latents are in it.

        Args:
            call: The run.
            scores: Of latents.
            counts: From `chosen`; ``n_scored`` is added.
            said: Words of latents.
            of_the_text: What is no SAE's.
        """
        payload = {
            "eval_type_id": self.name,
            "eval_config": dict(call.options),
            "eval_result_metrics": {self.name: {**means(scores), **(of_the_text or {})}},
            "eval_result_unstructured": {
                str(i): {**(said or {}).get(i, {}), **one} for i, one in scores.items()
            },
        }
        call.expected.write_text(json.dumps(payload, indent=2), encoding="utf-8")
        counts["n_scored"] = len(scores)
        note = (
            f"{counts['n_eligible']} of {counts['n_firing']} latents that fire do so in enough "
            f"contexts; {len(scores)} of {counts['n_requested']} were scored"
        )
        return Extras(counts, [note])

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        told = payload["eval_result_metrics"][self.name]
        latents = payload["eval_result_unstructured"]
        n = len(latents)
        few = f"{n} latents have a score, {LEAST_LATENTS} must" if n < LEAST_LATENTS else ""
        rows = []
        own = (m.name for m in self.metrics if "*" not in m.name and m.name not in OF_JUDGES)
        for name in own:
            of_sae = not name.startswith(self.of_the_text)
            value = told.get(name)
            if value is None or (few and of_sae):
                value = math.nan
            row = self.number(name, value, n=n if of_sae else None)
            rows.append(replace(row, missing=few) if few and of_sae else row)
        for name in self.spread_of:
            each = [one[name] for one in latents.values() if name in one]
            spread = statistics.stdev(each) if len(each) > 1 else math.nan
            rows.append(self.number(f"{name}_std_dev", spread, n=len(each)))
        rows += [
            self.number(name, float(extras[name]))
            for name in sorted(extras)
            if name[:2] == "n_"
        ]
        tested = payload["eval_config"][self.tested]
        rows += [
            self.number(name, one[name], f"latent_{i}", tested, "contexts")
            for name in self.of_each
            for i, one in latents.items()
            if name in one
        ]
        return rows
