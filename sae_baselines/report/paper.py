"""The paper's numbers (arXiv 2602.14111, Section 4: Gemma-2-2B, layer 12, L0 160).

Those of its other two settings (L0 160 too) tell which orderings are the same in all three.
"""

from dataclasses import dataclass
from itertools import permutations

SETTING = "Gemma-2-2B, layer 12, 73,728 latents, L0 160, 500 M tokens (arXiv 2602.14111)"

_Scores = tuple[float, float, float, float]
_COLUMNS = ("EV", "probing top-1", "probing top-5", "RAVEL")
_TABLE: dict[str, dict[str, _Scores]] = {
    "batchtopk": {
        "trained": (0.852, 0.721, 0.849, 0.720),
        "frozen_decoder": (0.430, 0.669, 0.768, 0.562),
        "frozen_decoder_cov": (0.570, 0.692, 0.797, 0.554),
        "soft_frozen_decoder": (0.785, 0.659, 0.723, 0.728),
        "frozen_encoder": (0.475, 0.638, 0.731, 0.641),
        "frozen_encoder_cov": (0.112, 0.609, 0.682, 0.400),
    },
    "jumprelu": {
        "trained": (0.852, 0.704, 0.843, 0.722),
        "frozen_decoder": (0.457, 0.702, 0.771, 0.591),
        "frozen_decoder_cov": (0.578, 0.694, 0.790, 0.551),
        "soft_frozen_decoder": (0.789, 0.672, 0.735, 0.739),
        "frozen_encoder": (0.609, 0.635, 0.747, 0.623),
        "frozen_encoder_cov": (-0.017, 0.652, 0.720, 0.423),
    },
}
# Gemma-2-2B layer 19, Llama-3-8B layer 16: the same columns.
_ELSEWHERE: tuple[dict[str, dict[str, _Scores]], ...] = (
    {
        "batchtopk": {
            "trained": (0.887, 0.806, 0.900, 0.512),
            "frozen_decoder": (0.404, 0.709, 0.829, 0.492),
            "frozen_decoder_cov": (0.555, 0.730, 0.818, 0.493),
            "soft_frozen_decoder": (0.812, 0.758, 0.823, 0.509),
            "frozen_encoder": (0.562, 0.722, 0.812, 0.492),
            "frozen_encoder_cov": (0.523, 0.638, 0.791, 0.491),
        },
        "jumprelu": {
            "trained": (0.887, 0.813, 0.900, 0.511),
            "frozen_decoder": (0.432, 0.727, 0.824, 0.493),
            "frozen_decoder_cov": (0.543, 0.727, 0.825, 0.493),
            "soft_frozen_decoder": (0.816, 0.736, 0.858, 0.509),
            "frozen_encoder": (0.590, 0.701, 0.795, 0.494),
            "frozen_encoder_cov": (0.512, 0.650, 0.737, 0.492),
        },
    },
    {
        "batchtopk": {
            "trained": (0.805, 0.766, 0.874, 0.533),
            "frozen_decoder": (0.268, 0.709, 0.779, 0.486),
            "frozen_decoder_cov": (0.426, 0.689, 0.771, 0.491),
            "soft_frozen_decoder": (0.699, 0.752, 0.848, 0.519),
            "frozen_encoder": (0.424, 0.713, 0.798, 0.492),
            "frozen_encoder_cov": (0.408, 0.681, 0.763, 0.482),
        },
        "jumprelu": {
            "trained": (0.805, 0.798, 0.882, 0.527),
            "frozen_decoder": (0.291, 0.685, 0.771, 0.485),
            "frozen_decoder_cov": (0.000, 0.500, 0.500, 0.485),
            "soft_frozen_decoder": (0.707, 0.768, 0.842, 0.521),
            "frozen_encoder": (0.473, 0.682, 0.766, 0.498),
            "frozen_encoder_cov": (0.414, 0.620, 0.751, 0.489),
        },
    },
)
MODELS = 1 + len(_ELSEWHERE)
# Only the best baseline is given for this one (headline of the paper, BatchTopK).
_AUTOINTERP = {"batchtopk": (0.90, 0.88)}
# Metric here: column there, and what differs.
_METRICS = {
    ("panel", "explained_variance"): ("EV", ""),
    ("core", "explained_variance_paper"): ("EV", ""),
    ("sparse_probing", "sae_top_1_test_accuracy"): ("probing top-1", ""),
    ("sparse_probing", "sae_top_5_test_accuracy"): ("probing top-5", ""),
    (
        "sparse_probing_sae_probes",
        "sae_top_1_test_accuracy",
    ): ("probing top-1", "other datasets and probes than the paper's"),
    (
        "sparse_probing_sae_probes",
        "sae_top_5_test_accuracy",
    ): ("probing top-5", "other datasets and probes than the paper's"),
    ("ravel", "disentanglement_score"): ("RAVEL", ""),
    ("autointerp", "autointerp_score"): ("AutoInterp", ""),
}


@dataclass(frozen=True)
class Ordering:
    """Two members that the paper's main table orders.

    Attributes:
        higher: The member with the higher score.
        lower: The other.
        gap: Their difference.
        models: How many of the paper's `MODELS` settings order them so.
    """

    higher: str
    lower: str
    gap: float
    models: int


@dataclass(frozen=True)
class Published:
    """One metric in the paper.

    Attributes:
        column: Its name there.
        trained: Score of the trained SAE.
        scores: Scores by baseline, named as in this package; empty where only the best is
            known.
        best: Score of the best frozen baseline.
        differs: What makes it another measurement than ours, or empty.
    """

    column: str
    trained: float
    scores: dict[str, float]
    best: float
    differs: str

    @property
    def change(self) -> float:
        """(best frozen - trained) / trained: the paper's bottom row."""
        return (self.best - self.trained) / self.trained

    def change_of(self, member: str) -> float | None:
        """The same for one baseline; None where the paper has none."""
        score = self.scores.get(member)
        return None if score is None else (score - self.trained) / self.trained


def published(architecture: str, suite: str, metric: str) -> Published | None:
    """The paper's numbers for a metric, or None where it has none."""
    if (suite, metric) not in _METRICS:
        return None
    column, differs = _METRICS[suite, metric]
    if column == "AutoInterp":
        if architecture not in _AUTOINTERP:
            return None
        trained, best = _AUTOINTERP[architecture]
        return Published(column, trained, {}, best, differs)
    if architecture not in _TABLE:
        return None
    at = _COLUMNS.index(column)
    scores = {member: row[at] for member, row in _TABLE[architecture].items()}
    trained = scores.pop("trained")
    return Published(column, trained, scores, max(scores.values()), differs)


def orderings(architecture: str, suite: str, metric: str) -> list[Ordering]:
    """Pairs of members that the paper's main table orders by a metric, widest gap first."""
    there = published(architecture, suite, metric)
    if there is None or not there.scores:
        return []
    at = _COLUMNS.index(there.column)
    tables = [t[architecture] for t in (_TABLE, *_ELSEWHERE)]
    found = []
    for higher, lower in permutations(tables[0], 2):
        gaps = [table[higher][at] - table[lower][at] for table in tables]
        if gaps[0] > 0:
            agree = sum(gap > 0 for gap in gaps)
            found.append(Ordering(higher, lower, gaps[0], agree))
    return sorted(found, key=lambda pair: -pair.gap)
