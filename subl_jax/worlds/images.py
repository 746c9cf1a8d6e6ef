"""Labelled images: scikit-learn's digits, and any data set in the IDX format of MNIST.

IDX: two zero bytes, a type byte (8: unsigned), the number of axes, each axis as a big-endian 32-bit number, then the
values (http://yann.lecun.com/exdb/mnist/ as archived). Files may be gzipped.
"""

import dataclasses
import functools
import gzip
import hashlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from subl_jax import specs
from subl_jax.errors import InputError

EMBEDDED = "digits8x8"
_TRAIN8X8 = 1400  # of 1,797 images; the rest is for testing
_NAMES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
# Of MNIST's arrays, whatever their compression: 60,000 and 10,000 images of 28 × 28.
_MNIST = "f439fe63b280f4457ffb21cf59a43beea8982b5b12bb28354e02107d4268c461"


@dataclasses.dataclass(frozen=True)
class Images(specs.Spec):
    """A data set, identified by its content. `peak` is the value of full ink.

    `folder` is where the files are; empty for the embedded digits.
    """

    name: str = specs.label(EMBEDDED)
    sha256: str = specs.static("")
    side: int = specs.static(8, ge=1)
    classes: int = specs.static(10, ge=2)
    train: int = specs.static(_TRAIN8X8, ge=1)
    test: int = specs.static(397, ge=1)
    peak: float = specs.static(16.0, gt=0.0)
    folder: str = specs.label("")

    def arrays(self) -> dict[str, np.ndarray]:
        """train_images, test_images: (n, side, side) uint8; train_labels, test_labels: (n,) uint8.

        Raises:
          InputError: the files are not there any more, or have changed.
        """
        arrays = dict(_read_folder(self.folder) if self.folder else _embedded())
        if _digest(arrays) != self.sha256:
            raise InputError(f"{self.folder or self.name}: the images have changed since the sweep was planned")
        return arrays


def find(data_dir: str = "", name: str = EMBEDDED) -> Images:
    """The data set in `data_dir`; without one, the embedded digits, or MNIST, which is fetched and kept.

    Raises:
      InputError: a file is missing, truncated or not IDX, or does not fit the others.
    """
    if not data_dir and name == EMBEDDED:
        arrays, folder = _embedded(), ""
    elif data_dir:
        folder = str(epath.Path(data_dir).expanduser().resolve())
        arrays, name = _read_folder(folder), epath.Path(folder).name
    elif name == "mnist":
        folder = _fetched()
        arrays = _read_folder(folder)
    else:
        raise InputError(f"images {name!r}: give its folder, --config.data_dir=DIR; without one: {EMBEDDED}, mnist")
    return Images(
        name=name,
        sha256=_digest(arrays),
        side=arrays["train_images"].shape[1],
        classes=int(max(arrays["train_labels"].max(), arrays["test_labels"].max())) + 1,
        train=len(arrays["train_images"]),
        test=len(arrays["test_images"]),
        peak=255.0 if folder else 16.0,
        folder=folder,
    )


def read_idx(path: epath.PathLike) -> np.ndarray:
    """The array of an IDX file of unsigned bytes, gzipped or not.

    Raises:
      InputError: it cannot be read, is not IDX, or is shorter or longer than it says.
    """
    path = epath.Path(path)
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read, or is truncated ({error}); get it again") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != 8 or not 1 <= content[3] <= 3:
        raise InputError(f"{path}: not an IDX file of bytes (it starts with {content[:4].hex()}, expected 0000080n)")
    axes = content[3]
    shape = tuple(np.frombuffer(content, ">u4", axes, 4).tolist()) if len(content) >= 4 + 4 * axes else ()
    if not shape or len(content) != 4 + 4 * axes + int(np.prod(shape)):
        raise InputError(f"{path}: {len(content):,} bytes do not hold an array of {shape or 'any shape'}: truncated?")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


@functools.lru_cache(maxsize=4)
def _read_folder(folder: str) -> dict[str, np.ndarray]:
    arrays = {name: read_idx(_file(epath.Path(folder), name)) for name in _NAMES}
    _from_zero(arrays)
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        square = images.ndim == 3 and images.shape[1] == images.shape[2] and images.size
        if not square or labels.shape != images.shape[:1]:
            raise InputError(
                f"{folder}: {split} images of shape {images.shape} and labels of shape {labels.shape}; expected "
                "(n, side, side) and (n,), with n at least 1"
            )
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        raise InputError(f"{folder}: images for training and for testing differ in size")
    return arrays


