"""What a check says before it begins."""

from collections.abc import Iterable

from sae_baselines.errors import UserError
from sae_baselines.evals import EvalSpec
from sae_baselines.evals.needs import NEEDS, Needs
from sae_baselines.evals.results import PANEL_SUITE
from sae_baselines.evals.study import subject_of_panel
from sae_baselines.study.spec import PanelSpec


def suites_for(
    spec: PanelSpec, evals: EvalSpec, asked: list[str] | None
) -> tuple[EvalSpec, list[str]]:
    """The suites that can score SAEs of this study, and a note on those that cannot.

    Args:
        spec: The study.
        evals: How it is evaluated.
        asked: Suites that were named; to leave one of these out is an error.

    Raises:
        UserError: A suite was named that reads other activations than the SAE does.
    """
    subject = subject_of_panel(spec, evals)

    def unfit(names: Iterable[str]) -> list[str]:
        needs = {name: NEEDS.get(name, Needs()) for name in names if name != PANEL_SUITE}
        return [n for n, need in needs.items() if not need.reads_what_the_sae_reads(subject)]

    why = (
        "the SAE reads activations of a model whose writing weights are centred "
        "(center_writing_weights), and SAEBench reads them as they are in"
    )
    if unfit(asked or ()):
        raise UserError(f"suites: {why} {', '.join(unfit(asked or ()))}; use core")
    dropped = unfit(evals.suites) if asked is None else []
    if not dropped:
        return evals, []
    kept = [name for name in evals.suites if name not in dropped] or ["core"]
    return evals.only(kept), [f"Not run: {', '.join(dropped)}: {why} these."]


def described(spec: PanelSpec) -> list[str]:
    """What is checked, with which budget, and everything that must be said about it."""
    published = spec.published
    assert published is not None
    facts = published.facts
    recorded = facts["tokens_recorded"]
    budget = f"{recorded:,}" if recorded else "not recorded"
    lines = [
        f"{facts['source']}: {facts['architecture']}, d_sae {facts['d_sae']:,}, "
        f"{facts['hook_name']} of {facts['model_name']}, L0 {facts['l0_measured']:.4g} on "
        "held-out text",
        f"Token budget: it {budget}; each of the others {spec.training_tokens:,}. "
        f"Baselines: {facts['base_architecture']} at L0 {spec.l0s[0]:g}, {len(spec.seeds)} "
        "seeds.",
    ]
    return lines + [f"- {note[0].upper()}{note[1:]}." for note in facts["notes"]]
