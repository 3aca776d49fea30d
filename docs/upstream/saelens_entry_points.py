"""Whether SAELens finds an architecture that an installed package adds.

Nobody imports the package. A folder stands for it: a module, and the metadata that
`pip install` would write. Exits with 1 where a config or the command line does not know the
architecture.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from sae_lens import LanguageModelSAERunnerConfig
from sae_lens.llm_sae_training_runner import _parse_cfg_args

MODULE = """
from dataclasses import dataclass
from sae_lens import (
    StandardSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    register_sae_training_class,
)

@dataclass
class PluggedConfig(StandardTrainingSAEConfig):
    @classmethod
    def architecture(cls):
        return "plugged"

    def get_inference_config_class(self):
        return StandardSAEConfig

class Plugged(StandardTrainingSAE):
    pass

register_sae_training_class("plugged", Plugged, PluggedConfig)
"""


def known(how: str) -> bool:
    """Whether SAELens makes a config of the architecture, from a table or its command line."""
    try:
        if how == "config":
            sae = {"architecture": "plugged", "d_in": 8, "d_sae": 16}
            logger = {"log_to_wandb": False}
            cfg = LanguageModelSAERunnerConfig.from_dict({"sae": sae, "logger": logger})
        else:
            cfg = _parse_cfg_args(["--architecture", "plugged", "--d_in", "8", "--d_sae", "16"])
    except (KeyError, SystemExit) as error:
        print(f"{how}: {type(error).__name__}: {error}")
        return False
    print(f"{how}: {type(cfg.sae).__name__}")
    return cfg.sae.architecture() == "plugged"


def main() -> bool:
    """Whether both ways know it."""
    with TemporaryDirectory() as folder:
        site = Path(folder)
        (site / "plugged_saes.py").write_text(MODULE)
        info = site / "plugged_saes-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: plugged-saes\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(
            "[sae_lens.architectures]\nplugged = plugged_saes\n"
        )
        sys.path.insert(0, folder)
        return all([known("config"), known("command line")])


if __name__ == "__main__":
    sys.exit(0 if main() else "an installed package's architecture is unknown")
