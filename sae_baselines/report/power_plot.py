"""Power over seeds, before a study is run."""

from matplotlib.ticker import MaxNLocator, PercentFormatter

from sae_baselines.report import style
from sae_baselines.report.markdown import Figure
from sae_baselines.stats import METHOD, Plan

_MOST = 20


def power_figure(plan: Plan) -> Figure:
    """Chance to show a difference of the margin (lines) and equivalence (dashes), by metric."""
    shown = [p for p in plan.planned if p.margin is not None]
    looks = style.looks([p.name for p in shown])
    needed = [n or _MOST for p in shown for n in (p.to_differ(), p.to_match())]
    seeds = range(2, min(_MOST, max([plan.seeds + 1, 5, *needed])) + 1)
    with style.drawing():
        fig, ax = style.canvas(2.6 + 0.2 * len(shown))
        for p in shown:
            look = looks[p.name]
            differ, match = zip(*map(p.powers, seeds), strict=True)
            ax.plot(seeds, differ, color=look.colour, marker=look.marker, label=p.name)
            ax.plot(seeds, match, color=look.colour, marker=look.marker, linestyle="--")
        ax.axhline(METHOD.power, color=style.MUTED, linewidth=0.9, linestyle=":")
        ax.axvline(plan.seeds, color=style.MUTED, linewidth=0.9)
        ax.set(xlabel="seeds", ylabel="power", ylim=(-0.02, 1.02))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        fig.legend(loc="outside lower left")
        caption = (
            "Lines: chance to show a difference of the margin. Dashes: to show equivalence "
            f"within it where there is none. Vertical: this study's {plan.seeds} seeds."
        )
        return style.finish(fig, "power", caption)
