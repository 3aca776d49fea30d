"""An SAE that stock SAELens trained and published, checked from its name on the Hub."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sae_lens import SAE
from typer.testing import CliRunner, Result

from sae_baselines.evals import load_results
from sae_baselines_cli import app
from tests import stock_process
from tests.evals.tiny_hub import HOOK, MODEL, QUICK_EVALS, build_once
from tests.loopback_hub import WRITER, Handler, Hub, WritableHandler, point_clients_at, serving
from tests.study.reference import stock_run

REPO, INSIDE = "alice/theirs", "layer_0/stock"
SOURCE = f"{REPO}:{INSIDE}"

CONFIG: dict[str, Any] = {
    "calibration_tokens": 2048,
    "eval_tokens": 2048,
    "ce_tokens": 512,
    "n_checkpoints": 0,
    "evals": QUICK_EVALS,
}


class _TinyAndWritable(WritableHandler):
    """The tiny Hub's model and texts, from files; everything else takes commits."""

    def _answer(self, body: bytes) -> None:
        tiny = [p.relative_to(self._root) for p in self._root.glob("*/*") if p.is_dir()]
        if any(f"/{name}" in self.path for name in tiny):
            Handler._answer(self, body)
        else:
            super()._answer(body)

    def _describe(self, repo: str, what: str, query: dict[str, list[str]], body: bytes) -> None:
        kind = Handler if (self._root / repo).is_dir() else WritableHandler
        kind._describe(self, repo, what, query, body)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    base = tmp_path_factory.getbasetemp()
    root = build_once((base.parent if base.name.startswith("popen-") else base) / "tiny_hub")
    made = Hub()
    with (
        pytest.MonkeyPatch.context() as patch,
        serving(root, _TinyAndWritable, hub=made) as endpoint,
    ):
        point_clients_at(endpoint, tmp_path_factory.mktemp("huggingface"), patch)
        patch.setenv("HF_TOKEN", WRITER)
        yield made


@pytest.fixture(scope="module")
def theirs(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that was published."""
    folder = tmp_path_factory.mktemp("stock") / "sae"
    script = Path(stock_run.__file__).read_text(encoding="utf-8")
    run = stock_process.run(script, str(folder), REPO, INSIDE)
    assert run.returncode == 0, run.stderr
    assert f"{INSIDE}/runner_cfg.json" in hub.repos[REPO].head("main").files
    return folder


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def study(theirs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert theirs.exists()
    folder = tmp_path_factory.mktemp("checked")
    config = folder / "quick.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    result = _check(folder)
    assert result.exit_code == 0, result.output
    assert f"{SOURCE}: jumprelu, d_sae 256, {HOOK} of {MODEL}, L0 " in result.output
    budget = f"it {stock_run.TOKENS:,}; each of the others {stock_run.TOKENS:,}"
    assert budget in result.output
    return folder / "study"


def _check(folder: Path) -> Result:
    members = "trained,frozen_decoder,soft_frozen_decoder,random,permuted_pairing"
    return call(
        *("check", "--release", REPO, "--sae-id", INSIDE, "--seeds", 3),
        *("--members", members, "--config", folder / "quick.yaml", "--out", folder / "study"),
    )


def test_the_panel_has_its_recipe(study: Path) -> None:
    spec = yaml.safe_load((study / "study.yaml").read_text())["spec"]
    assert spec["architecture"] == "batchtopk"  # though it is exported as jumprelu
    assert spec["dataset"]["path"] == "monology/pile-uncopyrighted"
    assert (spec["lr"], spec["train_batch_size_tokens"]) == (stock_run.LR, 256)
    assert (spec["training_tokens"], spec["context_size"]) == (stock_run.TOKENS, 64)
    assert (spec["d_sae"], spec["seeds"]) == (256, [0, 1, 2])


def test_its_weights_are_the_published_ones(study: Path, theirs: Path) -> None:
    ours, stock = SAE.load_from_disk(study / "published"), SAE.load_from_disk(theirs)
    for name, value in stock.state_dict().items():
        assert value.equal(ours.state_dict()[name]), name
    record = json.loads((study / "published" / "record.json").read_text())
    assert record["source"] == SOURCE
    assert record["tokens_recorded"] == record["training_tokens"] == stock_run.TOKENS


def test_every_member_and_it_were_scored_alike(study: Path) -> None:
    table = load_results(study)
    scored = table[(table["metric"] == "explained_variance_paper") & (table["task"] == "")]
    assert len(scored) == 3 * 5 + 1
    theirs = scored[scored["constraint"] == "published"]["value"].item()
    random = scored[scored["constraint"] == "random"]["value"]
    assert theirs > random.max()  # it was trained, after all
    broken = scored[scored["constraint"] == "permuted_pairing"]["value"]
    assert theirs > broken.max() + 0.5


def test_the_report_says_where_it_falls(study: Path) -> None:
    text = (study / "report.md").read_text()
    assert SOURCE in text
    assert "above all 3 seeds" in text
    assert "published" not in (study / "verdicts.csv").read_text()
    placements = (study / "placements.csv").read_text()
    assert "random" in placements
    assert "permuted_pairing" in placements


def test_again_repeats_nothing(study: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in study.rglob("*.safetensors")}
    result = _check(study.parent)
    assert result.exit_code == 0, result.output
    assert "Evaluated 0, kept 16" in result.output
    assert before == {p: p.stat().st_mtime_ns for p in study.rglob("*.safetensors")}


def test_their_sae_is_not_published_again(study: Path, hub: Hub) -> None:
    result = call("publish", study, "alice/checked", "--license", "mit")
    assert result.exit_code == 0, result.output
    files = hub.repos["alice/checked"].head("main").files
    weights = {path for path in files if path.endswith(".safetensors")}
    assert len([p for p in weights if p.endswith("sae_weights.safetensors")]) == 3 * 4
    assert not [p for p in weights if "permuted" in p]  # its weights, rearranged
    theirs = (study / "published" / "sae_weights.safetensors").read_bytes()
    assert theirs not in files.values()
    card = files["README.md"].decode()
    assert SOURCE in card
    # What is said of theirs, with figures, and then what is said of ours, with figures.
    order = ("## Where the published SAE falls", "-published-batchtopk", "## Does the SAE that")
    places = [card.index(words) for words in (*order, "-differences-batchtopk")]
    assert places == sorted(places)
    assert str(study.parent) not in "".join(
        files[p].decode() for p in files if p.endswith((".md", ".yaml", ".csv", ".html"))
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--release", REPO], "release: needs --sae-id"),
        ([], "source: name one"),
        ([SOURCE, "--release", REPO, "--sae-id", INSIDE], "source: name one"),
        ([f"{REPO}:nowhere", "--tokens", "9999"], f"sae: {REPO}:nowhere cannot be loaded"),
        ([SOURCE, "--tokens", "many"], "tokens: 'many' is not a whole number above 0"),
        ([SOURCE, "--suites", "cores"], "did you mean core"),
        (["panel.yaml", "--tokens", "9999"], "tokens: is for the check of an SAE"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, theirs: Path, tmp_path: Path
) -> None:
    assert theirs.exists()
    result = call("check", *arguments, "--out", tmp_path / "study")
    assert result.exit_code == 1
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "study").exists()
