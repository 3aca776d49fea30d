"""Text: what is read, what is held out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset

from sae_baselines.errors import UserError
from sae_baselines.study.data import load_text, split_text
from sae_baselines.study.held_out import collect_held_out
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.spec import DatasetSpec, PanelSpec, spec_from_dict
from tests.tiny_model import tiny_panel, tiny_text


def _spec(model_folder: Path, **overrides: Any) -> PanelSpec:
    return spec_from_dict(tiny_panel(model_folder, **overrides))


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Any:
    spec = _spec(model_folder)
    return load_language_model(spec.model, spec.hook_name, "cpu")


def _rows(dataset: Any) -> list[str]:
    return [row["text"] for row in dataset]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv", ".txt"])
def test_local_files_give_their_text(tmp_path: Path, suffix: str):
    rows = ["the cat sat", "a dog ran", "one old tree"]
    path = tmp_path / f"data{suffix}"
    data = Dataset.from_dict({"text": rows})
    if suffix == ".parquet":
        data.to_parquet(path)
    elif suffix == ".jsonl":
        data.to_json(path)
    elif suffix == ".csv":
        data.to_csv(path)
    else:
        path.write_text("\n\n".join(rows))
    assert _rows(load_text(DatasetSpec(path=str(path), shuffle_seed=None))) == rows


def test_another_text_column_is_used_when_named():
    data = Dataset.from_dict({"body": ["x", "y"], "id": [1, 2]})
    spec = DatasetSpec(path="memory", text_column="body", shuffle_seed=None)
    assert _rows(load_text(spec, data)) == ["x", "y"]


def test_a_dataset_without_text_names_its_columns():
    data = Dataset.from_dict({"body": ["x"], "id": [1]})
    with pytest.raises(UserError, match=r"text_column: 'text' is not a column.*body, id"):
        load_text(DatasetSpec(path="memory"), data)


def test_a_dataset_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"dataset.path: cannot load"):
        load_text(DatasetSpec(path=str(tmp_path / "nothing")))
    odd = tmp_path / "data.docx"
    odd.write_text("x")
    with pytest.raises(UserError, match=r"data.docx is none of"):
        load_text(DatasetSpec(path=str(odd)))


def test_shuffling_is_by_seed(text: Dataset):
    order = [_rows(load_text(DatasetSpec(path="m", shuffle_seed=s), text)) for s in (0, 0, 1)]
    assert order[0] == order[1] != order[2]
    assert sorted(order[0]) == sorted(order[2])


@pytest.mark.parametrize("streaming", [False, True])
def test_held_out_documents_are_never_trained_on(
    model: Any, model_folder: Path, streaming: bool
):
    rows = [f"{i} the cat sat on the mat and then it ran" * 3 for i in range(300)]
    data: Dataset | IterableDataset = Dataset.from_dict({"text": rows})
    if streaming:
        data = data.to_iterable_dataset()
    spec = _spec(model_folder)
    split = split_text(data, spec, model)
    held_out, train = _rows(split.held_out), _rows(split.train)
    assert not set(held_out) & set(train)
    assert set(held_out) | set(train) == set(rows)
    assert len(held_out) == split.n_held_out
    n_tokens = [len(model.tokenizer(r)["input_ids"]) for r in held_out]
    wanted = spec.calibration_tokens + spec.eval_tokens
    assert wanted <= sum(n_tokens) < 1.2 * wanted


@pytest.mark.parametrize("streaming", [False, True])
def test_contexts_are_drawn_from_more_documents_than_they_fill(
    model: Any, model_folder: Path, streaming: bool
):
    # Half of the documents are of cats, the others of dogs, and the first ones are very long.
    rows = [f"{'cat' if i % 2 else 'dog'} " * (1800 if i < 2 else 200) for i in range(600)]
    data: Dataset | IterableDataset = Dataset.from_dict({"text": rows})
    narrow, wide = (_spec(model_folder, held_out_spread=n) for n in (1, 4))
    few = split_text(data, narrow, model).n_held_out
    if streaming:
        data = data.to_iterable_dataset()
    split = split_text(data, wide, model)
    assert (few, split.n_held_out) == (2, 26)  # to 2,048 and 8,192 of the tokens
    assert not set(_rows(split.train)[:500]) - set(rows[26:])
    held_out = collect_held_out(model, split.held_out, wide, 32, "cpu")
    again = collect_held_out(model, split_text(data, wide, model).held_out, wide, 32, "cpu")
    assert torch.equal(held_out.calibration, again.calibration)
    assert len(held_out.calibration) == len(held_out.evaluation) == 1024
    # Evenly from all of them, where the first 2,048 tokens are a dog's but for the last ones.
    cats = (held_out.tokens == model.tokenizer.convert_tokens_to_ids("cat")).float().mean()
    assert 0.1 < float(cats) < 0.9


def test_no_more_is_held_out_than_there_is_to_spare(model: Any, model_folder: Path):
    rows = [f"{i} the cat sat on the mat and then it ran" * 3 for i in range(300)]
    data = Dataset.from_dict({"text": rows})
    narrow, wide = (_spec(model_folder, held_out_spread=n) for n in (1, 1000))
    fewest = split_text(data, narrow, model).n_held_out
    assert fewest > 30  # more than a tenth already
    assert split_text(data, wide, model).n_held_out == fewest
    for part in (data, data.select(range(fewest + 1))):
        assert split_text(part.to_iterable_dataset(), wide, model).n_held_out == fewest


def test_tokenised_rows_count_as_one_context_each(model: Any, model_folder: Path):
    spec = _spec(model_folder)
    rows = torch.randint(3, 20, (300, 128), generator=torch.Generator().manual_seed(0))
    data = Dataset.from_dict({"tokens": rows.tolist()})
    split = split_text(data, spec, model)
    assert split.n_held_out == (spec.calibration_tokens + spec.eval_tokens) // 32
    held_out = collect_held_out(model, split.held_out, spec, 32, "cpu")
    contexts = torch.cat([held_out.calibration, held_out.evaluation])
    assert len(torch.unique(contexts, dim=0)) > 0.95 * len(contexts)

    short = Dataset.from_dict({"tokens": rows[:, :16].tolist()})
    with pytest.raises(UserError, match="context_size: 32 is more than the 16 tokens"):
        split_text(short, spec, model)


def test_calibration_and_evaluation_share_no_context(model: Any, model_folder: Path):
    spec = _spec(model_folder)
    split = split_text(tiny_text(), spec, model)
    held_out = collect_held_out(model, split.held_out, spec, 32, "cpu")
    again = collect_held_out(model, split.held_out, spec, 32, "cpu")
    assert torch.equal(held_out.evaluation, again.evaluation)
    first_tokens = held_out.evaluation.reshape(-1, 32, 32)[:, 8:]
    others = held_out.calibration.reshape(-1, 32, 32)[:, 8:]
    for context in first_tokens:
        assert not (others == context).all(dim=(1, 2)).any()


def test_rows_without_text_are_dropped():
    data = Dataset.from_dict({"text": ["x", None, "", "y"]})
    assert _rows(load_text(DatasetSpec(path="memory", shuffle_seed=None), data)) == ["x", "y"]


def test_text_that_is_read_many_times_over_is_said_before_training(
    model: Any, model_folder: Path, caplog: pytest.LogCaptureFixture
):
    # 276 documents of about 30 tokens are left to train on.
    data = Dataset.from_dict({"text": ["the cat sat on the mat " * 5] * 350})
    split_text(data, _spec(model_folder, training_tokens=40_000), model)
    assert caplog.messages == []
    split_text(data, _spec(model_folder, training_tokens=10**15), model)
    (said,) = caplog.messages
    assert said.startswith("training_tokens: 1,000,000,000,000,000 are about 1")
    assert "documents of about 28 tokens" in said


def test_too_little_text_is_refused(model: Any, model_folder: Path):
    with pytest.raises(UserError, match="fewer than the 2048 to hold out"):
        split_text(Dataset.from_dict({"text": ["the cat"] * 5}), _spec(model_folder), model)
    with pytest.raises(UserError, match="none are left to train on"):
        split_text(Dataset.from_dict({"text": ["the cat " * 2000]}), _spec(model_folder), model)
