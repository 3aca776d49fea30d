"""What this package takes for granted of torch's word on dtypes."""

import inspect

import pytest
import torch

from sae_baselines.compat.arithmetic import emulates


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_numbers_of_bits_are_nobodys_loop(dtype: torch.dtype) -> None:
    assert not emulates(dtype, "cpu")


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize("name", ["_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"])
def test_torch_says_what_a_cpu_has(name: str) -> None:
    assert isinstance(getattr(torch.ops.mkldnn, name)(), bool)


@pytest.mark.parametrize("name", ["_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"])
@pytest.mark.parametrize("says", [True, False])
def test_a_cpu_is_asked(monkeypatch: pytest.MonkeyPatch, name: str, says: bool) -> None:
    dtype = torch.bfloat16 if "bf16" in name else torch.float16
    monkeypatch.setattr(torch.ops.mkldnn, name, lambda: says, raising=False)
    assert emulates(dtype, "cpu") == (not says)
    assert not emulates(dtype, "meta")


def test_a_gpu_is_asked_for_more_than_emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    known = inspect.signature(torch.cuda.is_bf16_supported).parameters
    assert "including_emulation" in known
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **told: any(told.values()))
    assert emulates(torch.bfloat16, "cuda")
    assert not emulates(torch.float16, "cuda")
