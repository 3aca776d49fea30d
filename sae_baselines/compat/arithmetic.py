"""What torch says of the dtypes that a device computes in.

tests/compat/test_arithmetic.py has a contract per name, whose failure says what moved.
"""

import torch

# oneDNN's, which multiplies matrices on a CPU. Without its instructions torch has a loop.
_ON_A_CPU = {
    torch.bfloat16: "_is_mkldnn_bf16_supported",
    torch.float16: "_is_mkldnn_fp16_supported",
}


def emulates(dtype: torch.dtype, device: str | torch.device) -> bool:
    """Whether a device multiplies matrices of a dtype, but not by instructions for it.

    On a CPU without such instructions bfloat16 took 60 times as long as float32 (SmolLM2's
    MLP on an AMD EPYC of 2021).

    Args:
        dtype: Any.
        device: "cpu" or a CUDA device that is there.

    Returns:
        False where torch does not say.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(
            including_emulation=False
        )
    supported = getattr(torch.ops.mkldnn, _ON_A_CPU.get(dtype, ""), None)
    return kind == "cpu" and supported is not None and not supported()
