"""The benchmarks of the sparse step run, and what they write adds up; speed is not tested."""

import contextlib
import importlib
import io
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sae_baselines.baselines import seeded_start
from sae_baselines.sparse import step as sparse_step
from tests.benchmarks.steps import check_same_work

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results"
BASES = ("batchtopk", "jumprelu", "standard", "topk", "gated", "matryoshka_batchtopk")
BASELINES = ("frozen_decoder", "soft_frozen_decoder", "frozen_encoder")
TWINS = (*BASELINES, "sparse")
MEMBERS = ("stock", "stock_again", *TWINS)
AXES = ("d_sae", "k", "batch")


@pytest.fixture(scope="module")
def imported() -> Iterator[Callable[[str], Any]]:
    """Imports a benchmark as a module."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        # Benchmarks put a cache in its place.
        patch.setattr(seeded_start, "start_directions", seeded_start.start_directions)
        yield importlib.import_module
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def step(imported: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """A quick run: what it wrote and what it printed."""
    out = tmp_path_factory.mktemp("step") / "sparse_step.json"
    arguments = ["--quick", "--repeats", "3", "--skip-memory", "--out", str(out)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        imported("sparse_step").main(arguments)
    return json.loads(out.read_text()), printed.getvalue()


@pytest.fixture(scope="module")
def growth(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A quick run as a user would start it; it starts processes itself."""
    out = tmp_path_factory.mktemp("growth") / "growth.json"
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "sparse_growth.py", "--quick", "--out", out],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), out


def test_every_base_and_member_is_measured(step: tuple[dict[str, Any], str]) -> None:
    (measured,) = step[0]["runs"]
    assert tuple(measured["bases"]) == BASES
    for base in measured["bases"].values():
        assert tuple(base["members"]) == MEMBERS
        for member in base["members"].values():
            assert len(member["ms"]) == len(member["floor_ms"]) == base["repeats"] == 3


def test_members_do_the_same_work_and_do_it_sparse(step: tuple[dict[str, Any], str]) -> None:
    for name, base in step[0]["runs"][0]["bases"].items():
        check_same_work(name, base, TWINS, least=1)
        for twin in TWINS:
            assert base["members"][twin]["sparse_share"] == 1
            assert base["members"][twin]["sparse_steps"] > base["repeats"]
            assert base["members"][twin]["dense_steps"] == 0
        assert base["projection"]["edge"]["rows_moved"] > 0, name


@pytest.mark.parametrize("base", ["jumprelu", "standard", "batchtopk"])
def test_memory_is_measured_at_the_recipe_of_panels(imported: Any, base: str) -> None:
    memory = imported("step_memory")
    shape = memory.SHAPES["quick_sparse"]
    threads = torch.get_num_threads()
    assert (
        memory._cpu_peak(base, "frozen_decoder", shape, 1.0, False, False, False, threads) >= 0
    )


def test_ratios_sums_and_aims_follow_from_the_times(step: tuple[dict[str, Any], str]) -> None:
    check_step(step[0])
    judged = [aim["what"] for aim in step[0]["runs"][0]["aims"]]
    assert len(judged) == len(set(judged)) == 10  # twelve with the two about memory


def test_parts_are_those_of_the_step(step: tuple[dict[str, Any], str]) -> None:
    (measured,) = step[0]["runs"]
    for base in ("batchtopk", "jumprelu"):
        members = measured["bases"][base]["members"]
        for member in ("stock", *TWINS):
            assert list(members[member]["parts_ms"]) == list(measured["settings"]["parts"])
            assert members[member]["parts_ms"]["backward"] > 0
            operators = members[member]["profile_ms"]["operators"]
            assert list(operators.values()) == sorted(operators.values(), reverse=True)
            assert len(operators) == 10
            assert min(operators.values()) > 0
        soft = members["soft_frozen_decoder"]["parts_ms"]["projection"]
        assert soft > members["frozen_decoder"]["parts_ms"]["projection"], base
    sparse = measured["bases"]["batchtopk"]["members"]["sparse"]["profile_ms"]
    assert "_DecoderGradientBackward" in sparse["backward_nodes"]


