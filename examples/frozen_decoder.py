"""Train a baseline of a language model's SAE with SAELens' own runner and an ordinary config.

    python examples/frozen_decoder.py                  # examples/frozen_decoder.yaml
    python examples/frozen_decoder.py my_config.yaml

Needs the Hugging Face Hub and, for the tokens in that file, a GPU or patience. The same SAE
beside its trained twin, at the same L0 and on the same batches, is what `sae-baselines train`
makes.
"""

import sys
from pathlib import Path

import yaml
from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner

import sae_baselines  # noqa: F401  (registers frozen_decoder with SAELens)


def main(config: Path) -> None:
    """Train and export the SAE that a config describes."""
    fields = yaml.safe_load(config.read_text(encoding="utf-8"))
    cfg = LanguageModelSAERunnerConfig.from_dict(fields)
    LanguageModelSAETrainingRunner(cfg).run()
    print(f"sae-baselines show {cfg.output_path}  # what it is, and whether it stayed frozen")


if __name__ == "__main__":
    default = Path(__file__).with_suffix(".yaml")
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
