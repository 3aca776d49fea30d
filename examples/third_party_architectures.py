"""Baselines for architectures of three kinds: deep, multi-expert, complex-valued.

    python examples/third_party_architectures.py

Each is a small imitation of what packages beside SAELens register; the code of an architecture
is what its author writes anyway, and its baselines are one line. A constraint fixes ``W_dec``
or ``W_enc``. What else an architecture has (layers before the encoder, a router) is learned in
every baseline, and is part of what "random directions can do".
"""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE, register_sae_class, register_sae_training_class
from sae_lens.saes.sae import SAEConfig, TrainingSAE, TrainingSAEConfig
from sae_lens.synthetic import SyntheticSAERunner, SyntheticSAERunnerConfig
from torch import nn

import sae_baselines
from sae_baselines.study.synthetic.generator import paper_config

EXPERTS = 4


def strongest(size: torch.Tensor, k: int) -> torch.Tensor:
    """A mask of the k largest in the last dimension."""
    return torch.zeros_like(size).scatter_(-1, size.topk(k, dim=-1).indices, 1.0)


class Kind:
    """What the three have in common: k active latents, and weights of their own.

    Weights beside SAELens' are drawn from a seed: the members of a panel start alike.
    """

    cfg: Any
    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    def initialize_weights(self) -> None:
        """SAELens' weights, then those of the kind."""
        parent: Any = super()
        parent.initialize_weights()
        generator = torch.Generator().manual_seed(0)
        for name, shape in self.own_weights().items():
            drawn = torch.randn(shape, generator=generator) / shape[0] ** 0.5
            setattr(self, name, nn.Parameter(drawn.to(self.W_enc)))

    def own_weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes of weights that SAELens does not know, by name."""
        return {}

    def latents(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., d_sae]`` of ``[..., d_in]``."""
        raise NotImplementedError

    # For inference and training.
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        own: Any = self
        return self.latents(own.process_sae_in(x))

    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        own: Any = self
        out = own.hook_sae_recons(feature_acts @ self.W_dec + self.b_dec)
        return own.reshape_fn_out(own.run_time_activation_norm_fn_out(out), own.d_head)

    # For training alone.
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.encode(x)
        return found, found

    def get_coefficients(self) -> dict[str, Any]:
        return {}

    def calculate_aux_loss(self, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        return {}


class Deep(Kind):
    """A layer with a skip before the encoder."""

    W_layer: nn.Parameter

    def own_weights(self) -> dict[str, tuple[int, ...]]:
        return {"W_layer": (self.cfg.d_in, self.cfg.d_in)}

    def latents(self, x: torch.Tensor) -> torch.Tensor:
        hidden_pre = ((x + (x @ self.W_layer).relu()) @ self.W_enc).relu()
        return hidden_pre * strongest(hidden_pre, self.cfg.k)


class Experts(Kind):
    """A router sends each activation to two of four groups of latents, and scales them."""

    W_router: nn.Parameter

    def own_weights(self) -> dict[str, tuple[int, ...]]:
        return {"W_router": (self.cfg.d_in, EXPERTS)}

    def latents(self, x: torch.Tensor) -> torch.Tensor:
        gate = (x @ self.W_router).softmax(-1)
        gate = gate * strongest(gate, 2)
        pre = (x @ self.W_enc).relu() * gate.repeat_interleave(self.cfg.d_sae // EXPERTS, -1)
        return pre * strongest(pre, self.cfg.k)


class Complex(Kind):
    """Latents are complex numbers: two rows of the dictionary each, chosen by their modulus.

    Latent j has its real part at 2j and its imaginary part at 2j + 1; k counts real numbers.
    """

    def latents(self, x: torch.Tensor) -> torch.Tensor:
        pairs = (x @ self.W_enc).unflatten(-1, (self.cfg.d_sae // 2, 2))
        on = strongest(pairs.norm(dim=-1), self.cfg.k // 2)
        return (pairs * on[..., None]).flatten(-2)


def register(name: str, kind: type[Kind]) -> None:
    """Make SAELens know an architecture, for inference and for training, and its baselines."""

    def config(parent: type[Any]) -> type[Any]:
        @dataclass
        class Config(parent):
            k: int = 4

            @classmethod
            def architecture(cls) -> str:
                return name

        return Config

    def build(parent: Any) -> type[Any]:
        return type(f"{kind.__name__}{parent.__name__}", (kind, parent), {})

    register_sae_class(name, build(SAE), config(SAEConfig))
    register_sae_training_class(name, build(TrainingSAE), config(TrainingSAEConfig))
    sae_baselines.register_baselines(name)


KINDS: dict[str, type[Kind]] = {"deep": Deep, "experts": Experts, "complex": Complex}
CONSTRAINTS = ("frozen_decoder", "soft_frozen_decoder", "frozen_encoder")
for _name, _kind in KINDS.items():
    register(_name, _kind)


def train(architecture: str, samples: int = 50_000) -> Any:
    """Train it on data with known features; any SAELens runner takes the name."""
    config = SyntheticSAERunnerConfig.from_dict(
        {
            "synthetic_model": paper_config("constant", n=32, m=128, mean_active=4.0).to_dict(),
            "sae": {"architecture": architecture, "d_in": 32, "d_sae": 128, "k": 4},
            "training_samples": samples,
            "batch_size": 256,
            "lr": 3e-3,
            "eval_samples": 10_000,
            "output_path": None,
            "logger": {"log_to_wandb": False},
        }
    )
    return SyntheticSAERunner(config).run()


if __name__ == "__main__":
    for kind in KINDS:
        for name in (kind, *(f"{constraint}_{kind}" for constraint in CONSTRAINTS)):
            variance = train(name).final_eval.explained_variance
            print(f"{name:32s} explained variance {variance:.3f}")
