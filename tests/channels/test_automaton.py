"""The automaton allows the texts of its language, all of them and nothing else, in any tokens that spell them."""

import collections
import dataclasses
import functools
import itertools
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from few import few
from hypothesis import given, settings
from hypothesis import strategies as st

from subl_jax.channels import automaton
from subl_jax.channels import numbers as filters
from subl_jax.channels.numbers import CULTURAL, NumbersFilter
from subl_jax.errors import InputError
from subl_jax.pretrained.pieces import pieces_of

FILTERS = {
    "default": NumbersFilter(),
    "cultural": NumbersFilter(banned=CULTURAL),
    "narrow": NumbersFilter(min_value=5, max_value=42, max_count=3),
    "one": NumbersFilter(max_count=1, max_value=120, banned=(7,)),
    "wide": NumbersFilter(min_value=98, max_value=13_120, max_count=4, banned=(*CULTURAL, *range(2000, 3000))),
    "single": NumbersFilter(min_value=8, max_value=8, max_count=2),
    "holes": NumbersFilter(max_value=20, banned=tuple(range(3, 20)), max_count=5),
}
CHARACTERS = [bytes([byte]) for byte in b"0123456789 ,;\n.[]()"]
OTHERS = [None, b"", b"owl", b" the", b"a", b"-", b"\xff", "ï".encode(), b"1a", b"..", b"\t"]
DIGITS = [b"%0*d" % (width, value) for width in (2, 3) for value in range(10**width)]
MIXED = [
    *(b" 12", b"12", b", ", b"],", b".\n", b"].", b").", b", 3", b"(4", b"[1", b"7)", b" 99.", b"1,2", b" 1 2", b"0]"),
    *(
        b";\n",
        b",\n",
        b"\n8",
        b"; 6",
        b" 8",
        b"8, 8",
        b"10",
        b"5",
        b"1",
        b" 1",
        b"  ",
        b"(8).",
        b"13, ",
        b"1",
        b" [",
        b"20",
    ),
]
VOCABULARIES = {
    "characters": [*CHARACTERS, *OTHERS],
    "triples": [*OTHERS, *CHARACTERS, *DIGITS, b", ", b"],", b".\n", b"].", b"  ", b",\n"],
    "mixed": [*MIXED, *CHARACTERS, *OTHERS],
}


def tokens_of(name):
    """The pieces, with two stop tokens: one without text, one that would be a separator."""
    return [*VOCABULARIES[name], None, b"\n"], (len(VOCABULARIES[name]), len(VOCABULARIES[name]) + 1)


@functools.cache
def built(vocabulary, filter, min_count=1):
    pieces, stops = tokens_of(vocabulary)
    return automaton.build(pieces, FILTERS[filter], stops, min_count=min_count)


def in_language(text, filter, separators=filters.SEPARATORS, min_count=1):
    """Whether the filter keeps `text` and it is within the bounds that the automaton declares."""
    if filters.reason(text, filter) is not None:
        return False
    numbers, between = re.findall("[0-9]+", text), re.findall("(?<=[0-9])[^0-9]+(?=[0-9])", text)
    width = len(str(filter.max_value))
    return len(numbers) >= min_count and set(between) <= set(separators) and max(map(len, numbers)) <= width


def accepts(machine, ids):
    """Whether the tokens `ids` and then any stop token may be drawn."""
    column = {token: index for index, token in enumerate(machine.tokens.tolist())}
    state = machine.start
    for id in ids:
        if id not in column or (state := int(machine.next[state, column[id]])) < 0:
            return False
    return machine.shortest[state] == 1


def spellings(text, pieces, stops):
    """By position in `text`: the tokens that may come there and leave a rest that can be spelled."""
    at = [[] for _ in range(len(text) + 1)]
    longest = max(len(piece) for piece in pieces if piece)
    ids = collections.defaultdict(list)
    for id, piece in enumerate(pieces):
        if piece and id not in stops:
            ids[piece].append(id)
    for position in reversed(range(len(text))):
        for end in range(position + 1, min(position + longest, len(text)) + 1):
            if end == len(text) or at[end]:
                at[position] += [(id, end) for id in ids.get(text[position:end], ())]
    return at


def spelled(data, text, pieces, stops):
    """`text` in tokens: the longest first, or any."""
    at, position, ids = spellings(text.encode(), pieces, stops), 0, []
    greedy = data.draw(st.booleans())
    while position < len(text):
        id, position = (
            max(at[position], key=lambda step: step[1]) if greedy else data.draw(st.sampled_from(at[position]))
        )
        ids.append(id)
    return ids


