"""The card: valid, its numbers those of the files beside it, its code running."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from sae_lens import SAE

from sae_baselines.evals.results import load_results
from sae_baselines.evals.study import load_study
from sae_baselines.files import write_sealed
from sae_baselines.hub import CardOptions, Publication, card, plan_publication, publish
from sae_baselines.hub.layout import manifest_of
from sae_baselines.hub.source import SourceStudy
from sae_baselines.report.numbers import difference, interval, mean_sd, number
from sae_baselines.study.plan import MemberKey, PanelKey
from sae_baselines.study.spec import MemberSpec
from tests.hub.conftest import MEMBERS, REPO, SEEDS, write_again
from tests.loopback_hub import Hub

Grid = list[dict[str, str]]


def body_of(card: str) -> str:
    return ModelCard(card).text


def tables(card: str) -> list[tuple[str, Grid]]:
    """Every table as rows by column, with the paragraph before it; parsed as Markdown."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body_of(card))
    found: list[tuple[str, Grid]] = []
    texts: list[str] = []
    rows: list[list[str]] = []
    inside = False
    for token in tokens:
        if token.type == "table_open":
            inside, rows = True, []
        elif token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            text = "".join(c.content for c in token.children or ()).replace("\u00a0", " ")
            if inside:
                rows[-1].append(text)
            else:
                texts.append(text)
        elif token.type == "table_close":
            inside = False
            head, *rest = rows
            grid = [dict(zip(head, row, strict=True)) for row in rest]
            found.append((texts[-1], grid))
    return found


def the_table(card: str, *columns: str) -> list[tuple[str, Grid]]:
    return [(h, g) for h, g in tables(card) if set(columns) <= set(g[0])]


@pytest.fixture(scope="module")
def results(study: Path) -> pd.DataFrame:
    return load_results(study)


def values(results: pd.DataFrame, metric: str, **where: Any) -> list[float]:
    rows = results.loc[(results["suite"] == "panel") & (results["metric"] == metric)]
    for column, value in where.items():
        rows = rows.loc[rows[column] == value]
    return rows.sort_values("seed")["value"].tolist()


def test_front_matter(planned: Publication, own_study: Path):
    data = ModelCard(planned.card_text).data.to_dict()
    assert data["license"] == "mit"
    assert data["library_name"] == "saelens"
    tags = ["saelens", "sparse-autoencoder", "baseline", "frozen_decoder", "random"]
    assert data["tags"] == [*tags, "control", "batchtopk", "arxiv:2602.14111"]
    # A local model and a local text have no name on the Hub; the publisher is told.
    assert "base_model" not in data
    assert "datasets" not in data
    assert [note.partition(" is left out")[0] for note in planned.notes] == [
        "base_model",
        "datasets",
    ]
    options = CardOptions("other", "mine-1.0", "LICENSE", "EleutherAI/pythia-70m-deduped")
    card = plan_publication(own_study, REPO, "main", options).card_text
    data = ModelCard(card).data.to_dict()
    assert (data["license_name"], data["license_link"]) == ("mine-1.0", "LICENSE")
    assert data["base_model"] == "EleutherAI/pythia-70m-deduped"


def test_members_and_their_numbers_are_those_of_results_csv(
    planned: Publication, results: pd.DataFrame
):
    ((heading, rows),) = the_table(planned.card_text, "member", "constraint")
    assert heading == (
        "batchtopk, target L0 6, seeds 0, 3: batchtopk/l0_6/seed_<seed>/<member>"
    )
    assert [row["member"] for row in rows] == list(MEMBERS)
    for row in rows:
        where = {"member": row["member"]}
        assert row["measured L0"] == mean_sd(values(results, "l0", **where))
        assert row["EV"] == mean_sd(values(results, "explained_variance", **where))
    ((_, every),) = the_table(planned.card_text, "folder")
    assert [row["folder"] for row in every] == list(planned.members)
    for row in every:
        _, _, seed, member = row["folder"].split("/")
        where = {"member": member, "seed": int(seed.removeprefix("seed_"))}
        (l0,) = values(results, "l0", **where)
        (ev,) = values(results, "explained_variance", **where)
        assert (row["measured L0"], row["EV"]) == (number(l0), number(ev))


