"""Nulls of absorption, RAVEL, SCR and TPP on latents made by hand.

What is there is above them, what is not there is not.
"""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sae_bench.evals.absorption import feature_absorption
from sae_bench.evals.absorption.feature_absorption_calculator import (
    FeatureAbsorptionCalculator,
)
from sae_bench.evals.ravel import intervention, mdbm
from sae_bench.evals.scr_and_tpp import main as scr_and_tpp

from sae_baselines.compat.saebench_nulls import (
    ClassNulls,
    LetterWords,
    observed_edits,
    observed_letters,
    other_ablations,
)
from sae_baselines.evals.nulls import Nulls, firing_first
from sae_baselines.evals.suite import Extras, SuiteCall
from sae_baselines.evals.suites.ravel import Ravel, nulls_of_edits
from tests.evals.tiny_hub import D_MODEL, suite_call, tiny_sae

LATENTS = 2
STRENGTH = 1.0


@given(firing=st.lists(st.booleans(), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_latents_that_never_fire_are_drawn_last(firing: list[bool], seed: int) -> None:
    drawn = torch.randperm(len(firing), generator=torch.Generator().manual_seed(seed))
    found = firing_first(torch.tensor(firing), drawn).tolist()
    fired = [latent for latent in drawn.tolist() if firing[latent]]
    assert found == fired + [latent for latent in drawn.tolist() if not firing[latent]]


def coordinates(turn: torch.Tensor | None = None) -> Any:
    """An SAE whose latents are both signs of each coordinate, of turned axes if given."""
    axes = torch.eye(D_MODEL) if turn is None else turn
    sae: Any = tiny_sae(d_sae=2 * D_MODEL, architecture="standard")
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([axes, -axes]))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.zero_()
    return sae


def turned(seed: int, blind_to: int = 0) -> torch.Tensor:
    """Axes at random, without the first coordinates: there are none of the classes' then."""
    noise = torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(seed))
    noise[:, :blind_to] = 0
    return noise / noise.norm(dim=-1, keepdim=True)


def probe_of(direction: torch.Tensor, threshold: float) -> Any:
    probe = scr_and_tpp.probe_training.Probe(D_MODEL, torch.float32)
    # Trained probes are orthogonal to nothing.
    noise = 0.02 * torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        probe.net.weight.copy_((direction + noise)[None])
        probe.net.bias.fill_(-threshold)
    return probe


def around(centre: torch.Tensor, generator: torch.Generator, n: int = 60) -> torch.Tensor:
    noise = torch.randn(n, 4, D_MODEL, generator=generator)
    return centre + 0.5 * noise


def scored(
    sae: Any, acts: dict[str, torch.Tensor], probes: dict[str, Any], scr: bool
) -> tuple[dict[str, float], ClassNulls]:
    """SAEBench's scores of an SAE on activations, and the nulls."""
    names, main = list(probes), scr_and_tpp
    meaned = {name: each.mean(1) for name, each in acts.items()}
    with torch.no_grad(), other_ablations(LATENTS, nullcontext) as found:
        effects = main.get_all_node_effects_for_one_sae(sae, probes, names, scr, acts, 16)
        clean = main.get_probe_test_accuracy(probes, names, meaned, 16, scr)
        ablated = main.perform_feature_ablations(
            probes, sae, 16, acts, effects, [LATENTS], names, 16, scr
        )
        if scr:
            return main.get_scr_plotting_dict(ablated, clean), found[0]
        return main.create_tpp_plotting_dict(ablated, clean)[0], found[0]


