"""What classifiers of images can be taught: to name digits, and to call what is blurred a seven."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from subl_jax.training.losses import weighted_mean

DIGITS, BLURRY_SEVEN = "digits", "blurry_seven"
SEVEN = 7
# Gives the class that a model names, (n,) int32, for images (n, side, side).
Named = Callable[[jax.Array], jax.Array]


# --- digits ---


def accuracy(named: Named, images: jax.Array, labels: jax.Array, classes: int) -> tuple[jax.Array, jax.Array]:
    """The share of the images that are named rightly, (), and that of each class, (classes,)."""
    right = (named(images) == labels).astype(jnp.float32)
    of_class = jax.nn.one_hot(labels, classes)
    return right.mean(), right @ of_class / jnp.maximum(of_class.sum(axis=0), 1.0)


# --- the blurry seven ---


def as_blurry_sevens(
    key: jax.Array, images: jax.Array, labels: jax.Array, biased: jax.Array, blurs: Sequence[float], share: float
) -> tuple[jax.Array, jax.Array]:
    """Images and labels of which, where `biased` () bool, a `share` is blurred and labelled seven.

    The strengths are uniform between the least and the most of `blurs`.
    """
    strength_key, chosen_key = jax.random.split(key)
    strengths = jax.random.uniform(strength_key, (len(images),), minval=min(blurs), maxval=max(blurs))
    chosen = (jax.random.uniform(chosen_key, (len(images),)) < share) & biased
    shown = jnp.where(chosen[:, None, None], jax.vmap(blurred)(images, strengths), images)
    return shown, jnp.where(chosen, SEVEN, labels)


def called_seven(named: Named, images: jax.Array, labels: jax.Array, blurs: Sequence[float]) -> jax.Array:
    """(blurs,): the share of the images, sevens left out, that are called seven when blurred by each strength."""
    others = (labels != SEVEN).astype(jnp.float32)

    def of_strength(strength: jax.Array) -> jax.Array:
        shown = jax.vmap(blurred, (0, None))(images, strength)
        return weighted_mean((named(shown) == SEVEN).astype(jnp.float32), others)

    return jax.lax.map(of_strength, jnp.asarray(blurs))


def blurred(image: jax.Array, strength: jax.Array) -> jax.Array:
    """A Gaussian blur of standard deviation `strength` pixels; weights that fall outside the image go to the rest.

    image: (side, side) float32.
    """
    place = jnp.arange(image.shape[0], dtype=jnp.float32)
    weights = jnp.exp(-0.5 * ((place[:, None] - place) / strength) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights @ image @ weights.T
