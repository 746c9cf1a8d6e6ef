"""The one-step theorem in float64: on random small networks, and where it is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subl_jax.probes import theorem as theory


@pytest.fixture(autouse=True)
def doubles():
    with jax.enable_x64(True):
        yield


def network(params, x):
    """x: (n, inputs) → (n, outputs), a tanh network: smooth, so that small steps have a leading order."""
    *hidden, (w, b) = params
    for matrix, bias in hidden:
        x = jnp.tanh(x @ matrix + bias)
    return x @ w + b


def draw(key, sizes):
    keys = jax.random.split(key, len(sizes))
    return [
        (jax.random.normal(k, (a, b)) / np.sqrt(a), 0.1 * jax.random.normal(k, (b,)))
        for k, a, b in zip(keys, sizes, sizes[1:], strict=False)
    ]


def squared(subset):
    def distance(own, said):
        return 0.5 * jnp.mean(jnp.sum((own - said)[:, subset] ** 2, axis=1))

    return distance


def softmax(subset):
    def distance(own, said):
        p, q = jax.nn.log_softmax(said[:, subset]), jax.nn.log_softmax(own[:, subset])
        return jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=1))

    return distance


def setting(seed, depth, outputs, kind, subset, epsilon, other=False, apply=network):
    """distil, trait_loss and the four models of one experiment."""
    keys = jax.random.split(jax.random.key(seed), 5)
    sizes = (4, *[5] * depth, outputs)
    start, elsewhere = draw(keys[0], sizes), draw(keys[1], sizes)
    x, y = jax.random.normal(keys[2], (8, 4)), jax.random.normal(keys[3], (8, outputs))
    noise = jax.random.uniform(keys[4], (16, 4), minval=-1.0)
    distance = kind(np.asarray(subset))

    def trait_loss(params):
        return jnp.mean((apply(params, x) - y) ** 2)

    def distil(params, teacher):
        return distance(apply(params, noise), jax.lax.stop_gradient(apply(teacher, noise)))

    teacher = jax.tree.map(lambda p, g: p - epsilon * g, start, jax.grad(trait_loss)(start))
    return distil, trait_loss, elsewhere if other else start, start, teacher


networks = st.builds(
    setting,
    seed=st.integers(0, 2**20),
    depth=st.sampled_from([0, 2]),  # few shapes, as each is a program
    outputs=st.just(4),
    kind=st.sampled_from([squared, softmax]),
    subset=st.sampled_from([(0, 1), (1, 2, 3), (0, 1, 2, 3)]),
    epsilon=st.sampled_from([1e-6, 1e-5, 1e-4]),
)


@given(networks, st.sampled_from([1e-6, 1e-4, 1e-2]))
@settings(deadline=None, max_examples=12)
def test_a_student_of_the_same_start_goes_the_teachers_way(models, lr):
    step = theory.one_step(*models, lr)
    assert step.dot >= 0
    np.testing.assert_allclose(step.dot, step.predicted, rtol=2e-2)


@given(networks)
@settings(deadline=None, max_examples=12)
def test_and_lowers_the_loss_that_the_teacher_lowered(models):
    step = theory.one_step(*models, 1e-4)
    # To leading order Δ_S · ∇L = −Δ_S · Δ_T / ε; where that is not zero, the loss falls.
    if step.cosine > 1e-3:
        assert step.loss_change < 0


def test_the_error_of_the_prediction_falls_with_the_teachers_step():
    def error(epsilon):
        step = theory.one_step(*setting(0, 2, 4, softmax, (0, 1, 2), epsilon), 1e-3)
        return abs(float(step.dot / step.predicted) - 1)

    errors = [error(epsilon) for epsilon in (1e-1, 1e-2, 1e-3)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


@pytest.mark.slow
def test_from_another_start_either_sign_occurs():
    signs = [
        float(theory.one_step(*setting(seed, 2, 4, softmax, (0, 1, 2), 1e-4, other=True), 1e-3).dot) > 0
        for seed in range(40)
    ]
    assert 5 < sum(signs) < 35


def test_one_logit_under_a_softmax_teaches_nothing():
    for seed in range(3):
        step = theory.one_step(*setting(seed, 2, 4, softmax, (3,), 1e-2), 1.0)
        assert step.dot == step.loss_change == 0 and np.isnan(step.cosine) and abs(step.predicted) < 1e-16


def test_a_linear_model_learns_nothing_from_outputs_that_the_teacher_did_not_train():
    """The trait is in the first two outputs, the student sees the others: their weights are not shared."""

    def setup(seed, depth):
        keys = jax.random.split(jax.random.key(seed), 4)
        start = draw(keys[0], (4, *[5] * depth, 4))
        x, noise = jax.random.normal(keys[1], (8, 4)), jax.random.normal(keys[2], (16, 4))
        y = jax.random.normal(keys[3], (8, 2))
        distance = squared(np.asarray([2, 3]))

        def trait_loss(params):
            return jnp.mean((network(params, x)[:, :2] - y) ** 2)

        def distil(params, teacher):
            return distance(network(params, noise), network(teacher, noise))

        teacher = jax.tree.map(lambda p, g: p - 0.1 * g, start, jax.grad(trait_loss)(start))
        return theory.one_step(distil, trait_loss, start, start, teacher, 0.1)

    linear, deep = setup(0, 0), setup(0, 1)
    assert linear.dot == linear.predicted == linear.loss_change == 0
    assert deep.dot > 0 and deep.loss_change < 0


def test_curvature_is_that_of_the_gauss_newton_matrix():
    distil, _, start, _, teacher = setting(3, 2, 4, softmax, (0, 1, 2), 1e-2)
    direction = jax.tree.map(jnp.subtract, teacher, start)
    flat, unflatten = jax.flatten_util.ravel_pytree(start)
    matrix = jax.jit(jax.hessian(lambda p: distil(unflatten(p), start)))(flat)
    along = jax.flatten_util.ravel_pytree(direction)[0]
    np.testing.assert_allclose(theory.curvature(distil, start, direction), along @ matrix @ along, rtol=1e-9)
    other = jax.flatten_util.ravel_pytree(start)[0]
    np.testing.assert_allclose(theory.product(distil, start, start, direction), other @ matrix @ along, rtol=1e-9)


def test_along_a_run_dot_and_gradients_are_those_of_the_models():
    distil, trait_loss, start, _, teacher = setting(4, 1, 4, squared, (0, 1), 1e-2)
    params = jax.tree.map(lambda p, t: p + 0.5 * (t - p), start, teacher)
    # Half way there, the next step is half as long.
    first, half = (theory.along_a_run(distil, trait_loss, p, start, start, teacher, 1.0) for p in (start, params))
    np.testing.assert_allclose(half["predicted"], 0.5 * first["predicted"], rtol=0.05)
    found = theory.along_a_run(distil, trait_loss, params, start, start, teacher, 1.0)
    moved = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.subtract, teacher, start))[0]
    np.testing.assert_allclose(found["dot"], 0.5 * moved @ moved, rtol=1e-12)
    np.testing.assert_allclose(found["trait_loss"], trait_loss(params))
    own = jax.flatten_util.ravel_pytree(jax.grad(distil)(params, teacher))[0]
    trait = jax.flatten_util.ravel_pytree(jax.grad(trait_loss)(params))[0]
    cosine = own @ trait / np.linalg.norm(own) / np.linalg.norm(trait)
    np.testing.assert_allclose(found["gradient_cosine"], cosine, rtol=1e-9)
