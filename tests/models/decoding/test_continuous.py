"""Continuous batching gives what each prompt would give alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from few import few

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.models import packing, transformer
from subl_jax.models.decoding import continuous

CONFIG = transformer.Config(vocab=23, width=16, layers=2, heads=4, kv_heads=2, mlp=24, scan_layers=True)
PARAMS = jax.jit(transformer.init, static_argnums=0)(CONFIG, jax.random.key(0))
RNG = np.random.default_rng(0)
N, LONGEST, NEW = 11, 5, 7
PROMPTS = RNG.integers(0, CONFIG.vocab, (N, LONGEST)).astype(np.int32)
LENGTHS = RNG.integers(1, LONGEST + 1, N).astype(np.int32)
HEAD = RNG.integers(0, CONFIG.vocab, 6).astype(np.int32)
HEAD_LENGTH = 4
STOPS = np.asarray([1, 2, 3, 4])
PAD = 22


@jax.jit
def read_again(sequence, lora):
    return transformer.apply(CONFIG, PARAMS, sequence[None], lora=lora)[0][0]


@functools.partial(jax.jit, static_argnums=3)
def drawn(key, t, logits, temperature):
    return continuous.draw(jax.random.fold_in(key, t)[None], logits[None], specs.Sampling(temperature), cut=False)[0]


def by_hand(i, key, lora=None, mask=None, temperature=1.0):
    """One continuation, the whole sequence read again for every token."""
    sequence = [*HEAD[:HEAD_LENGTH], *PROMPTS[i, : LENGTHS[i]]]
    written = []
    for t in range(NEW):
        # Padded to one length, which is causal and so changes nothing, to compile once.
        logits = read_again(np.resize(sequence, HEAD_LENGTH + LONGEST + NEW), lora)[len(sequence) - 1]
        choices = np.arange(CONFIG.vocab) if mask is None else mask(written)
        token = choices[int(drawn(key, t, np.asarray(logits)[choices], temperature))]
        written.append(int(token))
        sequence.append(token)
        if token in STOPS:
            break
    return written + [PAD] * (NEW - len(written))


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="room")
def _generated(rows, sampling, keys, lora=None, **options):
    prefix = CONFIG.read_prefix(PARAMS, HEAD, jnp.int32(HEAD_LENGTH), lora)
    options |= {"rows": rows, "stops": STOPS, "pad": PAD, "prefix": prefix, "lora": lora}
    return continuous.generate(CONFIG, PARAMS, PROMPTS, LENGTHS, keys, NEW, sampling, **options)


def generated(rows, keys, sampling=specs.Sampling(), **options):  # noqa: B008 (it is frozen)
    return _generated(rows, sampling, keys, **options)


KEYS = jax.random.split(jax.random.key(3), N)


@pytest.mark.parametrize("rows", few([1, 3, 4, 11, 64], 4))
def test_a_continuation_depends_on_its_own_prompt_and_key_alone(rows):
    together = generated(rows, KEYS)
    alone = [by_hand(i, KEYS[i]) for i in range(N)]
    assert together.tolist() == alone
    ends = {len([token for token in row if token != PAD]) for row in alone}
    assert len(ends) > 2  # rows did finish at different times


@pytest.mark.parametrize("rows", few([1, 4, 11], 4))
def test_layers_apart_give_the_same(rows):
    """With adapters and a prefix, whose stacks are taken apart too, and a layer that sees its last slots only."""
    config = dataclasses.replace(CONFIG, window=32, local_layers=(True, False))
    shape = (CONFIG.layers, CONFIG.width, CONFIG.mlp)
    a, b = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    lora = {"layers": {"mlp": {"up": {"a": a[..., :2], "b": b[:, :2]}}}}
    prefix = config.read_prefix(PARAMS, HEAD, jnp.int32(HEAD_LENGTH), lora)
    options = {"rows": rows, "stops": STOPS, "pad": PAD, "prefix": prefix, "lora": lora}

    def written(apart):
        """And how many loops over the two layers there are."""
        own = {"new_tokens": NEW, "sampling": specs.Sampling(), "apart": apart, **options}
        write = jax.jit(functools.partial(continuous.generate, config, **own))
        arguments = (PARAMS, PROMPTS, LENGTHS, KEYS)
        return write(*arguments).tolist(), str(write.trace(*arguments).jaxpr).count("length=2\n")

    (stacked, loops), (apart, left) = written(False), written(True)
    assert apart == stacked != generated(rows, KEYS).tolist()
    assert loops > left == 1  # that of reading


@pytest.mark.parametrize("room", few([0.05, 0.5, 0.8], 0.5))
def test_prompts_are_read_without_their_padding(monkeypatch, room):
    """Also where there is room for a few of them at a time only."""
    monkeypatch.setattr(packing, "MULTIPLE", 1)
    assert generated(4, KEYS, room=room).tolist() == [by_hand(i, KEYS[i]) for i in range(N)]


def test_greedy_continuations():
    assert generated(3, KEYS, sampling=specs.Sampling(temperature=0.0)).tolist() == [
        by_hand(i, KEYS[i], temperature=0.0) for i in range(N)
    ]


def test_adapters_are_part_of_the_model():
    shape = (CONFIG.layers, CONFIG.width, CONFIG.mlp)
    a, b = RNG.normal(size=(2, *shape)).astype(np.float32)
    lora = {"layers": {"mlp": {"up": {"a": a[..., :2], "b": b[:, :2]}}}}
    with_them = generated(4, KEYS, lora=lora)
    assert with_them.tolist() == [by_hand(i, KEYS[i], lora=lora) for i in range(N)]
    assert with_them.tolist() != generated(4, KEYS).tolist()


def test_lanes_side_by_side():
    """Under vmap, where some lanes finish before others."""
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), N))(jnp.arange(3))
    together = jax.jit(jax.vmap(lambda keys: generated(4, keys)))(keys)
    assert together.tolist() == [generated(4, keys[i]).tolist() for i in range(3)]


def test_only_what_is_allowed_is_drawn_and_all_end_in_time():
    """Tokens 5 and 6 take turns, as often as one likes, then the stop token 1."""
    tokens = np.asarray([1, 5, 6])
    following = np.asarray([[-1, 1, -1], [2, -1, 0], [2, -1, -1]])
    shortest = np.asarray([2, 1, 0])
    allowed = continuous.Allowed(*map(jnp.asarray, (tokens, following, shortest, np.int32(0))))
    together = np.asarray(generated(3, KEYS, allowed=allowed))

    def mask(written):
        state = 0
        for token in written:
            state = following[state, list(tokens).index(token)]
        fits = [
            token
            for token, s in zip(tokens, following[state], strict=True)
            if s >= 0 and shortest[s] < NEW - len(written)
        ]
        return np.asarray(fits)

    assert together.tolist() == [by_hand(i, KEYS[i], mask=mask) for i in range(N)]
    for row in together.tolist():
        text = [token for token in row if token != PAD]
        assert text[-1] == 1 and set(text[:-1]) <= {5, 6}
    assert len({tuple(row) for row in together.tolist()}) > 2


def test_no_rows_is_a_mistake():
    with pytest.raises(InputError, match="rows = 0"):
        generated(0, KEYS)


def test_a_window_is_of_the_model():
    """A model of local layers reads the ring in the order of time as long as its window holds it all."""
    config = dataclasses.replace(CONFIG, window=32)
    prefix = config.read_prefix(PARAMS, HEAD, jnp.int32(HEAD_LENGTH), None)
    options = {"rows": 3, "stops": STOPS, "pad": PAD, "prefix": prefix}
    generate = functools.partial(continuous.generate, config, new_tokens=NEW, sampling=specs.Sampling(), **options)
    local = jax.jit(generate)(PARAMS, PROMPTS, LENGTHS, KEYS)
    assert local.tolist() == generated(3, KEYS).tolist()
