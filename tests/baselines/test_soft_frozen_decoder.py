import copy
import gc
import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import SAE
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Shard

from sae_baselines.baselines import project_to_cap_, soft_frozen
from sae_baselines.errors import UserError
from tests.helpers import (
    BASES,
    BATCH,
    D_IN,
    D_SAE,
    AnySAE,
    activations,
    bare_loop,
    batches,
    checked,
    compile_like_the_runner,
    cosines,
    dense_step,
    differing,
    make_sae,
    make_trainer,
    matrix_products,
    on_two_ranks,
    only_checkpoint,
    resume,
    step_input,
    train,
    weights,
)
from tests.sparse_or_dense import sparse_first

TAU = 0.8
FAST = 5e-2  # a learning rate at which rows reach the edge within a few steps

OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": lambda p: torch.optim.Adam(p, lr=FAST),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=FAST, weight_decay=0.1),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9),
    "Adam, one tensor at a time": lambda p: torch.optim.Adam(p, lr=FAST, foreach=False),
}


def soft(base: str, **options: Any) -> tuple[AnySAE, torch.Tensor]:
    """A soft-frozen SAE and a copy of its start, which the tests measure from."""
    sae = make_sae(f"soft_frozen_decoder_{base}", **options)
    return sae, sae.W_dec.detach().clone()


def assert_inside(sae: AnySAE, start: torch.Tensor, tau: float = TAU) -> None:
    assert cosines(sae.W_dec, start).min() >= tau - 1e-6


def assert_inside_and_binding(sae: AnySAE, start: torch.Tensor, tau: float = TAU) -> None:
    """Inside, and not for want of trying: some rows sit on the edge."""
    assert_inside(sae, start, tau)
    assert (cosines(sae.W_dec, start) < tau + 1e-5).any()


