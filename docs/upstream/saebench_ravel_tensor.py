"""Whether RAVEL's hooks work where decoder layers return a tensor, as in transformers 5.

SAEBench's three hooks on a tiny random model of the installed transformers: a Llama, whose
layers return a tensor in 4.57 already (those of models that RAVEL knows do in 5). Exits with 1
where one of them fails or changes another token than it should.
"""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from sae_bench.evals.ravel.mdas import MDAS
from sae_bench.evals.ravel.mdbm import MDBM
from sae_bench.sae_bench_utils import activation_collection
from transformers import LlamaConfig, LlamaForCausalLM

D, LAYER = 16, 1
POSITIONS = torch.tensor([2, 3])


class Doubles(torch.nn.Module):
    """Stands in for an SAE: latents are x, the reconstruction is 2x."""

    cfg = SimpleNamespace(hook_layer=LAYER, d_sae=D)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def residuals(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the layer gives, [batch, token, d]."""
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True).hidden_states[LAYER + 1]


def main() -> bool:
    """Whether all three hooks do what they should."""
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": D, "intermediate_size": 32, "num_hidden_layers": 3}
    config = LlamaConfig(**sizes, vocab_size=20, num_attention_heads=2, num_key_value_heads=2)
    model = LlamaForCausalLM(config).eval()
    # Known to SAEBench are Gemma 2 and GPT-NeoX.
    get_module: Any = lambda m, n: m.model.layers[n]  # noqa: E731
    activation_collection.get_module = get_module
    inputs: Any = {
        "input_ids": torch.randint(20, (2, 6)),
        "attention_mask": torch.ones(2, 6, dtype=torch.long),
    }
    clean = residuals(model, inputs)
    rows = torch.arange(2)
    source = torch.randn(2, D)

    def read() -> bool:
        seen = activation_collection.get_layer_activations(model, LAYER, inputs, POSITIONS)
        return torch.equal(seen, clean[rows, POSITIONS])

    def edited_by(kind: Any, want: Callable[[], torch.Tensor]) -> Callable[[], bool]:
        def edit() -> bool:
            options: Any = SimpleNamespace(llm_batch_size=2)
            editor = kind(model, None, options, Doubles())
            editor.binary_mask.data.fill_(1.0)
            hook = editor.create_intervention_hook(source, POSITIONS, training_mode=False)
            handle = model.model.layers[LAYER].register_forward_hook(hook)
            # After the layers: what the next one is given.
            given: list[torch.Tensor] = []
            after = model.model.layers[LAYER + 1].register_forward_pre_hook(
                lambda _, args: given.append(args[0].clone())
            )
            try:
                with torch.no_grad():
                    model(**inputs)
            finally:
                handle.remove()
                after.remove()
            wanted = clean.clone()
            wanted[rows, POSITIONS] = want()
            return torch.allclose(given[0], wanted, atol=1e-6)

        return edit

    print(f"transformers {transformers.__version__}")
    right = True
    for name, works in (
        ("get_layer_activations", read),
        ("MDBM", edited_by(MDBM, lambda: 2 * source)),
        ("MDAS", edited_by(MDAS, lambda: source)),
    ):
        try:
            said = "right" if works() else "wrong"
        except (ValueError, IndexError) as error:
            said = f"{type(error).__name__}: {error}"
        print(f"{name}: {said}")
        right &= said == "right"
    return right


if __name__ == "__main__":
    sys.exit(0 if main() else "RAVEL's hooks do not take a layer that returns a tensor")
