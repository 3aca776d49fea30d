"""Which SAEs are trained, and in how many passes."""

from pathlib import Path

from sae_baselines.study.plan import members_of, panels_of
from sae_baselines.study.spec import spec_from_dict
from tests.tiny_model import tiny_panel


def _spec(**overrides):
    return spec_from_dict(tiny_panel(Path("m"), **overrides))


def test_panels_are_the_product_of_architectures_l0s_and_seeds():
    spec = _spec(architecture=["batchtopk", "topk"], l0=[4, 8], seeds=[0, 1, 2])
    names = [p.name for p in panels_of(spec)]
    assert len(names) == len(set(names)) == 12
    assert "topk_l0_8_seed_2" in names


def test_a_shared_order_is_one_pass_and_a_varied_one_a_pass_per_seed():
    shared = _spec(seeds=[3, 4]).passes()
    assert [(p.data_seed, len(p.panels)) for p in shared] == [(3, 2)]
    varied = _spec(seeds=[3, 4], data_order="per_seed", l0=[4, 8]).passes()
    assert [(p.data_seed, len(p.panels)) for p in varied] == [(3, 2), (4, 2)]


def test_passes_are_cut_to_size_without_losing_a_panel():
    spec = _spec(l0=[2, 3, 4, 5, 6], max_panels_per_pass=2)
    passes = spec.passes()
    assert [len(p.panels) for p in passes] == [2, 2, 1]
    assert [q for p in passes for q in p.panels] == panels_of(spec)
    assert {p.data_seed for p in passes} == {0}


def test_member_names_are_unique_over_a_study():
    spec = _spec(l0=[4, 8], seeds=[0, 1])
    names = [k.name for p in panels_of(spec) for k in members_of(spec, p)]
    assert len(names) == len(set(names)) == 16
