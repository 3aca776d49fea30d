"""Latents side by side: the page, the blind page and its score, the section of a report."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from sae_lens import SAE
from scipy.stats import binom

from sae_baselines.errors import UserError
from sae_baselines.pipeline import GalleryOptions, gallery, loose_gallery
from sae_baselines.report.blind import score
from sae_baselines.report.build import Report
from sae_baselines.report.context import study_context
from sae_baselines.report.gallery import line, section_of
from sae_baselines.report.write import to_html, to_markdown
from sae_baselines.study import train_study
from sae_baselines.study.contexts import CONTEXTS_FILE, NEAR, TOP, Context, Contexts
from sae_baselines.study.folder import StudyFolder, load_study
from sae_baselines.study.latents import Latents
from sae_baselines.study.plan import all_members
from sae_baselines.study.reference.recipe import CheckOptions
from sae_baselines.study.spec import spec_from_dict
from tests.report.page import Node, parse
from tests.tiny_model import save_tiny_model, tiny_panel, tiny_text

MEMBERS = ["trained", "frozen_decoder", "random"]


@pytest.fixture(scope="module")
def text() -> Dataset:
    return tiny_text()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, text: Dataset) -> Path:
    model = save_tiny_model(tmp_path_factory.mktemp("model"))
    panel = tiny_panel(model, members=MEMBERS, seeds=[0, 1])
    root = tmp_path_factory.mktemp("study")
    train_study(spec_from_dict({**panel, "training_tokens": 128 * 4}), root, dataset=text)
    return root


@pytest.fixture(scope="module")
def page(study: Path, text: Dataset) -> Node:
    options = GalleryOptions(per_decade=3, named=[("trained", _alive(study)[0])])
    (path,) = gallery(study, options, dataset=text)
    return parse(path.read_text(encoding="utf-8"))


def _alive(study: Path) -> list[int]:
    folder = StudyFolder(study)
    key = next(k for k in all_members(load_study(study)[0]) if k.member == "trained")
    latents = Latents.load(folder.member(key))
    assert latents is not None
    return (latents.firings > 0).nonzero()[0].tolist()


def _context(tokens: list[str], on: list[int], acts: list[float], **facts: Any) -> Context:
    given = {"kind": TOP, "value": 1.0, "peak": 0, "place": 0, "ids": [0] * len(tokens)}
    return Context(**{**given, "tokens": tokens, "on": on, "acts": acts, **facts})


def test_text_is_text_whatever_is_in_it():
    html = line(_context(["<script>", "&amp;", "\n", " x"], [0, 3], [1.0, 0.1]), 1.0)
    assert "<script>" not in html
    assert "&lt;script&gt;</mark>&amp;amp;" in html
    assert '<mark class="a6 p" title="1">' in html
    # The space is not marked, and the line break is seen.
    assert '\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS} <mark class="a1" title="0.1">x' in html


def test_what_shading_says_is_said_in_words():
    html = line(_context(["a", " b"], [1], [2.5], peak=1, value=2.5), 5.0)
    assert '<span class="unseen">2.5 on “b”: </span>' in html
    html = line(_context(["a", " b"], [], [], peak=1, kind=NEAR), 5.0)
    assert '<mark class="n p" title="silent">b</mark>' in html
    assert "silent on “b”" in html
    assert "50 % on “b”" in line(_context(["a", " b"], [1], [2.5], peak=1, value=2.5), 5.0, "%")
    # A character over two tokens, the second of which is the peak.
    html = line(_context(["é", ""], [1], [3.0], peak=1, value=3.0), 3.0)
    assert '<mark class="a6 p" title="3">é</mark>' in html


def test_columns_are_members_and_rows_fire_about_as_often(study: Path, page: Node):
    (table,) = page.all("table", "latents")
    assert [th.text for th in table.all("thead")[0].all("th")] == ["", *MEMBERS]
    spec, folder = load_study(study)[0], StudyFolder(study)
    keys = {k.member: k for k in all_members(spec) if k.panel.seed == 0}
    rows = table.all("tr", "row")
    assert len(rows) > 3
    for row in rows[1:]:
        rates = []
        for cell, member in zip(row.all("td"), MEMBERS, strict=True):
            who, facts = cell.all("p", "who")[0], cell.all("p", "facts")[0]
            name, index = who.text.split(" latent ")
            assert name == member
            latents = Latents.load(folder.member(keys[member]))
            assert latents is not None
            rates.append(latents.rates[int(index)])
            assert f"({latents.firings[int(index)]:,})" in facts.text
            assert ("cosine to its start" in facts.text) == (member != "random")
            near = cell.all("p", "moves")[-1].text
            assert "seed 1" in near
            assert near.count("(0.") + near.count("(1.") + near.count("(-") == len(MEMBERS)
        assert max(rates) < 10 * min(rates)
    assert rows[0].all("td")[0].all("a")[0].text == f"latent {_alive(study)[0]}"
    ids = [n.attributes["id"] for n in page.all() if "id" in n.attributes]
    assert len(ids) == len(set(ids))


def test_the_page_needs_nothing_but_itself(page: Node):
    for node in page.all():
        for name in ("src", "href", "srcset", "action"):
            assert node.attributes.get(name, "#").startswith("#"), node
    assert not page.all("link")
    style = "".join(n.text for n in page.all("style"))
    assert "url(" not in style
    assert "@import" not in style


def test_a_page_of_five_members_and_forty_rows_is_under_five_megabytes(
    study: Path, text: Dataset, tmp_path: Path
):
    shutil.copytree(study, own := tmp_path / "study")
    sizes, cells = [], []
    for per_decade in (1, 8):
        (path,) = gallery(own, GalleryOptions(per_decade=per_decade), dataset=text)
        sizes.append(path.stat().st_size)
        rows = (
            parse(path.read_text(encoding="utf-8")).all("table", "latents")[0].all("tr", "row")
        )
        cells.append(len(rows) * len(MEMBERS))
    assert cells[1] > cells[0]
    of_a_cell = (sizes[1] - sizes[0]) / (cells[1] - cells[0])
    assert sizes[0] + 5 * 40 * of_a_cell < 5e6


def test_the_text_is_read_once_and_resumed(
    study: Path, page: Node, text: Dataset, monkeypatch: pytest.MonkeyPatch
):
    del page
    files = sorted(study.glob(f"panels/*seed_0/*/{CONTEXTS_FILE}"))
    assert len(files) == len(MEMBERS)
    before = [file.read_bytes() for file in files]
    files[1].unlink()
    encoded = []
    load = SAE.load_from_disk
    monkeypatch.setattr(SAE, "load_from_disk", lambda p, **o: encoded.append(p) or load(p, **o))
    options = GalleryOptions(per_decade=3, named=[("trained", _alive(study)[0])])
    gallery(study, options, dataset=text)
    assert encoded == [files[1].parent]
    assert [file.read_bytes() for file in files] == before


def test_a_blind_page_hides_who_is_who_and_answers_are_scored(
    study: Path, text: Dataset, tmp_path: Path
):
    options = GalleryOptions(per_decade=9, blind=True, out=tmp_path / "blind.html")
    page, key = gallery(study, options, dataset=text)
    root = parse(page.read_text(encoding="utf-8"))
    told = json.loads(key.read_text())
    pairs = root.all("fieldset")
    assert len(pairs) == len(told["pairs"]) > 2
    (form,) = root.all("form")
    assert form.attributes["data-page"] == told["page"]
    for pair, answer in zip(pairs, told["pairs"].values(), strict=True):
        assert not any(m in pair.all("table")[0].text for m in ("frozen_decoder", "random"))
        assert not pair.all("p", "facts") + pair.all("p", "moves") + pair.all("a")
        assert {n.attributes["value"] for n in pair.all("input")} == {"A", "B"}
        assert answer[answer["trained"]].startswith("trained:")
        assert {b.text for b in pair.all("b")} >= {"100 %", "0 %"}
    assert {a["trained"] for a in told["pairs"].values()} == {"A", "B"}
    against = [a["against"] for a in told["pairs"].values()]
    assert set(against) == {"frozen_decoder", "random"}
    # As often, and not in turn.
    assert abs(against.count("random") - len(against) / 2) <= 0.5
    assert any(a == b for a, b in pairwise(against))

    answers = tmp_path / "answers.json"
    right = {pair: answer["trained"] for pair, answer in told["pairs"].items()}
    wrong = {**right, "1": "AB".replace(right["1"], "")}
    del wrong["2"]
    answers.write_text(json.dumps({"page": told["page"], "answers": wrong}))
    found, unanswered = score(key, answers)
    n = len(right) - 1
    assert (found[0].right, found[0].n, unanswered) == (n - 1, n, 1)
    # Clopper and Pearson: what is seen is 2.5 % at either end, from the binomial itself.
    assert binom.sf(n - 2, n, found[0].interval.low) == pytest.approx(0.025)
    assert binom.cdf(n - 1, n, found[0].interval.high) == pytest.approx(0.025)
    assert sum(t.n for t in found[1:]) == n

    for page_id, said, message in (
        ("other", right, "answers another page than that of"),
        (told["page"], {"99": "A"}, "answers another page"),
        (told["page"], {}, "answers no pair"),
        (told["page"], {"1": 2}, "answers.1: 2 is no text"),
    ):
        answers.write_text(json.dumps({"page": page_id, "answers": said}))
        with pytest.raises(UserError, match=message):
            score(key, answers)
    answers.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is damaged"):
        score(key, answers)
    with pytest.raises(UserError, match="there is no file"):
        score(tmp_path / "none.json", answers)


def test_a_report_shows_some_of_them_and_links_the_page(study: Path, page: Node):
    del page
    context = study_context(study)
    section = section_of(context.contexts, context.latents, "studies/tiny")
    assert section is not None
    report = Report(title="t", lede="l", sections=(section,))
    root = parse(to_html(report))
    rows = root.all("tr", "row")
    assert 3 < len(rows) <= 6
    assert root.section("latents").all("a")[0].attributes["href"] == "latents.html"
    markdown = to_markdown(report)
    assert "sae-baselines latents studies/tiny" in markdown
    assert "<mark" not in markdown
    assert section_of({}, context.latents, "x") is None


def test_other_viewers_files_hold_what_is_kept(study: Path, text: Dataset, tmp_path: Path):
    options = GalleryOptions(
        per_decade=2,
        members=["trained"],
        neuronpedia=tmp_path / "n",
        saedashboard=tmp_path / "d",
    )
    _, folder, dashboard = gallery(study, options, dataset=text)
    kept = Contexts.load(next(study.glob("panels/*seed_0/trained")))
    assert kept is not None
    lines = {}
    for name in ("features", "activations"):
        packed = (folder / name / "batch-0.jsonl.gz").read_bytes()
        lines[name] = [json.loads(row) for row in gzip.decompress(packed).splitlines()]
        # The importer takes the columns from the first line.
        assert len({tuple(sorted(row)) for row in lines[name]}) == 1
    assert {int(f["index"]) for f in lines["features"]} == set(kept.latents)
    for feature in lines["features"]:
        latent = kept.latents[int(feature["index"])]
        assert feature["frac_nonzero"] == latent.firings / kept.n_tokens
        assert sum(feature["freq_hist_data_bar_heights"]) == latent.firings
        own = [a for a in lines["activations"] if a["index"] == feature["index"]]
        assert len(own) == sum(c.kind != NEAR for c in latent.contexts)
        assert max(a["maxValue"] for a in own) == latent.largest
        for a in own:
            assert a["layer"] == feature["layer"] == folder.name
            assert len(a["values"]) == len(a["tokens"])
            assert a["values"][a["maxValueTokenIndex"]] == max(a["values"]) == a["maxValue"]
    assert len({a["id"] for a in lines["activations"]}) == len(lines["activations"])
    for name in ("model", "release", "sourceset", "source"):
        (row,) = (folder / f"{name}.jsonl").read_text().splitlines()
        assert json.loads(row)["creatorId"]
    data = json.loads(dashboard.read_text())
    assert set(data["feature_data_dict"]) == {str(i) for i in kept.latents}
    one = data["feature_data_dict"][str(min(kept.latents))]
    for group in one["sequence_data"]["seq_group_data"]:
        for sequence in group["seq_data"]:
            assert len(sequence["token_ids"]) == len(sequence["feat_acts"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (GalleryOptions(panel="x"), "panel: 'x' is unknown"),
        (GalleryOptions(members=["trainde"]), "'trainde' is unknown; did you mean trained"),
        (GalleryOptions(named=[("x", 1)]), "latent: 'x' is unknown"),
        (GalleryOptions(named=[("trained", 10**6)]), "has latents 0 to 127, not 1000000"),
        (GalleryOptions(members=["trained"], blind=True), "needs the trained SAE and another"),
    ],
)
def test_bad_input_is_one_line(
    study: Path, page: Node, text: Dataset, options: GalleryOptions, message: str
):
    del page
    with pytest.raises(UserError, match=re.escape(message)):
        gallery(study, options, dataset=text)


def test_members_of_another_model_are_refused(study: Path, text: Dataset):
    path = next(study.glob("panels/*seed_0/frozen_decoder/cfg.json"))
    before = path.read_text()
    cfg = json.loads(before)
    cfg["metadata"]["model_name"] = "another"
    path.write_text(json.dumps(cfg))
    try:
        with pytest.raises(UserError, match=r"is of another blocks\.1\.hook_resid_post and"):
            gallery(study, dataset=text)
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    ("field", "message"),
    [("images", "vision page shows its latents"), ("settings", "there is no text to show")],
)
def test_studies_without_text_say_so(tmp_path: Path, field: str, message: str):
    (tmp_path / "study.yaml").write_text(f"spec: {{name: x, {field}: {{}}}}")
    with pytest.raises(UserError, match=message):
        gallery(tmp_path)


def test_saes_of_no_study_are_read_on_the_text_that_is_named(
    study: Path, text: Dataset, tmp_path: Path
):
    root = study / "panels"
    (panel,) = [p for p in root.iterdir() if p.name.endswith("seed_0")]
    sources = [panel / "trained", panel / "frozen_decoder"]
    dataset = tmp_path / "text.jsonl"
    text.to_json(dataset)
    spec = load_study(study)[0]
    sizes = {"calibration_tokens": spec.calibration_tokens, "eval_tokens": spec.eval_tokens}
    about = CheckOptions(model=spec.model.name, dataset=str(dataset), overrides=sizes)
    wanted = GalleryOptions(per_decade=2, saedashboard=tmp_path / "files")
    written = loose_gallery(sources, tmp_path, wanted, about)
    assert written[0] == tmp_path / "latents.html"
    found = parse(written[0].read_text(encoding="utf-8"))
    (table,) = found.all("table", "latents")
    names = [th.text for th in table.all("thead")[0].all("th")]
    assert names == ["", "trained", "frozen_decoder"]
    # Two of each decade in which both have latents.
    assert len(table.all("tr", "row")) == 4
    assert all(
        "frozen_decoder" in td.all("p", "moves")[-1].text
        for td in (row.all("td")[0] for row in table.all("tr", "row"))
    )
    # Two of one name are called by more of where they are.
    (other,) = [p for p in root.iterdir() if p.name.endswith("seed_1")]
    same = [sources[0], other / "trained"]
    blind = loose_gallery(same, tmp_path, GalleryOptions(per_decade=2, blind=True), about)
    against = json.loads(blind[1].read_text())["pairs"]["1"]["against"]
    assert against == f"{other.name}.trained"
    for named, wrong in (
        ([sources[0], sources[0]], "named twice"),
        ([sources[0], _of_another_hook(other / "trained", tmp_path)], "different models"),
    ):
        with pytest.raises(UserError, match=wrong):
            loose_gallery(named, tmp_path, wanted, about)


def _of_another_hook(folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "moved"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "cfg.json").read_text())
    config["metadata"]["hook_name"] = "blocks.1.hook_mlp_out"
    (copy / "cfg.json").write_text(json.dumps(config))
    return copy


# As of the readers' own packages; their other requirements exclude today's SAELens.
_READERS = (
    "sae-dashboard==0.8.0",
    "neuronpedia==1.2.1",
    *("decode-clt==0.0.1", "eindex-callum==0.1.2"),
    *("dataclasses-json==0.6.7", "marshmallow==3.26.1", "typing-inspect==0.9.0"),
    *("mypy-extensions==1.1.0", "python-dotenv==1.1.1"),
)
_READ = """
import gzip, json, sys
from pathlib import Path
from neuronpedia.np_activation import Activation
from neuronpedia.types.common.activation import NPActivation
from sae_dashboard.components_config import ActsHistogramConfig, SequencesConfig
from sae_dashboard.data_writing_fns import save_feature_centric_vis
from sae_dashboard.layout import Column, SaeVisLayoutConfig
from sae_dashboard.sae_vis_data import SaeVisConfig, SaeVisData
from sae_lens import SAE