def test_tables_name_every_aim_and_base(step: tuple[dict[str, Any], str]) -> None:
    record, printed = step
    for aim in record["runs"][0]["aims"]:
        mark = "✓" if aim["met"] else "✗"
        assert any(
            line.startswith(f"| {aim['what']} |") and line.endswith(f"| {mark} |")
            for line in printed.splitlines()
        ), aim["what"]
    for base in BASES:
        assert sum(line.startswith(f"| {base} |") for line in printed.splitlines()) == 1


def test_results_name_no_path(step: tuple[dict[str, Any], str]) -> None:
    text = json.dumps(step[0])
    assert str(Path.home()) not in text
    assert str(BENCHMARKS.parent) not in text


def test_dense_steps_are_no_result(imported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_step, "MAX_DENSITY", 1 / 32)  # 4 of 64 latents are too many
    arguments = ["--quick", "--shape", "quick", "--bases", "topk", "--repeats", "1"]
    with pytest.raises(SystemExit, match=r"topk, frozen_decoder: .* sparse \(dense: "):
        imported("sparse_step").main(arguments)


def test_sums_are_formed_within_a_repeat(imported: Any) -> None:
    pairs = imported("pairs")
    assert pairs.added([1.0, 2.0], [10.0, 20.0]) == [11.0, 22.0]
    assert pairs.paired([1.0, 4.0, 3.0], [2.0, 2.0, 2.0]) == {
        "ratio": 1.5,
        "ratio_quartiles": [1.0, 1.75],
    }
    assert pairs.paired([1.0], [4.0]) == {"ratio": 0.25, "ratio_quartiles": [0.25, 0.25]}


def test_everyone_has_his_turn_and_another_begins_each_time(imported: Any) -> None:
    said: list[str] = []
    actions = {name: (lambda name=name: said.append(name)) for name in "abc"}
    ms = imported("pairs").interleaved(actions, 4, lambda: None)
    assert "".join(said) == "abcbcacababc"
    assert {name: len(times) for name, times in ms.items()} == {"a": 4, "b": 4, "c": 4}


