"""The results table, indexed for a report."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from sae_baselines.controls import is_control
from sae_baselines.results.table import Scores, scores

Group = tuple[str, float]
MetricKey = tuple[str, str]
BySeed = dict[int, float]

# Order in tables and figures; members of other names follow, sorted.
KNOWN_MEMBERS = (
    "trained",
    "soft_frozen_decoder",
    "frozen_decoder",
    "frozen_decoder_cov",
    "frozen_encoder",
    "frozen_encoder_cov",
)
_PANEL = "panel"


@dataclass
class Tidy:
    """Values by architecture and L0, metric, member and seed.

    Attributes:
        frame: The rows, with task "" for aggregates.
        groups: (architecture, target L0), sorted.
        members: All members, trained first, controls last.
        metrics: (suite, metric) in order of suite and first appearance.
        measured_l0: By (panel, member, seed).
        panels: Panel of (group, member, seed).
    """

    frame: pd.DataFrame
    groups: list[Group]
    members: list[str]
    metrics: list[MetricKey]
    measured_l0: dict[tuple[str, str, int], float]
    panels: dict[tuple[Group, str, int], str]
    constraints: dict[str, str]
    _directions: dict[MetricKey, int]
    _whole: dict[tuple[Group, MetricKey, str], BySeed] = field(default_factory=dict)
    _tasks: dict[tuple[Group, MetricKey], dict[str, dict[str, BySeed]]] = field(
        default_factory=dict
    )

    @property
    def controls(self) -> list[str]:
        """Members that nobody trained."""
        return [m for m in self.members if is_control(self.constraints[m])]

    def direction(self, metric: MetricKey) -> int:
        """+1 higher is better, -1 lower is better, 0 neither."""
        return self._directions.get(metric, 0)

    def values(self, group: Group, metric: MetricKey, member: str) -> BySeed:
        """By seed: the aggregate, or else the mean over tasks of a metric with a direction."""
        return self._whole.get((group, metric, member), {})

    def tasks(self, group: Group, metric: MetricKey) -> dict[str, dict[str, BySeed]]:
        """Task to member to seed to value."""
        return self._tasks.get((group, metric), {})

    def present(self, group: Group, metric: MetricKey | None = None) -> list[str]:
        """Members of a group, or those with any value of a metric, in order."""
        if metric is None:
            have = {m for g, m, _ in self.panels if g == group}
        else:
            have = {m for g, k, m in self._whole if (g, k) == (group, metric)}
        return [m for m in self.members if m in have]

    def seeds(self, group: Group) -> list[int]:
        return sorted({s for g, _, s in self.panels if g == group})

    def l0(self, group: Group, member: str) -> float:
        """Measured L0, mean over seeds; NaN where a seed has none."""
        found = [
            self.measured_l0.get((panel, member, s), math.nan)
            for (g, m, s), panel in self.panels.items()
            if (g, m) == (group, member)
        ]
        return float(np.mean(found)) if found else math.nan


def tidy(results: pd.DataFrame) -> Tidy:
    """Check and index a results table.

    Args:
        results: Rows as `stats.differences` takes them.

    Raises:
        UserError: As `stats.differences`: a column is missing, a row is duplicated, ...
    """
    checked = scores(results)
    frame = results.copy()
    frame["task"] = frame["task"].fillna("").astype(str)
    frame["l0"] = frame["l0"].astype(float)
    frame["seed"] = frame["seed"].astype(int)
    frame["value"] = frame["value"].astype(float)
    for column in ("panel", "member", "constraint", "architecture", "suite", "metric"):
        frame[column] = frame[column].astype(str)
    keys = list(zip(frame["suite"], frame["metric"], strict=True))
    directions = {key: _direction(checked, key) for key in dict.fromkeys(keys)}
    constraints = dict(zip(frame["member"], frame["constraint"], strict=True))
    out = Tidy(
        frame=frame,
        groups=checked.groups(),
        members=sorted(ordered(frame["member"]), key=lambda m: is_control(constraints[m])),
        metrics=sorted(directions, key=lambda k: (k[0] != _PANEL, k[0])),
        measured_l0=checked.measured_l0,
        panels={},
        constraints=constraints,
        _directions=directions,
    )
    _fill(out)
    return out


def ordered(members: Iterable[str]) -> list[str]:
    """Trained first, the paper's baselines next, others by name."""
    rank = {m: i for i, m in enumerate(KNOWN_MEMBERS)}
    return sorted(set(members), key=lambda m: (rank.get(m, len(rank)), m))


def _direction(checked: Scores, key: MetricKey) -> int:
    # Measured L0 is kept apart there, and has no direction.
    return 0 if key == (_PANEL, "l0") else checked.direction(*key)


def _fill(out: Tidy) -> None:
    parts: dict[tuple[Group, MetricKey, str], dict[int, list[float]]] = defaultdict(dict)
    columns = ["panel", "member", "architecture", "l0", "seed", "suite", "metric", "task"]
    for row, value in zip(
        out.frame[columns].itertuples(index=False, name=None), out.frame["value"], strict=True
    ):
        panel, member, architecture, l0, seed, suite, metric, task = row
        group, metric_key = (architecture, l0), (suite, metric)
        out.panels[group, member, seed] = panel
        if not task:
            out._whole.setdefault((group, metric_key, member), {})[seed] = value
            continue
        of_task = out._tasks.setdefault((group, metric_key), {}).setdefault(task, {})
        of_task.setdefault(member, {})[seed] = value
        parts[group, metric_key, member].setdefault(seed, []).append(value)
    for (group, metric_key, member), by_seed in parts.items():
        if out.direction(metric_key) == 0:
            continue
        whole = out._whole.setdefault((group, metric_key, member), {})
        for seed, values in by_seed.items():
            whole.setdefault(seed, float(np.mean(values)))
