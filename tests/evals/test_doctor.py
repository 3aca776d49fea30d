"""The doctor refuses what cannot run, says what to do, and lets the rest through."""

import importlib
import io
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import datasets.config
import pytest
import torch
from huggingface_hub import constants
from packaging.requirements import Requirement
from rich.console import Console
from safetensors.torch import save_file

from sae_baselines.errors import UserError
from sae_baselines.evals import versions
from sae_baselines.evals.doctor import (
    Diagnosis,
    asked_of_hub,
    diagnose,
    model_parameters,
    print_diagnoses,
)
from sae_baselines.evals.registry import get_suite, suite_names
from sae_baselines.evals.suite import Subject
from sae_baselines.reach import say_if_silent
from tests.loopback import answered_by

GOOD = {
    "sae-bench": "0.6.0",
    "sae-lens": "6.54.12",
    "sae-probes": "0.4.2",
    "transformer-lens": "3.2.1",
    "transformers": "4.57.6",
    "torch": "2.13.0+cpu",
    "numpy": "1.26.4",
    "datasets": "3.6.0",
    "beartype": "0.17.2",
    "openai": "3.51.0",
}
SECRET = "hf_or_sk_0123456789"
GIB = 2**30
SetVersions = Callable[..., None]


class SignOfLife(BaseHTTPRequestHandler):
    """Answers HEAD as a server does that wants a path or a login: not with 200."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A loopback server."""
    with answered_by(SignOfLife) as found:
        yield found


@pytest.fixture
def silent() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> SetVersions:
    """Pretend the supported versions are installed, but for those given; None is absent."""
    real = metadata.version

    def pretend(**changed: str | None) -> None:
        table: dict[str, str | None] = {**GOOD, "torchvision": None}
        table.update({name.replace("_", "-"): v for name, v in changed.items()})

        def version(name: str) -> str:
            found = table[name] if name in table else real(name)
            if found is None:
                raise metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(metadata, "version", version)

    pretend()
    return pretend


@pytest.fixture(autouse=True)
def healthy(
    monkeypatch: pytest.MonkeyPatch, installed: SetVersions, address: str, tmp_path: Path
) -> None:
    """A machine on which everything is in order."""
    del installed
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "JAXTYPING_DISABLE", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
    set_free(monkeypatch, 1000 * GIB)


def set_free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Pretend every disk has this many bytes free."""
    usage = SimpleNamespace(total=2 * size, used=size, free=size)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


SUBJECT = Subject(
    model_name="EleutherAI/pythia-70m-deduped",
    hook_name="blocks.3.hook_resid_post",
    d_in=512,
    d_sae=8192,
    device="cpu",
    llm_dtype="float32",
    llm_batch_size=32,
)


@pytest.fixture
def local(tmp_path: Path) -> Subject:
    """The model in a folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return replace(SUBJECT, local_model=folder)


def refused(diagnoses: list[Diagnosis]) -> set[str]:
    return {d.suite for d in diagnoses if not d.ok}


def only(diagnoses: list[Diagnosis]) -> Diagnosis:
    (found,) = diagnoses
    return found


# Versions


def requirements() -> list[versions.Requirement]:
    own = [wanted for name in suite_names() for wanted in get_suite(name).requirements]
    return [*versions.REQUIREMENTS, *own]


def everywhere() -> list[versions.VersionProblem]:
    own = [get_suite(name).requirements for name in suite_names()]
    of_suites = [p for wanted in own for p in versions.version_problems(wanted)]
    return [*versions.problems_of_every_suite(), *of_suites]


def test_the_supported_versions_refuse_nothing() -> None:
    assert everywhere() == []
    assert refused(diagnose(None, suite_names())) == set()


@pytest.mark.parametrize(
    ("package", "version", "suites", "remedy"),
    [
        ("transformers", "5.1.0", {"ravel"}, "pip install 'transformers<5'"),
        ("transformers", "4.46.0", None, "pip install 'transformers>=4.57'"),
        ("beartype", "0.18.5", {"sparse_probing"}, "pip install 'beartype>=0.14,<0.18'"),
        ("datasets", "4.1.0", {"sparse_probing"}, "pip install 'datasets>=3.1,<4'"),
        ("numpy", "2.2.0", None, "pip install 'numpy>=1.26.4,<2'"),
        ("sae-bench", "0.7.0", None, "pip install 'sae-bench>=0.6,<0.7'"),
        ("sae-bench", None, None, "pip install 'sae-baselines[bench]'"),
        (
            "sae-probes",
            None,
            {"sparse_probing_sae_probes"},
            "pip install 'sae-baselines[bench]'",
        ),
        ("torch", "nonsense", None, "pip install 'torch>=2.4,<3'"),
    ],
)
def test_a_wrong_version_refuses_the_suites_it_breaks(
    installed: SetVersions,
    package: str,
    version: str | None,
    suites: set[str] | None,
    remedy: str,
) -> None:
    installed(**{package.replace("-", "_"): version})
    found = diagnose(None, suite_names())
    assert refused(found) == (set(suite_names()) if suites is None else suites)
    (problem,) = next(d.problems for d in found if not d.ok)
    assert problem.startswith(package)
    assert (version or "is not installed") in problem
    assert problem.endswith(remedy)


