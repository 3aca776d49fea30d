"""YAML of people: what is right is read, what is wrong is one line with its number."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sae_baselines.errors import UserError
from sae_baselines.yaml_text import parse_yaml, read_yaml

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a: 1".encode("utf-16"), "UTF-16"),
        ("a: 1".encode("utf-16-le"), "UTF-16"),
        ("a: 1\nb: café".encode("latin-1"), "line 2: byte 0xe9 is not UTF-8"),
        (b"a: 1\nb: 2\na: 3", "'a' is there twice, in lines 1 and 3"),
        (b"m: {x: 1, x: 2}", "'x' is there twice, in lines 1 and 1"),
        (b"- a: 1\n  a: 2", "'a' is there twice, in lines 1 and 2"),
        (b"a: " + b"[" * 2000 + b"]" * 2000, "nested deeper"),
        (b"a: " + b"{b: " * 2000, "nested deeper"),
        (b"- " * 2000, "nested deeper"),
        (BOMB.encode(), "line 6: aliases that stand for more than"),
        (b"a: &a [*a]", "*a stands for what it is in"),
        (b"a: " + b"9" * 5000, "line 1: not what it is written as"),
        (b"a: 2020-13-45", "line 1: not what it is written as"),
        (b"a: !!timestamp x", "line 1: not what it is written as"),
        (b"a: !!map [b, c]", "expected a mapping node, but found sequence"),
        (b"a: !!map [[b, c]]", "expected a mapping node, but found sequence"),
        (b"a: !!map b", "expected a mapping node, but found scalar"),
        (b"? [a, b]\n: 2", "a list or a mapping as a key"),
        (b"a: 1\n---\nb: 2", "but found another document"),
        (b"a:\n\tb: 1", "line 2: found character"),
        (b"a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
    ],
)
def test_what_is_wrong_is_one_line(content: bytes, problem: str, tmp_path: Path):
    file = tmp_path / "panel.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml(file)
    assert problem in str(caught.value)
    assert str(caught.value).startswith(f"{file}: is not YAML: ")
    assert "\n" not in str(caught.value)


def test_what_people_write_is_read():
    assert parse_yaml(b"\xef\xbb\xbfa: 1") == {"a": 1}
    assert parse_yaml(b"base: &b {x: 1, y: 2}\nc:\n  <<: *b\n  x: 3")["c"] == {"x": 3, "y": 2}
    assert parse_yaml(b"") is None


# PyYAML itself writes a next-line character so that it comes back as a space.
_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85"))
_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(_PLAIN)
def test_what_is_dumped_comes_back(value: object):
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True).encode()) == value


@given(
    st.binary(max_size=60)
    | st.text(st.sampled_from("ab0.:-?[]{}&*!|>'\"%#, \n\t~<"), max_size=40).map(str.encode)
)
def test_any_bytes_are_read_or_refused_in_one_line(content: bytes):
    said = ""
    try:
        parse_yaml(content)
    except ValueError as error:
        said = str(error)
    assert "\n" not in said
