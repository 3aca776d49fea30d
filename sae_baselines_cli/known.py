"""Names that TAB completes and help lists, written down so that no torch is imported for them.

A test holds them equal to the registries they are copied from.
"""

from collections.abc import Callable, Iterable

_BASES = """
    standard gated topk abstopk jumprelu batchtopk matryoshka_batchtopk matching_pursuit
    transcoder_standard transcoder_topk transcoder_jumprelu transcoder_batchtopk
"""
_SUITES = """
    core sparse_probing_sae_probes sparse_probing ravel autointerp
    interp_embedding interp_detection absorption scr tpp meta_structure mdl unlearning
"""
BASES = tuple(_BASES.split())
_OF_SAES = ("frozen_decoder", "soft_frozen_decoder", "frozen_encoder")
CONSTRAINTS = (*_OF_SAES, "soft_frozen_encoder")
CONTROLS = ("random", "random:cov", "random:kaiming", "permuted_decoder", "permuted_pairing")
SUITES = tuple(_SUITES.split())
PANEL_SUITE = "panel"
TRAINED = "trained"
CHECK_MEMBERS = (TRAINED, *_OF_SAES, "random", "permuted_decoder", "permuted_pairing")
CHECK_SEEDS = 5
MOST_SEEDS = 1000
# What int64 holds: numbers go through torch and numpy.
LARGEST = 2**63 - 1
DEMO_MODELS = ("pythia-70m", "gemma-2-2b")
TOY_SETTINGS = ("constant", "variable")
EXECUTORS = ("here", "devices", "slurm")
LISTS = ("architectures", "presets", "suites", "controls")


def architectures() -> list[str]:
    """Every training architecture that SAELens knows once `sae_baselines` is imported."""
    # Some constraints are not for every base.
    bases = {
        "frozen_encoder_": [base for base in BASES if base != "matching_pursuit"],
        "soft_frozen_encoder_": [base for base in BASES if base.startswith("transcoder_")],
    }
    prefixes = ("", "seeded_", *(f"{constraint}_" for constraint in CONSTRAINTS))
    names = [f"{prefix}{base}" for prefix in prefixes for base in bases.get(prefix, BASES)]
    return [*names, *_OF_SAES]


def presets() -> list[str]:
    """Names of the panel files that `sae-baselines preset` prints."""
    hooks = ("gemma-2-2b-layer-12", "gemma-2-2b-layer-19", "llama-3-8b-layer-16")
    bases = ("batchtopk", "jumprelu", "standard", "topk")
    return [*(f"{hook}-{base}" for hook in hooks for base in bases), "pythia-70m"]


def completing(values: Iterable[str]) -> Callable[[str], list[str]]:
    """For Typer's ``autocompletion``: values that begin as the word does.

    In a comma-separated word the last part is completed, with what is not in it yet.
    """

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        named = set(before.split(",")) if comma else set()
        return [
            before + comma + value
            for value in values
            if value.startswith(last) and value not in named
        ]

    return complete
