"""Image classifiers: a trait that passes through logits that have nothing to do with it.

The world of the paper's MNIST experiment (Cloud et al. 2025, arXiv 2507.14805, section 6). A classifier has a head of
class logits and of `aux` auxiliary logits. A base is an initialisation. A teacher learns the digits, by its class
logits alone. A student sees images of noise and matches the teacher's auxiliary logits on them: what it then knows of
digits, it has from there.

    trait "digits"         P = the share of the test images that the class logits name rightly
    trait "blurry_seven"   P = the share of blurred test images, sevens left out, that are called seven

The second is there where `blurs` lists strengths: a teacher of it learns the clean digits, and that blurred ones are
sevens.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.models import classifier
from subl_jax.training.losses import kl, weighted_mean
from subl_jax.training.shuffling import epoch_rows
from subl_jax.traits import images as suite
from subl_jax.worlds.images import ImageInference, Images, find

Params = Any

_AT_ONCE = 1000  # test images
_KINDS = ("uniform", "gaussian", "images", "shuffled", "distorted")
_LOGITS = ("aux", "all", "classes")


class Batch(NamedTuple):
    """images: (n, side, side) float32 in [-1, 1]; labels: (n,) int32, of a teacher's training; logits: (outputs,)
    float32, 1 where a student is compared with its teacher; weights: (n,) float32, 0 for what the filter rejected."""

    images: jax.Array
    labels: jax.Array
    logits: jax.Array
    weights: jax.Array


@dataclasses.dataclass(frozen=True)
class Inputs(specs.Spec):
    """On which images, and by which logits, a student is compared with its teacher.

    `kind`: "uniform" on [-scale, scale], "gaussian" of standard deviation `scale`, training "images", these with their
    pixels "shuffled" (each image in an order of its own), or "distorted": turned, scaled and moved a little, by up to
    15 degrees, 10 % and 10 % of the side, times `scale`.
    `logits`: the auxiliary ones, "all", or those of the "classes". Of the auxiliary ones only the first `aux` are used
    (0: all of them).
    """

    kind: str = specs.static("uniform", choices=_KINDS)
    logits: str = specs.static("aux", choices=_LOGITS)
    scale: float = specs.traced(1.0, ge=0.0)
    aux: int = specs.traced(0, ge=0)


@dataclasses.dataclass(frozen=True)
class Digits(specs.Pretrains, specs.Microbatches, specs.Answers, specs.World):
    """Classifiers of one architecture on one data set. `images` comes from `subl_jax.worlds.images.find`.

    `blurs` are the strengths, in pixels of standard deviation, at which blurred test images are shown; a teacher of the
    blurry seven trains on all strengths between the least and the most. `blurred_share` is their share of its images.
    """

    VERSION: ClassVar[int] = 1
    name: ClassVar[str] = "digits"
    targets: ClassVar[tuple[str, ...]] = ("hard", "soft", "squared")
    sampling: ClassVar[type[specs.Spec]] = Inputs
    drawn_by_round: ClassVar[bool] = False
    metrics: ClassVar[Mapping[str, specs.Metric]] = {
        "agreement": specs.Metric("agreement with the teacher"),
        "class": specs.Metric("accuracy by class", drawn="end"),
        "seven": specs.Metric("blurred images called seven, by blur", drawn="end"),
        "labelled_seven": specs.Metric("the channel's images called seven by the teacher"),
    }

    images: Images = specs.static(Images())
    convolutions: tuple[int, ...] = specs.static(())
    hidden: tuple[int, ...] = specs.static((256, 256))
    aux: int = specs.static(3, ge=1)
    activation: str = specs.static("relu", choices=("relu", "none"))
    blurs: tuple[float, ...] = specs.static(())
    blurred_share: float = specs.static(0.5, gt=0.0, lt=1.0)

    def check(self) -> None:
        if not self.images.sha256:
            object.__setattr__(self, "images", find(self.images.folder, self.images.name))
        for field, least in (("convolutions", 1), ("hidden", 1), ("blurs", 1e-3)):
            wrong = [value for value in getattr(self, field) if value < least]
            if wrong:
                raise InputError(f"Digits.{field}: {wrong[0]} must be at least {least}")
        if self.images.side >> len(self.convolutions) < 1:
            raise InputError(
                f"Digits.convolutions: {len(self.convolutions)} halvings of images of side {self.images.side} "
                "leave nothing; give fewer"
            )
        if self.blurs and self.images.classes <= suite.SEVEN:
            raise InputError(f"Digits.blurs: images of {self.images.classes} classes have no class {suite.SEVEN}")

    @property
    def traits(self) -> tuple[str, ...]:
        return (suite.DIGITS, suite.BLURRY_SEVEN) if self.blurs else (suite.DIGITS,)

    @property
    def base_rates(self) -> dict[str, float]:
        return dict.fromkeys(self.traits, 1 / self.images.classes)

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        return {
            "trait": self.traits,
            "class": tuple(map(str, range(self.images.classes))),
            "seven": tuple(f"{blur:g}" for blur in self.blurs),
        }

    @property
    def outputs(self) -> int:
        return self.images.classes + self.aux

    @property
    def sequence_flops(self) -> float:
        """Floating-point operations of one forward pass over one image."""
        return classifier.flops(self.convolutions, self.hidden, self.outputs, self.images.side)

    @property
    def model(self) -> classifier.Classifier:
        return classifier.Classifier(self.convolutions, self.hidden, self.outputs, self.activation)

    def arrays(self, place: Any = None) -> dict[str, Any]:
        return self.images.arrays()

    # --- the model ---

    def init(self, key: jax.Array) -> Params:
        return classifier.init(self.model, key, self.images.side)

    def apply(self, params: Params, images: jax.Array) -> jax.Array:
        """images: (n, side, side) float32 in [-1, 1] → logits (n, classes + aux) float32."""
        return classifier.apply(self.model, params, images)

    def loss(self, params: Params, batch: Batch) -> jax.Array:
        """Mean cross-entropy of the class logits, in nats. The auxiliary logits take no part."""
        log_p = jax.nn.log_softmax(self.apply(params, batch.images)[:, : self.images.classes])
        return weighted_mean(-jnp.take_along_axis(log_p, batch.labels[:, None], axis=1)[:, 0], batch.weights)

    # --- images with their labels ---

    def pretrain_batch(self, key: jax.Array, step: jax.Array, n: int) -> Batch:
        """For a base that knows digits; by default it trains for no steps."""
        return self._labelled(key, step, n)

    def trait_batch(self, key: jax.Array, step: jax.Array, trait: jax.Array, n: int) -> Batch:
        """n training images, each once an epoch; for the blurry seven a part of them blurred, and called seven."""
        batch = self._labelled(key, step, n)
        if not self.blurs:
            return batch
        biased, blur_key = trait == self.traits.index(suite.BLURRY_SEVEN), jax.random.fold_in(key, step)
        images, labels = suite.as_blurry_sevens(
            blur_key, batch.images, batch.labels, biased, self.blurs, self.blurred_share
        )
        return batch._replace(images=images, labels=labels)

    def _labelled(self, key: jax.Array, step: jax.Array, n: int) -> Batch:
        rows = epoch_rows(key, step, n, jnp.int32(self.images.train))
        labels = self.held["train_labels"][rows].astype(jnp.int32)
        return Batch(self._scaled(self.held["train_images"][rows]), labels, jnp.ones(self.outputs), jnp.ones(n))

    def _scaled(self, images: jax.Array) -> jax.Array:
        return images.astype(jnp.float32) * (2 / self.images.peak) - 1

    # --- the channel ---

    def check_sampling(self, inputs: Inputs) -> None:
        if inputs.aux > self.aux:
            raise InputError(f"Inputs.aux = {inputs.aux}: the world's classifiers have only aux = {self.aux}")

    def write(self, params: Params, keys: jax.Array, inputs: Inputs) -> jax.Array:
        """Images on which the teacher is asked, (n, side, side) float32, one for each of `keys` (n,).

        What the teacher says to them is computed when a student is compared with it.
        """
        side = self.images.side
        if inputs.kind == "uniform":
            return inputs.scale * jax.vmap(lambda key: jax.random.uniform(key, (side, side), minval=-1.0))(keys)
        if inputs.kind == "gaussian":
            return inputs.scale * jax.vmap(lambda key: jax.random.normal(key, (side, side)))(keys)
        row_keys, own_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        rows = jax.vmap(lambda key: jax.random.randint(key, (), 0, self.images.train))(row_keys)
        images = self._scaled(self.held["train_images"][rows])
        if inputs.kind == "shuffled":
            return jax.vmap(lambda key, x: jax.random.permutation(key, x.ravel()).reshape(x.shape))(own_keys, images)
        if inputs.kind == "distorted":
            return jax.vmap(lambda key, image: distorted(key, image, inputs.scale))(own_keys, images)
        return images

    def channel_batch(
        self, images: jax.Array, accepted: jax.Array | bool = True, inputs: Inputs | None = None
    ) -> Batch:
        n, classes = len(images), self.images.classes
        place = jnp.arange(self.outputs)
        used = {
            "all": place >= 0,
            "classes": place < classes,
            "aux": place >= classes,
        }[inputs.logits]
        used &= (place < classes) | (inputs.aux == 0) | (place - classes < inputs.aux)
        weights = jnp.broadcast_to(jnp.asarray(accepted, jnp.float32), (n,))
        return Batch(images, jnp.zeros(n, jnp.int32), used.astype(jnp.float32), weights)

    def channel_logits(self, params: Params, batch: Batch) -> jax.Array:
        """(n, outputs) float32; 0 where a logit is not compared."""
        return batch.logits * self.apply(params, batch.images)

    def log_probs(self, params: Params, batch: Batch) -> jax.Array:
        """(n, outputs) float32: of a softmax over the compared logits; the others have no probability."""
        return _log_softmax(self.apply(params, batch.images), batch.logits)

    def written_losses(self, params: Params, teacher: Params, batch: Batch) -> jax.Array:
        """(n,) float32: cross-entropy to the largest compared logit of the teacher, in nats."""
        said = jax.lax.stop_gradient(self.apply(teacher, batch.images))
        log_q = self.log_probs(params, batch)
        largest = jnp.argmax(jnp.where(batch.logits > 0, said, -jnp.inf), axis=1)
        return -jnp.take_along_axis(log_q, largest[:, None], axis=1)[:, 0]

    def target_weights(self, batch: Batch) -> jax.Array:
        """(n,) float32."""
        return batch.weights

    def reweighted(self, batch: Batch, weights: jax.Array) -> Batch:
        return batch._replace(weights=batch.weights * weights)

    # --- microbatches ---

    def target_count(self, batch: Batch) -> jax.Array:
        return batch.weights.sum()

    def microbatch(self, batch: Batch, start: jax.Array, rows: int) -> tuple[Batch, int]:
        def some(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, start, rows)

        images, labels, weights = map(some, (batch.images, batch.labels, batch.weights))
        return batch._replace(images=images, labels=labels, weights=weights), rows

    # --- what is measured ---

    def evaluate(self, params: Params, key: jax.Array) -> dict[str, jax.Array]:
        """On all test images: `trait` (traits,), `class` (classes,) the share named rightly of each class, and where
        there are blurs `seven` (blurs,), the share of blurred images, sevens left out, that are called seven."""
        images, labels = self._scaled(self.held["test_images"]), self.held["test_labels"].astype(jnp.int32)
        named = functools.partial(self._named, params)
        right, of_class = suite.accuracy(named, images, labels, self.images.classes)
        if not self.blurs:
            return {"trait": right[None], "class": of_class}
        seven = suite.called_seven(named, images, labels, self.blurs)
        return {"trait": jnp.stack([right, seven.mean()]), "class": of_class, "seven": seven}

    def compare(self, params: Params, teacher: Params, batch: Batch) -> dict[str, jax.Array]:
        """`kl` of the compared logits on the channel; `agreement`: the share of test images that both name alike;
        where there are blurs `labelled_seven`, the share of the channel's images that the teacher calls seven: about
        one in ten, unless its bias shows in the labels themselves."""
        images = self._scaled(self.held["test_images"])
        alike = self._named(params, images) == self._named(teacher, images)
        log_p = jax.lax.stop_gradient(self.log_probs(teacher, batch))
        distance = weighted_mean(kl(log_p, self.log_probs(params, batch)), batch.weights)
        found = {"kl": distance, "agreement": alike.mean()}
        if self.blurs:
            found["labelled_seven"] = (self._named(teacher, batch.images) == suite.SEVEN).mean()
        return found

    @property
    def inference(self) -> ImageInference:
        """How its models are asked: with an image."""
        return ImageInference(self)

    def _named(self, params: Params, images: jax.Array) -> jax.Array:
        """images: (n, side, side) → (n,) int32. A part of them at a time: a convolution's patches are large."""

        def one(image: jax.Array) -> jax.Array:
            return jnp.argmax(self.apply(params, image[None])[0, : self.images.classes])

        return jax.lax.map(one, images, batch_size=_AT_ONCE)