from sae_baselines.study.folder import load_study
from sae_baselines.study.language_model import load_language_model

study, folder, features, dashboard, page = map(Path, sys.argv[1:])
spec = load_study(study)[0]
model = load_language_model(spec.model, spec.hook_name, "cpu")
layout = SaeVisLayoutConfig(columns=[Column(
    ActsHistogramConfig(), SequencesConfig(buffer=None, stack_mode="stack-all"))])
config = SaeVisConfig(hook_point=spec.hook_name, features=[], feature_centric_layout=layout)
data = SaeVisData.load_json(str(dashboard), config, model, SAE.load_from_disk(folder))
save_feature_centric_vis(data, page)
rows = [json.loads(row) for row in gzip.open(features / "activations" / "batch-0.jsonl.gz")]
for row in rows:
    NPActivation(**row)
# The client refuses the -1 that their own converter writes for most active contexts.
read = [Activation.from_np_db_json({**row, "source": row["layer"]})
        for row in rows if row["binContains"] >= 0]
print(json.dumps({"latents": sorted(data.feature_data_dict), "read": len(read)}))
"""


@pytest.mark.slow
def test_other_viewers_own_code_reads_the_files(study: Path, text: Dataset, tmp_path: Path):
    target = tmp_path / "readers"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target]
    subprocess.run([*command, *_READERS], check=True)
    folder = next(study.glob("panels/*seed_0/trained"))
    options = GalleryOptions(
        per_decade=2,
        members=["trained"],
        neuronpedia=tmp_path / "n",
        saedashboard=tmp_path / "d",
    )
    _, features, dashboard = gallery(study, options, dataset=text)
    page = tmp_path / "page.html"
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _READ, study, folder, features, dashboard, page],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(target), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    told = json.loads(found.stdout.splitlines()[-1])
    kept = Contexts.load(folder)
    assert kept is not None
    assert told["latents"] == sorted(set(map(int, told["latents"])) & set(kept.latents))
    assert len(told["latents"]) > 1
    assert told["read"] > len(told["latents"])
    assert page.stat().st_size > 1000
