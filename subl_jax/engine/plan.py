"""From students to the work that is left: the nodes they need, without the finished ones, in groups of one program."""

import collections
import dataclasses
import json
from collections.abc import Container, Iterable, Sequence

from subl_jax import specs
from subl_jax.engine import nodes
from subl_jax.stages import Stage, check
from subl_jax.storage.store import Store


@dataclasses.dataclass(frozen=True)
class Group:
    """Nodes of one stage that share all their static fields: lanes of one compiled program."""

    stage: Stage
    nodes: tuple[specs.Node, ...]
    form: str  # the static fields, as text

    @property
    def work(self) -> int:
        """What a lane has to do: training steps, or samples to be kept."""
        return nodes.work(self.nodes[0])

    @property
    def flops(self) -> float:
        return sum(self.stage.flops(node) for node in self.nodes)


@dataclasses.dataclass(frozen=True)
class Plan:
    """groups: in an order in which every node's inputs are there; reused: nodes that are stored, by key."""

    rows: tuple[specs.Row, ...]
    groups: tuple[Group, ...]
    reused: dict[str, specs.Node]
    imported: dict[str, specs.Imported]

    @property
    def pending(self) -> int:
        return sum(len(group.nodes) for group in self.groups)

    @property
    def notes(self) -> list[str]:
        """What the worlds of the work that is left have to say, each line once."""
        worlds = [node.world for group in self.groups for node in group.nodes]
        return list(dict.fromkeys(note for world in worlds if isinstance(world, specs.Notes) for note in world.notes))


def make_plan(rows: Iterable[specs.Row], done: Container[str], bare: Container[str] = ()) -> Plan:
    """The work that `rows` (what a sweep yields) still need when the nodes whose keys are in `done` are stored.

    Everything that a row builds on is to be stored, so that its models and data can be loaded: what is missing
    behind a finished node is computed too. Nodes in `bare` are stored without their arrays: they are done, unless what
    is left to compute builds on them.

    Raises:
      InputError: a program cannot be made of what its nodes ask for.
    """
    rows = tuple(rows)
    pending: dict[str, specs.Node] = {}
    reused: dict[str, specs.Node] = {}
    imported: dict[str, specs.Imported] = {}
    stack: list[specs.Node] = list(reversed(rows))
    while stack:
        node = stack.pop()
        if node.key in pending or node.key in reused:
            continue
        if not node.stage:
            imported[node.key] = node
        else:
            (reused if node.key in done else pending)[node.key] = node
            stack.extend(node.inputs().values())
    stack = list(pending.values())
    while stack:
        for parent in stack.pop().inputs().values():
            if parent.key in reused and parent.key in bare:
                pending[parent.key] = reused.pop(parent.key)
                stack.append(parent)
    groups = tuple(_grouped(pending))
    for group in groups:
        check(group.nodes[0])
    return Plan(rows, groups, reused, imported)


def plan_of(rows: Sequence[specs.Row], store: Store) -> Plan:
    """The plan of what is left, after checking that the stored nodes it builds on are whole, and so are the files that
    people read of datasets."""
    while True:
        plan = make_plan(rows, store.done(), store.bare())
        datasets = [key for key, node in plan.reused.items() if nodes.is_data(node)]
        if store.verify(plan.reused) == plan.reused.keys() and store.verify_files(datasets):
            return plan


def _grouped(pending: dict[str, specs.Node]) -> Iterable[Group]:
    """Takes, again and again, the nodes of one program that are ready; a program none of whose nodes has to wait first.

    A teacher of a student of a teacher has the same program as its ancestor, so a program may come more than once.
    """
    forms: dict[str, str] = {}
    waiting: dict[str, int] = {}
    blocked_in: collections.Counter[str] = collections.Counter()
    ready: dict[str, list[specs.Node]] = collections.defaultdict(list)
    consumers: dict[str, list[specs.Node]] = collections.defaultdict(list)
    place = {key: i for i, key in enumerate(pending)}
    texts: dict[str, str] = {}
    for key, node in pending.items():
        forms[key] = _form(node, texts)
        parents = {parent.key for parent in node.inputs().values()} & pending.keys()
        waiting[key] = len(parents)
        for parent in parents:
            consumers[parent].append(node)
        if parents:
            blocked_in[forms[key]] += 1
        else:
            ready[forms[key]].append(node)
    while ready:
        form = min(ready, key=lambda form: (blocked_in[form] > 0, -len(ready[form])))
        # In the order of the students, whatever is finished: a batch that was interrupted has to be met again.
        members = sorted(ready.pop(form), key=lambda node: place[node.key])
        yield Group(nodes.stage(members[0]), tuple(members), form)
        for node in members:
            for consumer in consumers[node.key]:
                waiting[consumer.key] -= 1
                if not waiting[consumer.key]:
                    blocked_in[forms[consumer.key]] -= 1
                    ready[forms[consumer.key]].append(consumer)


def _form(node: specs.Node, texts: dict[str, str]) -> str:
    """The static fields of the node and of the inputs its program reads, as one text."""
    form = specs.static_form(node)
    inputs = {name: parent.shape_form() for name, parent in node.inputs().items()}
    text = json.dumps({**form, "inputs": inputs}, sort_keys=True)
    return texts.setdefault(text, text)
