"""How verdicts and placements are made, as values: texts print these and copy none."""

from dataclasses import dataclass

from sae_baselines.results import L0_TOLERANCE
from sae_baselines.stats.decision import ALPHA
from sae_baselines.stats.one_value import seeds_for
from sae_baselines.stats.power import MOST_SEEDS, POWER


@dataclass(frozen=True)
class Method:
    """Names, levels and sizes of what this room does.

    Attributes:
        alpha: Chance of a false word in a family of metrics.
        interval: Interval of a mean difference over seeds, which verdicts rest on.
        test: Test of no difference.
        equivalence: Test of "apart by the margin or more".
        correction: Correction for the number of metrics.
        combination: How tests against several baselines become one.
        tasks: Interval over seeds and tasks, which is shown and never decides.
        assumption: What the words take for granted, and what happens where it does not hold:
            rates of ``benchmarks/verdict_calibration.py``.
        skewed_prediction: The same of the prediction.
        ratio: Interval of a retained share.
        at_once: Intervals of several retained shares that hold together.
        share: Interval of the share of another SAE's seeds below a value.
        prediction: Test of "one more seed of another SAE" under normality.
        percentile: Interval of the normal percentile.
        l0_tolerance: Measured L0 further apart than this gives no verdict.
        power: Power at which the seeds needed are counted.
        most_seeds: More are not counted.
    """

    alpha: float = ALPHA
    interval: str = "t interval"
    test: str = "two-sided paired t test"
    equivalence: str = "two one-sided tests"
    correction: str = "Holm"
    combination: str = "intersection-union test"
    tasks: str = "t interval over seeds and tasks"
    assumption: str = (
        "differences between seeds are about normal and no run fails that these seeds do not "
        "show. If the trained SAE fails in one run of ten, false 'beats' of a nominal 2.5% "
        "reach 14% with 3 seeds, 24% with 5 and 28% with 10; with a one-sided tail, 8 to 12%"
    )
    skewed_prediction: str = (
        "for scores with a long tail to the right it is at most 5% in 9 to 12% of cases"
    )
    ratio: str = "Fieller"
    at_once: str = "Fieller intervals at the level of the largest |t| of all of them (max-t)"
    share: str = "Clopper-Pearson"
    prediction: str = "t with n - 1 degrees of freedom"
    percentile: str = "noncentral t distribution"
    l0_tolerance: float = L0_TOLERANCE
    power: float = POWER
    most_seeds: int = MOST_SEEDS

    @property
    def level(self) -> float:
        """Coverage of the intervals of a difference."""
        return 1 - self.alpha

    @property
    def equivalence_level(self) -> float:
        """Coverage of the interval that lies inside the margin where two SAEs match."""
        return 1 - 2 * self.alpha

    def failures_unseen(self, n: int) -> float:
        """The largest rate of failing runs that n seeds without one leave open, at `level`."""
        return 1 - self.alpha ** (1 / n)

    @property
    def two_seeds(self) -> str:
        """What two seeds leave open."""
        return (
            "two seeds: the spread rests on one degree of freedom, and a run that failed "
            "cannot be told from one that did not; two good ones leave failure rates of up to "
            f"{self.failures_unseen(2):.0%} open"
        )

    @property
    def seeds_for_ranks(self) -> int:
        """Fewest seeds with which ranks alone can give p <= alpha."""
        return seeds_for(self.alpha)


METHOD = Method()
