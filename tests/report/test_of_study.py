"""What a report is told of a study's records."""

import json
from pathlib import Path
from typing import Any

import pytest

from sae_baselines.errors import UserError
from sae_baselines.evals import EvalSpec
from sae_baselines.evals.spec import eval_spec_to_dict, store_spec
from sae_baselines.evals.store import EvalStore
from sae_baselines.report import Failure, Note, report_of_study, study_context
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.presets import preset, preset_names

PANEL = "batchtopk_l0_0.5_seed_0"
SPEC = EvalSpec(suites={"core": {}}, seed=7)


def record(name: str, created: str, **changes: Any) -> dict[str, Any]:
    return {
        "suite": "core",
        "name": f"{PANEL}.{name}",
        "facts": {"panel": PANEL, "member": name},
        "notes": [],
        "versions": {"torch": "2.13.0", "numpy": "2.0"},
        "hardware": {"cpu_count": 2, "machine": "x86_64", "gpu": None},
        "created": created,
        **changes,
    }


@pytest.fixture
def study(tmp_path: Path) -> Path:
    StudyFolder(tmp_path).open(preset(preset_names()[0]), resume=False)
    store_spec(tmp_path, SPEC)
    for written in (
        record("a", "2026-01-03T00:00:00+00:00", command="eval s --force", notes=["core: x"]),
        record(
            "b",
            "2026-01-02T00:00:00+00:00",
            command="eval s",
            versions={"torch": "2.14.0", "numpy": "2.0"},
            hardware={"cpu_count": 8, "machine": "x86_64", "gpu": "H"},
        ),
        record("c", "2026-01-01T00:00:00+00:00", command=None),
        record("d", "2026-01-04T00:00:00+00:00", command="eval s"),
    ):
        path = EvalStore(tmp_path).record_file("core", written["name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(written))
    return tmp_path


def test_commands_are_each_once_in_order_of_their_first_result(study: Path):
    assert study_context(study).commands == ["eval s", "eval s --force"]


def test_versions_and_machines_are_those_of_all_records(study: Path):
    found = study_context(study)
    assert found.versions["eval"] == {"torch": "2.13.0, 2.14.0", "numpy": "2.0"}
    assert found.hardware["eval"] == "2 cores, x86_64; 8 cores, x86_64, H"


def test_notes_keep_their_sae_and_settings_are_complete(study: Path):
    found = study_context(study)
    assert found.notes == [Note("core", f"{PANEL}.a", "core: x")]
    assert found.evals == eval_spec_to_dict(SPEC)
    assert found.evals["seed"] == 7


def test_a_failure_is_of_the_sae_its_facts_name(study: Path):
    store = EvalStore(study)
    # A name that would be taken apart wrongly.
    facts = {"panel": PANEL, "member": "v1.5"}
    store.fail("core", f"{PANEL}.v1.5", {"reason": "boom", "facts": facts})
    store.fail("mdl", f"{PANEL}.v1.5", {"reason": "old"})
    assert study_context(study).failures == [
        Failure("core", "v1.5", "boom", PANEL),
        Failure("mdl", f"{PANEL}.v1.5", "old"),
    ]


def test_no_local_place_is_told(tmp_path: Path):
    spec = preset(preset_names()[0])
    spec.model.name, spec.model.label = "/home/someone/models/x", "org/x"
    spec.dataset.path = "~/texts/train.parquet"
    StudyFolder(tmp_path).open(spec, resume=False)
    store = EvalStore(tmp_path)
    command = "sae-baselines eval /home/someone/s --config ../someone/p.yaml"
    written = record("a", "2026-01-01T00:00:00+00:00", command=command)
    written["notes"] = ["read from /home/someone/cache/x.json"]
    path = store.record_file("core", written["name"])
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(written))
    store.fail("mdl", "b", {"reason": "no such file: /home/someone/y"})
    found = study_context(tmp_path)
    assert "someone" not in repr(found)
    assert found.commands == ["sae-baselines eval s --config p.yaml"]
    assert found.spec["model"]["name"] == "x"
    assert found.spec["dataset"]["path"] == "train.parquet"
    assert found.notes[0].text == "read from x.json"
    assert found.failures[0].reason == "no such file: y"


def test_without_results_there_is_no_report(study: Path):
    with pytest.raises(UserError, match=r"results\.csv"):
        report_of_study(study)
