"""Activations on disk, the stream over them, and norms."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sae_baselines.errors import UserError
from sae_baselines.study.patches.images import Crop, open_photographs, split_photographs
from sae_baselines.study.patches.norms import norms_of, within
from sae_baselines.study.patches.patches import PatchModel
from sae_baselines.study.patches.spec import VisionSpec
from sae_baselines.study.patches.store import (
    ActivationFile,
    PatchStream,
    crops_of,
    row_norms,
    write_crops,
)
from tests.study.patches.tiny import D_IN, N_PATCHES


@given(
    n=st.integers(1, 50),
    batch=st.integers(1, 30),
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_a_pass_of_the_stream_has_every_kept_row_once(
    n: int, batch: int, seed: int, data: st.DataObject
):
    keep = np.array(sorted(data.draw(st.sets(st.integers(0, 49), min_size=n, max_size=n))))
    rows = np.arange(50, dtype=np.float16)[:, None]
    stream = PatchStream(rows, keep, batch, seed, "cpu")
    n_batches = -(-2 * n // batch)
    seen = torch.cat([stream.batch(i) for i in range(n_batches)])[:, 0]
    assert seen.dtype == torch.float32
    for first in (0, n):
        assert sorted(seen[first : first + n].tolist()) == keep.tolist()
    # By number: in any order, and from another stream of the same seed.
    again = PatchStream(rows, keep, batch, seed, "cpu")
    for i in (n_batches - 1, 0):
        assert torch.equal(again.batch(i)[:, 0], seen[i * batch : (i + 1) * batch])
    assert stream.epochs(n_batches) == pytest.approx(n_batches * batch / n)


class _Counting(PatchModel):
    """Interrupted in the middle, as by a user."""

    passes = 0
    stop_at = 10**9

    def activations(self, pictures: list[Image.Image]) -> torch.Tensor:
        if self.passes == self.stop_at:
            raise KeyboardInterrupt
        self.passes += 1
        return super().activations(pictures)


def test_an_interrupted_computation_goes_on(spec: VisionSpec, tmp_path: Path):
    photographs = open_photographs(spec.images)
    split = split_photographs(photographs.names, spec.images)
    crops = crops_of(spec, split, N_PATCHES)["train"]
    model = _Counting(spec.model, spec.hook_name, "cpu")
    # 62 passes of 4 crops; progress is written down after 16, 32 and 48.
    whole = ActivationFile(tmp_path / "whole.npy", "x")
    whole.make(model, photographs, crops, 4, "float32")
    assert model.passes == 62
    part = ActivationFile(tmp_path / "part.npy", "x")
    model.passes, model.stop_at = 0, 40
    with pytest.raises(KeyboardInterrupt):
        part.make(model, photographs, crops, 4, "float32")
    assert not part.has(len(crops))
    model.passes, model.stop_at = 0, 10**9
    part.make(model, photographs, crops, 4, "float32")
    assert model.passes == 62 - 32
    assert part.has(len(crops))
    assert np.array_equal(part.read(), whole.read())
    assert part.read().shape == (len(crops) * N_PATCHES, D_IN)
    # Activations of something else are not taken for these.
    assert not ActivationFile(tmp_path / "part.npy", "y").has(1)


def test_a_full_disk_is_told_before_anything_is_computed(
    spec: VisionSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    photographs = open_photographs(spec.images)
    split = split_photographs(photographs.names, spec.images)
    crops = crops_of(spec, split, N_PATCHES)["train"]
    model = _Counting(spec.model, spec.hook_name, "cpu")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"activations need 372 KiB in .* has 1,000 B"):
        ActivationFile(tmp_path / "x.npy", "x").make(model, photographs, crops, 4, "float32")
    assert model.passes == 0


def test_crops_of_training_and_of_measuring_share_no_photograph(spec: VisionSpec):
    photographs = open_photographs(spec.images)
    split = split_photographs(photographs.names, spec.images)
    crops = crops_of(spec, split, N_PATCHES)
    photos = {part: {c.photo for c in cuts} for part, cuts in crops.items()}
    assert not photos["train"] & (photos["calibration"] | photos["evaluation"])
    assert photos["train"] == set(split.train)
    # Calibration and evaluation: the same photographs, other crops.
    assert not set(crops["calibration"]) & set(crops["evaluation"])
    # Enough for one pass: batches of 64, two more of them for norms.
    assert len(crops["train"]) * N_PATCHES >= (60 + 2) * 64
    assert len(crops["evaluation"]) * N_PATCHES >= spec.eval_samples


def test_outliers_are_found_and_left_out():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(100 * 9, 8)).astype(np.float32)
    rows[5::9] *= 1.5  # place 5: row 1, column 2 of a grid of 3
    rows[:9] *= 40  # one crop of artefacts, 1 % of patches
    norms = norms_of(rows, 3, 0.25)
    expected = np.linalg.norm(rows, axis=1)
    assert np.allclose(row_norms(rows), expected)
    assert norms.largest == pytest.approx(expected.max())
    assert norms.outliers == pytest.approx((expected > 5 * np.median(expected)).mean())
    assert norms.outliers == pytest.approx(0.01, abs=0.002)
    spread = ((rows - rows.mean(axis=0)) ** 2).sum(axis=1)
    assert norms.variance_of_top_percent == pytest.approx(
        spread[:9].sum() / spread.sum(), rel=1e-4
    )
    assert norms.variance_of_top_percent > 0.9  # what swamps explained variance
    assert norms.largest_at == (1, 2)
    assert norms.position_ratio > 1.3
    assert norms.dropped == 0.25
    kept = within(row_norms(rows), 5 * norms.median)
    assert set(range(900)) - set(kept.tolist()) == set(
        np.flatnonzero(expected > 5 * np.median(expected)).tolist()
    )
    assert len(within(expected, None)) == 900


def test_the_list_of_crops_is_not_written_through_a_link(tmp_path: Path):
    (tmp_path / "letter").write_text("mine")
    (tmp_path / "crops.csv").symlink_to(tmp_path / "letter")
    write_crops(tmp_path / "crops.csv", {"train": [Crop(0, 0.5, 0.25, 0.0)]}, ["a.jpg"])
    assert (tmp_path / "letter").read_text() == "mine"
    lines = (tmp_path / "crops.csv").read_text().splitlines()
    assert lines == ["part,photograph,scale,x,y", "train,a.jpg,0.5,0.25,0.0"]
