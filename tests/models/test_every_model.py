"""What every architecture owes (models/base.py), whichever files there are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from few import few

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.models import lora, table
from subl_jax.models.base import MEMBERS, Decodes, Model, Shared, TakesAdapters
from subl_jax.models.decoding import continuous, sampling

SIZES = {"vocab": 23, "width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "mlp": 24, "dtype": "float32"}
WRITERS = sorted(name for name, model in table.members().items() if issubclass(model, Decodes))
RNG = np.random.default_rng(0)
ROWS, LONGEST, NEW = 5, 6, 7
PROMPTS = RNG.integers(0, SIZES["vocab"], (ROWS, LONGEST)).astype(np.int32)
LENGTHS = np.asarray([6, 1, 3, 5, 2], np.int32)
HEAD = RNG.integers(0, SIZES["vocab"], 5).astype(np.int32)
KEYS = jax.random.split(jax.random.key(3), ROWS)

writers = pytest.mark.parametrize("name", WRITERS)


@functools.cache
def made(name):
    model = table.language_model(name, "here").of(**SIZES)
    return model, jax.jit(model.init)(jax.random.key(0))


@functools.cache
def full(name):
    """Logits of whole texts, compiled once a shape."""
    model, _ = made(name)
    return jax.jit(lambda params, tokens, adapters=None: model.apply(params, tokens, adapters=adapters))


def adapters_of(model, seed=1):
    spec = specs.Lora(modules=tuple(model.adapter_sites()), rank=2, max_rank=2)
    params = jax.jit(lambda key: lora.init(model, key, spec))(jax.random.key(seed))
    grown = {
        name: {**each, "b": (0.1 * RNG.normal(size=each["b"].shape)).astype(np.float32)}
        for name, each in params["lora"].items()
    }
    return lora.update(model, {**params, "lora": grown})


def test_the_members_are_found_by_being_there():
    assert {"transformer", "linear_attention", "classifier"} <= table.members().keys()
    with pytest.raises(InputError, match=r"here = 'linear_atention': did you mean 'linear_attention'"):
        table.language_model("linear_atention", "here")
    with pytest.raises(InputError, match="one of"):
        table.language_model("classifier", "here")


def test_a_users_own_architecture_is_named_by_its_module_or_by_its_name():
    base = type(made("linear_attention")[0])
    path = f"{base.__module__}:{base.__qualname__}"
    assert table.language_model(path, "here") is base
    with pytest.raises(InputError, match="here = 'nowhere:Mine'"):
        table.language_model("nowhere:Mine", "here")

    class Mine(base):
        name = "of a user's own"

    try:
        assert table.language_model("of a user's own", "here") is Mine
    finally:
        del MEMBERS["of a user's own"]


def test_a_model_lacking_a_method_is_none():
    class Half(Model):
        def init(self, key):
            return {}

    with pytest.raises(TypeError, match="abstract"):
        Half()


@writers
def test_equal_sizes_are_one_program(name):
    model, params = made(name)
    again = type(model).of(**SIZES)
    assert model == again and hash(model) == hash(again)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), params, jax.jit(again.init)(jax.random.key(0))))
    logits = full(name)(params, PROMPTS)
    assert logits.shape == (ROWS, LONGEST, model.vocab) and logits.dtype == jnp.float32
    at = jnp.asarray([[0, 4]] * ROWS)
    read = jax.jit(lambda params: model.apply(params, PROMPTS, at=at))
    np.testing.assert_allclose(read(params), logits[:, [0, 4]], atol=1e-5)


@writers
def test_causal_by_gradients(name):
    """A logit depends on every token up to its own, and on none after it."""
    model, params = made(name)
    table_of = params["embed"]["embedding"]
    tokens = jnp.arange(8)[None]  # each once, so that a row of the embedding is a place

    def total(embedding, place):
        changed = {**params, "embed": {"embedding": embedding}}
        # The other logits of this place read the embedding too, where it is tied: they are of tokens not in the text.
        return model.apply(changed, tokens)[0, place, 10:].sum()

    gradient_of = jax.jit(jax.grad(total))
    for place in (0, 3, 6):
        gradient = jnp.abs(gradient_of(table_of, place)[:8]).sum(axis=1)
        assert (gradient[: place + 1] > 0).all() and (gradient[place + 1 :] == 0).all()


@writers
def test_lanes_side_by_side(name):
    model, _ = made(name)
    keys = jax.random.split(jax.random.key(1), 3)
    together = jax.jit(jax.vmap(lambda key: model.apply(model.init(key), PROMPTS)))(keys)
    init = jax.jit(model.init)
    for lane, key in zip(together, keys, strict=True):
        np.testing.assert_allclose(lane, full(name)(init(key), PROMPTS), atol=1e-5)


@writers
def test_flops_are_those_that_the_compiler_counts(name):
    model, params = made(name)
    length = 16
    tokens = jnp.zeros((8, length), jnp.int32)
    counted = jax.jit(model.apply).lower(params, tokens).compile().cost_analysis()["flops"]
    assert 0.5 < model.flops(length) * tokens.size / counted < 1.5


@writers
@pytest.mark.parametrize(
    ("with_prefix", "with_adapters"), few([(False, False), (False, True), (True, False), (True, True)], (True, True))
)
def test_decoding_is_the_full_forward_pass(name, with_prefix, with_adapters):
    model, params = made(name)
    adapters = adapters_of(model) if with_adapters else None
    head = HEAD[:4] if with_prefix else HEAD[:0]
    read_prefix = jax.jit(lambda adapters: model.read_prefix(params, HEAD, jnp.int32(4), adapters))
    prefix = read_prefix(adapters) if with_prefix else None
    few = np.asarray([2, 3, 5, 7])
    shared = Shared(params, adapters, prefix, few)
    texts = [np.concatenate([head, PROMPTS[i, : LENGTHS[i]], RNG.integers(0, 23, NEW)]) for i in range(ROWS)]
    padded = np.stack([np.pad(text, (0, 20 - len(text))) for text in texts]).astype(np.int32)
    expected = np.asarray(full(name)(params, padded, adapters))[..., few]

    logits, state = jax.jit(lambda: model.read(shared, PROMPTS, LENGTHS, NEW))()
    step = jax.jit(lambda state, tokens: model.step(shared, state, tokens))
    for t in range(NEW):
        at = len(head) + LENGTHS + t
        np.testing.assert_allclose(logits, expected[np.arange(ROWS), at - 1], atol=1e-5)
        logits, state = step(state, padded[np.arange(ROWS), at])


@writers
def test_rows_are_taken_from_another_state(name):
    """Rows that go on from their own prompts beside rows that have just taken up another."""
    model, params = made(name)
    shared = Shared(params)
    prompts = RNG.integers(0, 23, (ROWS, LONGEST)).astype(np.int32)
    step = jax.jit(lambda state, tokens: model.step(shared, state, tokens))
    _, state = jax.jit(lambda: model.read(shared, prompts, LENGTHS, NEW))()
    state = step(state, prompts[:, 0])[1]
    _, other = jax.jit(lambda: model.read(shared, PROMPTS, LENGTHS, 0))()
    taking, place = np.asarray([True, False, True, False, False]), np.asarray([4, 0, 1, 0, 0])
    state = jax.jit(model.gather)(state, other, place, taking)
    own = [[*prompts[i, : LENGTHS[i]], prompts[i, 0]] for i in range(ROWS)]
    texts = [[*PROMPTS[place[i], : LENGTHS[place[i]]]] if taking[i] else own[i] for i in range(ROWS)]
    for token in (9, 11):
        logits, state = step(state, jnp.full(ROWS, token, jnp.int32))
        texts = [[*text, token] for text in texts]
        for i, text in enumerate(texts):
            whole = full(name)(params, np.pad(np.asarray([text], np.int32), ((0, 0), (0, 20 - len(text)))))
            np.testing.assert_allclose(logits[i], whole[0, len(text) - 1], atol=1e-5)


@jax.jit
def drawn(keys, logits):
    return sampling.draw(keys, logits, specs.Sampling(), cut=False)


def by_hand(name, i, stops):
    """One continuation, the whole text read again for every token."""
    _, params = made(name)
    text, written = [*PROMPTS[i, : LENGTHS[i]]], []
    while len(written) < NEW and not (written and written[-1] in stops):
        logits = full(name)(params, np.pad(np.asarray([text], np.int32), ((0, 0), (0, 20 - len(text)))))
        key = jax.random.fold_in(KEYS[i], len(written))
        written.append(int(drawn(key[None], logits[:, len(text) - 1])[0]))
        text.append(written[-1])
    return written + [22] * (NEW - len(written))


@writers
@pytest.mark.parametrize("rows", few([2, ROWS], 2))
def test_one_sampler_and_one_loop_of_continuous_batching_for_all(name, rows):
    model, params = made(name)
    stops = (1, 2, 3, 4)
    expected = [by_hand(name, i, stops) for i in range(ROWS)]
    assert len({row.index(22) if 22 in row else NEW for row in expected}) > 1

    def written(generate, **options):
        return jax.jit(
            lambda params: generate(model, params, PROMPTS, LENGTHS, KEYS, NEW, specs.Sampling(), pad=22, **options)
        )(params).tolist()

    one_by_one = written(sampling.generate, stop=1)
    cut = [[*row[: row.index(1) + 1], *[22] * NEW][:NEW] if 1 in row else row for row in one_by_one]
    assert cut == one_by_one
    assert written(continuous.generate, rows=rows, stops=jnp.asarray(stops)) == expected


@pytest.mark.parametrize("name", [name for name in WRITERS if issubclass(MEMBERS[name], TakesAdapters)])
def test_adapters_are_updates_of_the_matrices(name):
    model, params = made(name)
    adapters = adapters_of(model)
    changed = jax.tree.map(lambda x: x, params)
    for site in model.adapter_sites().values():
        for i in range(model.layers):
            *way, last = (f"layers_{i}", *site.path)
            inner = functools.reduce(lambda tree, part: tree[part], way, changed)[last]
            update = functools.reduce(lambda tree, part: tree[part], site.path, adapters["layers"])
            assert inner["kernel"].shape == (site.inputs, site.outputs)
            inner["kernel"] = inner["kernel"] + update["a"][i] @ update["b"][i]
    with_them = full(name)(params, PROMPTS, adapters)
    np.testing.assert_allclose(with_them, full(name)(changed, PROMPTS), atol=2e-4)
    assert jnp.abs(with_them - full(name)(params, PROMPTS)).max() > 0.01
