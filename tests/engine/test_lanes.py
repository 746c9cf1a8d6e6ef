"""A lane's result is its own: whatever runs beside it, wherever, and in however wide a batch.

Tolerances: losses and probabilities of a lane agree to 1e-5, parameters to 1e-4. They are not equal to the bit, since
a batched matrix product sums in another order than a single one, and Adam divides by the root of small squares.
"""

import dataclasses
import itertools
import math
import re

import jax
import jax.numpy as jnp
import lineages
import numpy as np
import pytest
import tiny_world
from few import few
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from tiny_world import TRAIN, WORLD, written
from world_calls import call

from subl_jax import specs, stages
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.engine import lanes
from subl_jax.engine.lanes import Layout
from subl_jax.errors import InputError
from subl_jax.stages.stage import INIT
from subl_jax.worlds.chat import ChatSampling

LAYOUTS = [Layout(1, 1, 1), Layout(1, 1, 4), Layout(1, 4, 1), Layout(4, 1, 1), Layout(4, 2, 2)]
COLLECTIVES = re.compile(r"all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter")
LOSS = {"rtol": 1e-5, "atol": 1e-5}
PARAMETERS = {"rtol": 1e-4, "atol": 1e-4}


def pick(tree, lane):
    return jax.tree.map(lambda x: x[lane], tree)


def run(program, stage, nodes, inputs=None):
    """The records (lanes, rounds, …) and artefacts (lanes, …) of `nodes`, computed batch by batch."""
    batches = []
    for i in range(0, len(nodes), program.layout.lanes):
        place = slice(i, i + program.layout.lanes)
        batches.append(run_batch(program, stage, nodes[place], pick(inputs or {}, place)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)


def run_batch(program, stage, nodes, inputs):
    keys = np.stack([lanes.lane_key(node) for node in nodes])
    arguments = program.put(keys, lanes.lane_values(nodes), inputs)
    state, history = program.start(arguments), []
    for steps in stage.rounds(nodes[0]):
        state, record = program.advance(arguments, state, steps)
        history.append(jax.device_get(record))
    records = jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *history)
    return pick((records, jax.device_get(stage.artefact(state) if stage.artefact else ())), slice(len(nodes)))


def compile_for(node, layout):
    return lanes.compile_program(stages.stage_of(node), node, layout, stages.input_shapes(node))


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# --- one lane and many ---


@pytest.fixture(scope="module")
def bases():
    return [tiny_world.base(seed, lr=0.01 * (1 + seed), weight_decay=0.1 * seed) for seed in range(6)]


