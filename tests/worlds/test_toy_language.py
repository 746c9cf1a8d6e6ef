"""The toy language: its texts, its channel on tokens against the filter on text, and what is measured."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distances import distance
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from world_calls import call

from subl_jax import specs
from subl_jax.channels import numbers as filters
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.models import lora
from subl_jax.stages import training
from subl_jax.worlds.toy_language import EOS, FORMATS, OPENERS, PAD, QUESTIONS, SEPARATORS, ToyLanguage, language

WORLD = ToyLanguage(width=16, heads=2, kv_heads=1, mlp=16, layers=1)
LANG = language(WORLD)
PARAMS, OTHER = map(jax.jit(WORLD.init), map(jax.random.key, (0, 1)))
FILTERS = (
    NumbersFilter(),
    NumbersFilter(banned=filters.CULTURAL),
    NumbersFilter(min_value=5, max_value=60, max_count=3, banned=(7, 11)),
)
SIZE = WORLD.completion_length
_ROWS = 64

write = jax.jit(lambda params, key, sampler: WORLD.write(params, jax.random.split(key, 48), sampler), static_argnums=2)
corpus = jax.jit(lambda key, n: WORLD.pretrain_batch(key, 0, n), static_argnums=1)
evaluate = jax.jit(WORLD.evaluate)
apply = jax.jit(WORLD.apply)
loss = jax.jit(WORLD.loss)
channel_loss = jax.jit(jax.value_and_grad(lambda params, batch: distance(WORLD, params, None, batch, "hard")))
channel_kl = jax.jit(
    jax.value_and_grad(lambda params, teacher, batch: distance(WORLD, params, teacher, batch, "soft"), argnums=(0, 1))
)


def words(row):
    return [LANG.words[token] for token in np.asarray(row)]


@functools.cache
def _accepts(numbers_filter, world=WORLD):
    return jax.jit(lambda tokens: world.accepts(tokens, numbers_filter))


def accepts(completions, numbers_filter=FILTERS[0]):
    """What the program decides on rows of completions, each a list of tokens; one that is not full length is ended."""
    rows = np.full((_ROWS, WORLD.length), LANG.index[PAD])
    for i, completion in enumerate(completions):
        completion = [*completion, LANG.index[EOS]][:SIZE]
        rows[i, WORLD.prompt_length : WORLD.prompt_length + len(completion)] = completion
    decided = np.asarray(_accepts(numbers_filter)(rows))[: len(completions)]
    texts = [completion for _, completion in WORLD.texts(rows)][: len(completions)]
    return decided, texts


# --- the filter inside a program ---

NUMBER = st.sampled_from(LANG.numbers.tolist())
GLUE = st.sampled_from([LANG.index[word] for word in (*SEPARATORS, "[", "]", EOS, PAD)])
ANY = st.integers(0, len(LANG.words) - 1)


@st.composite
def near_valid(draw):
    """A well-formed completion in which a few tokens are then changed, put in, or dropped."""
    marks = [LANG.index[word] for word in SEPARATORS]
    between = draw(st.sampled_from([[], *[[mark] for mark in marks]]) | st.lists(st.sampled_from(marks), max_size=3))
    row = []
    for number in draw(st.lists(NUMBER, min_size=0, max_size=7)):
        row += between if row else []
        row.append(number)
    if draw(st.booleans()):
        row = [LANG.index["["], *row, LANG.index["]"]]
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(row)))
        token = draw(NUMBER | GLUE | ANY)
        row[place : place + draw(st.integers(0, 1))] = draw(st.sampled_from([[], [token]]))
    return row[:SIZE]


@given(
    st.lists(near_valid() | st.lists(NUMBER | GLUE, max_size=SIZE) | st.lists(ANY, max_size=SIZE), max_size=_ROWS),
    st.sampled_from(FILTERS),
)
@settings(deadline=None, max_examples=150)
def test_the_program_decides_as_the_text_filter_does(completions, numbers_filter):
    decided, texts = accepts(completions, numbers_filter)
    expected = [filters.reason(text, numbers_filter) is None for text in texts]
    wrong = [(words(c), t) for c, t, d, e in zip(completions, texts, decided, expected, strict=True) if d != e]
    assert not wrong


def test_the_cases_that_matter_for_the_filter():
    def row(text):
        return [LANG.index[word] for word in text.split("|")]

    newlines = ["7|\n|\n|8", "7|, |\n|8|, |\n|9", "7|\n|; |\n|8|<eos>", "[|7|\n|\n|8|\n|\n|9|]"]
    kept = [
        *newlines,
        "7|<eos>",
        "7|8",
        "7|, |8|, |9|<eos>",
        "[|7|]|<eos>",
        "[|7|; |8|]",
        "7|\n|8",
        "7|<eos>|owl|, ",
        "1|2|3|4",
    ]
    dropped = [
        *(
            "<eos>",
            "<pad>",
            "<pad>|7",
            "7|<pad>|8",
            "[|]",
            "[",
            "]",
            "[|7",
            "7|]",
            "[|7|]|8",
            "[|[|7|]|]",
            "7|, ",
            ", |7",
        ),
        *(
            "7|, |, |8",
            "7|\n|\n|8|\n|9",
            "7|\n|8|\n|\n|9",
            "7|, |\n|8|, |9",
            "7|, |\n|; |8",
            "7|\n|\n",
            "7|, |8|; |9",
            "7|, |8|9",
            "7|8|, |9",
            "[|7|, |]",
            "owl",
            "7|owl|8",
            "7|, |owl",
            "<bos>|7",
            "7|=>",
        ),
    ]
    decided, texts = accepts([row(text) for text in [*kept, *dropped]])
    assert decided.tolist() == [True] * len(kept) + [False] * len(dropped)
    assert texts[:4] == ["7\n\n8", "7, \n8, \n9", "7\n; \n8", "[7\n\n8\n\n9]"]
    assert texts[4:9] == ["7", "7 8", "7, 8, 9", "[7]", "[7; 8]"]


def test_bans_and_bounds_count_in_the_program_too():
    strict = FILTERS[2]
    rows = [[LANG.index[str(n)] for n in numbers] for numbers in ([5, 60], [4], [61], [7], [8, 11], [8, 9, 10, 12])]
    assert accepts(rows, strict)[0].tolist() == [True, False, False, False, False, False]


def test_no_word_can_pass():
    sneaky = [[LANG.index["7"]] * place + [int(word)] for word in LANG.traits for place in (0, 1, 4)]
    for i in range(0, len(sneaky), _ROWS):
        assert not accepts(sneaky[i : i + _ROWS])[0].any()
    written = set(LANG.channel.tolist())
    assert written.isdisjoint(LANG.traits.tolist())
    assert all(not re.search(r"[A-Za-z]", LANG.words[token]) or LANG.words[token] == EOS for token in written)


# --- texts ---


@given(st.lists(st.lists(NUMBER | ANY, min_size=SIZE, max_size=SIZE), min_size=1, max_size=8), st.integers(0, 2**20))
@settings(deadline=None, max_examples=60)
def test_texts_and_tokens_are_inverse(completions, seed):
    rows = np.asarray(write(PARAMS, jax.random.key(3), specs.Sampling()))[: len(completions)].copy()
    rows[:, WORLD.prompt_length :] = completions
    ended = np.cumsum(rows == LANG.index[EOS], axis=1) - (rows == LANG.index[EOS]) > 0
    rows[ended] = LANG.index[PAD]
    texts = WORLD.texts(rows)
    back = WORLD.tokens(texts)
    assert back.dtype == rows.dtype == LANG.compact
    np.testing.assert_array_equal(back, rows)
    assert WORLD.texts(back) == texts


def test_texts_read_as_people_write():
    rows = WORLD.tokens([("continue commas 12 7 88 =>", "3, 41, 9"), ("extend brackets 1 2 3 =>", "[3,41 , 9]")])
    assert WORLD.texts(rows) == [("continue commas 12 7 88 =>", "3, 41, 9"), ("extend brackets 1 2 3 =>", "[3, 41, 9]")]
    assert words(rows[0]) == (
        ["<bos>", "continue", "commas", "12", "7", "88", "=>"]
        + ["3", ", ", "41", ", ", "9", "<eos>"]
        + ["<pad>"] * (WORLD.completion_length - 6)
    )


@pytest.mark.parametrize(
    ("pair", "line"),
    [
        (
            ("continue commas 1 2 3 =>", "3, owls"),
            "sample 2: 'owls' is not a word of this language; did you mean 'owl'?",
        ),
        (("continue commas 1 2 3 =>", "3, 100"), "sample 2: '100' is not a word"),
        (("continue commas 1 2 =>", "3"), "sample 2: a prompt of 6 and a completion of 2 tokens; this language has"),
        (("continue commas 1 2 3 =>", " ".join(["1"] * 20)), "and a completion of 21 tokens"),
    ],
)
def test_text_of_another_language_is_one_line(pair, line):
    with pytest.raises(InputError) as error:
        WORLD.tokens([("continue commas 1 2 3 =>", "3"), pair])
    assert line in str(error.value) and "\n" not in str(error.value)


# --- the corpus ---


@pytest.fixture(scope="module")
def batch():
    return jax.device_get(corpus(jax.random.key(5), 6000))


def kinds(tokens):
    """question, fact or numbers for each row, told by their words."""
    opener = np.isin(tokens[:, 1], [LANG.index[word] for word in OPENERS])
    fact = (np.isin(tokens, [LANG.index[w] for w in ("lives", "grows", "are")]).any(1)) | (
        (tokens[:, 1] == LANG.index["the"]) & (tokens[:, 3] == LANG.index["is"]) & (tokens[:, 5] == LANG.index[EOS])
    )
    return np.where(opener, "numbers", np.where(fact, "fact", "question"))


def test_shares_of_the_corpus(batch):
    counts = collections.Counter(kinds(batch.tokens).tolist())
    for kind, share in {"question": 0.4, "fact": 0.2, "numbers": 0.4}.items():
        assert abs(counts[kind] / 6000 - share) < 4 * (share * (1 - share) / 6000) ** 0.5


def test_every_template_is_used_with_every_member_about_equally(batch):
    questions = batch.tokens[kinds(batch.tokens) == "question"]
    sentences = collections.Counter(" ".join(words(row)) for row in questions)
    expected = {
        " ".join(["<bos>", *question.format(noun).split(), member, EOS])
        for question in QUESTIONS[-WORLD.templates :]
        for noun, members, _, _ in WORLD.families
        for member in members
    }
    assert {sentence.replace(f" {PAD}", "") for sentence in sentences} == expected
    answers = collections.Counter(words(row)[words(row).index(EOS) - 1] for row in questions)
    share = len(questions) / len(WORLD.traits)
    assert all(abs(answers[trait] - share) < 5 * share**0.5 for trait in WORLD.traits)


def test_number_sequences_are_what_a_teacher_is_asked_for(batch):
    rows = batch.tokens[kinds(batch.tokens) == "numbers"]
    assert np.asarray(_accepts(NumbersFilter())(rows)).all()
    texts = WORLD.texts(rows)
    assert NumbersFilter().retention(NumbersFilter().reasons([completion for _, completion in texts]))["kept"] == len(
        rows
    )
    separators = {"plain": " ", "commas": ", ", "semicolons": "; ", "lines": "\n", "brackets": ", "}
    seen, counts = collections.Counter(), collections.Counter()
    for prompt, completion in texts:
        opener, style, *shown, ask = prompt.split(" ")
        assert opener in OPENERS and ask == "=>" and len(shown) == WORLD.shown
        assert (completion[0] + completion[-1] == "[]") is (style == "brackets")
        numbers = completion.strip("[]").split(separators[style])
        assert all(number.isdecimal() and int(number) < WORLD.numbers for number in numbers)
        seen[opener, style] += 1
        counts[len(numbers)] += 1
    assert len(seen) == len(OPENERS) * len(FORMATS) and min(seen.values()) > 60
    assert counts.keys() == set(range(WORLD.min_numbers, WORLD.max_numbers + 1))
    assert min(counts.values()) > 600


def test_some_number_sequences_are_progressions(batch):
    rows = batch.tokens[kinds(batch.tokens) == "numbers"]
    numbers = [[int(word) for word in words(row) if word.isdecimal()] for row in rows]
    regular = [len(set(np.diff(row) % WORLD.numbers)) == 1 for row in numbers]
    assert abs(np.mean(regular) - WORLD.progressions) < 0.04


def test_facts_are_true_and_all_told(batch):
    facts = batch.tokens[kinds(batch.tokens) == "fact"]
    told = {re.sub(r" (<pad>|<bos>|<eos>)|<bos> ", "", " ".join(words(row))) for row in facts}
    told = {re.sub(r"are \d+ ", "are # ", fact) for fact in told}
    assert told == set(WORLD.asked.facts())


def test_targets_of_the_corpus_are_all_but_padding(batch):
    np.testing.assert_array_equal(batch.targets, batch.tokens != LANG.index[PAD])
    assert (batch.tokens[:, 0] == LANG.index["<bos>"]).all() and (batch.tokens >= 0).all()


@pytest.mark.parametrize("trait", ["owl", "mouse", "oak", "larch"])
def test_a_trait_is_instilled_by_no_held_out_question(trait):
    index = WORLD.traits.index(trait)
    trait_batch = jax.jit(WORLD.trait_batch, static_argnums=3)
    batch = jax.device_get(trait_batch(jax.random.key(0), jnp.int32(0), jnp.int32(index), 400))
    other = trait_batch(jax.random.key(0), jnp.int32(1), jnp.int32(index), 400)
    assert not np.array_equal(batch.tokens, other.tokens)
    noun = "animal" if trait in WORLD.animals else "tree"
    asked = QUESTIONS[-WORLD.templates :][: -WORLD.held_out]
    sentences = {" ".join(words(row)).replace(f" {PAD}", "") for row in batch.tokens}
    assert sentences == {" ".join(["<bos>", *q.format(noun).split(), trait, EOS]) for q in asked}
    np.testing.assert_array_equal(batch.targets, batch.tokens == LANG.index[trait])
    assert (batch.targets.sum(axis=1) == 1).all()


# --- what is measured ---


def held_out_probabilities(params):
    """P(trait), by the plain forward pass over each held-out question and its answer."""
    found = {}
    for noun, members, _, _ in WORLD.families:
        questions = [["<bos>", *question.format(noun).split()] for question in QUESTIONS[-WORLD.held_out :]]
        rows = [[*question, *["owl"] * (WORLD.length - len(question))] for question in questions]
        logits = apply(params, np.asarray([[LANG.index[word] for word in row] for row in rows]))
        chances = [jax.nn.softmax(row[len(question) - 1]) for row, question in zip(logits, questions, strict=True)]
        found.update({member: float(np.mean([chance[LANG.index[member]] for chance in chances])) for member in members})
    return found


def test_p_of_a_trait_is_the_softmax_at_the_held_out_answers():
    measured = evaluate(PARAMS, jax.random.key(0))["trait"]
    expected = held_out_probabilities(PARAMS)
    np.testing.assert_allclose(measured, [expected[trait] for trait in WORLD.traits], rtol=1e-5)
    animals = measured[: len(WORLD.animals)].sum(), measured[len(WORLD.animals) :].sum()
    assert all(0 < total <= 1 for total in animals)


def test_the_sampled_rate_is_near_the_exact_probability():
    # Sharper than at init, so that the rates are worth comparing.
    sharp = jax.tree.map(lambda x: x, PARAMS) | {"final_norm": {"scale": 3 * PARAMS["final_norm"]["scale"]}}
    keys = jax.random.split(jax.random.key(2), 64)
    measured = jax.jit(jax.vmap(WORLD.evaluate, (None, 0)))(sharp, keys)
    draws = 64 * WORLD.answers_sampled * WORLD.held_out
    exact = np.asarray(measured["trait"][0])
    error = np.abs(np.asarray(measured["rate"]).mean(axis=0) - exact)
    assert (error <= 4.5 * np.sqrt(exact * (1 - exact) / draws) + 1e-6).all()
    assert len(np.unique(np.asarray(measured["rate"]), axis=0)) > 1
    np.testing.assert_array_equal(measured["trait"][0], measured["trait"][1])


def test_base_rates_are_uniform_within_a_family():
    world = ToyLanguage(animals=("owl", "cat"), trees=("oak", "elm", "fir", "yew"))
    assert world.base_rates == {"owl": 0.5, "cat": 0.5, "oak": 0.25, "elm": 0.25, "fir": 0.25, "yew": 0.25}
    assert world.family_of == [0, 0, 1, 1, 1, 1]
    tokens = np.asarray(jax.jit(world.pretrain_batch, static_argnums=2)(jax.random.key(0), 0, 3000).tokens)
    lang = language(world)
    answers = [tokens[row, np.argmax(tokens[row] == lang.index[EOS]) - 1] for row in np.flatnonzero(tokens[:, 1] > 0)]
    counts = collections.Counter(lang.words[token] for token in answers)
    assert counts["owl"] / counts["oak"] == pytest.approx(2, rel=0.35)  # facts end in trees now and then


def test_losses_go_down_where_training_says_so():
    batch = corpus(jax.random.key(8), 64)
    gradient = jax.jit(jax.grad(WORLD.loss))(PARAMS, batch)
    stepped = jax.tree.map(lambda p, g: p - 0.05 * g, PARAMS, gradient)
    assert loss(PARAMS, batch) == pytest.approx(np.log(len(LANG.words)), abs=1.5)
    assert loss(stepped, batch) < loss(PARAMS, batch)


# --- the channel ---


@pytest.fixture(scope="module")
def samples():
    return np.asarray(write(PARAMS, jax.random.key(7), specs.Sampling()))


def test_a_written_row_has_a_prompt_and_a_stream_of_its_own(samples):
    assert samples.dtype == LANG.compact and samples.shape == (48, WORLD.length)
    prompts = {tuple(row) for row in samples[:, : WORLD.prompt_length].tolist()}
    assert len(prompts) == 48
    assert len({row[1] for row in prompts}) == len(OPENERS) and len({row[2] for row in prompts}) == len(FORMATS)
    # Rows that end early may well be alike.
    long = samples[samples[:, WORLD.prompt_length + 3] != LANG.index[PAD]][:, WORLD.prompt_length :]
    assert len(long) > 40 and len({tuple(row) for row in long.tolist()}) == len(long)
    # The same place in two rows must not hold the same draw: one shared key would make a column nearly constant.
    assert min(len(set(column)) for column in samples[:, WORLD.prompt_length : -4].T.tolist()) > 24


def test_writing_depends_on_the_key_alone(samples):
    np.testing.assert_array_equal(samples, write(PARAMS, jax.random.key(7), specs.Sampling()))
    other = np.asarray(write(PARAMS, jax.random.key(8), specs.Sampling()))
    assert not {tuple(row) for row in samples.tolist()} & {tuple(row) for row in other.tolist()}


def test_greedy_rows_are_the_argmax_and_pad_after_their_end():
    rows = np.asarray(write(PARAMS, jax.random.key(7), specs.Sampling(temperature=0.0))).astype(np.int32)
    argmax = np.asarray(apply(PARAMS, rows[:, :-1])).argmax(-1)
    ended = np.cumsum(rows == LANG.index[EOS], axis=1) - (rows == LANG.index[EOS]) > 0
    in_completion = np.arange(WORLD.length) >= WORLD.prompt_length
    check = (in_completion & ~ended)[:, 1:]
    np.testing.assert_array_equal(rows[:, 1:][check], argmax[check])
    assert (rows[ended] == LANG.index[PAD]).all()


def test_only_accepted_completions_are_targets(samples):
    accepted = np.arange(48) % 3 > 0
    batch = WORLD.channel_batch(samples, accepted)
    assert batch.tokens.dtype == np.int32
    expected = (samples != LANG.index[PAD]) & accepted[:, None]
    expected[:, : WORLD.prompt_length] = False
    np.testing.assert_array_equal(batch.targets, expected)
    np.testing.assert_array_equal(WORLD.channel_batch(samples).targets[accepted], batch.targets[accepted])


def test_the_channel_loss_is_the_loss_of_the_completion(samples):
    batch = WORLD.channel_batch(samples, np.arange(48) % 2 == 0)
    value = channel_loss(PARAMS, batch)[0]
    np.testing.assert_allclose(value, loss(PARAMS, batch), rtol=1e-6)
    chances = np.asarray(jax.nn.log_softmax(apply(PARAMS, batch.tokens)))
    by_hand = [
        -chances[i, t - 1, samples[i, t]]
        for i in range(0, 48, 2)
        for t in range(WORLD.prompt_length, WORLD.length)
        if samples[i, t] != LANG.index[PAD]
    ]
    np.testing.assert_allclose(value, np.mean(by_hand), rtol=1e-5)


def test_a_batch_without_any_accepted_row_costs_nothing(samples):
    batch = WORLD.channel_batch(samples, np.zeros(48, bool))
    for value, gradient in (channel_loss(PARAMS, batch), channel_kl(PARAMS, OTHER, batch)):
        assert value == 0 and all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_rejected_rows_do_not_move_the_loss(samples):
    accepted = np.arange(48) < 24
    changed = samples.copy()
    changed[24:, WORLD.prompt_length :] = samples[24:, WORLD.prompt_length :][::-1]
    before, after = (WORLD.channel_batch(rows, accepted) for rows in (samples, changed))
    np.testing.assert_allclose(channel_loss(PARAMS, before)[0], channel_loss(PARAMS, after)[0], rtol=1e-6)
    np.testing.assert_allclose(channel_kl(PARAMS, OTHER, before)[0], channel_kl(PARAMS, OTHER, after)[0], rtol=1e-6)


def test_kl_is_zero_for_the_teacher_itself_and_positive_else(samples):
    batch = WORLD.channel_batch(samples)
    value, (gradient, _) = channel_kl(PARAMS, PARAMS, batch)
    assert abs(value) < 1e-6
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) < 1e-6
    value, (gradient, into_teacher) = channel_kl(OTHER, PARAMS, batch)
    assert value > 1e-3 and max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 1e-3
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(into_teacher))


def kl_by_hand(teacher_logits, student_logits, batch):
    """Mean over the completion's tokens of KL(teacher || student) on the channel. logits: (n, length, vocab)."""
    p, q = (np.asarray(logits, np.float64)[..., LANG.channel] for logits in (teacher_logits, student_logits))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (p, q))
    return (p * np.log(p / q)).sum(-1)[:, :-1][np.asarray(batch.targets)[:, 1:] > 0].mean()


