"""The tiny models and photographs, and one finished study, made once."""

from pathlib import Path

import pytest

from sae_baselines.evals.results import write_vision_results
from sae_baselines.study.engine import StudyResult, train_study
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.patches.spec import VisionSpec
from sae_baselines.study.plan import all_members
from sae_baselines.study.spec import spec_from_dict
from tests.study.patches.tiny import save_clip, save_dinov2, save_photographs, tiny_vision


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="session")
def spec(dinov2: Path, photographs: Path) -> VisionSpec:
    return spec_from_dict(tiny_vision(dinov2, photographs), "tiny", VisionSpec)


@pytest.fixture(scope="session")
def study(spec: VisionSpec, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    result = train_study(spec, tmp_path_factory.mktemp("study"))
    write_vision_results(StudyFolder(result.folder), all_members(spec), result.measurements)
    return result
