"""From a stage for one model to a program for many: vmap, sequential chunks, and devices under one shard_map.

The only file that knows of lanes. A batch of lanes is an array axis of size devices × sequential × width: each device
takes its part in `sequential` chunks, one after the other, and runs the `width` lanes of a chunk side by side. Which
of these is fastest differs between machines and shapes, so it is measured where that pays.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.runtime import memory
from subl_jax.stages import Stage

Tree = Any

# On a CPU, chunks are short enough at this many lanes; more would only hold more results back from the store.
_LANES_A_BATCH = {"cpu": 16}
_LANES_A_BATCH_ELSEWHERE = 1024


@dataclasses.dataclass(frozen=True)
class Layout:
    """`devices` hold lanes; or groups of devices do, which have one copy of the world's large arrays between them.

    The `tensor` devices of a group hold its lanes together: a matrix product is split between them. Each of the `fsdp`
    devices of a group has lanes of its own, `width` in all, and brings a layer's arrays together when it needs them.
    """

    devices: int
    sequential: int
    width: int
    tensor: int = 1
    fsdp: int = 1

    @property
    def lanes(self) -> int:
        return self.devices * self.sequential * self.width

    @property
    def all_devices(self) -> int:
        return self.devices * self.fsdp * self.tensor

    @property
    def sharing(self) -> str | None:
        """The axis of devices that have one copy of the world's large arrays between them."""
        return "tensor" if self.tensor > 1 else "fsdp" if self.fsdp > 1 else None

    def __str__(self) -> str:
        many = "s"[: self.devices > 1]
        devices = f"{self.devices} device{many}"
        if self.sharing:
            devices = f"{self.devices} {self.sharing} group{many} of {self.fsdp * self.tensor}"
        return f"{devices} × {self.sequential} in turn × {self.width} wide"


def lanes_a_batch(platform: str) -> int:
    """The most lanes of a batch, where nothing else is asked for."""
    return _LANES_A_BATCH.get(platform, _LANES_A_BATCH_ELSEWHERE)


def lane_key(node: specs.Node) -> np.ndarray:
    """The lane's random key data, (2,) uint32, from the node's own key: no neighbour or place can change it."""
    return np.frombuffer(bytes.fromhex(node.key)[:8], np.uint32)


def lane_values(nodes: Sequence[specs.Node]) -> dict[str, np.ndarray]:
    """The traced fields of each lane, stacked: path → (lanes,) int32 or float32."""
    rows = [specs.traced_values(node) for node in nodes]
    kinds = {name: np.int32 if isinstance(value, int) else np.float32 for name, value in rows[0].items()}
    return {name: np.asarray([row[name] for row in rows], kind) for name, kind in kinds.items()}


def pad(tree: Tree, lanes: int) -> Tree:
    """Repeats the first lane until there are `lanes`; what these compute is thrown away."""
    return jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[:1], lanes - len(x), axis=0)]), tree)


def lane_mesh(layout: Layout) -> Mesh:
    """As many devices of every process as the layout's, process by process."""
    count = jax.process_count()
    of_each = layout.all_devices // count
    chosen = [each for i in range(count) for each in jax.local_devices(process_index=i)[:of_each]]
    shape, kinds = (layout.devices, layout.fsdp, layout.tensor), (AxisType.Auto,) * 3
    return jax.make_mesh(shape, ("lane", "fsdp", "tensor"), axis_types=kinds, devices=chosen)


def own_rows(tree: Tree) -> Tree:
    """The part of arrays with a leading lane axis that is on this process's devices, as numpy arrays."""
    for x in jax.tree.leaves(tree):
        x.copy_to_host_async()
    return jax.tree.map(_own_rows, tree)


def _own_rows(x: jax.Array) -> np.ndarray:
    if x.is_fully_addressable:
        return np.asarray(x)
    indices = x.sharding.addressable_devices_indices_map(x.shape).values()
    first, last = min(index[0].start for index in indices), max(index[0].stop for index in indices)
    rows = np.empty((last - first, *x.shape[1:]), x.dtype)
    for shard in x.addressable_shards:
        lane, *rest = shard.index
        rows[(slice(lane.start - first, lane.stop - first), *rest)] = shard.data
    return rows


# A batch's axis of lanes, over the devices.
_LANES = PartitionSpec(("lane", "fsdp"))


