"""Somebody else's SAE, put to the test: its random twins trained around it."""

from sae_baselines.published.check import Prepared, prepare_check
from sae_baselines.published.read import Published, read_published
from sae_baselines.published.recipe import CheckOptions, whole_number
from sae_baselines.published.say import described, suites_for

__all__ = [
    "CheckOptions",
    "Prepared",
    "Published",
    "described",
    "prepare_check",
    "read_published",
    "suites_for",
    "whole_number",
]