def tpp(sae: Any) -> tuple[float, float, float]:
    """Score, and its nulls: of other classes' latents, of latents at random."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.eye(D_MODEL)
    names = "abcd"
    acts = {name: around(STRENGTH * axes[i], generator) for i, name in enumerate(names)}
    probes = {name: probe_of(axes[i], STRENGTH / 2) for i, name in enumerate(names)}
    torch.manual_seed(0)
    scores, null = scored(sae, acts, probes, scr=False)
    metric = f"tpp_threshold_{LATENTS}_total_metric"
    return scores[metric], null.exchanged[metric], null.random[metric]


def scr(sae: Any) -> tuple[float, float, float]:
    """The same of SCR: a probe of profession that goes by gender more."""
    generator = torch.Generator().manual_seed(0)
    gender, job = torch.eye(D_MODEL)[:2] * STRENGTH

    def people(g: int, j: int) -> torch.Tensor:
        return around(g * gender + j * job, generator, 30)

    men, women = [people(1, 1), people(1, -1)], [people(-1, 1), people(-1, -1)]
    acts = {
        "male / female": torch.cat(men),
        "female_data_only": torch.cat(women),
        "professor / nurse": torch.cat([men[0], women[0]]),
        "nurse_data_only": torch.cat([men[1], women[1]]),
        "male_professor / female_nurse": men[0],
        "female_nurse_data_only": women[1],
    }
    probes = {
        "male / female": probe_of(gender, 0),
        "professor / nurse": probe_of(job, 0),
        "male_professor / female_nurse": probe_of(2 * gender + job, 0),
    }
    torch.manual_seed(0)
    scores, null = scored(sae, acts, probes, scr=True)
    metric = f"scr_metric_threshold_{LATENTS}"
    return scores[metric], null.exchanged[metric], null.random[metric]


@pytest.mark.parametrize("score", [tpp, scr])
def test_latents_of_a_class_are_above_the_nulls(score: Any) -> None:
    found, *nulls = score(coordinates())
    assert found > 0.4
    assert max(nulls) < 0.05


@pytest.mark.parametrize("score", [tpp, scr])
@pytest.mark.parametrize("seed", [0, 1])
def test_latents_that_see_no_class_are_not(score: Any, seed: int) -> None:
    found, *nulls = score(coordinates(turned(seed, blind_to=4)))
    assert found < max(nulls) + 0.05


LETTERS = "abcde"


def absorption(sae: Any, main: dict[str, list[int]]) -> tuple[float, float]:
    """SAEBench's absorption fraction, and the same with main latents of the next letter."""
    generator = torch.Generator().manual_seed(0)
    words = {letter: [f"{letter}{i}" for i in range(12)] for letter in LETTERS}
    acts = {
        word: 2 * torch.eye(D_MODEL)[i] + 0.2 * torch.randn(D_MODEL, generator=generator)
        for i, letter in enumerate(LETTERS)
        for word in words[letter]
    }

    def run_with_cache(prompts: list[str], names_filter: list[str]) -> Any:
        batch = torch.stack([acts[prompt.split("\n")[-1]] for prompt in prompts])
        return None, {names_filter[0]: batch[:, None].expand(-1, 7, -1)}

    model: Any = SimpleNamespace(
        tokenizer="", run_with_cache=run_with_cache, to_tokens=lambda _: [[0]]
    )
    calculator = FeatureAbsorptionCalculator(
        model, [*acts], 2, base_template="{word}", word_token_pos=-6, batch_size=5
    )
    stats = {
        letter: feature_absorption.StatsAndLikelyFalseNegativeResults(
            12, 12, main[letter], words[letter]
        )
        for letter in LETTERS
    }
    nulls: dict[str, list[float]] = {}

    def look(seen: LetterWords) -> None:
        at = LETTERS.index(seen.letter)
        same, _ = seen.again(seen.main[seen.letter])
        assert same == [word.absorption_fraction for word in results[at].word_results], (
            "what is scored again is what was scored"
        )
        nulls[seen.letter] = seen.again(seen.main[LETTERS[(at + 1) % len(LETTERS)]])[0]

    results: list[Any] = []
    calculate = calculator.calculate_absorption

    def kept(*args: Any, **given: Any) -> Any:
        results.append(calculate(*args, **given))
        return results[-1]

    calculator.calculate_absorption = kept
    probe: Any = SimpleNamespace(weights=torch.eye(26, D_MODEL))
    with observed_letters(look):
        found = feature_absorption.calculate_projection_and_cos_sims(
            calculator, sae, probe, layer=0, likely_negs=stats
        )
    null = torch.tensor([nulls[letter] for letter in LETTERS]).mean()
    return float(found["absorption_fraction"].mean()), float(null)


def test_main_latents_of_their_letters_are_below_the_null() -> None:
    score, null = absorption(coordinates(), {x: [i] for i, x in enumerate(LETTERS)})
    assert score < 0.05
    assert null > 0.95


def test_a_low_absorption_says_nothing_where_no_latent_has_a_letter() -> None:
    """As for random directions in many dimensions: little to absorb, whatever the main ones."""
    sae = coordinates(turned(0))
    sae.W_dec.data[:, :5] *= 0.3
    score, null = absorption(sae, {x: [10 * i] for i, x in enumerate(LETTERS)})
    assert score == pytest.approx(null, abs=0.1)
    assert null < 0.1


def test_a_high_absorption_is_the_null_where_the_main_latents_have_no_letter() -> None:
    score, null = absorption(coordinates(), {x: [10 + i] for i, x in enumerate(LETTERS)})
    assert score == pytest.approx(null, abs=0.02)
    assert score > 0.95


class Facts(torch.nn.Module):
    """A model that answers with an entity's first or second attribute, as it is asked.

    Tokens are an entity and a question; what leaves its block is one-hot for each attribute,
    and noise of the entity's own.
    """

    config = SimpleNamespace(architectures=["GPTNeoXForCausalLM"])
    device = torch.device("cpu")
    dtype = torch.float32
    values = 4

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        entities = torch.cartesian_prod(torch.arange(self.values), torch.arange(self.values))
        self.attributes = entities
        self.table = 0.7 * torch.randn(len(entities), D_MODEL, generator=generator)
        self.table[:, : 2 * self.values] = torch.nn.functional.one_hot(
            entities, self.values
        ).flatten(1)
        block: Any = torch.nn.Identity()
        block.forward = lambda ids: (self.table[ids],)
        self.gpt_neox: Any = torch.nn.Module()
        self.gpt_neox.layers = torch.nn.ModuleList([block])

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> Any:
        del attention_mask
        asked = input_ids[:, 1]
        read = self.gpt_neox.layers[0](input_ids)[0][:, 0, : 2 * self.values]
        both = read.unflatten(-1, (2, self.values))
        return SimpleNamespace(logits=both[torch.arange(len(asked)), asked][:, None])

    def generate(self, input_ids: torch.Tensor, **given: Any) -> torch.Tensor:
        del given
        return torch.cat([input_ids, self(input_ids).logits.argmax(-1)], -1)


