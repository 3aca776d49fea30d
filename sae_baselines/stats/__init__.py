"""Does the trained SAE beat its random baselines? Differences, intervals, verdicts."""

from sae_baselines.evals.metrics import Margin
from sae_baselines.evals.registry import margin_for
from sae_baselines.stats.against_random import (
    AgainstRandom,
    PlacedAgainstRandom,
    against_random,
    placed_against_random,
)
from sae_baselines.stats.decision import (
    ALPHA,
    Correct,
    Decision,
    Word,
    corrected,
    decide,
    words,
)
from sae_baselines.stats.differences import Comparison, Exclusion, differences
from sae_baselines.stats.fitness import LEAST_BOUND, collapsed
from sae_baselines.stats.floors import CANNOT_TELL, Room, null_of, room_of_member
from sae_baselines.stats.intervals import (
    Interval,
    level_at_once,
    t_interval,
    tasks_interval,
    tost,
)
from sae_baselines.stats.method import METHOD, Method
from sae_baselines.stats.placement import Placement, placements
from sae_baselines.stats.retained import Retained, above_nothing, fieller, retained, together
from sae_baselines.stats.spreads import (
    Plan,
    Planned,
    planned,
    read_spreads,
)
from sae_baselines.stats.verdict import Verdict, first_of, n_families, to_frame, verdicts

__all__ = [
    "ALPHA",
    "CANNOT_TELL",
    "LEAST_BOUND",
    "METHOD",
    "AgainstRandom",
    "Comparison",
    "Correct",
    "Decision",
    "Exclusion",
    "Interval",
    "Margin",
    "Method",
    "PlacedAgainstRandom",
    "Placement",
    "Plan",
    "Planned",
    "Retained",
    "Room",
    "Verdict",
    "Word",
    "above_nothing",
    "against_random",
    "collapsed",
    "corrected",
    "decide",
    "differences",
    "fieller",
    "first_of",
    "level_at_once",
    "margin_for",
    "n_families",
    "null_of",
    "placed_against_random",
    "placements",
    "planned",
    "read_spreads",
    "retained",
    "room_of_member",
    "t_interval",
    "tasks_interval",
    "to_frame",
    "together",
    "tost",
    "verdicts",
    "words",
]
