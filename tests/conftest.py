"""Settings of every test."""

import signal
import sys
from pathlib import Path

import torch
from hypothesis import settings

# A shell ignores interrupts for what it runs in the background; tests send them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# ``from tests.helpers import ...`` works however pytest was started.
sys.path.insert(0, str(Path(__file__).parents[1]))

# Everything is tiny: threads would only compete with each other and with other workers.
torch.set_num_threads(1)

settings.register_profile("sae_baselines", deadline=None)
settings.load_profile("sae_baselines")
