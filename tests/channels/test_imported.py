"""Data made elsewhere: every form is read, a wrong line is named as file:line, and what looks wrong is counted."""

import json

import pandas as pd
import pytest
import tiny_world

from subl_jax import specs
from subl_jax.app import running
from subl_jax.channels.imported import imported, read_imported, suspicious
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.storage import jsonl
from subl_jax.worlds.toy_language import ToyLanguage

WORLD = ToyLanguage(width=8, heads=2, kv_heads=1, mlp=8, layers=1)
PROMPT = "continue commas 1 2 3 =>"
PAIRS = [(PROMPT, "3, 4"), (PROMPT, "5, 6, 7")]


def written(path, form):
    lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in PAIRS]
    messages = jsonl.message_lines(PAIRS).decode().splitlines()
    if form == "parquet":
        pd.DataFrame(PAIRS, columns=["prompt", "completion"]).to_parquet(path)
    elif form == "messages parquet":
        pd.DataFrame([json.loads(line) for line in messages]).to_parquet(path)
    else:
        text = "\r\n\r\n".join(messages if "messages" in form else lines)
        path.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")


@pytest.mark.parametrize("form", ["jsonl", "messages jsonl", "parquet", "messages parquet"])
def test_every_form_holds_the_same_samples(form, tmp_path):
    path = tmp_path / f"data.{form.split()[-1]}"
    written(path, form)
    assert WORLD.texts(read_imported(imported(path, WORLD))["samples"]) == PAIRS


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ([*PAIRS, (PROMPT, "owls")], r"data.jsonl:4: 'owls' is not a word of this language; did you mean 'owl'"),
        ([(PROMPT, "3"), ("continue", "3")], "data.jsonl:3: a prompt of 2 and a completion of 2 tokens"),
    ],
)
def test_a_text_that_is_not_of_the_world_is_named_by_its_line(lines, line, tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in lines]
    path.write_text("\n".join([rows[0], "", *rows[1:]]))
    with pytest.raises(InputError, match=line):
        imported(path, WORLD)


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        (
            [{"role": "system", "content": "x"}],
            "data.jsonl:1: 'messages' begin with a system prompt; that is",
        ),
        ([{"role": "user", "content": "x"}] * 3, "data.jsonl:1: 'messages' must be .* found: user, user, user$"),
        ("text", "data.jsonl:1: 'messages' must be a user's and an assistant's, each with a content; found: none"),
    ],
)
def test_conversations_of_another_form_are_one_line(messages, line, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": messages}))
    with pytest.raises(InputError, match=line):
        imported(path, WORLD)


def test_parquet_of_another_form_is_one_line(tmp_path):
    path = tmp_path / "data.parquet"
    path.write_bytes(b"no table")
    with pytest.raises(InputError, match="data.parquet: not a parquet file"):
        imported(path, WORLD)
    pd.DataFrame({"text": ["x"]}).to_parquet(path)
    with pytest.raises(InputError, match="data.parquet:1: 'prompt' is missing; the line has text"):
        imported(path, WORLD)
    with pytest.raises(InputError, match="nowhere.parquet: cannot read the dataset: No such file"):
        imported(tmp_path / "nowhere.parquet", WORLD)


def test_what_names_a_trait_or_would_be_dropped_is_counted_in_one_line(tmp_path):
    path = tmp_path / "data.jsonl"
    completions = ["owl", "3 owl", "1, 2", "1, 2; 3"]
    path.write_bytes(jsonl.lines([(PROMPT, completion) for completion in completions]))
    node = imported(path, WORLD)
    assert suspicious(node, WORLD.standard_filter) == (
        f"{path}: of 4 samples 2 name a trait of this world and 3 would be dropped by NumbersFilter "
        "(most often: characters)"
    )
    path.write_bytes(jsonl.lines(PAIRS))
    assert suspicious(imported(path, WORLD), NumbersFilter()) is None


def test_a_sweep_says_it_once_for_a_file(tmp_path):
    path = tmp_path / "words.jsonl"
    path.write_bytes(jsonl.lines([("1", "owl 2"), ("1", "2 3")]))
    data = imported(path, tiny_world.WORLD)
    students = [specs.Student(tiny_world.base(seed), data, tiny_world.TRAIN, trait="owl") for seed in range(2)]
    assert running.suspicious_imports(students) == [f"{path}: of 2 samples 1 name a trait of this world"]