def spread(function: Callable[..., Tree], layout: Layout, mesh: Mesh, donate: tuple[int, ...] = ()) -> Any:
    """`function(common, *lane's own)` as a jitted function of a batch of `layout.lanes`, the lanes' axis leading.

    `common` is the same for all lanes and has no lane axis.
    """

    def on_device(common: Tree, *arguments: Tree) -> Tree:
        def fold(x: jax.Array) -> jax.Array:
            return x.reshape(layout.sequential, layout.width, *x.shape[1:])

        def chunk(arguments: tuple[Tree, ...]) -> Tree:
            if layout.width > 1:
                return jax.vmap(functools.partial(function, common))(*arguments)
            # One lane needs no batch axis, and its program is a little faster without one.
            alone = function(common, *jax.tree.map(lambda x: x[0], arguments))
            return jax.tree.map(lambda x: jnp.asarray(x)[None], alone)

        if layout.sequential == 1:
            return chunk(arguments)
        results = jax.lax.map(chunk, jax.tree.map(fold, arguments))
        return jax.tree.map(lambda x: x.reshape(layout.sequential * layout.width, *x.shape[2:]), results)

    lane = PartitionSpec("lane")
    # The compiler splits over the other axes by itself, after the arrays that are split over them. A loop that goes on
    # until its lane has all it needs then ends on the devices of a group together, as they exchange weights in it.
    by_hand = {"lane"} if layout.sharing else set(mesh.axis_names)

    # check_vma off: nothing crosses lanes, and its bookkeeping rejects constant carries in a stage's own scans.
    def batch(common: Tree, *arguments: Tree) -> Tree:
        in_specs = (PartitionSpec(), *(lane for _ in arguments))
        options = {"mesh": mesh, "in_specs": in_specs, "out_specs": lane, "check_vma": False}
        return jax.shard_map(on_device, axis_names=by_hand, **options)(common, *arguments)

    return jax.jit(batch, donate_argnums=donate, out_shardings=NamedSharding(mesh, _LANES))


@dataclasses.dataclass
class Program:
    """A group's compiled functions for batches of `layout.lanes`.

    start(arguments) → state; advance(arguments, state, steps, measure) → (state, record), which consumes the state.
    `arguments` are (keys, values, inputs) on the devices, from `put`. `arrays` are the world's, once on each device.
    """

    layout: Layout
    sharding: NamedSharding
    state: Tree  # the shapes of a batch's state, with shardings
    compile_seconds: float
    bytes_needed: int  # of each device's memory, as the compiled program reports
    bytes_there: int  # of these, what is on each device already: the world's arrays
    text: str  # the compiled program of `advance`
    arrays: Tree
    _start: Any
    _advance: Any

    @property
    def own(self) -> slice:
        """The lanes of a batch that are on this process's devices: all, where there is one process."""
        of_process = self.layout.lanes // jax.process_count()
        return slice(jax.process_index() * of_process, (jax.process_index() + 1) * of_process)

    def put(self, keys: np.ndarray, values: dict[str, np.ndarray], inputs: Tree) -> Tree:
        """The arguments of the lanes in `own`, padded with copies of the first, whose results are dropped."""
        return self.spread(pad((keys, values, inputs), self.own.stop - self.own.start))

    def spread(self, rows: Tree) -> Tree:
        """Arrays of a whole batch, from each process's own rows."""
        if self.sharding.is_fully_addressable:
            return jax.device_put(rows, self.sharding)

        def whole(x: np.ndarray) -> jax.Array:
            shape = (self.layout.lanes, *x.shape[1:])
            return jax.make_array_from_process_local_data(self.sharding, np.asarray(x), shape)

        return jax.tree.map(whole, rows)

    def start(self, arguments: Tree) -> Tree:
        return self._start(self.arrays, *arguments)

    def advance(self, arguments: Tree, state: Tree, steps: int, measure: bool = True) -> tuple[Tree, Tree]:
        return self._advance((np.int32(steps), np.bool_(measure), self.arrays), *arguments, state)


def precision(matmul: str) -> str | None:
    """What jax calls the way to multiply float32 matrices that `config.engine.matmul` asks for; None: its own way."""
    if matmul == "auto":
        matmul = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if matmul == "bfloat16":
        return "BF16_BF16_F32"
    return None if jax.default_backend() == "cpu" else "highest"