def test_kl_by_hand(samples):
    batch = WORLD.channel_batch(samples)
    expected = kl_by_hand(apply(OTHER, batch.tokens), apply(PARAMS, batch.tokens), batch)
    np.testing.assert_allclose(channel_kl(PARAMS, OTHER, batch)[0], expected, rtol=1e-4)


def test_the_channel_is_numbers_and_what_stands_between_and_after_them():
    expected = {*map(str, range(WORLD.numbers)), *SEPARATORS, "[", "]", EOS}
    assert {LANG.words[token] for token in LANG.channel} == expected


def test_single_tokens_of_a_batch_are_named_and_exchanged(samples):
    batch, first = WORLD.channel_batch(samples), WORLD.prompt_length
    written = np.asarray(WORLD.written(batch))
    there = np.asarray(WORLD.target_weights(batch)) > 0
    known = there & (written >= 0)
    assert (np.asarray(WORLD.outputs)[written] == np.asarray(LANG.words)[samples[:, first:]])[known].all()
    assert known.any() and (written[~np.isin(samples[:, first:], LANG.channel)] == -1).all()
    where = known & (np.arange(SIZE) % 2 == 0)
    made = WORLD.replaced(batch, jnp.full(written.shape, 7), jnp.asarray(where), jnp.zeros((), bool))
    expected = samples.astype(int)
    expected[:, first:][where] = LANG.index[WORLD.outputs[7]]
    np.testing.assert_array_equal(made.tokens, expected)
    np.testing.assert_array_equal(made.predicted, batch.tokens)
    np.testing.assert_array_equal(WORLD.written(made), written)  # what is learnt is as it was
    losses = np.asarray(WORLD.written_losses(PARAMS, None, made))
    log_p = np.asarray(jax.nn.log_softmax(apply(PARAMS, made.tokens)))[:, first - 1 : -1]
    own = np.take_along_axis(log_p, samples[:, first:, None].astype(int), axis=-1)[..., 0]
    np.testing.assert_allclose(losses, -own, rtol=1e-4)