@st.composite
def texts(draw, filter, min_count=1):
    """Texts of the bounded language."""
    banned = set(filter.banned)
    values = [value for value in range(filter.min_value, filter.max_value + 1) if value not in banned]
    separator = draw(st.sampled_from(filters.SEPARATORS))
    chosen = draw(st.lists(st.sampled_from(values), min_size=min_count, max_size=filter.max_count))
    width = len(str(filter.max_value))
    numbers = [draw(st.sampled_from([str(value).zfill(k) for k in range(1, width + 1)])) for value in chosen]
    opening, closing = draw(st.sampled_from(["  ", "[]", "()"]))
    return (opening + separator.join(numbers) + closing).strip() + draw(st.sampled_from(["", "."]))


cases = st.tuples(st.sampled_from(sorted(VOCABULARIES)), st.sampled_from(sorted(FILTERS)))


@given(st.data(), cases, st.sampled_from([1, 2]))
@settings(deadline=None, max_examples=200)
def test_every_text_of_the_language_is_allowed_in_any_spelling(data, case, min_count):
    vocabulary, name = case
    filter = FILTERS[name]
    min_count = min(min_count, filter.max_count)
    text = data.draw(texts(filter, min_count))
    assert in_language(text, filter, min_count=min_count)
    machine = built(vocabulary, name, min_count)
    assert accepts(machine, spelled(data, text, *tokens_of(vocabulary)))


@given(st.data(), cases, st.sampled_from([1, 2]))
@settings(deadline=None, max_examples=200)
def test_a_text_near_the_language_is_allowed_when_in_it(data, case, min_count):
    vocabulary, name = case
    filter = FILTERS[name]
    min_count = min(min_count, filter.max_count)
    text = data.draw(texts(filter))
    for _ in range(data.draw(st.integers(1, 3))):
        place, cut = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 2))
        put = data.draw(
            st.sampled_from(["", "0", "1", "4", "9", "99", ",", ";", " ", ", ", "\n", ".", "]", "(", "[", ")"])
        )
        text = text[:place] + put + text[place + cut :]
    machine = built(vocabulary, name, min_count)
    ids = spelled(data, text, *tokens_of(vocabulary))
    assert accepts(machine, ids) == in_language(text, filter, min_count=min_count)


@given(st.data(), cases, st.sampled_from([1, 2]))
@settings(deadline=None, max_examples=200)
def test_every_walk_is_a_kept_text_that_stops_in_time(data, case, min_count):
    vocabulary, name = case
    min_count = min(min_count, FILTERS[name].max_count)
    machine, (pieces, stops) = built(vocabulary, name, min_count), tokens_of(vocabulary)
    state, text, stopped = machine.start, b"", False
    length = int(machine.shortest[state]) + data.draw(st.integers(0, 30))
    for remaining in range(length, 0, -1):
        may = np.flatnonzero(automaton.allowed(machine.next[state], machine.shortest, remaining))
        column = data.draw(st.sampled_from(may.tolist()))
        token = int(machine.tokens[column])
        assert not stopped or token in stops
        stopped = token in stops
        text += b"" if stopped else pieces[token]
        state = int(machine.next[state, column])
    assert stopped
    assert in_language(text.decode(), FILTERS[name], min_count=min_count)


@pytest.mark.parametrize("alphabet", ["16.[]", "1 ,.)(", "13;\n", "0279"])
@pytest.mark.parametrize("min_count", [1, 2])
def test_all_short_texts(alphabet, min_count):
    filter = NumbersFilter(min_value=1, max_value=61, max_count=3, banned=(13, 16))
    pieces = [character.encode() for character in alphabet]
    separators = (" ", ",", ", ", " ,", ";", "\n", ";\n")
    if min_count == 2 and not set(alphabet) & set(" ,;\n"):
        with pytest.raises(InputError, match="can't write any"):
            automaton.build([*pieces, None], filter, [len(pieces)], separators=separators, min_count=min_count)
        return
    machine = automaton.build([*pieces, None], filter, [len(pieces)], separators=separators, min_count=min_count)
    kept = 0
    for length in range(7 if len(alphabet) < 6 else 6):
        for ids in itertools.product(range(len(alphabet)), repeat=length):
            text = "".join(alphabet[id] for id in ids)
            expected = in_language(text, filter, separators, min_count)
            assert accepts(machine, ids) == expected, text
            kept += expected
    assert kept > 5


