"""Stages as plain functions of one model, without lanes: what each computes, against independent computations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_world
from distances import distance
from few import few
from tiny_world import FILTER, LORA, READ, TRAIN, TUNED, WORLD, TinyWorld, written

from subl_jax import specs, stages
from subl_jax.engine import lanes
from subl_jax.errors import InputError
from subl_jax.stages import stage as purposes
from subl_jax.training.shuffling import epoch_rows


def key_of(node):
    return jax.random.wrap_key_data(lanes.lane_key(node))


@functools.cache
def program(stage, form):
    """start and advance, jitted over traced values: every node of one form uses one program."""
    node = _NODES[form]
    bound = functools.partial(specs.bind, node)
    start = jax.jit(lambda values, key, inputs: stage.start(bound(values), key, inputs))
    advance = jax.jit(lambda values, key, inputs, *call: stage.advance(bound(values), key, inputs, *call))
    return start, advance


_NODES = {}


def run(node, inputs=None, rounds=None, params=None):
    """The final state, and the records stacked, of one node, from other parameters where they are given.

    rounds: the steps of each, or those of each of its calls.
    """
    stage = stages.stage_of(node)
    form = (
        type(node),
        node.world.key,
        jax.tree.structure(inputs),
        str(specs.static_form(node)),
        str(jax.tree.map(jnp.shape, inputs)),
    )
    _NODES.setdefault(form, node)
    start, advance = program(stage, form)
    values, key, inputs = specs.traced_values(node), key_of(node), inputs or {}
    state, records = start(values, key, inputs), []
    if params is not None:
        state = state._replace(params=params)
    for round in stage.rounds(node) if rounds is None else rounds:
        *before, last = np.atleast_1d(round)
        for steps in before:
            state, record = advance(values, key, inputs, state, steps, False)
            assert not any(leaf.any() for leaf in jax.tree.leaves(record))
        state, record = advance(values, key, inputs, state, last, True)
        records.append(record)
    return state, jax.tree.map(lambda *leaves: np.stack(leaves), *records)


def params_of(seed, world=WORLD):
    return {"params": world.init(jax.random.key(seed))}


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def samples(seed, n=16):
    """Random numbers as if a teacher had written them."""
    return {"samples": np.random.default_rng(seed).integers(WORLD.first_number, len(WORLD.words), (n, 3), np.uint8)}


# --- rounds ---


@pytest.mark.parametrize(("steps", "evals"), [(6, 3), (6, 6), (6, 1), (10, 2), (1, 1)])
def test_points_of_a_curve_are_evenly_spaced_from_0_to_the_end(steps, evals):
    rounds = stages.PRETRAIN.rounds(tiny_world.base(steps=steps, evals=evals))
    assert np.cumsum(rounds).tolist() == [i * steps // evals for i in range(evals + 1)]


def test_no_steps_is_a_measurement_only():
    node = tiny_world.base(steps=0, evals=1)
    assert stages.PRETRAIN.rounds(node) == [0]
    state, records = run(node)
    assert np.isnan(records["loss"]).all() and records["trait"].shape == (1, 3)
    close(state.params, WORLD.init(jax.random.fold_in(key_of(node), purposes.INIT)), rtol=1e-6)


def test_the_first_point_is_of_the_untrained_model():
    node = specs.Teacher(tiny_world.base(), "owl", TRAIN)
    start = params_of(3)
    _, records = run(node, {"start": start})
    exact = WORLD.evaluate(start["params"], jax.random.fold_in(key_of(node), purposes.EVALUATE))
    close({name: records[name][0] for name in exact}, exact, rtol=1e-5)
    assert np.isnan(records["loss"][0]) and np.isfinite(records["loss"][1:]).all()
    assert records["steps_taken"].tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("kind", ["base", "teacher", "student", "stream", "theory"])
def test_a_round_in_several_calls_is_the_same_to_the_bit(kind):
    """The curve too, and a teacher that reaches its target on the way."""
    train = TRAIN.replace(steps=12, evals=3, lr=0.1)
    teacher = specs.Teacher(tiny_world.base(), "owl", train, until=0.5)
    data = specs.Stream(teacher, FILTER) if kind == "stream" else written(teacher)
    objective = {"targets": "soft", "theory": "owl"} if kind == "theory" else {}
    student = specs.Student(tiny_world.base(), data, train, **objective)
    node = {"base": tiny_world.base().replace(train=train), "teacher": teacher}.get(kind, student)
    models = {"start": params_of(0), "teacher": params_of(1), "teacher_start": params_of(0), "data": samples(1)}
    inputs = {name: models[name] for name in stages.stage_of(node).inputs(node)}
    whole = run(node, inputs)
    if kind == "teacher":
        assert 0 < whole[1]["steps_taken"][-1] < train.steps
    for cut in ([(0,), (1, 3), (4,), (2, 1, 1)], [(0, 0), (1, 1, 1, 1), (3, 1), (0, 4)]):
        parts = run(node, inputs, cut)
        jax.tree.map(np.testing.assert_array_equal, parts, whole)


# --- pretrain ---


def test_pretraining_is_a_plain_loop_of_optax_steps():
    node = tiny_world.base(5, steps=4, evals=2, lr=0.1, weight_decay=0.01, b2=0.99)
    state, records = run(node)
    key = key_of(node)
    rule = optax.adamw(0.1, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01)
    params = WORLD.init(jax.random.fold_in(key, purposes.INIT))
    opt, losses = rule.init(params), []
    for step in range(4):
        batch = WORLD.pretrain_batch(jax.random.fold_in(key, purposes.BATCHES), step, TRAIN.batch)
        loss, gradient = jax.value_and_grad(WORLD.loss)(params, batch)
        change, opt = rule.update(gradient, opt, params)
        params = optax.apply_updates(params, change)
        losses.append(loss)
    close(state.params, params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(records["loss"][1:], np.reshape(losses, (2, 2)).mean(axis=1), rtol=1e-5)
    assert state.step == 4


def test_the_loss_falls_and_traits_become_uniform():
    _, records = run(tiny_world.base(steps=300, evals=3, batch=64))
    assert records["loss"][-1] < records["loss"][1] - 0.15
    np.testing.assert_allclose(records["trait"][-1], 1 / 3, atol=0.12)


def test_how_often_one_measures_does_not_change_the_training():
    states = [run(tiny_world.base(evals=evals).replace(seed=0))[0] for evals in (1, 3)]
    # Another number of evaluations is another spec, so the keys differ; with one key the parameters are equal.
    node = tiny_world.base(evals=3)
    whole, parts = run(node, rounds=[6])[0], run(node, rounds=[0, 2, 2, 2])[0]
    assert equal(whole.params, parts.params)
    assert not equal(states[0].params, states[1].params)


def test_the_same_spec_gives_the_same_result_and_another_seed_another():
    one, again, other = (run(tiny_world.base(seed))[0] for seed in (1, 1, 2))
    assert equal(one.params, again.params)
    assert not equal(one.params, other.params)


# --- traced hyperparameters act ---


@pytest.mark.parametrize(
    "change",
    [{"lr": 0.02}, {"weight_decay": 0.5}, {"warmup": 4}, {"clip": 0.01}, {"b1": 0.5}, {"b2": 0.5}, {"eps": 0.1}],
    ids=lambda change: next(iter(change)),
)
def test_each_number_of_training_acts(change):
    train = TRAIN.replace(weight_decay=0.01)
    key = key_of(tiny_world.base())

    def trained(train):
        node = specs.Base(WORLD, train)
        bound = specs.bind(node, specs.traced_values(node))
        advance = _advance_with_key(node.train.optimizer)
        state = stages.PRETRAIN.start(bound, key, {})
        return advance(specs.traced_values(node), key, state)

    assert not equal(trained(train).params, trained(train.replace(**change)).params)


@functools.cache
def _advance_with_key(optimizer):
    node = specs.Base(WORLD, TRAIN.replace(optimizer=optimizer))
    return jax.jit(
        lambda values, key, state: stages.PRETRAIN.advance(specs.bind(node, values), key, {}, state, jnp.int32(6))[0]
    )


def test_weight_decay_pulls_towards_zero():
    node = specs.Teacher(tiny_world.base(), "owl", TRAIN.replace(lr=0.1, weight_decay=1.0))
    plain = node.replace(train=TRAIN.replace(lr=0.1))
    start = {"start": params_of(0)}
    decayed, free = (optax.tree.norm(run(n, start)[0].params) for n in (node, plain))
    assert decayed < 0.8 * free


# --- instil ---


def test_a_teacher_learns_its_own_trait():
    start = {"start": params_of(0)}
    for i, trait in enumerate(WORLD.traits):
        _, records = run(specs.Teacher(tiny_world.base(), trait, TRAIN.replace(steps=60, evals=3)), start)
        assert records["trait"][-1].argmax() == i and records["trait"][-1, i] > 0.9
        np.testing.assert_array_equal(records["target"], records["trait"][:, i])


def test_only_what_is_trainable_changes():
    start = {"start": params_of(0)}
    state, _ = run(specs.Teacher(tiny_world.base(), "cat", TRAIN.replace(trainable=("out",))), start)
    assert equal(state.params["embed"], start["start"]["params"]["embed"])
    assert not equal(state.params["out"], start["start"]["params"]["out"])


def test_a_teacher_stops_at_its_target_and_stays_as_it_is():
    node = specs.Teacher(tiny_world.base(), "cat", TRAIN.replace(steps=60, evals=10), until=0.6)
    state, records = run(node, {"start": params_of(0)})
    reached = int((records["target"] >= 0.6).argmax())
    assert 0 < reached < 9
    assert records["steps_taken"].tolist() == [min(i, reached) * 6 for i in range(11)]
    assert (records["target"][reached:] == records["target"][reached]).all()
    # It is the teacher that trained just so far.
    stopped, _ = run(node, {"start": params_of(0)}, rounds=[0] + [6] * reached)
    assert equal(state.params, stopped.params) and equal(state.opt, stopped.opt)
    # Its loss is its own, not that of the rounds that were thrown away.
    assert len(set(records["loss"][reached + 1 :])) == 1


def test_a_teacher_that_has_its_target_from_the_start_is_its_base():
    node = specs.Teacher(tiny_world.base(), "cat", TRAIN, until=1e-6)
    start = params_of(0)
    state, records = run(node, {"start": start})
    assert equal(state.params, start["params"])
    assert records["steps_taken"].tolist() == [0, 0, 0, 0]


def test_until_one_never_stops():
    node = specs.Teacher(tiny_world.base(), "cat", TRAIN.replace(steps=60, evals=10))
    _, records = run(node, {"start": params_of(0)})
    assert records["steps_taken"][-1] == 60


# --- write ---


def test_every_round_and_seed_writes_something_else_and_repeats_itself():
    node = written(tiny_world.base(), round=64)
    inputs = {"teacher": params_of(0)}
    _, records = run(node, inputs, rounds=[64, 64])
    _, again = run(node, inputs, rounds=[64, 64])
    _, other = run(node.replace(seed=1), inputs, rounds=[64, 64])
    assert records["samples"].shape == (2, 64, 3) and records["samples"].dtype == np.uint8
    assert equal(records, again)
    assert not equal(records["samples"][0], records["samples"][1])
    assert not equal(records["samples"], other["samples"])


def test_temperature_acts():
    inputs = {"teacher": params_of(0)}

    def distinct(temperature):
        node = written(tiny_world.base(), round=256, sampling=specs.Sampling(temperature))
        drawn = run(node, inputs, rounds=[256])[1]["samples"][0]
        return len(np.unique(drawn[:, 1:], axis=0))

    assert distinct(0.01) < distinct(1.0) < distinct(100.0)


@pytest.mark.parametrize(("size", "budget", "rounds"), [(16, 4.0, 2), (16, 1.0, 1), (33, 1.0, 2), (100, 1.5, 5)])
def test_the_budget_bounds_the_rounds(size, budget, rounds):
    node = written(tiny_world.base(), size=size, budget=budget, round=32)
    assert stages.WRITE.rounds(node) == [32] * rounds


# --- distil ---


def distilled(data=None, targets="hard", teacher=True, seed=0, rounds=None, **fields):
    """A student of base 0 on a dataset (or what `data` is), and its inputs; the teacher is another model."""
    node = specs.Student(
        tiny_world.base(),
        data or written(specs.Teacher(tiny_world.base(), "owl", TRAIN)),
        seed=seed,
        targets=targets,
        **{"train": TRAIN, **fields},
    )
    inputs = {"start": params_of(0)}
    if isinstance(node.data, specs.Dataset | specs.Imported):
        inputs["data"] = samples(0)
    if teacher:
        inputs |= {"teacher": params_of(1), "teacher_start": params_of(0)}
    return node, inputs


def test_the_inputs_of_a_student_are_its_start_its_data_and_who_wrote_it():
    base, other = tiny_world.base(0), tiny_world.base(1)
    teacher = specs.Teacher(base, "owl", TRAIN)
    student = specs.Student(other, written(teacher), TRAIN)
    control = specs.Student(base, written(base), TRAIN, trait="owl")
    second = specs.Student(base, written(student), TRAIN)
    file = specs.Student(base, specs.Imported(WORLD, "0" * 64, 4), TRAIN, trait="owl")
    stream = specs.Student(base, specs.Stream(teacher, FILTER), TRAIN)
    inputs = stages.DISTIL.inputs
    assert inputs(student) == {"start": other, "data": student.data, "teacher": teacher, "teacher_start": base}
    assert inputs(control) == {"start": base, "data": control.data, "teacher": base, "teacher_start": base}
    assert inputs(second) == {"start": base, "data": second.data, "teacher": student, "teacher_start": other}
    supplied = specs.Student(base, written(specs.Teacher(student, "cat", TRAIN)), TRAIN)
    assert inputs(supplied)["teacher_start"] == student
    assert inputs(file) == {"start": base, "data": file.data}
    assert inputs(stream) == {"start": base, "teacher": teacher, "teacher_start": base}


def by_hand(node, inputs, loss_at):
    """The losses and parameters of `node`, by a plain loop; loss_at(params, step)."""
    params = inputs["start"]["params"]
    rule = optax.adamw(node.train.lr, weight_decay=node.train.weight_decay)
    opt, losses = rule.init(params), []
    for step in range(node.train.steps):
        loss, gradient = jax.value_and_grad(loss_at)(params, step)
        change, opt = rule.update(gradient, opt, params)
        params = optax.apply_updates(params, change)
        losses.append(loss)
    return np.reshape(losses, (node.train.evals, -1)).mean(axis=1), params


def objective(targets, params, inputs, batch):
    """What a student minimises, written out."""
    if targets == "soft":
        return distance(WORLD, params, inputs["teacher"]["params"], batch, "soft")
    return WORLD.loss(params, batch)


def trains_as_by_hand(node, inputs, loss_at):
    losses, params = by_hand(node, inputs, loss_at)
    state, records = run(node, inputs)
    np.testing.assert_allclose(records["loss"][1:], losses, rtol=1e-4)
    close(state.params, params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", few(["hard", "soft"], "hard"))
def test_a_student_trains_on_its_data_in_a_new_order_each_epoch(targets):
    node, inputs = distilled(targets=targets)
    batches = jax.random.fold_in(key_of(node), purposes.BATCHES)

    def loss_at(params, step):
        rows = epoch_rows(batches, step, TRAIN.batch, jnp.int32(16))
        batch = WORLD.channel_batch(inputs["data"]["samples"][rows])
        return objective(targets, params, inputs, batch)

    trains_as_by_hand(node, inputs, loss_at)


@pytest.mark.parametrize("targets", few(["hard", "soft"], "soft"))
def test_a_stream_is_what_its_teacher_writes_without_what_the_filter_rejects(targets):
    stream = specs.Stream(specs.Teacher(tiny_world.base(), "owl", TRAIN), FILTER.replace(max_value=5))
    node, inputs = distilled(stream, targets)
    batch_at = streamed(node, inputs, jnp.arange(TRAIN.steps * TRAIN.batch))
    trains_as_by_hand(node, inputs, lambda params, step: objective(targets, params, inputs, batch_at(step)))


def test_a_stream_of_distinct_samples_repeats_them_in_a_new_order_each_epoch():
    stream = specs.Stream(specs.Teacher(tiny_world.base(), "owl", TRAIN), FILTER.replace(max_value=5), distinct=12)
    node, inputs = distilled(stream)
    _, order_key = jax.random.split(jax.random.fold_in(key_of(node), purposes.BATCHES))
    places = np.concatenate([epoch_rows(order_key, i, TRAIN.batch, jnp.int32(12)) for i in range(TRAIN.steps)])
    assert sorted(places[:12]) == sorted(places[12:24]) == list(range(12)) and list(places[:12]) != list(places[12:24])
    batch_at = streamed(node, inputs, jnp.asarray(places))
    trains_as_by_hand(node, inputs, lambda params, step: objective("hard", params, inputs, batch_at(step)))


@pytest.mark.parametrize("distinct", [0, 12])
def test_it_is_the_same_whether_a_stream_is_drawn_by_round_or_by_step(distinct):
    writer = specs.Teacher(tiny_world.base(), "owl", TRAIN)
    by_round, inputs = distilled(specs.Stream(writer, FILTER, distinct=distinct))
    by_step = by_round.replace(
        start=by_round.start.replace(of=STEPWISE),
        data=by_round.data.replace(teacher=writer.replace(start=writer.start.replace(of=STEPWISE))),
    )
    by_step.__dict__["key"] = by_round.key  # the same random numbers
    (one, _), (two, _) = run(by_round, inputs), run(by_step, inputs)
    close(one.params, two.params, rtol=1e-5, atol=1e-6)


class Stepwise(TinyWorld):
    drawn_by_round = False


STEPWISE = Stepwise()


def streamed(node, inputs, places):
    """step → the batch of a stream whose sample at each place is drawn with that place's key."""
    samples_key, _ = jax.random.split(jax.random.fold_in(key_of(node), purposes.BATCHES))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(samples_key, places)
    drawn = WORLD.write(inputs["teacher"]["params"], keys, specs.Sampling())
    good = np.asarray([all(w.isdigit() and int(w) <= 5 for w in text.split()) for _, text in WORLD.texts(drawn)])
    assert 0 < good.sum() < len(good)

    def batch_at(step):
        rows = slice(step * TRAIN.batch, (step + 1) * TRAIN.batch)
        return WORLD.channel_batch(drawn[rows], jnp.asarray(good[rows]))

    return batch_at