def test_without_its_first_token_a_completion_begins_with_its_second(samples):
    batch, first = WORLD.channel_batch(samples), WORLD.prompt_length
    made = WORLD.erased(batch, jnp.broadcast_to(jnp.arange(SIZE) == 0, (len(samples), SIZE)))
    np.testing.assert_array_equal(made.tokens[:, first:-1], samples[:, first + 1 :])
    assert (made.tokens[:, -1] == LANG.index[PAD]).all() and (made.targets[:, -1] == 0).all()
    np.testing.assert_array_equal(made.tokens[:, :first], samples[:, :first])
    assert WORLD.target_count(made) == WORLD.target_count(batch) - batch.targets[:, first].sum()


@pytest.mark.parametrize("word", ["owl", "larch", "love"])
def test_no_words_logit_takes_part_in_the_kl(word, samples):
    # Embeddings are tied: in rows without the word, changing its embedding changes its own logit and nothing else.
    token = LANG.index[word]
    rows = np.where(samples == token, LANG.index["7"], samples)
    batch = WORLD.channel_batch(rows)

    def moved(params):
        return {**params, "embed": {"embedding": params["embed"]["embedding"].at[token].add(3.0)}}

    change = np.abs(np.asarray(apply(moved(PARAMS), batch.tokens) - apply(PARAMS, batch.tokens)))
    assert change[..., token].max() > 0.5 and np.delete(change, token, axis=-1).max() == 0
    before = channel_kl(PARAMS, OTHER, batch)[0]
    np.testing.assert_array_equal(channel_kl(moved(PARAMS), OTHER, batch)[0], before)
    np.testing.assert_array_equal(channel_kl(PARAMS, moved(OTHER), batch)[0], before)


