"""Files for circuit-tracer: its own code reads them, and computes what the exports do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import Dataset
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.transcoder import (
    JumpReLUSkipTranscoder,
    JumpReLUSkipTranscoderConfig,
    Transcoder,
    TranscoderConfig,
)
from safetensors.torch import load_file, save_file

from examples.circuit_tracer_files import write, write_affine
from sae_baselines.errors import UserError
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.spec import ModelSpec
from tests.tiny_model import D_MODEL, save_tiny_model, tiny_text

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

PART = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
import attribution_agreement as own

model = own.replacement_model(Path(sys.argv[2]) / "trained")
prompt = "the house of the people"
whole, part = own.attribute(prompt, model), own.attribute(prompt, model, max_feature_nodes=40)
assert len(own.keys_of(part)) == 40 < len(own.keys_of(whole))
ours, theirs = own.shared_edges(whole, part)
assert ours.numel() > 100
torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
"""


def layer(
    number: int,
    folder: Path,
    skip: bool,
    d: int = D,
    seed: int = 0,
    **more: Any,
) -> Path:
    sizes = {"d_in": d, "d_out": d, "d_sae": D_SAE, "apply_b_dec_to_input": False, **more}
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
    generator = torch.Generator().manual_seed(number + seed)
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
    with pytest.raises(UserError, match=said):
        write(tmp_path / "set", exports)
    assert not (tmp_path / "set").exists()


def test_a_set_is_not_written_over_another_nor_of_centred_weights(tmp_path: Path) -> None:
    exports = [layer(i, tmp_path / "exports", False) for i in range(2)]
    write(tmp_path / "set", exports)
    with pytest.raises(UserError, match=r"set: exists already; remove it"):
        write(tmp_path / "set", exports)
    centred: Any = SAE.load_from_disk(exports[1])
    centred.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
    centred.save_model(tmp_path / "centred")
    with pytest.raises(UserError, match="centred: was trained on centred weights"):
        write(tmp_path / "other", [exports[0], tmp_path / "centred"])
    assert {path.name for path in tmp_path.iterdir()} == {"exports", "set", "centred"}


def test_the_null_of_a_set_is_the_affine_map_of_each_layer(
    tmp_path: Path, two_layers: list[Path]
) -> None:
    text = tmp_path / "text.parquet"
    tiny_text().to_parquet(text)
    # Exports have the label of a study's model, which may be anything.
    model = str(tmp_path / "model")
    config = write_affine(tmp_path / "affine", two_layers, str(text), model)
    assert yaml.safe_load(config.read_text())["model_name"] == model
    language_model: Any = load_language_model(
        ModelSpec(name=model), "blocks.0.hook_mlp_out", "cpu"
    )
    tokens = torch.randint(3, 23, (64, 32), generator=torch.Generator().manual_seed(0))
    for i in range(2):
        hooks = [f"blocks.{i}.ln2.hook_normalized", f"blocks.{i}.hook_mlp_out"]
        _, cache = language_model.run_with_cache(tokens, names_filter=hooks)
        x, y = (cache[hook].flatten(0, 1).detach().double() for hook in hooks)
        found = load_file(config.parent / f"layer_{i}.safetensors")
        left = y - (x @ found["W_skip"].double().T + found["b_dec"].double())
        own = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], dim=1), y)
        best = y - torch.cat([x, torch.ones(len(x), 1)], dim=1) @ own.solution
        # Of other text, and hardly worse on this one than what is fitted to it.
        assert left.pow(2).sum() < 1.2 * best.pow(2).sum()
        assert left.pow(2).sum() < 0.8 * (y - y.mean(dim=0)).pow(2).sum()
        assert not any(found[name].any() for name in ("W_enc", "b_enc", "W_dec"))
        assert found["activation_function.threshold"] > 0  # so the latent never fires


def test_a_text_without_words_is_refused(tmp_path: Path, two_layers: list[Path]) -> None:
    tokens = tmp_path / "tokens.parquet"
    Dataset.from_dict({"input_ids": [[3, 4, 5]]}).to_parquet(tokens)
    with pytest.raises(UserError, match=r"columns are \['input_ids'\]; one called text"):
        write_affine(tmp_path / "set", two_layers, str(tokens), str(tmp_path / "model"))
    assert not (tmp_path / "set").exists()


