"""What is published of a study, what is not, and which studies are not ready."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from sae_baselines.errors import UserError
from sae_baselines.files import write_sealed
from sae_baselines.hub import CardOptions, Publication, plan_publication
from sae_baselines.hub.ids import (
    check_license,
    check_repo_id,
    check_revision,
    hub_dataset,
    hub_model,
)
from sae_baselines.study.folder import STUDY_FILE
from tests.hub.conftest import REPO
from tests.loopback_hub import WRITER

OPTIONS = CardOptions("mit")
MEMBER = "panels/batchtopk_l0_6_seed_0/random"


def refused(root: Path, repo: str = REPO, options: CardOptions = OPTIONS) -> str:
    with pytest.raises(UserError) as error:
        plan_publication(root, repo, "main", options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nothing_but_the_study_and_no_pattern_of_it(own_study: Path, planned: Publication):
    for stray in ("notes.txt", "figures/mine.png", f"{MEMBER}/runner_cfg.json", "evals/x.json"):
        (own_study / stray).parent.mkdir(exist_ok=True)
        (own_study / stray).write_text(WRITER)
    again = plan_publication(own_study, REPO, "main", OPTIONS)
    assert [file.path for file in again.files] == [file.path for file in planned.files]
    kinds = {file.path.rpartition("/")[2] for files in again.members.values() for file in files}
    assert kinds == {"cfg.json", "sae_weights.safetensors", "sparsity.safetensors"}


@pytest.mark.parametrize(
    "name", ["report.html", f"{MEMBER}/sae_weights.safetensors", "study.yaml"]
)
def test_a_link_out_of_the_study_is_refused(name: str, own_study: Path, tmp_path: Path):
    outside = tmp_path / "outside"
    shutil.move(own_study / name, outside)
    (own_study / name).symlink_to(outside)
    assert "is a link out of the study" in refused(own_study)


def test_a_link_within_the_study_is_harmless(own_study: Path, planned: Publication):
    for name in ("results.csv", f"{MEMBER}/sparsity.safetensors"):
        inside = own_study / f".{Path(name).name}"
        shutil.move(own_study / name, inside)
        (own_study / name).symlink_to(inside)
    again = plan_publication(own_study, REPO, "main", OPTIONS)
    assert [f.sha256 for f in again.files] == [f.sha256 for f in planned.files]


def test_a_token_in_a_file_is_named_by_line_and_not_printed(own_study: Path):
    # Where the report tells commands, which may differ from those of now.
    path = own_study / "report.md"
    clean = path.read_text()
    path.write_text(f"{clean}\n<!-- {WRITER} -->\n")
    line = len(path.read_text().splitlines())
    message = refused(own_study)
    assert f"report.md, line {line}: holds what looks like an access token" in message
    assert WRITER not in message
    path.write_text(clean)
    cfg = own_study / MEMBER / "cfg.json"
    told = json.loads(cfg.read_text())
    told["metadata"]["note"] = WRITER
    cfg.write_text(json.dumps(told))
    assert "batchtopk/l0_6/seed_0/random/cfg.json, line 1" in refused(own_study)


def test_local_places_do_not_go_up(study: Path, planned: Publication):
    stored = (study / STUDY_FILE).read_text()
    assert str(study.parent) in stored
    spec = next(f for f in planned.others if f.path == STUDY_FILE)
    assert isinstance(spec.source, bytes)
    told = yaml.safe_load(spec.source)["spec"]
    assert (told["model"]["name"], told["dataset"]["path"]) == ("tiny-llama", "words.parquet")
    for file in planned.files:
        if not file.path.endswith((".png", ".safetensors")):
            text = (
                file.source if isinstance(file.source, bytes) else file.source.read_bytes()
            ).decode()
            assert str(study.parent) not in text, file.path
    report = (study / "report.md").read_text()
    assert "name: tiny-llama" in report


def test_the_page_that_the_report_links_to_goes_up_where_it_is(own_study: Path):
    def others() -> list[str]:
        return [f.path for f in plan_publication(own_study, REPO, "main", OPTIONS).others]

    assert "latents.html" not in others()
    (own_study / "latents.html").write_text("<p>latents</p>")
    assert "latents.html" in others()
    (own_study / "latents.html").write_text(f"<p>{WRITER}</p>")
    assert "latents.html, line 1: holds what looks like an access token" in refused(own_study)


def test_a_report_that_says_where_it_was_made_is_refused(own_study: Path):
    path = own_study / "report.md"
    path.write_text(f"{path.read_text()}\nsae-baselines eval {own_study.resolve()}\n")
    message = refused(own_study)
    assert "report.md, line" in message
    assert str(own_study) not in message


def test_studies_that_are_not_ready(own_study: Path, tmp_path: Path):
    assert "train one with sae-baselines train" in refused(tmp_path / "nothing")
    (own_study / "report.md").rename(own_study / "kept.md")
    assert f"has no report.md; run sae-baselines report {own_study}" in refused(own_study)
    text = (own_study / "kept.md").read_text()
    # How it was made may differ, what it says may not.
    other = text.replace("| machine (report) |", "| machine (elsewhere) |")
    assert other != text
    (own_study / "report.md").write_text(other)
    plan_publication(own_study, REPO, "main", OPTIONS)
    (own_study / "report.md").write_text(text.replace("**two seeds**", "**many seeds**"))
    assert "report.md is not what the results say now" in refused(own_study)
    (own_study / "report.md").write_text(text)

    measured = own_study / MEMBER / "measurement.json"
    told = measured.read_text()
    measured.write_text(told.replace('"alive": ', '"alive": 1'))
    assert "measurement.json: was changed after it was written" in refused(own_study)
    write_sealed(measured, {**json.loads(told), "alive": 1})
    assert "results.csv is not what the study's files say" in refused(own_study)
    measured.unlink()
    assert "is not finished; run sae-baselines train" in refused(own_study)
    measured.write_text(told)
    (own_study / "results.csv").unlink()
    assert "run sae-baselines eval first" in refused(own_study)


@pytest.mark.parametrize(
    ("field", "command"), [("images", "vision train"), ("settings", "toy")]
)
def test_studies_of_another_kind(field: str, command: str, tmp_path: Path):
    (tmp_path / STUDY_FILE).write_text(yaml.safe_dump({"spec": {"name": "x", field: ["a"]}}))
    message = refused(tmp_path)
    assert f"was made by sae-baselines {command}" in message


def test_a_member_without_a_label_of_the_model_can_be_told_one(own_study: Path):
    options = CardOptions("mit", base_model="pythia-70m-deduped")
    card = plan_publication(own_study, REPO, "main", options).card_text
    assert "base_model: EleutherAI/pythia-70m-deduped" in card
    assert "base-model: 'no such' is no id" in refused(
        own_study, options=CardOptions("mit", base_model="no such")
    )


@pytest.mark.parametrize("repo", ["baselines", "a/b/c", "alice/", "/x", "a b/c", "alice/x..y"])
def test_repo_ids(repo: str):
    check_repo_id(REPO)
    with pytest.raises(UserError, match="is not a repo id; use user/repo"):
        check_repo_id(repo)


def test_licences():
    check_license("cc-by-4.0", None, None)
    check_license("other", "my-license-1.0", "LICENSE")
    for arguments, words in (
        (("apache", None, None), "did you mean apache-2.0"),
        (("other", None, "LICENSE"), "needs --license-name and --license-link"),
        (("other", "My License", "LICENSE"), "use lower case letters"),
        (("mit", "x", None), "belong to --license other"),
        (("other", "x", "nourl"), "license-link: 'nourl' is no address"),
        (("other", "x", "https://a.b/c\nx"), "is no address"),
        (("other", "x", "javascript:alert(1)"), "is no address"),
    ):
        with pytest.raises(UserError, match=words):
            check_license(*arguments)
    check_license("other", "x", "https://example.org/licence?v=1")


@pytest.mark.parametrize(
    "name",
    ["", "a\nb", "a\n", "a b", "-x", "a..b", ".a", "a.", "a/", "a//b", "é", "x.lock", "@{"],
)
def test_what_git_takes_for_no_branch_is_refused(name: str):
    with pytest.raises(UserError, match=r"revision: .* is no name of a branch"):
        plan_publication("nowhere", REPO, name, CardOptions("mit"))
    for good in ("main", "v1.0", "feature/x-2.b_c", "refs/pr/1"):
        check_revision(good)


def test_names_on_the_hub_are_known_or_left_out():
    assert hub_model("pythia-70m-deduped", "pythia-70m-deduped") == (
        "EleutherAI/pythia-70m-deduped"
    )
    assert hub_model("org/new-model", "org/new-model") == "org/new-model"
    # A label, and a local folder without one, even if it is called as a known model.
    assert hub_model("assets/x", "org/model") == "org/model"
    assert hub_model("/models/gpt2", "gpt2") is None
    assert hub_model("no-such-model", "no-such-model") is None
    assert hub_dataset("NeelNanda/pile-10k", "NeelNanda/pile-10k") == "NeelNanda/pile-10k"
    assert hub_dataset("data/train.parquet", "train.parquet") is None
    assert hub_dataset("data/train.parquet", "data/train.parquet") is None
    assert hub_dataset("in memory", "in memory") is None


@pytest.mark.parametrize("part", ["report.html", "figures"])
def test_a_page_or_a_figure_of_other_results_is_refused(part: str, own_study: Path):
    path = own_study / part
    if path.is_dir():
        path = next(p for p in sorted(path.iterdir()) if p.suffix == ".png")
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_text(path.read_text().replace("<h1>", "<h1>Not "))
    message = refused(own_study)
    assert f"{path} is not what the results say now; run sae-baselines report" in message
    path.unlink()
    assert f"has no {path.relative_to(own_study)}; run sae-baselines report" in refused(
        own_study
    )
