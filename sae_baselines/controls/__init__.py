"""SAEs without training, made from any SAE: the cheapest nulls."""

from sae_baselines.controls.kinds import (
    CONTROLS,
    PUBLISHED,
    RANDOM_MODEL,
    TRAINED,
    ControlKind,
    Depends,
    Question,
    control_names,
    get_control,
    is_control,
    is_random,
    is_random_model,
    kind_of,
    question_of,
    random_model_names,
    register_control,
)
from sae_baselines.controls.make import Control, build_control, check_control, make_control

__all__ = [
    "CONTROLS",
    "PUBLISHED",
    "RANDOM_MODEL",
    "TRAINED",
    "Control",
    "ControlKind",
    "Depends",
    "Question",
    "build_control",
    "check_control",
    "control_names",
    "get_control",
    "is_control",
    "is_random",
    "is_random_model",
    "kind_of",
    "make_control",
    "question_of",
    "random_model_names",
    "register_control",
]
