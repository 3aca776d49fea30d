"""Circuits through transcoders beside circuits through their random twins.

    pip install --no-deps circuit-tracer==0.5.0
    python examples/attribution_agreement.py out.csv prompts.txt sets/trained sets/affine ...

A set is a folder that circuit_tracer_files.py wrote, all of one model; the first is what the
others are held against. PROMPTS has one prompt a line. A row of OUT is a prompt and a set:

    replacement   share of influence from tokens to logits that goes past error nodes
    completeness  share of what comes into nodes that is no error
    latents       active ones, over layers and positions
    places        rank correlation with the first set of how much influence latents have at each
                  layer and position
    places_other  the same with the first set's graphs of the other prompts, end to end: what
                  two graphs of one model have in common in any case
    edges         rank correlation with the first set of edges between latents that are active
                  in both, of one index, layer and position; edge_count says of how many

Scores are circuit-tracer's. docs/transcoders.md says what they are compared with.
"""

import argparse
import csv
import math
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import yaml
from circuit_tracer import attribute  # pyright: ignore[reportMissingImports]
from circuit_tracer.graph import (  # pyright: ignore[reportMissingImports]
    compute_graph_scores,
    compute_node_influence,
)
from circuit_tracer.replacement_model import (  # pyright: ignore[reportMissingImports]
    replacement_model_transformerlens,
)
from circuit_tracer.utils.hf_utils import (  # pyright: ignore[reportMissingImports]
    load_transcoders,
)
from scipy.stats import spearmanr

from sae_baselines.errors import UserError
from sae_baselines.stats.intervals import t_interval
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.spec import ModelSpec

_SCORES = ("replacement", "completeness", "places", "places_other", "edges")


def replacement_model(folder: Path) -> Any:
    """The language model with the set's transcoders in its layers.

    Loaded as a study loads it, so that it may be a folder or one that TransformerLens does not
    list by name.
    """
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    hook = f"blocks.0.{config['feature_input_hook']}"
    model: Any = load_language_model(ModelSpec(name=config["model_name"]), hook, "cpu")
    attention = [block.attn for block in model.blocks]
    waves = [one.rotary_sin for one in attention if hasattr(one, "rotary_sin")]
    if any(not torch.equal(one, waves[0]) for one in waves):
        raise UserError(
            f"{folder}: the layers of {config['model_name']} differ in their rotary positions, "
            "as those of Gemma 3 do, and circuit-tracer 0.5.0 gives all of them one; use "
            "another model"
        )
    # `from_pretrained` would ask the Hub for the weights, by name.
    model.__class__ = replacement_model_transformerlens.TransformerLensReplacementModel
    model._configure_replacement_model(load_transcoders(config, torch.device("cpu")))
    return model


def keys_of(graph: Any) -> list[tuple[int, int, int]]:
    """Layer, position and index of the graph's latents, in the order of its nodes."""
    return [tuple(row) for row in graph.active_features[graph.selected_features].tolist()]


def influence_by_place(graph: Any) -> torch.Tensor:
    """``[layers, positions - 1]``: influence on the logits of the latents at each.

    Without the first position, where circuit-tracer leaves all latents out.
    """
    weights = torch.zeros(len(graph.adjacency_matrix))
    weights[-len(graph.logit_targets) :] = graph.logit_probabilities
    influence = compute_node_influence(graph.adjacency_matrix, weights)
    places = torch.zeros(graph.cfg.n_layers, graph.n_pos)
    for (layer, position, _), value in zip(keys_of(graph), influence.tolist(), strict=False):
        places[layer, position] += value
    return places[:, 1:]