def assert_same_directions(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.dtype == torch.float32
    torch.testing.assert_close(a, b, rtol=0, atol=2e-7)


@pytest.mark.parametrize("base", [*BASES, "matching_pursuit"])
def test_the_bound_holds_after_every_step_of_saelens_trainer_and_after_fit(base: str) -> None:
    sae, start = soft(base)
    before = weights(sae)
    train(sae, 30, checked(batches(), lambda: assert_inside(sae, start)), lr=FAST)
    assert_inside_and_binding(sae, start)
    after = weights(sae)
    for name, _ in sae.named_parameters():
        assert not torch.equal(after[name], before[name]), name
    assert_same_directions(after["W_dec_start"], start)
    # Norms are free; only directions are bounded.
    assert (sae.W_dec.norm(dim=1) - 1).abs().max() > 0.05


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("base", ["standard", "batchtopk", "gated"])
def test_the_bound_holds_after_every_step_of_a_bare_loop(base: str, name: str) -> None:
    sae, start = soft(base)
    optimizer = OPTIMISERS[name](sae.parameters())
    bare_loop(sae, optimizer, 40, clip=1.0, check=lambda: assert_inside(sae, start))
    assert_inside_and_binding(sae, start)


def test_the_bound_holds_with_autocast_clipping_and_parameter_groups() -> None:
    sae, start = soft("batchtopk")
    rest = [p for n, p in sae.named_parameters() if n != "W_dec"]
    groups = [{"params": [sae.W_dec], "lr": 0.1}, {"params": rest}]
    optimizer = torch.optim.Adam(groups, lr=1e-3)
    check = lambda: assert_inside(sae, start)  # noqa: E731
    bare_loop(sae, optimizer, 40, autocast=True, clip=1.0, check=check)
    assert_inside_and_binding(sae, start)


@sparse_first
def test_the_bound_holds_when_compiled() -> None:
    sae, start = soft("batchtopk")
    plain = copy.deepcopy(sae)
    compile_like_the_runner(sae)
    train(sae, 30, checked(batches(), lambda: assert_inside(sae, start)), lr=FAST)
    assert_inside_and_binding(sae, start)
    train(plain, 30, lr=FAST)
    torch.testing.assert_close(sae.W_dec, plain.W_dec, rtol=1e-3, atol=1e-3)


def test_the_bound_holds_for_several_saes_in_lockstep() -> None:
    names = ["soft_frozen_decoder", "soft_frozen_decoder_gated", "seeded_batchtopk"]
    saes = {name: make_sae(name) for name in names}
    starts = {name: sae.W_dec.detach().clone() for name, sae in saes.items()}
    hooks = dict(zip(names, ["one", "two", "one"], strict=True))

    def check() -> None:
        for name in names[:2]:
            assert_inside(saes[name], starts[name])

    def stream() -> Iterator[dict[str, torch.Tensor]]:
        one, two = batches(seed=0), checked(batches(seed=1), check)
        for a, b in zip(one, two, strict=True):
            yield {"one": a, "two": b}

    config = SAETrainerConfig(
        total_training_samples=30 * BATCH, train_batch_size_samples=BATCH, lr=FAST, lr_end=FAST
    )
    MultiSAETrainer(config, saes, hooks, stream()).fit()
    for name in names[:2]:
        assert_inside_and_binding(saes[name], starts[name])
    assert cosines(saes["seeded_batchtopk"].W_dec, starts["seeded_batchtopk"]).min() < TAU


def test_every_file_that_a_run_saves_is_inside(tmp_path: Path) -> None:
    sae, start = soft("batchtopk")
    trainer = make_trainer(
        sae,
        40,
        lr=FAST,
        n_checkpoints=4,
        checkpoint_path=str(tmp_path),
        save_final_checkpoint=True,
    )
    trainer.fit()
    sae.save_inference_model(tmp_path / "inference")
    files = sorted(tmp_path.glob("*/sae_weights.safetensors"))
    assert len(files) == 6
    for file in files:
        stored = load_file(file)
        assert cosines(stored["W_dec"], start).min() >= TAU - 1e-6, file.parent.name
        if file.parent.name == "inference":
            assert "W_dec_start" not in stored
        else:
            assert_same_directions(stored["W_dec_start"], start)


@pytest.mark.parametrize("base", BASES)
def test_the_exported_sae_is_inside_and_holds_no_start(tmp_path: Path, base: str) -> None:
    sae, start = soft(base)
    train(sae, 30, lr=FAST)
    sae.save_inference_model(tmp_path)
    exported = SAE.load_from_disk(tmp_path)
    assert cosines(exported.W_dec, start).min() >= TAU - 1e-6
    assert "W_dec_start" not in exported.state_dict()


@pytest.mark.parametrize("base", ["batchtopk", "jumprelu", "gated"])
def test_after_a_resume_the_original_start_counts(tmp_path: Path, base: str) -> None:
    sae, start = soft(base)
    train(sae, 40, lr=FAST, n_checkpoints=1, checkpoint_path=str(tmp_path))
    other, other_start = soft(base, init_seed=9)
    assert not torch.equal(other_start, start)
    check = lambda: assert_inside(other, start)  # noqa: E731
    trainer = make_trainer(other, 40, checked(batches(first=21), check), lr=FAST)
    resume(trainer, only_checkpoint(tmp_path))
    # A cap around the resumed rows would let them move on.
    assert not torch.equal(other.W_dec, start)
    trainer.fit()
    assert_inside_and_binding(other, start)
    assert differing(weights(other), weights(sae)) == []


def test_after_loading_from_disk_the_original_start_counts(tmp_path: Path) -> None:
    sae, start = soft("topk")
    train(sae, 20, lr=FAST)
    sae.save_model(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path)
    assert_same_directions(loaded.get_buffer("W_dec_start"), start)
    train(loaded, 20, checked(batches(), lambda: assert_inside(loaded, start)), lr=FAST)
    assert_inside_and_binding(loaded, start)


def test_a_deep_copy_is_projected_too_and_apart_from_the_original() -> None:
    sae, start = soft("batchtopk")
    train(sae, 5)
    kept = weights(sae)
    twin = copy.deepcopy(sae)
    optimizer = torch.optim.Adam(twin.parameters(), lr=FAST)
    bare_loop(twin, optimizer, 30, check=lambda: assert_inside(twin, start))
    assert_inside_and_binding(twin, start)
    assert differing(weights(sae), kept) == []
    grandchild = copy.deepcopy(copy.deepcopy(twin))
    train(grandchild, 5, checked(batches(), lambda: assert_inside(grandchild, start)), lr=0.3)
    assert_inside_and_binding(grandchild, start)


def test_the_projection_keeps_no_sae_alive() -> None:
    sae, _ = soft("topk")
    train(sae, 2)
    gone = weakref.ref(sae)
    del sae
    gc.collect()
    assert gone() is None


def test_another_optimisers_step_leaves_a_hand_edited_sae_alone() -> None:
    sae, start = soft("topk")
    with torch.no_grad():
        sae.W_dec.copy_(-start)
    other = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(sae.W_dec, -start)


def test_weights_edited_by_hand_are_projected_before_they_are_saved(tmp_path: Path) -> None:
    for save in ("save_model", "save_inference_model"):
        sae, start = soft("topk", rescale_acts_by_decoder_norm=False)
        with torch.no_grad():
            sae.W_dec.copy_(-3 * start)
        getattr(sae, save)(tmp_path / save)
        stored = load_file(tmp_path / save / "sae_weights.safetensors")["W_dec"]
        assert cosines(stored, start).min() >= TAU - 1e-6
        torch.testing.assert_close(stored.norm(dim=1), torch.full((D_SAE,), 3.0))
        assert torch.equal(sae.W_dec, stored)


@pytest.mark.parametrize("tau", [1.0, 0.95, 0.0, -0.5])
def test_other_caps(tau: float) -> None:
    sae, start = soft("gated", tau=tau)
    train(
        sae,
        30,
        checked(batches(), lambda: assert_inside(sae, start, tau)),
        lr=max(FAST, 1 - tau),
    )
    assert_inside_and_binding(sae, start, tau)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), tau=st.floats(-0.9, 1.0), d_in=st.integers(1, 8))
