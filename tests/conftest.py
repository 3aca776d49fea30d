"""Settings of every test."""

import sys
from pathlib import Path

import torch
from hypothesis import settings

# ``from tests.helpers import ...`` works however pytest was started.
sys.path.insert(0, str(Path(__file__).parents[1]))

# Everything is tiny: threads would only compete with each other and with other workers.
torch.set_num_threads(1)

settings.register_profile("sae_baselines", deadline=None)
settings.load_profile("sae_baselines")