def test_verdicts_and_their_numbers_are_those_of_verdicts_csv(
    planned: Publication, study: Path, results: pd.DataFrame
):
    reader: Any = pd.read_csv  # its stubs do not know round_trip
    stored = reader(study / "verdicts.csv", float_precision="round_trip")
    found = the_table(planned.card_text, "against", "verdict")
    assert sum(len(grid) for _, grid in found) == len(stored) > 0
    own = number(float(np.mean(values(results, "l0", member="trained"))))
    for heading, grid in found:
        key = re.search(r"(\w+)/(\w+); trained at L0 (.+)$", heading)
        assert key is not None
        assert key[3] == own
        for row in grid:
            baseline = row["against"].removesuffix(" (control)")
            here = (stored["suite"] == key[1]) & (stored["metric"] == key[2])
            (v,) = stored.loc[here & (stored["baseline"] == baseline)].to_dict("records")
            low, high = v["interval_low"], v["interval_high"]
            assert row["verdict"] == v["word"]
            assert row["trained"] == number(v["trained"])
            assert row["other"] == number(v["other"])
            assert row["difference"] == difference(v["mean_difference"], low, high)
            assert row["interval"] == interval(low, high)
            l0 = float(np.mean(values(results, "l0", member=baseline)))
            assert row["L0"] == number(l0)


def test_it_warns_says_what_for_and_shows_every_figure(planned: Publication, study: Path):
    card = planned.card_text
    assert "> [!WARNING]\n> **4 of 6 SAEs here are random by design.**" in card
    assert (
        "Within a panel `trained`, `frozen_decoder` share initial weights, batches and "
        "hyperparameters, so their differences are due to what was frozen. Not trained, being "
        "controls: `random`.\n- **Not for:**"
    ) in card
    assert "| not trained | `random` |" in card
    assert "> - `frozen_decoder`: `W_dec` frozen at uniformly random directions" in card
    assert "> - `random`: a control that was never trained" in card
    for heading in ("What they are for", "Load them", "Caveats", "Training", "Evaluation"):
        assert f"\n## {heading}\n" in card
    assert "**two seeds**" in card
    shown = set(re.findall(r"!\[[^\]]*\]\((figures/[^)]+)\)", card))
    assert shown == {f"figures/{p.name}" for p in (study / "figures").glob("*.png")} != set()
    published = {file.path for file in planned.files}
    linked = set(re.findall(r"\]\(([\w./-]+)\)", card))
    assert linked <= published
    assert {"report.md", "results.csv", "verdicts.csv", "study.yaml"} <= linked
    told = manifest_of(card)
    assert told is not None
    assert (told.study, told.members) == ("tiny", tuple(planned.members))
    assert told.spec_hash == planned.spec_hash == load_study(study)[1]["spec_hash"]
    assert told.is_text_of(card)
    assert told.is_text_of(card.replace("\n", "\r\n") + "\n")
    assert not told.is_text_of(card.replace("Caveats", "Praise"))
    assert manifest_of("# A card of somebody else") is None


def described(*members: MemberSpec) -> SourceStudy:
    """As much of a study as the words on its members are made of."""
    panel = PanelKey("batchtopk", 6.0, 0)
    keys = {MemberKey(panel, member.name): member for member in members}
    return cast(SourceStudy, SimpleNamespace(members=keys, spec=SimpleNamespace(tau=0.8)))


TRAINED_ONE, CONTROL = MemberSpec(constraint="trained"), MemberSpec(constraint="random")
CONTROL_COV = MemberSpec(constraint="random:cov")
SOFT = MemberSpec(constraint="soft_frozen_decoder", init_scheme="cov", tau=0.5)
BROKEN = MemberSpec(constraint="permuted_pairing")


