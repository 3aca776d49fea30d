import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from safetensors.torch import load_file, save_file

from sae_baselines.baselines import sample_directions, save_covariance
from sae_baselines.compat.saes import SAE_TRAINING_CLASS_REGISTRY
from sae_baselines.errors import UserError
from tests.helpers import (
    BASES,
    BATCH,
    CONSTRAINTS,
    D_IN,
    D_SAE,
    AnySAE,
    activations,
    bare_loop,
    batches,
    checked,
    compile_like_the_runner,
    cosines,
    differing,
    make_sae,
    make_trainer,
    on_two_ranks,
    random_unit_rows,
    resume,
    step_input,
    train,
    weights,
)
from tests.sparse_or_dense import sparse_first

MEMBERS = (*CONSTRAINTS, "seeded")
WAIT = 200  # samples: complete with the fourth batch
LR = 1e-2


def first_batches(n: int) -> torch.Tensor:
    stream = batches()
    return torch.cat([next(stream) for _ in range(n)])


def cov_directions(x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """What ``cov`` has to give for exactly these activations."""
    covariance = torch.cov(x.double().T)
    return sample_directions(D_SAE, D_IN, seed=seed, scheme="cov", covariance=covariance)


def start_of(sae: AnySAE) -> torch.Tensor:
    """The start that a settled SAE keeps: frozen, or as W_dec_start."""
    constraint = type(sae).baseline_constraint
    if constraint == "frozen_encoder":
        return sae.W_enc.T
    return sae.W_dec if constraint == "frozen_decoder" else sae.get_buffer("W_dec_start")


@settings(max_examples=10)
@given(seed=st.integers(0, 2**40), other=st.integers(0, 2**31))
def test_one_seed_is_one_start_for_every_member_in_any_order(seed: int, other: int) -> None:
    wanted = sample_directions(D_SAE, D_IN, seed=seed)
    order = [f"{m}_{b}" for b in BASES for m in MEMBERS]
    order = order[other % len(order) :] + order[: other % len(order)]
    for i, name in enumerate(order):
        torch.manual_seed(other + i)
        sae = make_sae(name, init_seed=seed)
        assert torch.equal(sae.W_dec, wanted), name
        assert torch.equal(sae.W_enc, wanted.T), name


@pytest.mark.parametrize("member", MEMBERS)
def test_starts_of_different_seeds_differ(member: str) -> None:
    starts = [make_sae(f"{member}_topk", init_seed=s).W_dec.detach() for s in range(4)]
    for i in range(4):
        for j in range(i):
            assert (starts[i] - starts[j]).abs().max() > 0.1


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("member", MEMBERS)
def test_rows_have_unit_norm_and_the_encoder_is_the_transpose(member: str, base: str) -> None:
    sae = make_sae(f"{member}_{base}")
    norm = sae.W_dec.detach().double().norm(dim=1)
    torch.testing.assert_close(norm, torch.ones_like(norm), rtol=0, atol=3e-7)
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert sae.W_enc.is_contiguous()


def test_building_an_sae_twice_from_its_saved_config_gives_the_same_start() -> None:
    sae = make_sae("soft_frozen_decoder", init_seed=17, tau=0.7)
    again = TrainingSAE.from_dict(TrainingSAEConfig.from_dict(sae.cfg.to_dict()).to_dict())
    assert differing(weights(sae), weights(again)) == []
    assert again.cfg.tau == 0.7


def test_a_start_in_bfloat16_is_the_rounded_start() -> None:
    wanted = sample_directions(D_SAE, D_IN, seed=3).to(torch.bfloat16)
    for member in MEMBERS:
        sae = make_sae(f"{member}_topk", dtype="bfloat16", init_seed=3)
        assert torch.equal(sae.W_dec, wanted)
        assert torch.equal(sae.W_enc, wanted.T)


@pytest.mark.parametrize("member", MEMBERS)
def test_cov_from_a_file_of_activations_or_of_their_covariance(
    tmp_path: Path, member: str
) -> None:
    x = activations(500)
    save_file({"activations": x}, tmp_path / "acts.safetensors")
    save_covariance(torch.cov(x.double().T), tmp_path / "cov.safetensors")
    files = {
        "init_activations_path": str(tmp_path / "acts.safetensors"),
        "init_covariance_path": str(tmp_path / "cov.safetensors"),
    }
    for field, path in files.items():
        sae = make_sae(f"{member}_batchtopk", init_scheme="cov", init_seed=2, **{field: path})
        assert sae.start_is_pending is False
        torch.testing.assert_close(
            sae.W_dec.detach(), cov_directions(x, seed=2), rtol=0, atol=1e-6
        )
        assert torch.equal(sae.W_enc, sae.W_dec.T)


# --- cov from the first batches of the run ---


@pytest.mark.parametrize("base", ["standard", "batchtopk", "jumprelu", "gated"])
@pytest.mark.parametrize("member", MEMBERS)
def test_nothing_moves_until_enough_was_seen_and_then_training_starts_from_cov(
    member: str, base: str
) -> None:
    sae = make_sae(f"{member}_{base}", init_scheme="cov", init_cov_samples=WAIT)
    before = weights(sae)
    seen: list[dict[str, torch.Tensor]] = []
    pending: list[Any] = []

    def check() -> None:
        seen.append(weights(sae))
        pending.append(sae.start_is_pending)

    train(sae, 5, checked(batches(), check), lr=LR)
    assert pending == [True, True, True, False]
    for state in seen[:3]:
        assert differing(state, before) == []
    # The batch that completed the wait was trained on: one step of Adam, at most lr long.
    wanted = cov_directions(first_batches(4))
    assert (wanted - before["W_dec"]).abs().max() > 10 * LR
    for moved, start in ((seen[3]["W_dec"], wanted), (seen[3]["W_enc"], wanted.T)):
        assert (moved - start).abs().max() <= 1.01 * LR
    trained = {name for name, _ in sae.named_parameters()}
    assert all(not torch.equal(seen[3][n], before[n]) for n in trained)
    if member != "seeded":
        torch.testing.assert_close(start_of(sae), wanted, rtol=0, atol=1e-6)


def test_the_wait_is_four_samples_per_dimension_unless_told() -> None:
    sae = make_sae("frozen_decoder", init_scheme="cov")
    pending: list[Any] = []
    check = lambda: pending.append(sae.start_is_pending)  # noqa: E731
    train(sae, 6, checked(batches(batch=D_IN), check), batch=D_IN)
    assert pending == [True, True, True, False, False]


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5])
@pytest.mark.parametrize("member", MEMBERS)
def test_a_checkpoint_in_the_wait_or_after_it_resumes_to_the_same_weights(
    tmp_path: Path, member: str, stop_after: int
) -> None:
    options = {"init_scheme": "cov", "init_cov_samples": WAIT}
    sae = make_sae(f"{member}_batchtopk", **options)
    steps = iter(range(1, 100))

    def save_once() -> None:
        if next(steps) == stop_after:
            trainer.save_checkpoint("stop", base_path=tmp_path)

    trainer = make_trainer(sae, 8, checked(batches(), save_once))
    trainer.fit()
    other = make_sae(f"{member}_batchtopk", **options)
    resumed = make_trainer(other, 8, batches(first=stop_after))
    resume(resumed, tmp_path / "stop")
    assert other.start_is_pending is (stop_after < 4)
    resumed.fit()
    assert differing(weights(other), weights(sae)) == []


