"""Each Triton kernel against plain torch in float64, in Triton's interpreter and on any GPU
there is; and each compiled for an H200 on a machine that has none."""

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_baselines.sparse import kernels
from sae_baselines.sparse.kernels import failure
from tests.sparse import triton_process

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)


def _where() -> list[str]:
    where = ["interpreter"] if importlib.util.find_spec("triton") else []
    if torch.cuda.is_available() and torch.version.hip is None:
        where += ["cuda"] if torch.cuda.get_device_capability() >= (8, 0) else []
    return where


Run = Callable[..., None]


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    yield from _process(tmp_path_factory, interpret=True)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    yield from _process(tmp_path_factory, interpret=False)


def _process(
    tmp_path_factory: pytest.TempPathFactory, *, interpret: bool
) -> Iterator[ProcessPoolExecutor]:
    package = Path(kernels.__file__).parent.parent
    cache = tmp_path_factory.mktemp("triton")
    with triton_process.start(interpret=interpret, cache=cache, package=package) as process:
        yield process


@pytest.fixture(params=_where())
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a check where the kernels run: ``check("cpu" or "cuda", ...)``."""
    if request.param == "cuda":
        return lambda check, *args: check("cuda", *args)
    process: ProcessPoolExecutor = request.getfixturevalue("interpreter")
    return lambda check, *args: process.submit(check, "cpu", *args).result()


# -- bags of entries


def _bags(lengths: list[int], m: int, d: int, dtype: torch.dtype, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    ends = torch.tensor(lengths, dtype=torch.int64).cumsum(0)
    return {
        "table": torch.randn(m, d, generator=generator).to(dtype),
        "index": torch.randint(0, m, (n,), generator=generator),
        "starts": ends - torch.tensor(lengths, dtype=torch.int64),
        "weights": torch.randn(n, generator=generator).to(dtype),
    }


def _rows(lengths: list[int]) -> torch.Tensor:
    repeats = torch.tensor(lengths, dtype=torch.int64)
    return torch.arange(len(lengths)).repeat_interleave(repeats)


def _terms(bags: dict[str, Any]) -> torch.Tensor:
    return bags["weights"].double()[:, None] * bags["table"].double()[bags["index"]]


def _per_bag(terms: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    if not lengths:
        return terms.new_zeros(0, terms.shape[1])
    return torch.stack([part.sum(0) for part in terms.split(lengths)])


def _assert_sums(
    got: torch.Tensor, want: torch.Tensor, magnitude: torch.Tensor, terms: int
) -> None:
    """Within what sums of so many terms may be off by, added up in float32 in any order.

    Args:
        got: Rounded once more if it is not float32.
        magnitude: Sums of the absolute values of the terms.
    """
    rounding = 0.0 if got.dtype == F32 else torch.finfo(got.dtype).eps
    got = got.double().cpu()
    torch.testing.assert_close(got.isnan(), want.isnan(), rtol=0, atol=0)
    infinite = want.isinf()
    torch.testing.assert_close(got[infinite], want[infinite], rtol=0, atol=0)
    finite = want.isfinite()
    bound = (terms + 1) * 2.0**-24 * magnitude[finite] + rounding * want[finite].abs()
    assert bool(((got[finite] - want[finite]).abs() <= bound).all())


def _check_gather_sum(
    device: str, lengths: list[int], d: int, dtype: torch.dtype, out_dtype: torch.dtype
) -> None:
    bags = _bags(lengths, m=13, d=d, dtype=dtype, seed=len(lengths) + d)
    _compare_gather_sum(device, bags, lengths, out_dtype)


def _compare_gather_sum(
    device: str, bags: dict[str, Any], lengths: list[int], out_dtype: torch.dtype
) -> None:
    terms = _terms(bags)
    want, magnitude = _per_bag(terms, lengths), _per_bag(terms.abs(), lengths)
    there = {name: tensor.to(device) for name, tensor in bags.items()}
    got = kernels.gather_sum(**there, out_dtype=out_dtype)
    turned = kernels.gather_sum_transposed(**there, out_dtype=out_dtype)
    assert got.shape == want.shape
    assert got.dtype == turned.dtype == out_dtype
    assert turned.shape == want.T.shape
    assert turned.is_contiguous()
    longest = max(lengths, default=0)
    _assert_sums(got, want, magnitude, longest)
    _assert_sums(turned.T, want, magnitude, longest)


LENGTHS = {
    "empty bags": [0, 3, 0, 0, 9, 1, 0],
    "all in one": [0, 0, 41, 0],
    "long bag in the tile": [1] * 16 + [0, 70] + [2] * 3,
    "one bag": [5],
    "one entry": [1],
    "no entries": [0, 0, 0],
    "no bags": [],
}


@DTYPES
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_gather_sum(run: Run, lengths: list[int], dtype: torch.dtype) -> None:
    run(_check_gather_sum, lengths, 40, dtype, F32)


@pytest.mark.parametrize("d", [1, 2, 64, 577, 768])
def test_gather_sum_for_any_width(run: Run, d: int) -> None:
    run(_check_gather_sum, [4, 0, 11], d, BF16, F32)


@pytest.mark.parametrize("out_dtype", [BF16, F16], ids=str)
def test_gather_sum_writes_the_dtype_asked_for(run: Run, out_dtype: torch.dtype) -> None:
    run(_check_gather_sum, [4, 0, 11], 33, F32, out_dtype)


def _check_not_finite(device: str) -> None:
    # NaN and infinity stay in their bag and column, also next to masked entries and columns.
    lengths = [2, 9, 0, 1, 3]
    bags = _bags(lengths, m=13, d=7, dtype=F32, seed=0)
    bags["index"] = torch.arange(15) % 12  # row 12 is in no bag
    bags["table"][12] = torch.nan
    bags["table"][3, 1] = torch.inf
    bags["table"][4, 1] = -torch.inf
    bags["table"][5, 6] = torch.nan
    bags["table"][0, 0] = torch.nan
    bags["weights"][11] = torch.inf
    bags["table"][11, 2] = 0.0  # 0 * inf
    bags["weights"][13] = 0.0
    bags["table"][1, 4] = torch.inf
    _compare_gather_sum(device, bags, lengths, F32)


def test_gather_sum_keeps_what_is_not_finite_in_its_place(run: Run) -> None:
    run(_check_not_finite)


def _check_random_bags(device: str) -> None:
    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(
        lengths=st.lists(st.sampled_from([0, 0, 1, 2, 7, 8, 9, 30]), max_size=20),
        d=st.integers(1, 70),
        dtype=st.sampled_from([F32, BF16, F16]),
        out_dtype=st.sampled_from([F32, BF16]),
    )
    def check(lengths: list[int], d: int, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
        _check_gather_sum(device, lengths, d, dtype, out_dtype)
        _check_weight_gradient(device, lengths, d, dtype)

    check()


def test_random_bags(run: Run) -> None:
    run(_check_random_bags)


def _check_repeats(device: str) -> None:
    lengths = [300, 0, 17, 9]
    bags = _bags(lengths, m=50, d=65, dtype=BF16, seed=3)
    there = {name: tensor.to(device) for name, tensor in bags.items()}
    first, second = (kernels.gather_sum(**there, out_dtype=F32) for _ in range(2))
    assert torch.equal(first, second)


def test_gather_sum_repeats_to_the_bit(run: Run) -> None:
    run(_check_repeats)


# -- gradient of the weights


def _check_weight_gradient(
    device: str, lengths: list[int], d: int, dtype: torch.dtype, out_dtype: torch.dtype = F32
) -> None:
    bags = _bags(lengths, m=13, d=d, dtype=dtype, seed=len(lengths) + d)
    rows = _rows(lengths)
    grad = torch.randn(len(lengths), d, generator=torch.Generator().manual_seed(d))
    terms = bags["table"].double()[bags["index"]] * grad.double()[rows]
    table, index = bags["table"].to(device), bags["index"].to(device)
    got = kernels.weight_gradient(table, index, rows.to(device), grad.to(device), out_dtype)
    assert got.dtype == out_dtype
    assert got.shape == rows.shape
    _assert_sums(got, terms.sum(1), terms.abs().sum(1), d)


@DTYPES
@pytest.mark.parametrize("d", [1, 40, 577])
def test_weight_gradient(run: Run, d: int, dtype: torch.dtype) -> None:
    run(_check_weight_gradient, [0, 3, 0, 14, 1], d, dtype)


@pytest.mark.parametrize("lengths", [[], [0], [1]], ids=str)
def test_weight_gradient_of_next_to_nothing(run: Run, lengths: list[int]) -> None:
    run(_check_weight_gradient, lengths, 5, BF16, BF16)


def _check_weight_gradient_not_finite(device: str) -> None:
    table, grad = torch.randn(4, 6), torch.randn(3, 6)
    table[1, 5], table[2, 0], grad[2, 5] = torch.nan, torch.inf, -torch.inf
    index, rows = torch.tensor([0, 1, 2, 3, 3]), torch.tensor([0, 0, 1, 1, 2])
    terms = table.double()[index] * grad.double()[rows]
    got = kernels.weight_gradient(
        table.to(device), index.to(device), rows.to(device), grad.to(device)
    )
    _assert_sums(got, terms.sum(1), terms.abs().sum(1), 6)
    assert got.isfinite().tolist() == [True, False, False, True, False]


def test_weight_gradient_keeps_what_is_not_finite_in_its_place(run: Run) -> None:
    run(_check_weight_gradient_not_finite)


def _check_weighted_sum(device: str, dtype: torch.dtype) -> None:
    lengths = [3, 0, 12, 1]
    bags = _bags(lengths, m=13, d=20, dtype=dtype, seed=1)
    there = {name: tensor.to(device) for name, tensor in bags.items()}
    weights = there.pop("weights").detach().requires_grad_()
    rows = _rows(lengths)
    random = torch.randn(4, 20, generator=torch.Generator().manual_seed(2))
    out = kernels.weighted_sum(**there, weights=weights, rows=rows.to(device), out_dtype=F32)
    # A plain sum hands down a gradient that is one number, expanded.
    losses = {random: (out * random.to(device)).sum(), torch.ones(4, 20): out.sum()}
    for factor, loss in losses.items():
        (got,) = torch.autograd.grad(loss, weights, retain_graph=True)
        exact = bags["weights"].double().requires_grad_()
        rows_of_table = bags["table"].double()[bags["index"]]
        sums = _per_bag(exact[:, None] * rows_of_table, lengths)
        (want,) = torch.autograd.grad((sums * factor.double()).sum(), exact)
        assert got.dtype == dtype
        magnitude = (rows_of_table * factor.double()[rows]).abs().sum(1)
        _assert_sums(got, want, magnitude, 20)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_weighted_sum_has_the_gradient_of_its_weights(run: Run, dtype: torch.dtype) -> None:
    run(_check_weighted_sum, dtype)


def _check_weighted_sum_refuses_a_table_with_gradient(device: str) -> None:
    bags = _bags([2], m=3, d=4, dtype=F32, seed=0)
    there = {name: tensor.to(device) for name, tensor in bags.items()}
    there["table"].requires_grad_()
    with pytest.raises(ValueError, match="detach"):
        kernels.weighted_sum(**there, rows=_rows([2]).to(device), out_dtype=F32)


def test_weighted_sum_refuses_a_table_with_gradient(run: Run) -> None:
    run(_check_weighted_sum_refuses_a_table_with_gradient)


# -- compaction


def _compare_above(
    device: str, block: torch.Tensor, lower: torch.Tensor, width: int, first: int
) -> None:
    rows, cols = (~(block <= lower)).nonzero(as_tuple=True)
    positions, values = kernels.compact_above(
        block.to(device), lower.to(device), width=width, first=first
    )
    assert positions.tolist() == (rows * width + first + cols).tolist()
    assert values.dtype == block.dtype
    torch.testing.assert_close(values.cpu(), block[rows, cols], rtol=0, atol=0, equal_nan=True)


def _check_above(
    device: str,
    rows: int,
    cols: int,
    share: float,
    dtype: torch.dtype,
    lower_dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(rows + cols)
    # A few values only, so that many are equal to their bound.
    block = torch.randint(-3, 4, (rows, cols), generator=generator).to(dtype)
    lower = torch.randint(-3, 4, (cols,), generator=generator).to(lower_dtype)
    lower[torch.rand(cols, generator=generator) > share] = torch.inf
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-7]).to(dtype)
    at = torch.randint(0, rows * cols, (6,), generator=generator)
    block.view(-1)[at] = special
    _compare_above(device, block, lower, cols, 0)
    lower[-1] = torch.nan
    lower[0] = -torch.inf
    _compare_above(device, block, lower, cols + 5, 3)


@DTYPES
@pytest.mark.parametrize("lower_dtype", [F32, BF16], ids=str)
def test_compact_above(run: Run, dtype: torch.dtype, lower_dtype: torch.dtype) -> None:
    run(_check_above, 9, 300, 0.3, dtype, lower_dtype)


@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (5, 1), (1, 4100), (3, 2049)], ids=str)
def test_compact_above_of_any_shape(run: Run, shape: tuple[int, int], share: float) -> None:
    run(_check_above, *shape, share, F32, F32)


def _check_denormal(device: str) -> None:
    smallest = torch.finfo(F32).smallest_normal / 8
    block = torch.tensor([[smallest, 0.0, 2 * smallest, -smallest]])
    lower = torch.tensor([0.0, -smallest, smallest, -smallest])
    _compare_above(device, block, lower, 4, 0)


def test_compact_above_does_not_flush_denormals(run: Run) -> None:
    run(_check_denormal)


def _check_nothing(device: str) -> None:
    for shape in [(0, 5), (5, 0)]:
        positions, values = kernels.compact_above(
            torch.ones(shape, device=device), torch.zeros(shape[1], device=device)
        )
        assert positions.dtype == torch.int64
        assert positions.shape == values.shape == (0,)


def test_compact_above_of_nothing(run: Run) -> None:
    run(_check_nothing)


# -- what is refused


def _check_refused(device: str) -> None:
    good = {n: t.to(device) for n, t in _bags([2, 1], 4, 6, F32, 0).items()}
    bad = {
        "table": [good["table"].T, good["table"].double(), good["table"][0]],
        "index": [good["index"].int(), good["index"][:2], good["index"].repeat(2)[::2]],
        "starts": [good["starts"].float(), good["starts"][None]],
        "weights": [good["weights"].double(), good["weights"].repeat(2)[::2]],
        "out_dtype": [torch.float64],
    }
    for name, values in bad.items():
        for value in values:
            args = {**good, "out_dtype": F32, name: value}
            for function in (kernels.gather_sum, kernels.gather_sum_transposed):
                with pytest.raises(ValueError, match=name):
                    function(**args)
    table, index = good["table"], good["index"]
    rows, grad = torch.zeros_like(index), torch.ones(2, 6, device=device)
    with pytest.raises(ValueError, match="rows"):
        kernels.weight_gradient(table, index, rows[:2], grad)
    for wrong in (grad[:, :5].contiguous(), grad.T, grad.double()):
        with pytest.raises(ValueError, match="grad"):
            kernels.weight_gradient(table, index, rows, wrong)
    block = torch.ones(3, 4, device=device)
    with pytest.raises(ValueError, match="lower"):
        kernels.compact_above(block, torch.ones(3, device=device))
    with pytest.raises(ValueError, match="width"):
        kernels.compact_above(block, torch.ones(4, device=device), width=5, first=2)


def test_what_the_kernels_cannot_take_is_refused_by_name(run: Run) -> None:
    run(_check_refused)


def test_not_for_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    table = torch.ones(2, 3)
    assert not kernels.available(table)
    with pytest.raises(ValueError, match="CUDA"):
        kernels.gather_sum(
            table, torch.zeros(1).long(), torch.zeros(1).long(), torch.ones(1), F32
        )


def test_available_in_the_interpreter(interpreter: ProcessPoolExecutor) -> None:
    for dtype, expected in [(F32, True), (BF16, True), (F16, True), (torch.float64, False)]:
        table = partial(torch.ones, 2, dtype=dtype)
        assert interpreter.submit(_available, table).result() is expected


def _available(tensor: Callable[[], torch.Tensor]) -> bool:
    return kernels.available(tensor())


def test_no_kernels_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delitem(sys.modules, "sae_baselines.sparse.triton_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    kernels._kernels.cache_clear()
    try:
        assert not kernels.available(torch.ones(1))
    finally:
        kernels._kernels.cache_clear()


# -- compiled for a GPU that is not there


class _H200Driver:
    """As much of a Triton driver as compiling needs."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        del device
        return 0