def shared_edges(graph: Any, other: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of edges between latents that both graphs have; those of 0 in both left out."""
    index = {key: i for i, key in enumerate(keys_of(graph))}
    both = [(index[key], i) for i, key in enumerate(keys_of(other)) if key in index]
    here, there = torch.tensor(both, dtype=torch.long).reshape(-1, 2).T
    ours = graph.adjacency_matrix[here][:, here]
    theirs = other.adjacency_matrix[there][:, there]
    edges = (ours != 0) | (theirs != 0)
    return ours[edges], theirs[edges]


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Spearman's; NaN of fewer than 10, or where one does not vary."""
    if a.numel() < 10 or a.unique().numel() < 2 or b.unique().numel() < 2:
        return math.nan
    found: Any = spearmanr(a.flatten().numpy(), b.flatten().numpy())
    return float(found.statistic)


def with_others(places: torch.Tensor, others: list[torch.Tensor]) -> float:
    """Mean rank correlation of places with those of other prompts, their ends aligned."""
    found = []
    for other in others:
        n = min(places.shape[1], other.shape[1])
        found.append(rank_correlation(places[:, -n:], other[:, -n:]))
    found = [value for value in found if not math.isnan(value)]
    return fmean(found) if found else math.nan


def compare(folders: list[Path], prompts: list[str]) -> list[dict[str, Any]]:
    """A row of OUT for each set and prompt."""
    rows, first = [], []
    for folder in folders:
        model = replacement_model(folder)
        graphs = []
        for prompt in prompts:
            graphs.append(attribute(prompt, model))
            graphs[-1].to("cpu")
            print(f"{folder.name}: {prompt!r}", flush=True)
        first = first or [(graph, influence_by_place(graph)) for graph in graphs]
        for i, (prompt, graph) in enumerate(zip(prompts, graphs, strict=True)):
            held, places = first[i]
            others = [of_other for k, (_, of_other) in enumerate(first) if k != i]
            own = influence_by_place(graph)
            replacement, completeness = compute_graph_scores(graph)
            ours, theirs = shared_edges(held, graph)
            rows.append(
                {
                    "prompt": prompt,
                    "set": folder.name,
                    "replacement": replacement,
                    "completeness": completeness,
                    "latents": len(graph.selected_features),
                    "places": rank_correlation(places, own),
                    "places_other": with_others(own, others),
                    "edges": rank_correlation(ours, theirs),
                    "edge_count": ours.numel(),
                }
            )
    return rows


def interval(values: list[float]) -> str:
    """Mean over prompts and half its 95 % interval; how many there are."""
    values = [value for value in values if not math.isnan(value)]
    n = len(values)
    if n < 2:
        return "-"
    found = t_interval(np.array(values))
    return f"{fmean(values):.3f} +- {(found.high - found.low) / 2:.3f} (n = {n})"


def summary(rows: list[dict[str, Any]]) -> str:
    """Of each set, its scores and by how much the first set's are above them, paired."""
    names = list(dict.fromkeys(row["set"] for row in rows))
    of = {name: [row for row in rows if row["set"] == name] for name in names}
    lines = []
    for name in names:
        lines.append(name)
        lines += [
            f"  {score:<13} {interval([r[score] for r in of[name]])}" for score in _SCORES
        ]
        if name != names[0]:
            pairs = list(zip(of[names[0]], of[name], strict=True))
            for score in _SCORES[:2]:
                apart = interval([a[score] - b[score] for a, b in pairs])
                lines.append(f"  {names[0]} - {name}, {score}: {apart}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("sets", type=Path, nargs="+")
    args = parser.parse_args()
    prompts = [
        line for line in args.prompts.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    if not prompts:
        parser.error(f"{args.prompts}: has no prompt; write one a line")
    names = [folder.name for folder in args.sets]
    if len(set(names)) < len(names):
        parser.error(f"sets: {names} are not different names; rename their folders")
    for folder in args.sets:
        if not (folder / "config.yaml").is_file():
            parser.error(f"{folder}: has no config.yaml; see circuit_tracer_files.py")
    try:
        rows = compare(args.sets, prompts)
    except UserError as error:
        sys.exit(str(error))
    with args.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(summary(rows))


if __name__ == "__main__":
    main()
