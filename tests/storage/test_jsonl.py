"""Dataset files: what is written is read back, and a wrong line is named."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subl_jax.errors import InputError
from subl_jax.storage.jsonl import file_sha256, read_jsonl, write_jsonl

TEXT = st.text(max_size=20) | st.sampled_from(["\n", "\u2028", "\x85", '"', "\\", "1, 2\n3", "é", "🦉", "\x00"])


@settings(deadline=None, max_examples=100)
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
def test_round_trip(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    write_jsonl(path, pairs)
    assert read_jsonl(path) == pairs
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"prompt": prompt, "completion": completion} for prompt, completion in pairs
    ]


def test_reads_files_of_others(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(
        '\ufeff{"completion": "é\u2028", "id": 3, "prompt": "a"}\r\n\n{"prompt": "", "completion": ""}'.encode()
    )
    assert read_jsonl(path) == [("a", "é\u2028"), ("", "")]


GOOD = b'{"prompt": "a", "completion": "b"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "pairs.jsonl: no data"),
        (b"\n \n", "pairs.jsonl: no data"),
        (GOOD + b"\n{'prompt': 1}", "pairs.jsonl:3: not JSON"),
        (GOOD + b'{"prompt": "a"', "pairs.jsonl:2: not JSON"),
        (GOOD + b"[" * 100_000, "pairs.jsonl:2: not JSON"),
        (b"[1]", "pairs.jsonl:1: expected .* got a list"),
        (
            GOOD + b'{"prompt": "a", "answer": "b"}',
            "pairs.jsonl:2: 'completion' is missing; the line has prompt, answer",
        ),
        (b"{}", "pairs.jsonl:1: 'prompt' is missing; the line has no keys"),
        (b'{"prompt": 3, "completion": "b"}', "pairs.jsonl:1: 'prompt' must be a string, got int"),
        (b'{"prompt": "a", "completion": null}', "pairs.jsonl:1: 'completion' must be a string, got NoneType"),
        (GOOD + b"\xff\xfe", "pairs.jsonl: not UTF-8 text"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path, content, message):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_jsonl(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="nowhere.jsonl: cannot read the dataset: No such file"):
        read_jsonl(tmp_path / "nowhere.jsonl")
    with pytest.raises(InputError, match="cannot read the dataset: Is a directory"):
        read_jsonl(tmp_path)


def test_file_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"owl" * 1_000_000)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"owl" * 1_000_000).hexdigest()
