"""What is believed of a study's files: what is there is held to checksums, the rest named."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sae_baselines.errors import UserError
from sae_baselines.evals import load_results, write_results
from sae_baselines.evals import registry as suites
from sae_baselines.evals.results import checked_results, current_results
from sae_baselines.evals.store import EvalStore
from sae_baselines.evals.study import study_targets
from sae_baselines.files import is_sealed, read_json, write_sealed
from sae_baselines.report import report_of_study
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.plan import all_members
from sae_baselines.study.spec import spec_from_dict
from tests.evals.fake_suite import FakeSuite
from tests.tiny_model import tiny_panel

PANEL = "batchtopk_l0_6_seed_"
FILES = ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "provenance.json")
VERSIONS = {"sae-lens": "6"}


def named(seed: int, member: str = "trained") -> str:
    return f"{PANEL}{seed}.{member}"


def ev(table: pd.DataFrame, seed: int, metric: str = "explained_variance") -> float:
    chosen = table[(table["metric"] == metric) & (table["task"] == "")]
    chosen = chosen[(chosen["member"] == "trained") & (chosen["seed"] == seed)]
    return chosen["value"].item()


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of two members and three seeds, as training and evaluation write them."""
    monkeypatch.setitem(suites._suites, "fake", FakeSuite)
    panel = tiny_panel(tmp_path, members=["trained", "frozen_decoder"], seeds=[0, 1, 2])
    spec, folder, store = spec_from_dict(panel), StudyFolder(tmp_path), EvalStore(tmp_path)
    folder.open(spec, resume=False)
    for i, key in enumerate(all_members(spec)):
        for name in FILES:
            folder.member(key).mkdir(parents=True, exist_ok=True)
            content = json.dumps({"versions": VERSIONS}).encode()
            if name.endswith(".safetensors"):
                content = (2).to_bytes(8, "little") + b"{}"  # no tensors
            (folder.member(key) / name).write_bytes(content)
        # All digits are in the table.
        score = 0.5 + i / 64 + i**2 / 1024 + (0.25 if key.member == "trained" else 0)
        measured = {"explained_variance": score, "l0": 6.0, "n_tokens": 64, "d_sae": 128}
        unknown = ("alive", "cos_to_start_mean", "cos_to_start_min", "ce_recovered")
        measured |= {"l0_target": 6.0, "l0_matches": True}
        measured |= dict.fromkeys(unknown)
        write_sealed(folder.member(key) / "measurement.json", measured)
    for i, target in enumerate(study_targets(tmp_path)):
        record = {"suite": "fake", "name": target.name, "facts": target.facts.to_dict()}
        record |= {
            "settings": "s",
            "weights": target.weights,
            "versions": VERSIONS,
            "extras": {},
        }
        record |= {"notes": [], "hardware": {}, "created": "2026-01-01", "command": "eval"}
        (tmp_path / "produced").write_text(json.dumps({"score": 0.5625 + i / 8}))
        store.keep("fake", target.name, tmp_path / "produced", record)
    (tmp_path / "produced").unlink()
    write_results(tmp_path)
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def edit_result(study: Path) -> None:
    edit(EvalStore(study).result_file("fake", named(0)), "0.5625", "0.9375")


@pytest.mark.parametrize("content", ["[]", "{}", '{"score": "x"}', '{"score": 1, "score": 2}'])
def test_a_result_that_its_suite_cannot_read_is_one_line(study: Path, content: str) -> None:
    store = EvalStore(study)
    (result := store.result_file("fake", named(0))).write_text(content)
    record = json.loads((path := store.record_file("fake", named(0))).read_text())
    record["sha256"] = hashlib.sha256(content.encode()).hexdigest()
    write_sealed(path, record)
    with pytest.raises(UserError, match=rf"{result.name}: is damaged .* delete {path.name}"):
        checked_results(study)


def test_settings_that_are_empty_are_none_and_not_the_defaults(study: Path) -> None:
    (study / "evals" / "evals.yaml").write_text("")
    with pytest.raises(UserError, match=r"evals\.yaml: holds no settings; delete it"):
        report_of_study(study)


def test_a_table_without_rows_is_no_report(study: Path) -> None:
    head = (study / "results.csv").read_text().splitlines()[0]
    for folder in ("panels", "evals"):
        shutil.rmtree(study / folder)
    (study / "results.csv").write_text(f"{head}\n")
    (study / "results.csv.sha256").unlink()
    with pytest.raises(UserError, match=r"results\.csv has a header and no rows") as said:
        report_of_study(study)
    assert "\n" not in str(said.value)


def edit_record(study: Path) -> None:
    edit(EvalStore(study).record_file("fake", named(0)), '"seed": 0', '"seed": 1')


def edit_measurement(study: Path) -> None:
    path = StudyFolder(study).root / "panels" / f"{PANEL}0" / "trained" / "measurement.json"
    edit(path, "0.75", "0.875")


@pytest.mark.parametrize("rows_alone", [False, True])
@pytest.mark.parametrize("change", [edit_result, edit_record, edit_measurement])
def test_an_edited_file_is_refused_wherever_others_are(
    study: Path, change: Callable[[Path], None], rows_alone: bool
) -> None:
    if rows_alone:
        # Another SAE's file is not there, which used to end every check.
        EvalStore(study).result_file("fake", named(1)).unlink()
    change(study)
    for read in (current_results, report_of_study, write_results):
        with pytest.raises(UserError, match="was changed after it was written") as error:
            read(study)
        assert "\n" not in str(error.value)