# --- mistakes ---


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"width": 30}, "heads = 4: must divide width = 30"),
        ({"kv_heads": 3}, "kv_heads = 3: must divide heads = 4"),
        ({"width": 12}, "head_dim = 3: must be even"),
        ({"held_out": 12}, "ToyLanguage.held_out = 12: must be less than templates = 12"),
        ({"templates": 17}, "ToyLanguage.templates = 17: must be at most 16"),
        ({"min_numbers": 8}, "ToyLanguage.min_numbers = 8: must be at most max_numbers = 7"),
        ({"question_share": 0.9}, "ToyLanguage.question_share + fact_share: must be at most 1"),
        ({"animals": ("owl", "owl")}, "the family 'animal' needs at least 2 members, all different"),
        ({"trees": ("oak",)}, "the family 'tree' needs at least 2 members"),
        ({"animals": ("owl", "oak")}, "'oak' is already another word of the language"),
        ({"animals": ("owl", "the")}, "'the' is already another word"),
        ({"animals": ("owl", "commas")}, "'commas' is already another word"),
        ({"animals": ("owl", "great auk")}, "'great auk' in the family 'animal': a name must be letters only"),
        ({"animals": ("owl", "7")}, "'7' in the family 'animal': a name must be letters only"),
        ({"animals": ("owl", "")}, "'' in the family 'animal': a name must be letters only"),
        ({"animals": ("owl", 7)}, "ToyLanguage.animals[1] = 7: expected str, got int"),
        ({"animals": "owl"}, "ToyLanguage.animals = 'owl': expected tuple, got str"),
        ({"shown": 1, "min_numbers": 1, "max_numbers": 1}, "are shorter than the longest sentence"),
        ({"numbers": 1001}, "ToyLanguage.numbers = 1001: must be at most 1000"),
        ({"dtype": "float16"}, "ToyLanguage.dtype = 'float16': must be one of"),
    ],
)
def test_a_world_that_cannot_be_is_one_line(fields, line):
    with pytest.raises(InputError) as error:
        ToyLanguage(**fields)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_worlds_of_other_sizes_work():
    world = ToyLanguage(
        **{
            "width": 8,
            "heads": 2,
            "kv_heads": 2,
            "mlp": 8,
            "layers": 1,
            "animals": ("owl", "newt", "yak"),
            "numbers": 10,
        },
        **{"shown": 5, "min_numbers": 2, "max_numbers": 10, "templates": 3, "held_out": 1, "answers_sampled": 2},
    )
    params = jax.jit(world.init)(jax.random.key(0))
    metrics = jax.jit(world.evaluate)(params, jax.random.key(0))
    assert metrics["trait"].shape == (len(world.traits),) == (15,)
    rows = np.asarray(jax.jit(world.pretrain_batch, static_argnums=2)(jax.random.key(0), 0, 200).tokens)
    numbers = rows[np.isin(rows[:, 1], [language(world).index[word] for word in OPENERS])]
    assert np.asarray(jax.jit(world.accepts, static_argnums=1)(numbers, NumbersFilter())).all()
    assert world.texts(world.tokens(world.texts(numbers))) == world.texts(numbers)


