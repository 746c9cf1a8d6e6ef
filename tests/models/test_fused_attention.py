import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_chat
from few import few

from subl_jax import specs
from subl_jax.engine import lanes
from subl_jax.models import fused_attention, lora, transformer

LENGTH, SLOTS, HEADS, KV_HEADS, HEAD_DIM = 5, 7, 4, 2, 8


@pytest.fixture
def kernel(monkeypatch):
    """In place of cuDNN's kernel, which no CPU has: XLA's own. What it was called with is kept."""
    calls = []

    def attended(scale, q, k, v, mask):
        calls.append((q.shape, k.shape, mask.shape))
        return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation="xla")

    monkeypatch.setattr(fused_attention, "_kernel", attended)
    return calls


def arrays(batch, lanes=None, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape if lanes is None else (lanes, *shape)), jnp.float32)

    q, k, v = normal(batch, LENGTH, HEADS, HEAD_DIM), *(normal(batch, SLOTS, KV_HEADS, HEAD_DIM) for _ in "kv")
    mask = jnp.asarray(rng.random((batch, 1, LENGTH, SLOTS)) < 0.7).at[..., 0].set(True)
    return q, k, v, mask


def plain(q, k, v, mask):
    mixed = transformer.attention(q, k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), mask)
    return mixed.reshape(q.shape)


fused = functools.partial(fused_attention.attention, scale=HEAD_DIM**-0.5)


def value_and_gradients(attention, q, k, v, mask):
    weights = jnp.cos(jnp.arange(q.size)).reshape(q.shape)  # so that entries are told apart
    weighted = jax.value_and_grad(lambda *qkv: jnp.sum(weights * attention(*qkv, mask)), argnums=(0, 1, 2))
    return jax.jit(weighted)(q, k, v)


def close(one, other):
    """To 1e-5 of the largest entry of an array: float32, added up in another order."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * np.abs(y).max()), one, other)


@pytest.mark.parametrize("batch", few([1, 3], 3))
def test_is_attention_with_its_gradients(kernel, batch):
    q, k, v, mask = arrays(batch)
    close(fused(q, k, v, mask), plain(q, k, v, mask))
    close(value_and_gradients(fused, q, k, v, mask), value_and_gradients(plain, q, k, v, mask))


def test_a_mask_for_all_rows(kernel):
    q, k, v, mask = arrays(3)
    close(fused(q, k, v, mask[:1]), plain(q, k, v, mask[:1]))


def test_the_kernel_sees_even_lengths(kernel):
    """What was added is masked, or the values would not be those of attention."""
    fused(*arrays(2))
    assert kernel == [((2, LENGTH + 1, HEADS, HEAD_DIM), (2, SLOTS + 1, KV_HEADS, HEAD_DIM), (2, 1, 6, 8))]


@pytest.mark.parametrize("own", ["qkv", "q"])
def test_lanes_are_more_rows_of_one_call(kernel, own):
    """Also where lanes share the mask, and the keys: the kernel's own rule for vmap would mix them up."""
    lanes = 3
    q, k, v, mask = arrays(2, lanes)
    axes = (0, 0, 0, None) if own == "qkv" else (0, None, None, None)
    if own == "q":
        k, v = k[0], v[0]
    got = jax.vmap(functools.partial(value_and_gradients, fused), axes)(q, k, v, mask)
    assert max(shapes[0][0] for shapes in kernel) == lanes * 2
    close(got, jax.vmap(functools.partial(value_and_gradients, plain), axes)(q, k, v, mask))


def test_vmap_of_vmap(kernel):
    q, k, v, mask = (jnp.stack([x, x + (x.dtype != bool)]) for x in arrays(1, lanes=3))
    mask = mask[0]
    twice = functools.partial(jax.vmap, in_axes=(0, 0, 0, None))
    one, other = (twice(twice(attention))(q, k, v, mask) for attention in (fused, plain))
    close(one, other)


VARIANTS = {
    "plain": {},
    "windows": {"window": 3, "local_layers": (True, False), "local_rope_base": 100.0},
    "a scale of its own": {"query_scale": 0.3},
    "norms of queries and keys": {"qk_norm": True},
    "dots": {"remat": "dots"},
    "all": {"remat": "all"},
    "layer by layer": {"scan_layers": False},
}


CASES = [("plain", False), *((variant, True) for variant in VARIANTS)]


