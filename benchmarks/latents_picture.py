"""Draws the README's picture of single latents: of a trained SAE and its twins, drawn by lot.

    sae-baselines latents <study> --panel batchtopk_l0_32_seed_0
    python benchmarks/latents_picture.py <study> --panel batchtopk_l0_32_seed_0

A row holds latents that fire about as often, of every decade of the firing rate as many, drawn
with the seed: nobody chose them. Of each latent the held-out contexts on which it fires most.
"""

import argparse
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from sae_baselines.errors import UserError
from sae_baselines.report.gallery import visible
from sae_baselines.report.latents_page import rows_of
from sae_baselines.study.contexts import Context, Contexts
from sae_baselines.study.folder import StudyFolder, load_study
from sae_baselines.study.latents import Latents
from sae_baselines.study.plan import members_named, panel_named

PICTURE = Path(__file__).parents[1] / "docs" / "figures" / "latents.svg"
TITLES = {"trained": "trained", "frozen_decoder": "frozen decoder (random directions)"}
# Of a context, characters before and after the token that it is about.
BEFORE, AFTER = 30, 12
CONTEXTS = 3
_CHAR, _LINE, _LEFT, _GAP = 6.05, 15.0, 74.0, 22.0


def line(context: Context, largest: float, x: float, y: float) -> str:
    """One context: its tokens shaded by activation, the peak at the same place everywhere."""
    acts = dict(zip(context.on, context.acts, strict=True))
    texts = [visible(token) for token in context.tokens]
    start = -sum(map(len, texts[: context.peak]))
    shades, words = [], []
    for i, text in enumerate(texts):
        # What is cut off at either side is left out by whole characters.
        kept = [(start + j, c) for j, c in enumerate(text) if -BEFORE <= start + j < AFTER]
        start += len(text)
        if not kept:
            continue
        left, shown = x + (BEFORE + kept[0][0]) * _CHAR, "".join(c for _, c in kept)
        if i in acts:
            strength = min(1.0, abs(acts[i]) / largest)
            shades.append(
                f'<rect x="{left:.1f}" y="{y - 11:.1f}" width="{len(shown) * _CHAR:.1f}" '
                f'height="14" class="on" opacity="{0.15 + 0.6 * strength:.2f}"/>'
            )
        bold = ' class="peak"' if i == context.peak else ""
        words.append(
            f'<text x="{left:.1f}" y="{y:.1f}" textLength="{len(shown) * _CHAR:.1f}" '
            f'xml:space="preserve"{bold}>{escape(shown)}</text>'
        )
    return "".join(shades + words)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("--panel", required=True)
    parser.add_argument("--members", nargs="+", default=list(TITLES))
    parser.add_argument("--per-decade", type=int, default=3)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PICTURE)
    args = parser.parse_args(argv)
    spec, _ = load_study(args.study)
    folder = StudyFolder(args.study)
    chosen = panel_named(spec, args.panel)
    # The draw depends on which SAEs have latents of a rate: all of the panel's, as on the page.
    keys = members_named(spec, chosen, None)
    latents = {key: found for key in keys if (found := Latents.load(folder.member(key)))}
    drawn = rows_of(latents, (), args.per_decade, args.seed)
    rows = [drawn[math.floor(i * len(drawn) / args.rows)] for i in range(args.rows)]
    columns = [key for name in args.members for key in keys if key.member == name]
    contexts = {key: Contexts.load(folder.member(key)) for key in columns}
    width = (BEFORE + AFTER) * _CHAR
    parts, y = [], 22.0
    parts.append(f'<text x="10" y="{y:.1f}" class="rate">fires on</text>')
    for place, key in enumerate(columns):
        x = _LEFT + place * (width + _GAP)
        title = TITLES.get(key.member, key.member)
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="head">{escape(title)}</text>')
    y += 10
    for _, row in rows:
        rate = float(latents[columns[0]].rates[row[columns[0]]])
        parts.append(f'<text x="10" y="{y + _LINE:.1f}" class="rate">{100 * rate:.2g} %</text>')
        for place, key in enumerate(columns):
            kept = contexts[key]
            if kept is None or row[key] not in kept.latents:
                raise UserError(
                    f"{key}: contexts of latent {row[key]} are not kept; run latents"
                )
            of = kept.latents[row[key]]
            for i, context in enumerate(of.contexts[:CONTEXTS]):
                x = _LEFT + place * (width + _GAP)
                parts.append(line(context, of.largest, x, y + (i + 1) * _LINE))
        y += CONTEXTS * _LINE + 12
    across, down = f"{_LEFT + len(columns) * (width + _GAP):.0f}", f"{y:.0f}"
    style = (
        ":root { --paper: #ffffff; --ink: #1b1f24; --muted: #57606a; --on: #e8873a; }\n"
        "@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ed; "
        "--muted: #a2abb5; --on: #b8641f; } }\n"
        "text { font: 10px ui-monospace, Menlo, Consolas, monospace; fill: var(--ink); }\n"
        ".head { font: 600 12px system-ui, sans-serif; }\n"
        ".rate { font: 11px system-ui, sans-serif; fill: var(--muted); }\n"
        ".peak { font-weight: 700; } .on { fill: var(--on); }"
    )
    args.out.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {down}" '
        f'width="{across}" height="{down}">\n<style>\n{style}\n</style>\n'
        f'<rect width="100%" height="100%" style="fill: var(--paper)"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