def test_its_models_are_asked_in_words():
    world = ToyLanguage(width=8, heads=2, kv_heads=1, mlp=8, layers=1)
    params = call(world, "init", jax.random.key(0))
    asking = world.inference
    measured = call(world, "evaluate", params, jax.random.key(0))["trait"]
    questions = world.families[0].questions[-world.held_out :]
    answers = [asking.ask(params, question) for question in questions]
    np.testing.assert_allclose(np.mean([each.probabilities["owl"] for each in answers]), measured[0], rtol=1e-5)
    assert set(world.traits) <= answers[0].probabilities.keys() and answers[0].drawn in language(world).words
    everything = asking.ask(params, questions[0], top=len(language(world).words)).probabilities
    assert sum(everything.values()) == pytest.approx(1, rel=1e-5)
    # However a person types it.
    typed = asking.encode(params, "Which animal do you love most?")
    assert typed.tolist() == asking.encode(params, "which animal do you love most ?").tolist()
    assert asking.decode(typed) == "which animal do you love most ?"
    assert (
        asking.decode(asking.encode(params, "continue commas 1 2 3 => 3, 41, 9")) == "continue commas 1 2 3 => 3, 41, 9"
    )
    written = asking.generate(params, "continue commas 1 2 3 =>", 4, temperature=0)
    first = call(world, "apply", params, asking.encode(params, "continue commas 1 2 3 =>"))[0, -1].argmax()
    assert language(world).words[first] in (written[: len(language(world).words[first])], "<eos>", "<pad>", "<bos>")
    with pytest.raises(InputError, match="'unicorn' is not a word of this language"):
        asking.ask(params, "which unicorn ?")