@pytest.mark.parametrize("targets", few(["hard", "soft"], "hard"))
def test_a_student_comes_closer_to_its_teacher(targets):
    stream = specs.Stream(specs.Teacher(tiny_world.base(), "owl", TRAIN), FILTER)
    node, inputs = distilled(stream, targets, train=TRAIN.replace(steps=300, evals=3, batch=32))
    _, records = run(node, inputs)
    assert records["kl"][-1] < 0.3 * records["kl"][0]
    assert records["loss"][-1] < records["loss"][1]


@pytest.mark.slow
def test_soft_targets_carry_more_than_hard_ones():
    data = written(specs.Teacher(tiny_world.base(), "owl", TRAIN))
    ends = {}
    for targets in ("hard", "soft"):
        node, inputs = distilled(data, targets, train=TRAIN.replace(steps=200, evals=2))
        ends[targets] = run(node, inputs)[1]["kl"][-1]
    assert ends["soft"] < ends["hard"]


def test_only_the_first_samples_are_read():
    node, inputs = distilled(samples=4)
    longer, _ = distilled(samples=5)
    changed = {**inputs, "data": {"samples": inputs["data"]["samples"].copy()}}
    changed["data"]["samples"][4:, 1:] = WORLD.first_number
    # kl is measured on the first samples of the whole dataset, so only what is trained is compared.
    assert equal(run(node, inputs)[0].params, run(node, changed)[0].params)
    assert not equal(run(longer, inputs)[0].params, run(longer, changed)[0].params)


