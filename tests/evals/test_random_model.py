"""SAEs of random language models: evaluated with those, and never mixed with the real one's."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sae_lens import SAE
from transformer_lens import HookedTransformer

from sae_baselines.errors import UserError
from sae_baselines.evals import evaluate, load_results
from sae_baselines.evals import registry as suites
from sae_baselines.evals.store import EvalStore
from sae_baselines.evals.suite import Extras, OnRandomModel, SuiteCall
from sae_baselines.hub.card import CardOptions, make_card
from sae_baselines.hub.source import read_source
from sae_baselines.pipeline import Evaluation, report
from sae_baselines.pipeline import evaluate as evaluate_study
from sae_baselines.stats import verdicts
from sae_baselines.study import train_study
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.redraw import RandomModel
from sae_baselines.study.spec import ModelSpec, PanelSpec, spec_from_dict
from tests.evals import tiny_hub as hub
from tests.evals.fake_suite import FakeSuite
from tests.tiny_model import HOOK, save_tiny_model, tiny_panel, tiny_text


def _digest(model: Any) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(name.encode() + weight.detach().numpy().tobytes())
    return digest.hexdigest()


class Reading(FakeSuite):
    """Notes which model it was given, in the result and in what it caches."""

    on_random_model = OnRandomModel("verdict", "It reads the model.")

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        extras = super().run(sae, call)
        name = call.subject.model_name
        digest = _digest(HookedTransformer.from_pretrained_no_processing(name, device="cpu"))
        with (call.cache / "models").open("a") as file:
            file.write(f"{digest}\n")
        return Extras({**extras.values, "model": digest}, extras.notes)


class Silent(FakeSuite):
    """Says nothing of random models."""

    name = "silent"


@dataclass(frozen=True)
class Evaluated:
    root: Path
    model: Path
    spec: PanelSpec
    done: Evaluation
    table: pd.DataFrame


@pytest.fixture(scope="module", autouse=True)
def study(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("random_model")
    model = save_tiny_model(folder / "model")
    tiny_text().to_parquet(folder / "text.parquet")
    members = ["trained", "frozen_decoder", "random_model"]
    spec = spec_from_dict(
        tiny_panel(
            model,
            str(folder / "text.parquet"),
            members=members,
            seeds=[0, 1],
            training_tokens=128 * 4,
        )
    )
    root = folder / "study"
    train_study(spec, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(suites._suites, "fake", Reading)
        patch.setitem(suites._suites, "silent", Silent)
        patch.setattr(suites, "_instances", {})
        done = evaluate_study(root, ["fake", "silent"])
        yield Evaluated(root, model, spec, done, load_results(root))


def test_suites_read_the_model_that_the_sae_was_trained_on(study: Evaluated) -> None:
    spec = study.spec
    drawn = {None: None, **spec.random_models}
    wanted = {
        name: _digest(load_language_model(spec.model, HOOK, "cpu", random))
        for name, random in drawn.items()
    }
    assert len(set(wanted.values())) == 3
    records = EvalStore(study.root).records()
    read = {r["name"]: r["extras"]["model"] for r in records if r["suite"] == "fake"}
    assert len(read) == 6
    for name, digest in read.items():
        seed = name.partition("seed_")[2].partition(".")[0]
        of = f"random_model_seed_{seed}" if name.endswith("random_model") else None
        assert digest == wanted[of]
    # Nothing cached of one is there for another.
    caches = [f.read_text().split() for f in study.root.glob("evals/.cache/fake/*/models")]
    assert all(len(set(cache)) == 1 for cache in caches)
    assert sorted(cache[0] for cache in caches) == sorted(wanted.values())


def test_a_suite_that_says_nothing_of_random_models_is_not_run_on_them(
    study: Evaluated,
) -> None:
    assert not study.done.failures
    silent = study.table[study.table["suite"] == "silent"]
    assert set(silent["member"]) == {"trained", "frozen_decoder"}
    notes = {name: note for suite, name, note in study.done.notes if suite == "silent"}
    assert (
        "is not run on a model with random weights"
        in notes["batchtopk_l0_6_seed_1.random_model"]
    )
    again = evaluate_study(study.root, ["fake", "silent"])
    assert (again.done, len(again.kept)) == ([], 6 + 4)


def test_scores_are_compared_only_where_the_suite_says_so(study: Evaluated) -> None:
    pairs = {
        (v.baseline, f"{v.suite}/{v.metric}")
        for v in verdicts(study.table, on_missing="exclude")
    }
    assert ("random_model", "fake/score") in pairs
    assert ("frozen_decoder", "panel/explained_variance") in pairs
    assert ("random_model", "panel/explained_variance") not in pairs
    of_panel = study.table[study.table["suite"] == "panel"]
    shown = of_panel[of_panel["metric"] == "explained_variance"]
    assert set(shown["member"]) == {"trained", "frozen_decoder", "random_model"}


def test_the_report_says_what_it_means_and_the_card_that_it_is_left_out(
    study: Evaluated,
) -> None:
    made = report(study.root)
    # What is refused is not missing.
    assert "missing" not in {caveat.kind for caveat in made.caveats}
    text = (study.root / "report.md").read_text(encoding="utf-8")
    assert "`fake`: compared. It reads the model." in text
    assert "`silent`: not run." in text
    source = read_source(study.root)
    assert source.of_random_models == ("random_model",)
    assert {key.member for key in source.members} == {"trained", "frozen_decoder"}
    folders = {key: f"{key.panel.name}/{key.member}" for key in source.members}
    card = make_card(source, "me/saes", "main", CardOptions("mit"), folders, [])
    assert "`random_model`, trained in the same way on `model` with random weights" in card.text
    assert any("random_model: left out" in note for note in card.notes)


def test_its_folder_alone_knows_its_model(study: Evaluated, tmp_path: Path) -> None:
    folder = study.root / "panels" / "batchtopk_l0_6_seed_1" / "random_model"
    evaluate({"it": folder}, {"fake": {}}, tmp_path, model=study.model)
    (record,) = EvalStore(tmp_path).records()
    assert record["facts"]["constraint"] == "random_model"
    told = study.spec.random_models["random_model_seed_1"]
    assert record["extras"]["model"] == _digest(
        load_language_model(study.spec.model, HOOK, "cpu", told)
    )
    sae = SAE.load_from_disk(folder)
    sae.cfg.metadata.model_name = "model"
    with pytest.raises(UserError, match=r"model\+random_model_seed_1"):
        evaluate({"it": sae}, {"fake": {}}, tmp_path, model=study.model)


def test_a_model_of_the_hub_is_drawn_as_its_folder_is(tiny_hub: Path) -> None:
    name = f"EleutherAI/{hub.MODEL}"
    drawn = RandomModel(name, "random_model:embeddings_kept", 2)
    digests = {
        _digest(load_language_model(ModelSpec(name=str(where)), hub.HOOK, "cpu", drawn))
        for where in (name, hub.MODEL, tiny_hub / name)
    }
    assert len(digests) == 1
    real = load_language_model(ModelSpec(name=name), hub.HOOK, "cpu")
    assert _digest(real) not in digests