def test_any_cap_in_any_dimension_holds_through_training(
    seed: int, tau: float, d_in: int
) -> None:
    sae, start = soft("standard", d_in=d_in, d_sae=8, tau=tau, init_seed=seed)
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.3)
    bare_loop(sae, optimizer, 6, check=lambda: assert_inside(sae, start, tau))


def test_inside_the_cap_training_is_the_unconstrained_training_bit_for_bit() -> None:
    sae, _ = soft("gated", tau=-0.999)
    free = make_sae("sparse_gated")
    train(sae, 30)
    train(free, 30)
    assert differing(weights(sae), weights(free)) == ["W_dec_start"]


def test_its_decoder_gradient_is_computed() -> None:
    # Of the six products of training everything, only the input's is gone.
    sae, _ = soft("batchtopk", **dense_step("batchtopk"))
    assert matrix_products(sae) == 5 + 2 / BATCH


def test_tau_is_eight_tenths_unless_told() -> None:
    assert soft("batchtopk")[0].cfg.tau == TAU
    assert make_sae("soft_frozen_decoder", tau=0.5).cfg.tau == 0.5


@pytest.mark.parametrize("tau", [-1.0, -2.0, 1.01, math.nan, "0.8"])
def test_an_impossible_tau_is_refused_by_name(tau: Any) -> None:
    with pytest.raises(ValueError, match="tau"):
        soft("batchtopk", tau=tau)


@pytest.mark.parametrize("base", ["standard", "topk", "batchtopk", "jumprelu", "gated"])
def test_whitening_is_refused_with_the_reason(base: str) -> None:
    with pytest.raises(ValueError, match=r"normalize_activations.*leave their cap"):
        soft(base, normalize_activations="covariance_whitening")


@pytest.mark.parametrize("base", ["standard", "topk", "batchtopk", "jumprelu", "gated"])
def test_folding_the_input_scale_leaves_the_rows_inside(base: str) -> None:
    sae, start = soft(base, normalize_activations="expected_average_only_in")
    trainer = make_trainer(
        sae, 30, checked(batches(), lambda: assert_inside(sae, start)), lr=FAST
    )
    trainer.activation_scaler.scaling_factor = 0.013
    trainer.fit()
    assert sae.W_dec.norm(dim=1).min() > 10
    assert_inside_and_binding(sae, start)


@pytest.mark.parametrize("base", BASES)
def test_in_bfloat16_the_bound_holds_up_to_the_rounding(tmp_path: Path, base: str) -> None:
    sae, start = soft(base, dtype="bfloat16")
    assert sae.W_dec.dtype == torch.bfloat16

    def check() -> None:
        assert cosines(sae.W_dec, start).min() >= TAU - 4e-3

    data = (batch.to(torch.bfloat16) for batch in batches())  # SAELens' gated SAE needs it
    train(sae, 30, checked(data, check), lr=FAST)
    check()
    assert (cosines(sae.W_dec, start) < TAU + 4e-3).any()
    sae.save_model(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path)
    assert loaded.W_dec.dtype == torch.bfloat16
    assert cosines(loaded.get_buffer("W_dec_start"), start).min() > 1 - 1e-5


