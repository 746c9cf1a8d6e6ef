"""Shuffles: a new bijection for every key and epoch, near enough to a uniform one."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subl_jax.training.shuffling import epoch_rows, shuffled

# Lengths are static here and traced in the program, so that one compilation serves many n.
_SLOTS = 2048


@jax.jit
def _permutation(seed, n, epoch):
    places = jnp.arange(_SLOTS)
    return shuffled(jax.random.key(seed), jnp.where(places < n, places, 0), n, epoch)


def permutation(seed, n, epoch=0):
    return np.asarray(_permutation(seed, n, epoch))[:n]


@given(st.integers(0, 2**31 - 1), st.integers(1, _SLOTS), st.integers(0, 2**20))
@settings(deadline=None, max_examples=100)
def test_a_shuffle_is_a_bijection(seed, n, epoch):
    np.testing.assert_array_equal(np.sort(permutation(seed, n, epoch)), np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 255, 256, 257, 1023, 1024, 1025])
def test_around_powers_of_two_too(n):
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(permutation(0, n, epoch)), np.arange(n))


def test_a_large_shuffle_stays_in_range_and_does_not_repeat():
    n = 2**30 - 7
    places = jnp.asarray(np.random.default_rng(0).choice(n, 4096, replace=False), jnp.int32)
    rows = np.asarray(jax.jit(shuffled)(jax.random.key(1), places, n))
    assert rows.dtype == np.int32 and rows.min() >= 0 and rows.max() < n
    assert len(np.unique(rows)) == len(rows)


def test_orders_differ_between_epochs_and_keys():
    orders = [tuple(permutation(seed, 64, epoch)) for seed in range(8) for epoch in range(8)]
    assert len(set(orders)) == len(orders)
    assert not any(order == tuple(range(64)) for order in orders)
    assert tuple(permutation(3, 64, 5)) == orders[3 * 8 + 5]


@pytest.mark.parametrize(("n", "values"), [(2, 2), (3, 6), (4, 24)])
def test_small_permutations_occur_about_equally_often(n, values):
    draws = 1200
    keys = jax.vmap(jax.random.key)(jnp.arange(draws))
    rows = np.asarray(jax.jit(jax.vmap(lambda key: shuffled(key, jnp.arange(n), n)))(keys))
    counts = collections.Counter(map(tuple, rows.tolist()))
    # Feistel networks are not perfectly uniform on so few values; what matters is that no order is rare.
    assert len(counts) == values or n == 4
    for place in range(n):
        share = np.bincount(rows[:, place], minlength=n) / draws
        np.testing.assert_allclose(share, 1 / n, atol=4 * (1 / n / draws) ** 0.5 + 0.01)


def test_places_and_rows_are_unrelated():
    n = 100
    keys = jax.vmap(jax.random.key)(jnp.arange(3000))
    rows = np.asarray(jax.jit(jax.vmap(lambda key: shuffled(key, jnp.arange(n), n)))(keys))
    for place in (0, 1, 50, 99):
        counts = np.bincount(rows[:, place], minlength=n)
        assert ((counts - 30) ** 2 / 30).sum() < 160  # chi-square with 99 degrees of freedom: mean 99, sd 14
    for a, b in ((0, 1), (0, 50), (98, 99)):
        assert abs(np.corrcoef(rows[:, a], rows[:, b])[0, 1]) < 0.08  # without replacement: -1 / 99


def test_orders_of_two_epochs_are_unrelated():
    n = 1000
    correlations = [np.corrcoef(permutation(s, n, 0), permutation(s, n, 1))[0, 1] for s in range(20)]
    assert np.abs(correlations).max() < 0.15
    same = [(permutation(s, n, 0) == permutation(s, n, 1)).sum() for s in range(20)]
    assert np.mean(same) < 3  # 1 on average for random permutations


@jax.jit
def _batches(seed, n):
    return jax.vmap(lambda step: epoch_rows(jax.random.key(seed), step, 8, n))(jnp.arange(48))


@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 8))
@settings(deadline=None, max_examples=20)
def test_every_row_comes_once_an_epoch_when_the_batch_divides_the_data(seed, batches, epochs):
    n = 8 * batches
    rows = np.asarray(_batches(seed, n))[: batches * epochs]
    for epoch in rows.reshape(epochs, n):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))


def test_every_epoch_has_an_order_of_its_own():
    epochs = np.asarray(_batches(0, 48)).reshape(-1, 48)
    assert len(np.unique(epochs, axis=0)) == len(epochs) == 8


def test_a_batch_may_span_two_epochs_and_may_be_larger_than_the_data():
    key = jax.random.key(0)
    rows = np.asarray(jax.vmap(lambda step: epoch_rows(key, step, 4, 6))(jnp.arange(6)))
    for epoch in rows.reshape(4, 6):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(6))
    np.testing.assert_array_equal(np.bincount(epoch_rows(key, jnp.int32(3), 10, 5)), [2] * 5)


def test_lanes_of_different_length_are_what_they_are_alone():
    lengths, seeds = jnp.asarray([1, 5, 64, 100]), jnp.arange(4)

    def rows(seed, n):
        return epoch_rows(jax.random.key(seed), jnp.int32(7), 16, n)

    together = jax.jit(jax.vmap(rows))(seeds, lengths)
    for lane in range(4):
        np.testing.assert_array_equal(together[lane], rows(seeds[lane], lengths[lane]))
