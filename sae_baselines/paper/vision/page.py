"""One HTML page, pictures in it: rare latents of a trained SAE beside random ones."""

import base64
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from sae_baselines.files import write_atomically
from sae_baselines.paper.vision import table
from sae_baselines.paper.vision.picks import (
    Pick,
    Pictures,
    members_named,
    panel_named,
    picks_of,
)
from sae_baselines.report.build import Report
from sae_baselines.report.markdown import Section, code, render
from sae_baselines.report.write import to_html
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.patches import norms
from sae_baselines.study.patches.study import (
    Source,
    all_members,
    measurements_of,
    spec_of_study,
)

_SIDE = 84
_STYLE = """<style>
.patches td, .patches thead th { padding: .5rem 1.1rem .5rem 0; vertical-align: top; }
.patches thead th:not(:first-child), .patches td { text-align: left !important; }
.patches .shots { display: grid; grid-template-columns: repeat(4, 84px); gap: 3px; }
.patches img { display: block; width: 84px; height: 84px; image-rendering: auto; }
.patches p { margin: 0 0 .25rem; font-size: .8rem; color: var(--muted); white-space: nowrap; }
.patches .percentile { font-size: .75rem; color: var(--muted); }
</style>"""


@dataclass(frozen=True)
class PageFiles:
    """What `write_page` wrote.

    Attributes:
        page: The HTML page.
        figure: PNG for a paper; None for a blind page.
        key: Which column was which member; only of a blind page.
    """

    page: Path
    figure: Path | None
    key: Path | None


def write_page(
    root: str | Path,
    *,
    panel: str | None = None,
    members: list[str] | None = None,
    n_latents: int = 12,
    seed: int = 0,
    blind: bool = False,
) -> PageFiles:
    """Write ``vision.html`` and ``figures/vision.png`` into a study's folder.

    The page needs nothing but itself. It holds parts of the photographs: publish it only if
    their licence allows.

    Args:
        root: A finished vision study.
        panel: Which panel's latents; default the first.
        members: Whose; default the trained SAE's and the controls'; ``["all"]``.
        n_latents: Rare latents of each member.
        seed: Chooses them.
        blind: Write ``vision_blind.html`` instead, with columns in a new order in every row
            and without names, and ``vision_blind_key.json`` to look up afterwards.

    Raises:
        UserError: Not a finished vision study, or an unknown name.
    """
    root = Path(root)
    spec = spec_of_study(root)
    chosen = members_named(spec, panel_named(spec, panel), members)
    source = Source(spec, root)
    picks = picks_of(source, chosen, n_latents, seed)
    pictures = Pictures(source, 2 * _SIDE)  # for screens of twice the resolution
    rows = list(zip(*picks, strict=True))
    if blind:
        shuffled = [_shuffled(row, [seed, i]) for i, row in enumerate(rows)]
        letters = [chr(ord("A") + i) for i in range(len(chosen))]
        key = root / "vision_blind_key.json"
        write_atomically(key, json.dumps(_key(letters, shuffled), indent=2))
        page = root / "vision_blind.html"
        html = to_html(_report(source, letters, shuffled, pictures, seed, blind=True))
        write_atomically(page, html)
        return PageFiles(page, None, key)
    names = [k.member for k in chosen]
    page = root / "vision.html"
    write_atomically(page, to_html(_report(source, names, rows, pictures, seed, blind=False)))
    # matplotlib takes a second to import and is needed nowhere else.
    from sae_baselines.paper.vision.figure import write_figure  # noqa: PLC0415

    return PageFiles(page, write_figure(root, picks, pictures), None)


def _shuffled(row: tuple[Pick, ...], seed: list[int]) -> tuple[Pick, ...]:
    order = np.random.default_rng(seed).permutation(len(row))
    return tuple(row[i] for i in order)


def _key(letters: list[str], rows: list[tuple[Pick, ...]]) -> dict[str, Any]:
    return {
        str(i + 1): {letter: asdict(pick) for letter, pick in zip(letters, row, strict=True)}
        for i, row in enumerate(rows)
    }


def _report(
    source: Source,
    columns: list[str],
    rows: list[tuple[Pick, ...]],
    pictures: Pictures,
    seed: int,
    *,
    blind: bool,
) -> Report:
    spec, facts = source.spec, source.facts
    model = code(spec.model.recorded_name)
    measured = measurements_of(StudyFolder(source.root), list(all_members(spec)))
    grid = Markup(_STYLE + _grid(columns, rows, pictures, blind))
    patches = _text("patches", seed=seed, blind=blind, columns=columns, grid=grid)
    numbers = _text(
        "numbers",
        columns=table.COLUMNS,
        panels=table.rows_of(measured),
        notes=table.notes(measured),
    )
    how = _text(
        "how",
        spec=spec,
        facts=facts,
        crops={part: len(crops) for part, crops in source.crops.items()},
        norms=norms.sentence(facts["norms"]),
    )
    return Report(
        title="Rare latents of a vision transformer, trained beside random",
        lede=f"{model}, module {code(spec.hook_name)}; {len(rows)} rare latents of each SAE.",
        sections=(
            Section("patches", "Rare latents", patches),
            Section("numbers", "Numbers", numbers),
            Section("how", "How this was made", how),
        ),
    )


def _text(template: str, **values: Any) -> str:
    return render(f"{template}.md.j2", "sae_baselines.paper.vision", **values)


def _grid(
    columns: list[str], rows: list[tuple[Pick, ...]], pictures: Pictures, blind: bool
) -> str:
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{i}</th>'
        + "".join(f"<td>{_cell(pick, pictures, blind)}</td>" for pick in row)
        + "</tr>"
        for i, row in enumerate(rows, start=1)
    )
    return (
        '<div class="table grid" tabindex="0" role="region" aria-label="Rare latents">'
        f'<table class="patches"><thead><tr><th scope="col"></th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(pick: Pick, pictures: Pictures, blind: bool) -> str:
    head = (
        f"<p>latent {pick.latent}: {_count(pick.patches, 'patch', 'es')}, "
        f"{_count(pick.photographs, 'photograph', 's')}</p>"
    )
    above = "".join(
        _image(pictures.crop(s), f"{s.percentile}th percentile") for s in pick.shots
    )
    below = "".join(_image(pictures.close(s), "enlarged") for s in pick.shots)
    labels = "".join(f'<span class="percentile">{s.percentile} %</span>' for s in pick.shots)
    return f'{"" if blind else head}<div class="shots">{above}{below}{labels}</div>'


def _count(n: int, what: str, plural: str) -> str:
    return f"{n} {what}{'' if n == 1 else plural}"


def _image(picture: Image.Image, alt: str) -> str:
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=80)
    data = base64.b64encode(out.getvalue()).decode()
    size = f'width="{_SIDE}" height="{_SIDE}"'
    return f'<img alt="{alt}" {size} src="data:image/jpeg;base64,{data}">'
