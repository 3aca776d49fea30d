"""Panels that differ in one option, on the data of search.py, with norms of gradients."""

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from search import HERE, Data, data_of, measured, trained

sys.path.insert(0, str(Path(__file__).parents[1]))
from searches import append

from sae_baselines.compat.training import clipping_at
from sae_baselines.study.spec import PanelSpec

_TEST_ROWS = 24_192

Row = dict[str, Any]


def run(
    data: Data,
    architecture: str,
    members: Sequence[Any],
    seed: int,
    *,
    fields: Mapping[str, Any] | None = None,
    changed: Mapping[str, Any] | None = None,
    around: AbstractContextManager[Any] | None = None,
) -> list[Row]:
    """One panel; a row per member.

    Args:
        data: The activations.
        architecture: Base of the panel.
        members: As in a study's spec.
        seed: Of initial weights.
        fields: Further fields of the study's spec.
        changed: Fields of members' SAELens configs that a study does not offer; of those that
            have them.
        around: What the training happens in.
    """
    norms: list[float] = []

    def others(config: Any) -> dict[str, Any]:
        return {k: v for k, v in (changed or {}).items() if hasattr(config, k)}

    @contextmanager
    def noted(spec: PanelSpec, _saes: dict[str, Any]) -> Iterator[None]:
        with clipping_at(spec.clip_grad_norm), _noted(norms), around or nullcontext():
            yield

    with tempfile.TemporaryDirectory() as scratch:
        trainers = trained(
            data,
            architecture,
            members,
            seed,
            Path(scratch),
            fields=fields or {},
            change=others,
            around=noted,
        )
        rows = []
        for i, (name, trainer) in enumerate(trainers.items()):
            found = measured(trainer.sae, data, Path(scratch) / name)
            of_member = torch.tensor(norms[i :: len(trainers)])
            rows.append(
                {
                    "member": name,
                    "steps": data.steps,
                    "ev_dev": round(found["ev_dev"], 4),
                    "ev_test": round(found["ev_test"], 4),
                    "l0_test": round(found["l0_test"], 2),
                    "gradient_norm": round(float(of_member.median()), 3),
                    "above_1": round(float((of_member > 1).float().mean()), 3),
                }
            )
    return rows


@contextmanager
def _noted(norms: list[float]) -> Iterator[None]:
    """Note the norms of gradients before they are clipped, one SAE after the other."""
    original = torch.nn.utils.clip_grad_norm_

    def clip(*args: Any, **options: Any) -> torch.Tensor:
        norm = original(*args, **options)
        norms.append(float(norm))
        return norm

    torch.nn.utils.clip_grad_norm_ = clip
    try:
        yield
    finally:
        torch.nn.utils.clip_grad_norm_ = original


def measure_all(
    doc: str | None, out: str, option: str, values: Sequence[str], measure: Callable[..., Any]
) -> None:
    """Ask for data, seeds and values of the option; measure what the table does not have yet.

    ``measure(data, architecture, value, seed)`` answers with a row per member.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("data", nargs="+", help="as in search.py")
    parser.add_argument("--architectures", nargs="+", default=["batchtopk", "topk"])
    parser.add_argument("--values", nargs="+", default=list(values))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--activations", type=Path, default=Path("activations"))
    parser.add_argument("--out", type=Path, default=HERE / out)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keys, done = ("data", "architecture", option, "seed"), set()
    if args.out.exists():
        with args.out.open(newline="") as file:
            done = {tuple(row[k] for k in keys) for row in csv.DictReader(file)}
    for name in args.data:
        whole = data_of(name, args.activations)
        data = replace(whole, test=whole.test[:_TEST_ROWS])
        for seed in args.seeds:
            for architecture in args.architectures:
                for value in args.values:
                    case = dict(zip(keys, (name, architecture, value, seed), strict=True))
                    if tuple(map(str, case.values())) in done:
                        continue
                    rows = [{**case, **row} for row in measure(data, architecture, value, seed)]
                    append(args.out, rows)
