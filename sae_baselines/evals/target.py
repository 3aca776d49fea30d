"""The SAEs to evaluate: of a study, a folder, a release, or in memory."""

import copy
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.constants import SAE_WEIGHTS_FILENAME

from sae_baselines.baselines import SEEDED, parse_name
from sae_baselines.controls import is_control
from sae_baselines.controls.source import add_weights, from_folder, load_sae
from sae_baselines.errors import UserError
from sae_baselines.files import unreadable
from sae_baselines.study.values import is_number

# What the results table calls an SAE whose origin is not recorded in it.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Facts:
    """Which SAE it is: the first columns of the results table.

    Attributes:
        panel: Panel, or "" for an SAE on its own.
        member: Member of the panel.
        constraint: "trained", a constraint or a control; "unknown" where the SAE does not say.
        architecture: Base architecture.
        l0: Target L0 (NaN if unknown).
        seed: Training seed; -1 if unknown.
    """

    panel: str
    member: str
    constraint: str
    architecture: str
    l0: float
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data; an unknown L0 is None, as JSON knows no NaN."""
        return {**asdict(self), "l0": None if math.isnan(self.l0) else self.l0}


@dataclass(frozen=True)
class Target:
    """One SAE to evaluate.

    Attributes:
        name: Unique, file-safe.
        facts: Columns of its rows.
        load: Returns a fresh SAE on the CPU.
        weights: SHA-256 of its weights; a changed SAE is evaluated anew.
    """

    name: str
    facts: Facts
    load: Callable[[], SAE[Any]]
    weights: str


def target_of(name: str, source: SAE[Any] | str | Path, facts: Facts | None = None) -> Target:
    """A target from an SAE in memory, a SAELens folder, or ``release:sae_id``.

    Args:
        name: Name in files and tables; characters that do not suit a file become "_".
        source: What to evaluate.
        facts: Where it belongs; default: what its metadata says.

    Raises:
        UserError: The folder or release cannot be loaded.
    """
    safe = re.sub(r"[^\w.=+-]+", "_", name)
    if isinstance(source, SAE):
        kept = source

        def load() -> SAE[Any]:
            return copy.deepcopy(kept).cpu()

        return Target(safe, facts or facts_of(safe, source), load, _hash_of_state(source))
    text = str(source)
    if Path(text).is_dir():
        folder = Path(text).resolve()

        def load() -> SAE[Any]:
            return from_folder(folder)

        return Target(safe, facts or facts_of(safe, load()), load, hash_of_folder(folder))
    return target_of(name, load_sae(text)[0], facts)


def facts_of(name: str, sae: SAE[Any]) -> Facts:
    """What an SAE's own metadata says about where it comes from."""
    metadata: Any = sae.cfg.metadata
    ours = getattr(metadata, "sae_baselines", None)
    details = ours if isinstance(ours, Mapping) else {}
    architecture = str(getattr(metadata, "training_architecture", None) or "")
    control = str(details.get("control") or "")
    trained = constraint_of(str(details.get("architecture") or architecture))
    l0: Any = details.get("l0_target")
    seed: Any = details.get("init_seed")
    return Facts(
        panel=str(details.get("panel") or ""),
        # As it was called here: two SAEs may be the same member of two panels.
        member=name,
        constraint=control if is_control(control) else trained,
        architecture=str(details.get("base_architecture") or sae.cfg.architecture()),
        l0=float(l0) if is_number(l0) else math.nan,
        seed=int(seed) if is_number(seed) else -1,
    )


def constraint_of(architecture: str) -> str:
    """The constraint in a training architecture's name."""
    parsed = parse_name(architecture)
    if parsed is None:
        return UNKNOWN
    return "trained" if parsed[0] is SEEDED else parsed[0].name


def prepare(sae: SAE[Any], device: str, fold: bool) -> tuple[SAE[Any], str | None]:
    """An SAE as it is handed to SAEBench.

    Args:
        sae: A fresh one.
        device: Torch device.
        fold: Fold the decoder's norms into the other weights, as SAEBench does for releases.

    Returns:
        The SAE in float32, and what was done to it that a reader of its scores must know.

    Raises:
        UserError: It has weights that are not numbers: some suites score it all the same.
    """
    broken = [n for n, w in sae.state_dict().items() if not torch.isfinite(w).all()]
    if broken:
        raise UserError(f"{', '.join(broken)}: not all weights are finite numbers")
    notes = []
    if sae.dtype != torch.float32:
        stored = str(sae.dtype).removeprefix("torch.")
        notes.append(f"its weights are {stored} and were converted to float32")
        sae = sae.to(dtype=torch.float32)
    norms = sae.W_dec.detach().norm(dim=-1)
    if fold and not torch.allclose(norms, torch.ones_like(norms), atol=1e-5):
        try:
            sae.fold_W_dec_norm()
        except NotImplementedError:
            notes.append(
                "SAELens cannot fold the decoder norms of this SAE; they stay as they are"
            )
    return sae.to(device=device, dtype=torch.float32).eval(), "; ".join(notes) or None


def hash_of_folder(folder: Path) -> str:
    """SHA-256 of a folder's weights and config."""
    digest = hashlib.sha256()
    for name in (SAE_WEIGHTS_FILENAME, "cfg.json"):
        try:
            digest.update((folder / name).read_bytes())
        except OSError as error:
            raise unreadable(folder / name, error) from error
    return digest.hexdigest()


def _hash_of_state(sae: SAE[Any]) -> str:
    digest = hashlib.sha256(repr(sorted(sae.cfg.to_dict().items(), key=str)).encode())
    add_weights(digest, sae)
    return digest.hexdigest()
