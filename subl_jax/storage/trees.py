"""Trees of arrays and curves as the named tensors of one file, and back."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_DTYPES = frozenset(
    ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    + ("float16", "bfloat16", "float32", "float64", "complex64")
)


def tensors_of(
    n: int, tree: Any, curves: Mapping[str, np.ndarray], steps: np.ndarray | None
) -> tuple[dict[str, np.ndarray], Any]:
    """Every array by name, and the tree with names in place of its arrays."""
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, array: Any, rows: bool = True) -> str:
        array = np.ascontiguousarray(array).reshape(np.shape(array))  # ascontiguousarray makes 0-d arrays 1-d
        if array.dtype.name not in _DTYPES:
            raise TypeError(f"{name}: arrays of {array.dtype} cannot be stored")
        if rows and array.shape[:1] != (n,):
            raise ValueError(f"{name}: shape {array.shape}, expected a leading axis of {n} rows")
        if name in tensors:
            raise ValueError(f"{name}: two arrays of this name")
        tensors[name] = array
        return name

    def walk(path: str, node: Any) -> Any:
        if node is None:
            return None
        if isinstance(node, Mapping):
            if not all(isinstance(key, str) for key in node):
                raise TypeError(f"{path}: dict keys must be strings")
            return {key: walk(f"{path}/{key}", value) for key, value in node.items()}
        if type(node) is list:
            return [walk(f"{path}/{i}", value) for i, value in enumerate(node)]
        if isinstance(node, tuple):
            raise TypeError(f"{path}: tuples do not come back as they were; use dicts and lists")
        return add(path, node)

    structure = walk("tree", tree)
    for metric, values in curves.items():
        if np.ndim(values) != 2:
            raise ValueError(f"curve {metric}: shape {np.shape(values)}, expected (rows, points)")
        add(f"curves/{metric}", values)
    if steps is not None:
        add("steps", steps, rows=False) if np.ndim(steps) == 1 else add("row_steps", steps)
    return tensors, structure


def map_names(function: Callable[[str], np.ndarray], structure: Any) -> Any:
    if isinstance(structure, dict):
        return {key: map_names(function, value) for key, value in structure.items()}
    if isinstance(structure, list):
        return [map_names(function, value) for value in structure]
    return None if structure is None else function(structure)


def curves_in(file: Any, rows_of: Callable[[str], np.ndarray]) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
    """`(steps, {metric: values})` of an open data file, where `rows_of` gives the wanted rows of a tensor by name."""
    names = sorted(file.keys())
    values = {name.removeprefix("curves/"): rows_of(name) for name in names if name.startswith("curves/")}
    if "steps" in names:
        return file.get_tensor("steps"), values
    return rows_of("row_steps") if "row_steps" in names else None, values


def row_of(file: Any, name: str, index: int) -> np.ndarray:
    array = file.get_slice(name)[index : index + 1]
    return array.reshape(array.shape[1:])
