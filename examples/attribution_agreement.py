"""Circuits through transcoders beside circuits through their random twins.

    pip install --no-deps circuit-tracer==0.5.0
    python examples/attribution_agreement.py out.csv prompts.txt sets/trained sets/affine ...

A set is a folder that circuit_tracer_files.py wrote, all of one model; the first is what the
others are held against. PROMPTS has one prompt a line. A row of OUT is a prompt and a set:

    replacement   share of influence from tokens to logits that goes past error nodes
    completeness  share of what comes into nodes that is no error
    latents       in the graph, over layers and positions
    places        rank correlation with the first set of how much influence latents have at each
                  layer and position
    edges         the same of edges between latents that are active in both sets, which are of
                  one index, layer and position; edge_count says of how many

Scores are circuit-tracer's. docs/transcoders.md says what they are compared with.
"""

# pyright: reportMissingImports=false

import argparse
import csv
import math
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import yaml
from circuit_tracer import attribute
from circuit_tracer.graph import Graph, compute_graph_scores, compute_node_influence
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.utils.hf_utils import load_transcoders
from scipy.stats import spearmanr
from scipy.stats import t as student

from sae_baselines.errors import UserError
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.spec import ModelSpec

_SCORES = ("replacement", "completeness", "places", "edges")


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
        raise SystemExit(
            f"{folder}: the layers of {config['model_name']} differ in their rotary positions, "
            "as those of Gemma 3 do, and circuit-tracer 0.5.0 gives all of them one; use "
            "another model"
        )
    # Its own constructors would ask the Hub for the weights, by name.
    model.__class__ = TransformerLensReplacementModel
    model._configure_replacement_model(load_transcoders(config, torch.device("cpu")))
    return model


def keys_of(graph: Graph) -> list[tuple[int, int, int]]:
    """Layer, position and index of the graph's latents, in the order of its nodes."""
    return [tuple(row) for row in graph.active_features[graph.selected_features].tolist()]


def influence_by_place(graph: Graph) -> torch.Tensor:
    """``[layers, positions]``: influence on the logits of the latents at each."""
    weights = torch.zeros(len(graph.adjacency_matrix))
    weights[-len(graph.logit_targets) :] = graph.logit_probabilities
    influence = compute_node_influence(graph.adjacency_matrix, weights)
    places = torch.zeros(graph.cfg.n_layers, graph.n_pos)
    for (layer, position, _), value in zip(keys_of(graph), influence.tolist(), strict=False):
        places[layer, position] += value
    return places


def shared_edges(graph: Graph, other: Graph) -> tuple[torch.Tensor, torch.Tensor]:
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


def compare(
    folders: list[Path], prompts: list[str], latents: int | None
) -> list[dict[str, Any]]:
    """A row of OUT for each set and prompt."""
    rows, first = [], {}
    for folder in folders:
        model = replacement_model(folder)
        for prompt in prompts:
            graph = attribute(prompt, model, max_feature_nodes=latents)
            graph.to("cpu")
            replacement, completeness = compute_graph_scores(graph)
            held = first.setdefault(prompt, graph)
            ours, theirs = shared_edges(held, graph)
            rows.append(
                {
                    "prompt": prompt,
                    "set": folder.name,
                    "replacement": replacement,
                    "completeness": completeness,
                    "latents": len(graph.selected_features),
                    "places": rank_correlation(*map(influence_by_place, (held, graph))),
                    "edges": rank_correlation(ours, theirs),
                    "edge_count": ours.numel(),
                }
            )
            print(
                f"{folder.name}: {prompt!r}: {replacement:.3f} {completeness:.3f}", flush=True
            )
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """Means over prompts with their 95 % intervals, a line a set."""
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        cells = [name]
        for score in _SCORES:
            values = [r[score] for r in rows if r["set"] == name and not math.isnan(r[score])]
            if len(values) < 2:
                cells.append(f"{score} -")
                continue
            half = student.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
            cells.append(f"{score} {fmean(values):.3f} +- {half:.3f}")
        lines.append("  ".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument(
        "--latents",
        type=int,
        help="at most so many in a graph, those of most influence; all of them cost a backward "
        "pass of the model for each 512",
    )
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
    rows = compare(args.sets, prompts, args.latents)
    with args.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(summary(rows))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