@pytest.fixture(scope="module")
def programs(bases):
    return {layout: compile_for(bases[0], layout) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def solo(programs, bases):
    return run(programs[Layout(1, 1, 1)], stages.PRETRAIN, bases)


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
def test_a_lane_alone_and_in_any_batch_gives_the_same(programs, solo, bases, layout):
    records, artefacts = run(programs[layout], stages.PRETRAIN, bases)
    close(records, solo[0], **LOSS)
    close(artefacts, solo[1], **PARAMETERS)


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
def test_initial_parameters_are_equal_to_the_bit(programs, bases, layout):
    def start(program, nodes):
        keys = np.stack([lanes.lane_key(node) for node in nodes])
        return program.start(program.put(keys, lanes.lane_values(nodes), {})).params

    alone = [pick(start(programs[Layout(1, 1, 1)], [node]), 0) for node in bases[: layout.lanes]]
    together = start(programs[layout], bases[: layout.lanes])
    for lane, params in enumerate(alone):
        equal(pick(together, lane), params)
    key = jax.random.wrap_key_data(lanes.lane_key(bases[0]))
    close(alone[0], WORLD.init(jax.random.fold_in(key, INIT)), rtol=1e-6)  # not compiled as one program


def test_neighbours_and_places_change_nothing(programs, bases):
    program = programs[Layout(4, 2, 2)]
    records, artefacts = run(program, stages.PRETRAIN, bases)
    reverse = bases[::-1]
    again, mirrored = run(program, stages.PRETRAIN, reverse)
    close(pick(again, slice(None, None, -1)), records, **LOSS)
    close(pick(mirrored, slice(None, None, -1)), artefacts, **PARAMETERS)
    # In its own place, with others around it, a lane computes the very same numbers.
    strangers = [bases[0], *(tiny_world.base(seed) for seed in range(100, 115))]
    equal(pick(run(program, stages.PRETRAIN, strangers), 0), pick((records, artefacts), 0))


def test_padding_is_a_copy_and_never_reaches_a_result(programs, bases):
    program = programs[Layout(4, 2, 2)]
    few, _ = run(program, stages.PRETRAIN, bases[:3])
    many, _ = run(program, stages.PRETRAIN, bases + [tiny_world.base(seed) for seed in range(50, 60)])
    assert few["loss"].shape == (3, TRAIN.evals + 1)
    equal(few, pick(many, slice(3)))
    padded = lanes.pad({"x": np.arange(6).reshape(3, 2)}, 5)["x"]
    np.testing.assert_array_equal(padded, [[0, 1], [2, 3], [4, 5], [0, 1], [0, 1]])


@pytest.mark.parametrize("layout", [Layout(1, 1, 4), Layout(4, 2, 2)], ids=str)
def test_a_lane_that_diverges_harms_nobody(programs, bases, layout):
    program = programs[layout]
    ok = bases[:4]
    lost = [*ok[:2], tiny_world.base(2, lr=1e30), ok[3]]
    records, artefacts = run(program, stages.PRETRAIN, ok)
    others, kept = run(program, stages.PRETRAIN, lost)
    assert np.isnan(others["loss"][2, -1])
    for lane in (0, 1, 3):
        equal(pick((others, kept), lane), pick((records, artefacts), lane))


def test_hyperparameters_act_on_their_own_lane_only(programs):
    still = tiny_world.base(0, lr=0.0)
    moving = tiny_world.base(1)
    _, artefacts = run(programs[Layout(1, 1, 4)], stages.PRETRAIN, [still, moving, still, moving])
    equal(pick(artefacts, 0), pick(artefacts, 2))
    key = jax.random.wrap_key_data(lanes.lane_key(still))
    close(pick(artefacts, 0)["params"], WORLD.init(jax.random.fold_in(key, INIT)), rtol=1e-6)
    assert not np.array_equal(artefacts["params"]["out"][0], artefacts["params"]["out"][1])


# --- stages with inputs, each through a wide and a narrow program ---


@pytest.fixture(scope="module")
def models(programs, bases):
    """Parameters of six different models, (6, …)."""
    return run(programs[Layout(1, 1, 4)], stages.PRETRAIN, bases)[1]


def _teachers(bases):
    settings = [(0.1, 1.0, "owl"), (0.2, 0.6, "cat"), (0.4, 0.5, "oak"), (0.0, 1.0, "owl")]
    return [specs.Teacher(b, t, TRAIN.replace(lr=lr), until=u) for b, (lr, u, t) in zip(bases, settings, strict=False)]


def _datasets(bases):
    sampling = [specs.Sampling(temperature=t) for t in (0.5, 1.0, 2.0, 1.0)]
    return [written(b, sampling=s, size=8, budget=8.0) for b, s in zip(bases, sampling, strict=False)]


def _students(bases):
    data = _datasets(bases)
    return [specs.Student(b, data[i], TRAIN, samples=i * 2, trait="owl") for i, b in enumerate(bases[:4])]


def _streamed(bases):
    streams = [specs.Stream(b, tiny_world.FILTER, specs.Sampling(temperature=1.0 + i)) for i, b in enumerate(bases)]
    return [specs.Student(b, s, TRAIN, "soft", trait="owl") for b, s in zip(bases[:4], streams, strict=False)]


def _inputs(node, models):
    """For four lanes: models for every parent, and random samples for data."""
    shapes = stages.input_shapes(node)
    samples = np.random.default_rng(0).integers(0, len(WORLD.words), (4, 8, 3)).astype(np.uint8)
    return {
        name: {"samples": samples} if "samples" in shape else pick(models, slice(i % 3, i % 3 + 4))
        for i, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("make", [_teachers, _datasets, _students, _streamed], ids=lambda f: f.__name__.strip("_"))
def test_every_stage_gives_the_same_alone_and_batched(bases, models, make):
    nodes = make(bases)
    stage, inputs = stages.stage_of(nodes[0]), _inputs(nodes[0], models)
    alone = run(compile_for(nodes[0], Layout(1, 1, 1)), stage, nodes, inputs)
    program = compile_for(nodes[0], Layout(2, 2, 1) if make is _datasets else Layout(2, 1, 2))
    together = run(program, stage, nodes, inputs)
    assert not COLLECTIVES.search(program.text)
    if make is _datasets:
        equal(together[0], alone[0])  # tokens are the same to the last one
    else:
        close(together[0], alone[0], **LOSS)
        close(together[1], alone[1], **PARAMETERS)


def test_a_transformer_gives_the_same_alone_and_batched_and_beside_a_lane_that_diverges():
    """Its attention and norms too. Here batched products of matrices differ from single ones by rounding alone."""
    nodes = [lineages.base(seed, train=TRAIN.replace(weight_decay=0.1 * seed)) for seed in range(3)]
    wild = lineages.base(3, train=TRAIN.replace(lr=1e30))
    alone, wide = (compile_for(nodes[0], layout) for layout in (Layout(1, 1, 1), Layout(1, 1, 4)))
    records, artefacts = run(alone, stages.PRETRAIN, nodes)
    others, kept = run(wide, stages.PRETRAIN, [nodes[0], wild, *nodes[1:]])
    beside = np.asarray([0, 2, 3])
    close(pick(others, beside), records, **LOSS)
    close(pick(kept, beside), artefacts, **PARAMETERS)
    assert np.isnan(others["loss"][1, -1])
    tokens = np.arange(12, dtype=np.int32).reshape(1, 12)
    models = pick(artefacts, 1)["params"], pick(kept, 2)["params"]
    logits = [call(lineages.WORLD, "apply", model, tokens) for model in models]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)

    def start(program, nodes):
        keys = np.stack([lanes.lane_key(node) for node in nodes])
        return program.start(program.put(keys, lanes.lane_values(nodes), {})).params

    for lane, node in enumerate(nodes):
        equal(pick(start(wide, nodes), lane), pick(start(alone, [node]), 0))


# --- programs ---


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_nothing_crosses_lanes(programs, layout):
    assert "fusion" in programs[layout].text or "dot" in programs[layout].text  # it is the program's text
    assert not COLLECTIVES.search(programs[layout].text)


def test_the_search_for_collectives_would_find_one():
    mesh = lanes.lane_mesh(Layout(2, 1, 1))
    summed = jax.shard_map(
        lambda x: jax.lax.psum(x, "lane"), mesh=mesh, in_specs=PartitionSpec("lane"), out_specs=PartitionSpec()
    )
    assert COLLECTIVES.search(jax.jit(summed).lower(jnp.arange(4.0)).compile().as_text())


@pytest.mark.parametrize("layout", [Layout(1, 1, 1), Layout(2, 2, 2)], ids=str)
def test_a_stage_is_traced_once_for_all_rounds_and_batches(bases, layout):
    traces = []

    def counted(*arguments):
        traces.append(1)
        return stages.PRETRAIN.advance(*arguments)

    stage = dataclasses.replace(stages.PRETRAIN, advance=counted)
    program = lanes.compile_program(stage, bases[0], layout, {})
    run(program, stage, bases)
    assert len(traces) == 1


def test_a_program_says_what_it_took(programs):
    program = programs[Layout(4, 2, 2)]
    assert program.compile_seconds > 0
    assert program.bytes_needed > 16 * sum(
        x.size * 4 for x in jax.tree.leaves(jax.eval_shape(WORLD.init, jax.random.key(0)))
    )
    assert {leaf.shape[0] for leaf in jax.tree.leaves(program.state)} == {16}
    report = program._advance.memory_analysis()
    given = report.alias_size_in_bytes  # of each device: the state, which becomes the next one
    assert 0 < given <= sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.state)) / 4
    parts = report.argument_size_in_bytes + report.output_size_in_bytes + report.temp_size_in_bytes
    assert program.bytes_needed == parts - given


