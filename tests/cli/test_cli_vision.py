"""The vision commands, as typed."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sae_baselines.errors import UserError
from sae_baselines_cli.vision import app
from tests.study.patches.tiny import save_dinov2, save_photographs, tiny_vision


def test_train_then_page(tmp_path: Path):
    model, photographs = save_dinov2(tmp_path / "m"), save_photographs(tmp_path / "p")
    few = {"members": ["trained", "random:kaiming"], "n_checkpoints": 0}
    panel = tmp_path / "panel.yaml"
    panel.write_text(yaml.safe_dump(tiny_vision(model, photographs, **few)))
    out = str(tmp_path / "study")
    run = CliRunner().invoke(app, ["train", str(panel), "--out", out, "--device", "cpu"])
    assert run.exit_code == 0, run.output
    for part in ("batchtopk_l0_6_seed_0", "random_kaiming", "photographs", "Single seed"):
        assert part in run.output
    shown = CliRunner().invoke(app, ["page", out, "--latents", "1", "--blind"])
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "study" / "vision_blind.html").exists()
    assert "vision_blind_key.json" in shown.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nothing.yaml"], "cannot be read"),
        (["page", "nothing"], "cannot be read"),
        (["demo", "--seeds", "0,x"], "is not a list of whole numbers"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str):
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
