"""A training step here, in stock SAELens and in the libraries one would otherwise pick.

``python benchmarks/peers.py`` writes results/peers_cpu.json and prints its table. The other
libraries are no dependency of this package; install them into an environment of their own:

    pip install -e . dictionary-learning eai-sparsify
"""

import argparse
import functools
import importlib
import itertools
import json
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pairs import interleaved, paired, seconds, synchronizer
from render_sparse import peer_table
from step_members import (
    SHAPES,
    Shape,
    Stepper,
    activations,
    blocks,
    conditions,
    start_directions,
)

from sae_baselines.provenance import environment

RESULTS = Path(__file__).parent / "results"
REFERENCE = "stock batchtopk"
# Base and member of the SAEs trained by SAELens' trainer.
OURS = {
    REFERENCE: ("batchtopk", "stock"),
    "stock topk": ("topk", "stock"),
    "sparse batchtopk": ("batchtopk", "sparse"),
    "sparse topk": ("topk", "sparse"),
    "frozen_decoder batchtopk": ("batchtopk", "frozen_decoder"),
    "frozen_encoder batchtopk": ("batchtopk", "frozen_encoder"),
}
DICTIONARY_LEARNING = "dictionary_learning BatchTopK"
SPARSIFY = "sparsify TopK"
# What each peer is compared with here: the same selection, everything trained.
SAME_SELECTION = {DICTIONARY_LEARNING: "sparse batchtopk", SPARSIFY: "sparse topk"}
_LR = 2e-4
_NEVER = 10**9


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="default: medium, or cuda")
    parser.add_argument("--out", type=Path, help="default: results/peers_<device>.json")
    parser.add_argument("--repeats", type=int, help="default: 5 to 25, by time")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--quick", action="store_true", help="tiny, seconds, no file by itself")
    args = parser.parse_args(argv)
    if args.threads or args.quick:
        torch.set_num_threads(args.threads or 1)
    usual = "quick_sparse" if args.quick else "cuda" if args.device == "cuda" else "medium"
    shape = SHAPES[args.shape or usual]
    # sparsify's forward is bfloat16 wherever CUDA has it; so all others are, too.
    autocast = args.device == "cuda"
    batches = activations(shape, args.device)

    peers = {
        DICTIONARY_LEARNING: functools.partial(dictionary_learning_step, shape, batches),
        SPARSIFY: functools.partial(sparsify_step, shape, batches),
    }
    record = {
        "benchmark": "peers",
        "environment": environment(),
        **_describe(shape, args.device, autocast),
        **measure(shape, batches, peers, args.repeats, autocast),
    }
    out: Path | None = args.out
    if out is None and not args.quick:
        out = RESULTS / f"peers_{args.device}.json"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=2) + "\n")
    print(peer_table(record))


def _describe(shape: Shape, device: str, autocast: bool) -> dict[str, Any]:
    return {
        **conditions(shape, device, autocast=autocast),
        "settings": {
            "step": "forward, backward, optimiser and what the library does in every step",
            "same": "activations, their order, initial directions (W_enc = W_dec.T), Adam "
            f"with a learning rate of {_LR}, no latent ever dead, so no auxiliary loss",
            "adam": "torch.optim.Adam as each library builds it; that of the sparse step is "
            "torch's fused implementation",
            "ratio": "per repeat one block of steps of each in turn, rotating order; median "
            f"over repeats of this / {REFERENCE}",
        },
    }


class Peer:
    """A training loop of another library, and how it differs.

    Attributes:
        library: Its name and version.
        path: Which of its code ran.
        differs: What it does in a step that SAELens does not, and the other way round.
    """

    def __init__(
        self,
        step: Callable[[torch.Tensor], object],
        batches: list[torch.Tensor],
        *,
        package: str,
        path: str,
        differs: str,
    ) -> None:
        self._step = step
        self._data: Iterator[torch.Tensor] = itertools.cycle(batches)
        self.library = f"{package} {_version(package)}"
        self.path = path
        self.differs = differs

    def steps(self, n: int) -> None:
        """Train ``n`` steps."""
        for _ in range(n):
            self._step(next(self._data))


def dictionary_learning_step(shape: Shape, batches: list[torch.Tensor]) -> Peer:
    """BatchTopKTrainer.update, as its own training loop calls it."""
    trainers = _imported("dictionary_learning.trainers")
    device = batches[0].device.type
    trainer = trainers.BatchTopKTrainer(
        steps=_NEVER,
        activation_dim=shape.d_in,
        dict_size=shape.d_sae,
        k=shape.k,
        layer=0,
        lm_name="none",
        lr=_LR,
        warmup_steps=1,
        threshold_start_step=0,
        device=device,
    )
    trainer.dead_feature_threshold = _NEVER * shape.batch
    directions = start_directions(shape).to(device)
    trainer.ae.decoder.weight.data.copy_(directions.T)
    trainer.ae.encoder.weight.data.copy_(directions)
    count = itertools.count()

    def step(x: torch.Tensor) -> object:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            return trainer.update(next(count), x)

    return Peer(
        step,
        batches,
        package="dictionary-learning",
        path="trainers.batch_top_k.BatchTopKTrainer.update; dense products",
        differs="decoder rows kept at norm 1 and their radial gradient removed in every step; "
        "no decoder norm in the selection; loss.item() in every step; firing counted, but no "
        "firing frequencies; threshold updated in every step (threshold_start_step=0), as in "
        "SAELens",
    )