class _CompiledOnly:
    """The module of kernels, with launches that compile and stop there."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.code: dict[str, dict[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self._module, name)

        def compile_only(grid: tuple[int, ...], *args: Any, **options: Any) -> None:
            args[0].zero_()  # what is not launched counts nothing
            self.code[name] = dict(kernel.warmup(*args, grid=grid, **options).asm)

        return _ByGrid(compile_only)


class _ByGrid:
    def __init__(self, launch: Callable[..., None]) -> None:
        self._launch = launch

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return partial(self._launch, grid)


def _compiled(d: int, r: int, n: int, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """What the calls of a training step compile to, by kernel."""
    # Not imported above: the interpreter's process must be the first to import it.
    triton = importlib.import_module("triton")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    triton.runtime.driver.set_active(_H200Driver(target))
    module = _CompiledOnly(importlib.import_module("sae_baselines.sparse.triton_kernels"))
    # For good: this process only compiles.
    kernels._kernels = lambda: module
    kernels.available = lambda tensor: tensor.dtype in kernels.DTYPES

    table, index = torch.zeros(4, d, dtype=dtype), torch.zeros(n, dtype=torch.int64)
    starts, weights = torch.zeros(r, dtype=torch.int64), torch.zeros(n, dtype=dtype)
    kernels.gather_sum(table, index, starts, weights, F32)
    kernels.gather_sum_transposed(table, index, starts, weights, F32)
    kernels.weight_gradient(table, index, index, torch.zeros(r, d), dtype)
    kernels.compact_above(torch.zeros(r, d, dtype=dtype), torch.zeros(d))
    return module.code


KERNELS = {
    "gather_sum",
    "gather_sum_transposed",
    "weight_gradient",
    "count_above",
    "write_above",
}


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
# Triton compiles another kernel for arguments that are 1 or not divisible by 16.
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((2304, 4096, 6000), marks=pytest.mark.thorough),
        (577, 37, 1001),
        pytest.param((1, 1, 1), marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_every_kernel_compiles_for_an_h200(
    compiler: ProcessPoolExecutor, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    compiled = compiler.submit(_compiled, *shape, dtype).result()
    assert set(compiled) == KERNELS
    for name, code in compiled.items():
        assert code["cubin"][:4] == b"\x7fELF", name
        assert ".target sm_90" in code["ptx"], name
        # Sums that repeat to the bit have no atomics; a comparison sees denormals.
        assert re.search(r"\b(atom|red)\.", code["ptx"]) is None, name
        assert ".ftz" not in code["ptx"], name
        offsets = re.findall(r"tt\.addptr .*\b(i32|i64)\b", code["ttir"])
        assert offsets, name
        assert set(offsets) == {"i64"}, name


# -- the check before they are trusted


def _check_passes(device: str) -> None:
    assert failure(kernels, torch.device(device)) is None


def test_working_kernels_pass_their_check(run: Run) -> None:
    run(_check_passes)


FUNCTIONS = ["gather_sum", "gather_sum_transposed", "weight_gradient", "compact_above"]


def _check_sees(device: str, name: str) -> None:
    def wrong(*args: Any) -> Any:
        out = getattr(kernels, name)(*args)
        if name == "compact_above":
            return out[0], out[1].roll(1)
        out.view(-1)[-1] += 0.01
        return out

    broken = SimpleNamespace(**{n: getattr(kernels, n) for n in FUNCTIONS} | {name: wrong})
    assert failure(broken, torch.device(device)) == f"{name} differ from torch"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_check_names_a_kernel_that_goes_wrong(run: Run, name: str) -> None:
    run(_check_sees, name)


def test_kernels_that_fail_their_check_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 5)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(kernels, "_kernels", SimpleNamespace)
    monkeypatch.setattr(kernels, "_interpreted", lambda: False)
    monkeypatch.setattr(kernels, "_trusted", {})
    monkeypatch.setattr(kernels, "failure", lambda *_: "RuntimeError: no C compiler")
    with pytest.warns(UserWarning, match=r"off on cuda:5 \(RuntimeError: no C compiler\)"):
        assert not kernels._can_run(device)
    assert not kernels._can_run(device)  # asked once
    monkeypatch.setattr(kernels, "_trusted", {})
    monkeypatch.setattr(kernels, "failure", lambda *_: None)
    assert kernels._can_run(device)