def test_a_part_stops_while_another_runs_in_it(
    imported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = imported("step_parts")
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    monkeypatch.setattr(parts, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    clock = parts._Clock(lambda: None)
    with clock.part("outer"), clock.part("inner"):
        clock.rename("renamed")
    assert clock.spent == {"outer": 1.0 + 4.0, "inner": 2.0, "renamed": 3.0}


def test_how_far_a_run_trains_is_bounded_on_any_machine(imported: Any) -> None:
    blocks = imported("step_members").blocks
    # The most steps that a run may take, however fast: 8 in a block, 25 turns.
    assert blocks(1e-6, 0.02, 3) == (8, 25)
    assert blocks(1e-6, 0.02, 3, repeats=3) == (8, 3)
    # And where a step takes long: a block of half a second, or one step; 5 turns at least.
    assert blocks(0.25, 50, 3) == (2, 25)
    assert blocks(9.0, 50, 3) == (1, 5)


@pytest.mark.thorough
def test_growth_falls_back_to_dense_steps_by_itself(
    growth: tuple[dict[str, Any], Path],
) -> None:
    few, many = growth[0]["sections"]["k"]["points"]
    for twin in TWINS:
        assert few["members"][twin]["sparse_share"] == 1
        assert many["members"][twin]["sparse_share"] == 0


@pytest.mark.thorough
def test_growth_adds_up(
    growth: tuple[dict[str, Any], Path], imported: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    record, out = growth
    check_growth(record)
    imported("render_sparse").main([str(out)])
    printed = capsys.readouterr().out
    for title in ("Step over d_sae", "Step over k", "Step over batch", "What fits"):
        assert f"**{title}" in printed
    assert printed.count("(dense)") == len(TWINS)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    drawn = out.with_suffix(".svg").read_text()
    assert drawn.startswith("<?xml")
    assert "nan" not in drawn


@pytest.mark.thorough
def test_sections_can_be_measured_one_by_one(
    growth: tuple[dict[str, Any], Path], imported: Any, tmp_path: Path
) -> None:
    out = tmp_path / "growth.json"
    out.write_text(growth[1].read_text())
    arguments = ["--quick", "--only", "batch", "--out", str(out)]
    imported("sparse_growth").main(arguments)
    again = json.loads(out.read_text())["sections"]
    for name, section in growth[0]["sections"].items():
        assert (again[name] == section) == (name != "batch"), name
    out.write_text(json.dumps({**growth[0], "device": "cuda"}))
    with pytest.raises(SystemExit, match="is not a result of sparse_growth on cpu"):
        imported("sparse_growth").main(arguments)


@pytest.mark.parametrize("missing", ["dictionary_learning", "sparsify"])
def test_a_missing_peer_is_named_in_one_line(
    imported: Any, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")
    members = imported("step_members")
    shape = members.SHAPES["quick_sparse"]
    build = getattr(imported("peers"), f"{missing}_step")
    with pytest.raises(SystemExit) as raised:
        build(shape, members.activations(shape, "cpu"))
    (line,) = str(raised.value).splitlines()
    assert missing in line
    assert line.endswith("pip install -e . dictionary-learning eai-sparsify")


def test_peers_take_turns_with_ours(imported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the other libraries, which tests do not have."""
    peers, members = imported("peers"), imported("step_members")
    monkeypatch.setattr(peers, "_version", lambda _: "1.0")
    shape = members.SHAPES["quick_sparse"]
    batches = members.activations(shape, "cpu")
    seen: list[Any] = []

    def build() -> Any:
        return peers.Peer(seen.append, batches, package="other", path="p", differs="d")

    names = (peers.DICTIONARY_LEARNING, peers.SPARSIFY)
    found = peers.measure(shape, batches, dict.fromkeys(names, build), 3, autocast=False)
    assert list(found["members"]) == [*peers.OURS, *names]
    assert len(seen) == 2 * (2 + 3 * found["steps_per_block"])
    assert seen[0] is batches[0]
    check_peers(found)


def test_committed_results_hold_together() -> None:
    checks = {"sparse_step": check_step, "sparse_growth": check_growth, "peers": check_peers}
    for file in RESULTS.glob("*.json"):
        record = json.loads(file.read_text())
        if record.get("benchmark") in checks:
            checks[record["benchmark"]](record)
            assert "quick" not in file.read_text(), f"{file.name}: a quick run is no result"


def check_step(record: dict[str, Any]) -> None:
    """Medians, ratios, sums and aims are those of the times beside them."""
    for measured in record["runs"]:
        for base in measured["bases"].values():
            members = base["members"]
            stock = members["stock"]["ms"]
            for member in members.values():
                assert member["median_ms"] == statistics.median(member["ms"])
                assert member["ratio"] == median_ratio(member["ms"], stock)
                low, high = member["ratio_quartiles"]
                assert 0 < low <= member["ratio"] <= high
                assert member["over_floor"] == median_ratio(member["ms"], member["floor_ms"])
                for floor, product in zip(member["floor_ms"], base["product_ms"], strict=True):
                    assert floor > product > 0
                if member["peak_memory_mib"] is not None:
                    peak = members["stock"]["peak_memory_mib"]
                    ratio = member["peak_memory_mib"] / peak if peak else None
                    assert member["peak_memory_ratio"] == ratio
            for name, of in (("baselines", BASELINES), ("panel", TWINS)):
                sums = [
                    sum(times) for times in zip(*(members[m]["ms"] for m in of), strict=True)
                ]
                assert base["sums"][name]["ratio"] == median_ratio(sums, stock)
            for twin in TWINS:
                assert members[twin]["sparse_share"] == 1
        values = {
            float(value)
            for base in measured["bases"].values()
            for value in (
                *(m["ratio"] for m in base["members"].values()),
                *(m["peak_memory_ratio"] or 0 for m in base["members"].values()),
                *(s["ratio"] for s in base["sums"].values()),
                *(p["share_of_step"] for p in base["projection"].values()),
            )
        }
        for aim in measured["aims"]:
            assert aim["value"] in values, aim["what"]
            assert aim["met"] == (aim["value"] <= aim["aim"])


def check_growth(record: dict[str, Any]) -> None:
    """Points grow along their axis only, ratios follow, limits are tried in order."""
    sections = record["sections"]
    for axis in AXES:
        section = sections[axis]
        values = [point["shape"][axis] for point in section["points"]]
        assert values == sorted(set(values))
        for point in section["points"]:
            assert {**point["shape"], axis: 0} == {**section["base_shape"], axis: 0}
            members = point["members"]
            assert tuple(members) == ("stock", *TWINS)
            for member in members.values():
                assert len(member["ms"]) == point["repeats"]
                assert member["median_ms"] == statistics.median(member["ms"])
                assert member["ratio"] == median_ratio(member["ms"], members["stock"]["ms"])
    stock = [point["peak_mib"]["stock"] for point in sections["memory"]["points"]]
    assert stock == sorted(stock)
    limit = sections["limit"]
    for member, tries in limit["members"].items():
        limits = [t["limit_gib"] for t in tries]
        assert limits == limit["limits_gib"][: len(tries)]
        assert not any(t["fits"] for t in tries[:-1])
        if member != "stock":
            assert tries[-1]["fits"]
            assert tries[-1]["sparse_share"] == 1
            # Where every twin fits, stock does not.
            first = limits[-1]
            at = [t for t in limit["members"]["stock"] if t["limit_gib"] == first]
            assert [t["fits"] for t in at] == [False], member


def check_peers(record: dict[str, Any]) -> None:
    """Ratios are those of the times, and each peer has its like here."""
    members = record["members"]
    reference = members["stock batchtopk"]["ms"]
    assert any("over_same_selection" in member for member in members.values())
    for member in members.values():
        assert len(member["ms"]) == record["repeats"]
        assert member["median_ms"] == statistics.median(member["ms"])
        assert member["ratio"] == pytest.approx(median_ratio(member["ms"], reference))
        assert member["library"]
        assert member["code_path"]
        if "same_selection" in member:
            same = members[member["same_selection"]]["ms"]
            assert member["over_same_selection"] == pytest.approx(
                median_ratio(member["ms"], same)
            )
            assert member["differs"]


def median_ratio(ms: Sequence[float], reference: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ms, reference, strict=True))


def test_a_quick_run_over_transcoders_has_every_member_beside_the_dense_one(
    imported: Any, tmp_path: Path
) -> None:
    out = tmp_path / "transcoder_step.json"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        imported("transcoder_step").main(["--quick", "--repeats", "2", "--out", str(out)])
    record = json.loads(out.read_text())
    assert set(record["runs"]) == {"True", "False"}  # with a skip, and without
    baselines = {*BASELINES, "soft_frozen_encoder"}
    for run in record["runs"].values():
        members = run["members"]
        assert set(members) == {"trained", "trained again", *baselines}
        assert members["trained"]["ratio"] == 1
        assert all(
            member["l0_last"] == pytest.approx(4, rel=0.3) for member in members.values()
        )
    assert all(f"| {name} |" in printed.getvalue() for name in baselines)


def test_the_committed_run_over_transcoders_meets_its_aim() -> None:
    record = json.loads((RESULTS / "transcoder_step_cpu.json").read_text())
    assert record["shape"] == {"d_in": 576, "d_sae": 4608, "batch": 1024, "k": 32}
    for run in record["runs"].values():
        for member in ("frozen_decoder", "frozen_encoder"):
            assert run["members"][member]["ratio"] <= record["aim"]
