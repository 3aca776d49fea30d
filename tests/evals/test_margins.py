"""The margins that the page on verdicts states are those that verdicts are made with."""

import re
from pathlib import Path

from sae_baselines.evals import get_suite, suite_names
from sae_baselines.evals.registry import metric_of

PAGE = Path(__file__).parents[2] / "docs" / "verdicts.md"


def test_every_primary_metric_s_margin_is_on_the_page() -> None:
    _, _, table = PAGE.read_text(encoding="utf-8").partition("| suite | primary metric |")
    stated: dict[tuple[str, str], float] = {}
    for line in table.split("\n\n")[0].splitlines()[2:]:
        suites, metrics, margin = (cell.strip() for cell in line.strip("|").split("|"))
        for suite in re.findall(r"`(\w+)`", suites):
            for metric in re.findall(r"`(\w+)`", metrics):
                stated[suite, metric] = float(margin)
    used = {(s, m): metric_of(s, m).margin for s in suite_names() for m in get_suite(s).primary}
    assert {key for key in stated if key[0] not in ("panel", "vision")} == used.keys()
    for (suite, metric), value in stated.items():
        margin = metric_of(suite, metric).margin
        assert margin is not None
        assert margin.value == value
