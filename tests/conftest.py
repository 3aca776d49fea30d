"""Settings of every test."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path

# Everything is tiny: threads would only compete with each other and with other workers. Before
# anything that reads it is imported, and for the processes that tests start.
for _library in ("OMP", "MKL", "OPENBLAS"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

# A shell ignores interrupts for what it runs in the background; tests send them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# ``from tests.helpers import ...`` works however pytest was started.
sys.path.insert(0, str(Path(__file__).parents[1]))

torch.set_num_threads(1)

# In a worker, before a test or another conftest imports this package.
if "PYTEST_XDIST_WORKER" in os.environ:
    from tests import stock_process

    stock_process.start()

settings.register_profile("sae_baselines", deadline=None)
settings.load_profile("sae_baselines")


# The longest files: one that is begun last keeps a worker busy while the others have nothing to
# do, and a worker takes files as they come.
_LONGEST = (
    "benchmarks/test_sparse_step.py",
    "study/test_train.py",
    "benchmarks/test_benchmarks.py",
    "baselines/test_l0_steering.py",
    "study/reference/test_end_to_end.py",
    "examples/test_examples.py",
    "study/synthetic/test_train.py",
    "evals/suites/test_autointerp.py",
    "evals/suites/test_ravel.py",
    "benchmarks/test_gpu.py",
    "hub/test_publish.py",
    "hub/test_plan.py",
    "hub/test_plugins.py",
    "study/test_transcoders.py",
    "baselines/test_transcoder.py",
    "paper/demo/test_study.py",
    "report/test_page.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first, everything else as it was."""
    items.sort(key=lambda item: not str(item.path).endswith(_LONGEST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Collect a test's own garbage only.

    Training and SAEBench collect all the time, and going through everything that is imported
    takes half a second: a third of what a tiny study costs. Not a fixture, which would come
    after those of a module or a session.
    """
    gc.freeze()
    done = yield
    gc.collect()
    return done


@pytest.fixture(scope="module", autouse=True)
def own_suites() -> Generator[None]:
    """What a file of tests registers is gone after it: a worker runs them in any order."""
    from sae_baselines.evals import registry  # noqa: PLC0415

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_suites", dict(registry._suites))
        yield


@pytest.fixture(autouse=True)
def own_log() -> None:
    """The log as it is on import.

    A command that ran in this process, for a test or for a module's fixture, set it up for a
    terminal, where caplog would see nothing of it any more.
    """
    logger = logging.getLogger("sae_baselines")
    logger.setLevel(logging.NOTSET)
    logger.handlers = []
    logger.propagate = True


@pytest.fixture(scope="session")
def other_dtypes() -> None:
    """Skip tests of weights in bfloat16 or float64 where stock SAELens cannot train them.

    Up to 2.10 torch refuses to give a weight a gradient of another dtype.
    """
    from tests.helpers import bare_loop, make_sae  # noqa: PLC0415

    sae = make_sae("topk", dtype="bfloat16")
    try:
        bare_loop(sae, torch.optim.SGD(sae.parameters(), lr=0.0), 1)
    except RuntimeError as error:
        pytest.skip(f"torch {torch.__version__}: {error}")