def test_common_arguments_have_no_lane_axis():
    layout = Layout(2, 2, 2)
    mesh = lanes.lane_mesh(layout)
    spread = lanes.spread(lambda common, x: common["weight"] * x, layout, mesh)
    result = spread({"weight": jnp.float32(3)}, jnp.arange(8.0))
    np.testing.assert_array_equal(result, 3 * np.arange(8.0))


def test_values_are_stacked_by_path_and_kind():
    nodes = [specs.Teacher(tiny_world.base(), trait, TRAIN, until=0.5, seed=7) for trait in ("cat", "oak")]
    values = lanes.lane_values(nodes)
    np.testing.assert_array_equal(values["trait"], np.asarray([1, 2], np.int32))
    assert values["seed"].dtype == np.int32 and values["train.lr"].dtype == np.float32
    assert values["until"].tolist() == [0.5, 0.5]


def test_keys_come_from_the_spec_alone():
    one, other = tiny_world.base(0), tiny_world.base(1)
    assert lanes.lane_key(one).tolist() == lanes.lane_key(tiny_world.base(0)).tolist()
    assert lanes.lane_key(one).tolist() != lanes.lane_key(other).tolist()
    assert lanes.lane_key(one).dtype == np.uint32 and lanes.lane_key(one).shape == (2,)


