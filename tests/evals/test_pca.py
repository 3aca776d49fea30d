"""Coordinates in principal components."""

import torch

from sae_baselines.evals.pca import coordinates


def test_they_are_uncorrelated_by_falling_variance_and_know_the_training_set_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(6, 6, generator=generator)
    train = torch.randn(200, 6, generator=generator) @ mixed + 5
    test = torch.randn(50, 6, generator=generator) @ mixed
    found, of_test = coordinates(train, train, test)
    covariance = torch.cov(found.T)
    variances = covariance.diagonal()
    torch.testing.assert_close(covariance, variances.diag(), atol=1e-4, rtol=0)
    assert (variances.diff() < 0).all()
    torch.testing.assert_close(variances.sum(), torch.cov(train.T).diagonal().sum())
    # A rotation about the training set's mean: distances stay.
    torch.testing.assert_close(torch.cdist(of_test, found), torch.cdist(test, train))
    (alone,) = coordinates(train, test[:1])
    torch.testing.assert_close(alone, of_test[:1])


def test_there_are_no_components_without_variance() -> None:
    train = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    (found,) = coordinates(train, train)
    assert found.shape == (4, 3)
    torch.testing.assert_close(torch.cdist(found, found), torch.cdist(train, train))
