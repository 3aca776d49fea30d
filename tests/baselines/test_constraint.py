"""A constraint is one file: what the package knows of it, and one call of registration."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

from sae_baselines.baselines import (
    CONSTRAINTS,
    SEEDED,
    get_baseline,
    parse_name,
    register_baselines,
    register_constraint,
    registry,
)
from sae_baselines.baselines.constraint import Constraint, Promise, freeze_, stays
from sae_baselines.baselines.seeded_start import SeededStartMixin
from sae_baselines.show.sae import describe_sae, in_words
from tests.helpers import make_sae, train


class FrozenBiasMixin(SeededStartMixin):
    """Never trains b_enc."""

    def initialize_weights(self) -> None:
        super().initialize_weights()
        freeze_(self, "b_enc")


class FrozenBias(Constraint):
    """A constraint that this package does not have."""

    name = "frozen_bias"
    frozen = "b_enc"
    learned = "everything else"
    sae_mixin = FrozenBiasMixin
    refused = {"gated": "it has no b_enc"}

    def promise(self, options: Mapping[str, Any], precision: str) -> Promise:
        del options
        return stays("decoder", precision)


@pytest.fixture
def frozen_bias(monkeypatch: pytest.MonkeyPatch) -> Iterator[Constraint]:
    known = dict(SAE_TRAINING_CLASS_REGISTRY)
    constraints = dict(CONSTRAINTS)
    monkeypatch.setattr(registry, "_baselines", dict(registry._baselines))
    constraint = FrozenBias()
    register_constraint(constraint)
    yield constraint
    for table, before in ((SAE_TRAINING_CLASS_REGISTRY, known), (CONSTRAINTS, constraints)):
        table.clear()
        table.update(before)  # type: ignore[arg-type]


def test_one_call_and_every_base_has_its_baseline(frozen_bias: Constraint) -> None:
    assert "frozen_bias_topk" in register_baselines("topk")
    assert get_baseline("frozen_bias_topk").constraint is frozen_bias
    sae = make_sae("frozen_bias_topk")
    train(sae, 10)
    assert torch.equal(sae.b_enc, torch.zeros_like(sae.b_enc))
    start = make_sae("seeded_topk")
    assert not torch.equal(sae.W_dec, start.W_dec)
    assert not torch.equal(sae.W_enc, start.W_enc)
    assert parse_name("frozen_bias_topk") == (frozen_bias, "topk")


def test_what_a_constraint_says_of_itself_is_what_show_says(
    frozen_bias: Constraint, tmp_path: Path
) -> None:
    register_baselines("topk")
    words = in_words("frozen_bias", "frozen_bias_topk", None)
    assert words == "frozen: b_enc; learned: everything else"
    sae = make_sae(f"{frozen_bias.name}_topk")
    train(sae, 5)
    sae.save_inference_model(tmp_path)
    promise = describe_sae(tmp_path).promise
    assert promise is not None
    assert promise.text.startswith("decoder rows where they started")
    assert promise.holds is False


def test_a_base_that_it_refuses_has_none_and_the_error_says_why(
    frozen_bias: Constraint,
) -> None:
    del frozen_bias
    assert "frozen_bias_gated" not in register_baselines("gated")
    with pytest.raises(ValueError, match="'frozen_bias_gated' does not exist: it has no b_enc"):
        get_baseline("frozen_bias_gated")


def test_lists_keep_the_papers_order_whatever_is_added(frozen_bias: Constraint) -> None:
    ours = ["frozen_decoder", "soft_frozen_decoder", "frozen_encoder", "soft_frozen_encoder"]
    assert list(CONSTRAINTS) == [*ours, frozen_bias.name]


def test_the_name_of_another_constraint_is_refused() -> None:
    class Impostor(Constraint):
        name = "frozen_decoder"
        frozen = learned = ""

    with pytest.raises(ValueError, match=r"'frozen_decoder' is registered already, by .*give"):
        register_constraint(Impostor())


@pytest.mark.parametrize(
    ("name", "constraint", "base"),
    [
        ("frozen_decoder", "frozen_decoder", "batchtopk"),
        ("soft_frozen_decoder_gated", "soft_frozen_decoder", "gated"),
        ("frozen_encoder_of_somebody", "frozen_encoder", "of_somebody"),
        ("seeded_matryoshka_batchtopk", "seeded", "matryoshka_batchtopk"),
        # As 0.1.0-dev called the seeded SAE with its sparse step; exports say so still.
        ("sparse_matryoshka_batchtopk", "seeded", "matryoshka_batchtopk"),
    ],
)
def test_names_are_read_whoever_registered_them(name: str, constraint: str, base: str) -> None:
    parsed = parse_name(name)
    assert parsed is not None
    assert (parsed[0].name, parsed[1]) == (constraint, base)


@pytest.mark.parametrize("name", ["batchtopk", "sparse_of_somebody", "seeded", "", "sparse"])
def test_a_name_of_something_else_is_nothing(name: str) -> None:
    assert parse_name(name) is None


@pytest.mark.parametrize("base", ["topk", "gated"])
def test_the_old_name_of_the_sparse_step_is_answered_with_the_new(base: str) -> None:
    assert f"sparse_{base}" not in SAE_TRAINING_CLASS_REGISTRY
    with pytest.raises(ValueError, match=f"it is seeded_{base} with sparse_step=True"):
        get_baseline(f"sparse_{base}")


def test_the_seeded_sae_trains_as_saelens_does_unless_told() -> None:
    assert make_sae("seeded_topk").cfg.sparse_step is False
    assert make_sae("frozen_decoder_topk").cfg.sparse_step is True
    assert SEEDED.name not in CONSTRAINTS


@pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=lambda c: c.name)
def test_the_documented_table_has_a_row_of_every_constraint(constraint: Constraint) -> None:
    docs = Path(__file__).parents[2] / "docs" / "how-to"
    page = (docs / "your-architecture.md").read_text(encoding="utf-8")
    start = f"| `{constraint.name}` | "
    (row,) = [line for line in page.splitlines() if line.startswith(start)]
    frozen, learned, options, _ = row.removeprefix(start).replace("`", "").split("|")
    assert frozen.split()[0].strip(",") == constraint.frozen.split()[0]
    assert learned.split()[0].strip(",") == constraint.learned.split()[0].strip(",")
    assert all(option in options for option in constraint.options)