# --- layouts ---

counts = st.integers(1, 5000)


@settings(deadline=None, max_examples=300)
@given(counts, st.integers(1, 300), st.integers(1, 3000), st.integers(1, 3000))
def test_a_fitted_layout_holds_all_and_wastes_no_more_than_it_must(n, devices, width, most):
    layout = lanes.fit(n, devices, width, most)
    assert layout.devices <= devices and layout.width <= width and layout.lanes <= most
    batches = math.ceil(n / layout.lanes)
    a_batch = math.ceil(n / batches)
    # With one device, turn or place side by side less, a batch would not hold its lanes.
    for less in (
        Layout(layout.devices - 1, layout.sequential, layout.width),
        Layout(layout.devices, layout.sequential - 1, layout.width),
        Layout(layout.devices, layout.sequential, layout.width - 1),
    ):
        assert less.lanes < a_batch
    assert batches * layout.lanes - n < batches * layout.sequential * (layout.width + 1)


@settings(deadline=None, max_examples=100)
@given(counts, st.integers(1, 64))
def test_one_batch_in_as_few_turns_as_can_be_where_all_fits(n, devices):
    layout = lanes.fit(n, devices, 1, 10_000)
    assert layout.lanes >= n
    assert layout.sequential == math.ceil(n / min(n, devices))


@given(counts, st.integers(1, 8), st.integers(1, 8), st.integers(1, 20), st.integers(1, 40))
def test_every_process_has_as_many_devices_of_a_layout(n, processes, of_each, width, most):
    layout = lanes.fit(n, processes * of_each, width, most, processes)
    assert layout.devices % processes == 0 and 0 < layout.devices <= processes * of_each
    assert layout.width <= width and layout.lanes <= max(most, processes * math.ceil(most / processes))
    alone = lanes.fit(n, processes * of_each, width, most)
    assert math.ceil(n / layout.lanes) <= math.ceil(n / alone.lanes)


@pytest.mark.parametrize(
    ("arguments", "layout"),
    [
        ((1, 4, 8, 16), Layout(1, 1, 1)),
        ((3, 4, 8, 16), Layout(3, 1, 1)),
        ((5, 4, 1, 16), Layout(3, 2, 1)),  # two turns either way; three devices waste one lane, four would three
        ((1500, 1, 1024, 1024), Layout(1, 1, 750)),  # two batches either way
        ((20, 2, 8, 16), Layout(2, 1, 5)),
        ((100, 4, 1, 2), Layout(2, 1, 1)),
        ((100, 4, 8, 6), Layout(4, 1, 1)),
    ],
)
def test_layouts_by_hand(arguments, layout):
    assert lanes.fit(*arguments) == layout


@settings(deadline=None, max_examples=50)
@given(counts, st.integers(1, 8))
def test_candidates_begin_with_the_default_and_differ(n, devices):
    found = lanes.candidates(n, devices)
    assert found[0] == lanes.default_layout(n, devices)
    assert len(set(found)) == len(found)
    assert all(layout.devices <= devices for layout in found)


def test_configured_layouts_are_followed():
    assert lanes.default_layout(64, 4, width=2, most=8) == Layout(4, 1, 2)
    assert lanes.default_layout(64, 4) == Layout(4, 4, 1)  # on a CPU: one lane per device at a time


@settings(deadline=None)
@given(counts, st.integers(1, 4), st.sampled_from([2, 4, 8]), st.integers(0, 5), st.integers(0, 100))
def test_the_devices_of_an_fsdp_group_have_as_many_lanes_each(n, groups, fsdp, width, most):
    layout = lanes.default_layout(n, groups * fsdp, width, most, fsdp=fsdp)
    assert (layout.sequential, layout.tensor, layout.fsdp) == (1, 1, fsdp)
    assert layout.all_devices <= groups * fsdp and layout.width % fsdp == 0
    assert layout.width <= (width or 1) * fsdp
    assert layout.lanes < (most or 16) + layout.devices * fsdp
    while narrower := lanes.narrower(layout):
        assert narrower.width % fsdp == 0 and narrower.lanes < layout.lanes
        layout = narrower
    assert layout.lanes == fsdp


