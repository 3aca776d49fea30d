"""Synthetic samples as a function of (seed, number of the batch).

Every member of a panel sees the same batches, a resumed run continues with the next one, and
two runs of different length share their beginning.
"""

import torch
from sae_lens.synthetic import SyntheticModel
from sae_lens.util import temporary_seed

# No two streams of a seed share a batch.
TRAINING_STREAM = 0
HELD_OUT_STREAM = 1
CALIBRATION_STREAM = 2
_STREAMS = 4


class SyntheticStream:
    """Batches of activations of a SAELens synthetic model.

    Where features fire independently, positions are drawn feature by feature (a binomial
    count, then that many distinct samples), which costs what fires and not batch x features;
    the distribution is that of SAELens' generator, which is used as it is for models with a
    hierarchy or correlations.

    Args:
        model: SAELens' synthetic model, on its device.
        seed: Of the stream.
        batch_size: Samples per batch.
        stream: `TRAINING_STREAM`, `HELD_OUT_STREAM` or `CALIBRATION_STREAM`.
    """

    def __init__(
        self, model: SyntheticModel, seed: int, batch_size: int, stream: int = TRAINING_STREAM
    ) -> None:
        self.model = model
        self.seed = seed
        self.batch_size = batch_size
        self.stream = stream
        generator = model.activation_generator
        self._independent = (
            generator.modify_activations is None
            and generator.correlation_matrix is None
            and generator.low_rank_correlation is None
        )

    def batch(self, index: int) -> torch.Tensor:
        """The ``index``-th batch, ``[batch_size, d_in]``; the global RNG is left as it was."""
        with temporary_seed(self._seed_of(index)), torch.no_grad():
            if not self._independent:
                return self.model.sample(self.batch_size)
            rows, features, values = self._firings()
            return self._sum(rows, features, values)

    def batch_with_features(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`batch` and the feature activations behind it, ``[batch_size, num_features]``."""
        with temporary_seed(self._seed_of(index)), torch.no_grad():
            if not self._independent:
                return self.model.sample_with_features(self.batch_size)
            rows, features, values = self._firings()
            truth = torch.zeros(
                self.batch_size, self.model.cfg.num_features, device=values.device
            )
            truth[rows, features] = values
            return self._sum(rows, features, values), truth

    def _seed_of(self, index: int) -> int:
        # Any two (seed, stream, index) triples of a run are different numbers.
        return ((self.seed * _STREAMS + self.stream) * 100_000_007 + index) % (2**63 - 1)

    def _firings(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = self.model.activation_generator
        p = generator.firing_probabilities
        size = self.batch_size
        counts = torch.binomial(torch.full_like(p, size), p).long()
        features = torch.repeat_interleave(
            torch.arange(p.numel(), device=p.device), counts
        )  # [firings]
        rows = torch.randint(size, features.shape, device=p.device)
        while True:
            # A feature fires at most once in a sample: what came twice is drawn again.
            keys, order = (features * size + rows).sort()
            again = order[1:][keys[1:] == keys[:-1]]
            if again.numel() == 0:
                break
            rows[again] = torch.randint(size, again.shape, device=p.device)
        values = generator.mean_firing_magnitudes[features]
        std = generator.std_firing_magnitudes[features]
        if bool((std != 0).any()):
            values = values + torch.randn_like(values) * std
        return rows, features, values.relu()

    def _sum(
        self, rows: torch.Tensor, features: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        order = rows.argsort(stable=True)
        dictionary = self.model.feature_dict
        counts = torch.bincount(rows, minlength=self.batch_size)
        offsets = counts.cumsum(0) - counts
        vectors = dictionary.feature_vectors
        sums = torch.nn.functional.embedding_bag(
            features[order],
            vectors,
            offsets,
            mode="sum",
            per_sample_weights=values[order].to(vectors.dtype),
        )
        return sums + dictionary.bias
