"""What metrics are called in headings and axes."""

_TITLES = {
    ("panel", "ev"): "Explained variance, held-out text",
    ("panel", "explained_variance"): "Explained variance, held-out text",
    ("panel", "ce_recovered"): "Cross-entropy recovered, held-out text",
    ("panel", "l0"): "Measured L0",
    ("panel", "alive"): "Live latents",
    ("core", "explained_variance"): "Explained variance, SAEBench's formula",
    ("core", "explained_variance_paper"): "Explained variance, the paper's definition",
    ("core", "ce_loss_score"): "Cross-entropy loss score",
    ("core", "ce_loss_with_sae"): "Cross-entropy with the SAE",
    ("core", "kl_div_score"): "KL divergence score",
    ("core", "kl_div_with_sae"): "KL divergence with the SAE",
    ("autointerp", "autointerp_score"): "AutoInterp score",
    ("ravel", "disentanglement_score"): "RAVEL disentanglement",
    ("ravel", "cause_score"): "RAVEL cause",
    ("ravel", "isolation_score"): "RAVEL isolation",
    ("absorption", "mean_absorption_fraction_score"): "Absorption fraction",
    ("absorption", "mean_full_absorption_score"): "Full absorption",
    ("meta_structure", "decoder_fraction_variance_explained"): "Meta-SAE variance explained",
}
_PROBING = {
    "sparse_probing": "Sparse probing",
    "sparse_probing_sae_probes": "SAE-probes",
}
_KINDS = {"accuracy": "accuracy", "auc": "AUC", "f1": "F1"}


def title(suite: str, metric: str) -> str:
    """A short English name; ``suite: metric`` for what is not known."""
    known = _TITLES.get((suite, metric))
    if known:
        return known
    parts = metric.split("_")
    # sae_top_1_test_accuracy
    if (
        suite in _PROBING
        and len(parts) == 5
        and parts[:2] == ["sae", "top"]
        and parts[4] in _KINDS
    ):
        return f"{_PROBING[suite]}, top-{parts[2]} {_KINDS[parts[4]]}"
    return f"{suite}: {metric}"


def key(suite: str, metric: str) -> str:
    """The name in the results table."""
    return f"{suite}/{metric}"


def better(direction: int) -> str:
    """Which way is good, in words."""
    return {1: "higher is better", -1: "lower is better"}.get(direction, "describes only")


def arrow(direction: int) -> str:
    return {1: "↑", -1: "↓"}.get(direction, "")
