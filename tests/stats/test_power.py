"""What a study's seeds can show: closed forms against simulation, and the committed spreads."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sae_baselines.errors import UserError
from sae_baselines.pipeline import power, power_lines, power_notes, save_power_figure
from sae_baselines.stats import planned, read_spreads, tost
from sae_baselines.stats.intervals import paired_t
from sae_baselines.stats.power import power_to_differ, power_to_match, smallest_difference
from sae_baselines.stats.spreads import Spread, spreads_of
from sae_baselines_cli import app
from tests.stats.tables import frame, paired, rows

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PANEL = BENCHMARKS / "smollm2" / "panel.yaml"
EV = Spread(
    *("a study", "a model", "a hook", 1000, "topk", 32.0, "core", "explained_variance"),
    *("frozen_decoder", "frozen_decoder", 0, 3, 0.1, 0.01),
)


@pytest.mark.parametrize(("n", "alpha"), [(3, 0.05), (5, 0.0125)])
def test_power_is_what_simulation_gives(n: int, alpha: float) -> None:
    rng = np.random.default_rng(n)
    d = 0.5 * rng.normal(size=(20_000, n))
    least = smallest_difference(0.5, n, alpha=alpha)
    assert power_to_differ(least, 0.5, n, alpha=alpha) == pytest.approx(0.8, abs=1e-4)
    mean, p = paired_t(d + least)
    assert ((p <= alpha) & (mean > 0)).mean() == pytest.approx(0.8, abs=0.01)
    margin = 1.2 * least
    found = (tost(d, margin) <= alpha).mean()
    assert power_to_match(0.5, margin, n, alpha=alpha) == pytest.approx(found, abs=0.015)


def test_spreads_are_those_of_the_differences() -> None:
    trained, other = [0.8, 0.82, 0.85], [0.7, 0.75, 0.74]
    table = frame(rows(paired(trained, other)), rows(paired([1, 1], [1, 1]), metric="cossim"))
    (found,) = spreads_of(table, source="s", model="m", hook="h", tokens=9)
    d = np.subtract(trained, other)
    assert (found.suite, found.metric, found.seeds) == ("core", "explained_variance", 3)
    assert (found.mean, found.sd) == pytest.approx((d.mean(), d.std(ddof=1)))
    # One seed has no spread.
    assert not spreads_of(
        frame(rows(paired([0.8], [0.7]))), source="s", model="m", hook="h", tokens=9
    )


def test_the_widest_baseline_counts_and_studies_are_pooled() -> None:
    wide = replace(EV, constraint="frozen_encoder", sd=0.03)
    again = replace(wide, source="another", seeds=5, sd=0.01)
    other = replace(EV, architecture="gated", sd=9.0)
    plan = planned(
        [EV, wide, again, other],
        ["core/explained_variance", "ravel/*"],
        seeds=3,
        constraints={"frozen_decoder", "frozen_encoder"},
        architectures=["topk"],
    )
    (p,) = plan.planned
    assert (p.baseline, p.df, plan.n_metrics) == ("frozen_encoder", 6, 2)
    assert p.sd == pytest.approx(np.sqrt((2 * 0.03**2 + 4 * 0.01**2) / 6))
    assert p.alpha == 0.025
    assert plan.sources == ("a study", "another")
    assert plan.unknown == ("ravel/*",)
    assert p.cautious > p.sd
    least = p.to_differ()
    assert least is not None
    assert p.powers(least)[0] >= 0.8 > p.powers(least - 1)[0]
    assert (p.to_differ(cautious=True) or 101) >= least
    # One more seed buys a smaller difference.
    assert p.smallest(3) > p.smallest(4) > p.smallest(5)
    assert any("ravel/*: not known" in line for line in power_lines(plan))


def test_the_committed_spreads_are_those_of_the_committed_studies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("spreads", BENCHMARKS / "spreads.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.spreads()
    kept = read_spreads()
    assert {s.source for s in kept} == {
        *(f"benchmarks/{name}" for name in ("smollm2", "published", "rows/smollm2", "toy/tree"))
    }
    assert [replace(s, mean=0, sd=0) for s in made] == [replace(s, mean=0, sd=0) for s in kept]
    for a, b in zip(made, kept, strict=True):
        assert (a.mean, a.sd) == pytest.approx((b.mean, b.sd), rel=1e-4)


def test_the_command(tmp_path: Path) -> None:
    assert "Example" in CliRunner().invoke(app, ["power", "--help"]).output
    figure = tmp_path / "power.svg"
    result = CliRunner().invoke(app, ["power", str(PANEL), "--figure", str(figure)])
    assert result.exit_code == 0, result.output
    assert "3 seeds" in result.output
    plan = power(PANEL)
    assert plan.seeds == 3
    for p in plan.planned:
        assert f"{p.smallest(3):.3g}" in result.output
    assert "benchmarks/smollm2" in power_notes(plan)[0]
    assert figure.read_bytes().startswith(b"<?xml")
    assert len(power_lines(plan)) == 1 + plan.n_metrics


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"figure: .*neither a \.png nor a \.svg"):
        save_power_figure(power(PANEL), tmp_path / "power.pdf")
    for arguments in (["power", "absent.yaml"], ["power", str(PANEL), "--pilot", "absent"]):
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, UserError)
        assert "\n" not in str(result.exception)
