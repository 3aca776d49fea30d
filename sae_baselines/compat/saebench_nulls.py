"""What SAEBench's suites hand over while they score, so that nulls can be scored beside.

Each context manager wraps one or two functions of SAEBench. They do what they did, then
something is called with what they worked on; nothing is computed anew that they computed, and
what is scored again is scored by SAEBench's own functions. Whoever looks must leave the random
generators as they are. tests/compat has the contracts.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from sae_lens import SAE

from sae_baselines.compat.saebench import NAMES

_EVALS = "sae_bench.evals"
# The attributes that SCR ablates for a score, of the three that it ablates.
SCORED_BY_SCR = ("male / female", "professor / nurse")


@contextmanager
def observed_datasets(look: Callable[[str, Any], None]) -> Iterator[None]:
    """While open, ``look`` is called with what sae-probes encodes, before it trains probes.

    Args:
        look: Called with the dataset's name and its ``X_train``, ``X_test``, ``y_train``,
            ``y_test``.
    """
    module = import_module("sae_probes.run_sae_evals")
    generate = module.generate_sae_activations

    def observed(**given: Any) -> Any:
        activations = generate(**given)
        look(given["dataset"], activations)
        return activations

    with patch.object(module, "generate_sae_activations", observed):
        yield


@contextmanager
def observed_classes(look: Callable[[Any, Any, Any], None]) -> Iterator[None]:
    """The same of SAEBench's sparse probing.

    Args:
        look: Called with a class's ``[examples, d_sae]`` by its name, of training and of test,
            and what was encoded for both, ``[examples, context, d_in]``, for each dataset in
            the order of the config.
    """
    module = import_module(NAMES["get_sae_meaned_activations"])
    encode, train = module.get_sae_meaned_activations, []

    def observed(activations: Any, *given: Any) -> Any:
        latents = encode(activations, *given)
        if train:
            of_training, encoded = train.pop()
            look(of_training, latents, (encoded, activations))
        else:
            train.append((latents, activations))
        return latents

    with patch.object(module, "get_sae_meaned_activations", observed):
        yield


@dataclass(frozen=True)
class Edits:
    """Test pairs of one attribute in RAVEL, on which a mask over latents was scored.

    Attributes:
        mask: The learned mask's parameter, shape (d_sae,): above 0 for latents that are
            swapped, exactly 0 for those that no training pair changed.
        pairs: Base text, wanted attribute and the two predictions, of every pair.
        scores: Of the learned mask: cause and isolation.
        again: The same of another mask (above 0 is swapped); None for the model left alone.
    """

    mask: torch.Tensor
    pairs: list[Any]
    scores: tuple[float, float]
    again: Callable[[torch.Tensor | None], tuple[float, float]]


@contextmanager
def observed_edits(look: Callable[[Edits], None]) -> Iterator[None]:
    """While open, ``look`` is called after every mask that RAVEL scores, in order."""
    module = import_module(f"{_EVALS}.ravel.intervention")
    stock = module.generate_batched_interventions

    def observed(
        model: Any, mask: Any, tokenizer: Any, pairs: Any, **given: Any
    ) -> tuple[float, float]:
        isolation, cause = stock(model, mask, tokenizer, pairs, **given)

        def again(other: torch.Tensor | None) -> tuple[float, float]:
            learned = mask.binary_mask.data
            if other is None:
                alone = SimpleNamespace(
                    layer_intervened=mask.layer_intervened,
                    create_intervention_hook=lambda *_, **__: lambda *args: args[-1],
                )
                isolation, cause = stock(model, alone, tokenizer, pairs, **given)
                return cause, isolation
            mask.binary_mask.data = other.to(learned)
            try:
                isolation, cause = stock(model, mask, tokenizer, pairs, **given)
            finally:
                mask.binary_mask.data = learned
            return cause, isolation

        texts = [[batch[6], batch[7], batch[4].tolist(), batch[5].tolist()] for batch in pairs]
        learned = mask.binary_mask.detach().clone()
        look(Edits(learned, texts, (cause, isolation), again))
        return isolation, cause

    with patch.object(module, "generate_batched_interventions", observed):
        yield


@dataclass(frozen=True)
class LetterWords:
    """Words of one first letter in absorption, on which its main latents were scored.

    Attributes:
        letter: The letter.
        main: Letter to its main latents, of all letters.
        again: Words' absorption fractions, and whether each is fully absorbed, had the main
            latents been others.
    """

    letter: str
    main: Mapping[str, Sequence[int]]
    again: Callable[[Sequence[int]], tuple[list[float], list[bool]]]


@contextmanager
def observed_letters(look: Callable[[LetterWords], None]) -> Iterator[None]:
    """While open, ``look`` is called after every letter that SAEBench's absorption scores."""
    module = import_module(f"{_EVALS}.absorption.feature_absorption")
    stock = module.calculate_projection_and_cos_sims

    def observed(calculator: Any, sae: SAE[Any], *args: Any, likely_negs: Any, **given: Any):
        main = {letter: list(found.split_feats) for letter, found in likely_negs.items()}
        letters = iter(main)
        calculate = calculator.calculate_absorption

        def one(*args: Any, **given: Any) -> Any:
            with _recorded(calculator, sae) as recorded:
                results = calculate(*args, **given)
            letter = next(letters)
            if not results.word_results:
                return results

            def again(other: Sequence[int]) -> tuple[list[float], list[bool]]:
                replay, stand_in = recorded.replay(calculator, sae)
                named = {**given, "sae": stand_in, "main_feature_ids": list(other)}
                words = replay.calculate_absorption(**named).word_results
                return (
                    [float(word.absorption_fraction) for word in words],
                    [bool(word.is_full_absorption) for word in words],
                )

            look(LetterWords(letter, main, again))
            return results

        with patch.object(calculator, "calculate_absorption", one):
            return stock(calculator, sae, *args, likely_negs=likely_negs, **given)

    with patch.object(module, "calculate_projection_and_cos_sims", observed):
        yield