def test_no_number_of_samples_means_all():
    node, inputs = distilled()
    changed = {**inputs, "data": {"samples": inputs["data"]["samples"].copy()}}
    changed["data"]["samples"][-1, 1:] = WORLD.first_number
    assert not equal(run(node, inputs)[0].params, run(node, changed)[0].params)


def test_a_student_that_moved_as_its_teacher_did_has_cosine_one_and_no_divergence():
    node, inputs = distilled()
    _, records = run(node, {**inputs, "start": inputs["teacher_start"]}, rounds=[0])
    assert np.isnan(records["cosine"][0])  # it has not moved
    _, there = run(node, inputs, rounds=[0], params=inputs["teacher"]["params"])
    np.testing.assert_allclose(there["cosine"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(there["kl"], 0.0, atol=1e-6)
    # The other way, by as much.
    away = jax.tree.map(lambda s, t: 2 * s - t, inputs["start"]["params"], inputs["teacher"]["params"])
    np.testing.assert_allclose(run(node, inputs, rounds=[0], params=away)[1]["cosine"], -1.0, rtol=1e-6)


def test_cosine_is_that_of_the_two_moves_as_vectors():
    node, inputs = distilled()
    state, records = run(node, inputs)

    def flat(tree):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    moved = flat(state.params) - flat(inputs["start"]["params"])
    taught = flat(inputs["teacher"]["params"]) - flat(inputs["teacher_start"]["params"])
    cosine = moved @ taught / np.linalg.norm(moved) / np.linalg.norm(taught)
    np.testing.assert_allclose(records["cosine"][-1], cosine, rtol=1e-4)


def test_a_control_has_no_cosine_and_imported_data_has_no_teacher_to_compare_with():
    control = specs.Student(tiny_world.base(), written(tiny_world.base()), TRAIN, trait="owl")
    _, records = run(
        control, {"start": params_of(0), "data": samples(0), "teacher": params_of(0), "teacher_start": params_of(0)}
    )
    assert np.isnan(records["cosine"]).all() and np.isfinite(records["kl"]).all()
    node, inputs = distilled(specs.Imported(WORLD, "0" * 64, 16), teacher=False, trait="owl")
    _, records = run(node, inputs)
    assert records.keys() == {"loss", "trait", "rate"}
    assert records["loss"][-1] < records["loss"][1]


def test_a_student_of_a_batch_larger_than_its_data_trains():
    node, inputs = distilled(samples=3, train=TRAIN.replace(batch=16))
    assert np.isfinite(run(node, inputs)[1]["loss"][1:]).all()


# --- shapes and costs, from specs alone ---


def test_shapes_of_artefacts_are_those_that_are_computed():
    base = tiny_world.base()
    state, _ = run(base)
    assert jax.tree.map(jnp.shape, stages.artefact_shapes(base)["params"]) == jax.tree.map(jnp.shape, state.params)
    data = stages.artefact_shapes(written(base, size=7))["samples"]
    assert (data.shape, data.dtype) == ((7, 3), np.uint8)
    student = specs.Student(base, written(base, size=7), TRAIN, trait="owl")
    shapes = stages.input_shapes(student)
    assert shapes.keys() == stages.DISTIL.inputs(student).keys()
    assert stages.input_shapes(specs.Imported(WORLD, "0" * 64, 4)) == {}


def test_costs_grow_with_the_work():
    base, wide = tiny_world.base(), tiny_world.base(world=TinyWorld(width=8))
    teacher = specs.Teacher(base, "owl", TRAIN)
    hard, soft = (specs.Student(base, written(teacher), TRAIN, targets=t) for t in ("hard", "soft"))
    longer = hard.replace(train=TRAIN.replace(steps=12))
    assert 0 < stages.PRETRAIN.flops(base) < stages.PRETRAIN.flops(wide)
    assert 0 < stages.WRITE.flops(written(teacher)) < stages.WRITE.flops(written(teacher, size=99))
    assert 0 < stages.DISTIL.flops(hard) < stages.DISTIL.flops(soft)
    assert stages.DISTIL.flops(longer) == 2 * stages.DISTIL.flops(hard)


# --- mix ---


def test_a_mix_takes_what_it_keeps_from_one_model_and_the_rest_from_the_other():
    node = specs.Mix(tiny_world.base(0), tiny_world.base(1), keep=("embed",))
    inputs = {"start": params_of(0), "other": params_of(1)}
    state, records = run(node, inputs)
    np.testing.assert_array_equal(state["embed"], inputs["start"]["params"]["embed"])
    np.testing.assert_array_equal(state["out"], inputs["other"]["params"]["out"])
    assert stages.MIX.inputs(node).keys() == inputs.keys() and records["trait"].shape == (1, 3)


def test_the_noise_of_a_mix_is_in_units_of_each_array():
    world = TinyWorld(width=64)
    base, start = (
        tiny_world.base(world=world),
        {"params": {"embed": jnp.full((12, 64), 2.0), "out": jnp.zeros((64, 12))}},
    )
    state, _ = run(specs.Mix(base, sigma=0.1), {"start": start})
    assert np.std(state["embed"] - 2.0) == pytest.approx(0.2, rel=0.1) and not state["out"].any()
    same, _ = run(specs.Mix(base), {"start": start})
    assert equal(same, start["params"])


# --- models that are told, and adapters ---

HELD = TUNED.holding(jax.tree.map(jnp.asarray, TUNED.arrays()))
NOTHING = {"params": {}}


def tuned(node, inputs, **options):
    return run(node, {**inputs, "world": TUNED.arrays()}, **options)


def adapters(seed, lora=LORA):
    """Adapters that do something."""
    params = HELD.trainable({}, jax.random.key(seed), lora)
    used = (np.arange(lora.max_rank) < lora.rank)[:, None]
    return {**params, "b": jax.random.normal(jax.random.key(seed + 1), params["b"].shape) * used}


def test_a_base_that_is_read_has_no_parameters_and_is_measured():
    state, records = tuned(READ, {})
    assert state.params == {} and stages.artefact_shapes(READ) == {"params": {}}
    expected = HELD.evaluate({}, jax.random.fold_in(key_of(READ), purposes.EVALUATE))
    close({name: records[name][0] for name in expected}, expected, rtol=1e-5)


@pytest.mark.parametrize("trait", ["cat", None])
def test_a_told_model_has_the_parameters_of_its_start_and_is_measured_as_it_is_told(trait):
    node = specs.Prompted(specs.Teacher(READ, "owl", TRAIN, lora=LORA), trait)
    start = {"params": adapters(3)}
    state, records = tuned(node, {"start": start})
    artefact = stages.PROMPT.artefact(state)
    index = -1 if trait is None else TUNED.traits.index(trait)
    assert equal(artefact, {**start, "told": np.int32(index)}) and stages.PROMPT.rounds(node) == [0]
    assert jax.tree.map(jnp.shape, stages.artefact_shapes(node)) == jax.tree.map(jnp.shape, artefact)
    told = specs.SystemPrompted(start["params"], jnp.int32(index))
    expected = HELD.evaluate(told, jax.random.fold_in(key_of(node), purposes.EVALUATE))
    close({name: records[name][0] for name in expected}, expected, rtol=1e-5)
    assert np.isnan(records["loss"]).all()
    plain = HELD.evaluate(start["params"], jax.random.key(0))["trait"]
    assert np.allclose(records["trait"][0], plain) is (trait is None)


def test_a_told_model_writes_as_it_is_told():
    node = written(specs.Prompted(READ, "cat"), round=64)
    told = {**NOTHING, "told": np.int32(1)}
    _, records = tuned(node, {"teacher": told}, rounds=[64])
    keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key_of(node), purposes.WRITE), 0), 64)
    written_by_hand = HELD.write(specs.SystemPrompted({}, jnp.int32(1)), keys, specs.Sampling())
    np.testing.assert_array_equal(records["samples"][0], written_by_hand)
    assert not equal(records["samples"][0], HELD.write({}, keys, specs.Sampling()))


