"""Where the time of a training step goes: its parts, its operators, its floor.

Parts are cut at the seams that SAELens' trainer and SAE classes have, so that stock and twins
are cut alike. What runs inside a part and belongs to another counts for that other alone.
"""

import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from pairs import Action, seconds, synchronizer
from step_members import Stepper
from torch.profiler import ProfilerActivity, profile

PARTS = {
    "encode": "encode_with_hidden_pre: product, selection",
    "decode": "decode (of a matryoshka's prefixes: in losses)",
    "losses": "the rest of training_forward_pass: losses, threshold update",
    "backward": "all gradients",
    "clipping": "clip_grad_norm_",
    "adam": "Adam's update",
    "projection": "what follows Adam's update within optimizer.step: the projection on the cap",
    "bookkeeping": "the rest of SAETrainer.step: firing counts, dead mask, zero_grad",
}
_AUTOGRAD = "autograd::engine::evaluate_function: "
_MOST_OPERATORS = 10


class _Clock:
    """Seconds per part; a part stops while another runs inside it."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self._synchronize = synchronize
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._cut()
        self._running.append(name)
        try:
            yield
        finally:
            self._cut()
            self._running.pop()

    def rename(self, name: str) -> None:
        """The innermost part goes on under another name."""
        self._cut()
        self._running[-1] = name

    def _cut(self) -> None:
        self._synchronize()
        now = time.perf_counter()
        if self._running:
            self.spent[self._running[-1]] += now - self._since
        self._since = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call


def parts(stepper: Stepper, steps: int) -> dict[str, float]:
    """Median milliseconds of each of `PARTS` over a few steps."""
    clock = _Clock(synchronizer(stepper.sae.device.type))
    optimizer = stepper.trainer.optimizer
    seams = (
        (stepper.sae, "training_forward_pass", "losses"),
        (stepper.sae, "encode_with_hidden_pre", "encode"),
        (stepper.sae, "decode", "decode"),
        (torch.Tensor, "backward", "backward"),
        (torch.nn.utils, "clip_grad_norm_", "clipping"),
        (optimizer, "step", "adam"),
    )
    # The optimiser's own hooks run before the global ones, of which the projection is one.
    handle = optimizer.register_step_post_hook(lambda *_: clock.rename("projection"))
    found: list[dict[str, float]] = []
    try:
        with ExitStack() as stack:
            for owner, name, part in seams:
                timed = clock.timed(part, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, timed))
            for _ in range(steps):
                clock.spent = defaultdict(float)
                with clock.part("bookkeeping"):
                    stepper.steps(1)
                found.append(clock.spent)
    finally:
        handle.remove()
    return {
        part: statistics.median(spent.get(part, 0.0) for spent in found) * 1e3 for part in PARTS
    }


def operators(stepper: Stepper, steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds per step of torch's operators, and of autograd's nodes, the longest ones.

    Operators are exclusive of each other; nodes are those of the backward pass, with all
    that runs inside them.
    """
    on_cuda = stepper.sae.device.type == "cuda"
    activities = [ProfilerActivity.CPU]
    if on_cuda:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        stepper.steps(steps)
        synchronizer(stepper.sae.device.type)()
    device = "device" if on_cuda else "cpu"
    ops: dict[str, float] = {}
    nodes: dict[str, float] = {}
    for event in profiled.key_averages():
        if event.key.startswith(_AUTOGRAD):
            total = getattr(event, f"{device}_time_total")
            nodes[event.key.removeprefix(_AUTOGRAD)] = total / steps / 1e3
        elif event.key.startswith("aten::"):
            alone = getattr(event, f"self_{device}_time_total")
            ops[event.key.removeprefix("aten::")] = alone / steps / 1e3
    return {"operators": _longest(ops), "backward_nodes": _longest(nodes)}


def projection_share(stepper: Stepper, steps: int) -> dict[str, float]:
    """The projection as it runs within a step, over the step; and how many rows it moved."""
    synchronize = synchronizer(stepper.sae.device.type)
    optimizer = stepper.trainer.optimizer
    began = 0.0
    ms: list[float] = []
    before = None

    def after_update(*_: Any) -> None:
        nonlocal began
        synchronize()
        began = time.perf_counter()

    def ends(step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def call(*args: Any, **kwargs: Any) -> Any:
            out = step(*args, **kwargs)
            synchronize()
            ms.append((time.perf_counter() - began) * 1e3)
            return out

        return call

    def keep(*_: Any) -> None:
        nonlocal before
        before = stepper.sae.W_dec.detach().clone()

    one_step = functools.partial(stepper.steps, 1)
    handle = optimizer.register_step_post_hook(after_update)
    with mock.patch.object(optimizer, "step", ends(optimizer.step)):
        step_ms = [seconds(one_step, synchronize) * 1e3 for _ in range(steps)]
    handle.remove()
    handle = optimizer.register_step_post_hook(keep)
    stepper.steps(1)
    handle.remove()
    assert before is not None
    moved = (stepper.sae.W_dec != before).any(dim=1)
    return {
        "median_ms": statistics.median(ms),
        "share_of_step": statistics.median(p / s for p, s in zip(ms, step_ms, strict=True)),
        "rows_moved": float(moved.float().mean()),
    }


def encoder_product(stepper: Stepper, x: torch.Tensor, autocast: bool) -> Action:
    """One ``x @ W_enc``, in the precision of the step, into memory that is there already."""
    dtype = torch.bfloat16 if autocast else torch.float32
    W_enc = stepper.sae.W_enc.detach().to(dtype, copy=True)
    x = x.to(dtype)
    out = torch.empty(x.shape[0], W_enc.shape[1], dtype=dtype, device=x.device)
    return functools.partial(torch.mm, x, W_enc, out=out)


def read_and_write(stepper: Stepper) -> Action:
    """Each trained parameter multiplied by 1 in place."""
    trained = [p.data for p in stepper.sae.parameters() if p.requires_grad]

    def action() -> None:
        for parameter in trained:
            parameter.mul_(1.0)

    return action


def _longest(ms: dict[str, float]) -> dict[str, float]:
    ranked = sorted(((t, name) for name, t in ms.items() if t > 0), reverse=True)
    return {name: t for t, name in ranked[:_MOST_OPERATORS]}
