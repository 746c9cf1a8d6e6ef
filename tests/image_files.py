"""A tiny data set of images as the four IDX files that people have."""

import pathlib
import struct
from collections.abc import Callable

import numpy as np

RNG = np.random.default_rng(0)
SETS = {
    "train-images-idx3-ubyte": RNG.integers(0, 256, (20, 5, 5), np.uint8),
    "train-labels-idx1-ubyte": np.arange(20, dtype=np.uint8) % 10,
    "t10k-images-idx3-ubyte": RNG.integers(0, 256, (10, 5, 5), np.uint8),
    "t10k-labels-idx1-ubyte": np.arange(10, dtype=np.uint8),
}


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def folder(path: pathlib.Path, change: Callable = lambda name, content: (name, content)) -> str:
    """Writes the four files into `path`, each as `change(name, content)` gives it."""
    for name, array in SETS.items():
        name, content = change(name, idx(array))
        (path / name).write_bytes(content)
    return str(path)