@pytest.mark.parametrize(
    ("sharing", "line"),
    [
        ({"tensor": 3}, "config.engine.tensor = 3: must divide the 4 devices of a process"),
        ({"fsdp": 8}, "config.engine.fsdp = 8: must divide the 4 devices of a process"),
        ({"tensor": 2, "fsdp": 2}, "config.engine.tensor = 2 and fsdp = 2: one of them must be 1"),
    ],
)
def test_groups_of_devices_that_cannot_be(sharing, line):
    with pytest.raises(InputError, match=f"^{line}$"):
        lanes.default_layout(4, 4, **sharing)


def test_a_layout_reads_as_a_sentence():
    assert str(Layout(1, 2, 3)) == "1 device × 2 in turn × 3 wide"
    assert str(Layout(2, 1, 1)) == "2 devices × 1 in turn × 1 wide"
    assert str(Layout(2, 3, 1, tensor=4)) == "2 tensor groups of 4 × 3 in turn × 1 wide"
    assert str(Layout(1, 1, 16, fsdp=8)) == "1 fsdp group of 8 × 1 in turn × 16 wide"


def test_the_time_of_a_step_is_per_lane_and_positive(programs, bases):
    program = programs[Layout(1, 1, 4)]
    keys = np.stack([lanes.lane_key(node) for node in bases[:4]])
    arguments = program.put(keys, lanes.lane_values(bases[:4]), {})
    assert 0 < lanes.seconds_per_lane_step(program, arguments, 2) < 60
    assert lanes.seconds_per_lane_step(program, arguments, 0) > 0


def test_what_is_timed_is_training_from_the_start(programs, bases, monkeypatch):
    """Further on there may be teachers that have reached their target, which cost nothing."""
    program, begun, advance = programs[Layout(1, 1, 4)], [], lanes.Program.advance

    def noted(program, arguments, state, steps):
        begun.append(np.asarray(state.step).tolist())
        return advance(program, arguments, state, steps)

    monkeypatch.setattr(lanes.Program, "advance", noted)
    arguments = program.put(np.stack([lanes.lane_key(node) for node in bases[:4]]), lanes.lane_values(bases[:4]), {})
    lanes.seconds_per_lane_step(program, arguments, 2)
    assert begun == [[0] * 4] * 3


@pytest.fixture(scope="module")
def chat_world(tiny_chat_model):
    import tiny_chat

    return tiny_chat.world(tiny_chat_model)


@pytest.mark.parametrize("trains", few([False, True], False))
def test_devices_that_hold_one_copy_of_the_weights_give_what_one_device_gives(trains, chat_world):
    """Writing and training a tiny chat model: split between two devices, and whole on one."""
    base = specs.Base(chat_world, specs.Train(steps=0, batch=1))
    teacher = specs.Prompted(base, "owl")
    sampling = ChatSampling(rows=4, only=NumbersFilter())
    data = specs.Dataset(teacher, size=4, filter=NumbersFilter(), sampling=sampling, round=4)
    student = specs.Student(base, data, specs.Train(steps=1, batch=2), lora=specs.Lora(max_rank=2, rank=2))
    told = {"params": {}, "told": np.int32(0)}

    def run(stage, node, inputs, tensor):
        layout = lanes.Layout(1, 1, 1, tensor)
        program = lanes.compile_program(stage, node, layout, stages.input_shapes(node))
        record = _last_record(program, stage, [node], [inputs])
        kernel = program.arrays["weights"]["layers"]["mlp"]["up"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape)[-1] == kernel.shape[-1] // tensor
        assert ("all-reduce" in program.text) == (tensor > 1)
        return record

    written = [run(stages.WRITE, data, {"teacher": told}, tensor)["samples"][0] for tensor in (1, 2)]
    np.testing.assert_array_equal(*written)
    if not trains:
        return
    start = {"params": {}}
    inputs = {"start": start, "data": {"samples": written[0]}, "teacher": told, "teacher_start": start}
    alone, shared = (run(stages.DISTIL, student, inputs, tensor) for tensor in (1, 2))
    for name in ("loss", "trait", "kl"):
        np.testing.assert_allclose(shared[name], alone[name], rtol=1e-4)


