"""Files for circuit-tracer: its own code reads them, and computes what the exports do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.transcoder import (
    JumpReLUSkipTranscoder,
    JumpReLUSkipTranscoderConfig,
    Transcoder,
    TranscoderConfig,
)
from safetensors.torch import load_file, save_file

from examples.circuit_tracer_files import write

D, D_SAE = 16, 48
READ = """
import json, sys
import torch, yaml
from safetensors.torch import load_file, save_file
from circuit_tracer.utils.hf_utils import load_transcoders

x = load_file(sys.argv[2])["x"]
config = yaml.safe_load(open(sys.argv[1]))
found = load_transcoders(config, torch.device("cpu"), lazy_encoder=False, lazy_decoder=False)
save_file({str(i): one(x).detach() for i, one in enumerate(found)}, sys.argv[3])
print(json.dumps([found.feature_input_hook, found.feature_output_hook]))
"""


def layer(number: int, folder: Path, skip: bool, **more: Any) -> Path:
    sizes = {"d_in": D, "d_out": D, "d_sae": D_SAE, "apply_b_dec_to_input": False, **more}
    metadata = SAEMetadata(
        model_name="somebody/model",
        hook_name=f"blocks.{number}.ln2.hook_normalized",
        hook_name_out=f"blocks.{number}.hook_mlp_out",
    )
    sae: Any
    if skip:
        sae = JumpReLUSkipTranscoder(JumpReLUSkipTranscoderConfig(**sizes, metadata=metadata))
    else:
        sae = Transcoder(TranscoderConfig(**sizes, metadata=metadata))
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            if name == "threshold":
                parameter.abs_()
    sae.save_model(folder / f"layer_{number}")
    return folder / f"layer_{number}"


@pytest.mark.parametrize("skip", [False, True])
def test_every_tensor_is_there_as_circuit_tracer_names_it(skip: bool, tmp_path: Path) -> None:
    exports = [layer(i, tmp_path / "exports", skip) for i in range(2)]
    config = write(tmp_path / "set", exports)
    assert config.parent == tmp_path / "set"
    for i, export in enumerate(exports):
        sae: Any = SAE.load_from_disk(export)
        found = load_file(tmp_path / "set" / f"layer_{i}.safetensors")
        names = {"W_enc", "W_dec", "b_enc", "b_dec"}
        names |= {"W_skip", "activation_function.threshold"} if skip else set()
        assert set(found) == names
        assert torch.equal(found["W_enc"], sae.W_enc.T)


@pytest.mark.parametrize(
    ("number", "more", "said"),
    [(2, {}, "where hooks of block 1 are wanted"), (1, {"d_out": 8}, "d_in 16 is not d_out 8")],
)
def test_what_is_no_set_is_refused(
    number: int, more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    exports = [layer(0, tmp_path, False), layer(number, tmp_path, False, **more)]
    with pytest.raises(SystemExit, match=said):
        write(tmp_path / "set", exports)
    assert not (tmp_path / "set").exists()


@pytest.mark.slow
@pytest.mark.parametrize("skip", [False, True])
def test_its_own_code_computes_what_saelens_does(skip: bool, tmp_path: Path) -> None:
    # In a folder of its own: its requirements are not those of this package.
    target = tmp_path / "circuit_tracer"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target]
    subprocess.run([*command, "circuit-tracer==0.5.0"], check=True)
    exports = [layer(i, tmp_path / "exports", skip) for i in range(3)]
    config = write(tmp_path / "set", exports)
    x = torch.randn(64, D, generator=torch.Generator().manual_seed(9))
    save_file({"x": x}, tmp_path / "x.safetensors")
    arguments = [config, tmp_path / "x.safetensors", tmp_path / "out.safetensors"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READ, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(target), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == ["ln2.hook_normalized", "hook_mlp_out"]
    found = load_file(tmp_path / "out.safetensors")
    for i, export in enumerate(exports):
        torch.testing.assert_close(found[str(i)], SAE.load_from_disk(export)(x).detach())
