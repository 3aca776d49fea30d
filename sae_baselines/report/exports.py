"""Latents of a member in the formats that other people's viewers read.

- **Neuronpedia**: the lines that its importer puts into its tables, as its own exports are:
  ``features/batch-0.jsonl.gz`` and ``activations/batch-0.jsonl.gz``, and beside them ``model``,
  ``release``, ``sourceset`` and ``source`` (its ``db_models`` and
  ``convert-saedashboard-to-neuronpedia-export.py``). All lines of a file have the same fields:
  the importer takes the columns from the first.
- **SAEDashboard**: the JSON that ``SaeVisData.load_json`` reads (0.8).

What is not measured here is empty, not zero: correlated neurons, losses.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_baselines.files import write_atomically
from sae_baselines.results import SAEKey
from sae_baselines.study.contexts import NEAR, TOP, Context, Contexts, LatentContexts
from sae_baselines.study.spec import PanelSpec

# Who made it, as Neuronpedia's own scripts say where nobody does.
_CREATOR = "clkht01d40000jv08hvalcvly"


@dataclass(frozen=True)
class Member:
    """A member to write.

    Attributes:
        key: Panel and member.
        contexts: What is kept of it.
        created: When its study was begun, as ISO text.
    """

    key: SAEKey
    contexts: Contexts
    created: str

    @property
    def name(self) -> str:
        """As part of an address: letters, digits and dashes."""
        return re.sub(r"[^a-z0-9]+", "-", "-".join(self.key).lower()).strip("-")


def write_neuronpedia(out: Path, spec: PanelSpec, members: Iterable[Member]) -> list[Path]:
    """Write each member's folder, ``<model>/<layer>-<set>``.

    Args:
        out: Folder for them.
        spec: The study.
        members: Whose latents; those whose contexts are kept.

    Returns:
        The folders.
    """
    model = re.sub(r"[^\w.-]+", "-", spec.model.recorded_name.rsplit("/", 1)[-1]).lower()
    number = re.search(r"\d+", spec.hook_name)
    layer = number.group() if number else "0"
    folders = []
    for member in members:
        source = f"{layer}-{member.name}"
        folder = out / model / source
        common = {"modelId": model, "creatorId": _CREATOR, "createdAt": member.created}
        prompts = member.contexts.n_tokens // spec.training_context_size
        files = {
            "release": {
                "name": spec.name,
                "description": spec.name,
                "descriptionShort": spec.name,
                "creatorName": "sae-baselines",
                "creatorId": _CREATOR,
                "createdAt": member.created,
            },
            "model": {
                "id": model,
                "instruct": "instruct" in model or model.endswith("-it"),
                "displayName": model,
                "displayNameShort": model,
                "creatorId": _CREATOR,
                "createdAt": member.created,
                "updatedAt": member.created,
            },
            "sourceset": {
                **common,
                "name": member.name,
                "description": f"{spec.hook_name}: {' '.join(member.key)}",
                "creatorName": "sae-baselines",
                "releaseName": spec.name,
            },
            "source": {
                **common,
                "id": source,
                "setName": member.name,
                "dataset": Path(spec.dataset.path).name,
                "num_prompts": prompts,
                "num_tokens_in_prompt": spec.context_size,
            },
        }
        for name, row in files.items():
            write_atomically(folder / f"{name}.jsonl", json.dumps(row) + "\n")
        latents = member.contexts.latents.items()
        at = {**common, "layer": source}
        features = [_feature(i, latent, member, at, spec) for i, latent in latents]
        activations = [
            _activation(i, latent, c, at)
            for i, latent in latents
            for c in latent.contexts
            if c.kind != NEAR
        ]
        for name, rows in (("features", features), ("activations", activations)):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            packed = gzip.compress(text.encode(), mtime=0)
            write_atomically(folder / name / "batch-0.jsonl.gz", packed)
        folders.append(folder)
    return folders


def _feature(
    index: int, latent: LatentContexts, member: Member, at: Mapping[str, Any], spec: PanelSpec
) -> dict[str, Any]:
    return {
        **at,
        "index": str(index),
        "maxActApprox": latent.largest,
        "hookName": spec.hook_name,
        "frac_nonzero": latent.firings / member.contexts.n_tokens,
        "freq_hist_data_bar_heights": latent.bars,
        "freq_hist_data_bar_values": _middles(0.0, latent.largest, len(latent.bars)),
        "logits_hist_data_bar_heights": latent.logits,
        "logits_hist_data_bar_values": _middles(*_range(latent), len(latent.logits)),
        "pos_str": [m.text for m in latent.promoted],
        "pos_values": [m.logit for m in latent.promoted],
        "neg_str": [m.text for m in latent.suppressed],
        "neg_values": [m.logit for m in latent.suppressed],
    }


def _activation(
    index: int, latent: LatentContexts, context: Context, at: Mapping[str, Any]
) -> dict[str, Any]:
    values = _values(context)
    low, high = _bin(latent, context)
    largest = max(values)
    what = f"{at['layer']} {index} {context.kind} {context.place}"
    return {
        **at,
        "id": "c" + hashlib.sha256(what.encode()).hexdigest()[:24],
        "index": str(index),
        "tokens": context.tokens,
        "values": values,
        "maxValue": largest,
        "maxValueTokenIndex": values.index(largest),
        "minValue": min(values),
        "binMin": low,
        "binMax": high,
        "binContains": _share(latent, context),
        "qualifyingTokenIndex": context.peak,
    }


def write_saedashboard(out: Path, members: Iterable[Member]) -> list[Path]:
    """Write each member's ``<panel>-<member>.json``.

    Args:
        out: Folder for them.
        members: Whose latents.

    Returns:
        The files.
    """
    files = []
    for member in members:
        latents = member.contexts.latents
        n = member.contexts.n_tokens
        data = {
            "feature_data_dict": {
                str(i): _dashboard(latent, n) for i, latent in latents.items()
            },
            "feature_stats": {
                "max": [latent.largest for latent in latents.values()],
                "frac_nonzero": [latent.firings / n for latent in latents.values()],
            },
        }
        files.append(out / f"{member.name}.json")
        write_atomically(files[-1], json.dumps(data))
    return files


def _dashboard(latent: LatentContexts, n_tokens: int) -> dict[str, Any]:
    logits = _middles(*_range(latent), len(latent.logits))
    acts = _middles(0.0, latent.largest, len(latent.bars))
    kinds = dict.fromkeys(c.kind for c in latent.contexts if c.kind != NEAR)
    return {
        "acts_histogram_data": {
            "bar_heights": latent.bars,
            "bar_values": acts,
            "tick_vals": [0.0, latent.largest / 2, latent.largest],
            "title": f"ACTIVATIONS<br>DENSITY = {latent.firings / n_tokens:.3%}",
        },
        "logits_histogram_data": {
            "bar_heights": latent.logits,
            "bar_values": logits,
            "tick_vals": [0.0],
        },
        "logits_table_data": {
            "top_token_ids": [m.id for m in latent.promoted],
            "top_logits": [m.logit for m in latent.promoted],
            "bottom_token_ids": [m.id for m in latent.suppressed],
            "bottom_logits": [m.logit for m in latent.suppressed],
        },
        "sequence_data": {
            "seq_group_data": [_sequences(latent, kind) for kind in kinds],
        },
    }


def _sequences(latent: LatentContexts, kind: str) -> dict[str, Any]:
    contexts = [c for c in latent.contexts if c.kind == kind]
    low, high = _bin(latent, contexts[0])
    title = (
        f"TOP ACTIVATIONS<br>MAX = {latent.largest:.3f}"
        if kind == TOP
        else f"INTERVAL {low:.3f} - {high:.3f}<br>CONTAINS {_share(latent, contexts[0]):.3%}"
    )
    return {
        "title": title,
        "seq_data": [
            {
                "original_index": c.place,
                "qualifying_token_index": c.peak,
                "token_ids": c.ids,
                "feat_acts": _values(c),
                # It shows the logits of each token where it has them, and wants a number.
                "token_logits": [0.0] * len(c.ids),
            }
            for c in contexts
        ],
    }


def _values(context: Context) -> list[float]:
    acts = dict(zip(context.on, context.acts, strict=True))
    return [acts.get(i, 0.0) for i in range(len(context.ids))]


def _bin(latent: LatentContexts, context: Context) -> tuple[float, float]:
    """The bar that an activation is in; of the largest, as Neuronpedia marks them."""
    if context.kind == TOP:
        return -1.0, latent.largest
    width = latent.largest / len(latent.bars)
    i = min(len(latent.bars) - 1, int(abs(context.value) / width))
    return i * width, (i + 1) * width


def _share(latent: LatentContexts, context: Context) -> float:
    """Of its activations in that bar."""
    if context.kind == TOP:
        return -1.0
    low, _ = _bin(latent, context)
    i = round(low / latent.largest * len(latent.bars))
    return latent.bars[i] / latent.firings


def _middles(low: float, high: float, n: int) -> list[float]:
    return [low + (high - low) * (i + 0.5) / n for i in range(n)]


def _range(latent: LatentContexts) -> tuple[float, float]:
    low, high = latent.logit_range or (0.0, 0.0)
    return low, high
