"""Writes the pictures of the README: charts of packed studies' reports side by side.

``python benchmarks/picture.py`` takes half a minute for each: it builds that part of the
study's report.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from archives import unpacked

from sae_baselines.evals.results import current_results
from sae_baselines.report.build import build_report
from sae_baselines.report.context import study_context
from sae_baselines.report.write import to_html

HERE = Path(__file__).parent
_PROBES = "sparse_probing_sae_probes"
FIGURES = HERE.parent / "docs" / "figures"


@dataclass(frozen=True)
class Picture:
    """Charts of one architecture and L0, from the reports of packed studies.

    Attributes:
        architecture: Whose panels are shown.
        l0: At which target.
        metrics: Of each study, ``<suite>-<metric>`` of its charts, as in the report's figures.
    """

    architecture: str
    l0: int
    metrics: Mapping[Path, tuple[str, ...]]

    def name(self, metric: str) -> str:
        """What its chart has in a report."""
        return f"{metric}-by_member-{self.architecture}-l0_{self.l0}"


_ROWS = HERE / "rows" / "smollm2" / "study.tar.gz"
_HEADLINE = HERE / "headline" / "smollm2" / "study.tar.gz"
_TRANSCODERS = HERE / "transcoders" / "smollm2" / "study.tar.gz"
_TOP_1 = f"{_PROBES}-sae_top_1_test_accuracy"
_TOP_5 = f"{_PROBES}-sae_top_5_test_accuracy"
_EV = "core-explained_variance_paper"
_CONTEXTS = "interp_embedding-embedding_auc"
PICTURES = {
    # TopK has the same L0 on every text, so that probing can be read too.
    "real_run": Picture("topk", 32, {_ROWS: (_EV, "core-ce_loss_score", _TOP_5)}),
    "headline": Picture(
        "batchtopk",
        32,
        {
            _HEADLINE: (_EV, _CONTEXTS, _TOP_1, _TOP_5),
            HERE / "headline" / "ravel" / "study.tar.gz": ("ravel-disentanglement_score",),
        },
    ),
    "transcoders": Picture(
        "transcoder_batchtopk",
        16,
        {
            _TRANSCODERS: (
                "panel-explained_variance",
                "panel-ce_recovered",
                _CONTEXTS,
                _TOP_5,
            )
        },
    ),
}
# The report's colours (sae_baselines/report/templates/style.css).
_COLOURS = ("paper", "ink", "muted", "grid", "shade", "c0", "c1", "c2", "c3", "c4", "c5")


def _page(of: Picture, archive: Path) -> str:
    with unpacked(archive) as study:
        results, checks = current_results(study)
        its = (results["architecture"] == of.architecture) & (results["l0"] == of.l0)
        part = results.loc[its]
        return to_html(build_report(part, replace(study_context(study), checks=checks)))


def picture(of: Picture) -> str:
    """Charts in a row, light or dark as the reader's system is."""
    page, charts = "", []
    for archive, metrics in of.metrics.items():
        page = _page(of, archive)
        charts += _charts(page, [of.name(metric) for metric in metrics])
    light, dark = (block for block in re.findall(r":root \{(.*?)\}", page, re.DOTALL)[:2])
    width = 10 + sum(width + 10 for _, width, _ in charts)
    height = max(height for _, _, height in charts) + 10
    inside, left = [], 10.0
    for chart, chart_width, chart_height in charts:
        size = f'x="{left:g}" y="5" width="{chart_width:g}" height="{chart_height:g}"'
        inside.append(chart.replace("<svg ", f"<svg {size} ", 1))
        left += chart_width + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}">\n<style>\n:root {{{_colours(light)}}}\n'
        f"@media (prefers-color-scheme: dark) {{ :root {{{_colours(dark)}}} }}\n</style>\n"
        f'<rect width="100%" height="100%" style="fill: var(--paper)"/>\n'
        + "\n".join(inside)
        + "\n</svg>\n"
    )


def _charts(page: str, names: Sequence[str]) -> Iterator[tuple[str, float, float]]:
    for name in names:
        start = page.index(f'aria-labelledby="{name}-caption"')
        start = page.rindex("<svg", 0, start)
        chart = page[start : page.index("</svg>", start) + len("</svg>")]
        size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', chart)
        assert size is not None
        # Captions stay in the report.
        chart = re.sub(r' aria-labelledby="[^"]*"', "", chart)
        yield chart, float(size[1]), float(size[2])


def _colours(block: str) -> str:
    values = dict(re.findall(r"--(\w+): *([^;]+);", block))
    return " ".join(f"--{name}: {values[name]};" for name in _COLOURS)


def main() -> None:
    """Write every picture."""
    for name, of in PICTURES.items():
        (FIGURES / f"{name}.svg").write_text(picture(of), encoding="utf-8")


if __name__ == "__main__":
    main()
