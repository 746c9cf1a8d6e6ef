"""Reading GGUF files: the metadata, and where each tensor lies.

The `gguf` package knows the quantisations and is used for them. The header is read here: its reader trusts the counts
in the file, so that a damaged one can keep it busy for ever, and it takes seconds for a large vocabulary.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import dataclasses
import math
import mmap
import pathlib
import struct
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from subl_jax.errors import InputError

_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file: `shape` as in numpy (rows first), `read` gives it in float32 or as stored."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata and the tensors of a GGUF file.

    Metadata values are Python scalars and strings, lists of strings, and numpy arrays of numbers. Tensors are
    de-quantised to float32 when they are read; until then the file is only mapped.

    Raises:
      InputError: the file is not GGUF, is cut short or damaged, is one part of a split file, has a quantisation that
        cannot be read, or the package `gguf` is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise InputError(f"{path}: reading GGUF needs the package gguf: pip install 'subl_jax[chat]'") from None
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    header = _Header(path, data)
    if header.take(4) != b"GGUF":
        header.fail("is not a GGUF file")
    version = header.number("<u4")
    if version not in _VERSIONS:
        header.fail(f"has GGUF version {version}, not one of {', '.join(map(str, _VERSIONS))} (little-endian)")
    tensor_count, entries = header.number("<u8"), header.number("<u8")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = header.string()
        if key in metadata:
            header.fail(f"has the key {key!r} twice")
        metadata[key] = header.value(header.number("<u4"))
    if metadata.get("split.count", 0) not in (0, 1):
        header.fail("is one part of a split file: join the parts first (llama-gguf-split --merge)")

    places = {}
    for _ in range(tensor_count):
        name = header.string()
        if name in places:
            header.fail(f"has the tensor {name!r} twice")
        places[name] = header.tensor_info()
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        header.fail(f"has general.alignment = {alignment!r}")
    begin = -(-header.offset // alignment) * alignment
    tensors = {}
    for name, (dimensions, kind, offset) in places.items():
        tensors[name] = _tensor(gguf, header, name, dimensions, kind, begin + offset)
    return metadata, tensors


def _tensor(gguf: Any, header: "_Header", name: str, dimensions: list[int], kind: int, begin: int) -> Tensor:
    try:
        quantisation = gguf.GGMLQuantizationType(kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[quantisation]
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), quantisation)
    except (KeyError, ValueError, NotImplementedError):
        header.fail(f"has the tensor {name!r} in a form that gguf cannot read (type {kind})")
    shape = tuple(reversed(dimensions))
    if shape[-1] % block:
        header.fail(f"has the tensor {name!r} with rows of {shape[-1]}, which {quantisation.name} cannot store")
    rows, row_bytes = math.prod(shape[:-1]), shape[-1] // block * block_bytes
    if begin + rows * row_bytes > len(header.data):
        header.fail(f"is cut short: the tensor {name!r} lies beyond its end")

    def read() -> np.ndarray:
        raw = np.frombuffer(header.data, np.uint8, rows * row_bytes, begin).reshape(rows, row_bytes)
        return gguf.dequantize(raw, quantisation).reshape(shape)

    return Tensor(shape, read)


class _Header:
    """A cursor over the file that never reads beyond its end."""

    def __init__(self, path: pathlib.Path, data: mmap.mmap) -> None:
        self.path, self.data, self.offset = path, data, 0

    def fail(self, what: str) -> NoReturn:
        raise InputError(f"{self.path}: {what}")

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.offset:
            self.fail("is cut short or damaged: its header runs beyond its end")
        self.offset += count
        return self.data[self.offset - count : self.offset]

    def number(self, dtype: str) -> int:
        return int.from_bytes(self.take(np.dtype(dtype).itemsize), "little")

    def string(self) -> str:
        raw = self.take(self.number("<u8"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail("is damaged: a string in its header is not text")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalars(kind, 1)[0].item()
        of, count = struct.unpack("<IQ", self.take(12))
        return [self.string() for _ in range(count)] if of == _STRING else self.scalars(of, count)

    def scalars(self, kind: int, count: int) -> np.ndarray:
        if kind not in _SCALARS:
            self.fail(f"is damaged: no value has the type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def tensor_info(self) -> tuple[list[int], int, int]:
        """Dimensions (fastest first), quantisation, and offset in the data."""
        count = self.number("<u4")
        if not 1 <= count <= _MOST_DIMENSIONS:
            self.fail(f"is damaged: a tensor has {count} dimensions")
        dimensions = [self.number("<u8") for _ in range(count)]
        if not all(dimensions):
            self.fail("is damaged: a tensor has a dimension of 0")
        return dimensions, self.number("<u4"), self.number("<u8")
