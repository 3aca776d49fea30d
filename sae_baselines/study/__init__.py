"""Training an SAE and its baselines under identical conditions."""

from typing import TYPE_CHECKING

from sae_baselines.lazy import lazy_names

if TYPE_CHECKING:
    from sae_baselines.study.engine import StudyResult, train_study
    from sae_baselines.study.spec import (
        DatasetSpec,
        MemberSpec,
        ModelSpec,
        PanelSpec,
        load_spec,
        spec_from_dict,
        spec_to_yaml,
    )

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

_TRAIN = ("StudyResult", "train_study")
__getattr__ = lazy_names(
    __name__,
    {n: f"{__name__}.{'engine' if n in _TRAIN else 'spec'}" for n in __all__},
)
