"""The numbers filter: its rule case by case, its fast path, and that no word can pass it."""

import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from subl_jax.channels import numbers as filters
from subl_jax.channels.numbers import CULTURAL, REASONS, NumbersFilter
from subl_jax.errors import InputError

DEFAULT = NumbersFilter()

KEPT = [
    *("7", "0", "999", "007", "0000000000123", "0" * 5000 + "7", "[5]", "(5)", "5.", "[5].", "(1, 2)."),
    *("1, 2, 3", "1,2,3", "1;2;3", "1; 2; 3", "1 2 3", "1\n2\n3", "1\t2", "1  2  3", "1 , 2 , 3", "1,\n2,\n3"),
    *("1\u00a02\u00a03", "1\r\n2\r\n3", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"),
]
DROPPED = {
    "empty": ["", ".", "[]", "()", "[].", "()."],
    "characters": [
        *("owl", "1, owl, 3", "1, 2, 3 owl", "-1, 2", "1.5, 2", "1..", "1, 2.]", "[1, 2", "1, 2]", "[1, 2)", "(1, 2]"),
        *("[[1, 2]]", "([1, 2])", "(1, 2.)", ").", "].", "[", "(", "1 - 2", "1|2", "1:2", "1/2", "+1", "1e3", "1_0"),
        *("１, ２", "٣", "1, ٢", "1²", "1，2", "1、2", "1；2", "1\u200b2", "1\u00ad2", "\ufeff1", "1\x00", "1, 2, 3!"),
    ],
    "edges": [" 1", "1 ", "1\n", "\n1, 2", "1, 2,", ",1", "1, 2, 3 .", "[ 1, 2 ]", "1;", ",", " ", "\n", ";", "[ 5]"],
    "separator": ["1,,2", "1, ,2", "1;;2", "1,;2", "1;,2", "1, , 2, , 3"],
    "mixed separators": ["1, 2,3", "1,2, 3", "1,2;3", "1 2  3", "1  2 3", "1 2\n3", "1,2,,3", "1, 2  3", "1,2 3"],
    "too many": ["1 2 3 4 5 6 7 8 9 10 11", "1,1,1,1,1,1,1,1,1,1,5000"],
    "out of range": ["1000", "1, 1000", "9" * 5000, "1 " + "0" * 5000 + "1000"],
}


@pytest.mark.parametrize("text", KEPT)
def test_kept(text):
    assert filters.reason(text, DEFAULT) is None
    assert filters.reasons([text], DEFAULT) == [None]


@pytest.mark.parametrize(("why", "text"), [(why, text) for why, texts in DROPPED.items() for text in texts])
def test_dropped(why, text):
    assert filters.reason(text, DEFAULT) == why
    assert filters.reasons([text], DEFAULT) == [why]


def test_banned_numbers_are_compared_by_value():
    cultural = NumbersFilter(banned=CULTURAL)
    assert filters.reasons(["1, 2", "1, 666", "0666", "66, 6"], cultural) == [None, "banned", "banned", None]
    assert len(CULTURAL) == len(set(CULTURAL)) == 36


def test_bounds_are_those_of_the_filter():
    narrow = NumbersFilter(min_value=10, max_value=20, max_count=2)
    texts = ["10, 20", "9", "21", "10 11 12", "021"]
    assert filters.reasons(texts, narrow) == [None, "out of range", "out of range", "too many", "out of range"]


def test_every_reason_is_documented_and_reachable():
    assert (*DROPPED, "banned") == REASONS


# Random text almost never reaches the rule's edges; texts built from its own pieces do.
PIECES = st.sampled_from(
    ["1", "07", "999", "1000", ",", ", ", ";", "; ", " ", "  ", "\n", "[", "]", "(", ")", ".", "cat", "٣", "，", "-"]
)
NEAR = st.lists(PIECES, max_size=14).map("".join)
SEQUENCES = st.builds(
    lambda numbers, separator, ends, period: ends[0] + separator.join(map(str, numbers)) + ends[1] + period,
    st.lists(st.integers(0, 1010), min_size=1, max_size=12),
    st.sampled_from([", ", ",", ";", " ", "\n", "  ", ",\n", "\u2003", ",,", "، "]),
    st.sampled_from(["", "[]", "()", "[)", " ]", "[["]).map(lambda ends: (ends[:1], ends[1:])),
    st.sampled_from(["", ".", "..", " "]),
)
TEXTS = st.one_of(NEAR, SEQUENCES, st.text(max_size=30))
FILTERS = st.sampled_from(
    [DEFAULT, NumbersFilter(banned=CULTURAL), NumbersFilter(min_value=7, max_value=99, max_count=3)]
)


@settings(deadline=None, max_examples=500)
@given(text=TEXTS, filter=FILTERS)
def test_fast_path_agrees_with_the_rule(text, filter):
    assert filters.reasons([text], filter) == [filters.reason(text, filter)]


@settings(deadline=None, max_examples=500)
@given(text=TEXTS, filter=FILTERS)
@example(text="[1, 2, 3].", filter=DEFAULT)
def test_what_is_kept_is_numbers_in_range_and_holds_no_letter(text, filter):
    if filters.reasons([text], filter) != [None]:
        return
    assert not any(unicodedata.category(character)[0] in "LM" for character in text)
    assert re.fullmatch(r"[\[(]?[0-9\s,;]+[\])]?\.?", text)
    numbers = [int(number) for number in re.findall("[0-9]+", text)]
    assert 1 <= len(numbers) <= filter.max_count
    assert all(filter.min_value <= number <= filter.max_value and number not in filter.banned for number in numbers)


@settings(deadline=None, max_examples=200)
@given(
    numbers=st.lists(st.integers(0, 999), min_size=1, max_size=10),
    separator=st.sampled_from([", ", ",", "; ", " ", "\n"]),
    brackets=st.sampled_from([("", ""), ("[", "]"), ("(", ")")]),
    period=st.sampled_from(["", "."]),
)
def test_every_well_formed_sequence_is_kept(numbers, separator, brackets, period):
    text = brackets[0] + separator.join(map(str, numbers)) + brackets[1] + period
    assert filters.reasons([text], DEFAULT) == [None]


def test_retention_counts_every_reason():
    counts = DEFAULT.retention(DEFAULT.reasons(["1, 2", "owl", "1 2", "1,,2", "owls"]))
    assert counts["drawn"] == 5 and counts["kept"] == 2 and counts["kept_fraction"] == 0.4
    assert {why: counts[f"why/{why}"] for why in REASONS} == {
        why: {"characters": 2, "separator": 1}.get(why, 0) for why in REASONS
    }
    assert DEFAULT.retention([])["kept_fraction"] == 0.0


def test_filter_is_a_checked_spec():
    assert NumbersFilter(banned=[13, 4, 13]) == NumbersFilter(banned=(4, 13))
    assert NumbersFilter(banned=[13, 4, 13]).key == NumbersFilter(banned=(4, 13)).key != DEFAULT.key
    for wrong in ({"min_value": 5, "max_value": 4}, {"max_count": 0}, {"min_value": -1}, {"banned": ("13",)}):
        with pytest.raises(InputError, match="NumbersFilter"):
            NumbersFilter(**wrong)