def test_an_edited_table_is_refused_or_made_again(study: Path) -> None:
    edit(study / "results.csv", ",0.5625", ",0.9375")
    with pytest.raises(
        UserError, match=r"results\.csv was changed .* delete results\.csv\.sha256"
    ):
        load_results(study)
    # Where every file is there the table is what they say.
    table, checks = current_results(study)
    assert ev(table, 0, "score") == 0.5625
    assert ev(load_results(study), 0, "score") == 0.5625
    assert (checks.unverified, checks.edited, checks.unsealed) == ((), (), 0)
    # Its stand-ins for weights are one file.
    panel = table[(table["suite"] == "panel") & (table["metric"] != "same_weights")]
    assert set(panel["n_of"]) == {"tokens"}


def test_what_is_not_there_is_named_and_the_rest_verified(study: Path) -> None:
    EvalStore(study).result_file("fake", named(1)).unlink()
    table, checks = current_results(study)
    assert checks.unverified == (f"fake of {named(1)}",)
    assert not checks.edited
    assert table.equals(load_results(study))
    said = {c.kind: c.text for c in report_of_study(study).caveats}
    assert f"fake of {named(1)}" in said["not verified"]
    # Its number counts as it was written, or not at all.
    edit(study / "results.csv", ",0.5625", ",0.9375")
    with pytest.raises(UserError, match=r"results\.csv was changed"):
        report_of_study(study)


def test_a_table_of_an_old_study_gives_way_to_the_files(study: Path) -> None:
    EvalStore(study).result_file("fake", named(1)).unlink()
    (study / "results.csv.sha256").unlink()
    edit(study / "results.csv", ",0.5625", ",0.9375")
    before = (study / "results.csv").read_bytes()
    table, checks = current_results(study)
    assert ev(table, 0, "score") == 0.5625
    (edited,) = checks.edited
    assert edited.startswith(
        "fake/score of batchtopk_l0_6_seed_0/trained: 0.9375 in results.csv"
    )
    # What nothing vouches for does not get a checksum.
    assert (study / "results.csv").read_bytes() == before
    said = {c.kind: c.text for c in report_of_study(study).caveats}
    assert "0.9375" in said["edited"]


def test_a_panel_without_evaluations_is_verified_too(study: Path) -> None:
    for path in (study / "evals").rglob("*.json"):
        path.unlink()
    (study / "results.csv").unlink()
    with pytest.raises(UserError, match="run sae-baselines eval first"):
        report_of_study(study)
    write_results(study)
    (study / "results.csv.sha256").unlink()
    edit(study / "results.csv", ",0.75,", ",0.875,")
    table, _ = current_results(study)
    assert ev(table, 0) == 0.75
    assert load_results(study).equals(table)


def test_files_of_older_versions_are_believed_and_counted(study: Path) -> None:
    path = study / "panels" / f"{PANEL}0" / "trained" / "measurement.json"
    assert is_sealed(path)
    measured = read_json(path)
    assert measured is not None
    path.write_text(json.dumps(measured))
    assert read_json(path) == measured
    _, checks = checked_results(study)
    assert checks.unsealed == 1
    said = {c.kind: c.text for c in report_of_study(study).caveats}
    assert said["no checksum"].startswith("1 file with results has no checksum")


def test_a_result_without_a_record_does_not_count(study: Path) -> None:
    EvalStore(study).fail("fake", named(1), {"reason": "broke"})
    table, checks = current_results(study)
    scored = table[table["suite"] == "fake"]
    assert not ((scored["seed"] == 1) & (scored["member"] == "trained")).any()
    assert not checks.unverified


def test_the_checksum_of_a_table_is_that_of_sha256sum(study: Path) -> None:
    data = (study / "results.csv").read_bytes()
    line = f"{hashlib.sha256(data).hexdigest()}  results.csv\n"
    assert (study / "results.csv.sha256").read_text() == line
    # git may have changed the ends of lines.
    (study / "results.csv").write_bytes(data.replace(b"\n", b"\r\n"))
    assert ev(load_results(study), 0, "score") == 0.5625


@pytest.mark.parametrize("data", [{"a": float("nan")}, {"b": [1, {"c": None}], "a": "ü"}, {}])
def test_sealed_json_is_read_back_whatever_the_order_of_its_keys(
    data: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    write_sealed(path, data)
    assert repr(read_json(path)) == repr(data)
    text = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(text.items()))))
    assert str(read_json(path) or {}).count(":") == str(data).count(":")
    path.write_text(json.dumps({**text, "more": 1}))
    with pytest.raises(UserError, match="was changed after it was written"):
        read_json(path)


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_measurement_that_is_not_there_is_named_and_kept(
    study: Path, evaluated: bool
) -> None:
    """Its rows used to go, and results.csv was written again without them."""
    if evaluated:
        EvalStore(study).result_file("fake", named(1)).unlink()
    else:
        shutil.rmtree(study / "evals")
        write_results(study)
    before, stored = (study / "results.csv").read_bytes(), load_results(study)
    (study / "panels" / f"{PANEL}0" / "trained" / "measurement.json").unlink()
    table, checks = current_results(study)
    lost = [name for name in checks.unverified if name.startswith("panel ")]
    assert lost == [f"panel of {named(0)}"]
    assert (study / "results.csv").read_bytes() == before
    # Also that it is the same SAE as others, which are there.
    key = ["metric", "panel", "member", "task"]
    both = stored[stored["suite"] == "panel"].merge(table, on=["suite", *key])
    assert len(both) == (stored["suite"] == "panel").sum()
