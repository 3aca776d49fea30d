"""The page's pictures as one figure for a paper."""

from pathlib import Path

from matplotlib.figure import Figure

from sae_baselines.files import new_file
from sae_baselines.paper.vision.picks import Pick, Pictures
from sae_baselines.report.style import INK, MUTED, drawing
from sae_baselines.study.patches.latents import PERCENTILES

_ROWS = 6
_INCH = 0.52


def write_figure(root: Path, picks: list[list[Pick]], pictures: Pictures) -> Path:
    """Write ``figures/vision.png``: members side by side, a latent per row.

    Args:
        root: Study folder.
        picks: Per member, its latents; the first six are drawn.
        pictures: Draws them.
    """
    path = root / "figures" / "vision.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, shots = min(_ROWS, len(picks[0])), len(PERCENTILES)
    gap = 0.35  # of a picture, between members
    width = len(picks) * shots + (len(picks) - 1) * gap
    top = 0.8  # of a picture, for headings
    with drawing():
        figure = Figure(figsize=(width * _INCH, (rows + top) * _INCH))
        for m, latents in enumerate(picks):
            left = m * (shots + gap)
            figure.text(
                (left + shots / 2) / width,
                1 - 0.15 / (rows + top),
                latents[0].member,
                ha="center",
                va="top",
                color=INK,
                fontsize=7,
            )
            for p, percentile in enumerate(PERCENTILES):
                figure.text(
                    (left + p + 0.5) / width,
                    1 - 0.72 / (rows + top),
                    f"{percentile} %",
                    ha="center",
                    va="bottom",
                    color=MUTED,
                    fontsize=5,
                )
            for i, pick in enumerate(latents[:rows]):
                for p, shot in enumerate(pick.shots):
                    x, y = (left + p) / width, (rows - 1 - i) / (rows + top)
                    size = (0.96 / width, 0.96 / (rows + top))
                    axes = figure.add_axes((x, y, *size))
                    axes.imshow(pictures.close(shot))
                    axes.set_axis_off()
        with new_file(path) as scratch:
            figure.savefig(scratch, dpi=200, metadata={"Software": None})
    return path