def sparsify_step(shape: Shape, batches: list[torch.Tensor]) -> Peer:
    """SparseCoder with what Trainer.fit does around it, which needs a language model."""
    device = batches[0].device.type
    if device == "cpu":
        # Read at import. Its Triton kernel would be chosen wherever Triton is installed.
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    sparsify = _imported("sparsify")
    decoder = importlib.import_module("sparsify.utils").decoder_impl.__name__
    config = importlib.import_module("sparsify.config").SparseCoderConfig(
        num_latents=shape.d_sae, k=shape.k
    )
    coder: Any = sparsify.SparseCoder(shape.d_in, config, device, dtype=torch.float32)
    directions = start_directions(shape).to(device)
    coder.encoder.weight.data.copy_(directions)
    coder.W_dec.data.copy_(directions)
    optimizer = torch.optim.Adam(coder.parameters(), lr=_LR)
    since_fired = torch.zeros(shape.d_sae, dtype=torch.long, device=device)
    did_fire = torch.zeros(shape.d_sae, dtype=torch.bool, device=device)

    def step(x: torch.Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        total_variance = (x - x.mean(0)).pow(2).sum()
        out = coder(x=x, y=x, dead_mask=None, total_variance=total_variance)
        did_fire[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        since_fired.add_(x.shape[0])
        since_fired[did_fire] = 0
        did_fire.zero_()

    return Peer(
        step,
        batches,
        package="eai-sparsify",
        path=f"SparseCoder: fused_encoder (a custom backward by index_add) and {decoder}"
        + (
            " (SPARSIFY_DISABLE_TRITON=1, for its Triton kernel needs a GPU)"
            if device == "cpu"
            else ""
        ),
        differs="the lines of Trainer.fit around the SparseCoder are repeated by hand, since "
        "Trainer needs a language model; Adam is its option, Signum its default; k per row; "
        "decoder rows kept at norm 1 and their radial gradient removed in every step; loss "
        "divided by the variance of the batch; no gradient clipping; float(loss) in every "
        "step; firing counted, but no firing frequencies and no threshold",
    )


def measure(
    shape: Shape,
    batches: list[torch.Tensor],
    peers: dict[str, Callable[[], Peer]],
    repeats: int | None,
    autocast: bool,
) -> dict[str, Any]:
    """Times of all, taking turns."""
    synchronize = synchronizer(batches[0].device.type)
    # Peers first: one that is missing is told before anything takes time.
    others = {name: build() for name, build in peers.items()}
    ours = {
        name: Stepper(base, member, shape, batches, 0.0, autocast=autocast)
        for name, (base, member) in OURS.items()
    }
    steppers: dict[str, Stepper | Peer] = {**ours, **others}
    for stepper in steppers.values():
        stepper.steps(2)
    step_s = seconds(functools.partial(steppers[REFERENCE].steps, 1), synchronize)
    block, repeats = blocks(step_s, 2 * shape.budget_s, len(steppers), repeats)
    actions = {name: functools.partial(s.steps, block) for name, s in steppers.items()}
    ms = interleaved(actions, repeats, synchronize)
    members: dict[str, Any] = {}
    for name, stepper in steppers.items():
        times = [t / block for t in ms[name]]
        found: dict[str, Any] = {
            "ms": times,
            "median_ms": statistics.median(times),
            **paired(ms[name], ms[REFERENCE]),
        }
        if isinstance(stepper, Peer):
            same = SAME_SELECTION[name]
            found |= {
                "library": stepper.library,
                "code_path": stepper.path,
                "differs": stepper.differs,
                "same_selection": same,
                "over_same_selection": paired(ms[name], ms[same])["ratio"],
            }
        else:
            found |= {"library": f"sae-lens {_version('sae-lens')}", **_sparse(name, stepper)}
        members[name] = found
    return {"repeats": repeats, "steps_per_block": block, "members": members}


def _sparse(name: str, stepper: Stepper) -> dict[str, Any]:
    """Which path ran; a twin whose steps were dense is no comparison."""
    state = getattr(stepper.sae, "sparse_state", None)
    if state is None:
        return {"code_path": "stock"}
    if state.dense_steps or not state.sparse_steps:
        raise SystemExit(f"{name}: not all steps ran sparse ({state.dense_steps})")
    return {"code_path": "sparse step of sae-baselines"}


def _imported(module: str) -> Any:
    package = {"dictionary_learning": "dictionary-learning", "sparsify": "eai-sparsify"}
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = package[module.split(".")[0]]
        reason = " ".join(str(error).split())
        raise SystemExit(
            f"{missing} cannot be imported ({reason}); in an environment of its own: "
            "pip install -e . dictionary-learning eai-sparsify"
        ) from None


def _version(package: str) -> str:
    return metadata.version(package)


if __name__ == "__main__":
    main()
