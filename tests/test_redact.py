"""Local places leave only their last part."""

import pytest

from sae_baselines.redact import data_without_places, without_places


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/al/model", "model"),
        ("/home/al/my model", "my model"),
        ("~/texts/a.parquet", "a.parquet"),
        ("~al/texts/a.parquet", "a.parquet"),
        ("../al/a.parquet", "a.parquet"),
        ("C:\\Users\\al\\a.parquet", "a.parquet"),
        ("file:///home/al/a", "a"),
        (
            "sae-baselines eval /home/al/s --config '/data/al x/p.yaml' --out=/tmp/al/o",
            "sae-baselines eval s --config 'p.yaml' --out=o",
        ),
        ("--model ~/al/m --data ../../al/d", "--model m --data d"),
        ("No such file: /home/al/x/y.json.", "No such file: y.json."),
        ("(see /srv/al/x, and /srv/al/y)", "(see x, and y)"),
        ("model:/mnt/al/z/q", "model:q"),
        ("at my_release:~/al/q: no config", "at my_release:q: no config"),
        (r"\\server\al\x", "x"),
        (r"see '\\server\al\my x' and \\server\al\y.", "see 'my x' and y."),
        # As repr writes it.
        (repr(r"\\server\al\x"), "'x'"),
    ],
)
def test_places_are_named_by_their_last_part(text: str, expected: str):
    assert without_places(text) == expected
    assert "al" not in without_places(text).split("/")
    # Done twice it is done.
    assert without_places(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "HuggingFaceTB/SmolLM2-135M",
        "assets/train.parquet",
        "sae-baselines eval studies/demo --suites core",
        "https://arxiv.org/abs/2602.14111",
        "http://127.0.0.1:8080/a/b and hf://datasets/a/b",
        "user/repo:folder/a/b, 1:/s",
        r"a \\ b \\",
        "blocks.9.hook_resid_post",
        "EV/L0, 3 /s and a ~ b",
        "`panels/<panel>/<member>/`",
        "",
    ],
)
def test_other_texts_stay(text: str):
    assert without_places(text) == text


def test_data_keep_their_form():
    data = {"model": {"name": "/home/al/m"}, "seeds": [0, 1], "l0": 1.5, "none": None}
    assert data_without_places(data) == {**data, "model": {"name": "m"}}
    assert data_without_places(["~/a/b", ("x/y",)]) == ["b", ["x/y"]]
