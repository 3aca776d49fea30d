"""The evaluation settings of a study, kept beside its results."""

import dataclasses
from pathlib import Path

import yaml

from sae_baselines.evals.spec import EvalSpec, eval_spec_from_dict, eval_spec_to_dict
from sae_baselines.evals.store import EVALS
from sae_baselines.files import write_atomically
from sae_baselines.study.spec import read_yaml

_FILE = "evals.yaml"


def stored_spec(root: str | Path) -> EvalSpec | None:
    """Settings of the last evaluation in a folder, or None.

    Raises:
        UserError: The file is damaged.
    """
    path = Path(root) / EVALS / _FILE
    if not path.exists():
        return None
    return eval_spec_from_dict(read_yaml(path), where=str(path))


def store_spec(root: str | Path, spec: EvalSpec) -> None:
    """Keep settings; suites evaluated before under a call that left them out stay listed."""
    before = stored_spec(root)
    if before is not None:
        spec = dataclasses.replace(spec, suites={**before.suites, **spec.suites})
    # The device is the machine's, not the study's.
    data = eval_spec_to_dict(dataclasses.replace(spec, device="auto"))
    text = yaml.safe_dump(data, sort_keys=False)
    write_atomically(Path(root) / EVALS / _FILE, text)
