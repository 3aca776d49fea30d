"""SAEs that belong to no study, read on the same held-out text: what single latents do."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sae_lens import SAE

from sae_baselines.errors import UserError
from sae_baselines.study.contexts import Contexts, Words, contexts_of, refuse_others
from sae_baselines.study.held_out import HeldOut
from sae_baselines.study.latents import Latents, latents_of
from sae_baselines.study.plan import MemberKey, PanelKey
from sae_baselines.study.reference.check import measured_at, read_text
from sae_baselines.study.reference.read import read_reference
from sae_baselines.study.reference.recipe import CheckOptions, recipe_of
from sae_baselines.study.spec import PanelSpec
from sae_baselines.study.stability import Nearest, nearest_among, unit_rows


@dataclass(frozen=True)
class Loose:
    """SAEs of one model and hook, and the held-out text they are read on.

    Attributes:
        spec: Model, hook and text; nothing of it is trained.
        saes: On the CPU, float32.
        latents: What each latent does.
    """

    spec: PanelSpec
    saes: Mapping[MemberKey, SAE[Any]]
    latents: Mapping[MemberKey, Latents]
    _weights: Mapping[MemberKey, str]
    _words: Words
    _held_out: HeldOut

    def contexts(self, wanted: Mapping[MemberKey, Sequence[int]]) -> dict[MemberKey, Contexts]:
        """Where these latents fire."""
        n, width = len(self._held_out.evaluation), self.spec.context_size
        return {
            key: Contexts(
                self._weights[key],
                n,
                width,
                contexts_of(self.saes[key], self._held_out, latents, self._words),
            )
            for key, latents in wanted.items()
        }

    def nearest(
        self, wanted: Mapping[MemberKey, Sequence[int]]
    ) -> dict[tuple[MemberKey, int], list[Nearest]]:
        """The nearest latent of each other SAE."""

        def decoder(key: MemberKey) -> tuple[Any, Any]:
            return unit_rows(self.saes[key].W_dec), self.latents[key].firings

        return nearest_among({key: partial(decoder, key) for key in self.saes}, wanted)


def read_loose(sources: Sequence[str], options: CheckOptions | None = None) -> Loose:
    """Load SAEs and run their model over text.

    Args:
        sources: Each a SAELens folder, ``release:sae_id`` or ``user/repo:folder``. The first
            one's config says model, hook, text and how it is read.
        options: What the config does not say, or what is to be used instead.

    Raises:
        UserError: An SAE cannot be read, or is of another model or hook than the first; model
            or text are not known or cannot be read.
    """
    options = replace(options or CheckOptions(), tokens=1)  # none are trained on
    references = {
        name: read_reference(source, options.architecture)
        for name, source in _named(sources).items()
    }
    asked = {"model_name": options.model, "hook_name": options.hook_name}
    metadata = {
        name: {**reference.metadata, **{k: v for k, v in asked.items() if v is not None}}
        for name, reference in references.items()
    }
    refuse_others(metadata, "sources", "leave one out")
    first = next(iter(references.values()))
    recipe = recipe_of(first, options)
    batch = max(
        int(recipe.fields.get(k, 1)) for k in ("context_size", "train_batch_size_tokens")
    )
    untrained = {
        "training_tokens": max(batch, 4096),
        "lr_warm_up_steps": 0,
        "lr_decay_steps": 0,
    }
    spec, model, data = read_text(
        replace(recipe, fields={**recipe.fields, **untrained}, notes=()), first
    )
    words, held_out = Words.of(model, spec), data.held_out
    panel = PanelKey(spec.architectures[0], spec.l0s[0], 0)
    saes: dict[MemberKey, SAE[Any]] = {}
    weights: dict[MemberKey, str] = {}
    for name, reference in references.items():
        if reference.sae.cfg.d_in != data.d_in:
            raise UserError(
                f"sources: {name} has d_in {reference.sae.cfg.d_in}, and {spec.hook_name} of "
                f"{spec.model.recorded_name} is {data.d_in} wide; leave it out"
            )
        key = MemberKey(panel, name)
        saes[key], _ = measured_at(reference, held_out.calibration)
        weights[key] = reference.weights_sha256
    latents = {key: latents_of(sae, held_out.evaluation) for key, sae in saes.items()}
    return Loose(spec, saes, latents, weights, words, held_out)


def _named(sources: Sequence[str]) -> dict[str, str]:
    """What each is called: the last part of where it is, or more where that is the same."""
    places = [Path(s).resolve().parts if Path(s).is_dir() else (s,) for s in sources]
    for depth in range(1, 1 + max(map(len, places))):
        names = [re.sub(r"[^\w.-]+", "_", ".".join(parts[-depth:])) for parts in places]
        if len(set(names)) == len(names):
            return dict(zip(names, sources, strict=True))
    twice = next(s for s in sources if sources.count(s) > 1)
    raise UserError(f"sources: {twice} is named twice; name each SAE once")
