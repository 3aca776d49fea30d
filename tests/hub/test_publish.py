"""Publishing to a Hub that accepts commits, and loading back from it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from sae_lens import SAE
from safetensors.torch import load_file, save_file

from sae_baselines.errors import UserError
from sae_baselines.files import read_json, write_sealed
from sae_baselines.hub import CardOptions, Publication, plan_publication, publish, upload
from sae_baselines.hub.layout import PlannedFile, manifest_of
from sae_baselines.study.folder import write_provenance
from sae_baselines.study.spec import spec_from_dict, spec_hash
from tests import stock_process
from tests.helpers import WITHOUT_US
from tests.hub.conftest import MEMBERS, REPO, SEEDS, write_again
from tests.loopback_hub import Commit, Hub

FOLDERS = [f"batchtopk/l0_6/seed_{seed}/{m}" for seed in SEEDS for m in MEMBERS]
OPTIONS = CardOptions("mit")
# Another package's code runs in this test's process; here there is none but SAELens.
STOCK = (
    WITHOUT_US
    + """
import json
import torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE

repo, folders, data = json.loads(sys.argv[1])
x = load_file(f"{data}/x.safetensors")["x"]
found = {}
for folder in folders:
    sae = SAE.from_pretrained(repo, folder)
    latents = sae.encode(x)
    found[folder + ":latents"], found[folder + ":out"] = latents, sae.decode(latents)
