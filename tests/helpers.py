"""Small SAEs, small data and SAELens' own trainer, for every test."""

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainCoefficientConfig, TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

import sae_baselines  # noqa: F401  (registers the baselines)
from tests import stock_process

CONSTRAINTS = ("frozen_decoder", "soft_frozen_decoder", "frozen_encoder")
SIX_BASES = ("standard", "topk", "batchtopk", "jumprelu", "gated", "matryoshka_batchtopk")
BASES = (*SIX_BASES, "abstopk")
TOPK_FAMILY = ("topk", "batchtopk", "matryoshka_batchtopk", "abstopk")

D_IN = 16
D_OUT = 12  # of transcoders
D_SAE = 32
BATCH = 64

AnySAE = Any  # a TrainingSAE; twins have attributes that its type does not know
AnyTrainer = SAETrainer[Any, Any]


def base_options(base: str, d_sae: int = D_SAE) -> dict[str, Any]:
    """Config fields that make a small SAE of this base train in a few steps."""
    options: dict[str, dict[str, Any]] = {
        "standard": {"l1_coefficient": 0.1},
        "topk": {"k": 4},
        "batchtopk": {"k": 4},
        "jumprelu": {"l0_coefficient": 0.05, "jumprelu_bandwidth": 0.5},
        "gated": {"l1_coefficient": 0.1},
        "matryoshka_batchtopk": {"k": 4, "matryoshka_widths": [d_sae // 4, d_sae]},
        "abstopk": {"k": 4},
        "matching_pursuit": {"max_iterations": 4},
    }
    of_base = options.get(base.removeprefix("transcoder_"), {})
    return {**of_base, "d_out": D_OUT} if base.startswith("transcoder_") else of_base


def make_sae(name: str, **overrides: Any) -> AnySAE:
    """A small training SAE of any registered architecture.

    ``sparse_<base>`` is short for ``seeded_<base>`` with its sparse step on.
    """
    if name.startswith("sparse_"):
        name = f"seeded_{name.removeprefix('sparse_')}"
        overrides = {"sparse_step": True, **overrides}
    sae_class, config_class = get_sae_training_class(name)
    base = getattr(sae_class, "baseline_base", name)
    sizes = {"d_in": D_IN, "d_sae": overrides.get("d_sae", D_SAE)}
    return sae_class(
        config_class(**{**sizes, **base_options(base, sizes["d_sae"]), **overrides})
    )


def dense_step(base: str) -> dict[str, Any]:
    """Config fields of a twin of ``base`` that make it train by SAELens' own dense step."""
    return {"sparse_step": False} if base in SIX_BASES else {}


def activations(n: int, *, d_in: int = D_IN, seed: int = 0) -> torch.Tensor:
    """Sparse positive combinations of ``3 * d_in`` fixed unit directions, ``[n, d_in]``."""
    n_features = 3 * d_in
    features = torch.randn(n_features, d_in, generator=torch.Generator().manual_seed(7))
    features = torch.nn.functional.normalize(features, dim=1)
    generator = torch.Generator().manual_seed(seed)
    fires = torch.rand(n, n_features, generator=generator) < 0.1
    size = 0.5 + torch.rand(n, n_features, generator=generator)
    return (fires * size) @ features


def batches(
    *, d_in: int = D_IN, batch: int = BATCH, seed: int = 0, first: int = 0
) -> Iterator[torch.Tensor]:
    """An endless stream; batch number i is the same whatever ``first`` the stream starts at."""
    i = first
    while True:
        yield activations(batch, d_in=d_in, seed=1_000_003 * (seed + 1) + i)
        i += 1


def checked(
    stream: Iterator[torch.Tensor], check: Callable[[], None]
) -> Iterator[torch.Tensor]:
    """The stream, with ``check`` run between any two batches: after every training step."""
    for i, batch in enumerate(stream):
        if i > 0:
            check()
        yield batch


def make_trainer(
    sae: AnySAE,
    steps: int,
    data: Iterator[torch.Tensor] | None = None,
    *,
    batch: int = BATCH,
    lr: float = 1e-2,
    **config: Any,
) -> AnyTrainer:
    """SAELens' trainer on a stream of small batches."""
    settings = {
        "total_training_samples": steps * batch,
        "train_batch_size_samples": batch,
        "lr": lr,
        "lr_end": lr,
        "n_batches_for_norm_estimate": 4,
        **config,
    }
    data = batches(d_in=sae.cfg.d_in, batch=batch) if data is None else data
    return SAETrainer(SAETrainerConfig(**settings), sae, data)


def train(
    sae: AnySAE, steps: int, data: Iterator[torch.Tensor] | None = None, **config: Any
) -> AnyTrainer:
    """Train with SAELens' trainer; returns the trainer."""
    trainer = make_trainer(sae, steps, data, **config)
    trainer.fit()
    return trainer


def on_two_ranks(function: Callable[..., None], *args: Any) -> None:
    """Call ``function(rank, *args)`` in two processes, which are not imported anew."""
    forked = multiprocessing.get_context("fork")
    ranks = [forked.Process(target=function, args=(rank, *args)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0]


def only_checkpoint(folder: Path) -> Path:
    """The one checkpoint that a run with ``n_checkpoints=1`` left."""
    (checkpoint,) = (p for p in folder.iterdir() if not p.name.startswith("final"))
    return checkpoint


def resume(trainer: AnyTrainer, checkpoint: Path) -> None:
    """As SAELens' runner does it: the trainer's state, then the weights."""
    trainer.load_trainer_state(checkpoint)
    trainer.sae.load_weights_from_checkpoint(checkpoint)


def coefficients(sae: AnySAE) -> dict[str, float]:
    """The final values of the SAE's loss coefficients."""
    values = sae.get_coefficients().items()
    return {name: c.value if isinstance(c, TrainCoefficientConfig) else c for name, c in values}


def step_input(
    sae: AnySAE, x: torch.Tensor, dead: torch.Tensor | None = None
) -> TrainStepInput:
    """A training step's input, as the trainer would build it after the warm-ups."""
    return TrainStepInput(
        sae_in=x,
        coefficients=coefficients(sae),
        dead_neuron_mask=dead,
        n_training_steps=0,
        is_logging_step=False,
    )


def gradients(sae: AnySAE, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of the loss for every parameter; parameters without one are left out."""
    sae.zero_grad(set_to_none=True)
    loss.backward()
    return {n: p.grad.clone() for n, p in sae.named_parameters() if p.grad is not None}


def weights(sae: AnySAE) -> dict[str, torch.Tensor]:
    """A copy of the state dict."""
    return {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names whose tensors are not bitwise equal, or that only one of the two has."""
    return sorted(
        name
        for name in a.keys() | b.keys()
        if name not in a or name not in b or not torch.equal(a[name], b[name])
    )


def set_weights(sae: AnySAE, values: dict[str, torch.Tensor]) -> None:
    """Copy the tensors that the SAE has a place for."""
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            if name in values:
                tensor.copy_(values[name])


def randomise_(sae: AnySAE, seed: int = 0, scale: float = 0.1) -> None:
    """Move every trained parameter off its start, to a place that training could reach."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.add_(noise.to(parameter))
            if name == "threshold":
                parameter.abs_()


def cosines(rows: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Row by row, in float64, by another route than the package's."""
    a, b = rows.detach().double().cpu(), start.detach().double().cpu()
    a = a / a.norm(dim=1, keepdim=True)
    b = b / b.norm(dim=1, keepdim=True)
    return torch.einsum("ij,ij->i", a, b)


def angles(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Angle between rows in float64, accurate near 0 and near pi (Kahan)."""
    a, b = a.detach().double(), b.detach().double()
    a = a / a.norm(dim=1, keepdim=True)
    b = b / b.norm(dim=1, keepdim=True)
    return 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))


def random_unit_rows(
    n: int, d: int, seed: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Unit rows from torch's generator (the package uses numpy's)."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1).to(dtype)


def compile_like_the_runner(sae: AnySAE, backend: str = "aot_eager") -> None:
    """What SAELens' runner does for ``compile_sae``; aot_eager is quick to compile."""
    torch.compiler.reset()
    compiled = torch.compile(sae.training_forward_pass, mode=None, backend=backend)
    sae.training_forward_pass = compiled


def bare_loop(
    sae: AnySAE,
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    autocast: bool = False,
    clip: float | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Training without SAELens' trainer; ``check`` runs straight after each optimiser step."""
    data = batches(d_in=sae.cfg.d_in)
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = sae.training_forward_pass(step_input(sae, next(data)))
        optimizer.zero_grad()
        output.loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(sae.parameters(), clip)
        optimizer.step()
        if check is not None:
            check()


def matrix_products(sae: AnySAE) -> float:
    """Work of a training step, in units of one ``[batch, d_in] x [d_in, d_sae]`` product."""
    x = activations(BATCH, d_in=sae.cfg.d_in)
    counter = FlopCounterMode(display=False)
    with counter:
        sae.training_forward_pass(step_input(sae, x)).loss.backward()
    return counter.get_total_flops() / (2 * BATCH * sae.cfg.d_in * sae.cfg.d_sae)


# The first lines of a process that has SAELens and not this package.
WITHOUT_US = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sae_baselines":
            raise ImportError("this process is to do without sae_baselines")

sys.meta_path.insert(0, Absent())
"""

_STOCK_SAELENS = (
    WITHOUT_US
    + """
from pathlib import Path
from safetensors.torch import load_file, save_file
from sae_lens import SAE

root = Path(sys.argv[1])
x = load_file(root / "x.safetensors")["x"]
results = {}
for folder in sorted(p for p in root.iterdir() if p.is_dir()):
    sae = SAE.load_from_disk(folder).eval()
    acts = sae.encode(x)
    results[folder.name + "/acts"] = acts.detach()
    results[folder.name + "/out"] = sae.decode(acts).detach()
    results[folder.name + "/forward"] = sae(x).detach()
save_file(results, root / "results.safetensors")
assert not any(name.partition(".")[0] == "sae_baselines" for name in sys.modules)
"""
)


def by_stock_saelens(root: Path, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What exports make of inputs in a process that has SAELens and not this package.

    Args:
        root: Their folders are in it, and nothing else.
        x: ``[n, d_in]``.

    Returns:
        ``<folder>/acts``, ``<folder>/out`` (decoded) and ``<folder>/forward``.
    """
    save_file({"x": x.contiguous()}, root / "x.safetensors")
    run = stock_process.run(_STOCK_SAELENS, str(root))
    assert run.returncode == 0, run.stderr
    return load_file(root / "results.safetensors")
