"""Activations of patches: one module's output of a vision transformer from transformers."""

import difflib
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from sae_baselines.errors import UserError, one_line
from sae_baselines.reach import say_if_silent
from sae_baselines.study.language_model import check_model_folder, reason_of_model
from sae_baselines.study.patches.spec import VisionModelSpec


class _Seen(Exception):  # noqa: N818  (not an error)
    """The hooked module has run; the layers after it need not."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class PatchModel:
    """A vision transformer up to one module.

    The module's output must be one vector per token. Tokens beyond the patches, which
    transformers' models put first (class token, register tokens, distillation token), are
    dropped.

    Attributes:
        d_in: Width of the module's output.
        size: Side of the square pictures that go in, pixels.
        grid: Patches per side.
        n_special: Tokens dropped from the front.
    """

    def __init__(
        self,
        spec: VisionModelSpec,
        hook_name: str,
        device: str,
        size: int | None = None,
    ) -> None:
        """Load a model and look at one blank picture.

        Args:
            spec: The model.
            hook_name: Dotted module name.
            device: Torch device.
            size: Side of pictures; default the image processor's, else the model's.

        Raises:
            UserError: The model cannot be loaded or has no square patches, there is no such
                module, or its output is not one vector per patch.
        """
        self.name, self.hook_name, self.device = spec.name, hook_name, device
        if Path(spec.name).exists():
            check_model_folder(Path(spec.name), tokenizer=False)
        say_if_silent([spec.name])
        try:
            config: Any = AutoConfig.from_pretrained(spec.name)
            # Not the fast processors: they need torchvision, built for the installed torch.
            self.processor: Any = AutoImageProcessor.from_pretrained(spec.name, use_fast=False)
            model: Any = AutoModel.from_pretrained(spec.name)
        except Exception as error:  # transformers raises what comes
            raise UserError(
                f"model.name: cannot load {spec.name!r} as a vision model: "
                f"{reason_of_model(error)}"
            ) from error
        vision = getattr(config, "vision_config", config)
        patch = _side(getattr(vision, "patch_size", None))
        if patch is None:
            raise UserError(
                f"model.name: {spec.name!r} ({config.model_type}) has no square patches; use a "
                "vision transformer, e.g. facebook/dinov2-small"
            )
        model = model.to(device=device, dtype=getattr(torch, spec.dtype)).eval()
        self.module = _module(model, spec.name, hook_name)
        # Of a model of two towers, the one that sees.
        self.tower = model.vision_model if hasattr(config, "vision_config") else model
        self.dtype = getattr(torch, spec.dtype)
        wanted = size or _processor_size(self.processor) or _side(vision.image_size)
        if not wanted or wanted % patch:
            raise UserError(
                f"images.size: {wanted} is not a multiple of the {patch} pixels of a patch; "
                f"use e.g. {patch * max(1, round((wanted or 224) / patch))}"
            )
        self.size: int = wanted
        self.grid = self.size // patch
        tokens = self._tokens([Image.new("RGB", (self.size, self.size))])
        self.d_in = tokens.shape[-1]
        self.n_special = tokens.shape[1] - self.n_patches
        if self.n_special < 0:
            raise UserError(
                f"hook_name: {hook_name!r} gives {tokens.shape[1]} tokens for the "
                f"{self.n_patches} patches of a picture; hook a module before tokens are merged"
            )

    @property
    def n_patches(self) -> int:
        """Patches of a picture."""
        return self.grid**2

    def activations(self, pictures: list[Image.Image]) -> torch.Tensor:
        """Activations of every patch.

        Args:
            pictures: RGB, ``size`` x ``size``; they are normalised as the model's image
                processor says, and neither scaled nor cropped.

        Returns:
            float32 CPU ``[pictures, grid * grid, d_in]``; patches row by row.

        Raises:
            UserError: NaN or infinity.
        """
        patches = self._tokens(pictures)[:, self.n_special :].float().cpu()
        if not torch.isfinite(patches).all():
            raise UserError(
                f"hook_name: activations at {self.hook_name} contain NaN or infinity; try "
                "model.dtype=float32, or another module"
            )
        return patches

    @torch.no_grad()
    def _tokens(self, pictures: list[Image.Image]) -> torch.Tensor:
        pixels = self.processor(
            pictures, do_resize=False, do_center_crop=False, return_tensors="pt"
        )["pixel_values"]
        handle = self.module.register_forward_hook(_stop)
        try:
            self.tower(pixels.to(self.device, self.dtype))
        except _Seen as seen:
            return self._one_vector_per_token(seen.output)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"images.size: {self.name} does not take pictures of {self.size} pixels: "
                f"{one_line(error, 200)}"
            ) from error
        finally:
            handle.remove()
        raise UserError(
            f"hook_name: {self.hook_name!r} does not run when {self.name} sees a picture; hook "
            "a module of its vision part"
        )

    def _one_vector_per_token(self, output: Any) -> torch.Tensor:
        tokens = output[0] if isinstance(output, tuple) else output
        if not isinstance(tokens, torch.Tensor) or tokens.dim() != 3:
            shape = tuple(tokens.shape) if isinstance(tokens, torch.Tensor) else type(tokens)
            raise UserError(
                f"hook_name: {self.hook_name!r} gives {shape}, not one vector per token; hook "
                "a transformer block"
            )
        return tokens


def _stop(module: Any, inputs: Any, output: Any) -> None:  # noqa: ARG001
    raise _Seen(output)


def _module(model: torch.nn.Module, name: str, hook_name: str) -> torch.nn.Module:
    known = dict(model.named_modules())
    known.pop("", None)
    if hook_name not in known:
        near = difflib.get_close_matches(hook_name, known, n=3, cutoff=0.5)
        blocks = [n for n in known if n.rpartition(".")[2].isdigit()]
        hint = f"did you mean {' or '.join(near)}?" if near else f"e.g. {blocks[-1]}"
        raise UserError(f"hook_name: {hook_name!r} is not a module of {name}; {hint}")
    return known[hook_name]


def _side(size: Any) -> int | None:
    """A side from a number or from equal height and width."""
    if isinstance(size, int):
        return size
    if isinstance(size, list | tuple) and len(set(size)) == 1 and isinstance(size[0], int):
        return size[0]
    return None


def _processor_size(processor: Any) -> int | None:
    """The side of what an image processor makes: its crop's, or what it scales to."""
    crop = getattr(processor, "do_center_crop", False)
    for size in ([processor.crop_size] if crop else []) + [getattr(processor, "size", None)]:
        found = dict(size) if size is not None else {}
        sides = {found.get(k) for k in ("height", "width", "shortest_edge")} - {None}
        if len(sides) == 1:
            return sides.pop()
    return None