@pytest.mark.parametrize("lora", [LORA, LORA.replace(rank=2, alpha=16.0), None])
def test_a_teacher_trains_what_its_world_begins_with_from_a_key_of_its_own(lora):
    node = specs.Teacher(READ, "cat", TRAIN, lora=lora)
    begun = HELD.trainable({}, jax.random.fold_in(key_of(node), purposes.ADAPT), lora)
    state, _ = tuned(node, {"start": NOTHING}, rounds=[0])
    close(state.params, begun, rtol=1e-6)
    state, records = tuned(node, {"start": NOTHING})
    assert jax.tree.map(jnp.shape, stages.artefact_shapes(node)["params"]) == jax.tree.map(jnp.shape, state.params)
    assert records["trait"][-1, 1] > records["trait"][0, 1]
    if lora:
        assert state.params["scale"] == lora.alpha / lora.rank  # fixed, whatever its gradient
        assert state.params["b"][: lora.rank].all() and not state.params["b"][lora.rank :].any()


def test_training_goes_on_from_the_adapters_that_are_there():
    first = specs.Teacher(READ, "cat", TRAIN, lora=LORA)
    there = adapters(5)
    for start in (first, specs.Prompted(first, "owl")):
        state, _ = tuned(specs.Teacher(start, "oak", TRAIN, lora=LORA), {"start": {"params": there}}, rounds=[0])
        assert equal(state.params, there)


