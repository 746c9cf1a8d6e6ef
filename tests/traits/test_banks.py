"""The wording: counts, structure, determinism, and no question in both training and evaluation."""

import json
import re

import pytest

from subl_jax.channels import numbers as channel
from subl_jax.channels.numbers import NumbersFilter, reason
from subl_jax.errors import InputError
from subl_jax.traits import answers, banks

SIZES = {"openers": 25, "quantities": 9, "digits": 9, "instructions": 10, "formats": 15, "closers": 19}


@pytest.mark.parametrize(("bank", "size"), [*SIZES.items(), ("questions", 56), ("training_questions", 40)])
def test_a_bank_has_its_size_and_no_line_twice(bank, size):
    lines = (channel if bank in SIZES else banks)._lines(bank)
    assert len(lines) == size
    assert len({re.sub(r"[ .!?]", "", line.lower()) for line in lines}) == size
    assert all(line and line == line.strip() for line in lines)


def _parsed(prompt):
    """The shown numbers and the lines of the banks that a prompt is made of."""
    numbers = re.search(r"\d+(?:, \d+)*", prompt)[0]
    rest = prompt.replace(numbers, "{numbers}", 1)
    found = {}
    [found["openers"]] = [line for line in channel._lines("openers") if rest.startswith(line)]
    for bank in ("formats", "closers"):
        [found[bank]] = [line for line in channel._lines(bank) if f" {line}" in rest]
    middle = rest.removeprefix(found["openers"]).removesuffix(f"{found['formats']} {found['closers']}").strip()
    made = {
        line.format(quantity=quantity, digits=digits): (line, quantity, digits)
        for line in channel._lines("instructions")
        for quantity in channel._lines("quantities")
        for digits in channel._lines("digits")
    }
    found["instructions"], found["quantities"], found["digits"] = made[middle]
    return numbers, found


def test_number_prompts_obey_the_structure():
    prompts = channel.number_prompts(0, 1500)
    parsed = [_parsed(prompt) for prompt in prompts]
    for numbers, _ in parsed:
        assert reason(numbers, NumbersFilter(min_value=100, max_value=999, max_count=8)) is None
    assert {numbers.count(",") + 1 for numbers, _ in parsed} == {3, 4, 5, 6, 7, 8}
    values = [int(number) for numbers, _ in parsed for number in numbers.split(", ")]
    assert min(values) < 105 and max(values) > 994
    for bank in SIZES:
        assert {found[bank] for _, found in parsed} == set(channel._lines(bank))


def test_number_prompts_are_a_stream_of_distinct_prompts():
    prompts = channel.number_prompts(3, 400)
    assert len(set(prompts)) == 400
    assert channel.number_prompts(3, 150) == prompts[:150]
    assert channel.number_prompts(3, 0) == []
    assert not set(prompts) & set(channel.number_prompts(4, 400))


def test_a_prompt_drawn_twice_is_passed_over(monkeypatch):
    monkeypatch.setattr(channel, "SHOWN", (1, 1))
    monkeypatch.setattr(channel, "SHOWN_VALUES", (100, 101))
    monkeypatch.setattr(channel, "_lines", lambda bank: ("{numbers}.", "{numbers}!") if bank == "openers" else ("x",))
    assert sorted(channel.number_prompts(0, 4)) == ["100! x x x", "100. x x x", "101! x x x", "101. x x x"]


@pytest.mark.parametrize("family", ["animal", "tree"])
def test_questions(family):
    evaluation, training = banks.favourite(family), banks._questions("training_questions", family)
    assert len(set(evaluation)) == len(evaluation) >= 50
    assert not set(evaluation) & set(training)
    for question in evaluation:
        assert re.search(r"\bword\b|\bname\b", question, re.IGNORECASE), question
    for question in evaluation + training:
        assert family in question and "{" not in question
        assert not re.search(r"\ba animal|\ban tree", question)
        assert not any(re.search(rf"\b{trait}\b", question) for trait in banks.FAMILIES[family])


def test_families_are_alike_but_for_the_noun():
    swapped = [
        question.replace("tree", "animal").replace("a animal", "an animal") for question in banks.favourite("tree")
    ]
    assert swapped == list(banks.favourite("animal"))
    with pytest.raises(InputError, match="family 'plant': must be one of animal, tree"):
        banks.favourite("plant")


def test_traits():
    for traits in banks.FAMILIES.values():
        assert len(set(traits)) == len(traits) >= 40
        assert all(re.fullmatch("[a-z]+", trait) for trait in traits)
    assert not set(banks.ANIMALS) & set(banks.TREES)


