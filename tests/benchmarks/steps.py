"""What benchmarks of training steps have to hold, whichever times them."""

from collections.abc import Collection
from typing import Any

import pytest


def check_same_work(
    name: str, base: dict[str, Any], twins: Collection[str], least: float
) -> None:
    """Members of a base have the L0 that makes their steps comparable.

    Args:
        name: The base.
        base: Its measurement, at k = 4.
        twins: Members beside stock and its copy.
        least: L0 that every member of a base without a k is above.
    """
    l0 = {member: of["l0_first"] for member, of in base["members"].items()}
    of_twins = [l0[twin] for twin in twins]
    assert 0 < max(of_twins) <= 1.1 * min(of_twins), name
    if "topk" in name:
        assert list(l0.values()) == pytest.approx([4] * len(l0), rel=0.1), name
    else:  # a threshold meets it on average over batches; twins are led to it, stock is not
        assert l0["stock"] == l0["stock_again"]
        assert all(least < each < 8 for each in l0.values()), name
        assert base["twin_options"]["l0_control"] > 0
        assert "l0_control" not in base["options"]
