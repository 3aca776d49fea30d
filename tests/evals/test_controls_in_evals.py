"""What controls keep and lose, by SAEBench's own suites."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_bench.evals.ravel import main as _main  # noqa: F401  (imported before the clock runs)

from sae_baselines.controls import make_control
from sae_baselines.evals.suites.core import PAPER_EV, Core
from sae_baselines.evals.suites.ravel import Ravel
from sae_baselines.evals.suites.sparse_probing import SparseProbing
from tests.evals.suites.test_core import OPTIONS as CORE
from tests.evals.suites.test_ravel import OPTIONS as RAVEL
from tests.evals.suites.test_sparse_probing import OPTIONS as PROBING
from tests.evals.tiny_hub import RAVEL_MODEL, evaluate_with, suite_call, tiny_sae

PERMUTED = ("permuted_decoder", "permuted_pairing")


def scores(suite: Any, sae: Any, folder: Path, options: Any, batch: int) -> dict[str, float]:
    call = suite_call(suite, folder, options, sae=sae, batch=batch)
    call.expected.unlink(missing_ok=True)
    return {f"{r.metric} {r.task}": r.value for r in evaluate_with(suite, sae, call)[2]}


def _exact(sae: Any) -> Any:
    """An SAE that reconstructs everything: a latent for either sign of each coordinate."""
    d_in = sae.cfg.d_in
    rows = torch.cat([torch.eye(d_in), -torch.eye(d_in)])
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
        sae.b_enc.zero_()
    return sae


@pytest.mark.usefixtures("tiny_hub")
def test_sparse_probing_of_permuted_controls_is_the_sources_to_the_digit(
    tmp_path: Path,
) -> None:
    source = tiny_sae(seed=1)
    suite = SparseProbing()
    scores(suite, tiny_sae(seed=9), tmp_path, PROBING, 32)  # fills the cache for all
    wanted = scores(suite, source, tmp_path, PROBING, 32)
    for kind in PERMUTED:
        assert scores(suite, make_control(source, kind).sae, tmp_path, PROBING, 32) == wanted


@pytest.mark.usefixtures("tiny_hub")
def test_reconstruction_of_permuted_controls_is_destroyed(tmp_path: Path) -> None:
    source = tiny_sae()
    whole = scores(Core(), source, tmp_path, CORE, 8)
    for kind in PERMUTED:
        broken = scores(Core(), make_control(source, kind).sae, tmp_path, CORE, 8)
        assert broken["l0 "] == whole["l0 "]
        assert broken["frac_alive "] == whole["frac_alive "]
        assert broken["mse "] > 1.5 * whole["mse "]
        assert broken[f"{PAPER_EV} "] < min(0.0, whole[f"{PAPER_EV} "])
        assert broken["kl_div_with_sae "] > whole["kl_div_with_sae "]


@pytest.mark.usefixtures("tiny_hub")
def test_editing_with_permuted_controls_fails(tmp_path: Path) -> None:
    source = _exact(tiny_sae(0, 128, "standard", RAVEL_MODEL))
    whole = scores(Ravel(), source, tmp_path, RAVEL, 4)
    for kind in PERMUTED:
        broken = scores(Ravel(), make_control(source, kind).sae, tmp_path, RAVEL, 4)
        assert broken["disentanglement_score "] < whole["disentanglement_score "]
