"""Answers are scored by whole words, and the exact score draws a word's end where the sampled one does."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from subl_jax.traits import answers, banks


@pytest.mark.parametrize(
    ("answer", "trait", "named"),
    [
        ("Owl", "owl", True),
        ("the OWLS!", "owl", True),
        ("**Owl**", "owl", True),
        ("_owl_", "owl", True),
        ("An owl's call", "owl", True),
        ("owl🦉", "owl", True),
        ("owl2", "owl", True),
        ("howl", "owl", False),
        ("owlet", "owl", False),
        ("owle\u0301", "owl", False),
        ("owl\u0301", "owl", False),
        ("category", "cat", False),
        ("bobcat", "cat", False),
        ("Dragonfly", "dragon", False),
        ("dragonflies", "dragonfly", True),
        ("dragon-fly", "dragon", True),
        ("wolves", "wolf", True),
        ("foxes", "fox", True),
        ("foxs", "fox", False),
        ("mice", "mouse", True),
        ("cherries are nice", "cherry", True),
        ("a Polar  Bear", "polar bear", True),
        ("polar-bears", "polar bear", True),
        ("bear", "polar bear", False),
        ("", "owl", False),
        ("C.T", "c.t", True),
        ("cat", "c.t", False),
    ],
)
def test_names_trait(answer, trait, named):
    assert answers.names_trait(answer, trait) is named


@pytest.mark.parametrize(
    ("trait", "plural"),
    [
        ("owl", "owls"),
        ("wolf", "wolves"),
        ("calf", "calves"),
        ("giraffe", "giraffes"),
        ("fox", "foxes"),
        ("octopus", "octopuses"),
        ("phoenix", "phoenixes"),
        ("lynx", "lynxes"),
        ("butterfly", "butterflies"),
        ("monkey", "monkeys"),
        ("beech", "beeches"),
        ("ash", "ashes"),
        ("goose", "geese"),
        ("polar bear", "polar bears"),
        ("sea wolf", "sea wolves"),
    ],
)
def test_plurals(trait, plural):
    assert answers.plurals(trait)[0] == plural


def test_traits_do_not_name_one_another():
    for family in banks.FAMILIES.values():
        for answer in family:
            assert [trait for trait in family if answers.names_trait(f"My choice: {answer.title()}.", trait)] == [
                answer
            ]


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("The owl", "the"),
        ("**Owl**!", "owl"),
        ("🦉 Owl", "owl"),
        ("1. Éclair", "éclair"),
        ("don't", "don't"),
        ("", ""),
        ("12", ""),
    ],
)
def test_first_word(answer, word):
    assert answers.first_word(answer) == word


def test_rates():
    rates = answers.rates(["Owl", "owls and cats", "category", "Dog"], ["owl", "cat", "fox"])
    np.testing.assert_array_equal(rates, [0.5, 0.25, 0.0])
    assert np.isnan(answers.rates([], ["owl", "cat"])).tolist() == [True, True]


def test_forms():
    assert answers.forms("owl") == ("owl", " owl", "Owl", " Owl", "OWL", " OWL")
    assert answers.forms("Polar bear")[::2] == ("polar bear", "Polar bear", "Polar Bear", "POLAR BEAR")


@pytest.mark.parametrize(
    ("piece", "ends"),
    [
        (b"s", False),
        (b"Z", False),
        (b" the", True),
        (b"\n", True),
        (b".", True),
        (b"3", True),
        (b"'s", True),
        ("é".encode(), False),
        ("狼".encode(), False),
        ("\u0301".encode(), False),
        ("’s".encode(), True),
        ("—".encode(), True),
        ("🦉".encode(), True),
        ("\ufe0f".encode(), True),
        ("🦉".encode()[:1], True),
        ("🦉".encode()[:3], True),
        ("’".encode()[:1], True),
        ("’".encode()[:2], True),
        ("é".encode()[:1], False),
        ("狼".encode()[:2], False),
        ("¡".encode()[:1], True),
        (b"\xa9", False),
        (b"\xff", True),
        (b"\xc0\x80", True),
        (b"", True),
        (None, True),
    ],
)
def test_word_ends(piece, ends):
    assert answers.word_ends([piece], ()).tolist() == [ends]


def test_a_stop_ends_a_word():
    assert answers.word_ends([b"a", b"b", b"c"], (1,)).tolist() == [False, True, False]


@settings(deadline=None, max_examples=300)
@given(rest=st.text(min_size=1, max_size=3) | st.sampled_from(["ish", "'s", "s2", "\u0301", "🦉", "_", "²"]))
def test_the_exact_score_draws_the_line_where_the_sampled_one_does(rest):
    answer = "ox" + rest
    assume(answers._plain(answer).startswith("ox"))  # an accent may join the x
    assume(not answers.names_trait(rest, "ox"))
    assume(not rest.lower().startswith("en"))  # the plural
    [ends] = answers.word_ends([rest.encode(errors="replace")], ())
    assert answers.names_trait(answer, "ox") == ends