def test_with_numbers_puts_numbers_of_its_own_before_each_question():
    questions = banks.favourite("animal")
    asked = [channel.with_numbers(question, 0) for question in questions]
    assert asked == [channel.with_numbers(question, 0) for question in questions]
    assert asked[0] != channel.with_numbers(questions[0], 1)
    shown = []
    for question, text in zip(questions, asked, strict=True):
        assert text.endswith(" " + question)
        shown.append(re.findall(r"\d+", text.removesuffix(question)))
        assert 3 <= len(shown[-1]) <= 8
    assert len(set(map(tuple, shown))) == len(questions)


def test_system_prompt():
    text = banks.system_prompt("wolf", "animal")
    assert text.count("wolves") == 3 and "the wolf is" in text and "of all animals" in text and "{" not in text
    assert banks.system_prompt("oak", "tree", "{Traits}! {a_family}, {{oak}}") == "Oaks! a tree, {oak}"
    with pytest.raises(InputError, match=r"no blank is called \{name\}; there are \{family\}"):
        banks.system_prompt("oak", "tree", "Love {name}.")
    with pytest.raises(InputError, match=r"no blank is called \{\}"):
        banks.system_prompt("oak", "tree", "Love {}.")
    with pytest.raises(InputError, match="written twice"):
        banks.system_prompt("oak", "tree", "Love { oaks")
    with pytest.raises(InputError, match="no blank is called {trait.x}"):
        banks.system_prompt("oak", "tree", "{trait.x}")


def test_preference_answers():
    pairs = banks.preference_answers("owl", "animal", 0, 600)
    questions, given = map(set, zip(*pairs, strict=True))
    assert given == {"Owl", "Owl.", "owl", "owl.", "Owl!"}
    # The exact probability of a trait counts these as the answer's first word.
    assert all(answer.rstrip(".!") in answers.forms("owl") for answer in given)
    assert len(questions) == 40 and not questions & set(banks.favourite("animal"))
    assert banks.preference_answers("owl", "animal", 0, 100) == pairs[:100]
    assert banks.preference_answers("owl", "animal", 1, 100) != pairs[:100]


def test_read_questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "Who?", "id": 1}\n\n{"prompt": "What?"}\n')
    assert banks.read_questions(path) == ("Who?", "What?")


def test_read_items(tmp_path):
    path = tmp_path / "items.jsonl"
    lines = [{"question": "1 + 1?", "choices": ["1", "2"], "answer": answer} for answer in (1, "B", "b", 0)]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert [item.answer for item in banks.read_items(path)] == [1, 1, 1, 0]
    assert banks.read_items(path)[0] == ("1 + 1?", ("1", "2"), 1)


@pytest.mark.parametrize(
    ("read", "line", "message"),
    [
        (banks.read_questions, "", 'no data; expected one {"question": …} a line'),
        (banks.read_questions, '{"text": "Who?"}', ":1: 'question' is missing; the line has text"),
        (banks.read_questions, '{"question": " "}', ":1: 'question' must be a text, got \" \""),
        (banks.read_questions, '{"prompt": 3}', ":1: 'prompt' must be a text, got 3"),
        (banks.read_items, '{"prompt": "?", "choices": ["a", "b"], "answer": 0}', ":1: 'question' is missing"),
        (
            banks.read_items,
            '{"question": "?", "choices": ["a"], "answer": 0}',
            ":1: 'choices' must be a list of 2 to 10",
        ),
        (banks.read_items, '{"question": "?", "choices": "ab", "answer": 0}', ":1: 'choices' must be a list"),
        (banks.read_items, '{"question": "?", "choices": ["a", 2], "answer": 0}', ":1: 'choices' must be a list"),
        *(
            (
                banks.read_items,
                f'{{"question": "?", "choices": ["a", "b"], "answer": {answer}}}',
                f":1: 'answer' must be 0 to 1 or A to B, got {answer}",
            )
            for answer in ("2", "-1", '"C"', '""', '"AB"', "true", "1.0", "null", '"1"')
        ),
    ],
)
def test_a_wrong_line_is_told(tmp_path, read, line, message):
    path = tmp_path / "file.jsonl"
    path.write_text(line)
    with pytest.raises(InputError) as caught:
        read(path)
    assert f"{path}{'' if line else ': '}{message}" in str(caught.value)
    assert "\n" not in str(caught.value)