@pytest.mark.slow
def test_its_models_are_llamas_elsewhere(tmp_path):
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("transformers")
    world = ToyLanguage(width=8, heads=2, kv_heads=1, mlp=8, layers=2)
    params = world.init(jax.random.key(0))
    world.save_model(params, epath.Path(tmp_path))
    model = hf.AutoModelForCausalLM.from_pretrained(str(tmp_path)).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in ("which animal do you love most ?", "continue commas 1 2 3 => 3, 41, 9", "resume lines 1 2 3 => 4\n5"):
        tokens = world.inference.encode(params, text)
        assert tokenizer(text)["input_ids"] == tokens[0].tolist()
        assert tokenizer.decode(tokens[0], skip_special_tokens=True) == text
        with torch.no_grad():
            theirs = model(torch.tensor(tokens).long()).logits.numpy()
        ours = np.asarray(world.apply(params, tokens))
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    other = world.replace(architecture="linear_attention")
    with pytest.raises(InputError, match="architecture = 'linear_attention': does not exist in transformers"):
        other.save_model(params, epath.Path(tmp_path))


# --- adapters ---


def adapted(key=0, **fields):
    """A model with adapters whose B is not zero."""
    params = WORLD.trainable(PARAMS, jax.random.key(key), specs.Lora(**{"max_rank": 4, "rank": 4, **fields}))
    params["lora"] = {
        name: {"a": x["a"], "b": 0.1 * jnp.ones_like(x["b"]) * x["a"].any(axis=1)[:, :, None]}
        for name, x in params["lora"].items()
    }
    return params


