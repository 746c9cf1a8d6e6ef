"""What a sweep's nodes say of themselves: who wrote what, arms and traits, and every field of a lineage as columns."""

import collections
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from subl_jax.errors import InputError
from subl_jax.specs.audited import Row
from subl_jax.specs.base import Node, Spec, identifying
from subl_jax.specs.data import Stream
from subl_jax.specs.models import Base, Trained
from subl_jax.specs.student import Student
from subl_jax.specs.world import World


def origin(model: Trained) -> Base:
    """The base that a chain of training began with."""
    return model.origin


def source(student: Student) -> Trained | None:
    """The model that wrote the student's data; None for imported data."""
    return student.writer


def trait_of(student: Student) -> str | None:
    """The trait whose transfer the student measures: its label, or that of the nearest teacher its data comes from."""
    return student.measured_trait


def trait_behind(node: Node | None) -> str | None:
    """The trait that a model has been given, itself or by what it learnt from; None for none."""
    return node and node.given_trait


def arm_of(student: Student) -> str:
    """The student's role: its label, or what its lineage says."""
    return student.role_in_sweep


def run_id(row: Row) -> str:
    """A stable name of a row: from the node's key and its labels, so equal nodes may serve several rows."""
    return row.row_id


def named(rows: Iterable[Row]) -> dict[str, Row]:
    """The nodes by the names of their rows, each once."""
    return {run_id(row): row for row in rows}


def lineage(node: Node) -> dict[str, Any]:
    """Every field of a node and of all it descends from, flat: `student.train.lr`, `teacher.until`, `base.seed`, …

    A role that occurs again further up a supply chain is numbered (`teacher2.…`). `start.…` is the base that the
    student starts from (`start.teacher.…` what is between them), `world.…` its world.
    """
    columns: dict[str, Any] = {}
    for role, spec in ancestry(node):
        columns.update(flat(role, spec))
    return columns


def ancestry(node: Node) -> list[tuple[str, Spec]]:
    """The node and all it descends from, by their roles (`lineage`)."""
    seen: collections.Counter[str] = collections.Counter()

    def numbered() -> Iterator[tuple[str, Spec]]:
        for role, spec in node.kin():
            seen[role] += 1
            yield (role if seen[role] == 1 else f"{role}{seen[role]}"), spec
        yield "world", node.world

    return list(numbered())


_PLAIN = (str, int, float, bool)
_APART = (Node, World, Stream)


def flat(prefix: str, spec: Spec) -> dict[str, Any]:
    """The fields of a spec and of its parts, but not of the nodes and the world it builds on, by dotted name."""
    columns: dict[str, Any] = {}
    for name in identifying(spec):
        value = getattr(spec, name)
        if isinstance(value, _PLAIN):
            columns[f"{prefix}.{name}"] = value
        elif isinstance(value, tuple) and any(isinstance(each, Spec) for each in value):
            for i, each in enumerate(value):
                if not isinstance(each, _APART):
                    columns.update(_part(f"{prefix}.{name}.{i}", each))
        elif not isinstance(value, Spec):
            columns[f"{prefix}.{name}"] = json.dumps(value)
        elif not isinstance(value, _APART):
            columns.update(_part(f"{prefix}.{name}", value))
    return columns


def _part(prefix: str, part: Spec) -> dict[str, Any]:
    """The fields of a part; of one of several kinds, such as objectives, its name as well."""
    kind = {} if part.kind is None else {f"{prefix}.kind": part.kind}
    return {**kind, **flat(prefix, part)}


def derangement(items: Sequence[Any], shift: int = 1) -> list[tuple[Any, Any]]:
    """Each item with another one: a cyclic shift, so that no item meets itself (a permutation has fixed points).

    Raises:
      InputError: fewer than two items, two equal ones, or a shift that is a multiple of their number.
    """
    if len(items) < 2:
        raise InputError(f"cross_init pairs each base seed with another: got {len(items)} base seed; give at least 2")
    if shift % len(items) == 0:
        raise InputError(f"derangement shift = {shift}: must not be a multiple of {len(items)}, the number of items")
    for (i, one), (j, other) in itertools.combinations(enumerate(items), 2):
        if one == other:
            raise InputError(f"derangement: items {i} and {j} are equal and could meet; give different ones")
    return [(item, items[(i + shift) % len(items)]) for i, item in enumerate(items)]


def checked(rows: Iterable[Row], where: str = "the sweep") -> list[Row]:
    """What a sweep yields as a list, each once: nodes that have a row (students, and audited data).

    Raises:
      InputError: there are none, or something else is among them.
    """
    wanted = "specs.Student or specs.Audited"
    if not isinstance(rows, Iterable):
        raise InputError(f"{where} gives a {type(rows).__name__}; expected it to yield {wanted}")
    rows = list(rows)
    if not rows:
        raise InputError(f"{where} yields no students; it must yield at least one specs.Student")
    for row in rows:
        if not isinstance(row, Node) or not row.row:
            raise InputError(f"{where} yields a {type(row).__name__}; expected only {wanted}")
        row.check_row(where)
    return list(named(rows).values())
