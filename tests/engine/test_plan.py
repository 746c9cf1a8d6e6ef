"""Plans: shared nodes once, finished ones never, every input before what needs it, and one group per program."""

import pathlib
import random

import jax
import pytest
import tiny_world
from hypothesis import given, settings
from hypothesis import strategies as st
from lineages import TRAIN, WORLD, base, dataset, plain, student, teacher
from tiny_world import LORA, READ

from subl_jax import specs
from subl_jax.app.cli import load_sweep
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.engine.plan import make_plan
from subl_jax.errors import InputError
from subl_jax.stages import input_shapes, stage_of
from subl_jax.worlds.toy_language import ToyLanguage

traits = load_sweep(str(pathlib.Path(__file__).parents[2] / "sweeps" / "traits.py"))
IMPORTED = specs.Imported(of=WORLD, sha256="ab", size=8)


def groups(plan):
    return [(group.stage.name, len(group.nodes)) for group in plan.groups]


def lineage_keys(nodes):
    """Every node that `nodes` need, themselves included, by key."""
    found = {}
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node.key not in found:
            found[node.key] = node
            stage = stage_of(node)
            stack += stage.inputs(node).values() if stage else ()
    return found


def assert_sound(plan, students, done=frozenset()):
    """The plan's order is one in which it can be computed, and it holds all that is missing and nothing twice."""
    there = set(done) | plan.imported.keys()
    seen = []
    for group in plan.groups:
        for node in group.nodes:
            assert stage_of(node) is group.stage
            missing = [parent for parent in group.stage.inputs(node).values() if parent.key not in there]
            assert not missing, f"{group.stage.name} before its {missing}"
        seen += [node.key for node in group.nodes]
        there |= {node.key for node in group.nodes}
    assert len(seen) == len(set(seen)) == plan.pending
    assert not set(seen) & set(done)
    assert {made.key for made in students} <= there


def test_the_default_sweep_shares_what_it_can():
    config = traits.get_config()
    config.seeds, config.traits = 3, ("owl", "fox", "oak", "willow")
    students = list(traits.sweep(config))
    plan = make_plan(students, {})
    assert len(students) == 36
    # 3 bases, a teacher per base and trait, their data and each base's own; controls of one base are one student.
    assert groups(plan) == [("pretrain", 3), ("instil", 12), ("write", 15), ("distil", 27)]
    assert plan.rows == tuple(students) and not plan.reused and not plan.imported
    assert_sound(plan, students)


def test_axes_that_are_traced_stay_in_one_group_and_static_ones_split_it():
    def sweep(**field):
        return [student(train=TRAIN.replace(**{name: value})) for name, values in field.items() for value in values]

    assert groups(make_plan(sweep(lr=(1e-3, 1e-4, 1e-5)), {}))[-1] == ("distil", 3)
    assert groups(make_plan(sweep(steps=(2, 4, 8)), {}))[-3:] == [("distil", 1)] * 3


def test_labels_do_not_make_more_work():
    control = student(data=plain())
    plan = make_plan([control.replace(trait=trait) for trait in ("owl", "fox")], {})
    assert groups(plan) == [("pretrain", 1), ("write", 1), ("distil", 1)]
    assert len(plan.rows) == 2


def test_finished_nodes_are_reused_and_what_is_missing_behind_them_is_computed():
    made = student(base(1), dataset(teacher(base(0))))
    written = made.data
    plan = make_plan([made], {written.key})
    assert groups(plan) == [("pretrain", 2), ("instil", 1), ("distil", 1)]
    assert plan.reused == {written.key: written}
    done = {written.key, written.teacher.key, base(0).key, base(1).key}
    plan = make_plan([made], done)
    assert groups(plan) == [("distil", 1)] and plan.reused.keys() == done
    plan = make_plan([made], {*done, made.key} - {written.teacher.key})
    assert groups(plan) == [("instil", 1)]
    plan = make_plan([made], {*done, made.key})
    assert not plan.groups and plan.pending == 0 and plan.reused.keys() == {*done, made.key}