def test_what_is_said_of_members_is_said_of_those_it_is_true_of():
    counts = [
        ([TRAINED_ONE, CONTROL], "1 of 2 SAEs here is random by design"),
        (
            [SOFT, CONTROL],
            "1 of 2 SAEs here is random by design; 1 of 2 SAEs here is nearly free by design",
        ),
        ([CONTROL, CONTROL_COV], "All 2 SAEs here are random by design"),
        ([CONTROL], "The one SAE here is random by design"),
        ([TRAINED_ONE, BROKEN], "1 of 2 SAEs here is broken by design"),
        (
            [TRAINED_ONE, SOFT, CONTROL, BROKEN],
            "1 of 4 SAEs here is random by design; 1 of 4 SAEs here is nearly free by design; "
            "1 of 4 SAEs here is broken by design",
        ),
        ([TRAINED_ONE], ""),
    ]
    for members, words in counts:
        assert card.warning(described(*members)) == words
    every = described(TRAINED_ONE, SOFT, CONTROL, BROKEN)
    texts = card.random_members(every)
    assert texts["soft_frozen_decoder_cov_tau0.5"] == (
        "decoder rows held near random directions with the activations' covariance (cosine at "
        "least 0.5); the rest is learned."
    )
    assert texts["random"].startswith("a control that was never trained: random directions")
    assert texts["permuted_pairing"].startswith(
        "a control, a trained SAE with something broken: the source with its decoder"
    )
    paper = MemberSpec(constraint="frozen_encoder", learned="threshold")
    assert card.random_members(described(paper))["frozen_encoder_threshold"].endswith(
        "learned: W_dec, b_dec at the output, the activation threshold."
    )
    # What is not trained shares no batches.
    assert card.shared(described(TRAINED_ONE, CONTROL, BROKEN)) == ""
    assert card.shared(every) == (
        "Within a panel `trained`, `soft_frozen_decoder_cov_tau0.5` share initial weights "
        "(directions drawn with the activations' covariance apart), batches and "
        "hyperparameters, so their differences are due to what was frozen or held."
    )
    assert card.controls(every) == ["random", "permuted_pairing"]


def test_a_single_seed_is_called_that(own_study: Path):
    spec = own_study / "study.yaml"
    spec.write_text(spec.read_text().replace("  - 0\n  - 3\n", "  - 0\n"))
    write_again(own_study)
    card = plan_publication(own_study, REPO, "main", CardOptions("mit")).card_text
    found = the_table(card, "against", "verdict")
    words = [row["verdict"] for _, grid in found for row in grid]
    # Trained this briefly, the frozen decoder is below the untrained SAE: a failure.
    assert set(words) - {"no verdict"} == {"single seed"}
    assert {row["interval"] for _, grid in found for row in grid} == {"n/a"}
    ((_, rows),) = the_table(card, "member", "constraint")
    assert not any("±" in row["EV"] for row in rows)


def test_why_a_member_gets_no_verdict_is_said(own_study: Path) -> None:
    for path in own_study.glob("panels/*/trained/provenance.json"):
        facts = json.loads(path.read_text()) | {"l0_in_training": 3.0}
        write_sealed(path, facts)
    write_again(own_study)
    card = plan_publication(own_study, REPO, "main", CardOptions("mit")).card_text
    found = the_table(card, "against", "verdict")
    assert {row["verdict"] for _, grid in found for row in grid} == {"no verdict"}
    reason = "trained was not trained at its L0 at seeds 0, 3: L0 over the target in the last"
    assert reason in (own_study / "report.md").read_text(encoding="utf-8")
    assert reason in card


@pytest.mark.parametrize("revision", ["main", "v2"])
def test_its_code_runs_and_loads_every_member(
    revision: str, study: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
):
    planned = plan_publication(study, REPO, revision, CardOptions("mit"))
    publish(planned)
    assert "README.md" in hub.repos[REPO].head(revision).files
    assert ("README.md" in hub.repos[REPO].head("main").files) == (revision == "main")
    blocks = re.findall(r"```python\n(.*?)```", planned.card_text, re.DOTALL)
    assert len(blocks) == 2
    one: dict[str, Any] = {}
    exec(blocks[0], one)
    assert "tiny-llama blocks.1.hook_resid_post" in capsys.readouterr().out
    every: dict[str, Any] = {}
    exec(blocks[1], every)
    keys = {("batchtopk/l0_6", seed, member) for seed in SEEDS for member in MEMBERS}
    assert set(every["saes"]) == keys
    for (_, seed, member), sae in every["saes"].items():
        local = SAE.load_from_disk(study / f"panels/batchtopk_l0_6_seed_{seed}/{member}")
        assert all(
            bool((sae.state_dict()[k] == v).all()) for k, v in local.state_dict().items()
        )