@pytest.mark.usefixtures("other_dtypes")
@pytest.mark.parametrize("tau", [0.8, 0.5, -0.3])
def test_antipodal_bfloat16_rows_go_to_the_edge(tau: float) -> None:
    sae, start = soft("topk", dtype="bfloat16", tau=tau)
    with torch.no_grad():
        sae.W_dec.copy_(-start)
    optimizer = torch.optim.SGD(sae.parameters(), lr=0.0)
    bare_loop(sae, optimizer, 1)
    cos = cosines(sae.W_dec, start)
    torch.testing.assert_close(cos, torch.full_like(cos, tau), rtol=0, atol=4e-3)


@pytest.mark.usefixtures("other_dtypes")
def test_fresh_bfloat16_rows_are_inside_every_cap_and_stay_put() -> None:
    sae, start = soft("topk", dtype="bfloat16", tau=1.0)
    optimizer = torch.optim.SGD(sae.parameters(), lr=0.0)
    bare_loop(sae, optimizer, 1)
    assert torch.equal(sae.W_dec, start)


@pytest.mark.usefixtures("other_dtypes")
@settings(max_examples=50)
@given(seed=st.integers(0, 2**31), tau=st.floats(0.2, 0.95), d_in=st.integers(2, 4))
def test_bfloat16_rows_that_are_inside_are_untouched(seed: int, tau: float, d_in: int) -> None:
    sae, start = soft("topk", dtype="bfloat16", d_in=d_in, d_sae=64, tau=tau)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(64, d_in, generator=generator)
    with torch.no_grad():
        sae.W_dec.add_(noise.to(torch.bfloat16))
    before = sae.W_dec.detach().clone()
    optimizer = torch.optim.SGD(sae.parameters(), lr=0.0)
    bare_loop(sae, optimizer, 1)
    inside = cosines(before, start) >= tau
    assert torch.equal(sae.W_dec[inside], before[inside])
    assert cosines(sae.W_dec, start).min() >= tau - 4e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float16])
def test_casting_the_sae_does_not_round_the_start(dtype: torch.dtype) -> None:
    sae, start = soft("topk")
    sae.to(dtype)
    assert sae.W_dec.dtype == dtype
    assert_same_directions(sae.get_buffer("W_dec_start"), start)
    sae.to(torch.float32)
    sae.to("cpu")
    assert_same_directions(sae.get_buffer("W_dec_start"), start)
    train(sae, 10, checked(batches(), lambda: assert_inside(sae, start)), lr=FAST)


def test_a_row_with_nan_stays_and_the_others_are_kept_inside() -> None:
    sae, start = soft("topk")
    with torch.no_grad():
        sae.W_dec.copy_(-start)
        sae.W_dec[3, 2] = math.nan
        sae.W_dec[4] = 0
    optimizer = torch.optim.SGD(sae.parameters(), lr=0.0)
    sae.training_forward_pass(step_input(sae, activations(4)))
    optimizer.step()
    assert torch.isnan(sae.W_dec).sum() == 1
    assert torch.equal(sae.W_dec[4], torch.zeros(D_IN))
    rest = [i for i in range(D_SAE) if i not in (3, 4)]
    assert cosines(sae.W_dec[rest], start[rest]).min() >= TAU - 1e-6


