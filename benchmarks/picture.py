"""Writes the README's picture, charts of the committed report of smollm2 side by side.

``python benchmarks/picture.py`` after that report was made again.
"""

import re
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
REPORT = HERE / "smollm2" / "report.html"
PICTURE = HERE.parent / "docs" / "figures" / "real_run.svg"
# Charts of the report, with their titles.
CHARTS = (
    "core-explained_variance_paper-by_member-batchtopk-l0_32",
    "core-ce_loss_score-by_member-batchtopk-l0_32",
    "sparse_probing_sae_probes-sae_top_1_test_accuracy-by_member-batchtopk-l0_32",
)
# The report's colours (sae_baselines/report/templates/style.css).
_COLOURS = ("paper", "ink", "muted", "grid", "shade", "c0", "c1", "c2", "c3", "c4", "c5")


def picture() -> str:
    """Charts in a row, light or dark as the reader's system is."""
    page = REPORT.read_text(encoding="utf-8")
    light, dark = (block for block in re.findall(r":root \{(.*?)\}", page, re.DOTALL)[:2])
    charts = list(_charts(page))
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


def _charts(page: str) -> Iterator[tuple[str, float, float]]:
    for name in CHARTS:
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


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
