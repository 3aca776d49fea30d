"""Publishing a study: SAEs through SAELens, results, report and a model card to the Hub.

Uploads are tested with huggingface_hub 0.36 against a Hub that speaks plain LFS. The real Hub
takes large files through Xet where hf_xet is installed, which 0.36 brings on most machines and
1.x always relies on; the tests' Hub does not speak it, so of Xet only the errors are tested.
With 0.36, ``HF_HUB_DISABLE_XET=1`` uploads by plain LFS.
"""

from sae_baselines.hub.card import CardOptions
from sae_baselines.hub.layout import PlannedFile, Publication
from sae_baselines.hub.plan import plan_publication
from sae_baselines.hub.upload import (
    Changes,
    Done,
    RemoteRepo,
    compare,
    publish,
    read_remote,
)

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
