"""Writes the pictures of the README: charts of packed studies' reports side by side.

``python benchmarks/picture.py`` takes half a minute for each: it builds that part of the
study's report.
"""

import re
from collections.abc import Iterator, Sequence
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
    """Charts of one part of a packed study's report.

    Attributes:
        archive: The study.
        architecture: Whose panels are shown.
        l0: At which target.
        metrics: ``<suite>-<metric>`` of each chart, as in the report's figures.
    """

    archive: Path
    architecture: str
    l0: int
    metrics: tuple[str, ...]

    @property
    def charts(self) -> list[str]:
        """Their names in the report."""
        of = f"by_member-{self.architecture}-l0_{self.l0}"
        return [f"{metric}-{of}" for metric in self.metrics]


PICTURES = {
    # TopK has the same L0 on every text, so that probing can be read too.
    "real_run": Picture(
        HERE / "rows" / "smollm2" / "study.tar.gz",
        "topk",
        32,
        (
            "core-explained_variance_paper",
            "core-ce_loss_score",
            f"{_PROBES}-sae_top_5_test_accuracy",
        ),
    ),
    "headline": Picture(
        HERE / "headline" / "smollm2" / "study.tar.gz",
        "batchtopk",
        32,
        (
            "core-explained_variance_paper",
            "interp_embedding-embedding_auc",
            f"{_PROBES}-sae_top_1_test_accuracy",
            f"{_PROBES}-sae_top_5_test_accuracy",
        ),
    ),
    "transcoders": Picture(
        HERE / "transcoders" / "smollm2" / "study.tar.gz",
        "transcoder_batchtopk",
        16,
        (
            "panel-explained_variance",
            "panel-ce_recovered",
            "interp_embedding-embedding_auc",
            f"{_PROBES}-sae_top_5_test_accuracy",
        ),
    ),
}
# The report's colours (sae_baselines/report/templates/style.css).
_COLOURS = ("paper", "ink", "muted", "grid", "shade", "c0", "c1", "c2", "c3", "c4", "c5")


def _page(of: Picture) -> str:
    with unpacked(of.archive) as study:
        results, checks = current_results(study)
        part = results.query("architecture == @of.architecture and l0 == @of.l0")
        return to_html(build_report(part, replace(study_context(study), checks=checks)))


def picture(of: Picture) -> str:
    """Charts in a row, light or dark as the reader's system is."""
    page = _page(of)
    light, dark = (block for block in re.findall(r":root \{(.*?)\}", page, re.DOTALL)[:2])
    charts = list(_charts(page, of.charts))
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