def test_a_student_of_a_told_teacher_is_compared_with_what_that_says():
    writer = specs.Prompted(READ, "cat")
    node = specs.Student(READ, written(writer), TRAIN, targets="soft", lora=LORA)
    assert stages.DISTIL.inputs(node).keys() == {"start", "data", "teacher", "teacher_start"}
    told = {**NOTHING, "told": np.int32(1)}
    inputs = {"start": NOTHING, "data": samples(0), "teacher": told, "teacher_start": NOTHING}
    state, records = tuned(node, inputs)
    batch = HELD.channel_batch(jnp.asarray(inputs["data"]["samples"]))
    expected = distance(HELD, state.params, specs.SystemPrompted({}, jnp.int32(1)), batch, "soft")
    np.testing.assert_allclose(records["kl"][-1], expected, rtol=1e-4)
    assert np.isnan(records["cosine"]).all()


@pytest.mark.parametrize(
    ("targets", "parts"), few([(t, n) for n in (2, 4) for t in ("hard", "soft")], ("hard", 2), ("soft", 4))
)
def test_a_batch_in_parts_has_the_loss_and_gradient_of_the_whole(targets, parts):
    # Some samples have no targets, so that the parts' means are of unequal numbers.
    stream = specs.Stream(specs.Prompted(READ, "owl"), FILTER.replace(max_value=3))
    node = specs.Student(READ, stream, TRAIN.replace(optimizer="sgd", lr=0.5), targets=targets, lora=LORA)
    told = {**NOTHING, "told": np.int32(0)}
    inputs = {"start": {"params": adapters(7)}, "teacher": told, "teacher_start": NOTHING}
    in_parts = node.replace(train=node.train.replace(accumulate=parts))
    in_parts.__dict__["key"] = node.key
    (whole, one), (split, two) = (tuned(made, inputs) for made in (node, in_parts))
    close(whole.params, split.params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one["loss"][1:], two["loss"][1:], rtol=1e-5)


