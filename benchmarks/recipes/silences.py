"""What the paper leaves open: the optimiser, norms of decoder rows in training, b_dec.

    python benchmarks/recipes/silences.py smollm2 pca96 --architectures batchtopk

Weight decay and unit rows are no fields of a study: SAELens trains with Adam, and the optimiser
is exchanged here alone.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from options import MEMBERS
from sae_lens.training import sae_trainer
from search import Data
from variants import Row, measure_all, run

# What is changed: fields of the study, fields of the SAEs, the optimiser.
CHANGES: dict[str, dict[str, Any]] = {
    "as studies do": {},
    "AdamW, weight decay 0.01": {"optimizer": (torch.optim.AdamW, 0.01)},
    "AdamW, weight decay 0.1": {"optimizer": (torch.optim.AdamW, 0.1)},
    "unit decoder rows": {"unit_rows": True},
    "no rescaling by decoder norm": {"changed": {"rescale_acts_by_decoder_norm": False}},
    "b_dec from zeros": {"fields": {"b_dec_init": "zeros"}},
    "b_dec not at the input": {"fields": {"sae": {"apply_b_dec_to_input": False}}},
}


class UnitRowsAdam(torch.optim.Adam):
    """Adam after whose steps matrices that began with unit rows have unit rows again."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        parameters = [p for group in self.param_groups for p in group["params"]]
        ones = [(p, p.detach().norm(dim=1)) for p in parameters if p.ndim == 2]
        self.unit = [p for p, norm in ones if torch.allclose(norm, torch.ones_like(norm))]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for p in self.unit:
            torch.nn.functional.normalize(p.data, dim=1, out=p.data)
        return loss


@contextmanager
def trained_by(optimizer: Any) -> Iterator[None]:
    """Let SAELens' trainers build another optimiser than Adam."""
    original = sae_trainer.Adam
    sae_trainer.Adam = optimizer
    try:
        yield
    finally:
        sae_trainer.Adam = original


def around(change: dict[str, Any]) -> AbstractContextManager[Any]:
    if "optimizer" in change:
        kind, decay = change["optimizer"]
        return trained_by(partial(kind, weight_decay=decay))
    return trained_by(UnitRowsAdam) if "unit_rows" in change else nullcontext()


def measure(data: Data, architecture: str, change: str, seed: int) -> list[Row]:
    changes = CHANGES[change]
    return run(
        data,
        architecture,
        MEMBERS,
        seed,
        fields=changes.get("fields"),
        changed=changes.get("changed"),
        around=around(changes),
    )


if __name__ == "__main__":
    measure_all(__doc__, "silences.csv", "change", list(CHANGES), measure)
