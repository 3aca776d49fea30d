"""Somebody else's SAE, put to the test: its random twins trained around it."""

from typing import TYPE_CHECKING

from sae_baselines.lazy import lazy_names

if TYPE_CHECKING:
    from sae_baselines.study.reference.check import Prepared, prepare_check
    from sae_baselines.study.reference.read import Published, read_published
    from sae_baselines.study.reference.recipe import CheckOptions, described, whole_number

__all__ = [
    "CheckOptions",
    "Prepared",
    "Published",
    "described",
    "prepare_check",
    "read_published",
    "whole_number",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CheckOptions": f"{__name__}.recipe",
        "Prepared": f"{__name__}.check",
        "Published": f"{__name__}.read",
        "described": f"{__name__}.recipe",
        "prepare_check": f"{__name__}.check",
        "read_published": f"{__name__}.read",
        "whole_number": f"{__name__}.recipe",
    },
)
