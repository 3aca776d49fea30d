"""Files: whole or not there, what is said of one that cannot be read, and links."""

import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sae_baselines import files
from sae_baselines.errors import UserError
from sae_baselines.files import (
    flaw_of,
    is_junk,
    keep_links_inside,
    new_folder,
    read_json,
    remove,
    size_text,
    unreadable,
    write_atomically,
    writing,
)
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.runner import claim_checkpoints, clear_checkpoints


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file({"W_dec": torch.ones(4, 8)}, tmp_path / "sae_weights.safetensors")
    return tmp_path / "sae_weights.safetensors"


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "permission"),
        (errno.EIO, "the disk or its mount failed"),
        (errno.ESTALE, "the disk or its mount failed"),
        (errno.ENOSPC, "free some"),
        (errno.EMFILE, "ulimit"),
        (errno.ENOMEM, "nothing is wrong with it"),
    ],
)
@pytest.mark.parametrize("reported", ["as it is", "by a library"])
def test_a_file_that_cannot_be_read_is_not_called_damaged(
    number: int, advice: str, reported: str, weights: Path, monkeypatch: pytest.MonkeyPatch
):
    failure = OSError(number, os.strerror(number), str(weights))
    error: Exception = failure
    if reported == "by a library":

        def refuse(*_: object, **__: object) -> None:
            raise failure

        monkeypatch.setattr(Path, "open", refuse)
        error = RuntimeError("unexpected end of file")
    said = str(unreadable(weights, error, "delete it"))
    assert advice in said
    assert str(weights) in said
    assert "damaged" not in said
    assert "delete it" not in said


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_disk_that_takes_no_more_is_said_where_a_library_hides_it(save: Any, tmp_path: Path):
    large = {"W_dec": torch.ones(4096)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises((RuntimeError, SafetensorError)):
            save(large, tmp_path / "hidden")
        with pytest.raises(OSError, match="File too large") as it, writing(tmp_path):
            save(large, tmp_path / "told")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert it.value.filename == str(tmp_path)
    # Another error on a disk with room stays what it is.
    with pytest.raises(RuntimeError, match="other"), writing(tmp_path):
        raise RuntimeError("other")
    assert not list(tmp_path.glob(".*"))


def test_a_device_that_is_not_there_is_said_and_the_file_is_whole(weights: Path):
    with pytest.raises(Exception, match="device") as it:
        load_file(weights, device="cpu:5")
    said = str(unreadable(weights, it.value, "delete it"))
    assert said.startswith("device: ")
    assert "the file is whole" in said
    assert "delete" not in said


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried")])
def test_too_little_memory_is_said(error: Exception, weights: Path):
    said = str(unreadable(weights, error, "delete it"))
    assert "does not fit into memory" in said
    assert "delete" not in said


@pytest.mark.parametrize("left", [0, 4, 20, -1, "and more"])
def test_a_file_cut_short_is_damaged(left: int | str, weights: Path):
    assert flaw_of(weights) is None
    data = weights.read_bytes()
    weights.write_bytes(data + b"x" if isinstance(left, str) else data[:left])
    assert flaw_of(weights) is not None
    # Whatever library found it, and in a folder as alone.
    for path in (weights, weights.parent):
        said = str(unreadable(path, RuntimeError("device"), "delete it and train again"))
        assert said.startswith(f"{weights}: is damaged (")
        assert said.endswith("; delete it and train again")


@pytest.mark.parametrize("ends", ["xy", [0, None], [0, [1]], {"1": 2}, ["a", "b"], "x"])
def test_a_table_of_tensors_that_is_none_is_damaged(ends: object, tmp_path: Path):
    header = json.dumps({"a": {"data_offsets": [0, 4]}, "b": {"data_offsets": ends}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert flaw_of(path) == "no table of tensors"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 5000])
def test_json_that_is_none_is_damaged(content: bytes, tmp_path: Path):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json: is damaged \(.*\); make it again"):
        read_json(path, "make it again")


def test_a_key_twice_is_refused_by_name_in_what_is_ours(tmp_path: Path):
    path = tmp_path / "x.json"
    path.write_text('{"l0": 1, "spec": {"seed": 0, "seed": 1}}')
    with pytest.raises(UserError, match=r"x\.json: is damaged \(.*'seed' is there twice"):
        read_json(path)
    assert flaw_of(path) == "not JSON: the key 'seed' is there twice; keep one"
    assert flaw_of(path, ours=False) is None  # some tokenizer's


@pytest.mark.parametrize(
    ("name", "junk"),
    [
        (".DS_Store", True),
        ("Thumbs.db", True),
        ("desktop.ini", True),
        ("._4096", True),
        ("cfg.json~", True),
        (".cfg.json.swp", True),
        ("#cfg.json#", True),
        (".nfs0001", True),
        ("4096", False),
        ("cfg.json", False),
        ("thesis.tex", False),
    ],
)
def test_what_desktops_and_editors_leave(name: str, junk: bool):
    assert is_junk(name) is junk


def test_what_counts_is_on_the_disk_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    order: list[str] = []
    real, replace = files.sync, Path.replace

    def sync(path: Path) -> None:
        order.append("folder" if path.is_dir() else "file")
        real(path)

    def replaced(path: Path, target: Path) -> Path:
        order.append("replace")
        return replace(path, target)

    monkeypatch.setattr(files, "sync", sync)
    monkeypatch.setattr(Path, "replace", replaced)
    write_atomically(tmp_path / "a", "text")
    assert order == ["file", "replace", "folder"]
    order.clear()
    with new_folder(tmp_path / "b") as scratch:
        (scratch / "x").write_text("x")
    assert order == ["file", "folder", "replace", "folder"]


def test_nothing_is_written_or_deleted_through_a_link(tmp_path: Path):
    (tmp_path / "mine.csv").write_text("mine")
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "mine.csv")
    write_atomically(link, "new")
    assert (tmp_path / "mine.csv").read_text() == "mine"
    assert not link.is_symlink()
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter").write_text("mine")
    for make in (remove, lambda path: new_folder(path).__enter__()):
        folder = tmp_path / "folder"
        folder.symlink_to(home)
        make(folder)
        remove(folder)
        assert (home / "letter").read_text() == "mine"


