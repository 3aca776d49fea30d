"""What is shown of a member: a few rare latents, chosen by a seed, each at four percentiles."""

from dataclasses import dataclass

from PIL import Image, ImageDraw
from sae_lens import SAE

from sae_baselines.errors import UserError
from sae_baselines.study import plan
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.patches.images import CropLoader, patch_box
from sae_baselines.study.patches.latents import (
    PERCENTILES,
    activations_of,
    at_percentiles,
    choose,
)
from sae_baselines.study.patches.spec import VisionSpec
from sae_baselines.study.plan import MemberKey, PanelKey
from sae_baselines.study.sources.patches import PatchData, firing_of
from sae_baselines.study.spec import TRAINED

# Patches around the marked one in the enlarged view.
_AROUND = 2
_MARK, _EDGE = "#ffffff", "#000000"


@dataclass(frozen=True)
class Shot:
    """One patch on which a latent fires.

    Attributes:
        percentile: Of the latent's positive activations.
        activation: How strongly.
        photograph: Name of the photograph.
        crop: Number of the crop among the evaluation's.
        place: Number of the patch in the crop, row by row.
    """

    percentile: int
    activation: float
    photograph: str
    crop: int
    place: int


@dataclass(frozen=True)
class Pick:
    """One rare latent.

    Attributes:
        member: Name of the member.
        latent: Its index.
        patches: Held-out patches on which it fires.
        photographs: Held-out photographs on which it fires.
        shots: One per percentile, highest first.
    """

    member: str
    latent: int
    patches: int
    photographs: int
    shots: tuple[Shot, ...]


def members_named(
    spec: VisionSpec, panel: PanelKey, names: list[str] | None
) -> list[MemberKey]:
    """Members of a panel; without names, the trained one and the controls.

    Raises:
        UserError: One is unknown.
    """
    if names is None:
        shown = [m for m in spec.member_specs if m.constraint == TRAINED or m.is_control]
        names = [m.name for m in shown]
    return plan.members_named(spec, panel, names)


def picks_of(
    source: PatchData, members: list[MemberKey], n: int, seed: int
) -> list[list[Pick]]:
    """Rare latents of each member, as many of one as of another.

    Args:
        source: The study's pictures and activations.
        members: Whose latents.
        n: How many; fewer if a member has fewer rare ones.
        seed: Chooses among a member's rare latents.

    Returns:
        Per member, its picks in the order of their latents.

    Raises:
        UserError: The study is not finished, or a member has no rare latents.
    """
    folder = StudyFolder(source.root)
    found = {}
    for key in members:
        if folder.measurement(key) is None:
            raise UserError(
                f"{source.root}: {key.name} is not measured yet; finish with 'vision train "
                "--resume'"
            )
        found[key] = firing_of(folder.member(key))
        if len(found[key].rare) == 0:
            raise UserError(
                f"members: {key.member} has no rare latents on {found[key].n_patches} patches; "
                "leave it out with --members, or use more eval_samples"
            )
    n = min(n, *(len(fired.rare) for fired in found.values()))
    patches = source.patches("evaluation", source.facts["norm_limit"])
    names = source.photographs.names
    out = []
    for number, (key, fired) in enumerate(found.items()):
        sae = SAE.load_from_disk(folder.member(key), device=source.device)
        latents = choose(fired.rare, n, [seed, number])
        columns = activations_of(sae, patches.rows, latents)
        picks = []
        for j, latent in enumerate(latents.tolist()):
            rows = at_percentiles(columns[:, j])
            shots = tuple(
                Shot(
                    percentile,
                    float(columns[row, j]),
                    names[int(patches.photo[row])],
                    int(patches.crop[row]),
                    int(patches.place[row]),
                )
                for percentile, row in zip(PERCENTILES, rows, strict=True)
            )
            counts = int(fired.count[latent]), int(fired.photographs[latent])
            picks.append(Pick(key.member, latent, *counts, shots))
        out.append(picks)
    return out


class Pictures:
    """Draws shots: the crop as the model saw it, and the patch with what is around it."""

    def __init__(self, source: PatchData, side: int) -> None:
        """``side``: of what is drawn, pixels."""
        self.source = source
        self.side = side
        self.loader = CropLoader(source.photographs)

    def crop(self, shot: Shot) -> Image.Image:
        """The whole crop, the patch framed."""
        seen, box = self._seen(shot)
        scale = self.side / seen.width
        return _framed(
            seen.resize((self.side, self.side), Image.Resampling.LANCZOS), box, scale, out=1
        )

    def close(self, shot: Shot) -> Image.Image:
        """The patch and its neighbours, enlarged, the patch framed."""
        seen, box = self._seen(shot)
        patch = box[2] - box[0]
        width = min(seen.width, (2 * _AROUND + 1) * patch)
        left, top = (
            min(max(0.0, box[i] - _AROUND * patch), seen.width - width) for i in (0, 1)
        )
        scale = self.side / width
        region = seen.resize(
            (self.side, self.side),
            Image.Resampling.LANCZOS,
            (left, top, left + width, top + width),
        )
        inside = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
        return _framed(region, inside, scale, out=0)

    def _seen(self, shot: Shot) -> tuple[Image.Image, tuple[float, float, float, float]]:
        size, grid = self.source.size, self.source.grid
        seen = self.loader.load(self.source.crops["evaluation"][shot.crop], size)
        return seen, patch_box((0, 0, size, size), grid, shot.place)


def _framed(
    picture: Image.Image, box: tuple[float, float, float, float], scale: float, out: int
) -> Image.Image:
    """Two lines around the patch, light and dark, so that one is seen on any picture."""
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = (round(edge * scale) for edge in box)
    thick = max(1, picture.width // 84)
    for grown, colour in ((out + thick, _MARK), (out + 2 * thick, _EDGE)):
        frame = (left - grown, top - grown, right - 1 + grown, bottom - 1 + grown)
        draw.rectangle(frame, outline=colour, width=thick)
    return picture
