"""The page says what the table says, and shows what it says it shows."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from sae_lens import SAE

from sae_baselines.errors import UserError
from sae_baselines.paper.vision.page import write_page
from sae_baselines.paper.vision.picks import Pictures, members_named, picks_of
from sae_baselines.paper.vision.table import notes, rows_of
from sae_baselines.study.engine import StudyResult
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.patches.images import CropLoader, patch_box
from sae_baselines.study.patches.latents import PERCENTILES
from sae_baselines.study.patches.spec import VisionSpec
from sae_baselines.study.plan import MemberKey, panel_named
from sae_baselines.study.sources.patches import PatchData, firing_of
from tests.study.patches.tiny import GRID, N_PATCHES, SIZE

_IMAGE = re.compile(r'<img alt="([^"]*)"[^>]*src="data:image/jpeg;base64,([^"]+)"')


def _source(study: StudyResult, spec: VisionSpec) -> tuple[PatchData, list[MemberKey]]:
    return PatchData(spec, study.folder), members_named(spec, panel_named(spec, None), None)


def test_the_page_has_the_tables_numbers_and_nothing_from_elsewhere(study: StudyResult):
    files = write_page(study.folder, n_latents=2)
    html = files.page.read_text(encoding="utf-8")
    for rows in rows_of(study.measurements).values():
        assert len(rows) == 6
        for row in rows:
            for cell in row:
                assert f"{cell}</" in html or f"{cell.replace('_', '_<wbr>')}" in html
    plain = re.sub(r"<[^>]+>", "", html).replace("&#39;", "'").replace("&lt;", "<")
    assert notes(study.measurements)[0][:80] in plain
    assert "Single seed" in plain
    assert "Latents by how often they fire" in plain
    assert "% of patches" in plain
    assert "of tokens" not in plain
    # Trained and two controls; two latents; four patches, near and far.
    assert len(_IMAGE.findall(html)) == 3 * 2 * len(PERCENTILES) * 2
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)
    assert "not stated; do not publish" in html  # the licence
    assert files.figure is not None
    with Image.open(files.figure) as figure:
        assert figure.width > figure.height > 100


def test_what_is_shown_is_at_its_percentile_and_held_out(study: StudyResult, spec: VisionSpec):
    source, members = _source(study, spec)
    rows = torch.from_numpy(np.load(study.folder / "activations" / "evaluation.npy").copy())
    held_out = {source.photographs.names[i] for i in source.split.held_out}
    picks = picks_of(source, members, 2, seed=3)
    assert [len(latents) for latents in picks] == [2, 2, 2]
    for key, latents in zip(members, picks, strict=True):
        sae = SAE.load_from_disk(StudyFolder(study.folder).member(key))
        for pick in latents:
            acts = sae.encode(rows)[:, pick.latent].detach()
            positive = sorted(acts[acts > 0].tolist())
            assert pick.patches == len(positive)
            assert 0 < pick.patches < len(rows) / 1000
            for shot, percentile in zip(pick.shots, PERCENTILES, strict=True):
                place = percentile / 100 * (len(positive) - 1)
                # Equal activations share their ranks; these are computed in another batch.
                near = 1e-4 * shot.activation
                first = sum(act < shot.activation - near for act in positive)
                last = sum(act <= shot.activation + near for act in positive) - 1
                assert first <= last
                assert first - 0.5 <= place <= last + 0.5
                # The row it came from is the patch that it says.
                row = shot.crop * N_PATCHES + shot.place
                assert float(acts[row]) == pytest.approx(shot.activation, rel=1e-4)
                crop = source.crops["evaluation"][shot.crop]
                assert source.photographs.names[crop.photo] == shot.photograph
                assert shot.photograph in held_out
    assert picks != picks_of(source, members, 2, seed=4)


def test_the_frame_is_around_the_patch(study: StudyResult, spec: VisionSpec):
    source, members = _source(study, spec)
    shot = picks_of(source, members, 1, seed=0)[0][0].shots[0]
    side = 10 * SIZE
    drawn = np.asarray(Pictures(source, side).crop(shot)).astype(int)
    crop = source.crops["evaluation"][shot.crop]
    seen = CropLoader(source.photographs).load(crop, SIZE)
    bare = np.asarray(seen.resize((side, side), Image.Resampling.LANCZOS)).astype(int)
    ys, xs = np.nonzero((drawn != bare).any(axis=2))
    left, top, right, bottom = patch_box((0, 0, side, side), GRID, shot.place)
    inside = (xs >= left) & (xs < right) & (ys >= top) & (ys < bottom)
    assert len(xs) > 0
    assert not inside.any()  # the patch itself is untouched
    assert xs.min() >= left - 3
    assert xs.max() < right + 3
    assert ys.min() >= top - 3
    assert ys.max() < bottom + 3
    close = Pictures(source, side).close(shot)
    assert close.size == (side, side)


def test_a_blind_page_hides_who_is_who_and_its_key_tells(study: StudyResult):
    # Which members have rare latents in so small a study is torch's and the machine's.
    found = {
        k.member: firing_of(StudyFolder(study.folder).member(k)) for k in study.measurements
    }
    chosen = [member for member, firing in found.items() if len(firing.rare) >= 2]
    assert len(chosen) >= 5
    files = write_page(study.folder, n_latents=2, members=chosen, blind=True)
    html = files.page.read_text(encoding="utf-8")
    assert files.key is not None
    assert files.figure is None
    key = json.loads(files.key.read_text())
    open_page = write_page(study.folder, n_latents=2, members=chosen).page.read_text()
    names = set(chosen)
    grid = html[html.index('<table class="patches">') : html.index("</table>")]
    assert not any(name in grid for name in names)
    assert "latent" not in grid
    assert [*key] == ["1", "2"]
    orders = []
    for row in key.values():
        assert [*row] == [*"ABCDEF"[: len(chosen)]]
        orders.append([pick["member"] for pick in row.values()])
        assert set(orders[-1]) == names
    assert orders[0] != orders[1]
    # The same pictures as on the open page, row by row.
    pictures = [[data for _, data in _IMAGE.findall(page)] for page in (html, open_page)]
    half = len(pictures[0]) // 2
    for part in (slice(half), slice(half, None)):
        assert sorted(pictures[0][part]) == sorted(pictures[1][part])
    for data in pictures[0]:
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.size[0] == picture.size[1]


def test_no_more_latents_of_one_member_than_of_another(study: StudyResult, spec: VisionSpec):
    source, members = _source(study, spec)
    fewest = min(study.measurements[key]["rare"] for key in members)
    assert {len(p) for p in picks_of(source, members, 1000, seed=0)} == {fewest}


def test_measured_activations_may_be_deleted(study: StudyResult):
    before = write_page(study.folder, n_latents=1).page.read_text()
    path = study.folder / "activations" / "evaluation.npy"
    path.unlink()
    assert write_page(study.folder, n_latents=1).page.read_text() == before
    assert path.exists()


def test_wrong_names_are_said(study: StudyResult):
    with pytest.raises(UserError, match="'trainde' is unknown; did you mean trained"):
        write_page(study.folder, members=["trainde"])
    with pytest.raises(UserError, match="panel: 'x' is unknown"):
        write_page(study.folder, panel="x")
