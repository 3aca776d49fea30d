"""What a metric is: its name, title, direction, equivalence margin, and what it depends on.

A suite's class lists its own (`Suite.metrics`). Here are those that belong to no suite: what a
study measures itself, and what is assumed of suites that nobody registered.

"No significant difference" is not "the same": with few seeds nothing is significant. To say
*matches* one has to say first how much would matter. Margins are conventions, in the metric's
own units, chosen before any result of this package was seen; every verdict prints the one it
used, and every one can be replaced.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from sae_baselines.controls import Depends
from sae_baselines.errors import UserError
from sae_baselines.evals.measured import HIGHER, LOWER, NEITHER, Direction

Favoured = Literal["dead", "random"]
Unit = Literal["", "fraction", "nats", "bits", "latents"]


@dataclass(frozen=True)
class Margin:
    """Half-width of the zone of equivalence.

    Attributes:
        value: delta > 0, in the metric's units; |difference| < delta counts as the same.
        why: One sentence.
    """

    value: float
    why: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise UserError(f"margin must be a positive number, got {self.value}")


@dataclass(frozen=True)
class Metric:
    """One metric of a suite, or all whose name matches.

    Attributes:
        name: As in the results table; with "*" for any text it describes several.
        direction: +1 higher is better, -1 lower is better, 0 describes only.
        title: In headings and axes, "{}" for what "*" stands for; "" for ``suite: metric``.
        margin: Half-width of the zone of equivalence; None if "matches" cannot be said.
        unit: Of its values; "" for a number without one.
        depends: What it is computed from, so which controls' changes it can see.
        favours: Who gets a good value for nothing: an SAE without a latent that fires ("dead"),
            one that was not trained ("random"). Such a metric is no suite's primary one, and
            of a dead SAE it has no value.
        chance: What a guess scores, where that is known.
        tasks_paired: Whether the tasks of two SAEs are the same (datasets, say, not latents).
        least: Value without any SAE (the mean activation, ablation), which only a run that
            failed is worse than; None where there is no such value.
        rounded: Metrics of the suite that are means in the dtype of the language model, which
            bfloat16 rounds to steps that verdicts can hang on: the one that this follows
            from, and those whose difference (or which alone) it is divided by.
        floors: Metrics of the suite that are its nulls, measured on the same SAE and tasks:
            what it gives when there is nothing to find; "*" as in the name.
        ceilings: Metrics of the suite that bound it: the language model's own probe, say.
        beside: Metrics of the suite, the same for every SAE, that a reader wants beside it,
            though they bound nothing.
        alongside: Others, of each SAE its own: what a simpler way gives, say.
    """

    name: str
    direction: Direction = NEITHER
    title: str = ""
    margin: Margin | None = None
    unit: Unit = ""
    depends: Depends = "other"
    favours: tuple[Favoured, ...] = ()
    chance: float | None = None
    tasks_paired: bool = True
    least: float | None = None
    rounded: tuple[str, ...] = ()
    floors: tuple[str, ...] = ()
    ceilings: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    alongside: tuple[str, ...] = ()

    def named(self, name: str) -> "Metric | None":
        """The metric of that name, if this describes it."""
        if self.name == name:
            return self
        pattern = "(.*)".join(map(re.escape, self.name.split("*")))
        match = re.fullmatch(pattern, name)
        if match is None:
            return None
        text = "".join(match.groups())
        others = {
            of: tuple(other.replace("*", text) for other in getattr(self, of))
            for of in ("floors", "ceilings", "beside", "alongside")
        }
        title = self.title.replace("{}", text)
        return replace(self, name=name, title=title, **others)


def find(metrics: Iterable[Metric], name: str) -> Metric | None:
    """The first that describes a metric."""
    return next((m for metric in metrics if (m := metric.named(name)) is not None), None)


# What is drawn anew in a null, and how a title says so.
RANDOM_LATENTS, PERMUTED_LABELS = "random_latents", "permuted_labels"
PROBE_NULLS = {
    RANDOM_LATENTS: "latents drawn at random of those that fire",
    PERMUTED_LABELS: "labels permuted",
}


# Of transcoders: least squares from input to output, without latents.
AFFINE = "affine"
_AFFINE_NULL = {AFFINE: "the affine map from input to output alone"}


# The metric of probes on one latent.
TOP_LATENT = "sae_top_1_test_accuracy"


def null_name(metric: str, kind: str) -> str:
    """Of the metric that is another one's floor."""
    return f"{metric}_null_{kind}"


def with_floors(
    metric: Metric,
    kinds: Mapping[str, str],
    ceilings: tuple[str, ...] = (),
    beside: tuple[str, ...] = (),
) -> tuple[Metric, ...]:
    """The metrics that are its nulls, then the metric that names them.

    Args:
        metric: The score.
        kinds: Kind of null, and what is null about it in words.
        ceilings: `Metric.ceilings`.
        beside: `Metric.beside`.
    """
    title = metric.title or metric.name.replace("*", "{}")
    nulls = tuple(
        Metric(
            null_name(metric.name, kind),
            title=f"{title}, null: {words}",
            unit=metric.unit,
            depends=metric.depends,
            tasks_paired=metric.tasks_paired,
        )
        for kind, words in kinds.items()
    )
    floors = tuple(null.name for null in nulls)
    return (*nulls, replace(metric, floors=floors, ceilings=ceilings, beside=beside))


# Probes on as many principal components of the model's activations, for each number k and what
# is measured. No ceiling: an SAE has more directions to choose from, and can be above them.
PCA = "pca_top_{}_test_{}"


