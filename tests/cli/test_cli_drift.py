"""The drift command, on studies and on SAELens checkpoints."""

import csv
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from sae_baselines.drift import find_drift
from sae_baselines.drift.sphere import expected_best_cosine
from sae_baselines.errors import UserError
from sae_baselines.study import train_study
from sae_baselines.study.spec import spec_from_dict
from sae_baselines_cli import app
from tests import helpers
from tests.tiny_model import save_tiny_model, tiny_panel, tiny_text


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["drift", *(str(a) for a in arguments)])


def words(result: Any) -> str:
    """What was printed, on one line."""
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two studies of the same panel: ``tracked``, and ``blind`` with a control besides."""
    folder = tmp_path_factory.mktemp("studies")
    model = save_tiny_model(folder / "model")
    for name, fractions, controls in (
        ("tracked", [0.05, 0.1, 1.0], []),
        ("blind", [], ["permuted_decoder"]),
    ):
        members = ["trained", "frozen_decoder", *controls]
        panel = tiny_panel(model, members=members, drift=fractions)
        train_study(spec_from_dict(panel), folder / name, dataset=tiny_text())
    return folder


def test_a_study_with_records(studies: Path, tmp_path: Path):
    result = call(studies / "tracked", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    logs = find_drift(studies / "tracked")
    text = words(result)
    for name, log in logs.items():
        assert f"{name}: cosine with the start (init_seed 0, iso)" in text
        for record in log.records:
            assert f"{record['step']} of 40" in text
            assert f"{record['encoder']['mean']:.3f}" in text
            assert f"{record['explained_variance']:.3f}" in text
    assert "128 decoder directions have not moved at all" in text
    assert "By chance in R^32: a random direction has cosine >= 0.8" in text
    assert "10^-4.4" in text  # exp(-32 * 0.64 / 2)
    best = expected_best_cosine(32, 128)
    assert f"The best of 128 has cosine {best:.3f} on average" in text
    with (tmp_path / "out" / "drift.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 2
    (row,) = (
        r
        for r in rows
        if r["sae"].endswith("/trained") and r["side"] == "decoder" and r["fraction"] == "0.1"
    )
    record = logs["batchtopk_l0_6_seed_0/trained"].records[1]
    assert float(row["mean"]) == record["decoder"]["mean"]
    assert float(row["share_at_least_0.9"]) == record["decoder"]["share_at_least"]["0.9"]
    assert float(row["explained_variance"]) == record["explained_variance"]
    figures = sorted(p.name for p in (tmp_path / "out").iterdir() if p.suffix != ".csv")
    assert figures == [
        f"drift-batchtopk_l0_6_seed_0-{member}{suffix}"
        for member in ("frozen_decoder", "trained")
        for suffix in (".png", ".svg")
    ]
    assert (tmp_path / "out" / figures[0]).read_bytes().startswith(b"\x89PNG")
    again = call(studies / "tracked", "--out", tmp_path / "again")
    assert again.exit_code == 0
    for figure in figures:
        first, second = (tmp_path / d / figure for d in ("out", "again"))
        assert first.read_bytes() == second.read_bytes()


def test_a_panel_that_is_looked_at_trains_the_same_weights(studies: Path):
    tracked, blind = (
        sorted((studies / name).glob("panels/*/*/sae_weights.safetensors"))
        for name in ("tracked", "blind")
    )
    blind = [path for path in blind if path.parent.name != "permuted_decoder"]
    assert len(tracked) == len(blind) == 2
    for ours, theirs in zip(tracked, blind, strict=True):
        assert helpers.differing(load_file(ours), load_file(theirs)) == []
    assert find_drift(studies / "blind") == {}


def test_a_study_without_records_gives_its_end_and_says_so(studies: Path):
    result = call(studies / "blind")
    assert result.exit_code == 0, result.output
    text = words(result)
    assert "No records of training: this is the end alone" in text
    assert "as saved" in text
    assert (
        studies / "blind" / "panels" / "batchtopk_l0_6_seed_0" / "permuted_decoder"
    ).is_dir()
    assert "permuted_decoder" not in text  # was not trained, so has no start
    end = find_drift(studies / "tracked")["batchtopk_l0_6_seed_0/trained"].records[-1]
    assert f"{end['decoder']['mean']:.3f}" in text  # the same training
    assert (studies / "blind" / "drift" / "drift.csv").is_file()
    # Asked again, it does not take its own output for records.
    assert words(call(studies / "blind")) == text


def test_checkpoints_of_saelens(tmp_path: Path):
    folder = tmp_path / "run"
    helpers.train(
        helpers.make_sae("batchtopk"),
        20,
        n_checkpoints=3,
        checkpoint_path=str(folder),
        save_final_checkpoint=True,
    )
    result = call(folder)
    assert result.exit_code == 0, result.output
    assert (
        "run: cosine with the start (earliest checkpoint (384 samples), not the true start)"
        in (words(result))
    )
    assert "EV and L0 on" not in result.output
    with (folder / "drift" / "drift.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {r["start"] for r in rows} == {
        "earliest checkpoint (384 samples), not the true start"
    }
    assert rows[0]["mean"] == "1.0"

    result = call(folder, "--start", folder / "final_1280", "--out", tmp_path / "backwards")
    assert result.exit_code == 0, result.output
    with (tmp_path / "backwards" / "drift.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["mean"] == "1.0"
    assert float(rows[0]["mean"]) < 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (False, "is not a folder"),
        (True, r"no checkpoints in .*looked for <samples>/sae_weights.safetensors"),
    ],
)
def test_nothing_to_show(make: bool, message: str, tmp_path: Path):
    folder = tmp_path / "empty"
    if make:
        folder.mkdir()
    result = call(folder)
    assert isinstance(result.exception, UserError)
    with pytest.raises(UserError, match=message):
        raise result.exception
    assert not (folder / "drift").exists()


def test_help_has_examples():
    result = call("--help")
    assert result.exit_code == 0
    assert "Examples" in result.output
    assert "sae-baselines drift studies/demo" in words(result)
