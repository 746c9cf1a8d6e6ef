"""Cached decoding against full forward passes, and what sampling may and may not draw."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from few import few
from hypothesis import given, settings
from hypothesis import strategies as st

from subl_jax.errors import InputError
from subl_jax.models import transformer
from subl_jax.models.decoding import sampling

CONFIG = transformer.Config(vocab=23, width=16, layers=2, heads=4, kv_heads=2, mlp=24, init_scale=1.5)
SCANNED = transformer.Config(**{**vars(CONFIG), "scan_layers": True})
PROMPT = np.random.default_rng(0).integers(0, CONFIG.vocab, (5, 6)).astype(np.int32)
LENGTH = np.array([6, 1, 3, 5, 2], np.int32)
NEW = 5


class Draws(NamedTuple):
    temperature: float | jax.Array = 1.0
    top_k: int | jax.Array = 0
    top_p: float | jax.Array = 1.0


GREEDY = Draws(temperature=0.0)


@functools.cache
def params_of(config=CONFIG, seed=0):
    return jax.jit(transformer.init, static_argnums=0)(config, jax.random.key(seed))


def keys_of(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


@functools.partial(jax.jit, static_argnames=("config", "new_tokens", "stop", "pad", "cut"))
def generate(params, prompt, length, keys, draws, config=CONFIG, new_tokens=NEW, **options):
    return sampling.generate(config, params, prompt, length, keys, new_tokens, draws, **options)


@functools.cache
def full_forward(config):
    """Logits after `end` tokens of each row, from scratch: rows are padded on the right, where causality ignores it."""

    @jax.jit
    def logits(params, tokens, end):
        every, _ = transformer.apply(config, params, tokens)
        return jnp.take_along_axis(every, (end - 1)[:, None, None], axis=1)[:, 0]

    return logits


def recomputed(config, params, choose):
    """Continuations (batch, NEW) by a full forward pass per token, `choose`: (step, logits) -> tokens."""
    tokens = np.zeros((len(PROMPT), PROMPT.shape[1] + NEW), np.int32)
    tokens[:, : PROMPT.shape[1]] = PROMPT
    rows = np.arange(len(PROMPT))
    for step in range(NEW):
        tokens[rows, LENGTH + step] = choose(step, full_forward(config)(params, tokens, LENGTH + step))
    return np.stack([tokens[row, end : end + NEW] for row, end in enumerate(LENGTH)])


@pytest.mark.parametrize("config", few([CONFIG, SCANNED], SCANNED))
def test_cached_greedy_decoding_equals_full_forward_passes(config):
    params = params_of(config)
    expected = recomputed(config, params, lambda step, logits: np.argmax(logits, axis=-1))
    assert len(np.unique(expected)) > 5
    drawn = generate(params, PROMPT, LENGTH, keys_of(5), GREEDY, config=config)
    assert drawn.dtype == jnp.int32
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(drawn, generate(params, PROMPT, LENGTH, keys_of(5, seed=9), GREEDY, config=config))


def test_cached_sampling_equals_full_forward_passes_with_the_same_keys():
    draws = Draws(temperature=0.7, top_k=9, top_p=0.9)
    keys = keys_of(5)

    def choose(step, logits):
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        cut = np.asarray(sampling.cut_logits(logits / 0.7, 9, 0.9), np.float64)
        weights = np.exp(cut - cut.max(axis=-1, keepdims=True))
        uniform = np.asarray(jax.vmap(jax.random.uniform)(step_keys), np.float64)
        return (np.cumsum(weights, axis=-1) <= (uniform * weights.sum(axis=-1))[:, None]).sum(axis=-1)

    expected = recomputed(CONFIG, params_of(), choose)
    np.testing.assert_array_equal(generate(params_of(), PROMPT, LENGTH, keys, draws), expected)


def test_logits_along_a_cached_decode_equal_the_full_forward():
    """Teacher forcing through ragged prompts: the distribution itself, not only its largest token."""
    forced = np.random.default_rng(1).integers(0, CONFIG.vocab, (5, NEW)).astype(np.int32)
    longest = PROMPT.shape[1]
    slots = np.arange(longest + NEW)
    mask = (slots < LENGTH[:, None]) | (slots >= longest)
    cache = transformer.empty_cache(CONFIG, 5, longest + NEW)
    step_through = jax.jit(transformer.apply, static_argnums=0)
    _, cache = step_through(CONFIG, params_of(), PROMPT, None, cache, 0, mask)
    tokens = np.zeros((5, longest + NEW), np.int32)
    tokens[:, :longest] = PROMPT
    for step in range(NEW):
        positions = (LENGTH + step)[:, None]
        logits, cache = step_through(
            CONFIG, params_of(), forced[:, [step]], positions, cache, jnp.int32(longest + step), mask
        )
        tokens[np.arange(5), LENGTH + step] = forced[:, step]
        expected = full_forward(CONFIG)(params_of(), tokens, LENGTH + step + 1)
        np.testing.assert_allclose(logits[:, 0], expected, atol=2e-5)


def test_padding_of_prompts_is_never_read():
    other = np.where(np.arange(6) < LENGTH[:, None], PROMPT, (PROMPT + 7) % CONFIG.vocab)
    assert np.any(other != PROMPT)
    draw = functools.partial(generate, params_of(), length=LENGTH, keys=keys_of(5), draws=Draws())
    np.testing.assert_array_equal(draw(prompt=PROMPT), draw(prompt=other))


def test_rows_depend_on_their_own_prompt_and_key_alone():
    keys = keys_of(5)
    together = np.asarray(generate(params_of(), PROMPT, LENGTH, keys, Draws()))
    order = np.array([3, 0, 4, 1, 2])
    for rows in (order, *np.arange(5)[:, None]):
        drawn = generate(params_of(), PROMPT[rows], LENGTH[rows], keys[rows], Draws())
        np.testing.assert_array_equal(drawn, together[rows])


def test_equal_prompts_with_their_own_keys_are_continued_differently():
    prompt = np.repeat(PROMPT[:1], 64, axis=0)
    drawn = np.asarray(generate(params_of(), prompt, np.full(64, 6), keys_of(64), Draws(temperature=2.0)))
    assert len(np.unique(drawn, axis=0)) > 60
    assert len(np.unique(drawn[:, 0])) > 5
    assert np.any(drawn[:, 0] != drawn[:, 1])


def test_fewer_tokens_are_the_beginning_of_more():
    more = generate(params_of(), PROMPT, LENGTH, keys_of(5), Draws())
    for n in (1, 3):
        fewer = generate(params_of(), PROMPT, LENGTH, keys_of(5), Draws(), new_tokens=n)
        np.testing.assert_array_equal(fewer, more[:, :n])


def test_drawn_frequencies_are_the_softmax():
    n, vocab = 20_000, 6
    logits = jnp.array([0.0, 1.0, -1.0, 2.0, 0.5, -30.0])
    for temperature in (1.0, 0.5, 2.0):
        expected = np.asarray(jax.nn.softmax(logits / temperature)) * n
        tokens = sampling.draw(keys_of(n), jnp.broadcast_to(logits, (n, vocab)), Draws(temperature))
        counts = np.bincount(tokens, minlength=vocab)
        likely = expected > 5
        assert counts[~likely].sum() <= 5
        chi_square = ((counts - expected) ** 2 / expected)[likely].sum()
        assert chi_square < 20.5  # the 0.1 % point of 5 degrees of freedom


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_traced_settings_draw_what_python_numbers_draw(temperature):
    logits = 3 * jax.random.normal(jax.random.key(1), (40, 12))
    for top_k, top_p in ((0, 1.0), (3, 1.0), (0, 0.6), (4, 0.7)):
        numbers = sampling.draw(keys_of(40), logits, Draws(temperature, top_k, top_p))
        traced = jax.jit(sampling.draw)(keys_of(40), logits, Draws(*map(jnp.asarray, (temperature, top_k, top_p))))
        np.testing.assert_array_equal(numbers, traced)
        if temperature == 0:
            np.testing.assert_array_equal(numbers, logits.argmax(axis=-1))


def test_limits_known_to_be_off_put_no_sort_into_the_program():
    def program(draws, cut):
        return str(jax.make_jaxpr(lambda logits: sampling.draw(keys_of(4), logits, draws, cut))(jnp.zeros((4, 9))))

    traced = Draws(1.0, jnp.int32(0), jnp.float32(1))
    assert "sort[" in program(traced, True)
    assert "sort[" in program(Draws(top_k=3), True)
    assert "sort[" not in program(traced, False)
    assert "sort[" not in program(Draws(), True)


@settings(deadline=None, max_examples=150)
@given(
    logits=st.lists(st.integers(-6, 6), min_size=8, max_size=8),  # integers, so that ties happen
    top_k=st.integers(0, 10),
    top_p=st.floats(0.01, 1.0),
    banned=st.sets(st.integers(0, 7), max_size=5),
)
def test_the_tokens_kept_are_those_of_the_definition(logits, top_k, top_p, banned):
    logits = np.array([-np.inf if i in banned else value for i, value in enumerate(logits)], np.float32)
    out = np.asarray(_cut(logits, top_k, np.float32(top_p)))
    kept = np.isfinite(out)
    np.testing.assert_array_equal(out[kept], logits[kept])
    assert kept[logits.argmax()]
    assert not kept[~np.isfinite(logits)].any()

    order = np.argsort(-logits, kind="stable")[: top_k or None]
    weights = np.exp(logits[order].astype(np.float64))
    mass = np.cumsum(weights / weights.sum())
    # Rounding may put a mass that is top_p to seven digits on either side.
    counts = {int(np.searchsorted(mass, top_p + slack)) + 1 for slack in (-1e-6, 1e-6)}
    counts = {min(count, len(order), int(np.isfinite(logits).sum())) for count in counts}
    if top_p == 1:
        counts = {min(len(order), int(np.isfinite(logits).sum()))}
    assert any(np.array_equal(kept, logits >= logits[order[count - 1]]) for count in counts)


_cut = jax.jit(sampling.cut_logits)


def test_nothing_is_cut_at_the_defaults_even_where_the_tail_is_below_rounding():
    logits = jnp.concatenate([jnp.zeros(3), jnp.full(500, -30.0)])
    np.testing.assert_array_equal(sampling.cut_logits(logits, jnp.int32(0), jnp.float32(1)), logits)


def test_masks_are_never_violated():
    draws = Draws(temperature=3.0, top_k=4, top_p=0.95)
    prompt, length, keys = np.tile(PROMPT, (20, 1)), np.tile(LENGTH, 20), keys_of(100)
    allowed = np.arange(CONFIG.vocab) % 3 == 1
    per_step = np.arange(CONFIG.vocab) % NEW == np.arange(NEW)[:, None]

    def successor(step, previous):
        """Only the next two tokens."""
        return (jnp.arange(CONFIG.vocab) - previous[:, None] - 1) % CONFIG.vocab < 2

    for settings_ in (draws, GREEDY):
        run = functools.partial(generate, params_of(), prompt, length, keys, settings_)
        drawn = np.asarray(run(allowed=allowed))
        assert allowed[drawn].all()
        assert settings_ is GREEDY or len(np.unique(drawn)) > 4
        assert per_step[np.arange(NEW), np.asarray(run(allowed=per_step))].all()
    run = jax.jit(lambda: sampling.generate(CONFIG, params_of(), prompt, length, keys, NEW, draws, allowed=successor))
    drawn = np.asarray(run())
    last = prompt[np.arange(100), length - 1]
    steps = np.diff(np.concatenate([last[:, None], drawn], axis=1)) % CONFIG.vocab
    assert set(np.unique(steps)) == {1, 2}


def test_a_row_is_padded_after_its_stop_token_and_as_before_until_then():
    prompt, length, keys = np.tile(PROMPT, (20, 1)), np.tile(LENGTH, 20), keys_of(100)
    free = np.asarray(generate(params_of(), prompt, length, keys, Draws(temperature=2.0)))
    stop = int(np.bincount(free.ravel()).argmax())
    stopped = np.asarray(generate(params_of(), prompt, length, keys, Draws(temperature=2.0), stop=stop, pad=22))
    over = np.cumsum(free == stop, axis=1) - (free == stop) > 0
    assert over.any()
    assert not over.all(axis=1).any()
    np.testing.assert_array_equal(stopped, np.where(over, 22, free))


@pytest.mark.slow
def test_vmap_over_parameters_keys_and_settings_equals_the_loop():
    seeds = jnp.arange(3)
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params_of(seed=seed) for seed in range(3)))
    draws = Draws(jnp.array([0.0, 1.0, 0.8]), jnp.array([0, 5, 0]), jnp.array([1.0, 1.0, 0.9]))

    @jax.jit
    def lane(params, seed, draws):
        return generate(params, PROMPT, LENGTH, keys_of(5, seed), draws)

    together = jax.jit(jax.vmap(lane))(params, seeds, draws)
    for i in range(3):
        alone = lane(*jax.tree.map(lambda leaf, i=i: leaf[i], (params, seeds, draws)))
        np.testing.assert_array_equal(together[i], alone)
    assert np.any(together[0] != together[1])


def test_mistakes_are_one_clear_line():
    with pytest.raises(InputError, match=r"new_tokens = 0: must be at least 1"):
        sampling.generate(CONFIG, params_of(), PROMPT, LENGTH, keys_of(5), 0, GREEDY)
    with pytest.raises(InputError, match=r"keys of shape \(\): need one key per row, shape \(5,\)"):
        sampling.generate(CONFIG, params_of(), PROMPT, LENGTH, jax.random.key(0), 2, GREEDY)
