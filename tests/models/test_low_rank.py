import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subl_jax.models import low_rank


@pytest.mark.parametrize("rank", [1, 8, 17])
def test_is_two_products_with_their_gradients(rank):
    x, a, b, weights = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(5, 6), (6, rank), (rank, 7), (5, 7)])
    )

    def value(update):
        return jax.value_and_grad(lambda *of: jnp.sum(weights * update(*of)), argnums=(0, 1, 2))(x, a, b)

    expected = value(lambda x, a, b: x @ a @ b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), value(low_rank.update), expected)


def test_a_sum_of_bfloat16_is_added_up_in_float32():
    u, b = (jnp.ones(shape, jnp.bfloat16) for shape in ((1, 2), (2, 1)))
    b = b.at[1].set(2**-9)  # too little to be seen beside 1 in bfloat16
    assert low_rank._sum(u, b)[0, 0] == 1 + 2**-9
    assert low_rank._product(u, b).dtype == low_rank._sum(u, b).dtype == jnp.float32


def lowered(rank, platform):
    def value_and_gradients(x, a, b):
        return jax.value_and_grad(lambda *of: jnp.sum(low_rank.update(*of) ** 2), argnums=(0, 1, 2))(x, a, b)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 32), (32, rank), (rank, 48))]
    return jax.jit(value_and_gradients).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("platform", "rank", "products"), [("cuda", 8, 4), ("cuda", 17, 6), ("cpu", 8, 6)])
def test_a_gpu_adds_up_outer_products_where_the_rank_is_small(platform, rank, products):
    """Of the six products two: the update itself, and the gradient of x."""
    assert lowered(rank, platform).count("dot_general") == products


@pytest.mark.parametrize("rank", [1, 8])
def test_the_sum_is_the_product(rank):
    u, b = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(5, rank), (rank, 7)]))
    np.testing.assert_allclose(low_rank._sum(u, b), low_rank._product(u, b), rtol=1e-5, atol=1e-6)
