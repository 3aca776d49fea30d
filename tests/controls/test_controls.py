"""SAEs without training: what is kept, what is lost, what stock SAELens makes of them."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sae_lens import SAE, SkipTranscoder, SkipTranscoderConfig
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEMetadata

from sae_baselines.baselines import covariance_of, sample_directions
from sae_baselines.controls import (
    CONTROLS,
    ControlKind,
    control_names,
    get_control,
    is_random,
    make_control,
    register_control,
)
from sae_baselines.errors import UserError
from sae_baselines.evals.registry import is_null_for, is_unchanged
from sae_baselines.reconstruction import explained_variance
from tests import stock_process
from tests.helpers import (
    D_IN,
    D_SAE,
    SIX_BASES,
    WITHOUT_US,
    activations,
    make_sae,
    randomise_,
    train,
    weights,
)

STOCK = ("standard", "topk", "abstopk", "jumprelu", "gated")
PERMUTED = ("permuted_decoder", "permuted_pairing")
RANDOM = ("random", "random:cov", "random:kaiming")
X = activations(3000, seed=3)
HELD_OUT = activations(2000, seed=4)


def stock_sae(architecture: str, seed: int = 0, **config: Any) -> Any:
    """An inference SAE whose decoder norms are far from one and whose latents fire."""
    sae_class, config_class = get_sae_class(architecture)
    options = {"d_in": D_IN, "d_sae": D_SAE, **config}
    if "topk" in architecture:
        options = {"k": 5, **options}
    sae = sae_class(config_class(**options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            scale = {"W_enc": 0.3, "W_dec": 0.4}.get(name, 0.05)
            shift = {"threshold": 0.5, "b_gate": -0.5}.get(name, 0.0)
            if (architecture, name) == ("standard", "b_enc"):
                shift = -0.5
            weight.copy_(noise * scale + shift)
        sae.W_dec.mul_(0.5 + torch.rand(sae.cfg.d_sae, 1, generator=generator))
    return sae


def encode(sae: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return sae.encode(x)


@pytest.fixture(scope="module", params=["batchtopk", "topk"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SAE that SAELens trained and exported."""
    sae = make_sae(f"seeded_{request.param}")
    train(sae, 300)
    folder = tmp_path_factory.mktemp("trained") / request.param
    sae.save_inference_model(folder)
    return folder


@pytest.mark.parametrize("kind", PERMUTED)
@pytest.mark.parametrize("architecture", STOCK)
@pytest.mark.parametrize("rescaled", [False, True])
def test_permuted_controls_keep_latents_to_the_bit_and_lose_directions(
    architecture: str, kind: str, rescaled: bool
):
    topk = "topk" in architecture
    extra = {"rescale_acts_by_decoder_norm": True} if rescaled and topk else {}
    sae = stock_sae(architecture, apply_b_dec_to_input=not rescaled, **extra)
    control = make_control(sae, kind, activations=X).sae
    assert torch.equal(encode(control, HELD_OUT), encode(sae, HELD_OUT))
    before, after = weights(sae), weights(control)
    assert all(torch.equal(before[n], after[n]) for n in before if n != "W_dec")
    assert torch.equal(after["W_dec"].norm(dim=-1), before["W_dec"].norm(dim=-1))
    cos = torch.cosine_similarity(after["W_dec"], before["W_dec"])
    # Random in 16 dimensions: sd 1/4 each, 1/sqrt(16 * 32) of the mean.
    assert abs(float(cos.mean())) < 0.25
    # One dead latent has nobody to swap with.
    fired = (encode(sae, X) != 0).any(0)
    assert float(cos[fired].max()) < 0.99


@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(2, 40))
@hypothesis_settings(max_examples=25)
def test_a_permuted_decoder_is_one_rotation_of_the_dictionary(seed: int, n: int, m: int):
    sae = stock_sae("standard", seed, d_in=n, d_sae=m)
    rows = make_control(sae, "permuted_decoder", seed=seed).sae.W_dec.detach().double()
    start = sae.W_dec.detach().double()
    torch.testing.assert_close(rows @ rows.T, start @ start.T, atol=1e-5, rtol=1e-4)
    for j in range(m):
        torch.testing.assert_close(
            rows[j].abs().sort().values, start[j].abs().sort().values, atol=1e-6, rtol=1e-4
        )
    # No coordinate keeps its place, whatever its sign.
    assert not bool((rows.abs() - start.abs()).abs().sum(0).eq(0).any())