@pytest.mark.parametrize(
    ("link", "target", "refused"),
    [
        ("figures", "../elsewhere", True),
        ("figures", "..", True),
        ("evals", "../elsewhere", True),
        ("evals/core", "../../elsewhere", True),
        ("panels/p/m", "../../../elsewhere", True),
        ("figures", "hop", True),  # a chain: hop leads out
        ("evals/.cache", "../../elsewhere", True),
        ("evals/.cache/core", "../../../elsewhere", True),
        ("evals/.work/core", "../../../elsewhere", True),
        ("checkpoints/drift_pass_0", "../../elsewhere", True),
        ("figures", "panels", False),
        ("checkpoints", "../elsewhere", False),
        ("evals/.work/core/data", "../../../../elsewhere", False),  # a suite's own
    ],
)
@pytest.mark.parametrize("linked_study", [False, True])
def test_a_link_out_of_a_study_is_refused_before_work(
    link: str, target: str, refused: bool, linked_study: bool, tmp_path: Path
):
    (tmp_path / "elsewhere").mkdir()
    study = tmp_path / "study"
    (study / "panels").mkdir(parents=True)
    if target == "hop":
        (study / "panels" / "hop").symlink_to(tmp_path / "elsewhere")
        target = "panels/hop"
    path = study / link
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    if linked_study:
        study = tmp_path / "elsewhere" / "linked"
        study.symlink_to(tmp_path / "study")
    if not refused:
        keep_links_inside(study)
        return
    with pytest.raises(UserError, match="is a link out of"), StudyFolder(study).locked():
        pass


def test_checkpoints_on_another_disk_work_and_what_is_not_ours_stays(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "thesis.tex").write_text("mine")
    checkpoints = tmp_path / "study" / "checkpoints"
    checkpoints.parent.mkdir()
    checkpoints.symlink_to(disk)
    folder = checkpoints / "pass_0"
    assert claim_checkpoints(folder, "a") == []
    (folder / "4096").mkdir()
    (folder / ".DS_Store").touch()
    with pytest.raises(UserError, match="belongs to another spec"):
        claim_checkpoints(folder, "b")
    assert [p.name for p in claim_checkpoints(folder, "a")] == ["4096"]
    clear_checkpoints(folder, "a")
    assert [p.name for p in disk.iterdir()] == ["thesis.tex"]
    assert checkpoints.is_symlink()


@pytest.mark.parametrize("what", ["pass", "checkpoint", "stranger", "drift", "drift inside"])
def test_a_folder_of_checkpoints_that_is_not_ours_is_refused(what: str, tmp_path: Path):
    home = tmp_path / "home"
    (home / "4096").mkdir(parents=True)
    (home / "4096" / "letter").write_text("mine")
    folder = tmp_path / "checkpoints" / "pass_0"
    folder.parent.mkdir()
    drift = folder.with_name("drift_pass_0")
    if what == "pass":
        folder.symlink_to(home)
    elif what == "drift":
        folder.mkdir()
        drift.symlink_to(home)
    elif what == "drift inside":
        folder.mkdir()
        drift.mkdir()
        (drift / "trained").symlink_to(home)
    else:
        folder.mkdir()
        name = "4096" if what == "checkpoint" else "photographs"
        if what == "checkpoint":
            (folder / name).symlink_to(home / "4096")
        else:
            (folder / name).mkdir()
    for deed in (claim_checkpoints, clear_checkpoints):
        with pytest.raises(UserError, match=r"is a link to|is not a checkpoint"):
            deed(folder, "a")
    assert (home / "4096" / "letter").read_text() == "mine"


def test_checkpoints_on_a_disk_that_is_gone_say_so(tmp_path: Path):
    (tmp_path / "checkpoints").symlink_to(tmp_path / "purged")
    with pytest.raises(UserError, match=r"checkpoints is a link to .*purged, which is not the"):
        claim_checkpoints(tmp_path / "checkpoints" / "pass_0", "a")


def test_a_lock_is_never_a_link(tmp_path: Path):
    (tmp_path / "letter").write_text("mine")
    study = StudyFolder(tmp_path / "study")
    study.root.mkdir()
    (study.root / ".lock").symlink_to(tmp_path / "letter")
    with study.locked():
        assert not (study.root / ".lock").is_symlink()
    assert (tmp_path / "letter").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_one_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.raises(UserError, match=r"\.lock cannot be locked .*local disk") as it,
        StudyFolder(tmp_path).locked(),
    ):
        pass
    assert "\n" not in str(it.value)


@given(n=st.floats(0, 2**60), base=st.sampled_from([1000, 1024]))
def test_a_size_is_shown_to_three_digits(n: float, base: int):
    number, unit = size_text(n, base).split()
    power = ["B", *(f"{u}{'i' if base == 1024 else ''}B" for u in "KMGTP")].index(
        unit.replace("k", "K")
    )
    assert float(number.replace(",", "")) * base**power == pytest.approx(n, rel=5e-3, abs=0.5)
    assert len(number.replace(",", "").replace(".", "")) <= 4