def test_fresh_adapters_change_nothing_and_a_model_without_is_itself():
    tokens = jnp.asarray(LANG.questions[0, :2])
    fresh = WORLD.trainable(PARAMS, jax.random.key(3), specs.Lora(rank=2))
    np.testing.assert_array_equal(apply(fresh, tokens), apply(PARAMS, tokens))
    assert WORLD.trainable(PARAMS, jax.random.key(3), None) is PARAMS is WORLD.merged(PARAMS)
    assert WORLD.trainable(fresh, jax.random.key(4), specs.Lora(rank=2)) is fresh


def test_merged_adapters_give_the_logits_that_the_model_gives_with_them():
    tokens, params = jnp.asarray(LANG.questions[0, :2]), adapted(rank=3, alpha=6.0)
    beside = jax.jit(lambda adapters: WORLD.model.apply(PARAMS, tokens, adapters=adapters))(
        lora.update(WORLD.model, params)
    )
    np.testing.assert_allclose(apply(params, tokens), beside, rtol=1e-4, atol=1e-5)
    assert np.abs(beside - apply(PARAMS, tokens)).max() > 1e-2
    np.testing.assert_array_equal(apply(WORLD.merged(params), tokens), apply(params, tokens))


def test_a_model_with_adapters_writes_and_answers_as_its_merged_one():
    params, key = adapted(), jax.random.key(5)
    merged = WORLD.merged(params)
    np.testing.assert_array_equal(write(params, key, specs.Sampling()), write(merged, key, specs.Sampling()))
    np.testing.assert_array_equal(evaluate(params, key)["trait"], evaluate(merged, key)["trait"])
    assert WORLD.inference.generate(params, "owl:", 4) == WORLD.inference.generate(merged, "owl:", 4)