@given(st.integers(0, 10_000), st.integers(2, 50))
@hypothesis_settings(max_examples=25)
def test_a_permuted_pairing_deals_the_same_directions_anew(seed: int, m: int):
    sae = stock_sae("jumprelu", seed, d_sae=m)
    rows = make_control(sae, "permuted_pairing", seed=seed).sae.W_dec.detach()
    cos = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(sae.W_dec.data).T
    best, origin = cos.max(dim=1)
    assert float(best.min()) > 1 - 1e-5
    assert sorted(origin.tolist()) == list(range(m))
    assert not bool((origin == torch.arange(m)).any())


def test_dead_latents_swap_among_themselves_and_empty_rows_stay():
    sae = stock_sae("jumprelu")
    with torch.no_grad():
        sae.threshold[:10] = 1e6
        sae.W_dec[20] = 0
    made = make_control(sae, "permuted_pairing", activations=X)
    rows, start = made.sae.W_dec.detach(), sae.W_dec.detach()
    cos = torch.cosine_similarity(rows[:, None], start[None], dim=-1)
    origin = cos.argmax(dim=1)
    assert sorted(origin[:10].tolist()) == list(range(10))
    assert not bool(rows[20].any())
    assert made.facts["live_latents"] == D_SAE - 11
    unknown = make_control(sae, "permuted_pairing").facts
    assert (unknown["live_latents"], unknown["live_known"]) == (D_SAE - 1, False)


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("architecture", STOCK)
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_a_random_control_has_the_sources_l0_and_reads_what_it_writes(
    architecture: str, name: str, apply_b_dec: bool
):
    sae = stock_sae(architecture, apply_b_dec_to_input=apply_b_dec)
    wanted = float((encode(sae, X) != 0).sum(1).float().mean())
    made = make_control(sae, name, seed=5, activations=X + 2.0)
    # The mean is part of the null: a shift of all data changes nothing but b_dec.
    control = made.sae
    assert type(control) is type(sae)
    target = made.facts["calibration"]["target_l0"]
    assert "topk" not in architecture or target == pytest.approx(wanted, rel=0.01)
    l0 = float((encode(control, X + 2.0) != 0).sum(1).float().mean())
    assert l0 == pytest.approx(target, rel=0.01)
    rows = control.W_dec.detach()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(D_SAE))
    assert float(torch.cosine_similarity(control.W_enc.T, rows).min().detach()) > 1 - 1e-6
    torch.testing.assert_close(control.b_dec.detach(), (X + 2.0).mean(0), atol=1e-4, rtol=1e-4)
    if name == "random":
        torch.testing.assert_close(rows, sample_directions(D_SAE, D_IN, seed=5))
    if name == "random:cov":
        expected = sample_directions(
            D_SAE, D_IN, seed=5, scheme="cov", covariance=covariance_of(X + 2.0)
        )
        torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", STOCK)
@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
def test_the_scale_of_a_random_control_is_the_best_one(architecture: str, normalisation: str):
    sae = stock_sae(architecture, normalize_activations=normalisation)
    # Some activations are zero, which have no norm to divide by.
    x = X + 0.1
    control: Any = make_control(sae, "random", activations=x).sae

    def ev(factor: float) -> float:
        scaled: Any = make_control(sae, "random", activations=x).sae
        with torch.no_grad():
            # On the decoder alone: latents stay.
            scaled.W_dec.mul_(factor)
        return explained_variance(scaled, x)[0]

    at_best = explained_variance(control, x)[0]
    assert at_best > 0.02
    assert at_best > ev(1.05)
    assert at_best > ev(0.95)


@pytest.mark.parametrize("normalisation", ["none", "layer_norm"])
def test_b_dec_of_a_random_control_is_the_mean_that_its_encoder_sees(normalisation: str):
    sae = stock_sae("jumprelu", normalize_activations=normalisation)
    control = make_control(sae, "random", activations=X).sae
    seen = X
    if normalisation == "layer_norm":
        seen = X - X.mean(1, keepdim=True)
        seen = seen / (seen.std(1, keepdim=True) + 1e-5)
    torch.testing.assert_close(control.b_dec.detach(), seen.mean(0), atol=1e-5, rtol=1e-4)