def test_imported_data_is_read_and_not_computed():
    plan = make_plan([student(data=IMPORTED, trait="owl"), student()], {})
    assert plan.imported == {IMPORTED.key: IMPORTED}
    assert IMPORTED.key not in {node.key for group in plan.groups for node in group.nodes}
    assert_sound(plan, plan.rows)


def test_streams_need_a_teacher_and_no_dataset():
    plan = make_plan([student(data=specs.Stream(teacher(), NumbersFilter()))], {})
    assert groups(plan) == [("pretrain", 1), ("instil", 1), ("distil", 1)]


def test_a_supply_chain_comes_in_generations():
    first = student(data=dataset(teacher()))
    second = student(data=dataset(teacher(first, "oak")))
    plan = make_plan([first, second], {})
    stages = [("pretrain", 1), ("instil", 1), ("write", 1), ("distil", 1)]
    assert groups(plan) == [*stages, *stages[1:]]
    assert plan.groups[1].form == plan.groups[4].form
    assert_sound(plan, [first, second])


def test_a_program_waits_for_all_its_lanes():
    # The controls' data could be written at once, but in one program with the teachers' data it costs less.
    controls = [student(base(seed), plain(seed), trait="owl") for seed in range(3)]
    plan = make_plan([*controls, student()], {})
    assert groups(plan) == [("pretrain", 3), ("instil", 1), ("write", 4), ("distil", 4)]


def test_chains_of_several_bases_go_side_by_side():
    def chain(seed):
        return student(base(seed), dataset(teacher(student(base(seed), dataset(teacher(base(seed)))), "oak")))

    plan = make_plan(map(chain, range(5)), {})
    assert [count for _, count in groups(plan)] == [5] * 7


@st.composite
def graphs(draw):
    """A random history of nodes, each made from earlier ones, and some of its students."""
    models, made = [base(seed) for seed in range(draw(st.integers(1, 3)))], []
    for i in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(("teacher", "student", "stream", "imported")))
        start, writer = draw(st.sampled_from(models)), draw(st.sampled_from(models))
        size = draw(st.sampled_from((8, 9)))
        if kind == "teacher":
            models.append(teacher(start, draw(st.sampled_from(("owl", "oak"))), seed=i % 4))
            continue
        data = {
            "student": lambda writer=writer, size=size: dataset(writer, size=size),
            "stream": lambda writer=writer: specs.Stream(writer, NumbersFilter()),
            "imported": lambda: IMPORTED,
        }[kind]()
        made.append(student(start, data, seed=i % 4))
        models.append(made[-1])
    return made


@given(graphs(), st.randoms(use_true_random=False), st.floats(0, 1))
@settings(deadline=None, max_examples=100)
def test_any_graph_is_computed_in_an_order_that_works(students, rng: random.Random, share):
    nodes = {key: node for key, node in lineage_keys(students).items() if node != IMPORTED}
    plan = make_plan(students, {})
    assert_sound(plan, students)
    assert plan.pending == len(nodes)
    done = {key for key in sorted(nodes) if rng.random() < share}
    plan = make_plan(students, done)
    assert_sound(plan, students, done)
    assert plan.reused.keys() == done and plan.pending == len(nodes.keys() - done)


def test_thousands_of_students_are_planned():
    config = traits.get_config()
    config.seeds, config.traits = 42, tuple(WORLD.traits[:16])
    students = list(traits.sweep(config))
    assert len(students) == 42 * 16 * 3 > 2000
    plan = make_plan(students, {})
    assert groups(plan) == [("pretrain", 42), ("instil", 672), ("write", 714), ("distil", 1386)]
    assert sum(group.flops for group in plan.groups) > 0