@dataclass
class _Recorded:
    """Prompts, activations and latents of one call of SAEBench's calculator."""

    prompts: list[Any]
    encoded: list[tuple[torch.Tensor, torch.Tensor]]

    def replay(self, calculator: Any, sae: SAE[Any]) -> tuple[Any, Any]:
        """A calculator and an SAE that give what was recorded, without model or encoder."""
        acts, latents = (iter(each) for each in zip(*self.encoded, strict=True))
        positions = abs(calculator.word_token_pos) + 1

        def run_with_cache(_: Any, names_filter: list[str]) -> Any:
            batch = next(acts)[:, None].expand(-1, positions, -1)
            return None, dict.fromkeys(names_filter, batch)

        model = SimpleNamespace(run_with_cache=run_with_cache)
        replay: Any = dataclasses.replace(calculator, model=model)
        replay._build_prompts = lambda _: self.prompts
        replay._validate_prompts_are_same_length = lambda _: None
        stand_in = SimpleNamespace(
            device=sae.device, W_dec=sae.W_dec, encode=lambda _: next(latents)
        )
        return replay, stand_in


@contextmanager
def _recorded(calculator: Any, sae: SAE[Any]) -> Iterator[_Recorded]:
    recorded = _Recorded([], [])
    build, encode = calculator._build_prompts, sae.encode

    def building(words: list[str]) -> list[Any]:
        recorded.prompts = build(words)
        return recorded.prompts

    def encoding(x: torch.Tensor) -> torch.Tensor:
        latents = encode(x)
        recorded.encoded.append((x, latents))
        return latents

    with (
        patch.object(calculator, "_build_prompts", building),
        patch.object(sae, "encode", encoding),
    ):
        yield recorded


@dataclass(frozen=True)
class ClassNulls:
    """Metric to score of one dataset (TPP) or pair (SCR), had other latents been ablated.

    Attributes:
        exchanged: Those that were chosen for another class, or for the other attribute: the
            mean over all others.
        random: As many at random, of those with any effect; empty where that went wrong.
    """

    exchanged: dict[str, float]
    random: dict[str, float]


@contextmanager
def other_ablations(n: int, aside: Callable[[], Any]) -> Iterator[list[ClassNulls]]:
    """While open, what SAEBench's SCR and TPP ablate for one class also scores for others, and
    latents at random are ablated as well.

    Args:
        n: How many at random.
        aside: Opens what these are ablated in, and may swallow what goes wrong there.

    Yields:
        One for each dataset or pair, in order.
    """
    main = import_module(f"{_EVALS}.scr_and_tpp.main")
    pairs = import_module("sae_bench.sae_bench_utils.dataset_info").PAIRED_CLASS_KEYS
    ablate, scr, tpp = (
        main.perform_feature_ablations,
        main.get_scr_plotting_dict,
        main.create_tpp_plotting_dict,
    )
    done: list[ClassNulls] = []
    at_random: list[Any] = []

    def ablating(
        probes: Any,
        sae: Any,
        batch: int,
        acts: Any,
        effects: Any,
        ns: Any,
        names: Any,
        *rest: Any,
    ) -> Any:
        found = ablate(probes, sae, batch, acts, effects, ns, names, *rest)
        at_random.clear()
        with aside():
            drawn = {
                name: torch.rand(len(each)).to(each) * (each != 0)
                for name, each in effects.items()
            }
            if rest[-1]:
                names = list(SCORED_BY_SCR)
                wanted = {*names, *(pairs[name] for name in names)}
                acts = {name: each for name, each in acts.items() if name in wanted}
            at_random.append(ablate(probes, sae, batch, acts, drawn, [n], names, *rest))
        return found

    def scored(stock: Any, classes: Any, accuracies: Any, clean: Any) -> None:
        def score(found: Any) -> dict[str, float]:
            scores = stock(found, clean)
            return scores[0] if isinstance(scores, tuple) else scores

        classes = list(classes)
        shifted = (classes[i:] + classes[:i] for i in range(1, len(classes)))
        others = [
            score({name: accuracies[other] for name, other in zip(classes, order, strict=True)})
            for order in shifted
        ]
        means = {name: sum(each[name] for each in others) / len(others) for name in others[0]}
        done.append(ClassNulls(means, score(at_random[0]) if at_random else {}))

    def scoring_scr(accuracies: Any, clean: Any) -> Any:
        scored(scr, SCORED_BY_SCR, accuracies, clean)
        return scr(accuracies, clean)

    def scoring_tpp(accuracies: Any, clean: Any) -> Any:
        scored(tpp, accuracies, accuracies, clean)
        return tpp(accuracies, clean)

    replaced: dict[str, Any] = {
        "perform_feature_ablations": ablating,
        "get_scr_plotting_dict": scoring_scr,
        "create_tpp_plotting_dict": scoring_tpp,
    }
    with patch.multiple(main, **replaced):
        yield done
