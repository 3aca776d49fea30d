"""Cases on which the sparse step could go wrong, and SAEs that do the same step each way."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from sae_lens.saes.sae import TrainStepOutput

from tests.helpers import AnySAE, gradients, make_sae, set_weights, step_input

TOPK_BASES = ("topk", "batchtopk", "matryoshka_batchtopk")
SPARSE_CONSTRAINTS = ("sparse", "frozen_decoder", "soft_frozen_decoder", "frozen_encoder")
# A frozen encoder must not be rescaled, and its penalty has no gradient to the decoder.
PENALTY_BASES = ("standard", "jumprelu", "gated")

# Share of entries that the penalised bases activate in a case: below the sparse step's limit.
_DENSITY = 1 / 40

# A trained-looking batch, and shapes of trouble.
KINDS = ("random", "zero rows", "ties", "all negative", "few positive", "huge", "tiny")
_SIZES = {"huge": 2.0**20, "tiny": 2.0**-20}


@dataclass(frozen=True)
class Case:
    """One training step, described by small numbers so that hypothesis can shrink it.

    Attributes:
        base: Registered name of SAELens' architecture.
        constraint: ``sparse`` or one of the baselines.
        options: Config fields.
        seed: Of weights and data.
        kind: One of KINDS.
        exact: Weights and data on a coarse grid: every product and sum in the encoder is
            exact, whatever the order, so that the selection has one right answer.
        dead: Share of latents that are dead; None for no mask.
    """

    base: str
    constraint: str
    options: dict[str, Any] = field(default_factory=dict)
    d_in: int = 8
    d_sae: int = 64
    batch: int = 16
    seed: int = 0
    kind: str = "random"
    exact: bool = False
    dead: float | None = None


def options_of(base: str, constraint: str) -> st.SearchStrategy[dict[str, Any]]:
    """Config fields of a base that its sparse step has to honour."""
    common = {
        "apply_b_dec_to_input": st.booleans(),
        "normalize_activations": st.sampled_from(
            ["none", "none", "layer_norm", "constant_norm_rescale"]
        ),
    }
    if base in TOPK_BASES:
        k: Any = st.sampled_from([1, 2] if base == "topk" else [0.3, 1, 1.7, 2])
        common |= {"k": k, "aux_loss_coefficient": st.sampled_from([1.0, 0.03])}
        if constraint != "frozen_encoder":
            common["rescale_acts_by_decoder_norm"] = st.booleans()
    if base == "matryoshka_batchtopk":
        # SAELens' own inner losses cannot undo a normalisation twice.
        common["normalize_activations"] = st.just("none")
        common["matryoshka_widths"] = st.sampled_from([(64,), (1, 64), (5, 20, 21, 64)]).map(
            list
        )
    if base == "standard":
        common["l1_coefficient"] = st.sampled_from([0.1, 3.0])
    if base == "gated":
        common["l1_coefficient"] = st.sampled_from([0.1, 3.0])
        common["normalize_activations"] = st.just("none")
    if base == "jumprelu":
        common |= {
            "jumprelu_sparsity_loss_mode": st.sampled_from(["step", "tanh", "quadratic"]),
            "jumprelu_ste_to_input": st.booleans(),
            "jumprelu_bandwidth": st.sampled_from([0.05, 0.5]),
            "pre_act_loss_coefficient": st.sampled_from([None, 0.1]),
            "l0_coefficient": st.sampled_from([0.05, 1.0]),
        }
    return st.fixed_dictionaries(common)


@st.composite
def cases(draw: st.DrawFn, base: str, constraint: str, **fixed: Any) -> Case:
    """Cases of one base and constraint."""
    options = draw(options_of(base, constraint))
    dead = draw(st.sampled_from([None, 0.0, 0.1, 0.6, 1.0]))
    kinds = KINDS
    if options["normalize_activations"] != "none":
        kinds = tuple(kind for kind in KINDS if kind != "zero rows")  # 0 / 0
        if base in TOPK_BASES:
            dead = None  # SAELens refuses the auxiliary loss
    exact = options["normalize_activations"] == "none" and draw(st.booleans())
    if options.get("jumprelu_sparsity_loss_mode") == "tanh":
        # Saturated, 1 - tanh**2 is all rounding, in SAELens' step as in any other.
        kinds = tuple(kind for kind in kinds if kind != "huge")
    drawn = {
        "d_in": draw(st.sampled_from([4, 8, 13])),
        "batch": draw(st.sampled_from([1, 3, 16, 40])),
        "seed": draw(st.integers(0, 2**20)),
        "kind": draw(st.sampled_from(kinds)),
        "exact": exact,
        "dead": dead,
    }
    return Case(base, constraint, options, **{**drawn, **fixed})


def has_ties(case: Case) -> bool:
    """Whether equal pre-activations in a row are to be expected."""
    return case.exact or case.kind in ("ties", "zero rows")


@dataclass(frozen=True)
class Step:
    """A training step's output and gradients.

    Attributes:
        term: The size of what is added up to the gradient of a pre-activation: a residual
            times a decoder row and the scale that a normalisation of x gives back. The sum may
            cancel to less than a rounding of its terms.
        read: The largest element of what the encoder multiplies with W_enc.
    """

    output: TrainStepOutput
    gradients: dict[str, torch.Tensor]
    term: float
    read: float

    @property
    def acts(self) -> torch.Tensor:
        """``[batch, d_sae]``, dense."""
        return self.output.feature_acts.detach().to_dense()


def run_step(
    sae: AnySAE,
    x: torch.Tensor,
    dead: torch.Tensor | None = None,
    *,
    autocast: torch.dtype | None = None,
) -> Step:
    """Forward and backward as the trainer does them."""
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        output = sae.training_forward_pass(step_input(sae, x, dead))
    residual = (output.sae_out.detach() - x).abs().sum(dim=-1).max()
    read, scale = _normalised(sae, x)
    term = float(2 / x.shape[0] * residual * scale * sae.W_dec.detach().abs().max())
    return Step(output, gradients(sae, output.loss), term, read)


def _normalised(sae: AnySAE, x: torch.Tensor) -> tuple[float, float]:
    """The largest element of what W_enc multiplies, and the factor that undoes a norm."""
    read, ends = x, []
    for value in (torch.zeros_like(x), torch.ones_like(x)):
        read = sae.run_time_activation_norm_fn_in(x)  # its factor is forgotten once undone
        ends.append(sae.run_time_activation_norm_fn_out(value))
    centred = read - sae.b_dec.detach() * sae.cfg.apply_b_dec_to_input
    return float(centred.abs().max()), float((ends[1] - ends[0]).abs().max())


@dataclass(frozen=True)
class Built:
    """The SAEs of a case, all with the same weights, and its batch.

    Attributes:
        sparse: The twin with the sparse step.
        dense: The same twin with ``sparse_step=False``.
        stock: SAELens' own class.
    """

    case: Case
    sparse: AnySAE
    dense: AnySAE
    stock: AnySAE
    x: torch.Tensor
    dead: torch.Tensor | None


def build(case: Case, dtype: str = "float32") -> Built:
    """SAEs in a state that training could reach, with a batch of the case's kind."""
    values, x = _weights_and_data(case)
    name = f"{case.constraint}_{case.base}"
    options = {**case.options, "d_in": case.d_in, "d_sae": case.d_sae, "dtype": dtype}
    if case.base == "jumprelu":
        options["jumprelu_bandwidth"] = _bandwidth(case)
        if case.options.get("jumprelu_sparsity_loss_mode") == "quadratic":
            options["target_l0"] = 2.0
    if case.base == "matryoshka_batchtopk":
        options.setdefault("matryoshka_widths", [case.d_sae // 4, case.d_sae])
    if case.base in TOPK_BASES and case.constraint == "frozen_encoder":
        options["rescale_acts_by_decoder_norm"] = False
    saes = []
    for architecture, more in ((name, {}), (name, {"sparse_step": False}), (case.base, {})):
        copies = {k: list(v) if isinstance(v, list) else v for k, v in options.items()}
        sae = make_sae(architecture, **copies, **more)
        set_weights(sae, values)
        saes.append(sae)
    generator = torch.Generator().manual_seed(case.seed + 1)
    dead = None
    if case.dead is not None:
        dead = torch.rand(case.d_sae, generator=generator) < case.dead
        if case.base in TOPK_BASES and has_ties(case):
            # Which of several equal dead latents the auxiliary loss takes is arbitrary; with
            # no more than it takes there is nothing to choose.
            dead &= dead.cumsum(0) <= case.d_in // 2
    sparse, dense, stock = saes
    if case.constraint == "sparse":
        # The sparse step on and off, all else the same.
        dense.has_cheap_bias_gradient = sparse.has_cheap_bias_gradient
    return Built(case, sparse, dense, stock, x.to(sparse.dtype), dead)


def _weights_and_data(case: Case) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(case.seed)

    def numbers(*shape: int) -> torch.Tensor:
        z = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (2 * z).round().clamp(-6, 6) / 4 if case.exact else z

    W_dec = numbers(case.d_sae, case.d_in)
    W_dec[:, 0] += 8 * (W_dec == 0).all(dim=1)
    if not case.exact:
        W_dec = torch.nn.functional.normalize(W_dec, dim=1)
        W_dec *= numbers(case.d_sae, 1).mul(0.5).exp()
    W_enc = (0.5 * W_dec.T + 0.5 * numbers(case.d_in, case.d_sae)).contiguous()
    x = numbers(case.batch, case.d_in) * 2
    b_dec = numbers(case.d_in)
    bias = 0.5 * numbers(case.d_sae)
    threshold = 0.25 * numbers(case.d_sae).abs()
    if case.kind == "zero rows":
        x[:: 2 if case.batch > 1 else 1] = 0
        if case.exact:
            b_dec.zero_()
    elif case.kind == "ties":
        x = x[torch.arange(case.batch) // 3]
        twice = torch.arange(case.d_sae) // 2
        W_enc, bias, W_dec = W_enc[:, twice].contiguous(), bias[twice], W_dec[twice]
    elif case.kind in _SIZES:
        size = _SIZES[case.kind]
        x, b_dec, bias, threshold = (size * t for t in (x, b_dec, bias, threshold))
    bias = _sparse_enough(case, W_enc, bias, threshold, x, b_dec)
    values = {"W_dec": W_dec, "W_enc": W_enc, "b_dec": b_dec, "threshold": threshold}
    if case.base == "gated":
        values |= {
            "b_gate": bias,
            "b_mag": 0.5 * numbers(case.d_sae),
            "r_mag": 0.3 * numbers(case.d_sae),
        }
    else:
        values["b_enc"] = bias
    return values, x


def _bandwidth(case: Case) -> float:
    return case.options.get("jumprelu_bandwidth", 0.05) * _SIZES.get(case.kind, 1.0)


def _sparse_enough(
    case: Case,
    W_enc: torch.Tensor,
    bias: torch.Tensor,
    threshold: torch.Tensor,
    x: torch.Tensor,
    b_dec: torch.Tensor,
) -> torch.Tensor:
    """Encoder biases that leave as few entries as the kind and the base ask for."""
    if case.options.get("apply_b_dec_to_input", True):
        x_in = x
    else:
        x_in, b_dec = x, torch.zeros_like(b_dec)
    normalize = case.options.get("normalize_activations", "none")
    if normalize == "layer_norm":
        x_in = x_in - x_in.mean(-1, keepdim=True)
        x_in = x_in / (x_in.std(-1, keepdim=True) + 1e-5)
    elif normalize == "constant_norm_rescale":
        x_in = x_in * case.d_in**0.5 / x_in.norm(dim=-1, keepdim=True)
    pre = ((x_in - b_dec) @ W_enc + bias).nan_to_num(0.0)
    if case.base == "jumprelu":
        pre = pre - threshold + _bandwidth(case) / 2
    if case.kind == "all negative":
        shift = float(pre.max()) + 1
    elif case.base in PENALTY_BASES:
        n = max(1, math.floor(_DENSITY * pre.numel()))
        shift = float(pre.flatten().topk(n).values[-1])
    elif case.kind == "few positive":
        shift = float(pre.flatten().topk(max(1, case.batch // 8)).values[-1])
    else:
        return bias
    # A step beyond the last one wanted, so that what ties with it stays out as well.
    step = 2.0**-8 * _SIZES.get(case.kind, 1.0)
    return bias - (math.floor(shift / step) + 1) * step