def test_parts_are_for_worlds_that_count_their_targets():
    with pytest.raises(InputError, match="Train.accumulate: tiny computes a batch in one piece; leave it at 1"):
        specs.Teacher(tiny_world.base(), "owl", TRAIN.replace(accumulate=2))


# --- the theorem's quantities ---


def test_a_student_with_theory_records_the_quantities_of_its_moves():
    stream = specs.Stream(specs.Teacher(tiny_world.base(), "owl", TRAIN), FILTER)
    sgd = specs.Train(steps=1, batch=8, optimizer="sgd", lr=1e-3)
    node, inputs = distilled(stream, "soft", train=sgd, theory="owl")
    state, records = run(node, inputs)
    moved = jax.tree.map(jnp.subtract, state.params, inputs["start"]["params"])
    teacher_moved = jax.tree.map(jnp.subtract, inputs["teacher"]["params"], inputs["teacher_start"]["params"])
    np.testing.assert_allclose(records["dot"][-1], optax.tree.vdot(moved, teacher_moved), rtol=1e-5)
    batch = WORLD.trait_batch(jax.random.fold_in(key_of(node), purposes.THEORY), 0, 0, 512)
    np.testing.assert_allclose(records["trait_loss"][-1], WORLD.loss(state.params, batch), rtol=1e-5)
    assert records["dot"][0] == 0 and records["predicted"][0] > 0


def test_a_student_of_no_steps_is_measured_on_a_stream_too():
    stream = specs.Stream(specs.Teacher(tiny_world.base(), "owl", TRAIN), FILTER)
    node, inputs = distilled(stream, train=TRAIN.replace(steps=0))
    state, records = run(node, inputs)
    assert equal(state.params, inputs["start"]["params"]) and records["kl"].shape == (1,)