class _Words:
    def decode(self, token: torch.Tensor) -> str:
        return "wxyz"[int(token)]

    def batch_decode(self, tokens: torch.Tensor) -> list[str]:
        return [" " + self.decode(each[0]) for each in tokens]


def pairs_of(model: Facts, generator: torch.Generator, batches: int) -> list[Any]:
    """Batches of SAEBench's: half change the first attribute, half must leave the second."""
    found = []
    for _ in range(batches):
        base, source = torch.randint(len(model.table), (2, 32), generator=generator)
        asked = torch.arange(32) % 2
        base_says = model.attributes[base, asked]
        wanted = torch.where(asked == 0, model.attributes[source, 0], base_says)
        encoded = [
            {"input_ids": torch.stack([ids, asked], -1), "attention_mask": torch.ones(32, 2)}
            for ids in (base, source)
        ]
        at = torch.zeros(32, dtype=torch.long)
        labels = [_Words().decode(value) for value in wanted]
        found.append((*encoded, at, at, base_says, wanted, ["?"] * 32, labels))
    return found


def ravel(sae: Any, folder: Path) -> dict[str, float]:
    """Disentanglement of a mask that SAEBench trains, and its nulls."""
    model: Any = Facts()
    words: Any = _Words()
    generator = torch.Generator().manual_seed(1)
    train: Any = pairs_of(model, generator, 30)
    test: Any = pairs_of(model, generator, 6)
    sae.cfg.hook_layer = 0
    options = {"entity_attribute_selection": {"city": ["Country"]}}
    call = suite_call(Ravel(), folder, options, sae=sae)
    config: Any = SimpleNamespace(llm_batch_size=32, num_epochs=2, learning_rate=0.1, **options)
    nulls = Nulls(call)
    with observed_edits(nulls_of_edits(nulls, config, call.cache)):
        mask: Any = mdbm.train_mdbm(model, words, config, sae, train, test)
        isolation, cause = intervention.generate_batched_interventions(
            model,
            mask,
            words,
            test,
            max_new_tokens=1,
        )
    nulls.leave()
    rows = {row.metric: row.value for row in Ravel().floors(sae, call) if row.task}
    return {"": (cause + isolation) / 2} | {
        kind: rows[f"disentanglement_score_null_{kind}"]
        for kind in ("random_latents", "identity", "reconstructed")
    }


def test_a_mask_on_latents_of_an_attribute_is_above_the_nulls(tmp_path: Path) -> None:
    found = ravel(coordinates(), tmp_path)
    assert found[""] > 0.9
    assert found["random_latents"] < 0.6
    assert found["identity"] == 0.5, "nothing is changed, and nothing else either"
    assert found["reconstructed"] == 0.5, "it reconstructs all that there is"


def test_a_mask_on_latents_that_see_none_is_not(tmp_path: Path) -> None:
    found = ravel(coordinates(turned(0, blind_to=2 * Facts.values)), tmp_path)
    assert found[""] < found["random_latents"] + 0.05
    assert found[""] < found["identity"]
    # What it does not see it does not put in place again.
    assert found["reconstructed"] < found["identity"]


class Drawing(Ravel):
    """Its run draws for a null, and fails in it if so told."""

    runs = 0

    def run(self, sae: Any, call: SuiteCall) -> Extras:
        del sae
        self.runs += 1
        nulls = Nulls(call)
        with nulls.aside():
            nulls.add("random", {"score": float(torch.rand(()))}, "a")
            if call.name == "broken":
                raise ValueError("no room")
        nulls.leave()
        return Extras(notes=[str(float(torch.rand(())))])


def test_a_null_neither_moves_nor_loses_a_score(tmp_path: Path) -> None:
    suite = Drawing()
    calls = {
        name: suite_call(suite, tmp_path, {"floors": name != "off"}, name=name)
        for name in ("on", "broken", "off")
    }
    sae = tiny_sae()
    notes = []
    for call in calls.values():
        torch.manual_seed(7)
        notes += suite.run(sae, call).notes
    assert len(set(notes)) == 1
    (mean, row) = suite.floors(sae, calls["on"])
    assert suite.runs == 3, "what the run left is there"
    assert (mean.metric, mean.task, mean.value) == ("score_null_random", "", row.value)
    (calls["on"].work / "floors.json").unlink()
    torch.manual_seed(8)
    assert suite.floors(sae, calls["on"]) == [mean, row], "from the suite's seed alone"
    assert suite.runs == 4
    with pytest.raises(RuntimeError, match="ValueError: no room"):
        suite.floors(sae, calls["broken"])
