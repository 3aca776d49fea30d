"""One HTML page, pictures in it: rare latents of a trained SAE beside random ones.

What is said stands in ``templates/``.
"""

import base64
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from sae_baselines.evals.results import vision_results
from sae_baselines.files import keep_links_inside, write_atomically
from sae_baselines.paper.vision import table
from sae_baselines.paper.vision.picks import Pictures, members_named, picks_of
from sae_baselines.report.blind import shuffled
from sae_baselines.report.build import Report
from sae_baselines.report.markdown import Section, code, render
from sae_baselines.report.rates import rates_of
from sae_baselines.report.write import to_html
from sae_baselines.results import Results
from sae_baselines.stats.by_rate import Rated
from sae_baselines.study.engine import measurements_of
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.latents import Latents
from sae_baselines.study.patches import norms
from sae_baselines.study.plan import all_members, panel_named
from sae_baselines.study.sources.patches import PatchData, spec_of_study

_SIDE = 84


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
    keep_links_inside(root)
    spec = spec_of_study(root)
    chosen = members_named(spec, panel_named(spec, panel), members)
    source = PatchData(spec, root)
    picks = picks_of(source, chosen, n_latents, seed)
    pictures = Pictures(source, 2 * _SIDE)  # for screens of twice the resolution
    rows = [list(row) for row in zip(*picks, strict=True)]
    columns = [key.member for key in chosen]
    if blind:
        columns, rows = shuffled(rows, seed)
    page = root / ("vision_blind.html" if blind else "vision.html")
    patches = _words(
        "vision_patches.md.j2",
        columns=columns,
        rows=list(enumerate(rows, start=1)),
        pictures=pictures,
        image=_image,
        seed=seed,
        blind=blind,
    )
    write_atomically(page, to_html(_report(source, patches, len(rows))))
    if blind:
        key = root / "vision_blind_key.json"
        who = {
            str(i): dict(zip(columns, map(asdict, row), strict=True))
            for i, row in enumerate(rows, start=1)
        }
        write_atomically(key, json.dumps(who, indent=2))
        return PageFiles(page, None, key)
    # matplotlib takes a second to import and is needed nowhere else.
    from sae_baselines.paper.vision.figure import write_figure  # noqa: PLC0415

    return PageFiles(page, write_figure(root, picks, pictures), None)


def _report(source: PatchData, patches: str, n_rows: int) -> Report:
    spec, facts = source.spec, source.facts
    folder = StudyFolder(source.root)
    measured = measurements_of(spec, folder)
    rates = rates_of(
        Results.of(vision_results(folder, all_members(spec), measured)),
        {
            (key.panel.name, key.member): Rated.of(latents)
            for key in measured
            if (latents := Latents.load(folder.member(key))) is not None
        },
        unit="patches",
    )
    numbers = _words(
        "vision_numbers.md.j2",
        columns=table.COLUMNS,
        tables=table.rows_of(measured),
        notes=table.notes(measured),
    )
    how = _words(
        "vision_how.md.j2",
        spec=spec,
        facts=facts,
        crops=source.crops,
        norms=norms.sentence(facts["norms"]),
    )
    return Report(
        title="Rare latents of a vision transformer, trained beside random",
        lede=f"{code(spec.model.recorded_name)}, module {code(spec.hook_name)}; {n_rows} rare "
        "latents of each SAE.",
        sections=(
            Section("patches", "Rare latents", patches),
            Section("numbers", "Numbers", numbers),
            *([] if rates is None else [rates.section]),
            Section("how", "How this was made", how),
        ),
        figures=() if rates is None else rates.figures,
    )


def _image(picture: Image.Image, alt: str) -> Markup:
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=80)
    data = base64.b64encode(out.getvalue()).decode()
    size = f'width="{_SIDE}" height="{_SIDE}"'
    return Markup(f'<img alt="{alt}" {size} src="data:image/jpeg;base64,{data}">')


def _words(template: str, **values: Any) -> str:
    return render(template, "sae_baselines.paper.vision", **values)