EV = Margin(
    0.02,
    "2 points of variance: a third of the 0.067 by which the paper's closest baseline "
    "trails its trained SAE.",
)
_SHORT = Margin(0.02, "Explained variance under its short name: as explained_variance.")
CE = Margin(
    0.01,
    "1 % of the loss between clean and ablated model; good SAEs crowd above 0.95, so "
    "more would hide what separates them.",
)
KL = Margin(0.01, "1 % of the KL divergence clean to ablated, as for the loss score.")
_SHARE = Margin(
    0.01,
    "1 point of the known features: a ninth of the 9 % that the paper's BatchTopK SAE "
    "recovers of features with variable frequency.",
)
_COSINE = Margin(
    0.01,
    "A hundredth of a cosine, averaged over features: two thirds of a degree where "
    "random directions are, near 0.35.",
)
_RECOVERED = Margin(0.01, "The panel's own ce_loss_score: 1 % of the loss clean to ablated.")
_ACCURACY = Margin(
    0.01,
    "1 point of accuracy: a third of the 0.03 between the paper's trained SAE and its "
    "best baseline at top-1, and about what re-seeding a probe moves.",
)
PROBES = Margin(
    0.01, "1 point of accuracy, F1 or AUC averaged over datasets, as for sparse_probing."
)


def explained_variance(
    name: str = "explained_variance",
    title: str = "",
    depends: Depends = "reconstruction",
    rounded: tuple[str, ...] = (),
) -> Metric:
    """A metric that is an explained variance."""
    return Metric(name, HIGHER, title, EV, "fraction", depends, least=0, rounded=rounded)


def accuracies(title: str, others: Margin | None = None) -> tuple[Metric, ...]:
    """Probes on the few latents that best tell a class, and the language model's own.

    Args:
        title: Of the suite.
        others: Margin of what is not an accuracy.
    """

    def probes(name: str, words: str, margin: Margin | None, guess: bool = True) -> Metric:
        named = f"{title}, top-{{}} {words}" if words else ""
        # SAEBench and sae-probes test each class against as many examples of others.
        chance = 0.5 if guess else None
        return Metric(name, HIGHER, named, margin, "fraction", "latents", chance=chance)

    top = (
        probes("sae_top_*_test_accuracy", "accuracy", _ACCURACY),
        probes("sae_top_*_test_auc", "AUC", others),
        probes("sae_top_*_test_f1", "F1", others, guess=False),
    )
    found: list[Metric] = []
    for m in top:
        measured = m.name.rpartition("_")[2]
        dense = replace(
            m,
            name=PCA.format("*", measured),
            direction=NEITHER,
            title=f"{m.title}, on principal components",
            margin=None,
        )
        # The ceiling is on all of the model's own dimensions.
        named = (f"llm_test_{measured}",), (dense.name,)
        found += [*with_floors(m, PROBE_NULLS, *named), dense]
    return (
        *found,
        probes("sae_top_*_at_rate_*", "", None),
        probes("sae_*accuracy", "", _ACCURACY),
        probes("sae_*", "", others, guess=False),
        probes("class_sae_*accuracy", "", _ACCURACY),
        # The language model's own probes are there for comparison.
        Metric("*", unit="fraction", depends="latents"),
    )


# Of suites that are nobody's class, by pattern; the first suite whose metrics have it wins.
OWN: tuple[tuple[str, tuple[Metric, ...]], ...] = (
    (
        "panel",
        (
            *with_floors(
                explained_variance(title="Explained variance, held-out text"), _AFFINE_NULL
            ),
            *with_floors(
                Metric(
                    "ce_recovered",
                    HIGHER,
                    "Cross-entropy recovered, held-out text",
                    _RECOVERED,
                    "fraction",
                    "reconstruction",
                    least=0,
                ),
                _AFFINE_NULL,
            ),
            *with_floors(
                Metric(
                    "kl",
                    LOWER,
                    "KL divergence with the layer replaced, held-out text",
                    unit="nats",
                    depends="reconstruction",
                ),
                _AFFINE_NULL,
            ),
            Metric(
                "explained_variance_at_rate_*",
                HIGHER,
                "Variance explained by as many latents of rates from {}",
                unit="fraction",
                depends="reconstruction",
            ),
            Metric("ev_median_token", NEITHER, "Explained variance of the median token"),
            Metric(
                "error_in_few", NEITHER, "Squared error in the worst tokens", unit="fraction"
            ),
            Metric("l0", NEITHER, "Measured L0", unit="latents", depends="latents"),
            Metric("alive", NEITHER, "Live latents", unit="fraction", depends="latents"),
            Metric("ce_loss_*", unit="nats"),
            Metric("threshold_factor", NEITHER, "Thresholds were multiplied by"),
            Metric("l0_in_training", NEITHER, "L0 at the end of training / target"),
            Metric("l0_as_trained", NEITHER, "L0 before calibration / target"),
            Metric("dead_share", NEITHER, "Latents that never fired", unit="fraction"),
        ),
    ),
    ("vision", (explained_variance(),)),
    (
        "toy_*",
        (
            explained_variance(),
            Metric("recovered_share", HIGHER, margin=_SHARE, unit="fraction"),
            Metric("mean_best_cosine", HIGHER, margin=_COSINE),
        ),
    ),
    # Tables that did not come from here.
    (
        "*",
        (
            explained_variance("*explained_variance*", depends="other"),
            Metric("ev", HIGHER, margin=_SHORT),
            Metric("ce_loss_score", HIGHER, margin=CE, least=0),
            Metric("ce_recovered", HIGHER, margin=_RECOVERED, least=0),
            Metric("kl_div_score", HIGHER, margin=KL, least=0),
        ),
    ),
    ("sparse_probing*", (Metric("*accuracy*", margin=_ACCURACY),)),
    ("*sae_probes*", (Metric("*", margin=PROBES),)),
)
