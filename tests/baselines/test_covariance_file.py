from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae_baselines.baselines import load_covariance, save_covariance
from tests.helpers import make_sae

D = 6


def some_activations() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(D, D, generator=generator)
    return torch.randn(200, D, generator=generator) @ mix + 5


def covariance_in_numpy(x: torch.Tensor) -> np.ndarray:
    return np.cov(x.double().numpy(), rowvar=False)


def test_a_saved_covariance_comes_back_exactly(tmp_path: Path) -> None:
    covariance = torch.from_numpy(covariance_in_numpy(some_activations()))
    path = save_covariance(covariance, tmp_path / "deep" / "cov.safetensors")
    loaded = load_covariance(covariance_path=str(path))
    assert loaded.dtype == torch.float64
    assert torch.equal(loaded, covariance)


def test_a_covariance_is_saved_from_a_view_and_from_float32(tmp_path: Path) -> None:
    covariance = torch.from_numpy(covariance_in_numpy(some_activations())).float()
    path = save_covariance(covariance.T, tmp_path / "cov.safetensors")
    assert torch.equal(load_covariance(covariance_path=str(path)), covariance.T.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_activations_in_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    x = some_activations().to(dtype)
    path = tmp_path / "acts.safetensors"
    save_file({"activations": x, "tokens": torch.zeros(3)}, path)
    loaded = load_covariance(activations_path=str(path))
    np.testing.assert_allclose(loaded.numpy(), covariance_in_numpy(x), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_activations_in_npy(tmp_path: Path, dtype: str) -> None:
    x = some_activations().numpy().astype(dtype)
    np.save(tmp_path / "acts.npy", x)
    loaded = load_covariance(activations_path=str(tmp_path / "acts.npy"))
    wanted = np.cov(x.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(loaded.numpy(), wanted, rtol=1e-12)


def test_a_covariance_in_npy(tmp_path: Path) -> None:
    covariance = covariance_in_numpy(some_activations())
    np.save(tmp_path / "cov.npy", covariance)
    loaded = load_covariance(covariance_path=str(tmp_path / "cov.npy"))
    np.testing.assert_array_equal(loaded.numpy(), covariance)


def test_exactly_one_path_is_needed(tmp_path: Path) -> None:
    both = "init_activations_path.*init_covariance_path"
    with pytest.raises(ValueError, match=both):
        load_covariance()
    with pytest.raises(ValueError, match=both):
        load_covariance(
            activations_path=str(tmp_path / "a.npy"), covariance_path=str(tmp_path / "b.npy")
        )


def write_garbage(path: Path) -> None:
    path.write_bytes(b"this is neither a header nor a tensor" * 10)


def write_empty(path: Path) -> None:
    path.write_bytes(b"")


def write_other_key(path: Path) -> None:
    save_file({"cov": torch.eye(D), "mean": torch.zeros(D)}, path)


def write_text_array(path: Path) -> None:
    np.save(path, np.array([["a", "b"], ["c", "d"]]))


def write_objects(path: Path) -> None:
    np.save(path, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)


UNREADABLE = {
    "missing.safetensors": None,
    "missing.npy": None,
    "garbage.safetensors": write_garbage,
    "garbage.npy": write_garbage,
    "empty.safetensors": write_empty,
    "empty.npy": write_empty,
    "other_key.safetensors": write_other_key,
    "text_array.npy": write_text_array,
    "objects.npy": write_objects,
    "acts.pt": write_garbage,
}


@pytest.mark.parametrize("field", ["init_activations_path", "init_covariance_path"])
@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_file_is_refused_by_field_and_file_name(
    tmp_path: Path, name: str, field: str
) -> None:
    write = UNREADABLE[name]
    if write is not None:
        write(tmp_path / name)
    argument = {field.removeprefix("init_"): str(tmp_path / name)}
    with pytest.raises(ValueError, match=rf"{field}.*{name}"):
        load_covariance(**argument)


def test_a_directory_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="init_covariance_path: no such file"):
        load_covariance(covariance_path=str(tmp_path))


def test_a_wrong_key_is_answered_with_the_keys_there_are(tmp_path: Path) -> None:
    write_other_key(tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="no tensor 'covariance'; it has cov, mean"):
        load_covariance(covariance_path=str(tmp_path / "c.safetensors"))


def with_nan(shape: tuple[int, int]) -> np.ndarray:
    array = np.random.default_rng(0).standard_normal(shape)
    array[1, 2] = np.nan
    return array


MEANINGLESS = {
    "covariance of another width": ("init_covariance_path", np.eye(D + 1)),
    "covariance that is a vector": ("init_covariance_path", np.ones(D)),
    "covariance with NaN": ("init_covariance_path", with_nan((D, D))),
    "covariance that is not symmetric": ("init_covariance_path", np.triu(np.ones((D, D)))),
    "covariance that is negative": ("init_covariance_path", -np.eye(D)),
    "covariance that is zero": ("init_covariance_path", np.zeros((D, D))),
    "activations of another width": (
        "init_activations_path",
        np.random.default_rng(0).standard_normal((50, D + 1)),
    ),
    "one activation": ("init_activations_path", np.ones((1, D))),
    "activations that are a vector": ("init_activations_path", np.ones(D)),
    "activations with NaN": ("init_activations_path", with_nan((50, D))),
    "constant activations": ("init_activations_path", np.ones((50, D))),
}


@pytest.mark.parametrize("case", MEANINGLESS)
def test_an_sae_refuses_a_meaningless_file_by_the_name_of_its_config_field(
    tmp_path: Path, case: str
) -> None:
    field, array = MEANINGLESS[case]
    np.save(tmp_path / "file.npy", array)
    options: dict[str, Any] = {field: str(tmp_path / "file.npy")}
    with pytest.raises(ValueError, match=field):
        make_sae("frozen_decoder_topk", d_in=D, init_scheme="cov", **options)
