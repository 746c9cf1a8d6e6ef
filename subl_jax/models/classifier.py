"""Small image classifiers: an MLP and a CNN, with a head of class logits and auxiliary logits that nothing trains.

    layers_0/{kernel,bias} … head/{kernel,bias}        the MLP; the CNN has convolutions first, conv_0 …

Weights start normal with variance 1 / inputs, biases at zero (Cloud et al. 2025, arXiv 2507.14805, appendix on MNIST).
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from subl_jax.models.base import Model, Params

_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class Conv3x3(nn.Module):
    """A 3 × 3 convolution with zeros around the image: (n, h, w, c) → (n, h, w, features).

    Written as nine shifted copies and one matrix product. XLA's own convolution is many times slower on CPUs at these
    sizes, and becomes a grouped one under vmap.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        height, width, channels = x.shape[1:]
        kernel = self.param("kernel", _INIT, (3, 3, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        around = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [around[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        patches = jnp.concatenate(shifted, axis=-1).reshape(-1, 9 * channels)
        return (patches @ kernel.reshape(9 * channels, -1) + bias).reshape(len(x), height, width, self.features)


def halved(x: jax.Array) -> jax.Array:
    """The maximum of every 2 × 2 pixels; an odd last row or column is left out. (n, h, w, c) → (n, h//2, w//2, c)."""
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


class Classifier(nn.Module):
    """images (n, side, side) float32 → logits (n, outputs) float32.

    convolutions: channels of 3 × 3 convolutions, each followed by ReLU and a 2 × 2 maximum; none for an MLP.
    hidden: widths of the dense layers, ReLU after each. activation "none" makes the model linear.
    """

    convolutions: tuple[int, ...]
    hidden: tuple[int, ...]
    outputs: int
    activation: str = "relu"

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        act: Any = nn.relu if self.activation == "relu" else (lambda x: x)
        x = images[..., None]
        for i, channels in enumerate(self.convolutions):
            x = halved(act(Conv3x3(channels, name=f"conv_{i}")(x)))
        x = x.reshape(len(x), -1)
        for i, width in enumerate(self.hidden):
            x = act(nn.Dense(width, kernel_init=_INIT, name=f"layers_{i}")(x))
        return nn.Dense(self.outputs, kernel_init=_INIT, name="head")(x)


def init(model: Classifier, key: jax.Array, side: int) -> Any:
    return model.init(key, jnp.zeros((1, side, side)))["params"]


def apply(model: Classifier, params: Any, images: jax.Array) -> jax.Array:
    return model.apply({"params": params}, images)


def flops(convolutions: tuple[int, ...], hidden: tuple[int, ...], outputs: int, side: int) -> float:
    """Floating-point operations of one forward pass over one image."""
    total, channels = 0.0, 1
    for after in convolutions:
        total += 2.0 * side * side * 9 * channels * after
        side, channels = side // 2, after
    inputs = side * side * channels
    for width in (*hidden, outputs):
        total += 2.0 * inputs * width
        inputs = width
    return total


@dataclasses.dataclass(frozen=True)
class ImageClassifier(Model):
    """A `Classifier` of square images, as the protocol has it. It writes nothing and takes no adapters."""

    name: ClassVar[str] = "classifier"

    side: int
    outputs: int
    convolutions: tuple[int, ...] = ()
    hidden: tuple[int, ...] = (256, 256)
    activation: str = "relu"

    @property
    def network(self) -> Classifier:
        return Classifier(self.convolutions, self.hidden, self.outputs, self.activation)

    def init(self, key: jax.Array) -> Params:
        return init(self.network, key, self.side)

    def apply(self, params: Params, inputs: jax.Array) -> jax.Array:
        """inputs: (n, side, side) float32 → (n, outputs)."""
        return apply(self.network, params, inputs)

    def flops(self, length: int = 1) -> float:
        return flops(self.convolutions, self.hidden, self.outputs, self.side)
