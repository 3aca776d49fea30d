"""The same tiny models, photographs and study as the engine's tests."""

from tests.study.patches.conftest import clip, dinov2, photographs, spec, study

__all__ = ["clip", "dinov2", "photographs", "spec", "study"]
