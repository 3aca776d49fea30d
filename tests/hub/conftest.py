"""A real study, trained, measured and reported once; and a Hub of its own for every test."""

import io
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_baselines.evals.results import write_results
from sae_baselines.hub import CardOptions, Publication, plan_publication
from sae_baselines.report import plots, rate_plots, report_of_study
from sae_baselines.report.write import write_report
from sae_baselines.study import train_study
from sae_baselines.study.spec import spec_from_dict
from tests.loopback_hub import WRITER, Hub, WritableHandler, point_clients_at, serving
from tests.tiny_model import save_tiny_model, tiny_panel, tiny_text

REPO = "alice/tiny-baselines"
MEMBERS = ("trained", "frozen_decoder", "random")
SEEDS = (0, 3)


def write_again(root: Path) -> None:
    """results.csv and the report, of the study as it is."""
    write_results(root)
    write_report(report_of_study(root), root)


@pytest.fixture(scope="session", autouse=True)
def _equal_figures_are_drawn_once() -> Iterator[None]:
    """A plan compares the report with one that it makes anew, most of which is drawing.

    Tests plan dozens of times, mostly of the same results; a figure is of its arguments alone.
    """
    functions = {
        plots: ("answer_figures", "score_figures", "forest_figures", "distribution_figures"),
        rate_plots: ("rate_figure",),
    }
    with pytest.MonkeyPatch.context() as patch:
        for module, names in functions.items():
            for name in names:
                patch.setattr(module, name, _once(getattr(module, name)))
        yield


def _once(draw: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called once for arguments of equal content."""
    drawn: dict[bytes, Any] = {}

    def found(*arguments: Any) -> Any:
        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer)
        pickler.fast = True  # otherwise what is one object is not as what is two equal ones
        pickler.dump(arguments)
        key = buffer.getvalue()
        if key not in drawn:
            drawn[key] = draw(*arguments)
        return drawn[key]

    return found


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a trained SAE, a frozen decoder and a control, at one L0."""
    folder = tmp_path_factory.mktemp("published")
    model = save_tiny_model(folder / "tiny-llama")
    tiny_text().to_parquet(folder / "words.parquet")
    panel = tiny_panel(
        model,
        str(folder / "words.parquet"),
        members=list(MEMBERS),
        seeds=list(SEEDS),
        n_checkpoints=0,
        training_tokens=128 * 60,
        calibration_tokens=4096,
        eval_tokens=4096,
    )
    root = folder / "study"
    train_study(spec_from_dict(panel), root)
    write_again(root)
    return root


@pytest.fixture(scope="session")
def planned(study: Path) -> Publication:
    return plan_publication(study, REPO, "main", CardOptions("mit"))


@pytest.fixture
def own_study(study: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(study, tmp_path / "study"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub that all clients of this process use, with a token that may write."""
    made = Hub()
    # Between two tries the client waits for seconds.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    with serving(tmp_path, WritableHandler, hub=made) as endpoint:
        point_clients_at(endpoint, tmp_path / "huggingface", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        yield made
