"""Training an SAE and its baselines under identical conditions."""

from sae_baselines.panel.spec import (
    DatasetSpec,
    MemberSpec,
    ModelSpec,
    PanelSpec,
    load_spec,
    spec_from_dict,
    spec_to_yaml,
)
from sae_baselines.panel.train import StudyResult, train_study

__all__ = [
    "DatasetSpec",
    "MemberSpec",
    "ModelSpec",
    "PanelSpec",
    "StudyResult",
    "load_spec",
    "spec_from_dict",
    "spec_to_yaml",
    "train_study",
]