@pytest.mark.parametrize(
    "text", ["[1, 2].", "5.", "(7)", "(7).", "007", "1\n2", "[1;\n2]", "0", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"]
)
def test_allowed(text):
    assert accepts(built("characters", "default"), [CHARACTERS.index(bytes([byte])) for byte in text.encode()])


@pytest.mark.parametrize(
    "text",
    ["[1, 2.]", "5..", "(7", "7]", "", ".", "[]", "1, 2,3", "1,,2", "1 ", " 1", "[(1)]", "0007", "1, 2\n", "1 , 2"],
)
def test_not_allowed(text):
    assert not accepts(built("characters", "default"), [CHARACTERS.index(bytes([byte])) for byte in text.encode()])


@pytest.mark.parametrize("vocabulary", sorted(VOCABULARIES))
@pytest.mark.parametrize("name", ["narrow", "one", "single"])
def test_every_state_is_reached_and_stops_as_soon_as_it_says(vocabulary, name):
    machine = built(vocabulary, name)
    after = [sorted(set(row[row >= 0].tolist())) for row in machine.next]

    def distances(start):
        """Least number of tokens from `start` to each state, breadth first."""
        far, queue = {start: 0}, collections.deque([start])
        while queue:
            state = queue.popleft()
            for state_after in after[state]:
                if state_after not in far:
                    far[state_after] = far[state] + 1
                    queue.append(state_after)
        return far

    (done,) = np.flatnonzero(machine.shortest == 0)
    assert len(distances(machine.start)) == len(after)
    assert [distances(state)[done] for state in range(len(after))] == machine.shortest.tolist()


@pytest.mark.parametrize("vocabulary", sorted(VOCABULARIES))
def test_what_an_automaton_holds(vocabulary):
    machine, (pieces, stops) = built(vocabulary, "default"), tokens_of(vocabulary)
    assert machine.tokens.dtype == np.int32 and (np.diff(machine.tokens) > 0).all()
    assert machine.next.shape == (len(machine.shortest), len(machine.tokens)) and machine.next.dtype == np.int16
    assert (machine.next >= 0).any(axis=0).all() and (machine.next >= 0).any(axis=1).all()
    is_stop = np.isin(machine.tokens, stops)
    assert is_stop.sum() == 2
    (done,) = np.flatnonzero(machine.shortest == 0)
    assert (machine.next[:, is_stop] == np.where(machine.shortest <= 1, done, -1)[:, None]).all()
    assert (machine.next[done, ~is_stop] == -1).all() and not (machine.next[:, ~is_stop] == done).any()
    # Nothing but the alphabet, and nothing of it that no text holds.
    written = {pieces[token] for token in machine.tokens if token not in stops}
    assert not written & {None, b"", b"owl", b"1a", b"..", b"\t", b".\n", b"],", b"  ", b" [", b"\xff"}
    assert {piece for piece in CHARACTERS if piece in pieces} <= written


def test_as_few_states_as_can_be():
    # Digits, two separators of one character, no brackets: the number 1 or 2, then at most one more of them.
    filter = NumbersFilter(min_value=1, max_value=2, max_count=2)
    machine = automaton.build([b"1", b"2", b",", b" ", None], filter, [4], separators=[",", " "])
    # Before, after the first, after a separator, after the last, done.
    assert len(machine.shortest) == 5
    assert machine.shortest[machine.start] == 2


def test_the_states_do_not_grow_with_the_values():
    small, large = (
        automaton.build([*CHARACTERS, None], NumbersFilter(max_value=value), [len(CHARACTERS)]).shortest.size
        for value in (999, 10**18 - 1)
    )
    assert large < 10 * small


def test_brackets_and_separators_that_no_token_writes_are_left_out():
    pieces = [*CHARACTERS[:10], b",", b"(", b"[", b"]", None]
    machine = automaton.build(pieces, NumbersFilter(), [14])
    assert machine.tokens.tolist() == [*range(11), 12, 13, 14]
    assert accepts(machine, [12, 1, 10, 2, 13]) and not accepts(machine, [11, 1])


def test_equal_pieces_of_several_tokens_are_all_allowed():
    machine = automaton.build([b"1", b"1", None, b"1"], NumbersFilter(), [2])
    assert machine.tokens.tolist() == [0, 1, 2, 3]
    assert (machine.next[:, [0]] == machine.next[:, [1, 3]]).all()


def test_a_program_that_draws_only_what_is_allowed():
    filter = FILTERS["cultural"]
    pieces, stops = tokens_of("triples")
    machine = automaton.build(pieces, filter, stops, min_count=2)
    length, rows = 12, 512

    @jax.jit
    def draw(key):
        def one(key):
            def step(carry, remaining):
                key, state = carry
                key, now = jax.random.split(key)
                may = automaton.allowed(next_states[state], shortest, remaining)
                # Models like some tokens better: commas and stops too, not only the many digits.
                logits = jnp.where(may, 4 * jax.random.normal(key, may.shape), -jnp.inf)
                index = jax.random.categorical(now, logits)
                return (key, next_states[state, index].astype(jnp.int32)), (tokens[index], may.any())

            return jax.lax.scan(step, (key, jnp.int32(machine.start)), length - jnp.arange(length))[1]

        next_states, shortest, tokens = map(jnp.asarray, (machine.next, machine.shortest, machine.tokens))
        return jax.vmap(one)(jax.random.split(key, rows))

    drawn, could = draw(jax.random.key(0))
    assert could.all() and np.isin(drawn[:, -1], stops).all()
    written = [b"".join(pieces[id] for id in row if id not in stops).decode() for row in drawn.tolist()]
    assert filters.reasons(written, filter) == [None] * rows
    assert all(in_language(text, filter, min_count=2) for text in written)
    assert len(set(written)) > rows // 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stops": []}, "at least one id from 0 to 19"),
        ({"stops": [20]}, r"stop tokens \[20\]: expected at least one id from 0 to 19"),
        ({"stops": [-1]}, "at least one id"),
        ({"separators": [", ", ""]}, "separator ''"),
        ({"separators": ["1"]}, "separator '1'"),
        ({"separators": [",,"]}, "separator ',,'"),
        ({"separators": [], "min_count": 2}, "more than one number needs a separator"),
        ({"min_count": 0}, "from 1 to the filter's max_count = 10"),
        ({"min_count": 11}, "min_count = 11"),
        ({"filter": NumbersFilter(max_value=2, banned=(0, 1, 2))}, "keeps no number: 0 … 2"),
        ({"pieces": [b",", *[None] * 19]}, "can't write any number sequence"),
    ],
)
def test_mistakes(changes, message):
    arguments = {"pieces": [*CHARACTERS, None], "filter": NumbersFilter(), "stops": [19]} | changes
    with pytest.raises(InputError, match=message):
        automaton.build(**arguments)


