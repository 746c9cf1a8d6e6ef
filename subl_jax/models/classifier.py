"""Small image classifiers: an MLP and a CNN, with a head of class logits and auxiliary logits that nothing trains.

    layers_0/{kernel,bias} … head/{kernel,bias}        the MLP; the CNN has convolutions first, conv_0 …

Weights start normal with variance 1 / inputs, biases at zero (Cloud et al. 2025, arXiv 2507.14805, appendix on MNIST).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


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
            x = act(nn.Conv(channels, (3, 3), kernel_init=_INIT, name=f"conv_{i}")(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
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
