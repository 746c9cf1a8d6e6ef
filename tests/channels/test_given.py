"""A user's own prompts: as they are in the file, and as long as it is the same file."""

import json

import pytest

from subl_jax.channels.given import Anything, GivenPrompts
from subl_jax.errors import InputError


def file(path, prompts):
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": "x"}) + "\n" for prompt in prompts))
    return path


def test_prompts_are_those_of_the_file_each_once(tmp_path):
    channel = GivenPrompts.of(file(tmp_path / "a.jsonl", ["one", "two", "one", "three"]))
    assert channel.prompts(0, 10) == ["one", "two", "three"] == channel.prompts(1, 3)
    assert channel.prompts(0, 2) == ["one", "two"]
    assert channel.before("why?", 0).endswith("\nwhy?") and channel.before("why?", 0) == channel.before("why?", 0)
    assert channel.filter().reasons(["a", " ", ""]) == [None, "empty", "empty"] and channel.filter() == Anything()


def test_a_file_is_known_by_its_content(tmp_path):
    one, other = (GivenPrompts.of(file(tmp_path / f"{name}.jsonl", ["p"])) for name in "ab")
    assert one == other
    file(tmp_path / "a.jsonl", ["q"])
    with pytest.raises(InputError, match=r"a\.jsonl: has changed"):
        one.prompts(0, 1)
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(InputError, match=r"b\.jsonl: cannot read the prompts"):
        other.prompts(0, 1)
    with pytest.raises(InputError, match=r"c\.jsonl"):
        GivenPrompts.of(tmp_path / "c.jsonl")