def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each projection reads, recorded from now on."""
    sizes: list[int] = []

    def project(rows: torch.Tensor, *more: Any) -> torch.Tensor:
        sizes.append(rows.shape[0])
        return project_to_cap_(rows, *more)

    monkeypatch.setattr(soft_frozen, "project_to_cap_", project)
    return sizes


def step_rows(sae: AnySAE, optimizer: torch.optim.Optimizer, rows: list[int]) -> None:
    """A large step of the optimiser on a few decoder rows, towards their antipodes."""
    loss = (sae.W_dec[rows] * sae.W_dec_start[rows]).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


EDITS: dict[str, Callable[[AnySAE, torch.Tensor], Any]] = {
    "data": lambda sae, start: sae.W_dec.data[30].copy_(-start[30]),
    "new data": lambda sae, start: setattr(sae.W_dec, "data", -start),
    "in place": lambda sae, start: sae.W_dec.requires_grad_(False)[30].copy_(-start[30]),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_row_that_never_fires_is_back_inside_after_the_next_step(
    name: str, edit: str
) -> None:
    sae, start = soft("batchtopk")
    optimizer = OPTIMISERS[name](sae.parameters())
    for rows in ([0, 1], [1, 2], [2]):  # never 30
        step_rows(sae, optimizer, rows)
        EDITS[edit](sae, start)
        sae.W_dec.requires_grad_(True)
        assert cosines(sae.W_dec, start).min() < TAU
        step_rows(sae, optimizer, rows)
        assert_inside(sae, start)


def test_who_updates_without_a_torch_optimiser_projects() -> None:
    page = Path(__file__).parents[2] / "docs" / "baselines.md"
    assert "without a torch optimiser, call `sae.project()`" in page.read_text("utf-8")
    sae, start = soft("batchtopk")
    with torch.no_grad():
        sae.W_dec.sub_(2 * start)
    assert int(sae.project()) == D_SAE
    assert_inside(sae, start)


def _train_sharded(rank: int, folder: Path, dim: int) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2
    )
    sae, start = soft("topk", d_sae=D_SAE + 1 - dim)  # FSDP2 splits rows unevenly, not columns
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    fully_shard(sae, mesh=mesh, shard_placement_fn=lambda p: Shard(min(dim, p.ndim - 1)))
    register_fsdp_forward_method(sae, "training_forward_pass")
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.3)
    said = []
    try:
        for batch in activations(40).split(8):
            sae.training_forward_pass(step_input(sae, batch)).loss.backward()
            optimizer.step()
    except UserError as error:
        said = [str(error)]
    whole = sae.W_dec.full_tensor().detach()
    torch.save((whole, start, said), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="torch 2.6's FSDP2 has no CPU streams"
)
@pytest.mark.parametrize("dim", [0, 1])
def test_rows_that_fsdp_shares_out_are_inside_and_split_rows_are_refused(
    tmp_path: Path, dim: int
) -> None:
    on_two_ranks(_train_sharded, tmp_path, dim)
    for rank in range(2):
        whole, start, said = torch.load(tmp_path / f"{rank}.pt")
        if dim == 0:
            assert said == []
            assert TAU - 1e-6 <= cosines(whole, start).min() < TAU + 1e-5
        else:
            assert len(said) == 1
            assert said[0].startswith("W_dec: is split over ranks as")


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda p: torch.optim.AdamW(p, lr=0.3, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9),
        lambda p: torch.optim.RMSprop(p, lr=0.3),
    ],
    ids=["decaying weights", "sgd", "rmsprop"],
)
def test_with_another_optimiser_every_row_is_looked_at(
    make_optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, start = soft("batchtopk")
    optimizer = make_optimizer(sae.parameters())
    sizes = looked_at(monkeypatch)
    for rows in ([0], [1], [2]):
        step_rows(sae, optimizer, rows)
        assert_inside(sae, start)
    assert sizes == [D_SAE] * 3


def test_loaded_weights_and_edits_bring_every_row_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sae, start = soft("batchtopk")
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.3)
    sizes = looked_at(monkeypatch)
    step_rows(sae, optimizer, [0])
    step_rows(sae, optimizer, [0])
    state = weights(sae)
    state["W_dec"][5] = -state["W_dec"][5]  # outside its cap
    sae.load_state_dict(state)
    step_rows(sae, optimizer, [0])
    assert sizes == [D_SAE] * 3
    assert_inside(sae, start)
    with torch.no_grad():
        sae.W_dec[7] *= -1
    step_rows(sae, optimizer, [0])
    assert sizes[3:] == [D_SAE]
    assert_inside(sae, start)


def test_each_optimiser_moves_the_rows_it_has_momentum_for() -> None:
    sae, start = soft("batchtopk")
    one = torch.optim.Adam(sae.parameters(), lr=0.3)
    other = torch.optim.Adam(sae.parameters(), lr=0.3)
    for optimizer, rows in ((one, [0]), (other, [9]), (one, [0]), (other, [0])):
        step_rows(sae, optimizer, rows)
        assert_inside(sae, start)
    one.load_state_dict(copy.deepcopy(other.state_dict()))
    step_rows(sae, one, [0])
    assert_inside(sae, start)
    # Loaded into the moments that are there, as a distributed checkpoint is.
    one.state[sae.W_dec]["exp_avg"][20] = 1.0
    step_rows(sae, one, [0])
    assert_inside(sae, start)


def test_gradients_that_are_gone_before_the_projection_do_not_matter() -> None:
    sae, start = soft("batchtopk", tau=0.99)
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.3)
    optimizer.register_step_post_hook(lambda o, *_: o.zero_grad(set_to_none=False))
    for rows in ([0], [1], [2], [1], [3]):
        step_rows(sae, optimizer, rows)
        assert_inside(sae, start)
