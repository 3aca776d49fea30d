"""What a ReLU's threshold costs, against simulation and an SAE whose answer is known."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

RECIPES = Path(__file__).parents[2] / "benchmarks" / "recipes"


@pytest.fixture
def shrinkage(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("shrinkage")


def _row(**fields: Any) -> dict[str, str]:
    made = {"data": "pca96", "base": "standard", "member": "trained", "seed": "0", **fields}
    return {"l0_as_trained": "1", "threshold_factor": "", "l0_test": "12", **made}


def test_what_is_measured_at_another_l0_has_lost_nothing_that_can_be_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(RECIPES.parent))
    tables = importlib.import_module("render_recipes").guard_tables(
        {
            "rows": [
                _row(ratio="1", ev_test="0.8"),
                _row(ratio="0.9", ev_test="0.79"),
                _row(ratio="0.5", ev_test="0.7", l0_test="6"),
            ]
        }
    )
    lost = [line.split(" | ")[4] for line in tables.splitlines()[-3:]]
    assert lost == ["another L0", "0.010", "0.000"]


@pytest.mark.parametrize("rate", [0.01, 0.06, 0.3])
def test_what_a_relu_keeps_of_a_normal_latent(shrinkage: Any, rate: float) -> None:
    z = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0)).double()
    t = z.quantile(1 - rate)
    over, whole = (z - t).clamp(min=0), (z[z > t] ** 2).sum()
    simulated = (z * over).sum() ** 2 / over.pow(2).sum() / whole
    assert shrinkage.kept_of_normal(rate) == pytest.approx(float(simulated), abs=0.01)


def test_thresholds_are_given_back_where_they_were_taken_off(shrinkage: Any) -> None:
    sae = StandardSAE(StandardSAEConfig(d_in=4, d_sae=4, apply_b_dec_to_input=False))
    threshold = torch.tensor([0.2, 0.4, 0.8, 1.6])
    sae.W_enc.data = sae.W_dec.data = torch.eye(4)
    sae.b_enc.data = -threshold
    x = torch.randn(4096, 4, generator=torch.Generator().manual_seed(0))
    _, factors = shrinkage.fitted(sae, x)
    assert factors.tolist() == pytest.approx([1, 1], abs=1e-4)
    kept = torch.where(x > threshold, x, 0)
    error = float((x - kept).pow(2).sum() / (x - x.mean(dim=0)).pow(2).sum())
    assert shrinkage.explained(sae, x, 1, 1) == pytest.approx(1 - error, abs=1e-5)
    assert shrinkage.explained(sae, x, 1, 0) < 1 - error
