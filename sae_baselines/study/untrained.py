"""A panel's controls: made after training, from the panel's own trained member."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import SPARSITY_FILENAME
from safetensors.torch import save_file

from sae_baselines.controls import Control, build_control
from sae_baselines.controls.latents import firing_rates
from sae_baselines.controls.source import source_of
from sae_baselines.errors import UserError
from sae_baselines.files import parse_json
from sae_baselines.provenance import environment
from sae_baselines.study.folder import PROVENANCE_FILE, StudyFolder, write_provenance
from sae_baselines.study.plan import MemberKey, PanelKey, controls_of, members_of
from sae_baselines.study.spec import TRAINED, MemberSpec, StudySpec, spec_hash


def make_controls(
    spec: StudySpec,
    folder: StudyFolder,
    calibration: torch.Tensor,
    facts: Mapping[str, Any],
    panels: Sequence[PanelKey],
) -> list[MemberKey]:
    """Make the controls that are missing, or whose trained member is another one by now.

    A random control has the panel's seed, so that ``random`` is where the panel's members
    started from, and the trained member's L0 on the calibration activations. Where the panels
    are built around a published SAE, controls are made of that one.

    Args:
        spec: The study; every trained member must be exported.
        folder: Where members are.
        calibration: ``[n, d_in]`` held-out activations, raw.
        facts: For metadata: where the activations are from.
        panels: Which panels.

    Returns:
        What was made.

    Raises:
        UserError: A control cannot be made of this panel's trained SAE.
    """
    missing = missing_controls(spec, folder, panels)
    for key, (member, trained) in missing.items():
        _make(spec, folder, key, member, trained, calibration, facts)
    return list(missing)


def missing_controls(
    spec: StudySpec, folder: StudyFolder, panels: Sequence[PanelKey]
) -> dict[MemberKey, tuple[MemberSpec, Path]]:
    """Controls that are not there, or not of the trained member that is; and the folder of it.

    Arguments as of `make_controls`.
    """
    missing: dict[MemberKey, tuple[MemberSpec, Path]] = {}
    for panel in panels:
        controls = controls_of(spec, panel)
        if not controls:
            continue
        published = spec.reference is not None
        trained = folder.published if published else folder.member(_trained(spec, panel))
        weights = source_of(trained).described["weights_sha256"]
        for key, member in controls.items():
            if folder.is_trained(key) and _source_of_control(folder.member(key)) == weights:
                continue
            missing[key] = (member, trained)
    return missing


def _make(
    spec: StudySpec,
    folder: StudyFolder,
    key: MemberKey,
    member: MemberSpec,
    trained: Path,
    calibration: torch.Tensor,
    facts: Mapping[str, Any],
) -> None:
    try:
        control = build_control(
            trained, member.constraint, seed=key.panel.seed, activations=calibration
        )
    except UserError as error:
        raise UserError(f"members: {key.name}: {error}") from error
    known = {
        "panel": key.panel.name,
        "member": key.member,
        "architecture": control.sae.cfg.architecture(),
        "base_architecture": key.panel.architecture,
        "l0_target": key.panel.l0,
        "init_seed": key.panel.seed,
        "spec_hash": spec_hash(spec),
        "training_steps": 0,
        **facts,
        **control.facts,
    }
    control.sae.cfg.metadata.sae_baselines = known
    with folder.new_member(key) as scratch:
        control.save(scratch)
        _save_sparsity(control, calibration, scratch)
        provenance = {**known, "sparsity_from": "calibration activations", **environment()}
        write_provenance(scratch, provenance)


def _save_sparsity(control: Control, calibration: torch.Tensor, folder: Path) -> None:
    """The file in which SAELens keeps log10 firing rates; there is no training to count in."""
    rates = firing_rates(control.sae, calibration)
    save_file({"sparsity": torch.log10(rates + 1e-10)}, folder / SPARSITY_FILENAME)


def _trained(spec: StudySpec, panel: PanelKey) -> MemberKey:
    return next(k for k, m in members_of(spec, panel).items() if m.constraint == TRAINED)


def _source_of_control(folder: Path) -> str | None:
    """Hash of the weights that a finished control was made from."""
    try:
        provenance: dict[str, Any] = parse_json((folder / PROVENANCE_FILE).read_text())
        return provenance["source"]["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
