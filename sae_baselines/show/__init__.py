"""What an SAE, a study or a repository of SAEs is, from its own files."""

from sae_baselines.show.claim import Claim
from sae_baselines.show.sae import AboutSAE, about_sae
from sae_baselines.show.study import is_study, members_of_study
from sae_baselines.show.where import Listing, find

__all__ = [
    "AboutSAE",
    "Claim",
    "Listing",
    "about_sae",
    "find",
    "is_study",
    "members_of_study",
]