def test_kaiming_weights_are_those_of_saelens_in_distribution():
    sae = stock_sae("standard", d_in=64, d_sae=2000)
    control = make_control(sae, "random:kaiming", activations=activations(400, d_in=64)).sae
    rows, encoder = control.W_dec.detach(), control.W_enc.detach().T
    # Uniform in a cube: kurtosis 9/5; a sphere's coordinates have 3 * 64 / 66.
    kurtosis = float((rows**4).mean() / (rows**2).mean() ** 2)
    assert kurtosis == pytest.approx(1.8, abs=0.05)
    # Norms are folded: encoder norms are norms squared, of mean 2 and cv sqrt(0.8 / 64).
    norms = encoder.norm(dim=1)
    assert float(norms.std() / norms.mean()) == pytest.approx(math.sqrt(0.8 / 64), rel=0.1)


@pytest.mark.parametrize("name", control_names())
def test_controls_depend_on_their_arguments_alone(name: str):
    sae = stock_sae("jumprelu")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = make_control(sae, name, seed=3, activations=X)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    two = make_control(sae, name, seed=3, activations=X)
    other = make_control(sae, name, seed=4, activations=X)
    assert one.facts == two.facts
    for key, value in weights(one.sae).items():
        assert torch.equal(value, weights(two.sae)[key])
    assert not torch.equal(one.sae.W_dec, other.sae.W_dec)
    fresh = stock_sae("jumprelu")
    assert all(torch.equal(v, weights(fresh)[k]) for k, v in weights(sae).items())


_STOCK_SCRIPT = (
    WITHOUT_US
    + """
from pathlib import Path
import torch
from sae_lens import SAE
root = Path(sys.argv[1])
x = torch.load(root / "x.pt")
for folder in sorted(p for p in root.iterdir() if p.is_dir()):
    sae = SAE.load_from_disk(folder)
    assert sae.cfg.metadata.sae_baselines["null_for"]
    torch.save((sae.encode(x), sae(x)), folder / "out.pt")
"""
)


def test_stock_saelens_loads_controls_without_this_package(tmp_path: Path):
    torch.save(HELD_OUT, tmp_path / "x.pt")
    made = {
        f"{architecture}-{name.replace(':', '_')}": make_control(
            stock_sae(architecture), name, activations=X
        )
        for architecture in STOCK
        for name in control_names()
    }
    for folder, control in made.items():
        control.save(tmp_path / folder)
    run = stock_process.run(_STOCK_SCRIPT, str(tmp_path))
    assert run.returncode == 0, run.stderr
    for folder, control in made.items():
        acts, out = torch.load(tmp_path / folder / "out.pt")
        assert torch.equal(acts, control.sae.encode(HELD_OUT))
        assert torch.equal(out, control.sae(HELD_OUT))


@pytest.mark.parametrize("name", control_names())
def test_metadata_say_what_it_is_and_what_of(name: str, trained: Path, tmp_path: Path):
    make_control(trained, name, seed=1, activations=X).save(tmp_path)
    facts = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert "training_architecture" not in facts
    ours = facts["sae_baselines"]
    assert (ours["control"], ours["seed"], ours["samples_seen"]) == (name, 1, 0)
    assert ours["null_for"] == get_control(name)[0].null_for
    assert ours["source"]["folder"] == trained.name
    assert len(ours["source"]["weights_sha256"]) == 64
    assert str(trained.parent) not in json.dumps(facts)


def test_ablating_a_latent_of_a_permuted_control_does_nothing_along_its_direction(
    trained: Path,
):
    source = SAE.load_from_disk(trained)
    directions = torch.nn.functional.normalize(source.W_dec.data)

    def effects(sae: Any) -> torch.Tensor:
        """Change of the output per unit of a live latent, along the source's direction."""
        with torch.no_grad():
            acts = sae.encode(HELD_OUT)
            full = sae.decode(acts)
            found = []
            for j in (acts != 0).any(0).nonzero().squeeze(1).tolist():
                row = int(acts[:, j].argmax())
                ablated = acts[row : row + 1].clone()
                size = float(ablated[0, j])
                ablated[0, j] = 0
                change = full[row] - sae.decode(ablated)[0]
                found.append(float(change @ directions[j]) / size)
            return torch.tensor(found)

    assert float(effects(source).min()) > 0.99
    ev = explained_variance(source, HELD_OUT)[0]
    assert ev > 0.5
    for kind in PERMUTED:
        broken = make_control(trained, kind, activations=X).sae
        along = effects(broken)
        assert abs(float(along.mean())) < 4 / math.sqrt(D_IN * len(along))
        assert explained_variance(broken, HELD_OUT)[0] < 0


