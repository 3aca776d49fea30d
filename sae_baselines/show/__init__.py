"""What an SAE, a study or a repository of SAEs is, from its own files; how far it moved."""

from sae_baselines.show.drift import RunDrift, show_drift
from sae_baselines.show.sae import Promise, SAEDescription, describe_sae
from sae_baselines.show.source import Listing, StudyMembers, show

__all__ = [
    "Listing",
    "Promise",
    "RunDrift",
    "SAEDescription",
    "StudyMembers",
    "describe_sae",
    "show",
    "show_drift",
]
