"""An evaluated study in Weights & Biases: a run for each SAE, all of a study in one group."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb

from sae_baselines.errors import UserError, one_line
from sae_baselines.results import Results
from sae_baselines.version import __version__

_OF_AN_SAE = ("panel", "member", "constraint", "architecture", "l0", "seed")


def log_to_wandb(study: str | Path, project: str, entity: str | None = None) -> list[str]:
    """Log every SAE of a study as a run of its own.

    Runs of a study are one group, their job type is the constraint; panel, member, constraint,
    architecture, target L0 and seed are their config, scores without a task their summary,
    ``<suite>/<metric>``. A run is the same one when it is logged again, with the newer scores.
    ``WANDB_MODE=offline`` keeps everything on disk, for ``wandb sync``.

    Args:
        study: Evaluated study folder.
        project: Of Weights & Biases.
        entity: Team or user; None for the default of whoever is logged in.

    Returns:
        Identifiers of the runs.

    Raises:
        UserError: No results are there, or Weights & Biases cannot be reached or refuses.
    """
    if not project.strip():
        raise UserError("project: is empty; give the name of a project of Weights & Biases")
    folder = Path(study).resolve()
    results = Results.read(folder)
    return [
        _log(config, summary, folder.name, project, entity)
        for config, summary in _saes(results)
    ]


def _saes(results: Results) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    """What is known of each SAE, and its scores."""
    whole = results.frame.loc[results.frame["task"] == ""]
    for _, rows in whole.groupby(list(_OF_AN_SAE), sort=False, dropna=False):
        config = {name: rows[name].iloc[0] for name in _OF_AN_SAE}
        config |= {"l0": float(config["l0"]), "seed": int(config["seed"])}
        columns = rows["suite"], rows["metric"], rows["value"]
        scores = {
            f"{suite}/{metric}": value for suite, metric, value in zip(*columns, strict=True)
        }
        yield config, {name: float(v) for name, v in scores.items() if v == v}


def _log(
    config: dict[str, Any],
    summary: dict[str, float],
    group: str,
    project: str,
    entity: str | None,
) -> str:
    name = "/".join(filter(None, (config["panel"], config["member"])))
    # One that others can work out: the same SAE of the same study is the same run.
    known = f"{group}\n{name}\n{config['seed']}".encode()
    try:
        run = wandb.init(
            project=project,
            entity=entity,
            group=group,
            job_type=config["constraint"],
            name=name,
            id=hashlib.sha256(known).hexdigest()[:16],
            resume="allow",
            config={**config, "study": group, "sae_baselines": __version__},
            reinit="finish_previous",
            settings=wandb.Settings(console="off", silent=True),
        )
        run.summary.update(summary)
        run.finish()
    except wandb.Error as error:
        raise UserError(
            f"wandb: {name}: {one_line(error, 200)}; log in, or set WANDB_MODE=offline"
        ) from error
    return run.id
