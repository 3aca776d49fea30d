"""What an SAE, a study or a repository of SAEs is, from its own files."""

from sae_baselines.about.claim import Claim
from sae_baselines.about.sae import AboutSAE, about_sae
from sae_baselines.about.study import is_study, members_of_study
from sae_baselines.about.where import Listing, find

__all__ = [
    "AboutSAE",
    "Claim",
    "Listing",
    "about_sae",
    "find",
    "is_study",
    "members_of_study",
]