@pytest.mark.parametrize("base", SIX_BASES)
def test_training_saes_are_taken_as_they_are_exported(base: str, tmp_path: Path):
    sae = make_sae(base)
    randomise_(sae)
    sae.save_inference_model(tmp_path)
    exported = SAE.load_from_disk(tmp_path)
    control = make_control(sae, "permuted_decoder").sae
    assert control.cfg.architecture() == exported.cfg.architecture()
    assert torch.equal(encode(control, X), encode(exported, X))
    same = make_control(tmp_path, "permuted_decoder")
    assert torch.equal(same.sae.W_dec, control.W_dec)


@pytest.mark.parametrize("kind", PERMUTED)
@pytest.mark.parametrize("architecture", ["jumprelu", "topk"])
def test_bfloat16_sources_keep_their_dtype_when_permuted(architecture: str, kind: str):
    sae = (
        stock_sae(architecture, rescale_acts_by_decoder_norm=True)
        if (architecture == "topk")
        else stock_sae(architecture)
    )
    sae = sae.to(dtype=torch.bfloat16)
    control = make_control(sae, kind).sae
    assert control.W_dec.dtype == torch.bfloat16
    assert torch.equal(encode(control, HELD_OUT), encode(sae, HELD_OUT))
    random = make_control(sae, "random", activations=X)
    assert random.sae.W_dec.dtype == torch.float32
    assert random.sae.cfg.dtype == "float32"


@pytest.mark.parametrize("name", ["random", "permuted_decoder", "permuted_pairing"])
def test_heads_are_reshaped_as_the_source_does(name: str):
    metadata = SAEMetadata(hook_name="blocks.0.attn.hook_z")
    sae = stock_sae("jumprelu", reshape_activations="hook_z", metadata=metadata)
    heads = X.reshape(-1, 4, 4)
    made = make_control(sae, name, activations=heads)
    assert made.sae.cfg.reshape_activations == "hook_z"
    assert made.sae(heads).shape == heads.shape
    if name != "random":
        assert torch.equal(encode(made.sae, heads), encode(sae, heads))
    flat = make_control(sae, name, activations=X)
    assert torch.equal(flat.sae.W_dec, made.sae.W_dec)


def test_folding_norms_as_saebench_does_keeps_latents_equal():
    sae = stock_sae("jumprelu")
    controls = [make_control(sae, kind, activations=X).sae for kind in PERMUTED]
    sae.fold_W_dec_norm()
    for control in controls:
        control.fold_W_dec_norm()
        assert torch.equal(encode(control, HELD_OUT), encode(sae, HELD_OUT))


def test_a_control_of_a_control_says_so():
    first = make_control(stock_sae("jumprelu"), "random", activations=X)
    second = make_control(first.sae, "permuted_pairing", activations=X)
    assert second.facts["source"]["control"] == "random"
    assert second.facts["control"] == "permuted_pairing"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("randm", {}, "kind: 'randm' is unknown; did you mean random"),
        ("random:kov", {"activations": X}, "random has no scheme 'kov'; did you mean cov"),
        ("permuted_decoder:cov", {}, "permuted_decoder has no scheme 'cov'; leave it away"),
        ("random", {}, "activations: random needs some"),
        ("random", {"activations": X[:, :5]}, r"shape \(3000, 5\) is not \[n, 16\]"),
        ("random", {"activations": X[0]}, r"activations: shape \(16,\) is not"),
        ("random", {"activations": X / 0}, "activations: contain NaN or infinity"),
        ("random", {"activations": torch.ones(50, D_IN), "l0": 3.0}, "activations: "),
        ("random", {"activations": X, "l0": 0.0}, "l0: 0, the target, is not between"),
        ("random", {"activations": X, "l0": 32.0}, "is not between 0 and d_sae=32"),
        ("random", {"activations": X, "l0": 31.0}, "l0: 31 cannot be met by a random"),
        ("permuted_decoder", {"l0": 3.0}, "has its source's latents, so its L0"),
        ("permuted_decoder", {"seed": -1}, "seed: -1 is not a whole number >= 0"),
        ("permuted_decoder", {"seed": True}, "seed: True is not a whole number"),
    ],
)
def test_mistakes_are_named(kind: str, options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        make_control(stock_sae("jumprelu"), kind, **options)


def test_an_l0_that_topk_cannot_have_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"l0: 3\.5 cannot be met.*give l0=4"):
        make_control(stock_sae("topk"), "random", activations=X, l0=3.5)