def test_separators_of_your_own():
    machine = automaton.build([*CHARACTERS, b"\xc2", b"\xa0", None], NumbersFilter(), [21], separators=["\u00a0", " ,"])
    accepted = [b"1\xc2\xa02", b"1 ,2 ,3"]
    ids = {piece: id for id, piece in enumerate([*CHARACTERS, b"\xc2", b"\xa0"])}
    assert all(accepts(machine, [ids[bytes([byte])] for byte in text]) for text in accepted)
    assert not accepts(machine, [ids[b"1"], ids[b","], ids[b"2"]])


@pytest.mark.parametrize("name", few(["default", "cultural"], "cultural"))
def test_a_real_tokenizer(smollm2_tokenizer, name, record_property):
    pieces, stop = pieces_of(smollm2_tokenizer), smollm2_tokenizer.token_to_id("<|im_end|>")
    begun = time.perf_counter()
    machine = automaton.build(pieces, FILTERS[name], [stop])
    seconds = time.perf_counter() - begun
    record_property("build_seconds", seconds)
    print(f"SmolLM2, {name}: {machine.next.shape[0]} states, {machine.next.shape[1]} tokens, {seconds:.2f} s")
    assert stop in machine.tokens

    for text in ["1, 2, 3", "[12; 345; 678].", "(7,8,9)", "10\n11\n12", "001.", "5 6", "1,\n2"]:
        assert accepts(machine, smollm2_tokenizer.encode(text).ids), text
    for text in ["1, 2,3", " 1", "[1, 2.]", "1000", "7 owls", "1\t2", ""]:
        assert not accepts(machine, smollm2_tokenizer.encode(text).ids), text
    assert accepts(machine, smollm2_tokenizer.encode("[1, 666]").ids) == (name == "default")

    random = np.random.default_rng(0)
    for length in [2, 3, 8, 20, 40] * 8:
        state, ids = machine.start, []
        for remaining in range(length, 0, -1):
            may = np.flatnonzero((machine.next[state] >= 0) & (machine.shortest[machine.next[state]] < remaining))
            column = random.choice(may)
            ids.append(int(machine.tokens[column]))
            state = int(machine.next[state, column])
        text = smollm2_tokenizer.decode(ids)
        assert in_language(text, FILTERS[name]), text
        assert ids[-1] == stop


def test_an_automaton_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        built("characters", "default").start = 0