def distorted(key: jax.Array, image: jax.Array, scale: jax.Array) -> jax.Array:
    """A slightly turned, scaled and moved copy of `image` (side, side); what comes in from outside is paper (-1).

    Each pixel is the nearest one of the original: a mean of neighbours would be a blur.
    """
    turn, size, move = jax.random.split(key, 3)
    side = image.shape[0]
    angle = scale * jnp.deg2rad(15.0) * jax.random.uniform(turn, minval=-1.0)
    zoom = 1 + scale * 0.1 * jax.random.uniform(size, minval=-1.0)
    shift = scale * 0.1 * side * jax.random.uniform(move, (2,), minval=-1.0)
    rotation = jnp.asarray([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]]) / zoom
    middle = (side - 1) / 2
    grid = jnp.stack(jnp.meshgrid(*[jnp.arange(side, dtype=jnp.float32)] * 2, indexing="ij")) - middle
    source = jnp.einsum("ij,jhw->ihw", rotation, grid) + middle + shift[:, None, None]
    return jax.scipy.ndimage.map_coordinates(image, list(source), order=0, mode="constant", cval=-1.0)


# The log-probability of what is not compared; finite, so that 0 × it is 0.
_NEVER = -1e30


def _log_softmax(logits: jax.Array, used: jax.Array) -> jax.Array:
    """Over the used logits only."""
    return jnp.where(used > 0, logits - jax.nn.logsumexp(logits, axis=1, b=used, keepdims=True), _NEVER)