def test_sources_without_a_control_are_refused_with_the_reason(tmp_path: Path):
    transcoder = SkipTranscoder(
        SkipTranscoderConfig(d_in=8, d_sae=16, d_out=8, apply_b_dec_to_input=False)
    )
    pursuit = get_sae_class("matching_pursuit")
    pursuing = pursuit[0](pursuit[1](d_in=8, d_sae=16))
    for name in control_names():
        with pytest.raises(UserError, match="SkipTranscoder has no control: a trans"):
            make_control(transcoder, name)
        with pytest.raises(UserError, match="reads with its decoder"):
            make_control(pursuing, name)
    for scaling in ("expected_average_only_in", "covariance_whitening"):
        unfolded = make_sae("batchtopk", normalize_activations=scaling)
        with pytest.raises(UserError, match=f"'{scaling}' is not folded into"):
            make_control(unfolded, "permuted_decoder")
    one = stock_sae("jumprelu", d_sae=1)
    with pytest.raises(UserError, match="1 of 1 latents live; a pairing needs at least two"):
        make_control(one, "permuted_pairing")
    with pytest.raises(UserError, match="one coordinate cannot be permuted"):
        make_control(stock_sae("jumprelu", d_in=1), "permuted_decoder")
    broken = stock_sae("jumprelu")
    broken.W_enc.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="source: W_enc contains NaN"):
        make_control(broken, "permuted_decoder")
    with pytest.raises(UserError, match="is neither a folder, nor a release:sae_id"):
        make_control("nowhere", "permuted_decoder")
    with pytest.raises(UserError, match=r"has no cfg\.json; name an SAE's folder"):
        make_control(tmp_path, "permuted_decoder")
    with pytest.raises(UserError, match="'no-such-release' is no release that SAELens knows"):
        make_control("no-such-release:x", "permuted_decoder")


def test_what_each_control_is_the_null_for_is_stated_and_kept_apart():
    assert set(CONTROLS) == {"random", *PERMUTED}
    for name in control_names():
        kind, scheme = get_control(name)
        assert len(kind.null_for) > 40
        assert scheme == (name.partition(":")[2] or ("iso" if kind.schemes else ""))
    metrics = [
        ("sparse_probing", "sae_top_1_test_accuracy"),
        ("autointerp", "autointerp_score"),
        ("meta_structure", "decoder_fraction_variance_explained"),
        ("absorption", "mean_absorption_fraction_score"),
        ("core", "frac_alive"),
        ("core", "explained_variance_paper"),
        ("ravel", "disentanglement_score"),
    ]
    for kind in PERMUTED:
        assert [m[0] for m in metrics if is_null_for(kind, *m)] == ["core", "ravel"]
        assert not any(is_null_for(kind, *m) and is_unchanged(kind, *m) for m in metrics)
        assert not is_random(kind)
    for name in (*RANDOM, "frozen_decoder"):
        assert all(is_null_for(name, *m) for m in metrics)
        assert not any(is_unchanged(name, *m) for m in metrics)
        assert is_random(name)


def _halved(sae: SAE[Any], seed: int, *_: Any) -> tuple[SAE[Any], dict[str, Any]]:
    sae.W_dec.data /= 2
    return sae, {"by": seed}


@pytest.fixture
def halved() -> Iterator[None]:
    register_control(
        ControlKind("halved", what="half the decoder", null_for="its norm", build=_halved)
    )
    yield
    del CONTROLS["halved"]


@pytest.mark.usefixtures("halved")
def test_a_control_from_outside_is_known_everywhere():
    made = make_control(stock_sae("jumprelu"), "halved", seed=3)
    assert torch.equal(made.sae.W_dec, stock_sae("jumprelu").W_dec / 2)
    assert made.facts["control"] == "halved"
    assert made.facts["by"] == 3
    assert made.sae.cfg.metadata.sae_baselines == made.facts
    assert tuple(control_names()[:3]) == RANDOM
    assert control_names()[-1] == "halved"
    assert not is_random("halved")
    with pytest.raises(UserError, match="'halved' is registered already"):
        register_control(get_control("halved")[0])
    with pytest.raises(UserError, match="'trained' cannot be a name"):
        register_control(dataclasses.replace(get_control("halved")[0], name="trained"))
