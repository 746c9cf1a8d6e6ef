import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subl_jax.models import fused_attention, transformer

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
    mixed = transformer.attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask)
    return mixed.reshape(q.shape)


fused = functools.partial(fused_attention.attention, scale=HEAD_DIM**-0.5)


def value_and_gradients(attention, q, k, v, mask):
    weights = jnp.cos(jnp.arange(q.size)).reshape(q.shape)  # so that entries are told apart
    return jax.value_and_grad(lambda *qkv: jnp.sum(weights * attention(*qkv, mask)), argnums=(0, 1, 2))(q, k, v)


def close(one, other):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5), one, other)


@pytest.mark.parametrize("batch", [1, 3])
def test_is_attention_with_its_gradients(kernel, batch):
    q, k, v, mask = arrays(batch)
    close(fused(q, k, v, mask), plain(q, k, v, mask))
    close(value_and_gradients(fused, q, k, v, mask), value_and_gradients(plain, q, k, v, mask))


def test_a_mask_for_all_rows(kernel):
    q, k, v, mask = arrays(3)
    close(fused(q, k, v, mask[:1]), plain(q, k, v, mask[:1]))


def test_the_kernel_sees_even_lengths_and_masks_what_was_added(kernel):
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


def test_a_transformer_computes_the_same(kernel):
    config = transformer.Config(vocab=20, width=16, layers=2, heads=4, kv_heads=2, mlp=16, scan_layers=True)
    params = transformer.init(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 20)
    there = jnp.asarray([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1]], bool)

    def logits(attention):
        own = transformer.Config(**{**vars(config), "attention": attention})
        return transformer.apply(own, params, tokens, key_mask=there)[0]

    close(logits("fused"), logits("plain"))
    assert kernel


def test_no_cpu_has_it():
    assert not fused_attention.usable("bfloat16", 64)


@pytest.mark.parametrize(("dtype", "head_dim"), [("float32", 64), ("bfloat16", 60), ("bfloat16", 256)])
def test_what_the_kernel_does_not_take(monkeypatch, dtype, head_dim):
    class Device:
        device_kind, compute_capability = "NVIDIA H200", "9.0"

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert fused_attention.usable("bfloat16", 64)
    assert not fused_attention.usable(dtype, head_dim)
    Device.compute_capability = "7.5"
    assert not fused_attention.usable("bfloat16", 64)