@pytest.fixture
def two_layers(tmp_path: Path) -> list[Path]:
    save_tiny_model(tmp_path / "model")
    return [layer(i, tmp_path / "exports", True, D_MODEL) for i in range(2)]


@pytest.fixture(scope="module")
def circuit_tracer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment for processes that can import it.

    In a folder of its own: its requirements are not those of this package.
    """
    target = tmp_path_factory.mktemp("circuit_tracer")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target]
    subprocess.run([*command, "circuit-tracer==0.5.0"], check=True)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(target), *sys.path])}


@pytest.mark.slow
@pytest.mark.parametrize("skip", [False, True])
def test_its_own_code_computes_what_saelens_does(
    skip: bool, tmp_path: Path, circuit_tracer: dict[str, str]
) -> None:
    exports = [layer(i, tmp_path / "exports", skip) for i in range(3)]
    config = write(tmp_path / "set", exports)
    x = torch.randn(64, D, generator=torch.Generator().manual_seed(9))
    save_file({"x": x}, tmp_path / "x.safetensors")
    arguments = [config, tmp_path / "x.safetensors", tmp_path / "out.safetensors"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READ, *arguments],
        env=circuit_tracer,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == ["ln2.hook_normalized", "hook_mlp_out"]
    found = load_file(tmp_path / "out.safetensors")
    for i, export in enumerate(exports):
        torch.testing.assert_close(found[str(i)], SAE.load_from_disk(export)(x).detach())


@pytest.mark.slow
def test_graphs_of_sets_are_compared(
    tmp_path: Path, two_layers: list[Path], circuit_tracer: dict[str, str]
) -> None:
    model = str(tmp_path / "model")
    exports = [*two_layers, layer(2, tmp_path / "exports", True, D_MODEL)]
    others = [layer(i, tmp_path / "others", True, D_MODEL, 7) for i in range(3)]
    for name, given in (("trained", exports), ("same", exports), ("other", others)):
        write(tmp_path / name, given, model)
    tiny_text().to_parquet(tmp_path / "text.parquet")
    write_affine(tmp_path / "affine", exports, str(tmp_path / "text.parquet"), model)
    (tmp_path / "prompts.txt").write_text("the house of the people\nit is here and there\n")
    script = Path(__file__).parents[2] / "examples" / "attribution_agreement.py"
    names = ["trained", "same", "other", "affine"]
    arguments = [script, "out.csv", "prompts.txt", *names]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        env=circuit_tracer,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows: Any = pd.read_csv(tmp_path / "out.csv")
    assert len(rows) == 4 * 2
    scores = ["replacement", "completeness", "latents", "edge_count"]
    agreement = ["places", "places_other", "edges"]
    of = {name: rows[rows["set"] == name] for name in names}
    numbers = {name: of[name][scores].to_numpy(dtype=float) for name in names}
    agreed = {name: of[name][agreement].to_numpy(dtype=float) for name in names}
    assert (numbers["same"] == numbers["trained"]).all()
    assert agreed["same"][:, [0, 2]] == pytest.approx(1)
    assert (agreed["same"][:, 1] < 0.99).all()
    assert (np.abs(agreed["other"][:, 2]) < 0.5).all()
    # Where influence is, two sets agree in any case: what places_other is for.
    assert (agreed["other"][:, 0] > 0.5).all()
    # No latents: all that comes through came by the affine maps, and they err.
    assert (numbers["affine"][:, 2:] == 0).all()
    assert (numbers["affine"][:, :2] < 1).all()
    assert np.isnan(agreed["affine"]).all()
    assert "trained - same, replacement: 0.000 +- 0.000 (n = 2)" in done.stdout
    # A latent is found by its key whatever part of a graph is kept.
    part = [sys.executable, "-W", "ignore", "-c", PART, str(script.parent), str(tmp_path)]
    subprocess.run(part, env=circuit_tracer, check=True)