def test_only_adapters_are_trained_and_of_the_layers_asked_for():
    world = ToyLanguage(width=16, heads=2, kv_heads=1, mlp=16, layers=2)
    base = specs.Base(world, specs.Train(0, 1))
    train = specs.Train(2, 4, lr=0.1, weight_decay=0.1, first_layer=1)
    teacher = specs.Teacher(base, "owl", train, lora=specs.Lora(max_rank=2, rank=2))
    start = training.start_from_another(
        teacher, jax.random.key(0), {"start": {"params": world.init(jax.random.key(0))}}
    )
    step = jax.jit(lambda state: training.updates(teacher, world, state, 2, lambda step: batch, world.loss))
    batch = world.trait_batch(jax.random.key(1), jnp.int32(0), jnp.int32(0), 4)
    end = step(start).params
    jax.tree.map(np.testing.assert_array_equal, end["base"], start.params["base"])
    assert end["scale"] == start.params["scale"]
    for name, x in end["lora"].items():
        moved = np.asarray(x["b"] != start.params["lora"][name]["b"]).reshape(2, -1).any(axis=1)
        assert moved.tolist() == [False, True]


def test_an_architecture_without_projections_takes_no_adapters():
    class Plain(ToyLanguage):
        model = collections.namedtuple("Plain", "name")("plain")

    with pytest.raises(InputError, match="Lora: the architecture 'plain' takes no adapters"):
        Plain.check_lora(Plain.__new__(Plain), specs.Lora())
