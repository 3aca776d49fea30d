"""A language model with random weights: the same shape and scale, and nothing learned.

After Heap et al., "Sparse Autoencoders Can Interpret Randomly Initialized Transformers"
(arXiv 2501.17727), who draw weights anew with the mean and variance of the trained ones,
embeddings included or not. Of transcoders also with nothing learned in one MLP alone.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from sae_baselines.controls.kinds import RANDOM_MODEL, SHUFFLED_MLP, generator_of
from sae_baselines.errors import UserError


@dataclass(frozen=True)
class RandomModel:
    """Which random model it is: a function of these three, and of the weights of ``of``.

    Attributes:
        of: Recorded name of the language model whose weights are drawn anew.
        constraint: ``random_model``, ``random_model:embeddings_kept`` or ``shuffled_mlp``.
        seed: Seed (>= 0): the panel's.
    """

    of: str
    constraint: str
    seed: int

    @property
    def source(self) -> str:
        """Name of the source of its activations in a study; suits a folder."""
        return f"{self.constraint.replace(':', '_')}_seed_{self.seed}"

    @property
    def name(self) -> str:
        """What its SAEs record as their model, so that nobody takes them for the real one's;
        what a transcoder of a permuted MLP reads is the real one's."""
        return self.of if self.is_shuffled_mlp else f"{self.of}+{self.source}"

    @property
    def is_shuffled_mlp(self) -> bool:
        return self.constraint == SHUFFLED_MLP.name

    @property
    def keeps_embeddings(self) -> bool:
        return self.constraint.partition(":")[2] == "embeddings_kept"

    @property
    def facts(self) -> dict[str, Any]:
        """For the metadata of its SAEs; `of_metadata` reads it."""
        kind = self.constraint.partition(":")[0]
        return {"control": self.constraint, kind: asdict(self)}

    @classmethod
    def of_metadata(cls, metadata: Any) -> "RandomModel | None":
        """The random model that an SAE's metadata name, if they name one. Suites read it; of
        a permuted MLP they read nothing."""
        ours = getattr(metadata, "sae_baselines", None)
        facts = ours.get(RANDOM_MODEL.name) if isinstance(ours, Mapping) else None
        return cls(**facts) if isinstance(facts, Mapping) else None


@torch.no_grad()
def redraw(model: Any, drawn: RandomModel) -> None:
    """Draw the weight matrices of a model of transformers anew, in place.

    A parameter with two dimensions or more is a matrix (as transformers stores it: GPT-2's
    queries, keys and values are one) and is drawn from N(its mean, its standard deviation);
    vectors (biases, scales of norms) stay. Tied weights stay tied. Kept embeddings are those of
    tokens and of positions, and the unembedding. Random state is neither read nor changed; each
    matrix has a stream of its own.

    Args:
        model: On the CPU, float32, so that every dtype has the same weights up to rounding.
        drawn: Which random model.
    """
    kept: set[int] = set()
    if drawn.keeps_embeddings:
        tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
        tables.append(model.get_output_embeddings())
        kept = {id(table.weight) for table in tables if table is not None}
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or id(weight) in kept:
            continue
        values = np.ascontiguousarray(weight.numpy())
        mean, sd = values.mean(dtype=np.float64), values.std(dtype=np.float64)
        noise = generator_of(f"{RANDOM_MODEL.name} {name}", drawn.seed).standard_normal(
            values.shape, dtype=np.float32
        )
        weight.copy_(torch.from_numpy(noise * np.float32(sd) + np.float32(mean)))


@torch.no_grad()
def shuffle_mlp(model: Any, read: str, write: str, block: int, seed: int) -> None:
    """Permute the entries of each weight matrix of one MLP, in place.

    Every matrix keeps its values, so their mean, spread and tails, and loses what it computes;
    vectors (biases) stay. The rest of the model stays, so what comes to the MLP does too.

    Args:
        model: A HookedTransformer.
        read: Hook whose activations must stay as they are.
        write: Hook whose activations must change.
        block: Of the MLP.
        seed: Seed (>= 0).

    Raises:
        UserError: ``read`` is behind some of these weights.
    """
    tokens = torch.arange(8, device=next(model.parameters()).device)[None]

    def look() -> dict[str, torch.Tensor]:
        names = [read, write]
        return model.run_with_cache(tokens, names_filter=names, prepend_bos=False)[1]

    before = look()
    for name, weight in model.blocks[block].mlp.named_parameters():
        if weight.ndim > 1:
            order = generator_of(f"{SHUFFLED_MLP.name} {name}", seed).permutation(
                weight.numel()
            )
            places = torch.from_numpy(order).to(weight.device)
            weight.copy_(weight.flatten()[places].view_as(weight))
    after = look()
    if not torch.equal(before[read], after[read]):
        raise UserError(
            f"members: {SHUFFLED_MLP.name}: {read} is inside the MLP of block {block}, whose "
            "weights are permuted, so its inputs would not be the true ones; use a hook_name "
            f"before it, such as blocks.{block}.ln2.hook_normalized, or leave it out"
        )
    if torch.equal(before[write], after[write]):
        raise UserError(
            f"members: {SHUFFLED_MLP.name}: permuting the MLP of block {block} changes nothing "
            f"at {write}; leave it out"
        )