@pytest.mark.parametrize("version", ["2.13.0+cpu", "2.14.0rc1", "2.14.0.dev20261101+cu130"])
def test_builds_and_candidates_of_a_good_version_are_good(
    installed: SetVersions, version: str
) -> None:
    installed(torch=version)
    assert everywhere() == []


def test_beartype_does_not_matter_where_jaxtyping_is_off(
    installed: SetVersions, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(beartype="0.22.0")
    assert len(everywhere()) == 1
    monkeypatch.setenv("JAXTYPING_DISABLE", "1")
    assert everywhere() == []


def test_the_bench_extra_installs_what_the_doctor_wants() -> None:
    wanted = requirements()
    extra = {
        r.name: r.specifier
        for r in map(Requirement, metadata.requires("sae-baselines") or ())
        if r.marker is not None and r.marker.evaluate({"extra": "bench"})
    }
    assert {"sae-bench", "transformers", "beartype"} <= set(extra)
    for name, specifier in extra.items():
        ours = [w.specifier for w in wanted if w.package == name]
        for minor in range(100):
            for major in range(8):
                version = f"{major}.{minor}.0"
                if specifier.contains(version):
                    assert all(v.contains(version) for v in ours), (name, version)


# torchvision


def fake_torchvision(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    package = folder / "site" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(str(package.parent))
    importlib.invalidate_caches()
    # Set before it is removed, so that what was there comes back afterwards.
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace())
    monkeypatch.delitem(sys.modules, "torchvision")


@pytest.mark.parametrize(
    "error",
    [
        'RuntimeError("operator torchvision::nms does not exist")',
        'OSError("libcudart.so.13: cannot open shared object file")',
    ],
)
def test_a_torchvision_of_another_build_stops_every_suite(
    installed: SetVersions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    installed(torchvision="0.28.0")
    fake_torchvision(tmp_path, monkeypatch, f"raise {error}\n")
    found = diagnose(SUBJECT, suite_names())
    assert refused(found) == set(suite_names())
    for d in found:
        assert any(p.endswith("pip uninstall -y torchvision") for p in d.problems)
        assert any(error.split('"')[1] in p for p in d.problems)


def test_a_torchvision_that_imports_stops_nothing(
    installed: SetVersions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(torchvision="0.28.0")
    fake_torchvision(tmp_path, monkeypatch, "")
    assert everywhere() == []


# Machine


def test_everything_in_order(local: Subject, tmp_path: Path) -> None:
    suites = ["core", "sparse_probing_sae_probes", "autointerp", "meta_structure"]
    found = diagnose(local, suites, out=tmp_path / "not" / "yet")
    assert [d.suite for d in found] == suites
    assert found == [Diagnosis(suite) for suite in suites]
    assert not (tmp_path / "not").exists()


def test_wrong_suite_and_wrong_option(local: Subject) -> None:
    with pytest.raises(UserError, match="did you mean core"):
        diagnose(local, ["cor"])
    found = only(diagnose(local, ["core"], {"core": {"datasett": "x"}}))
    assert found.problems
    assert "datasett" in found.problems[0]


def test_the_adapters_own_reasons_are_given(local: Subject) -> None:
    found = only(diagnose(local, ["core"], {"core": {"n_eval_reconstruction_batches": 0}}))
    assert not found.ok
    assert "n_eval_reconstruction_batches" in found.problems[0]


def test_a_full_disk_stops_what_caches_activations(
    local: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    suites = ["core", "sparse_probing", "meta_structure"]
    set_free(monkeypatch, 5 * GIB)
    found = diagnose(local, suites, out=tmp_path)
    assert refused(found) == {"sparse_probing"}
    # 8 datasets, 2 classes at least, 2500 texts of 128 tokens, 512 numbers of 4 bytes.
    assert f"{8 * 2 * 2500 * 128 * 512 * 4 / GIB:.2f} GiB" in found[1].problems[0]
    few = {"sparse_probing": {"dataset_names": ["fancyzhx/ag_news"]}}
    assert refused(diagnose(local, suites, few, tmp_path)) == set()


def test_suites_together_may_fill_a_disk(
    local: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_free(monkeypatch, 11 * GIB)
    first, second = diagnose(local, ["sparse_probing", "tpp"], out=tmp_path)
    assert first == Diagnosis("sparse_probing")
    assert second.ok
    assert "all suites" in second.warnings[0]


def test_no_room_for_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 10 * 2**20)
    found = diagnose(SUBJECT, ["core", "meta_structure"])
    assert refused(found) == {"core"}
    assert "HF_HOME" in found[0].problems[0]


def test_autointerp_without_an_endpoint(
    local: Subject, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", silent)
    quiet = only(diagnose(local, ["autointerp"]))
    assert quiet.ok
    assert "does not answer" in quiet.warnings[0]
    monkeypatch.delenv("OPENAI_API_KEY")
    for subject in (local, None):
        found = diagnose(subject, ["core", "autointerp"])
        assert refused(found) == {"autointerp"}
        assert "OPENAI_API_KEY" in found[1].problems[0]


def test_no_secret_is_shown(
    local: Subject, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("OPENAI_BASE_URL", silent.replace("http://", f"http://me:{SECRET}@"))
    found = only(diagnose(local, ["autointerp"]))
    assert "refused" in found.warnings[0]  # the host was asked, without user and password
    assert SECRET not in repr(found)


def test_a_gated_model_needs_a_token(monkeypatch: pytest.MonkeyPatch, local: Subject) -> None:
    gemma = replace(SUBJECT, model_name="gemma-2-2b", hook_name="blocks.12.hook_resid_post")
    # A mirror asks for no token.
    assert only(diagnose(gemma, ["core"])).ok
    official = "https://huggingface.co"
    monkeypatch.setattr(constants, "ENDPOINT", official)
    monkeypatch.setattr("sae_baselines.reach.urlopen", _answered)
    found = only(diagnose(gemma, ["core"]))
    assert "google/gemma-2-2b is gated" in found.problems[0]
    assert "hf auth login" in found.problems[0]
    assert only(diagnose(replace(gemma, local_model=local.local_model), ["core"])).ok
    assert only(diagnose(SUBJECT, ["core"])).ok
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert only(diagnose(gemma, ["core"])).ok


def _answered(*args: object, **kwargs: object) -> io.BytesIO:
    del args, kwargs
    return io.BytesIO()


def test_a_silent_hub_matters_where_it_is_needed(
    local: Subject, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    suites = ["core", "sparse_probing_sae_probes", "meta_structure"]
    found = diagnose(local, suites)
    assert refused(found) == set()
    assert [len(d.warnings) for d in found] == [1, 0, 0]
    on_disk = {"core": {"dataset": str(local.local_model)}}
    assert only(diagnose(local, ["core"], on_disk)).warnings == ()
    found = diagnose(SUBJECT, suites)
    assert refused(found) == {"core", "sparse_probing_sae_probes"}
    assert "HF_ENDPOINT" in found[0].problems[0]


def test_offline_needs_a_cached_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, silent: str
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in only(diagnose(SUBJECT, ["core"])).problems[0]
    repo = tmp_path / "hub" / "models--EleutherAI--pythia-70m-deduped"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "snapshots" / "abc" / "config.json").write_text("{}")
    found = only(diagnose(SUBJECT, ["core"]))
    assert found.ok
    assert "datasets are cached" in found.warnings[0]


def test_a_cached_dataset_needs_no_hub(
    local: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, silent: str
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    mine = {
        "core": {"dataset": "org/SomeText"},
        "sparse_probing": {"dataset_names": ["Helsinki-NLP/europarl", "fancyzhx/ag_news"]},
    }

    def cache(*folders: str) -> list[Diagnosis]:
        for folder in folders:
            file = tmp_path / "datasets" / folder / "0.0.0/abc/dataset_info.json"
            file.parent.mkdir(parents=True)
            file.touch()
        return diagnose(local, list(mine), mine)

    core, probing = cache("fancyzhx___ag_news/default", "Helsinki-NLP___europarl/en-fr")
    assert core.unchecked
    assert f"and org/SomeText is not in {tmp_path / 'datasets'}" in core.warnings[0]
    # SAEBench reads five of its configurations.
    assert "and Helsinki-NLP/europarl/fr-it, Helsinki-NLP/europarl/de-en" in probing.warnings[0]
    assert "ag_news" not in probing.warnings[0]
    others = [
        f"Helsinki-NLP___europarl/{pair}" for pair in ("fr-it", "de-en", "es-fr", "nl-pt")
    ]
    for found in cache("org___some_text/default", *others):
        assert found.warnings == ()
        assert not found.unchecked


def test_what_an_evaluation_asks_of_the_hub_is_known_before_it_does(local: Subject) -> None:
    suites = {"core": {}, "tpp": {}, "meta_structure": {}}
    model, data = asked_of_hub(SUBJECT, suites)
    assert (model, data) == ("EleutherAI/pythia-70m-deduped", "the data of core, tpp")
    assert asked_of_hub(local, {"core": {"dataset": str(local.local_model)}}) == []


def test_a_name_server_that_hangs_is_not_waited_for(
    local: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(30))
    diagnose(local, ["core"], timeout=0.01)  # imports
    began = time.monotonic()
    found = only(diagnose(local, ["core"], timeout=0.2))
    assert time.monotonic() - began < 5
    assert "no answer in time" in found.warnings[0]


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    found = only(diagnose(replace(SUBJECT, local_model=tmp_path), ["core"]))
    assert "config.json" in found.problems[0]


# GPU


def test_a_gpu_that_is_too_small(local: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = replace(local, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = diagnose(on_gpu, ["core", "meta_structure"])
    assert refused(found) == {"core", "meta_structure"}
    assert "--device cpu" in found[0].problems[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    sae, model = 2 * 512 * 8192 * 4, 0.8 * 70e6 * 4
    for free, wanted in ((sae + model, set()), (sae + model / 2, {"core"})):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, f=free: (int(f) + 1, 0))
        assert refused(diagnose(on_gpu, ["core", "meta_structure"])) == wanted


def test_parameters_are_counted_or_read_from_the_name(local: Subject) -> None:
    assert model_parameters(replace(SUBJECT, model_name="nobody/knows")) is None
    assert model_parameters(replace(SUBJECT, model_name="gemma-2-2b")) == pytest.approx(1.6e9)
    assert model_parameters(replace(SUBJECT, model_name="x/mix-8x7B")) is None
    assert local.local_model is not None
    weights = {"a": torch.zeros(3, 5), "b": torch.zeros(7)}
    save_file(weights, local.local_model / "model.safetensors", {"format": "pt"})
    assert model_parameters(local) == 22
    (local.local_model / "model.safetensors").write_bytes(b"\xff" * 20)
    assert model_parameters(local) == pytest.approx(56e6)  # unreadable: by the name


# Printing


def printed(diagnoses: list[Diagnosis]) -> str:
    out = io.StringIO()
    print_diagnoses(diagnoses, Console(file=out, width=200, color_system=None))
    return out.getvalue()


def test_reasons_are_printed_as_they_are_and_common_ones_once() -> None:
    common = "pip install 'sae-baselines[bench]'"
    text = printed(
        [
            Diagnosis("core", (common,)),
            Diagnosis("ravel", ("transformers [red]5[/red]", common), ("slow",)),
            Diagnosis("mdl", warnings=("slow",)),
        ]
    )
    cells = [[c.strip() for c in line.split("│")] for line in text.splitlines()[2:-2]]
    assert cells == [
        ["core", "cannot run", "see 1"],
        ["ravel", "cannot run", "transformers [red]5[/red]"],
        ["", "", "see 1"],
        ["", "", "see 2"],
        ["mdl", "ok", "see 2"],
    ]
    assert text.splitlines()[-2:] == [f"1  {common}", "2  slow"]


def test_what_nobody_looked_at_is_not_called_ok() -> None:
    unseen = Diagnosis("mdl", warnings=("no answer",), unchecked=True)
    text = printed([unseen, Diagnosis("scr", ("no GPU",), unchecked=True)])
    assert "mdl   │ not checked │ no answer" in text
    assert "cannot run" in text
    assert all(d.unchecked for d in diagnose(None, ["core", "tpp"], timeout=0.01))


def test_a_silent_hub_is_said_once_before_its_client_tries_for_minutes(
    monkeypatch: pytest.MonkeyPatch,
    silent: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    say_if_silent([str(tmp_path)])

    def said() -> set[str]:
        # Other packages may say something of their own.
        return {r.getMessage() for r in caplog.records if r.name.startswith("sae_baselines")}

    assert not said()
    say_if_silent([str(tmp_path), "org/model", "org/text"])
    (text,) = said()
    assert f"{silent} does not answer" in text
    assert "asked for org/model and org/text" in text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    say_if_silent(["org/model"])
    assert len(said()) == 1


def test_what_can_run_is_said_to() -> None:
    text = printed([Diagnosis("core"), Diagnosis("mdl", ("no GPU",))])
    core, mdl = (line for line in text.splitlines() if "core" in line or "mdl" in line)
    assert core.split() == ["core", "│", "ok", "│"]
    assert "cannot run" in mdl
    assert "no GPU" in mdl
