"""One tiny Hub for all evaluation tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evals.tiny_hub import build_once
from tests.loopback_hub import point_clients_at, serving


@pytest.fixture(scope="session")
def tiny_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of the tiny Hub, which the Hugging Face clients use until the session ends.

    Built once even under several workers; each worker serves it and caches for itself.
    """
    # Workers have folders of their own below a common one.
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base
    root = build_once(shared / "tiny_hub")
    with pytest.MonkeyPatch.context() as patch, serving(root) as endpoint:
        point_clients_at(endpoint, tmp_path_factory.mktemp("huggingface"), patch)
        yield root