def test_a_checkpoint_in_the_wait_loads_from_disk(tmp_path: Path) -> None:
    sae = make_sae("frozen_decoder", init_scheme="cov", init_cov_samples=WAIT)
    train(sae, 2)
    sae.save_model(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path)
    assert loaded.start_is_pending is True
    train(loaded, 3, batches(first=2))
    wanted = cov_directions(first_batches(4))
    torch.testing.assert_close(loaded.W_dec, wanted, rtol=0, atol=1e-5)


FINISHING: dict[str, Callable[[AnySAE, Path], Any]] = {
    "export": lambda sae, folder: sae.save_inference_model(folder),
    "scale": lambda sae, _: sae.fold_activation_norm_scaling_factor(2.0),
    "norms": lambda sae, _: sae.fold_W_dec_norm(),
    "and_get": lambda sae, _: sae.fold_and_get_W_dec_norm(),
}


@pytest.mark.parametrize("finish", FINISHING)
@pytest.mark.parametrize("name", ["soft_frozen_decoder_topk", "frozen_encoder_jumprelu"])
def test_nothing_is_exported_or_folded_in_the_wait(
    tmp_path: Path, name: str, finish: str
) -> None:
    sae = make_sae(name, init_scheme="cov", init_cov_samples=WAIT)
    train(sae, 2)
    before = weights(sae)
    message = rf"^init_scheme: .*\(128 of {WAIT}\).*; train on.*$"
    with pytest.raises(UserError, match=message):
        FINISHING[finish](sae, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    assert differing(weights(sae), before) == []
    train(sae, 2)  # which ends the wait
    if finish == "export":
        sae.save_inference_model(tmp_path)
        stored = load_file(tmp_path / "sae_weights.safetensors")
        assert not [key for key in stored if key.startswith("init_pending")]


@settings(max_examples=25, deadline=None)
@given(
    member=st.sampled_from(MEMBERS),
    base=st.sampled_from(["topk", "gated", "matching_pursuit"]),
    keys=st.sets(st.sampled_from(["W_dec", "W_enc", "b_dec", "W_dec_start"])) | st.none(),
    assign=st.booleans(),
    nested=st.booleans(),
)
def test_weights_that_are_loaded_in_the_wait_are_the_start(
    member: str, base: str, keys: set[str] | None, assign: bool, nested: bool
) -> None:
    name = f"{member}_{base}"
    if name not in SAE_TRAINING_CLASS_REGISTRY:
        return
    sae = make_sae(name, init_scheme="cov", init_cov_samples=WAIT)
    train(sae, 1)
    state = weights(make_sae(name, init_seed=9))
    if keys is not None:
        state = {key: value for key, value in state.items() if key in keys}
    into = torch.nn.ModuleDict({"sae": sae}) if nested else sae
    loaded = {f"sae.{k}" if nested else k: v.clone() for k, v in state.items()}
    into.load_state_dict(loaded, strict=keys is None, assign=assign)
    assert sae.start_is_pending is not bool({"W_dec", "W_enc"} & set(state))
    if sae.start_is_pending:
        return
    # A partial dict of either side gives the other side its start too, and the cap.
    wanted = sample_directions(D_SAE, D_IN, seed=9)
    torch.testing.assert_close(sae.W_dec.detach(), wanted)
    torch.testing.assert_close(sae.W_enc.detach().T, wanted)
    torch.testing.assert_close(start_of(sae).detach() if member != "seeded" else wanted, wanted)
    train(sae, 4)
    torch.testing.assert_close(start_of(sae).detach() if member != "seeded" else wanted, wanted)
    if member == "soft_frozen_decoder":
        assert cosines(sae.W_dec, wanted).min() >= 0.8 - 1e-6


def test_what_a_waiting_sae_says_of_itself_loads_and_waits_on() -> None:
    """Its state_dict holds provisional rows, which are no start of anything."""
    options = {"init_scheme": "cov", "init_cov_samples": WAIT}
    sae, other = (make_sae("frozen_decoder", **options) for _ in range(2))
    train(sae, 2)
    other.load_state_dict(sae.state_dict())
    assert other.start_is_pending is True


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_loader_that_casts_blurs_nothing_of_the_wait(tmp_path: Path, dtype: str) -> None:
    sae = make_sae("frozen_decoder", init_scheme="cov", init_cov_samples=1001)
    for batch in activations(999).split([511, 488]):
        sae.training_forward_pass(step_input(sae, batch))
    sae.save_model(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path, dtype=dtype)
    for one in (sae, loaded):
        one.training_forward_pass(step_input(one, activations(2, seed=1)))
        assert one.start_is_pending is False
    assert torch.equal(loaded.W_dec, sae.W_dec.to(loaded.W_dec.dtype))


def test_a_wait_that_an_older_version_wrote_down_is_refused_in_one_line() -> None:
    sae = make_sae("frozen_decoder", init_scheme="cov")
    old = {**sae.state_dict(), "init_pending_counts": torch.tensor([3, 64])}
    with pytest.raises(UserError, match=r"^init_pending_counts: .* train again.*$"):
        sae.load_state_dict(old)


def _wait_on_a_rank(rank: int, folder: Path, name: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2
    )
    sae = make_sae(name, init_scheme="cov", init_cov_samples=WAIT)
    stream = batches(seed=rank)
    pending = []
    while sae.start_is_pending:
        sae.training_forward_pass(step_input(sae, next(stream)))
        pending.append(sae.start_is_pending)
    torch.save((pending, start_of(sae).detach()), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_that_train_together_start_from_the_covariance_of_all(tmp_path: Path) -> None:
    on_two_ranks(_wait_on_a_rank, tmp_path, "soft_frozen_decoder_topk")
    (pending, one), (_, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert pending == [True, False]  # 2 ranks of 64 samples: 200 are there with the second
    assert torch.equal(one, other)
    streams = batches(seed=0), batches(seed=1)
    x = torch.cat([next(stream) for stream in streams for _ in range(2)])
    torch.testing.assert_close(one, cov_directions(x), rtol=0, atol=1e-6)


def test_the_wait_leaves_no_trace_in_the_optimiser() -> None:
    """From the completing batch on, the run is the one that knew the covariance before."""
    waited = make_sae("soft_frozen_decoder_standard", init_scheme="cov", init_cov_samples=WAIT)
    train(waited, 8)
    informed = make_sae("soft_frozen_decoder_standard")
    informed.set_start_directions(cov_directions(first_batches(4)))
    train(informed, 5, batches(first=3))
    for name, tensor in informed.state_dict().items():
        torch.testing.assert_close(waited.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("member", MEMBERS)
def test_weight_decay_moves_nothing_during_the_wait(member: str) -> None:
    sae = make_sae(f"{member}_jumprelu", init_scheme="cov", init_cov_samples=WAIT)
    before = weights(sae)
    bare_loop(sae, torch.optim.AdamW(sae.parameters(), lr=LR, weight_decay=0.5), 3)
    assert differing(weights(sae), before) == []


def test_with_layer_norm_the_directions_follow_what_the_encoder_sees() -> None:
    sae = make_sae(
        "frozen_decoder_standard",
        init_scheme="cov",
        init_cov_samples=WAIT,
        normalize_activations="layer_norm",
    )
    train(sae, 5)
    x = first_batches(4)
    mean, std = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True)
    wanted = cov_directions((x - mean) / (std + 1e-5))
    torch.testing.assert_close(sae.W_dec, wanted, rtol=0, atol=1e-5)
    assert (wanted - cov_directions(x)).abs().max() > 0.01


@pytest.mark.parametrize("member", CONSTRAINTS)
def test_with_a_scaled_input_the_directions_are_those_of_the_activations(member: str) -> None:
    sae = make_sae(
        f"{member}_standard",
        init_scheme="cov",
        init_cov_samples=WAIT,
        normalize_activations="expected_average_only_in",
    )
    trainer = train(sae, 5)
    # Four batches went into the estimate of the scale.
    stream = batches(first=trainer.cfg.n_batches_for_norm_estimate)
    x = torch.cat([next(stream) for _ in range(4)])
    start = torch.nn.functional.normalize(start_of(sae), dim=1)  # the fold changes norms
    torch.testing.assert_close(start, cov_directions(x), rtol=0, atol=1e-5)


def test_autocast_does_not_blur_the_covariance() -> None:
    sae = make_sae("frozen_decoder", init_scheme="cov", init_cov_samples=WAIT)
    train(sae, 5, autocast=True)
    wanted = cov_directions(first_batches(4))
    torch.testing.assert_close(sae.W_dec, wanted, rtol=0, atol=1e-6)


@sparse_first
def test_the_wait_works_when_compiled() -> None:
    sae = make_sae("frozen_decoder_topk", init_scheme="cov", init_cov_samples=WAIT)
    compile_like_the_runner(sae)
    train(sae, 6)
    wanted = cov_directions(first_batches(4))
    torch.testing.assert_close(sae.W_dec, wanted, rtol=0, atol=1e-6)
    assert (sae.W_enc - wanted.T).abs().max() > 1e-3


def test_activations_far_from_the_origin_do_not_spoil_the_covariance() -> None:
    sae = make_sae("frozen_decoder", init_scheme="cov", init_cov_samples=WAIT)
    offset = 1000 * random_unit_rows(1, D_IN, 0)
    train(sae, 5, (b + offset for b in batches()))
    # In float32, what is left of these activations is 1e-4 of their spread.
    stream = batches()
    x = torch.cat([next(stream) + offset for _ in range(4)])
    torch.testing.assert_close(sae.W_dec, cov_directions(x), rtol=0, atol=1e-6)


def test_members_in_lockstep_start_from_the_same_directions() -> None:
    names = [f"{m}_batchtopk" for m in CONSTRAINTS]
    options = {"init_scheme": "cov", "init_cov_samples": WAIT}
    saes = {name: make_sae(name, **options) for name in names}

    def stream() -> Iterator[dict[str, torch.Tensor]]:
        for batch in batches():
            yield {"hook": batch}

    config = SAETrainerConfig(
        total_training_samples=6 * BATCH, train_batch_size_samples=BATCH, lr=LR, lr_end=LR
    )
    MultiSAETrainer(config, saes, dict.fromkeys(names, "hook"), stream()).fit()
    wanted = cov_directions(first_batches(4))
    for name, sae in saes.items():
        torch.testing.assert_close(start_of(sae), wanted, rtol=0, atol=1e-6, msg=name)
    assert torch.equal(start_of(saes[names[0]]), start_of(saes[names[2]]))


def test_a_deep_copy_in_the_wait_waits_on_its_own() -> None:
    sae = make_sae("frozen_decoder", init_scheme="cov", init_cov_samples=WAIT)
    train(sae, 2)
    twin = copy.deepcopy(sae)
    train(twin, 3, batches(first=2))
    assert twin.start_is_pending is False
    assert sae.start_is_pending is True
    train(sae, 3, batches(seed=1))
    stream = batches(seed=1)
    x = torch.cat([first_batches(2), *[next(stream) for _ in range(2)]])
    torch.testing.assert_close(twin.W_dec, cov_directions(first_batches(4)), rtol=0, atol=1e-6)
    torch.testing.assert_close(sae.W_dec, cov_directions(x), rtol=0, atol=1e-6)


def test_the_soft_frozen_cap_is_around_the_settled_start() -> None:
    sae = make_sae("soft_frozen_decoder", init_scheme="cov", init_cov_samples=WAIT)
    train(sae, 30, lr=5e-2)
    wanted = cov_directions(first_batches(4))
    cos = cosines(sae.W_dec, wanted)
    assert cos.min() >= 0.8 - 1e-5
    assert (cos < 0.8 + 1e-4).any()


def test_activations_that_are_not_finite_stop_the_wait_by_name() -> None:
    sae = make_sae("frozen_decoder", init_scheme="cov", init_cov_samples=WAIT)
    bad = activations(BATCH)
    bad[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"activations.*NaN.*init_scheme='cov'"):
        train(sae, 2, iter([bad]))


# --- refused configs ---

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown scheme": ({"init_scheme": "gauss"}, "init_scheme: 'gauss'.*iso or cov"),
    "negative seed": ({"init_seed": -1}, "init_seed: -1"),
    "seed that is no integer": ({"init_seed": 1.5}, "init_seed: 1.5"),
    "seed that is a truth value": ({"init_seed": True}, "init_seed: True"),
    "other norm": ({"decoder_init_norm": 0.1}, "decoder_init_norm: 0.1.*1.0"),
    "no norm": ({"decoder_init_norm": None}, "decoder_init_norm: None"),
    "file for iso": ({"init_covariance_path": "c.npy"}, "init_covariance_path.*'iso'"),
    "samples for iso": ({"init_cov_samples": 100}, "init_cov_samples.*'iso'"),
    "two files": (
        {
            "init_scheme": "cov",
            "init_covariance_path": "c.npy",
            "init_activations_path": "a.npy",
        },
        "init_activations_path and init_covariance_path",
    ),
    "file and samples": (
        {"init_scheme": "cov", "init_covariance_path": "c.npy", "init_cov_samples": 100},
        "init_cov_samples: 100",
    ),
    "one sample": ({"init_scheme": "cov", "init_cov_samples": 1}, "init_cov_samples: 1"),
    "no sample": ({"init_scheme": "cov", "init_cov_samples": 0}, "init_cov_samples: 0"),
    "cov of whitened activations": (
        {"init_scheme": "cov", "normalize_activations": "covariance_whitening"},
        "init_scheme: 'cov'.*covariance_whitening.*init_scheme='iso'",
    ),
}


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_start_is_refused_by_the_name_of_its_field(
    case: str, member: str
) -> None:
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make_sae(f"{member}_standard", **options)


def test_a_missing_file_is_refused_when_the_sae_is_built(tmp_path: Path) -> None:
    path = str(tmp_path / "nothing.npy")
    with pytest.raises(ValueError, match=r"init_covariance_path.*nothing\.npy"):
        make_sae("frozen_decoder", init_scheme="cov", init_covariance_path=path)


def test_a_trained_sae_loads_where_its_covariance_file_is_not(tmp_path: Path) -> None:
    path = save_covariance(torch.cov(activations(200).double().T), tmp_path / "c.safetensors")
    sae = make_sae("frozen_decoder", init_scheme="cov", init_covariance_path=str(path))
    train(sae, 3)
    sae.save_model(tmp_path / "sae")
    path.unlink()
    loaded = TrainingSAE.load_from_disk(tmp_path / "sae")
    assert torch.equal(loaded.W_dec, sae.W_dec)
    assert loaded.start_is_pending is False