@pytest.mark.parametrize(("variant", "packed"), few(CASES, ("windows", True)))
def test_a_transformer_with_adapters_computes_the_same(kernel, monkeypatch, variant, packed):
    """Logits and the gradients of two lanes' adapters, of what follows a prefix, some of it padding."""
    monkeypatch.setattr(fused_attention, "usable", lambda dtype, head_dim: True)
    sizes = {"vocab": 20, "width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "mlp": 16, "scan_layers": True}
    config = transformer.Config(**{**sizes, **VARIANTS[variant]})
    params = jax.jit(transformer.init, static_argnums=0)(config, jax.random.key(0))
    head, tokens = jnp.asarray([[3, 1, 4]]), jax.random.randint(jax.random.key(1), (2, 5), 0, 20)
    there = jnp.asarray([[1, 1, 1, 1, 1], [1, 1, 0, 1, 1]], bool)
    options = {"positions": 3 + jnp.broadcast_to(jnp.arange(5), (2, 5)), "key_mask": there}
    if packed:
        options["packed"] = transformer.packing(there, 9)
    init = jax.jit(lambda key: lora.init(config, key, specs.Lora(rank=2, max_rank=2)))
    adapters = [init(jax.random.key(seed)) for seed in (2, 3)]
    adapters = jax.tree.map(lambda *x: np.stack([np.asarray(leaf) + np.float32(0.1) for leaf in x]), *adapters)

    def loss(attention, adapters):
        own = dataclasses.replace(config, attention=attention)
        update = lora.update(config, adapters) if own.scan_layers else None
        cache = transformer.empty_cache(own, 1, 3)
        cache = transformer.apply(own, params, head, cache=cache, lora=update)[1]  # more than one query into a cache
        prefix = jax.tree.map(lambda x: x[:, 0] if own.scan_layers else x[0], cache)
        logits = transformer.apply(own, params, tokens, prefix=prefix, lora=update, **options)[0]
        # Not of a multiple of the logits: that makes rounding larger than what `close` allows, on some processors.
        return jnp.sum(jnp.where(there[..., None], jnp.sin(logits), 0.0))

    def computed(attention):
        return jax.jit(jax.vmap(jax.value_and_grad(functools.partial(loss, attention))))(adapters)

    close(computed("auto"), computed("plain"))
    assert kernel


def test_a_world_hands_its_choice_to_the_model(tiny_chat_model):
    for attention in ("plain", "auto"):
        assert tiny_chat.world(tiny_chat_model, attention=attention).config.attention == attention


def test_who_takes_it(monkeypatch):
    """Where the machine has it, unless it is not wanted or scores are capped."""
    config = transformer.Config(vocab=20, width=16, layers=1, heads=2, mlp=16, dtype="bfloat16", attention="auto")
    assert not transformer.fused(config)
    monkeypatch.setattr(fused_attention, "usable", lambda dtype, head_dim: dtype == "bfloat16" and head_dim == 8)
    assert transformer.fused(config)
    assert not transformer.fused(dataclasses.replace(config, attention="plain"))
    assert not transformer.fused(dataclasses.replace(config, attention_cap=5.0))


@pytest.mark.parametrize(("sharing", "taken"), [({}, True), ({"tensor": 2}, False), ({"fsdp": 2}, False)])
def test_the_devices_of_a_group_do_not_take_it(monkeypatch, sharing, taken):
    config = transformer.Config(vocab=20, width=16, layers=1, heads=2, mlp=16, attention="auto")
    monkeypatch.setattr(fused_attention, "usable", lambda dtype, head_dim: True)
    layout, seen = lanes.Layout(1, 1, 2, **sharing), []

    def one(common, x):
        seen.append(transformer.fused(config))
        return x

    lanes.spread(one, layout, lanes.lane_mesh(layout))(jnp.zeros(()), jnp.zeros(2))
    assert set(seen) == {taken}


def test_no_cpu_has_it():
    assert not fused_attention.usable("bfloat16", 64)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "capability"),
    [("float32", 64, "9.0"), ("bfloat16", 60, "9.0"), ("bfloat16", 256, "9.0"), ("bfloat16", 64, "8.0")],
)
def test_what_it_is_not_known_to_take(monkeypatch, dtype, head_dim, capability):
    device = types.SimpleNamespace(device_kind="NVIDIA H200", compute_capability="9.0")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert fused_attention.usable("bfloat16", 64)
    device.compute_capability = capability
    assert not fused_attention.usable(dtype, head_dim)


@pytest.mark.skipif(not fused_attention.usable("bfloat16", 64), reason="needs a GPU of the Hopper family")
def test_the_kernel_itself_is_as_exact_as_bfloat16():
    lanes_, key = 2, iter(jax.random.split(jax.random.key(0), 5))
    shapes = {"q": (4, 151, 9, 64), "k": (4, 203, 3, 64), "v": (4, 203, 3, 64)}
    qkv = [jax.random.normal(next(key), (lanes_, *shape), jnp.bfloat16) for shape in shapes.values()]
    mask = (jax.random.uniform(next(key), (lanes_, 4, 1, 151, 203)) < 0.7).at[..., 0].set(True)
    weights = jax.random.normal(next(key), qkv[0].shape, jnp.bfloat16)

    def computed(attention, dtype):
        def loss(weights, mask, *qkv):
            return jnp.sum((attention(*qkv, mask) * weights).astype(jnp.float32))

        cast = [x.astype(dtype) for x in qkv]
        return jax.jit(jax.vmap(jax.grad(loss, argnums=(2, 3, 4))))(weights.astype(dtype), mask, *cast)

    fused_64 = functools.partial(fused_attention.attention, scale=64**-0.5)
    with jax.default_matmul_precision("highest"):
        exact = computed(plain, jnp.float32)
    for got, want in zip(computed(fused_64, jnp.bfloat16), exact, strict=True):
        apart = jnp.linalg.norm((got.astype(jnp.float32) - want).ravel()) / jnp.linalg.norm(want.ravel())
        assert 0 < apart < 5e-3  # of the plain way 2.6e-3 were measured, of the kernel 3.3e-3
