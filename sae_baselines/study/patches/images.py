"""Photographs, and square crops of them that a seed decides.

Few photographs give many crops; which crops, is a function of the seed alone. Photographs
are divided into training and held-out ones before anything is cropped, so that no
photograph is in both.
"""

import fnmatch
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from datasets import Image as ImageFeature
from datasets import load_dataset
from datasets.exceptions import DatasetsError
from PIL import Image, ImageOps, UnidentifiedImageError

from sae_baselines.errors import UserError, did_you_mean, one_line
from sae_baselines.reach import say_if_silent
from sae_baselines.study.patches.spec import ImagesSpec

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")

# Left, top, right, bottom in pixels of the photograph.
Box = tuple[float, float, float, float]


class Photographs(Protocol):
    """Pictures by number."""

    names: list[str]
    # Another one when pictures were added, removed or replaced.
    fingerprint: str

    def load(self, index: int) -> Image.Image:
        """The picture in RGB, upright."""
        ...


@dataclass(frozen=True)
class Split:
    """Which photographs are trained on and which are not; indices, disjoint."""

    train: list[int]
    held_out: list[int]


@dataclass(frozen=True)
class Crop:
    """A square part of a photograph, in shares of what is possible.

    Attributes:
        photo: Index of the photograph.
        scale: Side as a share of the photograph's shorter side, in (0, 1].
        x: Where between the leftmost (0) and the rightmost (1) place.
        y: Where between top (0) and bottom (1).
    """

    photo: int
    scale: float
    x: float
    y: float

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The crop in whole pixels of a photograph of this size."""
        side = max(1, round(self.scale * min(width, height)))
        left, top = round(self.x * (width - side)), round(self.y * (height - side))
        return left, top, left + side, top + side


def patch_box(crop: Sequence[float], grid: int, patch: int) -> Box:
    """Where a patch lies in its photograph.

    Args:
        crop: The crop's box, pixels.
        grid: Patches per side of the crop.
        patch: Number of the patch, row by row from the top left.

    Returns:
        Its box in pixels of the photograph; fractional where the crop was resized.
    """
    left, top, right, bottom = crop
    row, column = divmod(patch, grid)
    width, height = (right - left) / grid, (bottom - top) / grid
    return (
        left + column * width,
        top + row * height,
        left + (column + 1) * width,
        top + (row + 1) * height,
    )


def open_photographs(spec: ImagesSpec) -> Photographs:
    """Find the photographs and look at each of them.

    Raises:
        UserError: No such folder or dataset, no pictures in it, or one that cannot be read.
    """
    path = Path(spec.path).expanduser()
    if path.is_dir():
        return _Folder(path)
    if path.is_file():
        raise UserError(f"images.path: {path} is a file; give the folder that it is in")
    if path.is_absolute() or spec.path.startswith((".", "~")):
        raise UserError(f"images.path: there is no folder {path}")
    return _Dataset(spec)


class _Folder:
    def __init__(self, root: Path) -> None:
        files = sorted(
            p
            for p in root.rglob("*")
            if p.suffix.lower() in SUFFIXES
            and not any(part.startswith(".") for part in p.relative_to(root).parts)
        )
        if not files:
            raise UserError(
                f"images.path: {root} has no pictures in it ({', '.join(SUFFIXES)}); give a "
                "folder of photographs"
            )
        self.files = files
        self.names = [p.relative_to(root).as_posix() for p in files]
        sizes = [p.stat().st_size for p in files]
        listing = json.dumps([*zip(self.names, sizes, strict=True)])
        self.fingerprint = hashlib.sha256(listing.encode()).hexdigest()
        for name, file in zip(self.names, files, strict=True):
            try:
                with Image.open(file) as picture:
                    picture.verify()
            except (OSError, SyntaxError, UnidentifiedImageError) as error:
                raise _unreadable(name, error) from error

    def load(self, index: int) -> Image.Image:
        try:
            with Image.open(self.files[index]) as picture:
                return _plain(picture, self.names[index])
        except (OSError, SyntaxError) as error:
            raise _unreadable(self.names[index], error) from error


class _Dataset:
    def __init__(self, spec: ImagesSpec) -> None:
        say_if_silent([spec.path])
        try:
            rows: Any = load_dataset(spec.path, name=spec.name, split=spec.split)
        except (OSError, ValueError, DatasetsError) as error:
            raise UserError(
                f"images.path: {spec.path!r} is neither a folder nor a dataset that can be "
                f"loaded: {one_line(error, 300)}"
            ) from error
        features: dict[str, Any] = dict(rows.features or {})
        if spec.column not in features:
            raise UserError(
                f"images.column: {spec.column!r} is not a column of {spec.path}; "
                f"{did_you_mean(spec.column, list(features))}"
            )
        if not isinstance(features[spec.column], ImageFeature):
            raise UserError(f"images.column: {spec.column!r} of {spec.path} holds no pictures")
        self.rows = rows
        self.column = spec.column
        if len(self.rows) == 0:
            raise UserError(f"images.path: {spec.path!r} has no pictures in it")
        digits = len(str(len(self.rows)))
        self.names = [f"{i:0{digits}d}" for i in range(len(self.rows))]
        self.fingerprint = str(self.rows._fingerprint)

    def load(self, index: int) -> Image.Image:
        try:
            return _plain(self.rows[index][self.column], self.names[index])
        except (OSError, SyntaxError) as error:
            raise _unreadable(self.names[index], error) from error


def _unreadable(name: str, error: BaseException) -> UserError:
    return UserError(
        f"images.path: {name} cannot be read as a picture ({one_line(error, 120)}); remove or "
        "replace it"
    )


def _plain(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode.startswith(("I", "F")):
        raise UserError(
            f"images.path: {name} has pixels of more than 8 bits; convert it to 8 bits"
        )
    upright = ImageOps.exif_transpose(picture)
    if "A" in upright.getbands() or "transparency" in upright.info:
        see_through = upright.convert("RGBA")
        white = Image.new("RGBA", see_through.size, "white")
        upright = Image.alpha_composite(white, see_through)
    return upright.convert("RGB")


def split_photographs(names: list[str], spec: ImagesSpec) -> Split:
    """Keep some photographs out of training.

    Args:
        names: All of them.
        spec: ``held_out`` says which: a share, drawn with ``seed``, or patterns of names.

    Raises:
        UserError: A pattern without a photograph, or nothing left on one side.
    """
    n = len(names)
    if isinstance(spec.held_out, list):
        chosen: set[int] = set()
        for pattern in spec.held_out:
            found = [i for i, name in enumerate(names) if fnmatch.fnmatchcase(name, pattern)]
            if not found:
                raise UserError(
                    f"images.held_out: no photograph is called {pattern!r}; "
                    f"{did_you_mean(pattern, names[:200])}"
                )
            chosen.update(found)
    else:
        order = np.random.default_rng([spec.seed, 0]).permutation(n)
        chosen = {int(i) for i in order[: max(1, round(spec.held_out * n))]}
    train = [i for i in range(n) if i not in chosen]
    if not train:
        raise UserError(
            f"images.held_out: leaves none of {n} photographs to train on; use more "
            "photographs, or hold out fewer"
        )
    return Split(train, sorted(chosen))


def plan_crops(photos: list[int], n: int, seed: Sequence[int], min_crop: float) -> list[Crop]:
    """``n`` crops, spread evenly over photographs.

    Args:
        photos: Indices of the photographs.
        n: How many crops in all; with fewer crops than photographs, some have none.
        seed: Decides photographs, sizes and places.
        min_crop: Least ``scale``.

    Returns:
        Crops, those of a photograph together.
    """
    rng = np.random.default_rng(list(seed))
    each, more = divmod(n, len(photos))
    lucky = {int(i) for i in rng.permutation(len(photos))[:more]}
    crops = []
    for i, photo in enumerate(photos):
        # A stream of its own, so that more crops begin with the same crops.
        own = np.random.default_rng([*seed, photo])
        for _ in range(each + (i in lucky)):
            scale, x, y = own.random(3)
            scale = min_crop + (1 - min_crop) * scale
            crops.append(Crop(photo, float(scale), float(x), float(y)))
    return crops


class CropLoader:
    """Cuts crops out; keeps the last photograph open, as crops of one come together."""

    def __init__(self, photographs: Photographs) -> None:
        self.photographs = photographs
        self._last: tuple[int, Image.Image] | None = None

    def photograph(self, index: int) -> Image.Image:
        """The photograph in full."""
        if self._last is None or self._last[0] != index:
            self._last = (index, self.photographs.load(index))
        return self._last[1]

    def box(self, crop: Crop) -> tuple[int, int, int, int]:
        """The crop's box in its photograph."""
        return crop.box(*self.photograph(crop.photo).size)

    def load(self, crop: Crop, size: int) -> Image.Image:
        """The crop, ``size`` x ``size`` pixels."""
        cut = self.photograph(crop.photo).crop(self.box(crop))
        return (
            cut
            if cut.size == (size, size)
            else cut.resize((size, size), Image.Resampling.BICUBIC)
        )