def compile_program(stage: Stage, spec: specs.Node, layout: Layout, inputs: Tree, matmul: str = "auto") -> Program:
    """Compiles `stage` for the group of `spec`. inputs: the shapes of ONE lane's inputs (`jax.ShapeDtypeStruct`s).

    Raises:
      OutOfMemory: it does not fit on the devices.
    """
    began = time.perf_counter()
    mesh = lane_mesh(layout)
    sharding = NamedSharding(mesh, _LANES)

    def batched(tree: Tree) -> Tree:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((layout.lanes, *x.shape), x.dtype, sharding=sharding), tree)

    def bound(values: dict[str, jax.Array], key: jax.Array) -> tuple[Any, jax.Array]:
        return specs.bind(spec, values), jax.random.wrap_key_data(key, impl="threefry2x32")

    def start(arrays: Tree, key: jax.Array, values: dict[str, jax.Array], inputs: Tree) -> Tree:
        return stage.start(*bound(values, key), {**inputs, "world": arrays})

    def advance(common: Tree, key: jax.Array, values: dict[str, jax.Array], inputs: Tree, state: Tree) -> Tree:
        steps, measure, arrays = common
        return stage.advance(*bound(values, key), {**inputs, "world": arrays}, state, steps, measure)

    one = (
        jax.ShapeDtypeStruct((2,), jnp.uint32),
        {name: jax.ShapeDtypeStruct((), x.dtype) for name, x in lane_values([spec]).items()},
        inputs,
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    with memory.noticed(final=True):
        arrays = _placed(spec.world, mesh, layout.sharing)
    state = batched(jax.eval_shape(functools.partial(start, arrays), *one))
    steps, measure = (jax.ShapeDtypeStruct((), kind, sharding=everywhere) for kind in (jnp.int32, jnp.bool_))
    arguments = batched(one)
    with memory.noticed(), jax.default_matmul_precision(precision(matmul)):
        compiled_start = spread(start, layout, mesh).lower(arrays, *arguments).compile()
        of_advance = spread(advance, layout, mesh, donate=(4,)).lower((steps, measure, arrays), *arguments, state)
        compiled_advance = of_advance.compile()
    return Program(
        layout=layout,
        sharding=sharding,
        state=state,
        compile_seconds=time.perf_counter() - began,
        bytes_needed=_bytes_needed(compiled_advance),
        bytes_there=sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(arrays)),
        text=compiled_advance.as_text(),
        arrays=arrays,
        _start=compiled_start,
        _advance=compiled_advance,
    )


@functools.lru_cache(maxsize=2)
def _placed(world: specs.World, mesh: Mesh, sharing: str | None) -> Tree:
    """The world's arrays on the devices: all programs of a sweep read the same copy."""

    def split(path: str, array: np.ndarray) -> jax.Array:
        axis = world.split(path, array.shape)
        even = sharing and axis is not None and array.shape[axis] % mesh.shape[sharing] == 0
        parts = PartitionSpec(*[None] * axis, sharing) if even else PartitionSpec()
        return _on_devices(array, NamedSharding(mesh, parts))

    everywhere = NamedSharding(mesh, PartitionSpec())
    arrays = world.arrays(split)
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else _on_devices(x, everywhere), arrays)


