"""Principal components: the dense directions that an SAE's latents stand beside."""

import torch


@torch.no_grad()
def coordinates(train: torch.Tensor, *others: torch.Tensor) -> list[torch.Tensor]:
    """Coordinates in the principal components of ``train``, by falling variance.

    Args:
        train: ``[n, d_in]``, which alone says where the components and the mean are.
        others: Of each, ``[m, d_in]``.

    Returns:
        Of each of the others ``[m, min(n - 1, d_in)]``, float32.
    """
    x = train.double()
    mean = x.mean(dim=0)
    _, axes = torch.linalg.eigh(torch.cov(x.T))
    # Beyond n - 1 there is no variance, and directions are arbitrary.
    axes = axes.flip(1)[:, : len(x) - 1]
    return [((other.double() - mean) @ axes).float() for other in others]
