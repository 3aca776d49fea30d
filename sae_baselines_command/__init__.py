"""What `sae-baselines` starts: help, mistakes and completion without importing torch.

Importing `sae_baselines` registers its architectures with SAELens, which takes seconds. The
commands, with their options, help and known values, are therefore remembered in a file, and
whatever can be answered from it is. Everything else, and the first call after anything
changed, is handed to `sae_baselines.cli`.
"""

import contextlib
import sys
from pathlib import Path

from sae_baselines_command.memory import recall, remember, version
from sae_baselines_command.tree import HandOver, build, describe

_NAME = "sae-baselines"


def main() -> None:
    """The console script."""
    if sys.argv[1:] == ["--version"]:
        print(version())
        return
    # Completion scripts are named after this, however the command was started.
    sys.argv[0] = str(Path(sys.argv[0]).with_name(_NAME))
    commands = recall()
    if commands is not None:
        with contextlib.suppress(HandOver):
            build(commands)(prog_name=_NAME)
    # The one import that takes seconds.
    from sae_baselines.cli import app  # noqa: PLC0415
    from sae_baselines.cli import main as run  # noqa: PLC0415

    if commands is None:
        # What cannot be written down is not remembered, and so only slower.
        with contextlib.suppress(TypeError):
            remember(describe(app))
    run()