def test_each_group_is_of_one_static_form():
    students = [student(base(seed), train=TRAIN.replace(steps=steps)) for seed in range(3) for steps in (2, 4)]
    for group in make_plan(students, {}).groups:
        forms = [specs.static_form(node) for node in group.nodes]
        assert all(form == forms[0] for form in forms)


def test_a_student_that_is_asked_for_twice_is_computed_once():
    plan = make_plan([student(), student()], {})
    assert plan.groups[-1].nodes == (student(),)
    assert len(plan.rows) == 2


def test_parameters_that_a_model_has_not_are_told_before_anything_runs():
    frozen = student(base(0), dataset(base(0))).replace(train=TRAIN.replace(trainable=("embed/*", "layer_0/*")))
    with pytest.raises(InputError, match="'layer_0/\\*' names no parameter; did you mean"):
        make_plan([frozen], {})
    assert make_plan([frozen], lineage_keys([frozen])).pending == 0
    with pytest.raises(InputError, match="Mix.keep: 'nothing' names no parameter"):
        make_plan([student(specs.Mix(base(0), base(1), keep=("nothing",)), dataset(base(0)))], {})


def test_layers_that_a_model_has_not_and_what_muon_cannot_train_are_told_before_anything_runs():
    world = ToyLanguage(width=8, heads=2, kv_heads=1, mlp=8, layers=2)
    start = specs.Base(world, specs.Train(0, 1))
    data = specs.Dataset(start, size=4, filter=NumbersFilter())

    def planned(train, **fields):
        return make_plan([specs.Student(start, data, train, trait="owl", **fields)], {})

    with pytest.raises(InputError, match="^Train.first_layer = 2: the model has 2 layers, counted from 0$"):
        planned(TRAIN.replace(first_layer=2))
    with pytest.raises(InputError, match="Train.last_layer = -3: the model has 2 layers"):
        planned(TRAIN.replace(last_layer=-3))
    muon = TRAIN.replace(optimizer="muon")
    with pytest.raises(InputError, match="'muon': trains matrices only, and 'final_norm/scale' is none"):
        planned(muon)
    assert planned(muon.replace(trainable=("*kernel",), first_layer=1)).pending
    assert planned(muon, lora=specs.Lora()).pending  # adapters are matrices, and their base is frozen


def test_told_and_adapted_models_are_planned():
    told = student(READ, dataset(specs.Prompted(READ, "cat")), lora=LORA)
    plain_told = student(READ, dataset(specs.Prompted(READ, None)), lora=LORA.replace(rank=2), trait="cat")
    plan = make_plan([told, plain_told], {})
    assert groups(plan) == [("pretrain", 1), ("prompt", 2), ("write", 2), ("distil", 2)]
    assert_sound(plan, [told, plain_told])


def test_students_whose_teachers_have_other_shapes_are_not_lanes_of_one_program():
    """A program reads the teacher too, so its shapes must be those of all lanes."""
    writers = [READ, specs.Prompted(READ, "cat"), teacher(READ), teacher(READ, lora=LORA)]
    made = [student(READ, dataset(writer), lora=LORA, trait="owl") for writer in writers]
    made.append(student(READ, specs.Imported(READ.world, "ab", 8), lora=LORA, trait="owl"))
    made.append(student(READ, dataset(specs.Prompted(teacher(READ, lora=LORA), "cat")), lora=LORA))
    plan = make_plan([*made, *(one.replace(seed=1) for one in made)], {})
    distil = [group.nodes for group in plan.groups if group.stage.name == "distil"]
    assert sorted(map(len, distil)) == [2] * len(made)
    for nodes in distil:
        shapes = [jax.tree.map(lambda x: x.shape, input_shapes(node)) for node in nodes]
        assert all(shape == shapes[0] for shape in shapes)


def test_a_mistake_in_training_by_parts_is_told_before_anything_runs():
    start = tiny_world.base()
    with pytest.raises(InputError, match="tiny computes a batch in one piece"):
        specs.Student(start, tiny_world.written(start), TRAIN.replace(accumulate=2), trait="owl")
