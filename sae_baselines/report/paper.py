"""The paper's numbers (arXiv 2602.14111, Section 4: Gemma-2-2B, layer 12, L0 160)."""

from dataclasses import dataclass

SETTING = "Gemma-2-2B, layer 12, 73,728 latents, L0 160, 500 M tokens (arXiv 2602.14111)"

_COLUMNS = ("EV", "probing top-1", "probing top-5", "RAVEL")
_TABLE: dict[str, dict[str, tuple[float, float, float, float]]] = {
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
