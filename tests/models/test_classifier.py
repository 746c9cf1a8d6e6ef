"""The classifiers against torch, and their start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subl_jax.models import classifier
from subl_jax.models.classifier import Classifier

IMAGES = np.random.default_rng(0).uniform(-1, 1, (6, 8, 8)).astype(np.float32)


def test_the_mlp_is_torchs():
    torch = pytest.importorskip("torch")
    model = Classifier((), (16, 12), 13)
    params = classifier.init(model, jax.random.key(0), 8)
    x = torch.tensor(IMAGES).reshape(6, -1)
    for name in ("layers_0", "layers_1", "head"):
        x = x @ torch.tensor(np.array(params[name]["kernel"])) + torch.tensor(np.array(params[name]["bias"]))
        x = torch.relu(x) if name != "head" else x
    np.testing.assert_allclose(classifier.apply(model, params, IMAGES), x.numpy(), rtol=1e-5, atol=1e-5)


def test_the_cnn_is_torchs():
    torch = pytest.importorskip("torch")
    model = Classifier((4, 6), (10,), 13)
    params = classifier.init(model, jax.random.key(0), 8)
    x = torch.tensor(IMAGES)[:, None]
    for name in ("conv_0", "conv_1"):
        kernel = torch.tensor(np.array(params[name]["kernel"])).permute(3, 2, 0, 1)
        x = torch.nn.functional.conv2d(x, kernel, torch.tensor(np.array(params[name]["bias"])), padding=1)
        x = torch.nn.functional.max_pool2d(torch.relu(x), 2)
    x = x.permute(0, 2, 3, 1).reshape(6, -1)  # flax flattens channels last
    for name in ("layers_0", "head"):
        x = x @ torch.tensor(np.array(params[name]["kernel"])) + torch.tensor(np.array(params[name]["bias"]))
        x = torch.relu(x) if name != "head" else x
    np.testing.assert_allclose(classifier.apply(model, params, IMAGES), x.numpy(), rtol=1e-4, atol=1e-5)


def test_weights_start_with_variance_one_over_inputs_and_biases_at_zero():
    params = classifier.init(Classifier((), (256, 256), 13), jax.random.key(1), 28)
    for name, inputs in (("layers_0", 784), ("layers_1", 256), ("head", 256)):
        kernel = np.asarray(params[name]["kernel"])
        assert kernel.shape[0] == inputs and kernel.std() * np.sqrt(inputs) == pytest.approx(1, rel=0.05)
        assert abs(kernel.mean()) < 0.01 and not np.any(params[name]["bias"])


def test_without_an_activation_it_is_linear():
    model = Classifier((), (16,), 5, activation="none")
    params = classifier.init(model, jax.random.key(0), 8)
    one, two = jnp.asarray(IMAGES[:3]), jnp.asarray(IMAGES[3:])
    both = classifier.apply(model, params, one + two)
    np.testing.assert_allclose(
        both, classifier.apply(model, params, one) + classifier.apply(model, params, two), rtol=1e-4, atol=1e-5
    )


def test_operations_are_counted():
    assert classifier.flops((), (256, 256), 13, 28) == 2 * (784 * 256 + 256 * 256 + 256 * 13)
    assert classifier.flops((4,), (), 10, 8) == 2 * 64 * 9 * 4 + 2 * 4 * 4 * 4 * 10