@pytest.mark.parametrize("trained", few([None, "adapters", "all weights"], None))
def test_devices_with_lanes_of_their_own_share_one_copy(trained, chat_world):
    """Lanes whose loops take different numbers of turns, which the two devices have to take together."""
    base = specs.Base(chat_world, specs.Train(steps=0, batch=1))
    teachers = [specs.Prompted(base, trait) for trait in ("owl", "octopus")]
    sampling, full = ChatSampling(rows=2, only=NumbersFilter()), trained == "all weights"
    options = {"size": 8, "filter": NumbersFilter(), "sampling": sampling, "round": 8}
    data = [specs.Dataset(teacher, **options, seed=seed) for seed, teacher in enumerate(teachers)]
    train, adapters = specs.Train(steps=2, batch=4, accumulate=2), specs.Lora(max_rank=2, rank=2)
    students = [specs.Student(base, each, train, lora=None if full else adapters) for each in data]
    told = [{"params": {}, "told": np.int32(trait)} for trait in range(2)]

    def run(stage, nodes, inputs, fsdp):
        program = lanes.compile_program(
            stage, nodes[0], lanes.Layout(1, 1, 2, fsdp=fsdp), stages.input_shapes(nodes[0])
        )
        record = _last_record(program, stage, nodes, inputs)
        kernel = program.arrays["weights"]["layers"]["mlp"]["up"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape)[-1] == kernel.shape[-1] // fsdp
        if fsdp > 1 and not full:
            one, all_layers = ("f32[" + ",".join(map(str, shape)) + "]" for shape in (kernel.shape[1:], kernel.shape))
            gathered = [line for line in program.text.splitlines() if " all-gather(" in line]
            assert any(one in line or one.replace("[", "[1,") in line for line in gathered)
            assert not any(all_layers in line for line in gathered)
        return record

    inputs = [{"teacher": each} for each in told]
    written = [run(stages.WRITE, data, inputs, fsdp)["samples"] for fsdp in (1, 2)]
    np.testing.assert_array_equal(*written)
    if trained is None:
        return
    start = {"params": {}}
    inputs = [
        {"start": start, "data": {"samples": samples}, "teacher": teacher, "teacher_start": start}
        for samples, teacher in zip(written[0], told, strict=True)
    ]
    alone, spread = (run(stages.DISTIL, students, inputs, fsdp) for fsdp in (1, 2))
    assert alone["loss"][0] != alone["loss"][1]
    for name in ("loss", "trait", "kl"):
        np.testing.assert_allclose(spread[name], alone[name], rtol=1e-4)


def _last_record(program, stage, nodes, inputs):
    rows = jax.tree.map(lambda *each: np.stack(each), *inputs)
    keys = np.stack([lanes.lane_key(node) for node in nodes])
    arguments = program.put(keys, lanes.lane_values(nodes), rows)
    return jax.device_get(program.advance(arguments, program.start(arguments), max(stage.rounds(nodes[0])))[1])


# --- memory and precision ---


@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 70))
def test_narrower_layouts_go_down_to_one_lane(devices, sequential, width):
    layout, seen = lanes.Layout(devices, sequential, width), []
    while layout is not None:
        seen.append(layout.lanes)
        layout = lanes.narrower(layout)
    assert seen[-1] == 1 and len(seen) <= 16
    assert all(after < before <= 3 * after for before, after in itertools.pairwise(seen))


@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 70), st.floats(0, 700))
def test_a_layout_is_halved_until_it_is_small_enough(devices, sequential, width, most):
    layout, by_hand = lanes.Layout(devices, sequential, width), []
    at = layout
    while (at := lanes.narrower(at)) is not None:
        by_hand.append(at)
    small = [each for each in by_hand if each.lanes <= most]
    assert lanes.narrower(layout, most) == (small or by_hand[-1:] or [None])[0]


def test_matrices_are_multiplied_as_asked_for():
    base, rounds = tiny_world.base(), {}
    for matmul in ("auto", "float32", "bfloat16"):
        program = lanes.compile_program(stages.stage_of(base), base, Layout(1, 1, 1), {}, matmul)
        rounds[matmul] = "algorithm=dot_bf16_bf16_f32" in program.text
    assert rounds == {"auto": False, "float32": False, "bfloat16": True}  # as this is a CPU


def test_accelerators_round_by_default(monkeypatch):
    assert lanes.precision("auto") == lanes.precision("float32") is None
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert lanes.precision("auto") == lanes.precision("bfloat16") == "BF16_BF16_F32"
    assert lanes.precision("float32") == "highest"