assert not [name for name in sys.modules if name.startswith("sae_baselines")]
save_file({k: v.detach().contiguous() for k, v in found.items()}, f"{data}/out.safetensors")
"""
)


def commits(hub: Hub) -> list[Commit]:
    return hub.repos[REPO].branches["main"]


def test_the_repo_holds_exactly_what_was_planned_the_card_after_the_saes(
    planned: Publication, hub: Hub
):
    done = publish(planned)
    files = hub.repos[REPO].head("main").files
    expected = {file.path for file in planned.files}
    assert set(files) == expected | {".gitattributes"}
    for file in planned.files:
        local = file.source if isinstance(file.source, bytes) else file.source.read_bytes()
        assert files[file.path] == local
    assert expected >= {"results.csv", "verdicts.csv", "report.md", "report.html", "study.yaml"}
    assert {path.rpartition("/")[0] for path in expected if "seed_" in path} == set(FOLDERS)
    # One commit per SAE, in SAELens' words, then one with everything else.
    assert hub.messages(REPO)[1:-1] == [f"Upload SAE {folder}" for folder in FOLDERS]
    last = commits(hub)[-1]
    assert "README.md" in last.changed
    assert not [path for path in last.changed if "seed_" in path]
    assert (done.saes, done.uploaded, done.unchanged) == (6, len(expected), 0)
    assert done.commit == last.sha


@pytest.mark.usefixtures("hub")
def test_stock_saelens_loads_every_member_and_computes_the_same(
    planned: Publication, study: Path, tmp_path: Path
):
    publish(planned)
    x = 20 * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    save_file({"x": x}, tmp_path / "x.safetensors")
    arguments = json.dumps([REPO, FOLDERS, str(tmp_path)])
    run = stock_process.run(STOCK, arguments)
    assert run.returncode == 0, run.stderr
    found = load_file(tmp_path / "out.safetensors")
    assert len(found) == 2 * len(FOLDERS)
    for seed in SEEDS:
        for member in MEMBERS:
            sae = SAE.load_from_disk(study / f"panels/batchtopk_l0_6_seed_{seed}/{member}")
            latents = sae.encode(x)
            folder = f"batchtopk/l0_6/seed_{seed}/{member}"
            assert torch.equal(found[f"{folder}:latents"], latents)
            assert torch.equal(found[f"{folder}:out"], sae.decode(latents))
            assert latents.count_nonzero() > 0


def test_publishing_again_uploads_nothing(planned: Publication, study: Path, hub: Hub):
    publish(planned)
    hub.requests.clear()
    # Read anew from the folder: nothing in what is published depends on when.
    done = publish(plan_publication(study, REPO, "main", OPTIONS))
    assert (done.uploaded, done.deleted, done.commit) == (0, 0, "")
    assert done.unchanged == len(planned.files)
    assert hub.writes() == []
    assert len(commits(hub)) == len(FOLDERS) + 2


def test_only_what_changed_is_uploaded(own_study: Path, planned: Publication, hub: Hub):
    publish(planned)
    before = len(commits(hub))
    member = own_study / "panels/batchtopk_l0_6_seed_3/random"
    weights = load_file(member / "sae_weights.safetensors")
    weights["b_dec"] += 1
    save_file(weights, member / "sae_weights.safetensors")
    write_provenance(member, read_json(member / "provenance.json") or {})
    hub.requests.clear()
    done = publish(plan_publication(own_study, REPO, "main", OPTIONS))
    changed = commits(hub)[before:]
    assert [c.message for c in changed] == ["Upload SAE batchtopk/l0_6/seed_3/random"]
    assert (done.uploaded, done.saes, done.commit) == (1, 1, changed[0].sha)
    assert [p for m, p in hub.requests if m == "PUT"] != []
    assert len([p for m, p in hub.requests if m == "PUT"]) == 1

    measured = member / "measurement.json"
    told = json.loads(measured.read_text())
    write_sealed(measured, {**told, "explained_variance": -0.75})
    write_again(own_study)
    hub.requests.clear()
    publish(plan_publication(own_study, REPO, "main", OPTIONS))
    assert len(commits(hub)) == before + 2
    last = commits(hub)[-1]
    assert {"results.csv", "verdicts.csv", "report.md", "README.md"} <= set(last.changed)
    assert "study.yaml" not in last.changed
    assert not [path for path in last.changed if "seed_" in path]
    assert not [p for m, p in hub.requests if m == "PUT"]


def test_an_interrupted_publish_goes_on_where_it_stopped(planned: Publication, hub: Hub):
    hub.failures["POST", "/commit/main"] = "drop"
    hub.after = 2
    with pytest.raises(UserError, match="the same command goes on") as stopped:
        publish(planned)
    assert "\n" not in str(stopped.value)
    assert hub.messages(REPO)[1:] == [f"Upload SAE {folder}" for folder in FOLDERS[:2]]
    assert "README.md" not in hub.repos[REPO].head("main").files
    hub.failures.clear()
    hub.requests.clear()
    done = publish(planned)
    assert done.saes == len(FOLDERS) - 2
    assert hub.messages(REPO)[1:-1] == [f"Upload SAE {folder}" for folder in FOLDERS]
    # The third SAE's weights had arrived, only its commit had not.
    uploads = [path for method, path in hub.requests if method == "PUT"]
    assert len(uploads) == len(set(uploads)) == 2 * (len(FOLDERS) - 3)
    assert publish(planned).uploaded == 0


def test_control_c_leaves_what_is_there_and_the_next_run_goes_on(
    planned: Publication, hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    real = upload.upload_saes_to_huggingface

    def first_only(saes: dict[str, Path], *arguments: object, **options: object) -> None:
        real(dict([next(iter(saes.items()))]), *arguments, **options)  # pyright: ignore[reportArgumentType]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(upload, "upload_saes_to_huggingface", first_only)
        with pytest.raises(KeyboardInterrupt):
            publish(planned)
    assert len(commits(hub)) == 2
    assert publish(planned).saes == len(FOLDERS) - 1


def test_what_an_earlier_publish_left_over_goes_and_nothing_else(
    planned: Publication, hub: Hub
):
    publish(planned)
    tree = commits(hub)[-1].files
    own = {"LICENSE": b"mine", "figures/mine.png": b"mine", "batchtopk/notes.txt": b"mine"}
    tree.update(own)
    old = f"{FOLDERS[-1]}/sae_weights.safetensors"
    figure = next(f.path for f in planned.others if f.path.endswith(".svg"))
    fewer = dataclasses.replace(
        planned,
        members={k: v for k, v in planned.members.items() if k != FOLDERS[-1]},
        others=tuple(f for f in planned.others if f.path != figure),
    )
    done = publish(fewer)
    last = commits(hub)[-1]
    gone = {f.path for f in planned.members[FOLDERS[-1]]} | {figure}
    assert old in gone
    assert set(last.deleted) == gone
    assert done.deleted == 4
    assert own.items() <= last.files.items()


def test_a_manifest_that_was_tampered_with_deletes_nothing_of_the_user(
    planned: Publication, hub: Hub
):
    card = planned.card_text.replace('"figures": [', '"figures": ["LICENSE", "../x", ')
    card = card.replace('"members": [', '"members": [".", "figures", "data/l0_6", ')
    files = {"LICENSE": b"mine", "cfg.json": b"mine", "figures/cfg.json": b"mine"}
    hub.make(REPO, {**files, "README.md": card.encode()})
    assert publish(planned).deleted == 0
    assert files.items() <= hub.repos[REPO].head("main").files.items()


def refused(planned: Publication, hub: Hub) -> str:
    """Publish, which is refused in one line that names the flag, and writes nothing."""
    hub.requests.clear()
    with pytest.raises(UserError, match=r"replace them with --replace, or choose") as error:
        publish(planned)
    assert hub.writes() == []
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("card", [b"---\nlicense: mit\n---\n# mine\n", b"# \xe9t\xe9"])
def test_a_card_of_somebody_else_is_not_overwritten_in_silence(
    card: bytes, planned: Publication, hub: Hub
):
    hub.make(REPO, {"README.md": card})
    assert "README.md that sae-baselines did not make" in refused(planned, hub)
    publish(planned, replace=True)
    assert hub.repos[REPO].head("main").files["README.md"] == planned.card.source


def test_a_repo_of_another_study_is_refused(planned: Publication, hub: Hub):
    publish(planned)
    other = dataclasses.replace(planned, study="other")
    assert "holds study 'tiny', not 'other'" in refused(other, hub)
    # Asked for, it replaces; the other study's SAEs stay.
    assert publish(other, replace=True).deleted == 0


def test_a_study_of_the_same_name_with_another_spec_is_another_study(
    planned: Publication, own_study: Path, hub: Hub
):
    publish(planned)
    told = yaml.safe_load((own_study / "study.yaml").read_text())
    told["spec"]["lr"] *= 2
    told["spec_hash"] = spec_hash(spec_from_dict(told["spec"]))
    (own_study / "study.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
    write_again(own_study)
    other = plan_publication(own_study, REPO, "main", OPTIONS)
    message = refused(other, hub)
    assert "another study that is called 'tiny' too" in message
    assert planned.spec_hash[:8] in message
    assert other.spec_hash[:8] in message
    fewer = dataclasses.replace(other, members={})
    assert publish(fewer, replace=True).deleted == 0
    # Now the repo is that study's.
    assert publish(other).deleted == 0


def test_a_card_that_was_edited_is_not_overwritten_in_silence(planned: Publication, hub: Hub):
    publish(planned)
    files = commits(hub)[-1].files
    card = files["README.md"]
    files["README.md"] = card.replace(b"## Caveats", b"Read this first.\n\n## Caveats")
    assert "its README.md was edited after it was published" in refused(planned, hub)
    # What the Hub or an editor does to line ends is no edit.
    files["README.md"] = card.replace(b"\n", b"\r\n")
    assert publish(planned).uploaded == 1
    assert commits(hub)[-1].files["README.md"] == card
    commits(hub)[-1].files["README.md"] = card + b"\nMine.\n"
    assert publish(planned, replace=True).uploaded == 1


def test_files_of_somebody_else_are_not_overwritten_in_silence(planned: Publication, hub: Hub):
    weights = f"{FOLDERS[0]}/sae_weights.safetensors"
    own = {"results.csv": b"mine", "report.md": b"mine", "study.yaml": b"mine"}
    hub.make(REPO, {**own, weights: b"mine", "notes.md": b"mine"})
    message = refused(planned, hub)
    assert f"holds other files where this study's go: {weights}, " in message
    assert " and 1 more; " in message
    publish(planned, replace=True)
    assert commits(hub)[-1].files["notes.md"] == b"mine"


def test_files_of_somebody_else_beside_a_published_study_are_not_overwritten_either(
    planned: Publication, hub: Hub
):
    figure = next(f.path for f in planned.others if f.path.endswith(".svg"))
    told = manifest_of(planned.card_text)
    assert told is not None
    before = dataclasses.replace(
        told, members=told.members[1:], figures=tuple(f for f in told.figures if f != figure)
    )
    card = planned.card_text.replace(told.comment(), before.comment())
    publish(dataclasses.replace(planned, card=PlannedFile("README.md", card.encode())))
    weights = f"{FOLDERS[0]}/sae_weights.safetensors"
    commits(hub)[-1].files.update({figure: b"mine", weights: b"mine", "results.csv": b"old"})
    # results.csv is of every publish.
    assert f"this study's go: {weights}, {figure}; " in refused(planned, hub)


def test_private_is_private_and_a_public_repo_is_not_taken_for_it(
    planned: Publication, hub: Hub
):
    publish(planned, private=True)
    assert hub.repos[REPO].private
    hub.make(REPO)
    with pytest.raises(UserError, match=r"private: .* is public"):
        publish(planned, private=True)
    assert len(commits(hub)) == 1


def test_a_branch_is_made_and_compared_with_where_it_starts(planned: Publication, hub: Hub):
    publish(planned)
    branch = dataclasses.replace(planned, revision="v2")
    assert publish(branch).uploaded == 0
    assert set(hub.repos[REPO].branches) == {"main", "v2"}
    assert len(commits(hub)) == len(FOLDERS) + 2