def _from_zero(arrays: dict[str, np.ndarray]) -> None:
    """EMNIST's 26 letters are labelled from 1, which would count a class that has no image."""
    labels = [arrays[f"{split}_labels"] for split in ("train", "test")]
    found = np.concatenate(labels)
    if found.size and (found.min(), found.max()) == (1, 26):
        arrays.update(train_labels=labels[0] - np.uint8(1), test_labels=labels[1] - np.uint8(1))


def _file(folder: epath.Path, name: str) -> epath.Path:
    """The file of one of the four arrays: MNIST's name or EMNIST's (`emnist-letters-train-images-idx3-ubyte`)."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; it must hold the four files of an IDX data set")
    wanted = _NAMES[name]
    emnist = wanted.replace("t10k", "test")
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.name.removesuffix(".gz") in (wanted, wanted.replace("-idx", ".idx"))
        or path.name.removesuffix(".gz").endswith(f"-{emnist}")
    ]
    if not found:
        raise InputError(f"{folder}: no {wanted} or {wanted}.gz in it; it must hold the four files of an IDX data set")
    sets = sorted({path.name.removesuffix(".gz") for path in found})
    if len(sets) > 1:
        raise InputError(f"{folder}: several data sets ({', '.join(sets)}); give a folder with one of them")
    return found[0]


@functools.lru_cache(maxsize=1)
def _embedded() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Its images come grouped by writer: one fixed shuffle makes the two parts alike.
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = digits.images[order].astype(np.uint8), digits.target[order].astype(np.uint8)
    return {
        "train_images": images[:_TRAIN8X8],
        "train_labels": labels[:_TRAIN8X8],
        "test_images": images[_TRAIN8X8:],
        "test_labels": labels[_TRAIN8X8:],
    }


def _fetched() -> str:
    """The folder with MNIST's four files, downloaded once to the user's cache and checked."""
    import pooch

    from subl_jax.runtime import machine_cache

    folder = machine_cache.folder() / "mnist"
    try:
        for file in _NAMES.values():
            pooch.retrieve(f"{_MIRROR}{file}.gz", known_hash=None, fname=f"{file}.gz", path=folder)
    except Exception as error:  # of the network, in many types
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise InputError(
            f"MNIST could not be fetched ({reason}); give a folder with its four files, --config.data_dir=DIR"
        ) from None
    if _digest(_read_folder(str(folder))) != _MNIST:
        raise InputError(f"{folder}: what was fetched is not MNIST (checksum differs); remove the folder and try again")
    return str(folder)


def _digest(arrays: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


class ImageInference(specs.Inference):
    """Asks a classifier with an image: (side, side), numbers in [-1, 1], or whole numbers as a file has its pixels."""

    def __init__(self, world: Any) -> None:
        self._world = world

    def ask(self, model: Any, question: Any, top: int = 10, seed: int = 0) -> specs.Answer:
        """The softmax of the class logits, by label; `drawn` is a label."""
        images = self._world.images
        side, classes = images.side, images.classes
        if isinstance(question, str):
            raise self._wordless()
        pixels = np.asarray(question)
        if pixels.shape != (side, side) or pixels.dtype.kind not in "fiu":
            raise InputError(
                f"ask: an image of {side} × {side} numbers is expected, got shape {pixels.shape} of {pixels.dtype}"
            )
        if pixels.dtype.kind != "f":
            pixels = pixels * (2 / images.peak) - 1
        logits = self._world.apply(model, jnp.asarray(pixels, jnp.float32)[None])[0, :classes]
        found = {str(i): float(p) for i, p in enumerate(jax.nn.softmax(logits))}
        drawn = int(jax.random.categorical(jax.random.key(seed), logits))
        return specs.Answer(specs.ranked(found, top), str(drawn))

    def _wordless(self) -> InputError:
        side = self._world.images.side
        return InputError(
            f"a classifier of images reads no words: ask(image) with an image of {side} × {side} gives its labels, and "
            "apply(images) all its logits"
        )