def _on_devices(array: Any, sharding: NamedSharding) -> jax.Array:
    """An array that each process has the whole of."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _bytes_needed(compiled: Any) -> int:
    report = compiled.memory_analysis()
    if report is None:
        return 0
    results = report.output_size_in_bytes - report.alias_size_in_bytes  # the state is given away, and written in place
    return report.argument_size_in_bytes + results + report.temp_size_in_bytes


# --- the choice of a layout ---


def fit(lanes: int, devices: int, width: int, most: int, processes: int = 1) -> Layout:
    """The layout for a group of `lanes` in batches of at most `most`.

    It has at most the given devices and width, with these as few batches and turns as can be, and for those no more
    width and devices than the lanes need: what is left over is padding. Every process takes part with as many devices
    as the others, where need be with padding alone.
    """

    def shared(devices: int) -> int:
        return math.ceil(devices / processes) * processes

    devices = shared(max(1, min(devices, lanes, most)))
    most = max(most, devices)
    width = max(1, min(width, math.ceil(lanes / devices), most // devices))
    batches = math.ceil(lanes / (most // (devices * width) * devices * width))
    a_batch = math.ceil(lanes / batches)
    sequential = math.ceil(a_batch / (devices * width))
    width = math.ceil(a_batch / (devices * sequential))
    return Layout(shared(math.ceil(a_batch / (sequential * width))), sequential, width)


def default_layout(lanes: int, devices: int, width: int = 0, most: int = 0, tensor: int = 1, fsdp: int = 1) -> Layout:
    """What is known to be good without measuring: on a CPU one lane per device, elsewhere as wide as can be.

    `width` is that of a device; the layout of an fsdp group has `fsdp` times as many.

    Raises:
      InputError: `tensor` or `fsdp` does not divide the devices of a process, or both are more than 1.
    """
    processes = jax.process_count()
    if tensor > 1 and fsdp > 1:
        raise InputError(f"config.engine.tensor = {tensor} and fsdp = {fsdp}: one of them must be 1")
    for name, group in {"tensor": tensor, "fsdp": fsdp}.items():
        if devices // processes % group:
            raise InputError(
                f"config.engine.{name} = {group}: must divide the {devices // processes} devices of a process"
            )
    platform = jax.default_backend()
    groups = devices // (tensor * fsdp)
    most = most or max(groups * fsdp, lanes_a_batch(platform))
    width = width or (1 if platform == "cpu" else math.ceil(most / (groups * fsdp)))
    if fsdp == 1:
        return dataclasses.replace(fit(lanes, groups, width, most, processes), tensor=tensor)
    # The devices of a group share its width: it is a multiple of them, and there is one turn.
    most = min(max(most, groups * fsdp), groups * fsdp * width)
    found = fit(lanes, groups, fsdp * width, most, processes)
    return Layout(found.devices, 1, math.ceil(found.sequential * found.width / fsdp) * fsdp, fsdp=fsdp)


def narrower(layout: Layout, most: float = math.inf) -> Layout | None:
    """A layout of half the lanes, halved on until it has at most `most`; None if there are none to give up."""
    found = _halved(layout)
    while found and found.lanes > most and (next_one := _halved(found)):
        found = next_one
    return found


def _halved(layout: Layout) -> Layout | None:
    if layout.width > layout.fsdp:
        return dataclasses.replace(layout, width=math.ceil(layout.width / layout.fsdp / 2) * layout.fsdp)
    if layout.sequential > 1:
        return dataclasses.replace(layout, sequential=math.ceil(layout.sequential / 2))
    processes = jax.process_count()
    fewer = math.ceil(layout.devices / 2 / processes) * processes
    return dataclasses.replace(layout, devices=fewer) if fewer < layout.devices else None


def all_devices(of_each: int = 0) -> int:
    """Devices to compute on: of each process the given number, or else as many as each of them has."""
    fewest = min(len(jax.local_devices(process_index=i)) for i in range(jax.process_count()))
    return (of_each or fewest) * jax.process_count()


def candidates(lanes: int, devices: int, most: int = 0, tensor: int = 1, fsdp: int = 1) -> list[Layout]:
    """Layouts worth timing for a group: the default, wider ones, and on a CPU one device with all its threads."""
    sharing = {"tensor": tensor, "fsdp": fsdp}
    default = default_layout(lanes, devices, most=most, **sharing)
    cpu, of_device = jax.default_backend() == "cpu", default.width // fsdp
    widths = (2, 4, 8) if cpu else (of_device // 2, of_device // 4, of_device // 16)
    found = [default, *(default_layout(lanes, devices, width, most, **sharing) for width in widths if width > 0)]
    if cpu and devices > jax.process_count() == tensor * fsdp == 1:
        found.append(default_layout(lanes, 1, 8, most))
    return list(dict.fromkeys(found))


def seconds_per_lane_step(program: Program, arguments: Tree, steps: int) -> float:
    """Time of a short round divided by its lanes and steps: the better of two runs after a first one.

    Each is from the start: later on there may be lanes that have reached their target, and have nothing to do.
    """
    times = []
    for _ in range(3):
        state = jax.block_until_ready(program.start(arguments))
        began = time.perf_counter()
        state, record = program.advance(arguments, state, steps)
        jax.block_until_ready((state, record))
        times.append(time.perf_counter() - began)
    return min(times[1:]) / program.layout.lanes / max(steps, 1)
