"""Publishing a study: SAEs through SAELens, results, report and a model card to the Hub."""

from sae_baselines.hub.card import CardOptions
from sae_baselines.hub.plan import PlannedFile, Publication, plan_publication
from sae_baselines.hub.remote import Changes, RemoteRepo, compare, read_remote
from sae_baselines.hub.upload import Done, publish

__all__ = [
    "CardOptions",
    "Changes",
    "Done",
    "PlannedFile",
    "Publication",
    "RemoteRepo",
    "compare",
    "plan_publication",
    "publish",
    "read_remote",
]
